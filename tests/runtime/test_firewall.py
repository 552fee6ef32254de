"""Who reaches whom: the firewall in a kernel, between namespaces that are a host, a client outside and containers on bridges.

All connections of the table below are tried at once, so that what is dropped costs one short wait and not one each.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from engine.linux.nftables import Nftables, NftablesError
from engine.network.firewall import Bridge, Member, Model, Port, changes, render, ruleset
from engine.wire.nftables import delete_table
from tests.lib.netns import Echo, Namespace, eventually, joined, made

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a firewall needs root")
NAME = "knarr"
DROPPED = 0.5  # seconds after which a connection that is expected to be dropped counts as dropped
PATIENCE = 30.0  # seconds that an answer is waited for

# name: link, the third number of its IPv4 and the last group of its IPv6 prefix, and what is special about it
BRIDGES = {
    "a": Bridge(link="br-a", subnets=("172.30.1.0/24", "fd00:0:0:1::/64"), gateways=("172.30.1.1", "fd00:0:0:1::1")),
    "b": Bridge(link="br-b", subnets=("172.30.2.0/24", "fd00:0:0:2::/64"), gateways=("172.30.2.1", "fd00:0:0:2::1")),
    "n": Bridge(link="br-n", subnets=("172.30.3.0/24", "fd00:0:0:3::/64"), gateways=("172.30.3.1", "fd00:0:0:3::1"), internal=True),
    "r": Bridge(
        link="br-r", subnets=("172.30.4.0/24", "fd00:0:0:4::/64"), gateways=("172.30.4.1", "fd00:0:0:4::1"), mode4="routed", mode6="routed"
    ),
    "u": Bridge(
        link="br-u",
        subnets=("172.30.5.0/24", "fd00:0:0:5::/64"),
        gateways=("172.30.5.1", "fd00:0:0:5::1"),
        mode4="nat-unprotected",
        mode6="nat-unprotected",
    ),
    "i": Bridge(link="br-i", subnets=("172.30.6.0/24", "fd00:0:0:6::/64"), gateways=("172.30.6.1", "fd00:0:0:6::1"), icc=False),
    "t": Bridge(
        link="br-t", subnets=("172.30.7.0/24", "fd00:0:0:7::/64"), gateways=("172.30.7.1", "fd00:0:0:7::1"), trusted_interfaces=("uplink",)
    ),
    "m": Bridge(
        link="br-m", subnets=("172.30.8.0/24", "fd00:0:0:8::/64"), gateways=("172.30.8.1", "fd00:0:0:8::1"), host_ipv4="192.0.2.77"
    ),
    "w": Bridge(link="br-w", subnets=("172.30.9.0/24", "fd00:0:0:9::/64"), gateways=("172.30.9.1", "fd00:0:0:9::1"), masquerade=False),
}
NUMBERS = {name: number for number, name in enumerate(BRIDGES, 1)}
CONTAINERS = ("a2", "a3", "b2", "n2", "n3", "r2", "u2", "i2", "i3", "t2", "m2", "w2")
PUBLISHED = {"a2": 8080, "b2": 8081, "r2": 8082, "u2": 8083, "i2": 8084, "n2": 8085}
HOST4, OUTSIDE4, HOST6, OUTSIDE6 = "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"


def ipv4(container: str) -> str:
    return f"172.30.{NUMBERS[container[0]]}.{container[1]}"


def ipv6(container: str) -> str:
    return f"fd00:0:0:{NUMBERS[container[0]]}::{container[1]}"


def mac(container: str) -> str:
    return f"02:42:ac:1e:0{NUMBERS[container[0]]}:0{container[1]}"


def member(container: str) -> Member:
    one = BRIDGES[container[0]]
    return Member(link=f"veth{container}", bridge=one.link, mac=mac(container), ipv4=ipv4(container), ipv6=ipv6(container))


def port(container: str, host_ip: str, host_port: int, inner: int = 80, protocol: str = "tcp") -> Port:
    link = BRIDGES[container[0]].link
    return Port(
        bridge=link,
        protocol=protocol,
        host_ip=host_ip,
        host_port=host_port,
        port=inner,
        ipv4=ipv4(container),
        ipv6=ipv6(container),
    )


MODEL = Model(
    bridges=tuple(BRIDGES.values()),
    members=tuple(member(one) for one in CONTAINERS),
    ports=(
        *(port(one, ip, number) for one, number in PUBLISHED.items() for ip in ("0.0.0.0", "::")),
        port("a2", HOST4, 8090),
        port("a2", "127.0.0.1", 8091),
        port("a2", HOST6, 8092),
        port("a2", "0.0.0.0", 8053, 80, "udp"),
    ),
)


class World:
    """All namespaces by name: host, outside, and one for each container. They serve TCP ports 80 and 81 and UDP port 80 (the host 9000, on
    loopback 9001); the answer is the address that the client had."""

    def __init__(self, stack: contextlib.ExitStack, bridged: bool) -> None:
        self.bridged = bridged
        self.places = {name: stack.enter_context(made("ktf")) for name in ("host", "outside", *CONTAINERS)}
        self.host = self.places["host"]
        self._links()
        with self.host:
            self.nft = Nftables()
        stack.callback(self.nft.close)
        self.selector = selectors.DefaultSelector()
        self.ending = threading.Event()
        for name, place in self.places.items():
            for number in (80, 81) if name != "host" else (9000,):
                self._serve(place, number)
        self._serve(self.host, 9001, "127.0.0.1")
        self._serve(self.host, 9001, "::1")
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        stack.callback(self._stop)

    def _links(self) -> None:
        for place in self.places.values():
            place.sysctl("ipv6/conf/default/accept_dad", "0")
        for version in ("ip", "ip6"):
            self.host.sysctl(f"bridge/bridge-nf-call-{version}tables", str(int(self.bridged)))
        fds = {name: f"/proc/{os.getpid()}/fd/{place.fd}" for name, place in self.places.items()}
        lines = [f"link add uplink type veth peer name uplink netns {fds['outside']}", "link set uplink up"]
        lines += [f"addr add {HOST4}/24 dev uplink", "addr add 192.0.2.77/24 dev uplink", f"addr add {HOST6}/64 dev uplink nodad"]
        for one in BRIDGES.values():
            lines += [f"link add {one.link} type bridge", f"link set {one.link} up"]
            lines += [f"addr add {one.gateways[0]}/24 dev {one.link}", f"addr add {one.gateways[1]}/64 dev {one.link} nodad"]
        for name in CONTAINERS:
            link = f"veth{name}"
            lines += [
                f"link add {link} type veth peer name eth0 address {mac(name)} netns {fds[name]}",
                f"link set {link} master {BRIDGES[name[0]].link}",
                f"link set {link} type bridge_slave hairpin {'on' if self.bridged else 'off'}",
                f"link set {link} up",
            ]
        self.host.run("ip", "-batch", "-", input="\n".join(lines))
        outside = [f"addr add {OUTSIDE4}/24 dev uplink", f"addr add {OUTSIDE6}/64 dev uplink nodad", "link set uplink up"]
        outside += [f"route add default via {HOST4}", f"route add default via {HOST6}"]
        self.places["outside"].run("ip", "-batch", "-", input="\n".join(outside))
        for name in CONTAINERS:
            one = BRIDGES[name[0]]
            inner = [f"addr add {ipv4(name)}/24 dev eth0", f"addr add {ipv6(name)}/64 dev eth0 nodad", "link set eth0 up"]
            inner += [f"route add default via {one.gateways[0]}", f"route add default via {one.gateways[1]}"]
            self.places[name].run("ip", "-batch", "-", input="\n".join(inner))
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding", *(f"ipv4/conf/{one.link}/route_localnet" for one in BRIDGES.values())):
            self.host.sysctl(name, "1")

    def _serve(self, place: Namespace, number: int, address: str = "") -> None:
        family = socket.AF_INET if "." in address else socket.AF_INET6
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            one = place.socket(family, kind)
            if not address:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            one.setblocking(False)
            one.bind((address or "::", number))
            if kind == socket.SOCK_STREAM:
                one.listen(64)
            self.selector.register(one, selectors.EVENT_READ)

    def _run(self) -> None:
        while not self.ending.is_set():
            for key, _ in self.selector.select(0.1):
                one = key.fileobj
                assert isinstance(one, socket.socket)
                with contextlib.suppress(OSError):
                    if one.type == socket.SOCK_DGRAM:
                        _, peer = one.recvfrom(100)
                        one.sendto(peer[0].encode(), peer)
                    else:
                        client, peer = one.accept()
                        with client:
                            client.send(peer[0].encode())

    def _stop(self) -> None:
        self.ending.set()
        self.thread.join()
        for key in list(self.selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self.selector.close()

    def ask(
        self, tries: list[tuple[str, str, int]], expected: list[str | None], kind: socket.SocketKind = socket.SOCK_STREAM
    ) -> list[str | None]:
        """For each (from, address, port) the client's address as the server saw it, or None when there was no answer. What is expected
        decides how long is waited, nothing else."""
        sockets = []
        for place, address, number in tries:
            one = self.places[place].socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
            one.setblocking(False)
            with contextlib.suppress(OSError):
                one.connect_ex((address, number))
                if kind == socket.SOCK_DGRAM:
                    one.send(b"?")
            sockets.append(one)
        found: list[str | None] = [None] * len(tries)
        waiting = set(range(len(tries)))
        awaited = {i for i, seen in enumerate(expected) if seen is not None}
        began = time.monotonic()
        while waiting and time.monotonic() < began + (PATIENCE if waiting & awaited else DROPPED):
            for i in list(waiting):
                try:
                    found[i] = sockets[i].recv(100).decode().removeprefix("::ffff:") or None
                except BlockingIOError:
                    continue
                except OSError:
                    pass
                waiting.discard(i)
            time.sleep(0.005)
        for one in sockets:
            one.close()
        return found

    def check(self, tries: list[tuple[str, str, int]], expected: list[str | None]) -> None:
        assert self.ask(tries, expected) == expected

    def replace(self, model: Model) -> None:
        self.nft.replace(ruleset(model, NAME).tables)


@pytest.fixture(scope="module", params=[False, True], ids=["routed", "bridged-too"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """`bridged-too`: the host lets also those packets pass the tables that a bridge forwards by itself (br_netfilter)."""
    with contextlib.ExitStack() as stack:
        found = World(stack, request.param)
        found.replace(MODEL)
        yield found


# (from, to what, port) → the address that the server sees, "yes" for whichever, "" for nothing. "x4:NAME" is a container's address.
CASES: list[tuple[str, str, int, str]] = [
    # from outside, through published ports; the client keeps its address
    ("outside", HOST4, 8080, OUTSIDE4),
    ("outside", HOST6, 8080, OUTSIDE6),
    ("outside", HOST4, 8083, OUTSIDE4),
    ("outside", HOST4, 8084, OUTSIDE4),
    ("outside", HOST4, 8090, OUTSIDE4),
    ("outside", HOST6, 8092, OUTSIDE6),
    ("outside", "172.30.1.1", 8080, OUTSIDE4),  # every address of the host
    ("outside", HOST4, 8082, ""),  # routed: no port of the host
    ("outside", HOST4, 8085, ""),  # internal
    ("outside", "192.0.2.77", 8090, ""),  # another address of the host
    ("outside", HOST4, 8091, ""),
    # from outside, straight to containers
    ("outside", "x4:a2", 80, ""),
    ("outside", "x4:a2", 81, ""),
    ("outside", "x6:a2", 80, ""),
    ("outside", "x4:n2", 80, ""),
    ("outside", "x4:r2", 80, OUTSIDE4),
    ("outside", "x6:r2", 80, OUTSIDE6),
    ("outside", "x4:r2", 81, ""),
    ("outside", "x4:u2", 80, OUTSIDE4),
    ("outside", "x4:u2", 81, OUTSIDE4),
    ("outside", "x6:u2", 81, OUTSIDE6),
    ("outside", "x4:t2", 81, OUTSIDE4),  # over a trusted interface
    ("outside", "x4:w2", 80, ""),
    # to the outside
    ("a2", OUTSIDE4, 80, HOST4),
    ("a2", OUTSIDE6, 80, HOST6),
    ("u2", OUTSIDE4, 80, HOST4),
    ("i2", OUTSIDE4, 80, HOST4),
    ("r2", OUTSIDE4, 80, "172.30.4.2"),
    ("r2", OUTSIDE6, 80, "fd00:0:0:4::2"),
    ("m2", OUTSIDE4, 80, "192.0.2.77"),
    ("w2", OUTSIDE4, 80, "172.30.9.2"),
    ("n2", OUTSIDE4, 80, ""),
    ("n2", OUTSIDE6, 80, ""),
    # within a network
    ("a2", "x4:a3", 81, "172.30.1.2"),
    ("a2", "x6:a3", 81, "fd00:0:0:1::2"),
    ("n2", "x4:n3", 81, "172.30.3.2"),
    # between networks
    ("a2", "x4:b2", 80, ""),
    ("b2", "x4:a2", 80, ""),
    ("a2", "x6:b2", 80, ""),
    ("a2", "x4:u2", 81, ""),
    ("a2", "x4:t2", 81, ""),
    ("a2", "x4:n2", 80, ""),
    ("n2", "x4:a2", 80, ""),
    ("u2", "x4:a2", 80, ""),
    ("a2", "x4:r2", 80, "172.30.4.1"),  # published, routed: reachable from everywhere
    ("a2", "x4:r2", 81, ""),
    # published ports from containers: another network's, the same network's, its own, by every address of the host
    ("b2", HOST4, 8080, "172.30.1.1"),
    ("b2", HOST6, 8080, "fd00:0:0:1::1"),
    ("b2", "172.30.2.1", 8080, "172.30.1.1"),
    ("b2", "172.30.1.1", 8080, "172.30.1.1"),
    ("a3", HOST4, 8080, "172.30.1.1"),
    ("a3", HOST6, 8080, "fd00:0:0:1::1"),
    ("a2", HOST4, 8080, "172.30.1.1"),
    ("a2", HOST6, 8080, "fd00:0:0:1::1"),
    ("i3", HOST4, 8084, "172.30.6.1"),
    ("r2", HOST4, 8080, "172.30.4.2"),
    ("n2", HOST4, 8080, ""),
    ("n2", "172.30.3.1", 8080, ""),
    # published ports from the host itself
    ("host", "127.0.0.1", 8080, "172.30.1.1"),
    ("host", "127.0.0.1", 8091, "172.30.1.1"),
    ("host", HOST4, 8080, HOST4),
    ("host", HOST6, 8080, HOST6),
    ("host", "172.30.1.1", 8080, "172.30.1.1"),
    ("host", "x4:a2", 81, "172.30.1.1"),  # and containers' addresses
    ("host", "x4:n2", 81, "172.30.3.1"),
    # services of the host
    ("a2", HOST4, 9000, "172.30.1.2"),
    ("a2", "172.30.1.1", 9000, "172.30.1.2"),
    ("a2", "172.30.2.1", 9000, "172.30.1.2"),
    ("a2", HOST6, 9000, "fd00:0:0:1::2"),
    ("n2", "172.30.3.1", 9000, "172.30.3.2"),
    ("n2", HOST4, 9000, ""),
    ("n2", "172.30.1.1", 9000, ""),
    ("n2", HOST6, 9000, ""),
    ("outside", HOST4, 9000, OUTSIDE4),
    ("outside", "172.30.1.1", 9000, OUTSIDE4),
]


def address(text: str) -> str:
    version, _, container = text.partition(":")
    return {"x4": ipv4, "x6": ipv6}[version](container) if version in ("x4", "x6") else text


@pytest.fixture(scope="module")
def answers(world: World) -> dict[tuple[str, str, int], str | None]:
    tries = [(place, address(text), number) for place, text, number, _ in CASES]
    return dict(zip([case[:3] for case in CASES], world.ask(tries, [seen or None for *_, seen in CASES]), strict=True))


def test_containers_that_may_not_speak_with_each_other(world: World) -> None:
    """Without br_netfilter it is the bridge that keeps them apart, not the firewall."""
    expected = [None, None] if world.bridged else ["172.30.6.2", "fd00:0:0:6::2"]
    assert world.ask([("i2", ipv4("i3"), 81), ("i2", ipv6("i3"), 81)], expected) == expected


@pytest.mark.parametrize(("place", "text", "number", "seen"), CASES, ids=lambda value: str(value))
def test_who_reaches_whom(answers: dict[tuple[str, str, int], str | None], place: str, text: str, number: int, seen: str) -> None:
    assert (answers[place, text, number] or "") == seen


def test_datagrams(world: World) -> None:
    tries = [("outside", HOST4, 8053), ("b2", HOST4, 8053), ("host", "127.0.0.1", 8053), ("outside", ipv4("a2"), 80), ("a2", OUTSIDE4, 80)]
    expected = [OUTSIDE4, "172.30.1.1", "172.30.1.1", None, HOST4]
    assert world.ask(tries, expected, socket.SOCK_DGRAM) == expected


def test_the_hosts_loopback_services_stay_its_own(world: World) -> None:
    """A hostile container sends what is for 127.0.0.1 to the host, whose bridge routes loopback addresses (for the host's own use)."""
    hostile = world.places["a3"]
    hostile.sysctl("ipv4/conf/all/route_localnet", "1")
    hostile.ip("link", "set", "lo", "down")
    hostile.ip("route", "add", "127.0.0.1", "via", "172.30.1.1", "table", "1")
    hostile.ip("rule", "add", "pref", "1", "to", "127.0.0.1", "lookup", "1")
    hostile.ip("rule", "del", "pref", "0")
    hostile.ip("rule", "add", "pref", "2", "lookup", "local")
    try:
        world.check([("host", "127.0.0.1", 9001), ("a3", "127.0.0.1", 9001), ("a3", "127.0.0.1", 8091)], ["127.0.0.1", None, None])
        world.host.run("nft", "delete", "chain", "inet", NAME, "raw")
        world.check([("a3", "127.0.0.1", 9001)], ["172.30.1.3"])  # the attack is a real one
    finally:
        world.replace(MODEL)
        hostile.ip("rule", "add", "pref", "0", "lookup", "local")


def test_what_the_kernel_has_is_what_the_text_says(world: World) -> None:
    """The text is loaded by nft in a namespace of its own; both list alike."""
    text = render(ruleset(MODEL, NAME))
    with made("ktf") as other:
        other.run("nft", "-f", "-", input=text)
        assert world.host.run("nft", "list", "ruleset").stdout == other.run("nft", "list", "ruleset").stdout


def test_elements_come_and_go_like_the_whole(world: World) -> None:
    """Single changes lead to what a replacement would have led to."""
    less = Model(bridges=MODEL.bridges, members=MODEL.members[1:], ports=MODEL.ports[1:-2])

    def listed() -> str:
        return world.host.run("nft", "-j", "list", "ruleset").stdout

    before = ordered(listed())
    there, back = changes(MODEL, less, NAME), changes(less, MODEL, NAME)
    assert there and back
    assert not world.nft.update(there, lambda: pytest.fail("replaced"))
    try:
        world.check([("outside", HOST4, 8080), ("outside", HOST6, 8080)], [None, OUTSIDE6])
        world.check([("a2", OUTSIDE4, 80)], [HOST4])  # no member is no guarded link
    finally:
        assert not world.nft.update(back, lambda: pytest.fail("replaced"))
    assert ordered(listed()) == before


def ordered(listing: str) -> list[str]:
    """What nft lists, without the handles, in an order of its own."""
    found = []
    for one in json.loads(listing)["nftables"]:
        kind, value = next(iter(one.items()))
        value.pop("handle", None)
        if "elem" in value:
            value["elem"] = sorted(json.dumps(element) for element in value["elem"])
        found.append(json.dumps({kind: value}))
    return sorted(found)


def test_connections_live_through_a_replacement_and_a_flush(world: World) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Echo(world.places["a2"], 82))
        model = Model(bridges=MODEL.bridges, members=MODEL.members, ports=(*MODEL.ports, port("a2", "0.0.0.0", 8099, 82)))
        world.replace(model)
        connections = [world.places[place].connect(HOST4, 8099) for place in ("outside", "b2", "host")]
        for number in range(50):
            world.replace(model if number % 2 else MODEL)
            for one in connections:
                one.sendall(b"x")
                assert one.recv(1) == b"x"
        # Without address translation a late acknowledgement would end the connection: none may be under way.
        assert eventually(lambda: all(acknowledged(world.places[name]) for name in ("a2", "outside", "b2", "host")))
        world.host.run("nft", "flush", "ruleset")
        gone = changes(model, MODEL, NAME)
        assert gone
        assert world.nft.update(gone, lambda: ruleset(MODEL, NAME).tables)  # found that out, and made everything again
        for one in connections:
            one.sendall(b"y")
            assert one.recv(1) == b"y"
            one.close()
        assert len(server.peers) == 3
    world.check([("outside", HOST4, 8080), ("outside", HOST4, 8099)], [OUTSIDE4, None])


def acknowledged(place: Namespace) -> bool:
    """Whether the other ends have all that was sent on TCP connections of a namespace."""
    rows = place.run("ss", "-tnH", "state", "established").stdout.splitlines()
    return all(row.split()[1] == "0" for row in rows)


def test_others_drops_are_respected_and_others_tables_are_left_alone(world: World) -> None:
    rules = "table inet other { chain f { type filter hook forward priority 10; policy accept; tcp dport 80 drop; }; }"
    world.host.run("nft", "-f", "-", input=rules.replace("; }", "\n}").replace("; ", "\n"))
    try:
        world.replace(MODEL)
        world.check([("outside", HOST4, 8080), ("outside", ipv4("u2"), 81)], [None, OUTSIDE4])
    finally:
        world.host.run("nft", "delete", "table", "inet", "other")
    world.check([("outside", HOST4, 8080)], [OUTSIDE4])


def test_a_host_that_was_no_router_forwards_for_nobody_else(world: World) -> None:
    """A second neighbour of the host reaches the first one through it, unless that was never meant to be."""
    with made("ktf") as neighbour, joined(world.host, neighbour, ["198.51.100.1/24"], ["198.51.100.2/24"]):
        neighbour.ip("route", "add", "default", "via", "198.51.100.1")
        world.places["second"] = neighbour
        try:
            world.check([("second", OUTSIDE4, 80), ("second", HOST4, 8080)], ["198.51.100.2", "198.51.100.2"])
            world.replace(msgspec.structs.replace(MODEL, drop_foreign_forward=True))
            tries = [("second", OUTSIDE4, 80), ("second", HOST4, 8080), ("a2", OUTSIDE4, 80)]
            world.check(tries, [None, "198.51.100.2", HOST4])
        finally:
            del world.places["second"]
            world.replace(MODEL)


def test_a_refused_change_names_its_object_and_changes_nothing(world: World) -> None:
    before = world.host.run("nft", "list", "ruleset").stdout
    double = Bridge(link="br-x", subnets=("172.30.1.128/25",))
    with pytest.raises(NftablesError, match="changing the firewall: elements of map direct4 of table inet knarr: File exists"):
        world.replace(Model(bridges=(*MODEL.bridges, double)))
    with pytest.raises(NftablesError, match="table nothing of table inet: No such file or directory"):
        world.nft.commit([delete_table("inet", "nothing")])
    assert world.host.run("nft", "list", "ruleset").stdout == before


def test_a_thousand_networks_are_one_transaction(world: World) -> None:
    many = [Bridge(link=f"br{n}", subnets=(f"10.{n >> 8}.{n & 255}.0/24", f"fd01:{n:x}::/64")) for n in range(1000)]
    members = [Member(link=f"v{n}", bridge=f"br{n}", mac="02:42:00:00:00:02", ipv4=f"10.{n >> 8}.{n & 255}.2") for n in range(1000)]
    try:
        world.replace(Model(bridges=(*MODEL.bridges, *many), members=(*MODEL.members, *members), ports=MODEL.ports))
        world.check([("outside", HOST4, 8080), ("a2", OUTSIDE4, 80), ("a2", ipv4("b2"), 80)], [OUTSIDE4, HOST4, None])
    finally:
        world.replace(MODEL)


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def raw_mac(container: str) -> bytes:
    return bytes.fromhex(mac(container).replace(":", ""))


def ether(kind: int, body: bytes, source: str = "a3", vlan: bool = False) -> bytes:
    tag = struct.pack("!HH", 0x8100, 5) if vlan else b""
    return raw_mac("a2") + raw_mac(source) + tag + struct.pack("!H", kind) + body


def v4(sender: str, mark: bytes, **options: Any) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(mark), 0, 0, 64, 253, 0)
    addresses = socket.inet_aton(sender) + socket.inet_aton(ipv4("a2"))
    return ether(0x800, head[:10] + struct.pack("!H", checksum(head + addresses)) + addresses + mark, **options)


def arp(source: str, claimed: str, mark: bytes) -> bytes:
    sender = raw_mac(source) + socket.inet_aton(claimed)
    return ether(0x806, struct.pack("!HHBBH", 1, 0x800, 6, 4, 2) + sender + raw_mac("a2") + socket.inet_aton(ipv4("a2")) + mark)


def v6(source: str, body: bytes, next_header: int = 253) -> bytes:
    addresses = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, ipv6("a2"))
    if next_header == 58:
        total = checksum(addresses + struct.pack("!II", len(body), 58) + body)
        body = body[:2] + struct.pack("!H", total) + body[4:]
    return ether(0x86DD, struct.pack("!IHBB", 6 << 28, len(body), next_header, 255) + addresses + body)


def neighbour(source: str, kind: int, mark: bytes, target: str = "") -> bytes:
    options = b"\x02\x01" + raw_mac("a3") + b"\xfa\x01" + mark
    body = struct.pack("!BBHI", kind, 0, 0, 0x20000000) + (socket.inet_pton(socket.AF_INET6, target) if target else bytes(8))
    return v6(source, body + options, 58)


A3, GATEWAY6 = ipv6("a3"), "fd00:0:0:1::1"
# What a3 sends to a2 (with a mark of six bytes in it), and whether it may.
FRAMES: dict[str, tuple[Callable[[bytes], bytes], bool]] = {
    "its own address": (lambda mark: v4(ipv4("a3"), mark), True),
    "another's address": (lambda mark: v4("172.30.1.4", mark), False),
    "the gateway's address": (lambda mark: v4("172.30.1.1", mark), False),
    "another's link address": (lambda mark: v4(ipv4("a3"), mark, source="b2"), False),
    "no address yet": (lambda mark: v4("0.0.0.0", mark), True),
    "another's address in a VLAN": (lambda mark: v4("172.30.1.4", mark, vlan=True), False),
    "another's address in IPv6": (lambda mark: v6("fd00:0:0:1::4", mark), False),
    "its own address in IPv6": (lambda mark: v6(A3, mark), True),
    "a link-local address": (lambda mark: v6("fe80::1234", mark), True),
    "says who it is": (lambda mark: arp("a3", ipv4("a3"), mark), True),
    "says it is the gateway": (lambda mark: arp("a3", "172.30.1.1", mark), False),
    "says another is itself": (lambda mark: arp("b2", ipv4("a3"), mark), False),
    "asks for a free address": (lambda mark: arp("a3", "0.0.0.0", mark), True),
    "says who it is in IPv6": (lambda mark: neighbour(A3, 136, mark, A3), True),
    "says it is the gateway in IPv6": (lambda mark: neighbour(A3, 136, mark, GATEWAY6), False),
    "says it is the gateway, link-local": (lambda mark: neighbour("fe80::5", 136, mark, GATEWAY6), False),
    "says it is a router": (lambda mark: neighbour("fe80::5", 134, mark), False),
    "redirects": (lambda mark: neighbour("fe80::5", 137, mark, A3), False),
    "asks a neighbour": (lambda mark: neighbour(A3, 135, mark, ipv6("a2")), True),
    "an unknown protocol": (lambda mark: ether(0x88B5, mark), False),
}


def sniffed(world: World, expected: set[str]) -> set[str]:
    """Which of FRAMES a2 gets when a3 sends them all; those that are expected are waited for."""
    with world.places["a2"], socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as listener:
        listener.bind(("eth0", 3))
        with world.places["a3"], socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind(("eth0", 0))
            for number, (frame, _) in enumerate(FRAMES.values()):
                sender.send(frame(b"mark%02d" % number))
        found: set[str] = set()
        with contextlib.suppress(TimeoutError):
            while True:
                listener.settimeout(0.2 if found >= expected else PATIENCE)
                _, marked, number = listener.recv(2000).partition(b"mark")
                if marked:
                    found.add(list(FRAMES)[int(number[:2])])
    return found


def test_a_container_cannot_pretend_to_be_another(world: World) -> None:
    allowed = {name for name, (_, passes) in FRAMES.items() if passes}
    assert sniffed(world, allowed) == allowed
    try:
        trusting = tuple(msgspec.structs.replace(one, antispoof=False) for one in MODEL.bridges)
        world.replace(msgspec.structs.replace(MODEL, bridges=trusting))
        assert sniffed(world, set(FRAMES)) == set(FRAMES)
    finally:
        world.replace(MODEL)


def test_a_network_cannot_send_with_foreign_addresses(world: World) -> None:
    """Seen from outside, with a host whose bridge tables are not there."""
    world.host.run("nft", "delete", "table", "bridge", NAME)
    hostile = world.places["r2"]
    hostile.ip("addr", "add", "198.51.100.9/32", "dev", "lo")
    world.host.ip("route", "add", "198.51.100.9/32", "via", ipv4("r2"))
    try:
        with world.places["outside"], socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind((OUTSIDE4, 99))
            server.settimeout(PATIENCE)
            with (
                hostile,
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as spoofing,
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own,
            ):
                spoofing.bind(("198.51.100.9", 0))
                spoofing.sendto(b"spoofed", (OUTSIDE4, 99))
                own.sendto(b"own", (OUTSIDE4, 99))
            assert server.recv(10) == b"own"
    finally:
        hostile.ip("addr", "del", "198.51.100.9/32", "dev", "lo")
        world.replace(MODEL)


def test_removed_without_a_trace(world: World) -> None:
    world.nft.remove([("inet", NAME), ("bridge", NAME), ("inet", "never-there")])
    assert world.host.run("nft", "list", "ruleset").stdout == ""
    world.replace(MODEL)
