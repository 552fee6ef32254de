"""Connections of running containers go on while the daemon is killed and started, and what it served before it serves again."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from tests.lib.daemon import Daemon
from tests.lib.netns import Echo, eventually
from tests.lib.site import CLIENT, HOST, HOST6, Site, site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
CHUNK = 64 << 10


@pytest.fixture
def place() -> Iterator[Site]:
    with site() as made:
        yield made


def again(place: Site, number: int) -> None:
    assert isinstance(place.engine, Daemon)
    place.engine.end(number)
    with place.host:
        place.engine.start()


@pytest.mark.parametrize("address", [HOST, HOST6], ids=["kernel", "relayed"])
def test_a_stream_through_a_published_port_loses_no_byte(place: Site, address: str) -> None:
    """Bytes go to a program in a container and come back while the daemon is killed three times and stopped once."""
    place.box("--network", place.network(), "-p", "8080:80", command=("nc", "-ll", "-p", "80", "-e", "cat"))
    ending = threading.Event()
    stream = None

    def connected() -> bool:
        nonlocal stream
        try:  # a relay takes the connection before it knows whether the program listens yet
            stream = place.client.connect(address, 8080)
            stream.sendall(b"?")
            return stream.recv(1) == b"?"
        except OSError:
            return False

    assert eventually(connected)
    assert stream is not None
    sent, received = hashlib.sha256(), hashlib.sha256()
    counts = {"sent": 0, "received": 0}

    def send() -> None:
        while not ending.is_set() or counts["sent"] == 0:
            data = os.urandom(CHUNK)
            stream.sendall(data)
            sent.update(data)
            counts["sent"] += len(data)
        stream.shutdown(1)

    def receive() -> None:
        while data := stream.recv(CHUNK):
            received.update(data)
            counts["received"] += len(data)

    stream.settimeout(30)
    threads = [threading.Thread(target=work) for work in (send, receive)]
    for thread in threads:
        thread.start()
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        before = counts["received"]
        again(place, number)
        assert eventually(lambda before=before: counts["received"] > before), f"the stream stands still after signal {number}"
    ending.set()
    for thread in threads:
        thread.join()
    stream.close()
    assert counts["sent"] == counts["received"] > 0
    assert sent.digest() == received.digest()


def test_what_was_there_is_served_after_a_kill(place: Site) -> None:
    network = place.network()
    box = place.box("--network", network, "--name", "first", "-p", "8080:80")
    asks = place.box("--network", network, "--name", "second")
    before = box.inspect()["NetworkSettings"]
    again(place, signal.SIGKILL)
    assert box.inspect()["NetworkSettings"] == before
    with Echo(box.host, 80) as server, Echo(place.client, 9000):
        assert place.client.reaches(HOST, 8080)
        assert server.peers == [CLIENT]
        assert asks.host.reaches(CLIENT, 9000)
        assert box.ip() in place.engine.out("exec", "second", "nslookup", "first", "127.0.0.11")
    assert "port is already allocated" in place.refused("-p", "8080:80")
    third = place.box("--network", network, "--name", "third")
    assert third.ip() not in (box.ip(), asks.ip()), "addresses in use are not given twice"
    assert third.ip() in place.engine.out("exec", "second", "nslookup", "third", "127.0.0.11")
    with Echo(third.host, 80):
        assert box.host.reaches(third.ip(), 80)
    place.remove(box)
    assert place.engine.docker("exec", "second", "nslookup", "first", "127.0.0.11", check=False).returncode != 0


def test_names_are_answered_while_the_daemon_is_dead(place: Site) -> None:
    network = place.network()
    box = place.box("--network", network, "--name", "first")
    asks = place.box("--network", network, "--name", "second")
    address = box.ip()
    assert isinstance(place.engine, Daemon)
    assert eventually(lambda: address in asks.host.run("busybox", "nslookup", "first", "127.0.0.11").stdout)
    place.engine.kill()
    try:
        inside = asks.host.run("busybox", "nslookup", "first", "127.0.0.11")  # the namespace of the container, the program of the host
        assert address in inside.stdout
    finally:
        with place.host:
            place.engine.start()
