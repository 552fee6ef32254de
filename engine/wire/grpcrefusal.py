"""A gRPC server that has no service: every call over HTTP/2 is answered with one error and its text. Pure: bytes in, bytes out.

Sources: RFC 9113 (frames), RFC 7541 (header fields, here only literal ones without Huffman's code), and gRPC's "PROTOCOL-HTTP2", by which
an answer may be trailers alone. Header fields of requests are not read, so that nothing has to be decompressed.
"""

from __future__ import annotations

from struct import Struct
from urllib.parse import quote

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
UNIMPLEMENTED = 12  # gRPC's code

_HEAD = Struct(">HBBBI")  # length in 16 + 8 bits, type, flags, stream
_LARGEST = 16384  # bytes of a frame, unless the settings say otherwise
_HEADERS, _SETTINGS, _PING, _GOAWAY, _CONTINUATION = 1, 4, 6, 7, 9
_ACK = _END_STREAM = 1
_END_HEADERS = 4
_STATUS_200 = b"\x88"  # ":status: 200" of the static table


class Malformed(ValueError):
    """The bytes are not HTTP/2; the connection is to be closed."""


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return _HEAD.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def _number(value: int) -> bytes:
    """A length of a string: an integer with a prefix of 7 bits."""
    if value < 127:
        return bytes((value,))
    found, value = bytearray((127,)), value - 127
    while value >= 128:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def _field(name: str, value: str) -> bytes:
    """A field that goes into no table."""
    return b"\0" + b"".join(_number(len(one)) + one for one in (name.encode(), value.encode()))


class Refusal:
    """The server's side of one connection. `feed` what comes, send what it returns; `closed` when there is nothing more to say."""

    def __init__(self, message: str, code: int = UNIMPLEMENTED) -> None:
        self._waiting = bytearray()
        self._begun = self.closed = False
        self._fields = _STATUS_200 + b"".join((
            _field("content-type", "application/grpc"), _field("grpc-status", str(code)),
            _field("grpc-message", quote(message, safe=" !\"#$&'()*+,/:;<=>?@[\\]^_`{|}~")),
        ))  # fmt: skip

    def feed(self, data: bytes) -> bytes:
        """What to send for what was received. Raises Malformed."""
        self._waiting += data
        answer = b""
        if not self._begun:
            if not PREFACE.startswith(self._waiting[: len(PREFACE)]):
                raise Malformed("no HTTP/2")
            if len(self._waiting) < len(PREFACE):
                return b""
            del self._waiting[: len(PREFACE)]
            self._begun = True
            answer = _frame(_SETTINGS, 0, 0)
        while len(self._waiting) >= _HEAD.size and not self.closed:
            high, low, kind, flags, stream = _HEAD.unpack_from(self._waiting)
            length = high << 8 | low
            if length > _LARGEST:
                raise Malformed(f"a frame of {length} bytes")
            if len(self._waiting) < _HEAD.size + length:
                break
            payload = bytes(self._waiting[_HEAD.size : _HEAD.size + length])
            del self._waiting[: _HEAD.size + length]
            answer += self._answer(kind, flags, stream, payload)
        return answer

    def _answer(self, kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        if kind == _SETTINGS and not flags & _ACK:
            return _frame(_SETTINGS, _ACK, 0)
        if kind == _PING and not flags & _ACK:
            return _frame(_PING, _ACK, 0, payload)
        if kind == _GOAWAY:
            self.closed = True
        elif kind in (_HEADERS, _CONTINUATION) and flags & _END_HEADERS:
            return _frame(_HEADERS, _END_HEADERS | _END_STREAM, stream, self._fields)
        return b""
