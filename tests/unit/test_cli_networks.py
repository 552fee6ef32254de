"""`knarr network` and `knarr port` against a pretended daemon, and their pure parts."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import endpoints, networks, ports
from cli.client import Client, Failure
from tests.golden.cli_fake import FakeDaemon

WAYS = {
    "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}],
    "9/udp": [{"HostIp": "1.2.3.4", "HostPort": "9"}],
}


@pytest.fixture
def fake(tmp_path: Path) -> Any:
    """What `port add` and others ask for, with the answers they get."""
    table: dict[str, Any] = {
        "POST /containers/[^/]*/ports/(add|rm)": (200, {"Ports": WAYS | {"443/tcp": None}}),
        "GET /containers/(add|rm|web)/json": (200, {"NetworkSettings": {"Ports": WAYS}}),
        "POST /networks/create": (201, {"Id": "abc", "Warning": "careful"}),
        "GET /networks": (200, []),
        "DELETE /networks/n": (204, None),
    }
    daemon = FakeDaemon(tmp_path / "s", table)
    yield daemon
    daemon.close()


def client(fake: FakeDaemon) -> Client:
    return Client(f"unix://{fake.path}")


def asked(fake: FakeDaemon) -> list[tuple[object, ...]]:
    return [(one["method"], one["path"], one.get("body")) for one in fake.requests if one["path"] != "/_ping"]


SHOWN = "9/udp -> 1.2.3.4:9\n80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080\n"


def test_ports_are_added_and_removed(fake: FakeDaemon, capfd: pytest.CaptureFixture[str]) -> None:
    assert ports.port(client(fake), "port", ["add", "web", "127.0.0.1:8080:80", "9-10/udp"]) == 0
    assert ports.port(client(fake), "port", ["rm", "a b", "80"]) == 0
    added, removed = asked(fake)
    assert added == (
        "POST",
        "/containers/web/ports/add",
        {
            "PortBindings": {
                "80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}],
                "9/udp": [{"HostIp": "", "HostPort": ""}],
                "10/udp": [{"HostIp": "", "HostPort": ""}],
            }
        },
    )
    assert removed == ("POST", "/containers/a%20b/ports/rm", {"PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": ""}]}})
    assert capfd.readouterr().out == SHOWN * 2


@pytest.mark.parametrize("name", ["add", "rm"])
def test_a_container_may_be_called_add(fake: FakeDaemon, capfd: pytest.CaptureFixture[str], name: str) -> None:
    assert ports.port(client(fake), "port", [name]) == 0
    assert ports.port(client(fake), "port", [name, "80"]) == 0
    assert [path for _, path, _ in asked(fake)] == [f"/containers/{name}/json"] * 2
    assert capfd.readouterr().out == SHOWN + "0.0.0.0:8080\n[::]:8080\n"


@pytest.mark.parametrize(
    ("words", "message"), [(["add", "web", "x"], "invalid containerPort: x"), (["rm", "web", "1/x"], "invalid proto: x")]
)
def test_ports_that_are_none_are_refused_before_anything_is_asked(fake: FakeDaemon, words: list[str], message: str) -> None:
    with pytest.raises(Failure) as caught:
        ports.port(client(fake), "port", words)
    assert caught.value.text == message
    assert asked(fake) == []


def test_a_warning_is_shown(fake: FakeDaemon, capfd: pytest.CaptureFixture[str]) -> None:
    assert networks.create(client(fake), "network create", ["n"]) == 0
    assert capfd.readouterr() == ("abc\n", "WARNING: careful\n")


def test_an_empty_list(fake: FakeDaemon, capfd: pytest.CaptureFixture[str]) -> None:
    assert networks.ls(client(fake), "network ls", []) == 0
    assert networks.ls(client(fake), "network ls", ["-q"]) == 0
    assert capfd.readouterr().out == "NETWORK ID   NAME      DRIVER    SCOPE\n"


def test_names_are_quoted(fake: FakeDaemon) -> None:
    with pytest.raises(Failure):
        networks.rm(client(fake), "network rm", ["../x?y", "n"])
    assert [path for _, path, _ in asked(fake)] == ["/networks/..%2Fx%3Fy", "/networks/n"]


def test_natural_order() -> None:
    names = ["n10", "n2a", "n02", "n2", "Z", "a-1", "a1", "é", "n", "²"]
    assert sorted(names, key=networks.natural) == ["Z", "a-1", "a1", "n", "n2", "n2a", "n02", "n10", "²", "é"]


@given(st.lists(st.text(max_size=8)))
def test_any_names_can_be_ordered(names: list[str]) -> None:
    assert len(sorted(names, key=networks.natural)) == len(names)


def test_pools_go_by_subnet() -> None:
    found = networks.pools(
        {
            "subnet": ["10.1.0.0/16", "fd00::/64"],
            "gateway": ["fd00::1", "10.1.0.1"],
            "ip-range": ["10.1.5.0/24"],
            "aux-address": [("a", "10.1.0.7"), ("b", "fd00::7"), ("a", "10.1.0.8")],
        }
    )
    assert found == [
        {"Subnet": "10.1.0.0/16", "IPRange": "10.1.5.0/24", "Gateway": "10.1.0.1", "AuxiliaryAddresses": {"a": "10.1.0.8"}},
        {"Subnet": "fd00::/64", "Gateway": "fd00::1", "AuxiliaryAddresses": {"b": "fd00::7"}},
    ]


@given(
    st.lists(st.text(alphabet="0123456789./:fx", max_size=18), min_size=1, max_size=3),
    st.lists(st.text(alphabet="0123456789./:", max_size=12), max_size=2),
)
def test_any_subnets_and_gateways_are_taken_or_refused(subnets: list[str], gateways: list[str]) -> None:
    with contextlib.suppress(Failure):
        assert [pool["Subnet"] for pool in networks.pools({"subnet": subnets, "gateway": gateways})] == subnets


@pytest.mark.parametrize("text", ["02:42:ac:11:00:02", "02-42-AC-11-00-02", "0242.ac11.0002"])
def test_ethernet_addresses(text: str) -> None:
    assert endpoints.is_mac(text)


@pytest.mark.parametrize(
    "text", ["", "02:42:ac:11:00", "02:42:ac:11:00:0", "02:42:ac:11:00:0g", "0242ac110002", "0242:ac11:0002", "02.42.ac.11.00.02"]
)
def test_what_is_no_ethernet_address(text: str) -> None:
    assert not endpoints.is_mac(text)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("front", {"Target": "front"}),
        ("name=front", {"Target": "front"}),
        ("a b=c", {"Target": ""}),
        ("name=", {"Target": "name="}),
        ("=x", {"Target": "=x"}),
        ("name=f,alias=A,alias=b,ip=1.2.3.4,ip6=FD00::1,mac-address=02:42:ac:11:00:02", {
            "Target": "f", "Aliases": ["a", "b"], "IPv4Address": "1.2.3.4", "IPv6Address": "fd00::1", "MacAddress": "02:42:ac:11:00:02",
        }),
        ("name=f,driver-opt=a=b=c,gw-priority=-5,link-local-ip=169.254.1.1", {
            "Target": "f", "DriverOpts": {"a": "b=c"}, "GwPriority": -5, "LinkLocalIPs": ["169.254.1.1"],
        }),
    ],
)  # fmt: skip
def test_one_network_flag(text: str, result: dict[str, Any]) -> None:
    if not result["Target"]:
        with pytest.raises(ValueError, match="invalid field key a b"):
            endpoints.network(text)
    else:
        assert endpoints.network(text) == result


@given(st.text(alphabet='name=fo,"al i-:.4', max_size=20))
def test_any_network_flag_is_taken_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert "Target" in endpoints.network(text)
