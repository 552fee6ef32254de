"""Shell patterns as Go's `path.Match` has them, which Docker's filters use. Pure.

They differ from Python's `fnmatch`: nothing but a `/` of the pattern matches a `/`, `[^a]` negates, a backslash takes the next character
as it is, and a malformed pattern is an error even where it matches nothing.
"""

from __future__ import annotations

import re

from engine.errors import InvalidParameter


def compile(pattern: str) -> re.Pattern[str]:
    """An expression for `fullmatch`. Raises InvalidParameter in Docker's words."""
    between = [""]  # the stars
    at = 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*":
            if between[-1] or len(between) == 1:
                between.append("")
        elif char == "?":
            between[-1] += "[^/]"
        elif char == "[":
            text, at = _class(pattern, at)
            between[-1] += text
        else:
            if char == "\\":
                char, at = _literal(pattern, at - 1)
            between[-1] += re.escape(char)
    first, *middle = between
    last = middle.pop() if middle else None
    # As Go does, a star takes the first place that fits and never goes back, so no pattern is slow.
    stars = "".join(f"(?>[^/]*?{text})" for text in middle) + ("" if last is None else f"[^/]*{last}")
    return re.compile(first + stars, re.DOTALL)


def _class(pattern: str, at: int) -> tuple[str, int]:
    """The expression of a class whose text begins at `at`, and where the pattern goes on."""
    negated = pattern[at : at + 1] == "^"
    at += negated
    ranges: list[str] = []
    while not ranges or pattern[at : at + 1] != "]":
        low, at = _member(pattern, at)
        high = low
        if pattern[at : at + 1] == "-":
            high, at = _member(pattern, at + 1)
        # Go takes an empty range for one that matches nothing, `re` for an error.
        ranges.append(f"{re.escape(low)}-{re.escape(high)}" if low <= high else "")
    members = "".join(ranges)
    if not members:
        return ("[^/]" if negated else "(?!)"), at + 1
    return f"(?!/)[{'^' if negated else ''}{members}]", at + 1


def _member(pattern: str, at: int) -> tuple[str, int]:
    if pattern[at : at + 1] in ("", "-", "]"):
        raise _malformed()
    return _literal(pattern, at)


def _literal(pattern: str, at: int) -> tuple[str, int]:
    """The character at `at`, or the one that a backslash there protects, and what comes after it."""
    at += pattern[at] == "\\"
    if at >= len(pattern):
        raise _malformed()
    return pattern[at], at + 1


def _malformed() -> InvalidParameter:
    return InvalidParameter("syntax error in pattern")
