"""Images to and from files: `save`, `load` (docker-archive, OCI layout) and `import` (a root file system). All stream; nothing is held in
memory."""

import posix

from cli.client import Client, Failure, Response, query, quote
from cli.codec import loads
from cli.flags import Command, parse
from cli.streams import STDIN_CHUNK, output, write_all

LOAD = Command("load", "[OPTIONS]", {"input": "string", "platform": "string", "quiet": "bool"}, {"i": "input", "q": "quiet"}, 0, 0)
SAVE = Command("save", "[OPTIONS] IMAGE [IMAGE...]", {"output": "string", "platform": "string", "since": "string"}, {"o": "output"}, 1)
IMPORT = Command("import", "[OPTIONS] file|URL|- [REPOSITORY[:TAG]]", {"change": "list", "message": "string", "platform": "string"},
                 {"c": "change", "m": "message"}, 1, 2)


def _upload(client: Client, path: str, source: int) -> Response:
    """POST a descriptor's bytes as they come. The daemon may answer before all is sent: then that answer counts."""
    client.negotiate()
    connection = client.connect()
    connection.request("POST", client.path(path), headers="Content-Type: application/x-tar\r\n" + client.headers(), chunked=True)
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
    from cli.platforms import query_value
    from cli.progress import show
    from cli.terminal import is_terminal

    given, _ = parse(LOAD.named(name), argv)
    chosen = query_value(given.get("platform", ""))
    if chosen:
        client.require("platform", "1.48")
    if given.get("input"):
        source = _open(given["input"])
    elif is_terminal(0):
        raise Failure("requested load from stdin, but stdin is empty")
    else:
        source = 0
    quiet = given.get("quiet") or not is_terminal(1)
    response = _upload(client, query("/images/load", quiet=bool(quiet), platform=chosen), source)
    show(response)
    return 0


def save(client: Client, name: str, argv: "list[str]") -> int:
    from cli.platforms import query_value
    from cli.terminal import is_terminal

    given, images = parse(SAVE.named(name), argv)
    chosen = query_value(given.get("platform", ""))
    if chosen:
        client.require("platform", "1.48")
    path = given.get("output", "")
    if path:
        _check_target(path)
    elif is_terminal(1):
        raise Failure("cowardly refusing to save to a terminal. Use the -o flag or redirect")
    target = query("/images/get", platform=chosen, since=given.get("since")) + ("&" if chosen or given.get("since") else "?")
    response = client.open("GET", target + "&".join("names=" + quote(image) for image in images))
    if not path:
        for piece in response.chunks():
            write_all(1, piece)
        return 0
    _write(path, response)
    return 0


def _check_target(path: str) -> None:
    """Refuse before anything is asked for what the archive cannot be written to. Raises Failure."""
    kinds = {0o040000: "directory", 0o020000: "character device file", 0o060000: "block device file", 0o010000: "named pipe file",
             0o140000: "socket file"}
    folder = path.rpartition("/")[0] or ("/" if path[:1] == "/" else ".")
    try:
        posix.stat(folder)
    except OSError as error:
        raise Failure(f"failed to save image: invalid output path: stat {folder}: {(error.strerror or '').lower()}") from None
    try:
        kind = posix.stat(path).st_mode & 0o170000
    except OSError:
        return
    if kind in kinds:
        raise Failure(f"failed to save image: cannot write to a {kinds[kind]}")


def _write(path: str, response: Response) -> None:
    """The archive under its final name only when it is whole; a failure leaves what was there before. Raises Failure."""
    temporary = f"{path.rpartition('/')[0] or '.'}/.{path.rpartition('/')[2]}.{posix.getpid()}.{posix.urandom(4).hex()}"
    try:
        descriptor = posix.open(temporary, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o600)
        try:
            try:
                for piece in response.chunks():
                    write_all(descriptor, piece)
                posix.fsync(descriptor)
            finally:
                posix.close(descriptor)
            posix.rename(temporary, path)
        except BaseException:
            posix.unlink(temporary)
            raise
    except ConnectionError:
        raise Failure(f"failed to save image: the daemon closed the connection before {path} was complete") from None
    except OSError as error:
        raise Failure(f"failed to save image: write {path}: {(error.strerror or '').lower()}") from None


def import_(client: Client, name: str, argv: "list[str]") -> int:
    from cli.progress import show

    given, arguments = parse(IMPORT.named(name), argv)
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
    show(response)
    return 0
