"""What a build is made of, on the client's side: walks a folder, tells the daemon what is in it, and sends the files that it asks for.

Owns: the manifest (`engine.wire.buildframes` says how it looks), reading what is to be sent, the words for what cannot be read. The
connection is the caller's. Follows BuildKit's local sources: everything belongs to root, a socket becomes an empty file, devices and
named pipes stay what they are, extended attributes and hard links are kept.
"""

import errno
import posix
from _struct import unpack_from
from time import time_ns

from cli.client import Failure
from engine.wire import buildframes
from engine.wire.buildframes import ATTRIBUTE, ENTRY, FILE_HEAD, FOLDER_HEAD, HEAD, MAX_PAYLOAD, RACY, RACY_TIME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from builder.language.ignore import Folder, Patterns

_RACY_NS = 50_000_000
"""A file changed so shortly before the walk may change again without a trace: times of inodes move in steps of up to 10 ms."""
_OPEN = posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK | posix.O_NOFOLLOW
_REGULAR, _FOLDER, _LINK, _SOCKET, _PIPE, _CHARACTER, _BLOCK = 0o100000, 0o040000, 0o120000, 0o140000, 0o010000, 0o020000, 0o060000
_LETTERS = {_FOLDER: b"d", _LINK: b"l", _PIPE: b"p", _CHARACTER: b"c", _BLOCK: b"b"}
_HEADER_SIZE = 512
_ARCHIVES = (b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")


class Manifest:
    """One context: `payload` is for a MANIFEST message, `pieces` answers NEED. `files` and `size` (bytes) count regular files."""

    def __init__(self, name: str, root: bytes, kind: int = buildframes.FOLDER):
        origin = b"\0".join((_machine(), str(posix.getuid()).encode(), root))[:65535]
        encoded = name.encode()
        self._parts = [HEAD.pack(buildframes.VERSION, kind, len(encoded), len(origin)) + encoded + origin]
        self.root = root
        self._folders: list[tuple[int, bytes, list[bytes]]] = []  # number of the first entry, path, names
        self._count = 0
        self._documents: dict[bytes, bytes] = {}
        self.files = 0
        self.size = 0

    @property
    def payload(self) -> bytes:
        return b"".join(self._parts)

    def add(self, path: bytes, entries: "list[tuple[bytes, bytes]]", racy: bool) -> None:
        """One folder: (name, entry) of all that is in it."""
        entries.sort()
        block = b"".join([entry for _, entry in entries])
        head = FOLDER_HEAD.pack(len(path), RACY if racy else 0, len(entries), len(block))
        self._parts.append(head + path)
        self._parts.append(block)
        self._folders.append((self._count, path, [name for name, _ in entries]))
        self._count += len(entries)

    def path(self, number: int) -> bytes:
        """The path in the context of an entry. Raises Failure for a number that is none."""
        low, high = 0, len(self._folders)
        while high - low > 1:
            middle = (low + high) // 2
            if self._folders[middle][0] <= number:
                low = middle
            else:
                high = middle
        # Empty folders share their first number with the one that follows.
        while low and number - self._folders[low][0] >= len(self._folders[low][2]):
            low -= 1
        first, folder, names = self._folders[low]
        if not 0 <= number - first < len(names):
            raise Failure(f"the daemon asks for the file {number} of {self._count} in the context")
        name = names[number - first]
        return folder + b"/" + name if folder else name

    def pieces(self, need: bytes) -> "Iterator[bytes]":
        """The bytes of the files asked for, as payloads for FILES frames without the empty one at the end. Raises Failure."""
        pending: list[bytes] = []
        waiting = 0
        for (number,) in _numbers(need):
            path = self.path(number)
            for piece in self._file(number, path):
                if waiting + len(piece) > MAX_PAYLOAD:
                    yield b"".join(pending)
                    pending.clear()
                    waiting = 0
                pending.append(piece)
                waiting += len(piece)
        if pending:
            yield b"".join(pending)

    def _file(self, number: int, path: bytes) -> "Iterator[bytes]":
        document = self._documents.get(path)
        if document is not None:
            yield FILE_HEAD.pack(number, len(document))
            yield from (document[at : at + MAX_PAYLOAD] for at in range(0, len(document), MAX_PAYLOAD))
            return
        full = self.root + b"/" + path
        try:
            fd = posix.open(full, _OPEN)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a socket
                yield FILE_HEAD.pack(number, 0)
                return
            raise unreadable("open", full, error) from None
        try:
            yield from _content(fd, number, full)
        except OSError as error:
            raise unreadable("read", full, error) from None
        finally:
            posix.close(fd)


def _content(fd: int, number: int, path: bytes) -> "Iterator[bytes]":
    before = posix.fstat(fd)
    if before.st_mode & 0o170000 != _REGULAR:
        raise _changed(path)
    yield FILE_HEAD.pack(number, before.st_size)
    left = before.st_size
    while left:
        piece = posix.read(fd, min(left, MAX_PAYLOAD))
        if not piece:
            raise _changed(path)
        left -= len(piece)
        yield piece
    after = posix.fstat(fd)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise _changed(path)


def _changed(path: bytes) -> Failure:
    return Failure(
        f"error from sender: {_text(path)} changed while it was read (a build needs files that stay as they are: "
        "name it in .dockerignore, or stop what writes to it)"
    )


def _numbers(need: bytes) -> "Iterator[tuple[int]]":
    return (unpack_from(">I", need, at) for at in range(0, len(need) - 3, 4))


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def unreadable(action: str, path: bytes, error: OSError) -> Failure:
    """BuildKit's words for what its client could not read."""
    hint = " (a file that the build does not need can be left out by .dockerignore)" if isinstance(error, PermissionError) else ""
    return Failure(f"error from sender: {action} {_text(path)}: {(error.strerror or str(error)).lower()}{hint}")


def walk(name: str, root: str, ignore: "Patterns | None" = None) -> Manifest:
    """What is in the folder `root`, a path that may lead through links, as the context `name`, without what `ignore` leaves out. Raises
    Failure."""
    start = _Walk(Manifest(name, real(root)))
    start.run(ignore.root if ignore is not None and ignore.patterns else None)
    return start.manifest


def _path(item: "tuple[bytes, Folder | None]") -> bytes:
    return item[0]


def _listed(path: bytes) -> "list[posix.DirEntry[bytes]]":
    try:
        with posix.scandir(path) as found:
            return list(found)
    except OSError as error:
        raise unreadable("open", path, error) from None


class _Walk:
    """One walk. `manifest` gets what is found."""

    def __init__(self, manifest: Manifest):
        self.manifest = manifest
        self._top = manifest.root
        self._young = time_ns() - _RACY_NS
        self._first_names: dict[tuple[int, int], bytes] = {}  # of files with several names
        self._hopes: dict[bytes, bool] = {}

    def run(self, patterns: "Folder | None") -> None:
        stack = [(b"", patterns)]
        while stack:
            folder, patterns = stack.pop()
            below = self._folder(folder, patterns)
            below.sort(key=_path, reverse=True)
            stack += below

    def _holds(self, path: bytes, patterns: "Folder") -> bool:
        """Whether a folder that is left out has something that is not: then it is there after all."""
        known = self._hopes.get(path)
        if known is None:
            known = False
            for item in _listed(path):
                if item.is_dir(follow_symlinks=False):
                    inner = patterns.enter(item.name)
                    known = not inner.excluded or (not inner.skippable and self._holds(item.path, inner))
                else:
                    known = not patterns.leaves_out(item.name)
                if known:
                    break
            self._hopes[path] = known
        return known

    def _wanted(self, item: "posix.DirEntry[bytes]", patterns: "Folder") -> "tuple[bool, Folder | None]":
        """Whether an entry is taken, and the patterns for what is in it."""
        if not item.is_dir(follow_symlinks=False):
            return not patterns.leaves_out(item.name), None
        inner = patterns.enter(item.name)
        return not inner.excluded or (not inner.skippable and self._holds(item.path, inner)), inner

    def _folder(self, folder: bytes, patterns: "Folder | None") -> "list[tuple[bytes, Folder | None]]":
        """Add one folder to the manifest; those in it, with the patterns that hold there."""
        prefix = folder + b"/" if folder else b""
        path = self._top + b"/" + folder if folder else self._top
        below: list[tuple[bytes, Folder | None]] = []
        entries: list[tuple[bytes, bytes]] = []
        several: list[tuple[bytes, posix.stat_result, bytes]] = []
        racy = False
        size = 0
        files = 0
        pack = ENTRY.pack
        listxattr = posix.listxattr
        young = self._young
        manifest = self.manifest
        for item in _listed(path):
            name = item.name
            inner = None
            try:
                if patterns is not None:
                    wanted, inner = self._wanted(item, patterns)
                    if not wanted:
                        continue
                info = item.stat(follow_symlinks=False)
                attributes = _attributes(item.path) if listxattr(item.path, follow_symlinks=False) else b""
            except FileNotFoundError:
                continue  # gone since it was listed
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise unreadable("lstat", item.path, error) from None
                info = item.stat(follow_symlinks=False)
                attributes = b""
            mode = info.st_mode
            kind = mode & 0o170000
            if kind == _REGULAR:
                ctime = info.st_ctime_ns
                if ctime > young:
                    ctime = RACY_TIME
                    racy = True
                length = info.st_size
                entry = pack(102, mode & 0o7777, len(name), 0, len(attributes), length, info.st_mtime_ns, ctime, info.st_ino) + name
                if attributes:
                    entry += attributes
                if info.st_nlink > 1:
                    several.append((name, info, entry))
                    continue
                files += 1
                size += length
                entries.append((name, entry))
            elif kind == _SOCKET:
                files += 1
                head = pack(102, mode & 0o7777, len(name), 0, 0, 0, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)
                entries.append((name, head + name))
            else:
                if kind == _FOLDER:
                    below.append((prefix + name, inner))
                entries.append((name, _special(item.path, name, kind, info, attributes)))
        several.sort(key=lambda item: item[0])
        for name, info, entry in several:
            first = self._first_names.setdefault((info.st_dev, info.st_ino), prefix + name)
            if first == prefix + name:
                files += 1
                size += info.st_size
                entries.append((name, entry))
            else:
                head = pack(104, info.st_mode & 0o7777, len(name), len(first), 0, 0, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)
                entries.append((name, head + name + first))
        manifest.files += files
        manifest.size += size
        manifest.add(folder, entries, racy)
        return below


def _special(path: bytes, name: bytes, kind: int, info: "posix.stat_result", attributes: bytes) -> bytes:
    letter = _LETTERS[kind][0]
    target = b""
    number = 0
    if kind == _LINK:
        try:
            target = posix.readlink(path)
        except OSError as error:
            raise unreadable("readlink", path, error) from None
    elif kind in (_CHARACTER, _BLOCK):
        number = posix.major(info.st_rdev) << 32 | posix.minor(info.st_rdev)
    head = ENTRY.pack(letter, info.st_mode & 0o7777, len(name), len(target), len(attributes), number, info.st_mtime_ns, 0, 0)
    return head + name + target + attributes


def _attributes(path: bytes) -> bytes:
    """Extended attributes of a file; those that cannot be read are left out, as in BuildKit."""
    packed = b""
    for text in sorted(posix.listxattr(path, follow_symlinks=False)):
        name = text.encode("utf-8", "surrogateescape")
        if name.startswith((b"security.selinux", b"trusted.overlay.", b"user.overlay.")):
            continue  # the policy of this host, and the language of its overlay mounts
        try:
            value = posix.getxattr(path, name, follow_symlinks=False)
        except OSError:
            continue
        if len(packed) + len(name) + len(value) + ATTRIBUTE.size < 65536:
            packed += ATTRIBUTE.pack(len(name), len(value)) + name + value
    return packed


def documents(name: str, contents: "dict[str, bytes]", origin: str = "") -> Manifest:
    """A context that is no folder: files by their names. They are always sent."""
    manifest = Manifest(name, b"documents:" + origin.encode("utf-8", "surrogateescape"))
    entries = []
    for text, content in contents.items():
        file = text.encode("utf-8", "surrogateescape")
        entries.append((file, ENTRY.pack(102, 0o644, len(file), 0, 0, len(content), 0, RACY_TIME, 0) + file))
        manifest._documents[file] = content
        manifest.files += 1
        manifest.size += len(content)
    manifest.add(b"", entries, True)
    return manifest


def archive(name: str) -> Manifest:
    """A context that comes as an archive; `archive_pieces` sends it."""
    return Manifest(name, b"", buildframes.TAR)


def archive_pieces(fd: int, begun: bytes) -> "Iterator[bytes]":
    """Payloads for FILES frames: what was read already, then the descriptor to its end. Raises Failure."""
    if begun:
        yield begun
    while True:
        try:
            piece = posix.read(fd, MAX_PAYLOAD)
        except OSError as error:
            raise unreadable("read", b"stdin", error) from None
        if not piece:
            return
        yield piece


def peek(fd: int) -> "tuple[bool, bytes]":
    """Whether a stream is an archive (compressed or a tar), and what had to be read to see it. Raises Failure for an empty one."""
    begun = b""
    while len(begun) < _HEADER_SIZE:
        piece = posix.read(fd, _HEADER_SIZE - len(begun))
        if not piece:
            break
        begun += piece
    if not begun:
        raise Failure("ERROR: failed to peek context header from STDIN: EOF")
    return begun.startswith(_ARCHIVES) or _tar(begun), begun


def _tar(block: bytes) -> bool:
    """Whether a block is a tar header: its checksum is right (POSIX: the sum of its bytes with the checksum's own as spaces)."""
    if len(block) < _HEADER_SIZE:
        return False
    try:
        told = int(block[148:156].strip(b" \0"), 8)
    except ValueError:
        return False
    return told == sum(block[:148]) + sum(block[156:]) + 8 * 32


def real(path: str) -> bytes:
    """The absolute path of a folder without links in it. Raises Failure."""
    shown = path.encode("utf-8", "surrogateescape")
    try:
        fd = posix.open(shown, posix.O_PATH | posix.O_CLOEXEC | posix.O_DIRECTORY)
        try:
            return posix.readlink(b"/proc/self/fd/%d" % fd)
        finally:
            posix.close(fd)
    except OSError as error:
        raise unreadable("open", shown, error) from None


def _machine() -> bytes:
    """This host: its machine-id(5), and its name where several share one."""
    identifier = b""
    try:
        fd = posix.open("/etc/machine-id", posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            identifier = posix.read(fd, 64).strip()
        finally:
            posix.close(fd)
    except OSError:
        pass  # optional, see machine-id(5)
    return identifier + b"@" + posix.uname().nodename.encode("utf-8", "surrogateescape")
