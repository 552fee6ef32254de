"""A daemon that only remembers what it was asked and answers from a table, so that two clients can be compared request by request.

It runs in a thread of the test, on a unix socket, and speaks enough HTTP for `run`, `ps`, `inspect` and friends of any Docker client.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path

CONTAINER_ID = "4f1d2a3b5c6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708"
Answer = tuple[int, object] | tuple[int, object, dict[str, str]]
Request = dict[str, object]


def frame(stream: int, data: bytes) -> bytes:
    return struct.pack(">BxxxL", stream, len(data)) + data


class FakeDaemon:
    """`requests` in order of arrival; `table` maps `METHOD path-regex` to (status, body) or a function of the request."""

    def __init__(self, path: Path, table: dict[str, Answer | Callable[[Request], Answer]] | None = None):
        self.path = path
        self.requests: list[Request] = []
        self.table = table or {}
        self.output = frame(1, b"out\n") + frame(2, b"err\n")
        self.exit_code = 0
        self.stdin = b""
        self.started = threading.Event()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(64)
        self.accepting = threading.Thread(target=self._accept, daemon=True)
        self.accepting.start()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)  # closing alone leaves the thread, and with it the descriptor, in accept
        self.accepting.join()
        self.listener.close()
        self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        stream = sock.makefile("rb")
        with sock, stream, contextlib.suppress(ConnectionError):  # a client may leave early
            while line := stream.readline():
                method, target, _ = line.decode().split()
                headers = {}
                while (header := stream.readline().strip()):
                    key, _, value = header.decode().partition(":")
                    headers[key.lower()] = value.strip()
                raw = stream.read(int(headers.get("content-length", 0)))
                if headers.get("transfer-encoding") == "chunked":
                    raw = b""
                    while size := int(stream.readline(), 16):
                        raw += stream.read(size)
                        stream.readline()
                    stream.readline()
                path, _, query = target.partition("?")
                path = re.sub(r"^/v1\.\d+", "", path)
                request: Request = {"method": method, "path": path, "query": dict(urllib.parse.parse_qsl(query, keep_blank_values=True))}
                for name in ("x-registry-auth", "x-registry-config"):
                    if name in headers:
                        request[name] = json.loads(base64.urlsafe_b64decode(headers[name] + "==") or "null")
                if "x-meta" in headers:
                    request["x-meta"] = headers["x-meta"]
                if raw and headers.get("content-type") == "application/json":
                    request["body"] = json.loads(raw)
                elif raw:
                    request["raw"] = raw
                self.requests.append(request)
                if not self._answer(sock, stream, request):
                    return

    def _answer(self, sock: socket.socket, stream: object, request: Request) -> bool:
        name = f"{request['method']} {request['path']}"
        for pattern, answer in self.table.items():
            if re.fullmatch(pattern, name):
                self._send(sock, *(answer(request) if callable(answer) else answer))
                return True
        path = str(request["path"])
        if path == "/_ping":
            sock.sendall(b"HTTP/1.1 200 OK\r\nApi-Version: 1.51\r\nOstype: linux\r\nDocker-Experimental: false\r\nServer: Docker/28.0\r\n"
                         b"Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n" + (b"" if request["method"] == "HEAD" else b"OK"))
        elif path.endswith("/create"):
            self._send(sock, 201, {"Id": CONTAINER_ID, "Warnings": []})
        elif path.endswith(("/attach", "/exec/x/start")):
            self._attach(sock, stream, request)
            return False
        elif path.endswith("/wait"):
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
            if request["query"].get("condition"):  # type: ignore[attr-defined]
                self.started.wait(60)
            body = json.dumps({"StatusCode": self.exit_code}).encode() + b"\n"
            sock.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        elif path.endswith("/start"):
            self._send(sock, 204, None)
            self.started.set()
        elif path == "/info":
            self._send(sock, 200, {"OSType": "linux", "ID": "x", "Name": "fake"})
        elif request["method"] == "POST":
            self._send(sock, 204, None)
        else:
            self._send(sock, 404, {"message": f"no such thing: {name}"})
        return True

    def _attach(self, sock: socket.socket, stream: object, request: Request) -> None:
        head = b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
        sock.sendall(head)
        if not str(request["path"]).startswith("/exec"):
            self.started.wait(60)
        if request["query"].get("stdin") == "1":  # type: ignore[attr-defined]
            self.stdin = stream.read()  # type: ignore[attr-defined]
        sock.sendall(self.output)

    def _send(self, sock: socket.socket, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        """`body` is bytes, a value to send as JSON, None, or a list, sent one by one: bytes, pauses in seconds, events to wait for."""
        extra = "".join(f"{name}: {value}\r\n" for name, value in ({"Content-Type": "application/json"} | (headers or {})).items())
        if isinstance(body, list) and any(isinstance(piece, bytes) for piece in body):
            sock.sendall(f"HTTP/1.1 {status} X\r\nApi-Version: 1.51\r\n{extra}Transfer-Encoding: chunked\r\n\r\n".encode())
            for piece in body:
                if isinstance(piece, bytes):
                    sock.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
                elif isinstance(piece, threading.Event):
                    piece.wait(60)
                else:
                    time.sleep(piece)
            sock.sendall(b"0\r\n\r\n")
            return
        if isinstance(body, bytes):
            payload = body
        else:
            payload = b"" if body is None else json.dumps(body).encode() + b"\n"
        head = f"HTTP/1.1 {status} X\r\nApi-Version: 1.51\r\n{extra}Content-Length: {len(payload)}\r\n\r\n"
        sock.sendall(head.encode() + payload)
