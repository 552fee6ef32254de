"""The Dockerfile language: text to instructions, words, patterns. Pure."""
