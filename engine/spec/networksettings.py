"""What dockerd's settings say of networks: fields, checks, and how their texts read. Pure; `engine.config.Settings` has all of it."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_interface, ip_network

import msgspec

from engine.errors import InvalidParameter, NotImplementedYet
from engine.spec.addresspools import DEFAULT_IPV4, AddressPool, unique_local

# Switches that have one position only.
_FIXED = {"allow_direct_routing": False, "iptables": True, "ip6tables": True}

_DOMAIN = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")


class NetworkSettings(msgspec.Struct, rename="kebab", kw_only=True):
    """Keys of daemon.json for networks; all but `default_address_pools` and `default_network_opts` are of the predefined bridge or of all.

    `bip`, `bip6`: address and prefix length of the predefined bridge. `fixed_cidr`, `fixed_cidr_v6`: what containers' addresses are given
    from there. `bridge`: a bridge of the host's to use for it, "none" for no such network. `ip`: the host address for published ports.
    `host_gateway_ips`: what `host-gateway` means in --add-host, one of a family. `mtu` 0 is 1500. `dns`, `dns_opts`, `dns_search`:
    what containers get that name none. `default_network_opts`: options by driver, for networks to be made.
    `live_restore` and `userland_proxy` exist for daemon.json files that have them: containers always outlive the daemon, and no proxy
    is ever started for a port.
    """

    allow_direct_routing: bool = False
    bip: str = ""
    bip6: str = ""
    bridge: str = ""
    default_address_pools: list[AddressPool] = []
    default_gateway: str = ""
    default_gateway_v6: str = ""
    default_network_opts: dict[str, dict[str, str]] = {}
    dns: list[str] = []
    dns_opts: list[str] = []
    dns_search: list[str] = []
    firewall_backend: str = ""
    fixed_cidr: str = ""
    fixed_cidr_v6: str = ""
    host_gateway_ip: str = ""
    host_gateway_ips: list[str] = []
    icc: bool = True
    ip: str = "0.0.0.0"
    ip_forward: bool = True
    ip_forward_no_drop: bool = False
    ip_masq: bool = True
    ip6tables: bool = True
    iptables: bool = True
    ipv6: bool = False
    live_restore: bool = True
    mtu: int = 0
    userland_proxy: bool = True


def check(settings: NetworkSettings) -> None:
    """Check the values, each and against each other; `host_gateway_ip` goes into `host_gateway_ips`.

    Raises InvalidParameter, NotImplementedYet.
    """
    _switches(settings)
    if settings.mtu and not 68 <= settings.mtu <= 65_535:
        raise InvalidParameter(f"invalid default MTU: {settings.mtu}")
    for key, text, version in (("bip", settings.bip, 4), ("bip6", settings.bip6, 6)):
        _bridge_address(key, text, version)
    for key, text, version in (("fixed-cidr", settings.fixed_cidr, 4), ("fixed-cidr-v6", settings.fixed_cidr_v6, 6)):
        _part(key, text, version)
    if settings.bridge and settings.bridge != "none" and (settings.bip or settings.bip6):
        raise InvalidParameter("You specified -b & --bip, mutually exclusive options. Please specify only one")
    _within("fixed-cidr", settings.fixed_cidr, settings.bip)
    _within("fixed-cidr-v6", settings.fixed_cidr_v6, settings.bip6)
    for key, text, version in (("default-gateway", settings.default_gateway, 4), ("default-gateway-v6", settings.default_gateway_v6, 6)):
        if text:
            _address(key, text, version)
    _address("ip", settings.ip)
    if settings.host_gateway_ip:
        settings.host_gateway_ips = [*settings.host_gateway_ips, settings.host_gateway_ip]
        settings.host_gateway_ip = ""
    versions = [_address("host-gateway-ips", text) for text in settings.host_gateway_ips]
    for version in (4, 6):
        if versions.count(version) > 1:
            raise InvalidParameter(f"only one IPv{version} host gateway IP address can be specified")
    for text in settings.dns:
        _address("dns", text)
    for text in settings.dns_search:
        if text != "." and (len(text) > 253 or not _DOMAIN.fullmatch(text)):
            raise InvalidParameter(f"dns-search: {text} is not a valid domain")
    for text in settings.dns_opts:
        if not text or not text.isprintable() or any(letter.isspace() for letter in text):
            raise InvalidParameter(f"invalid dns-opts: {text!r}")
    for pool in settings.default_address_pools:
        _pool(pool)


def address_pools(settings: NetworkSettings, host_id: str) -> list[AddressPool]:
    """What subnets are chosen from: the configured pools or Docker's, with unique local ones made of `host_id` where none is IPv6."""
    pools = settings.default_address_pools or list(DEFAULT_IPV4)
    if not any(":" in pool.base for pool in pools):
        pools = [*pools, unique_local(host_id)]
    return pools


def parse_pool(text: str) -> AddressPool:
    """`base=10.0.0.0/8,size=24`: a value of --default-address-pool. Raises InvalidParameter in dockerd's words."""
    values: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals:
            raise InvalidParameter(f"invalid field '{part}' must be a key=value pair")
        if key not in ("base", "size"):
            raise InvalidParameter(f"unexpected key '{key}' in '{part}'")
        values[key] = value
    size = values.get("size", "")
    if not (size.isascii() and size.isdigit()):
        raise InvalidParameter(f"invalid size value: {size!r} in '{text}'", hint="for example base=10.0.0.0/8,size=24")
    pool = AddressPool(values.get("base", ""), int(size))
    _pool(pool)
    return pool


def _switches(settings: NetworkSettings) -> None:
    if not settings.live_restore:
        raise NotImplementedYet("live-restore=false", hint="containers always go on when the daemon ends; stop them before")
    for name, wanted in _FIXED.items():
        if getattr(settings, name) is not wanted:
            raise NotImplementedYet(f"{name.replace('_', '-')}={'true' if not wanted else 'false'}")
    if settings.firewall_backend not in ("", "nftables"):
        raise NotImplementedYet(f"firewall-backend={settings.firewall_backend}", hint="rules are nftables rules here")


def _bridge_address(key: str, text: str, version: int) -> None:
    if not text:
        return
    try:
        interface = ip_interface(text)
    except ValueError:
        raise InvalidParameter(f"invalid {key}: invalid CIDR address: {text}")
    if "/" not in text:
        raise InvalidParameter(f"invalid {key}: invalid CIDR address: {text}")
    if interface.version != version:
        raise InvalidParameter(f"invalid {key}: {text} is not an IPv{version} address")
    network = interface.network
    if network.num_addresses > 2 and (
        interface.ip == network.network_address or (version == 4 and interface.ip == network.broadcast_address)
    ):
        raise InvalidParameter(
            f"invalid {key}: {text} is a network address, not the bridge's", hint=f"for example {network[1]}/{network.prefixlen}"
        )


def _part(key: str, text: str, version: int) -> None:
    if not text:
        return
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise InvalidParameter(f"invalid {key}: invalid CIDR address: {text}")
    if "/" not in text:
        raise InvalidParameter(f"invalid {key}: invalid CIDR address: {text}")
    if network.version != version:
        raise InvalidParameter(f"invalid {key}: '{text}' is not a valid IPv{version} subnet")


def _within(key: str, part: str, bridge: str) -> None:
    if not part or not bridge:
        return
    inner, outer = ip_network(part, strict=False), ip_interface(bridge).network
    if inner.version == outer.version and not (inner.prefixlen >= outer.prefixlen and inner.overlaps(outer)):
        raise InvalidParameter(f"invalid {key}: {part} is not part of the bridge's network {outer}")


def _address(key: str, text: str, version: int = 0) -> int:
    try:
        found = ip_address(text).version
    except ValueError:
        raise InvalidParameter(f'invalid {key}: failed to parse IP: "{text}"')
    if version and found != version:
        raise InvalidParameter(f"invalid {key}: {text} is not an IPv{version} address")
    return found


def _pool(pool: AddressPool) -> None:
    try:
        base = ip_network(pool.base)
    except ValueError as error:
        raise InvalidParameter(f'invalid default address pool "{pool.base}": {error}')
    if not base.prefixlen <= pool.size <= base.max_prefixlen:
        raise InvalidParameter(
            f"invalid default address pool {pool.base}: size {pool.size} is no prefix length from {base.prefixlen} to {base.max_prefixlen}"
        )
