"""`reserve` in the data root: some room that is given up when the disk is full, so that the database can still be written to.

Without it a full disk could not be emptied: to remove an image or a container its row goes first, and that is written. Owns that file.
"""

from __future__ import annotations

import contextlib
import os

SIZE = 4 << 20  # the write-ahead log grows to so much before it is moved into the database
_LOW = 1 << 20
_PLENTY = 4  # times `SIZE` must be free before it is taken (again)


class Reserve:
    """The reserve of one data root. About 2 µs for a look."""

    def __init__(self, data_root: str) -> None:
        self._folder = data_root or "."
        self._path = f"{self._folder}/reserve"
        self._there = os.path.exists(self._path)

    def keep(self) -> None:
        """Take it, where there is plenty of room. A file system that refuses has none."""
        if self._there or self._free() < _PLENTY * SIZE:
            return
        with contextlib.suppress(OSError):
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, SIZE)
                self._there = True
            finally:
                os.close(fd)

    def spend_if_needed(self) -> None:
        """Give it up when the disk is nearly full."""
        if self._there and self._free() < _LOW:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            self._there = False

    def _free(self) -> int:
        found = os.statvfs(self._folder)
        return found.f_bfree * found.f_frsize
