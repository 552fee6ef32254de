"""Driver options of networks: Docker's names and texts into frozen structs. Pure.

Sources: Docker's documentation of the bridge and macvlan drivers; boolean values are those of Go's strconv.ParseBool.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec

from engine.errors import InvalidParameter, KnarrError

_DOCKER = "com.docker.network."
_BRIDGE = _DOCKER + "bridge."
_OURS = "knarr.network."

BRIDGE_NAME = _BRIDGE + "name"
MASQUERADE = _BRIDGE + "enable_ip_masquerade"
ICC = _BRIDGE + "enable_icc"
HOST_BINDING = _BRIDGE + "host_binding_ipv4"
DEFAULT_BRIDGE = _BRIDGE + "default_bridge"
GATEWAY_MODE_IPV4 = _BRIDGE + "gateway_mode_ipv4"
GATEWAY_MODE_IPV6 = _BRIDGE + "gateway_mode_ipv6"
INHIBIT_IPV4 = _BRIDGE + "inhibit_ipv4"
TRUSTED_INTERFACES = _BRIDGE + "trusted_host_interfaces"
MTU = _DOCKER + "driver.mtu"
IFACE_PREFIX = _DOCKER + "container_iface_prefix"
HOST_IPV4 = _DOCKER + "host_ipv4"
HOST_IPV6 = _DOCKER + "host_ipv6"
ENABLE_IPV4 = _DOCKER + "enable_ipv4"
ENABLE_IPV6 = _DOCKER + "enable_ipv6"
ANTISPOOFING = _OURS + "antispoofing"
PARENT = "parent"
MACVLAN_MODE = "macvlan_mode"

GATEWAY_MODES = ("nat", "nat-unprotected", "routed", "isolated")
MACVLAN_MODES = ("bridge", "private", "passthru", "vepa")

# An address of one of these names among the auxiliary ones is the containers' default gateway instead of the bridge.
DEFAULT_GATEWAY_IPV4 = "DefaultGatewayIPv4"
DEFAULT_GATEWAY_IPV6 = "DefaultGatewayIPv6"

_IFNAME = 15  # bytes of a link's name: IFNAMSIZ without its end
_MTU = (68, 65_535)  # the least that IPv4 allows, the most that a veth takes

_KNOWN = {
    "bridge": frozenset(
        (BRIDGE_NAME, MASQUERADE, ICC, HOST_BINDING, GATEWAY_MODE_IPV4, GATEWAY_MODE_IPV6, INHIBIT_IPV4, TRUSTED_INTERFACES)
        + (MTU, IFACE_PREFIX, HOST_IPV4, HOST_IPV6, ENABLE_IPV4, ENABLE_IPV6, ANTISPOOFING)
    ),
    "macvlan": frozenset((PARENT, MACVLAN_MODE, ENABLE_IPV4, ENABLE_IPV6)),
}


class BridgeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a bridge network is told. `mtu` 0 is the kernel's 1500; `name` "" is a name of ours.

    `host_binding`: the host address that ports are published on when the port names none, "" for every one. `host_ipv4`, `host_ipv6`:
    the source address of masqueraded packets. `trusted`: host links from which container addresses may be reached directly.
    `iface_prefix`: links inside are called this and a number. `antispoofing`: whether a container may use its own addresses only.
    """

    name: str = ""
    masquerade: bool = True
    icc: bool = True
    host_binding: str = ""
    default_bridge: bool = False
    gateway_mode_ipv4: str = "nat"
    gateway_mode_ipv6: str = "nat"
    inhibit_ipv4: bool = False
    trusted: tuple[str, ...] = ()
    mtu: int = 0
    iface_prefix: str = "eth"
    host_ipv4: str = ""
    host_ipv6: str = ""
    antispoofing: bool = True

    @classmethod
    def of(cls, options: Mapping[str, str]) -> BridgeOptions:
        """Read a bridge network's options. What Docker does not know either is left alone, see `unknown`.

        Raises InvalidParameter in Docker's words.
        """
        binding = _address(options, HOST_BINDING, 0)
        return cls(
            name=_link_name(options, BRIDGE_NAME),
            masquerade=_flag(options, MASQUERADE, True),
            icc=_flag(options, ICC, True),
            host_binding="" if binding == "0.0.0.0" else binding,
            default_bridge=_flag(options, DEFAULT_BRIDGE, False),
            gateway_mode_ipv4=_gateway_mode(options, GATEWAY_MODE_IPV4),
            gateway_mode_ipv6=_gateway_mode(options, GATEWAY_MODE_IPV6),
            inhibit_ipv4=_flag(options, INHIBIT_IPV4, False),
            trusted=_links(options, TRUSTED_INTERFACES),
            mtu=_mtu(options),
            iface_prefix=_prefix(options),
            host_ipv4=_address(options, HOST_IPV4, 4),
            host_ipv6=_address(options, HOST_IPV6, 6),
            antispoofing=_flag(options, ANTISPOOFING, True),
        )


class MacvlanOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a macvlan network is told. `parent`: the host link, or LINK.VLAN, or "" for a dummy link; `mode`: one of MACVLAN_MODES."""

    parent: str = ""
    mode: str = "bridge"

    @classmethod
    def of(cls, options: Mapping[str, str]) -> MacvlanOptions:
        """Read a macvlan network's options; that `parent` exists is not checked. Raises InvalidParameter, KnarrError in Docker's words."""
        mode = options.get(MACVLAN_MODE) or "bridge"
        if mode not in MACVLAN_MODES:
            raise KnarrError(f"requested macvlan mode '{mode}' is not valid, 'bridge' mode is the macvlan driver default")
        parent = _link_name(options, PARENT)
        if parent == "lo":
            raise KnarrError("loopback interface is not a valid macvlan parent link")
        return cls(parent=parent, mode=mode)


def split_vlan(parent: str) -> tuple[str, int]:
    """`eth0.10` -> ("eth0", 10), for a parent link that does not exist and is to be made. Raises KnarrError in Docker's words."""
    if "." not in parent:
        raise KnarrError(f"invalid subinterface vlan name {parent}, example formatting is eth0.10")
    master, _, text = parent.partition(".")
    if "." in text:
        raise KnarrError(f"required interface name format is: name.vlan_id, ex. eth0.10 for vlan 10, instead received {parent}")
    if not (text.isascii() and text.isdigit()):
        raise KnarrError(f"unable to parse a valid vlan id from: {text} (ex. eth0.10 for vlan 10)")
    if not 1 <= int(text) <= 4094:
        raise KnarrError(f"vlan id must be between 1-4094, received: {text}")
    return master, int(text)


def unknown(driver: str, options: Mapping[str, str]) -> list[str]:
    """Options that the driver keeps, as dockerd does, and that have no effect: for a warning. Others' labels (`org.example.x`) are none.

    Raises InvalidParameter for one that can only be meant for this program.
    """
    known = _KNOWN.get(driver, frozenset())
    for name in options:
        if name.startswith(_OURS) and name not in known:
            raise InvalidParameter(f"unknown network option {name} for driver {driver}")
    return sorted(name for name in options if name not in known and (name.startswith(_DOCKER) or "." not in name))


def flag(options: Mapping[str, str], name: str) -> bool | None:
    """The value of ENABLE_IPV4 or ENABLE_IPV6, None where it is not given. Raises InvalidParameter in Docker's words."""
    if name not in options:
        return None
    try:
        return parse_bool(options[name])
    except InvalidParameter:
        raise InvalidParameter(f'driver-opt "{name}" is not a valid bool')


def parse_bool(text: str) -> bool:
    """What Go's strconv.ParseBool accepts. Raises InvalidParameter with its words."""
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise InvalidParameter(f'strconv.ParseBool: parsing "{text}": invalid syntax')


def is_link_name(name: str) -> bool:
    """Whether Linux takes it as a link's name: 1 to 15 bytes without '/', ':', white space and control characters, no "." and ".."."""
    return (
        0 < len(name.encode(errors="surrogateescape")) <= _IFNAME
        and name not in (".", "..")
        and name.isprintable()
        and not any(letter in "/:%" or letter.isspace() for letter in name)
    )


def _bad(name: str, value: str, cause: str) -> InvalidParameter:
    return InvalidParameter(f"failed to parse {name} value: {value} ({cause})")


def _flag(options: Mapping[str, str], name: str, default: bool) -> bool:
    if name not in options:
        return default
    try:
        return parse_bool(options[name])
    except InvalidParameter as error:
        raise _bad(name, options[name], error.message)


def _gateway_mode(options: Mapping[str, str], name: str) -> str:
    value = options.get(name, "nat")
    if value not in GATEWAY_MODES:
        raise _bad(name, value, f"unknown gateway mode {value}")
    return value


def _address(options: Mapping[str, str], name: str, version: int) -> str:
    """An address in its shortest form, "" where there is none; `version` 0 for either."""
    value = options.get(name)
    if value is None:
        return ""
    try:
        address: IPv4Address | IPv6Address = ip_address(value)
    except ValueError:
        raise _bad(name, value, "nil ip")
    if version and address.version != version:
        raise _bad(name, value, f"not an IPv{version} address")
    if "%" in value:
        raise _bad(name, value, "nil ip")
    return str(address)


def _link_name(options: Mapping[str, str], name: str) -> str:
    value = options.get(name, "")
    if value and not is_link_name(value):
        raise _bad(name, value, "not the name of a link: want 1 to 15 characters without '/', ':' and spaces")
    return value


def _links(options: Mapping[str, str], name: str) -> tuple[str, ...]:
    names = tuple(part for part in options.get(name, "").split(":") if part)
    for part in names:
        if not is_link_name(part):
            raise _bad(name, options[name], f"{part} is not the name of a link")
    return names


def _mtu(options: Mapping[str, str]) -> int:
    value = options.get(MTU)
    if value is None:
        return 0
    digits = value.removeprefix("-") if value[:1] == "-" else value.removeprefix("+")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
        raise _bad(MTU, value, f'strconv.Atoi: parsing "{value}": invalid syntax')
    number = int(value)
    if number and not _MTU[0] <= number <= _MTU[1]:
        raise InvalidParameter(f"invalid MTU number: {number}")
    return number


def _prefix(options: Mapping[str, str]) -> str:
    value = options.get(IFACE_PREFIX, "")
    if not value:
        return "eth"
    if not is_link_name(value + "000"):  # room for the number
        raise _bad(IFACE_PREFIX, value, "want at most 12 characters without '/', ':' and spaces")
    return value
