"""The patterns of `${name#pattern}`, `%` and `/`: `*` is any run of characters, `?` any one, neither crosses a line's end. Pure.

Matching goes through the value once for each piece between stars, so that no pattern of a hostile Dockerfile takes exponential time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TypeAlias

_ANY = None
_WORK = 50_000_000
"""Steps that a search may take when its pattern has no quick way."""

_Piece: TypeAlias = tuple[str | None, ...]


class Pattern:
    """A pattern, read. Raises ValueError for a wrong escape."""

    def __init__(self, text: str) -> None:
        self._pieces = _pieces(text)
        self._finders = [_finder(piece) for piece in self._pieces]
        self._lines = any("\n" in piece for piece in self._pieces)
        self._work = 0

    def without_prefix(self, value: str, *, longest: bool) -> str:
        """`value` without the shortest or longest beginning that matches."""
        end = self._at(value, 0, longest=longest)
        return value if end is None else value[end:]

    def without_suffix(self, value: str, *, longest: bool) -> str:
        """`value` without the shortest or longest end that matches."""
        turned = Pattern.__new__(Pattern)
        turned._pieces = [tuple(reversed(piece)) for piece in reversed(self._pieces)]
        turned._finders = [_finder(piece) for piece in turned._pieces]
        turned._lines = self._lines
        turned._work = 0
        return turned.without_prefix(value[::-1], longest=longest)[::-1]

    def replaced(self, value: str, replacement: str, *, every: bool) -> str:
        """`value` with the first match, or all of them, replaced. A match is as long as can be."""
        finder = self._finders[0]
        if len(self._finders) == 1 and finder:
            if isinstance(finder, str):
                return value.replace(finder, replacement, -1 if every else 1)
            self._afford(len(value) * len(self._pieces[0]))
            return finder.sub(lambda match: replacement, value, count=0 if every else 1)
        parts: list[str] = []
        done = 0
        for start, end in self._matches(value):
            parts += (value[done:start], replacement)
            done = end
            if not every:
                break
        return "".join([*parts, value[done:]])

    def _matches(self, value: str) -> Iterator[tuple[int, int]]:
        start, last = 0, -1
        while start <= len(value):
            found = self._search(value, start)
            if found is None:
                return
            begin, end = found
            if begin < end or begin != last:
                yield begin, end
                last = end
            start = end if end > begin else begin + 1

    def _search(self, value: str, start: int) -> tuple[int, int] | None:
        """The leftmost match from `start` on."""
        while start <= len(value):
            begin = self._find(0, value, start, len(value))
            if begin is None:
                return None
            end = self._at(value, begin, longest=True)
            if end is not None:
                return begin, end
            # What is missing behind this place is missing behind every later place of its line too.
            start = begin + 1 if self._lines else _line_end(value, begin + len(self._pieces[0])) + 1
        return None

    def _at(self, value: str, start: int, *, longest: bool) -> int | None:
        """The end of the match that begins at `start`."""
        first = len(self._pieces[0])
        if self._find(0, value, start, start + first) != start:
            return None
        place = start + first
        line = _line_end(value, place)
        self._spend(line - start if self._lines else 0)
        for index in range(1, len(self._pieces)):
            line = line if place <= line else _line_end(value, place)
            limit = line + len(self._pieces[index])
            last = longest and index == len(self._pieces) - 1
            found = self._rfind(index, value, place, limit) if last else self._find(index, value, place, limit)
            if found is None:
                return None
            place = found + len(self._pieces[index])
        return place

    def _find(self, index: int, value: str, start: int, limit: int) -> int | None:
        finder = self._finders[index]
        if isinstance(finder, str):
            place = value.find(finder, start, limit)
            return None if place < 0 else place
        limit, size = min(limit, len(value)), len(self._pieces[index])
        self._afford((limit - start) * size)
        match = finder.search(value, start, limit)
        self._spend(((limit if match is None else match.start()) - start) * size)
        return None if match is None else match.start()

    def _rfind(self, index: int, value: str, start: int, limit: int) -> int | None:
        finder = self._finders[index]
        limit = min(limit, len(value))
        if isinstance(finder, str):
            place = value.rfind(finder, start, limit)
            return None if place < 0 else place
        size = len(self._pieces[index])
        self._afford((limit - start) * size)
        return next((place for place in range(limit - size, start - 1, -1) if finder.match(value, place, limit)), None)

    def _spend(self, steps: int) -> None:
        self._work += max(steps, 0)
        self._afford(0)

    def _afford(self, steps: int) -> None:
        if self._work + steps > _WORK:
            raise ValueError("the pattern is too long for this value")


def _pieces(text: str) -> list[_Piece]:
    """What stands between the stars; None for `?`."""
    pieces: list[list[str | None]] = [[]]
    characters = iter(text)
    for char in characters:
        if char == "*":
            if len(pieces) == 1 or pieces[-1]:
                pieces.append([])
        elif char == "?":
            pieces[-1].append(_ANY)
        elif char == "\\":
            following = next(characters, "\ufffd")
            if following not in "}/*?\\":
                raise ValueError(f"invalid escape '\\{following}'")
            pieces[-1].append(following)
        else:
            pieces[-1].append(char)
    return [tuple(piece) for piece in pieces]


def _finder(piece: _Piece) -> str | re.Pattern[str]:
    if _ANY in piece:
        return re.compile("".join("." if char is _ANY else re.escape(char) for char in piece))
    return "".join(char for char in piece if char is not None)


def _line_end(value: str, start: int) -> int:
    """Where the line that `start` is in ends."""
    place = value.find("\n", start)
    return len(value) if place < 0 else place
