"""A blob on its way in, from a source that may stop at any byte: what is there is kept, checked and gone on with, also after a crash.

Owns `ingest/<algorithm>-<hex>` (the bytes) and `ingest/<algorithm>-<hex>.sums` (a CRC-32 of each finished mebibyte). Parts may arrive out
of order; `offset` is the end of what is there without a gap. What is found at opening counts only as far as the sums confirm it: after a
power cut a file may be as long as it was and hold zeros. The sums find damage, they are no protection: a blob is taken for its digest.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Sequence

from engine import _core
from engine.errors import InvalidParameter
from engine.spec.digest import is_digest

BLOCK = 1 << 20
SUMS = ".sums"
_SUM = 4
# Dirty pages are handed to the disk in pieces of this size, so that the sync at the end finds little to do.
_WRITE_BACK = 8 << 20


class Ingest:
    """One growing blob of a known digest. `write` and `close` block (any thread, one at a time); `offset` may be read by any thread."""

    def __init__(self, folder: str, digest: str, size: int) -> None:
        if not is_digest(digest):
            raise InvalidParameter(f"storing a blob: {digest!r} is no digest")
        self.digest = digest
        self.size = size
        self.path = f"{folder}/{digest.replace(':', '-')}"
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.open(self.path, flags, 0o600)
        try:
            self._sums = os.open(self.path + SUMS, flags, 0o600)
        except BaseException:
            os.close(self._fd)
            raise
        # Finished parts behind a gap: start -> end.
        self._islands: dict[int, int] = {}
        self._written_back = 0
        self.offset = 0
        try:
            self.offset = self._verified()
            self._trim()
        except BaseException:
            self.close()
            raise
        self.resumed = self.offset

    def write(self, at: int, pieces: Sequence[bytes]) -> int:
        """Store a part at `at`; the new `offset`. Raises OSError, InvalidParameter beyond the blob's size."""
        length = sum(map(len, pieces))
        end = at + length
        if end > self.size:
            raise InvalidParameter(f"storing blob {self.digest}: more than {self.size} bytes arrived")
        done = os.pwritev(self._fd, pieces, at)
        if done < length:
            rest = memoryview(b"".join(pieces))[done:]
            while rest:
                rest = rest[os.pwrite(self._fd, rest, end - len(rest)) :]
        self._grow(at, end)
        return self.offset

    def _grow(self, start: int, end: int) -> None:
        self._islands[start] = max(end, self._islands.get(start, 0))
        offset = self.offset
        for island in sorted(self._islands):
            if island > offset:
                break
            offset = max(offset, self._islands.pop(island))
        if offset == self.offset:
            return
        self._sum(self.offset, offset)
        self.offset = offset
        if offset - self._written_back >= _WRITE_BACK:
            # No bytes are dropped from the cache yet: the unpacker reads them next.
            self._write_back(offset)

    def _write_back(self, offset: int) -> None:
        _core.sync_file_range(self._fd, self._written_back, offset - self._written_back)
        self._written_back = offset

    def _sum(self, old: int, new: int) -> None:
        """Append the sums of the blocks that `new` finishes."""
        first, last = old // BLOCK, new // BLOCK
        if first < last:
            sums = b"".join(_crc(os.pread(self._fd, BLOCK, block * BLOCK)) for block in range(first, last))
            os.pwrite(self._sums, sums, first * _SUM)

    def _verified(self) -> int:
        """How far what is on the disk can be trusted, in bytes."""
        sums = b""
        while piece := os.pread(self._sums, 1 << 16, len(sums)):
            sums += piece
        block = 0
        while block < len(sums) // _SUM and (block + 1) * BLOCK <= self.size:
            data = os.pread(self._fd, BLOCK, block * BLOCK)
            if len(data) < BLOCK or _crc(data) != sums[block * _SUM : (block + 1) * _SUM]:
                break
            block += 1
        return block * BLOCK

    def _trim(self) -> None:
        os.ftruncate(self._fd, self.offset)
        os.ftruncate(self._sums, self.offset // BLOCK * _SUM)

    @property
    def complete(self) -> bool:
        """Whether every byte is there."""
        return self.offset == self.size

    def missing(self, piece: int) -> list[tuple[int, int]]:
        """The ranges (start, end) that are not there, cut into `piece` bytes at most; 0 does not cut."""
        step = piece or max(1, self.size - self.offset)
        return [(start, min(start + step, self.size)) for start in range(self.offset, self.size, step)]

    def read(self, at: int, length: int) -> bytes:
        """Bytes before `offset`. Any thread."""
        return os.pread(self._fd, min(length, self.offset - at), at)

    def forget_cached(self, upto: int) -> None:
        """Tell the kernel that the bytes before `upto` will not be read again soon: a pull must not push out what programs use."""
        os.posix_fadvise(self._fd, 0, upto, os.POSIX_FADV_DONTNEED)

    def restart(self) -> None:
        """Drop everything: what came is not what was wanted."""
        self._islands.clear()
        self.offset = self.resumed = self._written_back = 0
        self._trim()

    def settle(self) -> None:
        """Keep what can be gone on with later: parts behind a gap are cut off. Raises OSError."""
        self._islands.clear()
        os.ftruncate(self._fd, self.offset)

    def sync(self) -> None:
        """Make the bytes durable. Blocks. Raises OSError."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Let go of the files; they stay. Twice is fine."""
        for fd in (self._fd, self._sums) if self._fd >= 0 else ():
            os.close(fd)
        self._fd = self._sums = -1

    def remove(self) -> None:
        """Let go and remove the files."""
        self.close()
        remove(self.path)


def remove(path: str) -> None:
    """Remove an ingest's two files, as far as they are there."""
    for name in (path, path + SUMS):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(_SUM, "little")
