"""The lines of a Dockerfile: directives, continuation lines, comments, heredocs. Text in, logical lines out; pure.

A logical line is one instruction with its flags and arguments still unread. The rules are those of BuildKit's parser: comment lines
and empty lines among continuation lines are dropped, other whitespace stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import msgspec

from builder.language.errors import DockerfileError
from builder.language.instructions import Heredoc
from builder.language.shell import SPACE, SPACES, SubstitutionError, Words

_DIRECTIVE = re.compile(r"\A([a-zA-Z][a-zA-Z0-9]*)[ \t\r\f]*=(.*)\Z")
_DIRECTIVES = ("syntax", "escape", "check")
_HEREDOC = re.compile(r"\A([0-9]*)<<(-?)([^<]+)\Z")
_ONBUILD = re.compile(rf"\A[{SPACE}]*onbuild[{SPACE}]+", re.IGNORECASE)
_WITH_HEREDOCS = ("run", "copy", "add")
_BLANKS = re.compile(r"[\t\v\f\r ]+")
_FLAG_WORD = re.compile(rf"[^{SPACE}'\"\\]+|\\(.)|\\\Z|'((?:[^'\\]|\\.)*)(?:'|\\?\Z)|\"((?:[^\"\\]|\\.)*)(?:\"|\\?\Z)", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_PLAIN = Words(keep_unset=True)
_QUOTED = Words(keep_unset=True, keep_quotes=True)
_AS_WRITTEN = Words(keep_unset=True, keep_quotes=True, keep_escapes=True)


class Line(msgspec.Struct, kw_only=True):
    """A logical line: `text` is all of it, `line` and `end` where it stands (heredocs included), `comments` those directly above."""

    text: str
    line: int
    end: int
    comments: tuple[str, ...]
    heredocs: tuple[Heredoc, ...] = ()
    keyword: str = ""
    flags: tuple[str, ...] = ()
    rest: str = ""


class Lines(msgspec.Struct, kw_only=True):
    """All logical lines of a file, its directives with their lines, and the numbers of empty lines among continuation lines."""

    lines: list[Line]
    directives: dict[str, tuple[str, int]]
    escape: str
    empty_continuations: list[int]


def read(text: str, path: str) -> Lines:
    """Cut `text` (without a byte order mark) into logical lines. Raises DockerfileError."""
    return _Reader(text, path).read()


def split(text: str) -> tuple[str, tuple[str, ...], str]:
    """Keyword as written, flags (without quotes and `--`), and the rest of a logical line."""
    parts = _BLANKS.split(text.strip(SPACES), maxsplit=1)
    if len(parts) == 1:
        return parts[0], (), ""
    flags, rest = _flags(parts[1])
    return parts[0], flags, rest.strip(SPACES)


def _flags(text: str) -> tuple[tuple[str, ...], str]:
    """The words that begin with `--` at the beginning of `text`, and what follows them. A word `--` ends them."""
    flags: list[str] = []
    place, size = 0, len(text)
    while True:
        while place < size and text[place] in SPACES:
            place += 1
        if not text.startswith("--", place):
            return tuple(flags), text[place:]
        word: list[str] = []
        while (match := _FLAG_WORD.match(text, place)) is not None and match.end() > place:
            inside = match[2] if match[2] is not None else match[3]
            if match[1] is not None:
                word.append(match[1])
            elif inside is not None:
                word.append(_ESCAPED.sub(r"\1", inside))
            elif match[0] != "\\":
                word.append(match[0])
            place = match.end()
        flag = "".join(word)
        if flag == "--":
            return tuple(flags), text[place:]
        flags.append(flag)


def strings(text: str) -> tuple[str, ...] | None:
    """The strings of a JSON list, or None when `text` is something else. Raises ValueError for a list of other things."""
    text = text.lstrip(SPACES)
    if not text.startswith("["):
        return None
    try:
        found = json.loads(text, parse_constant=_refused, parse_int=_number, parse_float=_number)
    except (ValueError, RecursionError):
        return None
    if not all(isinstance(item, str) for item in found):
        raise ValueError("when using JSON array syntax, arrays must be comprised of strings only")
    return tuple(item.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for item in found)


def _refused(name: str) -> None:
    """NaN and the infinities, which are no JSON."""
    raise ValueError(name)


def _number(text: str) -> int:
    """Any number: its value does not matter, it is no string."""
    return 0


def heredoc(word: str) -> Heredoc | None:
    """The heredoc that a word with its quotes (`3<<-"EOF"`) opens, without content; None when it opens none."""
    match = _HEREDOC.match(word)
    if match is None:
        return None
    try:
        plain = _PLAIN.expand(match[3], {}).words
        raw = _QUOTED.expand(match[3], {}).words
    except SubstitutionError:
        return None
    if len(plain) != 1 or len(raw) != 1:
        return None
    quotes = [word.count("'") + word.count('"') for word in (plain[0], raw[0])]
    descriptor = int(match[1]) if match[1] and len(match[1]) < 10 else 0
    return Heredoc(name=plain[0], content="", expand=quotes[0] == quotes[1], descriptor=descriptor, strip=match[2] == "-")


def opened(text: str) -> list[Heredoc]:
    """The heredocs that a logical line opens, in order. A line whose quotes do not match opens none."""
    if "<<" not in text:
        return []
    try:
        words = _AS_WRITTEN.expand(text, {}).words
    except SubstitutionError:
        return []
    return [found for word in words if "<<" in word and (found := heredoc(word)) is not None]


def trigger(text: str) -> str:
    """What follows ONBUILD in a logical line."""
    return _ONBUILD.sub("", text, count=1)


class _Reader:
    def __init__(self, text: str, path: str) -> None:
        self.text = text
        self.path = path
        rows = text.split("\n")
        self.rows = rows[:-1] if not rows[-1] else rows
        self.place = 0
        self.directives: dict[str, tuple[str, int]] = {}
        self.escape = "\\"
        self.heading = True
        self.empty: list[int] = []

    def read(self) -> Lines:
        self._early()
        lines = list(self._lines())
        if not lines:
            raise self._error("file with no instructions", len(self.rows))
        return Lines(lines=lines, directives=self.directives, escape=self.escape, empty_continuations=self.empty)

    def _error(self, message: str, line: int, end: int = 0, word: str = "") -> DockerfileError:
        return DockerfileError(message, path=self.path, line=line, end=end, text=self.text, word=word)

    def _lines(self) -> Iterator[Line]:
        comments: list[str] = []
        while self.place < len(self.rows):
            row = self.rows[self.place].rstrip("\r").lstrip(SPACES)
            self.place += 1
            if self.heading and self._directive(row):
                continue
            if row.startswith("#"):
                comment = row[1:].strip(SPACES)
                if comment:
                    comments.append(comment)
                else:
                    comments.clear()
            else:
                above = tuple(comments)
                comments.clear()
                if row:
                    yield self._logical(row, above)

    def _logical(self, row: str, comments: tuple[str, ...]) -> Line:
        start = self.place
        piece, more = self._continued(row)
        pieces = [piece]
        while more and self.place < len(self.rows):
            row = self.rows[self.place].rstrip("\r")
            self.place += 1
            bare = row.lstrip(SPACES)
            if not bare:
                self.empty.append(self.place)
            elif not bare.startswith("#"):
                piece, more = self._continued(row)
                pieces.append(piece)
        text = "".join(pieces)
        keyword, flags, rest = split(text)
        line = Line(text=text.strip(SPACES), line=start, end=self.place, comments=comments, keyword=keyword, flags=flags, rest=rest)
        line.heredocs = self._heredocs(line)
        line.end = self.place
        return line

    def _continued(self, row: str) -> tuple[str, bool]:
        """The row without the escape character that continues it. An escape character before that one takes its meaning away."""
        bare = row.rstrip(" \t")
        if bare.endswith(self.escape) and not bare.endswith(self.escape * 2):
            return bare[:-1], True
        return row, False

    def _heredocs(self, line: Line) -> tuple[Heredoc, ...]:
        keyword, rest = line.keyword.lower(), line.rest
        if keyword == "onbuild":
            keyword, _, rest = split(rest)
            keyword = keyword.lower()
        if keyword not in _WITH_HEREDOCS or "<<" not in rest:
            return ()
        try:
            if strings(rest) is not None:
                return ()
        except ValueError:
            return ()
        return tuple(self._document(line, document) for document in opened(line.text))

    def _document(self, line: Line, document: Heredoc) -> Heredoc:
        content: list[str] = []
        while self.place < len(self.rows):
            row = self.rows[self.place]
            self.place += 1
            if document.strip:
                row = row.lstrip("\t")
            if row.rstrip("\r") == document.name:
                return msgspec.structs.replace(document, content="".join(content))
            content.append(row + "\n")
        raise self._error("unterminated heredoc", line.line, self.place, word="<<")

    def _directive(self, row: str) -> bool:
        """Whether the row is a directive; anything else ends them."""
        found = _directive(row, "#")
        if found is None:
            self.heading = False
            return False
        name, value = found
        if name in self.directives and self.directives[name][1] != self.place:
            raise self._error(f"only one {name} parser directive can be used", self.place, word=row)
        if name == "escape":
            if value not in ("\\", "`"):
                raise self._error(f"invalid escape token '{value}' does not match ` or \\", self.place, word=value)
            self.escape = value
        self.directives[name] = (value, self.place)
        return True

    def _early(self) -> None:
        """Directives `syntax` and `check` after a line `#!`, and `syntax` after `//` or in a JSON header: places where only they count."""
        skipped = 1 if self.rows and self.rows[0].startswith("#!") else 0
        for prefix, names in (("#", ("syntax", "check")), ("//", ("syntax",))):
            if not skipped and prefix == "#":
                continue
            for number, row in enumerate(self.rows[skipped:], skipped + 1):
                found = _directive(row.rstrip("\r"), prefix)
                if found is None:
                    break
                if found[0] in names:
                    self.directives.setdefault(found[0], (found[1], number))
        if self.rows[skipped:] and self.rows[skipped].lstrip(SPACES).startswith("{"):
            try:
                header = json.loads("\n".join(self.rows[skipped:]), parse_int=_number, parse_float=_number)
            except (ValueError, RecursionError):
                return
            if isinstance(header, dict) and isinstance(header.get("syntax"), str):
                self.directives.setdefault("syntax", (header["syntax"], skipped))


def _directive(row: str, prefix: str) -> tuple[str, str] | None:
    if not row.startswith(prefix):
        return None
    match = _DIRECTIVE.match(row[len(prefix) :].lstrip(SPACES))
    value = match[2].strip(" \t\r\f") if match is not None else ""
    if match is None or not value or match[1].lower() not in _DIRECTIVES:
        return None
    return match[1].lower(), value
