"""The allocator against a model that searches from the beginning, and the choice of subnets against one that tries each."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvalidParameter, KnarrError
from engine.network import ipam
from engine.spec.addresspools import AddressPool
from engine.spec.network import Pool

_STEPS = st.lists(st.tuples(st.sampled_from(["take", "want", "release", "adopt"]), st.integers(0, 31)), max_size=80)


@settings(max_examples=150, deadline=None)
@given(_STEPS, st.sampled_from(["10.0.0.0", "2001:db8::", "255.255.255.224"]), st.integers(27, 31), st.booleans())
def test_the_lowest_free_address_whatever_happened_before(steps: list[tuple[str, int]], base: str, prefix: int, gateway: bool) -> None:
    six = ":" in base
    subnet = ip_network(f"{base}/{123 if six else 27}")
    part = ip_network(f"{base}/{prefix + (96 if six else 0)}")
    first = int(subnet.network_address)
    pool = Pool(subnet=str(subnet), ip_range=str(part), gateway=str(subnet[1]) if gateway else "")
    allocator = ipam.Allocator(pool)
    fixed = {first} | ({first + 31} if not six else set()) | ({first + 1} if gateway else set())
    taken = set(fixed)
    for step, offset in steps:
        address = str(ip_address(first + offset)) if not six else str(subnet[offset])
        number = first + offset
        if step == "take":
            free = [n for n in range(int(part.network_address), int(part.broadcast_address) + 1) if n not in taken]
            if not free:
                with pytest.raises(KnarrError, match="no available"):
                    allocator.take()
                continue
            assert int(ip_address(allocator.take())) == free[0]
            taken.add(free[0])
        elif step == "release":
            allocator.release(address)
            taken -= {number} - fixed
        elif step == "adopt":
            assert allocator.adopt(address) == (number not in taken)
            taken.add(number)
        elif number in taken:
            with pytest.raises(KnarrError, match="already in use"):
                allocator.take(address)
        else:
            assert allocator.take(address) == address
            taken.add(number)
        assert allocator.in_use == len(taken)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 255), st.integers(20, 32)), max_size=12), st.integers(21, 26))
def test_the_first_subnet_that_overlaps_nothing(used: list[tuple[int, int]], size: int) -> None:
    in_use = [str(ip_network(f"10.0.{third // 16}.{third}/{prefix}", strict=False)) for third, prefix in used]
    pools = [AddressPool("10.0.0.0/20", size), AddressPool("10.9.0.0/26", 26)]
    every = [subnet for pool in pools for subnet in ip_network(pool.base).subnets(new_prefix=pool.size)]
    free = [str(subnet) for subnet in every if not any(subnet.overlaps(ip_network(other)) for other in in_use)]
    assert ipam.choose(pools, in_use) == free[0]
    with pytest.raises(InvalidParameter, match="fully subnetted"):
        ipam.choose(pools[:1], [*in_use, "10.0.0.0/8"])


@given(st.integers(0, 2**32 - 1))
def test_every_ipv4_address_has_a_local_unicast_mac(number: int) -> None:
    mac = bytes.fromhex(ipam.mac_of(str(ip_address(number))).replace(":", ""))
    assert mac[0] & 3 == 2 and int.from_bytes(mac[2:], "big") == number
