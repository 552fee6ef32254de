"""Build checks, outlines and targets. Pure."""
