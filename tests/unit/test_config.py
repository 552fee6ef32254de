"""The daemon's settings: what a flag or daemon.json says is used, or refused by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli import daemon
from engine import config
from engine.errors import InvalidParameter, NotImplementedYet
from engine.spec import networksettings


def test_sizes_as_dockerd_writes_them() -> None:
    assert config.settings({}, {"default-shm-size": "64m"}).default_shm_size == 64 << 20
    assert config.settings({}, {}).default_shm_size == 64 << 20
    with pytest.raises(InvalidParameter):
        config.settings({}, {"default-shm-size": "much"})


def test_flags_and_file_must_not_contradict() -> None:
    assert config.settings({"data-root": "/a"}, {"data-root": "/a"}).data_root == "/a"
    with pytest.raises(InvalidParameter, match="both as a flag and in the configuration file"):
        config.settings({"data-root": "/a"}, {"data-root": "/b"})


@pytest.mark.parametrize("key", ["shutdown-timeout", "bridge-accept-fwmark", "userns-remap", "default-runtime", "containerd-namespace"])
def test_what_is_not_there_yet_is_refused_by_name(tmp_path: Path, key: str) -> None:
    path = tmp_path / "daemon.json"
    path.write_text(json.dumps({key: 1}))
    with pytest.raises(NotImplementedYet, match=key):
        config.load(str(path), required=True)


@pytest.mark.parametrize("text", ['{"nonsense": 1}', "[", "[]"])
def test_a_bad_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "daemon.json"
    path.write_text(text)
    with pytest.raises(InvalidParameter, match=r"daemon\.json"):
        config.load(str(path), required=True)


def test_registries_in_flags_and_file() -> None:
    members = {"proxies": {"http-proxy": "http://p:1", "no-proxy": "lan"}, "max-download-attempts": 9}
    found = config.settings({"limit-rate": "500k"}, members)
    assert (found.limit_rate, found.http_proxy, found.no_proxy, found.max_download_attempts) == (500 * 1024, "http://p:1", "lan", 9)
    assert (found.max_concurrent_downloads, found.max_concurrent_uploads) == (3, 5)
    assert config.settings({"http-proxy": "http://p:1"}, {"proxies": {"http-proxy": "http://p:1"}}).http_proxy == "http://p:1"


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"registry-mirrors": ["mirror.example"]}, "not a valid URI"),
        ({"registry-mirrors": ["https://m/?x=1"]}, "query or fragment"),
        ({"registry-mirrors": ["https://u:secret@m"]}, "username/password not allowed"),
        ({"insecure-registries": ["http://lab:5000"]}, "should not contain '://'"),
        ({"max-concurrent-downloads": -1}, "invalid max concurrent downloads: -1"),
        ({"max-download-attempts": 0}, "invalid max download attempts: 0"),
        ({"limit-rate": "fast"}, "invalid size"),
        ({"proxies": {"ftp-proxy": "x"}}, r"proxies\.ftp-proxy"),
        ({"http-proxy": "http://a", "proxies": {"http-proxy": "http://b"}}, "both as a flag"),
    ],
)
def test_registries_that_make_no_sense(members: dict[str, object], text: str) -> None:
    with pytest.raises(InvalidParameter, match=text) as caught:
        config.settings({}, members)
    assert "secret" not in str(caught.value)


def test_networks_in_flags_and_file(tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    pools = [{"base": "10.10.0.0/16", "size": 24}]
    path.write_text(
        json.dumps({"default-address-pools": pools, "live-restore": True, "userland-proxy": False, "host-gateway-ip": "10.0.0.1"})
    )
    members = config.load(str(path), required=True)
    flags, _ = daemon.parse(
        "--bip 10.1.0.1/24 --icc=false --dns 10.0.0.53 --dns ::1 --dns-opt ndots:2 --dns-search example.org --mtu 1400 --ip 127.0.0.1 "
        "--default-network-opt bridge=com.docker.network.driver.mtu=1300 --ipv6 --host-gateway-ip fd00::1".split()
    )
    del flags["host-gateway-ips"]
    found = config.settings(flags, members)
    assert [(pool.base, pool.size) for pool in found.default_address_pools] == [("10.10.0.0/16", 24)]
    assert (found.bip, found.icc, found.ipv6, found.mtu, found.ip) == ("10.1.0.1/24", False, True, 1400, "127.0.0.1")
    assert (found.dns, found.dns_opts, found.dns_search) == (["10.0.0.53", "::1"], ["ndots:2"], ["example.org"])
    assert found.default_network_opts == {"bridge": {"com.docker.network.driver.mtu": "1300"}}
    assert found.host_gateway_ips == ["10.0.0.1"]


def test_networks_without_a_word_are_as_dockerds() -> None:
    found = config.settings({}, {})
    assert (found.icc, found.ip_forward, found.ip_masq, found.iptables, found.ipv6, found.ip) == (True, True, True, True, False, "0.0.0.0")
    pools = networksettings.address_pools(found, "host")
    assert [(pool.base, pool.size) for pool in pools[:2]] == [("172.17.0.0/16", 16), ("172.18.0.0/16", 16)]
    assert pools[-1].base.startswith("fd") and pools == networksettings.address_pools(found, "host")
    flags, _ = daemon.parse(["--default-address-pool", "base=10.0.0.0/8,size=24", "--default-address-pool", "base=fd00:7::/48,size=64"])
    assert [pool.size for pool in networksettings.address_pools(config.settings(flags, {}), "host")] == [24, 64]


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"bip": "x"}, "invalid bip: invalid CIDR address: x"),
        ({"bip": "10.0.0.1"}, "invalid bip: invalid CIDR address"),
        ({"bip": "10.0.0.0/24"}, "network address, not the bridge's"),
        ({"bip": "fd00::1/64"}, "not an IPv4 address"),
        ({"bridge": "lan0", "bip": "10.0.0.1/24"}, "You specified -b & --bip, mutually exclusive options"),
        ({"fixed-cidr": "x"}, "invalid fixed-cidr: invalid CIDR address: x"),
        ({"fixed-cidr-v6": "10.0.0.0/8"}, "invalid fixed-cidr-v6: '10.0.0.0/8' is not a valid IPv6 subnet"),
        ({"bip": "10.0.0.1/24", "fixed-cidr": "10.1.0.0/25"}, "not part of the bridge's network"),
        ({"default-address-pools": [{"base": "10.0.0.0/8", "size": 4}]}, "size 4 is no prefix length from 8 to 32"),
        ({"default-address-pools": [{"base": "10.0.0.1/8", "size": 24}]}, "has host bits set"),
        ({"default-address-pools": [{"base": "10.0.0.0/8"}]}, "default-address-pools"),
        ({"default-gateway": "x"}, 'failed to parse IP: "x"'),
        ({"dns": ["example.org"]}, 'invalid dns: failed to parse IP: "example.org"'),
        ({"dns-search": ["a b"]}, "a b is not a valid domain"),
        ({"dns-opts": ["a\nnameserver 6.6.6.6"]}, "invalid dns-opts"),
        ({"mtu": 20}, "invalid default MTU: 20"),
        ({"host-gateway-ips": ["10.0.0.1", "10.0.0.2"]}, "only one IPv4 host gateway IP address can be specified"),
        ({"default-network-opts": {"bridge": "x"}}, "default-network-opts"),
    ],
)
def test_networks_that_make_no_sense(members: dict[str, object], text: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        config.settings({}, members)
    assert text in str(caught.value)


@pytest.mark.parametrize("members", [{"live-restore": False}, {"iptables": False}, {"ip6tables": False}, {"firewall-backend": "iptables"}])
def test_switches_with_one_position(members: dict[str, object]) -> None:
    with pytest.raises(NotImplementedYet, match=next(iter(members))):
        config.settings({}, members)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--icc=maybe", 'invalid argument "maybe" for "--icc" flag: strconv.ParseBool'),
        ("--default-address-pool x=y", "unexpected key 'x' in 'x=y'"),
        ("--default-address-pool base=10.0.0.0/8", "invalid size"),
        ("--default-network-opt bridge=x", "should be root-key=key=value"),
        ("--mtu x", "invalid argument 'x'"),
    ],
)
def test_flags_of_networks_with_bad_values(words: str, text: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        daemon.parse(words.split())
    assert text in str(caught.value)
