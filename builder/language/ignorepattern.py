"""One pattern of a .dockerignore, translated to what a walk can follow folder by folder. Pure, and light enough for the client.

Docker (moby/patternmatcher) turns a pattern into one of four things: text that a path is equal to, begins with (`a**`) or ends with
(`**a`), or a regular expression of Go. That expression is made of the pattern's characters with little protection, so what a pattern
means includes accidents: a negated class matches a `/`, `\\d` is any digit, `[*]` is a class of other characters and stars. They are kept.

Here a pattern becomes *components* where that is the same: one test for each name of a path, and `**`. The few others become a `Machine`
that reads a path character by character with all its states in one number. Neither ever goes back, so no pattern is slow.
"""

from __future__ import annotations

import re

from engine.errors import InvalidParameter

Ranges = tuple[tuple[int, int], ...]
"""Characters: ascending ranges of code points, ends included."""

_LAST = 0x10FFFF
_SLASH: Ranges = ((47, 47),)
_NOT_SLASH: Ranges = ((0, 46), (48, _LAST))
_NOT_LINE: Ranges = ((0, 9), (11, _LAST))

ONE, MANY, DEEP, START, END, WORD, NO_WORD = range(7)
"""Parts of an expression: one character of a set, any number of them, `(.*/)?`, and four that match a place between characters."""

Part = tuple[int, Ranges]

IS, BEGINS, ENDS, LIKE, ANY_FOLDERS, LINE_FOLDERS = range(6)
"""Tests of a name: equal, begins with, ends with, an expression; and any number of names, all or those without a line feed."""

Test = tuple[int, str]

_VALID = r"(?s:[^\\\[]|\\.|\[\^?+(?:(?:[^\\\]\-]|\\.)(?:-(?:[^\\\]\-]|\\.))?+)++\])*+"
"""What Go's `filepath.Match` takes for a pattern."""

_PERL: dict[str, Ranges] = {
    "d": ((48, 57),),
    "s": ((9, 10), (12, 13), (32, 32)),
    "w": ((48, 57), (65, 90), (95, 95), (97, 122)),
}
_POSIX: dict[str, Ranges] = {
    "alnum": ((48, 57), (65, 90), (97, 122)),
    "alpha": ((65, 90), (97, 122)),
    "ascii": ((0, 127),),
    "blank": ((9, 9), (32, 32)),
    "cntrl": ((0, 31), (127, 127)),
    "digit": ((48, 57),),
    "graph": ((33, 126),),
    "lower": ((97, 122),),
    "print": ((32, 126),),
    "punct": ((33, 47), (58, 64), (91, 96), (123, 126)),
    "space": ((9, 13), (32, 32)),
    "upper": ((65, 90),),
    "word": ((48, 57), (65, 90), (95, 95), (97, 122)),
    "xdigit": ((48, 57), (65, 70), (97, 102)),
}
_CONTROLS = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_PLACES = {"A": START, "z": END, "b": WORD, "B": NO_WORD}


def translate(pattern: str) -> list[list[Test]] | Machine:
    """The components of a cleaned pattern (several lists: any of them), or a machine. Raises InvalidParameter in Docker's words."""
    if not re.fullmatch(_VALID, pattern):
        raise _malformed()
    kind, text = _expression(pattern)
    if kind == "exact":
        return [_names(pattern)]
    if kind == "prefix":
        *above, last = pattern[:-2].split("/")
        here = [*((IS, name) for name in above), (BEGINS, last)]
        return [here, [*here, (ANY_FOLDERS, "")]]
    if kind == "suffix":
        first, *below = pattern[2:].split("/")
        ends = [(ENDS, first)] if first else []
        return [[(ANY_FOLDERS, ""), *ends, *((IS, name) for name in below)]]
    parts = _parts(text)
    components = _components(parts)
    return Machine(parts) if components is None else [components]


def _names(path: str) -> list[Test]:
    return [(IS, name) for name in path.split("/")]


def _expression(pattern: str) -> tuple[str, str]:
    """How Docker compares (exact, prefix, suffix, regexp), and the text of the regular expression."""
    kind = "exact"
    out: list[str] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        first = at == 0
        at += 1
        if char == "*" and pattern.startswith("*", at):
            at += 2 if pattern.startswith("/", at + 1) else 1
            if at < len(pattern):
                out.append("(.*/)?")
                kind = "regexp"
            elif kind == "exact":
                kind = "prefix"
            else:
                out.append(".*")
                kind = "regexp"
            if first:
                kind = "suffix"
        elif char == "*":
            out.append("[^/]*")
            kind = "regexp"
        elif char == "?":
            out.append("[^/]")
            kind = "regexp"
        elif char == "\\":
            out.append(pattern[at - 1 : at + 1])
            at += 1
            kind = "regexp"
        elif char in "[]":
            out.append(char)
            kind = "regexp"
        else:
            out.append("\\" + char if char in ".+()|{}$" else char)
    return kind, "".join(out)


def _parts(text: str) -> list[Part]:
    """Reads an expression of `_expression` as Go does."""
    parts: list[Part] = []
    at = 0
    while at < len(text):
        char = text[at]
        if text.startswith("(.*/)?", at):
            at += 6
            if not parts or parts[-1][0] != DEEP:  # twice is the same as once
                parts.append((DEEP, ()))
            continue
        if char == "^":
            parts.append((START, ()))
            at += 1
            continue
        if char == "\\" and text[at + 1] in _PLACES:
            parts.append((_PLACES[text[at + 1]], ()))
            at += 2
            continue
        if text.startswith("\\Q", at):
            quoted, closed, text = text[at + 2 :].partition("\\E")
            parts.extend((ONE, _single(each)) for each in quoted)
            if not closed:  # Docker's `$` is quoted too, so what follows it is free
                parts.extend([(ONE, _single("$")), (MANY, ((0, _LAST),))])
            at = 0
            continue
        if char == "[":
            found, at = _class(text, at + 1)
        elif char == ".":
            found, at = _NOT_LINE, at + 1
        else:
            found, at = _member(text, at)
        if text.startswith("*", at):
            parts.append((MANY, found))
            at += 1
        else:
            parts.append((ONE, found))
    return parts


def _class(text: str, at: int) -> tuple[Ranges, int]:
    """The class whose text begins at `at`, and where the expression goes on."""
    negated = text.startswith("^", at)
    at += negated
    found: list[tuple[int, int]] = []
    first = True
    while first or not text.startswith("]", at):
        first = False
        if text.startswith("[:", at) and (end := text.find(":]", at + 2)) >= 0:
            name = text[at + 2 : end]
            known = _POSIX.get(name.removeprefix("^"))
            if known is None:
                raise _malformed()
            found.extend(_others(known) if name.startswith("^") else known)
            at = end + 2
            continue
        low, at = _member(text, at)
        if len(low) == 1 and low[0][0] == low[0][1] and text.startswith("-", at) and not text.startswith("-]", at):
            high, at = _member(text, at + 1)
            if len(high) != 1 or high[0][0] != high[0][1] or high[0][0] < low[0][0]:
                raise _malformed()
            low = ((low[0][0], high[0][0]),)
        found.extend(low)
    ranges = _joined(found)
    return (_others(ranges) if negated else ranges), at + 1


def _member(text: str, at: int) -> tuple[Ranges, int]:
    """The characters that a character or an escape at `at` stands for, and what comes after it."""
    if at >= len(text):
        raise _malformed()
    char = text[at]
    if char != "\\":
        return _single(char), at + 1
    char = text[at + 1 : at + 2]
    at += 2
    if char.lower() in _PERL and char:
        ranges = _PERL[char.lower()]
        return (ranges if char.islower() else _others(ranges)), at
    if number := re.match(r"(0[0-7]{0,2}|[1-7][0-7]{1,2})|x([0-9A-Fa-f]{2})", text[at - 1 : at + 2]):
        return _single(chr(int(number[1], 8) if number[1] else int(number[2], 16))), at - 1 + number.end()
    if char in _CONTROLS:
        return _single(_CONTROLS[char]), at
    if not char or char.isalnum() or ord(char) > 127:
        raise _malformed()  # to Go it is not an escape
    return _single(char), at


def _single(char: str) -> Ranges:
    return ((ord(char), ord(char)),)


def _joined(ranges: list[tuple[int, int]]) -> Ranges:
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return tuple(joined)


def _others(ranges: Ranges) -> Ranges:
    """All characters but these."""
    out: list[tuple[int, int]] = []
    at = 0
    for low, high in ranges:
        if at < low:
            out.append((at, low - 1))
        at = high + 1
    return (*out, (at, _LAST)) if at <= _LAST else tuple(out)


def _contains(ranges: Ranges, code: int) -> bool:
    return any(low <= code <= high for low, high in ranges)


def _components(parts: list[Part]) -> list[Test] | None:
    """The same as tests of names, None where a part goes across names."""
    out: list[Test] = []
    name: list[Part] = []
    for index, part in enumerate(parts):
        code, ranges = part
        if part == (ONE, _SLASH):
            test = _test(name)
            if test is None:
                return None
            out.append(test)
            name = []
        elif code == DEEP and not name:
            out.append((LINE_FOLDERS, ""))
        elif part == (MANY, _NOT_LINE) and not name and index == len(parts) - 1:
            return [*out, (LINE_FOLDERS, "")]
        elif code > MANY or _contains(ranges, 47):
            return None
        else:
            name.append(part)
    test = _test(name)
    return None if test is None else [*out, test]


def _test(parts: list[Part]) -> Test | None:
    """The test of one name, None for one that needs a machine: stars of other things than "any name"."""
    pieces: list[list[Ranges]] = [[]]  # what stands between the stars
    for code, ranges in parts:
        if code == ONE:
            pieces[-1].append(ranges)
        elif ranges != _NOT_SLASH:
            return None
        elif pieces[-1] or len(pieces) == 1:
            pieces.append([])
    plain = [_plain(piece) for piece in pieces]
    match plain:
        case [str() as text]:
            return IS, text
        case ["", str() as text]:
            return ENDS, text
        case [str() as text, ""]:
            return BEGINS, text
    first, *middle = ["".join(map(_fragment, piece)) for piece in pieces]
    last = middle.pop() if middle else ""
    # A star that takes the first place that fits never has to go back.
    stars = "".join(f"(?>.*?{text})" for text in middle) + (f".*{last}" if len(pieces) > 1 else "")
    return LIKE, f"(?s:{first}{stars})"


def _plain(piece: list[Ranges]) -> str | None:
    if all(len(ranges) == 1 and ranges[0][0] == ranges[0][1] for ranges in piece):
        return "".join(chr(ranges[0][0]) for ranges in piece)
    return None


def _fragment(ranges: Ranges) -> str:
    if ranges == _NOT_SLASH:
        return "."
    return "[" + "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in ranges) + "]" if ranges else "(?!)"


class Machine:
    """Follows a pattern along a path: all places in the pattern that can be next are bits of a number, those inside `(.*/)?` of another."""

    __slots__ = ("_deep", "_done", "_known", "_many", "_one", "_places", "_skipped", "start")

    def __init__(self, parts: list[Part]) -> None:
        self._one: dict[Ranges, int] = {}
        self._many: dict[Ranges, int] = {}
        self._places = [0] * 7
        for index, (code, ranges) in enumerate(parts):
            if code in (ONE, MANY):
                sets = self._one if code == ONE else self._many
                sets[ranges] = sets.get(ranges, 0) | 1 << index
            self._places[code] |= 1 << index
        self._deep = self._places[DEEP]
        self._skipped = self._deep | self._places[MANY]
        self._done = 1 << len(parts)
        self._known: dict[str, tuple[int, int]] = {}
        self.start: tuple[int, int] = (self._closed(1, self._skipped | self._places[START]), 0)

    def feed(self, state: tuple[int, int], text: str) -> tuple[int, int]:
        """The state after `text`, the name of a path's entry, or the `/` after it."""
        here, inside = state
        before = "/"
        between = self._places[WORD] | self._places[NO_WORD]
        for char in text:
            if between:
                here = self._closed(here, self._between(before, char))
                before = char
            one, many = self._known.get(char) or self._learn(char)
            inside |= here & self._deep
            here = (here & one) << 1 | here & many
            if char == "/":
                here |= inside << 1
            elif char == "\n":
                inside = 0
            here = self._closed(here, self._skipped)
            if not here and not inside:
                break
        return here, inside

    def accepts(self, state: tuple[int, int], last: str) -> bool:
        """Whether the path ends here; `last` is its last character."""
        return bool(self._closed(state[0], self._skipped | self._places[END] | self._between(last, "/")) & self._done)

    def _between(self, before: str, after: str) -> int:
        word = _PERL["w"]
        edge = _contains(word, ord(before)) != _contains(word, ord(after))
        return self._places[WORD if edge else NO_WORD]

    def _closed(self, here: int, skipped: int) -> int:
        while (more := here | (here & (skipped | self._skipped)) << 1) != here:
            here = more
        return here

    def _learn(self, char: str) -> tuple[int, int]:
        code = ord(char)
        one = many = 0
        for ranges, bits in self._one.items():
            one |= bits if _contains(ranges, code) else 0
        for ranges, bits in self._many.items():
            many |= bits if _contains(ranges, code) else 0
        if len(self._known) > 1000:
            self._known.clear()
        self._known[char] = one, many
        return one, many


def _malformed() -> InvalidParameter:
    return InvalidParameter("syntax error in pattern")
