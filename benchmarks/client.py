"""A raw HTTP/1.1 client on a unix socket with a kept connection: as little as possible between the clock and the engine."""

from __future__ import annotations

import json
import socket
from typing import Any


class ApiError(Exception):
    """An answer that was not the expected one."""


class Client:
    """One connection to an engine, used for one request after the other. `base` is a version prefix such as "/v1.41"."""

    def __init__(self, path: str, base: str = "/v1.41") -> None:
        self.path = path
        self.base = base
        self.buffer = b""
        self.sock = self.connect()

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(120)
        sock.connect(self.path)
        return sock

    def close(self) -> None:
        self.sock.close()

    def call(
        self, method: str, target: str, body: Any = None, *, kind: str = "application/json", ok: tuple[int, ...] = (200, 201, 204)
    ) -> bytes:
        """One request and its whole answer. Raises ApiError when the status is not in `ok`."""
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"{method} {self.base}{target} HTTP/1.1\r\nHost: bench\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n\r\n"
        self.sock.sendall(head.encode() + data)
        status, headers = self.head()
        answer = self.body(status, headers)
        if status not in ok:
            raise ApiError(f"{method} {target}: {status} {answer[:300].decode(errors='replace')}")
        return answer

    def json(self, method: str, target: str, body: Any = None, **options: Any) -> Any:
        return json.loads(self.call(method, target, body, **options))

    def more(self) -> None:
        chunk = self.sock.recv(65536)
        if not chunk:
            raise ApiError("the engine closed the connection")
        self.buffer += chunk

    def head(self) -> tuple[int, dict[bytes, bytes]]:
        while b"\r\n\r\n" not in self.buffer:
            self.more()
        text, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        first, *lines = text.split(b"\r\n")
        return int(first.split(b" ", 2)[1]), {k.lower(): v.strip() for k, _, v in (line.partition(b":") for line in lines)}

    def take(self, count: int) -> bytes:
        while len(self.buffer) < count:
            self.more()
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def body(self, status: int, headers: dict[bytes, bytes]) -> bytes:
        if status in (204, 304):
            return b""
        if b"content-length" in headers:
            return self.take(int(headers[b"content-length"]))
        if headers.get(b"transfer-encoding", b"").lower() != b"chunked":
            return self.rest()
        parts = []
        while True:
            while b"\r\n" not in self.buffer:
                self.more()
            size, _, self.buffer = self.buffer.partition(b"\r\n")
            parts.append(self.take(int(size, 16)))
            self.take(2)
            if not parts[-1]:
                return b"".join(parts)

    def rest(self) -> bytes:
        """Everything up to the end of the connection, and a new connection."""
        data = self.buffer
        while chunk := self.sock.recv(65536):
            data += chunk
        self.sock.close()
        self.buffer = b""
        self.sock = self.connect()
        return data

    def hijack(self, target: str, body: Any) -> bytes:
        """POST that takes the connection over; all that comes out of it until it is closed. On a connection of its own."""
        own = Client(self.path, self.base)
        try:
            data = json.dumps(body).encode()
            head = (
                f"POST {self.base}{target} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nConnection: Upgrade\r\n"
                f"Upgrade: tcp\r\nContent-Length: {len(data)}\r\n\r\n"
            )
            own.sock.sendall(head.encode() + data)
            status, headers = own.head()
            if status not in (101, 200):
                raise ApiError(f"POST {target}: {status} {own.body(status, headers)[:300]!r}")
            received = own.buffer
            while chunk := own.sock.recv(65536):
                received += chunk
            return received
        finally:
            own.close()

    def peer_pid(self) -> int:
        """The daemon's process id, as the kernel knows it."""
        credentials = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(credentials[:4], "little")
