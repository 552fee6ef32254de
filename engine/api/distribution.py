"""`/distribution/...` and `/images/search`: what registries have. Engine API reference 1.51, "Distribution" and "Image"."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.api.auth import given
from engine.api.call import Call
from engine.api.query import number
from engine.errors import InvalidParameter
from engine.spec.image import Descriptor
from engine.spec.manifest import MANIFEST_MAX


async def inspect(call: Call) -> None:
    """GET /distribution/{name}/json"""
    descriptor, platforms = await call.engine.registries.inspect(call.name, given(call), insecure=call.query.flag("insecure"))
    shown = [msgspec.to_builtins(platform) for platform in platforms]
    await call.json({"Descriptor": _descriptor(descriptor), "Platforms": shown or None})


def _descriptor(descriptor: Descriptor) -> dict[str, Any]:
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}


async def manifest(call: Call) -> None:
    """GET /distribution/{name}/manifest, an extension: the bytes of a manifest or index as its registry has them. `insecure` as for
    --insecure-registry."""
    descriptor, raw = await call.engine.registries.manifest(call.name, given(call), insecure=call.query.flag("insecure"))
    await call.exchange.reply(200, raw, descriptor.media_type, f"Docker-Content-Digest: {descriptor.digest}\r\n".encode())


async def put_manifest(call: Call) -> None:
    """PUT /distribution/{name}/manifest, an extension: store a manifest; `from` names a repository that its blobs are mounted from."""
    media_type = call.exchange.headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip()
    if not media_type:
        raise InvalidParameter("storing a manifest: the request has no Content-Type")
    raw = await call.exchange.body(MANIFEST_MAX)
    query = call.query
    digest = await call.engine.registries.put_manifest(
        call.name, raw, media_type, given(call), source=query.text("from"), insecure=query.flag("insecure")
    )
    await call.exchange.reply(201, b"", fields=f"Docker-Content-Digest: {digest}\r\n".encode())


async def search(call: Call) -> None:
    """GET /images/search"""
    query = call.query
    try:
        limit = number(query.text("limit") or "0")
    except InvalidParameter as error:
        raise InvalidParameter(f"invalid limit specified: {error.message}")
    found = await call.engine.registries.search(query.text("term"), limit, query.filters(), given(call))
    await call.json([msgspec.to_builtins(one) for one in found])
