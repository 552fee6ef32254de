"""What becomes of a request to create a network: its record, or the error that dockerd's users know."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.errors import KnarrError
from engine.service import networkcreate
from engine.spec import networkoptions
from engine.spec.docker.networks import NetworkCreate
from engine.spec.network import NetworkRecord, Pool
from engine.spec.networkoptions import BridgeOptions, MacvlanOptions
from engine.spec.networksettings import AddressPool, NetworkSettings

BRIDGE = "com.docker.network.bridge."


def start(exec_root: str = "/run/knarr", stored: list[NetworkRecord] | None = None, **settings: Any) -> list[NetworkRecord]:
    return networkcreate.predefined(NetworkSettings(**settings), exec_root, stored or [], list)


BASE = start()


def create(
    existing: list[NetworkRecord] | None = None, in_use: tuple[str, ...] = (), settings: NetworkSettings | None = None, **body: Any
) -> NetworkRecord:
    request = msgspec.convert({"Name": "front", **body}, NetworkCreate)
    return networkcreate.define(request, settings or NetworkSettings(), [*BASE, *(existing or [])], in_use)


def ipam(*configs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"IPAM": {"Config": list(configs), **more}}


def refused(status: int, message: str, existing: list[NetworkRecord] | None = None, **body: Any) -> None:
    with pytest.raises(KnarrError) as caught:
        create(existing, **body)
    assert (caught.value.status, caught.value.message) == (status, message)


def test_nothing_said_is_a_bridge_with_the_next_subnet() -> None:
    made = create(in_use=("172.18.0.0/16", "0.0.0.0/0"), Labels={"a": "b"}, Attachable=True, Internal=True)
    assert (made.driver, made.link, made.ipv4, made.ipv6, made.labels) == ("bridge", f"br-{made.id[:12]}", True, False, {"a": "b"})
    assert made.pools == [Pool(subnet="172.19.0.0/16", gateway="172.19.0.1", given_subnet=False, given_gateway=False)]
    assert made.internal and made.attachable
    assert len(made.id) == 64 and made.created_at > 1.6e18
    assert [pool.subnet for pool in create([made], Name="back").pools] == ["172.18.0.0/16"]


def test_everything_said_of_addresses_is_kept() -> None:
    configs = [
        {"Subnet": "FD00:9::/64", "Gateway": "fd00:9:0::99"},
        {"Subnet": "10.99.0.0/24", "IPRange": "10.99.0.128/25", "Gateway": "10.99.0.7", "AuxiliaryAddresses": {"printer": "10.99.0.9"}},
    ]
    made = create(EnableIPv6=True, **ipam(*configs, Options={"x": "y"}))
    assert made.pools == [
        Pool(subnet="10.99.0.0/24", ip_range="10.99.0.128/25", gateway="10.99.0.7", aux={"printer": "10.99.0.9"}),
        Pool(subnet="fd00:9::/64", gateway="fd00:9::99"),
    ]
    assert made.ipam_options == {"x": "y"}


def test_the_gateway_is_the_first_free_address_of_the_range() -> None:
    assert create(**ipam({"Subnet": "10.9.0.0/24", "IPRange": "10.9.0.128/25"})).pools[0].gateway == "10.9.0.128"
    assert create(**ipam({"Subnet": "10.9.0.0/31"})).pools[0].gateway == "10.9.0.0"
    assert create(EnableIPv6=True, **ipam({"Subnet": "fd00::/64"})).pools[1].gateway == "fd00::1"


def test_ipv6_without_a_subnet_gets_a_unique_local_one_of_this_installation() -> None:
    first = create(EnableIPv6=True)
    second = create([first], Name="back", EnableIPv6=True)
    assert first.pools[1].subnet.startswith("fd") and first.pools[1].subnet.endswith("/64")
    assert second.pools[1].subnet != first.pools[1].subnet
    assert second.pools[1].subnet[:13] == first.pools[1].subnet[:13]
    only = create(EnableIPv4=False, EnableIPv6=True)
    assert [pool.subnet for pool in only.pools] == [first.pools[1].subnet] and not only.ipv4


def test_a_subnet_of_a_wanted_size() -> None:
    assert create(**ipam({"Subnet": "0.0.0.0/24"})).pools[0].subnet == "172.18.0.0/24"


def test_a_subnet_of_a_family_that_is_off_is_neither_used_nor_checked() -> None:
    made = create(**ipam({"Subnet": "10.9.0.0/24"}, {"Subnet": "fd00:9::1/64"}))
    assert [pool.subnet for pool in made.pools] == ["10.9.0.0/24"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"Subnet": "10.9.0.5/24"}, "invalid subnet 10.9.0.5/24: it should be 10.9.0.0/24"),
        ({"Subnet": "10.9.0.0"}, "invalid subnet 10.9.0.0: invalid CIDR block notation"),
        ({"Subnet": "10.9.0.0/255.255.255.0"}, "invalid subnet 10.9.0.0/255.255.255.0: invalid CIDR block notation"),
        ({"Subnet": "10.9.0.0/33"}, "invalid subnet 10.9.0.0/33: invalid CIDR block notation"),
        ({"Gateway": "10.9.0.1"}, "invalid subnet : invalid CIDR block notation"),
        ({"Gateway": "10.8.0.1"}, "invalid gateway 10.8.0.1: parent subnet 10.9.0.0/24 doesn't contain this address"),
        ({"Gateway": "x"}, "invalid gateway x: invalid address"),
        ({"Gateway": "fd00::1"}, "invalid gateway fd00::1: parent subnet is an IPv4 block"),
        ({"IPRange": "10.8.0.0/25"}, "invalid ip-range 10.8.0.0/25: parent subnet 10.9.0.0/24 doesn't contain ip-range"),
        ({"IPRange": "10.9.0.0/16"}, "invalid ip-range 10.9.0.0/16: CIDR block is bigger than its parent subnet 10.9.0.0/24"),
        ({"IPRange": "10.9.0.5/25"}, "invalid ip-range 10.9.0.5/25: it should be 10.9.0.0/25"),
        ({"IPRange": "x"}, "invalid ip-range x: invalid CIDR block notation"),
        ({"IPRange": "fd00::/64"}, "invalid ip-range fd00::/64: parent subnet is an IPv4 block"),
        ({"AuxiliaryAddresses": {"a": "10.8.0.7"}}, "invalid auxiliary address a: parent subnet 10.9.0.0/24 doesn't contain this address"),
        ({"AuxiliaryAddresses": {"a": "x"}}, "invalid auxiliary address a: invalid address"),
        (
            {"IPRange": "10.9.7.5/25", "Gateway": "x"},
            "* invalid ip-range 10.9.7.5/25: it should be 10.9.7.0/25\n"
            "* invalid ip-range 10.9.7.5/25: parent subnet 10.9.0.0/24 doesn't contain ip-range\n* invalid gateway x: invalid address",
        ),
    ],
)
def test_addresses_that_make_no_sense(config: dict[str, Any], message: str) -> None:
    wanted = config if "Subnet" in config or "invalid subnet" in message else {"Subnet": "10.9.0.0/24", **config}
    refused(400, f"invalid network config:\n{message}", **ipam(wanted))


@pytest.mark.parametrize(
    ("status", "message", "body"),
    [
        (500, "failed to allocate gateway (10.9.0.0): Address already in use", ipam({"Subnet": "10.9.0.0/24", "Gateway": "10.9.0.0"})),
        (
            500,
            "failed to allocate secondary ip address (a:10.9.0.1): Address already in use",
            ipam({"Subnet": "10.9.0.0/24", "AuxiliaryAddresses": {"a": "10.9.0.1"}}),
        ),
        (403, "Pool overlaps with other one on this address space", ipam({"Subnet": "172.17.5.0/24"})),
        (403, "Pool overlaps with other one on this address space", ipam({"Subnet": "0.0.0.0/0"})),
        (403, "Pool overlaps with other one on this address space", ipam({"Subnet": "10.9.0.0/24"}, {"Subnet": "10.9.0.0/25"})),
        (403, "bridge driver doesn't support multiple subnets", ipam({"Subnet": "10.9.0.0/24"}, {"Subnet": "10.8.0.0/24"})),
        (400, "'fe80::/80' clashes with the Link-Local prefix 'fe80::/64'", {"EnableIPv6": True, **ipam({"Subnet": "fe80::/80"})}),
        (400, "multicast subnet 'ff00::/64' is not allowed", {"EnableIPv6": True, **ipam({"Subnet": "ff00::/64"})}),
        (400, "IPv4 or IPv6 must be enabled", {"EnableIPv4": False}),
        (400, "ipv4 pool is empty", ipam(Driver="null")),
        (404, 'plugin "dhcp" not found', ipam(Driver="dhcp")),
        (403, "operation is not permitted on predefined bridge network ", {"Name": "bridge"}),
        (403, "operation is not permitted on predefined default network ", {"Name": "default"}),
        (400, "invalid name: name is empty", {"Name": " "}),
        (403, 'only one instance of "host" network is allowed', {"Driver": "host"}),
        (403, 'only one instance of "null" network is allowed', {"Driver": "null"}),
        (501, "not implemented: --driver ipvlan", {"Driver": "ipvlan"}),
        (404, 'plugin "weave" not found', {"Driver": "weave"}),
        (403, "Ingress network can only be global scope network", {"Ingress": True}),
        (403, "cannot create a swarm scoped network when swarm is not active", {"Scope": "swarm"}),
        (403, "a configuration network cannot depend on another configuration network",
         {"ConfigOnly": True, "ConfigFrom": {"Network": "x"}}),
        (404, 'configuration network "bridge" does not exist', {"ConfigFrom": {"Network": "bridge"}}),
        (500, "gateway mode 'isolated' can only be used for an internal network", {"Options": {BRIDGE + "gateway_mode_ipv4": "isolated"}}),
        (500, "requested macvlan mode 'l2' is not valid, 'bridge' mode is the macvlan driver default",
         {"Driver": "macvlan", "Options": {"macvlan_mode": "l2"}}),
        (500, "loopback interface is not a valid macvlan parent link", {"Driver": "macvlan", "Options": {"parent": "lo"}}),
        (400, "unknown network option knarr.network.fast for driver bridge", {"Options": {"knarr.network.fast": "1"}}),
    ],
)  # fmt: skip
def test_what_dockerd_refuses_too(status: int, message: str, body: dict[str, Any]) -> None:
    refused(status, message, **body)


def test_overlay_names_swarm_and_control_characters_are_no_names() -> None:
    with pytest.raises(KnarrError, match="This node is not a swarm manager"):
        create(Driver="overlay")
    with pytest.raises(KnarrError, match="cannot be printed"):
        create(Name="a\x1b[2J")


def test_names_and_links_are_taken_once() -> None:
    front = create(Options={BRIDGE + "name": "web0"})
    assert front.link == "web0"
    refused(409, "network with name front already exists", [front])
    with pytest.raises(KnarrError, match=r"conflicts with network .* \(web0\): networks have same bridge name") as caught:
        create([front], Name="back", Options={BRIDGE + "name": "web0"})
    assert caught.value.status == 403


def test_no_gateway_where_none_is_of_use() -> None:
    isolated = {BRIDGE + "gateway_mode_ipv4": "isolated", BRIDGE + "gateway_mode_ipv6": "isolated"}
    made = create(Internal=True, EnableIPv6=True, Options=isolated)
    assert [pool.gateway for pool in made.pools] == ["", ""]
    assert create(Internal=True, Options={BRIDGE + "inhibit_ipv4": "true"}).pools[0].gateway == ""
    assert create(Options={BRIDGE + "inhibit_ipv4": "true"}).pools[0].gateway == "172.18.0.1"
    assert create(Driver="macvlan").pools[0].gateway == ""
    assert create(Driver="macvlan", Options={"parent": "eth0"}).pools[0].gateway == "172.18.0.1"


def test_macvlan_has_several_subnets_and_its_parent_alone_in_passthru() -> None:
    made = create(Driver="macvlan", Options={"parent": "eth0.5"}, **ipam({"Subnet": "10.9.0.0/24"}, {"Subnet": "10.8.0.0/24"}))
    assert made.link == "eth0.5" and [pool.gateway for pool in made.pools] == ["10.9.0.1", "10.8.0.1"]
    assert create(Driver="macvlan").link.startswith("dm-")
    passthru = {"Driver": "macvlan", "Name": "b", "Options": {"parent": "eth0.5", "macvlan_mode": "passthru"}}
    refused(500, f"cannot use mode passthru, macvlan network {made.id} is already using parent interface eth0.5", [made], **passthru)
    alone = create(**passthru)
    message = f"macvlan network {alone.id} is already using parent interface eth0.5 in mode passthru"
    refused(500, message, [alone], Driver="macvlan", Options={"parent": "eth0.5"})
    assert networkoptions.split_vlan("eth0.5") == ("eth0", 5)
    for parent, text in (("eth0", "invalid subinterface vlan name"), ("a.b.5", "required interface name format"), ("eth0.4095", "1-4094")):
        with pytest.raises(KnarrError, match=text):
            networkoptions.split_vlan(parent)


def test_a_configuration_network_takes_no_addresses_and_gives_all_it_has() -> None:
    config = create(
        Name="config", ConfigOnly=True, EnableIPv6=True, Options={"foo": "bar"}, Labels={"l": "1"},
        **ipam({"Subnet": "10.97.0.0/24"}, {"Subnet": "fd00:97::/64"}),
    )  # fmt: skip
    assert (config.driver, config.link) == ("null", "")
    user = create([config], ConfigFrom={"Network": "config"})
    assert [pool.subnet for pool in user.pools] == ["10.97.0.0/24", "fd00:97::/64"]
    assert (user.options, user.labels, user.config_from, user.ipv6) == ({"foo": "bar"}, {"l": "1"}, "config", True)
    own = "user specified configurations are not supported if the network depends on a configuration network"
    for body in ({"Labels": {"a": "b"}}, {"EnableIPv6": True}, ipam({"Subnet": "10.1.0.0/24"})):
        refused(403, own, [config], ConfigFrom={"Network": "config"}, **body)
    message = "network driver options are not supported if the network depends on a configuration network"
    refused(403, message, [config], ConfigFrom={"Network": "config"}, Options={"a": "b"})
    for field in ("Internal", "Attachable", "Ingress"):
        with pytest.raises(KnarrError, match="configuration network can only contain network specific fields"):
            create(ConfigOnly=True, **{field: True})


def test_bridge_options() -> None:
    options = {
        "name": "web0", "enable_ip_masquerade": "0", "enable_icc": "F", "host_binding_ipv4": "127.0.0.1", "gateway_mode_ipv4": "routed",
        "gateway_mode_ipv6": "nat-unprotected", "inhibit_ipv4": "t", "trusted_host_interfaces": "vxlan.1:eth3",
    }  # fmt: skip
    more = {"driver.mtu": "1400", "container_iface_prefix": "lan", "host_ipv4": "192.0.2.1", "host_ipv6": "2001:DB8::1"}
    found = BridgeOptions.of(
        {BRIDGE + key: value for key, value in options.items()}
        | {f"com.docker.network.{key}": value for key, value in more.items()}
        | {"knarr.network.antispoofing": "false", "org.example.label": "x"}
    )
    assert found == BridgeOptions(
        name="web0", masquerade=False, icc=False, host_binding="127.0.0.1", gateway_mode_ipv4="routed", gateway_mode_ipv6="nat-unprotected",
        inhibit_ipv4=True, trusted=("vxlan.1", "eth3"), mtu=1400, iface_prefix="lan", host_ipv4="192.0.2.1", host_ipv6="2001:db8::1",
        antispoofing=False,
    )  # fmt: skip
    assert BridgeOptions.of({}) == BridgeOptions.of({BRIDGE + "host_binding_ipv4": "0.0.0.0", "com.docker.network.driver.mtu": "0"})
    assert MacvlanOptions.of({"parent": "eth0", "macvlan_mode": ""}) == MacvlanOptions(parent="eth0", mode="bridge")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (BRIDGE + "enable_icc", "maybe", '.* value: maybe (strconv.ParseBool: parsing "maybe": invalid syntax)'),
        (BRIDGE + "host_binding_ipv4", "x", ".* value: x (nil ip)"),
        (BRIDGE + "gateway_mode_ipv4", "x", ".* value: x (unknown gateway mode x)"),
        ("com.docker.network.driver.mtu", "x", '.* value: x (strconv.Atoi: parsing "x": invalid syntax)'),
        ("com.docker.network.driver.mtu", "-5", "invalid MTU number: -5"),
        ("com.docker.network.driver.mtu", "9" * 30, f'.* value: {"9" * 30} (strconv.Atoi: parsing "{"9" * 30}": invalid syntax)'),
        ("com.docker.network.host_ipv4", "::1", ".* value: ::1 (not an IPv4 address)"),
        ("com.docker.network.enable_ipv6", "x", 'driver-opt "com.docker.network.enable_ipv6" is not a valid bool'),
    ],
)
def test_options_with_bad_values(name: str, value: str, message: str) -> None:
    refused(400, message.replace(".*", f"failed to parse {name}"), Options={name: value})


@pytest.mark.parametrize("name", ["a/b", "x" * 16, "ü" * 8, "..", "a b", "a:b", "a\n", "eth%d"])
def test_what_the_kernel_takes_for_no_name_of_a_link(name: str) -> None:
    for option in (BRIDGE + "name", "com.docker.network.container_iface_prefix", BRIDGE + "trusted_host_interfaces"):
        if name != "a:b" or "trusted" not in option:
            with pytest.raises(KnarrError, match="failed to parse"):
                create(Options={option: name + "/" if name == ".." else name})


def test_options_that_switch_families() -> None:
    assert create(Options={"com.docker.network.enable_ipv6": "1"}).ipv6
    made = create(EnableIPv6=False, Options={"com.docker.network.enable_ipv6": "1"})
    assert not made.ipv6 and made.options == {}


def test_options_without_effect_are_kept_and_told() -> None:
    made = create(Options={BRIDGE + "unknown": "x", "org.example.label": "x", "parent": "eth0"})
    assert len(made.options) == 3
    assert networkcreate.warnings(made) == [
        f"network option {BRIDGE}unknown is kept and has no effect for driver bridge",
        "network option parent is kept and has no effect for driver bridge",
    ]


def test_the_daemons_settings_for_new_networks() -> None:
    settings = NetworkSettings(
        default_address_pools=[AddressPool("10.64.0.0/10", 26)],
        default_network_opts={"bridge": {BRIDGE + "enable_icc": "false", "com.docker.network.driver.mtu": "1400"}},
    )
    made = create(settings=settings, Options={"com.docker.network.driver.mtu": "1300"})
    assert made.pools[0].subnet == "10.64.0.0/26"
    assert made.options == {BRIDGE + "enable_icc": "false", "com.docker.network.driver.mtu": "1300"}
    assert create(settings=settings, Driver="macvlan").options == {}
    assert create(settings=settings, EnableIPv6=True).pools[1].subnet.startswith("fd")


def test_the_networks_there_always_are() -> None:
    bridge, host, none = start()
    assert [(n.name, n.driver, n.predefined) for n in (bridge, host, none)] == [
        ("bridge", "bridge", True), ("host", "host", True), ("none", "null", True),
    ]  # fmt: skip
    assert bridge.link == "knarr0" and bridge.pools == [
        Pool(subnet="172.17.0.0/16", gateway="172.17.0.1", given_subnet=False, given_gateway=False)
    ]
    assert bridge.options == {
        BRIDGE + "default_bridge": "true", BRIDGE + "enable_icc": "true", BRIDGE + "enable_ip_masquerade": "true",
        BRIDGE + "host_binding_ipv4": "0.0.0.0", BRIDGE + "name": "knarr0", "com.docker.network.driver.mtu": "1500",
    }  # fmt: skip
    assert start(bridge="none") != [] and [n.name for n in start(bridge="none")] == ["host", "none"]
    others = {start(root)[0].link for root in ("/run/a", "/run/b")}
    assert len(others) == 2 and all(len(link) == 12 for link in others)


def test_a_later_start_keeps_identifiers_and_chosen_subnets() -> None:
    first = start(ipv6=True)
    front = create()
    again = networkcreate.predefined(NetworkSettings(ipv6=True), "/run/knarr", [*first, front], lambda: ["172.17.0.0/16"])
    assert again == first
    moved = start(stored=[*first, front], bip="10.5.0.1/24", icc=False)
    assert moved[0].id == first[0].id and moved[0].pools[0].subnet == "10.5.0.0/24"
    back = networkcreate.predefined(NetworkSettings(), "/run/knarr", [*moved, front], lambda: ["10.5.0.0/24"])
    assert back[0].pools[0].subnet == "172.17.0.0/16"


def test_the_predefined_bridge_as_the_settings_want_it() -> None:
    bridge = start(
        bip="192.168.5.7/24", fixed_cidr="192.168.5.128/25", default_gateway="192.168.5.254", ipv6=True, fixed_cidr_v6="2001:db8::/64",
        icc=False, ip_masq=False, ip="127.0.0.1", mtu=1400,
    )[0]  # fmt: skip
    assert bridge.pools == [
        Pool(subnet="192.168.5.0/24", ip_range="192.168.5.128/25", gateway="192.168.5.7", aux={"DefaultGatewayIPv4": "192.168.5.254"}),
        Pool(subnet="2001:db8::/64", ip_range="2001:db8::/64", gateway="2001:db8::1", given_gateway=False),
    ]
    options = BridgeOptions.of(bridge.options)
    assert (options.icc, options.masquerade, options.host_binding, options.mtu) == (False, False, "127.0.0.1", 1400)
    assert start(fixed_cidr="10.7.0.0/20")[0].pools[0].subnet == "10.7.0.0/20"


def test_a_bridge_of_the_hosts() -> None:
    settings = NetworkSettings(bridge="lan0")
    bridge = networkcreate.predefined(settings, "/run/knarr", [], list, addresses=["10.4.0.9/22", "10.3.0.1/24", "fe80::1/64"])[0]
    assert (bridge.link, bridge.foreign_link) == ("lan0", True)
    assert bridge.pools == [Pool(subnet="10.4.0.0/22", gateway="10.4.0.9")]
    assert networkcreate.predefined(settings, "/run/knarr", [], list, addresses=[])[0].pools[0].subnet == "172.17.0.0/16"
    with pytest.raises(KnarrError, match="bridge device with non default name lan0 must be created manually"):
        networkcreate.predefined(settings, "/run/knarr", [], list)


def test_a_predefined_bridge_that_cannot_be() -> None:
    front = create(**ipam({"Subnet": "10.5.0.0/16"}))
    with pytest.raises(KnarrError, match=r'^Error creating default "bridge" network: Pool overlaps') as caught:
        start(stored=[front], bip="10.5.0.1/24")
    assert caught.value.status == 403
    with pytest.raises(KnarrError, match="default gateway ip must be part of the network"):
        start(bip="10.5.0.1/24", default_gateway="10.6.0.1")


def test_records_survive_the_table() -> None:
    made = create(EnableIPv6=True, Options={"a": "b"}, **ipam({"Subnet": "10.9.0.0/24", "AuxiliaryAddresses": {"x": "10.9.0.9"}}))
    assert msgspec.json.decode(msgspec.json.encode(made), type=NetworkRecord) == made
