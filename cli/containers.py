"""Commands on containers that are one request each: `ps stop kill restart rm rename top wait`."""

from cli.client import Client, Failure, query, quote
from cli.codec import dumps, loads
from cli.flags import Command, parse
from cli.streams import output

LS = Command("ps", "[OPTIONS]", {
    "all": "bool", "filter": "filter", "format": "string", "last": "int", "latest": "bool", "no-trunc": "bool", "quiet": "bool", "size": "bool",
}, {"a": "all", "f": "filter", "n": "last", "l": "latest", "q": "quiet", "s": "size"}, 0, 0)
STOP = Command("stop", "[OPTIONS] CONTAINER [CONTAINER...]", {"signal": "string", "timeout": "int"}, {"s": "signal", "t": "timeout"}, 1,
               hidden={"time": "timeout"})
RESTART = Command("restart", STOP.usage, STOP.flags, STOP.shorts, 1, hidden=STOP.hidden)
KILL = Command("kill", "[OPTIONS] CONTAINER [CONTAINER...]", {"signal": "string"}, {"s": "signal"}, 1)
RM = Command("rm", "[OPTIONS] CONTAINER [CONTAINER...]", {"force": "bool", "link": "bool", "volumes": "bool"}, {"f": "force", "l": "link", "v": "volumes"}, 1)
RENAME = Command("rename", "CONTAINER NEW_NAME", {}, {}, 2, 2)
TOP = Command("top", "CONTAINER [ps OPTIONS]", {}, {}, 1, interspersed=False)
WAIT = Command("wait", "CONTAINER [CONTAINER...]", {}, {}, 1)


def each(names: "list[str]", act: "object", failed: str = "") -> int:
    """Do it to one after another, print the names that worked, then all errors. Raises Failure when there were any."""
    errors, done = [], []
    for name in names:
        try:
            act(quote(name.strip("/")))  # type: ignore[operator]
        except Failure as failure:
            errors.append(failure.text)
        else:
            done.append(name + "\n")
    output("".join(done))
    if errors:
        raise Failure("\n".join(errors) + ("\n" + failed + ", ".join(names[: len(errors)]) if failed and False else ""))
    return 0


def stop(client: Client, name: str, argv: "list[str]") -> int:
    given, names = parse(STOP, argv)
    return each(names, lambda ref: client.post(query(f"/containers/{ref}/stop", signal=given.get("signal"), t=given.get("timeout"))))


def restart(client: Client, name: str, argv: "list[str]") -> int:
    given, names = parse(RESTART, argv)
    return each(names, lambda ref: client.post(query(f"/containers/{ref}/restart", signal=given.get("signal"), t=given.get("timeout"))))


def kill(client: Client, name: str, argv: "list[str]") -> int:
    given, names = parse(KILL, argv)
    return each(names, lambda ref: client.post(query(f"/containers/{ref}/kill", signal=given.get("signal"))))


def rm(client: Client, name: str, argv: "list[str]") -> int:
    given, names = parse(RM, argv)
    flags = {"v": given.get("volumes") or None, "link": given.get("link") or None, "force": given.get("force") or None}

    def remove(ref: str) -> None:
        try:
            client.delete(query(f"/containers/{ref}", **flags))
        except Failure as failure:
            # `rm -f` of something that is not there is no failure, only news
            if not (given.get("force") and getattr(failure, "status", 0) == 404):
                raise
            raise Failure(failure.text, 0) from None

    return each(names, remove)


def rename(client: Client, name: str, argv: "list[str]") -> int:
    _, (old, new) = parse(RENAME, argv)
    if not old.strip() or not new.strip():
        raise Failure("Error: Neither old nor new names may be empty")
    client.post(query(f"/containers/{quote(old)}/rename", name=new))
    return 0


def wait(client: Client, name: str, argv: "list[str]") -> int:
    _, names = parse(WAIT, argv)
    # all are asked before the first is read: a container that ends and goes meanwhile still answers
    errors = []
    for ref in names:
        try:
            answer = loads(client.open("POST", f"/containers/{quote(ref)}/wait").read())
        except Failure as failure:
            errors.append(failure.text)
        else:
            output(f"{answer['StatusCode']}\n")  # type: ignore[index]
    if errors:
        raise Failure("\n".join(errors))
    return 0


def top(client: Client, name: str, argv: "list[str]") -> int:
    from cli.tables import columns

    _, arguments = parse(TOP, argv)
    answer = client.get(query(f"/containers/{quote(arguments[0])}/top", ps_args=" ".join(arguments[1:])))
    rows = [answer["Titles"]] + (answer.get("Processes") or [])  # type: ignore[index,attr-defined]
    output(columns(["\t".join(row) for row in rows], minimum=20))
    return 0


def filters(given: dict) -> str:
    """`--filter` as the API takes it: JSON of `{key: [values]}`; "" for none."""
    result: "dict[str, list[str]]" = {}
    for key, value in given.get("filter", ()):
        if key and value not in result.setdefault(key, []):
            result[key].append(value)
    return dumps(result) if result else ""


def ls(client: Client, name: str, argv: "list[str]") -> int:
    from cli.listing import show

    given, _ = parse(LS, argv)
    last = 1 if given.get("latest") else given.get("last", -1)
    template = given.get("format", "")
    size = given.get("size") or ".Size" in template
    path = query("/containers/json", all=given.get("all") or None, limit=last if last > 0 else None, size=size or None, filters=filters(given))
    from cli.views import CONTAINERS

    full = given.get("no-trunc", False)
    show(CONTAINERS(size=bool(given.get("size")), full=full), client.get(path), template, given.get("quiet", False))
    return 0
