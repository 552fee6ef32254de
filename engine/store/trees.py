"""Removing and measuring directory trees that a container or a layer made, and that may be made to hurt.

Everything goes through directory descriptors and never follows a symbolic link, so a tree cannot lead outside itself. Trees of any
depth are handled with a bounded number of descriptors and no recursion. Must only be given trees that no process can change from
outside the daemon's rights (snapshots, ingests).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Generator, Iterator

from engine import _core

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
# Deeper folders are first renamed to the top: descriptors stay few however deep a tree is.
_DEPTH = 64
# 15 names of 255 bytes fit into a path of 4096.
_STEP = 15
_BATCH = 1000  # entries between two looks at whether to go on
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_INSIDE = 0x04 | 0x08  # RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH of openat2(2)

Place = tuple[bytes, ...]
"""Names from the top of a tree down."""


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


def remove_path(path: str) -> None:
    """Remove what is at a host path, whatever it is; the folder that it is in must be there and trusted. Not there: nothing. Raises
    OSError."""
    folder, _, name = path.rpartition("/")
    parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_tree(parent, name)
    finally:
        os.close(parent)


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


def walk(top: int) -> Iterator[tuple[Place, os.stat_result]]:
    """Everything below the open folder `top`, a folder before what is in it: components from `top`, and lstat's answer. Needs three
    descriptors however wide or deep the tree is. Raises OSError."""
    pending: list[Place] = [()]
    while pending:
        place = pending.pop()
        fd = _open_below(top, place)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    info = entry.stat(follow_symlinks=False)
                    found = (*place, os.fsencode(entry.name))
                    if stat.S_ISDIR(info.st_mode):
                        pending.append(found)
                    yield found, info
        finally:
            os.close(fd)


def infos(top: int) -> Iterator[os.stat_result]:
    """lstat's answers for everything below the open folder `top`. An entry costs the same however deep it is, unlike in `walk`, and others
    may change the tree meanwhile: what goes is not counted, and what is in a folder that is moved perhaps not. Raises OSError."""
    fd = os.dup(top)
    above: list[tuple[tuple[int, int], list[bytes]]] = []  # from the top down: which folder, and folders in it still to visit
    try:
        pending = yield from _scan(fd)
        while pending or above:
            if pending:
                name = pending.pop()
                try:
                    child = os.open(name, _OPEN, dir_fd=fd)
                except OSError as error:
                    if error.errno in _GONE:
                        continue
                    raise
                info = os.fstat(fd)
                above.append(((info.st_dev, info.st_ino), pending))
                os.close(fd)
                fd = child
                pending = yield from _scan(fd)
                continue
            identity, pending = above.pop()
            parent = os.open("..", _OPEN, dir_fd=fd)
            os.close(fd)
            fd = parent
            info = os.fstat(fd)
            if (info.st_dev, info.st_ino) != identity:
                return  # moved: what is above it now is none of ours
    finally:
        os.close(fd)


def _scan(fd: int) -> Generator[os.stat_result, None, list[bytes]]:
    """lstat's answers for what is in a folder; returns the names of the folders."""
    folders: list[bytes] = []
    with os.scandir(fd) as entries:
        for entry in entries:
            try:
                info = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(info.st_mode):
                folders.append(os.fsencode(entry.name))
            yield info
    return folders


def _open_below(top: int, place: Place) -> int:
    """A folder by its components, which together may be longer than a path can be."""
    fd = os.dup(top)
    for start in range(0, len(place), _STEP):
        above = fd
        try:
            fd = _core.openat2(above, b"/".join(place[start : start + _STEP]), _OPEN, 0, _INSIDE)
        finally:
            os.close(above)
    return fd


def usage(path: str | int, check: Callable[[], object] = lambda: None) -> tuple[int, int]:
    """Bytes allocated and number of inodes below `path`, each hard-linked file once, the top folder not counted. `check` is called now and
    then; what it raises ends the work. Raises OSError."""
    total = 0
    seen: set[tuple[int, int]] = set()
    inodes = 0
    top = os.open(path, _OPEN) if isinstance(path, str) else os.dup(path)
    try:
        for info in infos(top):
            if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
                key = (info.st_dev, info.st_ino)
                if key in seen:
                    continue
                seen.add(key)
            inodes += 1
            total += info.st_blocks * 512
            if not inodes % _BATCH:
                check()
    finally:
        os.close(top)
    return total, inodes
