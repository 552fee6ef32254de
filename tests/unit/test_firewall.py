"""Networks to rules: golden texts, and that single changes say the same as whole rulesets."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.network.firewall import Bridge, Member, Model, Port, Ruleset, changes, overlapping, render, ruleset, served
from engine.wire.nftmodel import Changes, Element

GOLDEN = Path(__file__).parent.parent / "golden"


def port(host_ip: str = "0.0.0.0", host_port: int = 8080, inner: int = 80, **more: str) -> Port:
    fields = {"bridge": "br-web", "protocol": "tcp", "ipv4": "172.18.0.2", "ipv6": "fd00::2"} | more
    return Port(host_ip=host_ip, host_port=host_port, port=inner, **fields)


WEB = Bridge(link="br-web", subnets=("172.18.0.0/16", "fd00::/64"), gateways=("172.18.0.1", "fd00::1"))
FIRST = Member(link="veth0000001", bridge="br-web", mac="02:42:ac:12:00:02", ipv4="172.18.0.2", ipv6="fd00::2")
MODELS = {
    "firewall": Model(bridges=(WEB,), members=(FIRST,), ports=(port(), port("::"), port("192.0.2.1", 53, 53, protocol="udp"))),
    "firewall-empty": Model(),
    "firewall-kinds": Model(
        bridges=(
            WEB,
            Bridge(link="br-internal", subnets=("172.19.0.0/16",), gateways=("172.19.0.1",), internal=True),
            Bridge(link="br-routed", subnets=("172.20.0.0/16", "fd01::/64"), mode4="routed", mode6="routed", icc=False),
            Bridge(link="br-open", subnets=("172.21.0.0/16", "fd02::/64"), mode4="nat-unprotected", mode6="isolated"),
            Bridge(link="br-bare", subnets=("172.22.0.0/16",), masquerade=False, antispoof=False),
            Bridge(link="br-snat", subnets=("172.23.0.0/16", "fd03::/64"), host_ipv4="192.0.2.1", host_ipv6="2001:db8::1"),
            Bridge(link="br odd}", subnets=("172.24.0.0/16",), trusted_interfaces=("eth1", "vpn0")),
        ),
        ports=(port(bridge="br-routed", ipv4="172.20.0.2"), port(bridge="br-internal"), port("::1"), port("2001:db8::1", protocol="sctp")),
        drop_foreign_forward=True,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_text_of_a_firewall(name: str) -> None:
    """KNARR_GOLDEN=write writes the files; read the difference before it is kept."""
    path = GOLDEN / f"{name}.nft"
    text = render(ruleset(MODELS[name], "knarr"))
    if os.environ.get("KNARR_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


def contents(rules: Ruleset) -> dict[str, frozenset[Element]]:
    return {name: found for table in rules.tables for name, found in table.elements.items() if found}


def applied(before: dict[str, frozenset[Element]], change: Changes) -> dict[str, frozenset[Element]]:
    """What a kernel's sets hold after a change; what goes must have been there, what comes must not."""
    found = dict(before)
    for _, _, one, some in change.removed:
        assert found[one.name] >= frozenset(some)
        found[one.name] -= frozenset(some)
    for _, _, one, some in change.added:
        keys = {element.key for element in found.get(one.name, frozenset())}
        assert not keys & {element.key for element in some}
        found[one.name] = found.get(one.name, frozenset()) | frozenset(some)
    return {name: some for name, some in found.items() if some}


BRIDGES = MODELS["firewall-kinds"].bridges
links = st.sampled_from([bridge.link for bridge in BRIDGES])
members = st.builds(
    lambda number, link: Member(link=f"veth{number}", bridge=link, mac=f"02:42:00:00:00:{number:02x}", ipv4=f"172.18.0.{number}"),
    st.integers(1, 9),
    links,
)
# A host's port is given to one container only; a container's port may have several of the host's.
ports = st.builds(
    lambda number, inner, ip, link: port(ip, 8000 + number, inner, bridge=link, ipv4=f"172.18.0.{number % 3 + 1}", ipv6="fd00::2"),
    st.integers(0, 9),
    st.integers(80, 82),
    st.sampled_from(["0.0.0.0", "::", "192.0.2.1"]),
    links,
)
models = st.builds(
    lambda some, published: Model(bridges=BRIDGES, members=tuple(some), ports=tuple(published)),
    st.lists(members, max_size=6, unique_by=lambda one: one.link),
    st.lists(ports, max_size=6, unique_by=lambda one: (one.host_ip, one.host_port)),
)


@given(models, models)
def test_changes_say_what_whole_rulesets_would(old: Model, new: Model) -> None:
    change = changes(old, new, "knarr")
    assert change is not None
    assert applied(contents(ruleset(old, "knarr")), change) == contents(ruleset(new, "knarr"))


@given(models)
def test_the_structure_does_not_depend_on_containers(model: Model) -> None:
    bare = [msgspec.structs.replace(table, elements={}) for table in ruleset(model, "knarr").tables]
    assert bare == list(ruleset(Model(bridges=BRIDGES), "knarr").tables)


def test_another_structure_is_no_change_of_elements() -> None:
    model = MODELS["firewall"]
    assert changes(model, msgspec.structs.replace(model, bridges=()), "knarr") is None
    assert changes(model, msgspec.structs.replace(model, drop_foreign_forward=True), "knarr") is None
    assert not changes(model, msgspec.structs.replace(model, bridges=(msgspec.structs.replace(WEB),)), "knarr")


def test_a_container_that_starts_is_one_small_change() -> None:
    """Only what it brings is looked at, not the others."""
    empty = Model(bridges=BRIDGES)
    change = changes(empty, msgspec.structs.replace(empty, members=(FIRST,), ports=(port(),)), "knarr")
    assert change is not None
    assert change.removed == ()
    assert [(family, one.name, len(some)) for family, _, one, some in change.added] == [
        ("bridge", "guarded", 1),
        ("bridge", "senders", 1),
        ("bridge", "senders4", 1),
        ("bridge", "senders6", 1),
        ("bridge", "targets6", 1),
        ("inet", "open4", 1),
        ("inet", "any4", 1),
    ]


def test_one_port_of_two_that_lead_to_the_same_place_goes() -> None:
    both = Model(bridges=(WEB,), ports=(port(host_port=1), port(host_port=2)))
    change = changes(both, msgspec.structs.replace(both, ports=both.ports[1:]), "knarr")
    assert change is not None
    assert [one.name for _, _, one, _ in change.removed] == ["any4"]


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (port("0.0.0.0"), True),
        (port("::"), True),
        (port("::", ipv6=""), False),
        (port("2001:db8::1", ipv6=""), False),
        (port("0.0.0.0", ipv4=""), False),
        (port("::1"), False),
        (port("127.0.0.1"), True),
    ],
)
def test_what_needs_a_relay(one: Port, expected: bool) -> None:
    assert served(one) is expected
    names = {name for name in contents(ruleset(Model(bridges=(WEB,), ports=(one,)), "knarr")) if not name.startswith("open")}
    assert bool(names) is expected


def test_subnets_that_one_table_cannot_tell_apart() -> None:
    assert overlapping(BRIDGES) is None
    assert overlapping((WEB, Bridge(link="br-x", subnets=("10.0.0.0/8", "172.18.7.0/24")))) == ("172.18.7.0/24", "172.18.0.0/16")
