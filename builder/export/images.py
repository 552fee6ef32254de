"""From what a build solved to an image in the store. Owns the order in which that happens, and what an image of a build consists of.

Layers are packed for their digests alone; the snapshots then get the names of their chains, and blobs are made of them when somebody
wants them (`engine.service.layerblobs`). One sync of the file system covers the files of every layer; documents and rows follow, durable
before anybody is told. An image that is here already costs its names. Does not push and writes no archive.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec
import trio

from builder.export import imagedocs
from builder.export.attest import Attached
from builder.files import squash
from builder.graph import Target
from engine.aio.blocking import blocking
from engine.aio.scopes import shielded
from engine.errors import KnarrError, NotFound
from engine.service.context import Context
from engine.service.images import Images
from engine.service.layerblobs import Form
from engine.spec import image as spec
from engine.spec import platform as platforms
from engine.spec.digest import chain_ids, sha256
from engine.spec.reference import Reference
from engine.store.images import ImageRecord, Index, Layer
from engine.store.snapshots import Snapshot

_PACKING = 2  # layers at a time
_COMMIT_SECONDS = 120.0


class Added(msgspec.Struct, frozen=True):
    """A layer that a build adds: its committed snapshot, and when it was made (Unix nanoseconds)."""

    snapshot: Snapshot
    created: int


class Report(Protocol):
    """Tells what is done: `exporting layers` when it begins, and with `done` when it ended."""

    def __call__(self, text: str, *, done: bool = False) -> object: ...


class Manner(msgspec.Struct, frozen=True, kw_only=True):
    """How an image is made. `form`: layers are blobs in the content store, so packed, None: made on demand; with `force` those of the base
    image are packed anew too. `epoch`: Unix seconds for everything that this build made; with `rewrite` no file of its layers is newer.
    `docker`: Docker's media types. `annotations` of the manifest, `descriptor` those of its descriptor in an index. `extra`: further
    members of the configuration. `squash`: what the build adds is one layer."""

    form: Form | None = None
    force: bool = False
    epoch: int | None = None
    rewrite: bool = False
    docker: bool = False
    annotations: Mapping[str, str] = {}
    descriptor: Mapping[str, str] = {}
    index: Mapping[str, str] = {}
    extra: Mapping[str, msgspec.Raw] = {}
    squash: bool = False


class Part(msgspec.Struct, frozen=True):
    """One platform's image: the base and the layers that a build adds, bottom first, one for each step with a vertex. `extra`: further
    members of its configuration. `bases`: images that it stands on, also those that were removed from the store meanwhile. `annotations` of
    its manifest and `descriptor`, those of its descriptor in an index, beside those of the manner."""

    target: Target
    added: Sequence[Added]
    extra: Mapping[str, msgspec.Raw] = {}
    bases: Sequence[ImageRecord] = ()
    annotations: Mapping[str, str] = {}
    descriptor: Mapping[str, str] = {}


class Exported(msgspec.Struct, frozen=True):
    """`image`: what the names stand for here, one of `images`; `digest` of what they stand for in a registry, the manifest or the index,
    with its `media_type` and `size`. `existed`: all of it was here before. `index`: None for a manifest alone."""

    image: ImageRecord
    images: tuple[ImageRecord, ...]
    digest: str
    media_type: str
    size: int
    existed: bool = False
    index: Index | None = None


Pin = Callable[[Iterable[str]], object]
"""Keeps blobs and snapshots from collection."""

Attach = Callable[[Target, spec.Descriptor], Awaitable[Sequence[Attached]]]
"""What stands beside an image in its index, of which the manifest's descriptor is known."""


def _silent(text: str, *, done: bool = False) -> None:
    pass


class _Documents(msgspec.Struct, frozen=True):
    target: Target
    raw: bytes
    id: str
    manifest: bytes
    digest: str
    layers: tuple[Layer, ...]
    descriptor: Mapping[str, str]


async def export_images(
    context: Context, parts: Sequence[Part], names: Sequence[Reference] = (), manner: Manner = Manner(), *,  # noqa: B008
    report: Report = _silent, attach: Attach | None = None, hold: Pin | None = None,
) -> Exported:  # fmt: skip
    """Make an image of each part and give them `names` (without a tag: `latest`). With several parts, and with `attach`, the names stand
    for an index. The caller keeps the base images' layers and the snapshots from collection until this returns.

    With `hold` nothing is registered and nobody has a name: documents and blobs that do not come on demand are in the content store, kept
    from collection by what `hold` is told. Raises KnarrError, OSError.
    """
    images = context.images
    if (attach is not None or len(parts) > 1) and manner.form is None:
        # An index is never written anew, so what it names must be what goes to a registry.
        manner = msgspec.structs.replace(manner, form=Form())
    with images.pins() as pins:
        pin = hold or pins
        report("exporting layers")
        exports = [_Export(context, part, manner, pin) for part in parts]
        documents = [await export.prepare() for export in exports]
        report("exporting layers", done=True)
        with shielded(_COMMIT_SECONDS):
            if hold is not None:
                return await _unnamed(context, exports, documents, manner, attach, hold)
            return await _store(context, exports, documents, names, manner, report, attach)
    raise KnarrError("storing the image: the disk did not take it in time")


async def _store(
    context: Context, exports: Sequence[_Export], documents: Sequence[_Documents], names: Sequence[Reference], manner: Manner,
    report: Report, attach: Attach | None,
) -> Exported:  # fmt: skip
    images = context.images
    for one in documents:
        report(f"writing image {one.id}")
    known = True
    records: list[ImageRecord] = []
    for export, one in zip(exports, documents, strict=True):
        await export.name_snapshots()
        record, existed = await export.store(one, exact=attach is not None or len(exports) > 1)
        known = known and existed
        records.append(record)
    index: Index | None = None
    if attach is not None or len(records) > 1:
        index = await _index(images, documents, manner, attach)
        known = known and images.store.index(index.digest) is not None
    tagged = [name.with_default_tag() for name in names]
    stands_for = index.digest if index is not None else records[-1].manifest
    changes = not known or any(images.store.target(name) != stands_for for name in tagged)
    needed = images.blobs_in_use() if changes else set()
    for record in records[:-1]:
        images.register(record)
    images.register(records[-1], tagged, index)
    if changes:
        await images.durable()
        # Of an index that a name stood for, or of an image's former manifest.
        await images.delete_files([], needed - images.blobs_in_use())
    else:
        context.durability.lazily()  # only the time of the tag is new
    for one in documents:
        report(f"writing image {one.id}", done=True)
    image = (images.store.named(tagged[0]) if tagged else None) or images.store.get(records[-1].id) or records[-1]
    for name in names:
        report(f"naming to {name}")
        images.emit("tag", image.id, name.familiar)
        report(f"naming to {name}", done=True)
    everything = tuple(images.store.get(record.id) or record for record in records)
    if index is not None:
        return Exported(image, everything, index.digest, index.media_type, len(index.raw), known, index)
    return Exported(image, everything, image.manifest, image.manifest_type or spec.MEDIA_MANIFEST, image.manifest_size, known)


async def _unnamed(
    context: Context, exports: Sequence[_Export], documents: Sequence[_Documents], manner: Manner, attach: Attach | None, hold: Pin
) -> Exported:  # fmt: skip
    """Images that nothing in the store refers to."""
    records = [await export.unnamed(one) for export, one in zip(exports, documents, strict=True)]
    index = await _index(context.images, documents, manner, attach) if attach is not None or len(records) > 1 else None
    best = platforms.best([record.config.platform for record in records], context.images.host) or 0
    if index is not None:
        hold([index.digest, *index.held])
        return Exported(records[best], tuple(records), index.digest, index.media_type, len(index.raw), False, index)
    return Exported(records[0], tuple(records), records[0].manifest, records[0].manifest_type, records[0].manifest_size)


async def _index(images: Images, documents: Sequence[_Documents], manner: Manner, attach: Attach | None) -> Index:
    """The index of several images and what stands beside them, in the content store."""
    manifests: list[spec.Descriptor] = []
    beside: list[spec.Descriptor] = []
    held: list[str] = []

    def write(blobs: Sequence[tuple[str, bytes]]) -> None:
        for digest, data in blobs:
            images.content.put(data, digest)

    for one in documents:
        image = spec.Descriptor(
            media_type=spec.DOCKER_MANIFEST if manner.docker else spec.MEDIA_MANIFEST, digest=one.digest, size=len(one.manifest),
            annotations={**manner.descriptor, **one.descriptor} or None, platform=one.target.platform,
        )  # fmt: skip
        manifests.append(image)
        for attached in await attach(one.target, image) if attach is not None else ():
            await blocking("disk", write, attached.blobs)
            beside.append(attached.descriptor)
            held += [attached.descriptor.digest, *(digest for digest, _ in attached.blobs)]
    document = spec.Index(
        schema_version=2, media_type=spec.DOCKER_INDEX if manner.docker else spec.MEDIA_INDEX, manifests=(*manifests, *beside),
        annotations=dict(manner.index) or None,
    )  # fmt: skip
    raw = spec.encode(document)
    await blocking("disk", write, [(sha256(raw), raw)])
    return Index.of(raw, held=dict.fromkeys(held))


class _Export:
    """One platform's image on its way."""

    def __init__(self, context: Context, part: Part, manner: Manner, pin: Pin) -> None:
        self._images = context.images
        self._snapshots = context.snapshots
        self._target = part.target
        self._extra = part.extra
        self._bases = part.bases
        self._annotations = {**manner.annotations, **part.annotations}
        self._descriptor = part.descriptor
        self._created = [one.created for one in part.added]
        self._rows = [one.snapshot for one in part.added]
        self._manner = manner
        self._pin = pin
        self._squashed: imagedocs.Squashed | None = None
        self._packs: list[tuple[str, int]] = []
        self._chains: Sequence[str] = ()
        layers = sum(step.vertex is not None for step in part.target.steps)
        if layers != len(self._rows):
            raise KnarrError(f"exporting an image: {len(self._rows)} layers for {layers} steps that make one")
        pin([row.name for row in self._rows])

    async def prepare(self) -> _Documents:
        """Pack what is not known yet, and write the documents in memory. Everything is pinned then."""
        if self._manner.squash and len(self._rows) > 1:
            await self._squash()
        self._packs = await self._packed()
        made = await self._blobs()
        base = await self._base()
        layers = [*base, *made]
        diff_ids = [layer.diff_id for layer in layers]
        chains = chain_ids(diff_ids)
        self._chains = chains[len(base) :]
        self._pin(chains)
        entries = imagedocs.history(self._target, self._created, self._manner.epoch, self._squashed)
        raw = imagedocs.config(self._target, diff_ids, entries, {**self._manner.extra, **self._extra})
        id = sha256(raw)
        manifest = imagedocs.manifest(raw, id, layers, docker=self._manner.docker, annotations=self._annotations)
        placed = tuple(msgspec.structs.replace(layer, chain_id=chain) for layer, chain in zip(layers, chains, strict=True))
        self._pin((id, sha256(manifest), *(layer.digest for layer in placed)))
        return _Documents(self._target, raw, id, manifest, sha256(manifest), placed, self._descriptor)

    # -- layers

    async def _squash(self) -> None:
        count = len(self._rows)
        self._rows = [await squash.squash(self._snapshots, self._rows, self._pin)]
        base = self._target.base.diff_ids if self._target.base is not None else ()
        below = f" to {chain_ids(base)[-1]}" if base else ""
        self._squashed = imagedocs.Squashed(f"merge {count} layers{below}")

    async def _packed(self) -> list[tuple[str, int]]:
        """The digest and the bytes of each layer's archive."""
        rows = self._rows
        blobs, limit = self._images.layer_blobs, trio.CapacityLimiter(_PACKING)
        found: list[tuple[str, int]] = [(row.diff_id, row.packed) for row in rows]

        async def one(place: int) -> None:
            async with limit:
                found[place] = await blobs.pack(rows[place])

        missing = [place for place, row in enumerate(rows) if not row.diff_id]
        if len(missing) == 1:
            await one(missing[0])
        elif missing:
            async with trio.open_nursery() as nursery:
                for place in missing:
                    nursery.start_soon(one, place)
        return found

    async def _blobs(self) -> list[Layer]:
        """The layers that the build adds: named by what they pack to, or as blobs in the content store."""
        manner = self._manner
        rewrite = manner.rewrite and manner.epoch is not None
        form = manner.form
        if form is None and rewrite:
            form = Form("gzip")
        if form is None:
            media_type = imagedocs.layer_type("uncompressed", docker=manner.docker)
            return [Layer(diff_id, size, media_type, diff_id, "") for diff_id, size in self._packs]
        form = msgspec.structs.replace(form, epoch=manner.epoch if rewrite else None)
        made: list[Layer] = []
        for row in self._rows:
            layer = await self._images.layer_blobs.made(row, form, self._pin)
            made.append(msgspec.structs.replace(layer, media_type=form.media_type(manner.docker)))
        return made

    async def _base(self) -> list[Layer]:
        """The base image's layers as they are stored here. Raises NotFound."""
        wanted = chain_ids(self._target.base.diff_ids) if self._target.base is not None else ()
        known: dict[str, Layer] = {}
        if wanted:
            for image in (*self._images.store, *self._bases):
                if image.chain_ids[: len(wanted)] == wanted:
                    known = {layer.chain_id: layer for layer in image.layers}
                    break
        layers: list[Layer] = []
        for chain in wanted:
            if (layer := known.get(chain) or self._from_snapshot(chain)) is None:
                raise NotFound(f"exporting an image: the base image's layer {chain} is not here", hint="pull it again")
            layers.append(layer)
        self._pin(layer.digest for layer in layers)
        form, docker = self._manner.form, self._manner.docker
        for place, layer in enumerate(layers):
            stored = imagedocs.form_of(layer.media_type)
            on_demand = form is not None and self._images.layer_blobs.source(layer.digest) is not None
            if form is not None and (on_demand or (self._manner.force and stored != form.kind)):
                layer = await self._images.layer_blobs.converted(layer, form, self._pin, docker)
            else:
                layer = msgspec.structs.replace(layer, media_type=imagedocs.layer_type(stored, docker=docker))
            layers[place] = layer
        return layers

    def _from_snapshot(self, chain: str) -> Layer | None:
        row = self._snapshots.get(chain)
        if row is None or not row.diff_id:
            return None
        return Layer(row.diff_id, row.packed, spec.MEDIA_LAYER, row.diff_id, chain)

    # -- the store

    async def store(self, documents: _Documents, *, exact: bool) -> tuple[ImageRecord, bool]:
        """The record to register, and whether it was here before; with `exact` only with the very manifest."""
        former = self._images.store.get(documents.id)
        if former is not None and (former.manifest == documents.digest or (not exact and self._serves(former, documents))):
            return former, True
        await blocking("disk", self._write, documents)
        return self._record(documents), False

    async def unnamed(self, documents: _Documents) -> ImageRecord:
        """The record alone, and its documents in the content store."""
        await blocking("disk", self._write, documents)
        return self._record(documents)

    def _serves(self, former: ImageRecord, documents: _Documents) -> bool:
        """Whether an image that is here will do: its manifest has the layers as some registry has them."""
        manner = self._manner
        plain = manner.form is None and not self._annotations and not manner.docker
        return plain and [layer.digest for layer in former.layers] != [layer.digest for layer in documents.layers]

    def _record(self, documents: _Documents) -> ImageRecord:
        return ImageRecord(
            id=documents.id, manifest=documents.digest, manifest_size=len(documents.manifest), config=spec.decode_config(documents.raw),
            raw=documents.raw, layers=documents.layers, size=0, loaded=time.time_ns(),
            manifest_type=spec.DOCKER_MANIFEST if self._manner.docker else spec.MEDIA_MANIFEST,
        )  # fmt: skip

    def _write(self, documents: _Documents) -> None:
        """In a worker thread."""
        self._images.content.put(documents.raw, documents.id)
        self._images.content.put(documents.manifest, documents.digest)

    async def name_snapshots(self) -> None:
        """Files on the disk, and snapshots under the names of their chains."""
        if self._manner.rewrite and self._manner.epoch is not None:
            return  # the layers are others; they are unpacked when the image is first used
        snapshots, rows = self._snapshots, self._rows
        fresh = [row for row in rows if row.boot]
        if fresh:
            await blocking("disk", snapshots.sync_files, snapshots.folder(fresh[0]))
            snapshots.synced(fresh)
        parent = ""
        for row, (diff_id, size), chain in zip(rows, self._packs, self._chains, strict=True):
            self._name(row, chain, parent, diff_id, size)
            parent = chain

    def _name(self, row: Snapshot, chain: str, parent: str, diff_id: str, size: int) -> None:
        """Give a snapshot the name of its chain, unless another one with the same content has it: what is laid on that one then."""
        snapshots = self._snapshots
        if row.name == chain:
            return
        if parent and row.parent != parent and snapshots.get(parent) is not None:
            snapshots.put_on(row, parent)
        other = snapshots.get(chain)
        if other is None:
            snapshots.rename(row.name, chain)
        elif snapshots.has(chain):
            if not other.diff_id:
                snapshots.set_packed(other, diff_id, size)
        else:
            aside = f"damaged:{other.number}"
            snapshots.rename(chain, aside)
            snapshots.rename(row.name, chain)
            for child in snapshots.rows():
                if child.parent == aside:
                    snapshots.put_on(child, chain)
