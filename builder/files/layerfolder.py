"""The folder of a layer that is being made, over the layers below: what destinations lead to in it, and making folders in it.

It becomes a lower of overlayfs. A folder in which something new is, and that exists below, is made here with the owner, mode, attributes
and times it has below, or the merged view would show it changed. Links at a destination are resolved here, inside the root file system.
Layers are hostile and read through descriptors alone; the folder itself is written by nobody else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from engine.errors import InvalidParameter
from engine.store.merged import FOLDER, OPAQUE_ATTRIBUTE, is_whiteout
from engine.store.view import Node, Place, View

_LINKS_MAX = 255  # BuildKit's, for a destination
_REFUSED = ("trusted.overlay.", "user.overlay.", "security.selinux")
_HARMLESS = (errno.ENOTSUP, errno.EPERM, errno.ENODATA)

Owner = tuple[int, int]


class LayerFolder:
    """`upper`: the host path of the layer's folder, empty; `lowers`: those of the layers below, topmost first. `now` (ns) is the time of
    what is made without one. Use as a context manager; blocks; one thread at a time."""

    def __init__(self, upper: str, lowers: tuple[str, ...], now: int) -> None:
        """Raises OSError."""
        self.now = now
        self.times: dict[Place, int] = {}
        """Times (ns) that folders here get in the end: whatever is put into one changes them."""
        self.view = View((upper, *lowers))
        """The root file system as it is by now; the layer's own folder has the index 0."""
        self._stacked = bool(lowers)
        try:
            if lowers:
                with self._open((), 1) as below, self._open(()) as made:
                    self.adorn(below, made)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> LayerFolder:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every descriptor."""
        self.view.close()

    def open(self, place: Place, layer: int = 0) -> int:
        """A folder of one layer. Raises OSError."""
        return self.view.open(layer, place, FOLDER)

    def root(self) -> Node:
        """The root folder."""
        return self.view.root()

    def look(self, place: Place) -> Node | None:
        """What is at a true place, links not followed."""
        node: Node | None = self.root()
        for name in place:
            node = self.view.child(node, name) if node is not None and node.folder else None
        return node

    def resolve(self, path: str) -> Place:
        """The true place that a path leads to, links followed inside the root; what is not there counts as it is written. Raises
        InvalidParameter, OSError."""
        above = [self.root()]
        missing: list[bytes] = []
        pending = _parts(os.fsencode(path))
        links = 0
        while pending:
            part = pending.pop()
            if part == b"..":
                if missing:
                    missing.pop()
                elif len(above) > 1:
                    above.pop()
                continue
            node = self.view.child(above[-1], part) if not missing and above[-1].folder else None
            if node is None:
                missing.append(part)
            elif stat.S_ISLNK(node.info.st_mode):
                links += 1
                if links > _LINKS_MAX:
                    raise InvalidParameter(f"{path}: too many links")
                target = self.view.link(node)
                if target.startswith(b"/"):
                    del above[1:]
                pending += _parts(target)
            else:
                above.append(node)
        return (*above[-1].place, *missing)

    def make(self, place: Place, owner: Owner) -> Node:
        """Make the folder at a true place with what is missing above it, mode 0755; what is there below is brought up. Raises
        InvalidParameter where something else stands in the way, OSError."""
        node = self.root()
        for name in place:
            child = self.view.child(node, name)
            if child is not None and not child.folder:
                raise InvalidParameter(f"mkdir {shown((*node.place, name))}: not a directory")
            node = self._made(node, name, owner) if child is None else self.bring_up(child)
        return node

    def _made(self, parent: Node, name: bytes, owner: Owner) -> Node:
        place = (*parent.place, name)
        with self._open(parent.place) as fd:
            self.mkdir(fd, name, True)
            os.chown(name, *owner, dir_fd=fd, follow_symlinks=False)
            os.chmod(name, 0o755, dir_fd=fd)
            self.times[place] = self.now
            return Node(place, os.stat(name, dir_fd=fd, follow_symlinks=False), (0,))

    def bring_up(self, node: Node) -> Node:
        """Make sure that a folder of the layers below is in this one too. The one above it is."""
        if node.layers[0] == 0:
            return node
        with self._open(node.place[:-1]) as fd, self._open(node.place, node.layers[0]) as below:
            os.mkdir(node.place[-1], 0o700, dir_fd=fd)
            with self._open(node.place) as made:
                self.adorn(below, made)
        self.times[node.place] = node.info.st_mtime_ns
        return Node(node.place, node.info, (0, *node.layers))

    def mkdir(self, parent: int, name: bytes, opaque: bool) -> bool:
        """Make a folder, in the place of a whiteout too (then cut off from what the whiteout hid); whether there was none. Raises OSError:
        FileExistsError for what is no folder."""
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            info = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                return False
            if not is_whiteout(info):
                raise
            os.unlink(name, dir_fd=parent)
            os.mkdir(name, 0o700, dir_fd=parent)
            if opaque:
                os.setxattr(f"/proc/self/fd/{parent}/{os.fsdecode(name)}", OPAQUE_ATTRIBUTE, b"y")
        return True

    @contextlib.contextmanager
    def _open(self, place: Place, layer: int = 0) -> Iterator[int]:
        fd = self.open(place, layer)
        try:
            yield fd
        finally:
            os.close(fd)

    @staticmethod
    def adorn(source: int, target: int) -> None:
        """Owner, mode, attributes of one open folder to another."""
        info = os.fstat(source)
        os.fchown(target, info.st_uid, info.st_gid)
        os.fchmod(target, stat.S_IMODE(info.st_mode))
        copy_attributes(source, target)

    def finish(self) -> None:
        """Give folders their times: the last thing to do. Raises OSError."""
        if self._stacked:
            with self._open((), 1) as below:
                self.times.setdefault((), os.fstat(below).st_mtime_ns)
        for place, mtime in self.times.items():
            try:
                fd = self.open(place)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    continue  # an archive put something else there
                raise
            try:
                os.utime(fd, ns=(mtime, mtime))
            finally:
                os.close(fd)


def copy_attributes(source: int | str, target: int | str) -> None:
    """Extended attributes from one file to another, by descriptors or paths whose last link is not followed; without those that speak to
    overlayfs or are the host's. What the file system does not take is left out, as in BuildKit. Raises OSError."""
    for name in _listed(source):
        if not name.startswith(_REFUSED):
            try:
                value = os.getxattr(source, name) if isinstance(source, int) else os.getxattr(source, name, follow_symlinks=False)
                if isinstance(target, int):
                    os.setxattr(target, name, value)
                else:
                    os.setxattr(target, name, value, follow_symlinks=False)
            except OSError as error:
                if error.errno not in _HARMLESS:
                    raise


def attributes(source: int | str) -> tuple[tuple[str, bytes], ...]:
    """Names and values of the attributes that a copy would get, sorted. Raises OSError."""
    found = []
    for name in sorted(_listed(source)):
        if not name.startswith(_REFUSED):
            try:
                value = os.getxattr(source, name) if isinstance(source, int) else os.getxattr(source, name, follow_symlinks=False)
            except OSError as error:
                if error.errno not in _HARMLESS:
                    raise
                continue
            found.append((name, value))
    return tuple(found)


def _listed(source: int | str) -> list[str]:
    try:
        return os.listxattr(source) if isinstance(source, int) else os.listxattr(source, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return []
        raise


def shown(place: Place) -> str:
    """A place as a path for messages."""
    return "/" + os.fsdecode(b"/".join(place))


def _parts(path: bytes) -> list[bytes]:
    """Components in reverse order."""
    return [part for part in path.split(b"/") if part not in (b"", b".")][::-1]
