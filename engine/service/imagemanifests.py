"""What a name stands for, manifest by manifest: the images of its index that are here, those that are not, attestations. Changes nothing.

Follows the Engine API reference, "ImageManifestSummary"; attestations as BuildKit stores them (attestation-storage.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from engine.aio.blocking import blocking
from engine.errors import KnarrError
from engine.service.images import Images
from engine.spec import image as spec
from engine.spec import manifest as manifests
from engine.spec.platform import Platform
from engine.spec.reference import Reference
from engine.store.content import Content
from engine.store.images import ImageRecord, Index

_TYPE, _DIGEST, _ATTESTATION = "vnd.docker.reference.type", "vnd.docker.reference.digest", "attestation-manifest"


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One manifest. `kind` is image, attestation or unknown; `available`: all of it is here.

    `content` are the bytes of blobs that are here, `unpacked` those of files; `platform` is an image's, `attests` the digest of the
    manifest that an attestation is for.
    """

    descriptor: spec.Descriptor
    kind: str
    available: bool = False
    content: int = 0
    unpacked: int = 0
    platform: Platform | None = None
    containers: tuple[str, ...] = ()
    attests: str = ""


def target_of(images: Images, image: ImageRecord, reference: Reference | None = None) -> spec.Descriptor:
    """What `reference` stands for, the first name of the image without it; a manifest's media type is left out, see `described`."""
    index = _index_of(images, image, reference)
    if index is not None:
        return spec.Descriptor(media_type=index.media_type, digest=index.digest, size=len(index.raw))
    return spec.Descriptor(digest=image.manifest, size=image.manifest_size)


async def described(images: Images, targets: Sequence[spec.Descriptor]) -> list[spec.Descriptor]:
    """Descriptors with their media types: a document says its own, and one that says none is OCI's."""

    def read() -> list[spec.Descriptor]:
        return [one if one.media_type else msgspec.structs.replace(one, media_type=_media_type(images.content, one)) for one in targets]

    return await blocking("disk", read)


def _media_type(content: Content, target: spec.Descriptor) -> str:
    try:
        document = manifests.parse(content.read(target.digest, manifests.MANIFEST_MAX), "", target.digest)
    except KnarrError:  # gone or damaged: what is left is to say what it was taken for
        return spec.MEDIA_MANIFEST
    return document.media_type or spec.MEDIA_MANIFEST


async def summaries(images: Images, image: ImageRecord, reference: Reference | None = None) -> list[Summary]:
    """Every manifest of what `reference` stands for (the first name of the image without it), in the index's order."""
    index = _index_of(images, image, reference)
    if index is None:
        (descriptor,) = await described(images, [target_of(images, image, reference)])
        return [_image(images, descriptor, image)]
    found: list[Summary] = []
    held = set(index.held)
    for descriptor in index.manifests:
        member = images.store.by_manifest(descriptor.digest)
        if member is not None:
            found.append(_image(images, descriptor, member))
            continue
        notes = descriptor.annotations or {}
        if notes.get(_TYPE) == _ATTESTATION or manifests.is_attestation(descriptor):
            here, size = await blocking("disk", _held, images.content, descriptor, held)
            found.append(Summary(descriptor=descriptor, kind="attestation", available=here, content=size, attests=notes.get(_DIGEST, "")))
        elif descriptor.platform is not None and descriptor.media_type not in spec.INDEXES:
            found.append(Summary(descriptor=descriptor, kind="image", platform=descriptor.platform))
        else:
            found.append(Summary(descriptor=descriptor, kind="unknown", available=descriptor.digest in held))
    return found


def _index_of(images: Images, image: ImageRecord, reference: Reference | None) -> Index | None:
    names: Iterable[Reference] = images.store.names(image.id)[:1] if reference is None else [reference]
    return next((index for name in names if (index := images.store.index(images.store.target(name))) is not None), None)


def _image(images: Images, descriptor: spec.Descriptor, image: ImageRecord) -> Summary:
    content = image.manifest_size + len(image.raw) + sum({layer.digest: layer.size for layer in image.layers}.values())
    return Summary(
        descriptor=descriptor, kind="image", available=True, content=content, unpacked=sum(images.layer_sizes(image)),
        platform=image.config.platform, containers=tuple(sorted(user.id for user in images.users(image))),
    )  # fmt: skip


def _held(content: Content, descriptor: spec.Descriptor, held: set[str]) -> tuple[bool, int]:
    """Whether an attestation is here, and the bytes of it that are. Blocks."""
    if descriptor.digest not in held or not content.exists(descriptor.digest, descriptor.size):
        return False, 0
    try:
        document = manifests.parse(content.read(descriptor.digest, manifests.MANIFEST_MAX), descriptor.media_type, descriptor.digest)
    except KnarrError:
        return False, 0
    blobs = (document.config, *(document.layers or ())) if isinstance(document, spec.Manifest) else ()
    here = [one.size for one in blobs if one.digest in held and content.exists(one.digest)]
    return len(here) == len(blobs), descriptor.size + sum(here)
