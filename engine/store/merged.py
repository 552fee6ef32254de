"""Where a member of a layer lands: folders of one snapshot, found and made without ever leaving it. Owns the descriptors of open folders.

Nothing is opened by a path of more than one component: a folder is found by walking from the snapshot's own descriptor without following
symbolic links in the kernel. Links in the way are resolved here, inside the snapshot, and refused when they climb above it. What exists
only in a layer below counts as existing, as in the merged view that overlayfs shows.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable

from engine import _core
from engine.errors import InvalidParameter
from engine.store.trees import remove_tree
from engine.wire import tar

OPAQUE_ATTRIBUTE = "trusted.overlay.opaque"
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PATH_MAX = 4096  # the kernel's
_LINKS_MAX = 40  # the kernel's
DEEPEST = 2047
"""Folders of one letter in a path of 4096 bytes: deeper ones can be made, but work by paths needs the square of the depth for them."""
_CACHED_FOLDERS = 64
_INSIDE = 0x04 | 0x08  # RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH of openat2(2)

Place = tuple[bytes, ...]
Lowers = tuple[str, ...] | Callable[[], tuple[str, ...]]
"""The folders of the layers below, topmost first; as a function where they are still being made: it returns when they are there, and is
called only when something below must be looked at. () for a bottom layer."""


class Refused(InvalidParameter):
    """The layer is hostile, damaged or beyond a limit. The message names the entry."""


class Merged:
    """One snapshot being filled, over the folders `lowers` of the layers below it. `stacked`: whether there are any.

    `made` counts folders that members only implied; `times` holds the modification times (ns) that folders shall have in the end.
    """

    def __init__(self, root: str, lowers: Lowers) -> None:
        self.root = os.open(root, FOLDER)
        self.stacked = bool(lowers)
        self._wanted = lowers
        self._lowers: list[int] = []
        self.made = 0
        self.times: dict[Place, int] = {}
        # Folders by the name the archive uses -> descriptor and true place.
        self._folders: OrderedDict[bytes, tuple[int, Place]] = OrderedDict()
        self._stale = False

    def close(self) -> None:
        """Close every descriptor."""
        self._drop_folders()
        for fd in (self.root, *self._lowers):
            os.close(fd)
        self._lowers = []

    @property
    def lowers(self) -> list[int]:
        """Descriptors of the folders below, topmost first; waits for them where they are still being made."""
        if self._wanted:
            wanted = self._wanted() if callable(self._wanted) else self._wanted
            self._wanted = ()
            for lower in wanted:
                self._lowers.append(os.open(lower, FOLDER))
        return self._lowers

    def parent(self, parts: list[bytes], shown: bytes) -> tuple[int, Place]:
        """The folder of a member, made when missing: its descriptor (the cache's own) and its true place."""
        if not parts:
            return self.root, ()
        if self._stale:
            self._drop_folders()
            self._stale = False
        key = b"/".join(parts)
        found = self._folders.get(key)
        if found is not None:
            self._folders.move_to_end(key)
            return found
        while len(self._folders) >= _CACHED_FOLDERS:
            _, (old, _) = self._folders.popitem(last=False)
            os.close(old)
        above = self._folders.get(b"/".join(parts[:-1]))
        if above is None:
            fd, place = self._walk(os.dup(self.root), (), parts, shown)
        else:
            fd, place = self._walk(os.dup(above[0]), above[1], parts[-1:], shown)
        self._folders[key] = fd, place
        return fd, place

    def _walk(self, fd: int, place: Place, parts: list[bytes], shown: bytes) -> tuple[int, Place]:
        """Go down from `fd` (which is consumed), resolving links inside the snapshot and making folders that are missing."""
        pending = parts[::-1]
        links = 0
        try:
            while pending:
                part = pending.pop()
                if part == b"..":
                    if not place:
                        raise Refused(f"entry {tar.show(shown)}: a link in its way leads out of the image")
                    place = place[:-1]
                    os.close(fd)
                    fd = -1
                    fd = _core.openat2(self.root, b"/".join(place) or b".", FOLDER, 0, _INSIDE)
                    continue
                link = self._enter(fd, place, part, shown)
                if isinstance(link, int):
                    os.close(fd)
                    fd = link
                    place = (*place, part)
                    continue
                links += 1
                if links > _LINKS_MAX:
                    raise Refused(f"entry {tar.show(shown)}: too many symbolic links in its way")
                if link.startswith(b"/"):
                    os.close(fd)
                    fd = -1
                    fd, place = os.dup(self.root), ()
                pending += [piece for piece in link.split(b"/") if piece not in (b"", b".")][::-1]
                if len(pending) > _PATH_MAX:
                    raise Refused(f"entry {tar.show(shown)}: too long a path")
        except BaseException:
            if fd >= 0:
                os.close(fd)
            raise
        return fd, place

    def _enter(self, fd: int, place: Place, part: bytes, shown: bytes) -> int | bytes:
        """The descriptor of the folder `part`, or the target when it is a symbolic link."""
        try:
            return os.open(part, FOLDER, dir_fd=fd)
        except FileNotFoundError:
            return self._make_folder(fd, place, part, shown)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
        info = os.stat(part, dir_fd=fd, follow_symlinks=False)
        if stat.S_ISLNK(info.st_mode):
            return os.readlink(part, dir_fd=fd)
        if not is_whiteout(info):
            raise Refused(f"entry {tar.show(shown)}: {tar.show(part)} in its path is no folder")
        os.unlink(part, dir_fd=fd)
        made = self._plain_folder(fd, part)
        self.set_opaque(made)
        return made

    def _make_folder(self, fd: int, place: Place, part: bytes, shown: bytes) -> int | bytes:
        """A folder that the archive implies: as the layer below has it, so that e.g. /tmp keeps its mode."""
        below = self.below((*place, part))
        if below is None:
            return self._plain_folder(fd, part)
        try:
            info = os.fstat(below)
            if stat.S_ISLNK(info.st_mode):
                return os.readlink(b"", dir_fd=below)
            if not stat.S_ISDIR(info.st_mode):
                raise Refused(f"entry {tar.show(shown)}: {tar.show(part)} in its path is no folder in the layers below")
            made = self._plain_folder(fd, part)
            os.fchown(made, info.st_uid, info.st_gid)
            os.fchmod(made, stat.S_IMODE(info.st_mode))
            self.times.setdefault((*place, part), info.st_mtime_ns)
            return made
        finally:
            os.close(below)

    def _plain_folder(self, fd: int, part: bytes) -> int:
        os.mkdir(part, 0o755, dir_fd=fd)
        made = os.open(part, FOLDER, dir_fd=fd)
        os.fchmod(made, 0o755)
        self.made += 1
        return made

    def below(self, place: Place) -> int | None:
        """An O_PATH descriptor of what the layers below show at `place`, or None. Whiteouts and opaque folders end the search."""
        if not self.stacked or _covered(self.root, place):
            return None
        path = b"/".join(place)
        for lower in self.lowers:
            try:
                fd = _core.openat2(lower, path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, 0, _INSIDE)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise
                if error.errno != errno.ENOENT or _covered(lower, place):
                    return None
                continue
            if is_whiteout(os.fstat(fd)):
                os.close(fd)
                return None
            return fd
        return None

    def clear(self, parent: int, name: bytes) -> bool:
        """Remove what an earlier member left at `name`; whether it was a whiteout."""
        info = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISDIR(info.st_mode) or stat.S_ISLNK(info.st_mode):
            # Cached folders below it, or reached through the link, are now wrong. They are dropped before the next look-up: the
            # descriptors in use must stay open until then.
            remove_tree(parent, name)
            self._stale = True
        else:
            os.unlink(name, dir_fd=parent)
        return is_whiteout(info)

    def _drop_folders(self) -> None:
        for fd, _ in self._folders.values():
            os.close(fd)
        self._folders.clear()

    def make_opaque(self, parent: int, name: bytes) -> None:
        """Cut the folder `name` off from the layers below."""
        fd = os.open(name, FOLDER, dir_fd=parent)
        try:
            self.set_opaque(fd)
        finally:
            os.close(fd)

    def set_opaque(self, fd: int) -> None:
        """The same for an open folder. The lowest layer has nothing to be cut off from."""
        if self.stacked:
            os.setxattr(fd, OPAQUE_ATTRIBUTE, b"y")

    def set_times(self) -> None:
        """Give folders their times: after the last member, since every member in them would have changed them."""
        for place, mtime in self.times.items():
            self._set_time(place, mtime)

    def _set_time(self, place: Place, mtime: int) -> None:
        try:
            fd = _core.openat2(self.root, b"/".join(place) or b".", FOLDER, 0, _INSIDE)
        except OSError as error:
            # A later member took its place, or links made the true path longer than a path can be.
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
                return
            raise
        try:
            os.utime(fd, ns=(mtime, mtime))
        finally:
            os.close(fd)


def components(name: bytes, shown: bytes) -> list[bytes]:
    """The components of a member's name. Leading slashes count for nothing, as in Docker: a name is always meant from the image's root."""
    if len(name) > _PATH_MAX:
        raise Refused(f"entry {tar.show(shown)}: a name of {len(name)} bytes")
    if b"\0" in name:
        raise Refused(f"entry {tar.show(shown)}: a NUL in a name")
    parts = [part for part in name.split(b"/") if part and part != b"."]
    if b".." in parts:
        raise Refused(f"entry {tar.show(shown)}: a path with '..'" + ("" if name == shown else f" in its link {tar.show(name)}"))
    return parts


def is_whiteout(info: os.stat_result) -> bool:
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def is_opaque(folder: int | str | bytes) -> bool:
    """Whether a folder, by a descriptor to read it or a path, hides what layers below have in it. Raises OSError."""
    try:
        return os.getxattr(folder, OPAQUE_ATTRIBUTE) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return False
        raise


def _covered(layer: int, place: Place) -> bool:
    """Whether in this layer a folder above `place` is opaque, or something that is no folder stands in the way."""
    fd = os.dup(layer)
    try:
        for part in place[:-1]:
            try:
                below = os.open(part, FOLDER, dir_fd=fd)
            except FileNotFoundError:
                return False
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    return True
                raise
            os.close(fd)
            fd = below
            if is_opaque(fd):
                return True
        return False
    finally:
        os.close(fd)
