"""`knarr volume …`: making, listing and removing volumes. Requests and words follow Docker's client 28."""

from cli.client import Client, Failure, quote
from cli.containers import filters
from cli.flags import Command, parse
from cli.listing import Row
from cli.streams import output

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

# Of Swarm's cluster volumes: a daemon in no Swarm says so.
_CLUSTER = {
    "availability": "string", "group": "string", "limit-bytes": "bytes", "required-bytes": "bytes", "scope": "string", "secret": "map",
    "sharing": "string", "topology-preferred": "list", "topology-required": "list", "type": "string",
}
CREATE = Command("volume create", "[OPTIONS] [VOLUME]", {
    "driver": "string", "label": "list:label", "name": "string", "opt": "map", **_CLUSTER,
}, {"d": "driver", "o": "opt"}, 0, 1)
LS = Command("volume ls", "[OPTIONS]", {"cluster": "bool", "filter": "filter", "format": "string", "quiet": "bool"},
             {"f": "filter", "q": "quiet"}, 0, 0)
RM = Command("volume rm", "[OPTIONS] VOLUME [VOLUME...]", {"force": "bool"}, {"f": "force"}, 1)


class Volume(Row):
    type = "*formatter.volumeContext"
    headers = {
        "Name": "VOLUME NAME", "Driver": "DRIVER", "Scope": "SCOPE", "Mountpoint": "MOUNTPOINT", "Labels": "LABELS", "Links": "LINKS",
        "Size": "SIZE", "Availability": "AVAILABILITY", "Group": "GROUP", "Status": "STATUS",
    }
    default = ("Driver", "Name")
    identity = "Name"
    raw = "name: {{.Name}}\ndriver: {{.Driver}}\n"

    def Name(self) -> str:
        return str(self.data["Name"])

    def Driver(self) -> str:
        return str(self.data.get("Driver", ""))

    def Scope(self) -> str:
        return str(self.data.get("Scope", ""))

    def Mountpoint(self) -> str:
        return str(self.data.get("Mountpoint", ""))

    def Labels(self) -> str:
        return ",".join(f"{key}={value}" for key, value in sorted((self.data.get("Labels") or {}).items()))

    def Label(self, name: str) -> str:
        return str((self.data.get("Labels") or {}).get(name, ""))

    def Links(self) -> str:
        usage = self.data.get("UsageData")
        return str(usage["RefCount"]) if usage else "N/A"

    def Size(self) -> str:
        usage = self.data.get("UsageData")
        if not usage:
            return "N/A"
        from cli.tables import human_size

        return human_size(usage["Size"], 4)

    def Availability(self) -> str:
        return "N/A"  # of Swarm's cluster volumes

    def Group(self) -> str:
        return "N/A"

    def Status(self) -> str:
        return "N/A"


def create(client: Client, name: str, argv: "list[str]") -> int:
    given, arguments = parse(CREATE, argv)
    volume = given.get("name", "")
    if arguments:
        if volume:
            raise Failure("conflicting options: cannot specify a volume-name through both --name and as a positional arg")
        volume = arguments[0]
    body: dict[str, Any] = {"Driver": given.get("driver", "local"), "Name": volume}
    if given.get("opt"):
        body["DriverOpts"] = dict(given["opt"])
    if given.get("label"):
        body["Labels"] = {label: value for label, _, value in (text.partition("=") for text in given["label"])}
    if any(flag in given for flag in _CLUSTER):
        body["ClusterVolumeSpec"] = {}
    from cli.codec import loads

    output(loads(client.post("/volumes/create", body))["Name"] + "\n")
    return 0


def ls(client: Client, name: str, argv: "list[str]") -> int:
    from cli.client import query
    from cli.listing import show
    from cli.networks import natural
    from cli.views import View

    given, _ = parse(LS.named(name), argv)
    if given.get("cluster"):
        raise Failure("not implemented: volume ls --cluster (volumes of a Swarm)")
    found = client.get(query("/volumes", filters=filters(given)))["Volumes"] or []
    found.sort(key=lambda one: natural(one["Name"]))
    view = View()
    show(Volume, [Volume(one, view) for one in found], given.get("format", ""), given.get("quiet", False))
    return 0


def rm(client: Client, name: str, argv: "list[str]") -> int:
    given, names = parse(RM.named(name), argv)
    errors = []
    for ref in names:
        try:
            client.delete(f"/volumes/{quote(ref)}" + ("?force=1" if given.get("force") else ""))
        except Failure as failure:
            errors.append(failure.text)
        else:
            output(ref + "\n")
    if errors:
        raise Failure("\n".join(errors))
    return 0
