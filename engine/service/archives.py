"""Images from and into archives: `load`, `save`, `import`, images made of host programs, and images back after the database was lost.

Owns the order in which an archive becomes images: its bytes into the store, layers unpacked, documents, and in the end all records at
once, durable before anybody is told. Nothing of it is visible before, and what a failed load brought goes again. What is in an archive is
the business of `service.load`, its members that of `service.staging`, what is written into one that of `service.save`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec
import trio

from engine.aio.blocking import blocking
from engine.aio.scopes import shielded
from engine.errors import Conflict, Damaged, InvalidParameter, KnarrError, NotFound
from engine.service.images import Images
from engine.service.layers import Job, Layers, Wanted, explained
from engine.service.staging import Staging, pulling
from engine.service.unpack import Counted, bounded
from engine.spec import platform as platforms
from engine.spec import reference as references
from engine.spec.digest import chain_ids, sha256, short
from engine.spec.image import MEDIA_LAYER
from engine.spec.reference import Reference
from engine.store.images import ImageRecord, Layer
from engine.wire import compression, jsonstream

if TYPE_CHECKING:
    from engine.service.load import Contents, Found, Group, Part
    from engine.service.save import Archive
    from engine.spec.hostimage import HostImage

# Docker draws ten times a second; more often only costs.
_TICK = 0.1
_CLEANUP_SECONDS = 60.0

Pin = Callable[[Iterable[str]], object]


class _Task:
    """Work in the engine's nursery, so that a generator that tells of it may be left at any time."""

    def __init__(self, work: Callable[[], Awaitable[object]]) -> None:
        self._work = work
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.failure: Exception | None = None

    async def run(self) -> None:
        try:
            with self.scope:
                try:
                    await self._work()
                except Exception as error:  # handed on to whoever waits, below
                    self.failure = error
        finally:
            self.ended.set()


class Archives:
    """The archives of one daemon."""

    def __init__(self, images: Images, layers: Layers, nursery: trio.Nursery) -> None:
        self._images = images
        self.layers = layers
        self._nursery = nursery

    # -- load

    async def load(self, stream: AsyncIterator[bytes], quiet: bool = False, platform: Sequence[str] = ()) -> AsyncGenerator[bytes, None]:
        """Load a docker-archive or an OCI layout, plain or compressed; yields lines of Docker's progress stream.

        Every platform is taken, or those of `platform` alone. Close the generator (`aclosing`) when leaving early. Raises
        InvalidParameter, NotFound, Damaged, KnarrError.
        """
        from engine.service import load

        wanted = [platforms.parse(text, self._images.host) for text in platform]
        pins = self._images.pins()
        staging = self._staging(pins.add)
        brought: list[str] = []

        def reading() -> bytes | None:
            return None if quiet else jsonstream.progress("Reading archive", "archive", staging.taken, 0)

        try:
            with pins:
                async with aclosing(self._beside(lambda: staging.read(stream), reading)) as lines:
                    async for line in lines:
                        yield line
                contents = await blocking("layers", load.find, staging, wanted, self._images.host)
                if not contents.groups:
                    raise InvalidParameter("loading images: there is no image in the archive")
                for group in contents.groups:
                    self._complete(group, contents, pins.add)
                await self._keep(staging, contents, brought)
                for group in contents.groups:
                    async with aclosing(self._unpacked(group.images[0], quiet)) as lines:
                        async for line in lines:
                            yield line
                told = await self._commit(contents)
        except BaseException as error:
            await self._give_up(staging, brought)
            if isinstance(error, OSError):
                raise explained(error, "an image") from error
            raise
        await self._give_up(staging, [])
        for line in told:
            yield line
        for group in contents.groups:
            self._images.emit("load", _id(group.images[0]), _id(group.images[0]))

    def _staging(self, pin: Pin) -> Staging:
        images = self._images

        def known(digest: str) -> Layer | None:
            layer = self._known(digest)
            if layer is not None:
                pin([layer.digest])
            return layer

        return Staging(images.content, images.snapshots, images.limits, known)

    def _known(self, digest: str) -> Layer | None:
        """A layer with this digest, of its blob or of its content, whose blob is here."""
        for image in self._images.store:
            for layer in image.layers:
                if digest in (layer.digest, layer.diff_id) and self._images.content.exists(layer.digest, layer.size):
                    return layer
        return None

    async def _beside(self, work: Callable[[], Awaitable[object]], line: Callable[[], bytes | None]) -> AsyncGenerator[bytes, None]:
        """Do some work; yields what `line` says of it, now and then. Raises what the work does."""
        task = _Task(work)
        self._nursery.start_soon(task.run)
        try:
            while not task.ended.is_set():
                with trio.move_on_after(_TICK):
                    await task.ended.wait()
                if not task.ended.is_set() and (text := line()) is not None:
                    yield text  # and nothing for what is refused at once: its error still has a status of its own
        finally:
            task.scope.cancel()
            with trio.CancelScope(shield=True):
                await task.ended.wait()
        if task.failure is not None:
            raise task.failure

    def _complete(self, group: Group, contents: Contents, pin: Pin) -> None:
        """Find what the archive has not got among the layers that are here, and pin all of it. Raises NotFound."""
        for image in list(group.images):
            lacking = next((part for part in image.parts if part.staged is None and not self._found(part, pin)), None)
            if lacking is not None:
                if image is not group.images[0] and not contents.since:
                    group.images.remove(image)  # as a registry's index may name images that were never fetched
                    continue
                hint = f"it was saved with --since {contents.since}; load that first" if contents.since else ""
                raise NotFound(f"layer {lacking.digest} is neither in the archive nor here", hint=hint)
            self._adapt(group, image)
            pin(chain_ids(image.config.diff_ids))
            pin((sha256(image.raw), image.digest, *(part.digest for part in image.parts)))
        pin(staged.blob for staged in group.held)
        if group.index is not None:
            pin([group.index.digest])

    def _found(self, part: Part, pin: Pin) -> bool:
        layer = self._known(part.digest) or self._known(part.diff_id) or self._built(part.diff_id)
        if layer is None:
            return False
        pin([layer.digest])
        part.digest, part.size, part.media_type = layer.digest, layer.size, layer.media_type
        return True

    def _built(self, diff_id: str) -> Layer | None:
        row = self._images.layer_blobs.source(diff_id)
        return Layer(diff_id, row.packed, MEDIA_LAYER, diff_id, "") if row is not None else None

    def _adapt(self, group: Group, image: Found) -> None:
        """An image some of whose layers are here in another form than its manifest says gets a manifest of its own."""
        from engine.service.load import manifest_of
        from engine.spec import image as spec

        described = [spec.Descriptor(media_type=part.media_type, digest=part.digest, size=part.size) for part in image.parts]
        manifest = spec.decode_manifest(image.manifest)
        if [layer.digest for layer in manifest.layers or ()] == [layer.digest for layer in described]:
            return
        image.manifest = manifest_of(image.raw, described)
        image.digest = sha256(image.manifest)
        if group.index is None:
            return
        if image is group.images[0]:
            group.index, group.held, group.images = None, [], [image]
        elif image in group.images:
            group.images.remove(image)

    async def _keep(self, staging: Staging, contents: Contents, brought: list[str]) -> None:
        """All that was written to the disk, and blobs into the store. What was not there before is added to `brought`."""
        parts = [part.staged for group in contents.groups for image in group.images for part in image.parts]
        held = [staged for group in contents.groups for staged in group.held]

        def work() -> None:
            staging.sync()
            for staged in (*parts, *held):
                trio.from_thread.check_cancelled()
                if staged is not None and staging.keep(staged):
                    brought.append(staged.blob)

        await blocking("disk", work)

    async def _unpacked(self, image: Found, quiet: bool) -> AsyncGenerator[bytes, None]:
        """Make the layers of an image ready to run: name the folders of those that were unpacked on their way in, unpack the others."""
        snapshots = self._images.snapshots
        chains = chain_ids(image.config.diff_ids)
        wanted: list[Wanted] = []
        for place, (part, chain) in enumerate(zip(image.parts, chains, strict=True)):
            parent = chains[place - 1] if place else ""
            if snapshots.has(chain):
                continue
            staged = part.staged
            if staged is None or not staged.folder or staged.digest != part.diff_id or (staged.hides and not parent):
                if staged is None:
                    await self._images.layer_blobs.bring(part.digest)
                wanted.append(Wanted(part.digest, part.size, part.diff_id, chain, parent))
                continue
            async with aclosing(self._bring(wanted, quiet)) as lines:
                async for line in lines:
                    yield line
            wanted = []
            try:
                snapshots.commit(staged.folder, chain, parent, staged.unpacked.size, staged.unpacked.inodes, part.digest)
            except Conflict:
                continue  # somebody was faster; the folder goes with the staging
            staged.folder = ""
            if not quiet:
                yield jsonstream.progress("Loading layer", short(part.diff_id), part.size, part.size)
        async with aclosing(self._bring(wanted, quiet)) as lines:
            async for line in lines:
                yield line

    async def _bring(self, wanted: Sequence[Wanted], quiet: bool) -> AsyncGenerator[bytes, None]:
        """Unpack layers whose blobs are here, side by side."""
        jobs: list[Job] = []
        for layer in wanted:
            jobs.append(self.layers.job(layer, jobs[-1] if jobs and jobs[-1].wanted.chain == layer.parent else None, None))
        try:
            for job in jobs:
                while not job.ended.is_set():
                    with trio.move_on_after(_TICK):
                        await job.ended.wait()
                    if not quiet and job.done:
                        yield jsonstream.progress("Loading layer", short(job.wanted.diff_id), job.done, job.total)
                await job.reached(job.ended)
        finally:
            for job in jobs:
                self.layers.leave(job)
            with shielded(_CLEANUP_SECONDS):
                await self.layers.settled(jobs)

    async def _commit(self, contents: Contents) -> list[bytes]:
        """Documents, then every record with its names; durable. Returns the lines that tell of it. Raises KnarrError, OSError."""
        with shielded(_CLEANUP_SECONDS):
            return await self._committed(contents)
        raise KnarrError("storing images: the disk did not take them in time")

    async def _committed(self, contents: Contents) -> list[bytes]:
        images = self._images

        def store() -> None:
            for group in contents.groups:
                for image in group.images:
                    images.content.put(image.raw)
                    images.content.put(image.manifest)
                if group.index is not None:
                    images.content.put(group.index.raw, group.index.digest)

        await blocking("disk", store)
        lines: list[bytes] = []
        for group in contents.groups:
            lines += self._register(group)
        await images.durable()
        return lines

    def _register(self, group: Group) -> list[bytes]:
        for image in group.images[1:]:
            self._images.register(_record(image))
        first = _record(group.images[0])
        index = group.index
        if index is not None:
            index = msgspec.structs.replace(index, held=tuple(dict.fromkeys(staged.blob for staged in group.held)))
        lines: list[bytes] = []
        for name, old in self._images.register(first, group.names, index):
            shown = references.parse(name).familiar
            lines.append(jsonstream.stream(f"The image {shown} already exists, renaming the old one with ID {old} to empty string\n"))
        lines += [jsonstream.stream(f"Loaded image: {name.familiar}\n") for name in group.names]
        if not group.names:
            lines += [jsonstream.stream(f"Loaded image ID: {_id(image)}\n") for image in group.images]
        return lines

    async def _give_up(self, staging: Staging, brought: Sequence[str]) -> None:
        """Remove what was not taken, and of `brought` what nothing needs."""
        with shielded(_CLEANUP_SECONDS):
            await blocking("disk", staging.close)
            if brought:
                await self._images.release(brought)

    # -- images of a tar or of host programs

    async def import_(
        self, stream: AsyncIterator[bytes], repo: str = "", tag: str = "", message: str = "", changes: Sequence[str] = (),
        platform: str = "",
    ) -> AsyncGenerator[bytes, None]:  # fmt: skip
        """Make an image of one layer from a root file system's tar, plain or compressed; the last line's status is its identifier.

        The layer is kept as gzip, whatever it came as: half the disk of a plain tar, and taken by every registry. `changes` are Dockerfile
        instructions. Raises InvalidParameter, KnarrError.
        """
        from engine.service import fromtar

        names = _target(repo, tag)
        wanted = platforms.parse(platform, self._images.host) if platform else self._images.host
        defaults = fromtar.defaults(changes)

        async def content() -> compression.Source:
            packed = Counted(pulling(stream))
            return bounded(packed, (await blocking("layers", compression.decompressed, packed))[1], self._images.limits)

        def config(diff_id: str) -> bytes:
            return fromtar.config(defaults, diff_id, message or "Imported from -", wanted)  # dockerd's message

        image = await self._one_layer(content, config, names, "importing a root file system")
        yield jsonstream.status(image.id)

    async def from_host(self, wanted: HostImage) -> ImageRecord:
        """Make an image of host programs and what they need: equal files, equal identifier. Raises InvalidParameter, KnarrError."""
        from engine.service import fromhost

        names = _target(wanted.tag, "")
        closure, programs = await blocking("disk", fromhost.collect, wanted)

        async def content() -> compression.Source:
            pieces = fromhost.archive(closure)
            return lambda: next(pieces, b"")

        def config(diff_id: str) -> bytes:
            return fromhost.config(wanted, programs, diff_id, closure.architecture, self._images.host)

        return await self._one_layer(content, config, names, "making an image from this host")

    async def _one_layer(
        self, content: Callable[[], Awaitable[compression.Source]], config: Callable[[str], bytes], names: list[Reference], doing: str
    ) -> ImageRecord:  # fmt: skip
        from engine.service.load import Contents, one_layer
        from engine.wire.tar import TarError

        pins = self._images.pins()
        staging = self._staging(pins.add)
        brought: list[str] = []
        try:
            with pins:
                try:
                    staged = await blocking("layers", staging.packed, await staging.take(await content()))
                except (TarError, compression.CompressionError) as error:
                    raise InvalidParameter(f"{doing}: {error}") from error
                if not staged.size:
                    raise InvalidParameter(f"{doing}: the archive is empty")
                group = one_layer(config(staged.digest), staged, names)
                contents = Contents([group])
                self._complete(group, contents, pins.add)
                await self._keep(staging, contents, brought)
                async with aclosing(self._unpacked(group.images[0], True)) as lines:
                    async for _ in lines:
                        pass
                await self._commit(contents)
        except BaseException as error:
            await self._give_up(staging, brought)
            if isinstance(error, OSError):
                raise explained(error, "an image") from error
            raise
        await self._give_up(staging, [])
        id = _id(group.images[0])
        for name in names:
            self._images.emit("tag", id, name.familiar)
        self._images.emit("import", id, id)
        return self._images.get(id)

    # -- save

    def save(self, names: Sequence[str], platform: Sequence[str] = (), since: str = "") -> Archive:
        """What an archive of images will hold: nothing is read yet. Raises NotFound in Docker's words, InvalidParameter."""
        from engine.service.save import Archive, plan

        return Archive(self._images, plan(self._images, names, platform, since))

    # -- after a loss

    async def recover(self) -> list[str]:
        """After the database was lost: make records again of the images that the mirror names and whose blobs are here. Layers are
        unpacked when an image is first used. Returns what is lost."""
        from engine.service import recover

        images = self._images
        if not images.incomplete:
            return []
        try:
            entries = images.store.read_mirror()
        except Damaged as error:
            return [str(error)]
        missing = {id: entry for id, entry in entries.items() if images.store.get(id) is None}
        wanted = await blocking("disk", recover.lacking, images.content, missing)
        if wanted:
            folders = images.snapshots.leftovers()
            await blocking("disk", recover.bring_back, images.content, folders, wanted, trio.from_thread.check_cancelled)
        found, lost = await blocking("disk", recover.find, images.content, missing)
        for one in recover.in_order(found):
            images.register(one.image, one.names, one.index)
        if found:
            await images.durable()
        return lost


def _record(image: Found) -> ImageRecord:
    chains = chain_ids(image.config.diff_ids)
    layers = tuple(
        Layer(part.digest, part.size, part.media_type, part.diff_id, chain) for part, chain in zip(image.parts, chains, strict=True)
    )
    return ImageRecord(
        id=_id(image), manifest=image.digest, manifest_size=len(image.manifest), config=image.config, raw=image.raw, layers=layers, size=0,
        loaded=time.time_ns(),
    )  # fmt: skip


def _id(image: Found) -> str:
    return sha256(image.raw)


def _target(repository: str, tag: str) -> list[Reference]:
    """The name a new image gets: none for an empty repository. Raises InvalidParameter."""
    if not repository:
        return []
    reference = references.parse(repository)
    if reference.digest:
        raise InvalidParameter("cannot import digest reference")
    return [reference.with_tag(tag) if tag else reference.with_default_tag()]
