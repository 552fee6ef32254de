"""What one container's place in a network is told: sysctls of its interface and link-local addresses, as texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import Forbidden, InvalidParameter, NotImplementedYet
from engine.network.firewall import Bridge, Member, elements
from engine.service import addresses, networkmode
from engine.service.networks import Network
from engine.spec import endpointoptions
from engine.spec.docker.containers import EndpointIPAMConfig, EndpointSettings
from engine.spec.network import Endpoint, NetworkRecord, Pool

RECORD = NetworkRecord(id="1" * 64, name="n", driver="bridge", created_at=0, pools=[Pool(subnet="10.0.0.0/24"), Pool(subnet="fd00::/64")])


def settings(*link_local: str, ipv6: str = "", **options: str) -> EndpointSettings:
    ipam = EndpointIPAMConfig("", ipv6, list(link_local)) if link_local or ipv6 else None
    return EndpointSettings(ipam_config=ipam, driver_opts={f"com.docker.network.endpoint.{name}": text for name, text in options.items()})


def test_sysctls_have_names_for_every_link() -> None:
    found = endpointoptions.sysctls(
        "net.ipv4.conf.IFNAME.log_martians=1,net.ipv6.neigh.ifname.gc_stale_time= 5=6,net.mpls.conf.IFNAME.input=0"
    )
    assert found == {
        "net.ipv4.conf.IFNAME.log_martians": "1",
        "net.ipv6.neigh.IFNAME.gc_stale_time": " 5=6",
        "net.mpls.conf.IFNAME.input": "0",
    }
    assert [endpointoptions.path(name, "eth0.5") for name in found] == [
        "/proc/sys/net/ipv4/conf/eth0.5/log_martians",
        "/proc/sys/net/ipv6/neigh/eth0.5/gc_stale_time",
        "/proc/sys/net/mpls/conf/eth0.5/input",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "", "net.ipv4.conf.eth0.forwarding=1", "net.core.conf.IFNAME.x=1", "kernel.ipv4.conf.IFNAME.x=1", "net.ipv4.conf.IFNAME=1",
        "net.ipv4.conf.IFNAME.../../all/forwarding=1", "net.ipv4.conf.IFNAME.a.b=1", "net.ipv4.conf/x.IFNAME.a=1", "net.ipv4...IFNAME.a=1",
    ],
)  # fmt: skip
def test_what_is_no_sysctl_of_an_interface(text: str) -> None:
    with pytest.raises(InvalidParameter) as raised:
        endpointoptions.sysctls("net.ipv4.conf.IFNAME.forwarding=1," + text)
    assert raised.value.message == (
        f"unrecognised network interface sysctl '{text}'; represent 'net.X.Y.ethN.Z=V' as 'net.X.Y.IFNAME.Z=V', "
        "'X' must be 'ipv4', 'ipv6' or 'mpls'"
    )


@pytest.mark.parametrize("value", ["", "=", "=1\n", "=\0", "=" + "1" * 257])
def test_what_is_no_value_of_a_sysctl(value: str) -> None:
    with pytest.raises(InvalidParameter, match="to have format name=value"):
        endpointoptions.sysctls(f"net.ipv4.conf.IFNAME.forwarding{value}")


@given(st.text())
def test_a_sysctl_is_refused_or_leads_to_one_place_below_the_link(text: str) -> None:
    try:
        found = endpointoptions.sysctls(text)
    except InvalidParameter:
        return
    for name in found:
        parts = endpointoptions.path(name, "eth0").split("/")
        assert parts[:4] == ["", "proc", "sys", "net"] and parts[6] == "eth0" and len(parts) == 8
        assert "." not in "".join(parts)


@given(st.lists(st.tuples(st.sampled_from(["ipv4", "ipv6"]), st.from_regex(r"[a-z_0-9]{1,9}", fullmatch=True), st.integers(0, 99))))
def test_sysctls_that_are_some_are_all_taken(some: list[tuple[str, str, int]]) -> None:
    text = ",".join(f"net.{family}.conf.IFNAME.{name}={value}" for family, name, value in some)
    if some:
        expected = {f"net.{family}.conf.IFNAME.{name}": str(value) for family, name, value in some}
        assert endpointoptions.sysctls(text) == expected


@pytest.mark.parametrize(("value", "off"), [("1", True), ("0", False), ("", False), (" 2", True)])
def test_a_link_without_ipv6(value: str, off: bool) -> None:
    assert endpointoptions.without_ipv6({"net.ipv6.conf.IFNAME.disable_ipv6": value}) is off
    assert not endpointoptions.without_ipv6({"net.ipv6.conf.IFNAME.accept_ra": "1"})


# Requests


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        (settings("x"), "invalid link-local IP address: x"),
        (settings("0.0.0.0"), "invalid link-local IP address: 0.0.0.0"),
        (settings("::"), "invalid link-local IP address: ::"),
        (settings("fe80::1%eth0"), "invalid link-local IP address: fe80::1%eth0"),
        (settings("x", ""), "* invalid link-local IP address: x\n* invalid link-local IP address: "),
        (settings(sysctls="a"), "unrecognised network interface sysctl 'a'; represent "),
        (settings(ipv6="fd00::9", sysctls="net.ipv6.conf.IFNAME.disable_ipv6=1"), "IPv6 address fd00::9 for an interface without IPv6"),
    ],
    ids=str,
)
def test_settings_that_no_endpoint_can_have(asked: EndpointSettings, problem: str) -> None:
    with pytest.raises(InvalidParameter) as raised:
        networkmode.check("n", asked, RECORD)
    assert raised.value.message.startswith("invalid config for network n: invalid endpoint settings:\n" + problem)


def test_addresses_that_are_not_link_local() -> None:
    """As dockerd answers, in words of their own."""
    for address in ("1.2.3.4", "fd00::1", "169.253.255.255", "::ffff:169.254.1.1"):
        with pytest.raises(InvalidParameter, match=f"^invalid link local IP address: {address}$"):
            networkmode.check("n", settings(address), RECORD)
    with pytest.raises(InvalidParameter, match="fe80::1 is given twice"):
        networkmode.check("n", settings("fe80::1", "fe80:0::1"), RECORD)
    networkmode.check("n", settings("169.254.169.254", "fe80:0::1", sysctls="net.ipv4.conf.IFNAME.forwarding=1"), RECORD)
    assert networkmode.link_local(settings("169.254.169.254", "fe80:0::1")) == ["169.254.169.254", "fe80::1"]


@pytest.mark.parametrize(
    "asked", [settings("169.254.1.1"), settings(sysctls="net.ipv4.conf.IFNAME.forwarding=1")], ids=["address", "sysctl"]
)
def test_a_network_without_interfaces_has_nothing_to_set(asked: EndpointSettings) -> None:
    with pytest.raises(InvalidParameter, match="need a network that gives the container"):
        networkmode.check("host", asked, None)


def test_another_option_of_docker() -> None:
    with pytest.raises(NotImplementedYet, match=r"driver-opt=com\.docker\.network\.endpoint\.x"):
        networkmode.check("n", settings(x="1"), RECORD)
    networkmode.check("n", EndpointSettings(driver_opts={"org.example.x": "1"}), RECORD)


# Addresses and rules


def test_an_address_is_of_one_container_of_a_network() -> None:
    network = Network(RECORD)
    assert addresses.link_local(network, ["169.254.1.1"]) == ["169.254.1.1"]
    network.endpoints["e"] = ("c", Endpoint(id="e", network_id=network.id, link_local=["169.254.1.1"]))
    assert addresses.link_local(network, ["169.254.1.2"]) == ["169.254.1.2"]
    with pytest.raises(Forbidden, match="Address already in use"):
        addresses.link_local(network, ["169.254.1.2", "169.254.1.1"])


def test_an_endpoint_without_ipv6_gets_no_address_of_it() -> None:
    network = Network(RECORD)
    plain, off = Endpoint(id="p", network_id=network.id), Endpoint(id="o", network_id=network.id)
    off.sysctls = {"net.ipv6.conf.IFNAME.disable_ipv6": "1"}
    for endpoint in (plain, off):
        addresses.take(network, endpoint, "", "", "")
    assert (plain.ipv6, off.ipv6, off.ipv6_gateway) == ("fd00::1", "", "")
    assert off.ipv4


@pytest.mark.parametrize("antispoof", [True, False])
def test_the_firewall_knows_the_addresses(antispoof: bool) -> None:
    bridge = Bridge(link="br", subnets=("10.0.0.0/24",), antispoof=antispoof)
    member = Member(link="veth", bridge="br", mac="02:42:0a:00:00:02", ipv4="10.0.0.2", link_local=("169.254.1.1", "fe80::1"))
    found = {(name, element.key) for name, element in elements((bridge,), (member,), ())}
    own = {("senders4", ("veth", member.mac, "169.254.1.1")), ("senders6", ("veth", member.mac, "fe80::1"))}
    assert ("near4", ("br", "169.254.1.1")) in found
    assert own <= found if antispoof else not own & found
