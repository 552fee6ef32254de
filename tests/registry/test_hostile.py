"""The client against servers that misbehave: what they may and may not make it do."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from engine.config import Settings
from engine.errors import Damaged, InvalidParameter, KnarrError, NotFound, Unauthorized
from engine.registry import retry
from engine.registry.auth import Authorizer, Challenge, Credentials
from engine.registry.client import Registries, Remote
from engine.registry.errors import Interrupted, ServerError, TooManyRequests
from engine.registry.hosts import Endpoint
from engine.spec.image import Descriptor
from engine.spec.reference import parse
from tests.lib.registries import (
    MANIFEST,
    OCI_INDEX,
    Certificates,
    Reply,
    Request,
    Scripted,
    digest_of,
)

ALICE = Credentials("alice", "correct horse")
DATA = bytes(range(256)) * 4096 * 3
BLOB = Descriptor(digest=digest_of(DATA), size=len(DATA))
DOCUMENT = {"schemaVersion": 2, "mediaType": MANIFEST, "config": {"mediaType": "x", "digest": digest_of(b"{}"), "size": 2}, "layers": []}
RAW = json.dumps(DOCUMENT).encode()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-off in hundredths."""
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.005)


def at(
    host: str, work: Callable[[Remote], Awaitable[Any]], *, credentials: Credentials | None = None, push: bool = False, **more: Any
) -> Any:
    async def main() -> Any:
        async with Registries(Settings(registry_config_dirs=["/nonexistent"], **more)).remote(
            parse(f"{host}/a/b"), credentials, push=push
        ) as remote:
            return await work(remote)

    return trio.run(main)


async def content(remote: Remote, descriptor: Descriptor = BLOB, start: int = 0, end: int | None = None) -> bytes:
    async with remote.blob(descriptor, start, end) as blob:
        return b"".join([chunk async for chunk in blob.chunks()])


def source(data: bytes) -> Callable[[int], AsyncIterator[bytes]]:
    async def open_at(offset: int) -> AsyncIterator[bytes]:
        for start in range(offset, len(data), 65536):
            yield data[start : start + 65536]

    return open_at


def manifest(raw: bytes = RAW, kind: str = MANIFEST, **headers: str) -> Reply:
    return Reply(200, {"Content-Type": kind, **headers}, raw)


# Redirects


def test_credentials_and_headers_stay_with_their_host_and_the_range_goes_on() -> None:
    def store(request: Request) -> Reply:
        start = int(request.headers["range"].removeprefix("bytes=").partition("-")[0])
        part = DATA[start:]
        return Reply(206, {"Content-Range": f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"}, part)

    with Scripted(store) as storage:

        def answer(request: Request) -> Reply:
            if "authorization" not in request.headers:
                return Reply(401, {"WWW-Authenticate": "Basic realm=x"})
            return Reply(307, {"Location": f"{storage.url}/signed?x=1"})

        with Scripted(answer) as registry:
            assert at(registry.host, lambda remote: content(remote, start=77), credentials=ALICE) == DATA[77:]
    (asked,) = storage.requests
    assert asked.headers["range"] == "bytes=77-" and "authorization" not in asked.headers and "cookie" not in asked.headers


def test_credentials_do_not_come_back_after_a_detour() -> None:
    def away(request: Request) -> Reply:
        return Reply(307, {"Location": f"{registry.url}/v2/a/b/elsewhere"})

    def answer(request: Request) -> Reply:
        if request.path.endswith("elsewhere"):
            return Reply(200, {}, DATA)
        return (
            Reply(307, {"Location": other.url}) if "authorization" in request.headers else Reply(401, {"WWW-Authenticate": "Basic realm=x"})
        )

    with Scripted(away) as other, Scripted(answer) as registry:
        assert at(registry.host, content, credentials=ALICE) == DATA
    assert "authorization" not in registry.requests[-1].headers


def test_redirects_end() -> None:
    with Scripted(lambda request: Reply(302, {"Location": request.target + "x"})) as registry:
        with pytest.raises(KnarrError, match="stopped after 10 redirects"):
            at(registry.host, content)
        assert len(registry.requests) <= 12


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://x/y", "http://user:pw@127.0.0.1/", "http://[", "gopher://x"])
def test_redirects_lead_to_the_web_alone(location: str) -> None:
    with Scripted(lambda request: Reply(302, {"Location": location})) as registry, pytest.raises(KnarrError, match="points to"):
        at(registry.host, content)


def test_tls_is_not_dropped(certificates: Certificates, tmp_path: Path) -> None:
    with (
        Scripted(lambda request: Reply(200, {}, DATA)) as other,
        Scripted(lambda request: Reply(307, {"Location": f"http://127.0.0.2:{other.port}/"}), tls=certificates) as registry,
    ):
        (tmp_path / "reg.example").mkdir()
        config = f'server = "https://localhost:{registry.port}"\nca = "{certificates.ca}"\n'
        (tmp_path / "reg.example/hosts.toml").write_text(config)

        async def main(insecure: list[str]) -> bytes:
            settings = Settings(registry_config_dirs=[str(tmp_path)], insecure_registries=insecure)
            registries = Registries(settings)
            # The test's server is on loopback, which would be insecure: ask for the name of the registry alone.
            endpoint = registries.hosts.endpoints("reg.example")[0]
            assert endpoint.url.startswith("https://")
            async with registries.remote(parse("reg.example/a/b")) as remote:
                session = remote._sessions[0]
                session.endpoint = msgspec.structs.replace(session.endpoint, insecure=bool(insecure))
                return await content(remote)

        with pytest.raises(KnarrError, match="without TLS: not followed"):
            trio.run(main, [])
        assert other.requests == []


# Tokens


def test_a_realm_without_tls_gets_no_credentials() -> None:
    for realm in (
        "http://auth.example/token",
        "ftp://auth.example",
        "/token",
        "",
        "https://u:p@auth.example/",
        "http://127.0.0.1.evil.example/",
    ):
        with pytest.raises(Unauthorized, match="asks for a token from"):
            Authorizer._realm(Endpoint("https://reg.example/v2"), Challenge("bearer", {"realm": realm}), ALICE)
    assert Authorizer._realm(Endpoint("http://lan/v2", insecure=True), Challenge("bearer", {"realm": "http://auth.lan/"}), ALICE)


@pytest.mark.parametrize(
    "answer",
    [
        Reply(200, {}, b"{}"),
        Reply(200, {}, b"not json"),
        Reply(200, {}, b'{"token": "a\\r\\nEvil: 1"}'),
        Reply(200, {}, b'{"token": "' + b"x" * (2 << 20) + b'"}'),
        Reply(200, {}, b"[" * 100000),
        Reply(302, {"Location": "http://127.0.0.1:1/"}),
        Reply(418, {}, b"teapot"),
    ],
    ids=["none", "garbage", "header injection", "huge", "deep", "redirect", "status"],
)
def test_token_servers_that_answer_nonsense(answer: Reply) -> None:
    def serve(request: Request) -> Reply:
        return answer if request.path == "/token" else Reply(401, {"WWW-Authenticate": f'Bearer realm="{registry.url}/token"'})

    with Scripted(serve) as registry:
        with pytest.raises(KnarrError, match="token"):
            at(registry.host, lambda remote: remote.resolve("x"), credentials=ALICE)
        assert len([r for r in registry.requests if r.path == "/token"]) == 1


@pytest.mark.parametrize("header", ['Bearer realm="', "Bearer", "," * 9000, "Basic realm=x, Bearer x", "Digest realm=x", "\xff\xfe"])
def test_strange_challenges_are_an_error_not_a_loop(header: str) -> None:
    with Scripted(lambda request: Reply(401, {"WWW-Authenticate": header})) as registry:
        with pytest.raises(KnarrError):
            at(registry.host, lambda remote: remote.resolve("x"), credentials=ALICE)
        assert len(registry.requests) <= 6


def test_a_refused_token_is_renewed_once() -> None:
    def serve(request: Request) -> Reply:
        if request.path == "/token":
            return Reply(200, {}, json.dumps({"token": f"t{len(registry.requests)}"}).encode())
        return Reply(401, {"WWW-Authenticate": f'Bearer realm="{registry.url}/token"'})

    with Scripted(serve) as registry:
        with pytest.raises(Unauthorized):
            at(registry.host, lambda remote: remote.has_blob(BLOB.digest), credentials=ALICE)
        assert [r.path for r in registry.requests].count("/token") == 1


# Trouble that passes, and trouble that does not


class Failing:
    """Gives the replies in their order, then what `then` says."""

    def __init__(self, *replies: Reply, then: Callable[[Request], Reply]) -> None:
        self.replies = list(replies)
        self.then = then
        self.lock = threading.Lock()

    def __call__(self, request: Request) -> Reply:
        with self.lock:
            return self.replies.pop(0) if self.replies else self.then(request)


@pytest.mark.parametrize(
    "trouble",
    [
        [Reply(500), Reply(503), Reply(429, {"Retry-After": "0"}), Reply(502)],
        [Reply(reset=True), Reply(reset=True)],
    ],
    ids=["statuses", "resets"],
)
def test_what_passes_is_tried_again(trouble: list[Reply]) -> None:
    with Scripted(Failing(*trouble, then=lambda request: Reply(200, {}, DATA))) as registry:

        async def work(remote: Remote) -> bytes:
            remote._sessions[-1].answered = True
            remote._sessions[:-1] = []
            return await content(remote)

        assert at(registry.host, work) == DATA
        assert len(registry.requests) == len(trouble) + 1


def test_what_lasts_is_an_error_after_the_attempts() -> None:
    with Scripted(lambda request: Reply(503, {}, b'{"message": "no room"}')) as registry:
        with pytest.raises(ServerError, match=r"503.*no room"):
            at(registry.host, content, max_download_attempts=3)
        assert len(registry.requests) == 3


def test_a_long_retry_after_is_told_not_waited_for() -> None:
    with Scripted(lambda request: Reply(429, {"Retry-After": "86400"})) as registry:
        with pytest.raises(TooManyRequests) as caught:
            at(registry.host, content)
        assert caught.value.after == 86400 and len(registry.requests) == 1


def test_a_retry_after_is_kept() -> None:
    async def work(remote: Remote) -> float:
        start = trio.current_time()
        assert await content(remote) == DATA
        return trio.current_time() - start

    with Scripted(Failing(Reply(429, {"Retry-After": "1"}), then=lambda request: Reply(200, {}, DATA))) as registry:
        assert at(registry.host, work) >= 0.99


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("cut", [1000, 2_000_000])
def test_a_body_that_is_cut_is_interrupted_and_can_go_on(cut: int, reset: bool) -> None:
    def serve(request: Request) -> Reply:
        start = int(request.headers.get("range", "bytes=0-")[6:].rstrip("-"))
        headers = {"Content-Range": f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"} if start else {}
        return Reply(206 if start else 200, headers, DATA[start:], cut=None if start else cut, reset=reset and not start)

    async def work(remote: Remote) -> None:
        got = b""

        async def read() -> None:
            nonlocal got
            async with remote.blob(BLOB) as blob:
                async for chunk in blob.chunks():
                    got += chunk

        with pytest.raises(Interrupted):
            await read()
        assert len(got) <= cut and (reset or len(got) == cut)
        assert got + await content(remote, start=len(got)) == DATA

    with Scripted(serve) as registry:
        at(registry.host, work)


# Lies


@pytest.mark.parametrize(
    ("reply", "error", "text"),
    [
        (Reply(200, {}, DATA + b"x"), KnarrError, "its descriptor says"),
        (Reply(200, {}, DATA[:-1]), KnarrError, "its descriptor says"),
        (Reply(206, {"Content-Range": f"bytes 5-{len(DATA) - 1}/{len(DATA)}"}, DATA[5:]), KnarrError, "asked for was 9-"),
        (Reply(206, {}, DATA[9:]), KnarrError, "not with which"),
        (Reply(206, {"Content-Range": "bytes 9-8/9"}, b""), KnarrError, "says|asked"),
        (Reply(206, {"Content-Range": f"bytes 9-{len(DATA)}/{len(DATA)}"}, DATA[9:] + b"x"), KnarrError, "asked for"),
        (Reply(206, {"Content-Range": f"bytes 9-{len(DATA) - 1}/{len(DATA)}"}, DATA), KnarrError, "sends more"),
        (Reply(206, {"Content-Range": f"bytes 9-{len(DATA) - 1}/{len(DATA)}"}, DATA[9:-9]), Interrupted, "9 bytes are missing"),
        (Reply(404), NotFound, "not found"),
        (Reply(416), KnarrError, "416"),
    ],
)
def test_blobs_of_another_size_or_place(reply: Reply, error: type[KnarrError], text: str) -> None:
    with Scripted(lambda request: reply) as registry, pytest.raises(error, match=text):
        at(registry.host, lambda remote: content(remote, start=9))


def test_a_server_without_ranges_sends_everything() -> None:
    async def work(remote: Remote) -> None:
        async with remote.blob(BLOB, 1000, 2000) as blob:
            assert blob.start == 0 and b"".join([chunk async for chunk in blob.chunks()]) == DATA

    with Scripted(lambda request: Reply(200, {}, DATA)) as registry:
        at(registry.host, work)


def endless() -> Iterator[bytes]:
    while True:
        yield b" " * 65536


@pytest.mark.parametrize("status", [200, 404, 500])
def test_an_endless_answer_is_left(status: int) -> None:
    with Scripted(lambda request: Reply(status, {"Content-Type": MANIFEST}, endless())) as registry, pytest.raises(KnarrError):
        at(registry.host, lambda remote: remote.manifest("x"), max_download_attempts=1)


def test_an_endless_blob_is_left_at_its_size() -> None:
    with Scripted(lambda request: Reply(200, {}, endless())) as registry, pytest.raises(KnarrError, match="sends more than"):
        at(registry.host, content)


@pytest.mark.parametrize(
    ("reply", "error", "text"),
    [
        (manifest(b"{" * 100000), InvalidParameter, "is not one"),
        (manifest(RAW, **{"Docker-Content-Digest": "sha256:" + "0" * 64}), Damaged, "verification failed"),
        (manifest(RAW, OCI_INDEX), InvalidParameter, "was sent as"),
        (manifest(json.dumps({**DOCUMENT, "manifests": []}).encode()), InvalidParameter, "both"),
        (manifest(b'{"schemaVersion":1}', "application/vnd.docker.distribution.manifest.v1+prettyjws"), InvalidParameter, "schema 1"),
        (manifest(RAW + b" " * (5 << 20)), KnarrError, "longer than"),
        (manifest(b""), InvalidParameter, "is not one"),
    ],
)
def test_manifests_that_are_not(reply: Reply, error: type[KnarrError], text: str) -> None:
    with Scripted(lambda request: reply) as registry, pytest.raises(error, match=text):
        at(registry.host, lambda remote: remote.manifest("x"))


def test_another_manifest_than_the_digest_asked_for() -> None:
    other = "sha256:" + "1" * 64
    lie = manifest(RAW, **{"Docker-Content-Digest": other})
    for reply in (manifest(RAW), lie):
        with Scripted(lambda request, reply=reply: reply) as registry, pytest.raises(Damaged):
            at(registry.host, lambda remote: remote.manifest(other))
    with Scripted(lambda request: manifest(RAW, **{"Docker-Content-Digest": digest_of(RAW)})) as registry, pytest.raises(Damaged):
        at(registry.host, lambda remote: remote.resolve(other))


@pytest.mark.parametrize("name", ["sha256:0", "md5:" + "0" * 32, "../../x", "a?b", "", "sha256:" + "0" * 63 + "/"])
def test_what_is_no_tag_and_no_digest_is_not_asked_for(name: str) -> None:
    with Scripted(lambda request: manifest()) as registry:
        with pytest.raises(InvalidParameter):
            at(registry.host, lambda remote: remote.manifest(name))
        with pytest.raises(InvalidParameter):
            at(registry.host, lambda remote: remote.resolve(name))
        with pytest.raises(InvalidParameter):
            at(registry.host, lambda remote: content(remote, Descriptor(digest=name)))
        assert registry.requests == []


def test_what_drips_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def drip() -> Iterator[bytes]:
        while True:
            yield b" "
            threading.Event().wait(0.05)

    monkeypatch.setattr("engine.registry.transport.DOCUMENT_TIMEOUT", 0.2)
    with Scripted(lambda request: Reply(200, {"Content-Type": MANIFEST}, drip())) as registry, pytest.raises(Interrupted, match="not done"):
        at(registry.host, lambda remote: remote.manifest("x"))


def test_what_stalls_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    def stall() -> Iterator[bytes]:
        # From here on: whatever came before may have taken longer on a busy machine.
        monkeypatch.setattr("engine.registry.transport.READ_TIMEOUT", 0.2)
        yield DATA[:100_000]
        gate.wait(60)

    try:
        with Scripted(lambda r: Reply(200, {"Content-Length": str(len(DATA))}, stall())) as registry:
            with pytest.raises(Interrupted, match="nothing came"):
                at(registry.host, content)
            gate.set()
    finally:
        gate.set()


def test_head_is_not_needed() -> None:
    def serve(request: Request) -> Reply:
        return Reply(405) if request.method == "HEAD" else manifest()

    with Scripted(serve) as registry:
        assert at(registry.host, lambda remote: remote.resolve("x")).digest == digest_of(RAW)


def test_tags_in_pages_that_end_or_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def pages(request: Request) -> Reply:
        last = int(request.query.get("last", ["0"])[0])
        link = {"Link": f'</v2/a/b/tags/list?last={last + 2}&n=2>; rel="next"'} if last < 4 else {}
        return Reply(200, link, json.dumps({"tags": [f"t{last}", f"t{last + 1}"]}).encode())

    async def work(remote: Remote) -> list[str]:
        return [tag async for tag in remote.tags()]

    with Scripted(pages) as registry:
        assert at(registry.host, work) == ["t0", "t1", "t2", "t3", "t4", "t5"]

    monkeypatch.setattr("engine.registry.client._MOST_PAGES", 20)
    with (
        Scripted(lambda r: Reply(200, {"Link": f'<{r.target}>; rel="next"'}, b'{"tags": ["x"]}')) as registry,
        pytest.raises(KnarrError, match="does not end"),
    ):
        at(registry.host, work)
    with (
        Scripted(lambda r: Reply(200, {"Link": '<http://127.0.0.1:1/x>; rel="next"'}, b'{"tags": ["x"]}')) as registry,
        pytest.raises(KnarrError, match="another host"),
    ):
        at(registry.host, work)


# Uploads


class Uploads:
    """A registry's side of one upload. `troubles` are answered instead of taking a PATCH, with so many of its bytes kept."""

    def __init__(self, *troubles: tuple[Reply, int], least: int = 0, patch: bool = True, most: int = 1 << 40) -> None:
        self.troubles = list(troubles)
        self.least = least
        self.patch = patch
        self.most = most
        self.data = b""
        self.done = b""

    def __call__(self, request: Request) -> Reply:
        place = {"Location": "/v2/a/b/blobs/uploads/1?state=x"}
        if request.method == "POST":
            self.data = b""
            return Reply(202, {**place, **({"OCI-Chunk-Min-Length": str(self.least)} if self.least else {})})
        if request.method == "PATCH":
            if not self.patch:
                return Reply(405)
            if len(request.body) > self.most:
                return Reply(413)
            start = int(request.headers["content-range"].partition("-")[0])
            if start != len(self.data):
                return Reply(416, {**place, "Range": f"0-{len(self.data) - 1}"})
            if self.troubles:
                reply, kept = self.troubles.pop(0)
                self.data += request.body[:kept]
                return reply
            self.data += request.body
            return Reply(202, {**place, "Range": f"0-{len(self.data) - 1}"})
        if request.method == "PUT":
            self.done = self.data + request.body
            right = digest_of(self.done) == request.query["digest"][0]
            return Reply(201 if right else 400, {"Docker-Content-Digest": request.query["digest"][0]})
        if request.method == "GET" and "uploads" in request.path:
            return Reply(204, {**place, "Range": f"0-{max(len(self.data) - 1, 0)}"})
        return Reply(200)


def upload(server: Uploads, **more: Any) -> Scripted:
    with Scripted(server) as registry:
        at(registry.host, lambda remote: remote.upload(BLOB, source(DATA), lambda sent: None), push=True, **more)
        assert server.done == DATA
        return registry


def sent(registry: Scripted) -> int:
    return sum(len(request.body) for request in registry.requests)


def test_an_upload_goes_on_from_where_the_registry_has_got_to(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = 1_500_000
    registry = upload(Uploads((Reply(reset=True), kept)))
    assert sent(registry) == 2 * len(DATA) - kept
    registry = upload(Uploads((Reply(500), kept), (Reply(503), 0), (Reply(429, {"Retry-After": "0"}), 1000)))
    assert sent(registry) < 4 * len(DATA)


def test_an_upload_that_the_registry_forgot_begins_anew() -> None:
    assert sent(upload(Uploads((Reply(202, {"Range": "0-1048575"}), 1 << 20), (Reply(404), 0)))) > len(DATA)


def test_chunks_are_as_large_as_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.registry.upload.CHUNK", 1 << 20)
    registry = upload(Uploads(least=2_000_000))
    assert [len(r.body) for r in registry.requests if r.method == "PATCH"] == [2_000_000, len(DATA) - 2_000_000]
    registry = upload(Uploads())
    assert {len(r.body) for r in registry.requests if r.method == "PATCH"} == {1 << 20}


def test_smaller_chunks_where_a_proxy_limits_requests() -> None:
    registry = upload(Uploads(most=1_500_000))
    assert len([r for r in registry.requests if r.method == "PATCH"]) == 4


def test_one_put_where_patch_is_not_known() -> None:
    registry = upload(Uploads(patch=False))
    assert len(registry.requests[-1].body) == len(DATA)


def test_an_upload_that_never_gets_on_is_an_error() -> None:
    with Scripted(Uploads(*[(Reply(500), 0)] * 50)) as registry, pytest.raises(ServerError):
        at(registry.host, lambda remote: remote.upload(BLOB, source(DATA), lambda sent: None), push=True)


def test_a_blob_that_is_not_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    with Scripted(Uploads()) as registry, pytest.raises(KnarrError):
        at(registry.host, lambda remote: remote.upload(BLOB, source(DATA[:-1] + b"!"), lambda sent: None), push=True)
    with Scripted(Uploads()) as registry, pytest.raises(Damaged, match="ends at byte"):
        at(registry.host, lambda remote: remote.upload(BLOB, source(DATA[:-1]), lambda sent: None), push=True)


def test_an_upload_elsewhere_takes_no_credentials_along() -> None:
    with Scripted(lambda request: Reply(201)) as other:

        def serve(request: Request) -> Reply:
            if "authorization" not in request.headers:
                return Reply(401, {"WWW-Authenticate": "Basic realm=x"})
            return Reply(202, {"Location": f"{other.url}/upload"}) if request.method == "POST" else Reply(200)

        with Scripted(serve) as registry:
            small = Descriptor(digest=digest_of(b"x"), size=1)
            at(registry.host, lambda remote: remote.upload(small, source(b"x"), lambda sent: None), credentials=ALICE, push=True)
        assert other.requests and not any("authorization" in request.headers for request in other.requests)


def test_a_registry_that_stores_another_digest() -> None:
    def serve(request: Request) -> Reply:
        return Reply(200 if request.method == "GET" else 201, {"Docker-Content-Digest": "sha256:" + "0" * 64})

    with Scripted(serve) as registry, pytest.raises(Damaged, match="stored sha256:000"):
        at(registry.host, lambda remote: remote.put_manifest("t", MANIFEST, RAW), push=True)


def test_a_cancelled_download_closes_its_connection() -> None:
    def slow() -> Iterator[bytes]:
        yield b"x" * 65536
        threading.Event().wait(5)

    async def work(remote: Remote) -> bool:
        with trio.move_on_after(0.3) as scope:
            await content(remote)
        return scope.cancelled_caught

    with Scripted(lambda request: Reply(200, {"Content-Length": str(len(DATA))}, slow())) as registry:
        assert at(registry.host, work)
