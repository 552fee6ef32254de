"""`RUN --mount=type=ssh`: a socket in the container whose connections lead to the agent of the client that builds."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator

import trio

from builder.graph import Mount
from builder.secrets import Gifts

_CONNECTIONS = 64  # of one mount at once


@contextlib.asynccontextmanager
async def agent_socket(folder: str, mount: Mount, gifts: Gifts) -> AsyncIterator[str]:
    """A socket in `folder`, with the mount's owner and mode, that serves until the block ends. Raises OSError."""
    path = f"{folder}/agent.sock"
    place = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Through the folder's descriptor: an address holds 107 bytes.
        listener.bind(f"/proc/self/fd/{place}/agent.sock")
        os.chown(path, mount.uid, mount.gid)
        os.chmod(path, mount.mode)
        listener.listen(16)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve, trio.SocketListener(trio.socket.from_stdlib_socket(listener)), mount.id, gifts)
            yield path
            nursery.cancel_scope.cancel()
    finally:
        listener.close()
        os.close(place)


async def _serve(listener: trio.SocketListener, id: str, gifts: Gifts) -> None:
    # Each one costs a descriptor here and one at the client: those of a hostile process beyond these wait in its own queue.
    free = trio.Semaphore(_CONNECTIONS)
    async with trio.open_nursery() as nursery:
        while True:
            await free.acquire()
            nursery.start_soon(_connected, await listener.accept(), id, gifts, free)


async def _connected(stream: trio.SocketStream, id: str, gifts: Gifts, free: trio.Semaphore) -> None:
    try:
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await gifts.connect(id, stream)
    finally:
        free.release()
