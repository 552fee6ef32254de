"""Commands on containers that are one request each: `ps stop kill restart rm rename top wait`."""

from cli.client import Client, DaemonError, Failure, query, quote
from cli.codec import dumps, loads
from cli.flags import Command, parse
from cli.streams import output

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LS = Command("ps", "[OPTIONS]", {
    "all": "bool", "filter": "filter", "format": "string", "last": "int", "latest": "bool", "no-trunc": "bool", "quiet": "bool",
    "size": "bool",
}, {"a": "all", "f": "filter", "n": "last", "l": "latest", "q": "quiet", "s": "size"}, 0, 0)
STOP = Command("stop", "[OPTIONS] CONTAINER [CONTAINER...]", {"signal": "string", "timeout": "int"}, {"s": "signal", "t": "timeout"}, 1,
               hidden={"time": "timeout"})
RESTART = Command("restart", STOP.usage, STOP.flags, STOP.shorts, 1, hidden=STOP.hidden)
KILL = Command("kill", "[OPTIONS] CONTAINER [CONTAINER...]", {"signal": "string"}, {"s": "signal"}, 1)
RM = Command("rm", "[OPTIONS] CONTAINER [CONTAINER...]", {"force": "bool", "link": "bool", "volumes": "bool"},
             {"f": "force", "l": "link", "v": "volumes"}, 1)
RENAME = Command("rename", "CONTAINER NEW_NAME", {}, {}, 2, 2)
TOP = Command("top", "CONTAINER [ps OPTIONS]", {}, {}, 1, interspersed=False)
WAIT = Command("wait", "CONTAINER [CONTAINER...]", {}, {}, 1)

AT_ONCE = 50  # as many as Docker's client asks for together


def each(client: Client, method: str, names: "list[str]", path: "Callable[[str], str]", summary: str = "") -> int:
    """Ask for it on every container at once (a slow `stop` delays no other), print the names that worked, then all errors.

    `path` turns a quoted name into the request's target; `summary` starts a last line with the names that failed. Raises Failure when
    one failed; `rm -f` of something absent is no failure.
    """
    errors, failed, code = [], [], 0
    for start in range(0, len(names), AT_ONCE):
        group = names[start:start + AT_ONCE]
        connections = [client.connect() for _ in group]
        targets = [path(quote(name)) for name in group]
        for connection, target in zip(connections, targets, strict=True):
            client.send(connection, method, target)
        for name, connection, target in zip(group, connections, targets, strict=True):
            try:
                client.answer(connection, method, target).read()
            except Failure as failure:
                errors.append(failure.text)
                failed.append(name)
                code = code or (0 if getattr(failure, "status", 0) == 404 and "force=1" in target else 1)
            else:
                output(name + "\n")
            connection.close()
    if summary and failed:
        errors.append(summary + ", ".join(failed))
    if errors:
        raise Failure("\n".join(errors), code)
    return 0


def stop(client: Client, name: str, argv: "list[str]") -> int:
    given, names = parse(STOP, argv)
    return each(client, "POST", names, lambda ref: query(f"/containers/{ref}/stop", signal=given.get("signal"), t=given.get("timeout")))


def restart(client: Client, name: str, argv: "list[str]") -> int:
    given, names = parse(RESTART, argv)
    return each(client, "POST", names, lambda ref: query(f"/containers/{ref}/restart", signal=given.get("signal"), t=given.get("timeout")))


def kill(client: Client, name: str, argv: "list[str]") -> int:
    given, names = parse(KILL, argv)
    return each(client, "POST", names, lambda ref: query(f"/containers/{ref}/kill", signal=given.get("signal")))


def rm(client: Client, name: str, argv: "list[str]") -> int:
    given, names = parse(RM, argv)
    flags = {"v": given.get("volumes") or None, "link": given.get("link") or None, "force": given.get("force") or None}
    names = [name.strip("/") for name in names]
    if not all(names):
        raise Failure("invalid container name or ID: value is empty")
    return each(client, "DELETE", names, lambda ref: query(f"/containers/{ref}", **flags))


def rename(client: Client, name: str, argv: "list[str]") -> int:
    _, (old, new) = parse(RENAME, argv)
    if not old.strip() or not new.strip():
        raise Failure("Error: Neither old nor new names may be empty")
    try:
        client.post(query(f"/containers/{quote(old)}/rename", name=new))
    except DaemonError as error:
        raise Failure(f"{error.text}\nError: failed to rename container named {old}") from None
    return 0


def wait(client: Client, name: str, argv: "list[str]") -> int:
    _, names = parse(WAIT, argv)
    # all are asked before the first is read: a container that ends and goes meanwhile still answers
    asked = []
    for ref in names:
        connection = client.connect()
        client.send(connection, "POST", f"/containers/{quote(ref)}/wait")
        asked.append((connection, f"/containers/{quote(ref)}/wait"))
    errors = []
    for connection, path in asked:
        try:
            answer = loads(client.answer(connection, "POST", path).read())
        except Failure as failure:
            errors.append(failure.text)
        else:
            output(f"{answer['StatusCode']}\n")
    if errors:
        raise Failure("\n".join(errors))
    return 0


def top(client: Client, name: str, argv: "list[str]") -> int:
    from cli.tables import columns

    _, arguments = parse(TOP, argv)
    answer = client.get(query(f"/containers/{quote(arguments[0])}/top", ps_args=" ".join(arguments[1:])))
    rows = [answer["Titles"]] + (answer.get("Processes") or [])
    output(columns(["\t".join(row) for row in rows], minimum=20))
    return 0


def filters(given: "dict[str, Any]") -> str:
    """`--filter` as the API takes it: JSON of `{key: [values]}`; "" for none."""
    result: dict[str, list[str]] = {}
    for key, value in given.get("filter", ()):
        if key and value not in result.setdefault(key, []):
            result[key].append(value)
    return dumps(result) if result else ""


def ls(client: Client, name: str, argv: "list[str]") -> int:
    from cli.listing import show
    from cli.views import Container, View

    given, _ = parse(LS, argv)
    last = 1 if given.get("latest") else given.get("last", -1)
    template = given.get("format", "")
    size = given.get("size") or ".Size" in template
    path = query("/containers/json", all=given.get("all") or None, limit=last if last > 0 else None, size=size or None,
        filters=filters(given))
    rows = client.get(path)
    view = View(given.get("no-trunc", False))
    default = (*Container.default, "Size") if given.get("size") else None
    show(Container, [Container(row, view) for row in rows], template, given.get("quiet", False), default)
    return 0
