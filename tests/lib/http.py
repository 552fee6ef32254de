"""A small HTTP client over a unix socket, for tests that speak to the daemon without any library of ours."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote


class UnixConnection(http.client.HTTPConnection):
    """`http.client` over the socket at `path`."""

    def __init__(self, path: str, timeout: float = 60) -> None:
        super().__init__("knarr", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


@dataclass
class Response:
    """A whole answer. `json()` is None for an empty body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body) if self.body else None

    @property
    def message(self) -> str:
        """The error message of an answer, "" when it has none."""
        try:
            return str(self.json().get("message", ""))
        except (ValueError, AttributeError):
            return ""


def request(path: str, method: str, target: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 60) -> Response:
    """One request on a fresh connection. A body that is not bytes (or a file) is sent as JSON."""
    sent = dict(headers or {})
    if body is not None and not isinstance(body, bytes) and not hasattr(body, "read"):
        body = json.dumps(body).encode()
        sent.setdefault("Content-Type", "application/json")
    connection = UnixConnection(path, timeout)
    try:
        connection.request(method, quote(target, safe='/?&=%{}":,[]'), body=body, headers=sent, encode_chunked=hasattr(body, "read"))
        answer = connection.getresponse()
        return Response(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def raw(path: str, data: bytes, timeout: float = 60, shut: bool = False) -> bytes:
    """Send bytes as they are and read until the other side closes (or `timeout`): for broken requests."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        sock.connect(path)
        received = b""
        try:
            sock.sendall(data)
            if shut:
                sock.shutdown(socket.SHUT_WR)
            while chunk := sock.recv(65536):
                received += chunk
        except (TimeoutError, BrokenPipeError, ConnectionResetError):
            pass
        return received
