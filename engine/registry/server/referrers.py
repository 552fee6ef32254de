"""What refers to a manifest: signatures, bills of materials. Distribution specification, "Listing Referrers" (end-12a, end-12b).

The answer is computed from the `subject` of what was pushed, so that what was pushed before its subject, or with the fallback tag by a
client that did not know of this API, is there too.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from engine.registry.server import names
from engine.registry.server.backend import Backend
from engine.registry.server.request import Request, location
from engine.spec.image import MEDIA_INDEX
from engine.store.repositories import StoredManifest

# The reply is an index, which clients read up to 4 MiB of; annotations are copied into it.
_PAGE_BYTES = 3 * 1024 * 1024
_PAGE = 1000


def descriptor(manifest: StoredManifest) -> dict[str, Any]:
    """A referrer as the index lists it."""
    found: dict[str, Any] = {"mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.size}
    if manifest.artifact_type:
        found["artifactType"] = manifest.artifact_type
    if manifest.annotations:
        found["annotations"] = manifest.annotations
    return found


def page(manifests: list[StoredManifest]) -> list[StoredManifest]:
    """As many of them, from the first, as one reply takes; one at least."""
    taken: list[StoredManifest] = []
    size = 0
    for manifest in manifests[:_PAGE]:
        size += 400 + sum(len(key) + len(value) + 6 for key, value in (manifest.annotations or {}).items())
        if taken and size > _PAGE_BYTES:
            break
        taken.append(manifest)
    return taken


async def get(request: Request, backend: Backend) -> None:
    """GET of the referrers of a digest. Never 404: that would tell the client that there is no such API here."""
    digest = names.digest(request.address.reference)
    wanted, last = request.value("artifactType"), request.value("last")
    found = backend.referrers(request.name, digest, last, _PAGE + 1, wanted)
    shown = page(found)
    fields = {"OCI-Filters-Applied": "artifactType"} if wanted else {}
    if len(shown) < len(found):
        more = f"?last={shown[-1].digest}" + (f"&artifactType={quote(wanted, safe='')}" if wanted else "")
        fields["Link"] = f'<{location(request.name, "referrers", digest)}{more}>; rel="next"'
    index = {"schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": [descriptor(manifest) for manifest in shown]}
    await request.json(index, fields, MEDIA_INDEX)
