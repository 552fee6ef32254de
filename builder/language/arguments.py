"""What stands behind an instruction's keyword and flags, in words: by white space, with quotes, as pairs, as a JSON list or whole. Pure.

Which of these an instruction takes is BuildKit's choice; so is falling back to the other form when a list is no valid JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from builder.language.errors import quoted
from builder.language.lines import strings
from builder.language.shell import SPACE, SPACES

_BLANKS = re.compile(r"[\t\v\f\r ]+")


class SyntaxFault(ValueError):
    """Arguments that cannot be read. `word`: what to point at."""

    def __init__(self, message: str, *, word: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.word = word


class Arguments(msgspec.Struct, frozen=True):
    """The arguments in words; pairs are keys and values in turns. `json`: it was a JSON list; `legacy`: a pair without `=`."""

    words: tuple[str, ...]
    json: bool = False
    legacy: bool = False


def arguments(keyword: str, rest: str, escape: str) -> Arguments:
    """Read what follows `keyword` (any case); nothing for a keyword that is not known. Raises SyntaxFault."""
    reader = _READERS.get(keyword.upper())
    return reader(rest, escape) if reader is not None else Arguments(())


def _whole(rest: str, escape: str) -> Arguments:
    return Arguments((rest,) if rest else ())


def _blanks(rest: str, escape: str) -> Arguments:
    return Arguments(tuple(_BLANKS.split(rest)) if rest else ())


def _listed(rest: str) -> tuple[str, ...] | None:
    try:
        return strings(rest)
    except ValueError as error:
        raise SyntaxFault(str(error)) from None


def _json_or_whole(rest: str, escape: str) -> Arguments:
    listed = _listed(rest)
    return Arguments(listed, True) if listed is not None else _whole(rest, escape)


def _json_or_blanks(rest: str, escape: str) -> Arguments:
    listed = _listed(rest)
    return Arguments(listed, True) if listed is not None else _blanks(rest, escape)


def _health(rest: str, escape: str) -> Arguments:
    match = re.match(f"[^{SPACE}]+", rest)
    if match is None:
        return Arguments(())
    command = _json_or_whole(rest[match.end() :].lstrip(SPACES), escape)
    return Arguments((match[0], *command.words), command.json)


def _words(rest: str, escape: str) -> Arguments:
    return Arguments(words(rest, escape))


def words(text: str, escape: str) -> tuple[str, ...]:
    """Split at white space that is neither in quotes nor escaped. Quotes and escapes stay: `shell.Words` takes them off."""
    return tuple(match[0] for match in _WORD[escape].finditer(text) if match[0])


def _word_pattern(escape: str) -> re.Pattern[str]:
    """A word: plain characters, an escaped one, or quotes up to their end or the text's. An escape character at the very end is dropped."""
    mark = re.escape(escape)
    inside = rf"\"(?:[^\"{mark}]|{mark}(?s:.))*+(?:\"|\Z|(?={mark}\Z))"
    return re.compile(rf"(?:[^{SPACE}'\"{mark}]++|{mark}(?s:.)|'[^']*+(?:'|\Z)|{inside})++")


_WORD = {escape: _word_pattern(escape) for escape in ("\\", "`")}


def _pairs(keyword: str) -> Callable[[str, str], Arguments]:
    """`K=V …` or the old `K V`."""

    def read_pairs(rest: str, escape: str) -> Arguments:
        found = words(rest, escape)
        if not found:
            return Arguments(())
        if "=" not in found[0]:
            parts = _BLANKS.split(rest, maxsplit=1)
            if len(parts) < 2:
                raise SyntaxFault(f"{keyword} must have two arguments", word=parts[0])
            return Arguments(tuple(parts), legacy=True)
        flat: list[str] = []
        for word in found:
            key, equals, value = word.partition("=")
            if not equals:
                message = f"Syntax error - can't find = in {quoted(word)}. Must be of the form: name=value"
                raise SyntaxFault(message, word=word)
            flat += (key, value)
        return Arguments(tuple(flat))

    return read_pairs


_READERS: dict[str, Callable[[str, str], Arguments]] = {
    "ADD": _json_or_blanks,
    "ARG": _words,
    "CMD": _json_or_whole,
    "COPY": _json_or_blanks,
    "ENTRYPOINT": _json_or_whole,
    "ENV": _pairs("ENV"),
    "EXPOSE": _blanks,
    "FROM": _blanks,
    "HEALTHCHECK": _health,
    "LABEL": _pairs("LABEL"),
    "MAINTAINER": _whole,
    "ONBUILD": _whole,
    "RUN": _json_or_whole,
    "SHELL": _json_or_whole,
    "STOPSIGNAL": _whole,
    "USER": _whole,
    "VOLUME": _json_or_blanks,
    "WORKDIR": _whole,
}
NAMES = tuple(_READERS)
"""The instructions."""
