"""Accepts connections and serves each in a task of its own. Owns the tasks' nursery and the limit on connections, no protocol."""

from __future__ import annotations

import errno
import logging
import resource
import socket
from collections.abc import Sequence

import trio

from engine.http.connection import Connection, Handler
from engine.http.listeners import Listener
from engine.http.transport import Plain, Tls, Transport

MAX_CONNECTIONS = 4096  # each costs a task and a descriptor; clients beyond wait in the kernel's queue
_SHARE = 4  # connections of strangers take this fraction of the descriptors that the process may have: containers need theirs
_CROWDED_SECONDS = 0.1  # that a client waits for a place before idle connections make room
_CROWD = 64  # idle connections that are ended at a time
IDLE_SECONDS = 600.0  # a kept-alive connection without a request
HANDSHAKE_SECONDS = 20.0
SWEEP_SECONDS = 30.0
DRAIN_STEP = 0.1  # seconds between two looks at connections while the server ends

_log = logging.getLogger("knarr.http")


class Server:
    """The connections of one daemon, `most` at a time. `connections` are those open now; `last_activity` is trio's clock when one last came
    or went."""

    def __init__(self, handler: Handler, base_headers: bytes = b"", *, most: int = MAX_CONNECTIONS) -> None:
        self._handler = handler
        self._base_headers = base_headers
        self._most = most
        self._accepting = trio.CancelScope()
        self.connections: set[Connection] = set()
        self.last_activity = 0.0

    async def run(
        self, listeners: Sequence[Listener], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled; then every connection is ended. Closes the listeners."""
        self.last_activity = trio.current_time()
        room = trio.CapacityLimiter(self._most)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sweep)
                nursery.start_soon(self._accept_all, listeners, room, nursery)
                task_status.started()
        finally:
            for listener in listeners:
                listener.close()

    @property
    def busy(self) -> int:
        """How many connections have a request under way."""
        return sum(connection.idle_since is None for connection in self.connections)

    async def drain(self, seconds: float) -> None:
        """Accept nobody any more, and return when every request under way was answered, or after `seconds`. Cancel `run` then."""
        self._accepting.cancel()
        with trio.move_on_after(seconds):
            while self.connections:
                for connection in self.connections:
                    if connection.idle_since is not None:
                        connection.scope.cancel()
                await trio.sleep(DRAIN_STEP)

    async def _accept_all(self, listeners: Sequence[Listener], room: trio.CapacityLimiter, nursery: trio.Nursery) -> None:
        with self._accepting:
            async with trio.open_nursery() as accepting:
                for listener in listeners:
                    accepting.start_soon(self._accept, listener, room, nursery)
        for listener in listeners:
            listener.close()

    async def _accept(self, listener: Listener, room: trio.CapacityLimiter, nursery: trio.Nursery) -> None:
        while True:
            token = object()
            try:
                room.acquire_on_behalf_of_nowait(token)
                await trio.lowlevel.checkpoint()
            except trio.WouldBlock:
                await self._wait_for_room(room, token)
            sock = await self._next(listener)
            nursery.start_soon(self._serve, sock, listener, room, token)

    async def _wait_for_room(self, room: trio.CapacityLimiter, token: object) -> None:
        while True:
            with trio.move_on_after(_CROWDED_SECONDS) as scope:
                await room.acquire_on_behalf_of(token)
            if not scope.cancelled_caught:
                return
            self._make_room()

    def _make_room(self) -> None:
        """End connections that have been idle the longest: clients keep them open for speed, and hostile ones to keep others out."""
        idle = [(connection.idle_since, connection.scope) for connection in self.connections if connection.idle_since is not None]
        for _, scope in sorted(idle, key=lambda one: one[0])[:_CROWD]:
            scope.cancel()

    async def _next(self, listener: Listener) -> socket.socket:
        """The next connection. Errors that belong to one client, or that pass, do not end the server."""
        while True:
            try:
                return listener.socket.accept()[0]
            except BlockingIOError:
                await trio.lowlevel.wait_readable(listener.socket)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    _log.error("accepting a connection on %s: %s; trying again", listener.address, error.strerror)
                    await trio.sleep(0.1)
                elif error.errno == errno.EBADF:
                    raise
                else:
                    await trio.lowlevel.checkpoint()

    async def _serve(self, sock: socket.socket, listener: Listener, room: trio.CapacityLimiter, token: object) -> None:
        try:
            transport = await self._transport(sock, listener)
            if transport is None:
                return
            connection = Connection(transport, self._handler, self._base_headers)
            self.connections.add(connection)
            self.last_activity = trio.current_time()
            try:
                await connection.run()
            except Exception:  # a defect in serving one client must not end the daemon
                _log.exception("a connection on %s", listener.address)
            finally:
                self.connections.discard(connection)
                self.last_activity = trio.current_time()
        finally:
            room.release_on_behalf_of(token)

    async def _transport(self, sock: socket.socket, listener: Listener) -> Transport | None:
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if listener.tls is None:
            return Plain(sock)
        plain = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        stream = trio.SSLStream(plain, listener.tls, server_side=True, https_compatible=True)
        try:
            with trio.fail_after(HANDSHAKE_SECONDS):
                await stream.do_handshake()
        except (trio.BrokenResourceError, trio.TooSlowError) as error:
            _log.info("TLS handshake on %s failed: %s", listener.address, error.__cause__ or error)
            sock.close()
            return None
        except BaseException:
            sock.close()
            raise
        return Tls(stream)

    async def _sweep(self) -> None:
        """End connections that have been idle for too long; one timer for all of them instead of one for each."""
        while True:
            await trio.sleep(SWEEP_SECONDS)
            horizon = trio.current_time() - IDLE_SECONDS
            for connection in self.connections:
                if connection.idle_since is not None and connection.idle_since < horizon:
                    connection.scope.cancel()


def most_of_strangers() -> int:
    """Connections at a time for a server that is open to other hosts, by the limit on descriptors (RLIMIT_NOFILE)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(MAX_CONNECTIONS, soft // _SHARE))


async def serve(
    handler: Handler,
    listeners: Sequence[Listener],
    *,
    base_headers: bytes = b"",
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `handler` on the listeners until cancelled. `base_headers`: header lines of every reply, each ended by CRLF."""
    await Server(handler, base_headers).run(listeners, task_status=task_status)
