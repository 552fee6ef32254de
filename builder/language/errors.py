"""What is wrong with a Dockerfile, and where: the message in BuildKit's words, and the lines with marks on those concerned. Pure."""

from __future__ import annotations

from engine.errors import InvalidParameter

_RULE = "-" * 20
_MARKED = 40
"""Lines with marks that are shown at most; of more, the first and last ones."""
_WIDTH = 400
_LONG_WORD = 240


class DockerfileError(InvalidParameter):
    """A Dockerfile that cannot be built. `line` and `end` count from 1, 0 when no place is known; `text` is the whole file's; `word` is
    what is wrong in these lines, "" when unknown. `hint` is a suggestion: `did you mean RUN?`."""

    def __init__(
        self, message: str, *, path: str = "Dockerfile", line: int = 0, end: int = 0, text: str = "", word: str = "", hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.path = path
        self.line = line
        self.end = max(line, end)
        self.text = text
        self.word = word

    def excerpt(self) -> str:
        """The lines concerned and a few around them, as BuildKit prints them, and a line of `^` below the word where it is known.

        "" when the place is not known. Ends without a line feed. Control characters are shown as `�`: the file may be hostile.
        """
        return excerpt(self.text, self.line, self.end, path=self.path, word=self.word)


def excerpt(text: str, line: int, end: int, *, path: str = "Dockerfile", word: str = "") -> str:
    """Lines `line` to `end` of `text` with marks, between a head and a foot. "" when there are no such lines."""
    lines = text.split("\n")
    if not 0 < line <= len(lines):
        return ""
    last = min(max(line, end), len(lines))
    first, after = _around(line, last, len(lines))
    shown: list[str] = []
    pending = word
    for number in range(first, after + 1):
        marked = line <= number <= last
        if marked and last - line >= _MARKED and _MARKED // 2 <= number - line <= last - line - _MARKED // 2:
            if number - line == _MARKED // 2:
                shown.append("     | ... ")
            continue
        row = lines[number - 1].rstrip("\r")
        shown.append(f" {number:3} | {'>>>' if marked else '   '} {_visible(row[:_WIDTH])}{'…' if len(row) > _WIDTH else ''}")
        place = row[:_WIDTH].find(pending) if marked and pending else -1
        if place >= 0:
            indent = "".join("\t" if char == "\t" else " " for char in row[:place])
            shown.append(f"     |     {indent}{'^' * min(len(pending), _WIDTH - place)}")
            pending = ""
    return "\n".join([f"{path}:{line}", _RULE, *shown, _RULE])


def quoted(text: str) -> str:
    """`text` between double quotes, with escapes as Go's `%q` writes them. A long text is cut."""
    return '"' + "".join(_escaped(char) for char in shortened(text)) + '"'


def shortened(text: str) -> str:
    """A word for a message, cut when it is too long for one."""
    return text if len(text) <= _LONG_WORD else text[:_LONG_WORD] + "…"


def _escaped(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}


def _around(first: int, last: int, count: int) -> tuple[int, int]:
    """With lines of context: BuildKit adds one above and one below in turns until it has four (two for several lines)."""
    pad = 4 if first == last else 2
    added = 0
    while added < pad:
        if first > 1:
            first, added = first - 1, added + 1
        if last != count:
            last, added = last + 1, added + 1
        added += 1
    return first, last


def _visible(row: str) -> str:
    return "".join(char if char.isprintable() or char in "\t " else "�" for char in row)
