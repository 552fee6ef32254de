"""Pulling: a name to an image that can be run. Owns which manifest is meant, what is kept while layers come, and when it counts.

Nothing of an image is visible before all of it is durable. What came of one that was cut off is kept for a day under a lease, and gone on
with by the next pull of that name. Layers are the business of `service.layers`, bytes that of `service.fetch`.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

import msgspec
import trio

from engine.aio.blocking import blocking
from engine.aio.scopes import shielded
from engine.errors import DiskFull, Forbidden, InvalidParameter, KnarrError, NotFound
from engine.registry.auth import Credentials
from engine.registry.client import Registries, Remote
from engine.registry.rate import Rate
from engine.service.fetch import Connect, Fetcher
from engine.service.images import Images
from engine.service.layers import Fetch, GivenUp, Job, Layers, Wanted
from engine.service.pullprogress import Shown
from engine.spec import image as spec
from engine.spec import manifest as manifests
from engine.spec import platform as platforms
from engine.spec.digest import chain_ids, is_digest
from engine.spec.platform import Platform
from engine.spec.reference import Reference
from engine.store.images import ImageRecord, Index, Layer
from engine.wire import jsonstream

# Docker draws ten times a second; more often only costs.
_TICK = 0.1
_COMMIT_SECONDS = 60.0
# How often layers are begun again because others who worked on them gave up or failed; each time takes somebody else's leaving.
_ROUNDS = 20


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How to pull. `platform` as `os/arch[/variant]`, "" for this host's; `limit_rate` in bytes per second, 0 for no limit of its own;
    `peer` is the address of another Knarr daemon to pull from, `unix:///path`; `insecure` takes the registry for one of
    --insecure-registry."""

    platform: str = ""
    credentials: Credentials | None = None
    all_tags: bool = False
    limit_rate: int = 0
    peer: str = ""
    insecure: bool = False


class Found(msgspec.Struct):
    """What a name stands for: the image's manifest for one platform, and the index that has it, where it is one. `known`: the name stood
    for the same before."""

    descriptor: spec.Descriptor
    raw: bytes
    manifest: spec.Manifest
    index: Index | None
    known: bool = False

    @property
    def target(self) -> str:
        """The digest that the name stands for."""
        return self.index.digest if self.index is not None else self.descriptor.digest


class Pulls:
    """The pulls of one daemon. `attempts` as dockerd's --max-download-attempts."""

    def __init__(self, images: Images, registries: Registries, layers: Layers, *, attempts: int = 5) -> None:
        self._images = images
        self._registries = registries
        self._layers = layers
        self._attempts = attempts

    async def pull(self, reference: Reference, options: Options) -> AsyncIterator[bytes]:
        """Pull an image, or every tag of a repository; yields lines of Docker's progress stream. Close the generator when leaving early.

        Raises NotFound, Forbidden, Unauthorized, InvalidParameter, Damaged, KnarrError.
        """
        if reference.familiar_name == "scratch":  # the base of images that have none
            raise Forbidden("'scratch' is a reserved name")
        rate = Rate(options.limit_rate) if options.limit_rate else None
        if not options.all_tags:
            async with aclosing(self._one(reference.with_default_tag(), options, rate)) as lines:
                async for line in lines:
                    yield line
            return
        async with self._connect(reference, options, rate)() as remote:
            tags = [tag async for tag in remote.tags()]
        if not tags:
            raise NotFound(f"manifest for {reference.familiar_name} not found: it has no tags")
        newer = False
        for tag in tags:
            async with aclosing(self._one(reference.with_tag(tag), options, rate, summary=False)) as lines:
                async for line in lines:
                    newer = newer or b"Pull complete" in line
                    yield line
        verdict = "Downloaded newer image" if newer else "Image is up to date"
        yield jsonstream.status(f"Status: {verdict} for {reference.familiar_name}")

    async def unpack(self, image: ImageRecord) -> None:
        """Make the layers of an image that is here ready to run: one of another platform, or one that lost some. Raises KnarrError."""
        wanted = _wanted(image.layers)
        with self._images.pins() as pin:
            pin(image.chain_ids)
            pin(layer.digest for layer in image.layers)
            await self._bring(wanted)
            current = self._images.store.get(image.id)
            if current is not None:
                self._images.register(current)
                await self._images.durable()

    def _connect(self, reference: Reference, options: Options, rate: Rate | None) -> Connect:
        registries = self._registries
        if options.peer:
            return functools.partial(registries.peer, options.peer, reference, rate=rate)
        return functools.partial(registries.remote, reference, options.credentials, rate=rate)

    async def _one(
        self, reference: Reference, options: Options, rate: Rate | None, *, summary: bool = True
    ) -> AsyncGenerator[bytes, None]:  # fmt: skip
        connect = self._connect(reference, options, rate)
        wanted = platforms.parse(options.platform, self._images.host) if options.platform else self._images.host
        async with connect() as remote:  # to the end, so that connections and tokens serve for the layers too
            found = await self._find(remote, reference, wanted)
            config_raw = await self._document(remote, found.manifest.config)
            config = manifests.config(config_raw, found.manifest, reference.familiar)
            if options.platform and platforms.rank(config.platform, wanted) < 0 and config.architecture:
                raise NotFound(
                    f"image with reference {reference.familiar} was found but does not match the specified platform: wanted {wanted}, "
                    f"actual: {config.platform}"
                )
            yield _pulling(reference)
            image = ImageRecord(
                id=found.manifest.config.digest, manifest=found.descriptor.digest, manifest_size=len(found.raw), config=config,
                raw=config_raw, layers=tuple(layers_of(found.manifest, config)), size=0, loaded=time.time_ns(),
                manifest_type=found.descriptor.media_type,
            )  # fmt: skip
            async with aclosing(self._stored(reference, found, image, connect)) as lines:
                async for line in lines:
                    yield line
        yield jsonstream.status(f"Digest: {found.target}")
        if summary:
            verdict = "Image is up to date" if found.known else "Downloaded newer image"
            yield jsonstream.status(f"Status: {verdict} for {reference.familiar}")

    async def _stored(self, reference: Reference, found: Found, image: ImageRecord, connect: Connect) -> AsyncGenerator[bytes, None]:
        """Layers, documents, the record with its names. What came stays under a lease until then; after a refusal there is none."""
        images, holder = self._images, f"pull {reference}"
        needed = [*image.blobs, *image.chain_ids, found.target]
        try:
            # The lease is for what comes after this work, and another pull of the same name may end it; the pins are for the work itself.
            with images.pins() as pin:
                pin(needed)
                images.leases.add(holder, needed)
                known = images.store.get(image.id) is not None  # dockerd says nothing of the layers then
                async with aclosing(self._layers_of(image.layers, connect, found.manifest, known)) as lines:
                    async for line in lines:
                        yield line
                with shielded(_COMMIT_SECONDS) as scope:
                    await self._commit(reference, found, image, holder)
                if scope.cancelled_caught:
                    raise KnarrError(f"storing {reference.familiar}: the disk needed more than {_COMMIT_SECONDS:.0f} s")
        except (InvalidParameter, NotFound, DiskFull):
            # Another try would end the same way, and a full disk needs the room.
            images.leases.release(holder)
            with shielded(_COMMIT_SECONDS):
                for layer in image.layers:
                    await self._layers.abandon(layer.digest, images.blobs_in_use)
                await images.collect()
            raise

    # -- what is meant

    async def _find(self, remote: Remote, reference: Reference, wanted: Platform) -> Found:
        """The manifest that a name stands for. An index that is here already is not fetched again."""
        asked_for = reference.digest or reference.tag
        descriptor = spec.Descriptor(digest=asked_for) if is_digest(asked_for) else await remote.resolve(asked_for)
        raw, media_type = await self._manifest(remote, descriptor.digest, descriptor.media_type)
        index: Index | None = None
        for _ in range(manifests.NESTING_MAX):
            document = manifests.parse(raw, media_type, reference.familiar)
            if isinstance(document, spec.Manifest):
                manifests.image(document, reference.familiar)
                found = spec.Descriptor(media_type=document.media_type or media_type, digest=descriptor.digest, size=len(raw))
                return Found(found, raw, document, index)
            index = index or Index.of(raw, document.media_type or media_type)
            descriptor = manifests.choose(document, wanted, reference.familiar)
            raw, media_type = await self._manifest(remote, descriptor.digest, descriptor.media_type)
            if descriptor.size and len(raw) != descriptor.size:
                raise InvalidParameter(f"{reference.familiar}: manifest {descriptor.digest} has {len(raw)} bytes, not {descriptor.size}")
        raise InvalidParameter(f"{reference.familiar}: indexes are nested too deeply")

    async def _manifest(self, remote: Remote, digest: str, media_type: str) -> tuple[bytes, str]:
        here = await self._here(digest, manifests.MANIFEST_MAX)
        if here is not None:
            return here, media_type if media_type not in spec.INDEXES | spec.MANIFESTS else ""
        descriptor, raw = await remote.manifest(digest)
        return raw, descriptor.media_type

    async def _document(self, remote: Remote, descriptor: spec.Descriptor) -> bytes:
        here = await self._here(descriptor.digest, manifests.CONFIG_MAX)
        return here if here is not None else await remote.document(descriptor, manifests.CONFIG_MAX)

    async def _here(self, digest: str, limit: int) -> bytes | None:
        def read() -> bytes | None:
            content = self._images.content
            return content.read(digest, limit) if content.exists(digest) else None

        try:
            return await blocking("disk", read)
        except KnarrError:
            return None  # damaged: it was set aside, and comes from the registry

    # -- layers

    async def _layers_of(
        self, layers: Sequence[Layer], connect: Connect, manifest: spec.Manifest, known: bool
    ) -> AsyncGenerator[bytes, None]:  # fmt: skip
        wanted = _wanted(layers)
        fetchers: list[Fetch | None] = [Fetcher(connect, descriptor, self._attempts) for descriptor in manifest.layers or ()]
        here = await blocking("disk", self._are_here, layers)
        progress = Shown([layer.digest for layer in layers], here)
        silent = all(here) and known
        for rounds in itertools.count(1):
            jobs: list[Job] = []
            try:
                self._join(jobs, wanted, fetchers)
                while True:
                    waiting = next((job for job in jobs if not job.ended.is_set()), None)
                    failed = next((place for place, job in enumerate(jobs) if job.trouble is not None), None)
                    over = failed is not None or waiting is None
                    for line in progress.finish(jobs) if over and failed is None else progress.lines(jobs):
                        if not silent:
                            yield line
                    if waiting is None or over:
                        break
                    with trio.move_on_after(_TICK):
                        await waiting.ended.wait()
            finally:
                for job in jobs:
                    self._layers.leave(job)
            with shielded(_COMMIT_SECONDS):
                await self._layers.settled(jobs)
            if failed is None:
                return
            trouble = jobs[failed].trouble
            assert trouble is not None
            # What somebody else's pull has come to grief with may work from where this one would fetch it.
            not_ours = jobs[failed].fetch is not fetchers[failed] and not isinstance(trouble, InvalidParameter)
            if rounds == _ROUNDS or not (not_ours or isinstance(trouble, GivenUp)):
                raise trouble

    def _are_here(self, layers: Sequence[Layer]) -> list[bool]:
        """In a worker thread: of each layer, whether nothing needs to be done."""
        content = self._images.content
        unpacked = trio.from_thread.run_sync(lambda: [self._images.snapshots.has(one.chain_id) for one in layers])
        return [there and content.exists(one.digest, one.size) for one, there in zip(layers, unpacked, strict=True)]

    async def _bring(self, wanted: Sequence[Wanted]) -> None:
        """Unpack blobs that are here."""
        for rounds in itertools.count(1):
            jobs: list[Job] = []
            try:
                self._join(jobs, wanted, [None] * len(wanted))
                for job in jobs:
                    await job.reached(job.ended)
                return
            except GivenUp:
                if rounds == _ROUNDS:
                    raise
            finally:
                for job in jobs:
                    self._layers.leave(job)

    def _join(self, jobs: list[Job], wanted: Sequence[Wanted], fetchers: Sequence[Fetch | None]) -> None:
        """Append the jobs of all layers, bottom first."""
        for layer, fetch in zip(wanted, fetchers, strict=True):
            jobs.append(self._layers.job(layer, jobs[-1] if jobs else None, fetch))

    # -- the end

    async def _commit(self, reference: Reference, found: Found, image: ImageRecord, holder: str) -> None:
        """Documents, then the record with its names, then the lease is over."""
        images = self._images

        def store() -> None:
            images.content.put(image.raw, image.id)
            images.content.put(found.raw, found.descriptor.digest)
            if found.index is not None:
                images.content.put(found.index.raw, found.index.digest)

        await blocking("disk", store)
        names = [] if reference.digest else [reference]
        names.append(reference.with_digest(found.target))
        members = {member.id for member in images.store.members(found.target)}
        found.known = images.store.target(names[0]) == found.target and image.id in members
        images.register(image, names, found.index)
        await images.durable()
        images.leases.release(holder)
        images.emit("pull", image.id, reference.familiar_name, reference.familiar)


def _pulling(reference: Reference) -> bytes:
    """The first line, in dockerd's form: the repository without its registry."""
    return jsonstream.title(f"Pulling from {reference.path}", reference.familiar if reference.digest else reference.tag)


def layers_of(manifest: spec.Manifest, config: spec.ImageConfig) -> list[Layer]:
    """The layers of an image as they are stored, bottom first."""
    chains = chain_ids(config.diff_ids)
    return [
        Layer(one.digest, one.size, one.media_type or spec.MEDIA_LAYER + "+gzip", diff_id, chain)
        for one, diff_id, chain in zip(manifest.layers or (), config.diff_ids, chains, strict=True)
    ]


def _wanted(layers: Sequence[Layer]) -> list[Wanted]:
    below = ["", *(layer.chain_id for layer in layers)]
    return [
        Wanted(layer.digest, layer.size, layer.diff_id, layer.chain_id, parent) for layer, parent in zip(layers, below, strict=False)
    ]  # fmt: skip
