"""What rtnetlink answers, as values: links, addresses, routes. Pure.

Readers take a message's payload and raise `netlink.MalformedMessage` for bytes that are none.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable

import msgspec

from engine.wire import netlink
from engine.wire import rtnetlink as rt


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """A link as the kernel has it. `mac`: "02:42:ac:11:00:02", "" where it has none; `kind`: "veth", "bridge", "macvlan", ..., "" for
    hardware; `master`, `parent`: indexes, 0 for none (for a veth `parent` is the other end's index, in namespace `parent_ns` when
    that is not -1); `alias`: ifalias; `port`: only of a port of a bridge."""

    index: int
    name: str
    flags: int
    mtu: int
    mac: str = ""
    kind: str = ""
    master: int = 0
    parent: int = 0
    parent_ns: int = -1
    alias: str = ""
    port: Port | None = None
    bridge: Bridge | None = None

    @property
    def up(self) -> bool:
        return bool(self.flags & rt.IFF_UP)


class Port(msgspec.Struct, frozen=True, kw_only=True):
    """Flags of a bridge's port."""

    hairpin: bool = False
    isolated: bool = False
    learning: bool = True


class Bridge(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a bridge. `forward_delay`: in 1/100 s."""

    stp: bool = False
    forward_delay: int = 0
    mcast_snooping: bool = True


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """An address of a link. `address`: text; `scope`: RT_SCOPE_*; `flags`: IFA_F_*."""

    index: int
    address: str
    prefix: int
    scope: int = 0
    flags: int = 0

    @property
    def version(self) -> int:
        return 6 if ":" in self.address else 4


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A route. `destination`: "10.0.0.0/8", or "0.0.0.0/0" and "::/0"; `gateway`, `source`: "" for none; `index`: link, 0 for none (or
    several, for multipath); `kind`: RTN_*, 1 is unicast."""

    destination: str
    gateway: str = ""
    index: int = 0
    metric: int = 0
    table: int = rt.RT_TABLE_MAIN
    scope: int = 0
    kind: int = 1
    source: str = ""


def link(payload: bytes) -> Link:
    """What an RTM_NEWLINK says. Raises netlink.MalformedMessage."""
    if len(payload) < rt.LINK_HEADER.size:
        raise netlink.MalformedMessage(f"a link of {len(payload)} bytes")
    _, _, index, flags, _ = rt.LINK_HEADER.unpack_from(payload)
    found = netlink.attributes(payload, rt.LINK_HEADER.size)
    info = netlink.attributes(found.get(rt.IFLA_LINKINFO, b""))
    kind = netlink.string(info.get(rt.INFO_KIND, b""))
    address = found.get(rt.IFLA_ADDRESS, b"")
    return Link(
        index=index,
        name=netlink.string(found.get(rt.IFLA_IFNAME, b"")),
        flags=flags,
        mtu=_number(found.get(rt.IFLA_MTU)),
        mac=address.hex(":") if len(address) == 6 else "",
        kind=kind,
        master=_number(found.get(rt.IFLA_MASTER)),
        parent=_number(found.get(rt.IFLA_LINK)),
        parent_ns=_signed(found[rt.IFLA_LINK_NETNSID]) if rt.IFLA_LINK_NETNSID in found else -1,
        alias=netlink.string(found.get(rt.IFLA_IFALIAS, b"")),
        port=_port(info[rt.INFO_SLAVE_DATA]) if info.get(rt.INFO_SLAVE_KIND) == b"bridge\0" and rt.INFO_SLAVE_DATA in info else None,
        bridge=_bridge(info[rt.INFO_DATA]) if kind == "bridge" and rt.INFO_DATA in info else None,
    )


def _port(data: bytes) -> Port:
    found = netlink.attributes(data)
    return Port(
        hairpin=bool(_number(found.get(rt.BRPORT_MODE))),
        isolated=bool(_number(found.get(rt.BRPORT_ISOLATED))),
        learning=bool(_number(found.get(rt.BRPORT_LEARNING))),
    )


def _bridge(data: bytes) -> Bridge:
    found = netlink.attributes(data)
    return Bridge(
        stp=bool(_number(found.get(rt.BR_STP_STATE))),
        forward_delay=_number(found.get(rt.BR_FORWARD_DELAY)),
        mcast_snooping=bool(_number(found.get(rt.BR_MCAST_SNOOPING))),
    )


def address(payload: bytes) -> Address:
    """What an RTM_NEWADDR says. Raises netlink.MalformedMessage."""
    if len(payload) < rt.ADDRESS_HEADER.size:
        raise netlink.MalformedMessage(f"an address of {len(payload)} bytes")
    family, prefix, flags, scope, index = rt.ADDRESS_HEADER.unpack_from(payload)
    found = netlink.attributes(payload, rt.ADDRESS_HEADER.size)
    value = found.get(rt.IFA_LOCAL) or found.get(rt.IFA_ADDRESS, b"")
    if rt.IFA_FLAGS in found:
        flags = _number(found[rt.IFA_FLAGS])
    return Address(index=index, address=_text(family, value), prefix=prefix, scope=scope, flags=flags)


def routes(payload: bytes) -> Iterable[Route]:
    """What an RTM_NEWROUTE says: one route, for multipath one for each hop, none outside IP. Raises netlink.MalformedMessage."""
    if len(payload) < rt.ROUTE_HEADER.size:
        raise netlink.MalformedMessage(f"a route of {len(payload)} bytes")
    family, prefix, _, _, table, _, scope, kind, _ = rt.ROUTE_HEADER.unpack_from(payload)
    if family not in _LENGTHS:
        return []
    found = netlink.attributes(payload, rt.ROUTE_HEADER.size)
    target = found.get(rt.RTA_DST, bytes(16 if family == socket.AF_INET6 else 4))
    one = Route(
        destination=f"{_text(family, target)}/{prefix}",
        gateway=_text(family, found[rt.RTA_GATEWAY]) if rt.RTA_GATEWAY in found else "",
        index=_number(found.get(rt.RTA_OIF)),
        metric=_number(found.get(rt.RTA_PRIORITY)),
        table=_number(found[rt.RTA_TABLE]) if rt.RTA_TABLE in found else table,
        scope=scope,
        kind=kind,
        source=_text(family, found[rt.RTA_PREFSRC]) if rt.RTA_PREFSRC in found else "",
    )
    hops = found.get(rt.RTA_MULTIPATH)
    if not hops:
        return [one]
    several = []
    position = 0
    while len(hops) - position >= rt.NEXT_HOP_HEADER.size:
        length, _, _, index = rt.NEXT_HOP_HEADER.unpack_from(hops, position)
        if length < rt.NEXT_HOP_HEADER.size or length > len(hops) - position:
            raise netlink.MalformedMessage(f"a hop of {length} bytes")
        gateway = netlink.attributes(hops[position : position + length], rt.NEXT_HOP_HEADER.size).get(rt.RTA_GATEWAY)
        several.append(msgspec.structs.replace(one, index=index, gateway=_text(family, gateway) if gateway else ""))
        position += (length + 3) & ~3
    return several


def _text(family: int, packed: bytes) -> str:
    if len(packed) != _LENGTHS.get(family):
        return ""
    return socket.inet_ntop(family, packed)


def _number(value: bytes | None) -> int:
    """A number attribute of one, two or four bytes; 0 for none."""
    return _NUMBERS[len(value)].unpack(value)[0] if value and len(value) in _NUMBERS else 0


def _signed(value: bytes) -> int:
    return int(_SIGNED.unpack(value)[0]) if len(value) == 4 else -1


_LENGTHS: dict[int, int] = {socket.AF_INET: 4, socket.AF_INET6: 16}
_NUMBERS = {1: struct.Struct("=B"), 2: struct.Struct("=H"), 4: struct.Struct("=I")}
_SIGNED = struct.Struct("=i")
