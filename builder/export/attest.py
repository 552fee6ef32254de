"""Attestations of an image: in-toto statements, and the manifest that carries them in the image's index. Pure.

Follows BuildKit's attestation-storage.md and the in-toto attestation framework 0.1. What a statement says is the business of `provenance`
and `sbom`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from builder.export.provenance import Settings, image_purl, settings
from engine.errors import InvalidParameter, NotImplementedYet
from engine.spec.build import Options
from engine.spec.digest import sha256
from engine.spec.image import MEDIA_CONFIG, MEDIA_MANIFEST, Descriptor, Manifest
from engine.spec.platform import Platform
from engine.spec.reference import Reference

STATEMENT_TYPE = "https://in-toto.io/Statement/v0.1"
STATEMENT_MEDIA = "application/vnd.in-toto+json"
PREDICATE_ANNOTATION = "in-toto.io/predicate-type"
TYPE_ANNOTATION = "vnd.docker.reference.type"
DIGEST_ANNOTATION = "vnd.docker.reference.digest"
MANIFEST_TYPE = "attestation-manifest"
UNKNOWN = Platform(os="unknown", architecture="unknown")

_FALSE, _TRUE = ("0", "false"), ("1", "true")

Json = dict[str, Any]


class Wanted(msgspec.Struct, frozen=True):
    """What `Options.attest` asks for; None for what it does not."""

    provenance: Settings | None = None
    sbom: bool = False

    def __bool__(self) -> bool:
        return self.provenance is not None or self.sbom


class Attestation(msgspec.Struct, frozen=True):
    """A predicate; `filename` is its name where an output is a folder (`provenance.json`)."""

    type: str
    predicate: Json
    filename: str


class Attached(msgspec.Struct, frozen=True):
    """An attestation manifest: its entry in the image's index, and (digest, bytes) of every blob that it needs, itself the last."""

    descriptor: Descriptor
    blobs: tuple[tuple[str, bytes], ...]


def wanted(options: Options) -> Wanted:
    """What to attest. Raises InvalidParameter, and NotImplementedYet for an SBOM generator."""
    provenance: Settings | None = None
    sbom = False
    for kind, attributes in options.attest.items():
        if _disabled(kind, attributes):
            continue
        if kind == "provenance":
            provenance = settings(attributes)
        elif kind == "sbom":
            for name in attributes:
                if name == "generator" and attributes[name]:
                    raise NotImplementedYet("--sbom=generator=…", hint="--sbom=true lists packages without an image for it")
                if name not in ("disabled", "generator", "filename"):
                    raise InvalidParameter(f'invalid attribute "{name}" of the attestation sbom', hint="it has: disabled, generator")
            sbom = True
        else:
            raise InvalidParameter(f'unknown attestation type "{kind}"', hint="there are: provenance, sbom")
    return Wanted(provenance, sbom)


def _disabled(kind: str, attributes: Mapping[str, str]) -> bool:
    value = attributes.get("disabled", "false").lower()
    if value not in (*_FALSE, *_TRUE):
        raise InvalidParameter(f'invalid value "{value}" for disabled of the attestation {kind}')
    return value in _TRUE


def subjects(names: Sequence[Reference], platform: Platform, digest: str) -> list[Json]:
    """The subjects of a statement: package URLs of the image's names, or "_" without any; `digest` of its manifest."""
    algorithm, _, encoded = digest.partition(":")
    return [{"name": one, "digest": {algorithm: encoded}} for one in [image_purl(name, platform) for name in names] or ["_"]]


def statement(attestation: Attestation, subject: Sequence[Json]) -> bytes:
    """An in-toto statement."""
    return msgspec.json.encode(
        {"_type": STATEMENT_TYPE, "predicateType": attestation.type, "subject": list(subject), "predicate": attestation.predicate}
    )


def attach(image: Descriptor, names: Sequence[Reference], platform: Platform, attestations: Sequence[Attestation]) -> Attached:
    """The manifest of attestations for the image manifest `image`; equal input gives equal bytes."""
    subject = subjects(names, platform, image.digest)
    layers, blobs = [], []
    for one in attestations:
        data = statement(one, subject)
        blobs.append((sha256(data), data))
        layers.append(
            Descriptor(media_type=STATEMENT_MEDIA, digest=sha256(data), size=len(data), annotations={PREDICATE_ANNOTATION: one.type})
        )
    config = msgspec.json.encode(
        {
            "architecture": UNKNOWN.architecture,
            "os": UNKNOWN.os,
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        }
    )
    blobs.append((sha256(config), config))
    manifest = msgspec.json.encode(
        Manifest(
            schema_version=2,
            media_type=MEDIA_MANIFEST,
            config=Descriptor(media_type=MEDIA_CONFIG, digest=sha256(config), size=len(config)),
            layers=tuple(layers),
        )
    )
    blobs.append((sha256(manifest), manifest))
    return Attached(
        Descriptor(
            media_type=MEDIA_MANIFEST,
            digest=sha256(manifest),
            size=len(manifest),
            annotations={DIGEST_ANNOTATION: image.digest, TYPE_ANNOTATION: MANIFEST_TYPE},
            platform=UNKNOWN,
        ),
        tuple(blobs),
    )
