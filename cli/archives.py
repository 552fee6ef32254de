"""Images from files: `load` (docker-archive, OCI layout) and `import` (a root file system). Both stream; nothing is held in memory."""

import posix

from cli.client import Client, Failure, Response, query, quote
from cli.codec import loads
from cli.flags import Command, parse
from cli.streams import STDIN_CHUNK, output

LOAD = Command("load", "[OPTIONS]", {"input": "string", "platform": "string", "quiet": "bool"}, {"i": "input", "q": "quiet"}, 0, 0)
IMPORT = Command("import", "[OPTIONS] file|URL|- [REPOSITORY[:TAG]]", {"change": "list", "message": "string", "platform": "string"},
                 {"c": "change", "m": "message"}, 1, 2)


def _upload(client: Client, path: str, source: int) -> Response:
    """POST a descriptor's bytes as they come. The daemon may answer before all is sent: then that answer counts."""
    client.negotiate()
    connection = client.connect()
    connection.request("POST", client.path(path), headers="Content-Type: application/x-tar\r\n", chunked=True)
    try:
        while data := posix.read(source, STDIN_CHUNK):
            connection.send(b"%x\r\n%b\r\n" % (len(data), data))
        connection.send(b"0\r\n\r\n")
    except (BrokenPipeError, ConnectionResetError):
        pass  # refused half-way; the reason is in the answer
    response = connection.response()
    return response.check()


def _open(path: str) -> int:
    try:
        return posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError as error:
        raise Failure(f"open {path}: {(error.strerror or '').lower()}") from None


def load(client: Client, name: str, argv: "list[str]") -> int:
    from cli.images import platform
    from cli.progress import show
    from cli.terminal import is_terminal

    given, _ = parse(LOAD, argv)
    if given.get("input"):
        source = _open(given["input"])
    elif is_terminal(0):
        raise Failure("requested load from stdin, but stdin is empty")
    else:
        source = 0
    quiet = given.get("quiet") or not is_terminal(1)
    response = _upload(client, query("/images/load", quiet=bool(quiet), platform=platform(given)), source)
    show(response.values())
    return 0


def import_(client: Client, name: str, argv: "list[str]") -> int:
    from cli.progress import show

    given, arguments = parse(IMPORT, argv)
    source = arguments[0]
    repository = arguments[1] if len(arguments) > 1 else ""
    remote = source.startswith(("http://", "https://"))
    path = query("/images/create", fromSrc=source if remote else "-", message=given.get("message"), repo=repository,
        platform=given.get("platform"))
    for change in given.get("change", ()):
        path += "&changes=" + quote(change)
    if remote:
        response = client.open("POST", path)
    else:
        response = _upload(client, path, 0 if source == "-" else _open(source))
    if response.headers.get("content-type", "").startswith("text/plain"):
        output(loads(response.read())["status"] + "\n")
        return 0
    show(response.values())
    return 0
