"""/etc/hosts and /etc/resolv.conf of containers with endpoints: gathers what `hostfiles` and `resolvconf` write them from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping

from engine.errors import Conflict
from engine.service import bundle, hostfiles
from engine.service.container import Container
from engine.service.context import Context
from engine.service.networkmode import split_link
from engine.service.networks import Networks
from engine.service.resolvconf import SYSTEMD_RESOLV_CONF, resolv_conf, stub_only
from engine.spec.network import Sandbox


class NameFiles:
    """`sandboxes`: of the running containers, by id."""

    def __init__(self, context: Context, networks: Networks, find: Callable[[str], Container], sandboxes: Mapping[str, Sandbox]) -> None:
        self._context = context
        self._networks = networks
        self._find = find
        self._sandboxes = sandboxes

    def write(self, container: Container, made: Sandbox) -> None:
        """Both files, as far as they have changed. Raises OSError, NotFound, Conflict."""
        record = container.record
        hc = record.host_config
        linked = [] if made.resolver else self._linked(hc.links or ())
        text = hostfiles.hosts(record, made, self.host_gateways() if hostfiles.needs_gateway(hc) else (), linked)
        bundle.rewrite(container.bundle, "hosts", text)
        resolv = self.resolv_conf(container, made)[0]
        if resolv != container.resolv_conf:
            bundle.rewrite(container.bundle, "resolv.conf", resolv)
            container.resolv_conf = resolv

    def resolv_conf(self, container: Container, made: Sandbox) -> tuple[str, list[str]]:
        """Text, and the servers that the embedded one asks."""
        hc, settings = container.record.host_config, self._context.settings
        return _resolv_conf(
            hostfiles.host_resolv_conf(),
            any(endpoint.ipv6 for endpoint in made.endpoints),
            tuple(hc.dns or settings.dns),
            tuple(hc.dns_search or settings.dns_search),
            tuple(hc.dns_options or settings.dns_opts),
            made.resolver,
        )

    def host_gateways(self) -> list[str]:
        """What `host-gateway` means: the daemon's setting, else the default bridge's addresses."""
        if self._context.settings.host_gateway_ips:
            return self._context.settings.host_gateway_ips
        network = self._networks.by_name.get("bridge")
        return [] if network is None else [pool.gateway for pool in network.record.pools if pool.gateway]

    def _linked(self, links: Iterable[str]) -> list[tuple[str, str]]:
        """Addresses and names of the containers of --link on the default bridge. Raises NotFound, Conflict."""
        found = []
        for ref, alias in map(split_link, links):
            other = self._find(ref)
            made = self._sandboxes.get(other.id)
            if made is None:
                raise Conflict(f"Cannot link to a non running container: /{other.name} AS /{alias}")
            default = self._networks.by_name["bridge"].id
            address = next((endpoint.ipv4 for endpoint in made.endpoints if endpoint.network_id == default), "")
            if not address:
                raise Conflict(f"Cannot link to /{other.name}, as it does not belong to the default network")
            names = dict.fromkeys((alias, other.record.config.hostname, other.name))
            found.append((address, " ".join(names)))
        return found


@functools.lru_cache(maxsize=32)
def _resolv_conf(
    host: str, ipv6: bool, dns: tuple[str, ...], search: tuple[str, ...], options: tuple[str, ...], embedded: bool
) -> tuple[str, list[str]]:
    """Remembered, because it is the same for most containers."""
    path = hostfiles.RESOLV_CONF
    if not embedded and stub_only(host):  # the stub of systemd-resolved listens on the host's loopback; these are the servers behind it
        path = SYSTEMD_RESOLV_CONF
        host = hostfiles.host_resolv_conf(path)
    return resolv_conf(host, dns=dns, search=search, options=options, embedded=embedded, ipv6=ipv6, path=path)
