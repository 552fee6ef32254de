"""What a stack of layers shows as one tree, as an archive: the root file system of an image, as `--output type=tar` gives it.

Rules are overlayfs's, as in `store.view`; the archive has no whiteouts. Order, times, attributes and links are as in `store.pack`, but what
is no folder comes before the folders beside it. The same layers give the same bytes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence

from engine.store.merged import DEEPEST, FOLDER, is_opaque, is_whiteout
from engine.store.pack import Members, Packed, Write, attributes, too_deep
from engine.store.view import Place, View
from engine.wire import tar, tarwrite

_ROOT = (stat.S_IFDIR | 0o755, 0, 0)


class Merger:
    """One archive of several trees, written to `write`; `epoch` and `check` as for `pack`. Blocks; any thread."""

    def __init__(self, write: Write, *, epoch: int | None = None, check: Callable[[], object] | None = None) -> None:
        self._out = Members(write, epoch, check)
        self._trees = 0

    def add(self, layers: Sequence[str], *, prefix: bytes = b"", extra: Mapping[bytes, bytes] | None = None) -> None:
        """Add the tree of `layers` (host paths, topmost first). `prefix`: a folder that everything is put into, with "/" at its end;
        `extra`: further files of it, names and contents. Raises OSError, KnarrError."""
        self._trees += 1
        if prefix:
            self._out.put(self._made(prefix, tar.DIRECTORY, 0o755))
        for name, data in sorted((extra or {}).items()):
            self._out.put(self._made(prefix + name, tar.REGULAR, 0o644, len(data)) + data + bytes(-len(data) % tar.BLOCK))
        if layers:
            with View(layers) as view:
                self._walk(view, prefix)

    def finish(self) -> Packed:
        """The end of the archive."""
        self._out.finish()
        return Packed(self._out.digest, self._out.size, self._out.files_bytes, self._out.inodes)

    def _made(self, name: bytes, kind: bytes, mode: int, size: int = 0) -> bytes:
        entry = tar.Entry(name, kind)
        entry.mode, entry.size = mode, size
        return tarwrite.header(entry)

    def _walk(self, view: View, prefix: bytes) -> None:
        pending: list[tuple[Place, tuple[int, ...]]] = [((), view.root().layers)]
        while pending:
            place, layers = pending.pop()
            folders = [view.open(index, place, FOLDER) for index in layers]
            try:
                path = prefix + b"".join(part + b"/" for part in place)
                if len(place) > DEEPEST:
                    raise too_deep(path)
                self._folder(folders[0], place, path)
                found = self._members(folders, layers, path)
            finally:
                for fd in folders:
                    os.close(fd)
            pending += [((*place, name), found[name]) for name in sorted(found, reverse=True)]

    def _folder(self, fd: int, place: Place, path: bytes) -> None:
        info, out = os.fstat(fd), self._out
        if place:
            out.put(out.header(path, info, tar.DIRECTORY, attributes(fd)))
        elif (info.st_mode, info.st_uid, info.st_gid) != _ROOT:
            out.put(out.header(path or b"./", info, tar.DIRECTORY, attributes(fd)))

    def _members(self, folders: Sequence[int], layers: Sequence[int], path: bytes) -> dict[bytes, tuple[int, ...]]:
        """Write what is no folder in a merged folder; the folders in it, with the layers that each consists of."""
        below: dict[bytes, list[int]] = {}
        others: dict[bytes, tuple[int, int, os.stat_result]] = {}
        hidden: set[bytes] = set()
        for fd, index in zip(folders, layers, strict=True):
            with os.scandir(fd) as entries:
                listed = [(os.fsencode(entry.name), entry.stat(follow_symlinks=False)) for entry in entries]
            for name, info in listed:
                if name in hidden:
                    continue
                if not stat.S_ISDIR(info.st_mode):
                    hidden.add(name)
                    if name not in below and not is_whiteout(info):
                        others[name] = fd, index, info
                    continue
                below.setdefault(name, []).append(index)
                if index != layers[-1] and _hides(fd, name):
                    hidden.add(name)
        for name in sorted(others):
            self._other(*others[name], name, path + name)
        return {name: tuple(indexes) for name, indexes in below.items()}

    def _other(self, fd: int, index: int, info: os.stat_result, name: bytes, full: bytes) -> None:
        # A file that two layers share is two files to a container.
        out = self._out
        if stat.S_ISSOCK(info.st_mode) or (info.st_nlink > 1 and out.link(full, info, self._trees, index)):
            return
        if stat.S_ISREG(info.st_mode):
            out.file(fd, name, full, info)
        else:
            out.node(fd, name, full, info)


def _hides(parent: int, name: bytes) -> bool:
    fd = os.open(name, FOLDER, dir_fd=parent)
    try:
        return is_opaque(fd)
    finally:
        os.close(fd)
