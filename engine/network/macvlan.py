"""Macvlan networks: containers' links with MAC addresses of their own on a link of the host, without a bridge.

The parent is a link of the host, an 802.1q link `eth0.50` that is made where it is missing, or, for a network without a parent, a dummy
link. Messages are dockerd's.
"""

from __future__ import annotations

import errno
from typing import Final

import msgspec

from engine.errors import KnarrError
from engine.linux import namespaces
from engine.linux.rtnetlink import Rtnetlink
from engine.network import pair
from engine.spec.network import Endpoint
from engine.spec.networkoptions import split_vlan
from engine.wire import links
from engine.wire import rtnetlink as wire
from engine.wire.links import Link

DEFAULT_MODE: Final = "bridge"


class Parent(msgspec.Struct, frozen=True):
    """`created`: it was made for the network and goes with it."""

    index: int
    created: bool


def dummy_name(network_id: str) -> str:
    """The name of the parent of a network that was given none."""
    return f"dm-{network_id[:12]}"


def ensure_parent(parent: str, network_id: str, host: Rtnetlink) -> Parent:
    """The parent is there and, if it was made here, up. `parent` "": a dummy link. KnarrError when there is none and none can be made."""
    name = parent or dummy_name(network_id)
    try:
        link = host.link(name=name)
    except ValueError as error:
        raise KnarrError(f"-o parent interface was not found on the host: {parent}") from error
    if link is not None:
        if link.flags & wire.IFF_LOOPBACK:
            raise KnarrError("loopback interface is not a valid macvlan parent link")
        return Parent(link.index, created=_is_ours(link, parent))
    return _make_vlan(parent, host) if parent else _make_dummy(name, host)


def _is_ours(link: Link, parent: str) -> bool:
    """Whether a parent that is there is one that a daemon made: a dummy of our name. Links `eth0.50` may be the administrator's."""
    return not parent and link.kind == "dummy"


def _make_vlan(parent: str, host: Rtnetlink) -> Parent:
    if "." not in parent:
        raise KnarrError(f"-o parent interface was not found on the host: {parent}")
    base, vlan = split_vlan(parent)
    below = host.link(name=base)
    if below is None:
        raise KnarrError(f"-o parent interface was not found on the host: {base}")
    try:
        host.batch([wire.add_vlan(parent, parent=below.index, vlan=vlan), wire.set_link(0, name=parent, up=True)])
    except OSError as error:
        hint = "this kernel has no 802.1q (CONFIG_VLAN_8021Q)" if error.errno == errno.EOPNOTSUPP else ""
        raise KnarrError(f"failed to create {parent} vlan link: {error.strerror}", hint=hint) from error
    return Parent(_index(parent, host), created=True)


def _make_dummy(name: str, host: Rtnetlink) -> Parent:
    try:
        host.batch([wire.add_dummy(name), wire.set_link(0, name=name, up=True)])
    except OSError as error:
        hint = "this kernel has no dummy links (CONFIG_DUMMY); give the network a parent with -o parent=LINK" * (
            error.errno == errno.EOPNOTSUPP
        )
        raise KnarrError(f"failed to create the parent {name} of a macvlan network: {error.strerror}", hint=hint) from error
    return Parent(_index(name, host), created=True)


def _index(name: str, host: Rtnetlink) -> int:
    link = host.link(name=name)
    if link is None:
        raise OSError(errno.ENODEV, f"the link {name} is gone")
    return link.index


def remove_parent(name: str, host: Rtnetlink) -> None:
    """Remove a parent that `ensure_parent` created; nothing happens when it is gone. A link that is neither VLAN nor dummy stays."""
    link = host.link(name=name)
    if link is not None and link.kind in ("vlan", "dummy"):
        host.batch([wire.delete_link(index=link.index, ignore=(errno.ENODEV,))])


def connect(
    ns: int,
    inside: Rtnetlink,
    endpoint: Endpoint,
    host: Rtnetlink,
    *,
    parent: int,
    mode: str = DEFAULT_MODE,
    mtu: int = 0,
    default_route: bool = True,
) -> str:
    """A macvlan link in the namespace `ns` with the endpoint's addresses and routes, up; its name inside. `inside`: a socket in there.

    For a start (the namespace is a BARE one) and for a running container alike. `endpoint.ifname` "": the first free ethN. `parent`: index;
    `mtu` 0: the parent's. Without an IPv6 address the link has no IPv6; with one it also listens to the network's routers, which are
    real ones here. OSError, KnarrError, and nothing is left. `sandbox.detach` is the way back.
    """
    ifname = endpoint.ifname or pair.free_name(inside.links())
    host.batch([wire.add_macvlan(ifname, parent=parent, mode=mode, ns=ns, mac=endpoint.mac, mtu=mtu)])
    index = links.link(inside.batch([wire.get_link(name=ifname)])[0].payload).index
    try:
        if not pair.needs_ipv6(endpoint):
            with namespaces.inside(ns):
                pair.allow_ipv6(ifname, allowed=False)
        pair.configure(inside, ns, index, endpoint, ifname=ifname, default_route=default_route)
    except BaseException:
        inside.batch([wire.delete_link(index=index, ignore=(errno.ENODEV,))])
        raise
    return ifname
