"""One file into an open folder, with its owner, mode, time and attributes; the kernel moves the bytes. Knows nothing of trees and layers.

Names are single components in open folders and links are not followed, so that nothing can be led elsewhere.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from builder.files.layerfolder import Owner, copy_attributes
from engine.errors import KnarrError
from engine.store.merged import FOLDER

__all__ = ["FOLDER", "READ", "Changed", "Stopped", "copy", "write"]

READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE = 32 << 20  # bytes between two looks at `stop`
_BY_HAND = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


class Stopped(KnarrError):
    """The work was given up because `stop` said so."""

    def __init__(self) -> None:
        super().__init__("copying was stopped")


class Changed(Exception):
    """The file is another one than it was, or shorter."""


def copy(
    source: int, old: str, info: os.stat_result, target: int, new: str, owner: Owner, mode: int, mtime: int, attributes: bool,
    stop: Callable[[], bool],
) -> None:  # fmt: skip
    """Copy `old` in the folder `source`, which lstat says `info` about, as `new` in the folder `target`. `mtime` in ns; `attributes`: it
    may have extended ones. Raises Changed, Stopped, OSError."""
    kind = stat.S_IFMT(info.st_mode)
    if kind == stat.S_IFREG:
        reader = _open(source, old)
        try:
            now = os.fstat(reader)
            if not stat.S_ISREG(now.st_mode):
                raise Changed
            writer = os.open(new, _NEW, 0o600, dir_fd=target)
            try:
                _move(reader, writer, now, stop)
                os.fchown(writer, *owner)
                os.fchmod(writer, mode)
                if attributes:
                    copy_attributes(reader, writer)
                os.utime(writer, ns=(mtime, mtime))
            finally:
                os.close(writer)
        finally:
            os.close(reader)
        return
    if kind == stat.S_IFLNK:
        try:
            os.symlink(os.readlink(old, dir_fd=source), new, dir_fd=target)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise Changed from error
            raise
    else:
        os.mknod(new, kind | 0o600, info.st_rdev, dir_fd=target)
    os.chown(new, *owner, dir_fd=target, follow_symlinks=False)
    if kind != stat.S_IFLNK:
        os.chmod(new, mode, dir_fd=target)
    if attributes:
        copy_attributes(f"/proc/self/fd/{source}/{old}", f"/proc/self/fd/{target}/{new}")
    os.utime(new, ns=(mtime, mtime), dir_fd=target, follow_symlinks=False)


def write(content: bytes, target: int, name: str, owner: Owner, mode: int, mtime: int) -> None:
    """Make a file in the folder `target`. Raises OSError."""
    fd = os.open(name, _NEW, 0o600, dir_fd=target)
    try:
        _write(fd, content, 0)
        os.fchown(fd, *owner)
        os.fchmod(fd, mode)
        os.utime(fd, ns=(mtime, mtime))
    finally:
        os.close(fd)


def _open(folder: int, name: str) -> int:
    try:
        return os.open(name, READ, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise Changed from error
        raise


def _move(reader: int, writer: int, info: os.stat_result, stop: Callable[[], bool]) -> None:
    size = info.st_size
    if info.st_blocks * 512 >= size:
        _range(reader, writer, 0, size, stop)
        return
    # Holes stay holes: a file may be far larger than the disk.
    end = 0
    while end < size:
        try:
            start = os.lseek(reader, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        end = min(os.lseek(reader, start, os.SEEK_HOLE), size)
        _range(reader, writer, start, end, stop)
    os.ftruncate(writer, size)


def _range(reader: int, writer: int, start: int, end: int, stop: Callable[[], bool]) -> None:
    by_hand = False
    while start < end:
        count = min(end - start, _PIECE)
        if not by_hand:
            try:
                done = os.copy_file_range(reader, writer, count, start, start)
            except OSError as error:
                if error.errno not in _BY_HAND:
                    raise
                by_hand = True
                continue
        else:
            piece = os.pread(reader, min(count, 1 << 20), start)
            _write(writer, piece, start)
            done = len(piece)
        if not done:
            raise Changed
        start += done
        if start < end and stop():
            raise Stopped


def _write(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
