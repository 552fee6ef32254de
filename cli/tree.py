"""`knarr images --tree`: every image with its platforms below it (the API's `manifests=1`, version 1.47 and later)."""

from cli.client import Client, Failure, query
from cli.containers import filters
from cli.streams import output
from cli.tables import ellipsis, human_size
from cli.tables import width as columns_of
from cli.views import short_id

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

# title and width of the columns after the name; numbers are right-aligned
_COLUMNS = (("ID", 12), ("DISK USAGE", 10), ("CONTENT SIZE", 12), ("EXTRA", 5))
_SPACING = 3
_BRANCH = 7  # columns kept for a branch before its platform, as many as with Docker
_CHIP = "30;106"
_LEAST_NAME = 10  # columns; below that the last column is left out instead


class Line:
    """One row: a name or a platform, what is shown beside it, and how it looks on a terminal."""

    def __init__(self, name: str, identity: str, usage: int, content: int, used: bool, style: str = ""):
        self.name = name
        self.cells = (identity, human_size(usage), human_size(content), "U" if used else "")
        self.style = style


def show_tree(client: Client, given: "dict[str, Any]") -> int:
    """Raises Failure for what cannot be combined with `--tree`."""
    for flag, shown in (("quiet", "quiet"), ("no-trunc", "no-trunc"), ("digests", "show-digest"), ("format", "format")):
        if given.get(flag):
            raise Failure(f"--{shown} is not yet supported with --tree")
    from cli.terminal import is_terminal, size

    client.require("tree", "1.47")
    path = query("/images/json", all=given.get("all") or None, manifests=True, filters=filters(given))
    summaries = client.get(path)
    colour = False
    if is_terminal(1):
        from cli.client import getenv

        colour = not getenv("NO_COLOR")
    output(tree(summaries, bool(given.get("all")), max(20, size(1)[1] or 80), colour))
    return 0


def tree(summaries: "list[dict[str, Any]]", everything: bool, width: int, colour: bool) -> str:
    """The whole text. Newest images first; those without a name only when `everything` is asked for."""
    blocks = [block(one) for one in sorted(summaries, key=lambda one: -one.get("Created", 0)) if everything or names(one)]
    longest = max([5, *(columns_of(line.name) if line.style != "branch" else _BRANCH + len(line.name) - 3
        for free, lines in blocks for line in [*(Line(name, "", 0, 0, False) for name in free), *lines])])
    columns = list(_COLUMNS)

    def room() -> int:
        return width - sum(size + _SPACING for _, size in columns)

    while columns and room() < _LEAST_NAME:
        columns.pop()
    first = min(room(), longest)
    legend = "Info -> " + _styled(" U ", _CHIP, colour) + "In Use "
    text = " " * (width - len("Info ->  U In Use ")) + legend + "\n\n" + _header(columns, first, colour) + "\n"
    for free, lines in blocks:
        text += "".join(_styled(name, "1", colour) + "\n" for name in free)
        text += "".join(_row(line, columns, first, colour) + "\n" for line in lines) + "\n"
    return text


def names(summary: "dict[str, Any]") -> "list[str]":
    """Longest first: the shortest is the one that shares its line with the numbers."""
    return sorted((name for name in summary.get("RepoTags") or () if name != "<none>:<none>"), key=lambda name: -len(name))


def block(summary: "dict[str, Any]") -> "tuple[list[str], list[Line]]":
    """The names that stand alone, and the lines of one image."""
    found = names(summary) or ["<untagged>"]
    manifests = [one for one in summary.get("Manifests") or () if one.get("Kind") == "image"]
    content = sum((one.get("Size") or {}).get("Content", 0) for one in manifests)
    used = summary.get("Containers", 0) > 0 or any(_used(one) for one in manifests)
    lines = [Line(found[-1], short_id(summary["Id"]), summary.get("Size", 0), content, used, "name")]
    for one in manifests:
        branch = "└─ " if one is manifests[-1] else "├─ "
        sizes = one.get("Size") or {}
        line = Line(branch + _platform(one), short_id(one["ID"]), sizes.get("Total", 0), sizes.get("Content", 0), _used(one), "branch")
        if not one.get("Available"):
            line.style = "missing"
        lines.append(line)
    return found[:-1], lines


def _used(manifest: "dict[str, Any]") -> bool:
    return bool((manifest.get("ImageData") or {}).get("Containers"))


def _platform(manifest: "dict[str, Any]") -> str:
    """`os[(version)]/architecture[/variant]`, `unknown` where the image does not say."""
    platform = (manifest.get("ImageData") or {}).get("Platform") or {}
    parts = [platform.get("os", ""), platform.get("architecture", ""), platform.get("variant", "")]
    return "/".join(part for part in parts if part) or "unknown"


def _styled(text: str, code: str, colour: bool) -> str:
    return f"\033[{code}m{text}\033[0m" if colour and code and text.strip() else text


def _header(columns: "list[tuple[str, int]]", first: int, colour: bool) -> str:
    cells = ["IMAGE" + " " * (first - 5), *(f"{title:<{size}}" for title, size in columns)]
    return _styled((" " * _SPACING).join(cells).rstrip(), "1", colour)


def _row(line: Line, columns: "list[tuple[str, int]]", first: int, colour: bool) -> str:
    code = {"name": "1;34", "missing": "2"}.get(line.style, "")
    name = ellipsis(line.name, first)
    cells = [_styled(name, code, colour) + " " * (first - columns_of(name))]
    for (title, size), cell in zip(columns, line.cells, strict=False):
        if title == "EXTRA":
            chip = _styled(f" {cell} ", _CHIP, True) if cell and colour else cell
            cells.append(chip + " " * (size - (3 if cell and colour else len(cell))))
        else:
            shown = f"{cell:<{size}}" if title == "ID" else f"{cell:>{size}}"
            cells.append(_styled(shown, "2" if line.style == "missing" else "", colour))
    return (" " * _SPACING).join(cells)
