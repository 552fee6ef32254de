"""Addresses: one allocator for each subnet, the choice of a subnet for a new network, and addresses that follow from others. Pure.

`take` and `release` are on the path of a container's start: they work on integers, and cost the same however many addresses are taken.
"""

from __future__ import annotations

import heapq
import os
import socket
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from engine.errors import Forbidden, InvalidParameter, KnarrError
from engine.spec.addresspools import AddressPool
from engine.spec.network import Pool
from engine.spec.networkoptions import DEFAULT_GATEWAY_IPV4, DEFAULT_GATEWAY_IPV6


class Allocator:
    """Which addresses of one subnet are taken. Never given by itself: the network's and (IPv4) the broadcast address, unless the subnet
    is a /31 or /32; the gateway; the auxiliary addresses. `network` is "NAME (ID)" for the message of exhaustion.

    Raises InvalidParameter for a pool whose subnet or range is no network.
    """

    __slots__ = ("_base", "_family", "_first", "_freed", "_last", "_network", "_next", "_queued", "_reserved", "_size", "_taken", "prefix")

    def __init__(self, pool: Pool, network: str = "") -> None:
        subnet = _network(pool.subnet)
        part = _network(pool.ip_range) if pool.ip_range else subnet
        self._family = socket.AF_INET if subnet.version == 4 else socket.AF_INET6
        self._size = 4 if subnet.version == 4 else 16
        self._network = network
        self.prefix = subnet.prefixlen
        self._base = int(subnet.network_address)
        self._first, self._last = int(part.network_address), int(part.broadcast_address)
        reserved = set()
        if subnet.version == 6 or subnet.num_addresses > 2:
            reserved.add(self._base)
        if subnet.version == 4 and subnet.num_addresses > 2:
            reserved.add(int(subnet.broadcast_address))
        reserved |= {int(ip_address(text)) for text in (pool.gateway, *pool.aux.values()) if text}
        self._reserved = frozenset(reserved)
        self._taken = reserved
        # Every free address of the range is either at `_next` or after it, or in the heap `_freed`, whose elements are also in `_queued`
        # (an address that was taken by its name stays there until it comes up, so that the heap never holds one twice).
        self._next = self._first
        self._freed: list[int] = []
        self._queued: set[int] = set()

    @property
    def version(self) -> int:
        """4 or 6."""
        return 4 if self._size == 4 else 6

    @property
    def in_use(self) -> int:
        """How many addresses are taken, with those that are never given."""
        return len(self._taken)

    @property
    def available(self) -> int:
        """How many `take()` could still give."""
        return self._last - self._first + 1 - sum(self._first <= address <= self._last for address in self._taken)

    def take(self, wanted: str = "") -> str:
        """The lowest free address of the range, or `wanted`, which may be anywhere in the subnet; in its shortest form, without prefix.

        Raises InvalidParameter (not an address, not of this subnet), Forbidden (it is taken), KnarrError (none left).
        """
        taken = self._taken
        if wanted:
            address = self._number(wanted)
            if not self._contains(address):
                raise InvalidParameter(f"invalid address {wanted}: It does not belong to any of this network's subnets")
            if address in taken:
                raise Forbidden("Address already in use", hint=f"{wanted} of network {self._network}" if self._network else "")
            taken.add(address)
            return self._text(address)
        freed = self._freed
        while freed:
            address = heapq.heappop(freed)
            self._queued.discard(address)
            if address not in taken:
                taken.add(address)
                return self._text(address)
        address, last = self._next, self._last
        while address <= last:
            if address not in taken:
                self._next = address + 1
                taken.add(address)
                return self._text(address)
            address += 1
        self._next = address
        raise KnarrError(f"no available IPv{self.version} addresses on this network's address pools: {self._network}")

    def release(self, address: str) -> None:
        """Give an address back. What was not taken, or is never given, stays as it is. Raises InvalidParameter for no address."""
        number = self._number(address)
        if number not in self._taken or number in self._reserved:
            return
        self._taken.remove(number)
        if self._first <= number < self._next and number not in self._queued:
            self._queued.add(number)
            heapq.heappush(self._freed, number)

    def adopt(self, address: str) -> bool:
        """Count an address as taken that a running container has; False when it was taken already or is not of this subnet."""
        number = self._number(address)
        if number in self._taken or not self._contains(number):
            return False
        self._taken.add(number)
        return True

    def contains(self, address: str) -> bool:
        """Whether the address is of this subnet; False for one of the other family and for what is none."""
        try:
            return self._contains(self._number(address))
        except InvalidParameter:
            return False

    def _contains(self, address: int) -> bool:
        return (address ^ self._base) >> (self._size * 8 - self.prefix) == 0

    def _number(self, text: str) -> int:
        try:
            return int.from_bytes(socket.inet_pton(self._family, text), "big")
        except (OSError, ValueError):
            raise InvalidParameter(f"invalid address {text}: It does not belong to any of this network's subnets")

    def _text(self, address: int) -> str:
        return socket.inet_ntop(self._family, address.to_bytes(self._size, "big"))


def choose(pools: Sequence[AddressPool], in_use: Iterable[str], version: int = 4) -> str:
    """The first subnet of `pools` (those of the IP `version`) that overlaps nothing of `in_use`: subnets of networks, host routes.

    A default route (prefix length 0) in `in_use` counts for nothing. Raises InvalidParameter when there is none.
    """
    used = []
    for text in in_use:
        subnet = _network(text)
        if subnet.version == version and subnet.prefixlen:
            used.append((int(subnet.network_address), int(subnet.broadcast_address)))
    used.sort()
    for pool in pools:
        base = _network(pool.base)
        if base.version != version:
            continue
        step = 1 << (base.max_prefixlen - pool.size)
        candidate, end = int(base.network_address), int(base.broadcast_address)
        for low, high in used:  # sorted by their beginnings: what ends before the candidate cannot overlap a later one either
            if high < candidate:
                continue
            if low > candidate + step - 1:
                break
            candidate = (high // step + 1) * step
        if candidate + step - 1 <= end:
            family, size = (socket.AF_INET, 4) if version == 4 else (socket.AF_INET6, 16)
            return f"{socket.inet_ntop(family, candidate.to_bytes(size, 'big'))}/{pool.size}"
    raise InvalidParameter(
        "all predefined address pools have been fully subnetted",
        hint="remove unused networks, give --subnet, or set default-address-pools in daemon.json",
    )


def overlaps(one: str, other: str) -> bool:
    """Whether two subnets share an address; False for two of different families."""
    a, b = _network(one), _network(other)
    return a.version == b.version and a.overlaps(b)


def mac_of(ipv4: str) -> str:
    """The link address that belongs to an IPv4 address: 02:42 (local, unicast) and its four bytes."""
    a, b, c, d = socket.inet_pton(socket.AF_INET, ipv4)
    return f"02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}"


def random_mac() -> str:
    """A link address for an endpoint without IPv4: of the same kind as `mac_of` gives, with four random bytes."""
    return "02:42:" + os.urandom(4).hex(":")


def gateway_of(pool: Pool) -> str:
    """The containers' default gateway: the auxiliary address that says so (dockerd's `default-gateway`), else the subnet's gateway."""
    return pool.aux.get(DEFAULT_GATEWAY_IPV4) or pool.aux.get(DEFAULT_GATEWAY_IPV6) or pool.gateway


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        raise InvalidParameter(f"invalid subnet {text}: invalid CIDR block notation")
