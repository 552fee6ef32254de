"""Bridges of the host: one for each bridge network; the host's forwarding, and the subnets that it uses already.

The calling thread and the `Rtnetlink` socket are in the host's namespace: sysctls are the thread's. A bridge outlives the daemon with the
containers on it, so everything here adopts what it finds and changes only what differs; ports are never touched.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from typing import Final, NamedTuple

import msgspec

from engine.errors import Conflict
from engine.linux.rtnetlink import Rtnetlink
from engine.wire import links
from engine.wire import rtnetlink as wire
from engine.wire.links import Address, Link
from engine.wire.rtnetlink import Request

RESOLVERS: Final = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")

_SYS: Final = "/proc/sys/net"
_TEMPORARY_SCOPES: Final = (wire.RT_SCOPE_LINK, 254)  # of link-local and of the host's own addresses


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a bridge is. `mac`: of a bridge that is made, "" for one by chance (one that is there keeps its own, which neighbours know);
    `ipv6`: whether it has IPv6 at all; `route_localnet`: packets for 127.0.0.0/8 may come in on it after the firewall changed their
    destination; `snooping`: of multicast groups; `group`: a number that rules may match, 0 for none."""

    mtu: int = 1500
    mac: str = ""
    ipv6: bool = False
    route_localnet: bool = False
    snooping: bool = True
    group: int = 0


class Ensured(msgspec.Struct, frozen=True):
    """`created`: the bridge was not there before."""

    index: int
    created: bool


class Forwarding(NamedTuple):
    """What was switched on because it was off."""

    ipv4: bool
    ipv6: bool


def ensure(name: str, gateways: Sequence[tuple[str, int]], host: Rtnetlink, options: Options, *, owned: bool = True) -> Ensured:
    """The bridge `name` is there, up, with the addresses `gateways` (address, prefix length).

    `owned` False: somebody else's bridge, which keeps its options and its other addresses. Conflict when `name` is no bridge. OSError.
    """
    link = host.link(name=name)
    created = link is None
    if link is None:
        answers = host.batch([wire.add_bridge(name, mac=options.mac, mtu=options.mtu, snooping=options.snooping), wire.get_link(name=name)])
        link = links.link(answers[0].payload)
    elif link.kind != "bridge":
        raise Conflict(f"the link {name} exists and is no bridge", hint="choose another name with com.docker.network.bridge.name")
    if created or owned:
        _set_sysctls(name, options)
    requests = [] if created or not owned else _corrections(link, options)
    requests += _address_changes(link.index, [] if created else host.addresses(link.index), gateways, owned)
    if created or owned:
        requests.append(wire.set_link(link.index, up=True, group=options.group))
    elif not link.up:
        requests.append(wire.set_link(link.index, up=True))
    try:
        host.batch(requests)
    except BaseException:
        if created:
            host.batch([wire.delete_link(index=link.index, ignore=(errno.ENODEV,))])
        raise
    return Ensured(link.index, created)


def remove(name: str, host: Rtnetlink) -> bool:
    """Remove the bridge; False when there is none of that name. A link of another kind is left alone."""
    link = host.link(name=name)
    if link is None or link.kind != "bridge":
        return False
    host.batch([wire.delete_link(index=link.index, ignore=(errno.ENODEV,))])
    return True


def ports(index: int, host: Rtnetlink) -> list[Link]:
    """The links that are ports of the bridge with this index."""
    return host.links(master=index)


def _corrections(link: Link, options: Options) -> list[Request]:
    requests = []
    bridge = link.bridge
    if bridge is not None and (bridge.stp or bridge.mcast_snooping != options.snooping):
        requests.append(wire.set_bridge(link.index, stp=False, snooping=options.snooping))
    if link.mtu != options.mtu:
        requests.append(wire.set_link(link.index, mtu=options.mtu))
    return requests


def _address_changes(index: int, there: Iterable[Address], gateways: Sequence[tuple[str, int]], owned: bool) -> list[Request]:
    """Old addresses go first: with the first address of a subnet the kernel may remove the others, so all wanted ones are added then."""
    wanted = {(str(ip_address(address)), prefix) for address, prefix in gateways}
    present = {(one.address, one.prefix) for one in there if one.scope not in _TEMPORARY_SCOPES}
    addresses = {address for address, _ in wanted}
    stale = sorted(one for one in present - wanted if owned or one[0] in addresses)
    missing = sorted(wanted if stale else wanted - present)
    return [
        *(wire.delete_address(index, *one, ignore=(errno.EADDRNOTAVAIL,)) for one in stale),
        *(wire.add_address(index, *one, ignore=(errno.EEXIST,)) for one in missing),
    ]


def _set_sysctls(name: str, options: Options) -> None:
    wire.check_name(name)
    _set(f"ipv6/conf/{name}/accept_ra", "0")
    _set(f"ipv6/conf/{name}/disable_ipv6", "0" if options.ipv6 else "1")
    _set(f"ipv4/conf/{name}/route_localnet", "1" if options.route_localnet else "0")


def forwarding(*, ipv4: bool, ipv6: bool) -> Forwarding:
    """Switch on the host's forwarding where it is asked for and off, and say where that was so. Never switches it off.

    A host that forwards IPv6 ignores router advertisements by default and would lose the default route it has from them; its links that
    accept them now keep doing so (accept_ra 2, Documentation/networking/ip-sysctl.rst).
    """
    did_ipv4 = did_ipv6 = False
    if ipv4:
        did_ipv4 = _set("ipv4/ip_forward", "1")
    if ipv6 and _get("ipv6/conf/all/forwarding") == "0":
        for name in os.listdir(f"{_SYS}/ipv6/conf"):
            if name not in ("all", "lo") and _get(f"ipv6/conf/{name}/accept_ra") == "1":
                _set(f"ipv6/conf/{name}/accept_ra", "2")
        _set("ipv6/conf/default/forwarding", "1")
        did_ipv6 = _set("ipv6/conf/all/forwarding", "1")
    return Forwarding(did_ipv4, did_ipv6)


def hosts_subnets(host: Rtnetlink, *, without: Iterable[str] = (), resolvers: Sequence[str] = RESOLVERS) -> list[str]:
    """Subnets that new networks must not overlap, in CIDR form: the host's routes (but default ones), its links' own subnets, and its
    name servers. `without`: names of links that do not count, because they are networks' bridges."""
    skipped = {link.index for link in host.links() if link.name in set(without)}
    found = {
        route.destination
        for route in host.routes()
        if route.index not in skipped and not route.destination.endswith("/0") and not _is_local(route.destination)
    }
    found |= {
        str(ip_interface(f"{one.address}/{one.prefix}").network)
        for one in host.addresses()
        if one.index not in skipped and one.scope not in _TEMPORARY_SCOPES
    }
    found |= {f"{server}/{128 if ':' in server else 32}" for path in resolvers for server in _nameservers(path)}
    return sorted(found, key=lambda text: (":" in text, ip_network(text).network_address.packed, text))


def _is_local(destination: str) -> bool:
    """Link-local and multicast routes are on every link and in nobody's way."""
    network = ip_network(destination)
    return network.is_link_local or network.is_multicast


def _nameservers(path: str) -> list[str]:
    """Addresses of a resolv.conf's name servers, but those on loopback; none where there is no such file."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    words = [line.split() for line in lines]
    texts = [line[1].partition("%")[0] for line in words if len(line) > 1 and line[0] == "nameserver"]
    return [text for text in texts if _is_address(text) and not ip_address(text).is_loopback]


def _is_address(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except OSError:
        return False
    return True


def _get(key: str) -> str | None:
    """A sysctl below /proc/sys/net, None where the kernel has none (no IPv6)."""
    try:
        with open(f"{_SYS}/{key}") as file:
            return file.read().strip()
    except FileNotFoundError:
        return None


def _set(key: str, value: str) -> bool:
    """Write a sysctl unless it has the value; whether it was written."""
    if _get(key) in (value, None):
        return False
    with open(f"{_SYS}/{key}", "w") as file:
        file.write(value)
    return True
