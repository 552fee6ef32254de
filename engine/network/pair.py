"""The veth pair between a container's network namespace and a bridge of the host, and the addresses and routes at its inner end.

Works on rtnetlink sockets that are open in the two namespaces; each step is one system call however much it configures.
"""

from __future__ import annotations

import errno
import os
from typing import Final, NamedTuple

from engine.errors import KnarrError
from engine.linux import namespaces
from engine.linux.rtnetlink import Rtnetlink, failure
from engine.spec import endpointoptions
from engine.spec.network import Endpoint
from engine.wire import links
from engine.wire import rtnetlink as wire
from engine.wire.links import Link
from engine.wire.rtnetlink import Request

DEFAULT_MTU: Final = 1500

_LINK_LOCAL: Final = {False: 16, True: 64}  # prefix lengths of 169.254.0.0/16 and of addresses in fe80::/10, by whether it is IPv6
_NAME_ATTEMPTS: Final = 8


class Port(NamedTuple):
    """How the outer end is a port of a bridge. `bridge`: its index, 0 for none; `hairpin`: what comes in may go out there again;
    `isolated`: does not reach other isolated ports; `group`: of links, for the firewall (`firewall.group`), 0 for none."""

    bridge: int = 0
    hairpin: bool = False
    isolated: bool = False
    group: int = 0


class Pair(NamedTuple):
    """A pair that is there. `outer`: name on the host; the indexes count in their own namespaces."""

    outer: str
    outer_index: int
    inner_index: int


def create(host: Rtnetlink, ns: int, ifname: str, mtu: int = DEFAULT_MTU, bridge: int = 0) -> Pair:
    """A new pair, both ends down: `ifname` in the namespace `ns`, `vethXXXXXXX` in `host`. FileExistsError when `ifname` is taken.

    The outer end is a port of `bridge` from the first moment, so that what a killed daemon leaves behind is found there.
    """
    for attempt in range(_NAME_ATTEMPTS):
        name = f"veth{os.urandom(4).hex()[:7]}"
        requests = [wire.add_veth(name, peer=ifname, peer_ns=ns, mtu=mtu, master=bridge), wire.get_link(name=name)]
        answers, failures = host.exchange(requests)
        if not failures:
            link = links.link(answers[0].payload)
            return Pair(name, link.index, link.parent)
        taken = failures[0].errno == errno.EEXIST if 0 in failures else False
        # The outer name exists when it can be looked up; else it is the inner one, and another attempt is no use.
        if not (taken and 1 not in failures) or attempt == _NAME_ATTEMPTS - 1:
            break
    raise failure(requests[min(failures)], failures[min(failures)])


def quiet_ipv6(ifname: str) -> None:
    """Within the container's namespace: a link that a bridge will get. No IPv6 until it is given an address, and never a route because
    some neighbour on the bridge announces one."""
    _sysctl(ifname, "disable_ipv6", b"1")
    _sysctl(ifname, "accept_ra", b"0")


def allow_ipv6(ifname: str, *, allowed: bool = True) -> None:
    """Within the container's namespace: IPv6 on a link, on or off."""
    _sysctl(ifname, "disable_ipv6", b"0" if allowed else b"1")


def _sysctl(ifname: str, key: str, value: bytes) -> None:
    wire.check_name(ifname)
    try:
        fd = os.open(f"/proc/sys/net/ipv6/conf/{ifname}/{key}", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # a kernel without IPv6
    try:
        os.write(fd, value)
    finally:
        os.close(fd)


def outer_requests(index: int, port: Port, *, mtu: int = 0) -> list[Request]:
    """Makes the outer end a port, up. Its flags are set before any frame can pass. No IPv6 address: the bridge has those.

    A bridge leaves frames to link-local groups to the port that they came in on. There the host would take packets from a link that no
    rule knows (router advertisements among them), and the bridge would believe their senders. So all of them go through the bridge.
    """
    if not port.bridge:
        return [wire.set_link(index, master=0, mtu=mtu, up=True, link_local=False)]
    return [
        wire.set_link(index, master=port.bridge, mtu=mtu, link_local=False, group=port.group),
        wire.set_port(index, hairpin=port.hairpin, isolated=port.isolated, groups=wire.EVERY_GROUP),
        wire.set_link(index, up=True),
    ]


def needs_ipv6(endpoint: Endpoint) -> bool:
    """Whether an address of the endpoint is an IPv6 one."""
    return bool(endpoint.ipv6) or any(":" in address for address in endpoint.link_local)


def configure(
    inside: Rtnetlink,
    ns: int,
    index: int,
    endpoint: Endpoint,
    *,
    ifname: str,
    rename: str = "",
    mtu: int = 0,
    default_route: bool = True,
) -> None:
    """The inner end gets addresses, settings and routes, and is up; one system call where the endpoint has no sysctls.

    `inside`: a socket in the namespace `ns`; `ifname`: the link's name, `rename`: the new one. OSError; KnarrError for a sysctl.
    Sysctls come between addresses and the link's going up: one may take addresses away, and some count from then on only (as in Docker).
    """
    if not endpoint.sysctls:
        inside.batch(inner_requests(index, endpoint, rename=rename, mtu=mtu, default_route=default_route))
        return
    inside.batch([wire.set_link(index, up=False), *inner_requests(index, endpoint, rename=rename, mtu=mtu, default_route=False, up=None)])
    with namespaces.inside(ns):
        for name, value in endpoint.sysctls.items():
            _write(endpointoptions.path(name, rename or ifname), value)
    inside.batch([wire.set_link(index, up=True), *(default_routes(index, endpoint) if default_route else [])])


def _write(path: str, value: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise KnarrError(f"{path} is not a sysctl file", hint="a sysctl of an interface that this kernel has not got") from error
    except OSError as error:
        raise KnarrError(f"unable to write to '{path}': {error.strerror}", hint=f"the value was {value!r}") from error


def inner_requests(
    index: int, endpoint: Endpoint, *, rename: str = "", mtu: int = 0, default_route: bool = True, up: bool | None = True
) -> list[Request]:
    """Gives the inner end its addresses and routes, up (`up` None: as it was). `rename`: its new name, for which it goes down for a
    moment."""
    requests = [wire.set_link(index, up=False)] if rename else []
    requests.append(wire.set_link(index, name=rename, mac=endpoint.mac, mtu=mtu, up=up))
    if endpoint.ipv4:
        requests.append(wire.add_address(index, endpoint.ipv4, endpoint.ipv4_prefix))
    if endpoint.ipv6:
        requests.append(wire.add_address(index, endpoint.ipv6, endpoint.ipv6_prefix))
    for address in endpoint.link_local:
        requests.append(wire.add_address(index, address, _LINK_LOCAL[":" in address]))
    return requests + (default_routes(index, endpoint) if default_route else [])


def default_routes(index: int, endpoint: Endpoint, *, replace: bool = False) -> list[Request]:
    """Default routes by the endpoint's gateways; none for an address family without one."""
    requests = []
    if endpoint.ipv4_gateway:
        requests.append(wire.add_route("0.0.0.0", 0, index=index, gateway=endpoint.ipv4_gateway, replace=replace))
    if endpoint.ipv6_gateway:
        requests.append(wire.add_route("::", 0, index=index, gateway=endpoint.ipv6_gateway, replace=replace))
    return requests


def free_name(found: list[Link], prefix: str = "eth") -> str:
    """The first of eth0, eth1, ... that no link of `found` has."""
    taken = {link.name for link in found}
    return next(name for number in range(len(taken) + 1) if (name := f"{prefix}{number}") not in taken)
