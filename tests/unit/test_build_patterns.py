"""Sources of COPY with wildcards match what BuildKit matches."""

from __future__ import annotations

import pytest

from builder.language import patterns


@pytest.mark.parametrize(("path", "expected"), [
    ("a", False), ("a*", True), ("a/?", True), ("[a", True), ("a]", False), ("\\*", False), ("\\**", True), ("a\\", False), ("", False),
])  # fmt: skip
def test_what_is_a_pattern(path: str, expected: bool) -> None:
    assert patterns.has_wildcard(path) is expected


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
