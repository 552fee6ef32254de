"""The rows of `ps`, `images` and `history`: every field that Docker's `--format` offers for them."""

from cli.listing import Row
from cli.tables import ago, ellipsis, human_size, local_time, rfc3339

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


class View:
    """What the flags of the command say: `full` for --no-trunc, the rest per command."""

    def __init__(self, full: bool = False, human: bool = True):
        self.full = full
        self.human = human


def short_id(identity: str) -> str:
    head, colon, rest = identity.partition(":")
    return (rest if colon else head)[:12]


def _join_host(address: str, port: str) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def ports(entries: "Iterable[dict[str, Any]]") -> str:
    """`0.0.0.0:8080->80/tcp, 443-444/tcp`: neighbours that map to themselves or to nothing are one range."""
    groups: dict[tuple[str, str], list[int]] = {}
    result, mapped = [], []

    def text(key: "tuple[str, str]", first: int, last: int) -> str:
        span = f"{first}" if first == last else f"{first}-{last}"
        return (f"{_join_host(key[0], span)}->{span}" if key[0] else span) + "/" + key[1]

    for entry in sorted(entries, key=lambda e: (e["PrivatePort"], e.get("IP", ""), e.get("PublicPort", 0), e["Type"])):
        private, address = entry["PrivatePort"], entry.get("IP", "")
        if address and entry.get("PublicPort", 0) != private:
            mapped.append(f"{_join_host(address, str(entry.get('PublicPort', 0)))}->{private}/{entry['Type']}")
            continue
        key = (address, entry["Type"])
        group = groups.get(key)
        if group is None:
            groups[key] = [private, private]
        elif private == group[1] + 1:
            group[1] = private
        else:
            result.append(text(key, *group))
            groups[key] = [private, private]
    result += [text(key, *group) for key, group in groups.items()]
    return ", ".join(result + mapped)


class Container(Row):
    type = "*formatter.ContainerContext"
    headers = {
        "ID": "CONTAINER ID", "Names": "NAMES", "Image": "IMAGE", "Command": "COMMAND", "CreatedAt": "CREATED AT", "RunningFor": "CREATED",
        "Ports": "PORTS", "State": "STATE", "Status": "STATUS", "Size": "SIZE", "Labels": "LABELS", "Mounts": "MOUNTS",
        "LocalVolumes": "LOCAL VOLUMES", "Networks": "NETWORKS", "Platform": "PLATFORM",
    }
    default = ("ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names")
    raw = ("container_id: {{.ID}}\nimage: {{.Image}}\ncommand: {{.Command}}\ncreated_at: {{.CreatedAt}}\nstate: {{- pad .State 1 0}}\n"
           "status: {{- pad .Status 1 0}}\nnames: {{.Names}}\nlabels: {{- pad .Labels 1 0}}\nports: {{- pad .Ports 1 0}}\n")

    def ID(self) -> str:
        return str(self.data["Id"]) if self.view.full else short_id(self.data["Id"])

    def Names(self) -> str:
        names = [name[1:] if name[:1] == "/" else name for name in self.data["Names"] or ()]
        # a name with a slash is that of a link
        return ",".join(names if self.view.full else [name for name in names if "/" not in name])

    def Image(self) -> str:
        image = str(self.data["Image"])
        if not image:
            return "<no image>"
        if self.view.full:
            return image
        if short_id(image) == short_id(self.data["ImageID"]):
            return short_id(image)
        name = image.partition("@")[0]
        return name.removeprefix("docker.io/library/").removeprefix("docker.io/")

    def Command(self) -> str:
        command = self.data["Command"]
        if command.isascii() and command.isprintable() and '"' not in command and "\\" not in command:
            return '"' + (command if self.view.full else ellipsis(command, 20)) + '"'
        from cli.evaluate import go_quote

        return go_quote(command if self.view.full else ellipsis(command, 20))

    def CreatedAt(self) -> str:
        return local_time(self.data["Created"])

    def RunningFor(self) -> str:
        return ago(self.data["Created"])

    def Platform(self) -> "dict[str, Any] | None":
        return (self.data.get("ImageManifestDescriptor") or {}).get("platform")

    def Ports(self) -> str:
        return ports(self.data["Ports"] or ())

    def State(self) -> str:
        return str(self.data["State"])

    def Status(self) -> str:
        return str(self.data["Status"])

    def Size(self) -> str:
        text = human_size(self.data.get("SizeRw", 0))
        virtual = self.data.get("SizeRootFs", 0)
        return f"{text} (virtual {human_size(virtual)})" if virtual > 0 else text

    def Labels(self) -> str:
        return ",".join(f"{key}={value}" for key, value in sorted((self.data["Labels"] or {}).items()))

    def Label(self, name: str) -> str:
        return str((self.data["Labels"] or {}).get(name, ""))

    def Mounts(self) -> str:
        names = [mount.get("Name") or mount.get("Source", "") for mount in self.data.get("Mounts") or ()]
        return ",".join(names if self.view.full else [ellipsis(name, 15) for name in names])

    def LocalVolumes(self) -> str:
        return str(sum(mount.get("Driver") == "local" for mount in self.data.get("Mounts") or ()))

    def Networks(self) -> str:
        return ",".join(sorted((self.data.get("NetworkSettings") or {}).get("Networks") or {}))


class Image(Row):
    """`data` is the summary plus the repository, tag and digest of this line under `_repo`, `_tag`, `_digest`."""

    type = "*formatter.imageContext"
    headers = {
        "ID": "IMAGE ID", "Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", "CreatedSince": "CREATED",
        "CreatedAt": "CREATED AT",
        "Size": "SIZE", "Containers": "CONTAINERS", "VirtualSize": "SIZE", "SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE",
    }
    default = ("Repository", "Tag", "ID", "CreatedSince", "Size")
    raw = ("repository: {{.Repository}}\ntag: {{.Tag}}\nimage_id: {{.ID}}\ncreated_at: {{.CreatedAt}}\nvirtual_size: {{.Size}}\n")

    def ID(self) -> str:
        return str(self.data["Id"]) if self.view.full else short_id(self.data["Id"])

    def Repository(self) -> str:
        return str(self.data["_repo"])

    def Tag(self) -> str:
        return str(self.data["_tag"])

    def Digest(self) -> str:
        return str(self.data["_digest"])

    def CreatedSince(self) -> str:
        return ago(self.data["Created"])

    def CreatedAt(self) -> str:
        return local_time(self.data["Created"])

    def Size(self) -> str:
        return human_size(self.data["Size"])

    def Containers(self) -> str:
        return "N/A" if self.data.get("Containers", -1) == -1 else str(self.data["Containers"])

    def VirtualSize(self) -> str:
        return human_size(self.data["Size"], 4)

    def SharedSize(self) -> str:
        return "N/A" if self.data.get("SharedSize", -1) == -1 else human_size(self.data["SharedSize"], 4)

    def UniqueSize(self) -> str:
        shared = self.data.get("SharedSize", -1)
        return "N/A" if shared == -1 else human_size(self.data["Size"] - shared, 4)


class History(Row):
    type = "*image.historyContext"
    headers = {"ID": "IMAGE", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "CreatedBy": "CREATED BY", "Size": "SIZE",
        "Comment": "COMMENT"}
    default = ("ID", "CreatedSince", "CreatedBy", "Size", "Comment")
    plain_default = ("ID", "CreatedAt", "CreatedBy", "Size", "Comment")

    def ID(self) -> str:
        identity = self.data["Id"]
        return identity if self.view.full or identity == "<missing>" else short_id(identity)

    def CreatedAt(self) -> str:
        return rfc3339(self.data["Created"])

    def CreatedSince(self) -> str:
        return ago(self.data["Created"]) if self.data["Created"] > -62135596800 else "N/A"

    def CreatedBy(self) -> str:
        text = self.data["CreatedBy"].replace("\t", " ")
        return text if self.view.full else ellipsis(text, 45)

    def Size(self) -> str:
        return human_size(self.data["Size"]) if self.view.human else str(self.data["Size"])

    def Comment(self) -> str:
        return str(self.data["Comment"])
