"""Networks in the API: bodies, filters, views by version, and what inspect and `ps` say of a container's networks and ports."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from engine.api import server
from engine.api.version import LATEST
from engine.api.views import containers
from engine.api.views import networks as views
from engine.errors import InvalidParameter, NotFound
from engine.http.listeners import open_listeners
from engine.service import listing, networkfilter
from engine.service.attached import Known, Port, ports
from engine.spec.container import ContainerRecord, State
from engine.spec.docker.containers import Config, EndpointIPAMConfig, EndpointSettings, HostConfig, NetworkingConfig
from engine.spec.filters import Filters
from engine.spec.network import Endpoint, NetworkRecord, Pool, Published, Sandbox
from tests.lib.http import Response, request

S = 1_000_000_000
BRIDGE = NetworkRecord(id="b1" * 32, name="bridge", driver="bridge", created_at=S, predefined=True, link="knarr0")
HOST = NetworkRecord(id="b2" * 32, name="host", driver="host", created_at=S, predefined=True)
NONE = NetworkRecord(id="b3" * 32, name="none", driver="null", created_at=S, predefined=True)
FRONT = NetworkRecord(
    id="f1" * 32,
    name="front",
    driver="bridge",
    created_at=2 * S + 5,
    ipv6=True,
    labels={"a": "b"},
    options={"o": "p"},
    pools=[
        Pool(subnet="172.29.5.0/24", ip_range="172.29.5.128/25", gateway="172.29.5.200", aux={"h": "172.29.5.201"}),
        Pool(subnet="fd00:5::/64", gateway="fd00:5::1", given_gateway=False),
    ],
)
SHAPE = NetworkRecord(id="c1" * 32, name="shape", driver="bridge", created_at=3 * S, config_only=True)
ALL = [BRIDGE, HOST, NONE, FRONT, SHAPE]
KNOWN = Known(ALL)
ID = "52428fc456385d1c8cf057cf72f4c178b54998681a775fb8ba187362a2a1bef8"


def record(mode: str = "front", endpoints: dict[str, EndpointSettings | None] | None = None, **changes: Any) -> ContainerRecord:
    members: dict[str, Any] = {
        "id": ID,
        "name": "web",
        "created_at": S,
        "image": "i",
        "image_id": "sha256:97",
        "path": "sh",
        "args": [],
        "config": Config(),
        "host_config": HostConfig(network_mode=mode),
        "networking": NetworkingConfig(endpoints),
        **changes,
    }
    return ContainerRecord(**members)


def endpoint(network: NetworkRecord = FRONT, **changes: Any) -> Endpoint:
    members: dict[str, Any] = {
        "id": "e1" * 32,
        "network_id": network.id,
        "ifname": "eth0",
        "link": "veth0",
        "mac": "02:42:ac:1d:05:4d",
        "ipv4": "172.29.5.77",
        "ipv4_prefix": 24,
        "ipv4_gateway": "172.29.5.200",
        "ipv6": "fd00:5::2",
        "ipv6_prefix": 64,
        "ipv6_gateway": "fd00:5::1",
        "names": ["web", "al", ID[:12]],
        **changes,
    }
    return Endpoint(**members)


# -- views


def test_a_network() -> None:
    shown = views.network(FRONT, LATEST, [(record(), endpoint())])
    assert shown == {
        "Name": "front",
        "Id": FRONT.id,
        "Created": "1970-01-01T00:00:02.000000005Z",
        "Scope": "local",
        "Driver": "bridge",
        "EnableIPv4": True,
        "EnableIPv6": True,
        "IPAM": {
            "Driver": "default",
            "Options": None,
            "Config": [
                {
                    "Subnet": "172.29.5.0/24",
                    "IPRange": "172.29.5.128/25",
                    "Gateway": "172.29.5.200",
                    "AuxiliaryAddresses": {"h": "172.29.5.201"},
                },
                {"Subnet": "fd00:5::/64"},
            ],
        },
        "Internal": False,
        "Attachable": False,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {
            ID: {
                "Name": "web",
                "EndpointID": "e1" * 32,
                "MacAddress": "02:42:ac:1d:05:4d",
                "IPv4Address": "172.29.5.77/24",
                "IPv6Address": "fd00:5::2/64",
            }
        },
        "Options": {"o": "p"},
        "Labels": {"a": "b"},
    }
    assert list(shown)[:7] == ["Name", "Id", "Created", "Scope", "Driver", "EnableIPv4", "EnableIPv6"]


def test_a_network_by_version() -> None:
    assert "EnableIPv4" not in views.network(FRONT, (1, 47))
    none = views.network(NONE, (1, 47))
    assert (none["IPAM"], none["Containers"]) == ({"Driver": "default", "Options": None, "Config": None}, {})
    assert views.network(SHAPE, LATEST)["Driver"] == "null"
    live = endpoint(HOST, mac="", ipv4="", ipv6="")
    assert views.member(record(), live) == {"Name": "web", "EndpointID": live.id, "MacAddress": "", "IPv4Address": "", "IPv6Address": ""}


SETTINGS = EndpointSettings(
    aliases=["al"], links=["db:x"], mac_address="02:42:00:00:00:01", driver_opts={"a": "b"}, gw_priority=3,
    ipam_config=EndpointIPAMConfig(ipv4_address="172.29.5.77"),
)  # fmt: skip


def test_a_running_container() -> None:
    sandbox = Sandbox(endpoints=[endpoint(gw_priority=3)])
    started = record(endpoints={FRONT.id: SETTINGS}, state=State(status="running", started_at=S, pid=7))
    assert containers.networks(started, LATEST, sandbox, KNOWN) == {
        "front": {
            "IPAMConfig": {"IPv4Address": "172.29.5.77"},
            "Links": ["db:x"],
            "Aliases": ["al"],
            "MacAddress": "02:42:ac:1d:05:4d",
            "DriverOpts": {"a": "b"},
            "GwPriority": 3,
            "NetworkID": FRONT.id,
            "EndpointID": "e1" * 32,
            "Gateway": "172.29.5.200",
            "IPAddress": "172.29.5.77",
            "IPPrefixLen": 24,
            "IPv6Gateway": "fd00:5::1",
            "GlobalIPv6Address": "fd00:5::2",
            "GlobalIPv6PrefixLen": 64,
            "DNSNames": ["web", "al", ID[:12]],
        }
    }
    old = containers.networks(started, (1, 44), sandbox, KNOWN)["front"]
    assert (old["Aliases"], "GwPriority" in old) == (["al", ID[:12]], False)
    brief = containers.networks(started, LATEST, sandbox, KNOWN, brief=True)["front"]
    assert (brief["Links"], brief["Aliases"], brief["DriverOpts"], brief["DNSNames"]) == (None, None, None, None)
    assert brief["IPAddress"] == "172.29.5.77"


def test_a_container_that_does_not_run() -> None:
    asked = {"front": SETTINGS, "bridge": None}
    made = containers.networks(record(endpoints=asked), LATEST, None, KNOWN)
    assert list(made) == ["bridge", "front"]
    front = made["front"]
    assert (front["NetworkID"], front["EndpointID"], front["IPAddress"], front["DNSNames"]) == (FRONT.id, "", "", None)
    assert (front["MacAddress"], front["Aliases"], front["GwPriority"]) == ("02:42:00:00:00:01", ["al"], 3)
    ended = record(endpoints=asked, state=State(status="exited", started_at=S), config=Config(hostname="h"))
    assert containers.networks(ended, LATEST, None, KNOWN)["front"]["DNSNames"] == ["web", "al", ID[:12], "h"]
    assert containers.networks(ended, LATEST, None, KNOWN)["bridge"]["DNSNames"] is None
    assert containers.networks(record("gone"), LATEST, None, KNOWN)["gone"]["NetworkID"] == ""
    assert list(containers.networks(record("default"), LATEST, None, KNOWN)) == ["bridge"]
    assert list(containers.networks(record(FRONT.id[:10]), LATEST, None, KNOWN)) == ["front"]
    assert containers.networks(record("container:x"), LATEST, None, KNOWN) == {}


def settings(found: ContainerRecord, sandbox: Sandbox | None, version: tuple[int, int] = LATEST) -> dict[str, Any]:
    paths: Any = SimpleNamespace(hosts="", hostname="", resolv_conf="", log="", upper="", lowers=(), work="", merged="")
    whole = containers.inspect(found, version, paths=paths, points=[], exec_ids=[], size=None, sandbox=sandbox, known=KNOWN)
    shown: dict[str, Any] = whole["NetworkSettings"]
    return shown


def test_the_address_in_the_default_bridge_is_at_the_top_too() -> None:
    running = State(status="running", started_at=S, pid=7)
    both = Sandbox(endpoints=[endpoint(BRIDGE, ipv4="172.17.0.2", ipv6="", ipv6_prefix=0, ipv6_gateway=""), endpoint()])
    shown = settings(record("bridge", state=running), both)
    assert (shown["IPAddress"], shown["IPPrefixLen"], shown["EndpointID"]) == ("172.17.0.2", 24, "e1" * 32)
    assert (shown["GlobalIPv6Address"], shown["GlobalIPv6PrefixLen"], shown["Bridge"], shown["HairpinMode"]) == ("", 0, "", False)
    assert (shown["SandboxKey"], len(shown["SandboxID"])) == ("/proc/7/ns/net", 64)
    other = settings(record(state=running), Sandbox(endpoints=[endpoint()]))
    assert (other["IPAddress"], other["IPPrefixLen"], other["MacAddress"]) == ("", 0, "")
    stopped = settings(record(), None)
    assert (stopped["SandboxKey"], stopped["SandboxID"], stopped["Ports"]) == ("", "", {})
    assert settings(record("container:x", state=running), None)["SandboxKey"] == ""
    assert settings(record("host", state=running), None)["SandboxKey"] == "/proc/7/ns/net"


def published(host_ip: str, host_port: int, port: int, protocol: str = "tcp") -> Published:
    return Published(protocol=protocol, host_ip=host_ip, host_port=host_port, port=port)


def test_ports() -> None:
    exposed = Config(exposed_ports={"80/tcp": {}, "95/tcp": {}, "53/udp": {}, "x/tcp": {}})
    sandbox = Sandbox(
        endpoints=[endpoint()], ports=[published("0.0.0.0", 8080, 80), published("::", 8080, 80), published("127.0.0.1", 99, 90, "udp")]
    )
    running = record(config=exposed)
    assert containers.port_map(running, sandbox) == {
        "53/udp": None,
        "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}],
        "90/udp": [{"HostIp": "127.0.0.1", "HostPort": "99"}],
        "95/tcp": None,
    }
    assert containers.port_list(running, sandbox) == [
        {"PrivatePort": 53, "Type": "udp"},
        {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
        {"IP": "::", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
        {"IP": "127.0.0.1", "PrivatePort": 90, "PublicPort": 99, "Type": "udp"},
        {"PrivatePort": 95, "Type": "tcp"},
    ]
    assert containers.port_map(running, None) == {}
    assert ports(running, Sandbox(endpoints=[endpoint(link="")])) == []  # no bridge, so nothing that could be published
    assert ports(record(config=Config(exposed_ports={"80": {}})), Sandbox(endpoints=[endpoint()])) == [Port(80, "tcp")]


# -- filters


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({}, "bridge host none front shape"),
        ({"name": ["o"]}, "host none front"),
        ({"name": ["^ho"]}, "host"),
        ({"id": ["f1f1"]}, "front"),
        ({"driver": ["null"]}, "none shape"),
        ({"driver": ["nul"]}, ""),
        ({"driver": ["host", "null"]}, "host none shape"),
        ({"label": ["a"]}, "front"),
        ({"label": ["a=b"]}, "front"),
        ({"label": ["a=c"]}, ""),
        ({"scope": ["local"]}, "bridge host none front shape"),
        ({"scope": ["swarm"]}, ""),
        ({"type": ["custom"]}, "front shape"),
        ({"type": ["builtin"]}, "bridge host none"),
        ({"type": ["builtin", "custom"]}, "bridge host none front shape"),
        ({"dangling": ["true"]}, "shape"),
        ({"dangling": ["0"]}, "bridge host none front"),
    ],
)
def test_which_networks(filters: dict[str, list[str]], names: str) -> None:
    found = networkfilter.select(ALL, Filters.of(filters), lambda id: id == FRONT.id)
    assert " ".join(one.name for one in found) == names


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"x": ["y"]}, "invalid filter 'x'"),
        ({"type": ["y"]}, "invalid filter: 'type'='y'"),
        ({"dangling": ["y"]}, 'invalid value for filter \'dangling\', must be "true" (or "1"), or "false" (or "0")'),
        ({"dangling": ["true", "false"]}, 'got more than one value for filter key "dangling"'),
    ],
)
def test_filters_that_are_none(filters: dict[str, list[str]], message: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        networkfilter.select(ALL, Filters.of(filters), lambda id: False)
    assert str(caught.value) == message


SANDBOX = Sandbox(endpoints=[endpoint()], ports=[published("0.0.0.0", 8000, 80)])


def passes(filters: dict[str, list[str]], sandbox: Sandbox | None = SANDBOX) -> bool:
    found = record(config=Config(exposed_ports={"95/tcp": {}}), state=State(status="running", started_at=S))
    return bool(
        listing.select(
            [found],
            Filters.of(filters),
            show_all=True,
            limit=0,
            find=lambda ref: found,
            ancestors=lambda ref: set(),
            sandbox=lambda id: sandbox,
            known=lambda: KNOWN,
        )
    )


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"publish": ["8000"]}, True),
        ({"publish": ["8000/tcp"]}, True),
        ({"publish": ["8000-8005"]}, True),
        ({"publish": ["8000/udp"]}, False),
        ({"publish": ["80"]}, False),
        ({"publish": ["1", "8000"]}, True),
        ({"expose": ["95"]}, True),
        ({"expose": ["90-95/tcp"]}, True),
        ({"expose": ["80"]}, True),
        ({"expose": ["96"]}, False),
        ({"publish": ["1"], "expose": ["95"]}, True),
        ({"network": ["front"]}, True),
        ({"network": [FRONT.id[:5]]}, True),
        ({"network": ["bridge"]}, False),
        ({"network": ["bridge", "front"]}, True),
        ({"network": [""]}, False),
    ],
)
def test_containers_by_network_and_port(filters: dict[str, list[str]], found: bool) -> None:
    assert passes(filters) == found


def test_what_does_not_run_has_no_ports_but_networks() -> None:
    assert not passes({"publish": ["8000"]}, None)
    assert not passes({"expose": ["95"]}, None)
    assert passes({"network": ["front"]}, None)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("expose", "x", 'error while looking up for expose x: strconv.ParseUint: parsing "x": invalid syntax'),
        ("expose", "9-3", "error while looking up for expose 9-3: Invalid range specified for the Port: 9-3"),
        ("publish", "", "error while looking up for publish : Empty string specified for ports."),
        ("publish", "99999", 'error while looking up for publish 99999: strconv.ParseUint: parsing "99999": value out of range'),
    ],
)
def test_ports_that_are_none(key: str, value: str, words: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        passes({key: [value]})
    assert str(caught.value) == words


@given(st.text(alphabet="0123456789-/tcpudx", max_size=12))
def test_any_text_is_a_range_of_ports_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidParameter):
        passes({"publish": [text]})


# -- requests


class Networks:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def everything(self) -> list[NetworkRecord]:
        return ALL

    def find(self, ref: str) -> NetworkRecord:
        found = KNOWN.find(ref)
        if found is None:
            raise NotFound(f"network {ref} not found")
        return found

    def members(self, network_id: str) -> list[tuple[ContainerRecord, Endpoint]]:
        return [(record(), endpoint())] if network_id == FRONT.id else []

    def sandbox(self, container_id: str) -> Sandbox | None:
        return SANDBOX

    async def create(self, request: Any) -> tuple[str, str]:
        self.seen.append(request)
        return "abc", "careful"

    async def prune(self, filters: Filters) -> list[str]:
        self.seen.append(dict(filters))
        return [] if filters else ["front"]

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any) -> None:
            self.seen.append((name, *arguments))

        return call


class Fixture:
    def __init__(self, path: Path) -> None:
        self.path = str(path / "api.sock")
        self.networks = Networks()
        self.engine: Any = SimpleNamespace(networks=self.networks, containers=SimpleNamespace(get=lambda ref: record()))

    async def ask(self, method: str, target: str, body: Any = None) -> Response:
        return await trio.to_thread.run_sync(lambda: request(self.path, method, target, body))


def run(path: Path, test: Callable[[Fixture], Awaitable[None]]) -> None:
    async def main() -> None:
        fixture = Fixture(path)
        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                await nursery.start(functools.partial(server.serve, fixture.engine, open_listeners([f"unix://{fixture.path}"])))
                await test(fixture)
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_list_and_inspect(tmp_path: Path) -> None:
    async def check(api: Fixture) -> None:
        shown = (await api.ask("GET", "/networks")).json()
        assert [one["Name"] for one in shown] == ["bridge", "host", "none", "front", "shape"]
        assert all(one["Containers"] == {} for one in shown)
        assert [one["Name"] for one in (await api.ask("GET", "/v1.44/networks/")).json()] == ["bridge", "host", "none", "front", "shape"]
        dangling = quote(json.dumps({"dangling": ["true"]}))
        assert [one["Name"] for one in (await api.ask("GET", f"/networks?filters={dangling}")).json()] == ["shape"]
        assert list((await api.ask("GET", "/networks/front?verbose=true")).json()["Containers"]) == [ID]
        assert (await api.ask("GET", f"/v1.45/networks/{FRONT.id}?scope=local")).json()["Name"] == "front"
        for target, status, message in (
            ("/networks/nope", 404, "network nope not found"),
            ("/networks/a/b", 404, "network a/b not found"),
            ("/networks/front?scope=swarm", 404, "network front not found"),
            ("/networks/front?verbose=x", 400, 'invalid value for verbose: x: strconv.ParseBool: parsing "x": invalid syntax'),
            ("/networks?filters=x", 400, "invalid filter"),
        ):
            reply = await api.ask("GET", target)
            assert (reply.status, reply.message) == (status, message)

    run(tmp_path, check)


def test_create(tmp_path: Path) -> None:
    async def check(api: Fixture) -> None:
        body = {
            "Name": "n", "CheckDuplicate": True, "Driver": "bridge", "EnableIPv4": False, "EnableIPv6": True, "Internal": True,
            "Attachable": None, "ConfigFrom": {"Network": "shape"}, "Options": {"a": "b"}, "Labels": None,
            "IPAM": {"Options": {}, "Config": [
                {"Subnet": "10.0.0.0/8", "IPRange": "10.1.0.0/16", "Gateway": "10.0.0.1", "AuxiliaryAddresses": {"r": "10.0.0.2"}},
            ]},
        }  # fmt: skip
        reply = await api.ask("POST", "/networks/create", body)
        assert (reply.status, reply.json()) == (201, {"Id": "abc", "Warning": "careful"})
        await api.ask("POST", "/v1.47/networks/create", body)
        new, old = api.networks.seen
        assert (new.enable_ipv4, new.enable_ipv6, old.enable_ipv4, old.enable_ipv6) == (False, True, None, True)
        assert (new.name, new.internal, new.attachable, new.labels, new.config_from.network) == ("n", True, False, None, "shape")
        (pool,) = new.ipam.config
        assert (pool.subnet, pool.ip_range, pool.gateway, pool.auxiliary_addresses) == (
            "10.0.0.0/8",
            "10.1.0.0/16",
            "10.0.0.1",
            {"r": "10.0.0.2"},
        )
        assert (await api.ask("POST", "/networks/create", {"IPAM": {"Config": ["x"]}})).status == 400

    run(tmp_path, check)


def test_connect_and_disconnect(tmp_path: Path) -> None:
    async def check(api: Fixture) -> None:
        settings = {"Aliases": ["a"], "IPAMConfig": {"IPv4Address": "1.2.3.4", "LinkLocalIPs": ["169.254.1.1"]}, "GwPriority": 5}
        reply = await api.ask("POST", "/networks/front/connect", {"Container": "c", "EndpointConfig": settings})
        assert (reply.status, reply.body) == (200, b"")
        await api.ask("POST", "/v1.47/networks/front/connect", {"Container": "c", "EndpointConfig": settings})
        await api.ask("POST", "/networks/front/connect", {"Container": "c", "EndpointConfig": None})
        reply = await api.ask("POST", "/networks/front/disconnect", {"Container": "c", "Force": True})
        assert (reply.status, reply.body) == (200, b"")
        wanted = EndpointSettings(aliases=["a"], ipam_config=EndpointIPAMConfig("1.2.3.4", "", ["169.254.1.1"]), gw_priority=5)
        older = EndpointSettings(aliases=["a"], ipam_config=EndpointIPAMConfig("1.2.3.4", "", ["169.254.1.1"]))
        assert api.networks.seen == [
            ("connect", "front", "c", wanted),
            ("connect", "front", "c", older),
            ("connect", "front", "c", EndpointSettings()),
            ("disconnect", "front", "c", True),
        ]
        for action in ("connect", "disconnect"):
            reply = await api.ask("POST", f"/networks/front/{action}", {})
            assert (reply.status, reply.message) == (400, 'invalid name or ID supplied: ""')

    run(tmp_path, check)


def test_remove_and_prune(tmp_path: Path) -> None:
    async def check(api: Fixture) -> None:
        assert (await api.ask("DELETE", "/networks/a/b")).status == 204
        assert (await api.ask("POST", "/networks/prune")).json() == {"NetworksDeleted": ["front"]}
        until = quote(json.dumps({"until": {"1h": True}}))
        assert (await api.ask("POST", f"/networks/prune?filters={until}")).json() == {"NetworksDeleted": None}
        assert api.networks.seen == [("remove", "a/b"), {}, {"until": ["1h"]}]

    run(tmp_path, check)


def test_ports_of_a_running_container(tmp_path: Path) -> None:
    async def check(api: Fixture) -> None:
        body = {"PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8000"}]}}
        reply = await api.ask("POST", "/containers/web/ports/add", body)
        assert (reply.status, reply.json()) == (200, {"Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8000"}]}})
        await api.ask("POST", "/containers/web/ports/rm", {"PortBindings": {"80/tcp": None}})
        (added, ref, bindings), removed = api.networks.seen
        assert (added, ref, bindings["80/tcp"][0].host_port) == ("publish_ports", "web", "8000")
        assert removed == ("unpublish_ports", "web", {"80/tcp": None})

    run(tmp_path, check)
