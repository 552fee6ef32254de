"""Values as Go's fmt prints them, which is what histories of images have. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from engine.spec.image import Healthcheck

_ESCAPES = {"\\": "\\\\", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}
_UNITS = ((10**6, "ms", 6), (10**3, "µs", 3), (1, "ns", 0))
_SECOND = 10**9


def quoted(text: str, mark: str = '"') -> str:
    """`%q` of a string, or of a rune with `'` as `mark`."""
    return mark + "".join(_escaped(char, mark) for char in text) + mark


def quoted_list(words: Iterable[str]) -> str:
    """`%q` of a slice of strings: `["a" "b"]`."""
    return "[" + " ".join(quoted(word) for word in words) + "]"


def plain_list(words: Iterable[str]) -> str:
    """`%v` of a slice of strings: `[a b]`."""
    return "[" + " ".join(words) + "]"


def plain_set(names: Iterable[str]) -> str:
    """`%v` of a map whose values are empty structs: `map[a:{} b:{}]`."""
    return "map[" + " ".join(f"{name}:{{}}" for name in sorted(names)) + "]"


def duration(nanoseconds: int) -> str:
    """A time.Duration as text: `1m30s`, `1.5s`, `3ms`, `0s`."""
    sign, value = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    if not value:
        return "0s"
    if value < _SECOND:
        size, unit, digits = next(one for one in _UNITS if value >= one[0])
        return f"{sign}{_decimal(value, size, digits)}{unit}"
    minutes, rest = divmod(value, 60 * _SECOND)
    hours, minutes = divmod(minutes, 60)
    text = f"{_decimal(rest, _SECOND, 9)}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{sign}{hours}h{text}" if hours else sign + text


def healthcheck(check: Healthcheck) -> str:
    """`%q` of a pointer to Docker's HealthConfig."""
    times = (check.interval, check.timeout, check.start_period, check.start_interval)
    shown = " ".join(f'"{duration(time)}"' for time in times)
    # A number prints as the character that has it as its code.
    retries = quoted(chr(check.retries) if check.retries <= 0x10FFFF and not 0xD800 <= check.retries < 0xE000 else "\ufffd", "'")
    return f"&{{{quoted_list(check.test or ())} {shown} {retries}}}"


def _decimal(value: int, size: int, digits: int) -> str:
    whole, fraction = divmod(value, size)
    return f"{whole}.{fraction:0{digits}d}".rstrip("0") if fraction else str(whole)


def _escaped(char: str, mark: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char == mark:
        return "\\" + char
    if char.isprintable():
        return char
    code = ord(char)
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
