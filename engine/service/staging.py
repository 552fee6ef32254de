"""The members of an image archive while it is read: small ones in memory, large ones in files, each with its digest.

Owns temporary files in the content store's ingest folder, and folders of layers that were unpacked on their way in; removes what was not
taken. An archive is read once, front to back. Most say only at their end which members are layers, so whatever is a plain tar is treated
as one: it is compressed, which is what it will be stored as, and unpacked beside that. Where it lies in an image is not known yet; a layer
that needs to look at those below it (a folder that it only implies, a hard link to a file below) is unpacked later, from its blob.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import posixpath
from collections.abc import AsyncIterator, Callable, Iterator
from typing import BinaryIO

import msgspec
import trio

from engine import _core
from engine.aio.blocking import blocking
from engine.aio.handoff import Closed, Handoff
from engine.errors import InvalidParameter, KnarrError, NotFound
from engine.service.unpack import Counted, Hashed, bounded
from engine.spec import archive as documents
from engine.spec import image as spec
from engine.spec.digest import is_digest, sha256
from engine.store.content import Content
from engine.store.images import Layer
from engine.store.snapshots import Snapshots
from engine.store.unpack import Limits, Unpacked, unpacking
from engine.wire import compression, tar
from engine.wire.compression import Source

_SMALL = 256 << 10
# All small members together: manifests, configurations and legacy `json` files of the largest images are some hundred kB.
_MEMORY = 32 << 20
_MEMBERS_MAX = 100_000
_NAMES_MAX = 32 << 20  # bytes of all names and links
_DOCUMENT_MAX = 8 << 20
# What is parsed of one archive, counted as often as it is: one that names a large configuration ten thousand times must come to an end.
_DOCUMENTS_MAX = 256 << 20
# A piece handed to a worker thread: a hop costs some 0.2 ms, so several network reads go in one.
_HOP = 512 << 10
_CUT = 256 << 10
# Pieces that wait between two threads, of `_HOP` bytes each.
_ROOM = 4
# Dirty pages are handed to the disk in steps of this size, so that the sync at the end finds little to do.
_WRITE_BACK = 8 << 20
_MEDIA = {"": spec.MEDIA_LAYER, "gzip": spec.MEDIA_LAYER + "+gzip", "zstd": spec.MEDIA_LAYER + "+zstd"}

Known = Callable[[str], Layer | None]
"""The layer that is here with this digest, of its blob or of its content (for the event loop's thread)."""


class Staged:
    """One member. `digest` and `size` are of the member as it was; `blob` and `blob_size` of what lies in `path` or `data`.

    `compression` is that of the blob. They differ when a plain tar was compressed on its way in. `folder` holds the layer unpacked, when
    that was possible; `unpacked` tells of it, and `hides` whether it has whiteouts, which a bottom layer must not.
    """

    def __init__(self) -> None:
        self.digest = ""
        self.size = 0
        self.blob = ""
        self.blob_size = 0
        self.compression = ""
        self.path = ""
        self.data = b""
        self.kept = False
        self.folder = ""
        self.unpacked = Unpacked()
        self.hides = False

    @property
    def media_type(self) -> str:
        """The media type of the blob as a layer."""
        return _MEDIA[self.compression]

    def open(self) -> BinaryIO:
        """The blob's bytes."""
        return open(self.path, "rb", buffering=0) if self.path else io.BytesIO(self.data)


class Staging:
    """The members of one archive by name. Close it whatever happens. `taken` counts bytes of the archive."""

    def __init__(self, content: Content, snapshots: Snapshots, limits: Limits, known: Known = lambda digest: None) -> None:
        self._content = content
        self._snapshots = snapshots
        self._limits = limits
        # What a whole archive may become: it has any number of layers, but none is packed more tightly.
        self._bomb = msgspec.structs.replace(limits, bytes=0)
        self._known = known
        self._members: dict[str, Staged] = {}
        self._all: list[Staged] = []
        self._aliases: dict[str, str] = {}
        # Blob -> the same layer in the other form.
        self._forms: dict[str, Staged] = {}
        self._memory = self._entries = self._names = self._parsed = 0
        self._as_they_are = False
        self.taken = 0

    # -- in

    async def read(self, stream: AsyncIterator[bytes]) -> None:
        """Take every member of an archive, plain or compressed. Raises InvalidParameter, OSError, and what the stream raises."""
        counted = Counted(pulling(stream))

        def counting() -> bytes:
            piece = counted()
            self.taken = counted.count
            return piece

        try:
            content = bounded(counted, (await blocking("layers", compression.decompressed, counting))[1], self._bomb)
            reader = tar.TarReader(content)
            entries = iter(reader)
            while (entry := await blocking("layers", self._small_ones, entries, reader)) is not None:
                self._members[_name(entry)] = await self.take(_data(reader), _hinted(_name(entry)))
            await blocking("layers", _drain, content)
        except (tar.TarError, compression.CompressionError) as error:
            raise InvalidParameter(f"loading images: {error}") from error

    def _small_ones(self, entries: Iterator[tar.Entry], reader: tar.TarReader) -> tar.Entry | None:
        """In a worker thread: take members up to the next large one, which is returned, or up to the end."""
        for entry in entries:
            self._count(entry)
            name = _name(entry)
            if entry.type in (tar.SYMLINK, tar.LINK):
                target = entry.linkname.decode("utf-8", "surrogateescape")
                base = posixpath.dirname(name) if entry.type == tar.SYMLINK else ""
                self._aliases[name] = posixpath.normpath(posixpath.join(base, target)).lstrip("/")
            elif entry.type != tar.REGULAR:
                continue
            elif entry.sparse is not None:
                raise InvalidParameter(f"loading images: {tar.show(entry.name)} is stored as a sparse file")
            elif entry.stored > _SMALL or self._memory + entry.stored > _MEMORY:
                return entry
            else:
                self._memory += entry.stored
                self._members[name] = _in_memory(b"".join(iter(_data(reader), b"")))
                if name == "index.json":
                    self._as_they_are = documents.keeps_layers(self._members[name].data)
        return None

    def _count(self, entry: tar.Entry) -> None:
        """One more member, though it may have the name of another. Raises InvalidParameter."""
        self._entries += 1
        self._names += len(entry.name) + len(entry.linkname)
        if self._entries > _MEMBERS_MAX:
            raise InvalidParameter(f"loading images: the archive has more than {_MEMBERS_MAX} members")
        if self._names > _NAMES_MAX:
            raise InvalidParameter(f"loading images: the names in the archive have more than {_NAMES_MAX} bytes")

    async def take(self, source: Source, hint: str = "") -> Staged:
        """Take one large member from a source that worker threads may call. With `hint`, the digest that its name claims, nothing is done
        again for a layer that is here. Raises InvalidParameter, OSError."""
        head, source = await blocking("layers", compression.peek, source, tar.BLOCK)
        known = self._known(hint) if hint else None
        if known is not None:
            return await blocking("layers", _known, source, hint, known, self._content.path(known.digest))
        staged = Staged()
        staged.path = self._content.temporary()
        self._all.append(staged)
        if head[257:262] != b"ustar" or self._as_they_are:
            staged.compression = compression.detect(head[:6])
            await blocking("layers", _store, source, staged)
        else:
            await self._layer(source, staged)
        return staged

    async def _layer(self, source: Source, staged: Staged) -> None:
        """A plain tar: read and hashed in one thread, compressed in another, unpacked in a third."""
        staged.folder = self._snapshots.begin()
        packing, placing = Handoff(_ROOM), Handoff(_ROOM)
        failures: list[Exception] = []

        def read() -> None:
            sums = hashlib.sha256()
            try:
                while piece := source():
                    sums.update(piece)
                    staged.size += len(piece)
                    packing.put(piece)
                    with contextlib.suppress(Closed):
                        placing.put(piece)
            except Closed:
                pass  # the packer's own failure tells
            except BaseException:
                packing.end(Closed())
                placing.end(Closed())
                raise
            staged.digest = "sha256:" + sums.hexdigest()
            packing.end()
            placing.end()

        def pack() -> None:
            try:
                _store_packed(packing.get, staged)
            except Closed:
                pass  # the reader's own failure tells
            finally:
                packing.close()

        def place() -> None:
            try:
                root = f"{staged.folder}/fs"
                for entry in unpacking(tar.TarReader(placing.get), root, staged.unpacked, _nothing_below, self._limits):
                    staged.hides = staged.hides or b"/.wh." in b"/" + entry.name
                while placing.get():  # padding behind the archive's end
                    pass
                return
            except (_Below, Closed, tar.TarError, KnarrError):
                pass  # when it turns out to be a layer it is unpacked from its blob, and what is wrong with it is told then
            finally:
                placing.close()
            folder, staged.folder = staged.folder, ""
            self._snapshots.discard(folder)

        async def run(step: Callable[[], None]) -> None:
            try:
                await blocking("layers", step)
            except Exception as error:  # raised below as it is: a nursery would wrap it in a group
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for step in (read, pack, place):
                nursery.start_soon(run, step)
        if failures:
            raise failures[0]

    # -- look-ups

    def find(self, name: str) -> Staged | None:
        """A member by name, through the archive's own links."""
        name = posixpath.normpath(name).lstrip("/")
        for _ in range(8):
            if name not in self._aliases:
                break
            name = self._aliases[name]
        return self._members.get(name)

    def get(self, name: str) -> Staged:
        """A member by name. Raises NotFound."""
        found = self.find(name)
        if found is None:
            raise NotFound(f"loading images: {name!r} is not in the archive")
        return found

    def document(self, name: str) -> bytes:
        """A small member's bytes. Raises NotFound, InvalidParameter."""
        return self.bytes(self.get(name), name)

    def bytes(self, staged: Staged, shown: str) -> bytes:
        """The bytes of a small member; `shown` for messages. Raises InvalidParameter."""
        if staged.size > _DOCUMENT_MAX or staged.digest != staged.blob:
            raise InvalidParameter(f"loading images: {shown!r} is no document")
        self._parsed += staged.size
        if self._parsed > _DOCUMENTS_MAX:
            raise InvalidParameter(f"loading images: the archive's documents have more than {_DOCUMENTS_MAX} bytes")
        with staged.open() as file:
            return file.read()

    def blob(self, digest: str) -> Staged | None:
        """A member by digest: of an OCI layout, with the name that its digest demands. Raises InvalidParameter when it is another one."""
        algorithm, _, encoded = digest.partition(":")
        if algorithm != "sha256":
            raise InvalidParameter(f"loading images: {digest[:100]}: digests of {algorithm[:20]} are not supported in archives")
        found = self.find(f"blobs/{algorithm}/{encoded}")
        if found is not None and found.digest != digest:
            raise InvalidParameter(f"loading images: blob {digest} has the content of {found.digest}")
        return found

    # -- forms of a layer

    def packed(self, staged: Staged) -> Staged:
        """The same layer as it shall be stored when its form is ours to choose: gzip, unless it is gzip or zstd already. Blocks."""
        if staged.compression in ("gzip", "zstd"):
            return staged
        with staged.open() as file:
            return self._again(self._inflated(file), staged, _store_packed)

    def plain(self, staged: Staged) -> Staged:
        """The member as it was in the archive. Blocks."""
        if staged.digest == staged.blob:
            return staged
        with staged.open() as file:
            return self._again(self._inflated(file), staged, _store)

    def _inflated(self, file: BinaryIO) -> Source:
        """The content of a member in a file, as far as it is no bomb. Ends when its client has gone."""

        def read() -> bytes:
            trio.from_thread.check_cancelled()
            return file.read(_HOP)

        packed = Counted(read)
        return bounded(packed, compression.decompressed(packed)[1], self._limits)

    def _again(self, source: Source, former: Staged, store: Callable[[Source, Staged], None]) -> Staged:
        """Another form of a member, made once: an archive may name it any number of times."""
        if former.blob in self._forms:
            return self._forms[former.blob]
        staged = self._forms[former.blob] = Staged()
        staged.path = self._content.temporary()
        self._all.append(staged)
        counted = Counted(source)
        hashed = Hashed(counted)
        store(hashed, staged)
        staged.digest, staged.size = hashed.digest, counted.count
        staged.folder, former.folder, staged.unpacked = former.folder, "", former.unpacked
        staged.hides = former.hides
        return staged

    def sync(self) -> None:
        """Make the files of layers that were unpacked durable, at once for all of them. Blocks."""
        folder = next((staged.folder for staged in self._all if staged.folder), "")
        if folder:
            self._snapshots.sync_files(folder)

    def keep(self, staged: Staged) -> bool:
        """Move a member into the content store, durably; False when it was there already. Blocks."""
        if staged.kept or self._content.exists(staged.blob, staged.blob_size):
            return False
        if staged.path:
            self._content.adopt(staged.path, staged.blob)
            staged.path = self._content.path(staged.blob)
        else:
            self._content.put(staged.data)
        staged.kept = True
        return True

    def close(self) -> None:
        """Remove everything that was not kept. Blocks."""
        for staged in self._all:
            if not staged.kept:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(staged.path)
            if staged.folder:
                self._snapshots.discard(staged.folder)
                staged.folder = ""


class _Below(Exception):
    """The layers below are wanted, and not known yet."""


def _nothing_below() -> tuple[str, ...]:
    raise _Below


def pulling(stream: AsyncIterator[bytes]) -> Source:
    """A stream of the event loop as a source for worker threads."""

    async def pull() -> bytes:
        pieces: list[bytes] = []
        size = 0
        while size < _HOP and (piece := await anext(stream, b"")):
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces)

    def source() -> bytes:
        trio.from_thread.check_cancelled()
        return trio.from_thread.run(pull)

    return source


def _name(entry: tar.Entry) -> str:
    return posixpath.normpath(entry.name.decode("utf-8", "surrogateescape")).lstrip("/")


def _hinted(name: str) -> str:
    """The digest that a member's name claims: `blobs/sha256/…`."""
    folder, _, encoded = name.rpartition("/")
    digest = f"sha256:{encoded}"
    return digest if folder == "blobs/sha256" and is_digest(digest) else ""


def _data(reader: tar.TarReader) -> Source:
    pieces = reader.data()
    return lambda: bytes(next(pieces, b""))


def _drain(source: Source) -> None:
    while source():
        pass


def _in_memory(data: bytes) -> Staged:
    staged = Staged()
    staged.data = data
    staged.digest = staged.blob = sha256(data)
    staged.size = staged.blob_size = len(data)
    staged.compression = compression.detect(data[:6])
    return staged


class _Sink:
    """Writes a new file and hashes it."""

    def __init__(self, path: str) -> None:
        self.file = open(path, "xb", buffering=0)  # noqa: SIM115 closed by its user
        self._hash = hashlib.sha256()
        self.size = self._handed = 0

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self.size += len(data)
        view = memoryview(data)
        while view:
            view = view[self.file.write(view) or 0 :]
        if self.size - self._handed >= _WRITE_BACK:
            _core.sync_file_range(self.file.fileno(), self._handed, self.size - self._handed)
            self._handed = self.size

    @property
    def digest(self) -> str:
        return "sha256:" + self._hash.hexdigest()


def _known(source: Source, hint: str, layer: Layer, path: str) -> Staged:
    """A layer that is here, in `path`: its bytes are only compared."""
    counted = Counted(source)
    hashed = Hashed(counted)
    _drain(hashed)
    if hashed.digest != hint:
        raise InvalidParameter(f"loading images: blob {hint} has the content of {hashed.digest}")
    staged = Staged()
    staged.digest, staged.size, staged.path, staged.kept = hint, counted.count, path, True
    staged.blob, staged.blob_size = layer.digest, layer.size
    staged.compression = next((name for name, media in _MEDIA.items() if name and layer.media_type.endswith(name)), "")
    return staged


def _store(source: Source, staged: Staged) -> None:
    sink = _Sink(staged.path)
    with sink.file:
        while piece := source():
            sink.write(piece)
    staged.digest = staged.blob = sink.digest
    staged.size = staged.blob_size = sink.size


def _store_packed(source: Source, staged: Staged) -> None:
    """gzip rather than zstd: every registry and engine takes it, and igzip is as fast as zstd at the lowest level.

    What comes out depends on where the input is cut, so it is cut anew: equal layers must give equal blobs.
    """
    sink = _Sink(staged.path)
    with sink.file:
        packer = compression.GzipWriter(sink.write)
        pending = bytearray()
        while piece := source():
            pending += piece
            whole = len(pending) - len(pending) % _CUT
            for start in range(0, whole, _CUT):
                packer.write(bytes(pending[start : start + _CUT]))
            del pending[:whole]
        packer.write(bytes(pending))
        packer.finish()
    staged.blob, staged.blob_size, staged.compression = sink.digest, sink.size, "gzip"
