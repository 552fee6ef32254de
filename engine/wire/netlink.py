"""Netlink's bytes: messages, attributes, acknowledgements. Pure; shared by rtnetlink (links, addresses, routes) and nfnetlink (firewall).

A message is struct nlmsghdr (length u32, type u16, flags u16, sequence u32, port u32) and a payload; an attribute is struct nlattr (length
u16, type u16) and a value. Both are padded to four bytes, the padding is not counted by the length. Numbers are the host's
byte order unless a function's name says `be`. Source: include/uapi/linux/netlink.h, Documentation/userspace-api/netlink/intro.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3

NLM_F_REQUEST: Final = 0x01
NLM_F_ACK: Final = 0x04
NLM_F_DUMP_INTR: Final = 0x10  # in an answer: the table changed while it was dumped, so the dump may lack entries
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLM_F_APPEND: Final = 0x800
NLM_F_ROOT: Final = 0x100
NLM_F_MATCH: Final = 0x200
NLM_F_DUMP: Final = NLM_F_ROOT | NLM_F_MATCH
NLM_F_CAPPED: Final = 0x100  # in an acknowledgement: it holds only the header of the request
NLM_F_ACK_TLVS: Final = 0x200  # in an acknowledgement: attributes follow

NLA_F_NESTED: Final = 0x8000
NLA_TYPE_MASK: Final = 0x3FFF

HEADER_LENGTH: Final = 16

# SOL_NETLINK and the socket's options, which Python's socket module does not name.
SOL_NETLINK: Final = 270
NETLINK_CAP_ACK: Final = 10
NETLINK_EXT_ACK: Final = 11
NETLINK_GET_STRICT_CHK: Final = 12

_ACK_MESSAGE = 1
_ACK_OFFSET = 2

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_U8 = struct.Struct("=HHB3x")
_U16 = struct.Struct("=HHH2x")
_U32 = struct.Struct("=HHI")
_U64 = struct.Struct("=HHQ")
_ERRNO = struct.Struct("=i")
_LENGTH = struct.Struct("=I")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


class MalformedMessage(ValueError):
    """Bytes that are no netlink message or attribute: a length is too small, or larger than what is there."""


class Message(NamedTuple):
    """A message as it came. `flags`: NLM_F_*; `seq`: of the request that it answers; `pid`: port of the socket it is for."""

    type: int
    flags: int
    seq: int
    pid: int
    payload: bytes


class Ack(NamedTuple):
    """What an NLMSG_ERROR or NLMSG_DONE says. `errno`: 0 for success, else positive; `offset`: of the faulty attribute in the
    request's bytes (header included), -1 where the kernel does not say; `text`: the kernel's explanation, or "". A success can
    come with a text, which is a warning."""

    errno: int
    offset: int
    text: str


def message(type: int, flags: int, seq: int, payload: bytes) -> bytes:
    """One message, padded, so that messages can be joined to a batch. NLM_F_REQUEST is added; the port is left to the kernel."""
    length = HEADER_LENGTH + len(payload)
    return _HEADER.pack(length, type, flags | NLM_F_REQUEST, seq, 0) + payload + _PADDING[length & 3]


def attribute(type: int, value: bytes) -> bytes:
    """One attribute, padded. ValueError when the value is longer than 65531 bytes."""
    length = 4 + len(value)
    if length > 0xFFFF:
        raise ValueError(f"a netlink attribute (type {type}) cannot hold {len(value)} bytes")
    return _ATTRIBUTE.pack(length, type) + value + _PADDING[length & 3]


def nested(type: int, *attributes: bytes) -> bytes:
    """An attribute made of attributes, with NLA_F_NESTED."""
    return attribute(type | NLA_F_NESTED, b"".join(attributes))


def flag(type: int) -> bytes:
    """An attribute without a value: being there is what it says."""
    return _ATTRIBUTE.pack(4, type)


def u8(type: int, value: int) -> bytes:
    """One byte."""
    return _U8.pack(5, type, value)


def u16(type: int, value: int) -> bytes:
    """Two bytes, the host's order."""
    return _U16.pack(6, type, value)


def u32(type: int, value: int) -> bytes:
    """Four bytes, the host's order."""
    return _U32.pack(8, type, value)


def u64(type: int, value: int) -> bytes:
    """Eight bytes, the host's order."""
    return _U64.pack(12, type, value)


def be32(type: int, value: int) -> bytes:
    """Four bytes, network order."""
    return _ATTRIBUTE.pack(8, type) + value.to_bytes(4, "big")


def text(type: int, value: str) -> bytes:
    """A string, NUL-terminated as the kernel's NLA_NUL_STRING wants it. ValueError for a NUL inside, which would cut it."""
    raw = value.encode()
    if b"\0" in raw:
        raise ValueError(f"a NUL in {value!r}")
    return attribute(type, raw + b"\0")


def parse(data: bytes) -> Iterator[Message]:
    """The messages of what one receive gave. Raises MalformedMessage where the bytes stop being messages."""
    position = 0
    end = len(data)
    while position < end:
        if end - position < HEADER_LENGTH:
            raise MalformedMessage(f"a netlink message's header is cut off: {end - position} bytes at {position}")
        length, type, flags, seq, pid = _HEADER.unpack_from(data, position)
        if length < HEADER_LENGTH or length > end - position:
            raise MalformedMessage(f"a netlink message of {length} bytes at {position} of {end}")
        yield Message(type, flags, seq, pid, data[position + HEADER_LENGTH : position + length])
        position += (length + 3) & ~3


def attribute_list(payload: bytes, start: int = 0) -> list[tuple[int, bytes]]:
    """(type, value) of all attributes from `start` on, in order; for lists, where one type comes several times.

    Types are without NLA_F_NESTED and NLA_F_NET_BYTEORDER. Raises MalformedMessage.
    """
    found = []
    end = len(payload)
    while end - start >= 4:
        length, type = _ATTRIBUTE.unpack_from(payload, start)
        if length < 4 or length > end - start:
            raise MalformedMessage(f"a netlink attribute of {length} bytes at {start} of {end}")
        found.append((type & NLA_TYPE_MASK, payload[start + 4 : start + length]))
        start += (length + 3) & ~3
    return found


def attributes(payload: bytes, start: int = 0) -> dict[int, bytes]:
    """The attributes from `start` on by type; of several with one type the last. Raises MalformedMessage."""
    return dict(attribute_list(payload, start))


def error(payload: bytes, flags: int = 0) -> Ack:
    """What an NLMSG_ERROR says. `flags`: those of its header, which tell where the explanation is.

    Raises MalformedMessage.
    """
    if len(payload) < 4 + HEADER_LENGTH:
        raise MalformedMessage(f"a netlink acknowledgement of {len(payload)} bytes")
    (number,) = _ERRNO.unpack_from(payload)
    if not flags & NLM_F_ACK_TLVS:
        return Ack(-number, -1, "")
    start = 4 + HEADER_LENGTH
    if not flags & NLM_F_CAPPED:  # the whole request comes back before the attributes
        (length,) = _LENGTH.unpack_from(payload, 4)
        start = 4 + ((max(length, HEADER_LENGTH) + 3) & ~3)
    return _explained(-number, payload, start)


def done(payload: bytes, flags: int = 0) -> Ack:
    """What the NLMSG_DONE at a dump's end says: the dump can fail in the middle. Raises MalformedMessage."""
    if len(payload) < 4:
        return Ack(0, -1, "")
    (number,) = _ERRNO.unpack_from(payload)
    return _explained(-number if number < 0 else 0, payload, 4) if flags & NLM_F_ACK_TLVS else Ack(-number if number < 0 else 0, -1, "")


def _explained(number: int, payload: bytes, start: int) -> Ack:
    found = attributes(payload, start)
    raw = found.get(_ACK_OFFSET, b"")
    offset = _LENGTH.unpack(raw)[0] if len(raw) == _LENGTH.size else -1
    return Ack(number, offset, string(found.get(_ACK_MESSAGE, b"")))


def string(value: bytes) -> str:
    """A string attribute's text, up to its NUL; what is not UTF-8 is shown as U+FFFD."""
    return value.partition(b"\0")[0].decode(errors="replace")
