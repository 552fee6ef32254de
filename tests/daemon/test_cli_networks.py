"""`knarr network` and `knarr port` against Knarr's daemon, with what they change tried over real connections."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from tests.daemon.test_cli import Knarr, eventually
from tests.lib.daemon import Daemon
from tests.lib.netns import free_port

SERVE = ("nc", "-ll", "-p", "80", "-e", "echo", "served")


@pytest.fixture
def knarr(daemon: Daemon) -> Iterator[Knarr]:
    found = Knarr(daemon)
    yield found
    daemon.remove_all()
    found("network", "prune", "-f")


def answers(port: int, host: str = "127.0.0.1") -> bool:
    try:
        with socket.create_connection((host, port), timeout=30) as connection:
            return connection.recv(100) == b"served\n"
    except OSError:
        return False


def test_life_of_a_network(knarr: Knarr) -> None:
    id = knarr.out("network", "create", "--subnet", "10.213.9.0/24", "--label", "a=b", "own")
    assert knarr.out("network", "ls", "-q", "--no-trunc", "-f", "label=a") == id
    lines = knarr.out("network", "ls").splitlines()
    assert lines[0].split() == ["NETWORK", "ID", "NAME", "DRIVER", "SCOPE"]
    assert [line.split()[1:] for line in lines[1:]] == [
        ["bridge", "bridge", "local"], ["host", "host", "local"], ["none", "null", "local"], ["own", "bridge", "local"],
    ]  # fmt: skip
    knarr("run", "-d", "--name", "web", "--network", "own", "--ip", "10.213.9.77", "busybox", "sleep", "1000")
    (shown,) = json.loads(knarr.out("network", "inspect", "own"))
    (member,) = shown["Containers"].values()
    assert (member["Name"], member["IPv4Address"]) == ("web", "10.213.9.77/24")
    assert knarr.out("inspect", "-f", "{{.Name}}", "own") == "own"
    assert knarr.out("exec", "web", "ip", "-4", "-o", "addr", "show", "eth0").split()[3] == "10.213.9.77/24"
    refused = knarr("network", "rm", "own", check=False)
    assert refused.returncode == 1 and b"has active endpoints" in refused.stderr
    knarr("network", "connect", "--alias", "x", "bridge", "web", check=False)
    knarr("network", "disconnect", "own", "web")
    assert knarr.out("network", "inspect", "-f", "{{len .Containers}}", "own") == "0"
    knarr("rm", "-f", "web")
    assert knarr.out("network", "rm", "own") == "own"
    assert knarr.out("network", "ls", "-qf", "name=own") == ""


def test_names_are_found(knarr: Knarr) -> None:
    knarr("network", "create", "own")
    knarr("run", "-d", "--name", "db", "--network", "own", "--network-alias", "store", "busybox", *SERVE)
    for name in ("db", "store"):
        ask = ("run", "--rm", "--network", "own", "busybox", "nc", "-w", "30", name, "80")
        eventually(lambda ask=ask: knarr(*ask, check=False).stdout == b"served\n")  # it may not listen yet


def test_ports_come_and_go_while_a_container_runs(knarr: Knarr) -> None:
    first, second = free_port(), free_port()
    knarr("run", "-d", "--name", "web", "-p", f"127.0.0.1:{first}:80", "busybox", *SERVE)
    eventually(lambda: answers(first))
    assert knarr.out("port", "web") == f"80/tcp -> 127.0.0.1:{first}"
    assert not answers(second)
    both = sorted([f"80/tcp -> 127.0.0.1:{first}", f"80/tcp -> 127.0.0.1:{second}"])
    assert knarr.out("port", "add", "web", f"127.0.0.1:{second}:80").splitlines() == both
    eventually(lambda: answers(second))
    eventually(lambda: answers(first))
    knarr("restart", "-t", "0", "web")
    eventually(lambda: answers(second))
    assert knarr.out("port", "rm", "web", f"127.0.0.1:{first}:80") == f"80/tcp -> 127.0.0.1:{second}"
    assert not answers(first)
    eventually(lambda: answers(second))
    assert knarr.out("port", "rm", "web", "80") == ""
    assert not answers(second)
    gone = knarr("port", "rm", "web", "80", check=False)
    assert gone.returncode == 1 and b"80/tcp" in gone.stderr


def test_a_host_port_in_use_is_not_added(knarr: Knarr) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        knarr("run", "-d", "--name", "web", "busybox", "sleep", "1000")
        refused = knarr("port", "add", "web", f"127.0.0.1:{port}:80", check=False)
        assert refused.returncode == 1 and str(port).encode() in refused.stderr
        assert knarr.out("port", "web") == ""


def test_a_container_may_be_called_add(knarr: Knarr) -> None:
    port = free_port()
    knarr("run", "-d", "--name", "add", "-p", f"127.0.0.1:{port}:80", "busybox", "sleep", "1000")
    assert knarr.out("port", "add") == f"80/tcp -> 127.0.0.1:{port}"
    assert knarr.out("port", "add", "80") == f"127.0.0.1:{port}"
    other = free_port()
    assert f"127.0.0.1:{other}" in knarr.out("port", "add", "add", f"127.0.0.1:{other}:81")


def test_prune_keeps_what_is_used(knarr: Knarr) -> None:
    knarr("network", "create", "used")
    knarr("network", "create", "idle")
    knarr("run", "-d", "--name", "web", "--network", "used", "busybox", "sleep", "1000")
    assert knarr.out("network", "prune", "-f").splitlines() == ["Deleted Networks:", "idle"]
    assert knarr.out("system", "prune", "-f").splitlines()[-1].startswith("Total reclaimed space:")
    assert knarr.out("network", "ls", "-qf", "type=custom").count("\n") == 0
