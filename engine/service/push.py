"""Pushing: what is here under a name goes to its registry. Owns which manifests are sent, in what order, and what is told meanwhile.

Blobs first, then the manifests that name them, the tag last: a registry never shows an image that is not whole. Manifests and blobs are
sent as they came, nothing is packed again; layers that were built are packed at their first push. The work is a task of the engine's, ended
when its client goes.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing

import msgspec
import trio

from engine.aio.blocking import blocking
from engine.aio.locks import KeyedLocks
from engine.aio.scopes import shielded
from engine.errors import Damaged, InvalidParameter, KnarrError, NotFound
from engine.registry.client import Registries, Remote
from engine.registry.rate import Rate
from engine.service.images import Images
from engine.service.pull import Options
from engine.spec import image as spec
from engine.spec import manifest as manifests
from engine.spec.digest import short
from engine.spec.reference import Reference
from engine.store.images import ImageRecord, Index
from engine.wire import jsonstream

log = logging.getLogger("knarr.push")

_TICK = 0.1
_READ = 1 << 20
_LEAST = 16 << 10
_CLEANUP_SECONDS = 60.0
# Other repositories of the same registry that may have a layer: each costs a request when it has not.
_SOURCES = 2


class Part(msgspec.Struct, frozen=True):
    """One manifest to send, and the blobs that must be there before. `image` is None for what is no image (an attestation)."""

    descriptor: spec.Descriptor
    raw: bytes
    blobs: tuple[spec.Descriptor, ...]
    image: ImageRecord | None


class Plan(msgspec.Struct, frozen=True):
    """What a push sends: `parts` first, then `top` under the tag. `instead` is the index that is not whole here, "" when nothing is left
    out."""

    top: spec.Descriptor
    raw: bytes
    parts: tuple[Part, ...]
    instead: str = ""


class Layer:
    """One blob under way, as it is shown. `phase` is what dockerd calls it."""

    def __init__(self, id: str, size: int) -> None:
        self.id = id
        self.phase = "Preparing"
        self.done, self.total = 0, size

    @property
    def over(self) -> bool:
        """Whether the registry has it by what was done here."""
        return self.phase == "Pushed" or self.phase.startswith("Mounted")


class _Way:
    """Where the parts of one push go. `blobs` are held while they are sent: what several platforms share goes once."""

    def __init__(self, remote: Remote, name: Reference, layers: dict[str, Layer], rate: Rate) -> None:
        self.remote = remote
        self.name = name
        self.layers = layers
        self.rate = rate
        self.blobs = KeyedLocks()


class Pushes:
    """The pushes of one daemon. `uploads`: how many layers go at a time."""

    def __init__(self, images: Images, registries: Registries, nursery: trio.Nursery, *, uploads: int = 5) -> None:
        self._images = images
        self._registries = registries
        self._nursery = nursery
        self._uploads = trio.Semaphore(max(1, uploads))

    async def push(self, reference: Reference, options: Options) -> AsyncIterator[bytes]:
        """Push a name, or every tag of its repository; yields lines of Docker's progress stream. Close the generator when leaving early.

        Raises NotFound, Unauthorized, InvalidParameter, Damaged, KnarrError.
        """
        if reference.digest:
            raise InvalidParameter("cannot push a digest reference")
        yield jsonstream.status(f"The push refers to repository [{reference.name}]")
        here = [name for name in self._images.store.all_names() if name.name == reference.name and name.tag]
        if not here:
            raise NotFound(f"An image does not exist locally with the tag: {reference.familiar_name}")
        names = here if options.all_tags else [reference.with_default_tag()]
        if names[0] not in here:
            raise NotFound(f"tag does not exist: {names[0].familiar}")
        for name in names:
            with self._images.pins() as pin:
                plan = await self._plan(name, options.platform)
                async with aclosing(self._pinned(name, plan, options, pin)) as lines:
                    async for line in lines:
                        yield line

    async def push_built(
        self, name: Reference, images: Sequence[ImageRecord], index: Index | None, options: Options
    ) -> AsyncGenerator[bytes, None]:
        """Push an image that need not be named here, nor stored but for its documents and blobs: `index` with the `images` in it, or one
        image. A name without a tag: by its digest alone. The caller keeps it from collection. Close the generator when leaving early.

        Raises as `push`.
        """
        if index is not None:
            plan = await self._whole(index, images)
        elif await blocking("disk", self._has_layers, images[0]):
            part = await self._part(images[0].manifest, images[0])
            plan = Plan(part.descriptor, part.raw, (part,))
        else:
            plan = await self._alone(images[0])
        with self._images.pins() as pin:
            async with aclosing(self._pinned(name, plan, options, pin)) as lines:
                async for line in lines:
                    yield line

    async def _pinned(
        self, name: Reference, plan: Plan, options: Options, pin: Callable[[Iterable[str]], object]
    ) -> AsyncGenerator[bytes, None]:
        pin({blob.digest for part in plan.parts for blob in part.blobs})
        pin((plan.top.digest, *(part.descriptor.digest for part in plan.parts)))
        async with aclosing(self._one(name, plan, options)) as lines:
            async for line in lines:
                yield line

    async def _plan(self, name: Reference, platform: str) -> Plan:
        """What a name stands for, as far as it is here."""
        store = self._images.store
        image = self._images.get(str(name), platform)
        index = store.index(store.target(name))
        if index is None or platform:
            return await self._alone(image)
        members = {member.manifest: member for member in store.members(index.digest)}
        offered = [one for one in index.manifests if not manifests.is_attestation(one)]
        if any(one.digest not in members for one in offered):
            alone = await self._alone(image)
            return msgspec.structs.replace(alone, instead=index.digest)
        beside = [one for one in index.manifests if one.digest not in members]
        if any(one.digest not in index.held for one in beside):
            alone = await self._alone(image)
            return msgspec.structs.replace(alone, instead=index.digest)
        return await self._whole(index, members.values())

    async def _whole(self, index: Index, images: Iterable[ImageRecord]) -> Plan:
        members = {member.manifest: member for member in images}
        parts = [await self._part(one.digest, members.get(one.digest)) for one in index.manifests]
        top = spec.Descriptor(media_type=index.media_type, digest=index.digest, size=len(index.raw))
        return Plan(top, index.raw, tuple(parts))

    def _has_layers(self, image: ImageRecord) -> bool:
        return all(self._images.content.exists(layer.digest, layer.size) for layer in image.layers)

    async def _alone(self, image: ImageRecord) -> Plan:
        image = await self._images.layer_blobs.for_registry(image)
        part = await self._part(image.manifest, image)
        return Plan(part.descriptor, part.raw, (part,))

    async def _part(self, digest: str, image: ImageRecord | None) -> Part:
        raw = await blocking("disk", self._images.content.read, digest)
        document = manifests.parse(raw, "", digest)
        if isinstance(document, spec.Index):
            raise InvalidParameter(f"pushing {digest}: indexes in an index are not pushed")
        kind = document.media_type or spec.MEDIA_MANIFEST
        descriptor = spec.Descriptor(media_type=kind, digest=digest, size=len(raw))
        blobs = {one.digest: one for one in (*(document.layers or ()), document.config)}
        return Part(descriptor, raw, tuple(blobs.values()), image)

    # -- one name

    async def _one(self, name: Reference, plan: Plan, options: Options) -> AsyncGenerator[bytes, None]:
        layers = _shown(plan)
        failures: list[KnarrError] = []
        done = False
        ended = trio.Event()
        scope = trio.CancelScope()

        async def work() -> None:
            nonlocal done
            try:
                with scope:
                    try:
                        await self._send(name, plan, options, layers)
                        done = True
                    except KnarrError as error:
                        failures.append(error)
                    except OSError as error:
                        failures.append(KnarrError(f"pushing {name.familiar}: {error.strerror or error}"))
                    except Exception as error:  # a defect in one push must not end the daemon
                        log.exception("push of %s", name)
                        failures.append(KnarrError(f"pushing {name.familiar}: internal error: {error}"))
            finally:
                ended.set()

        told: dict[str, tuple[str, int]] = {}
        self._nursery.start_soon(work)
        try:
            while True:
                over = ended.is_set()
                for line in _lines(layers.values(), told):
                    yield line
                if over:
                    break
                with trio.move_on_after(_TICK):
                    await ended.wait()
        finally:
            scope.cancel()
            with shielded(_CLEANUP_SECONDS):
                await ended.wait()
        if failures:
            raise failures[0]
        if not done:
            raise KnarrError(f"pushing {name.familiar}: it was stopped")
        for line in _end(name, plan):
            yield line

    async def _send(self, name: Reference, plan: Plan, options: Options, layers: dict[str, Layer]) -> None:
        connect = functools.partial(self._registries.remote, name, options.credentials, push=True, insecure=options.insecure)
        if options.peer:
            connect = functools.partial(self._registries.peer, options.peer, name, push=True)
        async with connect() as remote:
            failures: list[Exception] = []
            way = _Way(remote, name, layers, Rate(options.limit_rate))

            async def one(part: Part) -> None:
                try:
                    await self._send_part(way, part, as_top=part.descriptor.digest == plan.top.digest)
                except (KnarrError, OSError) as error:
                    failures.append(error)
                    nursery.cancel_scope.cancel()

            async with trio.open_nursery() as nursery:
                for part in plan.parts:
                    nursery.start_soon(one, part)
            if failures:
                raise failures[0]
            await remote.put_manifest(name.tag or plan.top.digest, plan.top.media_type, plan.raw)
        image = plan.parts[0].image
        store = self._images.store
        if image is not None and not options.peer and name.tag and store.target(name) == plan.top.digest:
            index = store.index(plan.top.digest)
            default = image.id if index is None else self._images.get(str(name)).id
            store.tag(default, name.with_digest(plan.top.digest), index.digest if index else "")
            await self._images.durable()
        if image is not None:
            self._images.emit("push", image.id, name.familiar_name, name.familiar)

    async def _send_part(self, way: _Way, part: Part, *, as_top: bool) -> None:
        """The blobs of one manifest, and the manifest itself unless the tag will bring it. A registry that has it has its blobs."""
        if await way.remote.has_manifest(part.descriptor.digest):
            for blob in part.blobs:
                way.layers[blob.digest].phase = "Layer already exists"
            return
        failures: list[Exception] = []

        async def one(blob: spec.Descriptor) -> None:
            try:
                async with way.blobs.hold(blob.digest), self._uploads:
                    await self._send_blob(way, blob)
            except (KnarrError, OSError) as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for blob in part.blobs:
                nursery.start_soon(one, blob)
        if failures:
            raise failures[0]
        if not as_top:
            await way.remote.put_manifest(part.descriptor.digest, part.descriptor.media_type, part.raw)

    async def _send_blob(self, way: _Way, blob: spec.Descriptor) -> None:
        remote, layer = way.remote, way.layers[blob.digest]
        if await remote.has_blob(blob.digest):
            layer.phase = layer.phase if layer.over else "Layer already exists"
            return
        for source in self._sources(way.name, blob.digest):
            if await remote.mount(blob.digest, source.path):
                layer.phase = f"Mounted from {source.path}"
                return
        content = self._images.content
        if not await blocking("disk", content.exists, blob.digest, blob.size):
            raise Damaged(f"pushing {way.name.familiar}: blob {blob.digest} is not here", hint="pull or load the image again")
        layer.phase, layer.done = "Pushing", 0

        def progress(done: int) -> None:
            layer.done = done

        await remote.upload(blob, functools.partial(_bytes, content.path(blob.digest), way.rate), progress)
        layer.phase = "Pushed"

    def _sources(self, name: Reference, digest: str) -> list[Reference]:
        """Repositories of the same registry that should have a blob, by what names here say."""
        store = self._images.store
        found: dict[str, Reference] = {}
        for image in store:
            if digest in image.blobs:
                for other in store.names(image.id):
                    if other.domain == name.domain and other.path != name.path:
                        found.setdefault(other.path, other)
        return list(found.values())[:_SOURCES]


async def _bytes(path: str, rate: Rate, start: int) -> AsyncIterator[bytes]:
    """A blob's bytes from `start` on, not faster than `rate`."""
    size = max(_LEAST, min(_READ, rate.per_second // 10)) if rate.per_second else _READ
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while piece := await blocking("disk", os.pread, fd, size, start):
            await rate.take(len(piece))
            yield piece
            start += len(piece)
    finally:
        os.close(fd)


def _shown(plan: Plan) -> dict[str, Layer]:
    """What is shown of each blob, the top first: layers under the short identifier of what they unpack to, as in dockerd; a configuration
    is not."""
    shown: dict[str, Layer] = {}
    for part in plan.parts:
        diff_ids = dict(zip((one.digest for one in part.image.layers), part.image.diff_ids, strict=True)) if part.image else {}
        for blob in reversed(part.blobs):
            shown.setdefault(blob.digest, Layer(short(diff_ids[blob.digest]) if blob.digest in diff_ids else "", blob.size))
    return shown


def _lines(layers: Iterable[Layer], told: dict[str, tuple[str, int]]) -> list[bytes]:
    lines: list[bytes] = []
    for layer in layers:
        if not layer.id or told.get(layer.id) == (layer.phase, layer.done):
            continue
        if layer.id not in told and layer.phase != "Preparing":
            lines.append(jsonstream.status("Preparing", layer.id))
        told[layer.id] = layer.phase, layer.done
        if layer.phase == "Pushing":
            lines.append(jsonstream.progress("Pushing", layer.id, layer.done, layer.total))
        else:
            lines.append(jsonstream.status(layer.phase, layer.id))
    return lines


def _end(name: Reference, plan: Plan) -> list[bytes]:
    digest, size = plan.top.digest, plan.top.size
    lines = [
        jsonstream.status(f"{name.tag or digest}: digest: {digest} size: {size}"),
        jsonstream.aux({"Tag": name.tag, "Digest": digest, "Size": size}),
    ]
    if plan.instead:
        original, selected = {"digest": plan.instead}, {"digest": digest, "mediaType": plan.top.media_type, "size": size}
        lines.append(jsonstream.aux({"manifestPushedInsteadOfIndex": True, "originalIndex": original, "selectedManifest": selected}))
    return lines
