"""Names of images: Docker's normal form, familiar form and errors."""

from __future__ import annotations

import pytest

from engine.errors import InvalidParameter
from engine.spec.reference import Reference, parse

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("busybox", "docker.io/library/busybox", "busybox"),
        ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
        ("library/busybox", "docker.io/library/busybox", "busybox"),
        ("docker.io/busybox", "docker.io/library/busybox", "busybox"),
        ("index.docker.io/library/busybox:x", "docker.io/library/busybox:x", "busybox:x"),
        ("user/app", "docker.io/user/app", "user/app"),
        ("user/app/part", "docker.io/user/app/part", "user/app/part"),
        ("localhost/app", "localhost/app", "localhost/app"),
        ("localhost:5000/app:v1", "localhost:5000/app:v1", "localhost:5000/app:v1"),
        ("quay.io/a/b", "quay.io/a/b", "quay.io/a/b"),
        ("host:5000/app", "host:5000/app", "host:5000/app"),
        ("[::1]:5000/app", "[::1]:5000/app", "[::1]:5000/app"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}", f"busybox@{DIGEST}"),
        (f"busybox:1@{DIGEST}", f"docker.io/library/busybox:1@{DIGEST}", f"busybox:1@{DIGEST}"),
        ("a-b/c.d__e/f---g", "docker.io/a-b/c.d__e/f---g", "a-b/c.d__e/f---g"),
        ("UPPER/app", "UPPER/app", "UPPER/app"),
    ],
)
def test_normal_and_familiar_form(text: str, full: str, familiar: str) -> None:
    reference = parse(text)
    assert str(reference) == full
    assert reference.familiar == familiar
    assert parse(full) == reference


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Busybox", "invalid reference format: repository name (library/Busybox) must be lowercase"),
        ("user/App", "invalid reference format: repository name (user/App) must be lowercase"),
        ("", "invalid reference format"),
        ("busybox:", "invalid reference format"),
        ("busybox:-x", "invalid reference format"),
        ("bad name", "invalid reference format"),
        ("a//b", "invalid reference format"),
        ("/a", "invalid reference format"),
        ("a/", "invalid reference format"),
        ("a..b", "invalid reference format"),
        ("busybox@sha256:1234", "invalid reference format"),
        ("a_b.c/d", "invalid reference format"),
        ("a:b:c", "invalid reference format"),
        ("busybox:" + "x" * 129, "invalid reference format"),
        ("f" * 64, "invalid repository name (" + "f" * 64 + "), cannot specify 64-byte hexadecimal strings"),
        ("x" * 260, "invalid reference format: repository name must not be more than 255 characters"),
    ],
)
def test_errors_are_dockers(text: str, message: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse(text)
    assert str(caught.value) == message


def test_default_tag() -> None:
    assert parse("busybox").with_default_tag() == Reference("docker.io", "library/busybox", "latest")
    assert parse("busybox:1").with_default_tag().tag == "1"
    assert parse(f"busybox@{DIGEST}").with_default_tag().tag == ""
    assert parse("busybox").with_tag("x").familiar == "busybox:x"
    with pytest.raises(InvalidParameter, match="invalid tag format"):
        parse("busybox").with_tag("a b")
