"""What knarr-netd does: holds what daemons hand to it, one daemon at a time, and ends when there is neither a daemon nor anything held.

Started by `client.start`, with the daemon's socket as descriptor 3. Later daemons connect to `netd.sock` in the exec root. Whoever
connects must be this process's own user: the folder and the socket's mode say so, the kernel's credentials are asked as well.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found, unused-ignore]
import _socket
import errno
import os
import struct
import sys

from engine import _core
from engine.netd import messages
from engine.netd.forward import Forwarder, HostServers
from engine.netd.loop import IN, OUT, Loop
from engine.netd.relay import CONNECTIONS, DatagramRelay, Relay, StreamRelay
from engine.netd.resolver import Caches, Endpoint, Zones
from engine.netd.server import Served

DAEMON_FD = 3
_NICE = -5  # answers within milliseconds while every processor is busy; where that is not allowed it works without
_OUT_LIMIT = 4096  # packets that wait for a daemon that does not read
_CREDENTIALS = struct.Struct("iii")
_ORPHAN_CHECK = 5.0  # seconds
_EXITED = "exit.json"  # in a container's bundle: what its monitor leaves when it ended


class Netd:
    """Everything held, and the daemon's connection."""

    def __init__(self, build: str) -> None:
        self._build = build
        self._loop = loop = Loop()
        self._zones = Zones()
        self._caches = Caches()
        self._forwarder = Forwarder(loop, HostServers("/etc/resolv.conf"))
        self._served: dict[str, Served] = {}
        self._relays: dict[str, Relay] = {}
        self._stopped: list[Relay] = []  # handed over; their connections go on
        self._daemon: _socket.socket | None = None
        self._out: list[tuple[bytes, list[int]]] = []
        self._listener: _socket.socket | None = None
        self._inode = 0
        self._checked = 0.0
        loop.every_tick(self._tick)
        loop.report = lambda text: self._tell(messages.WARNING, text)

    # -- daemons

    def run(self, daemon: _socket.socket) -> None:
        """Until there is nothing to do."""
        self._listen()
        self._adopt(daemon)
        self._loop.run()
        if self._listener is not None:
            self._unlink()

    def _listen(self) -> None:
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC)
        os.umask(0o177)
        try:
            os.unlink(messages.SOCKET_NAME)  # of one that was killed, or that has handed everything over
        except FileNotFoundError:
            pass
        listener.bind(messages.SOCKET_NAME)
        os.umask(0o077)
        self._inode = os.stat(messages.SOCKET_NAME).st_ino
        listener.listen(4)
        self._listener = listener

    def _reachable(self) -> bool:
        """Whether a daemon can find this process: its socket is there, and not another one's."""
        try:
            return os.stat(messages.SOCKET_NAME).st_ino == self._inode
        except FileNotFoundError:
            return False

    def _unlink(self) -> None:
        if self._reachable():
            os.unlink(messages.SOCKET_NAME)

    def _accept(self, _: int) -> None:
        assert self._listener is not None
        try:
            fd, _peer = self._listener._accept()  # type: ignore[attr-defined]
        except OSError:
            return
        sock = _socket.socket(fileno=fd)
        user = _CREDENTIALS.unpack(sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CREDENTIALS.size))[1]
        if user != os.geteuid():
            sock.close()
            return
        self._adopt(sock)

    def _adopt(self, sock: _socket.socket) -> None:
        # The next one waits in the queue: it may be here before the end of the one before it was read.
        if self._listener is not None:
            self._loop.remove(self._listener.fileno())
        sock.setblocking(False)
        self._daemon = sock
        self._loop.add(sock.fileno(), IN, self._talk)

    def _gone(self) -> None:
        """The daemon ended."""
        assert self._daemon is not None
        self._loop.remove(self._daemon.fileno())
        self._daemon.close()
        self._daemon = None
        for _, fds in self._out:
            close_all(fds)
        self._out.clear()
        if self._listener is not None:
            self._loop.add(self._listener.fileno(), IN, self._accept)
        self._maybe_end()

    def _maybe_end(self) -> None:
        if self._daemon is None and not self._served and not self._relays and not any(self._stopped) and not self._called():
            self._loop.ended = True

    def _called(self) -> bool:
        """Whether the next daemon is at the door."""
        if self._listener is not None:
            self._accept(IN)
        return self._daemon is not None

    def _talk(self, events: int) -> None:
        assert self._daemon is not None
        if events & OUT:
            self._flush()
            if self._daemon is None or not events & ~OUT:
                return
        space = _socket.CMSG_SPACE(messages.FDS_LIMIT * 4)
        try:
            packet, rights, flags, _ = self._daemon.recvmsg(messages.PACKET_LIMIT, space, _socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            packet, rights, flags = b"", [], 0
        fds = [fd for _, _, data in rights for (fd,) in struct.iter_unpack("i", data[: len(data) & ~3])]
        if not packet or flags & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC):
            close_all(fds)
            self._gone()
            return
        try:
            for kind, values in messages.decode(packet):
                self._obey(kind, values, fds)
                if self._daemon is None:
                    break
        except (ValueError, TypeError, OSError) as error:
            # A daemon that says what nobody understands: it sees the end and starts again with another one.
            self._tell(messages.WARNING, f"knarr-netd: a message of the daemon failed: {type(error).__name__}: {error}")
            if self._daemon is not None:
                self._gone()
        finally:
            close_all(fds)

    def _tell(self, kind: int, *values: object, fds: tuple[int, ...] = ()) -> None:
        """Queue a message with copies of `fds`."""
        if self._daemon is None:
            return
        if len(self._out) >= _OUT_LIMIT:
            self._gone()
            return
        self._out.append((messages.encode(kind, *values), [os.dup(fd) for fd in fds]))
        self._flush()

    def _flush(self) -> None:
        if self._daemon is None:
            return
        while self._out:
            packet, fds = self._out[0]
            rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
            try:
                self._daemon.sendmsg([packet], rights, _socket.MSG_NOSIGNAL)
            except BlockingIOError:
                break
            except OSError:
                self._gone()
                return
            del self._out[0]
            close_all(fds)
        self._loop.change(self._daemon.fileno(), IN | (OUT if self._out else 0))

    # -- what it is told

    def _obey(self, kind: int, values: list, fds: list[int]) -> None:  # type: ignore[type-arg]
        """One message; takes its descriptors from the front of `fds`."""
        if kind == messages.PUBLISH:
            network, name, endpoint, title, names, addresses = values
            self._zones.get(network, name).publish(endpoint, Endpoint(names, addresses, title))
        elif kind == messages.WITHDRAW:
            network, endpoint = values
            zone = self._zones.by_id.get(network)
            if zone is not None:
                zone.withdraw(endpoint)
                self._zones.forget(zone)
        elif kind == messages.SERVE:
            self._serve(values, fds)
        elif kind == messages.LEAVE:
            self._leave(values[0])
        elif kind == messages.RELAY:
            self._relay(values, fds)
        elif kind == messages.UNRELAY:
            relay = self._relays.pop(values[0], None)
            if relay is not None:
                relay.close()
        elif kind == messages.HELLO:
            self._hello(values)
        elif kind == messages.HANDOVER:
            self._hand_over()
        elif kind == messages.STATUS:
            self._status()
        elif kind == messages.STOP:
            self._loop.ended = True
        else:
            raise messages.MalformedMessage(f"kind {kind} is unknown")

    def _serve(self, values: list, fds: list[int]) -> None:  # type: ignore[type-arg]
        id, internal, networks, links, upstreams, count = values
        if count:
            if id in self._served:
                self._leave(id)
            udp, tcp = take(fds), take(fds)
            self._served[id] = Served(self._loop, self._forwarder, self._caches, id, udp, tcp)
        served = self._served.get(id)
        if served is None:  # left meanwhile
            return
        for zone in served.resolver.change([self._zones.get(*pair) for pair in networks], links, upstreams, bool(internal)):
            self._zones.forget(zone)

    def _leave(self, id: str) -> None:
        served = self._served.pop(id, None)
        if served is not None:
            served.close()
            for zone in served.resolver.change([], (), [], True):
                self._zones.forget(zone)

    def _relay(self, values: list, fds: list[int]) -> None:  # type: ignore[type-arg]
        key, protocol, address, port, count = values
        old = self._relays.get(key)
        if not count:
            if old is not None:
                old.target = (address, port)
            return
        if old is not None:
            self._relays.pop(key).close()
        sock = take(fds)
        target = (address, port)
        if protocol == "udp":
            self._relays[key] = DatagramRelay(self._loop, sock, target)
        else:
            self._relays[key] = StreamRelay(self._loop, sock, target, self._has_room)

    def _has_room(self) -> bool:
        return sum(map(len, self._relays.values())) < CONNECTIONS

    def _hello(self, values: list) -> None:  # type: ignore[type-arg]
        _, self._forwarder.host.path = values
        self._tell(messages.WELCOME, self._build, os.getpid())
        for id in self._served:
            self._tell(messages.HAS_CONTAINER, id)
        for zone in self._zones.by_id.values():
            for endpoint in zone.endpoints:
                self._tell(messages.HAS_ENDPOINT, zone.id, endpoint)
        for key, relay in self._relays.items():
            self._tell(messages.HAS_RELAY, key, fds=(relay.sock.fileno(),))
        self._tell(messages.HELD)

    def _hand_over(self) -> None:
        if self._listener is not None:
            self._loop.remove(self._listener.fileno())
            self._listener.close()
            self._unlink()
            self._listener = None
        for id, served in list(self._served.items()):
            self._tell(messages.GIVES_CONTAINER, id, fds=(served.udp.fileno(), served.tcp.fileno()))
            self._leave(id)
        for key, relay in self._relays.items():
            self._tell(messages.GIVES_RELAY, key, fds=(relay.sock.fileno(),))
            relay.stop()
            self._stopped.append(relay)
        self._relays.clear()
        self._tell(messages.HELD)

    def _status(self) -> None:
        self._tell(
            messages.STATE,
            *("pid", os.getpid(), "containers", len(self._served), "networks", len(self._zones.by_id)),
            *("relays", len(self._relays), "connections", sum(map(len, (*self._relays.values(), *self._stopped)))),
            *("forwarding", len(self._forwarder), "forwarded", self._forwarder.asked),
        )

    # -- time

    def _tick(self) -> bool:
        waiting = False
        for served in self._served.values():
            waiting = served.tick() or waiting
        for relay in self._relays.values():
            waiting = relay.tick() or waiting
        if self._daemon is None:
            self._maybe_end()
            waiting = True
            if self._loop.now - self._checked > _ORPHAN_CHECK:
                self._checked = self._loop.now
                if self._listener is not None and not self._reachable():
                    self._hand_over()  # to nobody: whoever comes makes the sockets again, and would find their ports taken
                for id in [id for id in self._served if os.path.exists(f"bundles/{id}/{_EXITED}")]:
                    self._leave(id)  # it ended while no daemon was there to say so; its namespace must not stay
        return waiting


def take(fds: list[int]) -> _socket.socket:
    """The first descriptor as a socket. Raises MalformedMessage when there is none."""
    if not fds:
        raise messages.MalformedMessage("a descriptor is missing")
    fd = fds.pop(0)
    try:
        return _socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        raise


def close_all(fds: list[int]) -> None:
    """Close and forget them."""
    while fds:
        try:
            os.close(fds.pop())
        except OSError as error:
            if error.errno == errno.EBADF:
                raise


def main() -> None:
    """What the process does. sys.argv: -c, import root, exec root, build."""
    import gc
    import resource

    _core.process_title(b"knarr-netd")
    os.chdir(sys.argv[2])
    os.closerange(DAEMON_FD + 1, 1 << 20)
    for number in (_signal.SIGINT, _signal.SIGHUP, _signal.SIGQUIT, _signal.SIGPIPE):
        _signal.signal(number, _signal.SIG_IGN)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # each question under way and each relayed connection takes some
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    except PermissionError:
        pass
    netd = Netd(sys.argv[3])
    gc.collect()
    gc.freeze()
    netd.run(_socket.socket(fileno=DAEMON_FD))
