"""What a network is to be, decided: checks of a request to create one, its subnets and addresses, and the networks there always are.

Pure but for identifiers and the time. Statuses and words are dockerd's, also where it calls a user's mistake an internal error.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network

from engine.config import DEFAULT_EXEC_ROOT
from engine.errors import Conflict, Forbidden, InvalidParameter, KnarrError, NotFound, NotImplementedYet
from engine.network.ipam import Allocator, choose, overlaps
from engine.spec import networkoptions
from engine.spec.addresspools import AddressPool
from engine.spec.docker.networks import IPAM, IPAMConfig, NetworkCreate
from engine.spec.network import NetworkRecord, Pool
from engine.spec.networkoptions import BridgeOptions, MacvlanOptions
from engine.spec.networksettings import NetworkSettings, address_pools

PREDEFINED = ("bridge", "host", "none", "default")  # "default" is what HostConfig.NetworkMode calls the first

_NAME_MAX = 255
_CIDR = re.compile(r"[0-9a-fA-F:.]{2,45}/(0|[1-9][0-9]{0,2})")
_OVERLAP = "Pool overlaps with other one on this address space"
_LINK_LOCAL = "fe80::/64"
# Each is compared with all others, in the one thread that everybody waits for.
_POOLS_MAX = 64
_RESERVED_MAX = 1024


def define(
    request: NetworkCreate,
    settings: NetworkSettings,
    existing: Iterable[NetworkRecord],
    in_use: Iterable[str],
) -> NetworkRecord:
    """The record of a new network. `existing`: all there are, the predefined ones too; `in_use`: subnets that the host has routes to.

    That links of the wanted names exist or do not is not checked. Raises KnarrErrors in dockerd's words.
    """
    existing = list(existing)
    driver = request.driver or "bridge"
    _check_name(request.name, driver, existing)
    config_from = request.config_from.network if request.config_from else ""
    options = dict(request.options or {})
    if not config_from:
        options = {**settings.default_network_opts.get(driver, {}), **options}
    ipv4 = _family(request.enable_ipv4, options, networkoptions.ENABLE_IPV4, True)
    ipv6 = _family(request.enable_ipv6, options, networkoptions.ENABLE_IPV6, False)
    ipam = request.ipam or IPAM()
    given = _check_ipam(ipam.config or [], ipv4, ipv6)
    _check_request(request, config_from, given, ipv6)
    record = NetworkRecord(
        id=secrets.token_hex(32),
        name=request.name,
        driver=driver,
        created_at=time.time_ns(),
        ipv4=ipv4,
        ipv6=ipv6,
        internal=request.internal,
        attachable=request.attachable,
        config_only=request.config_only,
        config_from=config_from,
        labels=dict(request.labels or {}),
        options=options,
        ipam_driver=ipam.driver or "default",
        ipam_options=dict(ipam.options or {}),
    )
    if record.config_only:
        record.driver, record.pools = "null", given
        return record
    _check_driver(driver)
    if request.ingress:
        raise Forbidden("Ingress network can only be global scope network")
    if config_from:
        given = _take_over(record, config_from, existing)
    if request.scope not in ("", "local"):
        raise Forbidden("cannot create a swarm scoped network when swarm is not active")
    skip_ipv4, skip_ipv6 = _drive(record, existing)
    pools = address_pools(settings, _host_id(existing))
    record.pools = _allocate(record, given, pools, _subnets(existing), list(in_use), (skip_ipv4, skip_ipv6))
    if driver == "bridge":
        _check_bridge(record, existing)
    return record


def warnings(record: NetworkRecord) -> list[str]:
    """What to tell the user of a network that was made: options that have no effect."""
    names = networkoptions.unknown(record.driver, record.options) if not record.config_only else []
    return [f"network option {name} is kept and has no effect for driver {record.driver}" for name in names]


def predefined(
    settings: NetworkSettings,
    exec_root: str,
    existing: Iterable[NetworkRecord],
    in_use: Callable[[], Iterable[str]],
    *,
    addresses: Sequence[str] | None = None,
) -> list[NetworkRecord]:
    """bridge (unless switched off), host and none, for the start of the daemon: as the settings want them, under the stored identifiers.

    `in_use`, the subnets that the host has routes to, is asked only when one must be chosen: a subnet that was chosen once stays.
    `addresses`: those of the link that `settings.bridge` names, in CIDR form; None where it does not exist. Raises KnarrErrors.
    """
    existing = list(existing)
    stored = {record.name: record for record in existing if record.predefined}
    others = [record for record in existing if not record.predefined]
    fixed = []
    for name, driver in (("host", "host"), ("none", "null")):
        record = stored.get(name)
        if record is None:
            record = NetworkRecord(id=secrets.token_hex(32), name=name, driver=driver, created_at=time.time_ns(), predefined=True)
        fixed.append(record)
    if settings.bridge == "none":
        return fixed
    pools = address_pools(settings, _host_id(fixed))
    try:
        if settings.bridge and addresses is None:
            raise KnarrError(f"bridge device with non default name {settings.bridge} must be created manually")
        link = settings.bridge or default_link(exec_root)
        bridge = _default_bridge(settings, stored.get("bridge"), others, in_use, pools, link, addresses or ())
    except KnarrError as error:
        error.message = f'Error creating default "bridge" network: {error.message}'
        raise
    return [bridge, *fixed]


def default_link(exec_root: str) -> str:
    """The name of the predefined bridge's link: several daemons on one host, each with its own exec root, each have their own."""
    return "knarr0" if exec_root == DEFAULT_EXEC_ROOT else f"knarr-{hashlib.sha256(os.fsencode(exec_root)).hexdigest()[:6]}"


def _host_id(existing: Iterable[NetworkRecord]) -> str:
    """What the IPv6 subnets of this installation are derived from: random, and stored as long as any network is."""
    return next((record.id for record in existing if record.predefined and record.driver == "null"), "")


def _check_name(name: str, driver: str, existing: list[NetworkRecord]) -> None:
    if name in PREDEFINED:
        raise Forbidden(f"operation is not permitted on predefined {name} network ")
    if driver == "overlay":
        raise Forbidden(
            'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.'
        )
    if not name.strip():
        raise InvalidParameter("invalid name: name is empty")
    if len(name.encode(errors="surrogateescape")) > _NAME_MAX:
        raise InvalidParameter(f"invalid name: it is longer than {_NAME_MAX} bytes")
    if not name.isprintable():  # it would act on the terminals that lists are shown in
        raise InvalidParameter(f"invalid name: {name!r} has a character that cannot be printed")
    if any(record.name == name for record in existing):
        raise Conflict(f"network with name {name} already exists")


def _family(asked: bool | None, options: dict[str, str], name: str, default: bool) -> bool:
    """Whether an IP version is on. What the request's own field says makes the option meaningless, so it goes, as in dockerd."""
    if asked is not None:
        options.pop(name, None)
        return asked
    said = networkoptions.flag(options, name)
    return default if said is None else said


def _check_ipam(configs: Sequence[IPAMConfig], ipv4: bool, ipv6: bool) -> list[Pool]:
    """The pools of a request, addresses as given. All mistakes of all pools are told at once. Raises InvalidParameter."""
    wrong: list[str] = []
    if len(configs) > _POOLS_MAX or sum(len(config.auxiliary_addresses or ()) for config in configs) > _RESERVED_MAX:
        raise InvalidParameter(f"invalid network config: more than {_POOLS_MAX} subnets, or {_RESERVED_MAX} auxiliary addresses")
    for config in configs:
        if not (subnet := _prefix(config.subnet)):
            wrong.append(f"invalid subnet {config.subnet}: invalid CIDR block notation")
        elif ipv6 if subnet.version == 6 else ipv4:
            wrong += _wrong_pool(config, subnet)
    if wrong:
        listed = wrong[0] if len(wrong) == 1 else "\n".join(f"* {text}" for text in wrong)
        raise InvalidParameter(f"invalid network config:\n{listed}")
    return [
        Pool(
            subnet=config.subnet,
            ip_range=config.ip_range,
            gateway=config.gateway,
            aux=dict(config.auxiliary_addresses or {}),
            given_gateway=bool(config.gateway),
        )
        for config in configs
    ]


def _wrong_pool(config: IPAMConfig, subnet: IPv4Interface | IPv6Interface) -> list[str]:
    wrong = []
    family = f"IPv{subnet.version}"
    if subnet.ip != subnet.network.network_address:
        wrong.append(f"invalid subnet {subnet}: it should be {subnet.network}")
    if config.ip_range:
        part = _prefix(config.ip_range)
        if not part:
            wrong.append(f"invalid ip-range {config.ip_range}: invalid CIDR block notation")
        elif part.version != subnet.version:
            wrong.append(f"invalid ip-range {config.ip_range}: parent subnet is an {family} block")
        else:
            if part.network.prefixlen < subnet.network.prefixlen:
                wrong.append(f"invalid ip-range {config.ip_range}: CIDR block is bigger than its parent subnet {subnet}")
            if part.ip != part.network.network_address:
                wrong.append(f"invalid ip-range {part}: it should be {part.network}")
            if not overlaps(str(part.network), str(subnet.network)):
                wrong.append(f"invalid ip-range {config.ip_range}: parent subnet {subnet} doesn't contain ip-range")
    if config.gateway and (cause := _wrong_address(config.gateway, subnet)):
        wrong.append(f"invalid gateway {config.gateway}: {cause}")
    for name, address in sorted((config.auxiliary_addresses or {}).items()):
        if address and (cause := _wrong_address(address, subnet)):
            wrong.append(f"invalid auxiliary address {name}: {cause}")
    return wrong


def _wrong_address(text: str, subnet: IPv4Interface | IPv6Interface) -> str:
    try:
        address = ip_address(text)
    except ValueError:
        return "invalid address"
    if address.version != subnet.version:
        return f"parent subnet is an IPv{subnet.version} block"
    if address not in subnet.network or "%" in text:
        return f"parent subnet {subnet} doesn't contain this address"
    return ""


def _prefix(text: str) -> IPv4Interface | IPv6Interface | None:
    if not _CIDR.fullmatch(text):
        return None
    try:
        return ip_interface(text)
    except ValueError:
        return None


def _check_request(request: NetworkCreate, config_from: str, given: list[Pool], ipv6: bool) -> None:
    """What does not go with --config-only and --config-from. Raises Forbidden."""
    if request.config_only and (request.ingress or request.internal or request.attachable or request.scope):
        raise Forbidden(
            "configuration network can only contain network specific fields. "
            "Network operator fields like [ ingress | internal | attachable | scope ] are not supported."
        )
    if not config_from:
        return
    if request.config_only:
        raise Forbidden("a configuration network cannot depend on another configuration network")
    ipam = request.ipam or IPAM()
    own = ipam.driver not in ("", "default") or ipam.options or given or request.labels or ipv6 or request.enable_ipv4 is False
    if own:
        raise Forbidden("user specified configurations are not supported if the network depends on a configuration network")
    if request.options:
        raise Forbidden("network driver options are not supported if the network depends on a configuration network")


def _check_driver(driver: str) -> None:
    if driver in ("host", "null"):
        raise Forbidden(f'only one instance of "{driver}" network is allowed')
    if driver == "ipvlan":
        raise NotImplementedYet("--driver ipvlan", hint="macvlan is there, and bridge with gateway mode routed")
    if driver not in ("bridge", "macvlan"):
        raise NotFound(f'plugin "{driver}" not found', hint="drivers are bridge and macvlan; there are no network plugins")


def _take_over(record: NetworkRecord, config_from: str, existing: list[NetworkRecord]) -> list[Pool]:
    """Give the network what a configuration network says; the pools of that one."""
    config = next((other for other in existing if other.config_only and other.name == config_from), None)
    if config is None:
        raise NotFound(f'configuration network "{config_from}" does not exist')
    record.ipv4, record.ipv6 = config.ipv4, config.ipv6
    record.labels, record.options = dict(config.labels), dict(config.options)
    record.ipam_driver, record.ipam_options = config.ipam_driver, dict(config.ipam_options)
    return config.pools


def _drive(record: NetworkRecord, existing: list[NetworkRecord]) -> tuple[bool, bool]:
    """Check the driver's options and name the link; whether the network needs no gateway address, for IPv4 and IPv6."""
    networkoptions.unknown(record.driver, record.options)
    if record.ipam_driver not in ("default", "null"):
        raise NotFound(f'plugin "{record.ipam_driver}" not found', hint="IPAM drivers are default and null")
    if record.driver == "macvlan":
        macvlan = MacvlanOptions.of(record.options)
        record.link = macvlan.parent or f"dm-{record.id[:12]}"
        _check_passthru(record, macvlan.mode, existing)
        alone = record.internal or not macvlan.parent
        return alone, alone
    bridge = BridgeOptions.of(record.options)
    record.link = bridge.name or f"br-{record.id[:12]}"
    isolated = bridge.gateway_mode_ipv4 == "isolated", bridge.gateway_mode_ipv6 == "isolated"
    if any(isolated) and not record.internal:
        raise KnarrError("gateway mode 'isolated' can only be used for an internal network")
    if not record.ipv4 and not record.ipv6:
        raise InvalidParameter("IPv4 or IPv6 must be enabled")
    return isolated[0] or (bridge.inhibit_ipv4 and record.internal), isolated[1]


def _check_passthru(record: NetworkRecord, mode: str, existing: list[NetworkRecord]) -> None:
    for other in existing:
        if other.driver != "macvlan" or other.link != record.link:
            continue
        if mode == "passthru":
            raise KnarrError(f"cannot use mode passthru, macvlan network {other.id} is already using parent interface {record.link}")
        if other.options.get(networkoptions.MACVLAN_MODE) == "passthru":
            raise KnarrError(f"macvlan network {other.id} is already using parent interface {record.link} in mode passthru")


def _subnets(existing: Iterable[NetworkRecord]) -> list[str]:
    return [pool.subnet for record in existing if not record.config_only for pool in record.pools]


def _allocate(
    record: NetworkRecord,
    given: list[Pool],
    pools: Sequence[AddressPool],
    taken: list[str],
    host: list[str],
    skip: tuple[bool, bool],
) -> list[Pool]:
    """Subnets, gateways and reserved addresses of a network, IPv4 first; `skip`: no gateway where none is asked for, for IPv4 and IPv6."""
    found: list[Pool] = []
    for version, wanted, no_gateway in ((4, record.ipv4, skip[0]), (6, record.ipv6, skip[1])):
        if not wanted:
            continue
        if record.ipam_driver == "null":
            raise InvalidParameter(f"ipv{version} pool is empty")
        asked = [pool for pool in given if ip_network(pool.subnet, strict=False).version == version]
        for pool in asked or [Pool(subnet="", given_subnet=False, given_gateway=False)]:
            subnet = _subnet(pool.subnet, pools, [*taken, *(p.subnet for p in found)], host, version)
            found.append(_resolve(pool, subnet, no_gateway))
    return found


def _subnet(asked: str, pools: Sequence[AddressPool], taken: list[str], host: list[str], version: int) -> str:
    """The subnet in its shortest form. `0.0.0.0/N` and `::/N` ask for any free one of that size."""
    if not asked:
        return choose(pools, [*taken, *host], version)
    network = ip_network(asked)
    if network.prefixlen and not int(network.network_address):
        sized = [AddressPool(p.base, network.prefixlen) for p in pools if ip_network(p.base).prefixlen <= network.prefixlen]
        return choose([p for p in sized if ip_network(p.base).version == version], [*taken, *host], version)
    if any(overlaps(asked, other) for other in taken):
        raise Forbidden(_OVERLAP)
    return str(network)


def _resolve(pool: Pool, subnet: str, no_gateway: bool) -> Pool:
    """Reserve the gateway (the first address of the range unless one is given) and the auxiliary addresses. Raises KnarrError."""
    addresses = Allocator(Pool(subnet=subnet, ip_range=pool.ip_range))
    gateway = ""
    if pool.gateway or not no_gateway:
        try:
            gateway = addresses.take(pool.gateway)
        except KnarrError as error:
            raise KnarrError(f"failed to allocate gateway ({pool.gateway}): {_cause(error)}")
    aux = {}
    for name, address in sorted(pool.aux.items()):
        if not address:
            continue
        try:
            aux[name] = addresses.take(address)
        except KnarrError as error:
            raise KnarrError(f"failed to allocate secondary ip address ({name}:{address}): {_cause(error)}")
    ip_range = str(ip_network(pool.ip_range)) if pool.ip_range else ""
    return Pool(
        subnet=subnet,
        ip_range=ip_range,
        gateway=gateway,
        aux=aux,
        given_subnet=pool.given_subnet,
        given_gateway=pool.given_gateway,
    )


def _cause(error: KnarrError) -> str:
    return "no available addresses on this pool" if error.message.startswith("no available") else error.message


def _check_bridge(record: NetworkRecord, existing: list[NetworkRecord]) -> None:
    versions = [ip_network(pool.subnet).version for pool in record.pools]
    if versions.count(4) > 1 or versions.count(6) > 1:
        raise Forbidden("bridge driver doesn't support multiple subnets")
    for pool in record.pools:
        _check_ipv6(pool.subnet)
    for other in existing:
        if other.driver == "bridge" and other.link == record.link:
            raise Forbidden(
                f"cannot create network {record.id} ({record.link}): conflicts with network {other.id} ({other.link}): "
                "networks have same bridge name"
            )


def _check_ipv6(subnet: str) -> None:
    network = ip_network(subnet)
    if network.version == 4:
        return
    if overlaps(subnet, "::ffff:0:0/96") and network.prefixlen >= 96:
        raise InvalidParameter(f"'{subnet}' is not a valid IPv6 subnet")
    if network.is_multicast:
        raise InvalidParameter(f"multicast subnet '{subnet}' is not allowed")
    if subnet != _LINK_LOCAL and overlaps(subnet, _LINK_LOCAL):
        raise InvalidParameter(f"'{subnet}' clashes with the Link-Local prefix 'fe80::/64'")


def _default_bridge(
    settings: NetworkSettings,
    stored: NetworkRecord | None,
    others: list[NetworkRecord],
    in_use: Callable[[], Iterable[str]],
    pools: Sequence[AddressPool],
    link: str,
    addresses: Sequence[str],
) -> NetworkRecord:
    record = NetworkRecord(
        id=stored.id if stored else secrets.token_hex(32),
        name="bridge",
        driver="bridge",
        created_at=stored.created_at if stored else time.time_ns(),
        ipv6=settings.ipv6,
        predefined=True,
        options=_default_options(settings, link),
        link=link,
        foreign_link=bool(settings.bridge),
    )
    BridgeOptions.of(record.options)  # the name of the link may be the user's
    on_link = {ip_interface(text).version: text for text in reversed(addresses)}
    sources = [
        (4, settings.bip or on_link.get(4, ""), settings.fixed_cidr, networkoptions.DEFAULT_GATEWAY_IPV4, settings.default_gateway),
        (6, settings.bip6 or on_link.get(6, ""), settings.fixed_cidr_v6, networkoptions.DEFAULT_GATEWAY_IPV6, settings.default_gateway_v6),
    ]
    taken = _subnets(others)
    for version, address, part, name, gateway in sources[: 2 if settings.ipv6 else 1]:
        aux = {name: gateway} if gateway else {}
        pool = _configured(address, part, aux)
        if pool is None:
            subnet = _kept(stored, version) or choose(pools, [*taken, *in_use()], version)
            pool = Pool(subnet=subnet, aux=aux, given_subnet=False, given_gateway=False)
        _check_gateway(pool)
        if any(overlaps(pool.subnet, other) for other in taken):
            raise Forbidden(_OVERLAP)
        _check_ipv6(pool.subnet)
        record.pools.append(_resolve(pool, pool.subnet, no_gateway=False))
    return record


def _kept(stored: NetworkRecord | None, version: int) -> str:
    """The subnet of this version that was chosen by us before, rather than configured; "" for none."""
    pools = stored.pools if stored else []
    return next((pool.subnet for pool in pools if not pool.given_subnet and ip_network(pool.subnet).version == version), "")


def _configured(bridge: str, part: str, aux: Mapping[str, str]) -> Pool | None:
    """The pool that the settings describe; None when they leave it to us. Without the bridge's address `part` is all of the network."""
    ip_range = str(ip_network(part, strict=False)) if part else ""
    if bridge:
        interface = ip_interface(bridge)
        return Pool(subnet=str(interface.network), ip_range=ip_range, gateway=str(interface.ip), aux=dict(aux))
    return Pool(subnet=ip_range, ip_range=ip_range, aux=dict(aux), given_gateway=False) if part else None


def _check_gateway(pool: Pool) -> None:
    network = ip_network(pool.subnet)
    if any(ip_address(address) not in network for address in pool.aux.values()):
        raise InvalidParameter("default gateway ip must be part of the network")


def _default_options(settings: NetworkSettings, link: str) -> dict[str, str]:
    words = {True: "true", False: "false"}
    return {
        networkoptions.DEFAULT_BRIDGE: "true",
        networkoptions.ICC: words[settings.icc],
        networkoptions.MASQUERADE: words[settings.ip_masq],
        networkoptions.HOST_BINDING: settings.ip,
        networkoptions.BRIDGE_NAME: link,
        networkoptions.MTU: str(settings.mtu or 1500),
    }
