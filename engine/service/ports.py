"""Published ports of running containers: the host's ports held for them, and relays where the kernel cannot translate.

Owns the reservations; the rules are the firewall's. A container's ports lead to its place in the networks of its default routes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import trio

from engine.network import firewall, ports
from engine.network.firewall import Port
from engine.network.ports import Ports, PortUnavailable, Reservation
from engine.service.dns import Dns
from engine.service.networks import Networks
from engine.spec.network import Published, Sandbox

log = logging.getLogger("knarr.ports")

_AT_ONCE = 128  # ports, while others wait: 3 ms
_BACKLOG = 128  # of a relayed port
_LET_GO_SECONDS = 1.0  # for knarr-netd to close its half of a relay's socket
_POLL = 0.001


class PublishedPorts:
    """Ports by container id. For the event loop's thread; every call but `reserve` is short."""

    def __init__(self, networks: Networks, dns: Dns) -> None:
        self._networks = networks
        self._dns = dns
        self._ports = Ports()
        self._host_ipv6 = ports.host_has_ipv6()
        self._reservations: dict[str, list[Reservation]] = {}
        self._relays: dict[str, list[str]] = {}  # keys by container id
        self._given_up: dict[tuple[str, int], float] = {}  # relayed ports that ended just now -> when

    def plan(
        self, made: Sandbox, bindings: ports.Bindings | None, exposed: Iterable[str] = (), *, publish_all: bool = False
    ) -> list[ports.Wanted]:
        """The ports that a container wants of the host, by its gateways' networks: nothing without one. Raises InvalidParameter."""
        ipv4, ipv6 = self._networks.gateways(made)
        gateway = ipv4 or ipv6
        options = self._networks.by_id[gateway.network_id].bridge if gateway is not None else None
        if options is None:
            return []
        return ports.plan(
            bindings,
            exposed,
            publish_all=publish_all,
            default_ip=options.host_binding,
            host_ipv6=self._host_ipv6,
            ipv4=ipv4 is not None,
            modes=(options.gateway_mode_ipv4, options.gateway_mode_ipv6),
        )

    async def reserve(self, container_id: str, wanted: Sequence[ports.Wanted]) -> list[Published]:
        """Hold host ports; with the numbers that were chosen. Raises PortUnavailable when one is taken. One that was relayed until just
        now is waited for: knarr-netd has its socket, too, and may not have come to close it."""
        if not wanted:
            return []
        while True:
            found: list[Reservation] = []
            try:
                for start in range(0, len(wanted), _AT_ONCE):
                    if start:
                        await trio.lowlevel.checkpoint()
                    found.append(self._ports.reserve(wanted[start : start + _AT_ONCE]))
                break
            except BaseException as error:
                for reservation in found:
                    reservation.close()
                if not isinstance(error, PortUnavailable) or not self._is_given_up(wanted):
                    raise
            await trio.sleep(_POLL)
        self._reservations.setdefault(container_id, []).extend(found)
        return [one for reservation in found for one in reservation.ports]

    def _is_given_up(self, wanted: Sequence[ports.Wanted]) -> bool:
        since = trio.current_time() - _LET_GO_SECONDS
        self._given_up = {port: moment for port, moment in self._given_up.items() if moment > since}
        return any(protocol == one.protocol and one.first <= number <= one.last for one in wanted for protocol, number in self._given_up)

    def unreserve(self, container_id: str, kept: Sequence[Published]) -> None:
        """Let go of what is not in `kept`."""
        for reservation in self._reservations.get(container_id, ()):
            reservation.release([one for one in reservation.ports if one not in kept])

    def published(self, made: Sandbox) -> list[tuple[Published, Port]]:
        ipv4, ipv6 = self._networks.gateways(made)
        found = []
        for one in made.ports:
            gateway = (ipv6 or ipv4) if ":" in one.host_ip else (ipv4 or ipv6)
            if gateway is not None:
                link = self._networks.by_id[gateway.network_id].record.link
                port = Port(
                    bridge=link, protocol=one.protocol, host_ip=one.host_ip, host_port=one.host_port, port=one.port,
                    ipv4=gateway.ipv4, ipv6=gateway.ipv6,
                )  # fmt: skip
                found.append((one, port))
        return found

    def relay(self, container_id: str, published: list[tuple[Published, Port]]) -> None:
        """Have relayed what the kernel cannot translate, and that alone."""
        # The kernel translates nothing for ::1, so what is published on every IPv6 address has the relay for it.
        wanted = [(one, port) for one, port in published if one.host_port and (one.host_ip == "::" or not firewall.served(port))]
        if not wanted and container_id not in self._relays:
            return
        keys = []
        for one, port in wanted:
            key = f"{container_id}/{one.protocol}/{one.host_ip}/{one.host_port}"
            held = next((found for each in self._reservations.get(container_id, ()) if (found := each.holder(one)) is not None), None)
            if held is not None and one.protocol == "tcp":
                held.listen(_BACKLOG)  # what the kernel translates never comes so far
            try:
                self._dns.relay(
                    key,
                    held.fileno() if held is not None else None,
                    one.protocol,
                    (port.ipv6 or port.ipv4) if ":" in one.host_ip else (port.ipv4 or port.ipv6),
                    one.port,
                )
            except KeyError:
                log.warning("container %s: %s:%d is not relayed, the port is not held", container_id[:12], one.host_ip, one.host_port)
                continue
            keys.append(key)
        for key in self._relays.get(container_id, ()):
            if key not in keys:
                self._unrelay(key)
        self._relays[container_id] = keys

    def adopt(self, container_id: str, published: list[Published]) -> None:
        """Hold the ports of a container that runs already; one that another program took meanwhile stays published."""
        reservation, problems = self._ports.again(published)
        self._reservations[container_id] = [reservation]
        for problem in problems:
            log.info("container %s: a port that it has published stays so, unreserved: %s", container_id[:12], problem)

    def _unrelay(self, key: str) -> None:
        self._dns.unrelay(key)
        _, protocol, _, number = key.split("/")
        self._given_up[protocol, int(number)] = trio.current_time()

    def leave(self, container_id: str) -> None:
        """The container ended: its ports are free at once, but see `reserve`."""
        for key in self._relays.pop(container_id, ()):
            self._unrelay(key)
        for reservation in self._reservations.pop(container_id, ()):
            reservation.close()


def datagram_ports(published: Iterable[Published]) -> set[int]:
    """The host's ports of UDP among these: what the kernel remembers of flows to them must not outlive a change."""
    return {one.host_port for one in published if one.protocol == "udp" and one.host_port}
