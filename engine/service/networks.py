"""The networks of a daemon: finding, making, removing, and the host's side of each (bridge, firewall, addresses).

Owns the records and what is allocated from them; which container has what is the business of `service.endpoints`. Messages and status
codes are Docker's, because its clients match on some of them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec
import trio

from engine.aio.blocking import blocking
from engine.aio.scopes import shielded
from engine.config import DEFAULT_EXEC_ROOT
from engine.errors import Conflict, Forbidden, InvalidParameter, KnarrError, NotFound
from engine.linux.rtnetlink import Rtnetlink
from engine.network import bridge, firewall, macvlan
from engine.network.ipam import Allocator, overlaps
from engine.network.pair import DEFAULT_MTU
from engine.service import hostlinks, imagefilter, networkcreate, networkmode
from engine.service.attached import Known
from engine.service.firewall import Firewall
from engine.spec.container import ContainerRecord
from engine.spec.docker.containers import EndpointSettings, NetworkingConfig
from engine.spec.event import Event
from engine.spec.filters import Filters
from engine.spec.network import Endpoint, NetworkRecord, Sandbox
from engine.spec.networkoptions import BridgeOptions, MacvlanOptions
from engine.store.db import DatabaseError
from engine.store.networks import NetworkStore

if TYPE_CHECKING:
    from engine.service.connecting import Bindings, Changes
    from engine.service.context import Context
    from engine.spec.docker.networks import NetworkCreate

log = logging.getLogger("knarr.networks")

_CLEANUP_SECONDS = 10.0

PRUNE_KEYS = ("label", "label!", "until")
_ENCODER = msgspec.json.Encoder()


class Network:
    """A network as it is used. `index`: the host's index of its link, 0 while that is not made."""

    def __init__(self, record: NetworkRecord) -> None:
        self.index = 0
        self.making: trio.Event | None = None  # while it is not known whether it comes to be
        self.gone = False  # removed, or about to be: nothing is made for it any more
        self.lock = trio.Lock()  # of what makes and removes the host's side
        self.endpoints: dict[str, tuple[str, Endpoint]] = {}  # by endpoint id: the container's id with it
        self.become(record)

    def become(self, record: NetworkRecord) -> None:
        """Have another record, and all addresses free."""
        self.record = record
        self.bridge = BridgeOptions.of(record.options) if record.driver == "bridge" else None
        self.macvlan = MacvlanOptions.of(record.options) if record.driver == "macvlan" else None
        shown = f"{record.name} ({record.id})"
        allocators = [] if record.config_only else [(pool, Allocator(pool, shown)) for pool in record.pools]
        self.v4 = [pair for pair in allocators if pair[1].version == 4]
        self.v6 = [pair for pair in allocators if pair[1].version == 6]

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def is_default(self) -> bool:
        """Whether it is the default bridge, which has no names."""
        return self.record.predefined and self.record.driver == "bridge"


class Networks:
    """All networks by id and by name. `holders`: every container's record."""

    def __init__(self, context: Context, holders: Callable[[], Iterable[ContainerRecord]]) -> None:
        self._context = context
        self._store = NetworkStore(context.db)
        self._holders = holders
        self._name = networkcreate.default_link(context.layout.exec_root)
        self.firewall = Firewall("knarr" if context.layout.exec_root == DEFAULT_EXEC_ROOT else self._name)
        self.firewall.drop_foreign_forward = os.path.exists(context.layout.forwarding) and not context.settings.ip_forward_no_drop
        self.by_id: dict[str, Network] = {}
        self.by_name: dict[str, Network] = {}
        self.sandbox: Callable[[str], Sandbox | None] = lambda container_id: None
        self.changes: Changes
        self.forget_bridge: Callable[[int], None] = lambda index: None
        self.plug: Callable[[Network, int], None] = lambda network, index: None

    def open(self) -> None:
        """Load the rows; the predefined networks are made when they are missing. A damaged row is named and left out."""
        decoder = msgspec.json.Decoder(NetworkRecord)
        for network_id, raw in self._store.load():
            try:
                self._add(Network(decoder.decode(raw)))
            except (msgspec.DecodeError, KnarrError) as error:
                log.error("network %s: its record is damaged and left out: %s", network_id[:12], error)
        settings, layout = self._context.settings, self._context.layout
        known = [network.record for network in self.by_id.values()]
        addresses = hostlinks.addresses(settings.bridge) if settings.bridge not in ("", "none") else None
        for record in networkcreate.predefined(settings, layout.exec_root, known, lambda: hostlinks.hosts_subnets([]), addresses=addresses):
            old = self.by_name.get(record.name)
            if old is not None and old.record == record:
                continue
            if old is not None:  # the daemon's settings are others now
                self._forget(old)
                self._store.delete(old.id)
            self._add(Network(record))
            self._store.put(record.id, _ENCODER.encode(record))
        if settings.bridge == "none" and (off := self.by_name.get("bridge")) is not None and off.is_default:
            self._forget(off)  # its row stays, with its subnet

    def _add(self, network: Network) -> None:
        self.by_id[network.id] = self.by_name[network.name] = network

    # -- looking

    def network(self, ref: str) -> Network:
        """By name, id, or a prefix of exactly one id. Raises NotFound, InvalidParameter."""
        found = self.by_name.get(ref) or self.by_id.get(ref)
        if found is not None:
            return found
        matches = [network for id, network in self.by_id.items() if id.startswith(ref)] if ref else []
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise InvalidParameter(f"network {ref} is ambiguous ({len(matches)} matches found on ID prefix)")
        raise NotFound(f"network {ref} not found")

    def find(self, ref: str) -> NetworkRecord:
        """The record. Raises as `network`."""
        return self.network(ref).record

    def everything(self) -> list[NetworkRecord]:
        """Every record, oldest first."""
        return sorted((network.record for network in self.by_id.values()), key=lambda record: record.created_at)

    def members(self, network_id: str) -> list[tuple[ContainerRecord, Endpoint]]:
        """Running containers with their endpoints."""
        records = {record.id: record for record in self._holders()}
        network = self.by_id[network_id]
        return [(records[id], endpoint) for id, endpoint in network.endpoints.values() if id in records]

    def using(self, network_id: str) -> list[ContainerRecord]:
        """Records of all containers that name the network, running or not."""
        network = self.by_id[network_id]
        return [record for record in self._holders() if self._names(record, network)]

    @staticmethod
    def _names(record: ContainerRecord, network: Network) -> bool:
        wanted = {network.id, network.name}
        asked = record.networking.endpoints_config or {}
        return record.host_config.network_mode in wanted or not wanted.isdisjoint(asked)

    def known(self) -> Known:
        """All records, for what looks at containers."""
        return Known(network.record for network in self.by_id.values())

    # -- making and removing

    async def create(self, request: NetworkCreate) -> tuple[str, str]:
        """Make a network; (id, warning). Durable on return. Raises KnarrError, nothing is left then."""
        in_use = await blocking(
            "kernel", hostlinks.hosts_subnets, [network.record.link for network in self.by_id.values() if network.index]
        )
        known = [network.record for network in self.by_id.values()]
        record = networkcreate.define(request, self._context.settings, known, in_use)
        network = Network(record)
        # A link of a given name may be somebody else's until it was looked for.
        record.foreign_link = network.macvlan is not None or (network.bridge is not None and bool(network.bridge.name))
        network.making = trio.Event()
        self._add(network)
        try:
            self._store.put(record.id, _ENCODER.encode(record))
            if not record.config_only:
                await self.activate(network, new=True)
                self._store.put(record.id, _ENCODER.encode(record))
            await self._context.durability.reached()
        except BaseException as error:
            network.gone = True
            self._forget(network)
            self._store.delete(record.id)
            with shielded(_CLEANUP_SECONDS):
                await self._take_back(network)
            if isinstance(error, (OSError, DatabaseError)):
                raise KnarrError(f"create network {record.name}: {error}") from error
            raise
        finally:
            network.making.set()
            network.making = None
        self.publish(network, "create")
        return record.id, "\n".join(networkcreate.warnings(record))

    async def activate(self, network: Network, *, new: bool = False) -> None:
        """Make sure that the host's side is there. `new`: the record learns what was found. Raises NotFound when the network is being
        removed, KnarrError, OSError."""
        if network.record.config_only:
            raise Forbidden("cannot create endpoint on configuration-only network")
        if network.record.driver not in ("bridge", "macvlan") or (
            not network.gone and hostlinks.is_there(network.record.link, network.index)
        ):
            return
        async with network.lock:
            if network.gone:
                raise NotFound(f"network {network.name} not found")
            if hostlinks.is_there(network.record.link, network.index):
                return
            if network.index:
                log.warning("network %s: its link %s was removed by somebody, it is made again", network.name, network.record.link)
                self.forget_bridge(network.index)
                network.index = 0
            if network.is_default and not network.endpoints and not network.record.foreign_link:
                await self._choose_again(network)
            index = await blocking("kernel", self._make, network, new)
            if network.bridge is not None:
                self.firewall.add_bridge(network.record, network.bridge)
                try:
                    self.firewall.sync()
                except BaseException:
                    self.firewall.remove_bridge(network.id)
                    raise
            network.index = index

    async def _choose_again(self, network: Network) -> None:
        """Before the default bridge is made: no link has kept the subnet that was chosen for it, and another daemon of this host or its
        administrator may use it by now."""
        chosen = [pool.subnet for pool in network.record.pools if not pool.given_subnet]
        if not chosen:
            return
        in_use = await blocking("kernel", hostlinks.hosts_subnets, [other.record.link for other in self.by_id.values()])
        if not any(overlaps(subnet, used) for subnet in chosen for used in in_use if not used.endswith("/0")):
            return
        settings, exec_root = self._context.settings, self._context.layout.exec_root
        others = [other.record for other in self.by_id.values() if other is not network]
        record = networkcreate.predefined(settings, exec_root, others, lambda: in_use)[0]
        record.id, record.created_at = network.id, network.record.created_at
        log.warning("network bridge: this host uses %s, the network has another subnet now", ", ".join(chosen))
        self._store.put(record.id, _ENCODER.encode(record))
        network.become(record)

    def _make(self, network: Network, new: bool) -> int:
        """In a worker thread: the bridge, and forwarding; or a macvlan's parent. The link's index."""
        record = network.record
        with Rtnetlink() as host:
            if network.macvlan is not None:
                parent = macvlan.ensure_parent(network.macvlan.parent, record.id, host)
                if new:
                    record.link = network.macvlan.parent or macvlan.dummy_name(record.id)
                    record.foreign_link = not parent.created
                return parent.index
            return self._make_bridge(network, host, new)

    def _make_bridge(self, network: Network, host: Rtnetlink, new: bool) -> int:
        record, options, settings = network.record, network.bridge, self._context.settings
        assert options is not None
        if new and options.name:
            record.foreign_link = host.link(name=record.link) is not None
        gateways = [
            (pool.gateway, allocator.prefix)
            for pool, allocator in (*([] if options.inhibit_ipv4 else network.v4), *network.v6)
            if pool.gateway and not self._isolated(record, options, allocator.version)
        ]
        wanted = bridge.Options(
            mtu=options.mtu or DEFAULT_MTU,
            mac=hostlinks.bridge_mac(record, gateways),
            ipv6=record.ipv6,
            route_localnet=not record.internal,
            group=firewall.BRIDGES,
        )
        found = bridge.ensure(record.link, gateways, host, wanted, owned=not record.foreign_link)
        if not new:
            self.plug(network, found.index)
        if not record.internal and settings.ip_forward:
            switched = bridge.forwarding(ipv4=record.ipv4, ipv6=record.ipv6)
            if any(switched) and not settings.ip_forward_no_drop:
                # This host was no router until now, and shall not become one for others: a note for the daemons after this one.
                with open(self._context.layout.forwarding, "w", encoding="ascii") as file:
                    file.write(" ".join(name for name, on in switched._asdict().items() if on))
                self.firewall.drop_foreign_forward = True
        return found.index

    @staticmethod
    def _isolated(record: NetworkRecord, options: BridgeOptions, version: int) -> bool:
        mode = options.gateway_mode_ipv4 if version == 4 else options.gateway_mode_ipv6
        return record.internal and mode == "isolated"

    async def remove(self, ref: str) -> None:
        """Remove a network. Raises NotFound, Forbidden for a predefined one or one in use."""
        network = self.network(ref)
        if network.making is not None:
            await network.making.wait()
            network = self.network(network.id)
        if network.record.predefined:
            raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
        if network.record.config_only:
            users = [other.name for other in self.by_id.values() if other.record.config_from == network.name]
            if users:
                raise Forbidden(f'error while removing network: configuration network "{network.name}" is in use')
        if network.endpoints:
            shown = ", ".join(f'name:"{record.name}" id:"{endpoint.id[:12]}"' for record, endpoint in self.members(network.id))
            raise Forbidden(f"error while removing network: network {network.name} has active endpoints ({shown})")
        network.gone = True
        self._forget(network)  # from here on nobody finds it
        try:
            # The link first and the row last: a daemon that dies in between leaves a network whose link is made again on demand, and
            # never a link that nobody knows.
            async with network.lock:  # a start may be just about to make it
                await self._unmake(network)
            self._store.delete(network.id)
            await self._context.durability.reached()
        except (OSError, KnarrError, DatabaseError) as error:
            network.gone = False
            self.by_id[network.id] = network
            self.by_name.setdefault(network.name, network)  # another one may have the name by now
            raise KnarrError(f"remove network {network.name}: {error}") from error
        self.publish(network, "destroy")

    def _forget(self, network: Network) -> None:
        self.by_id.pop(network.id, None)
        if self.by_name.get(network.name) is network:
            del self.by_name[network.name]

    async def _unmake(self, network: Network) -> None:
        index, network.index = network.index, 0
        if network.bridge is not None:
            if index:
                self.forget_bridge(index)
            self.firewall.remove_bridge(network.id)
            self.firewall.sync()
        if network.record.driver in ("bridge", "macvlan") and not network.record.foreign_link:
            await blocking("kernel", hostlinks.remove_link, network.record)

    async def _take_back(self, network: Network) -> None:
        """What there is of a network that could not be made."""
        try:
            async with network.lock:
                await self._unmake(network)
        except (OSError, KnarrError) as error:
            log.error("network %s, which could not be made: removing what there was of it: %s", network.name, error)

    def tidy(self) -> None:
        """At the end of a daemon that leaves no container running: the host keeps no link and no table of ours; both are made on demand."""
        try:
            with Rtnetlink() as host:
                for network in self.by_id.values():
                    if network.record.link and not network.record.foreign_link and not network.record.config_only:
                        hostlinks.remove(network.record, host)
        except OSError as error:
            log.warning("removing the links of networks: %s", error)
        self.firewall.clean()

    async def prune(self, filters: Filters) -> list[str]:
        """Remove what no container names; the names. Raises InvalidParameter."""
        filters.check(PRUNE_KEYS)
        moments = [imagefilter.moment(value) for value in filters.get("until")]
        if len(moments) > 1:
            raise InvalidParameter("more than one until filter specified")
        done: list[str] = []
        for network in list(self.by_id.values()):
            record = network.record
            if record.predefined or network.endpoints:  # containers that do not run are no reason to keep one, as in dockerd
                continue
            if not (filters.match_labels("label", record.labels) and filters.lacks_labels("label!", record.labels)):
                continue
            if moments and record.created_at >= moments[0] * 1e9:
                continue
            try:
                await self.remove(network.id)
            except (Forbidden, NotFound, Conflict):
                continue  # used or removed meanwhile
            done.append(record.name)
        self._context.events.publish(Event.make("network", "prune", "", {"reclaimed": "0"}))
        return done

    # -- of containers, see `service.connecting`

    async def connect(self, ref: str, container_ref: str, settings: EndpointSettings) -> None:
        """Put a container into a network. Raises NotFound, Forbidden, InvalidParameter, KnarrError."""
        await self.changes.connect(ref, container_ref, settings)

    async def disconnect(self, ref: str, container_ref: str, force: bool) -> None:
        """Take a container out of a network. Raises NotFound, Forbidden, KnarrError."""
        await self.changes.disconnect(ref, container_ref, force)

    async def publish_ports(self, container_ref: str, bindings: Bindings) -> None:
        """Publish more ports of a container. Raises NotFound, Conflict, InvalidParameter, KnarrError."""
        await self.changes.publish(container_ref, bindings)

    async def unpublish_ports(self, container_ref: str, bindings: Bindings) -> None:
        """Take published ports away. Raises NotFound, Conflict."""
        await self.changes.unpublish(container_ref, bindings)

    # -- what containers take

    def requested(self, record: ContainerRecord, *, gone: bool = False) -> list[tuple[Network, str]]:
        """Networks that a container is to be in, its network mode's first, with the name by which its record asks for each.

        Raises NotFound, unless `gone` ones are to be left out."""
        if gone:
            return self._requested_still(record)
        mode = record.host_config.network_mode
        asked = record.networking.endpoints_config or {}
        first = self.network(mode) if mode not in asked else None
        found: list[tuple[Network, str]] = [] if first is None else [(first, "")]
        for name in sorted(asked, key=lambda name: name != mode):
            network = self.network(name)
            if any(network is other for other, _ in found):
                found = [(other, name if other is network else key) for other, key in found]
            else:
                found.append((network, name))
        return found

    def _requested_still(self, record: ContainerRecord) -> list[tuple[Network, str]]:
        mode = record.host_config.network_mode
        asked = record.networking.endpoints_config or {}
        found: dict[str, tuple[Network, str]] = {}
        for key in (mode, *asked):
            try:
                network = self.network(key)
            except NotFound:
                continue
            found.setdefault(network.id, (network, key))
        return list(found.values())

    def checked(self, config: NetworkingConfig) -> NetworkingConfig:
        """Endpoints' settings by the names of the networks, as far as those exist yet. Raises InvalidParameter for what one cannot give."""
        if not config.endpoints_config:
            return config
        found: dict[str, EndpointSettings | None] = {}
        for key, settings in config.endpoints_config.items():
            try:
                network = self.network(key)
            except NotFound:
                found[key] = settings  # the start asks again
                continue
            networkmode.check(network.name, settings or EndpointSettings(), network.record)
            found[network.name] = settings
        return NetworkingConfig(endpoints_config=found)

    def gateways(self, made: Sandbox) -> tuple[Endpoint | None, Endpoint | None]:
        """The endpoints that the default routes of IPv4 and IPv6 go through: the highest priority, then the network's name decides
        (Docker, "gw-priority")."""
        order = made.endpoints
        if len(order) > 1:
            # A worker thread may ask for a container that is ending, whose networks may be gone meanwhile.
            names = {id: network.name for endpoint in order if (network := self.by_id.get(id := endpoint.network_id)) is not None}
            order = sorted(order, key=lambda endpoint: (-endpoint.gw_priority, names.get(endpoint.network_id, "")))
        return (
            next((endpoint for endpoint in order if endpoint.ipv4_gateway), None),
            next((endpoint for endpoint in order if endpoint.ipv6_gateway), None),
        )

    def publish(self, network: Network, action: str, **attributes: str) -> None:
        """An event of a network with Docker's attributes."""
        record = network.record
        shown = {"name": record.name, "type": record.driver, **attributes}
        self._context.events.publish(Event.make("network", action, record.id, shown))
