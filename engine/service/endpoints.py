"""A container's places in networks: taken before a start, given back after the end, changed while it runs.

Owns which addresses, links, names and host ports a running container has; `network.json` in its bundle says the same, and lives exactly as
long as the namespace it speaks of. The namespace itself belongs to the container's processes: when they and the name server's sockets
are gone the kernel removes it with its links, so that a daemon that is killed at any moment leaves nothing.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator

import msgspec
import trio

from engine.aio.blocking import blocking
from engine.errors import InvalidParameter, KnarrError, NotFound
from engine.linux import namespaces
from engine.linux.conntrack import forget_datagrams
from engine.linux.rtnetlink import Rtnetlink
from engine.network import nameserver, sandbox
from engine.network.firewall import Member, Port
from engine.service import addresses, bundle, hostfiles
from engine.service.container import Container, told
from engine.service.context import Context
from engine.service.dns import Dns
from engine.service.links import Links
from engine.service.namefiles import NameFiles
from engine.service.networkmode import link_local, split_link
from engine.service.networks import Network, Networks
from engine.service.ports import PublishedPorts, datagram_ports
from engine.service.sandboxes import Joining, Kind, Sandboxes
from engine.spec import endpointoptions
from engine.spec.docker.containers import EndpointSettings
from engine.spec.endpointoptions import IFNAME, SYSCTLS
from engine.spec.network import Endpoint, Published, Sandbox

log = logging.getLogger("knarr.endpoints")

_BARE = Kind(sandbox.BARE)
_CLOSE_SECONDS = 0.25
_TEARDOWN_DELAY = 0.005  # what can wait stays out of the way of the replies that an end causes
_TEARDOWN_SECONDS = 5.0  # for an address that a container which just ended had


class Endpoints:
    """The endpoints of all running containers."""

    def __init__(self, context: Context, networks: Networks, find: Callable[[str], Container]) -> None:
        self._context = context
        self._networks = networks
        self._dns = Dns(context.layout.exec_root, network_name=lambda id: networks.by_id[id].name, reopen=self.reopen)
        self.ports = PublishedPorts(networks, self._dns)
        self.links = Links(networks)
        self._find = find
        self.sandboxes = Sandboxes(context.settings.monitors)
        self._sandboxes: dict[str, Sandbox] = {}  # by container id
        self.files = NameFiles(context, networks, find, self._sandboxes)
        self._host = Rtnetlink()  # for the event loop's thread
        self._namespaces: dict[str, int] = {}  # descriptors, by container id
        self._done_with: list[int] = []
        self._closing = trio.Event()
        self._leaving: dict[str, Sandbox] = {}  # of containers that ended just now
        self._ending: set[str] = set()  # the same, until their addresses are free
        self._tearing = 0
        self._hurried = 0  # starts that wait for addresses
        self._hurry = trio.Event()
        self._torn = trio.Event()
        networks.sandbox = self._sandboxes.get
        networks.forget_bridge = self.sandboxes.forget
        networks.plug = lambda network, index: self.links.plug(network, index, alone=self._all_known)
        self._all_known = True  # of every container that was found running

    async def run(self) -> None:
        """Background task: what is made ahead, and the name server's process."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.sandboxes.run)
            nursery.start_soon(self._dns.run)
            nursery.start_soon(self._close_namespaces)

    # -- start and end

    async def join(self, container: Container) -> Joining:
        """Take everything of the network that a start needs. Raises KnarrError; nothing is left then."""
        record = container.record
        mode = record.host_config.network_mode
        if mode == "host" or mode.startswith("container:"):
            return Joining()
        if record.networking.endpoints_config == {}:  # taken out of all, it starts in its mode's network again
            record.networking = msgspec.structs.replace(record.networking, endpoints_config=None)
        if mode == "none":
            with told(container, "make a network namespace"):
                return Joining(await self.sandboxes.take(_BARE))
        if container.id in self._leaving:
            self._forget_names(container.id)
        if container.id in self._ending:  # what is restarted has the same addresses again, unless somebody was faster
            with self._hurrying(), trio.move_on_after(_TEARDOWN_SECONDS):
                while container.id in self._ending:
                    await self._torn.wait()
        wanted = self._networks.requested(record)
        made = Sandbox(resolver=any(not network.is_default for network, _ in wanted))
        joining = Joining()
        try:
            with told(container, "set up its network"):
                await self._join(container, made, wanted, joining)
        except BaseException:
            joining.done()  # the namespace goes with what is in it
            self._give_back(container, made)
            raise
        return joining

    async def _join(self, container: Container, made: Sandbox, wanted: list[tuple[Network, str]], joining: Joining) -> None:
        record, name_before = container.record, container.record.name
        asked = record.networking.endpoints_config or {}
        if hostfiles.needs_gateway(record.host_config) and not self._context.settings.host_gateway_ips:
            default = self._networks.by_name.get("bridge")
            if default is not None:
                await self._networks.activate(default)  # the address must be there
        for network, name in wanted:
            await self._networks.activate(network)
            settings = asked.get(name) or EndpointSettings()
            endpoint = await self.allocate(container, network, settings, made)
            made.endpoints.append(endpoint)
            network.endpoints[endpoint.id] = (container.id, endpoint)
        hc, exposed = record.host_config, record.config.exposed_ports or {}
        if hc.port_bindings or hc.publish_all_ports:
            made.ports = await self.ports.reserve(
                container.id, self.ports.plan(made, hc.port_bindings, exposed, publish_all=hc.publish_all_ports)
            )
        pairs = [(network, endpoint) for (network, _), endpoint in zip(wanted, made.endpoints, strict=True)]
        first = next((pair for pair in pairs if pair[0].bridge is not None), None)
        if first is not None and first is not pairs[0]:
            pairs.sort(key=lambda pair: pair is not first)  # its link is there already, under a name that another one may be to have
        kind = _BARE if first is None else Kind(sandbox.NAMED if made.resolver else sandbox.BRIDGE, *self.links.wiring(first[0]))
        joining.prepared = prepared = await self.sandboxes.take(kind)
        if made.resolver and first is None:
            prepared.udp, prepared.tcp = await blocking("kernel", nameserver.open_in, prepared.ns)
        for network, endpoint in pairs:
            if first is not None and endpoint is first[1]:
                assert prepared.pair is not None
                endpoint.link = prepared.pair.outer
                port, mtu = self.links.wiring(network)
                sandbox.configure(prepared, self.links.routed(endpoint, made), self._host, port=port, mtu=mtu)
            else:
                await blocking("kernel", self.links.attach, prepared.ns, network, endpoint, made)
        if record.name != name_before:  # meanwhile, and nobody knew of these endpoints
            self._rename(container, made)
        self.files.write(container, made)
        bundle.write_network(container.bundle, made, running=False)
        self._sandboxes[container.id] = made

    def joined(self, container: Container, joining: Joining) -> None:
        """The second half of `join`, for the time in which the monitor makes the process: what others see of the container, its name
        server (whose sockets keep questions meanwhile) and its ports. Raises KnarrError, OSError; then the container must not run."""
        made = self._sandboxes.get(container.id)
        if made is None:
            return
        prepared = joining.prepared
        self._register(container, made, (prepared.udp, prepared.tcp) if made.resolver and prepared is not None else None)
        self._forget_datagrams(datagram_ports(made.ports))
        for endpoint in made.endpoints:
            self._networks.publish(self._networks.by_id[endpoint.network_id], "connect", container=container.id)

    def _forget_datagrams(self, ports: set[int]) -> None:
        if ports:
            self._context.chores.later("forgetting flows to ports that changed hands", functools.partial(forget_datagrams, ports))

    def keep(self, container: Container, joining: Joining) -> None:
        """The process runs. The namespace is held until its links are down: nobody holding it, the kernel would take it down at once, just
        when the container's end is being told."""
        prepared = joining.prepared
        if prepared is not None and prepared.pair is not None:
            self._namespaces[container.id], prepared.ns = prepared.ns, -1
        joining.done()

    async def _close_namespaces(self) -> None:
        """Background task: several at a time, which costs the kernel little more than one."""
        while True:
            await self._closing.wait()
            await trio.sleep(_CLOSE_SECONDS)
            self._closing = trio.Event()
            closing, self._done_with = self._done_with, []
            for fd in closing:
                os.close(fd)

    def abandon(self, container: Container, joining: Joining) -> None:
        """A start that did not come to be."""
        joining.done()
        self.leave(container)

    def leave(self, container: Container) -> None:
        """The container's processes are gone. No await: its ports can be taken from here on, the rest follows."""
        made = self._sandboxes.pop(container.id, None)
        if made is not None:
            self._give_back(container, made)

    def _give_back(self, container: Container, made: Sandbox) -> None:
        self.ports.leave(container.id)
        self._networks.firewall.withdraw(container.id)
        for endpoint in made.endpoints:
            network = self._networks.by_id.get(endpoint.network_id)
            if network is not None and network.endpoints.pop(endpoint.id, None) is not None:
                self._networks.publish(network, "disconnect", container=container.id)
        self._leaving[container.id] = made
        self._ending.add(container.id)
        self._tearing += 1
        self._context.nursery.start_soon(
            self._tear_down, container.id, made.endpoints, datagram_ports(made.ports), self._namespaces.pop(container.id, -1)
        )

    def _forget_names(self, container_id: str) -> None:
        """The last part of `leave`: of a container that starts again it must come before the new names."""
        made = self._leaving.pop(container_id, None)
        if made is None:
            return
        if made.resolver:
            self._dns.leave(container_id)
        for endpoint in made.endpoints:
            if endpoint.names:
                self._dns.withdraw(endpoint.network_id, endpoint.id)

    async def _tear_down(self, container_id: str, endpoints: list[Endpoint], datagrams: set[int], namespace: int = -1) -> None:
        """Background task: names and rules, the links, and then the addresses are free; a link that is still there would answer for them.
        Whoever waits for the end is told first."""
        links = [endpoint.link for endpoint in endpoints if endpoint.link]
        try:
            if not self._hurried:
                with trio.move_on_after(_TEARDOWN_DELAY):
                    await self._hurry.wait()
            self._forget_names(container_id)
            try:
                self._networks.firewall.sync()
            except (OSError, KnarrError) as error:
                log.warning("container %s has ended: %s", container_id[:12], error)  # gone with the next change that is possible
            self._forget_datagrams(datagrams)
            if links:
                with trio.CancelScope(shield=True):
                    await blocking("kernel", _release, links)
        except OSError as error:
            log.warning("removing links %s: %s", ", ".join(links), error)
        finally:
            if namespace >= 0:
                self._done_with.append(namespace)
                self._closing.set()
            for endpoint in endpoints:
                network = self._networks.by_id.get(endpoint.network_id)
                if network is not None:
                    addresses.give_back(network, endpoint)
            self._tearing -= 1
            self._ending.discard(container_id)
            self._torn.set()
            self._torn = trio.Event()

    # -- addresses

    async def allocate(self, container: Container, network: Network, settings: EndpointSettings, made: Sandbox) -> Endpoint:
        """An endpoint with addresses of its own. Waits for those of containers that are just ending. Raises KnarrError."""
        try:
            return self._take(container, network, settings, made)
        except KnarrError:
            if not self._tearing:
                raise
        with self._hurrying(), trio.move_on_after(_TEARDOWN_SECONDS):
            while self._tearing:
                await self._torn.wait()
                with contextlib.suppress(KnarrError):
                    return self._take(container, network, settings, made)
        return self._take(container, network, settings, made)

    @contextlib.contextmanager
    def _hurrying(self) -> Iterator[None]:
        """Who waits for addresses has `_tear_down` start at once."""
        self._hurried += 1
        self._hurry.set()
        try:
            yield
        finally:
            self._hurried -= 1
            self._hurry = trio.Event()

    def _take(self, container: Container, network: Network, settings: EndpointSettings, made: Sandbox) -> Endpoint:
        if network.gone:
            raise NotFound(f"network {network.name} not found")
        given = settings.ipam_config
        endpoint = Endpoint(id=os.urandom(32).hex(), network_id=network.id, gw_priority=settings.gw_priority)
        prefix = network.bridge.iface_prefix if network.bridge is not None else "eth"
        taken = {other.ifname for other in made.endpoints}
        endpoint.ifname = (settings.driver_opts or {}).get(IFNAME) or next(
            name for number in range(len(taken) + 1) if (name := f"{prefix}{number}") not in taken
        )
        if endpoint.ifname in taken:
            raise InvalidParameter(f"the interface name {endpoint.ifname} is used twice")
        endpoint.names = self.names(container, network, settings)
        if SYSCTLS in (settings.driver_opts or {}):
            endpoint.sysctls = endpointoptions.sysctls((settings.driver_opts or {})[SYSCTLS])
        if given is not None and given.link_local_ips:
            endpoint.link_local = addresses.link_local(network, link_local(settings))
        mac = settings.mac_address or container.record.config.mac_address
        addresses.take(network, endpoint, given.ipv4_address if given else "", given.ipv6_address if given else "", mac)
        return endpoint

    @staticmethod
    def names(container: Container, network: Network, settings: EndpointSettings) -> list[str]:
        """By what the others of a network find a container."""
        if network.is_default:
            return []
        record = container.record
        names = [record.name, *(settings.aliases or ()), record.id[:12]]
        if record.config.hostname and record.config.hostname != record.id[:12]:
            names.append(record.config.hostname)
        return list(dict.fromkeys(names))

    # -- names and the firewall

    def _register(self, container: Container, made: Sandbox, fds: tuple[int, int] | None) -> None:
        """Make a container known to the name server and to the firewall."""
        for endpoint in made.endpoints:
            if endpoint.names:
                self._dns.publish(endpoint.network_id, endpoint.id, endpoint.names, endpoint.ipv4, endpoint.ipv6, container.name)
        if made.resolver:
            self._serve(container, made, fds)
        self._guard(container.id, made)

    def _serve(self, container: Container, made: Sandbox, fds: tuple[int, int] | None) -> None:
        networks = [self._networks.by_id[endpoint.network_id] for endpoint in made.endpoints]
        self._dns.serve(
            container.id,
            fds,
            networks=[network.id for network in networks if not network.is_default],
            links=self._aliases(container),
            upstreams=self.files.resolv_conf(container, made)[1],
            internal=all(network.record.internal for network in networks),
        )

    def _aliases(self, container: Container) -> dict[str, list[str]]:
        """Names that only this container knows: --link on networks with names. A container that does not run has no address yet."""
        found: dict[str, list[str]] = {}
        for settings in (container.record.networking.endpoints_config or {}).values():
            for ref, alias in map(split_link, (settings.links if settings is not None else None) or ()):
                found.setdefault(alias, []).append(ref)
        return found

    # -- a daemon that comes back

    def adopt(self, container: Container) -> None:
        """A running container was found again: what it has is taken as it is. Raises KnarrError when its file cannot be read."""
        try:
            made = bundle.read_network(container.bundle)
        except (OSError, KnarrError):
            self._all_known = False
            raise
        if made is None:
            mode = container.record.host_config.network_mode
            if mode not in ("host", "none") and not mode.startswith("container:"):
                self._all_known = False
                raise KnarrError(f"there is no {container.bundle}/network.json")
            return
        for endpoint in made.endpoints:
            network = self._networks.by_id.get(endpoint.network_id)
            if network is None:
                log.error("container %s is in network %s, which is gone", container.id[:12], endpoint.network_id[:12])
                continue
            network.endpoints[endpoint.id] = (container.id, endpoint)
            if not addresses.adopt(network, endpoint):
                log.warning("container %s: its address in network %s is another's or of no subnet", container.id[:12], network.name)
        made.endpoints = [endpoint for endpoint in made.endpoints if endpoint.network_id in self._networks.by_id]
        self._sandboxes[container.id] = made
        if made.ports:
            self.ports.adopt(container.id, made.ports)

    async def adopted(self) -> None:
        """After the last `adopt`: the host's side of what is in use, made right without touching a connection."""
        for container_id, made in self._sandboxes.items():
            self._hold(container_id, made)  # the first rules are whole: they know everyone
        for network in {
            id(n): n for m in self._sandboxes.values() for e in m.endpoints if (n := self._networks.by_id[e.network_id])
        }.values():
            try:
                await self._networks.activate(network)
            except (OSError, KnarrError) as error:
                log.error("network %s: %s", network.name, error)
        await self._dns.adopt()
        for container_id, made in self._sandboxes.items():
            try:
                self._register(self._find(container_id), made, None)
            except (OSError, KnarrError) as error:
                log.error("container %s: its names and the firewall's rules: %s", container_id[:12], error)
        self._dns.settle()
        if not self._sandboxes:
            self._networks.firewall.clean()

    # -- changes while it runs

    def sandbox(self, container_id: str) -> Sandbox | None:
        """What a running container has; None when it does not run or has no network of its own."""
        return self._sandboxes.get(container_id)

    def change(self, container: Container, after: Sandbox, fds: tuple[int, int] | None) -> None:
        """A running container has something else now: everybody is told. `fds`: its name server's sockets if they are new. Raises OSError,
        KnarrError; then it has what it had."""
        before = self._sandboxes[container.id]
        try:
            self._become(container, before, after, fds)
        except (OSError, KnarrError):
            try:
                self._become(container, after, before, None)
            except (OSError, KnarrError) as error:
                self._hold(container.id, before)  # in force with the next change that is possible
                log.warning("container %s: taking a change of its networks back: %s", container.id[:12], error)
            raise
        self._forget_datagrams(datagram_ports(before.ports) ^ datagram_ports(after.ports))

    def free(self, container: Container) -> None:
        """A running container of `--network none` can be put into networks from here on."""
        made = Sandbox()
        bundle.write_network(container.bundle, made, running=True)
        self._sandboxes[container.id] = made

    def _become(self, container: Container, before: Sandbox, after: Sandbox, fds: tuple[int, int] | None) -> None:
        self._sandboxes[container.id] = after
        kept = {endpoint.id for endpoint in after.endpoints}
        for endpoint in before.endpoints:
            if endpoint.id not in kept:
                self._dns.withdraw(endpoint.network_id, endpoint.id)
        if before.resolver and not after.resolver:
            self._dns.leave(container.id)
        bundle.write_network(container.bundle, after, running=True)
        self.files.write(container, after)
        self._register(container, after, fds)

    def drop(self, endpoints: list[Endpoint]) -> None:
        """Endpoints that a running container has no more: links and addresses go in the background."""
        for endpoint in endpoints:
            network = self._networks.by_id.get(endpoint.network_id)
            if network is not None:
                network.endpoints.pop(endpoint.id, None)
        self._tearing += 1
        self._context.nursery.start_soon(self._tear_down, "", endpoints, set[int]())

    def renamed(self, container: Container) -> None:
        """Its names in every network follow its own."""
        made = self._sandboxes.get(container.id)
        if made is None:
            return
        self._rename(container, made)
        try:
            self.change(container, made, None)
        except (OSError, KnarrError) as error:
            log.error("container %s: telling its networks of its new name: %s", container.id[:12], error)

    def _rename(self, container: Container, made: Sandbox) -> None:
        asked = container.record.networking.endpoints_config or {}
        for endpoint in made.endpoints:
            network = self._networks.by_id[endpoint.network_id]
            endpoint.names = self.names(container, network, asked.get(network.name) or EndpointSettings())

    def _guard(self, container_id: str, made: Sandbox) -> None:
        """The firewall's part of a container, and its ports."""
        published = self._hold(container_id, made)
        self._networks.firewall.sync()
        self.ports.relay(container_id, published)

    def _hold(self, container_id: str, made: Sandbox) -> list[tuple[Published, Port]]:
        """What the firewall is to know of a container; its ports."""
        known = self._networks.by_id
        members = [
            Member(
                link=one.link,
                bridge=known[one.network_id].record.link,
                mac=one.mac,
                ipv4=one.ipv4,
                ipv6=one.ipv6,
                link_local=tuple(one.link_local),
            )
            for one in made.endpoints
            if one.link
        ]
        published = self.ports.published(made) if made.ports else []
        self._networks.firewall.hold(container_id, members, [port for _, port in published])
        return published

    # -- the name server's sockets

    def reopen(self, container_id: str) -> tuple[int, int]:
        """In a worker thread: the name server's sockets of a running container again. Raises OSError, KnarrError."""
        namespace = namespaces.of_process(self._find(container_id).record.state.pid)
        try:
            return nameserver.open_in(namespace)
        finally:
            os.close(namespace)


def _release(links: list[str]) -> None:
    """In a worker thread: no link of an ended container answers for its addresses any more."""
    with Rtnetlink() as host:
        for link in links:
            sandbox.release(link, host)
