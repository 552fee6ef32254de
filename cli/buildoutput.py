"""What a build leaves on the client's machine: folders unpacked from a tar stream, archives, the image's identifier, the metadata.

A stream comes from a hostile image: every name is opened from the descriptor of the folder above it, and no link is followed. As with
BuildKit's local exporter everything belongs to the caller; modes, times and links are kept, but for what would give the caller's rights
away; a folder that exists is merged into, and what is in the way of an entry is replaced, never written through.
"""

import errno
import posix

from cli.buildflags import Sink, refuse
from cli.client import Failure
from cli.streams import write_all

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from engine.wire.tar import Entry, TarReader

_PLACE = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC
_NEW = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC
_LONGEST = 4096  # bytes of a name, the kernel's for a path
_KIND, _FOLDER, _LINK = 0o170000, 0o040000, 0o120000
_UNSUPPORTED = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP)


def _words(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


class Archive:
    """An output that goes to a file or stdout as it is. A file has its name only when it is whole."""

    def __init__(self, sink: Sink):
        self.path = sink.path
        self.temporary = ""
        if sink.path == "-":
            self.descriptor = 1
            return
        folder, _, name = sink.path.rpartition("/")
        flags = posix.O_WRONLY | posix.O_CREAT | posix.O_CLOEXEC
        try:
            if _special(sink.path):
                self.descriptor = posix.open(sink.path, flags)
                return
            if folder:
                _make_folders(folder)
            temporary = f"{folder or ('/' if sink.path[:1] == '/' else '.')}/.{name}.{posix.getpid()}.{posix.urandom(4).hex()}"
            self.descriptor = posix.open(temporary, flags | posix.O_EXCL, 0o666)
            self.temporary = temporary
        except OSError as error:
            raise refuse(f"open {sink.path}: {_words(error)}") from None

    def feed(self, data: bytes) -> None:
        try:
            write_all(self.descriptor, data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise refuse(f"write {self.path}: {_words(error)}") from None

    def end(self) -> None:
        """The stream is complete."""
        if self.descriptor == 1:
            return
        posix.close(self.descriptor)
        if self.temporary:
            posix.rename(self.temporary, self.path)
        self.temporary = ""

    def discard(self) -> None:
        """The build failed: nothing half-written stays."""
        if self.temporary:
            posix.close(self.descriptor)
            posix.unlink(self.temporary)
            self.temporary = ""


def _special(path: str) -> bool:
    """A device or a pipe, which is written in place."""
    try:
        return (posix.stat(path).st_mode & _KIND) not in (0o100000, _FOLDER)
    except OSError:
        return False


def _make_folders(path: str) -> None:
    """A folder and those above it, as far as they are missing."""
    try:
        posix.mkdir(path)
    except FileExistsError:
        pass
    except FileNotFoundError:
        _make_folders(path.rstrip("/").rpartition("/")[0])
        posix.mkdir(path)


class Unpacker:
    """A tar stream into a folder. Use once: `run`."""

    def __init__(self, sink: Sink):
        self.path = sink.path
        self.delete = sink.delete
        try:
            _make_folders(sink.path)
            self.root = posix.open(sink.path, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
        except OSError as error:
            raise refuse(f"failed to create {sink.path}: {_words(error)}") from None
        self.seen: set[tuple[bytes, ...]] = set()
        self.folders: list[tuple[tuple[bytes, ...], Entry]] = []
        self.place: tuple[bytes, ...] = ()
        self.parent = self.root

    def run(self, source: "Callable[[], bytes]") -> None:
        """Unpack what `source` gives piece by piece (b"" at the end). Raises Failure."""
        from engine.wire.tar import TarError, TarReader

        try:
            reader = TarReader(source)
            while (entry := reader.next()) is not None:
                self._entry(reader, entry)
            for _ in iter(source, b""):
                pass  # what follows the end of the archive
            self._finish()
        except TarError as error:
            raise refuse(f"the daemon's archive for {self.path} is malformed: {error}") from None
        finally:
            self._enter(())
            posix.close(self.root)

    def _entry(self, reader: "TarReader", entry: "Entry") -> None:
        place = tuple(part for part in entry.name.split(b"/") if part not in (b"", b"."))
        if not place:
            return  # the folder itself: the caller's
        if len(entry.name) > _LONGEST:
            raise refuse(f"the daemon's archive for {self.path} has a name of {len(entry.name)} bytes")
        if b".." in place:
            raise refuse(f"the daemon's archive for {self.path} has a name that leads out of it: {_shown(entry.name)}")
        try:
            for depth in range(1, len(place) + 1):
                self.seen.add(place[:depth])
            self._enter(place[:-1])
            self._make(reader, entry, place)
        except OSError as error:
            raise refuse(f"failed to write {self.path}/{_shown(entry.name)}: {_words(error)}") from None

    def _enter(self, place: "tuple[bytes, ...]") -> None:
        """Make `parent` the descriptor of that folder below the root, made where it is missing."""
        if place == self.place:
            return
        if self.parent != self.root:
            posix.close(self.parent)
        self.parent, self.place = self.root, ()
        if place:
            self.parent, self.place = self._open(place, True), place

    def _open(self, place: "tuple[bytes, ...]", make: bool) -> int:
        at = self.root
        try:
            for name in place:
                below = self._child(at, name, make)
                if at != self.root:
                    posix.close(at)
                at = below
        except BaseException:
            if at != self.root:
                posix.close(at)
            raise
        return at

    def _child(self, at: int, name: bytes, make: bool) -> int:
        try:
            return posix.open(name, _PLACE, dir_fd=at)
        except OSError as error:
            if not make or error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            if error.errno != errno.ENOENT:
                posix.unlink(name, dir_fd=at)
        posix.mkdir(name, 0o755, dir_fd=at)
        return posix.open(name, _PLACE, dir_fd=at)

    def _make(self, reader: "TarReader", entry: "Entry", place: "tuple[bytes, ...]") -> None:
        from engine.wire import tar

        name, at = place[-1], self.parent
        if entry.type == tar.DIRECTORY:
            fd = self._child(at, name, True)
            posix.fchmod(fd, posix.fstat(fd).st_mode & 0o7777 | 0o700)  # so that what belongs there can be written; see _finish
            posix.close(fd)
            self.folders.append((place, entry))
            return
        if entry.type == tar.LINK:
            self._hard_link(entry, place)
            return
        _remove(at, name)
        if entry.type == tar.SYMLINK:
            posix.symlink(entry.linkname, name, dir_fd=at)
        elif entry.type == tar.REGULAR:
            self._file(reader, entry, name)
            return
        else:
            kind = {tar.CHARACTER: 0o020000, tar.BLOCK_DEVICE: 0o060000, tar.FIFO: 0o010000}[entry.type]
            posix.mknod(name, kind | 0o600, posix.makedev(entry.devmajor, entry.devminor), dir_fd=at)
            # Nobody else can have replaced it in a folder that is being written. A device is one of this host: for the caller alone.
            posix.chmod(name, entry.mode if entry.type == tar.FIFO else entry.mode & 0o700, dir_fd=at)
        posix.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=at, follow_symlinks=False)

    def _file(self, reader: "TarReader", entry: "Entry", name: bytes) -> None:
        fd = posix.open(name, _NEW, 0o600, dir_fd=self.parent)
        try:
            if entry.sparse is None:
                for chunk in reader.data():
                    write_all(fd, chunk)
            else:
                posix.ftruncate(fd, entry.size)
                _write_sparse(fd, reader, entry.sparse)
            for key, value in (entry.xattrs or {}).items():
                _set_attribute(fd, key, value)
            posix.fchmod(fd, _mode(entry))
            posix.utime(fd, ns=(entry.mtime, entry.mtime))
        finally:
            posix.close(fd)

    def _hard_link(self, entry: "Entry", place: "tuple[bytes, ...]") -> None:
        target = tuple(part for part in entry.linkname.split(b"/") if part not in (b"", b"."))
        if not target or target == place or b".." in target or target not in self.seen:
            raise refuse(f"the daemon's archive for {self.path} has a link to what is not in it: {_shown(entry.linkname)}")
        folder = self._open(target[:-1], False)
        try:
            _remove(self.parent, place[-1])
            posix.link(target[-1], place[-1], src_dir_fd=folder, dst_dir_fd=self.parent, follow_symlinks=False)
        finally:
            if folder != self.root:
                posix.close(folder)

    def _finish(self) -> None:
        """Modes and times of folders, from the bottom up, when nothing more is written into them."""
        if self.delete:
            self._enter(())
            self._delete(self.root, ())
        for place, entry in sorted(self.folders, key=lambda item: -len(item[0])):
            fd = self._open(place, False)
            try:
                for key, value in (entry.xattrs or {}).items():
                    _set_attribute(fd, key, value)
                posix.fchmod(fd, entry.mode)
                posix.utime(fd, ns=(entry.mtime, entry.mtime))
            finally:
                posix.close(fd)

    def _delete(self, at: int, place: "tuple[bytes, ...]") -> None:
        """Remove what the stream did not have (`mode=delete`)."""
        for text in posix.listdir(at):
            name = text.encode("utf-8", "surrogateescape")
            here = (*place, name)
            if here not in self.seen:
                _remove(at, name)
            elif (posix.stat(name, dir_fd=at, follow_symlinks=False).st_mode & _KIND) == _FOLDER:
                fd = posix.open(name, _PLACE, dir_fd=at)
                try:
                    self._delete(fd, here)
                finally:
                    posix.close(fd)


def _mode(entry: "Entry") -> int:
    """A file's mode for the caller: not set-user-ID or set-group-ID where it belonged to somebody else, or its programs would get the
    caller's rights, root's perhaps, for everybody who starts them."""
    mode = entry.mode
    if entry.uid != posix.geteuid():
        mode &= ~0o4000
    if entry.gid != posix.getegid():
        mode &= ~0o2000
    return mode


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "replace")


def _set_attribute(fd: int, key: bytes, value: bytes) -> None:
    """An extended attribute; those that the caller may not give, or that the file system has not, stay away as with BuildKit."""
    try:
        posix.setxattr(fd, key, value)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def _write_sparse(fd: int, reader: "TarReader", sparse: "list[tuple[int, int]]") -> None:
    fragments = iter(sparse)
    offset = left = 0
    for chunk in reader.data():
        while chunk:
            while not left:
                offset, left = next(fragments)
            done = posix.pwrite(fd, chunk[:left], offset)
            offset, left, chunk = offset + done, left - done, chunk[done:]


def _remove(at: int, name: bytes) -> None:
    """Whatever has that name in the folder `at`, with all that is in it; nothing is no error."""
    try:
        posix.unlink(name, dir_fd=at)
        return
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EPERM):
            raise
    fd = posix.open(name, _PLACE, dir_fd=at)
    try:
        for below in posix.listdir(fd):
            _remove(fd, below.encode("utf-8", "surrogateescape"))
    finally:
        posix.close(fd)
    posix.rmdir(name, dir_fd=at)


def write_iidfile(path: str, identity: str) -> None:
    """`--iidfile`. Raises Failure."""
    _write(path, identity.encode())


def write_metadata(path: str, result: "dict[str, Any]", options: "dict[str, Any]") -> None:
    """`--metadata-file`, with the keys that buildx writes, sorted. Raises Failure."""
    from cli.codec import dumps, indent

    found = dict(result.get("metadata") or {})
    image, digest = result.get("image", ""), result.get("digest", "")
    if image:
        found.setdefault("containerimage.config.digest", image)
        found.setdefault("containerimage.digest", digest or image)
        if options.get("tags"):
            found.setdefault("image.name", ",".join(_full_name(tag) for tag in options["tags"]))
    elif digest:
        found.setdefault("containerimage.digest", digest)
    _write(path, indent(dumps(dict(sorted(found.items()))), "  ").encode())


def _full_name(tag: str) -> str:
    from cli.references import parse

    reference = parse(tag)
    return f"{reference.name}:{reference.tag or 'latest'}"


def _write(path: str, data: bytes) -> None:
    from cli.configfile import write_file

    try:
        if _special(path):
            fd = posix.open(path, posix.O_WRONLY | posix.O_CLOEXEC)
            try:
                write_all(fd, data)
            finally:
                posix.close(fd)
        else:
            write_file(path, data, 0o644)
    except OSError as error:
        raise refuse(f"failed to write {path}: {_words(error)}") from None


def remove_stale(path: str) -> None:
    """An identifier or metadata of a build before goes, so that none is there when this one fails."""
    if path and not _special(path):
        try:
            posix.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise Failure(f"ERROR: removing {path}: {_words(error)}") from None
