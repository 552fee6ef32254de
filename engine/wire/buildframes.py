"""The protocol between `knarr build` and its daemon: frames both ways on one upgraded connection. Owns the bytes, does no I/O.

A frame is an 8-byte header and a payload. Header: kind (1 byte), stream (3 bytes), length of the payload (4 bytes); numbers are big
endian throughout. A payload has at most `MAX_PAYLOAD` bytes. A *message* is the payload of one frame, or of several of the same kind and
stream of which all but the last have the bit `MORE` in their kind: the decoder joins them. FILES, OUTPUT and CHANNEL are pieces of byte
streams and are never joined.

Client to daemon:

REQUEST      message, JSON: {"options": Options, "auth": {host: auth config}, "secrets": {id: base64}, "contexts": [name, ...]}. First.
MANIFEST     message: what is in the context whose index in "contexts" is the stream number; see below. For each context.
FILES        bytes of a context's files (the stream number is the context's), see below; an empty frame ends them.
CHANNEL      bytes to the ssh agent stream of that number. CHANNEL_END: the client's agent hung up.
CANCEL       empty: end the build. So does closing the connection.

Daemon to client:

NEED         message: which files of a context to send, see below. Sent for each context once, also when it is empty.
EVENT        message: one Progress as JSON.
OUTPUT       bytes of the output of that index in `outputs` (a tar); OUTPUT_END, empty, ends it.
OPEN         message, a new ssh agent stream: its number is the frame's stream number, its payload the identifier given with --ssh.
CHANNEL      bytes to the client's agent. CHANNEL_END: the process in the build hung up.
RESULT       message: a Result as JSON. The last frame.
ERROR        message, JSON: {"message", "status", "excerpt"}: `excerpt` is lines of the Dockerfile with a mark, or "". The last frame.

A MANIFEST is a head and then, for a context of the kind FOLDER, folders until the message ends, each before the folders in it, in the
order of the bytes of their paths' components; the first is the root with the path "":

    head    version u8 (1), kind u8 (FOLDER or TAR), length of the name u16, length of the origin u16, name, origin
    folder  length of the path u16, flags u8 (RACY or 0), number of entries u32, length of the entries u32, path, entries
    entry   type u8, mode u16 (permission bits), lengths of name, target and attributes u16 each, size u64, mtime i64 (ns), ctime i64 (ns),
            inode u64, name, target, attributes
    attribute  length of its name u8, length of its value u16, name, value

Entries of one folder are sorted by name (bytes) and are everything that is to be in that folder. A path has no slash at its ends and no
empty, "." or ".." component; a name is one component. `type` is a letter: "f" file, "d" folder, "l" symbolic link (`target`: where to),
"h" another name of a file (`target`: the path of its first name in this manifest, an "f" before it), "p" named pipe, "c" and "b" devices
(`size` is the device number: major << 32 | minor). `size` is 0 for what is no file or device. `origin` tells contexts apart: the client's
machine and the folder's absolute path, any bytes. `ctime` and `inode` are only compared: a file whose entry is byte for byte that of the
last build is not asked for. A file so young that a change could leave no trace in its times has RACY_TIME as `ctime`, and its folder the
flag RACY: it is always asked for. Owners are not sent: everything belongs to root, as in BuildKit's contexts.

A NEED is u32 numbers of entries, ascending, each an "f": entries of all folders are counted from 0 in the order of the manifest.
FILES answers in the order of NEED: per file number u32, size u64, and exactly that many bytes, at any boundaries of frames. For a
context of the kind TAR, NEED is empty and FILES are the archive's bytes as they are, perhaps compressed, sent without waiting for NEED.
"""

from __future__ import annotations

import struct

REQUEST, MANIFEST, FILES, CHANNEL, CHANNEL_END, CANCEL = 1, 2, 3, 4, 5, 6
NEED, EVENT, OUTPUT, OUTPUT_END, OPEN, RESULT, ERROR = 16, 17, 18, 19, 20, 21, 22
MORE = 0x80
"""Set in a frame's kind when the message goes on in the next frame of that kind and stream."""

MAX_PAYLOAD = 1 << 20
MAX_STREAM = (1 << 24) - 1
HEADER = 8
_HEADER = struct.Struct(">II")

MESSAGE_LIMITS = {REQUEST: 32 << 20, MANIFEST: 512 << 20, NEED: 64 << 20, EVENT: 16 << 20, OPEN: 1 << 10, RESULT: 64 << 20, ERROR: 1 << 20}
"""Bytes that a joined message of a kind may have. Kinds that are not here are never joined."""
_BEGUN = 1000  # messages at once: an empty piece costs no payload, but a record
_KINDS = frozenset((*MESSAGE_LIMITS, FILES, CHANNEL, CHANNEL_END, CANCEL, OUTPUT, OUTPUT_END))

VERSION = 1
FOLDER, TAR = 0, 1
HEAD = struct.Struct(">BBHH")
FOLDER_HEAD = struct.Struct(">HBII")
ENTRY = struct.Struct(">BHHHHQqqQ")
ATTRIBUTE = struct.Struct(">BH")
FILE_HEAD = struct.Struct(">IQ")
TYPES = b"fdlhpcb"
RACY = 1
RACY_TIME = -1


class MalformedFrame(ValueError):
    """The other side sent what the protocol does not allow. The connection is of no use any more."""


def frame(kind: int, stream: int, payload: bytes) -> bytes:
    """One frame. `payload` has at most MAX_PAYLOAD bytes."""
    return header(kind, stream, len(payload)) + payload


def header(kind: int, stream: int, length: int) -> bytes:
    """The header of a frame whose payload of `length` bytes is sent by other means."""
    if length > MAX_PAYLOAD or not 0 <= stream <= MAX_STREAM:
        raise ValueError(f"a frame of {length} bytes on stream {stream}")
    return _HEADER.pack(kind << 24 | stream, length)


def message(kind: int, stream: int, payload: bytes) -> list[bytes]:
    """`payload` of any length as the frames of one message."""
    whole = range(0, len(payload), MAX_PAYLOAD)[:-1]
    frames = [frame(kind | MORE, stream, payload[start : start + MAX_PAYLOAD]) for start in whole]
    frames.append(frame(kind, stream, payload[len(whole) * MAX_PAYLOAD :]))
    return frames


class Frames:
    """An incremental decoder: bytes in, (kind, stream, payload) out; messages come out whole.

    Keeps no more than one frame and the messages begun, whose bytes together stay below the largest limit of MESSAGE_LIMITS.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._begun: dict[tuple[int, int], bytearray] = {}
        self._kept = 0

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """The frames and messages that `data` completes. Raises MalformedFrame."""
        buffer = self._buffer
        buffer += data
        done: list[tuple[int, int, bytes]] = []
        position = 0
        while len(buffer) - position >= HEADER:
            word, length = _HEADER.unpack_from(buffer, position)
            kind, stream = word >> 24, word & MAX_STREAM
            if kind & ~MORE not in _KINDS:
                raise MalformedFrame(f"a frame of the unknown kind {kind}")
            if length > MAX_PAYLOAD:
                raise MalformedFrame(f"a frame of {length} bytes, more than {MAX_PAYLOAD}")
            end = position + HEADER + length
            if len(buffer) < end:
                break
            with memoryview(buffer) as view:
                payload = bytes(view[position + HEADER : end])
            position = end
            if kind & MORE or (kind, stream) in self._begun:
                whole = self._join(kind, stream, payload)
                if whole is None:
                    continue
                payload = whole
            elif length > MESSAGE_LIMITS.get(kind, MAX_PAYLOAD):
                raise MalformedFrame(f"a message of the kind {kind} with {length} bytes")
            done.append((kind, stream, payload))
        del buffer[:position]
        return done

    def _join(self, kind: int, stream: int, payload: bytes) -> bytes | None:
        """Add to a message; the whole of it when this was its last piece."""
        last = not kind & MORE
        kind &= ~MORE
        limit = MESSAGE_LIMITS.get(kind)
        if limit is None:
            raise MalformedFrame(f"frames of the kind {kind} are not joined")
        begun = self._begun.setdefault((kind, stream), bytearray())
        begun += payload
        self._kept += len(payload)
        if len(begun) > limit:
            raise MalformedFrame(f"a message of the kind {kind} with more than {limit} bytes")
        if self._kept > max(MESSAGE_LIMITS.values()) or len(self._begun) > _BEGUN:
            raise MalformedFrame("too many messages at once")
        if not last:
            return None
        del self._begun[kind, stream]
        self._kept -= len(begun)
        return bytes(begun)

    @property
    def clean(self) -> bool:
        """Whether the bytes so far ended with a frame and with a message."""
        return not self._buffer and not self._begun
