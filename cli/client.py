"""The client's side of the Engine API: HTTP/1.1 on raw sockets (RFC 9112), keep-alive, chunked bodies, upgrades to a raw stream.

Owns: hosts, connections, requests, responses, the wording of transport errors. Must not import anything that costs start-up time:
`_socket`, `posix` and `errno` are the C modules under `socket` and `os`, whose Python halves cost 6 and 2 ms.
"""

import errno
from _socket import AF_UNIX, IPPROTO_TCP, MSG_NOSIGNAL, SHUT_WR, SOCK_CLOEXEC, SOCK_STREAM, TCP_NODELAY, getaddrinfo, socket
from posix import O_CLOEXEC, O_RDONLY, close, environ, read
from posix import open as posix_open

from cli.codec import dumps, loads

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

DEFAULT_SOCKET = "/run/knarr/knarr.sock"
DEFAULT_HOST = "unix://" + DEFAULT_SOCKET
API_VERSION = "1.51"
CHUNK = 65536
MAX_HEADERS = 1 << 20  # no answer of ours comes near; a peer that sends more does not speak HTTP

# RFC 3986 unreserved, plus what Docker's names and filters may carry unescaped in a query
_SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


class Failure(Exception):
    """A command ends: `code` is the exit status, the text goes to stderr (nothing when empty)."""

    def __init__(self, text: str, code: int = 1):
        super().__init__(text)
        self.text = text
        self.code = code


class DaemonError(Failure):
    """The daemon refused; `status` is the HTTP status, `message` its own words."""

    def __init__(self, status: int, message: str):
        super().__init__("Error response from daemon: " + message)
        self.status = status
        self.message = message


class Unreachable(Failure):
    """No daemon answered."""


def getenv(name: str) -> str:
    return environ.get(name.encode(), b"").decode("utf-8", "surrogateescape")


def quote(text: str, safe: "frozenset[str]" = _SAFE) -> str:
    """Percent-encoding for one path segment or query value."""
    if safe.issuperset(text):
        return text
    return "".join(c if c in safe else "".join(f"%{byte:02X}" for byte in c.encode("utf-8", "surrogateescape")) for c in text)


def query(path: str, /, **fields: "str | int | bool | None") -> str:
    """`path?key=value&…`; None and "" are left out, True is 1, False is 0."""
    parts = [f"{key}={quote(str(int(value) if isinstance(value, bool) else value))}" for key,
        value in fields.items() if value not in (None, "")]
    return path + "?" + "&".join(parts) if parts else path


class Host:
    """Where the daemon listens: `unix://PATH`, `tcp://NAME:PORT` or, through ssh, `ssh://[USER@]NAME[:PORT][/PATH]`."""

    def __init__(self, url: str):
        self.url = url
        scheme, separator, rest = url.partition("://")
        if not separator:
            scheme, rest = ("unix", url) if url.startswith("/") else ("tcp", url)
            self.url = f"{scheme}://{rest}"
        self.path = ""
        self.address = ("", 0)
        if scheme == "unix":
            self.path = rest or DEFAULT_SOCKET
        elif scheme in ("tcp", "http"):
            self.address = _tcp_address(url, rest)
        elif scheme == "ssh":
            from cli.ssh import arguments

            arguments(url)
        elif scheme in ("https", "npipe", "fd"):
            raise Failure(f"not implemented: connecting to a daemon by {scheme}:// ({url}); use unix://, tcp:// or ssh://")
        else:
            raise Failure(f"Failed to initialize: unable to resolve docker endpoint: invalid bind address format: {url}")

    def connect(self) -> socket:
        if self.path:
            sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
            sock.connect(self.path)
            return sock
        if self.url.startswith("ssh://"):
            from cli.ssh import connect

            return connect(self.url)
        family, kind, protocol, _, address = getaddrinfo(*self.address, 0, SOCK_STREAM)[0]
        sock = socket(family, kind | SOCK_CLOEXEC, protocol)
        sock.connect(address)
        sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        return sock


def _tcp_address(url: str, rest: str) -> "tuple[str, int]":
    rest = rest.partition("/")[0]
    name, colon, port = rest.rpartition(":")
    if not colon or rest.endswith("]"):
        name, port = rest, "2375"
    if not port.isdigit() or int(port) > 65535:
        raise Failure(f"Failed to initialize: unable to resolve docker endpoint: invalid port in {url}")
    return name.strip("[]") or "127.0.0.1", int(port)


class Connection:
    """One socket to the daemon, used for one request after another."""

    def __init__(self, sock: socket):
        self.sock = sock
        self.pending = b""

    def send(self, data: "bytes | bytearray | memoryview") -> None:
        # sendall would do, but takes no flags before the data is known to be sent whole
        self.sock.sendall(data, MSG_NOSIGNAL)

    def request(self, method: str, path: str, body: "Any" = None, headers: str = "", chunked: bool = False) -> None:
        """Send a request; `body` is None, bytes, or a value to send as JSON."""
        head = f"{method} {path} HTTP/1.1\r\nHost: knarr\r\nUser-Agent: knarr\r\n{headers}"
        if chunked:
            self.send((head + "Transfer-Encoding: chunked\r\n\r\n").encode())
            return
        payload = b""
        if isinstance(body, bytes):
            payload = body
        elif body is not None:
            payload = dumps(body).encode()
            head += "Content-Type: application/json\r\n"
        if payload or method in ("POST", "PUT"):
            head += f"Content-Length: {len(payload)}\r\n"
        try:
            self.send((head + "\r\n").encode() + payload)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused half-way, or nobody is there: `response` finds out

    def response(self) -> "Response":
        """The next response's head; read its body before the next request."""
        while (end := self.pending.find(b"\r\n\r\n")) < 0:
            if len(self.pending) > MAX_HEADERS:
                raise Failure("the daemon's answer is not HTTP: its header does not end")
            try:
                data = self.sock.recv(CHUNK)
            except ConnectionResetError:
                data = b""
            if not data:
                raise Unreachable("the daemon closed the connection before it answered")
            self.pending += data
        head = self.pending[:end].decode("latin-1").split("\r\n")
        self.pending = self.pending[end + 4:]
        version, _, rest = head[0].partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise Failure(f"the daemon's answer is not HTTP: {head[0][:60]!r}")
        headers = {}
        for line in head[1:]:
            key, _, value = line.partition(":")
            headers[key.lower()] = value.strip()
        status = int(rest[:3])
        if status == 100:
            return self.response()
        return Response(self, status, headers)

    def recv(self) -> bytes:
        """Some bytes, b"" at the end."""
        if self.pending:
            data, self.pending = self.pending, b""
            return data
        return self.sock.recv(CHUNK)

    def close_write(self) -> None:
        try:
            self.sock.shutdown(SHUT_WR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise

    def close(self) -> None:
        self.sock.close()


class Response:
    """Status, headers, and the body once: `read()`, `chunks()` or `values()`."""

    def __init__(self, connection: Connection, status: int, headers: "dict[str, str]"):
        self.connection = connection
        self.status = status
        self.headers = headers

    def chunks(self) -> "Iterator[bytes]":
        """The body's bytes as they come, transfer encoding taken off."""
        headers = self.headers
        if self.status in (204, 304) or self.status < 200:
            return
        if headers.get("transfer-encoding", "").lower() == "chunked":
            yield from self._chunked()
        elif "content-length" in headers:
            left = int(headers["content-length"])
            while left:
                data = self._some(left)
                left -= len(data)
                yield data
        else:
            while data := self.connection.recv():
                yield data

    def _some(self, most: int) -> bytes:
        connection = self.connection
        data = connection.recv()
        if not data:
            raise Failure("unexpected EOF: the daemon closed the connection within an answer")
        if len(data) > most:
            data, connection.pending = data[:most], data[most:]
        return data

    def _line(self) -> bytes:
        connection = self.connection
        while (end := connection.pending.find(b"\r\n")) < 0:
            if not (data := connection.sock.recv(CHUNK)):
                raise Failure("unexpected EOF: the daemon closed the connection within an answer")
            connection.pending += data
        line, connection.pending = connection.pending[:end], connection.pending[end + 2:]
        return line

    def _chunked(self) -> "Iterator[bytes]":
        while left := int(self._line().partition(b";")[0], 16):
            while left:
                data = self._some(left)
                left -= len(data)
                yield data
            self._line()
        while self._line():
            pass

    def read(self) -> bytes:
        return b"".join(self.chunks())

    def values(self) -> "Iterator[Any]":
        """The JSON values of a stream of one per line."""
        rest = b""
        for data in self.chunks():
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.strip():
                    yield loads(line)
        if rest.strip():
            yield loads(rest)

    def check(self) -> "Response":
        """Raise DaemonError for a status of 400 and above."""
        if self.status < 400:
            return self
        text = self.read().decode("utf-8", "replace").strip()
        try:
            value = loads(text)
            message = value["message"]
        except (ValueError, KeyError, TypeError):
            message = text or f"status {self.status} without a message"
        raise DaemonError(self.status, message)


def _mentions_headers(path: str) -> bool:
    """Whether a configuration is worth parsing for its `HttpHeaders`: hardly any is, and every command asks."""
    try:
        descriptor = posix_open(path, O_RDONLY | O_CLOEXEC)
    except OSError:
        return False
    try:
        data = read(descriptor, CHUNK)
        return b'"HttpHeaders"' in data or len(data) == CHUNK
    except OSError:
        return False
    finally:
        close(descriptor)


class Client:
    """A daemon's address, the API version spoken to it and one keep-alive connection for short requests."""

    def __init__(self, url: str = "", version: str = "", folder: str = ""):
        chosen = url or getenv("KNARR_HOST") or getenv("DOCKER_HOST")
        self.host = Host(chosen or DEFAULT_HOST)
        self.automatic = not chosen
        self.version = (version or getenv("DOCKER_API_VERSION") or API_VERSION).lstrip("v")
        self.folder = folder  # of config.json; "" for the usual place
        self._headers: str | None = None
        self._shared: Connection | None = None

    def headers(self) -> str:
        """`HttpHeaders` of config.json as lines of a request's head."""
        if self._headers is None:
            self._headers = ""
            if not _mentions_headers((self.folder or getenv("DOCKER_CONFIG") or getenv("HOME") + "/.docker") + "/config.json"):
                return ""
            from cli.configfile import read_headers

            for name, value in read_headers(self.folder).items():
                if name.lower() == "user-agent" or not isinstance(value, str):
                    continue
                if not name or not (name + value).isprintable() or not frozenset(" :").isdisjoint(name):
                    raise Failure(f'config.json: HttpHeaders: "{name}" is no valid header')
                self._headers += f"{name}: {value}\r\n"
        return self._headers

    def connect(self) -> Connection:
        """A new connection. Starts the daemon first where that is this client's job. Raises Unreachable."""
        try:
            return Connection(self.host.connect())
        except OSError as error:
            if self.automatic and error.errno in (errno.ENOENT, errno.ECONNREFUSED):
                from cli.autostart import start_daemon

                return Connection(start_daemon(self.host))
            raise self._unreachable(error) from None

    def _unreachable(self, error: OSError) -> Unreachable:
        url = self.host.url
        if error.errno == errno.EACCES:
            hint = "be root or join the socket's group"
            return Unreachable(f"permission denied while trying to connect to the Knarr daemon socket at {url}: {hint}")
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
            return Unreachable(f"Cannot connect to the Knarr daemon at {url}. Is the daemon running? (start one with 'knarr daemon')")
        return Unreachable(f"Cannot connect to the Knarr daemon at {url}: {error.strerror or error}")

    def path(self, path: str) -> str:
        return f"/v{self.version}{path}"

    def send(self, connection: Connection, method: str, path: str, body: "Any" = None, headers: str = "") -> None:
        """Only send; `connection.response()` follows."""
        connection.request(method, self.path(path), body, headers + self.headers())

    def open(self, method: str, path: str, body: "Any" = None, connection: "Connection | None" = None,
        headers: str = "") -> Response:
        """Send and read the response's head, on a connection of its own unless one is given. Raises DaemonError."""
        connection = connection or self.connect()
        self.send(connection, method, path, body, headers)
        return self.answer(connection, method, path, body, headers)

    def answer(self, connection: Connection, method: str, path: str, body: "Any" = None, headers: str = "") -> Response:
        """The response's head to a request already sent; asks again when the daemon is older than this client. Raises DaemonError."""
        response = connection.response()
        if response.status != 400:
            return response.check()
        try:
            return response.check()
        except DaemonError as error:
            # an older daemon names the newest version it speaks; speak that from here on
            if "is too new. Maximum supported API version is " not in error.message:
                raise
            self.version = error.message.rpartition(" ")[2]
        return self.open(method, path, body, connection, headers)

    def negotiate(self) -> None:
        """Lower the version to the daemon's; for requests whose body can be sent only once, so that `answer` could not ask again."""
        response = self.call("GET", "/_ping")
        response.read()
        theirs = response.headers.get("api-version", "")
        if theirs and [int(part) for part in theirs.split(".")] < [int(part) for part in self.version.split(".")]:
            self.version = theirs

    def require(self, flag: str, version: str) -> None:
        """Refuse a flag that a daemon of an older API would ignore. Raises Failure."""
        self.negotiate()
        if [int(part) for part in self.version.split(".")] < [int(part) for part in version.split(".")]:
            raise Failure(f'"--{flag}" requires API version {version}, but the Docker daemon API version is {self.version}')

    def call(self, method: str, path: str, body: "Any" = None, headers: str = "") -> Response:
        """A short request on the shared connection; the caller reads the body whole."""
        connection = self.shared()
        try:
            response = self.open(method, path, body, connection, headers)
        except DaemonError:
            self._shared = None  # an answer to an error may close the connection
            raise
        if response.headers.get("connection", "").lower() == "close":
            self._shared = None
        return response

    def shared(self) -> Connection:
        """The keep-alive connection of the short requests."""
        if self._shared is None:
            self._shared = self.connect()
        return self._shared

    def get(self, path: str, headers: str = "") -> "Any":
        return loads(self.call("GET", path, None, headers).read())

    def post(self, path: str, body: "Any" = None) -> bytes:
        return self.call("POST", path, body).read()

    def delete(self, path: str) -> bytes:
        return self.call("DELETE", path).read()

    def hijack(self, path: str, body: "Any" = None, connection: "Connection | None" = None) -> Response:
        """Ask for the connection itself; what follows on `.connection` is the raw stream (bytes already read are in its `pending`)."""
        return self.open("POST", path, body, connection, "Connection: Upgrade\r\nUpgrade: tcp\r\n")
