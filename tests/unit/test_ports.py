"""What containers publish, and the host's ports that are held for it (real sockets, in a network namespace of their own)."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidParameter
from engine.network.ports import Ports, PortUnavailable, Wanted, check, plan
from engine.spec.docker.containers import PortBinding
from engine.spec.network import Published
from tests.lib.netns import made

BOTH = ("0.0.0.0", "::")


def bind(port: str = "", ip: str = "") -> list[PortBinding]:
    return [PortBinding(host_ip=ip, host_port=port)]


def want(port: int, first: int = 0, last: int = 0, ips: tuple[str, ...] = BOTH, protocol: str = "tcp", direct: bool = False) -> Wanted:
    return Wanted(protocol=protocol, port=port, host_ips=ips, first=first, last=last or first, direct=direct)


@pytest.mark.parametrize(
    ("bindings", "expected"),
    [
        ({"80/tcp": bind("8080")}, [want(80, 8080)]),
        ({"80": bind("8080")}, [want(80, 8080)]),
        ({"80/UDP": bind("8080/tcp")}, [want(80, 8080, protocol="udp")]),
        ({"80/sctp": bind("0")}, [want(80, protocol="sctp")]),
        ({"80/tcp": bind("8000-8010")}, [want(80, 8000, 8010)]),
        ({"80/tcp": bind("8080", "127.0.0.1")}, [want(80, 8080, ips=("127.0.0.1",))]),
        ({"80/tcp": bind("8080", "0.0.0.0")}, [want(80, 8080, ips=("0.0.0.0",))]),
        ({"80/tcp": bind("8080", "::")}, [want(80, 8080, ips=("::",))]),
        ({"80/tcp": bind("8080", "[::1]")}, [want(80, 8080, ips=("::1",))]),
        ({"80/tcp": bind("8080", "::ffff:192.0.2.1")}, [want(80, 8080, ips=("192.0.2.1",))]),
        ({"80/tcp": None, "81/tcp": []}, []),
        ({"80/tcp": [*bind(), *bind()], "81/tcp": bind("9-12"), "82/tcp": bind("7")}, [want(82, 7), want(81, 9, 12), want(80), want(80)]),
    ],
)
def test_what_is_published(bindings: dict[str, list[PortBinding] | None], expected: list[Wanted]) -> None:
    check(bindings)
    assert plan(bindings) == expected


def test_all_exposed_ports_are_published_on_demand() -> None:
    exposed = ["80/tcp", "81/tcp", "82-83/udp"]
    found = plan({"80/tcp": bind("8080"), "81/tcp": None}, exposed, publish_all=True)
    assert found == [want(80, 8080), want(81), want(82, protocol="udp"), want(83, protocol="udp")]
    assert plan({}, exposed) == []


def test_the_networks_address_is_for_those_who_name_none() -> None:
    bindings = {"80/tcp": [*bind("1"), *bind("2", "::1")]}
    assert plan(bindings, default_ip="192.0.2.1") == [want(80, 1, ips=("192.0.2.1",)), want(80, 2, ips=("::1",))]
    assert plan(bindings, default_ip="0.0.0.0")[0].host_ips == BOTH
    assert plan(bindings, host_ipv6=False)[0].host_ips == ("0.0.0.0",)
    assert plan(bindings, ipv4=False)[0].host_ips == ("::",)


def test_routed_networks_take_no_port_of_the_host() -> None:
    found = plan({"80/tcp": bind("8080")}, modes=("nat", "routed"))
    assert found == [want(80, 8080, ips=("0.0.0.0",)), want(80, ips=("::",), direct=True)]
    with Ports().reserve(plan({"80/tcp": bind()}, modes=("routed", "routed"))) as held:
        assert [one.host_port for one in held.ports] == [0, 0]


@pytest.mark.parametrize(
    ("name", "host_port", "ip", "message"),
    [
        ("abc/tcp", "80", "", 'invalid port specification: "abc"'),
        ("70000/tcp", "80", "", 'invalid port specification: "70000"'),
        ("80-82/tcp", "80", "", 'invalid port specification: "80-82"'),
        ("0/tcp", "80", "", 'invalid port specification: "0"'),
        ("/tcp", "80", "", 'invalid port specification: ""'),
        ("80/tcp", "abc", "", 'invalid port specification: "abc"'),
        ("80/tcp", "70000", "", 'invalid port specification: "70000"'),
        ("80/tcp", "90-80", "", 'invalid port specification: "90-80"'),
        ("80/tcp", "-1", "", 'invalid port specification: "-1"'),
        ("80/tcp", "1-", "", 'invalid port specification: "1-"'),
        ("80/foo", "80", "", "invalid proto: foo"),
        ("80/tcp", "80", "host", "invalid IP address: host"),
    ],
)
def test_what_can_never_be_published(name: str, host_port: str, ip: str, message: str) -> None:
    with pytest.raises(InvalidParameter) as raised:
        check({name: bind(host_port, ip)})
    assert str(raised.value) == message


@given(st.dictionaries(st.text(max_size=12), st.lists(st.builds(PortBinding, host_ip=st.text(max_size=8), host_port=st.text(max_size=12)))))
def test_anything_is_a_plan_or_a_clear_refusal(bindings: dict[str, list[PortBinding] | None]) -> None:
    try:
        check(bindings)
    except InvalidParameter:
        return
    assert all(one.port and one.first <= one.last for one in plan(bindings))


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """A network namespace where nobody else has ports; the test runs in it."""
    if os.geteuid() != 0:
        pytest.skip("a network namespace needs root")
    with made("ktp") as place:
        place.sysctl("ipv4/ip_local_port_range", "40000 40009")
        with place:
            yield


def listener(port: int, ip: str = "0.0.0.0", kind: int = socket.SOCK_STREAM) -> socket.socket:
    found = socket.socket(socket.AF_INET, kind)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((ip, port))
        if kind == socket.SOCK_STREAM:
            found.listen()
    except OSError:
        found.close()
        raise
    return found


@pytest.mark.usefixtures("alone")
class TestHeldPorts:
    def test_nobody_else_can_have_one(self) -> None:
        ports = Ports()
        with ports.reserve([want(80, 8080), want(53, 8053, protocol="udp")]) as held:
            assert held.ports == (
                Published(protocol="tcp", host_ip="0.0.0.0", host_port=8080, port=80),
                Published(protocol="tcp", host_ip="::", host_port=8080, port=80),
                Published(protocol="udp", host_ip="0.0.0.0", host_port=8053, port=53),
                Published(protocol="udp", host_ip="::", host_port=8053, port=53),
            )
            for kind, port in ((socket.SOCK_STREAM, 8080), (socket.SOCK_DGRAM, 8053)):
                with pytest.raises(OSError, match="Address already in use"):
                    listener(port, kind=kind)
                with pytest.raises(OSError, match="Address already in use"):
                    listener(port, "127.0.0.1", kind=kind)
            with socket.socket() as client, pytest.raises(ConnectionRefusedError):  # it does not listen
                client.connect(("127.0.0.1", 8080))
        listener(8080).close()

    @pytest.mark.parametrize("ip", ["0.0.0.0", "127.0.0.1"])
    def test_a_port_that_a_program_listens_on(self, ip: str) -> None:
        with listener(8081, ip), pytest.raises(PortUnavailable) as raised:
            Ports().reserve([want(80, 8081)])
        assert str(raised.value) == "failed to bind host port 0.0.0.0:8081/tcp: address already in use"
        assert raised.value.status == 500

    @pytest.mark.parametrize("ips", [("0.0.0.0",), ("127.0.0.1",), ("::",)])
    @pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
    def test_a_port_of_another_container(self, ips: tuple[str, ...], protocol: str) -> None:
        ports = Ports()
        wanted = want(81, 8082, ips=ips, protocol=protocol)
        name = f"[{ips[0]}]" if ":" in ips[0] else ips[0]
        with ports.reserve([want(80, 8082, protocol=protocol)]):
            with pytest.raises(PortUnavailable) as raised:
                ports.reserve([wanted])
            assert str(raised.value) == f"Bind for {name}:8082 failed: port is already allocated"
        ports.reserve([wanted]).close()

    def test_different_addresses_and_protocols_are_different_ports(self) -> None:
        ports = Ports()
        with ports.reserve(
            [want(80, 8083, ips=("127.0.0.1",)), want(80, 8083, ips=("127.0.0.2",)), want(80, 8083, protocol="udp")]
        ) as held:
            assert len(held.ports) == 4

    def test_an_address_that_is_not_the_hosts(self) -> None:
        with pytest.raises(PortUnavailable) as raised:
            Ports().reserve([want(80, 8084, 8090, ips=("192.0.2.9",))])
        assert str(raised.value) == "failed to bind host port 192.0.2.9:8084/tcp: cannot assign requested address"

    def test_all_or_nothing(self) -> None:
        ports = Ports()
        with listener(8086), pytest.raises(PortUnavailable):
            ports.reserve([want(80, 8085), want(81, 8086)])
        ports.reserve([want(80, 8085)]).close()
        with pytest.raises(PortUnavailable, match="already allocated"):
            ports.reserve([want(80, 8085), want(81, 8085)])
        listener(8085).close()

    def test_the_first_free_one_of_a_range_in_both_families(self) -> None:
        ports = Ports()
        six = socket.socket(socket.AF_INET6)
        six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        six.bind(("::", 8091))
        with listener(8090), six, ports.reserve([want(80, 8090, 8093)]) as held, ports.reserve([want(80, 8090, 8093)]) as second:
            assert [one.host_port for one in held.ports] == [8092, 8092]
            assert [one.host_port for one in second.ports] == [8093, 8093]
            with pytest.raises(PortUnavailable, match=r"failed to bind host port 0.0.0.0:8090/tcp: address already in use"):
                ports.reserve([want(80, 8090, 8093)])

    def test_any_port_is_another_each_time_until_there_is_none(self) -> None:
        ports = Ports()
        with listener(40001):
            held = [ports.reserve([want(80)]) for _ in range(9)]
            assert [one.ports[0].host_port for one in held] == [40000, *range(40002, 40010)]
            assert all(len({port.host_port for port in one.ports}) == 1 for one in held)
            with pytest.raises(PortUnavailable, match="all ports are allocated"):
                ports.reserve([want(80)])
            held[0].close()
            held[4].close()
            assert [ports.reserve([want(80)]).ports[0].host_port for _ in range(2)] == [40000, 40005]

    def test_connections_of_an_earlier_server_are_no_reason_to_refuse(self) -> None:
        with listener(8094) as server, socket.create_connection(("127.0.0.1", 8094)) as client:
            accepted, _ = server.accept()
            accepted.close()
            client.recv(1)
        with Ports().reserve([want(80, 8094)]), pytest.raises(OSError, match="Address already in use"):
            listener(8094)

    def test_held_again_after_a_restart(self) -> None:
        ports = Ports()
        first = ports.reserve([want(80, 8095), want(81, 8096), want(82)])
        published = first.ports
        first.close()  # the daemon is killed
        with listener(8096):
            held, problems = ports.again(published)
            assert held.ports == published
            assert [str(one) for one in problems] == ["failed to bind host port 0.0.0.0:8096/tcp: address already in use"]
            with pytest.raises(PortUnavailable, match="already allocated"):
                ports.reserve([want(80, 8096)])
        held.close()
        ports.reserve([want(80, 8096)]).close()

    def test_some_are_given_up(self) -> None:
        with Ports().reserve([want(80, 8097), want(81, 8098)]) as held:
            held.release([one for one in held.ports if one.port == 80])
            assert {one.host_port for one in held.ports} == {8098}
            listener(8097).close()

    def test_a_relay_may_listen_on_the_socket_that_holds_the_port(self) -> None:
        with Ports().reserve([want(80, 8099, ips=("::1",))]) as held:
            holder = held.holder(held.ports[0])
            assert holder is not None
            holder.listen()
            socket.create_connection(("::1", 8099)).close()
