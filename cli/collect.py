"""`knarr system gc`: apply the rules of the daemon's `--gc-…` settings at once, or see what they would remove (`POST /system/gc`)."""

from cli.client import Client, query
from cli.codec import loads
from cli.flags import Command, parse
from cli.listing import Row
from cli.streams import output
from cli.tables import human_size

GC = Command("system gc", "[OPTIONS]", {"dry-run": "bool", "format": "string", "quiet": "bool"}, {"q": "quiet"}, 0, 0)


class Removal(Row):
    """One image that went, or would go."""

    type = "*collect.context"
    headers = {"ID": "IMAGE ID", "Names": "NAMES", "Reason": "REASON", "Size": "SIZE"}
    default = ("Names", "ID", "Reason", "Size")
    identity = "ID"

    def ID(self) -> str:
        return str(self.data["Id"]).partition(":")[2][:12]

    def Names(self) -> str:
        return ", ".join(self.data["Names"]) or "<none>"

    def Reason(self) -> str:
        return str(self.data["Reason"])

    def Size(self) -> str:
        return human_size(self.data["Size"])


def gc(client: Client, name: str, argv: "list[str]") -> int:
    from cli.listing import show
    from cli.views import View

    given, _ = parse(GC, argv)
    dry_run, form, quiet = given.get("dry-run", False), given.get("format", ""), given.get("quiet", False)
    answer = loads(client.post(query("/system/gc", **{"dry-run": dry_run or None})))
    removals = [Removal(one, View()) for one in answer["Removed"]]
    if removals or form not in ("", "table"):
        show(Removal, removals, form, quiet)
    if form in ("", "table") and not quiet:
        share = round(100 * answer["Used"] / answer["Total"]) if answer["Total"] else 0
        verb = "would be freed" if dry_run else "freed"
        output(("\n" if removals else "") + f"{human_size(answer['SpaceReclaimed'])} {verb}; the disk was {share}% full\n")
    return 0
