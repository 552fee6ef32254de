"""`knarr search`: what a registry's search service finds."""

from cli.client import Client, query, quote
from cli.containers import filters
from cli.credentials import HUB, find, header
from cli.flags import Command, parse
from cli.listing import Row
from cli.progress import printable
from cli.tables import ellipsis

SEARCH = Command("search", "[OPTIONS] TERM", {"filter": "filter", "format": "string", "limit": "int", "no-trunc": "bool"},
                 {"f": "filter"}, 1, 1)


class Found(Row):
    """One repository of the answer."""

    type = "*registry.searchContext"
    headers = {"Name": "NAME", "Description": "DESCRIPTION", "StarCount": "STARS", "IsOfficial": "OFFICIAL"}
    default = ("Name", "Description", "StarCount", "IsOfficial")
    identity = "Name"

    def Name(self) -> str:
        return str(self.data["name"])

    def Description(self) -> str:
        text = printable(self.data.get("description", "").replace("\n", " ").replace("\r", " "))
        return text if self.view.full else ellipsis(text, 45)

    def StarCount(self) -> str:
        return str(self.data.get("star_count", 0))

    def IsOfficial(self) -> str:
        return "true" if self.data.get("is_official") else "false"


class Line(Found):
    """The default table's line: `[OK]` instead of true."""

    headers = {**Found.headers, "Mark": "OFFICIAL"}
    default = ("Name", "Description", "StarCount", "Mark")

    def Mark(self) -> str:
        return "[OK]" if self.data.get("is_official") else ""


def search(client: Client, name: str, argv: "list[str]") -> int:
    from cli.configfile import ConfigFile
    from cli.listing import show
    from cli.views import View

    given, (term,) = parse(SEARCH, argv)
    first = term.partition("/")[0] if "/" in term else ""
    server = first if "." in first or ":" in first or first == "localhost" else HUB
    path = f"/images/search?term={quote(term)}" + query("", filters=filters(given), limit=given.get("limit") or None).replace("?", "&", 1)
    answer = client.get(path, header(find(ConfigFile(client.folder), server)))
    form = given.get("format", "")
    kind = Line if form in ("", "table") else Found
    show(kind, [kind(entry, View(given.get("no-trunc", False))) for entry in answer], form, False)
    return 0
