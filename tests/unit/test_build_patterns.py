"""Sources of COPY with wildcards match what BuildKit matches."""

from __future__ import annotations

import pytest

from builder.language import patterns
from engine.errors import InvalidParameter


@pytest.mark.parametrize(("path", "expected"), [
    ("a", False), ("a*", True), ("a/?", True), ("[a", True), ("a]", False), ("\\*", False), ("\\**", True), ("a\\", False), ("", False),
])  # fmt: skip
def test_what_is_a_pattern(path: str, expected: bool) -> None:
    assert patterns.has_wildcard(path) is expected


@pytest.mark.parametrize(("path", "base", "matching", "others"), [
    ("*.go", "", ["a.go", ".go"], ["a.go/b", "a.c", "x/a.go"]), ("/src/*.go", "src", ["a.go"], ["x/a.go"]),
    ("./a/../b?", "", ["bc"], ["b", "b/c"]),
    ("*/x/*.c", "", ["a/x/b.c"], ["a/y/b.c", "a/x", "a/x/b.c/d"]), ("**/a", "", ["x/a"], ["a", "x/y/a"]),
    ("arr[[]0].txt", "", ["arr[0].txt"], ["arr0"]),
    ("[^a]/b", "", ["x/b"], ["a/b"]), ("d/[a-c]\\*", "d", ["b*"], ["bb"]), ("d\\*/*", "d\\*", ["a"], []), ("../../*", "", ["a"], []),
    ("plain/path", "plain/path", [""], ["a"]), ("/", "", [""], ["a"]), ("ü?n", "", ["üün"], ["üü"]),
])  # fmt: skip
def test_what_a_source_matches(path: str, base: str, matching: list[str], others: list[str]) -> None:
    glob = patterns.Glob(path)
    assert glob.base == base
    for name in matching:
        assert glob.matches(tuple(name.split("/")) if name else ())
    for name in others:
        assert not glob.matches(tuple(name.split("/")))


def test_folders_to_walk() -> None:
    glob = patterns.Glob("s*/x/*.c")
    assert all(glob.may_contain(names) for names in ((), ("src",), ("src", "x"), ("src", "x", "a.c")))
    assert not any(glob.may_contain(names) for names in (("lib",), ("src", "y"), ("src", "x", "a.c", "b")))


@pytest.mark.parametrize("path", ["a/[", "*/[]", "*\\"])
def test_malformed(path: str) -> None:
    with pytest.raises(InvalidParameter, match="syntax error in pattern"):
        patterns.Glob(path)


@pytest.mark.parametrize(("path", "pivot", "taken", "left"), [
    ("src/a.c", "", ["src/a.c", "src/a.c/x"], ["src", "a.c"]), ("a/./b/*.c", "a", ["b/x.c"], ["b/y/x.c"]),
    ("**/*.c", "", ["x.c", "a/b/x.c"], ["x.h"]),
    ("a/./**/x", "a", ["x", "b/c/x", "x/y"], ["y"]), ("/top/./", "top", ["x", "a/b"], []), ("./a/b", "", ["a/b"], ["b"]),
    ("a/././b", "a", ["b"], ["a"]),
])  # fmt: skip
def test_with_parents(path: str, pivot: str, taken: list[str], left: list[str]) -> None:
    found, wanted = patterns.with_parents(path)
    assert found == pivot
    assert all(wanted.excluded(each) for each in taken) and not any(wanted.excluded(each) for each in left)
