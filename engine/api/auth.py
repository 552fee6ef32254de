"""`/auth`: parse, call `engine.registries`, render. Engine API reference 1.51, "System"."""

from __future__ import annotations

from typing import Any

from engine.api.bodies import Body
from engine.api.call import Call
from engine.spec.docker.registry import Credentials, credentials, from_members

_AUTH = Body(dict[str, Any])


def given(call: Call) -> Credentials:
    """The credentials of a request: its X-Registry-Auth header. Nonsense is none, as in dockerd."""
    return credentials(call.exchange.headers.get(b"x-registry-auth", b"").decode("latin-1"))


async def login(call: Call) -> None:
    """POST /auth"""
    members = await call.body(_AUTH)
    token = await call.engine.registries.login(from_members(members or {}))
    await call.json({"Status": "Login Succeeded", "IdentityToken": token})
