"""Addresses of networks: which are given, in which order, and what Docker's users are told when one cannot be."""

from __future__ import annotations

import pytest

from engine.errors import Forbidden, InvalidParameter, KnarrError
from engine.network import ipam
from engine.network.ipam import Allocator
from engine.spec import addresspools
from engine.spec.addresspools import AddressPool
from engine.spec.network import Pool


def allocator(subnet: str, ip_range: str = "", gateway: str = "", **aux: str) -> Allocator:
    return Allocator(Pool(subnet=subnet, ip_range=ip_range, gateway=gateway, aux=aux), "front (abc)")


def test_the_lowest_free_address_is_given() -> None:
    free = allocator("172.18.0.0/16", gateway="172.18.0.1")
    assert [free.take() for _ in range(3)] == ["172.18.0.2", "172.18.0.3", "172.18.0.4"]
    free.release("172.18.0.3")
    free.release("172.18.0.2")
    assert [free.take() for _ in range(3)] == ["172.18.0.2", "172.18.0.3", "172.18.0.5"]


def test_what_is_never_given() -> None:
    free = allocator("10.0.0.0/29", gateway="10.0.0.1", printer="10.0.0.3")
    assert [free.take() for _ in range(4)] == ["10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"]
    with pytest.raises(KnarrError, match=r"^no available IPv4 addresses on this network's address pools: front \(abc\)$") as caught:
        free.take()
    assert caught.value.status == 500
    for address in ("10.0.0.0", "10.0.0.7", "10.0.0.1", "10.0.0.3"):
        free.release(address)
        with pytest.raises(Forbidden, match="Address already in use"):
            free.take(address)


def test_a_subnet_of_two_addresses_has_no_broadcast_address() -> None:
    free = allocator("10.0.0.0/31", gateway="10.0.0.0")
    assert free.take() == "10.0.0.1"
    assert allocator("10.0.0.9/32").take() == "10.0.0.9"


def test_ipv6_keeps_its_last_address_and_not_its_first() -> None:
    free = allocator("2001:DB8::/126", gateway="2001:db8::1")
    assert [free.take(), free.take()] == ["2001:db8::2", "2001:db8::3"]
    with pytest.raises(KnarrError, match="no available IPv6 addresses"):
        free.take()


def test_the_range_is_for_chosen_addresses_the_subnet_for_wanted_ones() -> None:
    free = allocator("10.1.0.0/16", "10.1.7.0/30", "10.1.0.1")
    assert free.take("10.1.200.5") == "10.1.200.5"
    assert [free.take() for _ in range(4)] == [f"10.1.7.{n}" for n in range(4)]
    free.release("10.1.200.5")
    with pytest.raises(KnarrError, match="no available"):
        free.take()
    assert free.take("10.1.200.5") == "10.1.200.5"


@pytest.mark.parametrize("wanted", ["10.2.0.0", "::1", "10.1.0", "10.1.0.300", "nonsense", "10.1.0.2/16", "10.1.0.2\0"])
def test_what_is_no_address_of_the_subnet(wanted: str) -> None:
    free = allocator("10.1.0.0/16")
    with pytest.raises(InvalidParameter, match="It does not belong to any of this network's subnets"):
        free.take(wanted)
    assert not free.contains(wanted)


def test_a_wanted_address_is_taken_once_and_in_its_shortest_form() -> None:
    free = allocator("fd00:1::/64", gateway="fd00:1::1")
    assert free.take("fd00:1:0:0::2") == "fd00:1::2"
    with pytest.raises(Forbidden, match="Address already in use"):
        free.take("fd00:1::2")
    assert free.take() == "fd00:1::3"


def test_addresses_of_running_containers_are_adopted() -> None:
    free = allocator("10.1.0.0/24", gateway="10.1.0.1")
    assert free.adopt("10.1.0.2") and free.adopt("10.1.0.4")
    assert not free.adopt("10.1.0.2") and not free.adopt("10.9.0.2") and not free.adopt("10.1.0.1")
    assert [free.take(), free.take()] == ["10.1.0.3", "10.1.0.5"]


def test_how_many_are_taken() -> None:
    free = allocator("10.1.0.0/24", "10.1.0.128/25", "10.1.0.1")
    free.take("10.1.0.9")
    free.take()
    assert (free.in_use, free.available) == (5, 126)  # .0, .1, .9, .128, .255


def test_many_addresses_cost_no_more_than_few() -> None:
    free = allocator("10.0.0.0/8", gateway="10.0.0.1")
    for _ in range(20_000):
        free.take()
    for _ in range(2000):  # a scan from the beginning would be 40 million steps
        assert free.take() == "10.0.78.34"
        free.release("10.0.78.34")
    for _ in range(2000):  # the same fixed address again and again leaves nothing behind
        free.take("10.0.200.1")
        free.release("10.0.200.1")
    assert free.in_use == 20_003 and len(free._freed) <= 1


def test_subnets_are_chosen_in_order_around_what_is_there() -> None:
    pools = addresspools.DEFAULT_IPV4
    assert ipam.choose(pools, []) == "172.17.0.0/16"
    assert ipam.choose(pools, ["172.17.0.0/16", "172.18.5.0/24", "0.0.0.0/0", "fd00::/8"]) == "172.19.0.0/16"
    assert ipam.choose(pools, ["172.16.0.0/12"]) == "192.168.0.0/20"
    assert ipam.choose(pools, ["172.16.0.0/12", "192.168.0.0/24", "192.168.16.7/32"]) == "192.168.32.0/20"
    with pytest.raises(InvalidParameter, match=r"^all predefined address pools have been fully subnetted"):
        ipam.choose(pools, ["172.16.0.0/12", "192.168.0.0/16"])


def test_the_default_pools_hold_31_networks() -> None:
    used: list[str] = []
    for _ in range(31):
        used.append(ipam.choose(addresspools.DEFAULT_IPV4, used))
    with pytest.raises(InvalidParameter, match="fully subnetted"):
        ipam.choose(addresspools.DEFAULT_IPV4, used)
    assert used[14:16] == ["172.31.0.0/16", "192.168.0.0/20"]


def test_ipv6_subnets_are_unique_local_and_the_same_for_a_host() -> None:
    pool = addresspools.unique_local("host")
    assert pool == addresspools.unique_local("host") != addresspools.unique_local("other")
    assert pool.base.startswith("fd") and pool.base.endswith("::/48") and pool.size == 64
    first = ipam.choose([*addresspools.DEFAULT_IPV4, pool], [], 6)
    assert ipam.choose([pool], [first], 6) != first and ipam.overlaps(pool.base, first)
    assert ipam.choose([AddressPool("2001:db8::/32", 64)], ["2001:db8::/33"], 6) == "2001:db8:8000::/64"


def test_addresses_that_follow_from_others() -> None:
    assert ipam.mac_of("172.17.0.2") == "02:42:ac:11:00:02"
    first, second = ipam.random_mac(), ipam.random_mac()
    assert first != second and first.startswith("02:42:") and len(first) == 17


def test_a_gateway_other_than_the_bridge() -> None:
    pool = Pool(subnet="10.0.0.0/24", gateway="10.0.0.1", aux={"printer": "10.0.0.9"})
    assert ipam.gateway_of(pool) == "10.0.0.1"
    assert ipam.gateway_of(Pool(subnet="10.0.0.0/24", gateway="10.0.0.1", aux={"DefaultGatewayIPv4": "10.0.0.254"})) == "10.0.0.254"
