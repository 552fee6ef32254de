"""Images of any shape put straight into a registry, without any code of ours: OCI manifests and indexes of given layers."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from typing import Any

from tests.lib import images
from tests.lib.registries import OCI_INDEX, OCI_MANIFEST, DockerRegistry, digest_of

TAR = "application/vnd.oci.image.layer.v1.tar"


def put_image(
    registry: DockerRegistry, repository: str, tag: str, layers: Sequence[bytes], *, kind: str = TAR + "+gzip",
    pack: Callable[[bytes], bytes] | None = None, config: dict[str, Any] | None = None, **fields: Any,
) -> dict[str, Any]:  # fmt: skip
    """Store an OCI image of these tar archives; what an index says of it. `tag` "" stores it by its digest."""
    pack = pack or (lambda data: gzip.compress(data, 1, mtime=0))
    raw = images.image_config([digest_of(layer) for layer in layers], config, **fields)
    manifest = {
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": registry.put_blob(repository, raw), "size": len(raw)},
        "layers": [
            {"mediaType": kind, "digest": registry.put_blob(repository, packed), "size": len(packed)} for packed in map(pack, layers)
        ],
    }  # fmt: skip
    digest = registry.put_manifest(repository, tag, manifest)
    platform = {key: fields[key] for key in ("architecture", "variant") if key in fields}
    return {
        "mediaType": OCI_MANIFEST, "digest": digest, "size": len(json.dumps(manifest)),
        "platform": {"os": "linux", "architecture": images.ARCHITECTURE, **platform},
    }  # fmt: skip


def put_index(registry: DockerRegistry, repository: str, tag: str, manifests: Sequence[dict[str, Any]]) -> str:
    """Store an index; its digest."""
    return registry.put_manifest(repository, tag, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(manifests)})


def small(name: str) -> bytes:
    return images.tar([images.entry(name, data=name.encode())])
