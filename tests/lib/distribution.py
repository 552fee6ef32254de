"""The distribution API for tests: a small client of it, and `knarr registry serve` beside a daemon."""

from __future__ import annotations

import base64
import hashlib
import http.client
import itertools
import json
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.lib.daemon import Daemon, knarr_command

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
ACCEPT = ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST))

_count = itertools.count()


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def descriptor(data: bytes, media_type: str, **fields: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **fields}


@dataclass
class Answer:
    """A whole reply; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
    all: list[tuple[str, str]] = field(default_factory=list)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of the first error in the body, "" when it has none."""
        try:
            return str(self.json()["errors"][0]["code"])
        except (ValueError, KeyError, IndexError, TypeError):
            return ""


class Client:
    """Speaks to the registry at `url`, over one connection that is opened again when it was closed."""

    def __init__(self, url: str, *, ca: str = "", authorization: str = "") -> None:
        self.url = url.rstrip("/")
        self.host = urlsplit(self.url).netloc
        self.authorization = authorization
        self._ca = ca
        self._connection: http.client.HTTPConnection | None = None

    def connect(self) -> http.client.HTTPConnection:
        if self.url.startswith("https"):
            context = ssl.create_default_context(cafile=self._ca)
            return http.client.HTTPSConnection(self.host, timeout=60, context=context)
        return http.client.HTTPConnection(self.host, timeout=60)

    def request(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """`path` begins with / or is a whole URL of this registry (as some give in Location)."""
        if path.startswith("http"):
            parts = urlsplit(path)
            path = parts.path + (f"?{parts.query}" if parts.query else "")
        sent = {"Authorization": self.authorization} if self.authorization else {}
        sent |= headers or {}
        for attempt in (0, 1):
            connection = self._connection or self.connect()
            self._connection = None
            try:
                connection.request(method, path, body, sent, encode_chunked=hasattr(body, "__next__"))
                answer = connection.getresponse()
                data = answer.read()
            except (ConnectionError, http.client.RemoteDisconnected, http.client.CannotSendRequest):
                connection.close()
                if attempt or hasattr(body, "__next__"):
                    raise
                continue
            if not answer.will_close:
                self._connection = connection
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, data, answer.getheaders())
        raise AssertionError("unreachable")

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def head(self, path: str, **headers: str) -> Answer:
        return self.request("HEAD", path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def begin(self, name: str) -> str:
        """A new upload; its location."""
        answer = self.request("POST", f"/v2/{name}/blobs/uploads/", b"")
        assert answer.status == 202, answer
        return answer.headers["location"]

    def push_blob(self, name: str, data: bytes) -> str:
        digest = digest_of(data)
        answer = self.request("PUT", with_query(self.begin(name), digest=digest), data, {"Content-Type": "application/octet-stream"})
        assert answer.status == 201, answer
        return digest

    def put_manifest(self, name: str, reference: str, manifest: Mapping[str, Any] | bytes, media_type: str = "") -> Answer:
        raw = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        kind = media_type or (json.loads(raw).get("mediaType") if not isinstance(manifest, bytes) else OCI_MANIFEST)
        return self.request("PUT", f"/v2/{name}/manifests/{reference}", raw, {"Content-Type": str(kind)})

    def push_image(self, name: str, reference: str = "", *, mark: str = "", **fields: Any) -> tuple[str, bytes]:
        """A small image of random content; its digest and the manifest's bytes. Pushed by digest when no reference is given."""
        config = json.dumps({"architecture": "amd64", "os": "linux", "mark": mark or f"{os.getpid()}-{next(_count)}"}).encode()
        layer = os.urandom(64)
        for blob in (config, layer):
            self.push_blob(name, blob)
        layers = [descriptor(layer, OCI_LAYER)]
        manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(config, OCI_CONFIG), "layers": layers, **fields}
        raw = json.dumps(manifest).encode()
        answer = self.put_manifest(name, reference or digest_of(raw), raw)
        assert answer.status == 201, answer
        return digest_of(raw), raw


def with_query(location: str, **parameters: str) -> str:
    mark = "&" if "?" in location else "?"
    return location + mark + "&".join(f"{key}={value}" for key, value in parameters.items())


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


class Served:
    """`knarr registry serve` at work, with a daemon that runs already. `url` is where it listens. `running` are those that nobody ended."""

    running: set[Served] = set()

    def __init__(self, daemon: Daemon, *options: str, addr: str = "127.0.0.1:0", input: bytes = b"") -> None:
        self.output = daemon.directory / f"serve-{next(_count)}.log"
        command = [*knarr_command(), "-H", f"unix://{daemon.socket}", "registry", "serve", "--addr", addr, *options]
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out)
        assert self.process.stdin is not None
        Served.running.add(self)
        self.process.stdin.write(input)
        self.process.stdin.close()
        self.url = self._wait("Registry listens on ").split()[0]

    def _wait(self, text: str, timeout: float = 60) -> str:
        """What follows `text` in the output, once it is there."""
        deadline = time.monotonic() + timeout
        while True:
            said = self.said()
            if text in said:
                return said.partition(text)[2]
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"registry serve did not say {text!r} ({self.process.poll()}):\n{said}")
            time.sleep(0.01)

    def said(self) -> str:
        return self.output.read_text()

    def wait_said(self, text: str) -> str:
        return self._wait(text)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit status."""
        Served.running.discard(self)
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)
