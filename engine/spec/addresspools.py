"""The pools that networks without a given subnet get theirs from. Pure data and its defaults."""

from __future__ import annotations

import hashlib

import msgspec


class AddressPool(msgspec.Struct, frozen=True):
    """`base`, a network in CIDR form, is cut into subnets of prefix length `size`: dockerd's member of `default-address-pools`."""

    base: str
    size: int


# dockerd's built-in pools: 15 networks of 65 534 addresses, then 16 of 4094. Source: dockerd reference, "default-address-pools".
DEFAULT_IPV4: tuple[AddressPool, ...] = (
    AddressPool("172.17.0.0/16", 16),
    AddressPool("172.18.0.0/16", 16),
    AddressPool("172.19.0.0/16", 16),
    AddressPool("172.20.0.0/14", 16),
    AddressPool("172.24.0.0/14", 16),
    AddressPool("172.28.0.0/14", 16),
    AddressPool("192.168.0.0/16", 20),
)


def unique_local(host_id: str) -> AddressPool:
    """65 536 subnets of /64 below a /48 of fd00::/8 whose 40 random bits (RFC 4193) come from `host_id`, so they are the same always."""
    number = int.from_bytes(hashlib.sha256(host_id.encode()).digest()[3:8], "big")
    digits = f"fd{number:010x}"
    return AddressPool(f"{digits[:4]}:{digits[4:8]}:{digits[8:12]}::/48", 64)
