"""The walk of .dockerignore agrees with Docker's rules written down plainly: one expression for each pattern, tried on whole paths."""

from __future__ import annotations

import re
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from builder.language import ignore

_pieces = st.sampled_from(
    ["a", "b", "ab", "/", "/", "/", "*", "*", "**", "**/", "/**/", "/**", "?", "[ab]", "[^a]", "[b-z]", "\\*", ".", "é", "\n"]
)
_pattern = st.lists(_pieces, min_size=1, max_size=8).map("".join)
_lines = st.lists(st.tuples(st.booleans(), _pattern).map(lambda each: "!" * each[0] + each[1]), min_size=1, max_size=5)
_name = st.text("ab*é\n.", min_size=1, max_size=4).filter(lambda name: name not in (".", ".."))
_path = st.lists(_name, min_size=1, max_size=4)


def usable(lines: list[str]) -> list[str]:
    cleaned = [ignore.clean(line.strip()) for line in lines]
    return [line for line in cleaned if line not in ("!", ".", "/") and line == line.strip()]


def plainly(pattern: str) -> Callable[[str], object]:
    """Docker's translation of a pattern into the test of a whole path."""
    if pattern == "**":
        return lambda path: True
    rest = pattern[2:]
    if pattern.startswith("**") and not re.search(r"[*?\[\\]", rest):
        return lambda path: path.endswith(rest) or (rest.startswith("/") and path == rest[1:])
    if pattern.endswith("**") and not re.search(r"[*?\[\\]", pattern[:-2]):
        return lambda path: path.startswith(pattern[:-2])
    out = ""
    for token in re.findall(r"(?s)\*\*/?|\[[^\]]*\]|\\.|.", pattern):
        if token.startswith("**"):
            out += "(.*/)?"
        elif token.startswith("["):
            out += token
        else:
            out += {"*": "[^/]*", "?": "[^/]"}.get(token, re.escape(token.removeprefix("\\")))
    if re.search(r"\*\*/?\Z", pattern) and re.match(r"(?s)(?:[^*\\]|\\.|\*\*/?|\*(?!\*))*\*\*/?\Z", pattern):
        out = out.removesuffix("(.*/)?") + ".*"
    return re.compile(out + r"\Z").match


class Plain:
    def __init__(self, patterns: list[str]) -> None:
        self.tests = [(pattern.startswith("!"), plainly(pattern.removeprefix("!"))) for pattern in patterns]

    def verdict(self, path: list[str]) -> bool:
        above: list[bool] = [False] * len(self.tests)
        excluded = False
        for depth in range(1, len(path) + 1):
            here = "/".join(path[:depth])
            excluded = False
            known = []
            for (exception, test), before in zip(self.tests, above, strict=True):
                found = before or (exception == excluded and test(here) is not None and test(here) is not False)
                known.append(found)
                if found:
                    excluded = not exception
            above = known
        return excluded


@settings(max_examples=1500, deadline=None)
@given(_lines, st.lists(_path, min_size=1, max_size=6))
def test_as_the_rules_say(lines: list[str], paths: list[list[str]]) -> None:
    lines = usable(lines)
    patterns, plain = ignore.Patterns(lines), Plain(lines)
    for path in paths:
        assert patterns.excluded("/".join(path)) is plain.verdict(path), (lines, path)
        folder = patterns.root
        for name in path:
            folder = folder.enter(name)
        assert folder.excluded is plain.verdict(path)
        assert patterns.excluded("/".join(path).encode()) is plain.verdict(path)


@settings(max_examples=500, deadline=None)
@given(_lines, _path, _path)
def test_nothing_is_taken_from_a_folder_that_is_passed_over(lines: list[str], folder: list[str], rest: list[str]) -> None:
    lines = usable(lines)
    at = ignore.Patterns(lines).root
    for name in folder:
        at = at.enter(name)
    if at.skippable:
        assert Plain(lines).verdict(folder + rest)


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=60), _path)
def test_any_bytes_are_patterns_or_refused(text: bytes, path: list[str]) -> None:
    try:
        patterns = ignore.Patterns(ignore.read(text))
    except ignore.InvalidParameter:
        return
    assert patterns.excluded("/".join(path)) in (True, False)
