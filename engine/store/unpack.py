"""Layers into overlay folders: applies the members of an archive to one snapshot. Owns what a hostile layer can and cannot do.

Every member is made by one name in the descriptor of its folder, which `merged` finds; so nothing outside can be written, whatever
order the members come in. Follows OCI layer.md (whiteouts, opaque folders) and overlayfs.rst (how the kernel wants them: a 0/0 character
device, an attribute).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

import msgspec

from engine.errors import DiskFull, KnarrError
from engine.store.merged import FOLDER, Lowers, Merged, Place, Refused, components, is_whiteout
from engine.wire import tar

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
META = b".wh..wh."
# Attributes with which a layer would speak to overlayfs itself (redirects into other layers), and a label that is the host's policy's.
REFUSED_XATTRS = (b"trusted.overlay.", b"user.overlay.", b"security.selinux")
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_COPY = 1 << 20


class Limits(msgspec.Struct, frozen=True):
    """What one layer may become; 0 means no limit. `ratio` of unpacked to packed bytes counts from `ratio_from` bytes on.

    gzip packs zeros 1:1030, and images with some hundred megabytes of zeros exist, so the ratio alone says little before a gigabyte or two.
    """

    bytes: int = 256 << 30
    entries: int = 4_000_000
    ratio: int = 500
    ratio_from: int = 2 << 30


DEFAULT_LIMITS = Limits()


class Unpacked(msgspec.Struct):
    """What came out: bytes of files, inodes, and attributes the file system did not take."""

    size: int = 0
    inodes: int = 0
    warnings: tuple[str, ...] = ()


def unpack(reader: tar.TarReader, root: str, lowers: Lowers = (), limits: Limits = DEFAULT_LIMITS, *, whiteouts: bool = True) -> Unpacked:
    """Apply every member of `reader` to the empty folder `root`, over the folders `lowers` of the layers below.

    Without `whiteouts` it is an archive of files like any other, in which names that begin with `.wh.` mean nothing.

    Blocks; any thread. Raises Refused naming the entry, KnarrError for the host's troubles (no space), TarError, and what the source
    raises. What was written stays for the caller to delete.
    """
    result = Unpacked()
    for _ in unpacking(reader, root, result, lowers, limits, whiteouts=whiteouts):
        pass
    return result


def unpacking(
    reader: tar.TarReader,
    root: str,
    result: Unpacked,
    lowers: Lowers = (),
    limits: Limits = DEFAULT_LIMITS,
    *,
    whiteouts: bool = True,
) -> Iterator[tar.Entry]:
    """`unpack` in steps: yields each member after it was applied and keeps `result` up to date."""
    target = _Target(reader, root, result, lowers, limits, whiteouts)
    try:
        for entry in reader:
            target.apply(entry)
            yield entry
        target.finish()
    finally:
        target.close()


class _Target:
    def __init__(self, reader: tar.TarReader, root: str, result: Unpacked, lowers: Lowers, limits: Limits, whiteouts: bool) -> None:
        self.result = result
        self._whiteouts = whiteouts
        self._reader = reader
        self._limits = limits
        self._tree = Merged(root, lowers)
        self._warned: dict[str, None] = {}
        self._root_opaque = False

    def close(self) -> None:
        self._tree.close()

    # -- one member

    def apply(self, entry: tar.Entry) -> None:
        self.result.inodes += 1
        if self._limits.entries and self.result.inodes > self._limits.entries:
            raise Refused(f"entry {tar.show(entry.name)}: more than {self._limits.entries} entries")
        try:
            self._apply(entry, components(entry.name, entry.name))
        except OSError as error:
            raise _explain(error, entry.name) from error
        except OverflowError as error:
            raise Refused(f"entry {tar.show(entry.name)}: a number is out of range") from error

    def _apply(self, entry: tar.Entry, parts: list[bytes]) -> None:
        if not parts:
            if entry.type != tar.DIRECTORY:
                raise Refused(f"entry {tar.show(entry.name)}: the root can only be a folder")
            self._folder_metadata(self._tree.root, (), entry)
            return
        name = parts.pop()
        parent, place = self._tree.parent(parts, entry.name)
        if self._whiteouts and name.startswith(WHITEOUT):
            self._whiteout(parent, place, name, entry.name)
        elif entry.type == tar.REGULAR:
            self._file(parent, place, name, entry)
        elif entry.type == tar.DIRECTORY:
            self._directory(parent, place, name, entry)
        elif entry.type == tar.LINK:
            self._hard_link(parent, place, name, entry)
        elif entry.type == tar.SYMLINK:
            self._symlink(parent, place, name, entry)
        elif entry.type in (tar.CHARACTER, tar.BLOCK_DEVICE, tar.FIFO):
            self._node(parent, place, name, entry)
        else:
            raise Refused(f"entry {tar.show(entry.name)}: unknown type {entry.type!r}")

    def _file(self, parent: int, place: Place, name: bytes, entry: tar.Entry) -> None:
        try:
            fd = os.open(name, _CREATE, 0o600, dir_fd=parent)
        except FileExistsError:
            self._tree.clear(parent, name)
            fd = os.open(name, _CREATE, 0o600, dir_fd=parent)
        try:
            if entry.stored:
                self._count(entry)
                if entry.sparse is None:
                    self._write(fd)
                else:
                    self._write_sparse(fd, entry.sparse)
            if entry.sparse is not None:
                os.ftruncate(fd, entry.size)
            os.fchown(fd, entry.uid, entry.gid)
            os.fchmod(fd, entry.mode)
            if entry.xattrs:
                self._xattrs(fd, entry)
            os.utime(fd, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(fd)

    def _count(self, entry: tar.Entry) -> None:
        self.result.size += entry.stored
        if self._limits.bytes and self.result.size > self._limits.bytes:
            raise Refused(f"entry {tar.show(entry.name)}: more than {self._limits.bytes} bytes")

    def _write(self, fd: int) -> None:
        for chunk in self._reader.data():
            _write_all(fd, chunk)

    def _write_sparse(self, fd: int, sparse: list[tuple[int, int]]) -> None:
        fragments = iter(sparse)
        offset = left = 0
        for chunk in self._reader.data():
            while chunk:
                while not left:
                    offset, left = next(fragments)
                done = os.pwrite(fd, chunk[:left], offset)
                offset, left, chunk = offset + done, left - done, chunk[done:]

    def _directory(self, parent: int, place: Place, name: bytes, entry: tar.Entry) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                whiteout = self._tree.clear(parent, name)
                os.mkdir(name, 0o700, dir_fd=parent)
                if whiteout:
                    self._tree.make_opaque(parent, name)
        if entry.xattrs:
            fd = os.open(name, FOLDER, dir_fd=parent)
            try:
                self._folder_metadata(fd, (*place, name), entry)
            finally:
                os.close(fd)
            return
        os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        os.chmod(name, entry.mode, dir_fd=parent)
        self._tree.times[(*place, name)] = entry.mtime

    def _folder_metadata(self, fd: int, place: Place, entry: tar.Entry) -> None:
        os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode)
        if entry.xattrs:
            self._xattrs(fd, entry)
        self._tree.times[place] = entry.mtime

    def _symlink(self, parent: int, place: Place, name: bytes, entry: tar.Entry) -> None:
        if not entry.linkname:
            raise Refused(f"entry {tar.show(entry.name)}: a symbolic link without a target")
        try:
            os.symlink(entry.linkname, name, dir_fd=parent)
        except FileExistsError:
            self._tree.clear(parent, name)
            os.symlink(entry.linkname, name, dir_fd=parent)
        self._finish_node(parent, name, entry)

    def _node(self, parent: int, place: Place, name: bytes, entry: tar.Entry) -> None:
        kind = {tar.CHARACTER: stat.S_IFCHR, tar.BLOCK_DEVICE: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}[entry.type]
        device = os.makedev(entry.devmajor, entry.devminor) if entry.type != tar.FIFO else 0
        try:
            os.mknod(name, kind | 0o600, device, dir_fd=parent)
        except FileExistsError:
            self._tree.clear(parent, name)
            os.mknod(name, kind | 0o600, device, dir_fd=parent)
        self._finish_node(parent, name, entry)

    def _finish_node(self, parent: int, name: bytes, entry: tar.Entry) -> None:
        os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        if entry.type != tar.SYMLINK:
            os.chmod(name, entry.mode, dir_fd=parent)
        if entry.xattrs:
            # No *at form before Linux 6.13; the descriptor's own path has one trusted component, and links at its end are not followed.
            self._xattrs(b"/proc/self/fd/%d/%s" % (parent, name), entry)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)

    def _hard_link(self, parent: int, place: Place, name: bytes, entry: tar.Entry) -> None:
        target = components(entry.linkname, entry.name)
        if not target:
            raise Refused(f"entry {tar.show(entry.name)}: a hard link without a target")
        last = target.pop()
        # Finding the target may push the parent out of the cache.
        holder = os.dup(parent)
        try:
            source, source_place = self._tree.parent(target, entry.name)
            self._bring_up(source, source_place, last, entry)
            if (source_place, last) == (place, name):
                return
            try:
                os.link(last, name, src_dir_fd=source, dst_dir_fd=holder, follow_symlinks=False)
            except FileExistsError:
                self._tree.clear(holder, name)
                os.link(last, name, src_dir_fd=source, dst_dir_fd=holder, follow_symlinks=False)
        finally:
            os.close(holder)

    def _bring_up(self, parent: int, place: Place, name: bytes, entry: tar.Entry) -> None:
        """Make sure a hard link's target is in this layer: it may be a file of a layer below, which overlay would copy up."""
        try:
            info = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            found = self._tree.below((*place, name))
            if found is None:
                raise Refused(f"entry {tar.show(entry.name)}: its hard link's target {tar.show(entry.linkname)} is not there")
            try:
                self._copy_up(found, parent, name, entry)
            finally:
                os.close(found)
            return
        if stat.S_ISDIR(info.st_mode):
            raise Refused(f"entry {tar.show(entry.name)}: a hard link to a folder")
        if is_whiteout(info):
            raise Refused(f"entry {tar.show(entry.name)}: its hard link's target {tar.show(entry.linkname)} was removed")

    def _copy_up(self, found: int, parent: int, name: bytes, entry: tar.Entry) -> None:
        info = os.fstat(found)
        if not stat.S_ISREG(info.st_mode):
            raise Refused(f"entry {tar.show(entry.name)}: a hard link to {tar.show(entry.linkname)}, which is no file, in a layer below")
        source = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
        copy = os.open(name, _CREATE, 0o600, dir_fd=parent)
        try:
            while data := os.read(source, _COPY):
                _write_all(copy, data)
            os.fchown(copy, info.st_uid, info.st_gid)
            os.fchmod(copy, stat.S_IMODE(info.st_mode))
            for attribute in os.listxattr(source):
                os.setxattr(copy, attribute, os.getxattr(source, attribute))
            os.utime(copy, ns=(info.st_mtime_ns, info.st_mtime_ns))
        finally:
            os.close(source)
            os.close(copy)
        self.result.inodes += 1
        self.result.size += info.st_size

    def _xattrs(self, target: int | bytes, entry: tar.Entry) -> None:
        assert entry.xattrs is not None
        for name, value in entry.xattrs.items():
            if name.startswith(REFUSED_XATTRS):
                continue
            try:
                if isinstance(target, int):
                    os.setxattr(target, name, value)
                else:
                    os.setxattr(target, name, value, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.ENOTSUP, errno.EPERM):
                    raise
                self._warned.setdefault(f"the file system does not take the attribute {tar.show(name)}: {error.strerror}")

    # -- whiteouts

    def _whiteout(self, parent: int, place: Place, name: bytes, shown: bytes) -> None:
        if name == OPAQUE:
            if place:
                self._tree.set_opaque(parent)
            else:
                self._root_opaque = True
            return
        hidden = name[len(WHITEOUT) :]
        if name.startswith(META):
            return  # aufs' own files; Docker leaves them out too
        if hidden in (b"", b".", b".."):
            raise Refused(f"entry {tar.show(shown)}: a whiteout of nothing")
        self._hide(parent, hidden)

    def _hide(self, parent: int, name: bytes) -> None:
        """A whiteout hides what is below only: what this layer itself has there stays, cut off from below."""
        if not self._tree.stacked:
            return
        try:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent)
        except FileExistsError:
            if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                self._tree.make_opaque(parent, name)

    # -- the end

    def finish(self) -> None:
        """Whiteouts for an opaque root, then the times of folders, which every member below them would have changed."""
        if self._root_opaque:
            self._hide_root()
        self._tree.set_times()
        self.result.inodes += self._tree.made
        self.result.warnings = tuple(self._warned)

    def _hide_root(self) -> None:
        """The kernel does not look for an opaque mark at the root of a layer, so each name below is hidden by itself."""
        for lower in self._tree.lowers:
            for name in os.listdir(lower):
                self._hide(self._tree.root, os.fsencode(name))


def _write_all(fd: int, data: bytes | memoryview) -> None:
    done = os.write(fd, data)
    while done < len(data):
        done += os.write(fd, memoryview(data)[done:])


def _explain(error: OSError, name: bytes) -> KnarrError:
    """Troubles of the host stay the host's; everything else is the layer's fault."""
    text = f"entry {tar.show(name)}: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"unpacking {text}")
    if error.errno in (errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES):
        return KnarrError(f"unpacking {text}")
    return Refused(text)
