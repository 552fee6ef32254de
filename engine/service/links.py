"""Links of endpoints: how they are ports of bridges; made, routed and found again in namespaces that are in use."""

from __future__ import annotations

import logging
import re

import msgspec

from engine.linux.rtnetlink import Rtnetlink
from engine.network import bridge, macvlan, pair, sandbox
from engine.service.networks import Network, Networks
from engine.spec.network import Endpoint, Sandbox

log = logging.getLogger("knarr.links")

_PAIR = re.compile(r"veth[0-9a-f]{7}")


class Links:
    """The links of all endpoints of `networks`."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks

    def routed(self, endpoint: Endpoint, made: Sandbox) -> Endpoint:
        """The endpoint with those gateways only that the container's default routes go through."""
        if len(made.endpoints) == 1 and made.endpoints[0] is endpoint:
            return endpoint
        ipv4, ipv6 = self._networks.gateways(made)
        return msgspec.structs.replace(
            endpoint,
            ipv4_gateway=endpoint.ipv4_gateway if endpoint is ipv4 else "",
            ipv6_gateway=endpoint.ipv6_gateway if endpoint is ipv6 else "",
        )

    def wiring(self, network: Network, index: int = 0) -> tuple[pair.Port, int]:
        """How a link is a port of the network's bridge, and its MTU. `index`: of a bridge that is just being made."""
        options = network.bridge
        assert options is not None
        group = self._networks.firewall.group if options.antispoofing else 0
        port = pair.Port(index or network.index, hairpin=True, isolated=not options.icc, group=group)
        return port, options.mtu or pair.DEFAULT_MTU

    def attach(self, namespace: int, network: Network, endpoint: Endpoint, made: Sandbox, *, named: bool = True) -> None:
        """In a worker thread: a link for an endpoint in a namespace that is in use or will be; the endpoint gets its names.

        `named`: its name inside was asked for; else one that is taken (by a connect that was killed) is passed over. Raises OSError."""
        routed = self.routed(endpoint, made)
        with Rtnetlink() as host:
            if network.macvlan is not None:
                with Rtnetlink(namespace) as inside:
                    endpoint.ifname = macvlan.connect(
                        namespace, inside, routed, host, parent=network.index, mode=network.macvlan.mode, default_route=True
                    )
            else:
                port, mtu = self.wiring(network)
                try:
                    endpoint.ifname, endpoint.link = sandbox.attach(namespace, routed, host, port=port, mtu=mtu, default_route=True)
                except FileExistsError:
                    if named:
                        raise
                    free = msgspec.structs.replace(routed, ifname="")
                    endpoint.ifname, endpoint.link = sandbox.attach(namespace, free, host, port=port, mtu=mtu, default_route=True)

    def plug(self, network: Network, index: int, *, alone: bool) -> None:
        """In a worker thread, when a network's bridge was made again or found: the links of its endpoints are its ports, and with `alone`
        no others. What a connect that was killed left behind has an address that nobody knows."""
        known = {endpoint.link for _, endpoint in list(network.endpoints.values()) if endpoint.link}
        port, _ = self.wiring(network, index)
        with Rtnetlink() as host:
            there = {link.name: link for link in bridge.ports(index, host)}
            for name in known - there.keys():
                link = host.link(name=name)
                if link is not None and link.kind == "veth":
                    host.batch(pair.outer_requests(link.index, port))
            for name in there.keys() - known if alone and not network.record.foreign_link else ():
                if there[name].kind == "veth" and _PAIR.fullmatch(name):
                    log.warning("network %s: removing the link %s, which no container has", network.name, name)
                    sandbox.detach(Endpoint(id="", network_id=network.id, link=name), host)

    def route(self, namespace: int, before: Sandbox, after: Sandbox) -> None:
        """In a worker thread: the default routes, where they go through another endpoint than before."""
        gateways = self._networks.gateways(after)
        if gateways != self._networks.gateways(before):
            sandbox.set_gateways(namespace, *gateways)
