"""Substitution of variables in the words of a Dockerfile, and the splitting of a line into words: BuildKit's rules. Pure.

Close to a POSIX shell, but not one: `$name`, `${name}` and the operators `:-` `-` `:+` `+` `:?` `?` `#` `##` `%` `%%` `/` `//`; single
quotes, double quotes, and an escape character that the file chooses. A word's result is not split again unless `words` is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from builder.language.errors import quoted, shortened
from builder.language.glob import Pattern

SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
"""White space as Go's unicode.IsSpace knows it."""
SPACE = re.escape(SPACES)
"""The same, for the inside of a character class of a regular expression."""

_SPLIT = re.compile(f"[{SPACE}]+")
_SPECIAL = "@*#?-$!0"
_DEEPEST = 64
_LARGEST = 16 * 1024 * 1024
"""Characters that a result may have: `$a$a$a` in `a` grows without bounds otherwise."""


class SubstitutionError(ValueError):
    """A word that cannot be substituted, in BuildKit's words."""


class Expansion(msgspec.Struct, frozen=True):
    """`text`: the word with its variables substituted. `words`: the same, split at white space that was not quoted. `used` and `unset`:
    names that were looked up and were there, or were not. `defaulted`: those of `unset` that had an operator for it in every place."""

    text: str
    words: tuple[str, ...]
    used: frozenset[str]
    unset: frozenset[str]
    defaulted: frozenset[str] = frozenset()


class Words:
    """How words are read. `escape`: the escape character of the file.

    `keep_quotes`: quotes stay in the result; `keep_escapes`: so do escape characters; `plain_quotes`: quotes have no meaning (documents);
    `keep_unset`: a variable that is not set stays as it is written.
    """

    def __init__(
        self,
        escape: str = "\\",
        *,
        keep_quotes: bool = False,
        keep_escapes: bool = False,
        plain_quotes: bool = False,
        keep_unset: bool = False,
    ) -> None:
        self.escape = escape
        self.keep_quotes = keep_quotes
        self.keep_escapes = keep_escapes
        self.plain_quotes = plain_quotes
        self.keep_unset = keep_unset
        special = re.escape("$" + escape + ("" if plain_quotes else "'\""))
        self._plain = {stop: re.compile(f"[^{special}{re.escape(stop)}]+") for stop in ("", "}", "/")}
        self._in_quotes = re.compile(f'[^{re.escape("$" + escape)}"]+')

    def expand(self, text: str, env: Mapping[str, str]) -> Expansion:
        """Substitute the variables of `text`. Raises SubstitutionError."""
        scan = _Scan(self, text, env)
        try:
            words: list[str] = []
            result = scan.until("", self.keep_escapes, words)
        except SubstitutionError as error:
            raise SubstitutionError(f"failed to process {quoted(text)}: {error}") from None
        return Expansion(result, tuple(words), frozenset(scan.used), frozenset(scan.unset), frozenset(scan.defaulted - scan.bare))

    def word(self, text: str, env: Mapping[str, str]) -> str:
        """The text alone of `expand`."""
        return self.expand(text, env).text


def document(text: str, env: Mapping[str, str]) -> Expansion:
    """Substitute in the content of a heredoc whose delimiter is not quoted: quotes are text, and `\\` takes the meaning of what follows."""
    return Words(plain_quotes=True).expand(text, env)


class _Scan:
    """One pass over a text. Methods leave `place` behind what they read."""

    def __init__(self, how: Words, text: str, env: Mapping[str, str]) -> None:
        self.how = how
        self.text = text
        self.size = len(text)
        self.env = env
        self.place = 0
        self.depth = 0
        self.used: set[str] = set()
        self.unset: set[str] = set()
        self.bare: set[str] = set()
        self.defaulted: set[str] = set()

    def until(self, stop: str, keep_escapes: bool, words: list[str] | None = None) -> str:
        """Read up to and with `stop` ("" for the end of the text); split into `words` when given."""
        how, text = self.how, self.text
        plain = how._plain[stop]
        result: list[str] = []
        word: list[str] = []
        length = 0

        def add(piece: str, splits: bool) -> None:
            nonlocal length
            length = _longer(length, piece)
            result.append(piece)
            if words is None:
                return
            if not splits:
                word.append(piece)
                return
            parts = _SPLIT.split(piece)
            for index, part in enumerate(parts):
                if index:
                    finish()
                if part:
                    word.append(part)

        def finish() -> None:
            whole = "".join(word)
            word.clear()
            if whole and words is not None:
                words.append(whole)

        while self.place < self.size:
            char = text[self.place]
            if char == stop:
                self.place += 1
                return "".join(result)
            if char == "$":
                add(self.dollar(), True)
            elif char == how.escape:
                self.place += 1
                following = text[self.place : self.place + 1]
                self.place += 1
                add((char if keep_escapes else "") + following, False)
            elif char in "'\"" and not how.plain_quotes:
                add(self.single() if char == "'" else self.double(keep_escapes), False)
            elif (match := plain.match(text, self.place)) is not None:
                self.place = match.end()
                add(match[0], True)
        self.place = self.size
        if stop:
            raise SubstitutionError(f"unexpected end of statement while looking for matching {stop}")
        finish()
        return "".join(result)

    def single(self) -> str:
        end = self.text.find("'", self.place + 1)
        if end < 0:
            self.place = self.size
            raise SubstitutionError("unexpected end of statement while looking for matching single-quote")
        inside = self.text[self.place + 1 : end]
        self.place = end + 1
        return f"'{inside}'" if self.how.keep_quotes else inside

    def double(self, keep_escapes: bool) -> str:
        how, text = self.how, self.text
        mark = '"' if how.keep_quotes else ""
        result = [mark]
        length = 0
        self.place += 1
        while self.place < self.size:
            char = text[self.place]
            if char == '"':
                self.place += 1
                result.append(mark)
                return "".join(result)
            if char == "$":
                result.append(self.dollar())
                length = _longer(length, result[-1])
            elif char == how.escape:
                self.place += 1
                following = text[self.place : self.place + 1]
                if keep_escapes:
                    result.append(char)
                if following and following in ('"', "$", how.escape):
                    self.place += 1
                    result.append(following)
                elif following:
                    result.append(char)
            elif (match := how._in_quotes.match(text, self.place)) is not None:
                self.place = match.end()
                result.append(match[0])
        raise SubstitutionError("unexpected end of statement while looking for matching double-quote")

    def dollar(self) -> str:
        """A `$` and what belongs to it."""
        self.place += 1
        if self.text[self.place : self.place + 1] == "{":
            self.place += 1
            self.depth += 1
            if self.depth > _DEEPEST:
                raise SubstitutionError(f"syntax error: more than {_DEEPEST} substitutions inside each other")
            result = self.braces()
            self.depth -= 1
        else:
            name = self.name()
            result = self.plain(name, f"${name}") if name else "$"
        return result

    def name(self) -> str:
        """A name, digits of a positional parameter, or one special character."""
        text, start = self.text, self.place
        first = text[start : start + 1]
        if not first:
            return ""
        if first.isdecimal():
            while self.place < self.size and text[self.place].isdecimal():
                self.place += 1
        elif first in _SPECIAL:
            self.place += 1
        else:
            while self.place < self.size and (text[self.place].isalpha() or text[self.place].isdecimal() or text[self.place] == "_"):
                self.place += 1
        return text[start : self.place]

    def lookup(self, name: str) -> str | None:
        value = self.env.get(name)
        (self.unset if value is None else self.used).add(name)
        return value

    def plain(self, name: str, written: str) -> str:
        value = self.lookup(name)
        if value is None:
            self.bare.add(name)
            return written if self.how.keep_unset else ""
        return value

    def braces(self) -> str:
        following = self.text[self.place : self.place + 1]
        if not following:
            raise SubstitutionError("syntax error: missing '}'")
        if following in "{}:":
            raise SubstitutionError("syntax error: bad substitution")
        name = self.name()
        operator = self.next()
        if operator == "}":
            return self.plain(name, f"${{{name}}}")
        if operator == "/":
            return self.replace(name)
        modifier = self.next() if operator == ":" else operator
        written = operator + modifier if operator == ":" else operator
        if modifier not in ("-", "+", "?", "#", "%"):
            if modifier == "\ufffd":
                raise SubstitutionError("syntax error: missing '}'")
            raise SubstitutionError(f"unsupported modifier ({written}) in substitution")
        word = self.inner("}", modifier in "#%", "}")
        value = self.lookup(name)
        if value is None:
            (self.bare if modifier in "#%" else self.defaulted).add(name)
            if self.how.keep_unset:
                return f"${{{name}{written}{word}}}"
        return self.apply(name, modifier, word, value, operator == ":")

    def apply(self, name: str, modifier: str, word: str, value: str | None, colon: bool) -> str:
        missing = value is None or (colon and not value)
        if modifier == "-":
            return word if missing else value or ""
        if modifier == "+":
            return "" if missing else word
        if modifier == "?":
            if missing:
                reason = "is not allowed to be unset" if value is None else "is not allowed to be empty"
                raise SubstitutionError(f"{shortened(name)}: {shortened(word) or reason}")
            return value or ""
        longest = word.startswith(modifier)
        pattern = word[1:] if longest else word
        try:
            cut = Pattern(pattern)
            return (cut.without_prefix if modifier == "#" else cut.without_suffix)(value or "", longest=longest)
        except ValueError as error:
            raise SubstitutionError(f"invalid pattern ({shortened(pattern)}) in substitution: {error}") from None

    def replace(self, name: str) -> str:
        every = self.text[self.place : self.place + 1] == "/"
        self.place += every
        pattern = self.inner("/", True, "/")
        replacement = self.inner("}", True, "}")
        value = self.lookup(name)
        if value is None:
            self.bare.add(name)
            if self.how.keep_unset:
                return f"${{{name}/{'/' if every else ''}{pattern}/{replacement}}}"
        try:
            return Pattern(pattern).replaced(value or "", replacement, every=every)
        except ValueError as error:
            raise SubstitutionError(f"invalid pattern ({shortened(pattern)}) in substitution: {error}") from None

    def inner(self, stop: str, keep_escapes: bool, missing: str) -> str:
        """The word of an operator."""
        try:
            return self.until(stop, keep_escapes)
        except SubstitutionError:
            if self.place >= self.size:
                raise SubstitutionError("syntax error: missing '/' in ${}" if missing == "/" else "syntax error: missing '}'") from None
            raise

    def next(self) -> str:
        """The next character; U+FFFD behind the end, as Go prints it."""
        char = self.text[self.place : self.place + 1]
        self.place += 1
        return char or "\ufffd"


def _longer(length: int, piece: str) -> int:
    """`length` and that of `piece`, as long as that is not too much."""
    length += len(piece)
    if length > _LARGEST:
        raise SubstitutionError(f"the result is longer than {_LARGEST} characters")
    return length
