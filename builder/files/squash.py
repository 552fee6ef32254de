"""Several layers as one: what `--squash` makes of those that a build adds. Owns how their folders become one folder.

Files are hard links to those of the layers, which nobody ever writes to. Rules are overlayfs's: a whiteout or an opaque folder takes away
what a layer below has there, and stays for what the base image has.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Sequence

import trio

from engine.aio.blocking import blocking
from engine.aio.scopes import shielded
from engine.store.merged import DEEPEST, FOLDER, OPAQUE_ATTRIBUTE, is_opaque, is_whiteout
from engine.store.snapshots import Snapshot, Snapshots
from engine.store.trees import remove_tree, usage

_CLEANUP_SECONDS = 60.0
_OVERLAY = "trusted.overlay."


async def squash(snapshots: Snapshots, rows: Sequence[Snapshot], pin: Callable[[Iterable[str]], object]) -> Snapshot:
    """One committed snapshot with what `rows` have, bottom first, on what the first of them lies on; `pin` keeps it from collection.
    Cancelling ends it between two files, and nothing of it stays. Raises OSError."""
    folder = snapshots.begin()
    folders = [f"{snapshots.folder(row)}/fs" for row in rows]
    name = f"build:squash-{os.urandom(16).hex()}"

    def work() -> tuple[int, int]:
        merge(folders, f"{folder}/fs", check=trio.from_thread.check_cancelled)
        return usage(f"{folder}/fs", trio.from_thread.check_cancelled)

    try:
        size, inodes = await blocking("build", work)
        row = snapshots.commit(folder, name, rows[0].parent, size, inodes, synced=False)
    except BaseException:
        with shielded(_CLEANUP_SECONDS):
            await blocking("disk", snapshots.discard, folder)
        raise
    pin([name])
    row.cached = False  # no build looks for it
    return row


def merge(folders: Sequence[str], target: str, *, check: Callable[[], object] = lambda: None) -> None:
    """Put the layers `folders`, bottom first, into the empty folder `target` of their file system. `check` is called between files; what it
    raises ends the work. Blocks. Raises OSError."""
    top = os.open(target, FOLDER)
    try:
        for path in folders:
            source = os.open(path, FOLDER)
            try:
                _apply(source, top, check)
            finally:
                os.close(source)
    finally:
        os.close(top)


def _apply(source: int, target: int, check: Callable[[], object]) -> None:
    """Depth first; the stack holds descriptors, as many as a path has folders."""
    stack = [(os.dup(source), os.dup(target), _names(source))]
    try:
        while stack:
            check()
            below, above, names = stack[-1]
            if not names:
                _adorn(below, above)
                os.close(below)
                os.close(above)
                stack.pop()
                continue
            name = names.pop()
            info = os.stat(name, dir_fd=below, follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                if len(stack) > DEEPEST:  # the descriptors are everybody's
                    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
                stack.append(_folder(below, above, name))
                continue
            remove_tree(above, name)
            if is_whiteout(info):
                os.mknod(name, stat.S_IFCHR, 0, dir_fd=above)
            else:
                os.link(name, name, src_dir_fd=below, dst_dir_fd=above, follow_symlinks=False)
    finally:
        for below, above, _ in stack:
            os.close(below)
            os.close(above)


def _names(fd: int) -> list[bytes]:
    return [os.fsencode(name) for name in os.listdir(fd)]


def _folder(below: int, above: int, name: bytes) -> tuple[int, int, list[bytes]]:
    """Both folders of a name, made in `above` when it is not there."""
    source = os.open(name, FOLDER, dir_fd=below)
    try:
        opaque = is_opaque(source)
        try:
            there: os.stat_result | None = os.stat(name, dir_fd=above, follow_symlinks=False)
        except FileNotFoundError:
            there = None
        if there is not None and (opaque or not stat.S_ISDIR(there.st_mode)):
            # A file or a whiteout in its place hid what the base image has there, and so must the folder.
            opaque = True
            remove_tree(above, name)
            there = None
        if there is None:
            os.mkdir(name, 0o700, dir_fd=above)
        target = os.open(name, FOLDER, dir_fd=above)
        if opaque:
            os.setxattr(target, OPAQUE_ATTRIBUTE, b"y")
        return source, target, _names(source)
    except BaseException:
        os.close(source)
        raise


def _adorn(source: int, target: int) -> None:
    """Owner, mode, attributes and times of a folder, once nothing more is put into it."""
    info = os.fstat(source)
    os.fchown(target, info.st_uid, info.st_gid)
    os.fchmod(target, stat.S_IMODE(info.st_mode))
    wanted = {name for name in os.listxattr(source) if not name.startswith(_OVERLAY)}
    for name in os.listxattr(target):
        if name not in wanted and not name.startswith(_OVERLAY):
            os.removexattr(target, name)
    for name in wanted:
        os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
