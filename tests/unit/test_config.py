"""The daemon's settings: what a flag or daemon.json says is used, or refused by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine import config
from engine.errors import InvalidParameter, NotImplementedYet


def test_sizes_as_dockerd_writes_them() -> None:
    assert config.settings({}, {"default-shm-size": "64m"}).default_shm_size == 64 << 20
    assert config.settings({}, {}).default_shm_size == 64 << 20
    with pytest.raises(InvalidParameter):
        config.settings({}, {"default-shm-size": "much"})


def test_flags_and_file_must_not_contradict() -> None:
    assert config.settings({"data-root": "/a"}, {"data-root": "/a"}).data_root == "/a"
    with pytest.raises(InvalidParameter, match="both as a flag and in the configuration file"):
        config.settings({"data-root": "/a"}, {"data-root": "/b"})


@pytest.mark.parametrize("key", ["shutdown-timeout", "live-restore", "userns-remap", "default-runtime", "containerd-namespace"])
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
