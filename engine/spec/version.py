"""The versions that Knarr tells: of the program, and of the Engine API it speaks. Pure data."""

VERSION = "0.1.0"
API_VERSION = "1.51"  # the newest that is answered; the last one with the shapes that all of today's clients understand
MIN_API_VERSION = "1.24"  # what dockerd can be configured down to; docker-py, Portainer and testcontainers still use old ones
