"""Values of instructions: variables substituted by the rules of the place they stand in, ports and paths read. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_address

from builder.language.shell import Expansion, SubstitutionError, Words, document
from engine.errors import InvalidParameter

PROTOCOLS = ("tcp", "udp", "sctp")
_HIGHEST_PORT = 65535
_MOST_GROWTH = 64 << 20
"""Characters that substitutions may add in one lowering: a short line can name a long variable, and there can be many lines."""


class Fault(InvalidParameter):
    """What is wrong with an instruction, before it is known where that stands. `word`: what to point at."""

    def __init__(self, message: str, *, word: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.word = word


class Evaluator:
    """Substitutes as a Dockerfile with that escape character wants it."""

    def __init__(self, escape: str) -> None:
        self._words = Words(escape)
        self._shown = Words(escape, keep_quotes=True, keep_unset=True)
        self._grown = 0

    def expand(self, text: str, env: Mapping[str, str]) -> Expansion:
        """All that there is to know. Raises SubstitutionError."""
        return self._bounded(text, self._words.expand(text, env))

    def _bounded(self, text: str, found: Expansion) -> Expansion:
        self._grown += max(0, len(found.text) - len(text))
        if self._grown > _MOST_GROWTH:
            raise SubstitutionError(f"the substitutions of the Dockerfile add more than {_MOST_GROWTH} characters")
        return found

    def word(self, text: str, env: Mapping[str, str]) -> str:
        """One value. Raises SubstitutionError."""
        # Most words are plain ones, for which there is nothing to do.
        return text if text.isalnum() else self.expand(text, env).text

    def words(self, text: str, env: Mapping[str, str]) -> tuple[str, ...]:
        """Values, split after the substitution. Raises SubstitutionError."""
        return self.expand(text, env).words

    def document(self, text: str, env: Mapping[str, str]) -> str:
        """The content of a heredoc. Raises SubstitutionError."""
        return self._bounded(text, document(text, env)).text

    def shown(self, text: str, env: Mapping[str, str], *, as_written: bool = False) -> str:
        """A line for progress, its keyword in capitals. `as_written` (RUN): quotes and what is not set stay. Never raises."""
        try:
            text = (self._shown if as_written else self._words).word(text, env)
        except ValueError:
            pass
        keyword, space, rest = text.partition(" ")
        return keyword.upper() + space + rest


def exposed(words: Iterable[str]) -> list[str]:
    """The ports of an EXPOSE as `80/tcp`, in order. A host's address and port are read and have no meaning. Raises Fault."""
    found: list[str] = []
    for word in words:
        *host, container = word.rsplit(":", 2)
        ports, _, protocol = container.partition("/")
        if not ports:
            raise Fault(f"no port specified: {word}<empty>", word=word)
        protocol = protocol.lower() or "tcp"
        if protocol not in PROTOCOLS:
            raise Fault(f"invalid proto: {protocol}", word=word)
        first, last = _port_range(ports, f"invalid containerPort: {ports}", word)
        if host:
            _check_host(host, first, last, ports, word)
        found += [f"{port}/{protocol}" for port in range(first, last + 1)]
    return found


def _check_host(host: list[str], first: int, last: int, ports: str, word: str) -> None:
    if len(host) == 2 and host[0]:
        try:
            ip_address(host[0].removeprefix("[").removesuffix("]"))
        except ValueError:
            raise Fault(f"invalid IP address: {host[0]}", word=word) from None
    if host[-1]:
        begin, end = _port_range(host[-1], f"invalid hostPort: {host[-1]}", word)
        if end - begin != last - first and last != first:
            raise Fault(f"invalid ranges specified for container and host Ports: {ports} and {host[-1]}", word=word)


def _port_range(text: str, message: str, word: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", text, re.ASCII)
    if match is None:
        raise Fault(message, word=word)
    first, last = int(match[1]), int(match[2] or match[1])
    if not first <= last <= _HIGHEST_PORT:
        raise Fault(message, word=word)
    return first, last


def below(folder: str, path: str) -> str:
    """A cleaned absolute path: `path` itself, or relative to `folder`."""
    joined = posixpath.normpath(posixpath.join("/", folder, path))
    return "/" + joined.lstrip("/")  # POSIX keeps two slashes at the beginning


def destination(folder: str, path: str) -> str:
    """The destination of a COPY: as `below`, with a slash at its end where it must be a folder."""
    cleaned = below(folder, path)
    is_folder = path in ("", ".") or path.endswith(("/", "/."))
    return cleaned + "/" if is_folder and cleaned != "/" else cleaned
