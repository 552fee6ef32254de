"""Versions of the Engine API: which are answered, and the headers that tell clients. Engine API reference, "Versioning"."""

from __future__ import annotations

import functools
import re

from engine.errors import InvalidParameter
from engine.spec.version import API_VERSION, MIN_API_VERSION, VERSION

__all__ = ["API_VERSION", "BASE_HEADERS", "LATEST", "MIN_API_VERSION", "PING_HEADERS", "VERSION", "Version", "parse"]

Version = tuple[int, int]

_NUMBER = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})")


def _split(text: str) -> Version:
    major, _, minor = text.partition(".")
    return int(major), int(minor)


LATEST = _split(API_VERSION)
_OLDEST = _split(MIN_API_VERSION)

# Clients look for "Docker/" in Server and for the exact spelling of Ostype and Docker-Experimental.
BASE_HEADERS = f"Api-Version: {API_VERSION}\r\nDocker-Experimental: false\r\nOstype: linux\r\nServer: Docker/{VERSION} (linux)\r\n".encode()

# Builder-Version 1: `docker build` takes the classic endpoint, which says that it is not there; 2 would start BuildKit's handshake.
PING_HEADERS = b"Builder-Version: 1\r\nCache-Control: no-cache, no-store, must-revalidate\r\nPragma: no-cache\r\nSwarm: inactive\r\n"


@functools.lru_cache(maxsize=256)
def parse(text: str) -> Version:
    """`1.41` -> (1, 41). Raises InvalidParameter in Docker's words when this daemon does not speak it."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise InvalidParameter(f"invalid API version: {text}")
    version = int(match[1]), int(match[2])
    if version > LATEST:
        raise InvalidParameter(f"client version {text} is too new. Maximum supported API version is {API_VERSION}")
    if version < _OLDEST:
        raise InvalidParameter(
            f"client version {text} is too old. Minimum supported API version is {MIN_API_VERSION}, "
            "please upgrade your client to a newer version"
        )
    return version
