"""What damage looks like: a blob whose bytes are not those of its digest, a snapshot whose files are not those of the layer it was unpacked
from. Reads and compares, changes nothing; what to do about it is decided above.

A snapshot is compared with its layer's archive member by member: names, types, owners, modes, times, attributes, links and every byte.
So no second record of its files is needed, which could be as damaged as they are. What a power cut leaves (empty files, missing ones,
blocks of zeros) is found like anything else. Follows the same rules as `store.unpack`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator

from engine.store.merged import FOLDER, OPAQUE_ATTRIBUTE, Merged, Place, components, is_whiteout
from engine.store.trees import walk
from engine.store.unpack import META, OPAQUE, REFUSED_XATTRS, WHITEOUT
from engine.wire import tar

_CHUNK = 1 << 20
# Bytes after which pages that were only read for the check are given back.
_CACHED = 16 << 20
# A snapshot with so many differences is damaged, whatever comes after them.
_DIFFERENCES_MAX = 1000
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# What a file system may not be able to store: times before 1901 and after 2106.
_TIMES = range(-(1 << 31) * 10**9, (1 << 32) * 10**9)
_KINDS = {
    tar.DIRECTORY: stat.S_IFDIR, tar.REGULAR: stat.S_IFREG, tar.SYMLINK: stat.S_IFLNK, tar.CHARACTER: stat.S_IFCHR,
    tar.BLOCK_DEVICE: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO,
}  # fmt: skip
_WORDS = {
    stat.S_IFDIR: "a folder", stat.S_IFREG: "a file", stat.S_IFLNK: "a symbolic link", stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket",
}  # fmt: skip


def digest_of(path: str, algorithm: str, going_on: Callable[[], object]) -> tuple[str, int]:
    """The digest (`algorithm:hex`) and the length of what the disk, not the page cache, has at `path`. `going_on` is called for every
    mebibyte and ends the work by raising. Raises OSError."""
    sink = hashlib.new(algorithm)
    size = 0
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while chunk := file.read(_CHUNK):
            sink.update(chunk)
            size += len(chunk)
            if size % _CACHED < _CHUNK:
                os.posix_fadvise(file.fileno(), 0, size, os.POSIX_FADV_DONTNEED)
            going_on()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return f"{algorithm}:{sink.hexdigest()}", size


def compare(reader: tar.TarReader, root: str, lowers: tuple[str, ...] = (), *, quick: bool = False) -> list[str]:
    """What differs between a layer's archive and the folder `root` it was unpacked to, over the folders `lowers` below; [] for nothing.

    `quick` reads no file, it looks at names, types, sizes and the like. Blocks; any thread. Raises tar.TarError, OSError, and what
    the source raises.
    """
    comparison = _Comparison(reader, root, lowers, quick)
    try:
        for entry in reader:
            comparison.member(entry)
            if len(comparison.differences) > _DIFFERENCES_MAX:
                break
        else:
            comparison.finish()
        return comparison.result()
    finally:
        comparison.close()


class _Gone(Exception):
    """A folder on the way to a member is not there."""


class _There(Merged):
    """The folders of a snapshot that is there: found by the same rules as when they were made, and none is made."""

    def _enter(self, fd: int, place: Place, part: bytes, shown: bytes) -> int | bytes:
        try:
            return os.open(part, FOLDER, dir_fd=fd)
        except FileNotFoundError:
            return self._link_below(place, part)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
        if stat.S_ISLNK(os.stat(part, dir_fd=fd, follow_symlinks=False).st_mode):
            return os.readlink(part, dir_fd=fd)
        raise _Gone

    def _link_below(self, place: Place, part: bytes) -> bytes:
        """A layer below may have a link where this one's archive means a folder."""
        below = self.below((*place, part))
        if below is None:
            raise _Gone
        try:
            if not stat.S_ISLNK(os.fstat(below).st_mode):
                raise _Gone
            return os.readlink(b"", dir_fd=below)
        finally:
            os.close(below)


class _Difference:
    __slots__ = ("target", "text")

    def __init__(self, text: str, target: Place | None = None) -> None:
        self.text = text
        self.target = target


class _Comparison:
    def __init__(self, reader: tar.TarReader, root: str, lowers: tuple[str, ...], quick: bool) -> None:
        self.differences: dict[Place, _Difference] = {}
        self._unhidden: dict[Place, _Difference] = {}
        self._reader = reader
        self._quick = quick
        self._tree = _There(root, lowers)
        # Hashes of the places that the archive names or implies: some 60 bytes each instead of 300.
        self._known: set[int] = {hash(())}
        # Places other than folders that the archive names more than once: only the last member counts, and what earlier ones led to
        # (links to them, members below them) cannot be told from the result.
        self._again: set[Place] = set()
        self._root_opaque = False

    def close(self) -> None:
        self._tree.close()

    # -- one member

    def member(self, entry: tar.Entry) -> None:
        parts = components(entry.name, entry.name)
        if not parts:
            self._judge((), self._metadata(os.fstat(self._tree.root), entry, self._tree.root))
            return
        name = parts.pop()
        try:
            parent, above = self._tree.parent(parts, entry.name)
        except (_Gone, NotADirectoryError, FileNotFoundError):
            place = (*parts, name)
            self._know(place)
            if not name.startswith(META):
                self._judge(place, "is missing")
            return
        self._know(above)
        if name.startswith(WHITEOUT):
            self._whiteout(parent, above, name)
            return
        place = (*above, name)
        if hash(place) in self._known and entry.type != tar.DIRECTORY:
            self._again.add(place)
        self._know(place)
        try:
            if entry.type == tar.LINK:
                self._hard_link(parent, place, entry)
            else:
                self._judge(place, self._look(parent, name, entry))
        except (FileNotFoundError, _Gone):
            self._judge(place, "is missing")
        except OSError as error:
            self._judge(place, f"cannot be read: {error.strerror}")

    def _know(self, place: Place) -> None:
        for length in range(len(place), 0, -1):
            key = hash(place[:length])
            if key in self._known:
                return
            self._known.add(key)

    def _judge(self, place: Place, difference: str, target: Place | None = None) -> None:
        """The last member of a place decides."""
        if difference:
            self.differences[place] = _Difference(difference, target)
        else:
            self.differences.pop(place, None)

    def _look(self, parent: int, name: bytes, entry: tar.Entry) -> str:
        info = os.stat(name, dir_fd=parent, follow_symlinks=False)
        kind = _KINDS[entry.type]
        if stat.S_IFMT(info.st_mode) != kind:
            return f"is {_WORDS.get(stat.S_IFMT(info.st_mode), 'something else')} instead of {_WORDS[kind]}"
        if entry.type == tar.REGULAR and info.st_size != entry.size:
            return f"has {info.st_size} bytes instead of {entry.size}"
        if entry.type == tar.SYMLINK and os.readlink(name, dir_fd=parent) != entry.linkname:
            return "leads elsewhere"
        if entry.type in (tar.CHARACTER, tar.BLOCK_DEVICE) and info.st_rdev != os.makedev(entry.devmajor, entry.devminor):
            return "is another device"
        if entry.type not in (tar.REGULAR, tar.DIRECTORY) or (self._quick and not entry.xattrs):
            return self._metadata(info, entry)
        fd = os.open(name, _READ, dir_fd=parent)
        try:
            return self._metadata(info, entry, fd) or (self._content(fd, entry) if entry.type == tar.REGULAR and not self._quick else "")
        finally:
            os.close(fd)

    def _metadata(self, info: os.stat_result, entry: tar.Entry, fd: int = -1) -> str:
        if (info.st_uid, info.st_gid) != (entry.uid, entry.gid):
            return f"belongs to {info.st_uid}:{info.st_gid} instead of {entry.uid}:{entry.gid}"
        if entry.type != tar.SYMLINK and stat.S_IMODE(info.st_mode) != entry.mode:
            return f"has mode {stat.S_IMODE(info.st_mode):04o} instead of {entry.mode:04o}"
        # Some file systems store whole seconds.
        if entry.mtime in _TIMES and info.st_mtime_ns not in (entry.mtime, entry.mtime // 10**9 * 10**9):
            return "was modified"
        for name, value in (entry.xattrs or {}).items() if fd >= 0 else ():
            if not name.startswith(REFUSED_XATTRS) and not _has(fd, name, value):
                return f"lacks its attribute {tar.show(name)}"
        return ""

    # -- bytes

    def _content(self, fd: int, entry: tar.Entry) -> str:
        place = -1
        position = 0
        fragments: Iterator[tuple[int, int]] = iter(entry.sparse if entry.sparse is not None else ((0, entry.stored),))
        end = 0
        for chunk in self._reader.data():
            while chunk:
                while position >= end:
                    start, length = next(fragments)
                    if (place := _not_zero(fd, end, start)) >= 0:
                        return _differs(place)
                    position, end = start, start + length
                piece = chunk[: end - position]
                if os.pread(fd, len(piece), position) != piece:
                    return _differs(position)
                position += len(piece)
                chunk = chunk[len(piece) :]
        if entry.sparse is not None and (place := _not_zero(fd, end, entry.size)) >= 0:
            return _differs(place)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return ""

    # -- links and whiteouts

    def _hard_link(self, parent: int, place: Place, entry: tar.Entry) -> None:
        target = components(entry.linkname, entry.name)
        last = target.pop()
        found = os.stat(place[-1], dir_fd=parent, follow_symlinks=False)
        source, above = self._tree.parent(target, entry.name)
        there = (*above, last)
        other = os.stat(last, dir_fd=source, follow_symlinks=False)
        if hash(there) not in self._known:
            # It came from a layer below, copied up for the sake of the link.
            self._know(there)
            self._judge(there, self._copied(source, there, other))
        same = (found.st_dev, found.st_ino) == (other.st_dev, other.st_ino)
        self._judge(place, "" if same else f"is no link to {tar.show(entry.linkname)}", there)

    def _copied(self, parent: int, place: Place, info: os.stat_result) -> str:
        below = self._below_copy(place)
        if below < 0:
            return ""
        copy = -1
        try:
            original = os.open(f"/proc/self/fd/{below}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            os.close(below)
            below = original
            wanted = os.fstat(below)
            if (info.st_size, info.st_mode, info.st_mtime_ns) != (wanted.st_size, wanted.st_mode, wanted.st_mtime_ns):
                return "is not what the layer below has"
            copy = os.open(place[-1], _READ, dir_fd=parent)
            for offset in range(0, 0 if self._quick else info.st_size, _CHUNK):
                if os.pread(copy, _CHUNK, offset) != os.pread(below, _CHUNK, offset):
                    return _differs(offset)
            return ""
        finally:
            os.close(below)
            if copy >= 0:
                os.close(copy)

    def _below_copy(self, place: Place) -> int:
        found = self._tree.below(place)
        if found is None:
            return -1
        if not stat.S_ISREG(os.fstat(found).st_mode):
            os.close(found)
            return -1
        return found

    def _whiteout(self, parent: int, above: Place, name: bytes) -> None:
        if name == OPAQUE:
            if above and self._tree.stacked and not _has(parent, OPAQUE_ATTRIBUTE.encode(), b"y"):
                self._unhidden[above] = _Difference("does not hide the layers below", above)
            self._root_opaque = self._root_opaque or not above
        elif not name.startswith(META) and self._tree.stacked:
            self._hidden(parent, (*above, name[len(WHITEOUT) :]))

    def _hidden(self, parent: int, place: Place) -> None:
        """Something hides `place` of the layers below: a whiteout, an opaque folder, or this layer's own file."""
        known = hash(place) in self._known
        self._know(place)
        try:
            info = os.stat(place[-1], dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            self._judge(place, "is not hidden")
            return
        if stat.S_ISDIR(info.st_mode):
            fd = os.open(place[-1], FOLDER, dir_fd=parent)
            try:
                if not _has(fd, OPAQUE_ATTRIBUTE.encode(), b"y"):
                    self._unhidden[place] = _Difference("does not hide the layers below", place)
            finally:
                os.close(fd)
        elif not known and not is_whiteout(info):
            # A later member may be what lies there; it judges again.
            self._judge(place, "is not hidden")

    # -- the end

    def finish(self) -> None:
        """Names that the archive does not know."""
        if self._root_opaque and self._tree.stacked:
            for lower in self._tree.lowers:
                for name in os.listdir(lower):
                    self._hidden(self._tree.root, (os.fsencode(name),))
        if self._again:
            return  # a link that was replaced may have led members to places that nothing names
        for place, _ in walk(self._tree.root):
            if hash(place) not in self._known:
                self.differences.setdefault(place, _Difference("is not in the layer"))
                if len(self.differences) > _DIFFERENCES_MAX:
                    return

    def result(self) -> list[str]:
        return [
            f"{tar.show(b'/'.join(place) or b'/')} {difference.text}"
            for place, difference in sorted({**self._unhidden, **self.differences}.items())
            if not self._again or not self._undecided(place, difference)
        ]

    def _undecided(self, place: Place, difference: _Difference) -> bool:
        return difference.target in self._again or any(place[:length] in self._again for length in range(1, len(place)))


def _differs(position: int) -> str:
    return f"differs from byte {position} on, or shortly after"


def _has(fd: int, name: bytes, value: bytes) -> bool:
    """Whether an attribute is there as it should be, as far as the file system has such attributes."""
    try:
        return os.getxattr(fd, name) == value
    except OSError as error:
        return error.errno in (errno.ENOTSUP, errno.EPERM)


def _not_zero(fd: int, start: int, end: int) -> int:
    """Where data begins in what should be a hole; -1 for nowhere."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return -1
            raise
        if start >= end:
            return -1
        piece = os.pread(fd, min(_CHUNK, end - start), start)
        if piece.count(0) != len(piece):
            return start
        start += len(piece)
    return -1
