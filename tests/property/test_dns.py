"""DNS for any input: hostile bytes only ever raise Malformed, answers can be read, and names mean what a simple model says."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from engine.netd import messages
from engine.netd.resolver import Endpoint, Resolver, Zones
from engine.wire import dns

LABEL = st.text("abcXYZ01-_", min_size=1, max_size=8)
NAME = st.lists(LABEL, min_size=1, max_size=4).map(".".join)
ADDRESS = st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str))
HEADER = st.builds(
    lambda id, flags, questions, rest: struct.pack(">6H", id, flags, questions, *rest),
    st.integers(0, 65535),
    st.sampled_from([0, 0x100, 0x8180, 0x2800]),
    st.integers(0, 2),
    st.tuples(*[st.integers(0, 3)] * 3),
)


def question(name: str, type: int, size: int) -> bytes:
    body = b"".join(bytes([len(label)]) + label for label in name.encode().split(b".")) + b"\0"
    opt = b"\0" + struct.pack(">HHIH", dns.OPT, size, 0, 0) if size else b""
    return struct.pack(">6H", 1, 0x100, 1, 0, 0, 1 if size else 0) + body + struct.pack(">HH", type, dns.IN) + opt


@given(
    HEADER, st.binary(max_size=80) | st.lists(st.sampled_from([b"\0", b"\x01a", b"\xc0\x0c", b"\xc0\x0e", b"\0\1", b"\x29"])).map(b"".join)
)
def test_hostile_queries(header: bytes, rest: bytes) -> None:
    packet = header + rest
    try:
        query = dns.parse(packet)
    except dns.Malformed:
        if dns.is_query(packet):
            assert len(dns.failure(packet, dns.FORMERR)) == 12
        return
    assert len(query.name) < 1024 and query.end <= len(packet)
    response = dns.reply(packet, query, dns.SERVFAIL)
    assert dns.answers(packet, query, response)


@given(NAME, st.sampled_from([dns.A, dns.AAAA, 16]), st.sampled_from([0, 512, 1232]), st.lists(ADDRESS, max_size=60))
def test_answers_fit_and_can_be_read(name: str, type: int, size: int, addresses: list[str]) -> None:
    packet = question(name, type, size)
    query = dns.parse(packet)
    assert query.name == name.lower().encode()
    data = [dns.record(*dns.address(address)) for address in addresses]
    response = dns.reply(packet, query, dns.NOERROR, data, query.size)
    assert len(response) <= query.size
    count = struct.unpack_from(">H", response, 6)[0]
    assert bool(response[2] & 2) == (count < len(addresses))
    assert response[query.end :].startswith(b"".join(data[:count]))


@given(
    st.recursive(st.integers(-(2**63), 2**63 - 1) | st.text(), lambda inner: st.lists(inner, max_size=4), max_leaves=8), st.integers(0, 255)
)
def test_messages(value: object, kind: int) -> None:
    try:
        found = messages.decode(messages.encode(kind, value))
    except messages.MalformedMessage:
        depth = 0
        while isinstance(value, list) and value:
            value, depth = max(value, key=lambda each: str(each).count("[")), depth + 1
        assert depth >= 4
        return
    except UnicodeEncodeError:
        return
    assert found == [(kind, [value])]


@given(st.binary(max_size=60))
def test_hostile_messages(packet: bytes) -> None:
    try:
        messages.decode(packet)
    except messages.MalformedMessage:
        pass


NAMES = st.sampled_from(["a", "b", "c", "a.one", "b.two.x"])
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["one", "two.x"]),
        st.sampled_from(["e1", "e2", "e3"]),
        st.none() | st.tuples(st.lists(NAMES, max_size=3), st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1"]), max_size=2)),
    ),
    max_size=20,
)


@given(CHANGES, st.permutations(["one", "two.x"]), NAMES | st.builds("{}.{}".format, NAMES, st.sampled_from(["one", "two.x"])))
def test_names_mean_what_a_simple_model_says(changes: list, order: list[str], name: str) -> None:
    zones, model = Zones(), {"one": {}, "two.x": {}}
    resolver = Resolver()
    resolver.change([zones.get(network, network) for network in order], [], [], False)
    for network, id, endpoint in changes:
        if endpoint is None:
            zones.get(network, network).withdraw(id)
            model[network].pop(id, None)
        else:
            zones.get(network, network).publish(id, Endpoint(*endpoint, "title"))
            model[network][id] = endpoint

    def simple(name: str, networks: list[str], version: bool) -> tuple[bool, set[str]]:
        known = False
        for network in networks:
            hits = [addresses for names, addresses in model[network].values() if name in names]
            known = known or bool(hits)
            found = {address for addresses in hits for address in addresses if (":" in address) == version}
            if found:
                return True, found
        return known, set()

    found = resolver.find(name.encode())
    for version, type in ((False, dns.A), (True, dns.AAAA)):
        known, expected = simple(name, order, version)
        if not known:
            for network in order:
                if name.endswith(f".{network}"):
                    known, expected = simple(name.removesuffix(f".{network}"), [network], version)
        assert (found is not None) == known
        assert {pair for pair in found or () if pair[0] == type} == {dns.address(address) for address in expected}
