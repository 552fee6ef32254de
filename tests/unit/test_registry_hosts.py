"""Which servers answer for a registry: hosts.toml, Docker's folders of certificates, mirrors, insecure registries, proxies."""

from __future__ import annotations

import ssl
import time
from pathlib import Path

import pytest

from engine.errors import InvalidParameter
from engine.registry import transport
from engine.registry.hosts import DEFAULT_FOLDERS, Hosts, Tls, certificates, hosts_toml, is_insecure
from engine.registry.proxies import Proxies, bypassed, from_settings, mask


def urls(hosts: Hosts, domain: str) -> list[str]:
    return [endpoint.url for endpoint in hosts.endpoints(domain)]


def test_docker_hub_is_at_another_host_and_alone_has_dockerd_mirrors(tmp_path: Path) -> None:
    hosts = Hosts(folders=(str(tmp_path),), mirrors=("https://mirror.example/", "http://near:5000"))
    assert urls(hosts, "docker.io") == ["https://mirror.example/v2", "http://near:5000/v2", "https://registry-1.docker.io/v2"]
    assert urls(hosts, "quay.io") == ["https://quay.io/v2"]
    mirror, _, origin = hosts.endpoints("docker.io")
    assert mirror.mirror and "push" not in mirror.capabilities and not mirror.namespace
    assert not origin.mirror and "push" in origin.capabilities and not origin.insecure


def test_an_insecure_registry_is_tried_with_tls_first_and_unchecked(tmp_path: Path) -> None:
    hosts = Hosts(folders=(str(tmp_path),), insecure=("10.1.0.0/16", "lab", "Reg.local:5000"))
    assert urls(hosts, "127.0.0.1:5000") == ["https://127.0.0.1:5000/v2", "http://127.0.0.1:5000/v2"]
    assert urls(hosts, "lab:80") == ["https://lab:80/v2", "http://lab:80/v2"]
    assert all(endpoint.insecure and endpoint.tls.skip_verify for endpoint in hosts.endpoints("lab:80"))
    assert urls(hosts, "example.com") == ["https://example.com/v2"]


@pytest.mark.parametrize(
    ("host", "insecure"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.3.2.1:1", True),
        ("[::1]:5000", True),
        ("10.1.9.9:5000", True),
        ("10.2.0.1", False),
        ("reg.local:5000", True),
        ("reg.local:5001", False),
        ("lab:1234", True),
        ("notlab", False),
        ("127.0.0.1.example.com", False),
        ("localhost.example.com", False),
    ],
)
def test_what_is_insecure(host: str, insecure: bool) -> None:
    assert is_insecure(host, ("10.1.0.0/16", "lab", "reg.local:5000")) is insecure


def test_hosts_toml_mirrors_for_any_registry(tmp_path: Path) -> None:
    folder = tmp_path / "quay.io"
    folder.mkdir()
    (folder / "hosts.toml").write_text(
        """
        server = "https://quay.io"
        [host."https://cache.lan:8443"]
          capabilities = ["pull"]
          ca = "ca.pem"
          client = [["c.pem", "k.pem"], ["both.pem", ""]]
          dial_timeout = "1m5s"
          [host."https://cache.lan:8443".header]
            X-Site = ["a", "b"]
        [host."http://10.0.0.1/reg/v2"]
          override_path = true
          skip_verify = true
        """
    )
    first, second, origin = Hosts(folders=(str(tmp_path),)).endpoints("quay.io")
    assert first.url == "https://cache.lan:8443/v2" and first.namespace == "quay.io" and first.capabilities == {"pull"}
    assert first.tls == Tls((f"{folder}/ca.pem",), ((f"{folder}/c.pem", f"{folder}/k.pem"), (f"{folder}/both.pem", f"{folder}/both.pem")))
    assert first.timeout == 65 and first.headers == (("X-Site", "a"), ("X-Site", "b"))
    assert second.url == "http://10.0.0.1/reg/v2" and second.tls.skip_verify and second.insecure
    assert origin.url == "https://quay.io/v2" and not origin.namespace and not origin.mirror


def test_hosts_toml_without_a_server_falls_back_to_the_registry() -> None:
    found = hosts_toml('[host."cache.lan"]\n', "docker.io", "/etc/x")
    assert [e.url for e in found] == ["https://cache.lan/v2", "https://registry-1.docker.io/v2"]
    assert found[0].namespace == "docker.io" and not found[1].namespace


@pytest.mark.parametrize("name", ["reg.example_5000_", "reg.example:5000", "_default"])
def test_names_of_folders(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "hosts.toml").write_text('server = "https://other.example"')
    assert urls(Hosts(folders=(str(tmp_path),)), "reg.example:5000") == ["https://other.example/v2"]


@pytest.mark.parametrize(
    "text",
    [
        "server = 1",
        "[[host]]",
        'server = "ftp://x"',
        'server = "https://user:pw@x"',
        '[host."https://x"]\ncapabilities = ["fly"]',
        '[host."https://x"]\nskip_verify = "yes"',
        '[host."https://x"]\ndial_timeout = "soon"',
        '[host."https://x"]\nunknown = 1',
        '[host."https://x".header]\n"X-A" = "a\\r\\nEvil: 1"',
        "nonsense",
    ],
)
def test_a_bad_hosts_toml_is_refused_with_its_name(text: str) -> None:
    with pytest.raises(InvalidParameter, match=r"/etc/x/hosts\.toml"):
        hosts_toml(text, "quay.io", "/etc/x")


def test_docker_folders_of_certificates(tmp_path: Path) -> None:
    for name in ("a.crt", "b.crt", "client.cert", "client.key", "notes.txt"):
        (tmp_path / name).touch()
    found = certificates(str(tmp_path))
    assert found.authorities == (f"{tmp_path}/a.crt", f"{tmp_path}/b.crt")
    assert found.clients == ((f"{tmp_path}/client.cert", f"{tmp_path}/client.key"),)
    (tmp_path / "client.key").unlink()
    with pytest.raises(InvalidParameter, match=r"missing key client\.key for client certificate client\.cert"):
        certificates(str(tmp_path))
    (tmp_path / "client.cert").rename(tmp_path / "lost.key")
    with pytest.raises(InvalidParameter, match=r"missing client certificate lost\.cert for key lost\.key"):
        certificates(str(tmp_path))


def test_a_named_authority_is_checked_even_for_an_insecure_registry(tmp_path: Path) -> None:
    (tmp_path / "127.0.0.1:5000").mkdir()
    (tmp_path / "127.0.0.1:5000/ca.crt").touch()
    assert not Hosts(folders=(str(tmp_path),)).endpoints("127.0.0.1:5000")[0].tls.skip_verify
    assert DEFAULT_FOLDERS == ("/etc/containerd/certs.d", "/etc/docker/certs.d")


@pytest.mark.parametrize(
    ("host", "port", "no_proxy", "without"),
    [
        ("localhost", 80, "", True),
        ("127.0.0.1", 80, "", True),
        ("example.com", 443, "", False),
        ("example.com", 443, "*", True),
        ("example.com", 443, "other.com, example.com", True),
        ("a.example.com", 443, "example.com", True),
        ("example.com", 443, ".example.com", False),
        ("a.example.com", 443, ".example.com", True),
        ("notexample.com", 443, "example.com", False),
        ("example.com", 443, "example.com:444", False),
        ("example.com", 443, "example.com:443", True),
        ("10.1.2.3", 443, "10.0.0.0/8", True),
        ("10.1.2.3", 443, "10.1.2.3:443", True),
        ("11.1.2.3", 443, "10.0.0.0/8", False),
        ("fd00::1", 443, "[fd00::1]:443", True),
    ],
)
def test_no_proxy(host: str, port: int, no_proxy: str, without: bool) -> None:
    assert bypassed(host, port, no_proxy) is without


def test_proxies_of_settings_before_the_environment_and_masked() -> None:
    found = from_settings("", "user:secret@https-proxy:3128", "", {"HTTP_PROXY": "http://u:p@p:1", "https_proxy": "x", "no_proxy": "lan"})
    assert found == Proxies("http://u:p@p:1", "user:secret@https-proxy:3128", "lan")
    assert found.for_url("https://example.com/v2") == "http://user:secret@https-proxy:3128"
    assert found.for_url("http://lan/v2") == ""
    assert found.masked().http == "http://xxxxx:xxxxx@p:1"
    assert "secret" not in mask("user:secret@https-proxy:3128")


@pytest.mark.parametrize(("year", "hinted"), [(1970, True), (2026, False)])
def test_a_clock_that_was_never_set_is_named(monkeypatch: pytest.MonkeyPatch, year: int, hinted: bool) -> None:
    moment = time.struct_time((year, 1, 2, 3, 4, 5, 0, 2, 0))
    monkeypatch.setattr(transport.time, "gmtime", lambda: moment)
    error = ssl.SSLCertVerificationError()
    error.verify_code, error.verify_message = 9 if hinted else 10, "x"
    reason, final = transport._reason(error, "https://r.example/v2/")
    assert final and f"current time {year}-01-02" in reason
    assert (f"the clock of this host says {year}" in transport._hint(reason)) is hinted
