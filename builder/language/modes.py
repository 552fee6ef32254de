"""`--chmod` of COPY and ADD: octal numbers, and the symbolic form that chmod(1) has (Dockerfile syntax 1.14). Pure.

Symbolic modes are those of POSIX with BSD's additions: who (`ugoa`), then one or more actions: an operator (`+-=`) and either permissions
(`rwxXst`) or one of `ugo` to copy from. Who is left out: everybody; BuildKit applies no file mode creation mask.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable

from engine.errors import InvalidParameter

_OCTAL = re.compile(r"[0-7]+", re.ASCII)
_CLAUSE = re.compile(r"([ugoa]*)((?:[+=-](?:[rwxXst]*|[ugo]))+)", re.ASCII)
_ACTION = re.compile(r"([+=-])([rwxXst]*|[ugo])(?=[+=-]|$)", re.ASCII)
_WHO = {"u": 0o4700, "g": 0o2070, "o": 0o0007}
_SHIFT = {"u": 6, "g": 3, "o": 0}
_BITS = {"r": 0o444, "w": 0o222, "x": 0o111}

Change = Callable[[int], int]
"""From `st_mode` of the source to the permission bits (07777) that the copy gets."""


def parse(text: str) -> Change | None:
    """What a `--chmod` does, None for "" which keeps modes. Raises InvalidParameter in BuildKit's words."""
    if not text:
        return None
    if _OCTAL.fullmatch(text):
        if len(text) > 20 or (fixed := int(text, 8)) > 0o7777:
            raise _invalid(text)
        return lambda mode: fixed
    clauses: list[tuple[str, list[tuple[str, str]]]] = []
    for part in text.split(","):
        clause = _CLAUSE.fullmatch(part)
        if clause is None:
            raise _invalid(text)
        clauses.append((clause[1], _ACTION.findall(clause[2])))
    known: dict[int, int] = {}

    def change(mode: int) -> int:
        found = known.get(mode)
        if found is None:
            found = known[mode] = _changed(mode, clauses)
        return found

    return change


def _changed(mode: int, clauses: list[tuple[str, list[tuple[str, str]]]]) -> int:
    folder = stat.S_ISDIR(mode)
    bits = stat.S_IMODE(mode)
    for who, actions in clauses:
        everybody = not who or "a" in who
        mask = 0o7777 if everybody else 0
        for each in who.replace("a", ""):
            mask |= _WHO[each]
        for operator, permissions in actions:
            value = _value(bits, folder, permissions, everybody, mask)
            if operator == "+":
                bits |= value
            elif operator == "-":
                bits &= ~value
            else:
                bits = bits & ~mask | value
    return bits


def _value(bits: int, folder: bool, permissions: str, everybody: bool, mask: int) -> int:
    """The bits that one action is about."""
    if permissions in _SHIFT:
        copied = bits >> _SHIFT[permissions] & 7
        return (copied << 6 | copied << 3 | copied) & mask & 0o777
    value = 0
    for each in permissions:
        if each in _BITS:
            value |= _BITS[each]
        elif each == "X":
            value |= 0o111 if folder or bits & 0o111 else 0
        elif each == "s":
            value |= stat.S_ISUID | stat.S_ISGID
        elif everybody:
            value |= stat.S_ISVTX
    return value & mask


def _invalid(text: str) -> InvalidParameter:
    return InvalidParameter(
        f"invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777",
        hint="or symbolic, as in u=rwX,go=rX",
    )
