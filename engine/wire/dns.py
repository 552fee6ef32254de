"""DNS messages as far as an embedded name server needs them: questions in, small answers out. Pure functions over bytes, no I/O.

Owns the layout of RFC 1035 (header, question, A, AAAA and PTR records) and of RFC 6891 (EDNS(0)). Everything else of DNS passes through
unread: what this server does not know itself it forwards as it came. There is no library here: it runs in a process whose whole
memory is that of the bare interpreter, and any DNS library would cost more than all the rest of it. So nothing but `struct` and
`_socket` is imported either.

Names are bytes, lower case, labels joined by dots, without the one at the end; a dot inside a label is escaped with a backslash, so that it
never equals a name of two labels. Text of hostile senders is bounded everywhere: 255 bytes a name, 63 a label, pointers only backwards.
"""

from __future__ import annotations

import _socket
import struct

A = 1
PTR = 12
OPT = 41
AAAA = 28
ANY = 255
IN = 1

NOERROR = 0
FORMERR = 1
SERVFAIL = 2
NXDOMAIN = 3
NOTIMP = 4
REFUSED = 5
BADVERS = 16

# Seconds an answer may be kept. A container that is started again often has another address, and asking here costs microseconds: short.
TTL = 5

UDP_SIZE = 512  # bytes that every client takes (RFC 1035 section 4.2.1)
OUR_UDP_SIZE = 1232  # what we tell clients that we take
TCP_SIZE = 65535

_HEADER = struct.Struct(">HHHHHH")
_QUESTION = struct.Struct(">HH")
_RECORD = struct.Struct(">HHIH")  # type, class, ttl, length of the data; after the name
_FLAGS = struct.Struct(">H")
_NAME_LIMIT = 255
_LABEL_LIMIT = 63
_EXTRA_LIMIT = 8  # records beside the question; a client sends one at most
_QR, _TC, _RD, _RA = 0x8000, 0x0200, 0x0100, 0x0080
_OPCODE = 0x7800
_DO = 0x8000  # in the TTL field of OPT: DNSSEC answers wanted
_POINTER = b"\xc0\x0c"  # to the question's name


class Malformed(ValueError):
    """Bytes that are no DNS message; says which part is wrong."""


class Query:
    """A parsed question. `end`: offset after it. `size`: bytes of an answer by UDP that the client takes. `refusal`: NOERROR, or the code
    that says what of this query nobody here understands. `plain`: nothing in it is unlike in the next query for the same name."""

    __slots__ = ("cls", "dnssec", "edns", "end", "flags", "name", "plain", "refusal", "size", "type")

    def __init__(self, name: bytes, type: int, cls: int, flags: int, end: int) -> None:
        self.name = name
        self.type = type
        self.cls = cls
        self.flags = flags
        self.end = end
        self.size = UDP_SIZE
        self.edns = False
        self.dnssec = False
        self.plain = True
        self.refusal = NOERROR


def read_name(packet: bytes, at: int) -> tuple[bytes, int]:
    """The name at `at`, and where what follows it begins. Raises Malformed."""
    labels: list[bytes] = []
    size, after, limit = 0, -1, at
    try:
        while True:
            length = packet[at]
            if length == 0:
                return b".".join(labels).lower(), at + 1 if after < 0 else after
            if length >= 0xC0:
                target = (length & 0x3F) << 8 | packet[at + 1]
                if after < 0:
                    after = at + 2
                if not _HEADER.size <= target < limit:  # only backwards, further each time: it ends
                    raise Malformed(f"a name's pointer at {at} leads to {target}")
                at = limit = target
                continue
            if length > _LABEL_LIMIT:
                raise Malformed(f"a label of {length} bytes at {at}")
            size += length + 1
            label = packet[at + 1 : at + 1 + length]
            if size >= _NAME_LIMIT or len(label) < length:
                raise Malformed(f"a name at {at} is too long or cut off")
            labels.append(label.replace(b"\\", b"\\\\").replace(b".", b"\\.") if b"." in label or b"\\" in label else label)
            at += length + 1
    except IndexError:
        raise Malformed("a name is cut off") from None


def parse(packet: bytes) -> Query:
    """The question of a query. Raises Malformed for what is none: too short, a response, not exactly one question."""
    if len(packet) < _HEADER.size:
        raise Malformed(f"{len(packet)} bytes")
    _, flags, questions, answers, authorities, extra = _HEADER.unpack_from(packet)
    if flags & _QR:
        raise Malformed("a response")
    if questions != 1:
        raise Malformed(f"{questions} questions")
    name, at = read_name(packet, _HEADER.size)
    if at + _QUESTION.size > len(packet):
        raise Malformed("the question is cut off")
    type, cls = _QUESTION.unpack_from(packet, at)
    query = Query(name, type, cls, flags, at + _QUESTION.size)
    if flags & _OPCODE:
        query.refusal = NOTIMP
    records = answers + authorities + extra
    if records > _EXTRA_LIMIT:
        raise Malformed(f"{records} records in a query")
    if records:
        _read_extra(packet, query, records)
    return query


def _read_extra(packet: bytes, query: Query, records: int) -> None:
    at = query.end
    for _ in range(records):
        owner, at = read_name(packet, at)
        if at + _RECORD.size > len(packet):
            raise Malformed("a record is cut off")
        type, size, ttl, length = _RECORD.unpack_from(packet, at)
        at += _RECORD.size + length
        if at > len(packet):
            raise Malformed("a record's data is cut off")
        if type != OPT:
            query.plain = False
            continue
        if query.edns or owner:
            raise Malformed("more than one OPT record, or one with a name")
        query.edns = True
        query.size = max(UDP_SIZE, size)
        query.dnssec = bool(ttl & _DO)
        query.plain = query.plain and not length
        if ttl >> 16 & 0xFF:
            query.refusal = BADVERS


def is_query(packet: bytes) -> bool:
    """Whether these bytes may be answered at all: a whole header that is no response (two servers must never answer each other)."""
    return len(packet) >= _HEADER.size and not packet[2] & 0x80


def failure(packet: bytes, rcode: int) -> bytes:
    """A bare answer to what could not be parsed; `packet` is one that `is_query`."""
    flags = _FLAGS.unpack_from(packet, 2)[0]
    return packet[:2] + _HEADER.pack(0, _QR | (flags & (_OPCODE | _RD)) | rcode, 0, 0, 0, 0)[2:]


def record(type: int, data: bytes) -> bytes:
    """A record for the question's own name."""
    return _POINTER + _RECORD.pack(type, IN, TTL, len(data)) + data


def reply(packet: bytes, query: Query, rcode: int = NOERROR, records: tuple[bytes, ...] | list[bytes] = (), limit: int = TCP_SIZE) -> bytes:
    """The answer to a parsed query. Records that do not fit in `limit` bytes are left out, and TC tells the client to ask by TCP."""
    flags = _QR | _RA | (query.flags & (_OPCODE | _RD)) | (rcode & 0xF)
    opt = b"\0" + _RECORD.pack(OPT, OUR_UDP_SIZE, rcode >> 4 << 24 | (_DO if query.dnssec else 0), 0) if query.edns else b""
    room = limit - query.end - len(opt)
    fitting = 0
    for data in records:
        room -= len(data)
        if room < 0:
            flags |= _TC
            break
        fitting += 1
    return b"".join(
        (
            packet[:2],
            _HEADER.pack(0, flags, 1, fitting, 0, 1 if opt else 0)[2:],
            packet[_HEADER.size : query.end],
            *records[:fitting],
            opt,
        )
    )


def cut(packet: bytes, query: Query) -> bytes:
    """The answer that says: too large, ask again by TCP."""
    made = bytearray(reply(packet, query))
    made[2] |= _TC >> 8
    return bytes(made)


def answers(packet: bytes, query: Query, response: bytes) -> bool:
    """Whether `response` is one to the query in `packet`: same id, same question (names in any case)."""
    size = query.end
    return (
        len(response) >= size
        and response[:2] == packet[:2]
        and bool(response[2] & 0x80)
        and response[4:6] == b"\0\1"
        and response[_HEADER.size : size].lower() == packet[_HEADER.size : size].lower()
    )


def rcode(response: bytes) -> int:
    """The four bits of the response's code."""
    return response[3] & 0xF


def address(text: str) -> tuple[int, bytes]:
    """Type and data of the record for an address. Raises OSError when it is none."""
    if ":" in text:
        return AAAA, _socket.inet_pton(_socket.AF_INET6, text)
    return A, _socket.inet_pton(_socket.AF_INET, text)


def reverse_name(data: bytes) -> bytes:
    """The name that a PTR question about an address has (RFC 1035 section 3.5, RFC 3596 section 2.5); `data` as `address` gives it."""
    if len(data) == 4:
        return ".".join(str(byte) for byte in reversed(data)).encode() + b".in-addr.arpa"
    return ".".join(reversed(data.hex())).encode() + b".ip6.arpa"


def encode_name(name: bytes) -> bytes:
    """A dotted name as it stands in a record. Raises Malformed when it has an empty or too long label."""
    wire = bytearray()
    for label in name.split(b"."):
        if not 0 < len(label) <= _LABEL_LIMIT:
            raise Malformed(f"a label of {len(label)} bytes")
        wire.append(len(label))
        wire += label
    if len(wire) >= _NAME_LIMIT:
        raise Malformed(f"a name of {len(wire)} bytes")
    return bytes(wire) + b"\0"
