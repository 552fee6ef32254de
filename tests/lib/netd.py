"""A knarr-netd in a namespace that stands for the host, questions to it, name servers behind it."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from engine.netd import client, messages
from engine.netd.client import NetdConnection
from engine.wire import dns
from tests.lib import netns

PORT = 53053
SO_RCVBUFFORCE = 33  # asm-generic/socket.h


class Host:
    """A namespace with a netd in it, and what a test opens."""

    def __init__(self, folder: Path) -> None:
        self.stack = ExitStack()
        self.namespace = self.stack.enter_context(netns.made())
        self.root = str(folder)
        self.resolv_conf = folder / "resolv.conf"
        self.resolv_conf.write_text("nameserver 127.0.0.53\n")
        self.pids: set[int] = set()

    def start(self) -> NetdConnection:
        with self.namespace:
            connection = client.start(self.root)
        self.pids.add(connection.pid)
        connection.send(messages.encode(messages.HELLO, client.build(), str(self.resolv_conf)))
        return connection

    def container(self, namespace: netns.Namespace | None = None, address: str = "127.0.0.11") -> tuple[socket.socket, socket.socket]:
        """The sockets of a name server: UDP and TCP on one port."""
        where = namespace or self.namespace
        udp = self.keep(where.socket(kind=socket.SOCK_DGRAM))
        udp.bind((address, PORT))
        tcp = self.keep(where.socket())
        tcp.bind((address, PORT))
        tcp.listen(16)
        return udp, tcp

    def keep(self, sock: socket.socket) -> socket.socket:
        return self.stack.enter_context(sock)

    def close(self) -> None:
        for pid in self.pids:
            try:
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # once a test waited for it the number may be another's
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except ChildProcessError:
                pass
        self.stack.close()


def serve(
    netd: NetdConnection,
    sockets: tuple[socket.socket, socket.socket],
    id: str = "c1",
    *,
    upstreams: tuple[str, ...] = ("host",),
    internal: bool = False,
) -> None:
    netd.send(
        messages.encode(messages.PUBLISH, "n1", "front", "e1", "web", ["web", "www"], ["10.0.0.2"])
        + messages.encode(messages.SERVE, id, int(internal), [["n1", "front"]], [], list(upstreams), 2),
        [each.fileno() for each in sockets],
    )


def hear(netd: NetdConnection, until: int) -> list[tuple[int, list]]:
    """What netd says, up to a kind of message."""
    found: list[tuple[int, list]] = []
    deadline = time.monotonic() + 60
    while not any(kind == until for kind, _ in found):
        assert time.monotonic() < deadline, found
        for kind, values, fds in netd.receive():
            for fd in fds:
                os.close(fd)
            found.append((kind, values))
        time.sleep(0.005)
    return found


def ask(where: netns.Namespace, packet: bytes, address: str = "127.0.0.11", timeout: float = netns.TIMEOUT) -> bytes:
    response = where.asks(address, PORT, packet, timeout=timeout)
    assert response is not None, "no answer"
    return response


def ask_tcp(where: netns.Namespace, *packets: bytes, address: str = "127.0.0.11") -> list[bytes]:
    """Answers to questions sent at once over one connection, by their ids."""
    with where.connect(address, PORT) as made:
        made.sendall(b"".join(len(packet).to_bytes(2, "big") + packet for packet in packets))
        made.shutdown(socket.SHUT_WR)
        raw = b"".join(iter(lambda: made.recv(65536), b""))
    found = {}
    while raw:
        size = int.from_bytes(raw[:2], "big")
        found[raw[2:4]] = raw[2 : size + 2]
        raw = raw[size + 2 :]
    return [found[packet[:2]] for packet in packets]


class Upstream:
    """A name server by UDP and TCP in threads; `answer(packet, tcp)` gives a response or None for silence. `asked`: names, and by what."""

    def __init__(self, namespace: netns.Namespace, address: str, answer: Callable[[bytes, bool], bytes | None]) -> None:
        self.asked: list[tuple[str, str]] = []
        self.sources: set[int] = set()
        self.answer = answer
        self.udp = namespace.socket(kind=socket.SOCK_DGRAM)
        self.udp.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)  # all that a test asks at once, however late this thread runs
        self.udp.bind((address, 53))
        self.tcp = namespace.socket()
        self.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.tcp.bind((address, 53))
        self.tcp.listen(16)
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=each, daemon=True) for each in (self._datagrams, self._streams)]

    def __enter__(self) -> Upstream:
        for sock in (self.udp, self.tcp):
            sock.settimeout(0.1)
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join()
        self.udp.close()
        self.tcp.close()

    def _datagrams(self) -> None:
        while not self.ended.is_set():
            try:
                packet, peer = self.udp.recvfrom(65536)
            except TimeoutError:
                continue
            self.asked.append((dns.parse(packet).name.decode(), "udp"))
            self.sources.add(peer[1])
            response = self.answer(packet, False)
            if response is not None:
                self.udp.sendto(response, peer)

    def _streams(self) -> None:
        while not self.ended.is_set():
            try:
                made, _ = self.tcp.accept()
            except TimeoutError:
                continue
            with made:
                made.settimeout(netns.TIMEOUT)
                size = int.from_bytes(made.recv(2), "big")
                packet = made.recv(size)
                self.asked.append((dns.parse(packet).name.decode(), "tcp"))
                response = self.answer(packet, True)
                if response is not None:
                    raw = len(response).to_bytes(2, "big") + response
                    made.sendall(raw[:1])  # in pieces, as a network may deliver it
                    time.sleep(0.01)
                    made.sendall(raw[1:])


def giving(address: str, rcode: int = dns.NOERROR) -> Callable[[bytes, bool], bytes]:
    def answer(packet: bytes, tcp: bool) -> bytes:
        return dns.reply(packet, dns.parse(packet), rcode, [] if rcode else [dns.record(*dns.address(address))])

    return answer


def relay(host: Host, netd: NetdConnection, port: int, protocol: str = "tcp", address: str = "::1") -> tuple[str, int]:
    listener = host.namespace.socket(netns.family_of(address), socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM)
    listener.bind((address, 0))
    if protocol == "tcp":
        listener.listen(128)
    found = listener.getsockname()
    netd.send(messages.encode(messages.RELAY, f"r{port}", protocol, "127.0.0.1", port, 1), [listener.fileno()])
    listener.close()
    return "::1" if address == "::" else address, found[1]


def state(netd: NetdConnection) -> dict[str, int]:
    netd.send(messages.encode(messages.STATUS))
    values = hear(netd, messages.STATE)[-1][1]
    return dict(zip(values[::2], values[1::2], strict=True))
