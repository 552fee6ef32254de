"""What clients do to networks, volumes and containers, at random, by requests that may be cut off anywhere, and which answers are right."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

from tests.lib import busybox
from tests.lib.daemon import Engine
from tests.lib.netns import eventually

LABEL = "knarr.test.chaos"
FIRST_PORT = 20000
STEADY_SUBNET, STEADY_CONTAINERS = "10.251.0.0/28", 13  # 16 addresses without the network's, the broadcast's and the gateway's
NETWORKS, VOLUMES, CONTAINERS = 3, 3, 8  # names that all workers share, so that they get into each other's way
_numbers = itertools.count()


class Wrong(AssertionError):
    """An answer that no order of the requests explains."""


class Work:
    """One client. `step` does one thing; names are drawn from a small set that all clients share."""

    def __init__(self, engine: Engine, chance: random.Random, prefix: str = "chaos") -> None:
        self.engine, self.chance, self.prefix = engine, chance, prefix
        self.done: dict[str, int] = {}

    def name(self, kind: str, count: int) -> str:
        return f"{self.prefix}-{kind}{self.chance.randrange(count)}"

    def network(self) -> str:
        return self.chance.choice([f"{self.prefix}-steady", "bridge", self.name("net", NETWORKS), self.name("net", NETWORKS)])

    def step(self) -> None:
        steps = [
            *[self.run] * 4, *[self.remove] * 3, self.connect, self.connect, self.disconnect, self.disconnect,
            self.stop, self.start, self.create_network, self.create_network, self.remove_network, self.create_volume, self.remove_volume,
        ]  # fmt: skip
        step = self.chance.choice(steps)
        step()
        self.done[step.__name__] = self.done.get(step.__name__, 0) + 1

    def call(self, method: str, target: str, body: Any = None, *, right: tuple[int, ...], words: tuple[str, ...] = ()) -> Any:
        """A request. Raises Wrong when neither the status is one of `right` nor the message has one of `words`."""
        answer = self.engine.api(method, target, body)
        text = answer.body.decode(errors="replace")
        if answer.status not in right and not any(word in text for word in words):
            raise Wrong(f"{method} {target}: {answer.status} {text[:300]}")
        return answer

    def run(self) -> None:
        """A container with a name, a network or two, sometimes a port, a named and an anonymous volume; started."""
        name = self.name("box", CONTAINERS)
        network = self.network()
        port = FIRST_PORT + int(name[-1])
        config: dict[str, Any] = {
            "Image": busybox.NAME,
            "Cmd": ["sleep", "100000"],
            "Labels": {LABEL: self.prefix},
            "ExposedPorts": {"80/tcp": {}},
            "HostConfig": {"NetworkMode": network, "AutoRemove": self.chance.random() < 0.3},
        }
        if self.chance.random() < 0.6:
            config["HostConfig"]["PortBindings"] = {"80/tcp": [{"HostPort": str(port)}]}
        if self.chance.random() < 0.6:
            config["HostConfig"]["Binds"] = [f"{self.name('vol', VOLUMES)}:/data"]
            config["Volumes"] = {"/scratch": {}}
        if network != "bridge":
            config["NetworkingConfig"] = {"EndpointsConfig": {network: {"Aliases": ["alias"]}}}
        made = self.call("POST", f"/containers/create?name={name}", config, right=(201, 404, 409))
        if made.status == 201:
            self.up(made.json()["Id"])

    def up(self, container: str) -> None:
        words = ("port is already allocated", "address already in use", "no available IPv4 addresses", "all predefined address pools")
        self.call("POST", f"/containers/{container}/start", right=(204, 304, 404, 409), words=words)

    def start(self) -> None:
        self.up(self.name("box", CONTAINERS))

    def stop(self) -> None:
        self.call("POST", f"/containers/{self.name('box', CONTAINERS)}/stop?t=0", right=(204, 304, 404, 409))

    def remove(self) -> None:
        self.call("DELETE", f"/containers/{self.name('box', CONTAINERS)}?force=1&v=1", right=(204, 404, 409))

    def connect(self) -> None:
        # 403: it is connected already, or does not run on a network that could be changed
        network = self.network()
        body: dict[str, Any] = {"Container": self.name("box", CONTAINERS)}
        if network != "bridge":
            body["EndpointConfig"] = {"Aliases": ["other"]}
        words = ("no available IPv4 addresses", "is marked for removal")
        self.call("POST", f"/networks/{network}/connect", body, right=(200, 403, 404, 409), words=words)

    def disconnect(self) -> None:
        body = {"Container": self.name("box", CONTAINERS), "Force": self.chance.random() < 0.3}
        words = ("is not connected to", "is marked for removal")
        self.call("POST", f"/networks/{self.network()}/disconnect", body, right=(200, 403, 404, 409), words=words)

    def create_network(self) -> None:
        body = {"Name": self.name("net", NETWORKS), "Labels": {LABEL: self.prefix}, "Internal": self.chance.random() < 0.2}
        self.call("POST", "/networks/create", body, right=(201, 409))

    def remove_network(self) -> None:
        self.call("DELETE", f"/networks/{self.name('net', NETWORKS)}", right=(204, 403, 404), words=("has active endpoints",))

    def create_volume(self) -> None:
        self.call("POST", "/volumes/create", {"Name": self.name("vol", VOLUMES), "Labels": {LABEL: self.prefix}}, right=(201,))

    def remove_volume(self) -> None:
        self.call("DELETE", f"/volumes/{self.name('vol', VOLUMES)}", right=(204, 404, 409))


def steady(engine: Engine, prefix: str = "chaos") -> None:
    """The network that stays, so small that addresses which are not given back are soon missed."""
    body = {"Name": f"{prefix}-steady", "Labels": {LABEL: prefix}, "IPAM": {"Config": [{"Subnet": STEADY_SUBNET}]}}
    answer = engine.api("POST", "/networks/create", body)
    assert answer.status == 201, answer.body


def listed(engine: Engine, target: str, member: str = "") -> list[dict[str, Any]]:
    answer = engine.api("GET", target).json()
    return (answer[member] or []) if member else answer


def findings(engine: Engine) -> list[str]:
    """What contradicts itself in what the engine says of containers and networks."""
    found = []
    ids = {network["Id"] for network in listed(engine, "/networks")}
    used: dict[str, str] = {}
    for container in listed(engine, "/containers/json?all=1"):
        answer = engine.api("GET", f"/containers/{container['Id']}/json")
        if answer.status != 200:  # one that removes itself may just have gone: then it is not listed either
            if any(one["Id"] == container["Id"] for one in listed(engine, "/containers/json?all=1")):
                found.append(f"listed but not there: {container['Names']}")
            continue
        shown = answer.json()
        name, running = shown["Name"], shown["State"]["Running"]
        if shown["State"]["Status"] not in ("created", "running", "exited", "dead", "removing", "restarting"):
            found.append(f"{name}: {shown['State']['Status']}")
        for network, settings in shown["NetworkSettings"]["Networks"].items():
            address = settings["IPAddress"]
            if running and settings["NetworkID"] not in ids:
                found.append(f"{name}: on a network that is not there: {network}")
            if running and not address and network not in ("none", "host"):
                found.append(f"{name}: runs without an address on {network}")
            if address and (other := used.setdefault(f"{network} {address}", name)) != name:
                found.append(f"{name} and {other}: both {address} on {network}")
    return found


def clear(engine: Engine, prefix: str = "chaos") -> None:
    """Remove all that the work made, by requests that must succeed: nothing may be in use by what is gone."""
    filters = json.dumps({"label": [f"{LABEL}={prefix}"]})
    for container in listed(engine, f"/containers/json?all=1&filters={filters}"):
        target = f"/containers/{container['Id']}"
        answer = engine.api("DELETE", f"{target}?force=1&v=1")
        assert answer.status in (204, 404) or "already in progress" in answer.message, answer.body
        assert eventually(lambda target=target: engine.api("GET", f"{target}/json").status == 404)  # one that removes itself is slower
    for network in listed(engine, f"/networks?filters={filters}"):
        answer = engine.api("DELETE", f"/networks/{network['Id']}")
        assert answer.status == 204, f"a network is in use by nobody: {answer.body!r}"
    for volume in listed(engine, "/volumes", "Volumes"):
        if volume["Name"].startswith(f"{prefix}-") or "com.docker.volume.anonymous" in (volume["Labels"] or {}):
            answer = engine.api("DELETE", f"/volumes/{volume['Name']}")
            assert answer.status == 204, f"a volume is in use by nobody: {answer.body!r}"


def all_addresses_are_free(engine: Engine, prefix: str = "chaos") -> None:
    """As many containers as the small network has addresses all get one, and then it is full."""
    name = f"{prefix}-steady"
    config = {"Image": busybox.NAME, "Cmd": ["sleep", "1000"], "Labels": {LABEL: prefix}, "HostConfig": {"NetworkMode": name}}
    addresses = set()
    for number in range(STEADY_CONTAINERS + 1):
        made = engine.api("POST", f"/containers/create?name={prefix}-full{number}", config)
        assert made.status == 201, made.body
        started = engine.api("POST", f"/containers/{made.json()['Id']}/start")
        if number == STEADY_CONTAINERS:
            assert started.status >= 400 and "no available" in started.message, (started.status, started.body)
        else:
            assert started.status == 204, f"address {number + 1} of {STEADY_CONTAINERS}: {started.body!r}"
            shown = engine.api("GET", f"/containers/{made.json()['Id']}/json").json()
            addresses.add(shown["NetworkSettings"]["Networks"][name]["IPAddress"])
    assert len(addresses) == STEADY_CONTAINERS, addresses
