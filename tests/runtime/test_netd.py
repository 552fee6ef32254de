"""knarr-netd as a process: answers, forwarding, and its life across daemons."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from engine.netd import client, messages
from engine.netd.client import NetdConnection
from engine.wire import dns
from tests.lib import netns
from tests.lib.netd import PORT, Host, Upstream, ask, ask_tcp, giving, hear, relay, serve, state
from tests.unit.test_dns import addresses, question, records

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


# -- answering


def test_it_answers_by_udp_and_tcp(host: Host, netd: NetdConnection) -> None:
    serve(netd, host.container())
    for _ in range(3):
        assert addresses(ask(host.namespace, question("web"))) == ["10.0.0.2"]
    first, second = ask_tcp(host.namespace, question("www", id=1), question("web", dns.AAAA, id=2))
    assert addresses(first) == ["10.0.0.2"]
    assert records(second) == [] and dns.rcode(second) == dns.NOERROR


def test_many_addresses_are_all_there_by_tcp(host: Host, netd: NetdConnection) -> None:
    serve(netd, host.container())
    for number in range(100):
        netd.send(messages.encode(messages.PUBLISH, "n1", "front", f"x{number}", f"s{number}", ["many"], [f"10.0.1.{number}"]))
    assert netns.eventually(lambda: len(records(ask_tcp(host.namespace, question("many"))[0])) == 100)
    firsts = set()
    for _ in range(40):
        response = ask(host.namespace, question("many"))
        assert response[2] & 2 and len(response) <= 512
        firsts.add(addresses(response)[0])
    assert len(firsts) > 8


def test_garbage_is_survived(host: Host, netd: NetdConnection) -> None:
    serve(netd, host.container())
    with host.namespace.socket(kind=socket.SOCK_DGRAM) as made:
        made.connect(("127.0.0.11", PORT))
        for size in range(64):
            made.send(os.urandom(size))
        made.send(question("web", flags=0x8180))
    for raw in (b"\0", b"\xff\xff" + b"x" * 100, b"\0\5hello", b"\0\0", b""):
        with host.namespace.connect("127.0.0.11", PORT) as made:
            made.sendall(raw)
    assert addresses(ask(host.namespace, question("web"))) == ["10.0.0.2"]
    malformed = ask(host.namespace, question("web")[:14])
    assert dns.rcode(malformed) == dns.FORMERR and len(malformed) == 12


def test_a_container_cannot_hold_more_connections_than_its_share(host: Host, netd: NetdConnection) -> None:
    serve(netd, host.container())
    ask(host.namespace, question("web"))
    held = [host.keep(host.namespace.connect("127.0.0.11", PORT)) for _ in range(40)]
    assert addresses(ask_tcp(host.namespace, question("web"))[0]) == ["10.0.0.2"]
    assert held[0].recv(1) == b""  # the oldest had to go


def test_containers_know_their_own_networks_only(host: Host, netd: NetdConnection) -> None:
    serve(netd, host.container())
    other = host.container(address="127.0.0.12")
    netd.send(messages.encode(messages.SERVE, "c2", 1, [["n2", "back"]], [], [], 2), [each.fileno() for each in other])
    assert addresses(ask(host.namespace, question("web"))) == ["10.0.0.2"]
    refused = ask(host.namespace, question("web"), "127.0.0.12")
    assert dns.rcode(refused) == dns.SERVFAIL  # internal: names of its own, nothing else, as in dockerd
    netd.send(messages.encode(messages.LEAVE, "c2"))
    assert addresses(ask(host.namespace, question("web"))) == ["10.0.0.2"]


# -- forwarding


def test_unknown_names_are_asked_of_the_hosts_servers(host: Host, netd: NetdConnection) -> None:
    serve(netd, host.container())
    with Upstream(host.namespace, "127.0.0.53", giving("192.0.2.7")) as upstream:
        for name in ("single", "www.example.org", "www.example.org"):
            response = ask(host.namespace, question(name, id=0xBEEF))
            assert addresses(response) == ["192.0.2.7"] and response[:2] == b"\xbe\xef"
        assert addresses(ask_tcp(host.namespace, question("over.tcp"))[0]) == ["192.0.2.7"]
        assert addresses(ask(host.namespace, question("web"))) == ["10.0.0.2"]
    assert upstream.asked == [("single", "udp"), ("www.example.org", "udp"), ("www.example.org", "udp"), ("over.tcp", "tcp")]
    assert len(upstream.sources) > 1  # a port for each question, at random: two may be the same


def test_a_large_answer_comes_by_tcp(host: Host, netd: NetdConnection) -> None:
    many = [dns.record(dns.A, bytes([192, 0, 2, number])) for number in range(200)]

    def answer(packet: bytes, tcp: bool) -> bytes:
        return dns.reply(packet, dns.parse(packet), dns.NOERROR, many, dns.TCP_SIZE if tcp else 512)

    serve(netd, host.container())
    with Upstream(host.namespace, "127.0.0.53", answer):
        assert ask(host.namespace, question("large"))[2] & 2
        assert len(records(ask_tcp(host.namespace, question("large"))[0])) == 200


def test_the_next_server_is_asked(host: Host, netd: NetdConnection) -> None:
    """One refuses the port, one fails, one is right; then one that says nothing, which costs patience once."""
    host.resolv_conf.write_text("nameserver 127.0.0.51\nnameserver 127.0.0.52\nnameserver 127.0.0.53\n")
    serve(netd, host.container())
    with (
        Upstream(host.namespace, "127.0.0.52", giving("", dns.SERVFAIL)) as failing,
        Upstream(host.namespace, "127.0.0.53", giving("192.0.2.7")),
    ):
        assert addresses(ask(host.namespace, question("example.org"))) == ["192.0.2.7"]
        assert addresses(ask_tcp(host.namespace, question("example.org"))[0]) == ["192.0.2.7"]
        assert failing.asked == [("example.org", "udp"), ("example.org", "tcp")]
        failing.answer = lambda packet, tcp: None
        assert addresses(ask(host.namespace, question("example.org"))) == ["192.0.2.7"]
        for _ in range(5):
            assert addresses(ask(host.namespace, question("example.org"))) == ["192.0.2.7"]
        assert len(failing.asked) == 3  # the silent one comes last now


def test_failures_are_passed_on(host: Host, netd: NetdConnection) -> None:
    serve(netd, host.container())
    assert dns.rcode(ask(host.namespace, question("example.org"))) == dns.SERVFAIL  # nobody listens
    with Upstream(host.namespace, "127.0.0.53", giving("", dns.NXDOMAIN)):
        assert dns.rcode(ask(host.namespace, question("example.org"))) == dns.NXDOMAIN


def test_a_forged_answer_is_not_believed(host: Host, netd: NetdConnection) -> None:
    def answer(packet: bytes, tcp: bool) -> bytes:
        for wrong in (bytes([packet[0] ^ 1]) + packet[1:], packet[:13] + b"X" + packet[14:]):
            forged = giving("6.6.6.6")(wrong, tcp)
            upstream.udp.sendto(forged, ("127.0.0.1", next(iter(upstream.sources))))
        return giving("192.0.2.7")(packet, tcp)

    serve(netd, host.container())
    with Upstream(host.namespace, "127.0.0.53", answer) as upstream:
        assert addresses(ask(host.namespace, question("example.org"))) == ["192.0.2.7"]


def test_who_asks_without_end_is_told_so(host: Host, netd: NetdConnection) -> None:
    """More questions under way than one container may have: an answer at once, and others are served."""
    serve(netd, host.container())
    serve(netd, host.container(address="127.0.0.12"), "c2")

    def answer(packet: bytes, tcp: bool) -> bytes | None:
        return None if dns.parse(packet).name.startswith(b"slow") else giving("192.0.2.7")(packet, tcp)

    with Upstream(host.namespace, "127.0.0.53", answer), host.namespace.socket(kind=socket.SOCK_DGRAM) as made:
        made.connect(("127.0.0.11", PORT))
        for number in range(300):
            made.send(question(f"slow{number}", id=number))
            if number % 50 == 0:
                time.sleep(0.01)
        assert dns.rcode(made.recv(512)) == dns.SERVFAIL
        assert addresses(ask(host.namespace, question("fast"), "127.0.0.12")) == ["192.0.2.7"]
        assert addresses(ask(host.namespace, question("web"))) == ["10.0.0.2"]


def test_servers_of_the_user_are_asked_from_inside(host: Host, netd: NetdConnection) -> None:
    """--dns 127.0.0.1 is the container's own; one it has no route to is asked by the host; the host's own are always asked by the host."""
    inside = host.stack.enter_context(netns.made())
    host.namespace.ip("addr", "add", "198.51.100.1/32", "dev", "lo")
    with (
        Upstream(inside, "127.0.0.1", giving("192.0.2.1")),
        Upstream(host.namespace, "127.0.0.1", giving("192.0.2.2")),
        Upstream(host.namespace, "198.51.100.1", giving("192.0.2.3")),
        Upstream(host.namespace, "127.0.0.53", giving("192.0.2.4")),
    ):
        serve(netd, host.container(inside), upstreams=("127.0.0.1",))
        assert addresses(ask(inside, question("example.org"))) == ["192.0.2.1"]
        assert addresses(ask_tcp(inside, question("example.org"))[0]) == ["192.0.2.1"]
        for upstream, expected in (("198.51.100.1", "192.0.2.3"), ("host", "192.0.2.4")):
            netd.send(messages.encode(messages.SERVE, "c1", 0, [["n1", "front"]], [], [upstream], 0))
            assert netns.eventually(lambda expected=expected: addresses(ask(inside, question("example.org"))) == [expected])


def test_a_namespace_is_not_held_longer_than_its_container(host: Host, netd: NetdConnection) -> None:
    """What tells the end of a namespace: the other end of a link into it goes as well."""
    with ExitStack() as stack:
        inside = stack.enter_context(netns.made())
        host.namespace.ip("link", "add", "kt-out", "type", "veth", "peer", "name", "kt-in", "netns", f"/proc/{os.getpid()}/fd/{inside.fd}")
        udp, tcp = host.container(inside)
        serve(netd, (udp, tcp), upstreams=("127.0.0.1",))
        ask(inside, question("web"))
        ask(inside, question("unknown"))  # makes a socket inside
        udp.close()
        tcp.close()
    time.sleep(0.2)
    assert "kt-out" in host.namespace.links()
    netd.send(messages.encode(messages.LEAVE, "c1"))
    assert netns.eventually(lambda: "kt-out" not in host.namespace.links())


# -- life


def test_it_is_slim_and_has_nothing_of_the_daemon(host: Host, netd: NetdConnection) -> None:
    serve(netd, host.container())
    ask(host.namespace, question("web"))
    assert Path(f"/proc/{netd.pid}/comm").read_text() == "knarr-netd\n"
    assert os.getsid(netd.pid) == netd.pid
    names = {int(name): os.readlink(f"/proc/{netd.pid}/fd/{name}") for name in os.listdir(f"/proc/{netd.pid}/fd")}
    assert {names.pop(number) for number in (0, 1, 2)} == {"/dev/null"}
    assert sorted(name.partition(":")[0] for name in names.values()) == ["anon_inode", "socket", "socket", "socket", "socket"]
    assert os.stat(f"{host.root}/{messages.SOCKET_NAME}").st_mode & 0o777 == 0o600


def test_it_outlives_the_daemon_and_says_what_it_holds(host: Host, netd: NetdConnection) -> None:
    with netns.Echo(host.namespace, 0, "127.0.0.1") as echo:
        where = relay(host, netd, echo.port)
        serve(netd, host.container())
        with host.namespace.connect(*where) as stream:
            stream.sendall(b"one")
            assert stream.recv(10) == b"one"
            netd.close()
            assert addresses(ask(host.namespace, question("web"))) == ["10.0.0.2"]
            stream.sendall(b"two")
            assert stream.recv(10) == b"two"
            again = client.connect(host.root)
            assert again is not None and again.pid == netd.pid
            again.send(messages.encode(messages.HELLO, client.build(), str(host.resolv_conf)))
            assert hear(again, messages.HELD) == [
                (messages.WELCOME, [client.build(), netd.pid]),
                (messages.HAS_CONTAINER, ["c1"]),
                (messages.HAS_ENDPOINT, ["n1", "e1"]),
                (messages.HAS_RELAY, [f"r{echo.port}"]),
                (messages.HELD, []),
            ]
            again.send(messages.encode(messages.LEAVE, "c1") + messages.encode(messages.UNRELAY, f"r{echo.port}"))
            again.send(messages.encode(messages.WITHDRAW, "n1", "e1"))
            again.close()
    assert os.waitstatus_to_exitcode(os.waitpid(netd.pid, 0)[1]) == 0  # nothing held, nobody there
    assert not os.path.exists(f"{host.root}/{messages.SOCKET_NAME}")


def test_one_daemon_at_a_time(host: Host, netd: NetdConnection) -> None:
    hear(netd, messages.HELD)
    second = client.connect(host.root)
    assert second is not None
    second.send(messages.encode(messages.HELLO, client.build(), str(host.resolv_conf)))
    assert state(netd)["containers"] == 0
    assert second.receive() == []
    netd.close()
    assert hear(second, messages.HELD)[0] == (messages.WELCOME, [client.build(), netd.pid])
    second.close()


def test_a_container_that_ended_without_a_daemon_is_let_go(host: Host, netd: NetdConnection) -> None:
    serve(netd, host.container())
    ask(host.namespace, question("web"))
    bundle = Path(host.root, "bundles", "c1")
    bundle.mkdir(parents=True)
    (bundle / "exit.json").touch()
    netd.close()
    assert os.waitstatus_to_exitcode(os.waitpid(netd.pid, 0)[1]) == 0


def test_it_ends_when_no_daemon_can_ever_find_it(host: Host, netd: NetdConnection) -> None:
    serve(netd, host.container())
    ask(host.namespace, question("web"))
    os.unlink(f"{host.root}/{messages.SOCKET_NAME}")
    netd.close()
    assert os.waitstatus_to_exitcode(os.waitpid(netd.pid, 0)[1]) == 0


def test_handing_over(host: Host, netd: NetdConnection) -> None:
    """Another build takes over: sockets go to it, no question is lost, the relayed connections stay with the old one until they end."""
    with netns.Echo(host.namespace, 0, "127.0.0.1") as echo:
        where = relay(host, netd, echo.port)
        serve(netd, host.container())
        stream = host.namespace.connect(*where)
        stream.sendall(b"one")
        assert stream.recv(10) == b"one"
        hear(netd, messages.HELD)
        netd.send(messages.encode(messages.HANDOVER))
        given: dict[int, list[int]] = {}
        while messages.HELD not in given:
            for kind, _, fds in netd.receive():
                given[kind] = fds
        netd.close()
        with host.namespace.socket(kind=socket.SOCK_DGRAM) as waiting:
            waiting.connect(("127.0.0.11", PORT))
            waiting.send(question("web"))  # while nobody reads
            new = host.start()
            new.send(messages.encode(messages.PUBLISH, "n1", "front", "e1", "web", ["web"], ["10.0.0.2"]))
            new.send(messages.encode(messages.SERVE, "c1", 0, [["n1", "front"]], [], [], 2), given[messages.GIVES_CONTAINER])
            new.send(messages.encode(messages.RELAY, "r", "tcp", "127.0.0.1", echo.port, 1), given[messages.GIVES_RELAY])
            for fds in given.values():
                for fd in fds:
                    os.close(fd)
            assert addresses(waiting.recv(512)) == ["10.0.0.2"]
        assert host.namespace.reaches(*where)
        stream.sendall(b"two")
        assert stream.recv(10) == b"two"
        assert os.path.exists(f"{host.root}/{messages.SOCKET_NAME}")
        stream.close()
        assert os.waitstatus_to_exitcode(os.waitpid(netd.pid, 0)[1]) == 0
        assert os.path.exists(f"{host.root}/{messages.SOCKET_NAME}")  # the new one's
        new.close()
