"""`knarr events`: what happens in the daemon, as it happens."""

from cli.client import Client, Failure, query
from cli.containers import filters
from cli.flags import Command, parse
from cli.streams import output

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

EVENTS = Command("events", "[OPTIONS]", {"filter": "filter", "format": "string", "since": "string", "until": "string"}, {"f": "filter"}, 0,
    0)


_NAMES = (("scope", "Scope"), ("time", "Time"), ("timeNano", "TimeNano"), ("status", "Status"), ("id", "ID"), ("from", "From"))
"""The members that templates know by other names than JSON."""


def events(client: Client, name: str, argv: "list[str]") -> int:
    given, _ = parse(EVENTS, argv)
    moments = {}
    for flag in ("since", "until"):
        if given.get(flag):
            from cli.times import timestamp

            moments[flag] = timestamp(given[flag], flag)
    write = _writer(given.get("format", ""))
    for event in client.open("GET", query("/events", filters=filters(given), **moments)).values():
        output(write(event) + "\n")
    return 0


def _writer(form: str) -> "Callable[[dict[str, Any]], str]":
    if not form:
        return line
    if form == "json":
        from cli.codec import ordered_dumps

        return ordered_dumps
    from cli.evaluate import Loose, Partial, Template
    from cli.template import TemplateError

    try:
        template = Template(form.replace("\\t", "\t").replace("\\n", "\n"))
    except TemplateError as error:
        raise Failure("Error parsing format: " + error.text, 64) from None

    def write(event: "dict[str, Any]") -> str:
        actor = event.get("Actor") or {}
        # which attributes there are differs from event to event: one without must not end the stream
        shown = {**event, "Actor": {**actor, "Attributes": Loose(actor.get("Attributes") or {})}}
        return template.run(Partial(shown, {name: event.get(key, "") for key, name in _NAMES}))

    return write


def line(event: "dict[str, Any]") -> str:
    """`2024-05-01T10:00:00.123456789Z container start ID (image=…, name=…)`"""
    from cli.tables import rfc3339

    nanoseconds = event.get("timeNano") or event.get("time", 0) * 10**9
    moment = rfc3339(nanoseconds // 10**9)
    text = f"{moment[:19]}.{nanoseconds % 10**9:09d}{moment[19:]} " if nanoseconds else ""
    actor = event.get("Actor") or {}
    text += f"{event.get('Type', '')} {event.get('Action', '')} {actor.get('ID', '')}"
    attributes = actor.get("Attributes") or {}
    if attributes:
        text += " (" + ", ".join(f"{key}={attributes[key]}" for key in sorted(attributes)) + ")"
    return text
