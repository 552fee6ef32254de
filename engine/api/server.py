"""The handler under `http.server`: version, route, call, and errors as the Engine API words them."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from engine.api import routes
from engine.api.call import Call
from engine.api.query import Query, unescape
from engine.api.version import BASE_HEADERS, LATEST
from engine.api.version import parse as parse_version
from engine.errors import KnarrError
from engine.http.errors import ClientGone
from engine.http.exchange import Exchange
from engine.http.listeners import Listener
from engine.http.server import Server

if TYPE_CHECKING:
    from engine.service.engine import Engine

_log = logging.getLogger("knarr.api")

_VERSIONED = re.compile(r"/v([0-9.]+)(/.*)", re.DOTALL)


class Api:
    """Answers requests with an engine. `handle` is what `http.server` calls."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request. Every error becomes a reply; an unexpected one is logged with its traceback."""
        try:
            await self._route(exchange)
        except KnarrError as error:
            if error.status >= 500 and error.status not in (501, 503):
                _log.error("%s %s: %s", exchange.method, exchange.target, error)
            await self._fail(exchange, error.status, str(error))
        except (ClientGone, trio.ClosedResourceError):
            raise ClientGone
        except Exception as error:
            _log.exception("%s %s", exchange.method, exchange.target)
            await self._fail(exchange, 500, f"internal error: {type(error).__name__}: {error}")

    async def _route(self, exchange: Exchange) -> None:
        path, _, query = exchange.target.partition("?")
        path = unescape(path)
        if path == "/v2" or path.startswith("/v2/"):
            await self._engine.peers.handle(exchange)
            return
        version = LATEST
        if path.startswith("/v"):
            match = _VERSIONED.fullmatch(path)
            if match is not None:
                version = parse_version(match[1])
                path = match[2]
        found = routes.find(exchange.method, path)
        if found is None:
            if exchange.method == "OPTIONS":
                await exchange.reply(200)
                return
            await exchange.error(404, "page not found")
            return
        handler, name = found
        await handler(Call(self._engine, exchange, version, path, Query(query), name))

    async def _fail(self, exchange: Exchange, status: int, message: str) -> None:
        """Tell the client; once a reply has begun there is no form for it, and the connection is cut instead."""
        if not exchange.started:
            await exchange.error(status, message)


def server(engine: Engine) -> Server:
    """The server of an engine's API; `run(listeners)` serves."""
    return Server(Api(engine).handle, BASE_HEADERS)


async def serve(engine: Engine, listeners: Sequence[Listener], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve the API on the listeners until cancelled."""
    await server(engine).run(listeners, task_status=task_status)
