"""Manifests as they are pushed: parse, check, say what they name. Pure. The bytes are the truth and are stored as they came.

Follows the OCI image specification 1.1 (manifest, index), Docker's image manifest schema 2, and for what is refused Docker's registry. What
kind of document it is, `engine.spec.manifest` decides for the whole program; artifacts that are no images are welcome here.
"""

from __future__ import annotations

import msgspec

from engine.errors import InvalidParameter
from engine.registry.server.errors import RegistryError
from engine.spec.digest import is_digest
from engine.spec.image import DOCKER_INDEX, DOCKER_MANIFEST, INDEXES, MANIFESTS
from engine.spec.manifest import kind

# Blobs or manifests that one document may name. The kernel's overlay takes 500 layers; each of them is a look-up for us.
DESCRIPTORS_MAX = 4096

# Layers that lie elsewhere by licence and need not be in the registry.
_FOREIGN = (
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
)


class Named(msgspec.Struct, frozen=True):
    """A blob or manifest that a document names."""

    media_type: str = msgspec.field(name="mediaType", default="")
    digest: str = ""
    size: int = -1
    urls: tuple[str, ...] | None = None


class _Any(msgspec.Struct, frozen=True):
    schema_version: int = msgspec.field(name="schemaVersion", default=0)
    media_type: str = msgspec.field(name="mediaType", default="")
    artifact_type: str = msgspec.field(name="artifactType", default="")
    config: Named | None = None
    layers: tuple[Named, ...] | None = None
    manifests: tuple[Named, ...] | None = None
    subject: Named | None = None
    annotations: dict[str, str] | None = None


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A manifest or index. `blobs` must be in the repository as blobs, `manifests` as manifests; `optional` may be missing."""

    media_type: str
    artifact_type: str
    subject: str
    annotations: dict[str, str] | None
    blobs: tuple[Named, ...] = ()
    manifests: tuple[Named, ...] = ()
    optional: tuple[Named, ...] = ()

    @property
    def refers(self) -> list[str]:
        """Every digest that it names but its subject."""
        return [named.digest for named in (*self.blobs, *self.manifests, *self.optional)]


_decode = msgspec.json.Decoder(_Any).decode


def _invalid(reason: str) -> RegistryError:
    return RegistryError("MANIFEST_INVALID", {"reason": reason}, message=f"manifest invalid: {reason}")


def parse(raw: bytes, content_type: str) -> Document:
    """Check a manifest that was pushed as `content_type` ("": what the document says, or looks like). Raises RegistryError."""
    try:
        media_type = kind(raw, content_type, "this push")
        found = _decode(raw)
    except InvalidParameter as error:
        raise _invalid(error.message)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise _invalid(f"it is no JSON of a manifest: {error}")
    if found.schema_version != 2:
        raise _invalid(f"schemaVersion is {found.schema_version}, only 2 is supported")
    if media_type not in INDEXES | MANIFESTS:
        raise _invalid(f"media type {media_type[:100]} is not supported")
    if media_type in (DOCKER_INDEX, DOCKER_MANIFEST) and not found.media_type:
        raise _invalid("Docker's manifests must have a mediaType")
    subject = _subject(found, media_type)
    if media_type in INDEXES:
        named = _checked(found.manifests or ())
        return Document(
            media_type=media_type, artifact_type=found.artifact_type, subject=subject, annotations=found.annotations, manifests=named
        )
    if found.config is None:
        raise _invalid("it has no config")
    layers = _checked((found.config, *(found.layers or ())))
    return Document(
        media_type=media_type,
        # image-spec, "Guidelines for Artifact Usage": where there is no artifactType the config's type tells what it is
        artifact_type=found.artifact_type or found.config.media_type,
        subject=subject,
        annotations=found.annotations,
        blobs=tuple(named for named in layers if not _foreign(named)),
        optional=tuple(named for named in layers if _foreign(named)),
    )


def _subject(found: _Any, media_type: str) -> str:
    if found.subject is None or media_type in (DOCKER_INDEX, DOCKER_MANIFEST):
        return ""
    if not is_digest(found.subject.digest):
        raise _invalid(f"the subject's digest {found.subject.digest[:150]!r} is invalid")
    return found.subject.digest


def _checked(named: tuple[Named, ...]) -> tuple[Named, ...]:
    if len(named) > DESCRIPTORS_MAX:
        raise _invalid(f"it names {len(named)} blobs or manifests, {DESCRIPTORS_MAX} at most are supported")
    for one in named:
        if not is_digest(one.digest):
            raise _invalid(f"digest {one.digest[:150]!r} is invalid")
        if one.size < -1:
            raise _invalid(f"the size of {one.digest} is negative")
    return named


def _foreign(named: Named) -> bool:
    return named.media_type in _FOREIGN and all(url.startswith(("http://", "https://")) for url in named.urls or ())


def checked_sizes(document: Document, blobs: dict[str, int], manifests: dict[str, int]) -> list[str]:
    """The digests that a repository with these blobs and manifests (digest -> bytes) lacks. Raises RegistryError for a wrong size.

    An index's entries must all be there, as Docker's registry wants it; one of an unknown type may be a blob.
    """
    missing = []
    for wanted, known in ((document.blobs, blobs), (document.manifests, manifests)):
        for named in wanted:
            size = known.get(named.digest, -1)
            if size < 0 and named.media_type not in INDEXES | MANIFESTS:
                size = blobs.get(named.digest, -1)
            if size < 0:
                missing.append(named.digest)
            elif named.size not in (-1, size):
                raise _invalid(f"{named.digest} has {size} bytes, not {named.size}")
    return missing
