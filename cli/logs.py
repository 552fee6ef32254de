"""`knarr logs`: what a container wrote."""

from cli.client import Client, query, quote
from cli.flags import Command, parse

LOGS = Command("logs", "[OPTIONS] CONTAINER", {
    "details": "bool", "follow": "bool", "since": "string", "tail": "string", "timestamps": "bool", "until": "string",
}, {"f": "follow", "n": "tail", "t": "timestamps"}, 1, 1)


def logs(client: Client, name: str, argv: "list[str]") -> int:
    from cli.streams import copy_output

    given, (ref,) = parse(LOGS, argv)
    moments = {}
    for flag in ("since", "until"):
        if given.get(flag):
            from cli.times import timestamp

            moments[flag] = timestamp(given[flag], flag)
    # only the container's record says whether its log has frames; it is asked before, on the same connection
    details = client.get(f"/containers/{quote(ref)}/json")
    path = query(f"/containers/{details['Id']}/logs", stdout=True, stderr=True, follow=given.get("follow") or None,
                 timestamps=given.get("timestamps") or None, details=given.get("details") or None, tail=given.get("tail", "all"), **moments)
    copy_output(client.call("GET", path).chunks(), not details["Config"]["Tty"])
    return 0
