"""Patterns of filters match what Go's path.Match matches."""

from __future__ import annotations

import pytest

from engine.errors import InvalidParameter
from engine.spec import glob


@pytest.mark.parametrize(("pattern", "text", "matched"), [
    # Rows of Go's own table of path.Match.
    ("abc", "abc", True), ("*", "abc", True), ("*c", "abc", True), ("a*", "a", True), ("a*", "abc", True), ("a*", "ab/c", False),
    ("a*/b", "abc/b", True), ("a*/b", "a/c/b", False), ("a*b*c*d*e*/f", "axbxcxdxe/f", True), ("a*b*c*d*e*/f", "axbxcxdxexxx/f", True),
    ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", False), ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", False), ("a*b?c*x", "abxbbxdbxebxczzx", True),
    ("a*b?c*x", "abxbbxdbxebxczzy", False), ("ab[c]", "abc", True), ("ab[b-d]", "abc", True), ("ab[e-g]", "abc", False),
    ("ab[^c]", "abc", False), ("ab[^b-d]", "abc", False), ("ab[^e-g]", "abc", True), ("a\\*b", "a*b", True), ("a\\*b", "ab", False),
    ("a?b", "a\u263ab", True), ("a[^a]b", "a\u263ab", True), ("a???b", "a\u263ab", False), ("[a-\u03b6]*", "\u03b1", True),
    ("*[a-\u03b6]", "A", False),
    ("a?b", "a/b", False), ("a*b", "a/b", False), ("[\\]a]", "]", True), ("[\\-]", "-", True), ("[x\\-]", "x", True),
    ("[x\\-]", "z", False),
    ("*x", "xxx", True), ("", "", True), ("", "a", False), ("**", "a", True), ("a[^b]c", "a/c", False), ("[z-a]", "b", False),
    ("*.*", "a.b", True), ("(a|b)+", "a", False), ("(a|b)+", "(a|b)+", True),
])  # fmt: skip
def test_match(pattern: str, text: str, matched: bool) -> None:
    assert (glob.compile(pattern).fullmatch(text) is not None) is matched


@pytest.mark.parametrize("pattern", ["[]a]", "[-]", "[x-]", "[-x]", "[a-b-c]", "[", "[^", "[^bc", "a[", "\\", "x\\", "[a\\"])
def test_malformed(pattern: str) -> None:
    with pytest.raises(InvalidParameter, match="syntax error in pattern"):
        glob.compile(pattern)


def test_many_stars_take_no_time() -> None:
    # Whoever goes back does not live to see the end of this.
    assert glob.compile("*a" * 40 + "b").fullmatch("a" * 250) is None
