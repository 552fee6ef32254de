"""`/events`: a stream of what happens. Engine API reference 1.51, "Monitor events"."""

from __future__ import annotations

import contextlib

from engine.api.call import Call
from engine.errors import InvalidParameter


async def stream(call: Call) -> None:
    """GET /events: past ones since `since`, then those to come, until `until` or the client goes."""
    query, exchange = call.query, call.exchange
    since, until = query.nanoseconds("since"), query.nanoseconds("until")
    if since and until and until < since:
        raise InvalidParameter(f"`since` time ({query.text('since')}) cannot be after `until` time ({query.text('until')})")
    found = call.engine.events.subscribe(since, until, query.filters())
    with contextlib.closing(found):
        await exchange.stream()
        async with exchange.while_connected():
            async for event in found:
                await exchange.write(call.encode(event.message(legacy=call.version < (1, 52))) + b"\n")
        await exchange.end()
