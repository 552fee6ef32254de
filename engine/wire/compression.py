"""Compressed streams: what a stream is compressed with, and its content in bounded pieces. Owns the libraries, no files.

Every piece that comes out is at most `PIECE` bytes long, whatever went in: a few bytes of zstd or gzip can stand for gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import IO, Protocol, cast

Source = Callable[[], bytes]
"""Returns the next piece of a stream, b"" at its end (and after it)."""

PIECE = 1 << 20
# RFC 8878: decoders should support windows of at least 8 MiB; zstd's own default limit for streams is 128 MiB.
_ZSTD_WINDOW = 1 << 27
_XZ_MEMORY = 256 << 20

# First bytes of each format: RFC 1952, RFC 8878 (frames and skippable frames), bzip2, the xz file format.
_MAGIC = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"))
_MAGIC_LENGTH = 6


class CompressionError(ValueError):
    """The stream is damaged or cut off."""


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def detect(head: bytes) -> str:
    """`gzip`, `zstd`, `bzip2`, `xz`, or "" for anything else, by the first six bytes."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    skippable = len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50
    return "zstd" if skippable else ""


def peek(source: Source, length: int = _MAGIC_LENGTH) -> tuple[bytes, Source]:
    """The first `length` bytes (fewer at the end), and a source that still gives all of it."""
    pieces: list[bytes] = []
    have = 0
    while have < length and (piece := source()):
        pieces.append(piece)
        have += len(piece)
    head = b"".join(pieces)
    pending = [head] if head else []
    return head[:length], lambda: pending.pop() if pending else source()


def decompressed(source: Source) -> tuple[str, Source]:
    """Find out the compression and return its name and the source of the content. The source raises CompressionError."""
    head, source = peek(source)
    name = detect(head)
    if name == "zstd":
        return name, _zstd(source)
    return (name, _members(source, name)) if name else ("", source)


def _decoder(name: str) -> _Decoder:
    if name == "gzip":
        from isal import igzip_lib

        return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    if name == "bzip2":
        import bz2

        return bz2.BZ2Decompressor()
    import lzma

    return lzma.LZMADecompressor(memlimit=_XZ_MEMORY)


def _members(source: Source, name: str) -> Source:
    """gzip, bzip2, xz: members one after another, zero bytes between or behind them left out as the programs do."""
    decoder: _Decoder | None = _decoder(name)
    pending = b""

    def pull() -> bytes:
        nonlocal decoder, pending
        while True:
            if decoder is None:
                pending = pending.lstrip(b"\0") or source()
                if not pending:
                    return b""
                if not pending.strip(b"\0"):
                    continue
                decoder = _decoder(name)
            if decoder.needs_input and not pending:
                pending = source()
                if not pending:
                    raise CompressionError(f"the {name} stream is cut off")
            data, pending = pending, b""
            try:
                piece = decoder.decompress(data, PIECE)
            except Exception as error:
                raise CompressionError(f"the {name} stream is damaged: {error}") from error
            if decoder.eof:
                pending = decoder.unused_data
                decoder = None
            if piece:
                return piece

    return pull


class _Reader:
    """What python-zstandard reads from: an object with `read(size)` that may return fewer bytes, none at the end."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        piece = self._rest or self._source()
        if 0 <= size < len(piece):
            piece, self._rest = piece[:size], piece[size:]
        else:
            self._rest = b""
        return piece


class _Frames:
    """Follows the frames of a zstd stream by their headers (RFC 8878, 3.1): the library takes a cut-off stream for a finished one."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._held = b""
        self._boundary = True
        self._steps = self._walk()
        self._wanted = next(self._steps)

    @property
    def complete(self) -> bool:
        """Whether a stream may end here."""
        return self._boundary and not self._held

    def __call__(self) -> bytes:
        piece = self._source()
        place = 0
        while place < len(piece):
            if self._wanted < 0:
                step = min(-self._wanted, len(piece) - place)
                self._wanted += step
            else:
                step = min(self._wanted - len(self._held), len(piece) - place)
                self._held += piece[place : place + step]
            place += step
            if not self._wanted or len(self._held) == self._wanted:
                held, self._held = self._held, b""
                self._wanted = self._steps.send(held)
        return piece

    def _walk(self) -> Generator[int, bytes, None]:
        """Yields how many bytes of a header it needs, or as a negative number how many to pass over."""
        while True:
            self._boundary = True
            magic = int.from_bytes((yield 4), "little")
            self._boundary = False
            if magic & 0xFFFFFFF0 == 0x184D2A50:
                if size := int.from_bytes((yield 4), "little"):
                    yield -size
                continue
            descriptor = (yield 1)[0]
            single = descriptor >> 5 & 1
            if more := 1 - single + (0, 1, 2, 4)[descriptor & 3] + (single, 2, 4, 8)[descriptor >> 6]:
                yield more
            last = 0
            while not last:
                block = int.from_bytes((yield 3), "little")
                last = block & 1
                if size := 1 if block >> 1 & 3 == 1 else block >> 3:
                    yield -size
            if descriptor >> 2 & 1:
                yield 4


def _zstd(source: Source) -> Source:
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    frames = _Frames(source)
    reader = decompressor.stream_reader(cast("IO[bytes]", _Reader(frames)), read_across_frames=True)

    def pull() -> bytes:
        try:
            piece = reader.read(PIECE)
        except zstandard.ZstdError as error:
            raise CompressionError(f"the zstd stream is damaged: {error}") from error
        if not piece and not frames.complete:
            raise CompressionError("the zstd stream is cut off")
        return piece

    return pull


class GzipWriter:
    """Compress with igzip, which gives some 300 MB/s where zlib gives 50; the output has no name and no time, so it is reproducible."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        from isal import isal_zlib

        self._write = write
        # Level 1 of igzip's 0 to 3; 16 added to the window bits asks for the gzip format.
        self._compressor = isal_zlib.compressobj(1, isal_zlib.DEFLATED, 16 + isal_zlib.MAX_WBITS)

    def write(self, data: bytes | memoryview) -> None:
        """Compress and pass on what is ready."""
        if out := self._compressor.compress(data):
            self._write(out)

    def finish(self) -> None:
        """Write the end of the stream."""
        self._write(self._compressor.flush())
