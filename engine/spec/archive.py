"""The documents of an image archive: what `save` writes beside blobs and `load` reads. Pure.

An archive is an OCI layout (OCI image-layout.md 1.1: oci-layout, index.json, blobs) and a docker-archive at once (manifest.json and the
older `repositories`), as dockerd writes it since version 25.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from engine.spec import image as spec
from engine.spec.reference import Reference

INDEX, MANIFEST, LAYOUT, REPOSITORIES = "index.json", "manifest.json", "oci-layout", "repositories"
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'

# The archive was saved without the layers that this image has: what it must be loaded on.
ANNOTATION_SINCE = "io.knarr.archive.since"
# Layers are in the archive as the manifests name them, compressed or not. dockerd's classic store writes manifests of its own making, for
# layers that it has not got as they came.
ANNOTATION_LAYERS = "io.knarr.archive.layers"
AS_STORED = "as-stored"


class DockerManifest(msgspec.Struct, frozen=True, rename="pascal"):
    """An element of manifest.json: paths in the archive, and names in Docker's familiar form."""

    config: str
    repo_tags: tuple[str, ...] | None = None
    layers: tuple[str, ...] | None = None


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """An image of an archive. `target` is what its names stand for; `config` and `layers` (digests) are of the one image of it that
    readers of manifest.json get."""

    names: tuple[Reference, ...]
    target: spec.Descriptor
    config: str
    layers: tuple[str, ...]


decode_docker = msgspec.json.Decoder(list[DockerManifest]).decode


def path(digest: str) -> str:
    """Where a blob lies."""
    return f"blobs/{digest.replace(':', '/', 1)}"


def keeps_layers(raw: bytes) -> bool:
    """Whether an index.json says that layers are as they were stored; False for what is no index."""
    try:
        return (spec.decode_index(raw).annotations or {}).get(ANNOTATION_LAYERS) == AS_STORED
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


def documents(images: Sequence[Saved], since: str = "") -> dict[str, bytes]:
    """Every document by its path, in the order of an archive."""
    found = {LAYOUT: _LAYOUT, INDEX: _index(images, since), MANIFEST: _manifest(images)}
    if repositories := _repositories(images):
        found[REPOSITORIES] = spec.encode(repositories)
    return found


def _index(images: Iterable[Saved], since: str) -> bytes:
    manifests: list[spec.Descriptor] = []
    for image in images:
        tags = [name for name in image.names if not name.digest]
        manifests += [_named(image.target, name) for name in tags] or [image.target]
    annotations = {ANNOTATION_LAYERS: AS_STORED, **({ANNOTATION_SINCE: since} if since else {})}
    return spec.encode(spec.Index(schema_version=2, media_type=spec.MEDIA_INDEX, manifests=tuple(manifests), annotations=annotations))


def _named(target: spec.Descriptor, name: Reference) -> spec.Descriptor:
    named = {spec.ANNOTATION_IMAGE_NAME: str(name), spec.ANNOTATION_REF_NAME: name.tag}
    return msgspec.structs.replace(target, annotations={**(target.annotations or {}), **named})


def _manifest(images: Iterable[Saved]) -> bytes:
    """One element for each configuration, as dockerd does: names that stand for one image are together."""
    elements: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for image in images:
        names = elements.setdefault((image.config, image.layers), [])
        names += [name.familiar for name in image.names if not name.digest and name.familiar not in names]
    return spec.encode([
        DockerManifest(path(config), tuple(names) or None, tuple(path(layer) for layer in layers))
        for (config, layers), names in elements.items()
    ])  # fmt: skip


def _repositories(images: Iterable[Saved]) -> dict[str, dict[str, str]]:
    """Repository -> tag -> the topmost layer, for clients older than manifest.json (Docker 1.10)."""
    found: dict[str, dict[str, str]] = {}
    for image in images:
        for name in image.names:
            if not name.digest and image.layers:
                found.setdefault(name.familiar_name, {})[name.tag] = image.layers[-1].partition(":")[2]
    return found
