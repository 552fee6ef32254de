"""This daemon's images as repositories, for another Knarr daemon that pulls from or pushes to its API socket (`/v2/` there).

A repository is named by the full name of an image, `docker.io/library/busybox`. What is pushed becomes an image when a tag comes; until
then its blobs are kept under a lease. Deleting is the Engine API's business. Speaks no HTTP: `registry.server` does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from engine.aio.blocking import blocking
from engine.errors import InvalidParameter, KnarrError
from engine.registry.server.documents import Document
from engine.registry.server.errors import RegistryError
from engine.service.context import Context
from engine.service.images import Images
from engine.service.pull import layers_of
from engine.spec import image as spec
from engine.spec import manifest as manifests
from engine.spec import platform as platforms
from engine.spec import reference as references
from engine.spec.reference import Reference
from engine.store.images import ImageRecord, Index
from engine.store.repositories import StoredManifest

_REPOSITORIES_MAX = 1000  # that are being pushed to and have got no tag yet
_ARRIVING_MAX = 10_000  # blobs and manifests of one of them: an index of many platforms has some hundred


class _Incoming:
    """What was pushed to one repository and has no tag yet: blobs and manifests with their sizes in bytes."""

    def __init__(self) -> None:
        self.blobs: dict[str, int] = {}
        self.manifests: dict[str, StoredManifest] = {}


class ImageRepositories:
    """A `registry.server.backend.Backend` over the images of one daemon."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._images: Images = context.images
        self._incoming: dict[str, _Incoming] = {}

    # -- what there is

    def valid_name(self, name: str) -> bool:
        """Whether `name` is an image's full name without tag and digest."""
        try:
            found = references.parse(name)
        except KnarrError:
            return False
        return found.name == name and not found.tag and not found.digest

    def names(self, last: str, limit: int) -> list[str]:
        """See Backend."""
        return sorted({name.name for name in self._images.store.all_names() if name.name > last})[: None if limit < 0 else limit]

    def exists(self, name: str) -> bool:
        """See Backend."""
        return bool(self._names(name)) or name in self._incoming

    def tags(self, name: str, last: str, limit: int) -> list[str]:
        """See Backend."""
        found = sorted((one.tag for one in self._names(name) if one.tag), key=lambda tag: (tag.lower(), tag))
        start = next((n + 1 for n, tag in enumerate(found) if tag == last), 0) if last else 0
        return found[start : start + limit if limit >= 0 else None]

    def tag(self, name: str, tag: str) -> str:
        """See Backend. An index of which not every image is here is shown as the one image that the name stands for here."""
        store = self._images.store
        reference = references.parse(name).with_tag(tag)
        index = store.index(store.target(reference))
        image = store.named(reference)
        if index is not None and image is not None and not self._whole(index):
            return image.manifest
        return store.target(reference)

    def manifest(self, name: str, digest: str) -> StoredManifest | None:
        """See Backend."""
        incoming = self._incoming.get(name)
        if incoming is not None and digest in incoming.manifests:
            return incoming.manifests[digest]
        store = self._images.store
        for target in {store.target(one) for one in self._names(name)}:
            index = store.index(target)
            if index is not None and digest == index.digest:
                return StoredManifest(digest=digest, media_type=index.media_type, size=len(index.raw))
            for image in store.members(target):
                if image.manifest == digest:
                    return StoredManifest(digest=digest, media_type=_kind(image), size=image.manifest_size)
            if index is not None and digest in index.held:
                found = next((one for one in index.manifests if one.digest == digest), None)
                if found is not None:
                    return StoredManifest(digest=digest, media_type=found.media_type or spec.MEDIA_MANIFEST, size=found.size)
        return None

    def blob_size(self, name: str, digest: str) -> int | None:
        """See Backend."""
        return self.sizes(name, [digest])[0].get(digest)

    def sizes(self, name: str, digests: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
        """See Backend."""
        incoming = self._incoming.get(name, _Incoming())
        known = dict(incoming.blobs)
        store = self._images.store
        for target in {store.target(one) for one in self._names(name)}:
            for image in store.members(target):
                known[image.id] = len(image.raw)
                known.update((layer.digest, layer.size) for layer in image.layers)
            index = store.index(target)
            for digest in index.held if index is not None else ():
                if digest in digests:
                    known[digest] = self._images.content.size(digest)
        found = {digest: stored.size for digest in digests if (stored := self.manifest(name, digest)) is not None}
        return {digest: known[digest] for digest in digests if digest in known}, found

    def holders(self, digest: str) -> list[str]:
        """See Backend."""
        store = self._images.store
        return sorted({name.name for image in store if digest in image.blobs for name in store.names(image.id)})

    def referrers(self, name: str, subject: str, last: str, limit: int, artifact_type: str) -> list[StoredManifest]:
        """See Backend. Images here have none."""
        return []

    @contextmanager
    def holding(self, *digests: str) -> Iterator[None]:
        """See Backend."""
        with self._images.pins() as pin:
            pin(digests)
            yield

    def _names(self, name: str) -> list[Reference]:
        return [one for one in self._images.store.all_names() if one.name == name]

    def _whole(self, index: Index) -> bool:
        here = {image.manifest for image in self._images.store.members(index.digest)} | set(index.held)
        return all(one.digest in here for one in index.manifests)

    async def bring(self, name: str, digest: str) -> bool:
        """See Backend: a layer that was built here."""
        return self.blob_size(name, digest) is not None and await self._images.layer_blobs.bring(digest)

    # -- what comes

    async def link(self, name: str, digest: str, size: int) -> None:
        """See Backend."""
        incoming = self._arriving(name)
        incoming.blobs[digest] = size
        self._images.leases.add(_holder(name), [digest])
        await self._context.durability.reached()

    async def unlink(self, name: str, digest: str) -> bool:
        """See Backend. Not here."""
        raise RegistryError("UNSUPPORTED", message="images are deleted by the Engine API")

    async def delete_manifest(self, name: str, digest: str) -> bool:
        """See Backend. Not here."""
        raise RegistryError("UNSUPPORTED", message="images are deleted by the Engine API")

    async def untag(self, name: str, tag: str) -> bool:
        """See Backend. Not here."""
        raise RegistryError("UNSUPPORTED", message="images are deleted by the Engine API")

    async def put_manifest(self, name: str, digest: str, size: int, document: Document, tags: Sequence[str]) -> None:
        """See Backend. With a tag it becomes an image, unpacked and ready to run, before this returns."""
        incoming = self._arriving(name)
        incoming.manifests[digest] = StoredManifest(digest=digest, media_type=document.media_type, size=size)
        self._images.leases.add(_holder(name), [digest])
        if not tags:
            await self._context.durability.reached()
            return
        try:
            used = await self._become_image(references.parse(name), digest, tags)
        except InvalidParameter as error:
            raise RegistryError("MANIFEST_INVALID", message=str(error)) from error
        self._arrived(name, incoming, {digest, *used})

    def _arrived(self, name: str, incoming: _Incoming, used: set[str]) -> None:
        """What became an image is no longer under way. The rest may be another client's push to the same repository."""
        for digest in used:
            incoming.blobs.pop(digest, None)
            incoming.manifests.pop(digest, None)
        if not incoming.blobs and not incoming.manifests and self._incoming.get(name) is incoming:
            del self._incoming[name]
            self._images.leases.release(_holder(name))

    async def _become_image(self, name: Reference, digest: str, tags: Sequence[str]) -> set[str]:
        """The blobs and manifests that it took."""
        raw = await self._read(digest)
        found = manifests.parse(raw, "", digest)
        names = [*(name.with_tag(tag) for tag in tags), name.with_digest(digest)]
        if isinstance(found, spec.Manifest):
            image = await self._image(digest, raw, found)
            await self._context.pulls.unpack(image)
            self._images.register(image, names)
            used = {*image.blobs}
        else:
            images, held = await self._of_index(found)
            if not images:
                raise InvalidParameter(f"{name.familiar}: no image of the index came with it")
            best = platforms.best([image.config.platform for image in images], self._images.host)
            if best is not None:
                await self._context.pulls.unpack(images[best])
            index = Index.of(raw, found.media_type, held)
            used = {*held}.union(*(image.blobs for image in images))
            with self._images.pins() as pin:
                for image in images:
                    pin((*image.blobs, *image.chain_ids))
                for image in images[:-1]:
                    self._images.register(image)
                self._images.register(images[-1], names, index)
        await self._images.durable()
        for one in names[:-1]:
            image_of = self._images.store.named(one)
            if image_of is not None:
                self._images.emit("pull", image_of.id, one.familiar_name, one.familiar)
        return used

    async def _of_index(self, index: spec.Index) -> tuple[list[ImageRecord], list[str]]:
        """The images of an index that are here, and every other blob of it that is."""
        images: list[ImageRecord] = []
        held: list[str] = []
        for one in index.manifests or ():
            if not self._images.content.exists(one.digest):
                continue
            raw = await self._read(one.digest)
            found = manifests.parse(raw, one.media_type, one.digest)
            if isinstance(found, spec.Index):
                raise InvalidParameter(f"{one.digest}: indexes in an index are not taken")
            if manifests.is_attestation(one):
                held += [one.digest, found.config.digest, *(layer.digest for layer in found.layers or ())]
            else:
                images.append(await self._image(one.digest, raw, found))
        return images, held

    async def _image(self, digest: str, raw: bytes, manifest: spec.Manifest) -> ImageRecord:
        manifests.image(manifest, digest)
        config_raw = await self._read(manifest.config.digest)
        config = manifests.config(config_raw, manifest, digest)
        return ImageRecord(
            id=manifest.config.digest, manifest=digest, manifest_size=len(raw), config=config, raw=config_raw,
            layers=tuple(layers_of(manifest, config)), size=0, loaded=time.time_ns(), manifest_type=manifest.media_type,
        )  # fmt: skip

    async def _read(self, digest: str) -> bytes:
        return await blocking("disk", self._images.content.read, digest, manifests.CONFIG_MAX)

    def _arriving(self, name: str) -> _Incoming:
        if name not in self._incoming and len(self._incoming) >= _REPOSITORIES_MAX:
            leased = self._images.leases.holders()
            for abandoned in [one for one in self._incoming if leased.get(_holder(one), 0) <= time.time()]:
                del self._incoming[abandoned]
            if len(self._incoming) >= _REPOSITORIES_MAX:
                raise RegistryError("TOOMANYREQUESTS", message="too many pushes without a tag")
        incoming = self._incoming.setdefault(name, _Incoming())
        if len(incoming.blobs) + len(incoming.manifests) >= _ARRIVING_MAX:
            raise RegistryError("TOOMANYREQUESTS", message=f"too many blobs without a tag were pushed to {name}")
        return incoming


def _holder(name: str) -> str:
    return f"push of a peer {name}"


def _kind(image: ImageRecord) -> str:
    """The media type of an image's manifest; where it is not known by those of its layers: the two families are not mixed."""
    if image.manifest_type:
        return image.manifest_type
    docker = image.layers and image.layers[0].media_type.startswith("application/vnd.docker.")
    return spec.DOCKER_MANIFEST if docker else spec.MEDIA_MANIFEST
