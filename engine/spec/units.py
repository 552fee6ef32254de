"""Sizes and durations as Docker's command lines and files write them. Pure."""

from __future__ import annotations

import re

from engine.errors import InvalidParameter

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_FACTORS = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4, "p": 1024**5}


def memory_bytes(text: str) -> int:
    """`10m`, `1.5GiB`, `512` -> bytes, binary factors (Docker's units.RAMInBytes). Raises InvalidParameter."""
    number = text.strip().lower()
    unit = number.lstrip("0123456789.")
    digits = number[: len(number) - len(unit)]
    unit = unit.strip()
    if unit not in _FACTORS:
        unit = unit.removesuffix("b").removesuffix("i")
    try:
        return int(float(digits) * _FACTORS[unit])
    except (ValueError, KeyError):
        raise InvalidParameter(f"invalid size: '{text}'")


def decimal_bytes(text: str) -> int:
    """`10m` -> 10 000 000: decimal factors, what Docker's log options use (units.FromHumanSize). Raises InvalidParameter."""
    number = text.strip().lower()
    unit = number.lstrip("0123456789.")
    digits = number[: len(number) - len(unit)]
    unit = unit.strip().removesuffix("b")
    powers = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
    try:
        return int(float(digits) * 1000 ** powers[unit])
    except (ValueError, KeyError):
        raise InvalidParameter(f"invalid size: '{text}'")


def seconds(text: str) -> float:
    """`90s`, `1h30m`, `30d`, `2w` -> seconds: Go's durations, and days and weeks. Raises InvalidParameter."""
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)(ms|[smhdw])", text) if len(text) < 64 else []
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InvalidParameter(f"invalid duration {text!r}", hint="for example 12h, 30d or 2w")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)
