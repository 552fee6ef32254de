"""`/_ping`, `/version`, `/info`. Engine API reference 1.51, "System"."""

from __future__ import annotations

from engine.api.call import Call
from engine.api.version import PING_HEADERS
from engine.api.views import system as views


async def ping(call: Call) -> None:
    """GET and HEAD /_ping"""
    head = call.exchange.method == "HEAD"
    await call.exchange.reply(200, b"" if head else b"OK", "text/plain; charset=utf-8", PING_HEADERS)


async def version(call: Call) -> None:
    """GET /version"""
    await call.json(views.version(call.engine.system.version()))


async def info(call: Call) -> None:
    """GET /info"""
    await call.json(views.info(call.engine.system.info(), call.version))
