"""The client's own reading of image names and platforms: pure, compared with the daemon's and with Docker's words."""
# ruff: noqa: E501

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import platforms, references
from engine.errors import InvalidParameter
from engine.spec import reference as daemons

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "whole", "familiar"),
    [
        ("x", "docker.io/library/x", "x"), ("x:1", "docker.io/library/x:1", "x"), ("a/b", "docker.io/a/b", "a/b"),
        ("docker.io/x", "docker.io/library/x", "x"), ("index.docker.io/a/b:t", "docker.io/a/b:t", "a/b"),
        ("localhost/x", "localhost/x", "localhost/x"), ("host:5000/a/b__c:v1.2-3", "host:5000/a/b__c:v1.2-3", "host:5000/a/b__c"),
        ("Upper/x", "Upper/x", "Upper/x"), (f"x@{DIGEST}", f"docker.io/library/x@{DIGEST}", "x"),
        (f"[::1]:5000/x:1@{DIGEST}", f"[::1]:5000/x:1@{DIGEST}", "[::1]:5000/x"), ("docker.io/library/a/b", "docker.io/library/a/b", "library/a/b"),
    ],
)  # fmt: skip
def test_names(text: str, whole: str, familiar: str) -> None:
    found = references.parse(text)
    assert (str(found), found.familiar) == (whole, familiar)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid reference format"), ("x:", "invalid reference format"), ("x@sha256:abc", "invalid reference format"), ("a//b", "invalid reference format"),
        ("x:-a", "invalid reference format"), ("a___b", "invalid reference format"), ("a..b", "invalid reference format"), ("a-_b", "invalid reference format"),
        ("X", "invalid reference format: repository name (library/X) must be lowercase"), ("x" * 256, "repository name must not be more than 255 characters"),
        ("ab" * 32, "cannot specify 64-byte hexadecimal strings"), ("a/../b", "invalid reference format"), ("host:port/x", "invalid reference format"),
        ("x:" + "t" * 129, "invalid reference format"), ("x@md5:" + "a" * 32, "unsupported digest algorithm"), ("x@sha256:" + "a" * 40, "invalid checksum digest length"),
    ],
)  # fmt: skip
def test_what_is_no_name(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        references.parse(text)


@given(st.text(alphabet="abX01.-_/:@[]hl", max_size=14) | st.from_regex(r"[a-z.]{1,4}(:[0-9]{1,2})?/[a-z._-]{1,6}(:[A-Za-z._-]{1,5})?", fullmatch=True))
def test_client_and_daemon_read_a_name_alike(text: str) -> None:
    try:
        ours: str | None = str(references.parse(text))
    except ValueError:
        ours = None
    try:
        theirs: str | None = str(daemons.parse(text))
    except InvalidParameter:
        theirs = None
    assert ours == theirs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", {"os": "linux", "architecture": "amd64"}), ("linux/x86_64", {"os": "linux", "architecture": "amd64"}),
        ("linux/arm64", {"os": "linux", "architecture": "arm64"}), ("linux/aarch64", {"os": "linux", "architecture": "arm64"}),
        ("linux/arm64/v8", {"os": "linux", "architecture": "arm64", "variant": "v8"}), ("linux/arm/v6", {"os": "linux", "architecture": "arm", "variant": "v6"}),
        ("linux/arm/7", {"os": "linux", "architecture": "arm", "variant": "v7"}), ("linux/arm", {"os": "linux", "architecture": "arm"}),
        ("linux/armel", {"os": "linux", "architecture": "arm", "variant": "v6"}), ("arm64", {"os": "linux", "architecture": "arm64"}),
        ("Linux/AMD64", {"os": "linux", "architecture": "amd64"}), ("windows/amd64", {"os": "windows", "architecture": "amd64"}),
    ],
)  # fmt: skip
def test_platforms(text: str, expected: dict[str, str]) -> None:
    assert platforms.parse(text) == expected


@pytest.mark.parametrize("text", ["a/b/c/d", "foo", "linux/", "/", "linux/a b", "linux/ä"])
def test_what_is_no_platform(text: str) -> None:
    with pytest.raises(ValueError, match="invalid argument"):
        platforms.parse(text)
