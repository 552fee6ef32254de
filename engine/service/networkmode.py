"""Which networks a create or connect request asks for, and whether that makes sense. Pure.

Messages are dockerd's (checked side by side), its clients match on some of them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from engine.config import Settings
from engine.errors import InvalidParameter, NotImplementedYet
from engine.service.hostfiles import split_extra_host
from engine.spec import endpointoptions
from engine.spec.docker.containers import CreateRequest, EndpointSettings, HostConfig, NetworkingConfig
from engine.spec.endpointoptions import IFNAME, SYSCTLS
from engine.spec.network import NetworkRecord
from engine.spec.networkoptions import is_link_name

_MAC = re.compile(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}")
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,253}")  # of an alias: what can stand in a DNS question
_NAMES_MAX = 16 * 1024  # bytes: what knarr-netd is told of a container has to fit into one packet
_SERVERS_MAX = 64
_SHARED = "container"  # the mode's word before the colon


def choose(hc: HostConfig, request: CreateRequest, settings: Settings) -> tuple[str, NetworkingConfig]:
    """The network mode, with the default filled in, and the endpoints' settings. Raises InvalidParameter."""
    mode = hc.network_mode or "default"
    if request.network_disabled:
        mode = "none"
    elif mode == "default":
        mode = "none" if settings.bridge == "none" else "bridge"
    given = (request.networking_config.endpoints_config if request.networking_config else None) or {}
    # "default" as a key of the endpoints means the same as in the mode.
    endpoints: dict[str, EndpointSettings | None] = {mode if name == "default" else name: value for name, value in given.items()}
    _check_mode(mode, hc, request)
    if mode.startswith(f"{_SHARED}:") or mode in ("host", "none"):
        for name, value in endpoints.items():
            if name not in (mode, "host", "none"):
                raise InvalidParameter(
                    "container sharing network namespace with another container or host cannot be connected to any other network"
                    if mode != "none"
                    else "container cannot be connected to multiple networks with one of the networks in private (none) mode"
                )
            check(name, value or EndpointSettings(), None)
        endpoints = {}
    if request.mac_address:
        _check_mac(request.mac_address)
    for value in endpoints.values():
        if value is not None:
            _check_values(value)  # here, too: a network that does not exist yet is not asked
    for entry in hc.extra_hosts or ():
        split_extra_host(entry)
    _check_dns(hc)
    return mode, NetworkingConfig(endpoints_config=endpoints or None)


def _check_mode(mode: str, hc: HostConfig, request: CreateRequest) -> None:
    shared = mode.startswith(f"{_SHARED}:")
    if mode == "container" or mode == "container:":
        raise InvalidParameter("Invalid network mode: invalid container format container:<name|id>")
    if shared and request.hostname:
        raise InvalidParameter("conflicting options: hostname and the network mode")
    if shared and hc.links:
        raise InvalidParameter(
            "conflicting options: container type network can't be used with links. This would result in undefined behavior"
        )
    if mode == "host" and hc.links:
        raise InvalidParameter(
            "conflicting options: host type networking can't be used with links. This would result in undefined behavior"
        )
    if not shared:
        return
    if hc.dns:
        raise InvalidParameter("conflicting options: dns and the network mode")
    if hc.extra_hosts:
        raise InvalidParameter("conflicting options: custom host-to-IP mapping and the network mode")
    if request.mac_address:
        raise InvalidParameter("conflicting options: mac-address and the network mode")
    if hc.port_bindings or hc.publish_all_ports:
        raise InvalidParameter("conflicting options: port publishing and the container type network mode")
    if request.exposed_ports:
        raise InvalidParameter("conflicting options: port exposing and the container type network mode")


def _check_values(settings: EndpointSettings) -> None:
    if sum(map(len, (*(settings.aliases or ()), *(settings.links or ())))) > _NAMES_MAX:
        raise InvalidParameter(f"aliases and links in one network are longer than {_NAMES_MAX} bytes")
    if settings.mac_address:
        _check_mac(settings.mac_address)
    for alias in settings.aliases or ():
        if not _NAME.fullmatch(alias):
            raise InvalidParameter(f"invalid alias {alias!r}: letters, digits, '_', '.' and '-' are allowed")


def _check_mac(text: str) -> None:
    if not _MAC.fullmatch(text):
        raise InvalidParameter(f"invalid MAC address: {text}")
    if int(text[:2], 16) & 1:
        raise InvalidParameter(f"invalid MAC address: {text} is a group address, which no interface can have")


def _check_dns(hc: HostConfig) -> None:
    if len(hc.dns or ()) > _SERVERS_MAX:
        raise InvalidParameter(f"{len(hc.dns or ())} DNS servers: {_SERVERS_MAX} at most are possible, three are asked")
    for server in hc.dns or ():
        try:
            if not server.isprintable() or " " in server:  # in the zone, where anything goes
                raise ValueError(server)
            ipaddress.ip_address(server.partition("%")[0])
        except ValueError:
            raise InvalidParameter(f"invalid DNS server: {server!r} is no IP address")
    for word in (*(hc.dns_search or ()), *(hc.dns_options or ())):
        if not word.isprintable() or " " in word:
            raise InvalidParameter(f"invalid DNS search domain or option: {word!r}")


def check(name: str, settings: EndpointSettings, network: NetworkRecord | None) -> None:
    """Whether a network can give an endpoint what is asked; None for host and none. Raises NotImplementedYet, InvalidParameter in dockerd's
    form."""
    _check_values(settings)
    for option in endpointoptions.unknown(settings.driver_opts or {}):
        raise NotImplementedYet(f"--network driver-opt={option}")
    ifname = (settings.driver_opts or {}).get(IFNAME, "")
    if ifname and not is_link_name(ifname):
        raise InvalidParameter(f"invalid value for {IFNAME}: {ifname!r} cannot be the name of an interface")
    problems = list(_problems(settings, network))
    if problems:
        text = problems[0] if len(problems) == 1 else "\n".join(f"* {problem}" for problem in problems)
        raise InvalidParameter(f"invalid config for network {name}: invalid endpoint settings:\n{text}")
    link_local(settings)


def _problems(settings: EndpointSettings, network: NetworkRecord | None) -> Iterable[str]:
    given = settings.ipam_config
    user_defined = network is not None and not network.predefined
    if not user_defined and settings.aliases:
        yield "network-scoped aliases are only supported for user-defined networks"
    wanted = [] if given is None else [(4, given.ipv4_address), (6, given.ipv6_address)]
    wanted = [(version, text) for version, text in wanted if text]
    if wanted and not user_defined:
        yield "user specified IP address is supported on user defined networks only"
    for version, text in wanted:
        yield from _address_problems(version, text, network)
    for text in (given.link_local_ips if given is not None else None) or ():
        address = _address(text)
        if address is None or address.is_unspecified:
            yield f"invalid link-local IP address: {text}"
    yield from _sysctl_problems(settings, network)
    if network is None and given is not None and given.link_local_ips:
        yield "link-local IP addresses need a network that gives the container an interface"


def _address_problems(version: int, text: str, network: NetworkRecord | None) -> Iterable[str]:
    address = _address(text)
    if address is None or address.version != version:
        yield f"invalid IPv{version} address: {text}"
    pools = [pool for pool in network.pools if (":" in pool.subnet) == (version == 6)] if network is not None else []
    if not any(pool.given_subnet for pool in pools):
        yield "user specified IP address is supported only when connecting to networks with user configured subnets"
    elif address is None or not any(address in ipaddress.ip_network(pool.subnet) for pool in pools):
        yield f"no configured subnet or ip-range contain the IP address {text}"


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """None for what is no address, or one with a zone: which link it is of is known."""
    try:
        return ipaddress.ip_address(text) if "%" not in text else None
    except ValueError:
        return None


def _sysctl_problems(settings: EndpointSettings, network: NetworkRecord | None) -> Iterable[str]:
    text = (settings.driver_opts or {}).get(SYSCTLS)
    if text is None:
        return
    try:
        found = endpointoptions.sysctls(text)
    except InvalidParameter as error:
        yield from error.message.splitlines()
        return
    if network is None:
        yield "sysctls of an interface need a network that gives the container one"
    if settings.ipam_config is not None and settings.ipam_config.ipv6_address and endpointoptions.without_ipv6(found):
        yield f"IPv6 address {settings.ipam_config.ipv6_address} for an interface without IPv6"


def link_local(settings: EndpointSettings) -> list[str]:
    """The link-local addresses that an endpoint is to have, in their shortest form. Raises InvalidParameter."""
    found: list[str] = []
    for text in (settings.ipam_config.link_local_ips if settings.ipam_config is not None else None) or ():
        address = _address(text)
        if address is None or not address.is_link_local:
            raise InvalidParameter(f"invalid link local IP address: {text}")
        if str(address) in found:
            raise InvalidParameter(f"the link-local IP address {address} is given twice")
        found.append(str(address))
    return found


def split_link(text: str) -> tuple[str, str]:
    """Container and alias of a --link, `NAME[:ALIAS]`, also in the stored form `/NAME:/OTHER/ALIAS`. Raises InvalidParameter."""
    name, _, alias = text.partition(":")
    name, alias = name.strip("/"), alias.rpartition("/")[2]
    if not name or ":" in alias:
        raise InvalidParameter(f"bad format for links: {text}")
    return name, alias or name
