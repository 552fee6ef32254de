"""`save`: images into an archive that is an OCI layout and a docker-archive at once, streamed; the same images give the same bytes.

Owns what goes into an archive and in which order: documents, then each image's manifest, configuration and layers, a blob once however
many images have it. Blobs are sent as they are stored, so that digests stay; layers that were built are packed on their way. A blob is
checked while it is sent, and a damaged one ends the archive before its end, so that nobody takes it for whole. Writes no file and keeps
nothing in memory but the documents.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

import msgspec
import trio

from engine.aio.blocking import blocking
from engine.errors import Damaged, InvalidParameter, KnarrError, NotFound
from engine.http.errors import ClientGone
from engine.service.images import Images
from engine.spec import archive as documents
from engine.spec import image as spec
from engine.spec import manifest as manifests
from engine.spec import platform as platforms
from engine.spec import reference as references
from engine.spec.platform import Platform
from engine.spec.reference import Reference
from engine.store.images import ImageRecord, Index
from engine.wire import tar, tarwrite


class Blob(msgspec.Struct, frozen=True):
    """One blob of an archive; `size` in bytes, -1 when only the file tells."""

    digest: str
    size: int = -1


class Plan(msgspec.Struct):
    """What an archive holds. `images` are those that it is about, for events."""

    saved: list[documents.Saved]
    blobs: list[Blob]
    images: list[ImageRecord]
    since: str = ""


class Sink(Protocol):
    """Where an archive goes."""

    async def write(self, data: bytes) -> None:
        """Take bytes."""

    async def write_file(self, descriptor: int, offset: int, count: int) -> None:
        """Take `count` bytes of an open file."""


class _Chosen(msgspec.Struct):
    """What an archive has of one target: `default` is what readers of manifest.json get; `whole` all that is here of its index."""

    names: tuple[Reference, ...]
    default: ImageRecord
    members: list[ImageRecord]
    index: Index | None
    whole: bool = True


def plan(images: Images, names: Sequence[str], platform: Sequence[str] = (), since: str = "") -> Plan:
    """What to save. A repository without a tag means all its tags, as in Docker. Raises NotFound, InvalidParameter."""
    if not names:
        raise InvalidParameter("saving images: no image was named")
    wanted = [platforms.parse(text, images.host) for text in platform]
    chosen: list[_Chosen] = []
    for name in names:
        for one in _chosen(images, name, wanted):
            same = next((other for other in chosen if _key(other) == _key(one)), None)
            if same is None:
                chosen.append(one)
            else:
                same.names += tuple(name for name in one.names if name not in same.names)
    return _planned(chosen, _layers_of(images, since) if since else set(), since)


def plan_of(names: Sequence[Reference], default: ImageRecord, members: Sequence[ImageRecord], index: Index | None) -> Plan:
    """What to save of images that are here whatever they are called: `names` are what the archive calls them, and nobody is told."""
    plan = _planned([_Chosen(tuple(names), default, list(members), index)], set(), "")
    plan.images = []
    return plan


def _planned(chosen: Sequence[_Chosen], without: set[str], since: str) -> Plan:
    blobs: dict[str, Blob] = {}
    saved: list[documents.Saved] = []
    for one in chosen:
        for blob in _blobs(one, without):
            blobs.setdefault(blob.digest, blob)
        target = _descriptor(one)
        layers = tuple(layer.digest for layer in one.default.layers)
        saved.append(documents.Saved(names=one.names, target=target, config=one.default.id, layers=layers))
    return Plan(saved, list(blobs.values()), [one.default for one in chosen], since)


def _key(one: _Chosen) -> tuple[str, ...]:
    return (one.index.digest if one.index is not None else "", one.default.id, *(member.id for member in one.members))


def _chosen(images: Images, asked: str, wanted: Sequence[Platform]) -> list[_Chosen]:
    """What one argument stands for. Raises NotFound in Docker's words."""
    names = _tags(images, asked)
    if not names:
        return [_target(images, asked, wanted)]
    return [_target(images, name.familiar, wanted) for name in names]


def _tags(images: Images, asked: str) -> list[Reference]:
    """All tags of a repository that was named without one."""
    try:
        reference = references.parse(asked)
    except InvalidParameter:
        return []
    if reference.tag or reference.digest:
        return []
    return [name for name in images.store.all_names() if name.name == reference.name and not name.digest]


def _target(images: Images, asked: str, wanted: Sequence[Platform]) -> _Chosen:
    try:
        image, reference = images.find(asked)
    except NotFound as error:
        raise NotFound(f"No such image: {asked}") from error
    index = images.store.index(images.store.target(reference)) if reference is not None else None
    members = images.variants(reference) if reference is not None and index is not None else [image]
    names = (reference,) if reference is not None and not reference.digest else ()
    if not members:  # of an index within the index
        index, members = None, [image]
    if not wanted:
        return _Chosen(names, image, members, index)
    picked = [_picked(members, one, asked) for one in wanted]
    members = [member for member in members if member in picked]
    default = image if image in members else members[0]
    # One manifest alone needs no index, and readers that know nothing of platforms find it.
    return _Chosen(names, default, members, index if len(members) > 1 else None, whole=False)


def _picked(members: list[ImageRecord], wanted: Platform, asked: str) -> ImageRecord:
    best = platforms.best([member.config.platform for member in members], wanted)
    if best is None:
        has = ", ".join(sorted(str(member.config.platform) for member in members))
        raise NotFound(
            f"image with reference {asked} was found but does not provide the specified platform ({wanted})", hint=f"it has: {has}"
        )
    return members[best]


def _layers_of(images: Images, since: str) -> set[str]:
    """The digests of layers that an image has on any platform, of blobs and of contents."""
    members = _target(images, since, ()).members
    return {digest for member in members for layer in member.layers for digest in (layer.digest, layer.diff_id)}


def _blobs(one: _Chosen, without: set[str]) -> Iterable[Blob]:
    if one.index is not None:
        yield Blob(one.index.digest, len(one.index.raw))
    for member in one.members:
        yield Blob(member.manifest, member.manifest_size)
        yield Blob(member.id, len(member.raw))
        for layer in member.layers:
            if layer.digest not in without and layer.diff_id not in without:
                yield Blob(layer.digest, layer.size)
    if one.index is not None and one.whole:
        yield from (Blob(digest) for digest in sorted(one.index.held))


def _descriptor(one: _Chosen) -> spec.Descriptor:
    """What index.json says: the whole index though not all of it may be here, so that its digest stays (as containerd does)."""
    if one.index is not None:
        return spec.Descriptor(media_type=one.index.media_type, digest=one.index.digest, size=len(one.index.raw))
    (member,) = one.members
    return spec.Descriptor(digest=member.manifest, size=member.manifest_size)


class Archive:
    """One archive. Enter it as a context manager, which keeps everything in it from collection; `check`, then `write`."""

    def __init__(self, images: Images, plan: Plan) -> None:
        self._images = images
        self._plan = plan
        self._pins = images.pins()
        self._documents: dict[str, bytes] = {}
        self._made: dict[str, int] = {}  # layers that can be made, with their bytes

    def __enter__(self) -> Archive:
        pin = self._pins.__enter__()
        pin(blob.digest for blob in self._plan.blobs)
        return self

    def __exit__(self, *_: object) -> None:
        self._pins.__exit__()

    async def check(self) -> None:
        """Before the first byte: that every blob is here, and of its length, or can be made. Raises Damaged."""
        self._made = self._images.layer_blobs.sources()
        await blocking("disk", self._check)

    def _check(self) -> None:
        content = self._images.content
        self._plan.blobs = [Blob(blob.digest, self._size(blob)) for blob in self._plan.blobs]
        saved: list[documents.Saved] = []
        for one in self._plan.saved:
            target = _with_media_type(one.target, content.read(one.target.digest))
            saved.append(msgspec.structs.replace(one, target=target))
        self._documents = documents.documents(saved, self._plan.since)

    def _size(self, blob: Blob) -> int:
        content = self._images.content
        if not content.exists(blob.digest, blob.size):
            if self._made.get(blob.digest) == blob.size:
                return blob.size
            raise Damaged(f"saving images: blob {blob.digest} is not here", hint="pull or load the image again")
        return content.size(blob.digest)

    async def write(self, sink: Sink) -> None:
        """Send all of it. Raises Damaged, OSError, and what the sink raises."""
        before = b"".join(_member(name, data) for name, data in self._documents.items())
        before += b"".join(_folder(name) for name in ("blobs", "blobs/sha256"))
        for blob in self._plan.blobs:
            await sink.write(before + _header(documents.path(blob.digest), blob.size))
            await self._send(blob, sink)
            before = tarwrite.padding(blob.size)
        await sink.write(before + tarwrite.END)
        for image in self._plan.images:
            self._images.emit("save", image.id, image.id)

    async def _send(self, blob: Blob, sink: Sink) -> None:
        """One blob, read for its digest beside being sent: the pages are the same."""
        content = self._images.content
        if not await blocking("disk", content.exists, blob.digest):
            await self._images.layer_blobs.send(blob.digest, sink.write)
            return
        failures: list[Exception] = []

        async def check() -> None:
            if not await blocking("hashing", content.verify, blob.digest):
                raise Damaged(f"saving images: blob {blob.digest} is damaged", hint="pull or load the image again")

        async def run(step: Callable[[], Awaitable[None]]) -> None:
            try:
                await step()
            except (KnarrError, OSError, ClientGone) as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

        with await blocking("disk", content.open, blob.digest) as file:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, check)
                nursery.start_soon(run, lambda: sink.write_file(file.fileno(), 0, blob.size))
        if failures:
            raise failures[0]


def _with_media_type(target: spec.Descriptor, raw: bytes) -> spec.Descriptor:
    """A descriptor with what the document says of itself; OCI's documents need not."""
    if target.media_type:
        return target
    document = manifests.parse(raw, "", target.digest)
    return msgspec.structs.replace(target, media_type=document.media_type or spec.MEDIA_MANIFEST)


def _entry(name: str, kind: bytes, mode: int) -> tar.Entry:
    entry = tar.Entry(name.encode(), kind)
    entry.mode = mode
    return entry


def _folder(name: str) -> bytes:
    return tarwrite.header(_entry(f"{name}/", tar.DIRECTORY, 0o755))


def _header(name: str, size: int) -> bytes:
    entry = _entry(name, tar.REGULAR, 0o644)
    entry.size = size
    return tarwrite.header(entry)


def _member(name: str, data: bytes) -> bytes:
    return _header(name, len(data)) + data + tarwrite.padding(len(data))
