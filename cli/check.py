"""`knarr system check`: is everything in the store what it should be? `GET /system/check`, an extension of Knarr's.

The daemon streams one JSON object for each thing it found: kind, name, state, detail, repaired; the last one is `{"summary": {...}}`.
"""

from cli.client import Client, Failure, query
from cli.flags import PROGRAM, Command, parse
from cli.listing import Row
from cli.progress import printable, raise_error
from cli.streams import output
from cli.tables import human_size

CHECK = Command("system check", "[OPTIONS]", {"all": "bool", "format": "string", "quick": "bool", "repair": "bool"}, {"a": "all"}, 0, 0)
FLAGS = ("repair", "all", "quick")
HARMLESS = ("ok", "orphan", "set aside")  # `orphan`: nothing needs it; `set aside`: damaged earlier, and out of the way since


class Finding(Row):
    """One thing that was looked at."""

    type = "*check.context"
    headers = {"Kind": "KIND", "Name": "NAME", "State": "STATE", "Detail": "DETAIL", "Repaired": "REPAIRED"}
    default = ("Kind", "Name", "State", "Repaired", "Detail")
    identity = "Name"

    def Kind(self) -> str:
        return self._text("kind")

    def Name(self) -> str:
        return self._text("name")

    def State(self) -> str:
        return self._text("state")

    def Detail(self) -> str:
        return self._text("detail")

    def Repaired(self) -> str:
        return "yes" if self.data.get("repaired") else "no"

    def _text(self, member: str) -> str:
        return printable(str(self.data.get(member, ""))).replace("\t", " ").replace("\n", " ")

    @property
    def damaged(self) -> bool:
        return self.data.get("state") not in HARMLESS and not self.data.get("repaired")


def check(client: Client, name: str, argv: "list[str]") -> int:
    """Exit status 0 when all is sound or repaired, 1 when damage is left. Raises Failure when the check itself could not end."""
    from cli.listing import show
    from cli.views import View

    given, _ = parse(CHECK, argv)
    form = given.get("format", "")
    findings, summary = [], None
    for value in client.open("GET", query("/system/check", **{flag: given.get(flag) or None for flag in FLAGS})).values():
        raise_error(value)
        if "summary" in value:
            summary = value["summary"]
        else:
            findings.append(Finding(value, View()))
    if summary is None:
        raise Failure("system check: the daemon ended the check before it was complete")
    if findings or form not in ("", "table"):
        show(Finding, findings, form, False)
    left = sum(finding.damaged for finding in findings)
    if form in ("", "table"):
        counted = f"{summary.get('checked', 0)} things looked at, {human_size(summary.get('bytes', 0))} compared"
        output(("\n" if findings else "") + f"{counted}, {summary.get('damaged', 0)} damaged, {summary.get('repaired', 0)} repaired\n")
        if left:
            hint = "pull the images named again" if given.get("repair") else f"'{PROGRAM} system check --repair' repairs what it can"
            output(f"Damage is left: {hint}\n")
        else:
            output("No damage is left\n" if summary.get("damaged") else "No damage found\n")
    return 1 if left else 0
