"""Ports relayed by knarr-netd: bytes, ends, resets, back-pressure, datagrams."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.netd import messages
from engine.netd.client import NetdConnection
from tests.lib import netns
from tests.lib.netd import Host, relay, state

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def netd(host: Host) -> Iterator[NetdConnection]:
    connection = host.start()
    yield connection
    connection.close()


def test_a_stream_is_relayed_whole_and_both_ends_end_by_themselves(host: Host, netd: NetdConnection) -> None:
    """Much more than all buffers, in both directions; the client ends its side first and still gets everything."""
    data = os.urandom(1 << 20) * 8
    server = host.keep(host.namespace.socket())
    server.bind(("127.0.0.1", 0))
    server.listen()

    def later() -> None:
        made, _ = server.accept()
        with made:
            got = b"".join(iter(lambda: made.recv(1 << 20), b""))
            made.sendall(got[::-1])

    thread = threading.Thread(target=later)
    thread.start()
    with host.namespace.connect(*relay(host, netd, server.getsockname()[1])) as made:
        made.sendall(data)
        made.shutdown(socket.SHUT_WR)
        time.sleep(0.05)
        assert b"".join(iter(lambda: made.recv(1 << 20), b"")) == data[::-1]
    thread.join()


def test_hundreds_of_connections_are_relayed(host: Host, netd: NetdConnection) -> None:
    with netns.Echo(host.namespace, 0, "127.0.0.1") as echo:
        where = relay(host, netd, echo.port)
        assert host.namespace.reaches(*where)
        made = [host.keep(host.namespace.connect(*where)) for _ in range(300)]
        for number, each in enumerate(made):
            each.sendall(b"%d" % number)
        assert [each.recv(100) for each in made] == [b"%d" % number for number in range(300)]
        for each in made:
            each.close()
        netd.send(messages.encode(messages.STATUS))
        assert netns.eventually(lambda: state(netd)["connections"] == 0)


def test_a_refusal_and_a_reset_are_passed_on(host: Host, netd: NetdConnection) -> None:
    where = relay(host, netd, 1)
    with host.namespace.connect(*where) as made, pytest.raises(ConnectionResetError):
        made.recv(1)
    server = host.keep(host.namespace.socket())
    server.bind(("127.0.0.1", 0))
    server.listen()
    with host.namespace.connect(*relay(host, netd, server.getsockname()[1])) as made:
        inner, _ = server.accept()
        inner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        inner.close()
        with pytest.raises(ConnectionResetError):
            made.recv(1)


def test_who_does_not_read_is_not_read_from(host: Host, netd: NetdConnection) -> None:
    """Back-pressure: netd's memory does not grow with what nobody takes."""
    server = host.keep(host.namespace.socket())
    server.bind(("127.0.0.1", 0))
    server.listen()
    with host.namespace.connect(*relay(host, netd, server.getsockname()[1])) as made:
        inner, _ = server.accept()
        with inner:
            made.settimeout(0.3)
            sent = send_all_it_takes(made, 64 << 20)
            assert sent < 64 << 20
            assert resident(netd.pid) < 24 << 20
            made.shutdown(socket.SHUT_WR)
            got = 0
            while piece := inner.recv(1 << 20):
                got += len(piece)
            assert got == sent


def send_all_it_takes(sock: socket.socket, limit: int) -> int:
    sent = 0
    try:
        while sent < limit:
            sent += sock.send(b"x" * 65536)
    except TimeoutError:
        pass
    return sent


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("address", ["::1", "::", "127.0.0.1"])
def test_datagrams_find_back(host: Host, netd: NetdConnection, address: str) -> None:
    with netns.Datagrams(host.namespace, 0, "127.0.0.1") as server:
        port = server.socket.getsockname()[1]
        where = relay(host, netd, port, "udp", address)
        clients = [host.namespace.socket(netns.family_of(where[0]), socket.SOCK_DGRAM) for _ in range(5)]
        for number, each in enumerate(clients):
            host.keep(each).connect(where)  # connected: an answer from another address would not be seen
            each.send(b"%d" % number)
        assert [each.recv(100) for each in clients] == [b"127.0.0.1 %d" % number for number in range(5)]
