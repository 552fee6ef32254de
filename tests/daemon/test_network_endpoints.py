"""What one container's place in a network may be told besides its address: link-local addresses and sysctls of its interface."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.conftest import PEER
from tests.lib.daemon import Daemon
from tests.lib.netns import Echo, eventually
from tests.lib.site import Box, Site, site

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(bool(PEER), reason="asks for what Docker 26 has not got"),
]

SYSCTLS = "com.docker.network.endpoint.sysctls"


@pytest.fixture(scope="module")
def whole() -> Iterator[Site]:
    with site() as made:
        yield made


@pytest.fixture
def place(whole: Site) -> Iterator[Site]:
    yield whole
    whole.clear()


def addresses(box: Box, link: str = "eth0") -> set[str]:
    return {line.split()[3] for line in box.host.ip("-o", "addr", "show", "dev", link).splitlines()}


def again(place: Site, box: Box) -> Box:
    """The same container, started once more."""
    place.boxes.remove(box)
    box.close()
    place.engine.docker("restart", "-t", "0", box.id)
    place.boxes.append(Box(place, box.id))
    return place.boxes[-1]


def test_link_local_addresses(place: Site) -> None:
    network = place.network()  # without IPv6
    one = place.box("--network", network, "--link-local-ip", "169.254.5.5", "--link-local-ip", "fe80::77")
    two = place.box("--network", f"name={network},link-local-ip=169.254.5.6")
    assert {"169.254.5.5/16", "fe80::77/64"} <= addresses(one)
    assert one.on()["IPAMConfig"] == {"LinkLocalIPs": ["169.254.5.5", "fe80::77"]}
    with Echo(one.host, 7000) as server:
        assert two.host.reaches("169.254.5.5", 7000) and server.peers == ["169.254.5.6"]
        # What is neither its own nor of the network is no container's to use.
        two.host.ip("address", "add", "169.254.5.7/16", "dev", "eth0")
        with pytest.raises(OSError, match=r"timed out|No route to host|Resource temporarily unavailable"):
            two.host.connect("169.254.5.5", 7000, source="169.254.5.7", timeout=0.5)
    one = again(place, one)
    assert {"169.254.5.5/16", "fe80::77/64"} <= addresses(one)
    assert eventually(lambda: two.host.pings("169.254.5.5"))


def test_the_host_can_have_an_address_of_the_link(place: Site) -> None:
    """As services for containers have, at 169.254.169.254 for example: one that has no such address is not heard."""
    network = place.network("-o", "com.docker.network.bridge.name=brnear")
    place.host.ip("address", "add", "169.254.169.254/16", "dev", "brnear")
    near, far = place.box("--network", network, "--link-local-ip", "169.254.5.5"), place.box("--network", network)
    far.host.ip("address", "add", "169.254.5.6/16", "dev", "eth0")
    assert near.host.pings("169.254.169.254")
    assert far.host.no_echo("169.254.169.254")


def test_link_local_addresses_of_a_running_container(place: Site) -> None:
    network, second = place.network(), place.network()
    box, other = place.box("--network", network), place.box("--network", second, "--link-local-ip", "169.254.5.6")
    taken = place.engine.docker("network", "connect", "--link-local-ip", "169.254.5.6", second, box.id, check=False)
    assert b"Address already in use" in taken.stderr and box.host.links() >= {"eth0"} and "eth1" not in box.host.links()
    place.engine.docker("network", "connect", "--link-local-ip", "169.254.5.5", second, box.id)
    assert "169.254.5.5/16" in addresses(box, "eth1")
    assert box.host.pings("169.254.5.6")
    assert box.on(second)["IPAMConfig"] == {"LinkLocalIPs": ["169.254.5.5"]}
    assert isinstance(place.engine, Daemon)
    with place.host:
        place.engine.restart()
    assert box.host.pings("169.254.5.6")
    assert eventually(lambda: other.host.pings("169.254.5.5"))
    box = again(place, box)
    assert "169.254.5.5/16" in addresses(box, "eth1")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--link-local-ip", "1.2.3.4"), "invalid link local IP address: 1.2.3.4"),
        (("--link-local-ip", "0.0.0.0"), "invalid endpoint settings:\ninvalid link-local IP address: 0.0.0.0"),
        (("--network", "none", "--link-local-ip", "169.254.1.1"), "link-local IP addresses need a network"),
        (("--network", f"name=bridge,driver-opt={SYSCTLS}=net.ipv4.conf.eth0.forwarding=1"), "unrecognised network interface sysctl"),
    ],
    ids=str,
)
def test_what_no_endpoint_can_have(place: Site, options: tuple[str, ...], problem: str) -> None:
    result = place.engine.docker("create", *options, "busybox", check=False)
    assert problem in result.stderr.decode() and result.stdout == b""


def test_sysctls_of_an_interface(place: Site) -> None:
    network, second = place.dual(), place.network()
    texts = [
        f"net.{name}=1" for name in ("ipv4.conf.IFNAME.log_martians", "ipv6.conf.ifname.use_tempaddr", "ipv4.neigh.IFNAME.retrans_time")
    ]
    texts[2] += "24"  # milliseconds
    named = "driver-opt=com.docker.network.endpoint.ifname=lan.5"
    box = place.box("--network", f'name={network},{named},"driver-opt={SYSCTLS}={",".join(texts)}"')

    def check(box: Box) -> None:
        values = [box.host.sysctl(name) for name in ("ipv4/conf/lan.5/log_martians", "ipv6/conf/lan.5/use_tempaddr")]
        assert [*values, box.host.sysctl("ipv4/neigh/lan.5/retrans_time")] == ["1", "1", "124"]
        assert f"{box.ip6(network)}/64" in addresses(box, "lan.5")
        assert box.host.pings(box.on(network)["Gateway"]) and box.host.pings(box.on(network)["IPv6Gateway"])

    check(box)
    assert box.host.sysctl("ipv4/conf/default/log_martians") == "0"
    place.engine.docker("network", "connect", "--driver-opt", f"{SYSCTLS}=net.ipv4.conf.IFNAME.log_martians=1", second, box.id)
    (link,) = box.host.links() & {"eth0", "eth1"}
    assert box.host.sysctl(f"ipv4/conf/{link}/log_martians") == "1"
    check(again(place, box))


def test_an_interface_without_ipv6_in_a_network_with_it(place: Site) -> None:
    network = place.dual()
    box = place.box("--network", f"name={network},driver-opt={SYSCTLS}=net.ipv6.conf.IFNAME.disable_ipv6=1")
    assert {address for address in addresses(box) if ":" in address} == set()
    assert (box.ip6(), box.on()["IPv6Gateway"]) == ("", "") and box.ip()
    assert box.host.pings(place.gateway(network))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("net.ipv4.conf.IFNAME.nosuch=1", "/proc/sys/net/ipv4/conf/eth0/nosuch is not a sysctl file"),
        ("net.ipv4.conf.IFNAME.forwarding=yes", "unable to write to '/proc/sys/net/ipv4/conf/eth0/forwarding': Invalid argument"),
    ],
    ids=str,
)
def test_a_sysctl_that_the_kernel_refuses(place: Site, text: str, problem: str) -> None:
    network = place.network()
    assert problem in place.refused("--network", f"name={network},driver-opt={SYSCTLS}={text}")
    box = place.box("--network", network)
    second = place.network()
    links = box.host.links()
    result = place.engine.docker("network", "connect", "--driver-opt", f"{SYSCTLS}={text}", second, box.id, check=False)
    assert problem.replace("eth0", "eth1").encode() in result.stderr
    assert box.host.links() == links
    place.engine.docker("network", "connect", second, box.id)
