"""The name server of one container: its UDP and TCP sockets, which were made in its network namespace.

A question costs one receive, one look-up and one send. How much of a round one container may take is bounded, so that one that floods its
name server delays the others by a fraction of a millisecond.
"""

from __future__ import annotations

import _socket
import fcntl
import os

from engine import _core
from engine.netd.forward import Asker, Forwarder, Pending
from engine.netd.loop import BROKEN, DRAIN, IN, OUT, Listener, Loop
from engine.netd.resolver import Caches, Resolver
from engine.wire import dns

CONNECTIONS = 16  # TCP connections of one container
IDLE = 10.0  # seconds that a TCP connection may be silent
_PACKET_LIMIT = 4096  # bytes of a question
_OUT_LIMIT = 2 * dns.TCP_SIZE
_PIPELINE = 16  # questions of one connection under way
_SIOCGSKNS = 0x894C  # the network namespace that a socket is in: linux/sockios.h
_CLONE_NEWNET = 0x40000000


class Served(Asker):
    """A container's name server. Owns its sockets; `close` ends them."""

    def __init__(self, loop: Loop, forwarder: Forwarder, caches: Caches, id: str, udp: _socket.socket, tcp: _socket.socket) -> None:
        super().__init__()
        self.id = id
        self.resolver = Resolver()
        self.udp = udp
        self.tcp = tcp
        self._loop = loop
        self._forwarder = forwarder
        self._caches = caches
        self._connections: set[Connection] = set()
        for sock in (udp, tcp):
            sock.setblocking(False)
        loop.add(udp.fileno(), IN, self._datagrams)
        self._listener = Listener(loop, tcp, self._accept)

    def close(self) -> None:
        """Stop answering."""
        for sock in (self.udp, self.tcp):
            self._loop.remove(sock.fileno())
            sock.close()
        for connection in list(self._connections):
            connection.close()
        for pending in list(self.pending):
            self._forwarder.drop(pending)
        self._caches.forget(self.resolver)

    def _datagrams(self, _: int) -> None:
        receive, send, known = self.udp.recvfrom, self.udp.sendto, self.resolver.cache.get
        for _ in range(DRAIN):
            try:
                packet, peer = receive(_PACKET_LIMIT)
            except OSError:  # no more
                return
            found = known(packet[2:])
            if found is None:
                self._question(packet, peer)
                continue
            try:
                send(packet[:2] + next(found), peer)
            except OSError:  # its receive buffer is full: it will ask again
                continue

    def _question(self, packet: bytes, peer: tuple[str, int]) -> None:
        def send(response: bytes) -> None:
            try:
                self.udp.sendto(response, peer)
            except OSError:
                pass  # as above

        if dns.is_query(packet):
            self.answer(packet, False, send)

    def answer(self, packet: bytes, tcp: bool, done: object) -> Pending | None:
        """Answer a query, now or later, by calling `done`."""
        assert callable(done)
        try:
            query = dns.parse(packet)
        except dns.Malformed:
            done(dns.failure(packet, dns.FORMERR))
            return None
        if query.refusal:
            done(dns.reply(packet, query, query.refusal))
            return None
        found = self.resolver.answers(packet, query, dns.TCP_SIZE if tcp else query.size)
        if found is not None:
            done(self._caches.keep(self.resolver, packet, found) if query.plain and not tcp else found[0])
        elif self.resolver.internal:
            done(dns.reply(packet, query, dns.SERVFAIL))  # what dockerd answers where nothing may leave
        else:
            return self._forwarder.ask(self, packet, query, self.resolver.upstreams, tcp, done)
        return None

    def socket_inside(self, family: int, kind: int) -> _socket.socket:
        """A new socket in the container's network namespace. Raises OSError."""
        namespace = fcntl.ioctl(self.udp, _SIOCGSKNS)
        try:
            home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _core.setns(namespace, _CLONE_NEWNET)
                try:
                    return _socket.socket(family, kind)
                finally:
                    _core.setns(home, _CLONE_NEWNET)
            finally:
                os.close(home)
        finally:
            os.close(namespace)

    def _accept(self, client: _socket.socket) -> None:
        if len(self._connections) >= CONNECTIONS:
            oldest = min(self._connections, key=lambda connection: connection.heard)
            oldest.close()
        Connection(self._loop, self._forwarder, self, client, self._connections)

    def tick(self) -> bool:
        """Ends silent connections; whether anything here waits for time."""
        deaf = self._listener.tick()
        for connection in [each for each in self._connections if self._loop.now - each.heard > IDLE]:
            connection.close()
        return bool(self._connections) or deaf


class Connection:
    """One TCP client. What it does not read is bounded: nothing more is read from it meanwhile."""

    def __init__(self, loop: Loop, forwarder: Forwarder, served: Served, sock: _socket.socket, all: set[Connection]) -> None:
        self._loop = loop
        self._forwarder = forwarder
        self._served = served
        self._sock = sock
        self._all = all
        self._in = bytearray()
        self._out = bytearray()
        self._ended = False  # the client sends nothing more
        self._closed = False
        self._pending: set[Pending] = set()
        self.heard = loop.now
        self._events = IN
        loop.add(sock.fileno(), IN, self._ready)
        all.add(self)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._all.discard(self)
        self._loop.remove(self._sock.fileno())
        self._sock.close()
        for pending in list(self._pending):
            self._forwarder.drop(pending)
        self._pending.clear()

    def _ready(self, events: int) -> None:
        self.heard = self._loop.now
        try:
            if events & OUT:
                self._flush()
            if events & BROKEN:
                self.close()
            elif events & IN:
                self._read()
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self._settle()

    def _read(self) -> None:
        data = self._sock.recv(_PACKET_LIMIT)
        self._in += data
        self._ended = self._ended or not data
        self._take()

    def _take(self) -> None:
        """Whole questions out of what was read, as long as there is room for answers."""
        while len(self._in) > 2 and not self._full and not self._closed:
            size = int.from_bytes(self._in[:2], "big")
            if size > _PACKET_LIMIT:
                self.close()
                return
            if len(self._in) < size + 2:
                return
            packet = bytes(self._in[2 : size + 2])
            del self._in[: size + 2]
            if not dns.is_query(packet):
                self.close()
                return
            self._ask(packet)

    def _ask(self, packet: bytes) -> None:
        waiting: list[Pending] = []

        def done(response: bytes) -> None:
            self._pending.difference_update(waiting)
            if not self._closed:
                self._out += len(response).to_bytes(2, "big") + response
                if waiting:  # later, from outside `_ready`
                    self._settle()

        pending = self._served.answer(packet, True, done)
        if pending is not None:
            waiting.append(pending)
            self._pending.add(pending)

    @property
    def _full(self) -> bool:
        return len(self._out) >= _OUT_LIMIT or len(self._pending) >= _PIPELINE

    def _flush(self) -> None:
        if self._out:
            del self._out[: self._sock.send(self._out)]

    def _settle(self) -> None:
        """Send what can be sent, take up what had to wait, and wait for the right thing."""
        if self._closed:
            return
        try:
            self._flush()
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self._take()
        if self._closed:
            return
        if self._ended and not self._out and not self._pending:
            self.close()
            return
        events = (OUT if self._out else 0) | (0 if self._ended or self._full else IN)
        if events != self._events:
            self._events = events
            self._loop.change(self._sock.fileno(), events)
