"""What a stack of layers shows as one tree, read without mounting it; and a copy of a part of it, which a new volume begins with.

Rules are overlayfs's (overlayfs.rst): the topmost layer that has a name wins, folders of one name are merged, a whiteout or an opaque
folder hides what lies below. The layers are hostile: nothing is opened but below their own folders and without following a link in the
kernel; links are resolved here, inside the tree. Layers do not change; the folder that is copied to may be changed by others meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from engine import _core
from engine.errors import InvalidParameter
from engine.store.merged import DEEPEST, FOLDER, is_opaque, is_whiteout

Place = tuple[bytes, ...]

_INSIDE = 0x04 | 0x08  # RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH of openat2(2)
_ROOT = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HANDLE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LINKS_MAX = 40  # the kernel's
_STEP = 15  # names of 255 bytes that fit into a path of 4096
_PIECE = 64 << 20  # bytes in one system call
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class Node(msgspec.Struct, frozen=True):
    """Something in the tree: its true place, lstat's answer of the layer that shows it, and the layers (by index, topmost first) that it
    consists of: several for a folder only."""

    place: Place
    info: os.stat_result
    layers: tuple[int, ...]

    @property
    def folder(self) -> bool:
        return stat.S_ISDIR(self.info.st_mode)


class View:
    """Layers by the host paths of their folders, topmost first. Use as a context manager. Blocks on the disk; one thread at a time."""

    def __init__(self, layers: Sequence[str]) -> None:
        """Raises OSError when a layer is not there."""
        self.paths = tuple(layers)
        self._roots: list[int] = []
        try:
            for layer in layers:
                self._roots.append(os.open(layer, _ROOT))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> View:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every descriptor."""
        for fd in self._roots:
            os.close(fd)
        self._roots = []

    def open(self, index: int, place: Place, flags: int) -> int:
        """A descriptor of what one layer has at a place, no link followed. Raises OSError."""
        return open_below(self._roots[index], place, flags)

    def root(self) -> Node:
        """The root folder. There must be a layer."""
        return Node((), os.stat(self._roots[0]), tuple(range(len(self._roots))))

    def find(self, path: str | bytes) -> Node | None:
        """What a path leads to for a process whose root this is, links followed; None for nothing. Raises OSError, and InvalidParameter
        for a circle of links."""
        above = [self.root()]
        pending = _parts(os.fsencode(path))
        links = 0
        while pending:
            part = pending.pop()
            if part == b"..":
                if len(above) > 1:
                    above.pop()
                continue
            node = self.child(above[-1], part)
            if node is None:
                return None
            if stat.S_ISLNK(node.info.st_mode):
                links += 1
                if links > _LINKS_MAX:
                    raise InvalidParameter(f"{os.fsdecode(path)} in the image: too many levels of symbolic links")
                target = self.link(node)
                if target.startswith(b"/"):
                    del above[1:]
                pending += _parts(target)
            elif node.folder:
                above.append(node)
            else:
                return None if pending else node
        return above[-1]

    def child(self, parent: Node, name: bytes) -> Node | None:
        """What a folder has under one name, a link not followed; None for nothing. Raises OSError."""
        info: os.stat_result | None = None
        found: list[int] = []
        for index in parent.layers:
            try:
                fd = self.open(index, (*parent.place, name), _HANDLE)
            except OSError as error:
                if error.errno in _ABSENT:
                    continue
                raise
            try:
                here = os.fstat(fd)
                if is_whiteout(here):
                    break
                if not stat.S_ISDIR(here.st_mode):
                    if info is None:
                        info, found = here, [index]
                    break
                info = info or here
                found.append(index)
                if index != parent.layers[-1] and is_opaque(f"/proc/self/fd/{fd}"):
                    break
            finally:
                os.close(fd)
        return None if info is None else Node((*parent.place, name), info, tuple(found))

    def names(self, node: Node) -> dict[bytes, bool]:
        """What is in a folder: by name, whether it is a folder itself. Raises OSError."""
        found: dict[bytes, bool] = {}
        hidden: set[bytes] = set()
        for index in node.layers:
            with self._folder(index, node.place) as fd, os.scandir(fd) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    if name in found or name in hidden:
                        continue
                    folder = entry.is_dir(follow_symlinks=False)
                    if folder or entry.is_file(follow_symlinks=False) or not is_whiteout(entry.stat(follow_symlinks=False)):
                        found[name] = folder
                    else:
                        hidden.add(name)
        return found

    def link(self, node: Node) -> bytes:
        """What a symbolic link says."""
        fd = self.open(node.layers[0], node.place, _HANDLE)
        try:
            return os.readlink(b"", dir_fd=fd)
        finally:
            os.close(fd)

    def open_file(self, node: Node) -> int:
        """A descriptor to read a regular file by. Raises OSError."""
        return self.open(node.layers[0], node.place, _FILE)

    def host_path(self, node: Node, index: int) -> str:
        """The host path of a node in one of its layers. Its components are no links, for as long as layers do not change."""
        return os.path.join(self.paths[index], os.fsdecode(b"/".join(node.place)))

    def copy(self, node: Node, target: int, check: Callable[[], object] = lambda: None) -> int:
        """Copy what is in the folder `node` into the empty folder `target` (a descriptor), which also gets its owner, mode, times and
        attributes. The number of regular files copied. `check` is called between files and between pieces of large ones; what it raises
        ends the copy. Raises OSError."""
        return _Copy(self, node, target, check).run()

    @contextlib.contextmanager
    def _folder(self, index: int, place: Place) -> Iterator[int]:
        fd = self.open(index, place, FOLDER)
        try:
            yield fd
        finally:
            os.close(fd)


class _Copy:
    """One copy: folders are made first and get their owners, modes and times last, because members in them change those."""

    def __init__(self, view: View, node: Node, target: int, check: Callable[[], object]) -> None:
        self._view = view
        self._check = check
        self._base = node
        self._target = target
        self._linked: dict[tuple[int, int, int], Place] = {}  # of files with several names: layer, device, inode -> place in the copy
        self._folders: list[tuple[Place, int, os.stat_result]] = [((), node.layers[0], node.info)]
        self._files = 0

    def run(self) -> int:
        pending: list[tuple[Place, tuple[int, ...]]] = [((), self._base.layers)]
        while pending:
            place, layers = pending.pop()
            if len(place) > DEEPEST:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            target = open_below(self._target, place, FOLDER)
            try:
                for name, found, info in self._merge(place, layers, target):
                    os.mkdir(name, 0o700, dir_fd=target)
                    pending.append(((*place, name), tuple(found)))
                    self._folders.append(((*place, name), found[0], info))
            finally:
                os.close(target)
        for place, index, info in reversed(self._folders):
            self._check()
            self._finish(place, index, info)
        return self._files

    def _merge(self, place: Place, layers: tuple[int, ...], target: int) -> Iterable[tuple[bytes, list[int], os.stat_result]]:
        """Copy what is no folder in the merged folder `place`; the folders in it: name, layers, lstat's answer."""
        folders: dict[bytes, tuple[list[int], os.stat_result]] = {}
        done: set[bytes] = set()
        for index in layers:
            with self._view._folder(index, (*self._base.place, *place)) as fd, os.scandir(fd) as entries:
                for entry in entries:
                    self._check()
                    name = os.fsencode(entry.name)
                    if name in done:
                        continue
                    info = entry.stat(follow_symlinks=False)
                    if not stat.S_ISDIR(info.st_mode):
                        done.add(name)
                        if name not in folders and not is_whiteout(info):
                            self._copy_one(index, fd, name, info, target, place)
                        continue
                    if name in folders:
                        folders[name][0].append(index)
                    else:
                        folders[name] = [index], info
                    if index != layers[-1] and is_opaque(b"/proc/self/fd/%d/%s" % (fd, name)):
                        done.add(name)
        return ((name, found, info) for name, (found, info) in folders.items())

    def _copy_one(self, index: int, source: int, name: bytes, info: os.stat_result, target: int, place: Place) -> None:
        if info.st_nlink > 1:
            key = (index, info.st_dev, info.st_ino)
            other = self._linked.get(key)
            if other is not None:
                self._link(other, target, name)
                return
            self._linked[key] = (*place, name)
        kind = stat.S_IFMT(info.st_mode)
        if kind == stat.S_IFREG:
            self._copy_file(source, name, info, target)
            return
        if kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        else:
            os.mknod(name, info.st_mode, info.st_rdev, dir_fd=target)
        os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
        if kind != stat.S_IFLNK:
            fd = os.open(name, _HANDLE, dir_fd=target)  # whatever it is by now, it is no link that leads elsewhere
            try:
                if not stat.S_ISLNK(os.fstat(fd).st_mode):
                    os.chmod(f"/proc/self/fd/{fd}", stat.S_IMODE(info.st_mode))
            finally:
                os.close(fd)
        os.utime(name, ns=(info.st_atime_ns, info.st_mtime_ns), dir_fd=target, follow_symlinks=False)

    def _link(self, other: Place, target: int, name: bytes) -> None:
        folder = open_below(self._target, other[:-1], FOLDER)
        try:
            os.link(other[-1], name, src_dir_fd=folder, dst_dir_fd=target, follow_symlinks=False)
        finally:
            os.close(folder)

    def _copy_file(self, source: int, name: bytes, info: os.stat_result, target: int) -> None:
        reader = os.open(name, _FILE, dir_fd=source)
        try:
            writer = os.open(name, _NEW, 0o600, dir_fd=target)
            try:
                _copy_bytes(reader, writer, info.st_size, self._check)
                _adorn(reader, writer, info)
            finally:
                os.close(writer)
        finally:
            os.close(reader)
        self._files += 1

    def _finish(self, place: Place, index: int, info: os.stat_result) -> None:
        writer = open_below(self._target, place, FOLDER)
        try:
            with self._view._folder(index, (*self._base.place, *place)) as reader:
                _adorn(reader, writer, info)
        finally:
            os.close(writer)


def _copy_bytes(reader: int, writer: int, size: int, check: Callable[[], object]) -> None:
    """The kernel copies, or shares extents where the file system can."""
    left = size
    while left > 0:
        try:
            count = os.copy_file_range(reader, writer, min(left, _PIECE))
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            count = os.sendfile(writer, reader, None, min(left, _PIECE)) if left == size else _by_hand(reader, writer)
        if not count:
            return
        left -= count
        check()


def _by_hand(reader: int, writer: int) -> int:
    piece = os.read(reader, 1 << 20)
    view = memoryview(piece)
    while view:
        view = view[os.write(writer, view) :]
    return len(piece)


def _adorn(reader: int, writer: int, info: os.stat_result) -> None:
    """Owner, attributes, mode and times, in an order in which none undoes another."""
    os.fchown(writer, info.st_uid, info.st_gid)
    os.fchmod(writer, stat.S_IMODE(info.st_mode))
    for name in os.listxattr(reader):
        if name.startswith("trusted.overlay."):
            continue
        try:
            os.setxattr(writer, name, os.getxattr(reader, name))
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM, errno.ENODATA):
                raise  # a file system without attributes of that kind, as in Docker
    os.utime(writer, ns=(info.st_atime_ns, info.st_mtime_ns))


def open_below(top: int, place: Place, flags: int) -> int:
    """A descriptor by components, which together may be longer than a path can be; no link is followed. Raises OSError."""
    if len(place) <= _STEP:
        return _core.openat2(top, b"/".join(place) or b".", flags, 0, _INSIDE)
    fd = os.dup(top)
    for start in range(0, len(place), _STEP):
        above, last = fd, start + _STEP >= len(place)
        try:
            fd = _core.openat2(above, b"/".join(place[start : start + _STEP]), flags if last else FOLDER, 0, _INSIDE)
        finally:
            os.close(above)
    return fd


def _parts(path: bytes) -> list[bytes]:
    """Components in reverse order."""
    return [part for part in path.split(b"/") if part not in (b"", b".")][::-1]
