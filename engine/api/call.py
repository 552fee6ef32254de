"""One call of the API as a handler sees it: who serves it, what is asked, and how to answer. Thin over `http.exchange`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from engine.api.bodies import Body
from engine.api.query import Query
from engine.api.version import Version
from engine.errors import InvalidParameter, KnarrError
from engine.http.exchange import Exchange
from engine.wire import jsonstream

if TYPE_CHECKING:
    from engine.service.engine import Engine

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode


@contextlib.asynccontextmanager
async def closing(stream: AsyncIterator[T]) -> AsyncIterator[None]:
    """`contextlib.aclosing` for what may be a generator: it is ended when its reader goes early, not when memory is collected."""
    try:
        yield
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()


class Call:
    """`name` is the object that the path names ("" when it names none); `version` the API version of the request."""

    __slots__ = ("engine", "exchange", "name", "path", "query", "version")

    def __init__(self, engine: Engine, exchange: Exchange, version: Version, path: str, query: Query, name: str) -> None:
        self.engine = engine
        self.exchange = exchange
        self.version = version
        self.path = path
        self.query = query
        self.name = name

    async def body(self, kind: Body[T], *, optional: bool = False) -> T | None:
        """The JSON body as a struct; None for an absent one when it is `optional`. Raises InvalidParameter."""
        exchange = self.exchange
        given = exchange.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if given != b"application/json" and (given or exchange.has_body):
            shown = exchange.headers.get(b"content-type", b"").decode("latin-1")
            raise InvalidParameter(f"unsupported Content-Type header ({shown}): must be 'application/json'")
        raw = await exchange.body()
        if optional and not raw:
            return None
        return kind.parse(raw)

    @staticmethod
    def encode(value: Any) -> bytes:
        """A JSON document."""
        return _encode(value)

    async def json(self, value: Any, status: int = 200) -> None:
        """Answer with a JSON document."""
        await self.exchange.reply(status, _encode(value) + b"\n")

    async def done(self, status: int = 204) -> None:
        """Answer without a body."""
        await self.exchange.reply(status)

    async def lines(self, messages: AsyncIterator[bytes]) -> None:
        """Answer with a progress stream, each line sent at once. An error after the first becomes the last line, as in Docker."""
        exchange = self.exchange
        async with closing(messages):
            try:
                async for message in messages:
                    if not exchange.started:
                        await exchange.stream()
                    await exchange.write(message)
            except KnarrError as error:
                if not exchange.started:
                    raise
                await exchange.write(jsonstream.error(str(error)))
        if not exchange.started:
            await exchange.stream()
        await exchange.end()
