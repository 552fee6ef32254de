"""The stored tree of a context on disk: brings it to what a plan says, and copies it for a build that must not see it change.

Blocks; for worker threads. A file is never written again: what changed is removed and made anew, because layers share files with the tree.
Names come from a client and are single components; folders are opened from the tree's descriptor without following links.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator

from builder.sources.manifest import (
    ABSENT,
    BLOCK,
    CHARACTER,
    DIGEST,
    DIRECTORY,
    FILE,
    HARD_LINK,
    PIPE,
    SYMLINK,
    Entry,
    Folder,
    Plan,
    Planned,
    attributes,
    entries,
    parent,
    seal,
)
from engine.errors import DiskFull, InvalidParameter, KnarrError
from engine.store.merged import FOLDER as OPEN_FOLDER
from engine.store.trees import remove_tree
from engine.store.unpack import REFUSED_XATTRS
from engine.store.view import open_below
from engine.wire.buildframes import FILE_HEAD, MalformedFrame

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PIECE = 1 << 20


@contextlib.contextmanager
def explained(doing: str) -> Iterator[None]:
    """Errors of the host's disk as what a user can do something about."""
    try:
        yield
    except OSError as error:
        raise _better(error, doing) from error


def _better(error: OSError, doing: str) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"{doing}: {error.strerror}")
    if error.errno in (errno.ENAMETOOLONG, errno.EINVAL):
        return InvalidParameter(f"{doing}: {error.strerror}")
    return KnarrError(f"{doing}: {error.strerror}")


def place(path: bytes) -> tuple[bytes, ...]:
    """The components of a path in a context."""
    return tuple(path.split(b"/")) if path else ()


def remove_below(above: str, name: str) -> None:
    """Remove `name` in the folder `above`, whatever it is; neither need be there. Raises OSError."""
    try:
        fd = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        remove_tree(fd, name)
    finally:
        os.close(fd)


class Filling:
    """Carries out one plan in the folder `top`: `prepare`, `feed` with what the client sends, `finish`. Then `close`, in any case."""

    def __init__(self, top: str, plan: Plan) -> None:
        self._top = os.open(top, OPEN_FOLDER)
        self._plan = plan
        self._by_path = {one.folder.path: one for one in plan.folders}
        self._need = iter(plan.need)
        self._waiting = len(plan.need)
        self._head = b""
        self._left = 0
        self._file = -1
        self._hasher = hashlib.sha256()
        self._current: tuple[Planned, int, Entry] | None = None
        self._folder = -1
        self._folder_of: Planned | None = None
        self.received = 0
        """Bytes of files that came."""

    @property
    def complete(self) -> bool:
        """Whether all files are there."""
        return not self._waiting and self._current is None

    def close(self) -> None:
        """Close every descriptor."""
        for fd in (self._file, self._folder, self._top):
            if fd >= 0:
                os.close(fd)
        self._file = self._folder = self._top = -1

    # -- before the files

    def prepare(self, check: Callable[[], object] = lambda: None) -> None:
        """Make folders and what is no file, remove what is not wanted. `check` is called for each folder, to raise what ends the work.
        Raises KnarrError."""
        for one in self._plan.folders:
            if one.entries is None:
                continue
            check()
            with explained(f"storing the folder {_shown(one.folder.path)} of the context"):
                fd = open_below(self._top, place(one.folder.path), OPEN_FOLDER)
                try:
                    self._reconcile(fd, one)
                finally:
                    os.close(fd)

    def _reconcile(self, fd: int, one: Planned) -> None:
        assert one.entries is not None
        kinds = {entry.name: entry.type for entry in one.entries}
        with os.scandir(fd) as found:
            there = {os.fsencode(item.name): item.is_dir(follow_symlinks=False) for item in found}
        for name, folder in there.items():
            if name not in one.kept and not (folder and kinds.get(name) == DIRECTORY):
                remove_tree(fd, name)
        for entry in one.entries:
            if entry.name in one.kept:
                continue
            match entry.type:
                case t if t == DIRECTORY:
                    if not there.get(entry.name):
                        os.mkdir(entry.name, 0o700, dir_fd=fd)
                case t if t == SYMLINK:
                    os.symlink(entry.target, entry.name, dir_fd=fd)
                    _adorn(fd, entry)
                case t if t in (PIPE, CHARACTER, BLOCK):
                    kind = {PIPE: stat.S_IFIFO, CHARACTER: stat.S_IFCHR, BLOCK: stat.S_IFBLK}[entry.type]
                    device = os.makedev(entry.size >> 32, entry.size & 0xFFFFFFFF) if entry.type != PIPE else 0
                    os.mknod(entry.name, kind | 0o600, device, dir_fd=fd)
                    os.chmod(entry.name, entry.mode, dir_fd=fd)
                    _adorn(fd, entry)

    # -- files

    def feed(self, data: bytes) -> None:
        """Bytes of FILES as they come. Raises KnarrError, MalformedFrame."""
        try:
            self._feed(memoryview(data))
        except OSError as error:
            raise _better(error, f"storing {self._shown()} of the context") from error

    def _feed(self, view: memoryview) -> None:
        while view:
            if self._current is None:
                view = self._begin(view)
                continue
            piece = view[: self._left]
            self._hasher.update(piece)
            _write_all(self._file, piece)
            self._left -= len(piece)
            self.received += len(piece)
            view = view[len(piece) :]
            if not self._left:
                self._end()

    def _begin(self, view: memoryview) -> memoryview:
        rest = FILE_HEAD.size - len(self._head)
        self._head += view[:rest]
        if len(self._head) < FILE_HEAD.size:
            return view[rest:]
        number, size = FILE_HEAD.unpack(self._head)
        self._head = b""
        wanted, one, position = next(self._need, (-1, None, 0))
        if number != wanted or one is None or one.entries is None:
            raise MalformedFrame(f"the client sends the file {number} of its context, not the file {wanted} that it was asked for")
        self._waiting -= 1
        entry = one.entries[position]
        self._current = one, position, entry
        if self._folder_of is not one:
            if self._folder >= 0:
                os.close(self._folder)
                self._folder = -1
            self._folder = open_below(self._top, place(one.folder.path), OPEN_FOLDER)
            self._folder_of = one
        self._file = os.open(entry.name, _NEW, 0o600, dir_fd=self._folder)
        self._left = size
        self._hasher = hashlib.sha256()
        if not size:
            self._end()
        return view[rest:]

    def _end(self) -> None:
        assert self._current is not None
        one, position, entry = self._current
        for name, value in attributes(entry):
            _set_attribute(self._file, name, value)
        os.fchmod(self._file, entry.mode)
        os.utime(self._file, ns=(entry.mtime, entry.mtime))
        fd, self._file = self._file, -1
        os.close(fd)
        assert isinstance(one.digests, bytearray)
        one.digests[position * DIGEST : (position + 1) * DIGEST] = self._hasher.digest()
        self._current = None

    def _shown(self) -> str:
        assert self._current is not None
        one, _, entry = self._current
        return _shown(one.folder.path + b"/" + entry.name if one.folder.path else entry.name)

    # -- after the files

    def finish(self) -> None:
        """Hard links, and what folders are to look like. Raises KnarrError, MalformedFrame when files are missing."""
        if self._waiting or self._current is not None or self._head:
            raise MalformedFrame(f"the client ended its context {self._waiting + (self._current is not None)} files early")
        with explained("storing the context"):
            changed = [one for one in self._plan.folders if one.entries is not None]
            for one in changed:
                self._link(one)
            looks: dict[bytes, list[Entry]] = {}
            for one in changed:
                self._adorn_folders(one, looks)
                seal(one)
            if changed:
                os.fchmod(self._top, 0o755)

    def _link(self, one: Planned) -> None:
        assert one.entries is not None
        for position, entry in enumerate(one.entries):
            if entry.type != HARD_LINK:
                continue
            above, name = parent(entry.target)
            other = self._by_path[above]
            source = open_below(self._top, place(above), OPEN_FOLDER)
            try:
                folder = open_below(self._top, place(one.folder.path), OPEN_FOLDER)
                try:
                    os.link(name, entry.name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
                finally:
                    os.close(folder)
            finally:
                os.close(source)
            found = [each.name for each in (other.entries or entries(other.folder))].index(name)
            assert isinstance(one.digests, bytearray)
            one.digests[position * DIGEST : (position + 1) * DIGEST] = other.digests[found * DIGEST : (found + 1) * DIGEST]

    def _adorn_folders(self, one: Planned, looks: dict[bytes, list[Entry]]) -> None:
        """Mode and times of a folder whose entries changed, and of those in it that shall look different."""
        assert one.entries is not None
        path = one.folder.path
        if path:
            above, name = parent(path)
            if self._by_path[above].entries is None or name in self._by_path[above].kept:
                if above not in looks:
                    looks[above] = [e for e in entries(self._by_path[above].folder) if e.type == DIRECTORY]
                self._adorn_in(above, [entry for entry in looks[above] if entry.name == name])
        self._adorn_in(path, [entry for entry in one.entries if entry.type == DIRECTORY and entry.name not in one.kept])

    def _adorn_in(self, path: bytes, folders: list[Entry]) -> None:
        if not folders:
            return
        fd = open_below(self._top, place(path), OPEN_FOLDER)
        try:
            for entry in folders:
                inner = os.open(entry.name, OPEN_FOLDER, dir_fd=fd)
                try:
                    for stale in os.listxattr(inner):
                        if not stale.startswith("security."):
                            os.removexattr(inner, stale)
                    for name, value in attributes(entry):
                        _set_attribute(inner, name, value)
                    os.fchmod(inner, entry.mode)
                    os.utime(inner, ns=(entry.mtime, entry.mtime))
                finally:
                    os.close(inner)
        finally:
            os.close(fd)


def _adorn(folder: int, entry: Entry) -> None:
    for name, value in attributes(entry):
        # The descriptor's own path has one trusted component, and links at its end are not followed.
        _set_attribute(b"/proc/self/fd/%d/%s" % (folder, entry.name), name, value)
    os.utime(entry.name, ns=(entry.mtime, entry.mtime), dir_fd=folder, follow_symlinks=False)


def _set_attribute(target: int | bytes, name: bytes, value: bytes) -> None:
    """What the file system does not take is left out, as in BuildKit."""
    if name.startswith(REFUSED_XATTRS):
        return
    try:
        if isinstance(target, int):
            os.setxattr(target, name, value)
        else:
            os.setxattr(target, name, value, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EPERM, errno.EINVAL):
            raise


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")[:300] or "."


def clone(source: str, target: str) -> None:
    """Make `target` a tree of other folders with the same files: they are linked, not copied. Raises OSError."""
    os.mkdir(target, 0o700)
    top = os.open(source, OPEN_FOLDER)
    copy = os.open(target, OPEN_FOLDER)
    try:
        _clone(top, copy)
    finally:
        os.close(top)
        os.close(copy)


def _clone(source: int, target: int) -> None:
    folders: list[tuple[int, int, list[bytes]]] = [(os.dup(source), os.dup(target), _linked(source, target))]
    try:
        while folders:
            above, copy_above, pending = folders[-1]
            if not pending:
                info = os.fstat(above)
                for name in os.listxattr(above):
                    if not name.startswith("security."):
                        os.setxattr(copy_above, name, os.getxattr(above, name))
                os.fchmod(copy_above, stat.S_IMODE(info.st_mode))
                os.utime(copy_above, ns=(info.st_mtime_ns, info.st_mtime_ns))
                folders.pop()
                os.close(above)
                os.close(copy_above)
                continue
            folder = pending.pop()
            os.mkdir(folder, 0o700, dir_fd=copy_above)
            inner = os.open(folder, OPEN_FOLDER, dir_fd=above)
            try:
                copy_inner = os.open(folder, OPEN_FOLDER, dir_fd=copy_above)
            except BaseException:
                os.close(inner)
                raise
            folders.append((inner, copy_inner, []))
            folders[-1][2].extend(_linked(inner, copy_inner))
    finally:
        for above, copy_above, _ in folders:
            os.close(above)
            os.close(copy_above)


def _linked(source: int, target: int) -> list[bytes]:
    """Link what is no folder; the names of the folders."""
    below: list[bytes] = []
    with os.scandir(source) as found:
        for item in found:
            if item.is_dir(follow_symlinks=False):
                below.append(os.fsencode(item.name))
            else:
                os.link(item.name, item.name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    return below


def verified(
    top: str, folders: tuple[Folder, ...], check: Callable[[], object] = lambda: None
) -> Iterator[tuple[Folder, list[tuple[Entry, bytes]]]]:
    """The files of an index that are really there, all of them read: a host that stopped without warning may have lost the last ones.
    `check` is called for each file, to raise what ends the work."""
    root = os.open(top, OPEN_FOLDER)
    try:
        for folder in folders:
            there: list[tuple[Entry, bytes]] = []
            with contextlib.suppress(OSError):  # what cannot be read is not there, and will be made anew
                fd = open_below(root, place(folder.path), OPEN_FOLDER)
                try:
                    for i, entry in enumerate(entries(folder)):
                        check()
                        digest = bytes(folder.digests[i * DIGEST : (i + 1) * DIGEST])
                        if entry.type == FILE and digest != ABSENT and not entry.attributes and _same(fd, entry, digest):
                            there.append((entry, digest))
                finally:
                    os.close(fd)
            yield folder, there
    finally:
        os.close(root)


def _same(folder: int, entry: Entry, digest: bytes) -> bool:
    try:
        fd = os.open(entry.name, _READ, dir_fd=folder)
    except OSError:
        return False
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or stat.S_IMODE(info.st_mode) != entry.mode or info.st_mtime_ns != entry.mtime:
            return False
        hasher = hashlib.sha256()
        while piece := os.read(fd, _PIECE):
            hasher.update(piece)
        return hasher.digest() == digest
    except OSError:
        return False
    finally:
        os.close(fd)
