"""A small site for tests of networks: a host that the engine runs on and a client outside, both network namespaces, joined by a cable.

Knarr's daemon is started inside a namespace of its own, so nothing of this machine's network is touched; a peer's namespace is named by
KNARR_PEER_NETNS, and the client is plugged into that.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tests.lib import busybox, netns
from tests.lib.daemon import Daemon, Engine, Peer
from tests.lib.netns import Namespace

HOST, HOST6 = "198.51.100.1", "2001:db8:51::1"  # RFC 5737 and RFC 3849: for documentation, routed nowhere
CLIENT, CLIENT6 = "198.51.100.2", "2001:db8:51::2"
_numbers = itertools.count()


class Box:
    """A running container and its network namespace."""

    def __init__(self, site: Site, container: str) -> None:
        self.site, self.id = site, container
        self.pid = self.inspect()["State"]["Pid"]
        self.host = Namespace.of(self.pid)

    def inspect(self) -> Any:
        return self.site.engine.api("GET", f"/containers/{self.id}/json").json()

    def on(self, network: str = "") -> dict[str, Any]:
        """Its settings on a network; on its only one when none is named."""
        networks: dict[str, dict[str, Any]] = self.inspect()["NetworkSettings"]["Networks"]
        return networks[network] if network else next(iter(networks.values()))

    def ip(self, network: str = "") -> str:
        return str(self.on(network)["IPAddress"])

    def ip6(self, network: str = "") -> str:
        return str(self.on(network)["GlobalIPv6Address"])

    def port(self, inside: str = "80/tcp", family: int = 4) -> int:
        """The host's port that leads to one of the container's."""
        bindings = self.inspect()["NetworkSettings"]["Ports"][inside] or []
        return next(int(one["HostPort"]) for one in bindings if (":" in one["HostIp"]) == (family == 6))

    def link(self) -> str:
        """The only link besides lo."""
        (name,) = (name for name in self.host.links() if name not in ("lo", "ifb0", "ifb1", "tunl0", "sit0", "ip6tnl0"))
        return name

    def close(self) -> None:
        self.host.close()


class Site:
    """The engine, its host, the client outside, and what tests made: `close` removes it all."""

    def __init__(self, engine: Engine, host: Namespace, client: Namespace, cable: tuple[str, str]) -> None:
        self.engine, self.host, self.client, self.cable = engine, host, client, cable
        self.boxes: list[Box] = []
        self.networks: list[str] = []

    @property
    def knarr(self) -> bool:
        return isinstance(self.engine, Daemon)

    def network(self, *options: str) -> str:
        name = f"site{os.getpid()}-{next(_numbers)}"
        self.engine.docker("network", "create", *options, name)
        self.networks.append(name)
        return name

    def dual(self, *options: str) -> str:
        """A network with addresses of both families."""
        return self.network("--ipv6", "--subnet", f"fd00:51:{next(_numbers):x}::/64", *options)

    def box(self, *options: str, command: tuple[str, ...] = ("sleep", "100000")) -> Box:
        """A container that does nothing: tests open sockets in its namespace."""
        made = Box(self, self.engine.out("run", "-d", *options, busybox.NAME, *command))
        self.boxes.append(made)
        return made

    def remove(self, box: Box) -> None:
        self.boxes.remove(box)
        box.close()
        self.engine.docker("rm", "-f", "-v", box.id)

    def clear(self) -> None:
        for box in list(self.boxes):
            self.remove(box)
        while self.networks:
            self.engine.docker("network", "rm", self.networks.pop())

    def refused(self, *options: str) -> str:
        """Standard error of a `docker run` that must not start; nothing of the container stays."""
        name = f"refused{os.getpid()}-{next(_numbers)}"
        result = self.engine.docker("run", "-d", "--name", name, *options, busybox.NAME, "sleep", "1000", check=False)
        try:
            assert result.returncode == 125, (result.returncode, result.stderr)
            state = self.engine.api("GET", f"/containers/{name}/json").json()["State"]
            assert state["Status"] == "created" and state["StartedAt"].startswith("0001-"), state
        finally:
            self.engine.docker("rm", "-f", name, check=False)
        return result.stderr.decode()

    def mac(self, box: Box, network: str = "") -> str:
        return str(box.on(network)["MacAddress"])

    def gateway(self, network: str, family: int = 4) -> str:
        shown = json.loads(self.engine.out("network", "inspect", network))[0]
        found = (pool.get("Gateway", "").partition("/")[0] for pool in shown["IPAM"]["Config"])
        return next(address for address in found if (":" in address) == (family == 6))


@contextmanager
def site(*options: str, peer: str | None = None) -> Iterator[Site]:
    """`options`: the daemon's. `peer`: socket of another engine, whose host is the namespace KNARR_PEER_NETNS."""
    with ExitStack() as stack:
        client = stack.enter_context(netns.made("knarr-client"))
        if peer:
            host = Namespace.named(os.environ["KNARR_PEER_NETNS"])
            stack.callback(host.close)
        else:
            host = stack.enter_context(netns.made("knarr-host"))
            host.sysctl("ipv4/ip_forward", "0")  # a new namespace has the value of the machine's
            host.sysctl("ipv6/conf/all/forwarding", "0")
        ends = ([f"{HOST}/24", f"{HOST6}/64"], [f"{CLIENT}/24", f"{CLIENT6}/64"])
        cable = stack.enter_context(netns.joined(host, client, *ends))
        client.ip("route", "add", "default", "via", HOST)
        client.ip("-6", "route", "add", "default", "via", HOST6)
        engine: Engine
        if peer:
            engine = Peer(peer)
        else:
            engine = Daemon(*options)
            stack.callback(engine.close)
            with host:
                engine.start()
        busybox.load(engine)
        made = Site(engine, host, client, cable)
        stack.callback(made.clear)
        yield made
