"""`knarr pull` and `knarr push`: the daemon moves the image, the client brings the login, shows the progress and prints the reference.

With `--from` and `--to` the other end is another Knarr host (`cli/relay.py`), not a registry.
"""

from cli.client import Client, Failure, query
from cli.codec import dumps
from cli.flags import Command, parse
from cli.references import Reference
from cli.streams import output

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

PULL = Command("pull", "[OPTIONS] NAME[:TAG|@DIGEST]", {
    "all-tags": "bool", "disable-content-trust": "bool", "from": "string", "limit-rate": "string", "platform": "string", "quiet": "bool",
}, {"a": "all-tags", "q": "quiet"}, 1, 1)
PUSH = Command("push", "[OPTIONS] NAME[:TAG]", {
    "all-tags": "bool", "disable-content-trust": "bool", "limit-rate": "string", "platform": "string", "quiet": "bool", "to": "string",
}, {"a": "all-tags", "q": "quiet"}, 1, 1)


def reference_of(text: str) -> Reference:
    """A reference from the command line. Raises Failure."""
    from cli.references import parse as parse_reference

    try:
        return parse_reference(text)
    except ValueError as error:
        raise Failure(str(error)) from None


def rate(given: "dict[str, Any]") -> "int | None":
    """`--limit-rate` in bytes a second. Raises Failure."""
    if "limit-rate" not in given:
        return None
    from cli.values import size

    try:
        value = size(given["limit-rate"].removesuffix("/s"))
    except ValueError as error:
        raise Failure(f'invalid argument "{given["limit-rate"]}" for "--limit-rate" flag: {error}', 125) from None
    if value <= 0:
        raise Failure(f'invalid argument "{given["limit-rate"]}" for "--limit-rate" flag: it must be above 0', 125)
    return value


def _trust(given: "dict[str, Any]") -> None:
    if not given.get("disable-content-trust", True):
        raise Failure("not implemented: --disable-content-trust=false: there is no content trust (Notary)")


def _tagged(given: "dict[str, Any]", text: str) -> Reference:
    """The reference, with the default tag where neither tag nor digest is given."""
    reference = reference_of(text)
    if given.get("all-tags"):
        if reference.tag or reference.digest:
            raise Failure("tag can't be used with --all-tags/-a")
    elif not reference.tag and not reference.digest:
        reference.tag = "latest"
        if not given.get("quiet"):
            output("Using default tag: latest\n")
    return reference


def fetch(client: Client, reference: Reference, given: "dict[str, Any]", descriptor: int = 1, source: str = "") -> None:
    """Have the daemon pull `reference`, every tag when it has none; what it reports goes to `descriptor`. Raises Failure."""
    from cli.credentials import for_reference
    from cli.progress import show

    path = query("/images/create", fromImage=reference.name, tag=reference.digest or reference.tag, platform=given.get("platform"),
        **{"limit-rate": rate(given), "from": source})
    head = "" if source else for_reference(client, reference)
    response = client.open("POST", path, headers="Content-Type: text/plain\r\n" + head)
    show(response, descriptor, bool(given.get("quiet")))


def pull(client: Client, name: str, argv: "list[str]") -> int:
    given, (text,) = parse(PULL.named(name), argv)
    _trust(given)
    rate(given)
    reference = _tagged(given, text)
    if given.get("from"):
        from cli.relay import Relay

        with Relay(given["from"]) as source:
            fetch(client, reference, given, source=source)
    else:
        fetch(client, reference, given)
    output(f"{reference}\n")
    return 0


def push(client: Client, name: str, argv: "list[str]") -> int:
    from cli.platforms import query_value

    given, (text,) = parse(PUSH.named(name), argv)
    _trust(given)
    chosen = query_value(given.get("platform", ""))
    limit = rate(given)
    if chosen:
        client.require("platform", "1.46")
    if reference_of(text).digest:
        raise Failure("cannot push a digest reference")
    if chosen and not given.get("quiet"):
        output(
            "\n Info -> Using --platform pushes only the specified platform manifest of a multi-platform image index.\n"
            "         Other components, like attestations, will not be included.\n"
            "         To push the complete multi-platform image, remove the --platform flag.\n         \n"
        )
    reference = _tagged(given, text)
    if given.get("to"):
        from cli.relay import Relay

        with Relay(given["to"]) as target:
            _send(client, reference, given, query("", platform=chosen, to=target, **{"limit-rate": limit}), "")
    else:
        from cli.credentials import for_reference

        _send(client, reference, given, query("", platform=chosen, **{"limit-rate": limit}), for_reference(client, reference))
    if given.get("quiet"):
        output(f"{reference}\n")
    return 0


def _send(client: Client, reference: Reference, given: "dict[str, Any]", options: str, head: str) -> None:
    from cli.images import image_path
    from cli.progress import show

    notes: list[str] = []
    path = query(image_path(reference.name) + "/push", tag=reference.tag)
    if options:
        path += ("&" if "?" in path else "?") + options[1:]
    show(client.open("POST", path, headers=head), quiet=bool(given.get("quiet")), aux=lambda value: notes.extend(_note(value)))
    if notes and not given.get("quiet"):
        output("".join(f"\n Info -> {note}\n" for note in notes))


def _note(value: object) -> "list[str]":
    """What the daemon wants known about a multi-platform image of which only some was pushed."""
    if not isinstance(value, dict):
        return []
    if value.get("manifestPushedInsteadOfIndex"):
        whole, sent = value.get("originalIndex") or {}, value.get("selectedManifest") or {}
        return ["Not all multiplatform-content is present and only the available single-platform image was pushed\n"
            f"         {whole.get('digest', '')} -> {sent.get('digest', '')}"]
    if value.get("contentMissing"):
        description = value.get("desc") or {}
        missing = description.get("digest") or dumps(description)
        return [f"This image is for several platforms, and {missing} of it is neither here nor in the registry.\n"
            "         Pull the whole image first, or push one platform of it with --platform."]
    return []
