"""The firewall as the daemon wants it and as the kernel has it: containers come and go as small changes, all else replaces the whole.

Owns the two states and the socket; what the rules are is `network.firewall`'s business. For the event loop's thread: a change for one
container takes a tenth of a millisecond.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from engine.errors import KnarrError
from engine.linux.nftables import Nftables, NftablesMissing
from engine.network import firewall
from engine.network.firewall import Bridge, Member, Model, Port
from engine.spec.network import NetworkRecord
from engine.spec.networkoptions import BridgeOptions
from engine.wire.nftmodel import Table

log = logging.getLogger("knarr.firewall")

Held = tuple[tuple[Member, ...], tuple[Port, ...]]
_NOTHING: Held = ((), ())


class Firewall:
    """Tables called `name`. Nothing is done to the kernel before the first bridge."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.group = firewall.group(name)
        self._socket: Nftables | None = None
        self._by_network: dict[str, Bridge] = {}
        self._bridges: tuple[Bridge, ...] = ()
        self._wanted: dict[str, Held] = {}  # by container
        self._applied: dict[str, Held] = {}
        self._changed: set[str] = set()
        self._replace = False
        self.drop_foreign_forward = False

    def clean(self) -> None:
        """What a daemon before this one left and nothing needs any more. A kernel without nftables has nothing."""
        try:
            self._nftables().remove((("inet", self._name), ("bridge", self._name)))
        except NftablesMissing:
            pass
        except (OSError, KnarrError) as error:
            log.warning("%s", error)

    def _nftables(self) -> Nftables:
        if self._socket is None:
            self._socket = Nftables()
        return self._socket

    def add_bridge(self, record: NetworkRecord, options: BridgeOptions) -> None:
        """A network's rules; in force after `sync`."""
        self._by_network[record.id] = Bridge(
            link=record.link,
            subnets=tuple(pool.subnet for pool in record.pools),
            gateways=tuple(pool.gateway for pool in record.pools if pool.gateway),
            internal=record.internal,
            icc=options.icc,
            masquerade=options.masquerade,
            host_ipv4=options.host_ipv4,
            host_ipv6=options.host_ipv6,
            mode4=options.gateway_mode_ipv4,
            mode6=options.gateway_mode_ipv6,
            trusted_interfaces=options.trusted,
            antispoof=options.antispoofing,
        )
        self._set_bridges()

    def remove_bridge(self, network_id: str) -> None:
        """The opposite of `add_bridge`."""
        if self._by_network.pop(network_id, None) is not None:
            self._set_bridges()

    def _set_bridges(self) -> None:
        self._bridges = tuple(self._by_network.values())
        self._replace = True

    def hold(self, container_id: str, members: Iterable[Member], ports: Iterable[Port]) -> None:
        """What a container has from now on, in the place of what it had; in force after `sync`."""
        self._wanted[container_id] = (tuple(members), tuple(ports))
        self._changed.add(container_id)

    def withdraw(self, container_id: str) -> None:
        """A container has nothing any more."""
        if self._wanted.pop(container_id, None) is not None:
            self._changed.add(container_id)

    def sync(self) -> None:
        """Bring the kernel's tables to what is wanted, in one transaction. Raises NftablesError; then they are as before, and the next call
        tries again."""
        if self._replace:
            self._nftables().replace(self._whole())
        elif self._changed:
            changed = list(self._changed)
            changes = firewall.changes(self._model(self._applied, changed), self._model(self._wanted, changed), self._name)
            assert changes is not None  # the bridges are the same object
            if self._nftables().update(changes, self._whole):
                log.warning("the tables %s were not as this daemon had left them; they were made again", self._name)
        else:
            return
        self._replace = False
        for container_id in self._changed:
            if container_id in self._wanted:
                self._applied[container_id] = self._wanted[container_id]
            else:
                self._applied.pop(container_id, None)
        self._changed.clear()

    def _model(self, held: dict[str, Held], containers: Iterable[str]) -> Model:
        found = [held.get(container_id, _NOTHING) for container_id in containers]
        return Model(
            bridges=self._bridges,
            members=tuple(member for members, _ in found for member in members),
            ports=tuple(port for _, ports in found for port in ports),
            drop_foreign_forward=self.drop_foreign_forward,
        )

    def _whole(self) -> tuple[Table, ...]:
        self._changed.update(self._wanted, self._applied)
        return firewall.ruleset(self._model(self._wanted, self._wanted), self._name).tables
