"""Removing what nothing uses: `knarr container prune`, `image prune`, `network prune`, `volume prune` and `system prune`."""

from cli.client import Client, DaemonError, Failure, query
from cli.codec import dumps, loads
from cli.flags import Command, parse
from cli.prompt import confirmed
from cli.streams import output
from cli.tables import human_size

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

CONTAINERS = Command("container prune", "[OPTIONS]", {"filter": "filter", "force": "bool"}, {"f": "force"}, 0, 0)
IMAGES = Command("image prune", "[OPTIONS]", {"all": "bool", "filter": "filter", "force": "bool"}, {"a": "all", "f": "force"}, 0, 0)
NETWORKS = Command("network prune", "[OPTIONS]", {"filter": "filter", "force": "bool"}, {"f": "force"}, 0, 0)
VOLUMES = Command("volume prune", "[OPTIONS]", {"all": "bool", "filter": "filter", "force": "bool"}, {"a": "all", "f": "force"}, 0, 0)
SYSTEM = Command("system prune", "[OPTIONS]", {"all": "bool", "filter": "filter", "force": "bool", "volumes": "bool"},
                 {"a": "all", "f": "force"}, 0, 0)


def _filters(given: "dict[str, Any]", **more: str) -> str:
    """`--filter` and what the flags add to it; `key!=value` asks for `key!`."""
    result: dict[str, list[str]] = {}
    for key, value in given.get("filter", ()):
        if value not in result.setdefault(key, []):
            result[key].append(value)
    for key, value in more.items():
        result.setdefault(key, [value])
    return dumps(result) if result else ""


def _containers(answer: "dict[str, Any]") -> "list[str]":
    return ["Deleted Containers:", *(answer.get("ContainersDeleted") or ())]


def _images(answer: "dict[str, Any]") -> "list[str]":
    lines = ["Deleted Images:"]
    for one in answer.get("ImagesDeleted") or ():
        lines.append(f"untagged: {one['Untagged']}" if one.get("Untagged") else f"deleted: {one['Deleted']}")
    return lines


def _networks(answer: "dict[str, Any]") -> "list[str]":
    return ["Deleted Networks:", *(answer.get("NetworksDeleted") or ())]


def _volumes(answer: "dict[str, Any]") -> "list[str]":
    return ["Deleted Volumes:", *(answer.get("VolumesDeleted") or ())]


def _cache(answer: "dict[str, Any]") -> "list[str]":
    return ["Deleted build cache objects:", *(answer.get("CachesDeleted") or ())]


def _prune(client: Client, noun: str, options: str, lines: "Any") -> int:
    """Ask the daemon for one kind, print what went; the bytes it freed."""
    answer = loads(client.post(f"/{noun}/prune" + options))
    found = lines(answer)
    if len(found) > 1:
        output("\n".join(found) + "\n\n")
    return int(answer.get("SpaceReclaimed", 0))


def _reclaimed(size: int) -> int:
    output(f"Total reclaimed space: {human_size(size, 4)}\n")
    return 0


def containers(client: Client, name: str, argv: "list[str]") -> int:
    given, _ = parse(CONTAINERS, argv)
    if not given.get("force") and not confirmed("WARNING! This will remove all stopped containers."):
        return 0
    return _reclaimed(_prune(client, "containers", query("", filters=_filters(given)), _containers))


def images(client: Client, name: str, argv: "list[str]") -> int:
    given, _ = parse(IMAGES, argv)
    everything = given.get("all", False)
    what = "images without at least one container associated to them" if everything else "dangling images"
    if not given.get("force") and not confirmed(f"WARNING! This will remove all {what}."):
        return 0
    return _reclaimed(_prune(client, "images", query("", filters=_filters(given, dangling="false" if everything else "true")), _images))


def networks(client: Client, name: str, argv: "list[str]") -> int:
    given, _ = parse(NETWORKS, argv)
    if not given.get("force") and not confirmed("WARNING! This will remove all custom networks not used by at least one container."):
        return 0
    _prune(client, "networks", query("", filters=_filters(given)), _networks)
    return 0


def volumes(client: Client, name: str, argv: "list[str]") -> int:
    given, _ = parse(VOLUMES, argv)
    everything = given.get("all", False)
    for key, value in given.get("filter", ()):
        if key == "all" and everything:
            raise Failure(f"conflicting options: cannot specify both --all and --filter all={value}")
    what = "all" if everything else "anonymous"
    if not given.get("force") and not confirmed(f"WARNING! This will remove {what} local volumes not used by at least one container."):
        return 0
    more = {"all": "true"} if everything else {}
    return _reclaimed(_prune(client, "volumes", query("", filters=_filters(given, **more)), _volumes))


def system(client: Client, name: str, argv: "list[str]") -> int:
    """In Docker's order. Kinds of things that the daemon does not have yet leave nothing to remove."""
    given, _ = parse(SYSTEM, argv)
    everything, volumes = given.get("all", False), given.get("volumes", False)
    if volumes and any(key == "until" for key, _ in given.get("filter", ())):
        raise Failure('ERROR: The "until" filter is not supported with "--volumes"')
    if not given.get("force") and not confirmed(warning(given, everything, volumes)):
        return 0
    chosen = query("", filters=_filters(given))
    size = _prune(client, "containers", chosen, _containers)
    size += _prune(client, "networks", chosen, _networks)
    if volumes:
        size += _prune(client, "volumes", chosen, _volumes)
    size += _prune(client, "images", query("", filters=_filters(given, dangling="false" if everything else "true")), _images)
    cache = query("", all=everything or None, filters=_filters(given))
    size += _prune_if_any(client, "build", cache, _cache)
    return _reclaimed(size)


def _prune_if_any(client: Client, noun: str, options: str, lines: "Any") -> int:
    """A daemon that answers 501 has none of these things at all."""
    try:
        return _prune(client, noun, options, lines)
    except DaemonError as error:
        if error.status != 501:
            raise
        return 0


def warning(given: "dict[str, Any]", everything: bool, volumes: bool) -> str:
    kinds = ["all stopped containers", "all networks not used by at least one container"]
    if volumes:
        kinds.append("all anonymous volumes not used by at least one container")
    kinds += ["all images without at least one container associated to them", "all build cache"] if everything \
        else ["all dangling images", "unused build cache"]
    text = "WARNING! This will remove:\n" + "".join(f"  - {kind}\n" for kind in kinds)
    if given.get("filter"):
        text += "\n  Items to be pruned will be filtered with:\n" + "".join(f"  - {key}={value}\n" for key, value in given["filter"])
    return text
