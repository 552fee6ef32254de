"""What the API needs of a builder: a protocol, and the request of a build that comes through the Engine API.

The builder lies above this layer; who puts the daemon together hands one in, made when the first build comes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from engine.http.exchange import Hijacked
    from engine.spec.build import Options
    from engine.spec.buildcache import CacheRecord, Prune
    from engine.spec.docker.registry import Credentials

Send = Callable[[bytes], Awaitable[None]]
"""Sends a piece of the answer; the first one also sends the head, after which errors are lines of the stream."""


class ClassicBuild(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /build`: `options`, and what only this endpoint has. `auths`: credentials by the address that `docker login` was given.

    `quiet`: only the identifier is told. `remove`, `force_remove`: whether intermediate containers are said to be removed, after success
    and after any end. `id` names the build for `cancel`, "" for none. `version` of the API.
    """

    options: Options
    auths: Mapping[str, Credentials] = {}
    quiet: bool = False
    remove: bool = True
    force_remove: bool = False
    id: str = ""
    version: tuple[int, int] = (1, 51)


class Builder(Protocol):
    """A builder. Cancelling a call ends its build."""

    async def classic(self, build: ClassicBuild, context: AsyncIterator[bytes] | None, send: Send) -> None:
        """Build, and send lines of Docker's progress stream.

        `context`: the archive as it arrives, plain or compressed, None with `options.remote`; it is read to its end before the first
        `send`. An error before that is raised and becomes a status. One after it may be raised too (it becomes
        `{"errorDetail": …, "error": …}`), or be sent as such a line, which is how a failed RUN gives its exit status.
        """

    async def session(self, connection: Hijacked) -> None:
        """Serve a client that speaks the frames of `engine.wire.buildframes`, to the end of its build. Returns when it is over; who calls
        closes the connection. Raises OSError when the client is gone; what goes wrong in the build is told in frames."""

    async def prune(self, wanted: Prune) -> tuple[Sequence[str], int]:
        """Remove from the cache; identifiers of what went, and the bytes that were freed."""

    async def usage(self) -> Sequence[CacheRecord]:
        """What the cache has."""

    def cancel(self, id: str) -> None:
        """End the build of that `ClassicBuild.id`; nothing when there is none."""
