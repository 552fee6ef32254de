"""Who reaches whom: a client outside, the host, containers of several networks, and a container that sends what it should not.

Two hosts as network namespaces (`tests.lib.site`). Servers and clients are sockets that the test opens inside the containers' namespaces:
the network cannot tell. What only Knarr promises is skipped on a peer. A dockerd as the peer filters IPv6 with --experimental --ip6tables
only, and drops what is forwarded to containers only when it found net.ipv4.ip_forward off.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import pytest

from tests.conftest import PEER
from tests.lib import frames
from tests.lib.frames import ETH_ARP, ETH_IPV4, ETH_IPV6, Wire
from tests.lib.netns import Datagrams, Echo, eventually
from tests.lib.site import CLIENT, CLIENT6, HOST, HOST6, Site, site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
beyond_docker_26 = pytest.mark.skipif(PEER is not None, reason="Docker 26 does not keep this")


@pytest.fixture(scope="module")
def whole() -> Iterator[Site]:
    with site(peer=PEER) as made:
        yield made


@pytest.fixture
def place(whole: Site) -> Iterator[Site]:
    """The site; containers and networks of the test are removed after it."""
    yield whole
    whole.clear()


# Published ports


def test_a_client_outside_reaches_a_published_port_with_its_own_address(place: Site) -> None:
    box = place.box("--network", place.network(), "-p", "8080:80")
    with Echo(box.host, 80) as server:
        assert place.client.reaches(HOST, 8080)
        assert server.peers == [CLIENT]


def test_a_published_port_of_the_default_network(place: Site) -> None:
    box = place.box("-p", "8080:80")
    with Echo(box.host, 80) as server:
        assert place.client.reaches(HOST, 8080)
        assert server.peers == [CLIENT]
        assert place.host.reaches("127.0.0.1", 8080)


def test_the_host_itself_reaches_it_by_every_address(place: Site) -> None:
    network = place.network()
    box = place.box("--network", network, "-p", "8080:80")
    with Echo(box.host, 80):
        for address in ("127.0.0.1", "127.0.0.2", HOST, place.gateway(network)):
            assert place.host.reaches(address, 8080), address
        assert place.host.reaches(box.ip(), 80), "the host has a road of its own to its containers"


def test_a_container_of_another_network_reaches_it_by_the_hosts_address(place: Site) -> None:
    box = place.box("--network", place.network(), "-p", "8080:80")
    other, neighbour = place.box("--network", place.network()), place.box()
    with Echo(box.host, 80):
        assert other.host.reaches(HOST, 8080)
        assert neighbour.host.reaches(HOST, 8080)
        assert other.host.kept_from(box.ip(), 80)


def test_containers_of_the_same_network_and_itself_reach_it_by_the_hosts_address(place: Site) -> None:
    network = place.network()
    box = place.box("--network", network, "-p", "8080:80")
    neighbour = place.box("--network", network)
    with Echo(box.host, 80):
        assert neighbour.host.reaches(HOST, 8080)
        assert box.host.reaches(HOST, 8080), "hairpin"
        assert box.host.reaches(place.gateway(network), 8080)


def test_a_port_published_on_one_address_is_on_no_other(place: Site) -> None:
    network = place.network()
    box = place.box("--network", network, "-p", "127.0.0.1:8080:80", "-p", f"{HOST}:8081:80")
    with Echo(box.host, 80):
        assert place.host.reaches("127.0.0.1", 8080)
        assert place.host.kept_from(HOST, 8080)
        assert place.client.kept_from(HOST, 8080)
        assert place.client.reaches(HOST, 8081)
        assert place.host.kept_from("127.0.0.1", 8081)
        other = place.box("--network", network)
        assert other.host.kept_from(place.gateway(network), 8080)


def test_udp(place: Site) -> None:
    network = place.network()
    box = place.box("--network", network, "-p", "5300:53/udp")
    with Datagrams(box.host, 53):
        assert place.client.asks(HOST, 5300) == f"{CLIENT} hello".encode()
        for address in ("127.0.0.1", HOST):
            assert (place.host.asks(address, 5300) or b"").endswith(b" hello"), address
        if place.knarr:  # Docker's proxy answers from another address than it was asked at
            assert (box.host.asks(HOST, 5300) or b"").endswith(b" hello"), "hairpin"
        assert place.client.asks(HOST, 5300, b"x" * 1400) == f"{CLIENT} ".encode() + b"x" * 1400


def test_udp_and_tcp_of_one_number_are_two_ports(place: Site) -> None:
    box = place.box("-p", "5300:53/udp", "-p", "5300:54/tcp")
    with Datagrams(box.host, 53), Echo(box.host, 54):
        assert place.client.asks(HOST, 5300)
        assert place.client.reaches(HOST, 5300)


def test_a_datagram_before_its_server_was_published_does_not_stay_lost(place: Site) -> None:
    """A client that never stops asking: what the kernel remembers of its flow must not outlive the moment of publishing, or of its end."""
    with place.client.socket(kind=socket.SOCK_DGRAM) as asking:
        asking.bind(("", 40000))
        asking.connect((HOST, 5300))
        for _ in range(2):
            try:
                asking.settimeout(0.5)
                asking.send(b"early")
                asking.recv(100)
            except OSError:
                pass
            box = place.box("-p", "5300:53/udp")
            with Datagrams(box.host, 53):

                def answered(asking: socket.socket = asking) -> bool:
                    asking.settimeout(0.2)
                    try:
                        asking.send(b"late")
                        return asking.recv(100).endswith(b"late")
                    except OSError:
                        return False

                assert eventually(answered)
            place.remove(box)


def test_ranges_and_random_ports(place: Site) -> None:
    box = place.box("-p", "7000-7002:80-82", "-p", "90", "-p", "7100-7110:91")
    other = place.box("-p", "7100-7110:91", "-p", "127.0.0.1::92")
    ports = [box.port(f"{port}/tcp") for port in (80, 81, 82)]
    assert ports == [7000, 7001, 7002]
    low, high = map(int, place.host.sysctl("ipv4/ip_local_port_range").split())
    assert low <= box.port("90/tcp") <= high
    assert {box.port("91/tcp"), other.port("91/tcp")} <= set(range(7100, 7111)) and box.port("91/tcp") != other.port("91/tcp")
    for owner, inside in ((box, 81), (box, 90), (box, 91), (other, 91)):
        with Echo(owner.host, inside):
            assert place.client.reaches(HOST, owner.port(f"{inside}/tcp")), inside
    with Echo(other.host, 92):
        assert place.host.reaches("127.0.0.1", other.port("92/tcp"))
        assert place.client.kept_from(HOST, other.port("92/tcp"))


def test_all_exposed_ports(place: Site) -> None:
    box = place.box("-P", "--expose", "80", "--expose", "81/udp")
    with Echo(box.host, 80), Datagrams(box.host, 81):
        assert place.client.reaches(HOST, box.port("80/tcp"))
        assert place.client.asks(HOST, box.port("81/udp"))


def test_a_conflict_is_an_error_before_anything_starts(place: Site) -> None:
    first = place.box("-p", "8080:80")
    assert "port is already allocated" in place.refused("-p", "8080:80")
    said = place.refused("--network", place.network(), "-p", f"{HOST}:8080:80")
    assert "port is already allocated" in said or "address already in use" in said
    with Echo(place.host, 8090):
        assert "address already in use" in place.refused("-p", "8090:80")
    with Datagrams(place.host, 8091):
        assert "address already in use" in place.refused("-p", "8091:80/udp")
    assert "port is already allocated" in place.refused("-p", "8095:80", "-p", "8080:81")
    with Echo(place.host, 8095):  # what came before the conflict was given back
        pass
    with Echo(first.host, 80):
        assert place.client.reaches(HOST, 8080), "the first is as it was"
    place.remove(first)
    second = place.box("-p", "8080:80", "-p", "8090:81")
    with Echo(second.host, 80):
        assert place.client.reaches(HOST, 8080)


def test_nobody_else_can_take_a_published_port(place: Site) -> None:
    place.box("-p", "8080:80", "-p", "8080:80/udp")
    with pytest.raises(OSError, match="in use"):
        Echo(place.host, 8080)
    with pytest.raises(OSError, match="in use"):
        Datagrams(place.host, 8080, "0.0.0.0")


def test_a_port_without_a_server_is_refused_at_once(place: Site) -> None:
    place.box("-p", "8080:80")
    with pytest.raises(ConnectionError):  # Docker's proxy accepts and closes on the loopback; from outside the container itself refuses
        place.client.connect(HOST, 8080).recv(1)


def test_a_port_is_gone_with_its_container(place: Site) -> None:
    box = place.box("-p", "8080:80")
    with Echo(box.host, 80):
        assert place.client.reaches(HOST, 8080)
    place.engine.docker("stop", "-t", "0", box.id)
    with pytest.raises(ConnectionRefusedError):
        place.client.connect(HOST, 8080)
    place.engine.docker("start", box.id)
    place.boxes.remove(box)
    box.close()
    again = type(box)(place, box.id)
    place.boxes.append(again)
    with Echo(again.host, 80):
        assert place.client.reaches(HOST, 8080)


# Who is kept out


def test_what_is_not_published_cannot_be_reached_from_outside(place: Site) -> None:
    box = place.box("--network", place.network(), "-p", "8080:80")
    with Echo(box.host, 81) as server, Datagrams(box.host, 82) as datagrams:
        assert place.host.reaches(box.ip(), 81)
        assert place.client.kept_from(box.ip(), 81), "routed to the container's address"
        assert place.client.unanswered(box.ip(), 82)
        assert place.client.kept_from(HOST, 81)
        assert place.client.no_echo(box.ip())
        assert len(server.peers) == 1 and datagrams.peers == []


@beyond_docker_26
def test_not_even_a_published_port_by_the_containers_own_address(place: Site) -> None:
    box = place.box("--network", place.network(), "-p", "8080:80")
    with Echo(box.host, 80) as server:
        assert place.client.kept_from(box.ip(), 80)
        assert server.peers == []


def test_two_networks_are_apart(place: Site) -> None:
    left, right = place.box("--network", place.dual()), place.box("--network", place.dual())
    for here, there in ((left, right), (right, left)):
        with Echo(there.host, 80) as server, Datagrams(there.host, 81) as datagrams:
            for address in (there.ip(), there.ip6()):
                assert here.host.kept_from(address, 80), address
                assert here.host.unanswered(address, 81)
            assert here.host.no_echo(there.ip())
            assert (server.peers, datagrams.peers) == ([], [])


def test_the_default_network_is_apart_from_the_others(place: Site) -> None:
    left, right = place.box(), place.box("--network", place.network())
    with Echo(left.host, 80), Echo(right.host, 80):
        assert left.host.kept_from(right.ip(), 80)
        assert right.host.kept_from(left.ip(), 80)


def test_a_network_of_ones_own_is_open(place: Site) -> None:
    network = place.dual()
    left, right = place.box("--network", network), place.box("--network", network)
    with Echo(right.host, 80) as server, Datagrams(right.host, 81):
        assert left.host.reaches(right.ip(), 80) and left.host.reaches(right.ip6(), 80)
        assert left.host.asks(right.ip(), 81) == f"{left.ip()} hello".encode()
        assert left.host.pings(right.ip()) and left.host.pings(right.ip6())
        assert server.peers == [left.ip(), left.ip6()]


def test_without_icc_neighbours_are_apart_too(place: Site) -> None:
    network = place.network("-o", "com.docker.network.bridge.enable_icc=false")
    left, right = place.box("--network", network), place.box("--network", network, "-p", "8080:80")
    with Echo(right.host, 80), Echo(place.client, 9000):
        assert left.host.kept_from(right.ip(), 80)
        assert left.host.reaches(CLIENT, 9000), "the way out is open"
        assert place.client.reaches(HOST, 8080)


def test_connect_and_disconnect_while_running(place: Site) -> None:
    near, far = place.network(), place.network()
    box, other = place.box("--network", near), place.box("--network", far)
    with Echo(other.host, 80):
        assert box.host.kept_from(other.ip(), 80)
        place.engine.docker("network", "connect", far, box.id)
        assert box.host.reaches(other.ip(), 80)
        place.engine.docker("network", "disconnect", far, box.id)
        assert box.host.kept_from(other.ip(), 80)
        assert box.ip(near)


def test_an_internal_network_has_no_way_out_and_none_in(place: Site) -> None:
    network = place.network("--internal")
    box, neighbour = place.box("--network", network, "-p", "8080:80"), place.box("--network", network)
    other = place.box("--network", place.network())
    with (
        Echo(place.client, 9000) as outside,
        Datagrams(place.client, 9001) as datagrams,
        Echo(box.host, 80) as inside,
        Echo(other.host, 80),
    ):
        box.host.ip("route", "replace", "default", "via", place.gateway(network))  # as a container with NET_ADMIN may
        assert box.host.kept_from(CLIENT, 9000)
        assert box.host.unanswered(CLIENT, 9001)
        assert box.host.no_echo(CLIENT)
        assert box.host.kept_from(other.ip(), 80)
        assert other.host.kept_from(box.ip(), 80)
        assert place.client.kept_from(box.ip(), 80)
        assert place.client.kept_from(HOST, 8080)
        assert (outside.peers, datagrams.peers, inside.peers) == ([], [], [])
        assert neighbour.host.reaches(box.ip(), 80)


def test_the_way_out_shows_the_hosts_address(place: Site) -> None:
    box, default = place.box("--network", place.network()), place.box()
    with Echo(place.client, 9000) as server, Datagrams(place.client, 9001):
        assert box.host.reaches(CLIENT, 9000) and default.host.reaches(CLIENT, 9000)
        assert server.peers == [HOST, HOST]
        assert box.host.asks(CLIENT, 9001) == f"{HOST} hello".encode()
        assert box.host.pings(CLIENT)
    bare = place.box("--network", place.network("-o", "com.docker.network.bridge.enable_ip_masquerade=false"))
    with Echo(place.client, 9000) as server:
        assert bare.host.reaches(CLIENT, 9000)
        assert server.peers == [bare.ip()]


@beyond_docker_26
def test_a_routed_network_is_reached_by_the_containers_addresses(place: Site) -> None:
    modes = ("-o", "com.docker.network.bridge.gateway_mode_ipv4=routed", "-o", "com.docker.network.bridge.gateway_mode_ipv6=routed")
    box = place.box("--network", place.dual(*modes), "-p", "80")
    with Echo(box.host, 80) as server, Echo(box.host, 81), Echo(place.client, 9000) as outside:
        assert place.client.reaches(box.ip(), 80) and place.client.reaches(box.ip6(), 80)
        assert place.client.kept_from(box.ip(), 81)
        assert server.peers == [CLIENT, CLIENT6]
        assert box.host.reaches(CLIENT, 9000)
        assert outside.peers == [box.ip()]


# A container that sends what it should not


def test_services_on_the_hosts_loopback_are_out_of_reach(place: Site) -> None:
    network = place.network()
    box = place.box("--network", network)
    gateway = place.gateway(network)
    with Datagrams(place.host, 9100, "127.0.0.1") as service, Echo(place.host, 9101, "127.0.0.1"), Wire(box.host, box.link()) as wire:
        assert box.host.kept_from(gateway, 9101)
        assert box.host.kept_from(HOST, 9101)
        box.host.pings(gateway)
        for source in (box.ip(), "127.0.0.1"):
            wire.send(frames.mac_of(box.host, gateway), ETH_IPV4, frames.udp4(source, "127.0.0.1", 4000, 9100, b"hello"))
        time.sleep(0.3)
        assert service.peers == []
        assert place.host.asks("127.0.0.1", 9100) == b"127.0.0.1 hello", "the service is there"


@beyond_docker_26
@pytest.mark.parametrize("where", ["outside", "neighbour"])
def test_ports_published_on_the_loopback_are_out_of_reach(place: Site, where: str) -> None:
    network = place.network()
    box = place.box("--network", network, "-p", "127.0.0.1:9200:80/udp")
    hostile = place.box("--network", network)
    with Datagrams(box.host, 80) as service:
        sender, link, address, gateway = (
            (place.client, place.cable[1], CLIENT, HOST)
            if where == "outside"
            else (hostile.host, hostile.link(), hostile.ip(), place.gateway(network))
        )
        sender.pings(gateway)
        with Wire(sender, link) as wire:
            for source in (address, "127.0.0.1"):
                wire.send(frames.mac_of(sender, gateway), ETH_IPV4, frames.udp4(source, "127.0.0.1", 4000, 9200, b"hello"))
        time.sleep(0.3)
        assert service.peers == []
        assert place.host.asks("127.0.0.1", 9200)


@beyond_docker_26
def test_a_neighbours_address_cannot_be_forged(place: Site) -> None:
    network = place.dual()
    hostile, victim, server = (place.box("--network", network) for _ in range(3))
    with Datagrams(server.host, 81) as service, Datagrams(place.client, 9001) as outside, Wire(hostile.host, hostile.link()) as wire:
        assert hostile.host.asks(server.ip(), 81)
        service.peers.clear()
        to = place.mac(server)
        wire.send(to, ETH_IPV4, frames.udp4(victim.ip(), server.ip(), 4000, 81, b"forged"))
        wire.send(to, ETH_IPV4, frames.udp4("192.0.2.9", server.ip(), 4000, 81, b"forged"))
        wire.send(to, ETH_IPV6, frames.udp6(victim.ip6(), server.ip6(), 4000, 81, b"forged"))
        wire.send(to, ETH_IPV4, frames.udp4(hostile.ip(), server.ip(), 4000, 81, b"forged"), source=place.mac(victim))
        hostile.host.pings(place.gateway(network))
        out = frames.mac_of(hostile.host, place.gateway(network))
        wire.send(out, ETH_IPV4, frames.udp4(victim.ip(), CLIENT, 4000, 9001, b"forged"))
        time.sleep(0.3)
        assert (service.peers, outside.peers) == ([], [])
        assert victim.host.asks(server.ip(), 81), "the bridge still knows where the victim is"
        assert hostile.host.asks(server.ip(), 81), "and the hostile one may be itself"


@beyond_docker_26
def test_a_neighbours_place_cannot_be_taken(place: Site) -> None:
    """Forged answers of ARP and neighbour discovery change nobody's mind."""
    network = place.dual()
    hostile, victim, user = (place.box("--network", network) for _ in range(3))
    with Echo(victim.host, 80) as server, Wire(hostile.host, hostile.link()) as wire:
        assert user.host.reaches(victim.ip(), 80) and user.host.reaches(victim.ip6(), 80)
        server.peers.clear()
        to = place.mac(user)
        for claimed in (victim.ip(), place.gateway(network)):
            wire.send(to, ETH_ARP, frames.arp_answer(wire.mac, claimed, to, user.ip()))
            wire.send(frames.BROADCAST, ETH_ARP, frames.arp_answer(wire.mac, claimed, frames.BROADCAST, claimed))
        wire.send(to, ETH_IPV6, frames.neighbour_answer(wire.mac, victim.ip6(), user.ip6()))
        time.sleep(0.2)
        assert frames.mac_of(user.host, victim.ip()) == place.mac(victim)
        assert frames.mac_of(user.host, victim.ip6()) == place.mac(victim)
        assert frames.mac_of(user.host, place.gateway(network)) != wire.mac
        assert user.host.reaches(victim.ip(), 80) and user.host.reaches(victim.ip6(), 80)
        assert server.peers == [user.ip(), user.ip6()]


# IPv6


def test_ipv6_from_outside_with_the_clients_address(place: Site) -> None:
    box = place.box("--network", place.dual(), "-p", "8080:80")
    with Echo(box.host, 80) as server:
        assert eventually(lambda: place.client.reaches(HOST6, 8080)), "a new bridge's address may be tentative for a second"
        assert server.peers == [CLIENT6]
        for address in ("::1", HOST6):
            assert place.host.reaches(address, 8080), address
        assert box.host.reaches(HOST6, 8080), "hairpin"
        assert place.client.kept_from(box.ip6(), 81)


def test_ipv6_clients_of_a_container_that_has_only_ipv4(place: Site) -> None:
    box = place.box("--network", place.network(), "-p", "8080:80", "-p", "5300:53/udp")
    with Echo(box.host, 80), Datagrams(box.host, 53):
        assert place.client.reaches(HOST6, 8080)
        assert place.host.reaches("::1", 8080)
        assert (place.client.asks(HOST6, 5300) or b"").endswith(b" hello")


def test_ipv6_way_out(place: Site) -> None:
    box = place.box("--network", place.dual())
    with Echo(place.client, 9000) as server:
        assert eventually(lambda: box.host.reaches(CLIENT6, 9000))
        assert server.peers == [HOST6]


# Other drivers


def test_host_container_and_none(place: Site) -> None:
    here = os.fstat(place.host.fd).st_ino
    whole_host, alone = place.box("--network", "host"), place.box("--network", "none")
    joined = place.box("--network", f"container:{alone.id}")
    assert os.fstat(whole_host.host.fd).st_ino == here
    assert os.fstat(alone.host.fd).st_ino == os.fstat(joined.host.fd).st_ino != here
    assert alone.host.no_echo(HOST)
    with Echo(joined.host, 80):
        assert alone.host.reaches("127.0.0.1", 80)


def test_macvlan_is_a_host_beside_the_host(place: Site) -> None:
    options = ("-d", "macvlan", "--subnet", "198.51.100.0/24", "--gateway", CLIENT, "--ip-range", "198.51.100.64/27")
    network = place.network(*options, "-o", f"parent={place.cable[0]}")
    box = place.box("--network", network)
    with Echo(box.host, 80) as server, Echo(place.client, 9000):
        assert place.client.reaches(box.ip(), 80)
        assert server.peers == [CLIENT]
        assert box.host.reaches(CLIENT, 9000)
        assert place.host.kept_from(box.ip(), 80), "the kernel keeps a macvlan and its parent apart"


# The host's own settings


@beyond_docker_26
def test_other_tables_and_forwarding_are_left_alone_until_needed() -> None:
    with site() as place:
        chain = "chain input { type filter hook input priority 0; policy accept; tcp dport 9 drop; }"
        rules = f"table inet others {{\nset addresses {{ type ipv4_addr; }}\n{chain}\n}}\n"
        place.host.run("nft", "-f", "-", input=rules)
        before = place.host.run("nft", "list", "table", "inet", "others").stdout
        place.box("--network", "none")
        assert place.host.sysctl("ipv4/ip_forward") == "0"
        box = place.box("-p", "8080:80")
        assert place.host.sysctl("ipv4/ip_forward") == "1"
        with Echo(box.host, 80):
            assert place.client.reaches(HOST, 8080)
        place.clear()
        assert place.host.run("nft", "list", "table", "inet", "others").stdout == before
