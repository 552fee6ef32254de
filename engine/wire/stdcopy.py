"""Docker's multiplexed stream: an 8-byte header (stream, three zero bytes, big-endian length) before each piece of output. Pure."""

from __future__ import annotations

import struct

STDOUT = 1
STDERR = 2

_HEADER = struct.Struct(">BxxxI")


def frame(stream: int, data: bytes) -> bytes:
    """`data` as one frame of `stream`."""
    return _HEADER.pack(stream, len(data)) + data


def parse(header: bytes) -> tuple[int, int]:
    """(stream, length) of an 8-byte header."""
    stream, length = _HEADER.unpack(header)
    return stream, length
