"""A proxy in front of a registry that counts bytes, and does to an answer whatever networks and bad servers do to one.

It is an origin for its client (no CONNECT): an image's name begins with the proxy's address. `fault` is asked for each request.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

from tests.lib.registries import Certificates, DockerRegistry, Request

_PIECE = 1 << 16
_HELLO = 0x16  # the first byte of TLS
_BLOB = re.compile(r"/v2/.+/blobs/([a-z0-9]+:[0-9a-f]+)$")


@dataclass
class Fault:
    """What happens to one answer. Offsets count from the beginning of its body.

    `cut`: the connection ends there (`reset`: by a RST); `stall`: nothing more comes from there on; `rate`: bytes a second; `flip`: this
    byte is another; `status`, `headers`, `body`: this comes instead, and the registry is not asked; `length`: another Content-Length;
    `part`: another Content-Range; `whole`: the client's Range is not passed on; `more`: so many bytes follow; `endless`: a chunked body
    that does not end; `garbage`: these bytes come instead of HTTP; `wait`: seconds before anything.
    """

    cut: int | None = None
    reset: bool = False
    stall: int | None = None
    rate: float = 0
    flip: int | None = None
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: int | None = None
    part: str = ""
    whole: bool = False
    more: int = 0
    endless: bool = False
    garbage: bytes = b""
    wait: float = 0


def once(fault: Fault, match: str = "/blobs/") -> Callable[[Request], Fault | None]:
    """The first GET whose address has `match` in it."""
    return times(1, fault, match)


def times(count: int, fault: Fault, match: str = "/blobs/") -> Callable[[Request], Fault | None]:
    """The first so many of them."""
    left = [count]
    lock = threading.Lock()

    def choose(request: Request) -> Fault | None:
        with lock:
            if request.method != "GET" or match not in request.target or not left[0]:
                return None
            left[0] -= 1
            return fault

    return choose


def always(fault: Fault, match: str = "/blobs/") -> Callable[[Request], Fault | None]:
    """Every GET whose address has `match` in it."""
    return lambda request: fault if request.method == "GET" and match in request.target else None


def calm(request: Request) -> Fault | None:
    """No trouble."""
    return None


class Proxy:
    """`sent` counts the bytes of each blob that went to a client, `received` those of uploads. `refuse` closes connections at once. `tls`
    makes it HTTPS. As a context manager it runs until it is left; its stalled connections end then."""

    def __init__(self, registry: DockerRegistry, *, tls: Certificates | None = None) -> None:
        self.registry = registry
        self.fault: Callable[[Request], Fault | None] = calm
        self.refuse = False
        self.requests: list[Request] = []
        self.sent: Counter[str] = Counter()
        self.received = 0
        self.stalled = threading.Event()
        self._over = threading.Event()
        self._tls: ssl.SSLContext | None = None
        if tls:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(*map(str, tls.server))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        # What is on its way in the kernel's buffers counts as sent and may never arrive: keep it small.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        self.port = int(self._listener.getsockname()[1])
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    @property
    def host(self) -> str:
        """`127.0.0.1:PORT`."""
        return f"127.0.0.1:{self.port}"

    @property
    def bytes(self) -> int:
        """Of all blobs together."""
        return sum(self.sent.values())

    def begin(self, fault: Callable[[Request], Fault | None] = calm) -> None:
        """Other trouble from here on, and every count from 0."""
        self.fault = fault
        self.requests, self.sent, self.received = [], Counter(), 0
        self.stalled = threading.Event()

    def paths(self, method: str) -> list[str]:
        """What was asked for."""
        return [request.target for request in self.requests if request.method == method]

    def __enter__(self) -> Proxy:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()
        for thread in list(self._threads):
            thread.join(10)

    def drop(self) -> None:
        """End every connection."""
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if self.refuse:
                connection.close()
                continue
            self._connections.add(connection)
            self._start(self._converse, connection)

    def _converse(self, connection: socket.socket) -> None:
        upstream: http.client.HTTPConnection | None = None
        client = connection
        try:
            if self._tls is not None:
                client = self._tls.wrap_socket(connection, server_side=True)
                self._connections.add(client)
            elif connection.recv(1, socket.MSG_PEEK) == bytes([_HELLO]):
                connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTPS request to an HTTP server.\n")
                return
            upstream = http.client.HTTPConnection("127.0.0.1", self.registry.port, timeout=60)
            with client.makefile("rb") as reader:
                while (request := _request(reader)) is not None:
                    self.requests.append(request)
                    self.received += len(request.body)
                    if not self._answer(client, upstream, request, self.fault(request)):
                        return
        except (OSError, http.client.HTTPException):
            pass  # the client went away, or was sent away
        finally:
            if upstream is not None:
                upstream.close()
            for one in (client, connection):
                self._connections.discard(one)
                one.close()

    def _answer(self, client: socket.socket, upstream: http.client.HTTPConnection, request: Request, fault: Fault | None) -> bool:
        """Whether the connection can be used again."""
        fault = fault or Fault()
        if fault.wait:
            self._over.wait(fault.wait)
        if fault.garbage:
            client.sendall(fault.garbage)
            return False
        if fault.status:
            headers = {"Content-Length": str(len(fault.body)), **fault.headers}
            client.sendall(_head(fault.status, headers) + (fault.body if request.method != "HEAD" else b""))
            return True
        headers = {name: value for name, value in request.headers.items() if name not in ("connection", "transfer-encoding")}
        if fault.whole:
            headers.pop("range", None)
        if request.body or request.method in ("POST", "PUT", "PATCH"):
            headers["content-length"] = str(len(request.body))
        upstream.request(request.method, request.target, request.body or None, headers)
        answer = upstream.getresponse()
        given = {name: value for name, value in answer.getheaders() if name.lower() not in ("connection", "transfer-encoding")}
        length = answer.length or 0
        if "Content-Length" not in given and request.method != "HEAD":
            given["Content-Length"] = str(length)
        if fault.length is not None:
            given["Content-Length"] = str(fault.length)
        if fault.part:
            given["Content-Range"] = fault.part
        if fault.endless:
            given.pop("Content-Length", None)
            given["Transfer-Encoding"] = "chunked"
        client.sendall(_head(answer.status, given))
        blob = _BLOB.search(request.path)
        count = blob[1] if blob and request.method == "GET" and answer.status in (200, 206) else ""
        if not self._body(client, answer, fault, count):
            answer.read()
            return False
        return fault.length is None and not fault.more

    def _body(self, client: socket.socket, answer: http.client.HTTPResponse, fault: Fault, count: str) -> bool:
        place = 0
        while piece := answer.read(_PIECE):
            for limit in (fault.cut, fault.stall):
                if limit is not None:
                    piece = piece[: max(0, limit - place)]
            if fault.flip is not None and place <= fault.flip < place + len(piece):
                at = fault.flip - place
                piece = piece[:at] + bytes([piece[at] ^ 0x10]) + piece[at + 1 :]
            if count:  # before it goes: a pull may end, and its test look, before this thread has its turn again
                self.sent[count] += len(piece)
            try:
                client.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if fault.endless and piece else piece)
            except OSError:
                if count:
                    self.sent[count] -= len(piece)
                raise
            place += len(piece)
            if fault.rate:
                time.sleep(len(piece) / fault.rate)
            if place == fault.cut:
                if fault.reset:  # linger of 0 seconds: the close is a RST
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                return False
            if place == fault.stall:
                self.stalled.set()
                _until_gone(client, self._over)
                return False
        with contextlib.suppress(OSError):
            if fault.more:
                client.sendall(bytes(fault.more))
            while fault.endless and not self._over.is_set():
                client.sendall(b"%x\r\n%b\r\n" % (_PIECE, bytes(_PIECE)))
        return True


def _until_gone(client: socket.socket, over: threading.Event) -> None:
    client.settimeout(0.05)
    while not over.is_set():
        try:
            if not client.recv(1):
                return
        except TimeoutError:
            continue


def _request(reader: BinaryIO) -> Request | None:
    """The next request of a connection, None at its end."""
    line = reader.readline()
    if not line.strip():
        return None
    method, target, _ = line.decode("latin-1").split(" ", 2)
    headers: dict[str, str] = {}
    while (line := reader.readline()) not in (b"\r\n", b"\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    body = b""
    if "chunked" in headers.get("transfer-encoding", ""):
        while size := int(reader.readline().split(b";")[0], 16):
            body += reader.read(size)
            reader.readline()
        reader.readline()
    elif length := int(headers.get("content-length") or 0):
        body = reader.read(length)
    return Request(method, target, headers, body)


def _head(status: int, headers: dict[str, str]) -> bytes:
    lines = [
        f"HTTP/1.1 {status} {http.client.responses.get(status, 'x')}",
        *(f"{name}: {value}" for name, value in headers.items()),
        "",
        "",
    ]
    return "\r\n".join(lines).encode("latin-1")
