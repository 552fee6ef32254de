"""`/distribution/...` and `/images/search`: what registries have. Engine API reference 1.51, "Distribution" and "Image"."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.api.auth import given
from engine.api.call import Call
from engine.api.query import number
from engine.errors import InvalidParameter
from engine.spec.image import Descriptor


async def inspect(call: Call) -> None:
    """GET /distribution/{name}/json"""
    descriptor, platforms = await call.engine.registries.inspect(call.name, given(call))
    shown = [msgspec.to_builtins(platform) for platform in platforms]
    await call.json({"Descriptor": _descriptor(descriptor), "Platforms": shown or None})


def _descriptor(descriptor: Descriptor) -> dict[str, Any]:
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}


async def search(call: Call) -> None:
    """GET /images/search"""
    query = call.query
    try:
        limit = number(query.text("limit") or "0")
    except InvalidParameter as error:
        raise InvalidParameter(f"invalid limit specified: {error.message}")
    found = await call.engine.registries.search(query.text("term"), limit, query.filters(), given(call))
    await call.json([msgspec.to_builtins(one) for one in found])
