"""Networks as docker-py and bare calls of the API see them: what is accepted, what is answered, in which words what is refused.

Written against dockerd 26.1; where later ones or Knarr answer with another status, both are accepted.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.lib.daemon import Engine
from tests.lib.netns import free_port

docker = pytest.importorskip("docker")

OWN = "knarr-compat"  # begins the names of all that is made here
SUBNET, SUBNET6 = "10.213.7.0/24", "fd00:d5:7::/64"
PORT = free_port()


@pytest.fixture
def api(clean: Engine) -> Iterator[Engine]:
    """The engine; networks made by the test are removed after it, containers before them."""
    yield clean
    for container in clean.api("GET", "/containers/json?all=1").json():
        if container["Names"][0].startswith(f"/{OWN}"):
            clean.api("DELETE", f"/containers/{container['Id']}?force=1&v=1")
    for _ in range(2):  # a configuration goes after the network that was made from it
        for network in clean.api("GET", "/networks").json():
            if network["Name"].startswith(OWN):
                clean.api("DELETE", f"/networks/{network['Id']}")


@pytest.fixture
def client(api: Engine) -> Iterator[Any]:
    found = docker.DockerClient(base_url=f"unix://{api.socket}", timeout=60)
    yield found
    found.close()


def make(api: Engine, name: str = "", **body: Any) -> dict[str, Any]:
    """A network; what inspect says of it."""
    reply = api.api("POST", "/networks/create", {"Name": OWN + name, **body})
    assert reply.status == 201, reply.body
    shown: dict[str, Any] = api.api("GET", f"/networks/{reply.json()['Id']}").json()
    return shown


def create(api: Engine, name: str, network: str, endpoint: dict[str, Any] | None = None, **host: Any) -> str:
    """A container that is not started."""
    body = {
        "Image": "busybox",
        "Cmd": ["sleep", "1000"],
        "ExposedPorts": {port: {} for port in (*host.get("PortBindings", ()), "95/tcp") if not network.startswith("container:")},
        "HostConfig": {"NetworkMode": network, **host},
        "NetworkingConfig": {"EndpointsConfig": {network: endpoint} if endpoint is not None else {}},
    }
    reply = api.api("POST", f"/containers/create?name={OWN}{name}", body)
    assert reply.status == 201, reply.body
    return str(reply.json()["Id"])


def start(api: Engine, id: str) -> dict[str, Any]:
    """Start a container; its NetworkSettings."""
    reply = api.api("POST", f"/containers/{id}/start")
    assert reply.status == 204, reply.body
    return settings(api, id)


def settings(api: Engine, id: str, version: str = "") -> dict[str, Any]:
    shown: dict[str, Any] = api.api("GET", f"{version}/containers/{id}/json").json()["NetworkSettings"]
    return shown


def names(api: Engine, target: str, **filters: Any) -> list[str]:
    reply = api.api("GET", f"{target}{'&' if '?' in target else '?'}filters={quote(json.dumps(filters))}")
    assert reply.status == 200, reply.body
    return sorted(one["Names"][0][1:] if "Names" in one else one["Name"] for one in reply.json())


# -- networks


def test_predefined_networks(api: Engine) -> None:
    found = {one["Name"]: one for one in api.api("GET", "/v1.45/networks").json()}
    assert (found["bridge"]["Driver"], found["host"]["Driver"], found["none"]["Driver"]) == ("bridge", "host", "null")
    for one in (found["bridge"], found["host"], found["none"]):
        assert (one["Scope"], one["Containers"], one["ConfigFrom"], one["Labels"]) == ("local", {}, {"Network": ""}, {})
        reply = api.api("DELETE", f"/networks/{one['Name']}")
        assert (reply.status, reply.message) == (403, f"{one['Name']} is a pre-defined network and cannot be removed")
    assert found["none"]["IPAM"] == {"Driver": "default", "Options": None, "Config": None}
    (pool,) = found["bridge"]["IPAM"]["Config"]
    assert pool["Gateway"].rpartition(".")[2] == "1" and pool["Subnet"].endswith(".0/16")
    assert found["bridge"]["Options"]["com.docker.network.bridge.default_bridge"] == "true"


def test_a_network_is_shown_as_it_was_asked_for(api: Engine) -> None:
    pools = [
        {"Subnet": SUBNET, "IPRange": "10.213.7.128/25", "Gateway": "10.213.7.200", "AuxiliaryAddresses": {"h": "10.213.7.201"}},
        {"Subnet": SUBNET6},
    ]
    shown = make(api, Labels={"a": "b"}, EnableIPv6=True, Internal=True, Attachable=True, IPAM={"Config": pools})
    assert (shown["Labels"], shown["EnableIPv6"], shown["Internal"], shown["Attachable"]) == ({"a": "b"}, True, True, True)
    assert shown["IPAM"]["Config"] == pools
    assert (shown["Options"], shown["Ingress"], shown["ConfigOnly"], len(shown["Id"])) == ({}, False, False, 64)
    assert shown["Created"].endswith("Z")


def test_a_subnet_is_found_for_who_asks_for_none(api: Engine) -> None:
    (pool,) = make(api)["IPAM"]["Config"]
    assert pool["Subnet"].partition("/")[0] == pool["Gateway"].rpartition(".")[0] + ".0"


def test_configurations(api: Engine) -> None:
    shape = make(api, "-shape", ConfigOnly=True, IPAM={"Config": [{"Subnet": SUBNET}]})
    assert (shape["ConfigOnly"], shape["Driver"]) == (True, "null")
    made = make(api, "-made", ConfigFrom={"Network": f"{OWN}-shape"})
    assert (made["ConfigFrom"], made["ConfigOnly"], made["Driver"]) == ({"Network": f"{OWN}-shape"}, False, "bridge")
    assert [pool["Subnet"] for pool in made["IPAM"]["Config"]] == [SUBNET]
    reply = api.api("DELETE", f"/networks/{OWN}-shape")
    assert reply.status == 403 and f'configuration network "{OWN}-shape" is in use' in reply.message


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"Name": ""}, 400, "invalid name: "),
        ({"Name": " "}, 400, "invalid name: "),
        ({"Name": "host"}, 403, "operation is not permitted on predefined host network"),
        ({"Name": "bridge"}, 403, "operation is not permitted on predefined bridge network"),
        ({"Driver": "nope"}, 404, 'plugin "nope" not found'),
        ({"Driver": "host"}, 403, 'only one instance of "host" network is allowed'),
        ({"Driver": "null"}, 403, 'only one instance of "null" network is allowed'),
        ({"ConfigFrom": {"Network": "nope"}}, 404, 'configuration network "nope" does not exist'),
        ({"IPAM": {"Config": [{"Subnet": "10.213.7.1/24"}]}}, 400, "invalid subnet 10.213.7.1/24: it should be 10.213.7.0/24"),
        ({"IPAM": {"Config": [{"Subnet": "x"}]}}, 400, "invalid subnet x: invalid CIDR block notation"),
        ({"IPAM": {"Config": [{"Subnet": SUBNET, "Gateway": "1.2.3.4"}]}}, 400, "invalid gateway 1.2.3.4: parent subnet"),
        ({"IPAM": {"Config": [{"Subnet": SUBNET, "IPRange": "1.2.3.0/24"}]}}, 400, "invalid ip-range 1.2.3.0/24: parent subnet"),
        ({"Options": {"com.docker.network.bridge.enable_icc": "x"}}, 400, "com.docker.network.bridge.enable_icc"),
    ],
)
def test_networks_that_cannot_be(api: Engine, body: dict[str, Any], status: int, words: str) -> None:
    reply = api.api("POST", "/networks/create", {"Name": OWN, **body})
    assert (reply.status, words in reply.message) == (status, True), reply.message
    assert names(api, "/networks", name=[f"^{OWN}"]) == []


def test_names_and_subnets_are_given_once(api: Engine) -> None:
    make(api, IPAM={"Config": [{"Subnet": SUBNET}]})
    reply = api.api("POST", "/networks/create", {"Name": OWN})
    assert (reply.status, reply.message) == (409, f"network with name {OWN} already exists")
    reply = api.api("POST", "/networks/create", {"Name": f"{OWN}2", "IPAM": {"Config": [{"Subnet": "10.213.7.0/25"}]}})
    assert reply.status == 403 and "Pool overlaps with other one on this address space" in reply.message


def test_a_network_is_found_by_name_and_id(api: Engine) -> None:
    id = make(api)["Id"]
    for ref in (OWN, id, id[:12], f"{OWN}?verbose=true", f"{OWN}?scope=local"):
        assert api.api("GET", f"/networks/{ref}").json()["Id"] == id
    for ref in ("knarr-nope", f"{OWN}?scope=swarm"):
        reply = api.api("GET", f"/networks/{ref}")
        assert (reply.status, reply.message) == (404, f"network {ref.partition('?')[0]} not found")
    assert api.api("GET", f"/networks/{OWN}?verbose=x").status == 400
    assert api.api("DELETE", f"/networks/{id[:12]}").status == 204
    assert api.api("DELETE", f"/networks/{id}").status == 404


def test_filters(api: Engine) -> None:
    id = make(api, Labels={"knarr-a": "b"})["Id"]
    assert names(api, "/networks", name=[f"{OWN}$"]) == [OWN]
    assert names(api, "/networks", id=[id[:12]]) == [OWN]
    assert names(api, "/networks", label=["knarr-a"]) == names(api, "/networks", label=["knarr-a=b"]) == [OWN]
    assert names(api, "/networks", label=["knarr-a=c"]) == []
    assert OWN in names(api, "/networks", type=["custom"]) and "host" not in names(api, "/networks", type=["custom"])
    assert names(api, "/networks", type=["builtin"]) == ["bridge", "host", "none"]
    assert names(api, "/networks", driver=["host", "null"]) == ["host", "none"]
    assert names(api, "/networks", scope=["swarm"]) == []
    assert OWN in names(api, "/networks", dangling=["true"])
    assert "bridge" in names(api, "/networks", dangling=["false"]) and OWN not in names(api, "/networks", dangling=["false"])
    for filters, words in (
        ({"nope": ["x"]}, "invalid filter 'nope'"),
        ({"dangling": ["x"]}, "invalid value for filter 'dangling'"),
        ({"type": ["x"]}, "invalid filter: 'type'='x'"),
    ):
        reply = api.api("GET", f"/networks?filters={quote(json.dumps(filters))}")
        assert reply.status in (400, 500) and words in reply.message


def test_prune(api: Engine) -> None:
    make(api, Labels={"knarr-prune": "1"})
    make(api, "2", Labels={"knarr-prune": "2"})
    used = make(api, "3", Labels={"knarr-prune": "1"})
    start(api, create(api, "c", f"{OWN}3"))

    def prune(**filters: Any) -> Any:
        reply = api.api("POST", f"/networks/prune?filters={quote(json.dumps(filters))}")
        return reply.json() if reply.status == 200 else (reply.status, reply.message)

    assert prune(label=["knarr-prune=3"]) == {"NetworksDeleted": None}
    assert prune(label=["knarr-prune"], until=["1h"]) == {"NetworksDeleted": None}
    assert prune(label=["knarr-prune=1"]) == {"NetworksDeleted": [OWN]}
    assert prune(label=["knarr-prune"]) == {"NetworksDeleted": [f"{OWN}2"]}
    assert prune(nope=["x"]) == (400, "invalid filter 'nope'")
    assert prune(until=["1h", "2h"]) == (400, "more than one until filter specified")
    assert api.api("GET", f"/networks/{used['Id']}").status == 200


# -- containers in them


def test_what_a_container_has(api: Engine) -> None:
    network = make(api, EnableIPv6=True, IPAM={"Config": [{"Subnet": SUBNET}, {"Subnet": SUBNET6}]})
    endpoint = {
        "Aliases": ["al"],
        "IPAMConfig": {"IPv4Address": "10.213.7.77", "IPv6Address": "fd00:d5:7::77"},
        "MacAddress": "02:42:0a:00:00:07",
    }
    id = create(api, "c", OWN, endpoint)
    before = settings(api, id, "/v1.45")["Networks"][OWN]
    assert (before["Aliases"], before["IPAMConfig"], before["MacAddress"]) == (["al"], endpoint["IPAMConfig"], endpoint["MacAddress"])
    assert (before["EndpointID"], before["IPAddress"], before["DNSNames"]) == ("", "", None)
    assert settings(api, id)["Ports"] == {}
    start(api, id)
    shown = settings(api, id, "/v1.45")
    mine = shown["Networks"][OWN]
    assert (mine["NetworkID"], mine["IPAddress"], mine["IPPrefixLen"]) == (network["Id"], "10.213.7.77", 24)
    assert (mine["GlobalIPv6Address"], mine["GlobalIPv6PrefixLen"]) == ("fd00:d5:7::77", 64)
    assert (mine["Gateway"], mine["IPv6Gateway"], mine["MacAddress"]) == ("10.213.7.1", "fd00:d5:7::1", "02:42:0a:00:00:07")
    assert mine["DNSNames"] == [f"{OWN}c", "al", id[:12]]
    assert (len(mine["EndpointID"]), len(shown["SandboxID"])) == (64, 64)
    assert shown["SandboxKey"].startswith("/")
    assert (shown["IPAddress"], shown["Ports"]) == ("", {"95/tcp": None})
    assert settings(api, id, "/v1.43")["Networks"][OWN]["Aliases"] == ["al", id[:12]]
    members = api.api("GET", f"/networks/{OWN}").json()["Containers"]
    assert members == {
        id: {
            "Name": f"{OWN}c",
            "EndpointID": mine["EndpointID"],
            "MacAddress": "02:42:0a:00:00:07",
            "IPv4Address": "10.213.7.77/24",
            "IPv6Address": "fd00:d5:7::77/64",
        }
    }
    (listed,) = [one for one in api.api("GET", "/v1.45/containers/json").json() if one["Id"] == id]
    assert listed["NetworkSettings"]["Networks"][OWN]["IPAddress"] == "10.213.7.77"
    assert listed["Ports"] == [{"PrivatePort": 95, "Type": "tcp"}]
    reply = api.api("DELETE", f"/networks/{OWN}")
    assert reply.status == 403 and reply.message.startswith("error while removing network: ") and "has active endpoints" in reply.message
    api.api("POST", f"/containers/{id}/stop?t=0")
    after = settings(api, id)["Networks"][OWN]
    assert (after["NetworkID"], after["EndpointID"], after["IPAddress"], after["IPPrefixLen"]) == (network["Id"], "", "", 0)
    assert api.api("GET", f"/networks/{OWN}").json()["Containers"] == {}


def test_the_default_bridge(api: Engine) -> None:
    shown = start(api, create(api, "c", "default"))
    (mine,) = shown["Networks"].values()
    for name in ("IPAddress", "IPPrefixLen", "Gateway", "MacAddress", "EndpointID", "GlobalIPv6Address"):
        assert shown[name] == mine[name]
    assert mine["IPAddress"] and mine["MacAddress"].startswith("02:42:")
    assert list(shown["Networks"]) == ["bridge"]
    assert mine["DNSNames"] is None


def test_no_network_and_the_hosts(api: Engine) -> None:
    for mode in ("none", "host"):
        id = create(api, mode, mode)
        shown = start(api, id)
        mine = shown["Networks"][mode]
        assert (mine["NetworkID"], mine["IPAddress"]) == (api.api("GET", f"/networks/{mode}").json()["Id"], "")
        assert (shown["Ports"], len(shown["SandboxID"])) == ({}, 64)
    joined = start(api, create(api, "joined", f"container:{OWN}none"))
    assert (joined["Networks"], joined["SandboxID"]) == ({}, "")
    for name, status in (("none", 400), ("host", 400), ("joined", 400)):
        reply = api.api("POST", "/networks/bridge/connect", {"Container": OWN + name})
        assert reply.status in (status, 403) and reply.message.startswith("container ")


def test_ports(api: Engine) -> None:
    id = create(api, "c", "bridge", PortBindings={
        "80/tcp": [{"HostIp": "", "HostPort": f"{PORT}"}], "81/udp": [{"HostIp": "127.0.0.1", "HostPort": ""}],
    })  # fmt: skip
    ports = start(api, id)["Ports"]
    assert {"HostIp": "0.0.0.0", "HostPort": f"{PORT}"} in ports["80/tcp"]
    assert {binding["HostPort"] for binding in ports["80/tcp"]} == {f"{PORT}"}
    (random,) = ports["81/udp"]
    assert random["HostIp"] == "127.0.0.1" and 1024 < int(random["HostPort"]) < 65536
    assert ports["95/tcp"] is None
    (listed,) = [one for one in api.api("GET", "/containers/json").json() if one["Id"] == id]
    assert {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": PORT, "Type": "tcp"} in listed["Ports"]
    assert {"IP": "127.0.0.1", "PrivatePort": 81, "PublicPort": int(random["HostPort"]), "Type": "udp"} in listed["Ports"]
    assert {"PrivatePort": 95, "Type": "tcp"} in listed["Ports"]
    bridge = api.api("GET", "/networks/bridge").json()["Id"]
    for found, filters in (
        (True, {"publish": [f"{PORT}"]}),
        (True, {"publish": [f"{PORT - 20}-{PORT + 20}/tcp"]}),
        (False, {"publish": [f"{PORT}/udp"]}),
        (True, {"expose": ["95"]}),
        (True, {"expose": ["80"]}),
        (False, {"expose": ["96-99"]}),
        (True, {"publish": ["1"], "expose": ["95"]}),
        (True, {"network": ["bridge"]}),
        (True, {"network": [bridge[:12]]}),
        (False, {"network": ["host"]}),
    ):
        assert (f"{OWN}c" in names(api, "/containers/json", **filters)) == found, filters
    api.api("POST", f"/containers/{id}/stop?t=0")
    assert settings(api, id)["Ports"] == {}
    assert f"{OWN}c" not in names(api, "/containers/json?all=1", publish=[f"{PORT}"])
    assert f"{OWN}c" in names(api, "/containers/json?all=1", network=["bridge"])


def test_a_host_port_is_given_once(api: Engine) -> None:
    bindings = {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": f"{PORT}"}]}
    start(api, create(api, "1", "bridge", PortBindings=bindings))
    reply = api.api("POST", f"/containers/{create(api, '2', 'bridge', PortBindings=bindings)}/start")
    assert reply.status in (409, 500) and "port is already allocated" in reply.message


def test_all_exposed_ports_can_be_published(api: Engine) -> None:
    (binding, *_) = start(api, create(api, "c", "bridge", PublishAllPorts=True))["Ports"]["95/tcp"]
    assert int(binding["HostPort"]) > 1024


def test_connect_and_disconnect(api: Engine) -> None:
    make(api, IPAM={"Config": [{"Subnet": SUBNET}]})
    id = create(api, "c", "bridge")
    start(api, id)

    def call(action: str, container: str = f"{OWN}c", network: str = OWN, **more: Any) -> tuple[int, str]:
        reply = api.api("POST", f"/networks/{network}/{action}", {"Container": container, **more})
        return reply.status, reply.message if reply.status >= 400 else reply.body.decode()

    assert call("connect", EndpointConfig={"Aliases": ["x"], "IPAMConfig": {"IPv4Address": "10.213.7.50"}}) == (200, "")
    mine = settings(api, id)["Networks"]
    assert list(mine) == ["bridge", OWN]
    assert (mine[OWN]["IPAddress"], mine[OWN]["Aliases"][0]) == ("10.213.7.50", "x")
    status, message = call("connect")
    assert (status, message) == (403, f"endpoint with name {OWN}c already exists in network {OWN}")
    assert call("connect", "knarr-nope") == (404, "No such container: knarr-nope")
    assert call("connect", network="knarr-nope")[0] == 404
    assert call("connect", "")[0] == 400
    assert call("disconnect") == (200, "")
    assert list(settings(api, id)["Networks"]) == ["bridge"]
    status, message = call("disconnect")
    assert status in (403, 500) and f"container {id} is not connected to" in message
    assert call("disconnect", "knarr-nope") == (404, "No such container: knarr-nope")
    for wrong, words in (
        ({"IPAMConfig": {"IPv4Address": "10.99.0.1"}}, "no configured subnet"),
        ({"IPAMConfig": {"IPv4Address": "x"}}, "invalid IPv4 address: x"),
    ):
        status, message = call("connect", EndpointConfig=wrong)
        assert status == 400 and words in message
    # one that does not run is connected at its start
    api.api("POST", f"/containers/{id}/stop?t=0")
    assert call("connect", EndpointConfig={"IPAMConfig": {"IPv4Address": "10.213.7.51"}}) == (200, "")
    assert start(api, id)["Networks"][OWN]["IPAddress"] == "10.213.7.51"


def test_the_default_bridge_gives_no_addresses_or_names(api: Engine) -> None:
    create(api, "c", "none")
    make(api)
    id = create(api, "d", OWN)
    for endpoint, words in (
        ({"IPAMConfig": {"IPv4Address": "172.17.0.99"}}, "user specified IP address is supported on user defined networks only"),
        ({"Aliases": ["z"]}, "network-scoped alias"),
    ):
        reply = api.api("POST", "/networks/bridge/connect", {"Container": id, "EndpointConfig": endpoint})
        assert reply.status == 400 and words in reply.message


def test_a_network_that_is_not_there(api: Engine) -> None:
    reply = api.api("POST", f"/containers/create?name={OWN}c", {"Image": "busybox", "HostConfig": {"NetworkMode": "knarr-nope"}})
    if reply.status == 201:  # dockerd before 28 finds out at the start
        reply = api.api("POST", f"/containers/{OWN}c/start")
    assert (reply.status, "network knarr-nope not found" in reply.message) == (404, True)


# -- docker-py


def test_docker_py(client: Any) -> None:
    pool = docker.types.IPAMPool(subnet=SUBNET, gateway="10.213.7.254")
    network = client.networks.create(OWN, labels={"by": "py"}, ipam=docker.types.IPAMConfig(pool_configs=[pool]), check_duplicate=True)
    assert [found.name for found in client.networks.list(names=[f"^{OWN}$"])] == [OWN]
    assert [found.name for found in client.networks.list(filters={"label": "by=py"}, greedy=True)] == [OWN]
    container = client.containers.run(
        "busybox", ["sleep", "1000"], detach=True, name=f"{OWN}-py", network=OWN, ports={"80/tcp": ("127.0.0.1", PORT), "53/udp": None}
    )
    container.reload()
    assert container.ports["80/tcp"] == [{"HostIp": "127.0.0.1", "HostPort": f"{PORT}"}]
    assert int(container.ports["53/udp"][0]["HostPort"]) > 1024
    assert container.attrs["NetworkSettings"]["Networks"][OWN]["Gateway"] == "10.213.7.254"
    network.reload()
    assert [found.name for found in network.containers] == [f"{OWN}-py"]
    assert [found.name for found in client.containers.list(filters={"network": OWN})] == [f"{OWN}-py"]
    client.networks.get("bridge").connect(container)
    network.disconnect(container, force=True)
    container.reload()
    assert list(container.attrs["NetworkSettings"]["Networks"]) == ["bridge"]
    container.remove(force=True)
    assert client.networks.prune(filters={"label": "by=py"}) == {"NetworksDeleted": [OWN]}
    with pytest.raises(docker.errors.NotFound):
        client.networks.get(OWN)


def test_docker_py_names_conflicts(client: Any) -> None:
    client.networks.create(OWN)
    with pytest.raises(docker.errors.APIError) as caught:
        client.networks.create(OWN)
    assert caught.value.status_code == 409


# -- the docker CLI


def test_docker_cli(api: Engine) -> None:
    with contextlib.suppress(AssertionError):
        api.docker("network", "rm", f"{OWN}-cli")
    id = api.out("network", "create", "--subnet", SUBNET, "--label", "a=b", f"{OWN}-cli")
    assert api.out("network", "ls", "-q", "--no-trunc", "-f", f"name={OWN}-cli") == id
    assert api.out("network", "inspect", "-f", "{{range .IPAM.Config}}{{.Subnet}}{{end}}", f"{OWN}-cli") == SUBNET
    run = ("run", "-d", "--name", f"{OWN}-cli", "--network", f"{OWN}-cli", "--network-alias", "x")
    container = api.out(*run, "-p", f"127.0.0.1:{PORT}:80", "--expose", "95", "busybox", "sleep", "1000")
    assert api.out("port", f"{OWN}-cli") == f"80/tcp -> 127.0.0.1:{PORT}"
    assert api.out("port", f"{OWN}-cli", "80") == f"127.0.0.1:{PORT}"
    assert api.out("ps", "--format", "{{.Ports}} {{.Networks}}", "-f", f"name={OWN}-cli") == f"95/tcp, 127.0.0.1:{PORT}->80/tcp {OWN}-cli"
    assert container in api.out("inspect", f"{OWN}-cli")
    assert id in api.out("inspect", "--type", "network", f"{OWN}-cli")
    gone = api.docker("network", "rm", "knarr-nope", check=False)
    assert gone.returncode == 1 and b"network knarr-nope not found" in gone.stderr
    api.docker("network", "disconnect", f"{OWN}-cli", f"{OWN}-cli")
    api.docker("rm", "-f", f"{OWN}-cli")
    assert api.out("network", "rm", f"{OWN}-cli") == f"{OWN}-cli"
