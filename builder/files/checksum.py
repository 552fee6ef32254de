"""What a COPY or ADD would copy, as one digest: the content's key in the cache of builds.

Names, kinds, modes, owners, content, targets of links, attributes, device numbers and which names are one file take part, as the copy will
have them; times never do. Trees are hostile and read through descriptors alone.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Callable, Sequence

from builder.files.filecopy import READ
from builder.files.layerfolder import attributes
from builder.files.selection import Entry, Selected, Source, Within, changed, refuse_deep, select
from builder.graph import Copy
from builder.language import modes
from builder.language.modes import Change
from builder.tree import Tree
from engine.store.view import Node, Place

_PIECE = 1 << 20
_WORTH = 1 << 14  # bytes: a smaller file is read sooner than looked up
_KEPT = 1 << 15  # digests, some 8 MB
_GETVERSION = 0x80087601  # FS_IOC_GETVERSION: tells apart files that had one inode number one after another

_known: dict[tuple[int, ...], bytes] = {}
"""Digests of files that were read, for this process."""


def key(op: Copy, sources: Sequence[Tree], check: Callable[[], object] = lambda: None) -> str:
    """The digest (hexadecimal) of what `op` would copy from `sources`, the trees of the vertex's inputs. Blocks: for a worker thread.
    `check` is called for every file and mebibyte, to raise what ends the work. Raises NotFound and InvalidParameter in BuildKit's words,
    OSError."""
    digest = hashlib.sha256(b"knarr-copy-1\0")
    change = modes.parse(op.chmod)
    _put(digest, op.destination, op.chown, "link" if op.link else "")
    opened: dict[int, Source] = {}
    try:
        for asked in op.sources:
            if asked.content is not None:
                mode = 0o644 if change is None else change(stat.S_IFREG | 0o644)
                _put(digest, "document", asked.path, f"{mode:o}", hashlib.sha256(asked.content).hexdigest())
                continue
            if asked.input not in opened:
                opened[asked.input] = Source(sources[asked.input])
            source = opened[asked.input]
            _put(digest, "unpack" if asked.unpack else "source")
            for one in select(source, asked, op):
                _Selection(source, digest, change, check, owned=bool(op.chown)).add(one)
    finally:
        for source in opened.values():
            source.close()
    return digest.hexdigest()


def _put(digest: hashlib._Hash, *fields: str) -> None:
    for field in fields:
        data = os.fsencode(field)
        digest.update(b"%d:%s" % (len(data), data))


class _Selection:
    """One thing that is copied, with all below it. `owned`: whose it was does not matter."""

    def __init__(self, source: Source, digest: hashlib._Hash, change: Change | None, check: Callable[[], object], owned: bool) -> None:
        self._source = source
        self._digest = digest
        self._change = change
        self._check = check
        self._owned = owned
        self._files: dict[tuple[int, int, int], bytes] = {}  # with several names: layer, device, inode -> the first name

    def add(self, one: Selected) -> None:
        node = one.node
        if not node.folder:
            with self._source.folder(node) as fd:
                entry = Entry(os.fsdecode(node.place[-1]), node.info, fd, node.layers)
                self._entry(entry, node.place, os.fsencode(one.name))
            return
        # The folder itself is not copied: only what is in it.
        self._digest.update(b"folder\n")
        pending: list[tuple[Node, Within | None, tuple[bytes, ...]]] = [(node, one.within, ())]
        while pending:
            self._folder(*pending.pop(), pending)

    def _folder(self, here: Node, within: Within | None, above: Place, pending: list[tuple[Node, Within | None, Place]]) -> None:
        refuse_deep(here.place)
        for entry in self._source.scan(here.place, here.layers):
            folder = stat.S_ISDIR(entry.info.st_mode)
            taken = within is None or within.takes(entry.name)
            if not taken and not folder:
                continue
            name = os.fsencode(entry.name)
            place, relative = (*here.place, name), (*above, name)
            if taken:
                self._entry(entry, place, b"/".join(relative))
            if folder:
                below = within.enter(entry.name) if within is not None else None
                if within is None or below is not None:
                    pending.append((Node(place, entry.info, entry.layers), below, relative))

    def _entry(self, entry: Entry, place: Place, name: bytes) -> None:
        self._check()
        info = entry.info
        kind = stat.S_IFMT(info.st_mode)
        if kind == stat.S_IFLNK:
            mode = 0o777
        else:
            mode = stat.S_IMODE(info.st_mode) if self._change is None else self._change(info.st_mode)
        owner = b"" if self._owned else b"%d:%d" % (info.st_uid, info.st_gid)
        content = b""
        found: tuple[tuple[str, bytes], ...] | None = None if self._source.adorned(place) else ()
        if kind != stat.S_IFDIR and info.st_nlink > 1:
            first = self._files.setdefault((entry.layers[0], info.st_dev, info.st_ino), name)
            if first is not name:
                self._digest.update(b"same %d:%s%d:%s" % (len(name), name, len(first), first))
                return
        if kind == stat.S_IFREG:
            content, found = self._content(entry, place, found)
        elif kind == stat.S_IFLNK:
            content = self._target(entry, place)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            content = b"%d" % info.st_rdev
        if found is None:
            found = attributes(f"/proc/self/fd/{entry.fd}/{entry.name}")
        self._digest.update(b"%o %o %s %d:%s%d:%s" % (kind, mode, owner, len(name), name, len(content), content))
        for attribute, value in found:
            _put(self._digest, attribute)
            self._digest.update(b"%d:%s" % (len(value), value))

    def _target(self, entry: Entry, place: Place) -> bytes:
        try:
            return os.fsencode(os.readlink(entry.name, dir_fd=entry.fd))
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                raise changed(place[:-1], entry.name) from error
            raise

    def _content(
        self, entry: Entry, place: Place, found: tuple[tuple[str, bytes], ...] | None
    ) -> tuple[bytes, tuple[tuple[str, bytes], ...] | None]:
        """A file's digest, and its attributes where they come with it."""
        digests = self._source.tree.digests
        if digests and (known := digests.get(b"/".join(place))) is not None:
            return bytes.fromhex(known), found
        try:
            fd = os.open(entry.name, READ, dir_fd=entry.fd)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
                raise changed(place[:-1], entry.name) from error
            raise
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise changed(place[:-1], entry.name)
            if found is None:
                found = attributes(fd)
            return self._read(fd, info, entry, place), found
        finally:
            os.close(fd)

    def _read(self, fd: int, info: os.stat_result, entry: Entry, place: Place) -> bytes:
        identity: tuple[int, ...] | None = None
        if info.st_size >= _WORTH:
            identity = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, *self._generation(fd, info))
            if (known := _known.get(identity)) is not None:
                return known
        digest = hashlib.sha256()
        size = 0
        while piece := os.read(fd, _PIECE):
            self._check()
            size += len(piece)
            digest.update(piece)
        if size != info.st_size:
            raise changed(place[:-1], entry.name)
        value = digest.digest()
        if identity is not None:
            while len(_known) >= _KEPT:
                _known.pop(next(iter(_known)), None)
            _known[identity] = value
        return value

    def _generation(self, fd: int, info: os.stat_result) -> tuple[int, ...]:
        """What else a file is known by. Linking a file changes its `ctime`, so that is not asked of files that nobody changes."""
        if self._source.tree.linkable:
            try:
                return (0, int.from_bytes(fcntl.ioctl(fd, _GETVERSION, bytes(8))[:4], "little"))
            except OSError as error:
                if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
                    raise
        return (1, info.st_ctime_ns)
