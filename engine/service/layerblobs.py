"""Blobs of layers that were built: made from their snapshots when somebody wants them. Owns how that is done and what is remembered of it.

An image that was built names plain archives that are not in the content store: `store.pack` makes the same bytes again of the folder, and
their digest is checked whenever it does. What goes to a registry is compressed once; from then on the image's manifest has those blobs.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import zlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec
import trio

from engine.aio.blocking import Kind, blocking
from engine.aio.handoff import Closed, Handoff
from engine.aio.locks import KeyedLocks
from engine.aio.scopes import shielded
from engine.errors import Damaged, InvalidParameter, KnarrError, NotFound
from engine.service.layers import explained
from engine.service.unpack import Hashed
from engine.spec import image as spec
from engine.spec.digest import sha256
from engine.store import pack
from engine.store.images import ImageRecord, Layer
from engine.store.pack import Packed, Write
from engine.store.snapshots import Snapshot
from engine.wire import compression, tar
from engine.wire.compression import GzipWriter

if TYPE_CHECKING:
    from engine.service.images import Images

log = logging.getLogger("knarr.layers")

_SHOWN = 5  # names in a message
_GZIP_LEVELS = range(10)
_ZSTD_LEVELS = range(1, 23)
_ZSTD_DEFAULT = 3
_READ = 256 << 10
_ROOM = 4  # pieces of a mebibyte between packing and compressing
_LARGE = 8 << 20  # bytes of a snapshot that two threads are worth
_CUT = 256 << 10  # as `service.staging`

T = TypeVar("T")
Pin = Callable[[Iterable[str]], object]
"""Keeps blobs from collection."""
_CLEANUP_SECONDS = 60.0


class Form(msgspec.Struct, frozen=True):
    """How a layer is packed: `kind` is uncompressed, gzip or zstd; `level` None is the usual one. `epoch`: Unix seconds that no file's time
    may lie behind, None for none."""

    kind: str = "gzip"
    level: int | None = None
    epoch: int | None = None

    def check(self) -> Form:
        """The same. Raises InvalidParameter for what there is not."""
        if self.kind not in ("uncompressed", "gzip", "zstd"):
            raise InvalidParameter(f"unsupported layer compression type {self.kind}")
        levels = _GZIP_LEVELS if self.kind == "gzip" else _ZSTD_LEVELS
        if self.level is not None and self.kind != "uncompressed" and self.level not in levels:
            raise InvalidParameter(f"compression level {self.level}: {self.kind} has {levels[0]} to {levels[-1]}")
        return self

    def media_type(self, docker: bool = False) -> str:
        """Of such a layer."""
        plain = "application/vnd.docker.image.rootfs.diff.tar" if docker else spec.MEDIA_LAYER
        return plain if self.kind == "uncompressed" else f"{plain}{'.' if docker else '+'}{self.kind}"


GZIP = Form()


class LayerBlobs:
    """The blobs on demand of one data root. Methods are for the event-loop thread unless they say otherwise."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self._content = images.content
        self._snapshots = images.snapshots
        self._locks = KeyedLocks()
        # Plain layers that are in the content store for somebody who copies the image as it is; a registry gets them compressed.
        self._brought: set[str] = set()

    def source(self, digest: str) -> Snapshot | None:
        """The snapshot that a plain layer can be made of, None when there is none."""
        snapshots = self._snapshots
        return next((row for row in snapshots.rows() if row.diff_id == digest and snapshots.has(row.name)), None)

    def sources(self) -> dict[str, int]:
        """Every digest for which there is a `source`, with the bytes of the archive."""
        return {row.diff_id: row.packed for row in self._snapshots.rows() if row.diff_id and self._snapshots.has(row.name)}

    async def pack(self, row: Snapshot) -> tuple[str, int]:
        """The digest and the bytes of what a committed snapshot packs to; remembered. Raises KnarrError."""
        async with self._locks.hold(row.number):
            if not row.diff_id:
                packed = await (self._in_two(row) if row.size >= _LARGE else self._with(row, lambda: self._fill(row, None, None)))
                if packed.left_out:
                    names = ", ".join(map(tar.show, packed.left_out[:_SHOWN]))
                    log.warning(
                        "layer %s: files with names that mean a whiteout are only here, no image can hold them: %s", packed.diff_id, names
                    )
                if self._snapshots.is_current(row):
                    self._snapshots.set_packed(row, packed.diff_id, packed.size)
                return packed.diff_id, packed.size
        return row.diff_id, row.packed

    async def send(self, digest: str, write: Callable[[bytes], Awaitable[object]]) -> None:
        """Give a plain layer to the asynchronous `write`, in pieces of a mebibyte. Raises Damaged, after all of it, when the snapshot is no
        longer what it was, NotFound, KnarrError and what `write` raises."""
        row = self._source(digest)

        def work() -> Packed:
            return self._fill(row, lambda piece: trio.from_thread.run(write, bytes(piece)), None)

        _same(digest, (await self._with(row, work)).diff_id)

    async def bring(self, digest: str) -> bool:
        """Put a plain layer into the content store; False when it is neither there nor can be made. Raises Damaged, KnarrError."""
        if await blocking("disk", self._content.exists, digest):
            return True
        if self.source(digest) is None:
            return False
        async with self._locks.hold(digest):
            if not await blocking("disk", self._content.exists, digest):
                row = self._source(digest)
                with self._images.pins() as pin:
                    pin([row.name])
                    await self._stored(lambda write: self._fill(row, write, None).diff_id, Form("uncompressed"), digest, pin)
                self._brought.add(digest)
        return True

    async def made(self, row: Snapshot, form: Form, pin: Pin) -> Layer:
        """A committed snapshot as a blob in the content store, pinned: a layer without a chain. Raises KnarrError."""
        expected = "" if form.epoch is not None else row.diff_id
        return await self._stored(lambda write: self._fill(row, write, form.epoch).diff_id, form, expected, pin)

    async def converted(self, layer: Layer, form: Form, pin: Pin, docker: bool = False) -> Layer:
        """The same layer packed in another way, in the content store and pinned. Raises NotFound, Damaged, KnarrError."""
        if await blocking("disk", self._content.exists, layer.digest, layer.size):
            made = await self._stored(lambda write: self._inflate(layer.digest, write), form, layer.diff_id, pin)
        else:
            row = self._source(layer.diff_id)
            pin([row.name])
            made = await self._stored(lambda write: self._fill(row, write, None).diff_id, form, layer.diff_id, pin)
        return msgspec.structs.replace(layer, digest=made.digest, size=made.size, media_type=form.media_type(docker))

    async def for_registry(self, image: ImageRecord, form: Form = GZIP) -> ImageRecord:
        """The image, all of whose layers are in the content store: those that were made on demand are compressed, once, and its manifest
        names them so from now on. Raises Damaged, KnarrError."""
        images = self._images
        async with self._locks.hold(image.id):
            image = images.store.get(image.id) or image
            lacking = await blocking("disk", self._lacking, image)
            if not lacking or any(self.source(layer.digest) is None for layer in lacking):
                return image  # what lacks a blob for another reason is told by who reads it
            superfluous: list[str] = []
            try:
                with images.pins() as pin:
                    changed = await self._compressed(image, lacking, form, pin, superfluous)
                    current = images.store.get(image.id)
                    if current is not None and current.manifest == image.manifest:
                        images.store.put(msgspec.structs.replace(changed, repo_tags=current.repo_tags, repo_digests=current.repo_digests))
                        superfluous += [image.manifest, *(layer.digest for layer in lacking)]
                        self._brought.difference_update(superfluous)
            finally:
                with shielded(_CLEANUP_SECONDS):
                    await images.release(superfluous)
        return images.store.get(image.id) or changed

    async def _compressed(
        self, image: ImageRecord, lacking: Sequence[Layer], form: Form, pin: Pin, stored: list[str]
    ) -> ImageRecord:  # fmt: skip
        """A record with a manifest that has blobs for what is `lacking`. Blobs that come into the content store are added to `stored`."""

        def keep(digests: Iterable[str]) -> None:
            new = list(digests)
            stored.extend(new)
            pin(new)

        raw = await blocking("disk", self._content.read, image.manifest)
        manifest = spec.decode_manifest(raw)
        docker = manifest.media_type == spec.DOCKER_MANIFEST
        made: dict[str, Layer] = {}
        for layer in lacking:
            if layer.digest not in made:
                made[layer.digest] = await self.converted(layer, form, keep, docker)
        layers = tuple(
            msgspec.structs.replace(layer, digest=one.digest, size=one.size, media_type=one.media_type)
            if (one := made.get(layer.digest)) is not None else layer
            for layer in image.layers
        )  # fmt: skip
        described = tuple(spec.Descriptor(media_type=one.media_type, digest=one.digest, size=one.size) for one in layers)
        raw = spec.encode(msgspec.structs.replace(manifest, layers=described))
        keep([sha256(raw)])
        await blocking("disk", self._content.put, raw)
        return msgspec.structs.replace(image, manifest=sha256(raw), manifest_size=len(raw), layers=layers)

    # -- inside

    def _lacking(self, image: ImageRecord) -> list[Layer]:
        brought = self._brought
        return [layer for layer in image.layers if layer.digest in brought or not self._content.exists(layer.digest, layer.size)]

    def _source(self, digest: str) -> Snapshot:
        row = self.source(digest)
        if row is None:
            raise NotFound(f"layer {digest} is not here", hint="build, load or pull the image again")
        return row

    async def _with(self, row: Snapshot, work: Callable[[], T]) -> T:
        """Do `work` in a thread, while the snapshot stays."""
        try:
            with self._images.pins() as pin:
                pin([row.name])
                return await blocking("build", work)
        except OSError as error:
            raise explained(error, f"layer {row.diff_id or row.name}") from error

    def _fill(self, row: Snapshot, write: Write | None, epoch: int | None, *, digest: bool = True) -> Packed:
        """In a worker thread."""
        folder = f"{self._snapshots.folder(row)}/fs"
        return pack.pack(folder, write, epoch=epoch, check=trio.from_thread.check_cancelled, digest=digest)

    async def _in_two(self, row: Snapshot) -> Packed:
        """What a large snapshot packs to: read in one thread, hashed in another. Raises KnarrError."""
        pieces = Handoff(_ROOM)
        hashed = hashlib.sha256()
        made: list[Packed] = []

        def give() -> Packed:
            return self._fill(row, lambda piece: pieces.put(bytes(piece)), None, digest=False)

        def take() -> None:
            while piece := pieces.get():
                hashed.update(piece)

        async def read() -> None:
            try:
                made.append(await self._with(row, give))
            except (KnarrError, Closed) as error:
                failures.append(error)
            finally:
                pieces.end()

        failures: list[Exception] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            try:
                await blocking("hashing", take)
            finally:
                pieces.close()
        if failures:
            raise failures[0]
        return msgspec.structs.replace(made[0], diff_id=f"sha256:{hashed.hexdigest()}")

    def _inflate(self, digest: str, write: Write) -> str:
        """In a worker thread: a stored blob's content; its digest."""
        with self._content.open(digest) as file:
            _, content = compression.decompressed(lambda: file.read(_READ))
            hashed = Hashed(content)
            while piece := hashed():
                trio.from_thread.check_cancelled()
                write(piece)
        return hashed.digest

    async def _stored(self, fill: Callable[[Write], str], form: Form, expected: str, pin: Pin) -> Layer:
        """Plain bytes that `fill` writes as a blob, which is pinned before anybody can find it; `fill` returns their digest. `expected`:
        that digest, "" when it is not known yet. Packing is in one thread, compressing in another."""
        form.check()
        path = self._content.temporary()
        pieces = Handoff(_ROOM)
        failures: list[Exception] = []
        plain = ""
        layer: Layer | None = None

        def give() -> None:
            nonlocal plain
            plain = fill(lambda piece: pieces.put(bytes(piece)))
            pieces.end()

        def squeeze() -> None:
            nonlocal layer
            with open(path, "xb", buffering=0) as file:
                blob = _Hashed(file.write)
                packer = _packer(form, blob.write)
                while piece := pieces.get():
                    trio.from_thread.check_cancelled()
                    packer.write(piece)
                packer.finish()
            layer = Layer(blob.digest, blob.size, form.media_type(), "", "")

        async def run(kind: Kind, step: Callable[[], None], over: Callable[[], object]) -> None:
            try:
                await blocking(kind, step)
            except Closed:
                pass  # the other thread's failure tells
            except (KnarrError, OSError, compression.CompressionError) as error:
                failures.append(error)
            finally:
                over()  # here and not in the thread: one that is cancelled may never have begun

        def adopt(layer: Layer) -> None:
            if not self._content.exists(layer.digest, layer.size):
                self._content.adopt(path, layer.digest)

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, "build", give, lambda: pieces.end(Closed()))
                nursery.start_soon(run, "layers", squeeze, pieces.close)
            if failures:
                raise failures[0]
            assert layer is not None
            _same(expected or plain, plain)
            layer = msgspec.structs.replace(layer, diff_id=plain)
            pin([layer.digest])
            await blocking("disk", adopt, layer)
            return layer
        except compression.CompressionError as error:
            raise Damaged(f"packing layer {expected}: {error}") from error
        except OSError as error:
            raise explained(error, f"layer {expected}") from error
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


class _Hashed:
    """Counts and hashes what is written."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, piece: bytes | memoryview) -> None:
        self._hash.update(piece)
        self.size += len(piece)
        self._write(piece)

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


class _Packer(Protocol):
    def write(self, piece: bytes | memoryview, /) -> None: ...

    def finish(self) -> None: ...


class _Plain:
    def __init__(self, write: Write) -> None:
        self._write = write

    def write(self, piece: bytes | memoryview) -> None:
        self._write(piece)

    def finish(self) -> None:
        pass


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _With:
    """One of the standard library's or zstandard's compressors."""

    def __init__(self, compressor: _Compressor, write: Write) -> None:
        self._compressor = compressor
        self._write = write

    def write(self, piece: bytes | memoryview) -> None:
        if out := self._compressor.compress(piece):  # type: ignore[arg-type]
            self._write(out)

    def finish(self) -> None:
        self._write(self._compressor.flush())


class _Cut:
    """igzip's output depends on where its input is cut: always in the same places, also where an archive that came is packed."""

    def __init__(self, write: Write) -> None:
        self._gzip = GzipWriter(write)
        self._pending = bytearray()

    def write(self, piece: bytes | memoryview) -> None:
        view = memoryview(piece)
        if self._pending:
            missing = _CUT - len(self._pending)
            self._pending += view[:missing]
            view = view[missing:]
            if len(self._pending) == _CUT:
                self._gzip.write(bytes(self._pending))
                self._pending.clear()
        whole = len(view) - len(view) % _CUT
        for start in range(0, whole, _CUT):
            self._gzip.write(view[start : start + _CUT])
        self._pending += view[whole:]

    def finish(self) -> None:
        self._gzip.write(bytes(self._pending))
        self._gzip.finish()


def _packer(form: Form, write: Write) -> _Packer:
    if form.kind == "uncompressed":
        return _Plain(write)
    if form.kind == "zstd":
        import zstandard

        return _With(zstandard.ZstdCompressor(level=form.level or _ZSTD_DEFAULT).compressobj(), write)
    if form.level is None:
        return _Cut(write)
    return _With(zlib.compressobj(form.level, zlib.DEFLATED, 16 + zlib.MAX_WBITS), write)


def _same(expected: str, found: str) -> None:
    if expected != found:
        raise Damaged(
            f"layer {expected}: its files were changed on the disk, they are {found} now",
            hint="build it again without the cache, or see `knarr system check --repair`",
        )
