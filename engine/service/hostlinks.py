"""The host's links of networks, for `service.networks`: whether they are there, what they are called by their neighbours, their removal."""

from __future__ import annotations

import socket

from engine.linux.rtnetlink import Rtnetlink
from engine.network import bridge, macvlan
from engine.network.ipam import mac_of
from engine.spec.network import NetworkRecord


def bridge_mac(record: NetworkRecord, gateways: list[tuple[str, int]]) -> str:
    """The same whenever the bridge is made. One without an address of its own has the lowest of its ports', which changes as those come and
    go, and containers that know the old one reach nothing for some seconds."""
    ipv4 = next((address for address, _ in gateways if ":" not in address), "")
    return mac_of(ipv4) if ipv4 else f"02:42:{bytes.fromhex(record.id[:8]).hex(':')}"


def is_there(link: str, index: int) -> bool:
    """Whether the link of this name is the one that was made or found; False for index 0. Some microseconds: every start asks."""
    try:
        return index != 0 and socket.if_nametoindex(link) == index
    except OSError:
        return False


def hosts_subnets(without: list[str]) -> list[str]:
    """May run in a worker thread. Subnets that the host uses, but for those of the links named, in CIDR form. Raises OSError."""
    with Rtnetlink() as host:
        return bridge.hosts_subnets(host, without=without)


def remove_link(record: NetworkRecord) -> None:
    """May run in a worker thread. `remove` with a socket of its own."""
    with Rtnetlink() as host:
        remove(record, host)


def remove(record: NetworkRecord, host: Rtnetlink) -> None:
    """Remove the link that was made for a network; nothing happens when it is gone, or none of its kind. Raises OSError."""
    if record.driver == "bridge":
        bridge.remove(record.link, host)
    elif record.driver == "macvlan":
        macvlan.remove_parent(record.link, host)


def addresses(link: str) -> list[str] | None:
    """The addresses of a host link in CIDR form, None when there is no such link."""
    with Rtnetlink() as host:
        found = host.link(name=link)
        return None if found is None else [f"{one.address}/{one.prefix}" for one in host.addresses(found.index)]
