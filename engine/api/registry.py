"""`POST /registry/serve`, an extension: open the registry's listener for as long as this request lasts, and stream a line per request.

The body is `registry.server.settings`. The reply is JSON lines: first `{"Listening": URL, "Warning": TEXT}`, then one object for each
request that the registry answered, or `{"Lost": N}` when the client did not read as fast as they came.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

import trio

from engine.api.call import Call
from engine.http.errors import ClientGone

if TYPE_CHECKING:
    from engine.registry.server.app import Line

_LINES_MAX = 1000  # that wait for the client
_TARGET_MAX = 500  # characters of an address that are shown


class _Lines:
    """Access lines on their way to the client; bounded."""

    def __init__(self) -> None:
        self._waiting: deque[Line] = deque()
        self._lost = 0
        self._some = trio.Event()

    def put(self, line: Line) -> None:
        """Add a line; never waits."""
        if len(self._waiting) < _LINES_MAX:
            self._waiting.append(line)
        else:
            self._lost += 1
        self._some.set()

    async def wait(self) -> None:
        """Return when there is something to take."""
        await self._some.wait()

    def take(self) -> bytes:
        """What waits, as JSON lines."""
        self._some = trio.Event()
        parts = [Call.encode(_shown(line)) + b"\n" for line in self._waiting]
        self._waiting.clear()
        if self._lost:
            parts.append(Call.encode({"Lost": self._lost}) + b"\n")
            self._lost = 0
        return b"".join(parts)


def _shown(line: Line) -> dict[str, object]:
    return {
        "Time": int(time.time()), "Peer": line.peer, "User": line.user, "Method": line.method, "Target": line.target[:_TARGET_MAX],
        "Status": line.status, "Bytes": line.sent, "Seconds": round(line.seconds, 6),
    }  # fmt: skip


async def serve(call: Call) -> None:
    """POST /registry/serve"""
    from engine.registry.server.settings import parse

    exchange, registry, lines = call.exchange, call.engine.registry, _Lines()
    settings = parse(await exchange.body())
    listening = await registry.listen(settings, lines.put)
    try:
        await exchange.stream()
        await exchange.write(Call.encode({"Listening": listening.url, "Warning": listening.warning}) + b"\n")
        try:
            async with exchange.while_connected():
                while True:
                    await lines.wait()
                    await exchange.write(lines.take())
        except ClientGone:
            pass  # or it shut down its side, and still reads: what is under way ends first
        await registry.close(listening)
        await exchange.write(lines.take())
        await exchange.end()
    finally:
        registry.abort(listening)
