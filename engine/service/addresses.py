"""Addresses of endpoints: taken from a network's pools and given back. Nothing else happens to an endpoint here."""

from __future__ import annotations

from collections.abc import Sequence

from engine.errors import Forbidden, InvalidParameter, KnarrError
from engine.network import ipam
from engine.service.networks import Network
from engine.spec.endpointoptions import without_ipv6
from engine.spec.network import Endpoint, Pool


def take(network: Network, endpoint: Endpoint, ipv4: str, ipv6: str, mac: str) -> None:
    """Give an endpoint an address of each family that the network has: the wanted ones, or free ones for "". All or nothing. One whose
    sysctls switch IPv6 off gets none of that.

    Raises InvalidParameter, Forbidden, KnarrError (none left)."""
    try:
        _take(network, endpoint, ipv4, ipv6)
    except BaseException:
        give_back(network, endpoint)
        raise
    # A bridge's neighbours may still know the address from its last owner: the same address has the same MAC.
    endpoint.mac = mac or (ipam.mac_of(endpoint.ipv4) if endpoint.ipv4 else ipam.random_mac())


def _take(network: Network, endpoint: Endpoint, ipv4: str, ipv6: str) -> None:
    for version, allocators, wanted in ((4, network.v4, ipv4), (6, network.v6, ipv6)):
        if not allocators:
            if wanted:
                raise InvalidParameter(f"invalid address {wanted}: It does not belong to any of this network's subnets")
            continue
        if version == 6 and endpoint.sysctls and without_ipv6(endpoint.sysctls):
            continue
        pool, prefix, address = _one_of(allocators, wanted)
        gateway = "" if network.record.internal else ipam.gateway_of(pool)
        if version == 4:
            endpoint.ipv4, endpoint.ipv4_prefix, endpoint.ipv4_gateway = address, prefix, gateway
        else:
            endpoint.ipv6, endpoint.ipv6_prefix, endpoint.ipv6_gateway = address, prefix, gateway


def link_local(network: Network, wanted: Sequence[str]) -> list[str]:
    """The link-local addresses `wanted`, which nobody gives: each is of one container of a network. Raises Forbidden."""
    taken = {address for _, other in network.endpoints.values() for address in other.link_local}
    for address in wanted:
        if address in taken:
            raise Forbidden("Address already in use", hint=f"{address} of network {network.name} ({network.id})")
    return list(wanted)


def give_back(network: Network, endpoint: Endpoint) -> None:
    """The addresses of an endpoint that is no more are free."""
    for address, allocators in ((endpoint.ipv4, network.v4), (endpoint.ipv6, network.v6)):
        for _, allocator in allocators:
            if address and allocator.contains(address):
                allocator.release(address)


def adopt(network: Network, endpoint: Endpoint) -> bool:
    """Count a running container's addresses as taken; False when one is another's or of no pool."""
    mine = True
    for address, allocators in ((endpoint.ipv4, network.v4), (endpoint.ipv6, network.v6)):
        if address:
            mine = any(allocator.adopt(address) for _, allocator in allocators) and mine
    return mine


def _one_of(allocators: list[tuple[Pool, ipam.Allocator]], wanted: str) -> tuple[Pool, int, str]:
    """Pool, prefix length and a free address, of the first pool that has one. Raises KnarrError, InvalidParameter."""
    if wanted:
        allocators = [pair for pair in allocators if pair[1].contains(wanted)] or allocators[:1]
    for number, (pool, allocator) in enumerate(allocators, 1):
        try:
            return pool, allocator.prefix, allocator.take(wanted)
        except KnarrError:
            if number == len(allocators):
                raise
    raise AssertionError("no allocators")
