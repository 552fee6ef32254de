"""Helpers over trio; the lowest layer that may import it."""
