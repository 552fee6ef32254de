"""`knarr registry serve --proxy`: a pull-through cache of Debian's docker-registry, and of an upstream that misbehaves."""

from __future__ import annotations

import json
import os
import socketserver
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.lib.daemon import Daemon
from tests.lib.distribution import ACCEPT, OCI_MANIFEST, Client, Served, basic, digest_of
from tests.lib.registries import DockerRegistry

Serve = Callable[..., Served]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    if os.geteuid() != 0:
        pytest.skip("a daemon needs root")
    ours = Daemon()
    try:
        yield ours.start()
    finally:
        ours.close()


@pytest.fixture
def serve(daemon: Daemon) -> Iterator[Serve]:
    started: list[Served] = []

    def start(*options: str, **more: Any) -> Served:
        started.append(Served(daemon, *options, **more))
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.fixture
def upstream() -> Iterator[DockerRegistry]:
    with DockerRegistry() as registry:
        yield registry


def blobs_of(raw: bytes) -> list[str]:
    manifest = json.loads(raw)
    return [one["digest"] for one in (manifest["config"], *manifest["layers"])]


def test_what_was_pulled_is_there_without_upstream(serve: Serve, upstream: DockerRegistry, name: str) -> None:
    """Manifests and blobs come through, and again from the cache when upstream is gone; tags too."""
    digest, raw = Client(upstream.url).push_image(name, "latest")
    cache = Client(serve("--proxy", upstream.url).url)
    path = f"/v2/{name}/manifests/latest"
    for _ in range(2):
        assert cache.head(path, Accept=ACCEPT).headers["docker-content-digest"] == digest
        answer = cache.get(path, Accept=ACCEPT)
        assert (answer.status, answer.body, answer.headers["content-type"]) == (200, raw, OCI_MANIFEST)
        for blob in blobs_of(raw):
            assert cache.head(f"/v2/{name}/blobs/{blob}").status == 200
            assert digest_of(cache.get(f"/v2/{name}/blobs/{blob}").body) == blob
        assert cache.get(f"/v2/{name}/manifests/{digest}").body == raw
        assert cache.get(f"/v2/{name}/tags/list").json() == {"name": name, "tags": ["latest"]}
        assert [one["digest"] for one in cache.get(f"/v2/{name}/referrers/{digest}").json()["manifests"]] == []
        upstream.stop()


def test_a_cache_is_apart_from_what_was_pushed_here(serve: Serve, upstream: DockerRegistry, name: str) -> None:
    """The same name is another repository in the cache; but a blob that is here already is not fetched again."""
    digest, raw = Client(upstream.url).push_image(name, "latest")
    pushed, cache = Client(serve().url), Client(serve("--proxy", upstream.url).url)
    other, _ = pushed.push_image(name, "latest")
    for blob in blobs_of(raw):
        pushed.push_blob(name, Client(upstream.url).get(f"/v2/{name}/blobs/{blob}").body)
    assert cache.get(f"/v2/{name}/manifests/latest", Accept=ACCEPT).headers["docker-content-digest"] == digest
    assert cache.get(f"/v2/{name}/manifests/{other}").code == "MANIFEST_UNKNOWN"
    for blob in blobs_of(raw):
        assert digest_of(cache.get(f"/v2/{name}/blobs/{blob}").body) == blob
    secret = pushed.push_blob(name, b"only here " + name.encode())
    assert cache.get(f"/v2/{name}/blobs/{secret}").status == 404
    assert name in cache.get("/v2/_catalog?n=1000").json()["repositories"]
    assert pushed.get("/v2/_catalog?n=1000").json()["repositories"].count(name) == 1


def test_a_tag_that_moved_upstream(serve: Serve, upstream: DockerRegistry, name: str) -> None:
    """A tag is asked for upstream at each pull."""
    origin, cache = Client(upstream.url), Client(serve("--proxy", upstream.url).url)
    for _ in range(2):
        digest, _ = origin.push_image(name, "latest")
        assert cache.get(f"/v2/{name}/manifests/latest", Accept=ACCEPT).headers["docker-content-digest"] == digest
    origin.request("DELETE", f"/v2/{name}/manifests/{digest}")
    assert cache.get(f"/v2/{name}/manifests/latest", Accept=ACCEPT).code == "MANIFEST_UNKNOWN"


def test_what_upstream_does_not_have(serve: Serve, upstream: DockerRegistry, name: str) -> None:
    Client(upstream.url).push_image(name, "latest")
    cache = Client(serve("--proxy", upstream.url).url)
    nowhere = digest_of(b"nowhere")
    assert cache.get(f"/v2/{name}/manifests/other", Accept=ACCEPT).code == "MANIFEST_UNKNOWN"
    for method in ("GET", "HEAD"):
        assert cache.request(method, f"/v2/{name}/blobs/{nowhere}").status == 404
        assert cache.request(method, f"/v2/{name}/unknown/manifests/latest").status == 404
    assert cache.get(f"/v2/{name}/unknown/tags/list").code == "NAME_UNKNOWN"


def test_a_cache_takes_no_pushes(serve: Serve, upstream: DockerRegistry, name: str) -> None:
    cache = Client(serve("--proxy", upstream.url).url)
    assert cache.request("POST", f"/v2/{name}/blobs/uploads/", b"").code == "UNSUPPORTED"


def test_upstream_credentials_are_the_operators(serve: Serve, tmp_path: Path, name: str) -> None:
    """The cache signs in upstream with its own name; a client's password never gets there, and the cache's is of no use here."""
    clients = tmp_path / "clients"
    subprocess.run(["htpasswd", "-cbB", "-C", "4", str(clients), "alice", "client-secret"], check=True, capture_output=True)
    with DockerRegistry(users={"cache": "upstream-secret"}) as upstream:
        _, raw = Client(upstream.url, authorization=basic("cache", "upstream-secret")).push_image(name, "latest")
        account = ["--proxy-username", "cache", "--proxy-password-stdin"]
        served = serve("--proxy", upstream.url, "--htpasswd", str(clients), *account, input=b"upstream-secret\n")
        path = f"/v2/{name}/manifests/latest"
        assert Client(served.url, authorization=basic("alice", "client-secret")).get(path, Accept=ACCEPT).body == raw
        assert Client(served.url, authorization=basic("cache", "upstream-secret")).get(path, Accept=ACCEPT).status == 401
        assert "secret" not in served.said()
        assert "alice" not in upstream.log
        anonymous = serve("--proxy", upstream.url)
        assert Client(anonymous.url).get(f"/v2/{name}x/manifests/latest", Accept=ACCEPT).status in (403, 404)


def test_several_upstreams_by_namespace(serve: Serve, name: str) -> None:
    """`ns` chooses among the named upstreams and no others; the reply says which; the same name is another repository in each."""
    with DockerRegistry() as first, DockerRegistry() as second:
        registries = [first, second]
        raws = [Client(registry.url).push_image(name, "latest")[1] for registry in registries]
        cache = Client(serve("--proxy", registries[0].url, "--proxy", registries[1].url).url)
        hosts = [registry.url.removeprefix("http://") for registry in registries]
        for host, raw in zip(hosts, raws, strict=True):
            answer = cache.get(f"/v2/{name}/manifests/latest?ns={host}", Accept=ACCEPT)
            assert (answer.body, answer.headers["oci-namespace"]) == (raw, host)
            layer = blobs_of(raw)[1]
            assert digest_of(cache.get(f"/v2/{name}/blobs/{layer}?ns={host}").body) == layer
        assert cache.get(f"/v2/{name}/manifests/latest", Accept=ACCEPT).body == raws[0]
        other = blobs_of(raws[1])[1]
        assert cache.get(f"/v2/{name}/blobs/{other}").status == 404
        assert cache.get(f"/v2/{name}/manifests/latest?ns=127.0.0.1:1", Accept=ACCEPT).code == "NAME_UNKNOWN"
        assert cache.get("/v2/_catalog?n=1000").json()["repositories"].count(name) == 1


class Upstream:
    """An upstream of one blob that sends it in pieces, as `plan` says: each request takes the next function of (handler, data, start)."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.plan: list[Callable[[Any, bytes, int], None]] = []
        self.requests: list[str] = []
        self.gate = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                if self.path == "/v2/":
                    self.send_response(200)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                wanted = self.headers.get("Range", "")
                outer.requests.append(wanted)
                start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
                self.send_response(206 if wanted else 200)
                if wanted:
                    self.send_header("Content-Range", f"bytes {start}-{len(outer.data) - 1}/{len(outer.data)}")
                self.send_header("Content-Length", str(len(outer.data) - start))
                self.end_headers()
                step = outer.plan.pop(0) if outer.plan else whole
                step(self, outer.data, start)

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()


def whole(handler: Any, data: bytes, start: int) -> None:
    handler.wfile.write(data[start:])


def broken_off(after: int) -> Callable[[Any, bytes, int], None]:
    def step(handler: Any, data: bytes, start: int) -> None:
        handler.wfile.write(data[start : start + after])
        handler.wfile.flush()
        handler.close_connection = True

    return step


@pytest.fixture
def odd_upstream() -> Iterator[Upstream]:
    upstream = Upstream(os.urandom(6_000_000))
    yield upstream
    upstream.close()


def test_a_blob_is_given_out_while_it_comes_and_fetched_once(serve: Serve, odd_upstream: Upstream, name: str) -> None:
    """Clients that ask for the same blob share one download, and have its beginning before upstream has sent its end."""

    def halting(handler: Any, data: bytes, start: int) -> None:
        handler.wfile.write(data[:4_000_000])
        handler.wfile.flush()
        odd_upstream.gate.wait(30)
        handler.wfile.write(data[4_000_000:])

    odd_upstream.plan = [halting]
    cache = serve("--proxy", odd_upstream.url)
    digest = digest_of(odd_upstream.data)
    connections = [Client(cache.url).connect() for _ in range(5)]
    for connection in connections:
        connection.request("GET", f"/v2/{name}/blobs/{digest}")
    answers = [connection.getresponse() for connection in connections]
    heads = [answer.read(2_000_000) for answer in answers]
    odd_upstream.gate.set()
    for head, answer, connection in zip(heads, answers, connections, strict=True):
        assert digest_of(head + answer.read()) == digest
        connection.close()
    assert odd_upstream.requests == [""]
    part = Client(cache.url).get(f"/v2/{name}/blobs/{digest}", Range="bytes=5999990-")
    assert part.body == odd_upstream.data[5999990:]
    assert odd_upstream.requests == [""]


def test_a_download_that_breaks_off_goes_on_where_it_was(serve: Serve, odd_upstream: Upstream, name: str) -> None:
    odd_upstream.plan = [broken_off(1_500_000), broken_off(2_000_000)]
    digest = digest_of(odd_upstream.data)
    cache = Client(serve("--proxy", odd_upstream.url).url)
    assert digest_of(cache.get(f"/v2/{name}/blobs/{digest}").body) == digest
    assert odd_upstream.requests == ["", "bytes=1500000-", "bytes=3500000-"]


def test_wrong_bytes_are_neither_kept_nor_given_out_whole(serve: Serve, odd_upstream: Upstream, name: str, daemon: Daemon) -> None:
    """When upstream sends something else the client's reply breaks off, and the next one asks upstream again."""

    def changed(handler: Any, data: bytes, start: int) -> None:
        handler.wfile.write(data[:-1] + bytes([data[-1] ^ 1]))

    odd_upstream.plan = [changed]
    digest = digest_of(odd_upstream.data)
    cache = Client(serve("--proxy", odd_upstream.url).url)
    connection = cache.connect()
    connection.request("GET", f"/v2/{name}/blobs/{digest}")
    with pytest.raises(Exception, match="IncompleteRead"):
        connection.getresponse().read()
    connection.close()
    assert not (daemon.data_root / "content/blobs/sha256" / digest.partition(":")[2]).exists()
    assert digest_of(cache.get(f"/v2/{name}/blobs/{digest}").body) == digest
    assert len(odd_upstream.requests) == 2
    deadline = time.monotonic() + 30
    while any((daemon.data_root / "content/ingest").iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_client_that_goes_ends_nobody_elses_download(serve: Serve, odd_upstream: Upstream, name: str) -> None:
    def halting(handler: Any, data: bytes, start: int) -> None:
        handler.wfile.write(data[:4_000_000])
        handler.wfile.flush()
        odd_upstream.gate.wait(30)
        handler.wfile.write(data[4_000_000:])

    odd_upstream.plan = [halting]
    cache = serve("--proxy", odd_upstream.url)
    digest = digest_of(odd_upstream.data)
    connections = [Client(cache.url).connect() for _ in range(2)]
    for connection in connections:
        connection.request("GET", f"/v2/{name}/blobs/{digest}")
    leaver, stayer = [connection.getresponse() for connection in connections]
    leaver.read(1000)
    leaver.close()
    connections[0].close()
    head = stayer.read(1000)
    odd_upstream.gate.set()
    assert digest_of(head + stayer.read()) == digest
    connections[1].close()
    assert odd_upstream.requests == [""]
