"""One call of the API as a handler sees it: who serves it, what is asked, and how to answer. Thin over `http.exchange`."""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from engine.api.bodies import Body
from engine.api.query import Query
from engine.api.version import Version
from engine.errors import InvalidParameter, KnarrError
from engine.http.exchange import Exchange

if TYPE_CHECKING:
    from engine.service.engine import Engine

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode


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

    async def lines(self, messages: AsyncIterable[Any]) -> None:
        """Answer with a stream of JSON documents, each sent at once. An error after the first becomes the last document, as in Docker."""
        exchange = self.exchange
        try:
            async for message in messages:
                if not exchange.started:
                    await exchange.stream()
                await exchange.write(_encode(message) + b"\r\n")
        except KnarrError as error:
            if not exchange.started:
                raise
            await exchange.write(_encode({"errorDetail": {"message": str(error)}, "error": str(error)}) + b"\r\n")
        if not exchange.started:
            await exchange.stream()
        await exchange.end()
