"""Requests to rtnetlink: links, addresses, routes, neighbours. Pure; `wire/links.py` reads the answers, `linux/rtnetlink.py` is the socket.

Links are named by their index; text addresses are packed here (ValueError for one that is none). Source: include/uapi/linux/
rtnetlink.h, if_link.h, if_addr.h, neighbour.h, veth.h; rtnetlink(7).
"""

from __future__ import annotations

import re
import socket
import struct
from typing import Final, NamedTuple

from engine.wire.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, attribute, nested, text, u8, u16, u32

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_SETLINK: Final = 19
RTM_NEWADDR: Final = 20
RTM_DELADDR: Final = 21
RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_DELROUTE: Final = 25
RTM_GETROUTE: Final = 26

IFF_UP: Final = 0x1
IFF_LOOPBACK: Final = 0x8
IFF_PROMISC: Final = 0x100
IFF_LOWER_UP: Final = 0x10000

IFNAME_LIMIT: Final = 15  # bytes of a link's name, IFNAMSIZ without the NUL
IFALIAS_LIMIT: Final = 255

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_LINKINFO, IFLA_NET_NS_PID, IFLA_IFALIAS, IFLA_AF_SPEC, IFLA_GROUP, IFLA_NET_NS_FD = 18, 19, 20, 26, 27, 28
IFLA_EXT_MASK, IFLA_LINK_NETNSID = 29, 37
INFO_KIND, INFO_DATA, INFO_SLAVE_KIND, INFO_SLAVE_DATA = 1, 2, 4, 5
VETH_INFO_PEER = 1
BR_FORWARD_DELAY, BR_STP_STATE, BR_MCAST_SNOOPING, BR_VLAN_FILTERING = 1, 5, 23, 7
BRPORT_MODE, BRPORT_LEARNING, BRPORT_UNICAST_FLOOD, BRPORT_GROUP_FWD_MASK, BRPORT_ISOLATED = 4, 8, 9, 31, 33
EVERY_GROUP: Final = 0xFFFD  # 01:80:c2:00:00:0X but pause frames, which no bridge forwards
MACVLAN_MODE, VLAN_ID = 1, 1
IFLA_INET6_ADDR_GEN_MODE = 8
ADDR_GEN_NONE = 1
SKIP_STATS = 1 << 3  # RTEXT_FILTER_SKIP_STATS

IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS = 1, 2, 4, 8
IFA_F_NODAD = 0x02
IFA_F_PERMANENT = 0x80
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTA_MULTIPATH, RTA_TABLE = 1, 4, 5, 6, 7, 8, 9, 15
RTPROT_BOOT, RTN_UNICAST, RT_TABLE_MAIN, RT_TABLE_LOCAL = 3, 1, 254, 255
RT_SCOPE_UNIVERSE: Final = 0
RT_SCOPE_LINK: Final = 253

_NAME = re.compile(r"[^\s/:%\0]+").fullmatch  # '%' makes the kernel number the link

MACVLAN_MODES: Final = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}

# struct ifinfomsg, ifaddrmsg, rtmsg, ndmsg
LINK_HEADER = struct.Struct("=BxHiII")
ADDRESS_HEADER = struct.Struct("=BBBBI")
ROUTE_HEADER = struct.Struct("=BBBBBBBBI")
NEXT_HOP_HEADER = struct.Struct("=HBBi")

ROOT_LINK: Final = LINK_HEADER.pack(0, 0, 0, 0, 0)


class Request(NamedTuple):
    """One request of a batch. `what`: what it does, for errors ("creating the bridge knarr0"); `ignore`: errnos that are no failure."""

    type: int
    flags: int
    payload: bytes
    what: str
    ignore: tuple[int, ...] = ()


# Requests about links


def get_link(*, name: str = "", index: int = 0) -> Request:
    """Ask for one link by name or index; the answer is read by `link`. Fails with ENODEV."""
    payload = LINK_HEADER.pack(0, 0, index, 0, 0) + u32(IFLA_EXT_MASK, SKIP_STATS) + (_name(name) if name else b"")
    return Request(RTM_GETLINK, 0, payload, f"looking up the link {name or index}")


def add_veth(name: str, *, peer: str, peer_ns: int, mtu: int = 0, master: int = 0) -> Request:
    """A pair, both ends down: `name` here, a port of the bridge `master` at once if there is one, `peer` in the namespace of descriptor
    `peer_ns`. `mtu` 0: the kernel's 1500."""
    common = u32(IFLA_MTU, mtu) if mtu else b""
    other = ROOT_LINK + _name(peer) + u32(IFLA_NET_NS_FD, peer_ns) + common
    info = nested(IFLA_LINKINFO, text(INFO_KIND, "veth"), nested(INFO_DATA, nested(VETH_INFO_PEER, other)))
    payload = ROOT_LINK + _name(name) + common + (u32(IFLA_MASTER, master) if master else b"") + info
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, payload, f"creating the veth pair {name}, {peer}")


def add_bridge(name: str, *, mac: str = "", mtu: int = 0, stp: bool = False, forward_delay: int = 0, snooping: bool = True) -> Request:
    """A bridge, down. A given `mac` stays whatever ports come and go. `forward_delay`: in 1/100 s, how long a new port waits under STP."""
    options = _bridge_options(stp=stp, forward_delay=forward_delay, snooping=snooping)
    info = nested(IFLA_LINKINFO, text(INFO_KIND, "bridge"), options)
    payload = ROOT_LINK + _name(name) + (u32(IFLA_MTU, mtu) if mtu else b"") + _mac(mac) + info
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, payload, f"creating the bridge {name}")


def set_bridge(index: int, *, stp: bool | None = None, forward_delay: int | None = None, snooping: bool | None = None) -> Request:
    """Change the options of a bridge that is there; what is not given stays. ERANGE for a `forward_delay` below 200 while STP is on,
    also when the same request turns it off."""
    options = _bridge_options(stp=stp, forward_delay=forward_delay, snooping=snooping)
    payload = LINK_HEADER.pack(0, 0, index, 0, 0) + nested(IFLA_LINKINFO, text(INFO_KIND, "bridge"), options)
    return Request(RTM_NEWLINK, 0, payload, f"changing the options of the bridge with index {index}")


def _bridge_options(*, stp: bool | None, forward_delay: int | None, snooping: bool | None) -> bytes:
    options = []
    if stp is not None:
        options.append(u32(BR_STP_STATE, int(stp)))
    if forward_delay is not None:
        options.append(u32(BR_FORWARD_DELAY, forward_delay))
    if snooping is not None:
        options.append(u8(BR_MCAST_SNOOPING, int(snooping)))
    return nested(INFO_DATA, *options)


def set_port(index: int, *, hairpin: bool = False, isolated: bool = False, learning: bool = True, groups: int = 0) -> Request:
    """Flags of a link that is a port of a bridge already. `hairpin`: frames may go back out of it; `isolated`: isolated ports of one
    bridge do not reach each other. `groups`: bit X for each link-local group 01:80:c2:00:00:0X whose frames the bridge takes as any
    other; else they are the port's own, and teach the bridge their sender without being seen by a filter."""
    data = nested(
        INFO_SLAVE_DATA,
        u8(BRPORT_MODE, int(hairpin)),
        u8(BRPORT_ISOLATED, int(isolated)),
        u8(BRPORT_LEARNING, int(learning)),
        u16(BRPORT_GROUP_FWD_MASK, groups),
    )
    payload = LINK_HEADER.pack(0, 0, index, 0, 0) + nested(IFLA_LINKINFO, text(INFO_SLAVE_KIND, "bridge"), data)
    return Request(RTM_NEWLINK, 0, payload, f"setting the flags of the bridge port with index {index}")


def add_macvlan(name: str, *, parent: int, mode: str, ns: int, mac: str = "", mtu: int = 0) -> Request:
    """A macvlan link on top of the link `parent` of here, in the namespace of descriptor `ns`. `mode`: a key of MACVLAN_MODES."""
    data = nested(INFO_DATA, u32(MACVLAN_MODE, MACVLAN_MODES[mode]))
    payload = (
        ROOT_LINK
        + _name(name)
        + u32(IFLA_LINK, parent)
        + u32(IFLA_NET_NS_FD, ns)
        + (u32(IFLA_MTU, mtu) if mtu else b"")
        + _mac(mac)
        + nested(IFLA_LINKINFO, text(INFO_KIND, "macvlan"), data)
    )
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, payload, f"creating the macvlan link {name}")


def add_vlan(name: str, *, parent: int, vlan: int) -> Request:
    """An 802.1q link on top of `parent`. EOPNOTSUPP when the kernel has none."""
    info = nested(IFLA_LINKINFO, text(INFO_KIND, "vlan"), nested(INFO_DATA, u16(VLAN_ID, vlan)))
    payload = ROOT_LINK + _name(name) + u32(IFLA_LINK, parent) + info
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, payload, f"creating the VLAN link {name}")


def add_dummy(name: str) -> Request:
    """A link that leads nowhere. EOPNOTSUPP when the kernel has none."""
    payload = ROOT_LINK + _name(name) + nested(IFLA_LINKINFO, text(INFO_KIND, "dummy"))
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, payload, f"creating the dummy link {name}")


def set_link(
    index: int,
    *,
    up: bool | None = None,
    name: str = "",
    mac: str = "",
    mtu: int = 0,
    master: int | None = None,
    ns: int = -1,
    alias: str | None = None,
    link_local: bool | None = None,
    group: int = 0,
) -> Request:
    """Change a link; what is not given stays. `master` 0: out of its bridge; `ns`: descriptor of the namespace it moves to;
    `link_local` False: the kernel gives it no IPv6 link-local address by itself; `group`: a number that rules may match.

    The kernel applies address, MTU and name before it takes the link up.
    """
    flags, change = (0, 0) if up is None else (IFF_UP if up else 0, IFF_UP)
    payload = LINK_HEADER.pack(0, 0, index, flags, change)
    if ns >= 0:
        payload += u32(IFLA_NET_NS_FD, ns)
    if mac:
        payload += _mac(mac)
    if mtu:
        payload += u32(IFLA_MTU, mtu)
    if name:
        payload += _name(name)
    if alias is not None:
        payload += attribute(IFLA_IFALIAS, alias.encode())
    if master is not None:
        payload += u32(IFLA_MASTER, master)
    if group:
        payload += u32(IFLA_GROUP, group)
    if link_local is not None:
        mode = u8(IFLA_INET6_ADDR_GEN_MODE, 0 if link_local else ADDR_GEN_NONE)
        payload += nested(IFLA_AF_SPEC, nested(socket.AF_INET6, mode))
    return Request(RTM_NEWLINK, 0, payload, f"setting up the link {name or index}")


def delete_link(*, index: int = 0, name: str = "", ignore: tuple[int, ...] = ()) -> Request:
    """Remove a link, of a veth pair both ends. ENODEV when it is gone."""
    return Request(
        RTM_DELLINK, 0, LINK_HEADER.pack(0, 0, index, 0, 0) + (_name(name) if name else b""), f"removing the link {name or index}", ignore
    )


# Requests about addresses and routes


def add_address(index: int, address: str, prefix: int, *, ignore: tuple[int, ...] = ()) -> Request:
    """Give a link an address; usable at once (no duplicate address detection). EEXIST when it has it."""
    family, packed = _packed(address)
    payload = ADDRESS_HEADER.pack(family, prefix, 0, 0, index) + attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)
    if family == socket.AF_INET and prefix < 31:
        broadcast = int.from_bytes(packed, "big") | (0xFFFFFFFF >> prefix)
        payload += attribute(IFA_BROADCAST, broadcast.to_bytes(4, "big"))
    elif family == socket.AF_INET6:
        payload += u32(IFA_FLAGS, IFA_F_NODAD | IFA_F_PERMANENT)
    return Request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, payload, f"adding the address {address}/{prefix}", ignore)


def delete_address(index: int, address: str, prefix: int, *, ignore: tuple[int, ...] = ()) -> Request:
    """Take an address off a link. EADDRNOTAVAIL when it has not got it."""
    family, packed = _packed(address)
    payload = ADDRESS_HEADER.pack(family, prefix, 0, 0, index) + attribute(IFA_LOCAL, packed)
    return Request(RTM_DELADDR, 0, payload, f"removing the address {address}/{prefix}", ignore)


def add_route(
    destination: str,
    prefix: int,
    *,
    index: int,
    gateway: str = "",
    onlink: bool = False,
    metric: int = 0,
    source: str = "",
    replace: bool = False,
    ignore: tuple[int, ...] = (),
) -> Request:
    """A route in the main table. Without `gateway` it is the link's own (scope link). `onlink`: the gateway is taken for a neighbour even
    if no address of the link says so. `replace`: instead of one to the same destination with the same metric."""
    family, packed = _packed(destination)
    return Request(
        RTM_NEWROUTE,
        NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL),
        _route(family, packed, prefix, index, gateway, onlink, metric, source),
        f"adding the route to {destination}/{prefix}" + (f" via {gateway}" if gateway else ""),
        ignore,
    )


def delete_route(
    destination: str, prefix: int, *, index: int = 0, gateway: str = "", metric: int = 0, ignore: tuple[int, ...] = ()
) -> Request:
    """Remove the first route of the main table that matches all that is given. ESRCH when there is none."""
    family, packed = _packed(destination)
    payload = ROUTE_HEADER.pack(family, prefix, 0, 0, RT_TABLE_MAIN, 0, 255 if family == socket.AF_INET else 0, 0, 0)
    payload += _route_attributes(packed, prefix, index, gateway, metric, "")
    return Request(RTM_DELROUTE, 0, payload, f"removing the route to {destination}/{prefix}", ignore)


def _route(family: int, packed: bytes, prefix: int, index: int, gateway: str, onlink: bool, metric: int, source: str) -> bytes:
    scope = RT_SCOPE_UNIVERSE if gateway else RT_SCOPE_LINK
    header = ROUTE_HEADER.pack(family, prefix, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST, 4 if onlink else 0)  # 4: RTNH_F_ONLINK
    return header + _route_attributes(packed, prefix, index, gateway, metric, source)


def _route_attributes(packed: bytes, prefix: int, index: int, gateway: str, metric: int, source: str) -> bytes:
    out = attribute(RTA_DST, packed) if prefix else b""
    if gateway:
        out += attribute(RTA_GATEWAY, _packed(gateway)[1])
    if index:
        out += u32(RTA_OIF, index)
    if metric:
        out += u32(RTA_PRIORITY, metric)
    if source:
        out += attribute(RTA_PREFSRC, _packed(source)[1])
    return out


# Dumps: payloads of requests with NLM_F_DUMP


def dump_links(*, master: int = 0, kind: str = "") -> Request:
    """All links, or those of a bridge or kind (kernels that do not filter send all: look again)."""
    payload = ROOT_LINK + u32(IFLA_EXT_MASK, SKIP_STATS) + (u32(IFLA_MASTER, master) if master else b"")
    return Request(RTM_GETLINK, 0, payload + (nested(IFLA_LINKINFO, text(INFO_KIND, kind)) if kind else b""), "listing links")


def dump_addresses(index: int = 0) -> Request:
    """All addresses, or those of a link (which only a socket with strict checking filters)."""
    return Request(RTM_GETADDR, 0, ADDRESS_HEADER.pack(0, 0, 0, 0, index), "listing addresses")


def dump_routes(family: int = 0) -> Request:
    """Routes of all tables; `family` AF_INET or AF_INET6, 0 for both."""
    return Request(RTM_GETROUTE, 0, ROUTE_HEADER.pack(family, 0, 0, 0, 0, 0, 0, 0, 0), "listing routes")


def mac_bytes(mac: str) -> bytes:
    """The six bytes of "02:42:ac:11:00:02" (or with dashes). ValueError for anything else."""
    parts = mac.replace("-", ":").split(":")
    try:
        raw = bytes(int(part, 16) for part in parts) if all(len(part) == 2 for part in parts) else b""
    except ValueError:
        raw = b""
    if len(raw) != 6:
        raise ValueError(f"{mac!r} is no MAC address")
    return raw


def _name(name: str) -> bytes:
    check_name(name)
    return text(IFLA_IFNAME, name)


def check_name(name: str) -> None:
    """ValueError for what the kernel takes for no link's name: it would be a folder's name in /proc/sys."""
    if not name or len(name.encode()) > IFNAME_LIMIT or name in (".", "..") or not _NAME(name):
        raise ValueError(f"{name!r} cannot be a link's name: 1 to {IFNAME_LIMIT} bytes without blanks, '/' and ':'")


def _mac(mac: str) -> bytes:
    return attribute(IFLA_ADDRESS, mac_bytes(mac)) if mac else b""


def _packed(address: str) -> tuple[int, bytes]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return family, socket.inet_pton(family, address)
    except OSError as error:
        raise ValueError(f"{address!r} is no IP address") from error
