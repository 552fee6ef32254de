"""`knarr run`, `create` and `start`: the client's side of a container's start.

`run` follows Docker's order, which loses nothing: create, attach and wait on connections of their own, and only when both are known to
stand, start. Errors before the start end with 125, those of the start with 125 to 127, then the container's own exit status counts.
"""

from cli import create as creation
from cli.client import Client, Connection, DaemonError, Failure, Response, query
from cli.codec import loads
from cli.flags import PROGRAM, Command, parse
from cli.streams import output, write_all

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

RUN = Command("run", "[OPTIONS] IMAGE [COMMAND] [ARG...]",
              creation.FLAGS | {"detach": "bool", "detach-keys": "string", "sig-proxy": "bool", "trace": "bool"},
              creation.SHORTS | {"d": "detach"}, 1, interspersed=False, hidden=creation.HIDDEN)
CREATE = Command("create", "[OPTIONS] IMAGE [COMMAND] [ARG...]", creation.FLAGS, creation.SHORTS, 1, interspersed=False,
    hidden=creation.HIDDEN)
START = Command("start", "[OPTIONS] CONTAINER [CONTAINER...]", {
    "attach": "bool", "checkpoint": "string", "checkpoint-dir": "string", "detach-keys": "string", "interactive": "bool",
}, {"a": "attach", "i": "interactive"}, 1)


def with_help(failure: Failure, name: str, code: int = 125) -> Failure:
    if failure.code not in (1, 125) or (code == 125 and failure.code == 1 and failure.text.startswith(('"--', "not implemented: --"))):
        return failure
    return Failure(f"{PROGRAM}: {failure.text}\n\nRun '{PROGRAM} {name} --help' for more information", code)


def run(client: Client, name: str, argv: "list[str]") -> int:
    given, arguments = parse(RUN, argv)
    detach = given.get("detach", False)
    if detach and given.get("attach"):
        raise Failure("conflicting options: cannot specify both --attach and --detach")
    try:
        request = creation.body(given, arguments)
        if given.get("use-api-socket"):
            _api_socket(client, request)
    except (Failure, ValueError) as failure:
        raise with_help(failure if isinstance(failure, Failure) else Failure(str(failure)), "run") from None
    if detach:
        for field in ("AttachStdin", "AttachStdout", "AttachStderr", "StdinOnce"):
            request.pop(field, None)
    tty = request.get("Tty", False)
    if tty or request.get("AttachStdin"):
        _terminal(request)
    keep = given.get("trace") and request["HostConfig"].pop("AutoRemove", False)  # the trace is asked for after the end
    try:
        identity, stream, waiter = _create(client, given, request, not detach)
    except Failure as failure:
        raise start_failure(failure) from None
    if detach:
        return _start_detached(client, given, identity)
    code = _foreground(client, given, request, identity, stream, waiter)
    if given.get("trace"):
        try:
            _trace(client, identity)
        finally:
            if keep:
                client.delete(f"/containers/{identity}?v=1&force=1")
    return code


def _api_socket(client: Client, request: "dict[str, Any]") -> None:
    """`--use-api-socket`: the socket this client talks to, where programs in the container look for it."""
    if not client.host.path:
        raise Failure("--use-api-socket needs a daemon on a unix socket", 125)
    request["HostConfig"].setdefault("Mounts", []).append({"Type": "bind", "Source": client.host.path, "Target": "/var/run/docker.sock"})


def _terminal(request: "dict[str, Any]") -> None:
    """Docker refuses a terminal for a stdin that is none, and says how large the terminal is."""
    from cli.terminal import is_terminal, size

    if not request.get("Tty"):
        return
    if request.get("AttachStdin") and not is_terminal(0):
        raise Failure("the input device is not a TTY")
    request["HostConfig"]["ConsoleSize"] = list(size())


def _create(client: Client, given: "dict[str, Any]", request: "dict[str, Any]",
    attached: bool) -> "tuple[str, Connection | None, Connection | None]":
    """Create the container; meanwhile open the two connections an attached run needs."""
    id_file = _IdFile(given["cidfile"]) if given.get("cidfile") else None
    path = query("/containers/create", name=given.get("name"), platform=given.get("platform"))
    if given.get("pull") == "always":
        pull(client, request["Image"], given)
    stream = waiter = None
    try:
        connection = client.shared()
        client.send(connection, "POST", path, request)
        if attached:
            stream, waiter = client.connect(), client.connect()
            from cli import signals  # noqa: F401 - loaded while the daemon works
        answer = loads(_created(client, connection, path, request, given).read())
    except Failure:
        if id_file:
            id_file.discard()
        raise
    identity = answer["Id"]
    for warning in answer.get("Warnings") or ():
        write_all(2, f"WARNING: {warning}\n".encode())
    if id_file:
        id_file.write(identity)
    return identity, stream, waiter


def _created(client: Client, connection: Connection, path: str, request: "dict[str, Any]", given: "dict[str, Any]") -> Response:
    try:
        return client.answer(connection, "POST", path, request)
    except DaemonError as error:
        if error.status != 404 or "o such image" not in error.message or given.get("pull", "missing") != "missing":
            raise
        from cli.references import parse as parse_reference

        try:
            reference = parse_reference(request["Image"])
        except ValueError:
            raise error from None  # an image's id: no registry is asked for that
    if not given.get("quiet"):
        shown = f"{reference.familiar}:{reference.tag or 'latest'}"
        if reference.digest:
            shown = reference.familiar + (f":{reference.tag}" if reference.tag else "") + "@" + reference.digest
        write_all(2, f"Unable to find image '{shown}' locally\n".encode())
    pull(client, request["Image"], given)
    return client.open("POST", path, request)


def pull(client: Client, image: str, given: "dict[str, Any]") -> None:
    """Have the daemon fetch an image; what it reports goes to stderr."""
    from cli.pull import fetch, reference_of

    reference = reference_of(image)
    if not reference.digest and not reference.tag:
        reference.tag = "latest"
    fetch(client, reference, {"platform": given.get("platform"), "quiet": given.get("quiet", False)}, 2)


class _IdFile:
    """`--cidfile`: must not exist before, holds the id after, is taken away again when nothing was created."""

    def __init__(self, path: str):
        self.path = path
        try:
            self.file = open(path, "x")  # noqa: SIM115 - closed by write or discard
        except FileExistsError:
            raise Failure(f"container ID file found, make sure the other container isn't running or delete {path}") from None
        except OSError as error:
            raise Failure(f"failed to create the container ID file: open {path}: {(error.strerror or '').lower()}") from None

    def write(self, identity: str) -> None:
        with self.file:
            self.file.write(identity)

    def discard(self) -> None:
        import posix

        self.file.close()
        posix.unlink(self.path)


def start_failure(failure: Failure, name: str = "run") -> Failure:
    """126 for a program that may not be run, 127 for one that is not there, as shells have it."""
    text = failure.text
    if "executable file not found" in text or "no such file or directory" in text:
        return with_help(failure, name, 127)
    if "permission denied" in text or "is a directory" in text:
        return with_help(failure, name, 126)
    return with_help(failure, name, 125)


def _start_detached(client: Client, given: "dict[str, Any]", identity: str) -> int:
    try:
        client.post(query(f"/containers/{identity}/start", detachKeys=given.get("detach-keys")))
    except DaemonError as error:
        output(identity + "\n")  # scripts keep it in a variable, and may remove the container
        raise start_failure(error) from None
    output(identity + "\n")
    if given.get("trace"):
        _trace(client, identity)
    return 0


def _trace(client: Client, identity: str) -> None:
    from cli.trace import show

    show(client.get(f"/containers/{identity}/trace"))


def _foreground(
    client: Client, given: "dict[str, Any]", request: "dict[str, Any]", identity: str, stream: "Connection | None",
    waiter: "Connection | None",
) -> int:  # fmt: skip
    assert stream is not None
    assert waiter is not None
    tty, keys = request.get("Tty", False), given.get("detach-keys", "")
    base = f"/containers/{identity}"
    attach_path = query(base + "/attach", detachKeys=keys, stream=True, stdin=request.get("AttachStdin") or None,
                        stdout=request.get("AttachStdout") or None, stderr=request.get("AttachStderr") or None)
    condition = "removed" if request["HostConfig"].get("AutoRemove") else "next-exit"
    client.send(stream, "POST", attach_path, None, "Connection: Upgrade\r\nUpgrade: tcp\r\n")
    client.send(waiter, "POST", f"{base}/wait?condition={condition}")
    if given.get("sig-proxy", True):
        from cli.signals import forward

        forward(client, identity, tty)
    try:
        stream.response().check()
        waiting = waiter.response().check()
    except Failure as failure:
        raise with_help(failure, "run") from None
    return Session(client, identity, stream, waiting, tty, bool(request.get("AttachStdin")), keys).run()


class Session:
    """A container in the client's foreground: its attached stream and the answer to `wait`, both asked for before the start."""

    def __init__(self, client: Client, identity: str, stream: Connection, waiting: Response, tty: bool, stdin: bool, keys: str):
        self.client = client
        self.identity = identity
        self.stream = stream
        self.waiting = waiting
        self.tty = tty
        self.stdin = stdin
        self.keys = keys

    def run(self, name: str = "run") -> int:
        """Start it, carry its streams, return its exit status. Raises Failure."""
        if not (self.tty and self.stdin):
            return self._started(name, b"")
        from cli.terminal import Raw, detach_bytes, is_terminal

        keys = detach_bytes(self.keys)
        if not is_terminal(0):
            return self._started(name, keys)
        with Raw(0):
            return self._started(name, keys)

    def _started(self, name: str, keys: bytes) -> int:
        path = f"/containers/{self.identity}"
        try:
            self.client.post(query(path + "/start", detachKeys=self.keys))
        except DaemonError as error:
            raise start_failure(error, name) from None
        if self.tty:
            from cli.signals import follow_window
            from cli.terminal import is_terminal

            if is_terminal(1):
                follow_window(self.client, path + "/resize")
        from cli.streams import Pump

        if Pump(self.stream, 0 if self.stdin else None, not self.tty, keys).run():
            return 0
        return exit_status(self.waiting)


def exit_status(waiting: Response) -> int:
    """The exit status in the answer to `wait`; an error there is the daemon's and counts as 125."""
    answer = loads(waiting.read())
    error = answer.get("Error")
    if error and error.get("Message"):
        write_all(2, f"Error waiting for container: {error['Message']}\n".encode())
        return 125
    return int(answer["StatusCode"])


def create(client: Client, name: str, argv: "list[str]") -> int:
    given, arguments = parse(CREATE, argv)
    try:
        request = creation.body(given, arguments)
        if given.get("use-api-socket"):
            _api_socket(client, request)
        if request.get("Tty"):
            from cli.terminal import size

            request["HostConfig"]["ConsoleSize"] = list(size())
    except (Failure, ValueError) as failure:
        raise with_help(failure if isinstance(failure, Failure) else Failure(str(failure)), "create") from None
    identity, _, _ = _create(client, given, request, False)
    output(identity + "\n")
    return 0


def start(client: Client, name: str, argv: "list[str]") -> int:
    given, containers = parse(START, argv)
    for flag in ("checkpoint", "checkpoint-dir"):
        if given.get(flag):
            raise Failure(f"not implemented: --{flag}")
    if given.get("attach") or given.get("interactive"):
        if len(containers) > 1:
            raise Failure("you cannot start and attach multiple containers at once")
        return _start_attached(client, given, containers[0])
    from cli.containers import each

    return each(client, "POST", containers, lambda ref: f"/containers/{ref}/start", "Error: failed to start containers: ")


def _start_attached(client: Client, given: "dict[str, Any]", ref: str) -> int:
    from cli.client import quote

    details = client.get(f"/containers/{quote(ref)}/json")
    identity, config = details["Id"], details["Config"]
    tty, keys = config["Tty"], given.get("detach-keys", "")
    stdin = bool(given.get("interactive") and config["OpenStdin"])
    if stdin and tty:
        from cli.terminal import is_terminal

        if not is_terminal(0):
            raise Failure("the input device is not a TTY")
    stream = client.hijack(query(f"/containers/{identity}/attach", detachKeys=keys, stream=True, stdin=stdin or None, stdout=True,
        stderr=True)).connection
    removed = details["HostConfig"].get("AutoRemove")
    waiting = client.open("POST", f"/containers/{identity}/wait?condition=" + ("removed" if removed else "next-exit"))
    if not tty:
        from cli.signals import forward

        forward(client, identity)
    try:
        return Session(client, identity, stream, waiting, tty, stdin, keys).run("start")
    except Failure as failure:
        raise Failure(failure.text.removeprefix(PROGRAM + ": ").partition("\n\n")[0], 1) from None
