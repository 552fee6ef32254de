"""Links, addresses and routes in real network namespaces: one plays the host, the others are containers'."""

from __future__ import annotations

import errno
import gc
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from engine.errors import Conflict, KnarrError
from engine.linux import namespaces
from engine.linux.rtnetlink import Rtnetlink
from engine.network import bridge, macvlan, nameserver, sandbox
from engine.network.sandbox import BARE, BRIDGE, NAMED, Port, Prepared
from engine.spec.network import Endpoint
from engine.wire import rtnetlink as wire
from engine.wire.links import Link

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

OPTIONS = bridge.Options(mac="02:42:0a:4d:00:01")
GATEWAYS = [("10.77.0.1", 24)]


class Host:
    """A namespace that plays the host."""

    def __init__(self) -> None:
        self.ns = namespaces.new_network()
        self.netlink = Rtnetlink(self.ns)
        self.netlink.batch([wire.set_link(1, up=True)])
        self.made: list[Prepared] = []

    def bridge(self, name: str = "knarr0", gateways: list[tuple[str, int]] = GATEWAYS, options: bridge.Options = OPTIONS) -> int:
        with namespaces.inside(self.ns):
            return bridge.ensure(name, gateways, self.netlink, options).index

    def prepare(self, kind: str = BRIDGE, **options: object) -> Prepared:
        self.made.append(sandbox.prepare(kind, self.netlink, **options))  # type: ignore[arg-type]
        return self.made[-1]

    def container(self, number: int, port: Port, endpoint: Endpoint | None = None) -> Prepared:
        prepared = self.prepare()
        sandbox.configure(prepared, endpoint or an_endpoint(number), self.netlink, port=port)
        return prepared

    def close(self) -> None:
        for one in self.made:
            one.close()
        self.netlink.close()
        os.close(self.ns)


@pytest.fixture
def host() -> Iterator[Host]:
    with closing(Host()) as made:
        yield made


def an_endpoint(number: int, **more: object) -> Endpoint:
    values: dict[str, object] = {
        "id": f"e{number}",
        "network_id": "n",
        "mac": f"02:42:0a:4d:00:{number:02x}",
        "ipv4": f"10.77.0.{number}",
        "ipv4_prefix": 24,
        "ipv4_gateway": "10.77.0.1",
    }
    return Endpoint(**(values | more))  # type: ignore[arg-type]


def pings(ns: int, address: str, *, wait: float = 30.0) -> bool:
    """Whether `address` answers a datagram within `wait` seconds: an echo, which every kernel sends."""
    family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if ":" in address else (socket.AF_INET, socket.IPPROTO_ICMP)
    echo = b"\x80\0\0\0\0\1\0\1" if family == socket.AF_INET6 else b"\x08\0\0\0\0\1\0\1"
    with namespaces.inside(ns):
        link = socket.socket(family, socket.SOCK_RAW, protocol)
    with link:
        link.settimeout(wait)
        try:
            link.connect((address, 0))
            if family == socket.AF_INET:
                echo = b"\x08\0\xf7\xfd\0\1\0\1"
            link.send(echo)
            wanted = 0x81 if family == socket.AF_INET6 else 0
            while True:
                data = link.recv(2000)
                if data[0 if family == socket.AF_INET6 else (data[0] & 15) * 4] == wanted:
                    return True
        except OSError:
            return False


def gone(netlink: Rtnetlink, name: str) -> bool:
    """Whether a link goes within a minute: the kernel removes namespaces in the background."""
    for _ in range(6000):
        if netlink.link(name=name) is None:
            return True
        time.sleep(0.01)
    return False


def link_of(netlink: Rtnetlink, name: str) -> Link:
    link = netlink.link(name=name)
    assert link is not None
    return link


def sysctl(ns: int, key: str) -> str:
    with namespaces.inside(ns):
        return Path("/proc/sys/net", key).read_text().strip()


# Namespaces


def own() -> tuple[int, int]:
    status = os.stat("/proc/thread-self/ns/net")
    return status.st_dev, status.st_ino


def fail_inside(host: Host, seen: list[tuple[int, int]]) -> None:
    """Enters a namespace, a new one in it and the first again, then fails."""
    with namespaces.inside(host.ns):
        seen.append(own())
        with namespaces.inside_new() as ns, namespaces.inside(host.ns):
            seen += [own(), (ns, 0)]
            raise ZeroDivisionError


def test_inside_comes_back_whatever_happens(host: Host) -> None:
    before, seen = own(), []
    there = os.fstat(host.ns)
    with pytest.raises(ZeroDivisionError):
        fail_inside(host, seen)
    assert own() == before
    assert seen[:2] == [(there.st_dev, there.st_ino)] * 2
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(seen[2][0])


def test_other_threads_stay_where_they_are(host: Host) -> None:
    before, seen = own(), []
    with namespaces.inside(host.ns):
        thread = threading.Thread(target=lambda: seen.append(own()))
        thread.start()
        thread.join()
    # A thread starts in the namespace of the one that starts it; the first thread is not moved by it.
    assert seen == [(os.fstat(host.ns).st_dev, os.fstat(host.ns).st_ino)]
    assert own() == before


def test_a_descriptor_that_is_no_namespace_changes_nothing() -> None:
    before = own()
    with open("/dev/null") as file, pytest.raises(OSError, match="setns"), namespaces.inside(file.fileno()):
        pass
    assert own() == before


def test_a_thread_that_cannot_come_back_ends_the_process() -> None:
    program = """
from engine import _core
from engine.linux import namespaces
ns = namespaces.new_network()
real = _core.setns
_core.setns = lambda fd, kind: real(fd if fd == ns else -1, kind)
try:
    with namespaces.inside(ns):
        pass
except BaseException:
    pass
print("still there")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 70
    assert ended.stdout == ""
    assert "cannot leave a container's network namespace" in ended.stderr


def test_a_processes_namespace() -> None:
    with open(namespaces.of_process(os.getpid())) as mine, open(namespaces.own_network()) as here:
        assert namespaces.same(mine.fileno(), here.fileno())


# The socket


def test_a_failed_batch_names_what_failed_and_why(host: Host) -> None:
    with pytest.raises(FileExistsError, match="creating the bridge twice: File exists"):
        host.netlink.batch([wire.add_bridge("twice"), wire.add_bridge("twice"), wire.add_bridge("after")])
    assert host.netlink.link(name="after") is not None  # the others were tried
    with pytest.raises(OSError, match=r"via 192\.0\.2\.1: Network is unreachable: Nexthop has invalid gateway"):
        host.netlink.batch([wire.add_route("10.0.0.0", 8, index=1, gateway="192.0.2.1")])
    host.netlink.batch([wire.delete_link(name="nosuch", ignore=(errno.ENODEV,))])
    assert host.netlink.link(name="nosuch") is None
    assert host.netlink.link(index=4711) is None


def test_a_socket_goes_on_after_a_failure(host: Host) -> None:
    for _ in range(3):
        with pytest.raises(OSError, match="setting up the link 4711: No such device"):
            host.netlink.batch([wire.set_link(4711, up=True), wire.set_link(4712, up=True)])
    assert [link.name for link in host.netlink.links()] == ["lo"]


def test_long_dumps_are_read_whole(host: Host) -> None:
    index = host.bridge()
    addresses = [f"10.88.{n // 200}.{n % 200 + 1}" for n in range(1000)]
    for first in range(0, 1000, 250):
        host.netlink.batch([wire.add_address(index, one, 32) for one in addresses[first : first + 250]])
    assert {one.address for one in host.netlink.addresses(index) if one.version == 4} == {*addresses, "10.77.0.1"}


def test_routes_and_aliases(host: Host) -> None:
    index = host.bridge()
    host.netlink.batch(
        [
            wire.set_link(index, alias="of a test"),
            wire.add_route("10.99.0.0", 16, index=index, gateway="10.77.0.9", metric=7),
            wire.add_route("10.98.0.0", 16, index=index),
            wire.add_route("10.97.0.0", 16, index=index, gateway="203.0.113.1", onlink=True),
        ]
    )
    found = {route.destination: route for route in host.netlink.routes()}
    assert (found["10.99.0.0/16"].gateway, found["10.99.0.0/16"].metric) == ("10.77.0.9", 7)
    assert (found["10.98.0.0/16"].gateway, found["10.98.0.0/16"].scope) == ("", wire.RT_SCOPE_LINK)
    assert found["10.97.0.0/16"].gateway == "203.0.113.1"
    assert link_of(host.netlink, "knarr0").alias == "of a test"
    host.netlink.batch([wire.delete_route("10.99.0.0", 16, gateway="10.77.0.9"), wire.delete_address(index, "10.77.0.1", 24)])
    assert "10.99.0.0/16" not in {route.destination for route in host.netlink.routes()}


# Containers on a bridge


def test_containers_reach_each_other_and_the_host(host: Host) -> None:
    index = host.bridge()
    one, _ = host.container(2, Port(index)), host.container(3, Port(index))
    assert pings(one.ns, "10.77.0.3")
    assert pings(one.ns, "10.77.0.1")
    assert pings(host.ns, "10.77.0.2")


def test_what_a_container_sees(host: Host) -> None:
    index = host.bridge()
    prepared = host.container(2, Port(index), an_endpoint(2, ifname="lan7"))
    links, addresses, routes = sandbox.observe(prepared.ns)
    assert {link.name: (link.up, link.mac, link.kind) for link in links} == {
        "lo": (True, "00:00:00:00:00:00", ""),
        "lan7": (True, "02:42:0a:4d:00:02", "veth"),
    }
    assert {(one.address, one.prefix) for one in addresses} == {("127.0.0.1", 8), ("::1", 128), ("10.77.0.2", 24)}
    assert {(one.destination, one.gateway) for one in routes if ":" not in one.destination} == {
        ("0.0.0.0/0", "10.77.0.1"),
        ("10.77.0.0/24", ""),
    }
    assert sysctl(prepared.ns, "ipv4/ip_unprivileged_port_start") == "0"
    assert sysctl(prepared.ns, "ipv4/ping_group_range").split() == ["0", "2147483647"]
    assert sysctl(prepared.ns, "ipv6/conf/lan7/disable_ipv6") == "1"
    assert sysctl(prepared.ns, "ipv6/conf/lan7/accept_ra") == "0"
    assert sysctl(prepared.ns, "ipv6/conf/default/disable_ipv6") == "0"  # links that the container makes have it


def test_both_address_families(host: Host) -> None:
    index = host.bridge(gateways=[*GATEWAYS, ("fd77::1", 64)], options=bridge.Options(ipv6=True))
    dual = {"ipv6_prefix": 64, "ipv6_gateway": "fd77::1"}
    one = host.container(2, Port(index), an_endpoint(2, ipv6="fd77::2", **dual))
    only = an_endpoint(3, ipv6="fd77::3", ipv4="", ipv4_prefix=0, ipv4_gateway="", **dual)
    other = host.container(3, Port(index), only)
    assert pings(one.ns, "fd77::3")
    assert pings(other.ns, "fd77::1")
    assert pings(one.ns, "10.77.0.1")
    assert ("::/0", "fd77::1") in {(route.destination, route.gateway) for route in sandbox.observe(other.ns).routes}
    assert not [route for route in sandbox.observe(other.ns).routes if route.destination == "0.0.0.0/0"]


def test_a_namespace_prepared_for_a_bridge_needs_nothing_outside(host: Host) -> None:
    index = host.bridge()
    port = Port(index, hairpin=True)
    prepared = host.prepare(port=port)
    with Rtnetlink(prepared.ns) as nowhere:  # knows no outer end: using it would fail
        sandbox.configure(prepared, an_endpoint(2), nowhere, port=port)
    assert pings(prepared.ns, "10.77.0.1")


def test_a_namespace_prepared_for_another_bridge(host: Host) -> None:
    first, second = host.bridge(), host.bridge("other", [("10.78.0.1", 24)], bridge.Options())
    prepared = host.prepare(port=Port(second, isolated=True))
    sandbox.configure(prepared, an_endpoint(2), host.netlink, port=Port(first), mtu=1400)
    assert pings(prepared.ns, "10.77.0.1")
    assert prepared.pair is not None
    outer = link_of(host.netlink, prepared.pair.outer)
    assert (outer.master, outer.mtu, outer.port and outer.port.isolated) == (first, 1400, False)
    assert [link.mtu for link in sandbox.observe(prepared.ns).links if link.name == "eth0"] == [1400]


def test_isolated_ports_reach_the_host_only(host: Host) -> None:
    index = host.bridge()
    port = Port(index, hairpin=True, isolated=True)
    one, _ = host.container(2, port), host.container(3, port)
    assert pings(one.ns, "10.77.0.1")
    assert not pings(one.ns, "10.77.0.3", wait=0.3)
    assert one.pair is not None
    outer = link_of(host.netlink, one.pair.outer)
    assert outer.port is not None
    assert (outer.port.hairpin, outer.port.isolated, outer.port.learning) == (True, True, True)


def test_without_a_default_route(host: Host) -> None:
    prepared = host.prepare()
    sandbox.configure(prepared, an_endpoint(2), host.netlink, port=Port(host.bridge()), default_route=False)
    assert "0.0.0.0/0" not in {route.destination for route in sandbox.observe(prepared.ns).routes}


def test_the_kernel_removes_what_nobody_holds(host: Host) -> None:
    prepared = host.container(2, Port(host.bridge()))
    assert prepared.pair is not None
    sandbox.release(prepared.pair.outer, host.netlink)
    outer = link_of(host.netlink, prepared.pair.outer)
    assert (outer.up, outer.master) == (False, 0)
    prepared.close()
    prepared.close()
    assert gone(host.netlink, prepared.pair.outer)
    sandbox.release(prepared.pair.outer, host.netlink)


def test_a_bare_namespace_has_no_pair(host: Host) -> None:
    prepared = host.prepare(BARE)
    assert [link.name for link in sandbox.observe(prepared.ns).links] == ["lo"]
    assert pings(prepared.ns, "127.0.0.1")
    with pytest.raises(ValueError, match="no pair"):
        sandbox.configure(prepared, an_endpoint(2), host.netlink, port=Port())


def test_a_failed_preparation_leaves_nothing(host: Host) -> None:
    gc.collect()  # what an earlier test left to the collector must not go in between
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="creating the veth pair"):
        sandbox.prepare(BRIDGE, host.netlink, port=Port(4711))
    assert set(os.listdir("/proc/self/fd")) <= before  # a thread of an earlier test may have closed one
    for link in host.netlink.links():
        assert link.name == "lo" or gone(host.netlink, link.name)


# Connect and disconnect


def test_connect_and_disconnect_while_running(host: Host) -> None:
    first, second = host.bridge(), host.bridge("other", [("10.78.0.1", 24)], bridge.Options())
    prepared = host.container(2, Port(first))
    endpoint = an_endpoint(5, ipv4="10.78.0.5", ipv4_gateway="10.78.0.1")
    endpoint.ifname, endpoint.link = sandbox.attach(prepared.ns, endpoint, host.netlink, port=Port(second))
    assert endpoint.ifname == "eth1"
    assert pings(prepared.ns, "10.78.0.1")
    assert pings(prepared.ns, "10.77.0.1")
    sandbox.detach(endpoint, host.netlink)
    assert host.netlink.link(name=endpoint.link) is None
    assert "eth1" not in {link.name for link in sandbox.observe(prepared.ns).links}
    sandbox.detach(endpoint, host.netlink)
    assert pings(prepared.ns, "10.77.0.1")


def test_connect_with_a_name_that_is_taken_leaves_nothing(host: Host) -> None:
    index = host.bridge()
    prepared = host.container(2, Port(index))
    before = {link.name for link in host.netlink.links()}
    with pytest.raises(FileExistsError, match="veth pair"):
        sandbox.attach(prepared.ns, an_endpoint(3, ifname="eth0"), host.netlink, port=Port(index))
    with pytest.raises(OSError, match="adding the route to"):
        sandbox.attach(prepared.ns, an_endpoint(4, ipv4_gateway="192.0.2.1"), host.netlink, port=Port(index), default_route=True)
    assert {link.name for link in host.netlink.links()} == before
    assert [link.name for link in sandbox.observe(prepared.ns).links] == ["lo", "eth0"]


def test_default_routes_move_and_go(host: Host) -> None:
    options = bridge.Options(ipv6=True)
    first = host.bridge(gateways=[*GATEWAYS, ("fd77::1", 64)], options=options)
    second = host.bridge("other", [("10.78.0.1", 24), ("fd78::1", 64)], options)
    one = an_endpoint(2, ifname="eth0", ipv6="fd77::2", ipv6_prefix=64, ipv6_gateway="fd77::1")
    prepared = host.container(2, Port(first), one)
    two = an_endpoint(5, ipv4="10.78.0.5", ipv4_gateway="10.78.0.1", ipv6="fd78::5", ipv6_prefix=64, ipv6_gateway="fd78::1")
    two.ifname, two.link = sandbox.attach(prepared.ns, two, host.netlink, port=Port(second))

    def gateways() -> set[str]:
        return {route.gateway for route in sandbox.observe(prepared.ns).routes if route.destination.endswith("/0")}

    assert gateways() == {"10.77.0.1", "fd77::1"}
    sandbox.set_gateways(prepared.ns, two, two)
    assert gateways() == {"10.78.0.1", "fd78::1"}
    sandbox.set_gateways(prepared.ns, one, two)
    assert gateways() == {"10.77.0.1", "fd78::1"}
    sandbox.set_gateways(prepared.ns, None, None)
    sandbox.set_gateways(prepared.ns, None, None)
    assert gateways() == set()
    sandbox.set_gateways(prepared.ns, one, None)
    assert gateways() == {"10.77.0.1"}
    one.ifname = "nosuch"
    with pytest.raises(OSError, match="no link nosuch"):
        sandbox.set_gateways(prepared.ns, one, None)


# The name server's place


def answer_once(datagrams: socket.socket, listener: socket.socket) -> None:
    """Sends one datagram and what one connection sends back, marked."""
    question, asker = datagrams.recvfrom(2000)
    datagrams.sendto(b"embedded:" + question, asker)
    with listener.accept()[0] as client:
        client.sendall(b"embedded:" + client.recv(2000))


def ask(ns: int, address: str) -> tuple[bytes, bytes]:
    """What port 53 of `address` answers in a namespace, by datagram and by connection."""
    with namespaces.inside(ns):
        datagrams, stream = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket()
    with datagrams, stream:
        for link in (datagrams, stream):
            link.settimeout(30)
            link.connect((address, 53))
            link.send(b"who?")
        return datagrams.recv(2000), stream.recv(2000)


def check_nameserver(ns: int, descriptors: tuple[int, int]) -> None:
    """The embedded name server is asked on 127.0.0.11, while a server of the container's own has port 53 of all addresses."""
    with namespaces.inside(ns):
        own, own_listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket()
    with own, own_listener, socket.socket(fileno=descriptors[0]) as datagrams, socket.socket(fileno=descriptors[1]) as listener:
        own.bind(("0.0.0.0", 53))
        own_listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own_listener.bind(("0.0.0.0", 53))
        own_listener.listen()
        for address, servers in (
            ("127.0.0.11", (datagrams, listener)),
            ("127.0.0.1", (own, own_listener)),
            ("127.0.0.11", (datagrams, listener)),
        ):
            thread = threading.Thread(target=answer_once, args=servers)
            thread.start()
            assert ask(ns, address) == (b"embedded:who?", b"embedded:who?")
            thread.join()


def test_the_embedded_nameserver_beside_a_containers_own(host: Host) -> None:
    prepared = host.prepare(NAMED)
    check_nameserver(prepared.ns, (os.dup(prepared.udp), os.dup(prepared.tcp)))


def test_the_nameserver_comes_to_a_running_container_and_again(host: Host) -> None:
    prepared = host.container(2, Port(host.bridge()))
    for _ in range(2):
        check_nameserver(prepared.ns, nameserver.open_in(prepared.ns))
    held = nameserver.open_in(prepared.ns)
    with pytest.raises(OSError, match="in use"):
        nameserver.open_in(prepared.ns)
    for fd in held:
        os.close(fd)


def test_the_namespace_of_a_nameserver_has_no_connection_tracking(host: Host) -> None:
    prepared = host.prepare(NAMED)
    check_nameserver(prepared.ns, (os.dup(prepared.udp), os.dup(prepared.tcp)))
    count = Path("/proc/sys/net/netfilter/nf_conntrack_count")
    with namespaces.inside(prepared.ns):
        assert not count.exists() or count.read_text() == "0\n"


# The bridge


def test_a_bridge_is_made_once_and_adopted_then(host: Host) -> None:
    with namespaces.inside(host.ns):
        made = bridge.ensure("knarr0", GATEWAYS, host.netlink, OPTIONS)
        prepared = host.container(2, Port(made.index))
        before = link_of(host.netlink, "knarr0")
        assert bridge.ensure("knarr0", GATEWAYS, host.netlink, OPTIONS) == bridge.Ensured(made.index, False)
    assert made.created
    assert (before.mac, before.up, before.mtu) == ("02:42:0a:4d:00:01", True, 1500)
    assert before.bridge is not None
    assert (before.bridge.stp, before.bridge.forward_delay, before.bridge.mcast_snooping) == (False, 0, True)
    after = link_of(host.netlink, "knarr0")
    assert after == msgspec.structs.replace(before, flags=after.flags)  # that it has a carrier now is told a little later
    assert after.up
    assert [link.master for link in bridge.ports(made.index, host.netlink)] == [made.index]
    assert pings(prepared.ns, "10.77.0.1")


def test_a_bridge_that_differs_is_corrected_under_its_ports(host: Host) -> None:
    index = host.bridge(gateways=[("10.77.0.9", 24), ("10.77.0.1", 16), ("10.66.0.1", 16)])
    prepared = host.container(2, Port(index))
    wanted = bridge.Options(mac="02:42:00:00:00:99", mtu=1400, snooping=False, ipv6=True, route_localnet=True)
    with namespaces.inside(host.ns):
        host.netlink.batch([wire.set_link(index, up=False), wire.set_bridge(index, stp=True, forward_delay=1500)])
        assert bridge.ensure("knarr0", [*GATEWAYS, ("fd77::1", 64)], host.netlink, wanted).index == index
    link = link_of(host.netlink, "knarr0")
    assert (link.mac, link.mtu, link.up) == ("02:42:0a:4d:00:01", 1400, True)  # neighbours know its MAC
    assert link.bridge is not None
    assert (link.bridge.stp, link.bridge.mcast_snooping) == (False, False)
    addresses = {(one.address, one.prefix) for one in host.netlink.addresses(index) if not one.address.startswith("fe80")}
    assert addresses == {("10.77.0.1", 24), ("fd77::1", 64)}
    assert sysctl(host.ns, "ipv4/conf/knarr0/route_localnet") == "1"
    assert sysctl(host.ns, "ipv6/conf/knarr0/disable_ipv6") == "0"
    assert sysctl(host.ns, "ipv6/conf/knarr0/accept_ra") == "0"
    assert [port.name for port in bridge.ports(index, host.netlink)] == [prepared.pair and prepared.pair.outer]
    assert pings(prepared.ns, "10.77.0.1")


def test_somebody_elses_bridge_keeps_what_it_has(host: Host) -> None:
    index = host.bridge("lan", [("10.66.0.1", 16)], bridge.Options(mtu=1300, ipv6=True))
    with namespaces.inside(host.ns):
        bridge.ensure("lan", GATEWAYS, host.netlink, bridge.Options(), owned=False)
    assert {one.address for one in host.netlink.addresses(index) if one.version == 4} == {"10.66.0.1", "10.77.0.1"}
    assert link_of(host.netlink, "lan").mtu == 1300
    assert sysctl(host.ns, "ipv6/conf/lan/disable_ipv6") == "0"


def test_a_link_that_is_no_bridge_is_not_taken_for_one(host: Host) -> None:
    prepared = host.prepare()
    assert prepared.pair is not None
    with namespaces.inside(host.ns), pytest.raises(Conflict, match="is no bridge"):
        bridge.ensure(prepared.pair.outer, GATEWAYS, host.netlink, OPTIONS)
    assert not bridge.remove(prepared.pair.outer, host.netlink)
    assert host.netlink.link(name=prepared.pair.outer) is not None


def test_a_bridge_that_cannot_have_its_address_is_not_left(host: Host) -> None:
    with namespaces.inside(host.ns), pytest.raises(OSError, match="adding the address"):
        bridge.ensure("knarr0", [("10.77.0.1", 77)], host.netlink, OPTIONS)
    assert host.netlink.link(name="knarr0") is None


def test_removing_a_bridge(host: Host) -> None:
    host.bridge()
    assert bridge.remove("knarr0", host.netlink)
    assert not bridge.remove("knarr0", host.netlink)


def test_forwarding_is_switched_on_once(host: Host) -> None:
    host.bridge(options=bridge.Options(ipv6=True))
    host.prepare()
    with namespaces.inside(host.ns):
        Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
        assert bridge.forwarding(ipv4=False, ipv6=False) == (False, False)
        assert bridge.forwarding(ipv4=True, ipv6=False) == (True, False)
        assert bridge.forwarding(ipv4=True, ipv6=True) == (False, True)
        assert bridge.forwarding(ipv4=True, ipv6=True) == (False, False)
    assert sysctl(host.ns, "ipv4/ip_forward") == "1"
    assert sysctl(host.ns, "ipv6/conf/all/forwarding") == "1"
    assert sysctl(host.ns, "ipv6/conf/knarr0/accept_ra") == "0"
    assert host.made[0].pair is not None
    assert sysctl(host.ns, f"ipv6/conf/{host.made[0].pair.outer}/accept_ra") == "2"  # a host that listened to its router still does


def test_subnets_of_the_host(host: Host, tmp_path: Path) -> None:
    index = host.bridge("lan", [("192.0.2.7", 24), ("2001:db8::7", 64)], bridge.Options(ipv6=True))
    host.bridge("br-1", [("10.66.0.1", 16)])
    host.netlink.batch(
        [
            wire.add_route("0.0.0.0", 0, index=index, gateway="192.0.2.1"),
            wire.add_route("10.55.0.0", 16, index=index, gateway="192.0.2.2"),
        ]
    )
    resolvers = tmp_path / "resolv.conf"
    resolvers.write_text(
        "# a comment\nsearch example\nnameserver 198.51.100.1\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\nnameserver\nnameserver x\n"
    )
    assert bridge.hosts_subnets(host.netlink, without=["br-1"], resolvers=[str(resolvers), str(tmp_path / "none")]) == [
        "10.55.0.0/16",
        "192.0.2.0/24",
        "198.51.100.1/32",
        "2001:db8::/64",
        "fe80::1/128",
    ]


# Macvlan


@pytest.fixture
def lan(host: Host) -> Iterator[tuple[Host, int]]:
    """A host whose link `eth0` leads to another machine, 10.77.0.1: (host, index of eth0)."""
    machine = Host()
    try:
        host.netlink.batch([wire.add_veth("eth0", peer="eth0", peer_ns=machine.ns), wire.set_link(0, name="eth0", up=True)])
        index = link_of(machine.netlink, "eth0").index
        machine.netlink.batch([wire.set_link(index, up=True), wire.add_address(index, "10.77.0.1", 24)])
        yield host, link_of(host.netlink, "eth0").index
    finally:
        machine.close()


def connect(host: Host, parent: int, number: int, **options: object) -> tuple[Prepared, Endpoint]:
    prepared = host.prepare(BARE)
    endpoint = an_endpoint(number)
    endpoint.ifname = macvlan.connect(prepared.ns, prepared.netlink, endpoint, host.netlink, parent=parent, **options)  # type: ignore[arg-type]
    return prepared, endpoint


def test_macvlan_containers_are_machines_of_the_lan(lan: tuple[Host, int]) -> None:
    host, index = lan
    parent = macvlan.ensure_parent("eth0", "n", host.netlink)
    assert parent == macvlan.Parent(index, created=False)
    one, endpoint = connect(host, index, 2)
    two, _ = connect(host, index, 3)
    assert endpoint.ifname == "eth0"
    assert pings(one.ns, "10.77.0.1")
    assert pings(two.ns, "10.77.0.2")
    found = {link.name: link for link in sandbox.observe(one.ns).links}["eth0"]
    assert (found.kind, found.mac) == ("macvlan", "02:42:0a:4d:00:02")
    assert sysctl(one.ns, "ipv6/conf/eth0/disable_ipv6") == "1"
    sandbox.detach(endpoint, host.netlink, one.ns)
    assert [link.name for link in sandbox.observe(one.ns).links] == ["lo"]


def test_private_macvlan_containers_do_not_reach_each_other(lan: tuple[Host, int]) -> None:
    host, index = lan
    one, _ = connect(host, index, 2, mode="private", mtu=1400)
    connect(host, index, 3, mode="private")
    assert pings(one.ns, "10.77.0.1")
    assert not pings(one.ns, "10.77.0.3", wait=0.3)
    assert {link.mtu for link in sandbox.observe(one.ns).links if link.name == "eth0"} == {1400}


def test_a_macvlan_link_that_cannot_be_configured_is_not_left(lan: tuple[Host, int]) -> None:
    host, index = lan
    prepared = host.prepare(BARE)
    with pytest.raises(OSError, match="adding the route"):
        macvlan.connect(prepared.ns, prepared.netlink, an_endpoint(2, ipv4_gateway="192.0.2.1"), host.netlink, parent=index)
    assert [link.name for link in sandbox.observe(prepared.ns).links] == ["lo"]


@pytest.mark.parametrize(
    ("parent", "message"),
    [
        ("nope", "-o parent interface was not found on the host: nope"),
        ("nope.50", "-o parent interface was not found on the host: nope"),
        ("a/b", "-o parent interface was not found on the host: a/b"),
        ("lo", "loopback interface is not a valid macvlan parent link"),
        ("eth0.x", "unable to parse a valid vlan id from: x (ex. eth0.10 for vlan 10)"),
        ("eth0.5000", "vlan id must be between 1-4094, received: 5000"),
    ],
)
def test_parents_that_are_none(lan: tuple[Host, int], parent: str, message: str) -> None:
    with pytest.raises(KnarrError) as raised:
        macvlan.ensure_parent(parent, "n", lan[0].netlink)
    assert raised.value.message == message


@pytest.mark.parametrize(("parent", "name", "kind"), [("eth0.50", "eth0.50", "vlan"), ("", "dm-0123456789ab", "dummy")])
def test_parents_that_are_made(lan: tuple[Host, int], parent: str, name: str, kind: str) -> None:
    """Where the kernel has such links they are made, found again and removed; where it has none, the error says so."""
    host, _ = lan
    if not kernel_makes(kind):
        with pytest.raises(KnarrError, match=f"{name}.*this kernel has no"):
            macvlan.ensure_parent(parent, "0123456789abcdef", host.netlink)
        assert host.netlink.link(name=name) is None
        return
    made = macvlan.ensure_parent(parent, "0123456789abcdef", host.netlink)
    assert made.created
    assert macvlan.ensure_parent(parent, "0123456789abcdef", host.netlink).index == made.index
    link = link_of(host.netlink, name)
    assert (link.kind, link.up) == (kind, True)
    macvlan.remove_parent(name, host.netlink)
    assert host.netlink.link(name=name) is None


def kernel_makes(kind: str) -> bool:
    """Whether this kernel has links of `kind`: iproute2 makes one in a namespace of its own."""
    more = ["link", "lo", "name", "x.5", "type", kind, "id", "5"] if kind == "vlan" else ["x", "type", kind]
    return subprocess.run(["unshare", "-n", "ip", "link", "add", *more], capture_output=True, check=False).returncode == 0


def test_a_parent_of_the_administrators_stays(lan: tuple[Host, int]) -> None:
    macvlan.remove_parent("eth0", lan[0].netlink)
    macvlan.remove_parent("nosuch", lan[0].netlink)
    assert lan[0].netlink.link(name="eth0") is not None
