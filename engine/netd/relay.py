"""Ports that the kernel's address translation cannot publish (an IPv6 address of the host for a container without any, ::1): relayed here.

Bytes go as they come, in both directions at their own pace: what one side does not take is not read from the other. An end of input is
passed on as an end of input, a reset as a reset, and a container that refuses looks to the client like a port that refuses.
"""

from __future__ import annotations

import _socket
import errno
import struct

from engine.netd.loop import BROKEN, DRAIN, IN, OUT, Listener, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CONNECTIONS = 2048  # of all relays together
ASSOCIATIONS = 1024  # UDP clients of one relay
IDLE = 90.0  # seconds without a datagram after which a UDP client is forgotten, as in docker-proxy
_PIECE = 128 * 1024  # bytes that are taken at once, and so what one direction of a stalled connection may hold
_MANY, _SMALL_PIECE = 64, 16 * 1024  # with so many connections on a relay it is less
_DATAGRAM = 65535
_CONNECTING = (errno.EINPROGRESS, errno.EAGAIN)
_LINGER_RESET = struct.pack("ii", 1, 0)
_IPV6_RECVPKTINFO, _IPV6_PKTINFO = 49, 50  # linux/in6.h
_IP_PKTINFO = 8  # linux/in.h
_SOL_SOCKET, _SO_ERROR, _SO_LINGER = _socket.SOL_SOCKET, _socket.SO_ERROR, _socket.SO_LINGER


class Relay:
    """A listening socket and where its clients are sent. Owns the socket; `close` ends everything of it, `stop` lets connections go on."""

    def __init__(self, loop: Loop, sock: _socket.socket, target: tuple[str, int]) -> None:
        self.sock = sock
        self.target = target
        self._loop = loop
        sock.setblocking(False)

    def stop(self) -> None:
        """No new clients."""
        self._loop.remove(self.sock.fileno())
        self.sock.close()

    def close(self) -> None:
        self.stop()

    def tick(self) -> bool:
        """Whether anything here waits for time."""
        return False

    def __len__(self) -> int:
        """Clients that are served."""
        return 0


class StreamRelay(Relay):
    """TCP."""

    def __init__(self, loop: Loop, sock: _socket.socket, target: tuple[str, int], room: Callable[[], bool]) -> None:
        super().__init__(loop, sock, target)
        self._room = room
        self._pairs: set[Pair] = set()
        self._listener = Listener(loop, sock, self._accept)

    def __len__(self) -> int:
        return len(self._pairs)

    def close(self) -> None:
        super().close()
        for pair in list(self._pairs):
            pair.reset()

    def _accept(self, client: _socket.socket) -> None:
        if self._room():
            self._pair(client)
        else:
            reset(client)

    def _pair(self, client: _socket.socket) -> None:
        family = _socket.AF_INET6 if ":" in self.target[0] else _socket.AF_INET
        try:
            server = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC)
        except OSError:
            reset(client)
            return
        try:
            code = server.connect_ex(self.target)
        except OSError as error:
            code = error.errno or errno.EINVAL
        if code and code not in _CONNECTING:
            server.close()
            reset(client)
            return
        Pair(self._loop, client, server, self._pairs)

    def tick(self) -> bool:
        return self._listener.tick()


class Side:
    """One of a pair's sockets. `unsent`: what it has not taken yet; `eof`: it will send nothing more; `shut`: nor will it be sent anything.

    `events`: waited for, -1 when not even its breaking is (that of a socket with both ends shut would be told without end)."""

    __slots__ = ("eof", "events", "fd", "handler", "shut", "sock", "unsent")

    def __init__(self, sock: _socket.socket, events: int, handler: Callable[[int], None]) -> None:
        self.sock = sock
        self.handler = handler
        self.fd = sock.fileno()
        self.unsent = memoryview(b"")
        self.eof = False
        self.shut = False
        self.events = events


class Pair:
    """A client's connection and the one to the container."""

    def __init__(self, loop: Loop, client: _socket.socket, server: _socket.socket, all: set[Pair]) -> None:
        self._loop = loop
        self._client = Side(client, 0, lambda events: self._ready(self._client, self._server, events))
        self._server = Side(server, OUT, lambda events: self._ready(self._server, self._client, events))
        self._all = all
        self._connected = False
        self._ended = False
        for sock in (client, server):
            sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            sock.setsockopt(_SOL_SOCKET, _socket.SO_KEEPALIVE, 1)
        for side in (self._client, self._server):
            loop.add(side.fd, side.events, side.handler)
        all.add(self)

    def reset(self) -> None:
        """End both with a reset."""
        self._end(reset)

    def _end(self, how: Callable[[_socket.socket], None]) -> None:
        if self._ended:
            return
        self._ended = True
        self._all.discard(self)
        for side in (self._client, self._server):
            self._loop.remove(side.fd)
            how(side.sock)

    def _ready(self, side: Side, other: Side, events: int) -> None:
        try:
            try:
                if not self._connected:
                    self._connect(side)
                else:
                    if events & OUT and side.unsent:
                        self._send(side, side.unsent)
                    if events & (IN | BROKEN):
                        self._move(side, other)
            except BlockingIOError:
                pass
            self._settle()
        except OSError:
            self.reset()

    def _connect(self, side: Side) -> None:
        if side is self._client:  # it went away before there was anything to tell it
            raise ConnectionResetError
        code = side.sock.getsockopt(_SOL_SOCKET, _SO_ERROR)
        if code:
            raise OSError(code, "connect")
        self._connected = True

    def _move(self, source: Side, sink: Side) -> None:
        if source.eof or sink.unsent:
            if source.sock.getsockopt(_SOL_SOCKET, _SO_ERROR):
                raise ConnectionResetError
            return
        data = source.sock.recv(_PIECE if len(self._all) < _MANY else _SMALL_PIECE)
        if data:
            self._send(sink, memoryview(data))
        else:
            source.eof = True

    @staticmethod
    def _send(sink: Side, data: memoryview) -> None:
        sink.unsent = data
        sink.unsent = data[sink.sock.send(data) :]

    def _settle(self) -> None:
        """Pass ends on, and wait for the right things."""
        if self._ended:
            return
        client, server = self._client, self._server
        for source, sink in ((client, server), (server, client)):
            if source.eof and not sink.unsent and not sink.shut:
                sink.shut = True
                sink.sock.shutdown(_socket.SHUT_WR)
        if client.shut and server.shut:
            self._end(_socket.socket.close)
            return
        for side, other in ((client, server), (server, client)):
            self._wait(side, (OUT if side.unsent else 0) | (0 if side.eof or other.unsent else IN))

    def _wait(self, side: Side, events: int) -> None:
        wanted = events if events or not side.shut else -1
        if wanted == side.events:
            return
        if wanted < 0:
            self._loop.remove(side.fd)
        elif side.events < 0:
            self._loop.add(side.fd, wanted, side.handler)
        else:
            self._loop.change(side.fd, wanted)
        side.events = wanted


def reset(sock: _socket.socket) -> None:
    """Close with a reset instead of an end."""
    try:
        sock.setsockopt(_SOL_SOCKET, _SO_LINGER, _LINGER_RESET)
    finally:
        sock.close()


class Association:
    """A UDP client: a socket of its own to the container, so that answers find back."""

    __slots__ = ("heard", "sock")

    def __init__(self, sock: _socket.socket, now: float) -> None:
        self.sock = sock
        self.heard = now


class DatagramRelay(Relay):
    """UDP. Answers leave from the address that the client had written to, also where the socket is bound to all."""

    def __init__(self, loop: Loop, sock: _socket.socket, target: tuple[str, int]) -> None:
        super().__init__(loop, sock, target)
        self._clients: dict[tuple[object, bytes], Association] = {}
        self._level, self._kind = (
            (_socket.IPPROTO_IPV6, _IPV6_PKTINFO) if sock.family == _socket.AF_INET6 else (_socket.IPPROTO_IP, _IP_PKTINFO)
        )
        sock.setsockopt(self._level, _IPV6_RECVPKTINFO if self._kind == _IPV6_PKTINFO else _IP_PKTINFO, 1)
        self._space = _socket.CMSG_SPACE(20)
        loop.add(sock.fileno(), IN, self._ask)

    def __len__(self) -> int:
        return 0  # none of them is a connection that would be broken

    def stop(self) -> None:
        super().stop()
        for key in list(self._clients):
            self._forget(key)

    def tick(self) -> bool:
        for key in [key for key, each in self._clients.items() if self._loop.now - each.heard > IDLE]:
            self._forget(key)
        return bool(self._clients)

    def _forget(self, key: tuple[object, bytes]) -> None:
        association = self._clients.pop(key)
        self._loop.remove(association.sock.fileno())
        association.sock.close()

    def _ask(self, _: int) -> None:
        for _ in range(DRAIN):
            try:
                data, control, _flags, peer = self.sock.recvmsg(_DATAGRAM, self._space)
            except OSError:
                return
            key = (peer, next((info for level, kind, info in control if (level, kind) == (self._level, self._kind)), b""))
            try:
                association = self._clients.get(key) or self._associate(key)
                association.heard = self._loop.now
                association.sock.send(data)
            except OSError:  # refused, or a full queue: datagrams may be lost
                continue

    def _associate(self, key: tuple[object, bytes]) -> Association:
        if len(self._clients) >= ASSOCIATIONS:
            self._forget(min(self._clients, key=lambda each: self._clients[each].heard))
        family = _socket.AF_INET6 if ":" in self.target[0] else _socket.AF_INET
        sock = _socket.socket(family, _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC)
        try:
            sock.connect(self.target)
            association = Association(sock, self._loop.now)
            self._loop.add(sock.fileno(), IN, lambda events: self._answer(key, association))
        except OSError:
            sock.close()
            raise
        self._clients[key] = association
        return association

    def _answer(self, key: tuple[object, bytes], association: Association) -> None:
        peer, info = key
        for _ in range(DRAIN):
            try:
                data = association.sock.recv(_DATAGRAM)
            except BlockingIOError:
                return
            except OSError:  # refused: the client is told nothing, as by any UDP port behind a relay
                return
            association.heard = self._loop.now
            control = [(self._level, self._kind, self._source(info))] if info else []
            try:
                self.sock.sendmsg([data], control, 0, peer)  # type: ignore[arg-type]
            except OSError:
                continue

    def _source(self, info: bytes) -> bytes:
        """Of what came with a datagram, what goes with its answer: the address, and the link only for link-local ones."""
        if self._kind == _IP_PKTINFO:  # ifindex, local address, destination
            return b"\0\0\0\0" + info[4:]
        return info if info[:2] == b"\xfe\x80" else info[:16] + b"\0\0\0\0"
