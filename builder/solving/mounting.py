"""`RUN --mount`: from a mount as the graph has it to what the start of the process mounts, and what is taken away again afterwards.

Trees are hostile: a source is looked up inside its tree alone. What a mount point needs in the root file system is made by the start in the
layer that is being built; `Stubs` takes it out again, so that nothing of a mount is left there (as BuildKit).
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
from collections.abc import Callable, Iterator, Sequence

from builder.graph import Mount as Asked
from builder.tree import Tree
from engine.errors import InvalidParameter
from engine.spec.mount import Mount
from engine.store.merged import FOLDER
from engine.store.overlay import OPTIONS, escaped
from engine.store.view import Node, View, open_below

_BIND = ("bind", "rprivate")
_READ_ONLY = (*_BIND, "ro")
_EMPTY_TMPFS = ("ro", "size=4k")
_OVERLAY = "trusted.overlay."


def bind(asked: Asked, tree: Tree | None, scratch: str, check: Callable[[], object] = lambda: None) -> Mount:
    """A `type=bind` mount of something in a tree. `scratch`: an empty folder on the file system of the layers, for a mount whose writes are
    thrown away. Blocks; what `check` raises ends a copy. Raises InvalidParameter when the source is not there."""
    if tree is None or not tree.layers:
        if asked.source.strip("/"):
            raise _missing(asked)
        return Mount(destination=asked.target, type="tmpfs", source="tmpfs", options=_EMPTY_TMPFS if asked.readonly else ("size=64m",))
    with View(tree.layers) as view:
        node = view.find(asked.source)
        if node is None:
            raise _missing(asked)
        layers = [view.host_path(node, index) for index in node.layers]
        if not node.folder:
            source = layers[0] if asked.readonly else _copied(view, node, scratch, check)
            return Mount(destination=asked.target, type="bind", source=source, options=_READ_ONLY if asked.readonly else _BIND)
    if asked.readonly and len(layers) == 1:
        return Mount(destination=asked.target, type="bind", source=layers[0], options=_READ_ONLY)
    options = ["lowerdir=" + ":".join(map(escaped, layers))]
    if asked.readonly:
        options.append("ro")
    else:
        for name in ("upper", "work"):
            os.mkdir(f"{scratch}/{name}", 0o755)
        options += [f"upperdir={escaped(scratch)}/upper", f"workdir={escaped(scratch)}/work", "volatile"]
    options += OPTIONS
    return Mount(destination=asked.target, type="overlay", source="overlay", options=tuple(options))


def _missing(asked: Asked) -> InvalidParameter:
    return InvalidParameter(f'failed to calculate checksum of the source of the mount at {asked.target}: "{asked.source}": not found')


def _copied(view: View, node: Node, scratch: str, check: Callable[[], object]) -> str:
    target = f"{scratch}/file"
    with open(view.open_file(node), "rb") as source, open(target, "xb") as copy:
        os.fchmod(copy.fileno(), stat.S_IMODE(node.info.st_mode))
        os.fchown(copy.fileno(), node.info.st_uid, node.info.st_gid)
        while piece := source.read(1 << 20):
            copy.write(piece)
            check()
    return target


def folder(asked: Asked, path: str) -> Mount:
    """A mount of a folder of our own: a cache."""
    return Mount(destination=asked.target, type="bind", source=path, options=_READ_ONLY if asked.readonly else _BIND)


def fill_cache(asked: Asked, tree: Tree, check: Callable[[], object], target: str) -> None:
    """Begin a cache's folder with what `from` has at `source`. Blocks; what `check` raises ends it, between two files or pieces of a large
    one. Raises InvalidParameter, OSError."""
    if not tree.layers:
        return
    with View(tree.layers) as view:
        node = view.find(asked.source)
        if node is None or not node.folder:
            raise _missing(asked)
        fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            view.copy(node, fd, check)
        finally:
            os.close(fd)


def tmpfs(asked: Asked) -> Mount:
    """A `type=tmpfs` mount."""
    options = ("nosuid", "nodev", "mode=1777", *((f"size={asked.size}",) if asked.size else ()))
    return Mount(destination=asked.target, type="tmpfs", source="tmpfs", options=options)


def file(target: str, source: str) -> Mount:
    """A secret: a file of our own, read-only, from which nothing is executed."""
    return Mount(destination=target, type="bind", source=source, options=(*_READ_ONLY, "nosuid", "nodev", "noexec"))


class Stubs:
    """The mount points that a start makes in the layer `upper` because the layers below have none. Look before, `remove` after."""

    def __init__(self, lowers: Sequence[str], targets: Sequence[str]) -> None:
        """Blocks. Raises OSError."""
        self._found: dict[tuple[bytes, ...], tuple[int, int, int]] = {}
        self._made: list[tuple[bytes, ...]] = []
        with View(lowers) as view:
            for target in targets:
                self._look(view, target)
        self._made.sort(key=len, reverse=True)

    def _look(self, view: View, target: str) -> None:
        parts = [os.fsencode(part) for part in posixpath.normpath(target).split("/") if part]
        place: tuple[bytes, ...] = ()
        for index, part in enumerate(parts):
            node = view.find(b"/" + b"/".join((*place, part))) if view.paths else None
            if node is None:
                rest = parts[index:]
                self._made += [(*place, *rest[: count + 1]) for count in range(len(rest))]
                break
            place = node.place
            self._found[place] = _look_of(node.info)

    def remove(self, upper: str) -> None:
        """Take empty mount points out of the layer, and folders that are there for their sake alone. Blocks. Raises OSError."""
        top = os.open(upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for place in dict.fromkeys(self._made):
                _remove_empty(top, place)
            for place in sorted(self._found, key=len, reverse=True):
                _remove_unchanged(top, place, self._found[place])
        finally:
            os.close(top)


@contextlib.contextmanager
def _above(top: int, place: tuple[bytes, ...]) -> Iterator[int | None]:
    """The folder of a place, None when the layer does not have it."""
    try:
        fd = open_below(top, place[:-1], FOLDER)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _remove_empty(top: int, place: tuple[bytes, ...]) -> None:
    with _above(top, place) as parent:
        if parent is None:
            return
        try:
            info = os.stat(place[-1], dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(info.st_mode):
            with contextlib.suppress(OSError):  # not empty: the process has put something there
                os.rmdir(place[-1], dir_fd=parent)
        elif stat.S_ISREG(info.st_mode) and not info.st_size:
            os.unlink(place[-1], dir_fd=parent)


def _look_of(info: os.stat_result) -> tuple[int, int, int]:
    return info.st_mode, info.st_uid, info.st_gid


def _remove_unchanged(top: int, place: tuple[bytes, ...], look: tuple[int, int, int]) -> None:
    """A folder that was brought up into the layer only because something was made in it: the one below shows the same."""
    with _above(top, place) as parent:
        if parent is None:
            return
        try:
            fd = os.open(place[-1], FOLDER, dir_fd=parent)
        except OSError:
            return
        try:
            names = os.listxattr(fd)
            if f"{_OVERLAY}origin" not in names or f"{_OVERLAY}opaque" in names or _look_of(os.fstat(fd)) != look:
                return  # made by the process itself, in the place of what was there, or changed by it
            if not all(name.startswith(_OVERLAY) for name in names):
                return
        finally:
            os.close(fd)
        with contextlib.suppress(OSError):
            os.rmdir(place[-1], dir_fd=parent)
