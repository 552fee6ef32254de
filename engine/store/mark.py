"""`running` in the data root: the mark of a daemon that has not ended cleanly yet. Owns that file.

It holds the boot's identifier (proc(5), random/boot_id). Found at a start with another boot's, it says that the host stopped under a
daemon: by a power cut, say, after which a disk may not have what it said it had.
"""

from __future__ import annotations

import contextlib
import os

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def _boot() -> str:
    with open(_BOOT_ID, encoding="ascii") as file:
        return file.read().strip()


class Mark:
    """The mark of one data root. Blocks on the disk; any thread."""

    def __init__(self, data_root: str) -> None:
        self._path = f"{data_root}/running"
        self._database = f"{data_root}/meta.db"

    def unclean_since(self) -> float:
        """0 after a clean end, or one of the daemon alone. Else until when (Unix seconds) there are signs of life from before the host
        stopped: the latest write to the mark or the database. Call it before anything is written."""
        try:
            with open(self._path, encoding="ascii", errors="replace") as file:
                if file.read().strip() == _boot():
                    return 0.0
        except FileNotFoundError:
            return 0.0
        latest = 0.0
        for path in (self._path, self._database, self._database + "-wal"):
            with contextlib.suppress(FileNotFoundError):
                latest = max(latest, os.stat(path).st_mtime)
        return latest

    def set(self) -> None:
        """The daemon runs. Durable on return. Raises OSError."""
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, f"{_boot()}\n".encode("ascii"), 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        folder = os.open(os.path.dirname(self._path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def clear(self) -> None:
        """The daemon has ended, and everything that it wrote is durable."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
