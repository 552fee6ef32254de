"""A committed overlay folder as a layer's archive: the same folder gives the same bytes on every machine. Reads one folder, writes nothing.

The counterpart of `store.unpack`, in OCI layer.md's words: a whiteout is a file `.wh.NAME`, an opaque folder holds `.wh..wh..opq`. Members
come in the order of their names' bytes, a folder before what is in it; the first name of a file with several is the file, the others are
hard links. Times are whole seconds, as Docker and containerd write them. Of attributes go along what an image may carry elsewhere: file
capabilities and users' own. Sockets stay behind, as with tar(1).
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable

import msgspec

from engine.errors import KnarrError
from engine.store.merged import DEEPEST, FOLDER, is_opaque, is_whiteout
from engine.store.unpack import OPAQUE, WHITEOUT
from engine.wire import tar, tarwrite

Write = Callable[[bytes | memoryview], object]
"""Takes the next piece of the archive; a view is good until it returns."""

_ROOM = 1 << 20
_SECOND = 1_000_000_000
_BLOCK = tar.BLOCK
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOATIME
# What a folder of layers is made with; a root with these says nothing.
_ROOT = (stat.S_IFDIR | 0o755, 0, 0)
_CAPABILITY = "security.capability"
_USER, _USER_OVERLAY = "user.", "user.overlay."
_KINDS = {stat.S_IFLNK: tar.SYMLINK, stat.S_IFCHR: tar.CHARACTER, stat.S_IFBLK: tar.BLOCK_DEVICE, stat.S_IFIFO: tar.FIFO}


class Packed(msgspec.Struct, frozen=True):
    """An archive: `diff_id` its digest, `size` its bytes; `files_bytes` those of the files in it, `inodes` its members. `left_out`: paths
    of files whose names mean a whiteout in a layer, so that no layer can hold them."""

    diff_id: str
    size: int
    files_bytes: int
    inodes: int
    left_out: tuple[bytes, ...] = ()


def pack(
    folder: str, write: Write | None = None, *, epoch: int | None = None, check: Callable[[], object] | None = None, digest: bool = True
) -> Packed:  # fmt: skip
    """Pack what is below the host path `folder`, which nobody changes. With `write` the archive goes there, in pieces of a mebibyte.

    `epoch`: Unix seconds that no time may lie behind. `check` is called for each piece, to raise what ends the work. Without `digest`
    nothing is hashed and `diff_id` is of no use: whoever gets the pieces hashes them. Blocks; any thread. Raises OSError, KnarrError for a
    file that changes meanwhile.
    """
    top = os.open(folder, FOLDER)
    try:
        return _Packing(top, Members(write, epoch, check, digest=digest)).run()
    finally:
        os.close(top)


class Members:
    """The members of an archive on their way out: headers, and bytes gathered into pieces. `inodes` and `files_bytes` count."""

    def __init__(self, write: Write | None, epoch: int | None, check: Callable[[], object] | None, *, digest: bool = True) -> None:
        self._write = write
        self._digested = digest
        self._latest = epoch
        self._check = check
        self._hash = hashlib.sha256()
        self._buffer = memoryview(bytearray(_ROOM))
        self._used = 0
        self.size = 0
        self.files_bytes = self.inodes = 0
        # Of files with several names: what names the inode -> the name that is the file.
        self._first: dict[tuple[int, ...], bytes] = {}

    @property
    def digest(self) -> str:
        """Of all that went out."""
        return f"sha256:{self._hash.hexdigest()}"

    def finish(self) -> None:
        """The end of the archive."""
        self.put(tarwrite.END)
        self._flush()

    def link(self, full: bytes, info: os.stat_result, *where: int) -> bool:
        """Whether it is a further name of a file that was there before, and is written so. `where` tells file systems apart."""
        first = self._first.setdefault((*where, info.st_dev, info.st_ino), full)
        if first == full:
            return False
        self.put(self.header(full, info, tar.LINK, None, first))
        return True

    def file(self, fd: int, name: bytes, full: bytes, info: os.stat_result) -> None:
        """A regular file in the folder `fd`. Raises OSError, KnarrError."""
        file = os.open(name, _FILE, dir_fd=fd)
        try:
            self.put(self.header(full, info, tar.REGULAR, attributes(file)))
            if info.st_size:
                self.content(file, info.st_size, full)
        finally:
            os.close(file)

    def node(self, fd: int, name: bytes, full: bytes, info: os.stat_result) -> None:
        """A link, a device or a pipe in the folder `fd`; a socket is left out. Raises OSError."""
        kind = _KINDS.get(stat.S_IFMT(info.st_mode))
        if kind is not None:
            target = os.readlink(name, dir_fd=fd) if kind == tar.SYMLINK else b""
            self.put(self.header(full, info, kind, None, target))

    def header(
        self, name: bytes, info: os.stat_result, kind: bytes, xattrs: dict[bytes, bytes] | None, linkname: bytes = b""
    ) -> bytes:  # fmt: skip
        """A member's header; its times are whole seconds, and not behind the epoch."""
        self.inodes += 1
        seconds = info.st_mtime_ns // _SECOND
        if self._latest is not None and seconds > self._latest:
            seconds = self._latest
        entry = tar.Entry(name, kind)
        entry.mode = info.st_mode & 0o7777
        entry.uid, entry.gid = info.st_uid, info.st_gid
        entry.mtime = seconds * _SECOND
        entry.linkname = linkname
        entry.xattrs = xattrs
        if kind == tar.REGULAR:
            entry.size = info.st_size
        elif kind in (tar.CHARACTER, tar.BLOCK_DEVICE):
            entry.devmajor, entry.devminor = os.major(info.st_rdev), os.minor(info.st_rdev)
        return tarwrite.header(entry)

    def put(self, data: bytes) -> None:
        """Bytes of the archive."""
        used = self._used
        end = used + len(data)
        if end <= _ROOM:
            self._buffer[used:end] = data
            self._used = end
            return
        view = memoryview(data)
        while view:
            if self._used == _ROOM:
                self._flush()
            used = self._used
            end = min(_ROOM, used + len(view))
            self._buffer[used:end] = view[: end - used]
            self._used = end
            view = view[end - used :]

    def content(self, file: int, size: int, name: bytes) -> None:
        """`size` bytes of an open file, with what fills the last block. Raises OSError, KnarrError when there are fewer."""
        left = size
        while left:
            used = self._used
            if used == _ROOM:
                self._flush()
                used = 0
            count = os.readv(file, (self._buffer[used : min(used + left, _ROOM)],))
            if not count:
                raise KnarrError(f"packing {tar.show(name)}: it has {size - left} bytes instead of {size}")
            self._used = used + count
            left -= count
        self.files_bytes += size
        if size % _BLOCK:
            self.put(tarwrite.padding(size))

    def _flush(self) -> None:
        if self._used:
            self._out(self._buffer[: self._used])
            self._used = 0

    def _out(self, piece: memoryview) -> None:
        if self._check is not None:
            self._check()
        if self._digested:
            self._hash.update(piece)
        self.size += len(piece)
        if self._write is not None:
            self._write(piece)


class _Packing:
    def __init__(self, top: int, out: Members) -> None:
        self._top = top
        self._out = out
        self._left_out: list[bytes] = []

    def run(self) -> Packed:
        info = os.fstat(self._top)
        found = attributes(self._top)
        out = self._out
        if found or (info.st_mode, info.st_uid, info.st_gid) != _ROOT:
            out.put(out.header(b"./", info, tar.DIRECTORY, found))
        self._walk()
        out.finish()
        return Packed(out.digest, out.size, out.files_bytes, out.inodes, tuple(self._left_out))

    def _walk(self) -> None:
        """Folders are entered one by one and left through "..", so that a tree of any depth needs two descriptors and no long path."""
        fd = os.dup(self._top)
        above: list[tuple[int, bytes, list[bytes]]] = []
        path, pending = b"", _listed(fd)
        try:
            while True:
                while pending:
                    name = pending.pop()
                    info = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    mode = info.st_mode
                    if stat.S_ISREG(mode):
                        self._file(fd, path, name, info)
                    elif stat.S_ISDIR(mode):
                        if name.startswith(WHITEOUT):
                            self._left_out.append(path + name)
                            continue
                        child = os.open(name, FOLDER, dir_fd=fd)
                        above.append((os.fstat(fd).st_ino, path, pending))
                        os.close(fd)
                        fd, path = child, b"%s%s/" % (path, name)
                        if len(above) > DEEPEST:
                            raise too_deep(path)
                        self._folder(fd, path, info)
                        pending = _listed(fd)
                    else:
                        self._other(fd, path, name, info)
                if not above:
                    return
                inode, path, pending = above.pop()
                parent = os.open("..", FOLDER, dir_fd=fd)
                os.close(fd)
                fd = parent
                if os.fstat(fd).st_ino != inode:
                    raise KnarrError(f"packing {tar.show(path)}: a folder in it was moved meanwhile")
        finally:
            os.close(fd)

    # -- members

    def _folder(self, fd: int, path: bytes, info: os.stat_result) -> None:
        out = self._out
        out.put(out.header(path, info, tar.DIRECTORY, attributes(fd)))
        if is_opaque(fd):
            out.put(_whiteout(path + OPAQUE))

    def _file(self, fd: int, path: bytes, name: bytes, info: os.stat_result) -> None:
        if name.startswith(WHITEOUT):
            self._left_out.append(path + name)
        elif info.st_nlink == 1 or not self._out.link(path + name, info):
            self._out.file(fd, name, path + name, info)

    def _other(self, fd: int, path: bytes, name: bytes, info: os.stat_result) -> None:
        if is_whiteout(info):
            self._out.put(_whiteout(path + WHITEOUT + name))
            self._out.inodes += 1
        elif stat.S_ISSOCK(info.st_mode):
            return
        elif name.startswith(WHITEOUT):
            self._left_out.append(path + name)
        elif info.st_nlink == 1 or not self._out.link(path + name, info):
            self._out.node(fd, name, path + name, info)


def too_deep(path: bytes) -> KnarrError:
    """The error for a folder below more than DEEPEST others, whose path nothing could unpack."""
    return KnarrError(f"packing {tar.show(path[:100])}…: a path of {path.count(b'/')} folders: file name too long")


def _listed(fd: int) -> list[bytes]:
    """The names in a folder, the last one first."""
    return sorted(map(os.fsencode, os.listdir(fd)), reverse=True)


def attributes(fd: int) -> dict[bytes, bytes] | None:
    """Those of an open file or folder that an archive keeps; None for none. Raises OSError."""
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return None
        raise
    kept = [name for name in names if name == _CAPABILITY or (name.startswith(_USER) and not name.startswith(_USER_OVERLAY))]
    return {os.fsencode(name): os.getxattr(fd, name) for name in kept} if kept else None


def _whiteout(name: bytes) -> bytes:
    entry = tar.Entry(name)
    entry.mode = 0
    return tarwrite.header(entry)
