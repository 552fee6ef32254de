"""Registries for tests, all on loopback and on ports of their own: Debian's docker-registry, a token server, and a server that misbehaves.

Each is a context manager: it is there when entered and gone, with its files, when left. `seed` puts an image into a registry without any
code of ours.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import http.client
import http.server
import io
import itertools
import json
import os
import shutil
import socket
import socketserver
import ssl
import subprocess
import tarfile
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"


# Below the range that the kernel takes for clients and for listeners that ask for no port: there another's connection could have a port the
# next moment, and a client that tries until somebody listens could connect to itself. Other tests' own ports are beside these.
_PORTS = range(24000, 28000)
_next_port = itertools.count(os.getpid() * 97 + 2000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]))


def free_port() -> int:
    """A TCP port of this host that nobody listens on, given once."""
    while True:
        port = _PORTS[next(_next_port) % len(_PORTS)]
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port


def digest_of(data: bytes) -> str:
    """`sha256:` and 64 hexadecimal digits."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass
class Certificates:
    """A CA and a server and a client certificate that it signed, as PEM files."""

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.crt"

    @property
    def server(self) -> tuple[Path, Path]:
        return self.folder / "server.crt", self.folder / "server.key"

    @property
    def client(self) -> tuple[Path, Path]:
        return self.folder / "client.crt", self.folder / "client.key"


def make_certificates(folder: Path, *, names: str = "DNS:localhost,IP:127.0.0.1") -> Certificates:
    """A CA with a server certificate for `names` and a client certificate, made by openssl in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, stdin=subprocess.DEVNULL)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.crt", "-days", "30", "-subj", "/CN=test CA")
    for name, extension in (("server", f"subjectAltName={names}"), ("client", "extendedKeyUsage=clientAuth")):
        (folder / f"{name}.ext").write_text(extension + "\n")
        openssl("req", "-new", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30", "-extfile", f"{name}.ext")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signing)
    return Certificates(folder)


class DockerRegistry:
    """Debian's `docker-registry` with a configuration made from the arguments.

    `users` (name -> password) turns on htpasswd, `tokens` a token server, `tls` HTTPS (`client_ca`: client certificates are demanded),
    `upstream` makes it a pull-through cache, `read_only` refuses writes.
    """

    def __init__(
        self,
        *,
        users: dict[str, str] | None = None,
        tokens: TokenServer | None = None,
        tls: Certificates | None = None,
        client_ca: bool = False,
        upstream: str = "",
        read_only: bool = False,
        folder: Path | None = None,
    ) -> None:
        self.folder = folder or Path(tempfile.mkdtemp(prefix="docker-registry-"))
        self.port = free_port()
        self.tls = tls
        self.users = users
        self.config = self._configuration(users, tokens, tls, client_ca, upstream, read_only)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        """`127.0.0.1:PORT`, the first part of an image's name."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}"

    @property
    def log(self) -> str:
        """What the registry wrote, one line a request."""
        return (self.folder / "log").read_text(errors="replace")

    @property
    def blobs(self) -> Path:
        """The folder that holds the blobs, as `sha256/ab/<hex>/data`."""
        return self.folder / "data/docker/registry/v2/blobs"

    def _configuration(
        self,
        users: dict[str, str] | None,
        tokens: TokenServer | None,
        tls: Certificates | None,
        client_ca: bool,
        upstream: str,
        read_only: bool,
    ) -> dict[str, Any]:
        http_part: dict[str, Any] = {"addr": self.host, "secret": "x"}
        if tls:
            http_part["tls"] = {"certificate": str(tls.server[0]), "key": str(tls.server[1])}
            if client_ca:
                http_part["tls"]["clientcas"] = [str(tls.ca)]
        storage: dict[str, Any] = {"filesystem": {"rootdirectory": str(self.folder / "data")}, "delete": {"enabled": True}}
        if read_only:
            storage["maintenance"] = {"readonly": {"enabled": True}}
        config: dict[str, Any] = {"version": "0.1", "log": {"level": "info"}, "storage": storage, "http": http_part}
        if users is not None:
            lines = [
                subprocess.run(["htpasswd", "-nbB", "-C", "4", *pair], check=True, capture_output=True).stdout for pair in users.items()
            ]
            (self.folder / "htpasswd").write_bytes(b"".join(lines))
            config["auth"] = {"htpasswd": {"realm": "test", "path": str(self.folder / "htpasswd")}}
        if tokens is not None:
            config["auth"] = {
                "token": {
                    "realm": tokens.url,
                    "service": tokens.service,
                    "issuer": tokens.issuer,
                    "rootcertbundle": str(tokens.certificates.ca),
                }
            }
        if upstream:
            config["proxy"] = {"remoteurl": upstream}
        return config

    def start(self) -> DockerRegistry:
        path = self.folder / "config.yml"
        path.write_text(json.dumps(self.config))  # JSON is YAML
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [shutil.which("docker-registry") or str(ROOT / ".venv/bin/docker-registry"), "serve", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": "/usr/bin:/bin", "OTEL_TRACES_EXPORTER": "none"},
            )
        deadline = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"docker-registry does not start:\n{self.log[-2000:]}")
            time.sleep(0.01)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def __enter__(self) -> DockerRegistry:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """One request straight to the registry: status, headers (lower case), body. With the first user's password where there is one."""
        if self.tls:
            context = ssl.create_default_context(cafile=str(self.tls.ca))
            connection: http.client.HTTPConnection = http.client.HTTPSConnection("127.0.0.1", self.port, context=context, timeout=120)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        extra = {}
        if self.users:
            extra["Authorization"] = "Basic " + base64.b64encode(":".join(next(iter(self.users.items()))).encode()).decode()
        try:
            connection.request(method, path, body or None, {**extra, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def put_blob(self, repository: str, data: bytes) -> str:
        """Store a blob; its digest."""
        status, headers, answer = self.request("POST", f"/v2/{repository}/blobs/uploads/")
        assert status == 202, answer
        place = urllib.parse.urlsplit(headers["location"])
        digest = digest_of(data)
        target = f"{place.path}?{place.query}&digest={digest}"
        status, _, answer = self.request("PUT", target, data, {"Content-Type": "application/octet-stream"})
        assert status == 201, answer
        return digest

    def put_manifest(self, repository: str, tag: str, manifest: dict[str, Any], media_type: str = "") -> str:
        """Store a manifest under a tag (or "" for its digest); its digest."""
        raw = json.dumps(manifest).encode()
        kind = media_type or str(manifest["mediaType"])
        status, _, answer = self.request("PUT", f"/v2/{repository}/manifests/{tag or digest_of(raw)}", raw, {"Content-Type": kind})
        assert status == 201, answer
        return digest_of(raw)

    def has_blob(self, repository: str, digest: str) -> bool:
        return self.request("HEAD", f"/v2/{repository}/blobs/{digest}")[0] == 200


@contextlib.contextmanager
def beside_engine() -> Iterator[DockerRegistry]:
    """A registry that the tests and the engine under test reach by one name. KNARR_PEER_NETNS is the network namespace of a peer whose
    loopback is not this one's."""
    with DockerRegistry() as made:
        namespace = os.environ.get("KNARR_PEER_NETNS") if os.environ.get("KNARR_PEER_DOCKER_HOST") else None
        if namespace is None:
            yield made
            return
        # The same files and port, on the loopback of the engine's network namespace.
        command = ["ip", "netns", "exec", namespace, "docker-registry", "serve", str(made.folder / "config.yml")]
        other = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(1)
        try:
            yield made
        finally:
            other.kill()
            other.wait()


@dataclass
class Seeded:
    """An image that `seed` made."""

    repository: str
    tag: str
    digest: str
    manifest: dict[str, Any]
    config: bytes
    layers: list[bytes]


def layer(files: dict[str, bytes]) -> tuple[bytes, str]:
    """A gzip layer with these files, and the digest of its uncompressed form."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
    return gzip.compress(raw.getvalue(), 1, mtime=0), digest_of(raw.getvalue())


def seed(
    registry: DockerRegistry,
    repository: str,
    tag: str = "latest",
    *,
    files: Iterable[dict[str, bytes]] = ({"hello": b"hello\n"},),
    architecture: str = "amd64",
    oci: bool = False,
    config: dict[str, Any] | None = None,
) -> Seeded:
    """Put an image with one layer for each member of `files` into a registry; tag "" stores it by digest alone."""
    layers, diff_ids = [], []
    for content in files:
        data, diff_id = layer(content)
        layers.append(data)
        diff_ids.append(diff_id)
    document = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Cmd": ["/hello"], **(config or {})},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created_by": "test"} for _ in layers],
    }
    raw = json.dumps(document).encode()
    kinds = (
        (OCI_MANIFEST, "application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar+gzip")
        if oci
        else (MANIFEST, "application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.diff.tar.gzip")
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": kinds[0],
        "config": {"mediaType": kinds[1], "digest": registry.put_blob(repository, raw), "size": len(raw)},
        "layers": [{"mediaType": kinds[2], "digest": registry.put_blob(repository, data), "size": len(data)} for data in layers],
    }
    return Seeded(repository, tag, registry.put_manifest(repository, tag, manifest), manifest, raw, layers)


@dataclass
class Request:
    """What a client sent to one of the servers below. Header names are lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> dict[str, list[str]]:
        return urllib.parse.parse_qs(self.target.partition("?")[2])


@dataclass
class Reply:
    """An answer. `cut` closes the connection after so many bytes of the body, with a reset if `reset`; `wait` is a pause in seconds
    before the answer. `length` overrides Content-Length; None of it with `chunked`. `body` may be endless: an iterable of parts."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Iterable[bytes] = b""
    cut: int | None = None
    reset: bool = False
    wait: float = 0
    length: int | None = None


class Scripted:
    """A server whose every answer comes from `answer(request)`. `requests` is what it was asked. `tls` makes it HTTPS."""

    def __init__(self, answer: Callable[[Request], Reply], *, tls: Certificates | None = None, address: str = "127.0.0.1") -> None:
        self.answer = answer
        self.requests: list[Request] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:
                    self.close_connection = True  # the client went away, which some tests want

            def handle_one(self) -> None:
                outer._serve(self)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_CONNECT = handle_one

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def server_bind(self) -> None:
                """Without asking for the host's name, as the library does: that is a question to a DNS server."""
                socketserver.TCPServer.server_bind(self)
                self.server_name, self.server_port = self.server_address[0], self.server_address[1]

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self.server = Server((address, 0), Handler)
        self.port: int = self.server.server_address[1]
        self.host = f"{address}:{self.port}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*map(str, tls.server))
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def paths(self, method: str = "") -> list[str]:
        """The targets asked for, in order."""
        return [r.target for r in self.requests if not method or r.method == method]

    def _serve(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("content-length") or 0)
        body = handler.rfile.read(length) if length else self._chunked(handler)
        request = Request(handler.command, handler.path, {k.lower(): v for k, v in handler.headers.items()}, body)
        self.requests.append(request)
        reply = self.answer(request)
        if reply.wait:
            time.sleep(reply.wait)
        if reply.reset and reply.cut is None:
            self._drop(handler, reply)
            return
        whole = reply.body if isinstance(reply.body, bytes) else None
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        if whole is not None and not {"content-length", "transfer-encoding"} & {n.lower() for n in reply.headers}:
            handler.send_header("Content-Length", str(len(whole) if reply.length is None else reply.length))
        if whole is None:
            handler.send_header("Connection", "close")
            handler.close_connection = True
        handler.end_headers()
        if request.method == "HEAD":
            return
        sent = 0
        for part in [whole] if whole is not None else reply.body:
            assert isinstance(part, bytes)
            part = part if reply.cut is None else part[: reply.cut - sent]
            handler.wfile.write(part)
            sent += len(part)
            if reply.cut is not None and sent >= reply.cut:
                self._drop(handler, reply)
                return

    @staticmethod
    def _drop(handler: http.server.BaseHTTPRequestHandler, reply: Reply) -> None:
        handler.wfile.flush()
        if reply.reset:  # linger of 0 seconds: the close is a RST
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        else:
            handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True

    @staticmethod
    def _chunked(handler: http.server.BaseHTTPRequestHandler) -> bytes:
        if "chunked" not in handler.headers.get("transfer-encoding", ""):
            return b""
        parts = []
        while size := int(handler.rfile.readline().split(b";")[0], 16):
            parts.append(handler.rfile.read(size))
            handler.rfile.readline()
        handler.rfile.readline()
        return b"".join(parts)

    def __enter__(self) -> Scripted:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


class TokenServer(Scripted):
    """The authorisation service of Docker's token specification: GET with Basic, and OAuth2's POST unless `post` is false.

    Tokens are JWTs signed by openssl, which docker-registry trusts through the CA in `certificates`. `anonymous` lets everybody pull;
    `expires_in` is the life of a token in seconds.
    """

    issuer = "test issuer"
    service = "test registry"

    def __init__(
        self,
        users: dict[str, str],
        certificates: Certificates,
        *,
        anonymous: bool = False,
        post: bool = True,
        get: bool = True,
        expires_in: int = 300,
    ) -> None:
        super().__init__(self._grant)
        self.url += "/token"
        self.users = users
        self.certificates = certificates
        self.anonymous = anonymous
        self.post = post
        self.get = get
        self.expires_in = expires_in
        self.refresh_tokens: dict[str, str] = {}

    def _grant(self, request: Request) -> Reply:
        form = urllib.parse.parse_qs(request.body.decode()) if request.method == "POST" else request.query
        if request.method == "POST":
            if not self.post:
                return Reply(404)
            user = self._user_of_form(form)
        else:
            if not self.get:
                return Reply(405)
            user = self._user_of_basic(request.headers.get("authorization", ""))
        if user is None:
            errors = [{"code": "UNAUTHORIZED", "message": "authentication failed", "detail": None}]
            return Reply(401, {"Content-Type": "application/json"}, json.dumps({"errors": errors}).encode())
        scopes = [scope for text in form.get("scope", []) for scope in text.split()]
        token = self._sign(user, scopes)
        answer: dict[str, Any] = {"token": token, "access_token": token, "expires_in": self.expires_in}
        if user and ("offline_token" in form or form.get("access_type") == ["offline"]):
            answer["refresh_token"] = "refresh-" + user
            self.refresh_tokens["refresh-" + user] = user
        return Reply(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def _user_of_form(self, form: dict[str, list[str]]) -> str | None:
        if form.get("grant_type") == ["refresh_token"]:
            return self.refresh_tokens.get(form.get("refresh_token", [""])[0])
        name, password = form.get("username", [""])[0], form.get("password", [""])[0]
        return name if name and self.users.get(name) == password else None

    def _user_of_basic(self, header: str) -> str | None:
        if not header:
            return ""
        name, _, password = base64.b64decode(header.removeprefix("Basic ")).decode().partition(":")
        return name if self.users.get(name) == password else None

    def _sign(self, user: str, scopes: list[str]) -> str:
        access = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            granted = actions.split(",") if user else [a for a in actions.split(",") if a == "pull" and self.anonymous]
            access.append({"type": kind, "name": name, "actions": granted})
        now = int(time.time())
        certificate, key = self.certificates.server
        der = ssl.PEM_cert_to_DER_cert(certificate.read_text())
        head = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(der).decode()]}
        life = max(self.expires_in, 1)
        claims = {
            "iss": self.issuer, "sub": user, "aud": self.service, "exp": now + life, "nbf": now - 10, "iat": now,
            "jti": str(len(self.requests)), "access": access,
        }  # fmt: skip
        signed = b".".join(_base64url(json.dumps(part).encode()) for part in (head, claims))
        command = ["openssl", "dgst", "-sha256", "-sign", str(key)]
        signature = subprocess.run(command, input=signed, capture_output=True, check=True).stdout
        return (signed + b"." + _base64url(_raw_signature(signature))).decode()


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _raw_signature(der: bytes) -> bytes:
    """An ECDSA signature as JWTs have it, r and s of 32 bytes each, from openssl's SEQUENCE of two INTEGERs."""
    numbers, rest = [], der[2:]
    for _ in range(2):
        size = rest[1]
        numbers.append(int.from_bytes(rest[2 : 2 + size], "big").to_bytes(32, "big"))
        rest = rest[2 + size :]
    return b"".join(numbers)
