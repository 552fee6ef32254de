"""A blob on its way in, from a source that may stop at any byte: what is there is kept, checked and gone on with, also after a crash.

Owns `ingest/<algorithm>-<hex>` (the bytes) and `ingest/<algorithm>-<hex>.sums` (a CRC-32 of each finished mebibyte, 0 for one that is not;
at a proper close also of the last one that was begun).
Parts may arrive out of order; `offset` is the end of what is there without a gap. What is found at opening counts only as far as the sums
confirm it: after a power cut a file may be as long as it was and hold zeros. The sums find damage, they are no protection: a blob is taken
for its digest.
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
_ABSENT = bytes(_SUM)
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
        # What is there, (start, end) in order; none touches the next.
        self._parts: list[tuple[int, int]] = []
        self._written_back = 0
        self.offset = 0
        try:
            self._take_over()
        except BaseException:
            self.close()
            raise
        self.resumed = sum(end - start for start, end in self._parts)

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
        if length:
            self._add(at, end)
        return self.offset

    def _add(self, start: int, end: int) -> None:
        """Count a part that was written, joined with its neighbours."""
        first, last = start, end
        apart: list[tuple[int, int]] = []
        for part in self._parts:
            if part[1] < start or part[0] > end:
                apart.append(part)
            else:
                first, last = min(first, part[0]), max(last, part[1])
        self._parts = sorted([*apart, (first, last)])
        for block in range(start // BLOCK, (end - 1) // BLOCK + 1):
            place, length = self._block(block)
            if first <= place and place + length <= last:
                os.pwrite(self._sums, _crc(os.pread(self._fd, length, place)), block * _SUM)
        if self._parts[0][0] == 0:
            self.offset = self._parts[0][1]
        if self.offset - self._written_back >= _WRITE_BACK:
            # No bytes are dropped from the cache yet: the unpacker reads them next.
            self._write_back(self.offset)

    def _block(self, number: int) -> tuple[int, int]:
        """Where a block begins, and its length: the last one may be short."""
        place = number * BLOCK
        return place, min(BLOCK, self.size - place)

    def _write_back(self, offset: int) -> None:
        _core.sync_file_range(self._fd, self._written_back, offset - self._written_back)
        self._written_back = offset

    def _take_over(self) -> None:
        """Count what is on the disk as far as it can be trusted, and forget the rest."""
        blocks = -(-self.size // BLOCK)
        sums = b""
        while len(sums) < blocks * _SUM and (piece := os.pread(self._sums, min(1 << 16, blocks * _SUM - len(sums)), len(sums))):
            sums += piece
        kept = bytearray(len(sums) // _SUM * _SUM)
        for block in range(len(sums) // _SUM):
            place, length = self._block(block)
            at = block * _SUM
            known = sums[at : at + _SUM]
            if known == _ABSENT:
                continue
            data = os.pread(self._fd, length, place)
            if data and _crc(data) == known:  # a short one is the last, see `close`
                kept[at : at + _SUM] = known
                if self._parts and self._parts[-1][1] == place:
                    self._parts[-1] = self._parts[-1][0], place + len(data)
                else:
                    self._parts.append((place, place + len(data)))
        if self._parts and self._parts[0][0] == 0:
            self.offset = self._parts[0][1]
        os.ftruncate(self._fd, self._parts[-1][1] if self._parts else 0)
        if kept != sums or os.fstat(self._sums).st_size != len(kept):
            os.pwrite(self._sums, kept, 0)
            os.ftruncate(self._sums, len(kept))

    @property
    def complete(self) -> bool:
        """Whether every byte is there."""
        return self.offset == self.size

    def missing(self, piece: int) -> list[tuple[int, int]]:
        """The ranges (start, end) that are not there, cut into `piece` bytes at most; 0 does not cut."""
        gaps: list[tuple[int, int]] = []
        place = 0
        for start, end in [*self._parts, (self.size, self.size)]:
            step = piece or max(1, start - place)
            gaps += [(at, min(at + step, start)) for at in range(place, start, step)]
            place = end
        return gaps

    def read(self, at: int, length: int) -> bytes:
        """Bytes before `offset`. Any thread."""
        return os.pread(self._fd, min(length, self.offset - at), at)

    def forget_cached(self, upto: int) -> None:
        """Tell the kernel that the bytes before `upto` will not be read again soon: a pull must not push out what programs use."""
        os.posix_fadvise(self._fd, 0, upto, os.POSIX_FADV_DONTNEED)

    def restart(self) -> None:
        """Drop everything: what came is not what was wanted."""
        self._parts = []
        self.offset = self.resumed = self._written_back = 0
        os.ftruncate(self._fd, 0)
        os.ftruncate(self._sums, 0)

    def sync(self) -> None:
        """Make the bytes durable. Blocks. Raises OSError."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Let go of the files; they stay. Twice is fine. Raises OSError."""
        if self._fd >= 0 and self._parts:
            start, end = self._parts[-1]
            place, length = self._block(end // BLOCK)
            if start <= place < end < place + length:  # the block that was begun; after a crash it is lost
                os.pwrite(self._sums, _crc(os.pread(self._fd, end - place, place)), end // BLOCK * _SUM)
        for fd in (self._fd, self._sums) if self._fd >= 0 else ():
            os.close(fd)
        self._fd = self._sums = -1

    def remove(self) -> None:
        """Let go and remove the files."""
        self._parts = []
        self.close()
        remove(self.path)


def remove(path: str) -> None:
    """Remove an ingest's two files, as far as they are there."""
    for name in (path, path + SUMS):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _crc(data: bytes) -> bytes:
    """A block's sum. One that happens to be 0 is taken for 1, since 0 says that there is none."""
    return (zlib.crc32(data) or 1).to_bytes(_SUM, "little")
