"""Bytes to and from one client: a non-blocking socket, or TLS over one.

Plain sockets are driven directly: try, and wait for readiness only when the kernel says so. trio's SocketStream would add a checkpoint
to each operation, which is measurable on the start path. Nothing here knows HTTP.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Protocol

import trio

RECV_SIZE = 65536


class Transport(Protocol):
    """What a connection needs of its socket. `receive` returns b"" at the end of input; errors of the peer are OSError."""

    async def receive(self) -> bytes: ...
    def try_send(self, data: bytes) -> int: ...
    async def send(self, data: bytes) -> None: ...
    async def send_eof(self) -> None: ...
    def plain_fd(self) -> int | None: ...
    def peer(self) -> str: ...
    def close(self) -> None: ...


def _peer(sock: socket.socket | trio.socket.SocketType) -> str:
    """`host:port` of the other end, "" when it has none."""
    try:
        address = sock.getpeername()
    except OSError:
        return ""
    if not isinstance(address, tuple):
        return ""
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


class Plain:
    """A unix or TCP socket, non-blocking."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock

    async def receive(self) -> bytes:
        """The next bytes; b"" when the peer has shut down its side."""
        while True:
            try:
                data = self.socket.recv(RECV_SIZE)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.socket)
                continue
            return data

    def try_send(self, data: bytes) -> int:
        """Send what fits into the buffer now; how many bytes that were."""
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0

    async def send(self, data: bytes) -> None:
        """Send all of it; waits while the peer's buffer is full. Not a checkpoint when it fits."""
        sent = self.try_send(data)
        if sent == len(data):
            return
        view = memoryview(data)[sent:]
        while view:
            await trio.lowlevel.wait_writable(self.socket)
            try:
                view = view[self.socket.send(view) :]
            except BlockingIOError:
                continue

    async def send_eof(self) -> None:
        """Shut down the sending side."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def plain_fd(self) -> int | None:
        """The descriptor, fit to be handed to another process."""
        return self.socket.fileno()

    def peer(self) -> str:
        """The client's address."""
        return _peer(self.socket)

    def close(self) -> None:
        """Close at once; a task that waits for the socket gets trio.ClosedResourceError."""
        if self.socket.fileno() != -1:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()


class Tls:
    """TLS over a trio stream; its descriptor is no use to anybody else."""

    def __init__(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self.socket = stream

    async def receive(self) -> bytes:
        """The next bytes; b"" at the end of input."""
        try:
            return bytes(await self.socket.receive_some(RECV_SIZE))
        except trio.BrokenResourceError as error:
            raise ConnectionResetError(str(error.__cause__ or error)) from error

    def try_send(self, data: bytes) -> int:
        """0: encryption may have to wait for the peer."""
        return 0

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        try:
            await self.socket.send_all(data)
        except trio.BrokenResourceError as error:
            raise BrokenPipeError(str(error.__cause__ or error)) from error

    async def send_eof(self) -> None:
        """TLS has no half-close: nothing is sent."""

    def plain_fd(self) -> int | None:
        """None: what travels in the socket is encrypted."""
        return None

    def peer(self) -> str:
        """The client's address."""
        return _peer(self.socket.transport_stream.socket)

    def close(self) -> None:
        """Close the socket below without a TLS goodbye, which could block."""
        self.socket.transport_stream.socket.close()
