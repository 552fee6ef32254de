"""`knarr system df`: what images, containers, volumes and the build cache take on the disk."""

from cli.client import Client
from cli.flags import Command, parse
from cli.listing import Row, show
from cli.streams import output
from cli.tables import ago, human_size
from cli.views import Container, Image, View
from cli.volumes import Volume

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

DF = Command("system df", "[OPTIONS]", {"format": "string", "verbose": "bool"}, {"v": "verbose"}, 0, 0)


class Usage(Row):
    """One kind of thing: `data` is its name and the numbers of `summary`."""

    type = "*formatter.diskUsageContext"
    headers = {"Type": "TYPE", "TotalCount": "TOTAL", "Active": "ACTIVE", "Size": "SIZE", "Reclaimable": "RECLAIMABLE"}
    default = ("Type", "TotalCount", "Active", "Size", "Reclaimable")
    identity = "Type"

    def Type(self) -> str:
        return str(self.data["type"])

    def TotalCount(self) -> str:
        return str(self.data["total"])

    def Active(self) -> str:
        return str(self.data["active"])

    def Size(self) -> str:
        return human_size(self.data["size"], 4)

    def Reclaimable(self) -> str:
        free, whole = self.data["free"], self.data["size"]
        share = f" ({free * 100 // whole}%)" if whole > 0 and self.data["share"] else ""
        return human_size(free, 4) + share


def summary(answer: "dict[str, Any]") -> "list[dict[str, Any]]":
    """Docker's four lines: how many there are, how many are in use, their bytes, and the bytes that a prune could free."""
    images = answer.get("Images") or []
    used = [image for image in images if image.get("Containers", 0) > 0]
    held = sum(image["Size"] - image.get("SharedSize", 0) for image in used if image["Size"] >= 0 and image.get("SharedSize", 0) >= 0)
    layers = answer.get("LayersSize") or 0
    containers = answer.get("Containers") or []
    idle = [one for one in containers if one["State"] not in ("running", "paused", "restarting")]
    volumes = [(one.get("UsageData") or {"Size": 0, "RefCount": 0}) for one in answer.get("Volumes") or ()]
    cache = answer.get("BuildCache") or []
    own = sum(one["Size"] for one in cache if not one.get("Shared"))
    return [
        {"type": "Images", "total": len(images), "active": len(used), "size": layers, "free": layers - held, "share": True},
        {"type": "Containers", "total": len(containers), "active": len(containers) - len(idle),
         "size": sum(one.get("SizeRw", 0) for one in containers), "free": sum(one.get("SizeRw", 0) for one in idle), "share": True},
        {"type": "Local Volumes", "total": len(volumes), "active": sum(one["RefCount"] > 0 for one in volumes),
         "size": sum(max(0, one["Size"]) for one in volumes), "free": sum(max(0, one["Size"]) for one in volumes if one["RefCount"] == 0),
         "share": True},
        {"type": "Build Cache", "total": len(cache), "active": sum(bool(one.get("InUse")) for one in cache), "size": own,
         "free": sum(one["Size"] for one in cache if not one.get("InUse") and not one.get("Shared")), "share": False},
    ]  # fmt: skip


class UsedContainer(Container):
    """`system df -v` shows other columns, and the written size alone."""

    default = ("ID", "Image", "Command", "LocalVolumes", "Size", "RunningFor", "Status", "Names")
    headers = {**Container.headers, "RunningFor": "CREATED"}

    def Size(self) -> str:
        return human_size(self.data.get("SizeRw", 0))


class UsedVolume(Volume):
    default = ("Name", "Links", "Size")


class Cache(Row):
    type = "*formatter.buildCacheContext"
    headers = {
        "ID": "CACHE ID", "CacheType": "CACHE TYPE", "Size": "SIZE", "CreatedSince": "CREATED", "LastUsedSince": "LAST USED",
        "UsageCount": "USAGE", "Shared": "SHARED", "Parent": "PARENT", "CreatedAt": "CREATED AT", "LastUsedAt": "LAST USED AT",
        "Description": "DESCRIPTION", "InUse": "IN USE",
    }
    default = ("ID", "CacheType", "Size", "CreatedSince", "LastUsedSince", "UsageCount", "Shared")

    def ID(self) -> str:
        text = str(self.data["ID"])
        return (text if self.view.full else text[:12]) + ("*" if self.data.get("InUse") else "")

    def Parent(self) -> str:
        text = str(self.data.get("Parent", ""))
        return text if self.view.full else text[:12]

    def CacheType(self) -> str:
        return str(self.data.get("Type", ""))

    def Description(self) -> str:
        return str(self.data.get("Description", ""))

    def CreatedAt(self) -> str:
        return _moment(self.data.get("CreatedAt"))

    def CreatedSince(self) -> str:
        return _since(self.data.get("CreatedAt"))

    def LastUsedAt(self) -> str:
        return _moment(self.data.get("LastUsedAt"))

    def LastUsedSince(self) -> str:
        return _since(self.data.get("LastUsedAt"))

    def UsageCount(self) -> str:
        return str(self.data.get("UsageCount", 0))

    def InUse(self) -> str:
        return "true" if self.data.get("InUse") else "false"

    def Shared(self) -> str:
        return "true" if self.data.get("Shared") else "false"

    def Size(self) -> str:
        return human_size(self.data["Size"])


def _seconds(text: str) -> float:
    from cli.times import timestamp

    return float(timestamp(text, "time"))


def _since(text: "str | None") -> str:
    return ago(_seconds(text)) if text else ""


def _moment(text: "str | None") -> str:
    """As Go prints a time of the API's: in UTC."""
    return f"{text[:10]} {text[11:19]} +0000 UTC" if text else ""


class Details:
    """What a template of `system df -v` sees: lists of rows by kind."""

    def __init__(self, lists: "dict[str, list[Any]]"):
        self.lists = lists

    def field(self, name: str) -> object:
        return self.lists[name]


def _image(summary: "dict[str, Any]") -> "dict[str, Any]":
    """Docker shows the first name only."""
    repository, tag = "<none>", "<none>"
    for reference in (summary.get("RepoTags") or ())[:1]:
        if reference != "<none>:<none>":
            repository, _, tag = reference.rpartition(":")
    return summary | {"_repo": repository, "_tag": tag, "_digest": ""}


class UsedImage(Image):
    default = ("Repository", "Tag", "ID", "CreatedSince", "Size", "SharedSize", "UniqueSize", "Containers")


def df(client: Client, name: str, argv: "list[str]") -> int:
    given, _ = parse(DF, argv)
    answer = client.get("/system/df")
    form = given.get("format", "")
    if not given.get("verbose"):
        show(Usage, [Usage(row, View()) for row in summary(answer)], form, False)
        return 0
    full = form not in ("", "table")
    view = View(full)
    cache = sorted(answer.get("BuildCache") or (), key=lambda one: (one.get("LastUsedAt") or "", one["ID"]))
    lists: dict[str, list[Any]] = {
        "Images": [UsedImage(_image(one), view) for one in answer.get("Images") or ()],
        "Containers": [UsedContainer(one, view) for one in answer.get("Containers") or ()],
        "Volumes": [UsedVolume(one, view) for one in answer.get("Volumes") or ()],
        "BuildCache": [Cache(one, view) for one in cache],
    }
    if not full:
        _tables(lists, summary(answer)[3]["size"])
    elif form in ("json", "{{json .}}"):
        output(_json(lists))
    else:
        _templated(lists, form)
    return 0


def _json(lists: "dict[str, list[Any]]") -> str:
    from cli.codec import go_dumps

    return "{" + ",".join(f'"{kind}":[' + ",".join(go_dumps(row.plain()) for row in rows) + "]" for kind, rows in lists.items()) + "}"


def _tables(lists: "dict[str, list[Any]]", cache: int) -> None:
    kinds: tuple[type[Row], ...] = (UsedImage, UsedContainer, UsedVolume, Cache)
    titles = ("Images space usage:", "Containers space usage:", "Local Volumes space usage:", f"Build cache usage: {human_size(cache, 4)}")
    for kind, title, rows in zip(kinds, titles, lists.values(), strict=True):
        output(("\n" if kind is not UsedImage else "") + title + "\n\n")
        show(kind, rows, "", False)


def _templated(lists: "dict[str, list[Any]]", form: str) -> None:
    from cli.client import Failure
    from cli.listing import parse_template
    from cli.template import TemplateError

    template, _ = parse_template(form)
    try:
        output(template.run(Details(lists)))
    except TemplateError as error:
        raise Failure("template parsing error: " + error.text) from None
