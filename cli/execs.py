"""`knarr exec`: another process in a running container (POST /containers/{id}/exec, then /exec/{id}/start)."""

from cli.client import Client, DaemonError, Failure, query, quote
from cli.codec import loads
from cli.flags import Command, parse

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

EXEC = Command("exec", "[OPTIONS] CONTAINER COMMAND [ARG...]", {
    "detach": "bool", "detach-keys": "string", "env": "list:env", "env-file": "list", "interactive": "bool", "privileged": "bool",
    "tty": "bool",
    "user": "string", "workdir": "string",
}, {"d": "detach", "e": "env", "i": "interactive", "t": "tty", "u": "user", "w": "workdir"}, 2, interspersed=False)


def exec_(client: Client, name: str, argv: "list[str]") -> int:
    given, arguments = parse(EXEC, argv)
    detach, tty = given.get("detach", False), given.get("tty", False)
    stdin = bool(given.get("interactive") and not detach)
    if tty and stdin:
        from cli.terminal import is_terminal

        if not is_terminal(0):
            raise Failure("the input device is not a TTY")
    request = _request(given, arguments[1:], stdin)
    identity = loads(client.post(f"/containers/{quote(arguments[0])}/exec", request))["Id"]
    if detach:
        client.post(f"/exec/{identity}/start", {"Detach": True, "Tty": tty})
        return 0
    try:
        return _attached(client, identity, request, stdin, given.get("detach-keys", ""))
    except DaemonError as error:
        if "executable file not found" in error.message or "no such file or directory" in error.message:
            raise Failure(error.text, 127) from None
        if "permission denied" in error.message:
            raise Failure(error.text, 126) from None
        raise


def _request(given: "dict[str, Any]", command: "list[str]", stdin: bool) -> "dict[str, Any]":
    request: dict[str, Any] = {"Cmd": command}
    for flag, field in (("user", "User"), ("privileged", "Privileged"), ("tty", "Tty"), ("workdir", "WorkingDir"), ("detach-keys",
        "DetachKeys")):
        if given.get(flag):
            request[field] = given[flag]
    if "env" in given or "env-file" in given:
        from cli.create import file_lines
        from cli.values import environment

        request["Env"] = [line for path in given.get("env-file", ()) for line in file_lines(path, environment)] + given.get("env", [])
    if not given.get("detach"):
        request["AttachStdout"] = request["AttachStderr"] = True
        if stdin:
            request["AttachStdin"] = True
        if given.get("tty"):
            from cli.terminal import size

            rows, columns = size()
            if rows and columns:
                request["ConsoleSize"] = [rows, columns]
    return request


def _attached(client: Client, identity: str, request: "dict[str, Any]", stdin: bool, keys: str) -> int:
    from cli.streams import Pump

    tty = request.get("Tty", False)
    start = {"Detach": False, "Tty": tty}
    if "ConsoleSize" in request:
        start["ConsoleSize"] = request["ConsoleSize"]
    stream = client.hijack(f"/exec/{identity}/start", start).connection
    if not tty:
        Pump(stream, 0 if stdin else None, True).run()
        return _status(client, identity)
    from cli.signals import follow_window
    from cli.terminal import Raw, detach_bytes, is_terminal

    if is_terminal(1):
        follow_window(client, f"/exec/{identity}/resize")
    pump = Pump(stream, 0 if stdin else None, False, detach_bytes(keys) if stdin else b"")
    if stdin and is_terminal(0):
        with Raw(0):
            detached = pump.run()
    else:
        detached = pump.run()
    if detached:
        raise Failure("read escape sequence")
    return _status(client, identity)


def _status(client: Client, identity: str) -> int:
    return client.get(query(f"/exec/{identity}/json"))["ExitCode"] or 0
