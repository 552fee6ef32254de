"""What a manifest or an index from outside may be: checked once, before anything that it names is fetched. Pure.

Follows OCI image specification 1.1 (manifest.md, image-index.md) and Docker's image manifest schema 2. The document is hostile: it is
bounded, it must be one thing only (CVE-2021-41190: bytes that are a manifest and an index at once), and nothing is fetched from URLs in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from engine.errors import InvalidParameter, NotFound
from engine.spec import image as spec
from engine.spec import platform as platforms
from engine.spec.digest import is_digest
from engine.spec.platform import Platform

# distribution-spec, "Pushing Manifests": registries should take 4 MiB, and nobody sends more.
MANIFEST_MAX = 4 << 20
# A configuration holds labels and history; the largest seen are some hundred kB. containerd's limit for documents is 8 MiB.
CONFIG_MAX = 8 << 20
NESTING_MAX = 4
# As many layers as an overlay can be mounted with.
LAYERS_MAX = 128
_ENTRIES_MAX = 1000
# What image specification 1.1 registers (descriptor.md, "Registered algorithms"), as far as blobs are kept by it.
_ALGORITHMS = frozenset({"sha256", "sha512"})
_LAYER_MAX = 1 << 42

_LAYERS = frozenset(
    {spec.DOCKER_LAYER, "application/vnd.docker.image.rootfs.diff.tar"}
    | {spec.MEDIA_LAYER + suffix for suffix in ("", "+gzip", "+zstd")}
    | {"application/vnd.docker.image.rootfs.diff.tar.zstd"}
)
_FOREIGN = ("application/vnd.docker.image.rootfs.foreign.", "application/vnd.oci.image.layer.nondistributable.")
_CONFIGS = frozenset({spec.MEDIA_CONFIG, spec.DOCKER_CONFIG, "application/octet-stream", ""})
_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1"
# RFC 6838, "Naming Requirements": 127 characters on each side.
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")
# Content types that say nothing.
UNSPECIFIC = frozenset({"", "application/json", "application/octet-stream", "text/plain", "text/json"})


class _Shape(msgspec.Struct, frozen=True, rename="camel"):
    """Which of the members that tell a manifest from an index are there."""

    schema_version: int = 0
    media_type: str = ""
    manifests: msgspec.Raw = msgspec.Raw()
    config: msgspec.Raw = msgspec.Raw()
    layers: msgspec.Raw = msgspec.Raw()
    fs_layers: msgspec.Raw = msgspec.Raw()


_shape = msgspec.json.Decoder(_Shape).decode


def refuse_schema1(media_type: str, what: str) -> None:
    """Raise InvalidParameter for the media types of Docker's signed manifests, whose digest leaves the signature out."""
    if media_type.startswith(_SCHEMA1):
        raise InvalidParameter(
            f"{what} has an image manifest of version 2, schema 1, which is not supported",
            hint="have the image pushed again by a newer client",
        )


def _there(value: msgspec.Raw) -> bool:
    return bytes(value) not in (b"", b"null")


def kind(raw: bytes, told: str, what: str) -> str:
    """The media type of the document `what` (for messages), by the content type `told` with it ("" for none) and by itself.

    Raises InvalidParameter when the two differ or when it could be read as two things: then what one program checks is not what another
    one runs.
    """
    told = told.partition(";")[0].strip().lower()
    try:
        shape = _shape(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidParameter(f"the manifest of {what} is not one: {error}") from error
    for claimed in (told, shape.media_type, _SCHEMA1 if shape.schema_version == 1 or _there(shape.fs_layers) else ""):
        refuse_schema1(claimed, what)
    is_index = _there(shape.manifests)
    if is_index and (_there(shape.config) or _there(shape.layers)):
        raise InvalidParameter(f"the manifest of {what} is both an index and a manifest")
    own = shape.media_type
    if told not in UNSPECIFIC and own and own != told:
        raise InvalidParameter(f"the manifest of {what} was sent as {told[:100]!r} and says that it is {own[:100]!r}")
    if own and _MEDIA_TYPE.fullmatch(own) is None:
        raise InvalidParameter(f"the manifest of {what} has the malformed media type {own[:100]!r}")
    found = own or (told if told not in UNSPECIFIC else "") or (spec.MEDIA_INDEX if is_index else spec.MEDIA_MANIFEST)
    if (found in spec.INDEXES and not is_index) or (found in spec.MANIFESTS and is_index):
        raise InvalidParameter(f"the manifest of {what} is not of its media type {found}")
    return found


def parse(raw: bytes, media_type: str, what: str) -> spec.Manifest | spec.Index:
    """The document `what` (for messages) that came with the content type `media_type` ("" when unknown). Raises InvalidParameter."""
    if len(raw) > MANIFEST_MAX:
        raise InvalidParameter(f"{what}: a manifest of {len(raw)} bytes, at most {MANIFEST_MAX} are allowed")
    kind(raw, media_type, what)
    try:
        shape = _shape(raw)
        if shape.schema_version != 2:
            raise InvalidParameter(f"{what}: the manifest has the schema version {shape.schema_version}, only 2 is supported")
        return _index(spec.decode_index(raw), what) if _there(shape.manifests) else _manifest(spec.decode_manifest(raw), what)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidParameter(f"the manifest of {what} is malformed: {error}") from error


def _index(index: spec.Index, what: str) -> spec.Index:
    if len(index.manifests or ()) > _ENTRIES_MAX:
        raise InvalidParameter(f"{what}: the index has more than {_ENTRIES_MAX} entries")
    for one in index.manifests or ():
        _descriptor(one, MANIFEST_MAX, what)
    return index


def _manifest(manifest: spec.Manifest, what: str) -> spec.Manifest:
    layers = manifest.layers or ()
    if len(layers) > LAYERS_MAX:
        raise InvalidParameter(f"{what}: {len(layers)} layers are more than the {LAYERS_MAX} that can be mounted")
    _descriptor(manifest.config, CONFIG_MAX, what)
    for layer in layers:
        _descriptor(layer, _LAYER_MAX, what)
    return manifest


def _descriptor(one: spec.Descriptor, most: int, what: str) -> None:
    if not is_digest(one.digest) or one.digest.partition(":")[0] not in _ALGORITHMS:
        raise InvalidParameter(f"{what}: {one.digest[:100]!r} is no digest")
    if not 0 <= one.size <= most:
        raise InvalidParameter(f"{what}: {one.digest} has a size of {one.size} bytes, at most {most} are allowed")


def image(manifest: spec.Manifest, what: str) -> spec.Manifest:
    """The same, when it is an image that can be run: layers of known kinds, none of them elsewhere. Raises InvalidParameter."""
    if manifest.config.media_type not in _CONFIGS:
        kind = manifest.artifact_type or manifest.config.media_type
        raise InvalidParameter(f"{what} is no image but {kind[:100]!r}")
    for layer in manifest.layers or ():
        if layer.media_type.startswith(_FOREIGN) or layer.urls:
            raise InvalidParameter(f"{what}: layer {layer.digest} is kept at foreign URLs, which are not fetched")
        if layer.media_type and layer.media_type not in _LAYERS:
            raise InvalidParameter(f"{what}: layer {layer.digest} has the unknown media type {layer.media_type[:100]!r}")
    return manifest


def config(raw: bytes, manifest: spec.Manifest, what: str) -> spec.ImageConfig:
    """The image's configuration, which must have one diff_id for each layer. Raises InvalidParameter."""
    try:
        decoded = spec.decode_config(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidParameter(f"{what}: the image's configuration is malformed: {error}") from error
    layers = manifest.layers or ()
    if len(decoded.diff_ids) != len(layers):
        raise InvalidParameter(f"{what}: {len(layers)} layers, but the configuration has {len(decoded.diff_ids)} diff_ids")
    for diff_id in decoded.diff_ids:
        if not is_digest(diff_id) or not diff_id.startswith("sha256:"):
            raise InvalidParameter(f"{what}: {diff_id[:100]!r} is no diff_id")
    return decoded


def choose(index: spec.Index, wanted: Platform, what: str) -> spec.Descriptor:
    """The entry for the platform `wanted`. Raises NotFound in Docker's words, with what there is."""
    offered = [one for one in index.manifests or () if not is_attestation(one)]
    best = platforms.best((one.platform if one.media_type not in spec.INDEXES else None for one in offered), wanted)
    if best is not None:
        return offered[best]
    has = ", ".join(sorted(set(shown(offered)))) or "none"
    raise NotFound(
        f"no matching manifest for {wanted} in the manifest list entries of {what}", hint=f"it has: {has}; choose one with --platform"
    )


def is_attestation(descriptor: spec.Descriptor) -> bool:
    """BuildKit puts provenance beside images, for a platform `unknown/unknown`."""
    return descriptor.platform is not None and descriptor.platform.os == "unknown"


def shown(descriptors: Iterable[spec.Descriptor]) -> list[str]:
    """The platforms of an index's entries as text."""
    return [str(one.platform) for one in descriptors if one.platform is not None]
