"""Changes of a container's networks: connect, disconnect, ports; of a running one at once, of the others for their next start.

Each is made whole or not at all, and durable when it returns. Messages are dockerd's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping

import msgspec
import trio

from engine.aio.blocking import blocking
from engine.errors import Conflict, Forbidden, KnarrError, NotFound
from engine.linux import namespaces
from engine.linux.rtnetlink import Rtnetlink
from engine.network import nameserver, ports, sandbox
from engine.service import networkmode
from engine.service.container import Container, told
from engine.service.context import Context
from engine.service.endpoints import Endpoints
from engine.service.networks import Network, Networks
from engine.spec.container import ContainerRecord
from engine.spec.docker.containers import EndpointSettings, PortBinding
from engine.spec.endpointoptions import IFNAME
from engine.spec.network import Endpoint, Sandbox
from engine.store.db import DatabaseError

log = logging.getLogger("knarr.connecting")

_SHARED = "container sharing network namespace with another container or host cannot be connected to any other network"
_HOST = "container cannot be disconnected from host network or connected to host network"
_NONE = "container cannot be connected to multiple networks with one of the networks in private (none) mode"

_END_SECONDS = 1.0

Bindings = Mapping[str, list[PortBinding] | None]


class Changes:
    """What `docker network connect|disconnect` and `knarr port add|rm` do."""

    def __init__(self, context: Context, networks: Networks, endpoints: Endpoints, find: Callable[[str], Container]) -> None:
        self._context = context
        self._networks = networks
        self._endpoints = endpoints
        self._find = find

    async def connect(self, ref: str, container_ref: str, settings: EndpointSettings) -> None:
        """Put a container into a network. Raises NotFound, Forbidden, InvalidParameter, KnarrError."""
        network, container = self._networks.network(ref), self._find(container_ref)
        async with container.lock:
            self._check(network, container, settings)
            record = container.record
            asked = {**(record.networking.endpoints_config or {}), network.name: settings}
            made = self._endpoints.sandbox(container.id)
            connected = False
            if made is not None:
                with told(container, f"connect it to network {network.name}"):
                    connected = await self._connect_now(container, network, settings, made)
            before, mode = record.networking, record.host_config.network_mode
            if mode == "none" or before.endpoints_config == {}:  # it was taken out of its mode's network, and does not go back
                record.host_config.network_mode = network.name
            record.networking = msgspec.structs.replace(before, endpoints_config=asked)
            try:
                self._save(container)
            except BaseException:
                record.networking, record.host_config.network_mode = before, mode
                if connected and (made := self._endpoints.sandbox(container.id)) is not None:
                    await self._disconnect_now(container, network, made)
                raise
            await self._context.durability.reached()
        if connected:
            self._networks.publish(network, "connect", container=container.id)

    def _is_out(self, container: Container) -> bool:
        """Whether a container of `--network none` was taken out of that, and can be put into others."""
        if container.record.state.alive:
            return self._endpoints.sandbox(container.id) is not None
        return container.record.networking.endpoints_config == {}

    @staticmethod
    def _save(container: Container) -> None:
        """Raises NotFound when the container was removed meanwhile, KnarrError."""
        if container.gone.is_set():
            raise NotFound(f"No such container: {container.id}")
        try:
            container.save_now()
        except DatabaseError as error:
            raise KnarrError(f"container {container.name}: storing its networks: {error}", hint="the data root needs free space") from error

    def _check(self, network: Network, container: Container, settings: EndpointSettings) -> None:
        mode = container.record.host_config.network_mode
        if mode == "host" or mode.startswith("container:"):
            raise Forbidden(_SHARED)
        if network.record.driver == "host":
            raise Forbidden(_HOST)
        if network.record.driver == "null" or (mode == "none" and not self._is_out(container)):
            raise Forbidden(_NONE)
        if network.record.config_only:
            raise Forbidden(f"configuration network {network.name!r} cannot be used by a container")
        networkmode.check(network.name, settings, network.record)
        made = self._endpoints.sandbox(container.id)  # of one that does not run, the settings are replaced
        if made is not None and any(endpoint.network_id == network.id for endpoint in made.endpoints):
            raise Forbidden(f"endpoint with name {container.name} already exists in network {network.name}")

    async def _connect_now(self, container: Container, network: Network, settings: EndpointSettings, made: Sandbox) -> bool:
        """False when the container has ended meanwhile. Raises OSError, KnarrError; then it has what it had."""
        await self._networks.activate(network)
        endpoint = await self._endpoints.allocate(container, network, settings, made)
        after = msgspec.structs.replace(made, endpoints=[*made.endpoints, endpoint], resolver=made.resolver or not network.is_default)
        network.endpoints[endpoint.id] = (container.id, endpoint)
        fds, pid = None, container.record.state.pid
        try:
            named = IFNAME in (settings.driver_opts or {})
            fds = await blocking("kernel", self._attach, pid, network, endpoint, made, after, named)
            if self._endpoints.sandbox(container.id) is not made:
                self._endpoints.drop([endpoint])
                return False
            endpoint.names = self._endpoints.names(container, network, settings)  # it may have been renamed
            self._endpoints.change(container, after, fds)
            return True
        except BaseException as error:
            there = not await self._has_ended(container, made, error)
            if there:
                with trio.CancelScope(shield=True):
                    await self._take_back(container, endpoint, after, made)
            self._endpoints.drop([endpoint])
            if not there and isinstance(error, (OSError, KnarrError)):
                return False
            raise
        finally:
            for fd in fds or ():
                os.close(fd)

    def _attach(
        self, pid: int, network: Network, endpoint: Endpoint, before: Sandbox, after: Sandbox, named: bool
    ) -> tuple[int, int] | None:
        """In a worker thread; the name server's sockets when it is the first network with names."""
        namespace = namespaces.of_process(pid)
        try:
            # Without default routes: those may have to move first.
            self._endpoints.links.attach(namespace, network, endpoint, before, named=named)
            self._endpoints.links.route(namespace, before, after)
            return nameserver.open_in(namespace) if after.resolver and not before.resolver else None
        finally:
            os.close(namespace)

    async def _has_ended(self, container: Container, made: Sandbox, error: BaseException) -> bool:
        """Whether a change failed because the container is no more. Its process may be gone a moment before its end is told."""
        if isinstance(error, (FileNotFoundError, ProcessLookupError)):
            exited = container.exited
            if self._endpoints.sandbox(container.id) is made:
                with trio.move_on_after(_END_SECONDS):
                    await exited.wait()
        return self._endpoints.sandbox(container.id) is not made

    async def _take_back(self, container: Container, endpoint: Endpoint, before: Sandbox, after: Sandbox) -> None:
        """The link of a connect that failed, and the routes: the container goes on."""
        try:
            await blocking("kernel", self._detach, container.record.state.pid, endpoint, before, after)
        except (OSError, KnarrError) as error:
            log.warning("container %s: removing the link of a connect that failed: %s", container.id[:12], error)

    async def disconnect(self, ref: str, container_ref: str, force: bool) -> None:
        """Take a container out of a network. Raises NotFound, Forbidden, KnarrError."""
        network = self._networks.network(ref)
        try:
            container = self._find(container_ref)
        except NotFound:
            if force:
                raise NotFound(f"endpoint {container_ref} not found") from None
            raise
        async with container.lock:
            if network.record.driver == "host" or container.record.host_config.network_mode == "host":
                raise Forbidden(_HOST)
            mode = container.record.host_config.network_mode
            wanted = self._networks.requested(container.record, gone=True) if not mode.startswith("container:") else []
            made = self._endpoints.sandbox(container.id)
            on = any(endpoint.network_id == network.id for endpoint in made.endpoints) if made is not None else False
            if not on and all(other is not network for other, _ in wanted):
                raise Forbidden(f"container {container.id} is not connected to network {network.name}")
            if made is None and mode == "none" and container.record.state.alive:
                self._endpoints.free(container)
            elif made is not None:
                with told(container, f"disconnect it from network {network.name}"):
                    await self._disconnect_now(container, network, made)
            self._forget(container, network, [other for other, _ in wanted if other is not network])
            self._save(container)
            await self._context.durability.reached()
        if made is not None:
            self._networks.publish(network, "disconnect", container=container.id)

    @staticmethod
    def _forget(container: Container, network: Network, others: list[Network]) -> None:
        record = container.record
        own = (network.name, network.id)
        asked = {key: value for key, value in (record.networking.endpoints_config or {}).items() if key not in own}
        if record.host_config.network_mode in own and others:
            # Its first network is another one now; without any it stays in the mode's network at the next start, as in Docker.
            record.host_config.network_mode = others[0].name
        record.networking = msgspec.structs.replace(record.networking, endpoints_config=asked)  # {}: of none, until the next start

    async def _disconnect_now(self, container: Container, network: Network, made: Sandbox) -> None:
        endpoint = next((endpoint for endpoint in made.endpoints if endpoint.network_id == network.id), None)
        if endpoint is None:
            return
        after = msgspec.structs.replace(made, endpoints=[other for other in made.endpoints if other is not endpoint])
        try:
            await blocking("kernel", self._detach, container.record.state.pid, endpoint, made, after)
        except (OSError, KnarrError) as error:
            if not await self._has_ended(container, made, error):
                raise
        if self._endpoints.sandbox(container.id) is not made:  # it ended meanwhile
            return
        self._endpoints.change(container, after, None)
        self._endpoints.drop([endpoint])

    def _detach(self, pid: int, endpoint: Endpoint, before: Sandbox, after: Sandbox) -> None:
        """In a worker thread."""
        namespace = namespaces.of_process(pid)
        try:
            with Rtnetlink() as host:
                sandbox.detach(endpoint, host, namespace)
            self._endpoints.links.route(namespace, before, after)
        finally:
            os.close(namespace)

    # -- ports of a running container, an extension

    async def publish(self, container_ref: str, bindings: Bindings) -> None:
        """Publish more ports, now if it runs and at every later start. Raises NotFound, Conflict, InvalidParameter, KnarrError."""
        container = self._find(container_ref)
        async with container.lock:
            hc = self._bridged(container).host_config
            ports.check(bindings)
            wanted: dict[str, list[PortBinding] | None] = dict(hc.port_bindings or {})
            for port, found in bindings.items():
                wanted[port] = [*(wanted.get(port) or ()), *(found or ())]
            made = self._endpoints.sandbox(container.id)
            if made is not None:
                new = await self._endpoints.ports.reserve(container.id, self._endpoints.ports.plan(made, bindings))
                try:
                    self._endpoints.change(container, msgspec.structs.replace(made, ports=[*made.ports, *new]), None)
                except BaseException:
                    self._endpoints.ports.unreserve(container.id, made.ports)
                    raise
            hc.port_bindings = wanted
            self._save(container)
            await self._context.durability.reached()

    async def unpublish(self, container_ref: str, bindings: Bindings) -> None:
        """Take published ports away; a binding without an address or number stands for all of its port. Raises NotFound, Conflict."""
        container = self._find(container_ref)
        async with container.lock:
            hc = self._bridged(container).host_config
            known = hc.port_bindings or {}
            made = self._endpoints.sandbox(container.id)
            for port, found in bindings.items():
                if port not in known and not any(f"{one.port}/{one.protocol}" == port for one in (made.ports if made is not None else ())):
                    raise NotFound(f"container {container.name} does not publish port {port}")
                for binding in found or ():
                    if known.get(port) and all(not _same(binding, other) for other in known[port] or ()):
                        raise NotFound(f"container {container.name} does not publish port {port} on {binding.host_ip}:{binding.host_port}")
            if made is not None:
                left = [one for one in made.ports if not _named(bindings, f"{one.port}/{one.protocol}", one.host_ip, str(one.host_port))]
                self._endpoints.change(container, msgspec.structs.replace(made, ports=left), None)
                self._endpoints.ports.unreserve(container.id, left)
            hc.port_bindings = {
                port: kept
                for port, found in known.items()
                if (kept := [one for one in found or () if not _named(bindings, port, one.host_ip, one.host_port)])
            }
            self._save(container)
            await self._context.durability.reached()

    @staticmethod
    def _bridged(container: Container) -> ContainerRecord:
        mode = container.record.host_config.network_mode
        if mode in ("host", "none") or mode.startswith("container:"):
            raise Conflict(f"container {container.name} has no network of its own that ports could be published of (--network {mode})")
        return container.record


def _same(asked: PortBinding, other: PortBinding) -> bool:
    return asked.host_ip in ("", other.host_ip or "0.0.0.0") and asked.host_port in ("", other.host_port)


def _named(bindings: Bindings, port: str, host_ip: str, host_port: str) -> bool:
    """Whether a published port is among `bindings`."""
    if port not in bindings:
        return False
    found = bindings[port]
    return not found or any(_same(binding, PortBinding(host_ip=host_ip, host_port=host_port)) for binding in found)
