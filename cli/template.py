"""Parsing Go templates (text/template) as far as people use them in `--format`: text, actions, pipelines, variables, if, range, with.

`parse(text)` gives a tree of tuples that `cli/evaluate.py` runs. Errors carry Go's words and positions, without its package's prefix.
Left out: define, template, block, break and continue, which a one-line format has no use for.
"""

from cli.client import Failure

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

KEYWORDS = ("if", "else", "end", "range", "with", "define", "template", "block", "break", "continue")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
SPACE = " \t\r\n"


class TemplateError(Failure):
    """A template that cannot be parsed or run; the caller puts its own words in front."""


class Token:
    __slots__ = ("kind", "pos", "value")

    def __init__(self, kind: str, value: "Any", pos: int):
        self.kind = kind
        self.value = value
        self.pos = pos


def line_of(text: str, pos: int) -> int:
    return text.count("\n", 0, pos) + 1


def _error(text: str, pos: int, message: str) -> TemplateError:
    return TemplateError(f"template: :{line_of(text, pos)}: {message}")


def _string(text: str, at: int) -> "tuple[str, int]":
    """The Go string literal that opens at `at`, and where it ends."""
    quote = text[at]
    out: list[str] = []
    at += 1
    while True:
        if at >= len(text) or (text[at] == "\n" and quote != "`"):
            raise _error(text, at, "unterminated " + {'"': "quoted string", "'": "character constant", "`": "raw quoted string"}[quote])
        char = text[at]
        at += 1
        if char == quote:
            return "".join(out), at
        if char == "\\" and quote != "`":
            char, at = _escape(text, at)
        out.append(char)


def _escape(text: str, at: int) -> "tuple[str, int]":
    letter = text[at:at + 1]
    if letter in _ESCAPES:
        return _ESCAPES[letter], at + 1
    length = {"x": 2, "u": 4, "U": 8}.get(letter, 0)
    try:
        return chr(int(text[at + 1:at + 1 + length], 16)), at + 1 + length
    except ValueError:
        raise _error(text, at, "invalid syntax") from None


def _word_end(text: str, at: int) -> int:
    while at < len(text) and (text[at].isalnum() or text[at] == "_"):
        at += 1
    return at


def _check_end(text: str, at: int) -> None:
    """A name may be followed by what can follow a name only."""
    if at < len(text) and text[at] not in SPACE + ".,|:)(=" and not text.startswith("}}", at):
        raise _error(text, at, f"bad character U+{ord(text[at]):04X} '{text[at]}'")


def _action(text: str, at: int) -> "tuple[list[Token], int, bool]":
    """Tokens of the action whose inside starts at `at`; where the text goes on; whether it trims what follows."""
    tokens: list[Token] = []
    while True:
        if at >= len(text):
            raise _error(text, at, "unclosed action")
        char = text[at]
        if text.startswith("}}", at):
            return tokens, at + 2, False
        if char in SPACE:
            end = at
            while end < len(text) and text[end] in SPACE:
                end += 1
            if text.startswith("-}}", end):
                return tokens, end + 3, True
            tokens.append(Token("space", " ", at))
            at = end
        elif char in "\"'`":
            value, end = _string(text, at)
            tokens.append(Token("char" if char == "'" else "string", ord(value) if char == "'" else value, at))
            at = end
        elif char.isdigit() or (char in "+-" and text[at + 1:at + 2].isdigit()):
            at = _number(text, at, tokens)
        elif char in "().|,":
            end = _word_end(text, at + 1) if char == "." else at + 1
            if end > at + 1:
                _check_end(text, end)
            tokens.append(Token("field" if end > at + 1 else char, text[at + 1:end] if end > at + 1 else char, at))
            at = end
        elif char == "$":
            end = _word_end(text, at + 1)
            _check_end(text, end)
            tokens.append(Token("variable", text[at:end], at))
            at = end
        elif text.startswith(":=", at):
            tokens.append(Token(":=", ":=", at))
            at += 2
        elif char == "=":
            tokens.append(Token("=", "=", at))
            at += 1
        elif char.isalpha() or char == "_":
            end = _word_end(text, at)
            word = text[at:end]
            _check_end(text, end)
            tokens.append(Token("keyword" if word in KEYWORDS else "word", word, at))
            at = end
        else:
            unrecognized = f"unrecognized character in action: U+{ord(char):04X} '{char}'"
            raise _error(text, at, f'unexpected "{char}" in command' if char in "{}[]" else unrecognized)


def _number(text: str, at: int, tokens: "list[Token]") -> int:
    end = at + 1
    while end < len(text) and (text[end].isalnum() or text[end] in "._"):
        end += 1
    word = text[at:end]
    try:
        value: object = int(word, 0)
    except ValueError:
        try:
            value = float(word)
        except ValueError:
            raise _error(text, at, f'bad number syntax: "{word}"') from None
    tokens.append(Token("number", value, at))
    return end


def lex(text: str) -> "list[tuple[str, Any, int]]":
    """("text", str, pos) and ("action", tokens, pos), white space trimmed where `{{-` and `-}}` say so."""
    parts: list[tuple[str, object, int]] = []
    at, trim = 0, False
    while True:
        start = text.find("{{", at)
        piece = text[at:] if start < 0 else text[at:start]
        if trim:
            piece = piece.lstrip(SPACE)
        inside = start + 2
        if start >= 0 and text[inside:inside + 1] == "-" and text[inside + 1:inside + 2] in SPACE and text[inside + 1:inside + 2]:
            piece = piece.rstrip(SPACE)
            inside += 1
        if piece:
            parts.append(("text", piece, at))
        if start < 0:
            return parts
        comment = inside
        while text[comment:comment + 1] in SPACE and comment < len(text):
            comment += 1
        if text.startswith("/*", comment):
            end = text.find("*/", comment)
            if end < 0:
                raise _error(text, start, "unclosed comment")
            close = text.find("}}", end)
            if close < 0 or text[end + 2:close].strip(SPACE) not in ("", "-"):
                raise _error(text, start, "comment ends before closing delimiter")
            trim, at = text[end + 2:close].strip(SPACE) == "-", close + 2
            continue
        tokens, at, trim = _action(text, inside)
        parts.append(("action", tokens, start))


class Parser:
    """Recursive descent over the parts; each method leaves `self.at` after what it read."""

    def __init__(self, text: str):
        self.text = text
        self.parts = lex(text)
        self.part = 0
        self.tokens: list[Token] = []
        self.at = 0
        self.variables = ["$"]

    def fail(self, message: str) -> TemplateError:
        pos = self.tokens[self.at].pos if self.at < len(self.tokens) else (self.tokens[-1].pos if self.tokens else 0)
        return _error(self.text, pos, message)

    def peek(self) -> "Token | None":
        while self.at < len(self.tokens) and self.tokens[self.at].kind == "space":
            self.at += 1
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def adjacent(self) -> "Token | None":
        """The next token when no space stands before it."""
        token = self.tokens[self.at] if self.at < len(self.tokens) else None
        return token if token is not None and token.kind != "space" else None

    def nodes(self, inside: str = "") -> "tuple[list[Any], str]":
        """Nodes up to the `end` or `else` that belongs to the caller, and which of them it was."""
        result: list[Any] = []
        while self.part < len(self.parts):
            kind, value, _ = self.parts[self.part]
            self.part += 1
            if kind == "text":
                result.append(("text", value))
                continue
            self.tokens, self.at = value, 0
            token = self.peek()
            if token is not None and token.kind == "keyword":
                self.at += 1
                if token.value in ("end", "else"):
                    if not inside:
                        raise self.fail(f"unexpected {{{{{token.value}}}}}")
                    return result, str(token.value)
                result.append(self.control(str(token.value)))
            else:
                if token is None:
                    raise self.fail("missing value for command")
                result.append(("action", self.pipeline()))
                self.finish()
        if inside:
            raise _error(self.text, len(self.text), "unexpected EOF")
        return result, ""

    def finish(self) -> None:
        token = self.peek()
        if token is not None:
            raise self.fail(f"unexpected {_show(token)} in operand")

    def control(self, word: str) -> "tuple[Any, ...]":
        if word not in ("if", "range", "with"):
            raise self.fail(f"not implemented in --format: {{{{{word}}}}}")
        depth = len(self.variables)
        if self.peek() is None:
            raise self.fail(f"missing value for {word}")
        pipe = self.pipeline(word == "range")
        self.finish()
        body, ended = self.nodes(word)
        otherwise: list[Any] = []
        if ended == "else":
            following = self.peek()
            if following is not None:  # {{else if …}}
                self.at += 1
                otherwise = [self.control(str(following.value))]
            else:
                otherwise, ended = self.nodes(word)
                if ended == "else":
                    raise self.fail("expected end; found {{else}}")
        del self.variables[depth:]
        return (word, pipe, body, otherwise)

    def pipeline(self, ranging: bool = False) -> "tuple[Any, ...]":
        """("pipe", declared names, declares?, commands)"""
        names, declares = self.declaration(ranging)
        commands = [self.command()]
        while (token := self.peek()) is not None and token.kind == "|":
            self.at += 1
            commands.append(self.command())
        if declares:
            self.variables += names
        return ("pipe", names, declares, commands)

    def declaration(self, ranging: bool) -> "tuple[list[str], bool]":
        start, names = self.at, []
        while (token := self.peek()) is not None and token.kind == "variable":
            names.append(str(token.value))
            self.at += 1
            token = self.peek()
            if token is not None and token.kind in (":=", "="):
                self.at += 1
                if token.kind == "=" and names[0] not in self.variables:
                    raise self.fail(f'undefined variable "{names[0]}"')
                return names, token.kind == ":="
            if token is None or token.kind != "," or not ranging or len(names) > 1:
                break
            self.at += 1
        self.at = start
        return [], False

    def command(self) -> "tuple[Any, ...]":
        """("command", operands, its text)"""
        operands = []
        first = self.peek()
        while (token := self.peek()) is not None and token.kind not in ("|", ")"):
            operands.append(self.operand(token))
        if not operands:
            raise self.fail("missing value for command")
        last = self.peek()
        end = last.pos if last is not None else self.text.find("}}", self.tokens[-1].pos)
        return ("command", operands, self.text[first.pos if first else end:end].rstrip(SPACE + "-"))

    def operand(self, token: Token) -> "tuple[Any, ...]":
        self.at += 1
        node = self.term(token)
        fields: list[str] = []
        pos = token.pos
        while (following := self.adjacent()) is not None and following.kind == "field":
            # Go reports a chain at its second part
            pos = following.pos if not fields else pos
            fields.append(str(following.value))
            self.at += 1
        if not fields:
            return node
        if node[0] in ("field", "variable"):
            return (node[0], node[1] + fields, pos, node[3] + "." + ".".join(fields))
        if node[0] in ("pipe", "dot"):
            return ("chain", node, fields, pos)
        raise self.fail(f"unexpected . after term {_show(token)}")

    def term(self, token: Token) -> "tuple[Any, ...]":
        kind, value = token.kind, token.value
        if kind == "field":
            return ("field", [value], token.pos, f".{value}")
        if kind == ".":
            return ("dot",)
        if kind == "variable":
            if value not in self.variables:
                raise self.fail(f'undefined variable "{value}"')
            return ("variable", [value], token.pos, str(value))
        if kind in ("string", "number", "char"):
            return ("constant", value)
        if kind == "word":
            if value in ("true", "false", "nil"):
                return ("constant", {"true": True, "false": False, "nil": None}[value])
            from cli.evaluate import FUNCTIONS

            if value not in FUNCTIONS and value not in ("and", "or"):
                self.at -= 1
                raise self.fail(f'function "{value}" not defined')
            return ("function", value, token.pos)
        if kind == "(":
            pipe = self.pipeline()
            closing = self.peek()
            if closing is None or closing.kind != ")":
                raise self.fail("unclosed left paren")
            self.at += 1
            return pipe
        raise self.fail(f"unexpected {_show(token)} in operand")


def _show(token: Token) -> str:
    return f'"{token.value}"' if token.kind in (")", "|", ",", "=", ":=") else f"<{token.value}>"


def parse(text: str) -> "list[Any]":
    """The tree of a template. Raises TemplateError."""
    return Parser(text).nodes()[0]
