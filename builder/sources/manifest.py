"""What is in a context: a client's manifest, what the daemon has stored of the same context, and what lies between the two. Pure.

A stored context has an *index*: the folders of the last manifest with the digests of their files. A folder whose entries are byte for
byte those of the index is not looked into at all, so that a build in which one file changed costs one folder. The index may claim less
than is stored, never more: such folders are `DIRTY`, and only what they claim is kept.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from engine.wire.buildframes import (
    ATTRIBUTE,
    ENTRY,
    FOLDER,
    FOLDER_HEAD,
    HEAD,
    RACY,
    RACY_TIME,
    TAR,
    TYPES,
    VERSION,
    MalformedFrame,
)

FILE, DIRECTORY, SYMLINK, HARD_LINK, PIPE, CHARACTER, BLOCK = TYPES
ADORNED, LINKS, DIRTY = 0x20, 0x40, 0x80
"""Flags of a stored folder: something in it has extended attributes; it has hard links; it may have less or other things in it than the
tree on disk."""

DIGEST = 32
ABSENT = bytes(DIGEST)
_ENTRIES_MAX = 4_000_000
_NAME_MAX = 255  # the kernel's
_SIZE_MAX = (1 << 64) - 1
_MAJORS, _MINORS = 1 << 12, 1 << 20  # of devices; the kernel's
_PATH_MAX = 4096  # the kernel's
_MAGIC = b"knarr-context-1\n"
_INDEX_HEAD = struct.Struct(">36sIQQHHI")
_RECORD = struct.Struct(">HBIIIQ32s")


class Entry(msgspec.Struct, frozen=True):
    """One thing in a folder. `size` of a file in bytes, a device's number for one; `mtime` in nanoseconds; `raw`: the entry's bytes."""

    type: int
    mode: int
    size: int
    mtime: int
    ctime: int
    name: bytes
    target: bytes
    attributes: bytes
    raw: bytes


class Folder(msgspec.Struct):
    """`block`: the bytes of its `count` entries; `first`: the number of the first one. With its contents known: `digests`, 32 bytes for
    each entry (zeros for what is no file), `content` of names, modes and contents, `subfolders`, and `size` of files in bytes."""

    path: bytes
    flags: int
    count: int
    block: bytes
    first: int = 0
    digests: bytes | bytearray = b""
    content: bytes = ABSENT
    subfolders: int = 0
    size: int = 0


class Manifest(msgspec.Struct, frozen=True):
    """What a client sent. `kind`: FOLDER or TAR of the frames; `origin` tells contexts apart."""

    name: str
    origin: bytes
    kind: int
    folders: tuple[Folder, ...] = ()

    @property
    def key(self) -> str:
        """The name of this context among those that are stored."""
        return hashlib.sha256(b"%d\0%b\0%b" % (len(self.name), self.name.encode(), self.origin)).hexdigest()[:40]


class Index(msgspec.Struct, frozen=True):
    """What is stored of a context: in the folder of number `generation`, written in the boot `boot`. `created` in nanoseconds."""

    boot: str
    generation: int
    created: int
    name: str
    origin: bytes
    folders: tuple[Folder, ...]

    @property
    def size(self) -> int:
        """Bytes of the files."""
        return min(_SIZE_MAX, sum(folder.size for folder in self.folders))  # what clients say, and they may lie


class Planned(msgspec.Struct):
    """A folder as it shall be. `entries` is None when it is like that already, but for the contents of hard links; else all that is not
    in `kept` is to be made. `digests` of files that are not there yet are zeros."""

    folder: Folder
    entries: list[Entry] | None
    kept: frozenset[bytes]
    digests: bytearray | bytes


class Plan(msgspec.Struct, frozen=True):
    """How to get from an index to a manifest. `need`: (number in the manifest, folder, position in it) of the files to be sent."""

    folders: list[Planned]
    need: list[tuple[int, Planned, int]]
    removed: bool = False

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return all(planned.entries is None for planned in self.folders) and not self.removed


def decode(payload: bytes) -> Manifest:
    """A MANIFEST message; the entries of its folders are not looked at. Raises MalformedFrame."""
    try:
        version, kind, name_length, origin_length = HEAD.unpack_from(payload)
    except struct.error:
        raise MalformedFrame("a manifest without a head") from None
    at = HEAD.size + name_length + origin_length
    if version != VERSION or kind not in (FOLDER, TAR) or at > len(payload):
        raise MalformedFrame(f"a manifest of version {version}, kind {kind}, {len(payload)} bytes")
    try:
        name = payload[HEAD.size : HEAD.size + name_length].decode()
    except UnicodeDecodeError:
        raise MalformedFrame("a context whose name is not UTF-8") from None
    origin = payload[HEAD.size + name_length : at]
    if kind == TAR:
        if at != len(payload):
            raise MalformedFrame("folders in the manifest of an archive")
        return Manifest(name, origin, kind)
    folders: list[Folder] = []
    first = 0
    while at < len(payload):
        try:
            path_length, flags, count, length = FOLDER_HEAD.unpack_from(payload, at)
        except struct.error:
            raise MalformedFrame("a manifest that is cut off") from None
        start = at + FOLDER_HEAD.size
        at = start + path_length + length
        if at > len(payload) or count * ENTRY.size > length or first + count > _ENTRIES_MAX:
            raise MalformedFrame(f"a folder of {count} entries in {length} bytes")
        if path_length >= _PATH_MAX:  # what no client could walk would need the square of its depth here
            raise MalformedFrame(f"a path of {path_length} bytes")
        folders.append(
            Folder(
                payload[start : start + path_length],
                flags & RACY,
                count,
                payload[start + path_length : start + path_length + length],
                first,
            )
        )
        first += count
    if not folders or folders[0].path:
        raise MalformedFrame("a manifest that does not begin with the root")
    return Manifest(name, origin, kind, tuple(folders))


def entries(folder: Folder) -> list[Entry]:
    """What is in a folder. Raises MalformedFrame."""
    found: list[Entry] = []
    block = folder.block
    at = 0
    last = b""
    size = ENTRY.size
    for _ in range(folder.count):
        if at + size > len(block):
            raise _malformed(folder, "is cut off")
        kind, mode, name_length, target_length, attributes_length, length, mtime, ctime, _ = ENTRY.unpack_from(block, at)
        middle = at + size + name_length
        after = middle + target_length
        end = after + attributes_length
        name = block[at + size : middle]
        if end > len(block) or kind not in TYPES or mode > 0o7777 or name <= last or not _component(name):
            raise _malformed(folder, f"has the entry {block[at:end]!r:.200} in the wrong place or form")
        target = block[middle:after]
        if (kind in (SYMLINK, HARD_LINK)) != bool(target) or len(target) >= _PATH_MAX or (kind == SYMLINK and b"\0" in target):
            raise _malformed(folder, f"has a link {name!r} to {target!r:.200}")
        if kind in (CHARACTER, BLOCK) and (length >> 32 >= _MAJORS or length & 0xFFFFFFFF >= _MINORS):
            raise _malformed(folder, f"has the device {name!r} of a number that there is not")
        found.append(Entry(kind, mode, length, mtime, ctime, name, target, block[after:end], block[at:end]))
        at = end
        last = name
    if at != len(block):
        raise _malformed(folder, f"has {len(block) - at} bytes too many")
    return found


def _component(name: bytes) -> bool:
    return 0 < len(name) <= _NAME_MAX and b"/" not in name and b"\0" not in name and name not in (b".", b"..")


def _malformed(folder: Folder, text: str) -> MalformedFrame:
    return MalformedFrame(f"the folder {folder.path!r:.300} of the manifest {text}")


def attributes(entry: Entry) -> Iterator[tuple[bytes, bytes]]:
    """Extended attributes of an entry. Raises MalformedFrame."""
    packed = entry.attributes
    at = 0
    while at < len(packed):
        if at + ATTRIBUTE.size > len(packed):
            raise MalformedFrame(f"attributes of {entry.name!r} that are cut off")
        name_length, value_length = ATTRIBUTE.unpack_from(packed, at)
        at += ATTRIBUTE.size
        end = at + name_length + value_length
        if end > len(packed) or not name_length or b"\0" in packed[at : at + name_length]:
            raise MalformedFrame(f"attributes of {entry.name!r} that are cut off")
        yield packed[at : at + name_length], packed[at + name_length : end]
        at = end


def parent(path: bytes) -> tuple[bytes, bytes]:
    """The folder that a path is in, and its name there."""
    above, _, name = path.rpartition(b"/")
    return above, name


def compare(manifest: Manifest, index: Index | None) -> Plan:
    """What is to be done so that what is stored becomes what the manifest says. Raises MalformedFrame."""
    stored = {folder.path: folder for folder in index.folders} if index is not None else {}
    planned: dict[bytes, Planned] = {}
    need: list[tuple[int, Planned, int]] = []
    below: dict[bytes, set[bytes]] = {}  # names of folders in those that were looked into
    children: Counter[bytes] = Counter()
    for folder in manifest.folders:
        path = folder.path
        old = stored.get(path)
        if path:
            above, name = parent(path)
            children[above] += 1
            names = below.get(above)
            # In a folder that did not change are the folders that were there.
            if above not in planned or path in planned or (name not in names if names is not None else old is None):
                raise _malformed(folder, "is not where it should be")
        elif planned:
            raise _malformed(folder, "comes twice")
        if old is not None and not (old.flags & DIRTY or folder.flags & RACY) and old.block == folder.block:
            folder.flags = old.flags
            folder.content = old.content
            folder.subfolders = old.subfolders
            folder.size = old.size
            planned[path] = Planned(folder, None, frozenset(), old.digests)
        else:
            one, names = _changed(folder, old)
            planned[path] = one
            below[path] = names
            need += _missing(one)
    for path, one in planned.items():
        if children[path] != one.folder.subfolders:
            raise _malformed(one.folder, "has folders that the manifest leaves out")
    need = _relink(planned, need)
    return Plan(list(planned.values()), need, removed=len(stored.keys() - planned.keys()) > 0)


def _changed(folder: Folder, old: Folder | None) -> tuple[Planned, set[bytes]]:
    """A folder whose entries are to be compared one by one, and the names of folders in it."""
    found = entries(folder)
    claims: dict[bytes, tuple[bytes, bytes]] = {}
    if old is not None:
        claims = {entry.name: (entry.raw, bytes(old.digests[i * DIGEST : (i + 1) * DIGEST])) for i, entry in enumerate(entries(old))}
    dirty = old is None or bool(old.flags & DIRTY)
    digests = bytearray(DIGEST * folder.count)
    kept: set[bytes] = set()
    names: set[bytes] = set()
    folder.size = 0
    for i, entry in enumerate(found):
        raw, digest = claims.get(entry.name, (b"", ABSENT))
        if entry.attributes:
            for _ in attributes(entry):  # all of them can be read
                folder.flags |= ADORNED
        if entry.type == FILE:
            folder.size = min(_SIZE_MAX, folder.size + entry.size)
            if raw == entry.raw and entry.ctime != RACY_TIME and digest != ABSENT:
                kept.add(entry.name)
                digests[i * DIGEST : (i + 1) * DIGEST] = digest
            continue
        if entry.type == DIRECTORY:
            names.add(entry.name)
        elif entry.type == HARD_LINK:
            folder.flags |= LINKS
            continue
        if raw == entry.raw and not dirty:
            kept.add(entry.name)
    folder.subfolders = len(names)
    return Planned(folder, found, frozenset(kept), digests), names


def _missing(one: Planned) -> Iterator[tuple[int, Planned, int]]:
    assert one.entries is not None
    for i, entry in enumerate(one.entries):
        if entry.type == FILE and entry.name not in one.kept:
            yield one.folder.first + i, one, i


def _relink(planned: dict[bytes, Planned], need: list[tuple[int, Planned, int]]) -> list[tuple[int, Planned, int]]:
    """Check hard links, and open folders that did not change but have one to a file that is made anew."""
    linked = [one for one in planned.values() if one.folder.flags & LINKS]
    if not linked:
        return need
    fresh = {_joined(one.folder.path, one.entries[i].name) for _, one, i in need if one.entries is not None}
    known: dict[bytes, dict[bytes, Entry]] = {}
    for one in linked:
        found = one.entries if one.entries is not None else entries(one.folder)
        again = one.entries is not None
        for entry in found:
            if entry.type != HARD_LINK:
                continue
            above, name = parent(entry.target)
            if above not in planned:
                raise _malformed(one.folder, f"has a link {entry.name!r} to {entry.target!r:.200}, which is not there")
            if above not in known:
                known[above] = {each.name: each for each in planned[above].entries or entries(planned[above].folder)}
            first = known[above].get(name)
            if first is None or first.type != FILE:
                raise _malformed(one.folder, f"has a link {entry.name!r} to {entry.target!r:.200}, which is no file")
            again = again or entry.target in fresh
        if again and one.entries is None:
            one.entries = found
            one.kept = frozenset(entry.name for entry in found if entry.type != HARD_LINK)
            one.digests = bytearray(one.digests)
    return need


def _joined(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name


def seal(one: Planned) -> None:
    """Set the digest of a folder's content, once those of its files are known."""
    hasher = hashlib.sha256()
    assert one.entries is not None
    for i, entry in enumerate(one.entries):
        kind = FILE if entry.type == HARD_LINK else entry.type
        number = entry.size if entry.type in (CHARACTER, BLOCK) else 0
        target = entry.target if entry.type == SYMLINK else b""
        hasher.update(b"%c%o %d %d %d %d " % (kind, entry.mode, number, len(entry.name), len(target), len(entry.attributes)))
        hasher.update(entry.name + target + entry.attributes + one.digests[i * DIGEST : (i + 1) * DIGEST])
    one.folder.content = hasher.digest()


def identity(folders: Iterable[Folder]) -> str:
    """A digest of everything in the folders but times, from the digests of their contents."""
    hasher = hashlib.sha256()
    for folder in folders:
        hasher.update(b"%d " % len(folder.path) + folder.path + folder.content)
    return hasher.hexdigest()


def adorned(folders: Sequence[Folder]) -> frozenset[bytes]:
    """The paths of what has extended attributes."""
    found: set[bytes] = set()
    for folder in folders:
        if folder.flags & ADORNED:
            found.update(_joined(folder.path, entry.name) for entry in entries(folder) if entry.attributes)
    if found:
        for folder in folders:
            if folder.flags & LINKS:
                found.update(_joined(folder.path, entry.name) for entry in entries(folder) if entry.target in found)
    return frozenset(found)


def full(plan: Plan) -> tuple[Folder, ...]:
    """The folders for an index when everything is in place."""
    for one in plan.folders:
        one.folder.digests = one.digests
    return tuple(one.folder for one in plan.folders)


def partial(plan: Plan) -> tuple[Folder, ...]:
    """The folders for an index while a plan is being carried out, or when it never was: what is certainly there."""
    found: list[Folder] = []
    for one in plan.folders:
        folder = one.folder
        if one.entries is None:
            folder.digests = one.digests
            found.append(folder)
            continue
        there = [
            (entry, bytes(one.digests[i * DIGEST : (i + 1) * DIGEST]))
            for i, entry in enumerate(one.entries)
            if entry.type == FILE and one.digests[i * DIGEST : (i + 1) * DIGEST] != ABSENT
        ]
        found.append(claimed(folder.path, there))
    return tuple(found)


def claimed(path: bytes, files: Sequence[tuple[Entry, bytes]]) -> Folder:
    """A folder of which only these files with these digests are certain."""
    block = b"".join(entry.raw for entry, _ in files)
    digests = b"".join(digest for _, digest in files)
    return Folder(path, DIRTY, len(files), block, digests=digests, size=min(_SIZE_MAX, sum(entry.size for entry, _ in files)))


def encode_index(index: Index) -> bytes:
    """An index as a file."""
    name = index.name.encode()
    head = _INDEX_HEAD.pack(
        index.boot.encode(), index.generation, index.created, index.size, len(name), len(index.origin), len(index.folders)
    )
    parts: list[bytes | bytearray] = [_MAGIC, head, name, index.origin]
    for each in index.folders:
        parts.append(_RECORD.pack(len(each.path), each.flags, each.count, len(each.block), each.subfolders, each.size, each.content))
        parts += (each.path, each.block, each.digests)
    body = b"".join(parts)
    return body + hashlib.sha256(body).digest()


def decode_index(data: bytes) -> Index | None:
    """An index from a file; None for one that is damaged."""
    body = data[:-DIGEST]
    if not body.startswith(_MAGIC) or hashlib.sha256(body).digest() != data[-DIGEST:]:
        return None
    boot, generation, created, _, name_length, origin_length, count = _INDEX_HEAD.unpack_from(body, len(_MAGIC))
    at = len(_MAGIC) + _INDEX_HEAD.size
    name = body[at : at + name_length].decode()
    at += name_length
    origin = body[at : at + origin_length]
    at += origin_length
    folders: list[Folder] = []
    for _ in range(count):
        path_length, flags, entry_count, length, subfolders, size, content = _RECORD.unpack_from(body, at)
        start = at + _RECORD.size
        block = start + path_length
        digests = block + length
        at = digests + DIGEST * entry_count
        folders.append(Folder(body[start:block], flags, entry_count, body[block:digests], 0, body[digests:at], content, subfolders, size))
    return Index(boot.decode(), generation, created, name, origin, tuple(folders))


def index_summary(head: bytes) -> tuple[int, int, str, bytes] | None:
    """(created, bytes of files, name, origin) from the beginning of an index, whose rest is not looked at."""
    try:
        _, _, created, size, name_length, origin_length, _ = _INDEX_HEAD.unpack_from(head, len(_MAGIC))
    except struct.error:
        return None
    if not head.startswith(_MAGIC):
        return None
    at = len(_MAGIC) + _INDEX_HEAD.size
    name = head[at : at + name_length].decode("utf-8", "replace")
    return created, size, name, head[at + name_length : at + name_length + origin_length]


SUMMARY = len(_MAGIC) + _INDEX_HEAD.size + 2 * 65535
"""Bytes of an index that `index_summary` needs at most."""


class Digests(Mapping[bytes, str]):
    """sha256 of the files of a context by path, taken from the folders when asked: most builds ask for few."""

    def __init__(self, folders: Iterable[Folder]) -> None:
        self._folders = {folder.path: folder for folder in folders}
        self._seen: dict[bytes, dict[bytes, str]] = {}

    def _names(self, path: bytes) -> dict[bytes, str]:
        found = self._seen.get(path)
        if found is None:
            folder = self._folders.get(path)
            found = {}
            if folder is not None:
                packed = folder.digests
                for i, entry in enumerate(entries(folder)):
                    if entry.type in (FILE, HARD_LINK):
                        found[entry.name] = bytes(packed[i * DIGEST : (i + 1) * DIGEST]).hex()
            self._seen[path] = found
        return found

    def __getitem__(self, path: bytes) -> str:
        above, name = parent(path)
        return self._names(above)[name]

    def __iter__(self) -> Iterator[bytes]:
        return (_joined(path, name) for path in self._folders for name in self._names(path))

    def __bool__(self) -> bool:
        """Whether there may be any: counting them would read every folder."""
        return bool(self._folders)

    def __len__(self) -> int:
        return sum(len(self._names(path)) for path in self._folders)
