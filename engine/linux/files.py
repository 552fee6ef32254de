"""Files, safely: paths inside a root that somebody hostile wrote, and writes that survive a crash.

Owns the one way to turn a path inside a container into a descriptor. A path is never joined to a root by text: a symbolic link in it would
lead out of it (openat2(2), RESOLVE_IN_ROOT).
"""

from __future__ import annotations

import os
from types import TracebackType

from engine import _core

# linux/openat2.h
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_IN_ROOT = 0x10
_SAFE = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS


def open_in_root(root: int, path: str | bytes, flags: int, mode: int = 0) -> int:
    """Open `path` as a process whose root is the folder `root` (a descriptor) would see it; a new close-on-exec descriptor.

    Links, absolute ones and `..` too, stay inside; links of /proc that lead anywhere are refused (ELOOP). Raises OSError.
    """
    return _core.openat2(root, path, flags | os.O_CLOEXEC, mode, _SAFE)


class Root:
    """A folder held open, for several look-ups in it. Use as a context manager."""

    def __init__(self, path: str) -> None:
        """`path` is a host path. Raises OSError when it is no folder."""
        self.fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Root:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back; a second call does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def open(self, path: str | bytes, flags: int = os.O_RDONLY, mode: int = 0) -> int:
        """A descriptor for a path inside. Raises OSError."""
        return open_in_root(self.fd, path, flags, mode)

    def stat(self, path: str | bytes, *, follow: bool = True) -> os.stat_result:
        """What is at a path inside, of a link itself without `follow`. Raises OSError."""
        fd = self.open(path, os.O_PATH | (0 if follow else os.O_NOFOLLOW))
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def exists(self, path: str | bytes) -> bool:
        """Whether a path inside leads to something."""
        try:
            self.stat(path)
        except OSError:
            return False
        return True

    def read(self, path: str | bytes, *, limit: int = 1 << 20) -> bytes:
        """A regular file's bytes, at most `limit` of them, as whoever wrote the root chose its size.

        Never waits. Files of the kernel's own (proc), which say that they are empty, count as empty. Raises OSError, also for a device or
        a pipe, and for a file that another process holds a lease on.
        """
        import errno
        import stat

        # A FIFO would block an ordinary open, a device could do anything, /proc/kmsg is a regular file whose read waits, and a lease
        # holds up an open for 45 s: look first, through a descriptor that cannot be exchanged.
        handle = self.open(path, os.O_PATH)
        try:
            info = os.fstat(handle)
            if not stat.S_ISREG(info.st_mode):
                raise OSError(errno.EINVAL, "not a regular file", os.fsdecode(path))
            if not info.st_size:
                return b""
            fd = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            os.close(handle)
        with os.fdopen(fd, "rb") as file:
            return file.read(min(limit, info.st_size))
