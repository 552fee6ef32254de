"""Netlink's bytes: messages and attributes there and back, the kernel's explanations, what is refused; rtnetlink's requests and answers."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.wire import links, netlink
from engine.wire import rtnetlink as wire

TYPE = st.integers(1, netlink.NLA_TYPE_MASK)
VALUE = st.binary(max_size=40)


@given(st.lists(st.tuples(TYPE, VALUE), max_size=6))
def test_attributes_come_back_in_order(pairs: list[tuple[int, bytes]]) -> None:
    payload = b"".join(netlink.attribute(type, value) for type, value in pairs)
    assert len(payload) % 4 == 0
    assert netlink.attribute_list(payload) == pairs
    assert netlink.attributes(payload) == dict(pairs)


@given(st.lists(st.tuples(st.integers(16, 0xFFFF), st.integers(0, 0xFFFF), st.integers(0, 2**32 - 1), VALUE), max_size=5))
def test_messages_of_a_batch_come_back(several: list[tuple[int, int, int, bytes]]) -> None:
    data = b"".join(netlink.message(*one) for one in several)
    assert [(m.type, m.flags, m.seq, m.pid, m.payload) for m in netlink.parse(data)] == [
        (type, flags | netlink.NLM_F_REQUEST, seq, 0, payload) for type, flags, seq, payload in several
    ]


def test_numbers_and_texts() -> None:
    assert netlink.attributes(netlink.u8(1, 7) + netlink.u16(2, 7) + netlink.u32(3, 7) + netlink.u64(4, 7) + netlink.flag(5)) == {
        1: b"\7",
        2: struct.pack("=H", 7),
        3: struct.pack("=I", 7),
        4: struct.pack("=Q", 7),
        5: b"",
    }
    assert netlink.attributes(netlink.be32(2, 53) + netlink.text(4, "eth0")) == {
        2: b"\0\0\0\x35",
        4: b"eth0\0",
    }
    assert netlink.string(b"eth0\0rest") == "eth0"


def test_nested_attributes_are_marked_and_read_alike() -> None:
    payload = netlink.nested(18, netlink.text(1, "veth"), netlink.nested(2, netlink.u32(9, 1)))
    assert struct.unpack_from("=HH", payload)[1] == 18 | netlink.NLA_F_NESTED
    inner = netlink.attributes(netlink.attributes(payload)[18])
    assert inner[1] == b"veth\0"
    assert netlink.attributes(inner[2]) == {9: struct.pack("=I", 1)}


@given(st.binary(max_size=200))
def test_hostile_bytes_are_read_or_refused(data: bytes) -> None:
    for read in (
        lambda: list(netlink.parse(data)),
        lambda: netlink.attributes(data),
        lambda: netlink.error(data, netlink.NLM_F_ACK_TLVS),
        lambda: netlink.done(data, netlink.NLM_F_ACK_TLVS),
        lambda: links.link(data),
        lambda: links.address(data),
        lambda: list(links.routes(data)),
    ):
        try:
            read()
        except netlink.MalformedMessage:
            pass


@pytest.mark.parametrize("data", [b"\0" * 15, struct.pack("=IHHII", 15, 1, 0, 0, 0), struct.pack("=IHHII", 17, 1, 0, 0, 0)])
def test_a_message_that_is_cut_off_is_refused(data: bytes) -> None:
    with pytest.raises(netlink.MalformedMessage):
        list(netlink.parse(data))


def test_an_attribute_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot hold 65532 bytes"):
        netlink.attribute(1, bytes(65532))
    with pytest.raises(ValueError, match="NUL"):
        netlink.text(1, "a\0b")


REQUEST = struct.pack("=IHHII", 24, 16, 5, 1, 0)


def test_an_acknowledgement_with_the_kernels_text() -> None:
    words = netlink.text(1, "Unknown device type") + netlink.u32(2, 44)
    capped = struct.pack("=i", -95) + REQUEST + words
    whole = struct.pack("=i", -95) + REQUEST + bytes(8) + words
    assert netlink.error(capped, netlink.NLM_F_CAPPED | netlink.NLM_F_ACK_TLVS) == (95, 44, "Unknown device type")
    assert netlink.error(whole, netlink.NLM_F_ACK_TLVS) == (95, 44, "Unknown device type")
    assert netlink.error(whole) == (95, -1, "")
    assert netlink.error(struct.pack("=i", 0) + REQUEST, netlink.NLM_F_CAPPED) == (0, -1, "")


def test_a_dump_says_at_its_end_whether_it_failed() -> None:
    assert netlink.done(struct.pack("=i", 0)).errno == 0
    assert netlink.done(b"").errno == 0
    assert netlink.done(struct.pack("=i", -22) + netlink.text(1, "Invalid filter"), netlink.NLM_F_ACK_TLVS) == (22, -1, "Invalid filter")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "a:b", "0123456789abcdef", "eth%d", "ééééééééé"])
def test_names_that_no_link_can_have(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a link's name"):
        wire.check_name(name)


@pytest.mark.parametrize("mac", ["", "02:42:ac:11:00", "02:42:ac:11:00:02:03", "02:42:ac:11:00:0g", "0242ac110002", "2:42:ac:11:0:2"])
def test_no_mac_address(mac: str) -> None:
    with pytest.raises(ValueError, match="is no MAC address"):
        wire.mac_bytes(mac)


def test_mac_addresses_with_colons_and_dashes() -> None:
    assert wire.mac_bytes("02:42:AC:11:00:02") == wire.mac_bytes("02-42-ac-11-00-02") == bytes.fromhex("0242ac110002")


@pytest.mark.parametrize("address", ["", "10.0.0", "10.0.0.1/8", "fe80::1%eth0", "host"])
def test_no_ip_address(address: str) -> None:
    with pytest.raises(ValueError, match="is no IP address"):
        wire.add_address(1, address, 24)


def test_an_address_has_its_broadcast_address() -> None:
    def broadcast(address: str, prefix: int) -> bytes | None:
        return netlink.attributes(wire.add_address(1, address, prefix).payload, wire.ADDRESS_HEADER.size).get(wire.IFA_BROADCAST)

    assert broadcast("172.17.0.2", 16) == bytes([172, 17, 255, 255])
    assert broadcast("10.0.0.0", 31) is None
    assert broadcast("fd00::2", 64) is None


def test_routes_over_several_hops_are_several() -> None:
    def hop(index: int, gateway: bytes) -> bytes:
        inner = netlink.attribute(wire.RTA_GATEWAY, gateway)
        return wire.NEXT_HOP_HEADER.pack(wire.NEXT_HOP_HEADER.size + len(inner), 0, 0, index) + inner

    payload = wire.ROUTE_HEADER.pack(2, 8, 0, 0, 254, 3, 0, 1, 0) + netlink.attribute(wire.RTA_DST, bytes([10, 0, 0, 0]))
    payload += netlink.attribute(wire.RTA_MULTIPATH, hop(2, bytes([192, 0, 2, 1])) + hop(3, bytes([192, 0, 2, 2])))
    assert [(one.destination, one.gateway, one.index) for one in links.routes(payload)] == [
        ("10.0.0.0/8", "192.0.2.1", 2),
        ("10.0.0.0/8", "192.0.2.2", 3),
    ]
