"""Removing and measuring directory trees that a container or a layer made, and that may be made to hurt.

Everything goes through directory descriptors and never follows a symbolic link, so a tree cannot lead outside itself. Trees of any
depth are handled with a bounded number of descriptors and no recursion. Must only be given trees that no process can change from
outside the daemon's rights (snapshots, ingests).
"""

from __future__ import annotations

import errno
import os
import stat

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
# Deeper folders are first renamed to the top: descriptors stay few however deep a tree is.
_DEPTH = 64


def remove_tree(parent_fd: int, name: str | bytes) -> None:
    """Remove `name` in the folder `parent_fd`, whatever it is. Not there: nothing. Raises OSError."""
    raw = os.fsencode(name)
    try:
        os.unlink(raw, dir_fd=parent_fd)
        return
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EPERM):
            raise
    top = os.open(raw, _OPEN, dir_fd=parent_fd)
    try:
        _empty(top)
    finally:
        os.close(top)
    os.rmdir(raw, dir_fd=parent_fd)


def _empty(top: int) -> None:
    """Empty a folder. The stack holds the open folders from `top` down: descriptor, name in the one above, folders still to empty."""
    moved = 0
    # Not to be guessed: a tree with folders of these names must not stop its own removal.
    prefix = b".knarr-" + os.urandom(8).hex().encode()
    first = _unlink_files(top)
    stack: list[tuple[int, bytes, list[bytes]]] = [(top, b"", first)]
    try:
        while True:
            fd, name, folders = stack[-1]
            if folders and len(stack) <= _DEPTH:
                child = os.open(folders[-1], _OPEN, dir_fd=fd)
                stack.append((child, folders.pop(), []))
                stack[-1][2].extend(_unlink_files(child))
                continue
            for folder in folders:
                moved += 1
                first.append(b"%s-%d" % (prefix, moved))
                os.rename(folder, first[-1], src_dir_fd=fd, dst_dir_fd=top)
            if len(stack) == 1:
                return
            stack.pop()
            os.close(fd)
            os.rmdir(name, dir_fd=stack[-1][0])
    finally:
        for fd, _, _ in stack[1:]:
            os.close(fd)


def _unlink_files(fd: int) -> list[bytes]:
    """Unlink everything in a folder that is no folder, remove empty ones; the names of the folders that are not empty."""
    full: list[bytes] = []
    with os.scandir(fd) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(name, dir_fd=fd)
                continue
            try:
                os.rmdir(name, dir_fd=fd)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                full.append(name)
    return full


def usage(path: str | int) -> tuple[int, int]:
    """Bytes allocated and number of inodes below `path`, each hard-linked file once, the top folder not counted. Raises OSError."""
    total = 0
    seen: set[tuple[int, int]] = set()
    inodes = 0
    top = os.open(path, _OPEN) if isinstance(path, str) else os.dup(path)
    pending: list[int] = [top]
    try:
        while pending:
            fd = pending.pop()
            try:
                with os.scandir(fd) as entries:
                    for entry in entries:
                        info = entry.stat(follow_symlinks=False)
                        if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
                            key = (info.st_dev, info.st_ino)
                            if key in seen:
                                continue
                            seen.add(key)
                        inodes += 1
                        total += info.st_blocks * 512
                        if stat.S_ISDIR(info.st_mode):
                            pending.append(os.open(os.fsencode(entry.name), _OPEN, dir_fd=fd))
            finally:
                os.close(fd)
    finally:
        for fd in pending:
            os.close(fd)
    return total, inodes
