"""What the bytes of a manifest are, and whether they are what was asked for. Pure.

Follows the image specification's manifest.md and image-index.md, and its advice on documents that could be read as two things.
"""

from __future__ import annotations

import hashlib
import hmac

import msgspec

from engine.errors import Damaged, InvalidParameter, KnarrError
from engine.spec import image
from engine.spec.digest import is_digest
from engine.spec.image import Descriptor
from engine.spec.reference import Reference

_SCHEMA1 = ("application/vnd.docker.distribution.manifest.v1+json", "application/vnd.docker.distribution.manifest.v1+prettyjws")
UNSPECIFIC = ("", "application/json", "application/octet-stream", "text/plain", "text/json")  # Content-Types that say nothing


_ABSENT = msgspec.Raw()


class _Shape(msgspec.Struct, frozen=True, rename="camel"):
    """As much of a manifest as tells what it is."""

    schema_version: int = 0
    media_type: str = ""
    artifact_type: str = ""
    config: msgspec.Raw = _ABSENT
    layers: msgspec.Raw = _ABSENT
    manifests: msgspec.Raw = _ABSENT
    fs_layers: msgspec.Raw = _ABSENT


def digest_like(raw: bytes, like: str) -> str:
    """The digest of bytes, with the algorithm of the digest `like`, else sha256."""
    algorithm = like.partition(":")[0] if is_digest(like) else "sha256"
    return f"{algorithm}:{hashlib.new(algorithm, raw).hexdigest()}"


def check(raw: bytes, digest: str, what: str) -> None:
    """Raise Damaged when the bytes of `what` are not those of `digest`."""
    if not hmac.compare_digest(digest_like(raw, digest), digest):
        raise Damaged(
            f"{what}: manifest verification failed for digest {digest}" if "manifest" in what else f"{what}: not the bytes of {digest}"
        )


def refuse_schema1(media_type: str, reference: Reference) -> None:
    """Raise InvalidParameter for the media types of Docker's signed manifests."""
    if media_type in _SCHEMA1:
        raise InvalidParameter(
            f"{reference.familiar} has an image manifest of version 2, schema 1, which is not supported",
            hint="push the image again with a Docker of this decade",
        )


def _there(value: msgspec.Raw) -> bool:
    return bytes(value) not in (b"", b"null")


def kind_of(raw: bytes, told: str, reference: Reference) -> str:
    """What a manifest is, by its header and by itself. Raises InvalidParameter when the two differ or it could be read as two things:
    then what one program checks is not what another one runs (CVE-2021-41190)."""
    try:
        shape = msgspec.json.decode(raw, type=_Shape)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidParameter(f"the manifest of {reference.familiar} is not one: {error}")
    if shape.schema_version == 1 or _there(shape.fs_layers):
        refuse_schema1(_SCHEMA1[0], reference)
    refuse_schema1(told, reference)
    if _there(shape.manifests) and (_there(shape.layers) or _there(shape.config)):
        raise InvalidParameter(f"the manifest of {reference.familiar} is both an index and a manifest")
    own = shape.media_type
    if told not in UNSPECIFIC and own and own != told:
        raise InvalidParameter(f"the manifest of {reference.familiar} was sent as {told} and says that it is {own}")
    kind = own or (told if told not in UNSPECIFIC else "")
    if not kind:
        kind = image.MEDIA_INDEX if _there(shape.manifests) else image.MEDIA_MANIFEST
    if (kind in image.INDEXES and not _there(shape.manifests) and _there(shape.layers)) or (
        kind in image.MANIFESTS and _there(shape.manifests)
    ):
        raise InvalidParameter(f"the manifest of {reference.familiar} is not of its media type {kind}")
    return kind


def index(raw: bytes, what: str) -> list[Descriptor]:
    """The members of an index. Raises KnarrError when it is none."""
    try:
        return list(image.decode_index(raw).manifests or ())
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise KnarrError(f"reading {what}: not an index: {error}")
