"""JSON for the client's hot path: the C halves of the standard library's `json`, without the `re` and package import around them (5 ms).

`loads` and `dumps` are exactly what `json.loads` and compact `json.dumps` do. `go_dumps` writes as Go's encoding/json does
(keys of maps sorted, `<`, `>` and `&` escaped), which is what `{{json .}}` prints; `indent` re-indents JSON text as Go's json.Indent.
"""

from _json import encode_basestring, encode_basestring_ascii, make_encoder, make_scanner

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any


class _Context:
    """What the C scanner asks its context for."""

    strict = False
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float


_scan = make_scanner(_Context())  # type: ignore[arg-type]


def _refuse(value: object) -> object:
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


_encode = make_encoder(None, _refuse, encode_basestring_ascii, None, ":", ",", False, False, True)


def _go_string(text: str) -> str:
    return (
        encode_basestring(text).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
        .replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    )


_go_encode = make_encoder(None, _refuse, _go_string, None, ":", ",", True, False, True)


def loads(text: "str | bytes | bytearray") -> "Any":
    """Raises ValueError for anything that is not one JSON value."""
    if not isinstance(text, str):
        text = text.decode("utf-8", "replace")
    text = text.strip(" \t\r\n")
    try:
        value, end = _scan(text, 0)
    except StopIteration:
        raise ValueError(f"not JSON: {text[:60]!r}") from None
    except SystemError:  # the scanner's own error needs the module json.decoder, and is lost where nobody imported that
        raise ValueError(f"not JSON: {text[:60]!r}") from None
    if end != len(text):
        raise ValueError(f"extra data after JSON: {text[end:end + 60]!r}")
    return value


def dumps(value: object) -> str:
    return "".join(_encode(value, 0))


_ordered_encode = make_encoder(None, _refuse, encode_basestring, None, ":", ",", False, False, True)


def go_dumps(value: object) -> str:
    return "".join(_go_encode(value, 0))


def ordered_dumps(value: object) -> str:
    """Keys in the order they came in and nothing escaped that need not be: the daemon's own JSON, made compact."""
    return "".join(_ordered_encode(value, 0))


def _string_end(text: str, start: int) -> int:
    """Index after the JSON string that opens at `start`."""
    at = start + 1
    while True:
        at = text.index('"', at)
        back = at - 1
        while text[back] == "\\":
            back -= 1
        at += 1
        if (at - back) % 2 == 0:
            return at


def indent(text: str, step: str = "    ") -> str:
    """JSON text with the white space that Go's `json.Indent(…, "", step)` puts; the order and spelling of everything else stay."""
    out: list[str] = []
    depth = at = 0
    size = len(text)
    while at < size:
        char = text[at]
        if char == '"':
            end = _string_end(text, at)
            out.append(text[at:end])
            at = end
            continue
        at += 1
        if char in " \t\r\n":
            continue
        if char in "{[":
            while at < size and text[at] in " \t\r\n":
                at += 1
            if at < size and text[at] in "}]":
                out.append(char + text[at])
                at += 1
                continue
            depth += 1
            out.append(char + "\n" + step * depth)
        elif char in "}]":
            depth -= 1
            out.append("\n" + step * depth + char)
        elif char == ",":
            out.append(",\n" + step * depth)
        elif char == ":":
            out.append(": ")
        else:
            out.append(char)
    return "".join(out)
