"""Network namespaces of containers: prepared ahead of a start, configured by it, changed and read while the container runs.

A prepared namespace is held by nothing but descriptors. When they and the container's processes are gone, the kernel removes it with its
links; nothing has to be cleaned up by a process that may have been killed. Everything here blocks for a moment and may run in any
thread; one rtnetlink socket serves one thread at a time.
"""

from __future__ import annotations

import errno
import os
from typing import Final, NamedTuple

from engine.linux import namespaces
from engine.linux.rtnetlink import Rtnetlink
from engine.network import nameserver, pair
from engine.network.nameserver import RESOLVER_ADDRESS, RESOLVER_PORT
from engine.network.pair import DEFAULT_MTU, Pair, Port
from engine.spec.network import Endpoint
from engine.wire import rtnetlink as wire
from engine.wire.links import Address, Link, Route

__all__ = [
    "BARE",
    "BRIDGE",
    "NAMED",
    "RESOLVER_ADDRESS",
    "RESOLVER_PORT",
    "Observed",
    "Pair",
    "Port",
    "Prepared",
    "attach",
    "configure",
    "detach",
    "observe",
    "prepare",
    "release",
    "set_gateways",
]

BARE: Final = "bare"
BRIDGE: Final = "bridge"
NAMED: Final = "named"

_LOOPBACK: Final = 1  # the index of `lo` in every namespace
_FIRST_NAME: Final = "eth0"
# What every container has: ports below 1024 and ping without privileges. dockerd sets them too.
_SYSCTLS: Final = (
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", b"0"),
    ("/proc/sys/net/ipv4/ping_group_range", b"0 2147483647"),
)


class Prepared:
    """A network namespace for a container that does not exist yet. `close` gives all of it back.

    `kind`: BARE (`lo` is up), BRIDGE (and a pair, its inner end called eth0), NAMED (and the name server's sockets). `ns`: its
    descriptor; `netlink`: a socket inside; `pair`: None for BARE; `udp`, `tcp`: the name server's descriptors, -1 for none;
    `port`: what the outer end is a port of already; `mtu`: of the pair.
    """

    __slots__ = ("kind", "mtu", "netlink", "ns", "pair", "port", "tcp", "udp")

    def __init__(self, kind: str, ns: int, netlink: Rtnetlink, mtu: int) -> None:
        self.kind = kind
        self.ns = ns
        self.netlink = netlink
        self.mtu = mtu
        self.pair: Pair | None = None
        self.port = Port()
        self.udp = self.tcp = -1

    def close(self) -> None:
        """Close all descriptors; without a container in it the namespace goes, with both ends of the pair. May be called twice."""
        self.netlink.close()
        for fd in (self.udp, self.tcp, self.ns):
            if fd >= 0:
                os.close(fd)
        self.udp = self.tcp = self.ns = -1


def prepare(kind: str, host: Rtnetlink, *, mtu: int = DEFAULT_MTU, port: Port = Port()) -> Prepared:  # noqa: B008 - immutable
    """A namespace of `kind`, its links up already: carrier and queues take the kernel a moment that a start need not wait for.

    `host`: where the outer end is; `port`: the bridge it is put in at once, which most of the cost of `configure` is. Costs 1.5 ms.
    OSError when the kernel refuses something, NftablesError for NAMED when it has no nftables.
    """
    with namespaces.inside_new() as ns:
        prepared = Prepared(kind, ns, Rtnetlink(), mtu)
        try:
            for path, value in _SYSCTLS:
                _write(path, value)
            requests = [wire.set_link(_LOOPBACK, up=True)]
            if kind != BARE:
                prepared.pair = pair.create(host, ns, _FIRST_NAME, mtu, port.bridge)
                pair.quiet_ipv6(_FIRST_NAME)
                host.batch(pair.outer_requests(prepared.pair.outer_index, port))
                prepared.port = port
                requests.append(wire.set_link(prepared.pair.inner_index, up=True))
            prepared.netlink.batch(requests)
            if kind == NAMED:
                prepared.udp, prepared.tcp = nameserver.open_here()
        except BaseException:
            prepared.ns = -1  # closed by inside_new
            prepared.close()
            raise
    return prepared


def configure(
    prepared: Prepared,
    endpoint: Endpoint,
    host: Rtnetlink,
    *,
    port: Port,
    mtu: int = DEFAULT_MTU,
    default_route: bool = True,
) -> None:
    """Make the prepared pair `endpoint`: its `ifname` ("" for eth0), MAC, addresses and gateways inside, a port of the bridge outside.

    One system call inside and, where `prepare` did not know the port, one outside. `default_route` False: its gateways are not
    used. OSError, KnarrError (of its sysctls), after which the namespace is to be closed.
    """
    ends = prepared.pair
    if ends is None:
        raise ValueError(f"a namespace of kind {prepared.kind} has no pair")
    new_mtu = mtu if mtu != prepared.mtu else 0
    if port != prepared.port or new_mtu:
        host.batch(pair.outer_requests(ends.outer_index, port, mtu=new_mtu))
    if endpoint.ipv6 or (endpoint.link_local and pair.needs_ipv6(endpoint)):
        with namespaces.inside(prepared.ns):
            pair.allow_ipv6(_FIRST_NAME)
    rename = endpoint.ifname if endpoint.ifname not in ("", _FIRST_NAME) else ""
    pair.configure(
        prepared.netlink, prepared.ns, ends.inner_index, endpoint,
        ifname=_FIRST_NAME, rename=rename, mtu=new_mtu, default_route=default_route,
    )  # fmt: skip


def attach(
    ns: int, endpoint: Endpoint, host: Rtnetlink, *, port: Port, mtu: int = DEFAULT_MTU, default_route: bool = False
) -> tuple[str, str]:
    """Connect a running container's namespace: (name inside, name of the outer end), which go into the endpoint's `ifname` and `link`.

    `endpoint.ifname` "": the first free ethN. OSError, KnarrError, and nothing is left; FileExistsError when the container has a link of
    that name.
    """
    with Rtnetlink(ns) as inside:
        ifname = endpoint.ifname or pair.free_name(inside.links())
        ends = pair.create(host, ns, ifname, mtu, port.bridge)
        try:
            with namespaces.inside(ns):
                pair.quiet_ipv6(ifname)
                if pair.needs_ipv6(endpoint):
                    pair.allow_ipv6(ifname)
            host.batch(pair.outer_requests(ends.outer_index, port))
            pair.configure(inside, ns, ends.inner_index, endpoint, ifname=ifname, default_route=default_route)
        except BaseException:
            host.batch([wire.delete_link(index=ends.outer_index, ignore=(errno.ENODEV,))])
            raise
    return ifname, ends.outer


def detach(endpoint: Endpoint, host: Rtnetlink, ns: int = -1) -> None:
    """Disconnect: remove the endpoint's link, both ends. Nothing happens when it is gone.

    Takes some 20 ms of waiting for the kernel. `ns`: the container's namespace, needed for an endpoint without an outer end (macvlan).
    """
    if endpoint.link:
        link = host.link(name=endpoint.link)
        if link is not None and link.kind == "veth":
            host.batch([wire.delete_link(index=link.index, ignore=(errno.ENODEV,))])
        return
    if endpoint.ifname and ns >= 0:
        with Rtnetlink(ns) as inside:
            link = inside.link(name=endpoint.ifname)
            if link is not None and link.kind == "macvlan":
                inside.batch([wire.delete_link(index=link.index, ignore=(errno.ENODEV,))])


def release(link: str, host: Rtnetlink) -> None:
    """Take an ended container's outer end out of its bridge and down, which is quick, before its namespace is let go.

    The kernel removes the pair later, in the background. What is removed while it is a port that is up costs the host more, and keeps
    others from changing links meanwhile. Nothing happens when it is gone.
    """
    host.batch([wire.set_link(0, name=link, master=0, up=False)._replace(ignore=(errno.ENODEV,))])


def set_gateways(ns: int, ipv4: Endpoint | None, ipv6: Endpoint | None) -> None:
    """Move the default routes of a running container to the gateways of these endpoints (their `ifname`s); None: no default route.

    Other routes stay. OSError, ENODEV when an endpoint's link is gone.
    """
    with Rtnetlink(ns) as inside:
        requests = []
        for endpoint, gateway, everything in ((ipv4, ipv4 and ipv4.ipv4_gateway, "0.0.0.0"), (ipv6, ipv6 and ipv6.ipv6_gateway, "::")):
            if endpoint is None or not gateway:
                requests.append(wire.delete_route(everything, 0, ignore=(errno.ESRCH, errno.ENOENT)))
                continue
            link = inside.link(name=endpoint.ifname)
            if link is None:
                raise OSError(errno.ENODEV, f"moving the default route to {gateway}: the container has no link {endpoint.ifname}")
            requests.append(wire.add_route(everything, 0, index=link.index, gateway=gateway, replace=True))
        inside.batch(requests)


class Observed(NamedTuple):
    """What a namespace has."""

    links: list[Link]
    addresses: list[Address]
    routes: list[Route]


def observe(ns: int) -> Observed:
    """Read a namespace's links, addresses and main routing tables."""
    with Rtnetlink(ns) as inside:
        return Observed(inside.links(), inside.addresses(), inside.routes())


def _write(path: str, value: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value)
    finally:
        os.close(fd)
