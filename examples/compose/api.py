"""The API of the example: counts visits in Redis. `serve`, `init` (fills an empty database) or `check` (is the server well?)."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PORT = 8000


def redis(*words: str) -> str:
    """One command and its answer (a status, a number or a text). Raises RuntimeError with what Redis says when it refuses."""
    password = Path("/run/secrets/password").read_text().strip()
    with socket.create_connection((os.environ["DATABASE"], 6379), timeout=2) as link, link.makefile("rwb") as stream:
        answer = ""
        for command in (("AUTH", password), words):
            parts = [word.encode() for word in command]
            stream.write(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
            stream.flush()
            line = stream.readline().decode().rstrip()
            if line[:1] not in (":", "+", "$"):
                raise RuntimeError(f"{command[0]}: {line or 'the database closed the connection'}")
            answer = line[1:] if line[0] != "$" else stream.read(int(line[1:]) + 2)[:-2].decode() if line != "$-1" else ""
        return answer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/health":
            return self.answer({"database": redis("PING")})
        if self.path != "/":
            return self.answer({"error": "there is no such page"}, 404)
        self.answer({
            "greeting": os.environ["GREETING"], "visits": int(redis("INCR", "visits")), "seed": redis("GET", "seed"),
            "host": socket.gethostname(), "client": self.headers.get("X-Forwarded-For", self.client_address[0]),
        })  # fmt: skip

    def do_POST(self) -> None:
        if self.path == "/crash":  # to see the restart policy at work
            os._exit(3)
        self.answer({"error": "there is no such page"}, 404)

    def answer(self, value: dict[str, object], status: int = 200) -> None:
        body = json.dumps(value).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    command = sys.argv[1]
    if command == "init":
        print("filled" if redis("SETNX", "seed", "planted") == "1" else "there already", flush=True)
    elif command == "check":
        urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=1).read()
    elif command == "serve":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # the first process of a PID namespace gets no signal it does not handle
        print(f"serving on port {PORT}", flush=True)
        ThreadingHTTPServer(("", PORT), Handler).serve_forever()
    else:
        sys.exit(f"api.py: no command {command!r}")


if __name__ == "__main__":
    main()
