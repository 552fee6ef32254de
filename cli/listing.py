"""Lists of things: Docker's default table, `--quiet`, `json`, `raw`, `table TEMPLATE` and plain templates, all over one kind of row.

A row type (`cli/views.py`) says which fields there are, what heads their columns, which are shown by default.
"""

from cli.client import Failure
from cli.streams import output, write_all
from cli.tables import columns

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from cli.evaluate import Template


class Row:
    """One line of a list; a field is a method of the same name."""

    type = ""
    headers: "dict[str, str]" = {}
    default: "tuple[str, ...]" = ()
    identity = "ID"
    raw = ""

    def __init__(self, data: "dict[str, Any]", view: "Any"):
        self.data = data
        self.view = view

    def field(self, name: str) -> object:
        """The value, or the method itself for those that take an argument."""
        method = getattr(self, name, None) if name[:1].isupper() else None
        if method is None:
            raise KeyError(name)
        return method if name in ("Label",) else method()

    def plain(self) -> "dict[str, Any]":
        return {name: self.field(name) for name in self.json_fields()}

    def json_fields(self) -> "list[str]":
        return [name for name in dir(self) if name[0].isupper() and name != "Label"]


class Header:
    """Stands in for a row when the head line of `table TEMPLATE` is made."""

    def __init__(self, kind: "type[Row]"):
        self.headers = kind.headers
        self.type = kind.type

    def field(self, name: str) -> object:
        if name == "Label":
            return lambda label: label.rpartition(".")[2].replace("-", " ").replace("_", " ")
        return self.headers[name]


# in the head line these leave a header as it is
_HEADER_FUNCTIONS = {name: (lambda text, *_: text) for name in ("json", "title", "lower", "upper", "truncate", "pad", "split", "join")}


def parse_template(text: str) -> "tuple[Template, bool]":
    """The template of `--format` and whether it is a table; `\\t` and `\\n` written out count as the characters. Raises Failure."""
    from cli.evaluate import Template
    from cli.template import TemplateError

    table = text.startswith("table")
    body = text[5:].strip() if table else text
    try:
        return Template(body.replace("\\t", "\t").replace("\\n", "\n")), table
    except TemplateError as error:
        raise Failure("failed to parse template: " + error.text) from None


def show(kind: "type[Row]", rows: "Sequence[Row]", form: str, quiet: bool, default: "tuple[str, ...] | None" = None) -> None:
    """Print rows in the form asked for. `default` overrides the columns of the default table."""
    if quiet:
        output("".join(str(row.field(kind.identity)) + "\n" for row in rows))
        if form and form not in ("table", "json", "raw"):
            write_all(2, b"WARNING: Ignoring custom format, because both --format and --quiet are set.\n")
    elif form in ("", "table"):
        names = default or kind.default
        lines = ["\t".join([kind.headers[name] for name in names])]
        lines += ["\t".join([str(getattr(row, name)()) for name in names]) for row in rows]
        output(columns(lines))
    elif form == "json":
        from cli.codec import go_dumps

        output("".join(go_dumps(row.plain()) + "\n" for row in rows))
    else:
        _templated(kind, rows, kind.raw if form == "raw" and kind.raw else form)


def _templated(kind: "type[Row]", rows: "Sequence[Row]", form: str) -> None:
    from cli.template import TemplateError

    template, table = parse_template(form)
    try:
        lines = [template.run(row) for row in rows]
        if table:
            saved, template.functions = template.functions, {**template.functions, **_HEADER_FUNCTIONS}
            lines.insert(0, template.run(Header(kind)))
            template.functions = saved
    except TemplateError as error:
        words = "template parsing error: " if kind.type.startswith(("*image.", "*registry.")) else "failed to execute template: "
        raise Failure(words + error.text) from None
    output(columns(lines) if table else "".join(line + "\n" for line in lines))
