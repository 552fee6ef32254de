"""Query strings as the Engine API reads them: booleans, integers, times, filters. Pure.

Source: the Engine API reference; the looser rules (what counts as true) are those of dockerd, found by asking it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

from engine.errors import InvalidParameter
from engine.spec.filters import Filters

_FALSE = frozenset(("", "0", "no", "false", "none"))
_SECONDS = re.compile(r"(-?[0-9]{1,12})(?:\.([0-9]{1,18}))?")
_MAX_INT = 2**63 - 1


def unescape(text: str, *, plus: bool = False) -> str:
    """Undo percent-encoding (and `+` for a space in queries). Raises InvalidParameter for bytes that are not UTF-8 and for NUL."""
    if plus and "+" in text:
        text = text.replace("+", " ")
    if "%" not in text:
        return text
    try:
        text = unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise InvalidParameter("the request's address is not valid UTF-8")
    if "\0" in text:
        raise InvalidParameter("the request's address contains a NUL byte")
    return text


def parse(text: str) -> dict[str, list[str]]:
    """`a=1&b=2&a=3` -> {"a": ["1", "3"], "b": ["2"]}. Raises InvalidParameter."""
    values: dict[str, list[str]] = {}
    for part in text.split("&"):
        if part:
            key, _, value = part.partition("=")
            values.setdefault(unescape(key, plus=True), []).append(unescape(value, plus=True))
    return values


class Query:
    """The parameters of one request; the first value of each counts, as in Go's Form.Get."""

    __slots__ = ("values",)

    def __init__(self, text: str) -> None:
        self.values: Mapping[str, list[str]] = parse(text) if text else {}

    def text(self, name: str, default: str = "") -> str:
        """The value as it is."""
        found = self.values.get(name)
        return found[0] if found else default

    def texts(self, name: str) -> list[str]:
        """All values of a parameter that may be repeated."""
        return list(self.values.get(name, ()))

    def flag(self, name: str, default: bool = False) -> bool:
        """True unless the value is empty, 0, no, false or none."""
        found = self.values.get(name)
        return found[0].strip().lower() not in _FALSE if found else default

    def integer(self, name: str) -> int | None:
        """A decimal number, None when it is absent or empty. Raises InvalidParameter."""
        text = self.text(name)
        return number(text) if text else None

    def required_integer(self, name: str) -> int:
        """A decimal number that must be there. Raises InvalidParameter."""
        return number(self.text(name))

    def filters(self) -> Filters:
        """The `filters` parameter: JSON `{"key": ["v"]}` or the older `{"key": {"v": true}}`. Raises InvalidParameter."""
        return Filters.parse(self.text("filters"))

    def nanoseconds(self, name: str) -> int:
        """A time as `seconds[.fraction]` since the epoch, in nanoseconds; 0 when absent. Raises InvalidParameter."""
        return timestamp(self.text(name))


def number(text: str) -> int:
    """Go's strconv.Atoi. Raises InvalidParameter in its words."""
    digits = text[1:] if text[:1] in ("-", "+") else text
    if not (digits.isascii() and digits.isdecimal()):
        raise InvalidParameter(f'strconv.Atoi: parsing "{text}": invalid syntax')
    if len(digits) > 19 or not -_MAX_INT - 1 <= (value := int(text)) <= _MAX_INT:
        raise InvalidParameter(f'strconv.Atoi: parsing "{text}": value out of range')
    return value


@functools.lru_cache(maxsize=64)
def timestamp(text: str) -> int:
    """`1700000000.5` -> 1700000000500000000; "" and "0" are 0. Raises InvalidParameter."""
    if text in ("", "0"):
        return 0
    match = _SECONDS.fullmatch(text)
    if match is None:
        raise InvalidParameter(f'strconv.ParseInt: parsing "{text}": invalid syntax')
    return int(match[1]) * 1_000_000_000 + int((match[2] or "").ljust(9, "0")[:9])
