"""Running a parsed Go template over JSON values and list items, with Go's rules for truth, printing and comparison.

Data: None, bool, int, float, str, list, dict, and objects with `field(name)` (raising KeyError) for the rows of a list.
"""

from cli.codec import go_dumps, ordered_dumps
from cli.template import TemplateError, line_of, parse

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def truth(value: "Any") -> bool:
    return bool(value) if not hasattr(value, "field") else True


def go_string(value: "Any", nested: bool = False) -> str:
    """What Go's fmt prints for %v."""
    if value is None:
        return "<nil>" if nested else "<no value>"
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, float):
        return go_float(value)
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{go_string(value[key], True)}" for key in sorted(value)) + "]"
    if isinstance(value, (list, tuple)):
        return "[" + " ".join(go_string(item, True) for item in value) + "]"
    return str(value)


def go_float(value: float) -> str:
    text = repr(value)
    if text.endswith(".0"):
        text = text[:-2]
    return text


def go_quote(text: str) -> str:
    """Go's strconv.Quote."""
    out = []
    for char in text:
        if char in '"\\':
            out.append("\\" + char)
        elif char in "\n\t\r\a\b\f\v":
            out.append("\\" + "ntrabfv"["\n\t\r\a\b\f\v".index(char)])
        elif not char.isprintable():
            code = ord(char)
            out.append(f"\\x{code:02x}" if code < 128 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}")
        else:
            out.append(char)
    return '"' + "".join(out) + '"'


def plain(value: "Any") -> "Any":
    """A value as JSON can carry it."""
    return value.plain() if hasattr(value, "plain") else value


def _basic(value: "Any") -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    return "string" if isinstance(value, str) else "other"


def equal(first: "Any", *others: "Any") -> bool:
    if not others:
        raise ValueError("missing argument for comparison")
    for other in others:
        if first is None or other is None:
            if first is other:
                return True
            continue
        if _basic(first) != _basic(other):
            raise ValueError("incompatible types for comparison")
        if first == other:
            return True
    return False


def less(first: "Any", second: "Any") -> bool:
    if _basic(first) != _basic(second) or _basic(first) not in ("number", "string"):
        raise ValueError("incompatible types for comparison")
    return bool(first < second)


def index(value: "Any", *keys: "Any") -> "Any":
    for key in keys:
        if isinstance(value, dict):
            # What Docker indexes are maps of strings mostly, labels above all: without the key they give an empty one.
            value = value.get(key) if key in value or not all(isinstance(one, str) for one in value.values()) else ""
        elif isinstance(value, (list, str)):
            if not isinstance(key, int):
                raise ValueError(f"cannot index slice/array with type {'string' if isinstance(key, str) else type(key).__name__}")
            if not 0 <= key < len(value):
                raise ValueError("reflect: slice index out of range" if isinstance(value, list) else f"index out of range: {key}")
            value = value[key] if isinstance(value, list) else ord(value[key])
        elif value is None:
            raise ValueError("index of untyped nil")
        else:
            raise ValueError(f"can't index item of type {_basic(value)}")
    return value


def length(value: "Any") -> int:
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, (list, dict)):
        return len(value)
    raise ValueError("len of nil pointer" if value is None else f"len of type {_basic(value)}")


def join(values: "Any", separator: str) -> str:
    if values is None:
        return ""
    if not isinstance(values, list):
        raise ValueError("wrong type for value; expected []string")
    return separator.join(go_string(value) for value in values)


def title(text: str) -> str:
    return "".join(c.upper() if not i or not text[i - 1].isalnum() else c for i, c in enumerate(text))


def pad(text: str, before: int, after: int) -> str:
    return " " * before + text + " " * after if text else text


def printf(form: str, *values: "Any") -> str:
    """The verbs people use: s d v q t x X c f e g U and %%, with flags and widths."""
    out, at, used = [], 0, 0
    while at < len(form):
        if form[at] != "%":
            out.append(form[at])
            at += 1
            continue
        end = at + 1
        while end < len(form) and form[end] in "+-# 0123456789.":
            end += 1
        verb, flags = form[end:end + 1], form[at + 1:end]
        at = end + 1
        if verb == "%":
            out.append("%")
            continue
        if used == len(values):
            out.append(f"%!{verb}(MISSING)")
            continue
        out.append(_verb(verb, flags, values[used]))
        used += 1
    if used < len(values):
        out.append("%!(EXTRA " + ", ".join(f"{_basic(v)}={go_string(v)}" for v in values[used:]) + ")")
    return "".join(out)


def _verb(verb: str, flags: str, value: "Any") -> str:
    if verb in "sv" and verb:
        return f"%{flags.replace('#', '').replace('+', '')}s" % go_string(value)
    if verb == "q":
        return f"%{flags.replace('#', '')}s" % go_quote(go_string(value))
    if verb == "t" and isinstance(value, bool):
        return f"%{flags}s" % go_string(value)
    if verb in "xX" and verb and isinstance(value, str):
        return value.encode().hex()
    if verb in "dxXoc" and verb and isinstance(value, int) and not isinstance(value, bool):
        return f"%{flags}{verb}" % value
    if verb in "fegFEG" and verb and isinstance(value, float):
        return f"%{flags}{verb}" % value
    return f"%!{verb}({_basic(value)}={go_string(value)})"


def _json(value: "Any") -> str:
    """Rows of lists are written with `<`, `>` and `&` escaped, everything else without, as Docker's clients happen to do."""
    return go_dumps(value.plain()) if hasattr(value, "plain") else ordered_dumps(value)


FUNCTIONS: "dict[str, Callable[..., Any]]" = {
    "json": _json, "split": lambda text, separator: text.split(separator) if separator else list(text), "join": join, "title": title,
    "lower": lambda text: text.lower(), "upper": lambda text: text.upper(), "pad": pad, "truncate": lambda text, size: text[:size],
    "println": lambda *values: " ".join(go_string(value) for value in values) + "\n", "print": lambda *values: _print(values),
    "printf": printf, "eq": equal, "ne": lambda first, second: not equal(first, second), "lt": less, "le": lambda a, b: not less(b, a),
    "gt": lambda a, b: less(b, a), "ge": lambda a, b: not less(a, b), "not": lambda value: not truth(value), "index": index, "len": length,
    "slice": lambda value, *ends: value[(ends[0] if ends else 0):(ends[1] if len(ends) > 1 else None)],
    "html": lambda value: _html(go_string(value)), "urlquery": lambda value: _query(go_string(value)),
}
_TEXT_FIRST = ("lower", "upper", "title", "split", "truncate", "pad")


def _print(values: "tuple[Any, ...]") -> str:
    """Go's Sprint: a space between two values when neither is a string."""
    out = ""
    for at, value in enumerate(values):
        if at and not isinstance(value, str) and not isinstance(values[at - 1], str):
            out += " "
        out += go_string(value)
    return out


def _html(text: str) -> str:
    for char, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&#34;"), ("'", "&#39;")):
        text = text.replace(char, entity)
    return text


def _query(text: str) -> str:
    from cli.client import quote

    return quote(text).replace("%20", "+")


class Loose(dict):  # type: ignore[type-arg]
    """A map whose absent keys have no value, as Go's templates see every map unless told otherwise; Docker does for labels of events."""


class Partial(dict):  # type: ignore[type-arg]
    """A map of which Docker's daemon leaves out what is empty. `absent`: what templates see instead; JSON stays without it."""

    def __init__(self, data: "dict[str, Any]", absent: "dict[str, Any]"):
        super().__init__(data)
        self.absent = absent


class Template:
    """A parsed template; `run(data)` gives the text. `functions` replaces some of the built-in ones."""

    def __init__(self, text: str, functions: "dict[str, Callable[..., Any]] | None" = None):
        self.text = text
        self.tree = parse(text)
        self.functions = {**FUNCTIONS, **(functions or {})}

    def run(self, data: "Any") -> str:
        """Raises TemplateError."""
        out: list[str] = []
        self._nodes(self.tree, data, {"$": data}, out)
        return "".join(out)

    def _error(self, pos: int, node: str, message: str) -> TemplateError:
        column = pos - (self.text.rfind("\n", 0, pos) + 1)
        where = f" at <{node}>" if node else ""
        return TemplateError(f'template: :{line_of(self.text, pos)}:{column}: executing ""{where}: {message}')

    def _nodes(self, nodes: "list[Any]", dot: "Any", variables: "dict[str, Any]", out: "list[str]") -> None:
        for node in nodes:
            kind = node[0]
            if kind == "text":
                out.append(node[1])
            elif kind == "action":
                value = self._pipe(node[1], dot, variables)
                if not node[1][1]:
                    out.append(go_string(plain(value)))
            elif kind == "range":
                self._range(node, dot, variables, out)
            else:
                _, pipe, body, otherwise = node
                inner = dict(variables)
                value = self._pipe(pipe, dot, inner)
                if truth(value):
                    self._nodes(body, value if kind == "with" else dot, inner, out)
                else:
                    self._nodes(otherwise, dot, inner, out)
                for name in variables:
                    variables[name] = inner[name]

    def _range(self, node: "tuple[Any, ...]", dot: "Any", variables: "dict[str, Any]", out: "list[str]") -> None:
        _, (_, names, _, commands), body, otherwise = node
        value = self._commands(commands, dot, variables)
        if isinstance(value, dict):
            pairs = [(key, value[key]) for key in sorted(value)]
        elif isinstance(value, list):
            pairs = list(enumerate(value))
        elif isinstance(value, int) and not isinstance(value, bool):
            pairs = [(number, number) for number in range(value)]
        elif value is None:
            pairs = []
        else:
            raise TemplateError(f'template: :1: executing "": range can\'t iterate over {go_string(value)}')
        for key, item in pairs:
            inner = dict(variables)
            if len(names) == 2:
                inner[names[0]] = key
            if names:
                inner[names[-1]] = item
            self._nodes(body, item, inner, out)
            for name in variables:
                if name not in names:
                    variables[name] = inner[name]
        if not pairs:
            self._nodes(otherwise, dot, variables, out)

    def _pipe(self, pipe: "tuple[Any, ...]", dot: "Any", variables: "dict[str, Any]") -> "Any":
        _, names, _, commands = pipe
        value = self._commands(commands, dot, variables)
        for name in names:
            variables[name] = value
        return value

    def _commands(self, commands: "list[Any]", dot: "Any", variables: "dict[str, Any]") -> "Any":
        final: tuple[Any, ...] = ()
        value: Any = None
        for _, operands, source in commands:
            value = self._command(operands, final, dot, variables, source)
            final = (value,)
        return value

    def _command(self, operands: "list[Any]", final: "tuple[Any, ...]", dot: "Any", variables: "dict[str, Any]", source: str) -> "Any":
        first = operands[0]
        if first[0] == "function":
            return self._call(first, operands[1:], final, dot, variables, source)
        value = self._operand(first, dot, variables)
        if callable(value):
            return value(*[self._operand(node, dot, variables) for node in operands[1:]], *final)
        if len(operands) > 1 or final:
            name = first[3] if first[0] in ("field", "variable") else go_string(value)
            raise self._error(first[2] if len(first) > 2 and isinstance(first[2], int) else 0, str(name),
                f"{name} is not a method but has arguments")
        return value

    def _call(self, node: "tuple[Any, ...]", operands: "list[Any]", final: "tuple[Any, ...]", dot: "Any", variables: "dict[str, Any]",
        source: str) -> "Any":
        _, name, pos = node
        if name in ("and", "or"):
            value: Any = None
            for operand in [lambda one=one: self._operand(one, dot,
                variables) for one in operands] + [lambda one=one: one for one in final]:
                value = operand()
                if truth(value) == (name == "or"):
                    break
            return value
        arguments = [self._operand(operand, dot, variables) for operand in operands] + list(final)
        if name in _TEXT_FIRST and arguments and not isinstance(arguments[0], str):
            wanted = "string"
            raise self._error(pos, name, f"wrong type for value; expected {wanted}; got {_basic(arguments[0])}")
        try:
            return self.functions[name](*arguments)
        except (ValueError, AttributeError) as error:
            raise self._error(pos, source, f"error calling {name}: {error}") from None
        except TypeError as error:
            raise self._error(pos, name, f"wrong arguments for {name}: {error}") from None

    def _operand(self, node: "tuple[Any, ...]", dot: "Any", variables: "dict[str, Any]") -> "Any":
        kind = node[0]
        if kind == "dot":
            return dot
        if kind == "constant":
            return node[1]
        if kind == "field":
            return self._fields(dot, node[1], node[2], node[3])
        if kind == "variable":
            return self._fields(variables[node[1][0]], node[1][1:], node[2], node[3])
        if kind == "chain":
            value = dot if node[1][0] == "dot" else self._operand(node[1], dot, variables)
            return self._fields(value, node[2], node[3], "." + ".".join(node[2]))
        if kind == "function":
            return self._call(node, [], (), dot, variables, node[1])
        return self._pipe(node, dot, variables)

    def _fields(self, value: "Any", names: "list[str]", pos: int, node: str) -> "Any":
        for name in names:
            if isinstance(value, dict):
                if name not in value and not isinstance(value, Loose) and name not in getattr(value, "absent", ()):
                    raise self._error(pos, node, f'map has no entry for key "{name}"')
                value = value.get(name) if name in value or not isinstance(value, Partial) else value.absent[name]
            elif hasattr(value, "field"):
                try:
                    value = value.field(name)
                except KeyError:
                    raise self._error(pos, node, f"can't evaluate field {name} in type {value.type}") from None
            elif value is None:
                raise self._error(pos, node, f"nil pointer evaluating interface {{}}.{name}")
            else:
                raise self._error(pos, node, f"can't evaluate field {name} in type {_go_type(value)}")
        return value


def _go_type(value: "Any") -> str:
    return {"bool": "bool", "number": "float64", "string": "string"}.get(_basic(value), "[]interface {}")
