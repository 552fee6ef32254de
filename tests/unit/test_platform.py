"""Platforms: normal forms and the choice of a variant."""

from __future__ import annotations

import pytest

from engine.errors import InvalidParameter
from engine.spec.platform import Platform, best, from_machine, parse, rank


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("linux/amd64", "linux/amd64"), ("linux/x86_64", "linux/amd64"), ("amd64", "linux/amd64"), ("linux/arm64/v8", "linux/arm64"),
        ("linux/aarch64", "linux/arm64"), ("linux/arm", "linux/arm/v7"), ("linux/arm/v6", "linux/arm/v6"), ("linux/arm/7", "linux/arm/v7"),
        ("armhf", "linux/arm/v7"), ("linux/386", "linux/386"), ("windows/amd64", "windows/amd64"), ("linux/riscv64", "linux/riscv64"),
    ],
)  # fmt: skip
def test_normal_form(text: str, shown: str) -> None:
    assert str(parse(text)) == shown


@pytest.mark.parametrize("text", ["", "a/b/c/d", "linux//v7", "linux/am d64", "../x"])
def test_malformed(text: str) -> None:
    with pytest.raises(InvalidParameter, match="cannot parse platform specifier"):
        parse(text)


def test_one_word() -> None:
    assert str(parse("linux", Platform("riscv64"))) == "linux/riscv64"
    assert str(parse("linux")) == "linux"
    with pytest.raises(InvalidParameter, match='"nonsense": unknown operating system or architecture'):
        parse("nonsense")


def test_machine_names() -> None:
    assert str(from_machine("x86_64")) == "linux/amd64"
    assert str(from_machine("armv6l")) == "linux/arm/v6"
    assert str(from_machine("aarch64")) == "linux/arm64"


def offered(*texts: str) -> list[Platform | None]:
    return [Platform(*reversed(text.split("/")[:2]), text.split("/")[2] if text.count("/") > 1 else "") for text in texts]


def test_the_highest_variant_that_runs_wins() -> None:
    images = offered("linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/arm64/v8", "linux/amd64")
    assert best(images, parse("linux/arm/v7")) == 2
    assert best(images, parse("linux/arm/v6")) == 1
    assert best(images, parse("linux/arm/v5")) == 0
    assert best(images, parse("linux/arm64")) == 3
    assert best(images[:3], parse("linux/arm64")) == 2
    assert best(images[2:3], parse("linux/arm/v6")) is None
    assert best(images, parse("linux/386")) is None


def test_unnamed_platforms_come_last() -> None:
    assert best([None, *offered("linux/amd64")], parse("linux/amd64")) == 1
    assert best([None, *offered("linux/s390x")], parse("linux/amd64")) == 0
    assert rank(parse("linux/386"), parse("linux/amd64")) > rank(parse("linux/amd64"), parse("linux/amd64")) >= 0
