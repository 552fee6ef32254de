"""Durations as Go writes them: `1h30m`, `1.5s`, `-2ms`. Pure."""

from __future__ import annotations

import re

from builder.language.errors import quoted

_PART = re.compile(r"([0-9]*)(?:\.([0-9]*))?([^0-9.]*)")
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_LARGEST = 1 << 63
_DIGITS = 40


def nanoseconds(text: str) -> int:
    """The duration. Raises ValueError in the words of Go's time.ParseDuration."""
    invalid = ValueError(f"time: invalid duration {quoted(text)}")
    sign = -1 if text.startswith("-") else 1
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0
    if not rest or len(rest) > 1000:
        raise invalid
    total, place = 0, 0
    while place < len(rest):
        match = _PART.match(rest, place)
        if match is None or not (match[1] or match[2]):
            raise invalid
        if not match[3]:
            raise ValueError(f"time: missing unit in duration {quoted(text)}")
        if match[3] not in _UNITS:
            raise ValueError(f"time: unknown unit {quoted(match[3])} in duration {quoted(text)}")
        unit, fraction = _UNITS[match[3]], (match[2] or "")[:_DIGITS]
        total += int(match[1][:_DIGITS] or "0") * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)
        if len(match[1].lstrip("0")) > _DIGITS or total >= _LARGEST:
            raise invalid
        place = match.end()
    return sign * total
