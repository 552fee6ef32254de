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

from builder import imagedocs, squash
from builder.graph import Target
from engine.aio.blocking import blocking
from engine.aio.scopes import shielded
from engine.errors import KnarrError, NotFound
from engine.service.context import Context
from engine.service.layerblobs import Form
from engine.spec import image as spec
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


class Beside(msgspec.Struct, frozen=True):
    """What stands in the index beside the image: `descriptor`, and `held`, the blobs that belong to it, all in the content store and pinned
    by who gives it."""

    descriptor: spec.Descriptor
    held: tuple[str, ...] = ()


class Exported(msgspec.Struct, frozen=True):
    """The image; `digest` of what its names stand for in a registry, with `media_type` and `size`; `existed`: it was here before."""

    image: ImageRecord
    digest: str
    media_type: str
    size: int
    existed: bool = False


Attach = Callable[[spec.Descriptor], Awaitable[Sequence[Beside]]]
"""Makes what stands beside an image whose manifest's descriptor is known."""


def _silent(text: str, *, done: bool = False) -> None:
    pass


class _Documents(msgspec.Struct, frozen=True):
    raw: bytes
    id: str
    manifest: bytes
    digest: str
    layers: tuple[Layer, ...]


async def export_image(
    context: Context, target: Target, added: Sequence[Added], names: Sequence[Reference] = (), manner: Manner = Manner(), *,  # noqa: B008
    report: Report = _silent, attach: Attach | None = None,
) -> Exported:  # fmt: skip
    """Make an image of the base and the layers that a build adds, bottom first, one for each step with a vertex; give it `names` (without a
    tag: `latest`).

    The caller keeps the base's layers and the snapshots from collection until this returns. Raises KnarrError, OSError.
    """
    return await _Export(context, target, added, manner, report).run(names, attach)


class _Export:
    def __init__(self, context: Context, target: Target, added: Sequence[Added], manner: Manner, report: Report) -> None:
        self._context = context
        self._images = context.images
        self._snapshots = context.snapshots
        self._target = target
        self._added = list(added)
        self._manner = manner
        self._report = report
        self._squashed: imagedocs.Squashed | None = None
        layers = sum(step.vertex is not None for step in target.steps)
        if layers != len(self._added):
            raise KnarrError(f"exporting an image: {len(self._added)} layers for {layers} steps that make one")

    async def run(self, names: Sequence[Reference], attach: Attach | None) -> Exported:
        created = [one.created for one in self._added]
        self._report("exporting layers")
        with self._images.pins() as pin:
            pin([one.snapshot.name for one in self._added])
            if self._manner.squash and len(self._added) > 1:
                await self._squash(created)
                pin([self._added[0].snapshot.name])
            rows = [one.snapshot for one in self._added]
            packs = await self._packed(rows)
            made = await self._blobs(rows, packs, pin)
            base = await self._base(pin)
            diff_ids = [*(layer.diff_id for layer in base), *(layer.diff_id for layer in made)]
            chains = chain_ids(diff_ids)
            pin(chains)
            self._report("exporting layers", done=True)
            documents = self._documents([*base, *made], diff_ids, chains, created)
            pin((documents.id, documents.digest, *(layer.digest for layer in documents.layers)))
            with shielded(_COMMIT_SECONDS):
                return await self._store(rows, packs, chains[len(base) :], documents, names, attach)
        raise KnarrError("storing the image: the disk did not take it in time")

    # -- layers

    async def _squash(self, created: Sequence[int]) -> None:
        rows = [one.snapshot for one in self._added]
        row = await squash.squash(self._snapshots, rows)
        self._added = [Added(row, max(created))]
        base = self._target.base.diff_ids if self._target.base is not None else ()
        below = f" to {chain_ids(base)[-1]}" if base else ""
        self._squashed = imagedocs.Squashed(f"merge {len(rows)} layers{below}")

    async def _packed(self, rows: Sequence[Snapshot]) -> list[tuple[str, int]]:
        """The digest and the bytes of each layer's archive."""
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

    async def _blobs(
        self, rows: Sequence[Snapshot], packs: Sequence[tuple[str, int]], pin: Callable[[Iterable[str]], object]
    ) -> list[Layer]:  # fmt: skip
        """The layers that the build adds: named by what they pack to, or as blobs in the content store."""
        manner = self._manner
        rewrite = manner.rewrite and manner.epoch is not None
        form = manner.form
        if form is None and rewrite:
            form = Form("gzip")
        if form is None:
            return [
                Layer(diff_id, size, imagedocs.layer_type("uncompressed", docker=manner.docker), diff_id, "") for diff_id, size in packs
            ]
        form = msgspec.structs.replace(form, epoch=manner.epoch if rewrite else None)
        made: list[Layer] = []
        for row in rows:
            layer = await self._images.layer_blobs.made(row, form)
            pin([layer.digest])
            made.append(msgspec.structs.replace(layer, media_type=form.media_type(manner.docker)))
        return made

    async def _base(self, pin: Callable[[Iterable[str]], object]) -> list[Layer]:
        """The base image's layers as they are stored here. Raises NotFound."""
        wanted = chain_ids(self._target.base.diff_ids) if self._target.base is not None else ()
        known: dict[str, Layer] = {}
        if wanted:
            for image in self._images.store:
                if image.chain_ids[: len(wanted)] == wanted:
                    known = {layer.chain_id: layer for layer in image.layers}
                    break
        layers: list[Layer] = []
        for chain in wanted:
            if (layer := known.get(chain) or self._from_snapshot(chain)) is None:
                raise NotFound(f"exporting an image: the base image's layer {chain} is not here", hint="pull it again")
            layers.append(layer)
        pin(layer.digest for layer in layers)
        form, docker = self._manner.form, self._manner.docker
        for place, layer in enumerate(layers):
            stored = imagedocs.form_of(layer.media_type)
            on_demand = form is not None and self._images.layer_blobs.source(layer.digest) is not None
            if form is not None and (on_demand or (self._manner.force and stored != form.kind)):
                layer = await self._images.layer_blobs.converted(layer, form, docker)
                pin([layer.digest])
            else:
                layer = msgspec.structs.replace(layer, media_type=imagedocs.layer_type(stored, docker=docker))
            layers[place] = layer
        return layers

    def _from_snapshot(self, chain: str) -> Layer | None:
        row = self._snapshots.get(chain)
        if row is None or not row.diff_id:
            return None
        return Layer(row.diff_id, row.packed, spec.MEDIA_LAYER, row.diff_id, chain)

    # -- documents

    def _documents(
        self, layers: Sequence[Layer], diff_ids: Sequence[str], chains: Sequence[str], created: Sequence[int]
    ) -> _Documents:  # fmt: skip
        manner = self._manner
        entries = imagedocs.history(self._target, created, manner.epoch, self._squashed)
        raw = imagedocs.config(self._target, diff_ids, entries, manner.extra)
        id = sha256(raw)
        manifest = imagedocs.manifest(raw, id, layers, docker=manner.docker, annotations=manner.annotations)
        placed = tuple(msgspec.structs.replace(layer, chain_id=chain) for layer, chain in zip(layers, chains, strict=True))
        return _Documents(raw, id, manifest, sha256(manifest), placed)

    # -- the store

    async def _store(
        self, rows: Sequence[Snapshot], packs: Sequence[tuple[str, int]], chains: Sequence[str], documents: _Documents,
        names: Sequence[Reference], attach: Attach | None,
    ) -> Exported:  # fmt: skip
        images = self._images
        self._report(f"writing image {documents.id}")
        former = images.store.get(documents.id)
        known = former is not None and self._serves(former, documents) and attach is None
        rewritten = self._manner.rewrite and self._manner.epoch is not None
        if not rewritten:
            await self._settled(rows, packs, chains)
        if known:
            assert former is not None
            image, index = former, None
        else:
            image = self._record(documents)
            await blocking("disk", self._write, documents)
            index = await self._index(documents, attach) if attach is not None else None
        tagged = [name.with_default_tag() for name in names]
        changes = not known or any(images.store.target(name) != image.manifest for name in tagged)
        images.register(image, tagged, index)
        if changes:
            await images.durable()
        else:
            self._context.durability.lazily()  # only the time of the tag is new
        self._report(f"writing image {documents.id}", done=True)
        for name in names:
            self._report(f"naming to {name}")
            images.emit("tag", image.id, name.familiar)
            self._report(f"naming to {name}", done=True)
        image = images.store.get(image.id) or image
        if index is not None:
            return Exported(image, index.digest, index.media_type, len(index.raw), known)
        return Exported(image, image.manifest, image.manifest_type or spec.MEDIA_MANIFEST, image.manifest_size, known)

    def _serves(self, former: ImageRecord, documents: _Documents) -> bool:
        """Whether an image that is here has what was asked for: the same manifest, or one with layers as some registry has them."""
        if former.manifest == documents.digest:
            return True
        manner = self._manner
        plain = manner.form is None and not manner.annotations and not manner.docker
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

    async def _index(self, documents: _Documents, attach: Attach) -> Index:
        image = spec.Descriptor(
            media_type=spec.DOCKER_MANIFEST if self._manner.docker else spec.MEDIA_MANIFEST, digest=documents.digest,
            size=len(documents.manifest), annotations=dict(self._manner.descriptor) or None, platform=self._target.platform,
        )  # fmt: skip
        beside = await attach(image)
        document = spec.Index(
            schema_version=2, media_type=spec.DOCKER_INDEX if self._manner.docker else spec.MEDIA_INDEX,
            manifests=(image, *(one.descriptor for one in beside)), annotations=dict(self._manner.index) or None,
        )  # fmt: skip
        raw = spec.encode(document)
        held = [digest for one in beside for digest in (one.descriptor.digest, *one.held)]
        await blocking("disk", self._images.content.put, raw)
        return Index.of(raw, held=held)

    async def _settled(self, rows: Sequence[Snapshot], packs: Sequence[tuple[str, int]], chains: Sequence[str]) -> None:
        """Files on the disk, and snapshots under the names of their chains."""
        snapshots = self._snapshots
        fresh = [row for row in rows if row.boot]
        if fresh:
            await blocking("disk", snapshots.sync_files, snapshots.folder(fresh[0]))
            snapshots.synced(fresh)
        parent = ""
        for row, (diff_id, size), chain in zip(rows, packs, chains, strict=True):
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
