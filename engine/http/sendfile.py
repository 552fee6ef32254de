"""A piece of a file into a client's socket: the kernel copies (sendfile(2)), or, under TLS, read and send.

The event loop must never wait for a disk. So a slice whose ends are in the page cache (a read with RWF_NOWAIT tells) is sent at once, from
the loop's thread: a trip to a worker costs as much as sending some hundred kilobytes. Any other is sent by a worker, whose sendfile
reads it from the disk and makes the kernel read ahead. Must not know what is sent.
"""

from __future__ import annotations

import os

import trio

from engine.aio.blocking import blocking
from engine.http.errors import ClientGone
from engine.http.transport import Transport

# What one client may have the loop do for it before the next has its turn: some 0.3 ms on loopback.
SLICE = 1 << 20
# Read at a time under TLS; a record has 16 KiB, so more only takes memory.
TLS_SLICE = 256 << 10
STALL_SECONDS = 600.0  # for a client to take anything of what it asked for


async def send_file(transport: Transport, descriptor: int, offset: int, count: int) -> None:
    """Send `count` bytes from `offset`. Raises OSError, and ClientGone when the client takes nothing or the file is shorter than that."""
    socket = transport.plain_fd()
    end = offset + count
    while offset < end:
        if socket is None:
            sent = await _send_encrypted(transport, descriptor, offset, min(TLS_SLICE, end - offset))
        else:
            sent = await _send_slice(socket, descriptor, offset, min(SLICE, end - offset))
        offset += sent


async def _send_slice(socket: int, descriptor: int, offset: int, count: int) -> int:
    await trio.lowlevel.checkpoint()
    while True:
        try:
            if _cached(descriptor, offset) and _cached(descriptor, offset + count - 1):
                sent = os.sendfile(socket, descriptor, offset, count)
            else:
                sent = await blocking("disk", os.sendfile, socket, descriptor, offset, count)
        except BlockingIOError:
            with trio.move_on_after(STALL_SECONDS) as scope:
                await trio.lowlevel.wait_writable(socket)
            if scope.cancelled_caught:
                raise ClientGone
            continue
        if not sent:
            raise ClientGone  # the file was cut short: breaking off is the only way to say so
        return sent


def _cached(descriptor: int, offset: int) -> bool:
    try:
        return bool(os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT))
    except OSError:  # EAGAIN: not in memory; EOPNOTSUPP: this file system cannot tell
        return False


async def _send_encrypted(transport: Transport, descriptor: int, offset: int, count: int) -> int:
    data = await blocking("disk", os.pread, descriptor, count, offset)
    if not data:
        raise ClientGone
    with trio.move_on_after(STALL_SECONDS) as scope:
        await transport.send(data)
    if scope.cancelled_caught:
        raise ClientGone
    return len(data)
