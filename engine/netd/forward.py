"""Questions that nobody here can answer, asked of the upstream servers: by UDP for who asked by UDP, by TCP for who asked by TCP.

Each attempt has a socket of its own: a random port, a random id, connected, so that the kernel takes answers from nobody else and says at
once when nothing listens. An answer must repeat the question. A server that is silent for `PATIENCE` is not given up, the next one
is asked as well; who was silent is asked last for a while. An answer that is too large for UDP comes with TC set and goes to the client so,
which asks again by TCP.

Where questions leave from. Servers of the host's resolv.conf (`HOST`) are asked in the host's network namespace: a resolver on the
host's loopback works, and so does a container without a route. Servers that the user named with --dns are asked in the container's
own namespace, as in Docker (they must be reachable from the container, and a loopback address means the container's), by its routes and
through its tunnels; only where the container has no route to them at all is the host asked to do it.
"""

from __future__ import annotations

import _socket
import errno
import os

from engine.netd.loop import BROKEN, IN, OUT, Loop
from engine.netd.messages import FALLBACK, HOST
from engine.wire import dns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PORT = 53
PATIENCE = 2.0  # seconds until the next server is asked too
LAST_PATIENCE = 4.0  # seconds for the last one
LIMIT = 1024  # questions under way
CONTAINER_LIMIT = 256  # of one container
_SERVER_LIMIT = 3  # servers of one list that are asked, as in resolv.conf(5)
_FILE_CHECK = 1.0  # seconds
_FILE_LIMIT = 64 * 1024
_DRAIN = 16  # datagrams of one server in one round
_DEMOTED = 30.0  # seconds that a silent server comes last
_CONNECTING = (errno.EINPROGRESS, errno.EAGAIN)


class HostServers:
    """The name servers of the host's resolv.conf; read again after it changed, looked at once a second at most."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._checked = -_FILE_CHECK
        self._stamp: tuple[int, ...] = ()
        self._servers: tuple[str, ...] = FALLBACK

    def get(self, now: float) -> tuple[str, ...]:
        if now - self._checked >= _FILE_CHECK:
            self._checked = now
            self._check()
        return self._servers

    def _check(self) -> None:
        try:
            found = os.stat(self.path)
            stamp = (found.st_mtime_ns, found.st_ino, found.st_dev, found.st_size)
            if stamp == self._stamp:
                return
            with open(self.path, "rb") as file:
                text = file.read(_FILE_LIMIT)
        except OSError:  # being replaced, or none: what was known still holds
            return
        self._stamp = stamp
        servers = []
        for line in text.splitlines():
            words = line.split()
            if len(words) > 1 and words[0] == b"nameserver":
                server = words[1].decode("ascii", "replace")
                if family_of(server):
                    servers.append(server)
        self._servers = tuple(servers) or FALLBACK


def family_of(server: str) -> int:
    """The address family of a server's address, 0 when it is none. A zone ("fe80::1%eth0") is part of an address."""
    try:
        dns.address(server.partition("%")[0])
    except (OSError, ValueError):
        return 0
    return _socket.AF_INET6 if ":" in server else _socket.AF_INET


class Asker:
    """Who asks: counts its questions under way, and makes sockets in its network namespace."""

    def __init__(self) -> None:
        self.pending: set[Pending] = set()

    def socket_inside(self, family: int, kind: int) -> _socket.socket:
        """A new socket in the container's network namespace. Raises OSError."""
        raise NotImplementedError


class Attempt:
    """One server asked: its socket, and by TCP what is still to be sent and what came."""

    __slots__ = ("got", "packet", "server", "sock", "unsent")

    def __init__(self, sock: _socket.socket, server: str, packet: bytes) -> None:
        self.sock = sock
        self.server = server
        self.packet = packet
        self.unsent = b""
        self.got = bytearray()


class Pending:
    """One question under way. `done` is called once, with the answer for the client."""

    __slots__ = ("asker", "attempts", "done", "due", "packet", "query", "servers", "tcp", "worst")

    def __init__(
        self, asker: Asker, packet: bytes, query: dns.Query, tcp: bool, servers: list[tuple[str, bool]], done: Callable[[bytes], None]
    ) -> None:
        self.asker = asker
        self.packet = packet
        self.query = query
        self.tcp = tcp
        self.servers = servers  # those not yet asked; whether from the container's namespace
        self.done = done
        self.attempts: dict[int, Attempt] = {}
        self.due = 0.0
        self.worst = b""  # a failure that a server gave, for when no other knows better


class Forwarder:
    """All questions under way."""

    def __init__(self, loop: Loop, host: HostServers) -> None:
        self._loop = loop
        self.host = host
        self._pending: set[Pending] = set()
        self._silent: dict[str, float] = {}
        self.asked = 0
        loop.every_tick(self._tick)

    def __len__(self) -> int:
        return len(self._pending)

    def ask(
        self, asker: Asker, packet: bytes, query: dns.Query, upstreams: list[str], tcp: bool, done: Callable[[bytes], None]
    ) -> Pending | None:
        """Ask the upstreams. `done` may be called before this returns. None: it was, there is nothing to wait for."""
        if len(asker.pending) >= CONTAINER_LIMIT or (len(self._pending) >= LIMIT and not self._make_room(asker)):
            done(dns.reply(packet, query, dns.SERVFAIL))
            return None
        self.asked += 1
        pending = Pending(asker, packet, query, tcp, self._order(upstreams), done)
        self._pending.add(pending)
        asker.pending.add(pending)
        self._next(pending)
        return pending if pending in self._pending else None

    def _make_room(self, asker: Asker) -> bool:
        """Give up a question of whoever has the most, for one who has fewer: some that flood must not leave others without names."""
        greedy = max((pending.asker for pending in self._pending), key=lambda each: len(each.pending))
        if len(greedy.pending) <= len(asker.pending) + 1:
            return False
        victim = next(iter(greedy.pending))
        self._finish(victim, dns.reply(victim.packet, victim.query, dns.SERVFAIL))
        return True

    def drop(self, pending: Pending) -> None:
        """The client is gone."""
        if pending in self._pending:
            self._pending.discard(pending)
            pending.asker.pending.discard(pending)
            for fd in list(pending.attempts):
                self._close(pending, fd)

    def _order(self, upstreams: list[str]) -> list[tuple[str, bool]]:
        servers: list[tuple[str, bool]] = []
        for server in upstreams:
            if server == HOST:
                servers += [(address, False) for address in self.host.get(self._loop.now)]
            else:
                servers.append((server, True))
        del servers[_SERVER_LIMIT:]
        if self._silent:
            now = self._loop.now
            servers.sort(key=lambda pair: self._silent.get(pair[0], 0.0) > now)
        return servers

    def _next(self, pending: Pending) -> None:
        """Ask the next server that can be asked; without one wait for those already asked."""
        while pending.servers:
            server, inside = pending.servers.pop(0)
            try:
                self._start(pending, server, inside)
            except (OSError, ValueError):  # no route, no such family, no descriptor left: the next may do
                continue
            pending.due = self._loop.now + (PATIENCE if pending.servers else LAST_PATIENCE)
            return
        if not pending.attempts:
            self._finish(pending, pending.worst or dns.reply(pending.packet, pending.query, dns.SERVFAIL))

    def _start(self, pending: Pending, server: str, inside: bool) -> None:
        kind = _socket.SOCK_STREAM if pending.tcp else _socket.SOCK_DGRAM
        try:
            sock = self._connect(pending.asker if inside else None, server, kind)
        except OSError as error:
            if not inside or error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL):
                raise
            sock = self._connect(None, server, kind)
        packet = os.urandom(2) + pending.packet[2:]
        attempt = Attempt(sock, server, packet)
        try:
            if pending.tcp:
                attempt.unsent = len(packet).to_bytes(2, "big") + packet
                self._loop.add(sock.fileno(), OUT, lambda events: self._stream(pending, attempt, events))
            else:
                sock.send(packet)
                self._loop.add(sock.fileno(), IN, lambda events: self._datagram(pending, attempt))
        except OSError:
            sock.close()
            raise
        pending.attempts[sock.fileno()] = attempt

    def _connect(self, asker: Asker | None, server: str, kind: int) -> _socket.socket:
        family = family_of(server)
        if not family:
            raise ValueError(f"{server} is no address")
        kind |= _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
        sock = _socket.socket(family, kind) if asker is None else asker.socket_inside(family, kind)
        try:
            code = sock.connect_ex((server, PORT))
            if code and code not in _CONNECTING:
                raise OSError(code, f"connect to {server}")
        except OSError:
            sock.close()
            raise
        return sock

    def _datagram(self, pending: Pending, attempt: Attempt) -> None:
        for _ in range(_DRAIN):
            try:
                response = attempt.sock.recv(dns.TCP_SIZE)
            except BlockingIOError:
                return
            except OSError:  # nothing listens there
                self._failed(pending, attempt)
                return
            if dns.answers(attempt.packet, pending.query, response):
                self._answered(pending, attempt, response)
                return

    def _stream(self, pending: Pending, attempt: Attempt, events: int) -> None:
        try:
            if attempt.unsent:
                attempt.unsent = attempt.unsent[attempt.sock.send(attempt.unsent) :]
                if not attempt.unsent:
                    self._loop.change(attempt.sock.fileno(), IN)
                return
            data = attempt.sock.recv(dns.TCP_SIZE + 2)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        attempt.got += data
        size = int.from_bytes(attempt.got[:2], "big") + 2
        if not data or (events & BROKEN and not attempt.got):
            self._failed(pending, attempt)
        elif len(attempt.got) >= max(size, 3):
            response = bytes(attempt.got[2:size])
            if dns.answers(attempt.packet, pending.query, response):
                self._answered(pending, attempt, response)
            else:
                self._failed(pending, attempt)

    def _answered(self, pending: Pending, attempt: Attempt, response: bytes) -> None:
        self._silent.pop(attempt.server, None)
        code = dns.rcode(response)
        response = pending.packet[:2] + response[2:]
        if code not in (dns.NOERROR, dns.NXDOMAIN):
            pending.worst = response
            self._failed(pending, attempt)
            return
        if not pending.tcp and len(response) > pending.query.size:
            response = dns.cut(pending.packet, pending.query)
        self._finish(pending, response)

    def _failed(self, pending: Pending, attempt: Attempt) -> None:
        self._close(pending, attempt.sock.fileno())
        self._next(pending)

    def _finish(self, pending: Pending, response: bytes) -> None:
        self.drop(pending)
        pending.done(response)

    def _close(self, pending: Pending, fd: int) -> None:
        attempt = pending.attempts.pop(fd)
        self._loop.remove(fd)
        attempt.sock.close()

    def _tick(self) -> bool:
        now = self._loop.now
        for pending in [pending for pending in self._pending if now >= pending.due]:
            for attempt in pending.attempts.values():
                self._silent[attempt.server] = now + _DEMOTED
            if not pending.servers:
                for fd in list(pending.attempts):
                    self._close(pending, fd)
            self._next(pending)
        if len(self._silent) > LIMIT:
            self._silent.clear()
        return bool(self._pending)
