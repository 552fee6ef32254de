"""Caches of builds elsewhere: in registries, folders and images."""
