"""Commands on images that are one request each: `images history rmi tag`."""

from cli.client import Client, Failure, query, quote
from cli.codec import loads
from cli.containers import filters
from cli.flags import Command, parse
from cli.streams import output

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

LS = Command("images", "[OPTIONS] [REPOSITORY[:TAG]]", {
    "all": "bool", "digests": "bool", "filter": "filter", "format": "string", "no-trunc": "bool", "quiet": "bool", "tree": "bool",
}, {"a": "all", "f": "filter", "q": "quiet"}, 0, 1)
HISTORY = Command("history", "[OPTIONS] IMAGE", {
    "format": "string", "human": "bool", "no-trunc": "bool", "platform": "string", "quiet": "bool",
}, {"H": "human", "q": "quiet"}, 1, 1)
RM = Command("rmi", "[OPTIONS] IMAGE [IMAGE...]", {"force": "bool", "no-prune": "bool", "platform": "strings"}, {"f": "force"}, 1)
TAG = Command("tag", "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]", {}, {}, 2, 2)

# an image's name keeps its slashes in a path
_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/:@")


def image_path(name: str) -> str:
    return "/images/" + quote(name, _NAME)


def ls(client: Client, name: str, argv: "list[str]") -> int:
    from cli.listing import show
    from cli.views import Image, View

    given, arguments = parse(LS.named(name), argv)
    if arguments:
        given.setdefault("filter", []).append(("reference", arguments[0]))
    if given.get("tree"):
        from cli.tree import show_tree

        return show_tree(client, given)
    summaries = client.get(query("/images/json", all=given.get("all") or None, filters=filters(given)))
    form = given.get("format", "")
    digests = given.get("digests", False) or "{{.Digest}}" in form
    view = View(given.get("no-trunc", False))
    rows = [Image(row, view) for summary in summaries for row in lines(summary, digests, given.get("digests", False))]
    default = ("Repository", "Tag", "Digest", "ID", "CreatedSince", "Size") if given.get("digests") else None
    show(Image, rows, form, given.get("quiet", False), default)
    return 0


def lines(summary: "dict[str, Any]", digests: bool, column: bool) -> "list[dict[str, Any]]":
    """One line a tag, with `digests` one a tag and digest; an image that only a digest names has one, with `column` one a digest."""
    tags: dict[str, list[str]] = {}
    by_digest: dict[str, list[str]] = {}
    for reference in summary.get("RepoTags") or ():
        if reference != "<none>:<none>":
            repository, _, tag = reference.rpartition(":")
            tags.setdefault(repository, []).append(tag)
    for reference in summary.get("RepoDigests") or ():
        if reference != "<none>@<none>":
            repository, _, digest = reference.partition("@")
            by_digest.setdefault(repository, []).append(digest)
    result = []
    for repository, names in tags.items():
        known = by_digest.pop(repository, []) if digests else by_digest.pop(repository, [])[:0]
        result += [(repository, tag, digest) for digest in known or ["<none>"] for tag in names]
    for repository, known in by_digest.items():
        result += [(repository, "<none>", digest) for digest in (known if column else [""])]
    if not result:
        result = [("<none>", "<none>", "<none>")]
    return [summary | {"_repo": repository, "_tag": tag, "_digest": digest} for repository, tag, digest in result]


def history(client: Client, name: str, argv: "list[str]") -> int:
    from cli.listing import show
    from cli.platforms import query_value
    from cli.views import History, View

    given, (image,) = parse(HISTORY.named(name), argv)
    human = given.get("human", True)
    if chosen := query_value(given.get("platform", ""), ""):
        client.require("platform", "1.48")
    entries = client.get(query(image_path(image) + "/history", platform=chosen))
    view = View(given.get("no-trunc", False), human)
    rows = [History(entry, view) for entry in entries]
    show(History, rows, given.get("format", ""), given.get("quiet", False), None if human else History.plain_default)
    return 0


def rm(client: Client, name: str, argv: "list[str]") -> int:
    given, images = parse(RM.named(name), argv)
    platforms = ""
    if given.get("platform"):
        from cli.platforms import query_value

        client.require("platform", "1.50")
        platforms = "".join("&platforms=" + quote(query_value(text, "")) for text in given["platform"])
    errors, fatal, out = [], False, []
    for image in images:
        try:
            path = query(image_path(image), force=given.get("force") or None, noprune=given.get("no-prune") or None)
            path += platforms if "?" in path else platforms.replace("&", "?", 1)
            removed = loads(client.delete(path))
        except Failure as failure:
            fatal = fatal or not (given.get("force") and getattr(failure, "status", 0) == 404)
            errors.append(failure.text)
            continue
        for entry in removed:
            out.append(f"Deleted: {entry['Deleted']}\n" if entry.get("Deleted") else f"Untagged: {entry['Untagged']}\n")
    output("".join(out))
    if errors:
        raise Failure("\n".join(errors), 1 if fatal else 0)
    return 0


def tag(client: Client, name: str, argv: "list[str]") -> int:
    from cli.references import split_tag

    _, (source, target) = parse(TAG.named(name), argv)
    repository, label = split_tag(target)
    client.post(query(image_path(source) + "/tag", repo=repository, tag=label))
    return 0
