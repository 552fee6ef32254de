"""A connection that was taken over, as one whose descriptor can be given away: under TLS a socket pair with two pumps in between.

Attach and exec hand a client's socket to another process. A TLS connection has no such socket, so its bytes pass through here.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import trio

from engine.http.exchange import Hijacked
from engine.http.transport import Plain


async def served(connection: Hijacked, serve: Callable[[Hijacked], Awaitable[None]]) -> None:
    """Run `serve` with the connection, or with a stand-in that ends when the connection does. Returns when nothing is left to pump."""
    if connection.plain_fd() is not None:
        await serve(connection)
        return
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    inner = Hijacked(Plain(near), b"")
    try:
        async with trio.open_nursery() as nursery:
            upstream = trio.CancelScope()

            async def up() -> None:
                with upstream:
                    await _pump(connection, inner)

            async def down() -> None:
                await _pump(inner, connection)
                upstream.cancel()  # the process has said all it had to say

            nursery.start_soon(up)
            nursery.start_soon(down)
            await serve(Hijacked(Plain(far), b""))
    finally:
        inner.close()
        connection.close()


async def _pump(source: Hijacked, sink: Hijacked) -> None:
    """Bytes from one to the other until the end, which is passed on too."""
    try:
        while data := await source.receive():
            await sink.send(data)
        await sink.send_eof()
    except (OSError, trio.ClosedResourceError):
        pass  # one side is gone: the other is told by the end of the stream
