"""`knarr attach`: the client's own stdio joined to a container that runs already."""

from cli.client import Client, Failure, query, quote
from cli.flags import Command, parse

ATTACH = Command("attach", "[OPTIONS] CONTAINER", {"detach-keys": "string", "no-stdin": "bool", "sig-proxy": "bool"}, {}, 1, 1)


def attach(client: Client, name: str, argv: "list[str]") -> int:
    from cli.run import exit_status
    from cli.streams import Pump
    from cli.terminal import Raw, detach_bytes, is_terminal

    given, (ref,) = parse(ATTACH, argv)
    details = client.get(f"/containers/{quote(ref)}/json")
    state, config = details["State"], details["Config"]
    if not state["Running"]:
        raise Failure("cannot attach to a stopped container, start it first")
    if state["Paused"]:
        raise Failure("cannot attach to a paused container, unpause it first")
    if state["Restarting"]:
        raise Failure("cannot attach to a restarting container, wait until it is running")
    tty, base = config["Tty"], f"/containers/{details['Id']}"
    stdin = bool(config["OpenStdin"] and not given.get("no-stdin"))
    if stdin and tty and not is_terminal(0):
        raise Failure("the input device is not a TTY")
    waiting = client.open("POST", base + "/wait")
    keys = given.get("detach-keys", "")
    stream = client.hijack(query(base + "/attach", detachKeys=keys, stream=True, stdin=stdin or None, stdout=True, stderr=True)).connection
    if given.get("sig-proxy", True) and not tty:
        from cli.signals import forward

        forward(client, details["Id"])
    if tty and is_terminal(1):
        _redraw(client, base)
    pump = Pump(stream, 0 if stdin else None, not tty, detach_bytes(keys) if tty and stdin else b"")
    if tty and stdin:
        with Raw(0):
            detached = pump.run()
    else:
        detached = pump.run()
    if detached:
        raise Failure("read escape sequence")
    return exit_status(waiting)


def _redraw(client: Client, base: str) -> None:
    """Set the size one larger and back, so that a full-screen program draws itself again for the new viewer."""
    from cli.signals import follow_window
    from cli.terminal import size

    rows, columns = size()
    if rows and columns:
        client.open("POST", query(base + "/resize", h=rows + 1, w=columns + 1)).read()
    follow_window(client, base + "/resize")
