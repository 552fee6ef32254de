"""`--cache-from`: results of other builds, found by their keys in a registry, in a folder that the client sends, or within an image.

The documents are read when a build begins; a cache that cannot be read is told of and is no failure. Layers come only when a key leads to
them, through the same jobs as those of a pull, and count only when they are what was said: the bytes by their digest, the files by what
they pack to, the layers below by the chain that the vertex is to lie on.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec
import trio

from builder.caches import cacheconfig
from builder.caches.cacheconfig import CacheContent, CacheFrom, CacheLayer
from builder.graph import Graph, ImageSource
from builder.progress import Reporter
from builder.solving.lineage import ground
from builder.solving.solver import Solver
from builder.sources import layouts
from builder.sources.bases import credentials_for
from builder.tree import Tree
from engine.aio.blocking import blocking
from engine.aio.scopes import shielded
from engine.errors import InvalidParameter, KnarrError, NotFound
from engine.service.context import Context
from engine.service.fetch import Fetcher
from engine.service.layers import Fetch, Wanted
from engine.spec import image as spec
from engine.spec import manifest as manifests
from engine.spec import reference as references
from engine.spec.digest import sha256
from engine.spec.docker.registry import Credentials
from engine.spec.image import Descriptor
from engine.store.buildcache import BuildCache
from engine.store.snapshots import Snapshot

log = logging.getLogger("knarr.build")

_CLEANUP_SECONDS = 60.0
_MOST_IMAGES = 50  # of an index whose images may have caches within
_LARGEST_MANIFEST = manifests.MANIFEST_MAX

Pin = Callable[[Iterable[str]], object]
T = TypeVar("T")
FetchOf = Callable[[Descriptor], Fetch | None]


class _Found(msgspec.Struct, frozen=True):
    """What one document says, and from where its layers come (None: they are here)."""

    content: CacheContent
    fetch: FetchOf


class _Source:
    """One `--cache-from`. `loaded` is set when it was read, or could not be."""

    def __init__(self, asked: CacheFrom) -> None:
        self.asked = asked
        self.name = asked.ref
        self.vertex = ""
        self.loaded = trio.Event()
        self.found: list[_Found] = []
        self.refused: set[tuple[int, int]] = set()


class CacheImports:
    """The caches that one build reads. `contexts` waits for what the client sends."""

    def __init__(
        self, context: Context, cache: BuildCache, reporter: Reporter, auths: Mapping[str, Credentials],
        contexts: Callable[[str], Awaitable[Tree]],
    ) -> None:  # fmt: skip
        self._context = context
        self._cache = cache
        self._reporter = reporter
        self._auths = auths
        self._contexts = contexts
        self._sources: list[_Source] = []
        self._brought: list[str] = []
        self._pin: Pin = lambda names: None

    @contextlib.asynccontextmanager
    async def reading(self, asked: Sequence[CacheFrom]) -> AsyncIterator[None]:
        """Read them beside the build that goes on in the block. What came for it and is needed no more goes at the end."""
        if not asked:
            yield
            return
        images = self._context.images
        try:
            with images.pins() as pin:
                self._pin = pin
                failure: Exception | None = None
                async with trio.open_nursery() as nursery:
                    for one in asked:
                        source = _Source(one)
                        self._sources.append(source)
                        nursery.start_soon(self._read, source)
                    try:
                        yield
                    except Exception as error:  # raised below, so that it does not arrive wrapped in a group
                        failure = error
                    nursery.cancel_scope.cancel()
                if failure is not None:
                    raise failure
        finally:
            if self._brought:
                with shielded(_CLEANUP_SECONDS):
                    await images.release(self._brought)

    def of(self, graph: Graph) -> list[Bound]:
        """For the solver of a graph: `bind` it to the solver before it is used."""
        return [Bound(self, graph)] if self._sources else []

    # -- reading

    async def _read(self, source: _Source) -> None:
        name, asked, trouble = f"importing cache manifest from {source.name}", source.asked, ""
        source.vertex = sha256(f"{name} {asked.kind} {asked.tag}".encode())
        self._reporter.begin(source.vertex, name)
        try:
            source.found = await (self._read_folder(asked) if asked.kind == "local" else self._read_registry(asked))
        except (KnarrError, OSError) as error:
            trouble = str(error)
        finally:  # also when the build is over before somebody needed it
            self._reporter.end(source.vertex, error=trouble, counts=False)
            source.loaded.set()

    async def _read_registry(self, asked: CacheFrom) -> list[_Found]:
        """Of an image that is here, or of whatever a registry has under a name."""
        reference = references.parse(asked.ref).with_default_tag()
        local = self._read_image(asked.ref)
        if local:
            return local
        credentials = credentials_for(self._auths, reference)
        connect = functools.partial(self._context.registries.remote, reference, credentials, insecure=asked.insecure)
        attempts = self._context.settings.max_download_attempts

        def fetch(blob: Descriptor) -> Fetch:
            return Fetcher(connect, blob, attempts)

        async with connect() as remote:
            top, raw = await remote.manifest(reference.digest or reference.tag)

            async def document(blob: Descriptor) -> bytes:
                return await remote.document(blob, cacheconfig.LARGEST)

            async def manifest(digest: str) -> bytes:
                return (await remote.manifest(digest))[1]

            contents = await _contents(raw, top.media_type, asked.ref, document, manifest)
        if not contents:
            raise NotFound(f"{asked.ref} has no build cache", hint="write one with --cache-to, or an image with --cache-to type=inline")
        return [_Found(content, fetch) for content in contents]

    def _read_image(self, ref: str) -> list[_Found]:
        """The cache within an image that is here."""
        images = self._context.images
        try:
            found, name = images.find(ref)
        except (NotFound, InvalidParameter):
            return []
        contents = []
        for image in [found, *(one for one in (images.variants(name) if name is not None else ()) if one.id != found.id)]:
            blobs = [Descriptor(digest=layer.digest, size=layer.size) for layer in image.layers]
            try:
                content = cacheconfig.parse_inline(image.raw, blobs)
            except InvalidParameter as error:
                log.info("the build cache within the image %s: %s", image.id, error)
                continue
            if content is not None and content.entries:
                self._pin([*image.chain_ids, *image.blobs])
                contents.append(_Found(content, lambda blob: None))
        return contents

    async def _read_folder(self, asked: CacheFrom) -> list[_Found]:
        tree = await self._contexts(asked.context)
        digest = asked.digest
        if not digest:
            raw = await blocking("disk", layouts.read, tree, "index.json", _LARGEST_MANIFEST)
            entries = _decoded(spec.decode_index, raw, "index.json").manifests or ()
            digest = next((one.digest for one in entries if (one.annotations or {}).get(spec.ANNOTATION_REF_NAME) == asked.tag), "")
        if not digest:
            raise NotFound(f"the index of {asked.ref} has no tag {asked.tag!r}")

        async def document(blob: Descriptor) -> bytes:
            return await blocking("disk", layouts.blob, tree, blob.digest, cacheconfig.LARGEST)

        async def manifest(digest: str) -> bytes:
            return await blocking("disk", layouts.blob, tree, digest, _LARGEST_MANIFEST)

        def fetch(blob: Descriptor) -> Fetch:
            return layouts.fetch(tree, blob)

        contents = await _contents(await manifest(digest), "", asked.ref, document, manifest)
        if not contents:
            raise NotFound(f"{asked.ref} has no build cache")
        return [_Found(content, fetch) for content in contents]

    # -- finding

    async def find(self, keys: Sequence[str], bound: Bound, index: int) -> tuple[Snapshot, Sequence[str]] | None:
        """The result under one of the keys, brought here."""
        for source in self._sources:
            await source.loaded.wait()
            for place, found in enumerate(source.found):
                for key in keys:
                    entry = found.content.entries.get(key)
                    if entry is None or (place, entry.layer) in source.refused:
                        continue
                    told = f"importing cached layers of {bound.graph.vertices[index].name}"
                    vertex = sha256(f"{told} {source.vertex} {key}".encode())
                    try:
                        row = await self._bring(found, key, bound, index, vertex, told)
                    except (KnarrError, OSError) as error:
                        source.refused.add((place, entry.layer))
                        log.warning("%s from %s: %s", told, source.name, error)
                        self._reporter.begin(vertex, told)
                        self._reporter.end(vertex, error=f"{source.name} is not used: {error}", counts=False)
                        continue
                    if self._reporter.told(vertex):
                        self._reporter.end(vertex, counts=False)
                    return row, ()
        return None

    async def _bring(self, found: _Found, key: str, bound: Bound, index: int, vertex: str, told: str) -> Snapshot:
        """`vertex` begins, as `told`, when something has to be fetched."""
        content, lies = found.content, ground(bound.graph, index)
        lineage = content.lineage(content.entries[key].layer, len(lies.vertices), lies.chain)
        self._pin([*(layer.chain for layer in lineage), *(layer.blob.digest for layer in lineage)])
        snapshots = self._context.snapshots
        if lies.image is not None:
            await self._unpacked(lies.image)
        missing = list(lineage)
        while missing and snapshots.whole(missing[0].chain):
            del missing[0]
        if missing:
            self._reporter.begin(vertex, told)
            await self._layers(missing, found.fetch, vertex)
        rows = [await self._checked(layer) for layer in lineage]
        self._keep(rows, lineage, key, bound, lies.vertices, content)
        return rows[-1]

    async def _unpacked(self, op: ImageSource) -> None:
        """The base image's layers, which those of the cache lie on."""
        if op.chain and not self._context.snapshots.whole(op.chain):
            image = self._context.images.store.get(op.image)
            if image is None:
                raise KnarrError(f"the image {op.reference} was removed while it was built on")
            await self._context.pulls.unpack(image)

    async def _layers(self, missing: Sequence[CacheLayer], fetch: FetchOf, vertex: str) -> None:
        wanted = [(Wanted(one.blob.digest, one.blob.size, one.diff_id, one.chain, one.below), fetch(one.blob)) for one in missing]
        await layouts.bring(self._context.layers, wanted, self._reporter, vertex)
        self._brought += [one.blob.digest for one in missing]

    async def _checked(self, layer: CacheLayer) -> Snapshot:
        """The layer's snapshot. What is built on it names it by what it packs to, so that must be what it came as."""
        row = self._context.snapshots.get(layer.chain)
        if row is None:
            raise KnarrError(f"the layer {layer.chain} was removed meanwhile")
        diff_id, _ = await self._context.images.layer_blobs.pack(row)
        if diff_id != layer.diff_id:
            raise InvalidParameter(f"layer {layer.blob.digest} is not packed as this builder packs: {diff_id}, not {layer.diff_id}")
        return row

    def _keep(
        self, rows: Sequence[Snapshot], lineage: Sequence[CacheLayer], key: str, bound: Bound, vertices: Sequence[int],
        content: CacheContent,
    ) -> None:  # fmt: skip
        """Results that this build need not look for again: the one that was asked for, and those below that the same document has."""
        top = len(rows) - 1
        for place, vertex in enumerate(reversed(vertices)):
            wanted = key if place == top else bound.key_of(vertex)
            entry = content.entries.get(wanted)
            if entry is not None and content.layers[entry.layer] is lineage[place]:
                name = bound.graph.vertices[vertex].name
                self._cache.put([wanted], rows[place], name, id=entry.id, created=entry.created)


class Bound:
    """The caches for one graph: `solver.Remote`."""

    def __init__(self, imports: CacheImports, graph: Graph) -> None:
        self.graph = graph
        self._imports = imports
        self._places: dict[str, int] = {}
        self.key_of: Callable[[int], str] = lambda index: ""

    def bind(self, solver: Solver) -> None:
        """What is asked for is named by the solver's digests."""
        self._places = {digest: index for index, digest in enumerate(solver.digests)}
        self.key_of = solver.key_of

    async def find(self, keys: Sequence[str], vertex: str) -> tuple[Snapshot, Sequence[str]] | None:
        """The result under one of the keys, brought here."""
        return await self._imports.find(keys, self, self._places[vertex])


# -- documents


async def _contents(
    raw: bytes, media_type: str, what: str, document: Callable[[Descriptor], Awaitable[bytes]], manifest: Callable[[str], Awaitable[bytes]]
) -> list[CacheContent]:
    """The caches that a manifest or an index stands for. Raises InvalidParameter."""
    manifests.kind(raw, media_type, what)
    top = _decoded(_decode_any, raw, what)
    if isinstance(top, spec.Manifest):
        content = await _of_manifest(top, document)
        return [content] if content is not None else []
    members = top.manifests or ()
    config = next((one for one in members if one.media_type == cacheconfig.MEDIA_CONFIG), None)
    if config is not None:
        return [cacheconfig.parse(await document(config), members)]
    contents: list[CacheContent] = []
    for member in members[:_MOST_IMAGES]:
        if member.media_type in spec.MANIFESTS and not manifests.is_attestation(member):
            inner = _decoded(spec.decode_manifest, await manifest(member.digest), what)
            content = await _of_manifest(inner, document)
            contents += [content] if content is not None else []
    return contents


async def _of_manifest(found: spec.Manifest, document: Callable[[Descriptor], Awaitable[bytes]]) -> CacheContent | None:
    raw = await document(found.config)
    layers = found.layers or ()
    if found.config.media_type == cacheconfig.MEDIA_CONFIG:
        return cacheconfig.parse(raw, layers)
    return cacheconfig.parse_inline(raw, layers)


def _decode_any(raw: bytes) -> spec.Manifest | spec.Index:
    try:
        return spec.decode_manifest(raw)
    except msgspec.ValidationError:
        return spec.decode_index(raw)


def _decoded(decode: Callable[[bytes], T], raw: bytes, what: str) -> T:
    try:
        return decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError) as error:
        raise InvalidParameter(f"the manifest of {what} is malformed: {error}") from error
