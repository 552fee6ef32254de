"""nftables' bytes: values, expressions, transactions; and the parts of the language that the firewall itself does not use."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.linux.nftables import Nftables, NftablesError, NftablesMissing, missing
from engine.wire import netlink
from engine.wire.nftables import (
    DELSETELEM,
    NEWSETELEM,
    Message,
    batch,
    elements,
    expressions,
    new_set,
    replacing,
)
from engine.wire.nftmodel import (
    ACCEPT,
    DROP,
    TYPES,
    Chain,
    Changes,
    Dispatch,
    Dnat,
    Element,
    In,
    Masquerade,
    Match,
    Rewrite,
    Rule,
    Set,
    Snat,
    Table,
    Verdict,
    concatenated,
    packed,
)
from engine.wire.nfttext import render, rule_text
from tests.lib.netns import made

NAMES = Set(name="names", key=("ifname",))
PAIRS = Set(name="pairs", key=("ifname", "ether_addr", "ipv4_addr"))
NETS = Set(name="nets", key=("ipv4_addr",), value=("verdict",), interval=True)
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.mark.parametrize(
    ("type_name", "text", "expected"),
    [
        ("ipv4_addr", "172.18.0.1", "ac120001"),
        ("ipv6_addr", "fd00::1", "fd000000000000000000000000000001"),
        ("ether_addr", "02:42:ac:12:00:02", "0242ac120002"),
        ("inet_proto", "sctp", "84"),
        ("inet_proto", "47", "2f"),
        ("inet_service", "8080", "1f90"),
        ("ether_type", "arp", "0806"),
        ("ifname", "br-web", "62722d77656200000000000000000000"),
        ("ifname", "a-name-of-fiftee", "612d6e616d652d6f662d666966746565"),
    ],
)
def test_values(type_name: str, text: str, expected: str) -> None:
    assert packed(type_name, text).hex() == expected


@pytest.mark.parametrize(
    ("type_name", "text"),
    [
        ("ipv4_addr", "172.18.1"),
        ("ipv4_addr", "fd00::1"),
        ("ipv6_addr", "1.2.3.4"),
        ("ether_addr", "02:42"),
        ("inet_service", "http"),
        ("inet_proto", "quic"),
        ("ifname", ""),
        ("ifname", "a-name-that-is-too-long"),
    ],
)
def test_what_is_no_value(type_name: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        packed(type_name, text)


@given(st.integers(0, 2**32 - 1), st.integers(0, 65535))
def test_values_of_a_concatenation_start_on_registers(address: int, port: int) -> None:
    text = str(ipaddress.IPv4Address(address))
    raw = concatenated(("inet_service", "ipv4_addr", "inet_proto"), (str(port), text, "tcp"))
    assert raw == port.to_bytes(2, "big") + b"\0\0" + address.to_bytes(4, "big") + b"\6\0\0\0"


def tree(rule: Rule, family: str = "inet") -> list[tuple[str, dict[int, int | str]]]:
    """A rule's expressions: name, and its attributes, numbers as numbers and the rest in hexadecimal."""
    found = []
    for _, one in netlink.attribute_list(expressions(family, rule)):
        parts = netlink.attributes(one)
        data: dict[int, int | str] = {}
        for kind, value in netlink.attribute_list(parts.get(2, b"")):
            data[kind] = int.from_bytes(value, "big") if len(value) == 4 else value.hex()
        found.append((netlink.string(parts[1]), data))
    return found


def value(raw: str) -> str:
    return netlink.attribute(1, bytes.fromhex(raw)).hex()


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        (
            (Match("ip saddr", "127.0.0.0/8"), DROP),
            "ip saddr 127.0.0.0/8 drop",
            [
                ("meta", {2: 15, 1: 8}),
                ("cmp", {1: 8, 2: 0, 3: value("02")}),
                ("payload", {1: 8, 2: 1, 3: 12, 4: 1}),
                ("cmp", {1: 8, 2: 0, 3: value("7f")}),
                ("immediate", {1: 0, 2: "0c000280" + "0800010000000000"}),
            ],
        ),
        (
            (In(("iifname",), "names", negated=True), ACCEPT),
            "iifname != @names accept",
            [
                ("meta", {2: 6, 1: 8}),
                ("lookup", {1: b"names\0".hex(), 2: 8, 5: 1}),
                ("immediate", {1: 0, 2: "0c000280" + "0800010000000001"}),
            ],
        ),
        (
            (Dispatch(("ip daddr", "th dport"), "m"),),
            "ip daddr . th dport vmap @m",
            [
                ("meta", {2: 15, 1: 8}),
                ("cmp", {1: 8, 2: 0, 3: value("02")}),
                ("payload", {1: 8, 2: 1, 3: 16, 4: 4}),
                ("payload", {1: 9, 2: 2, 3: 2, 4: 2}),
                ("lookup", {1: b"m\0".hex(), 2: 8, 3: 0}),
            ],
        ),
        (
            (Dnat("ip6", ("meta l4proto", "th dport"), "m"),),
            "dnat ip6 to meta l4proto . th dport map @m",
            [
                ("meta", {2: 16, 1: 8}),
                ("payload", {1: 9, 2: 2, 3: 2, 4: 2}),
                ("lookup", {1: b"m\0".hex(), 2: 8, 3: 8}),
                ("nat", {1: 1, 2: 10, 3: 8, 5: 12}),
            ],
        ),
        ((Masquerade(),), "masquerade", [("masq", {})]),
    ],
)
def test_rules(rule: Rule, text: str, expected: list[tuple[str, dict[int, int | str]]]) -> None:
    assert rule_text(rule) == text
    assert tree(rule) == expected


def heads(data: bytes) -> list[tuple[int, int, int, int]]:
    return [(one.type, one.flags & ~1, one.seq, one.payload[0]) for one in netlink.parse(data)]


def test_a_transaction_asks_once_for_an_answer() -> None:
    table = Table(family="bridge", name="t")
    found = batch(replacing(table), 7)
    assert heads(found) == [(16, 0, 7, 0), (0xA00, 0x400, 8, 7), (0xA02, 0, 9, 7), (0xA00, 0x404, 10, 7), (17, 0, 11, 0)]
    assert [one.payload[2:4] for one in netlink.parse(found)][::4] == [b"\0\x0a", b"\0\x0a"]


def keys(message: Message) -> list[tuple[bytes, int]]:
    """(key, flags) of the elements in a message."""
    found = []
    for _, one in netlink.attribute_list(netlink.attributes(message.payload)[3]):
        parts = netlink.attributes(one)
        found.append((netlink.attributes(parts[1])[1], int.from_bytes(parts.get(3, b""), "big")))
    return found


def test_a_prefix_is_its_first_address_and_the_one_behind_it() -> None:
    some = [Element(("172.18.0.0/16",), ("drop",)), Element(("255.0.0.0/8",), ("jump", "c"))]
    (message,) = elements(NEWSETELEM, "inet", "t", NETS, some)
    assert [(key.hex(), flags) for key, flags in keys(message)] == [("ac120000", 0), ("ac130000", 1), ("ff000000", 0)]


@given(st.integers(0, 3000))
def test_many_elements_are_several_messages(number: int) -> None:
    some = [Element((f"veth{n}", "02:42:00:00:00:01", "10.0.0.1")) for n in range(number)]
    found = list(elements(DELSETELEM, "bridge", "t", PAIRS, some))
    assert [key for message in found for key, _ in keys(message)] == [concatenated(PAIRS.key, one.key) for one in some]
    assert all(len(message.payload) < 0xFFFF for message in found)
    assert len(found) <= number // 500 + 1


def test_every_type_has_the_length_that_its_sets_say() -> None:
    message = new_set("inet", "t", Set(name="s", key=("ipv6_addr", "inet_proto"), value=("ipv4_addr", "inet_service")), 3)
    found = netlink.attributes(message.payload)
    assert (found[4], found[5]) == ((8 << 6 | 12).to_bytes(4, "big"), (20).to_bytes(4, "big"))
    assert (found[6], found[7]) == ((7 << 6 | 13).to_bytes(4, "big"), (8).to_bytes(4, "big"))
    assert all(number < 64 for number, _ in TYPES.values())  # six bits of a concatenation


def test_a_kernel_without_nftables_is_named() -> None:
    error = missing(errno.EPROTONOSUPPORT)
    assert isinstance(error, NftablesMissing)
    assert "this kernel has no nftables" in str(error)
    assert "iptables alone is not supported" in str(error)


REWRITES = Table(
    family="ip",
    name="names",
    chains=(
        Chain(
            name="output",
            hook="output",
            priority=-300,
            rules=(
                (Match("ip daddr", "127.0.0.11"), Match("udp dport", "53"), Rewrite("udp dport", "53053")),
                (Match("ip daddr", "127.0.0.11"), Match("tcp dport", "53"), Rewrite("tcp dport", "53053")),
                (Match("ip saddr", "127.0.0.11"), Match("udp sport", "53053"), Rewrite("udp sport", "53")),
                (Match("ip saddr", "127.0.0.11"), Match("tcp sport", "53053"), Rewrite("tcp sport", "53")),
                (Match("ip daddr", "127.0.0.12"), Verdict("drop")),
            ),
        ),
        Chain(
            name="source", hook="postrouting", type="nat", priority=100, rules=((Match("ip daddr", "192.0.2.1"), Snat("ip", "192.0.2.2")),)
        ),
    ),
)


@root
def test_a_port_is_another_without_connection_tracking() -> None:
    with made("ktn") as place, place:
        nft = Nftables()
        nft.replace([REWRITES])
        listed = place.run("nft", "list", "ruleset").stdout
        nft.close()
        with socket.socket(type=socket.SOCK_DGRAM) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
            server.bind(("127.0.0.11", 53053))
            server.settimeout(30)
            client.settimeout(30)
            client.connect(("127.0.0.11", 53))
            client.send(b"question")
            data, peer = server.recvfrom(100)
            server.sendto(b"answer to " + data, peer)
            assert client.recv(100) == b"answer to question"
        with socket.create_server(("127.0.0.11", 53053)), socket.create_connection(("127.0.0.11", 53), timeout=30) as connected:
            assert connected.getpeername() == ("127.0.0.11", 53)
        with socket.socket(type=socket.SOCK_DGRAM) as client, pytest.raises(PermissionError):
            client.sendto(b"dropped", ("127.0.0.12", 53))
    with made("ktn") as other:
        other.run("nft", "-f", "-", input=render((REWRITES,)))
        assert other.run("nft", "list", "ruleset").stdout == listed


@root
def test_tables_of_bridges_are_left_out_where_the_kernel_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel at hand has them, so its refusal is put in its mouth; all else is real."""
    bridge = Table(family="bridge", name="t", sets=(NAMES,))
    inet = Table(family="inet", name="t", sets=(NAMES,))
    with made("ktn") as place, place:
        nft = Nftables()
        commit = nft.commit

        def refusing(messages: object) -> None:
            found = list(messages)  # type: ignore[call-overload]
            for one in found:
                if one.family == "bridge":
                    raise NftablesError(errno.EOPNOTSUPP, one.what, failed=one)
            commit(found)

        monkeypatch.setattr(nft, "commit", refusing)
        nft.replace([inet, bridge])
        assert not nft.bridges
        some = (Element(("veth1",)),)
        added = Changes(added=(("inet", "t", NAMES, some), ("bridge", "t", NAMES, some)))
        assert not nft.update(added, lambda: pytest.fail("replaced"))
        listed = place.run("nft", "list", "ruleset").stdout
        nft.remove([("inet", "t"), ("bridge", "t")])
        nft.close()
    assert "veth1" in listed and "table bridge" not in listed
