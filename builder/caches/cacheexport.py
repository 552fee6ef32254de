"""`--cache-to`: the results of a build with their keys, as a cache in a registry or as a folder for the client.

Layers are packed as they are for a registry, but only those that are not there yet; layers of base images are left out, a build that reads
the cache has its base images anyway. What was packed once is remembered as long as the daemon runs. The document is `cacheconfig`'s.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

import msgspec
import trio

from builder.caches import cacheconfig
from builder.caches.cacheconfig import CacheTo, Packed
from builder.export.imagedocs import form_of
from builder.graph import Graph
from builder.progress import Reporter, stamp
from builder.solving.lineage import ground
from builder.solving.solver import Solver
from builder.sources.bases import credentials_for
from engine.aio.blocking import blocking
from engine.aio.locks import KeyedLocks
from engine.aio.scopes import shielded
from engine.errors import InvalidParameter, KnarrError
from engine.service.context import Context
from engine.service.layerblobs import Form
from engine.spec import image as spec
from engine.spec import reference as references
from engine.spec.digest import sha256
from engine.spec.docker.registry import Credentials
from engine.spec.image import Descriptor
from engine.store.buildcache import BuildCache, CachedResult
from engine.store.snapshots import Snapshot
from engine.wire import tar, tarwrite

_READ = 1 << 20
_AT_ONCE = 4
_CLEANUP_SECONDS = 60.0
_REMEMBERED = 50_000  # layers
_VERTEX = {"registry": "exporting cache to registry", "local": "exporting cache to client directory"}

Pin = Callable[[Iterable[str]], object]
Send = Callable[[int, AsyncIterator[bytes]], Awaitable[None]]
"""Sends the output of that number to the client."""


class Result(msgspec.Struct):
    """A result that goes into a cache: the number of the snapshot below or -1 with the chain below, its keys, and whether the target lies
    on it."""

    found: CachedResult
    below: int
    base: str
    keys: set[str]
    needed: bool


class PackedLayer(msgspec.Struct, frozen=True):
    """A blob that was made of a layer."""

    blob: Descriptor
    diff_id: str


class PackedLayers:
    """What layers were packed to, by the result's identifier and the form. The blob itself may be gone."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, Form], PackedLayer] = {}

    def get(self, id: str, form: Form) -> PackedLayer | None:
        """None when it is not known."""
        return self._known.get((id, form))

    def put(self, id: str, form: Form, layer: PackedLayer) -> None:
        """Remember one; the oldest is forgotten when there are too many."""
        self._known[id, form] = layer
        if len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]


def gather(context: Context, cache: BuildCache, graph: Graph, solver: Solver, found: dict[int, Result]) -> list[CachedResult]:
    """Add to `found` (by the snapshot's number, what lies below first) the results that a solved graph stands on; returns them.

    Those of the target are marked as needed.
    """
    snapshots = context.snapshots
    taken: list[CachedResult] = []
    target = graph.target.root
    results = solver.results()
    for index, result in sorted(results.items(), key=lambda item: item[0] == target):
        lies = ground(graph, index)
        rows: list[tuple[int, Snapshot]] = []
        row: Snapshot | None = result.row
        for vertex in lies.vertices:
            if row is None:
                break
            rows.append((vertex, row))
            row = snapshots.get(row.parent) if row.parent else None
        if len(rows) < len(lies.vertices) or (row.name if row is not None else "") != lies.chain:
            continue  # it lies on something else: laid there by hand, and of no use elsewhere
        below = -1
        for vertex, row in reversed(rows):
            known = cache.of(row)
            if known is None:
                break  # pruned meanwhile, and so nothing above can be told either
            one = found.get(row.number)
            if one is None:
                one = found[row.number] = Result(known, below, lies.chain if below < 0 else "", cache.keys(known), False)
                taken.append(known)
            one.keys.update(filter(None, (solver.key_of(vertex),)))
            one.needed = one.needed or index == target
            below = row.number
    return taken


def inline_records(graph: Graph, solver: Solver, created: Sequence[int]) -> msgspec.Raw | None:
    """The records of an image about its own layers; None for an image without any. `created`: when each of the layers that the build adds
    was made, Unix nanoseconds. Only keys that say what was built, so that the same build gives the same image."""
    base = len(graph.target.base.diff_ids) if graph.target.base is not None else 0
    vertices = [step.vertex for step in graph.target.steps if step.vertex is not None]
    if graph.epoch is not None:
        created = [graph.epoch * 1_000_000_000] * len(vertices)
    records = [
        (key, base + place, at)
        for place, (vertex, at) in enumerate(zip(vertices, created, strict=True))
        if (key := solver.key_of(vertex))
    ]  # fmt: skip
    return cacheconfig.inline(records) if records else None


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What an export needs of its build."""

    reporter: Reporter
    packed: PackedLayers
    auths: Mapping[str, Credentials]
    send: Send | None = None


async def export(context: Context, to: CacheTo, results: Mapping[int, Result], around: Surroundings) -> None:
    """Write one cache. The caller keeps the results. Raises InvalidParameter, KnarrError, OSError; nothing of it with `ignore_error`."""
    chosen = [one for one in results.values() if to.everything or one.needed]
    made: list[str] = []
    try:
        with around.reporter.vertex(_VERTEX[to.kind]) as vertex, context.images.pins() as pin:
            await _Export(context, to, chosen, around, vertex, pin, made).run()
    except (KnarrError, OSError):
        if not to.ignore_error:
            raise
    finally:
        if made:
            with shielded(_CLEANUP_SECONDS):
                await context.images.release(made)


class _Export:
    def __init__(
        self, context: Context, to: CacheTo, results: Sequence[Result], around: Surroundings, vertex: str, pin: Pin,
        packed: list[str],
    ) -> None:  # fmt: skip
        self._images = context.images
        self._registries = context.registries
        self._to = to
        self._results = results
        self._around = around
        self._vertex = vertex
        self._pin = pin
        self._packed = packed  # blobs that nobody needs afterwards

    @contextlib.contextmanager
    def _told(self, text: str) -> Iterator[None]:
        began = stamp()
        self._around.reporter.status(self._vertex, text, 0, started=began)
        yield
        self._around.reporter.status(self._vertex, text, 0, started=began, completed=True)

    async def run(self) -> None:
        if self._to.kind == "registry":
            await self._to_registry()
        else:
            await self._to_client()

    # -- a registry

    async def _to_registry(self) -> None:
        to = self._to
        reference = references.parse(to.ref).with_default_tag()
        if reference.digest:
            raise InvalidParameter(f"--cache-to type=registry,ref={to.ref}: a digest cannot be written to")
        credentials = credentials_for(self._around.auths, reference)
        async with self._registries.remote(reference, credentials, push=True, insecure=to.insecure) as remote:
            blobs = KeyedLocks()

            async def upload(blob: Descriptor) -> None:
                async with blobs.hold(blob.digest):
                    if not await remote.has_blob(blob.digest):
                        await remote.upload(blob, functools.partial(_bytes, self._images.content.path(blob.digest)))

            async def bring(one: Result) -> PackedLayer:
                known = self._known(one)
                if known is None or not await remote.has_blob(known.blob.digest):
                    known = await self._made(one)
                    with self._told(f"writing layer {known.blob.digest}"):
                        await upload(known.blob)
                return known

            config, raw, kind, manifest = await self._documents(bring)
            with self._told(f"writing config {config.digest}"):
                if not await remote.has_blob(config.digest):
                    await remote.upload(config, functools.partial(_from_memory, raw))
            with self._told(f"writing cache image manifest {sha256(manifest)}"):
                await remote.put_manifest(reference.tag, kind, manifest)

    # -- the client

    async def _to_client(self) -> None:
        send = self._around.send
        if send is None:
            raise InvalidParameter("--cache-to type=local needs a client that takes it")
        config, raw, kind, manifest = await self._documents(self._made)
        digest = sha256(manifest)
        entry = Descriptor(media_type=kind, digest=digest, size=len(manifest), annotations={spec.ANNOTATION_REF_NAME: self._to.tag})
        index = spec.encode(spec.Index(schema_version=2, media_type=spec.MEDIA_INDEX, manifests=(entry,)))
        document = spec.decode_manifest(manifest) if self._to.image else spec.decode_index(manifest)
        layers = (document.layers if isinstance(document, spec.Manifest) else (document.manifests or ())[:-1]) or ()

        async def pieces() -> AsyncIterator[bytes]:
            yield _folder("blobs") + _folder("blobs/sha256")
            for layer in layers:
                yield _header(_place(layer.digest), layer.size)
                async with contextlib.aclosing(_bytes(self._images.content.path(layer.digest), 0)) as parts:
                    async for part in parts:
                        yield part
                yield tarwrite.padding(layer.size)
            yield _member(_place(config.digest), raw) + _member(_place(digest), manifest)
            # The index is the last, so that a folder that is not whole has the cache before.
            yield _member("oci-layout", b'{"imageLayoutVersion":"1.0.0"}') + _member("index.json", index) + tarwrite.END

        with self._told(f"writing cache image manifest {digest}"):
            await send(self._to.number, pieces())

    # -- layers

    async def _documents(self, bring: Callable[[Result], Awaitable[PackedLayer]]) -> tuple[Descriptor, bytes, str, bytes]:
        """Every layer brought to where it is to be; then the configuration with its descriptor, and the manifest with its media type."""
        with self._told("preparing build cache for export"):
            layers = await self._bring_all(bring)
        places = {one.found.row.number: place for place, one in enumerate(self._results)}
        packed = [
            Packed(
                blob=layer.blob, diff_id=layer.diff_id, parent=places.get(one.below, -1), base=one.base, keys=tuple(one.keys),
                created=one.found.created, id=one.found.id,
            )
            for one, layer in zip(self._results, layers, strict=True)
        ]  # fmt: skip
        raw = cacheconfig.document(packed)
        config = Descriptor(media_type=cacheconfig.MEDIA_CONFIG, digest=sha256(raw), size=len(raw))
        kind, manifest = cacheconfig.manifest(
            config, list(map(cacheconfig.descriptor, packed)), image=self._to.image, docker=self._to.docker
        )
        return config, raw, kind, manifest

    async def _bring_all(self, bring: Callable[[Result], Awaitable[PackedLayer]]) -> list[PackedLayer]:
        found: dict[int, PackedLayer] = {}
        limit = trio.CapacityLimiter(_AT_ONCE)

        failures: list[Exception] = []

        async def one(place: int) -> None:
            try:
                async with limit:
                    layer = await bring(self._results[place])
            except (KnarrError, OSError) as error:
                failures.append(error)
                nursery.cancel_scope.cancel()
                return
            media_type = self._to.form.media_type(self._to.docker)
            found[place] = msgspec.structs.replace(layer, blob=msgspec.structs.replace(layer.blob, media_type=media_type))

        async with trio.open_nursery() as nursery:
            for place in range(len(self._results)):
                nursery.start_soon(one, place)
        if failures:
            raise failures[0]
        return [found[place] for place in range(len(self._results))]

    def _known(self, one: Result) -> PackedLayer | None:
        """What a layer packs to, if that is known without doing it."""
        form = self._to.form
        known = self._around.packed.get(one.found.id, form)
        row = one.found.row
        if known is not None or form.level is not None or not row.diff_id:
            return known
        for image in self._images.store:
            for layer in image.layers:
                if layer.chain_id == row.name and layer.diff_id == row.diff_id and form_of(layer.media_type) == form.kind:
                    return PackedLayer(Descriptor(digest=layer.digest, size=layer.size), layer.diff_id)
        return None

    async def _made(self, one: Result) -> PackedLayer:
        """The blob of a layer, in the content store and kept."""
        known = self._known(one)
        if known is not None:
            self._pin([known.blob.digest])
            if await blocking("disk", self._images.content.exists, known.blob.digest, known.blob.size):
                return known
        layer = await self._images.layer_blobs.made(one.found.row, self._to.form, self._pin)
        self._packed.append(layer.digest)
        made = PackedLayer(Descriptor(digest=layer.digest, size=layer.size), layer.diff_id)
        self._around.packed.put(one.found.id, self._to.form, made)
        return made


# -- bytes


async def _bytes(path: str, start: int) -> AsyncGenerator[bytes, None]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while piece := await blocking("disk", os.pread, fd, _READ, start):
            yield piece
            start += len(piece)
    finally:
        os.close(fd)


async def _from_memory(data: bytes, start: int) -> AsyncIterator[bytes]:
    yield data[start:]


def _place(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _entry(name: str, kind: bytes, mode: int, size: int = 0) -> tar.Entry:
    entry = tar.Entry(name.encode(), kind)
    entry.mode, entry.size = mode, size
    return entry


def _folder(name: str) -> bytes:
    return tarwrite.header(_entry(name + "/", tar.DIRECTORY, 0o755))


def _header(name: str, size: int) -> bytes:
    return tarwrite.header(_entry(name, tar.REGULAR, 0o644, size))


def _member(name: str, data: bytes) -> bytes:
    return _header(name, len(data)) + data + tarwrite.padding(len(data))
