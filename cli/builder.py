"""`knarr builder du` and `knarr builder prune`: what builds keep, and removing it."""

from cli.client import Client, query
from cli.codec import loads
from cli.flags import Command, parse
from cli.streams import output
from cli.tables import human_size

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

DU = Command("builder du", "[OPTIONS]", {"builder": "string", "filter": "filter", "format": "string", "verbose": "bool"},
             {"v": "verbose"}, 0, 0)
PRUNE = Command("builder prune", "", {
    "all": "bool", "builder": "string", "filter": "filter", "force": "bool", "keep-storage": "bytes", "max-used-space": "bytes",
    "min-free-space": "bytes", "reserved-space": "bytes", "verbose": "bool",
}, {"a": "all", "f": "force"}, 0, 0)
_BOOLEANS = {"inuse": "InUse", "shared": "Shared", "private": "Shared"}


def _own(given: "dict[str, Any]") -> None:
    from cli.buildflags import refuse

    if given.get("builder", "default") not in ("", "default"):
        raise refuse(f'no builder "{given["builder"]}" found')


def matches(record: "dict[str, Any]", key: str, value: str) -> bool:
    """Whether one filter lets a record of the API pass: `id`, `parent`, `type`, `description`, `inuse`, `shared`, `private`; a value that
    starts with `~` is a part of the field. Raises Failure for another key."""
    from cli.client import Failure

    if key in _BOOLEANS:
        wanted = value not in ("false", "0") and value != ""
        return bool(record.get(_BOOLEANS[key])) == (wanted != (key == "private"))
    fields = {"id": [record["ID"]], "parent": parents(record), "type": [record.get("Type", "")],
        "description": [record.get("Description", "")]}
    if key not in fields:
        raise Failure(f"ERROR: failed to parse filter: invalid filter '{key}'")
    if value[:1] == "~":
        return any(value[1:] in field for field in fields[key])
    return value in fields[key]


def parents(record: "dict[str, Any]") -> "list[str]":
    """dockerd's member has a blank in its name since it was renamed; older ones have one parent."""
    return list(record.get(" Parents") or record.get("Parents") or filter(None, [record.get("Parent")]))


def totals(records: "list[dict[str, Any]]") -> "list[tuple[str, int]]":
    """The sums below the list, in bytes."""
    size = sum(one["Size"] for one in records)
    shared = sum(one["Size"] for one in records if one.get("Shared"))
    found = [("Shared:", shared), ("Private:", size - shared)] if shared else []
    return [*found, ("Reclaimable:", sum(one["Size"] for one in records if not one.get("InUse"))), ("Total:", size)]


def du(client: Client, name: str, argv: "list[str]") -> int:
    given, _ = parse(DU.named(name), argv)
    _own(given)
    answer = client.get("/system/df?type=build-cache&verbose=1")
    until = next((value for key, value in given.get("filter", ()) if key == "until"), "")
    records = [one for one in answer.get("BuildCache") or () if all(matches(one, key, value) for key, value in given.get("filter", ())
        if key != "until")]
    if until:
        records = [one for one in records if _older(one, until)]
    records.sort(key=lambda one: (-one["Size"], one["ID"]))
    form = given.get("format", "")
    if form not in ("", "table"):
        _formatted(records, form)
        return 0
    if given.get("verbose"):
        output("".join(details(one) + "\n" for one in records))
    else:
        output(table(records))
    output("".join(f"{title}\t{human_size(size, 4)}\n" if len(title) > 7 else f"{title}\t\t{human_size(size, 4)}\n"
        for title, size in totals(records)))
    return 0


def _older(record: "dict[str, Any]", until: str) -> bool:
    from cli.diskusage import _seconds
    from cli.times import timestamp

    moment = record.get("LastUsedAt") or record.get("CreatedAt")
    return moment is not None and _seconds(str(moment)) < float(timestamp(until, "until"))


def table(records: "list[dict[str, Any]]") -> str:
    """buildx's columns; `*` marks what can change and sizes that are shared."""
    from cli.diskusage import _since
    from cli.tables import columns

    lines = ["ID\tRECLAIMABLE\tSIZE\tLAST ACCESSED"]
    for one in records:
        mutable = "*" if _mutable(one) else ""
        shared = "*" if one.get("Shared") else ""
        lines.append(f"{one['ID']}{mutable}\t{_word(not one.get('InUse'))}\t{human_size(one['Size'], 4)}{shared}\t"
            f"{_since(one.get('LastUsedAt'))}")
    return columns(lines)


def _mutable(record: "dict[str, Any]") -> bool:
    """What builds write into: folders of cache mounts and contexts."""
    return record.get("Type") in ("exec.cachemount", "source.local", "source.git.checkout")


def _word(value: bool) -> str:
    return "true" if value else "false"


def details(record: "dict[str, Any]") -> str:
    """A block of `du --verbose`."""
    from cli.diskusage import _moment, _since

    lines = [("ID:", record["ID"])]
    lines += [("Parent:" if len(parents(record)) == 1 else "Parents:", ", ".join(parents(record)))] if parents(record) else []
    lines += [
        ("Created at:", _moment(record.get("CreatedAt"))), ("Mutable:", _word(_mutable(record))),
        ("Reclaimable:", _word(not record.get("InUse"))), ("Shared:", _word(bool(record.get("Shared")))),
        ("Size:", human_size(record["Size"], 4)), ("Description:", record.get("Description", "")),
        ("Usage count:", str(record.get("UsageCount", 0))),
    ]  # fmt: skip
    lines += [("Last used:", _since(record["LastUsedAt"]))] if record.get("LastUsedAt") else []
    lines += [("Type:", record.get("Type", ""))]
    return "".join(f"{title}{chr(9) * (2 if len(title) < 8 else 1)}{value}\n" for title, value in lines)


def _formatted(records: "list[dict[str, Any]]", form: str) -> None:
    from cli.diskusage import Cache
    from cli.listing import show
    from cli.views import View

    show(Cache, [Cache(one | {"Parent": ",".join(parents(one))}, View(True)) for one in records], form, False)


def prune(client: Client, name: str, argv: "list[str]") -> int:
    from cli.prompt import confirmed
    from cli.prune import _cache, _filters

    given, _ = parse(PRUNE.named(name), argv)
    _own(given)
    everything = given.get("all", False)
    what = "all" if everything else "all dangling"
    if not given.get("force") and not confirmed(f"WARNING! This will remove {what} build cache.", " "):
        return 0
    path = query("/build/prune", all=everything or None, filters=_filters(given), **{
        flag: given[flag] for flag in ("keep-storage", "reserved-space", "max-used-space", "min-free-space") if given.get(flag)})
    known = {}
    if given.get("verbose"):
        known = {one["ID"]: one for one in client.get("/system/df?type=build-cache&verbose=1").get("BuildCache") or ()}
    answer = loads(client.post(path))
    if known:
        output("".join(details(known[one]) + "\n" for one in answer.get("CachesDeleted") or () if one in known))
    elif len(lines := _cache(answer)) > 1:
        output("\n".join(lines) + "\n\n")
    output(f"Total reclaimed space: {human_size(int(answer.get('SpaceReclaimed', 0)), 4)}\n")
    return 0
