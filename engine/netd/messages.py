"""What the daemon and knarr-netd say to each other, both directions: values in, bytes out and back. No I/O.

One packet of a SOCK_SEQPACKET holds one or more messages: kind u8, length u32 of the body, body; little-endian. A body is a row of values,
each with a letter before it: `i` i64, `s` u32 and UTF-8 (names of others may be any bytes: surrogates pass), `l` u32 and as many values.
Descriptors come with the packet; each message takes those it speaks of, in order.

A daemon of another build meets a running netd, so HELLO, HANDOVER and the answers to them (WELCOME, HAS_…, GIVES_…, HELD) must stay as they
are for ever; whatever else changes is safe, since the older one hands everything over and ends.
"""

from __future__ import annotations

import struct

# From the daemon. In brackets: descriptors.
HELLO = 1  # build, path of the host's resolv.conf → WELCOME, HAS_…, HELD
HANDOVER = 2  # → GIVES_…, HELD; the process then serves only the connections that it has, and ends
PUBLISH = 3  # network, network's name, endpoint, container's name, names, addresses
WITHDRAW = 4  # network, endpoint
SERVE = 5  # container, internal, networks as (id, name), links as (alias, targets), upstreams, descriptors [0, or UDP and TCP]
LEAVE = 6  # container
RELAY = 7  # key, protocol, address, port, descriptors [0 or 1]
UNRELAY = 8  # key
STATUS = 9  # → STATE
STOP = 10  # end at once

# From netd.
WELCOME = 65  # build, pid
HAS_CONTAINER = 66  # container
HAS_ENDPOINT = 67  # network, endpoint
HAS_RELAY = 68  # key [1: a copy of its socket]
HELD = 69  # everything was said
GIVES_CONTAINER = 70  # container [UDP, TCP]
GIVES_RELAY = 71  # key [1]
STATE = 72  # names and numbers, one after the other
WARNING = 73  # text for the daemon's log

HOST = "host"  # among upstream servers: those of the host's resolv.conf as it is now
FALLBACK = ("8.8.8.8", "8.8.4.4")  # Docker's, for a host that names none

SOCKET_NAME = "netd.sock"
PACKET_LIMIT = 64 * 1024
FDS_LIMIT = 64  # in one packet; the kernel's SCM_MAX_FD is 253

_HEAD = struct.Struct("<BI")
_INTEGER = struct.Struct("<q")
_COUNT = struct.Struct("<I")
_DEPTH = 4


class MalformedMessage(ValueError):
    """Bytes that are no message; says which part is wrong."""


def encode(kind: int, *values: object) -> bytes:
    """One message. Values are int, str and lists or tuples of values."""
    parts: list[bytes] = []
    for value in values:
        _encode(value, parts)
    body = b"".join(parts)
    return _HEAD.pack(kind, len(body)) + body


def _encode(value: object, parts: list[bytes]) -> None:
    if isinstance(value, str):
        raw = value.encode("utf-8", "surrogateescape")
        parts.append(b"s" + _COUNT.pack(len(raw)))
        parts.append(raw)
    elif isinstance(value, int):
        parts.append(b"i" + _INTEGER.pack(value))
    elif isinstance(value, (list, tuple)):
        parts.append(b"l" + _COUNT.pack(len(value)))
        for item in value:
            _encode(item, parts)
    else:
        raise TypeError(f"a message cannot hold {type(value).__name__}")


def decode(packet: bytes) -> list[tuple[int, list]]:  # type: ignore[type-arg]  # the reader of a kind knows its values
    """All messages of a packet: kind and values. Raises MalformedMessage."""
    found = []
    at = 0
    try:
        while at < len(packet):
            kind, length = _HEAD.unpack_from(packet, at)
            at += _HEAD.size
            end = at + length
            if end > len(packet):
                raise MalformedMessage(f"a message of {length} bytes is cut off")
            values = []
            while at < end:
                value, at = _decode(packet, at, end, _DEPTH)
                values.append(value)
            found.append((kind, values))
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise MalformedMessage(f"a message is cut off or damaged at {at}: {error}") from error
    return found


def _decode(packet: bytes, at: int, end: int, depth: int) -> tuple[object, int]:
    letter = packet[at : at + 1]
    at += 1
    if letter == b"i":
        number: int = _INTEGER.unpack_from(packet, at)[0]
        return number, at + _INTEGER.size
    count: int = _COUNT.unpack_from(packet, at)[0]
    at += _COUNT.size
    if count > end - at:
        raise MalformedMessage(f"{count} bytes or values at {at} are cut off")
    if letter == b"s":
        return packet[at : at + count].decode("utf-8", "surrogateescape"), at + count
    if letter != b"l" or not depth:
        raise MalformedMessage(f"no value at {at}")
    values = []
    for _ in range(count):
        value, at = _decode(packet, at, end, depth - 1)
        values.append(value)
    return values, at
