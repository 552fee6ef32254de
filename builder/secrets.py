"""What a client can give a RUN beside files: secrets, and connections to an ssh agent. The builder asks, the client's session answers."""

from __future__ import annotations

from typing import Protocol

import trio


class Gifts(Protocol):
    """One client's. `secrets` are complete, identifiers in `agents` can be connected to."""

    secrets: dict[str, bytes]
    agents: frozenset[str]

    async def connect(self, id: str, stream: trio.SocketStream) -> None:
        """Serve one connection to the agent `id` until either side ends it."""


class Nothing:
    """A client that gives nothing: the classic API."""

    secrets: dict[str, bytes] = {}
    agents: frozenset[str] = frozenset()

    async def connect(self, id: str, stream: trio.SocketStream) -> None:
        """Never called."""
        raise AssertionError(id)
