"""The client against Debian's docker-registry: plain, htpasswd, tokens, TLS, mirrors, proxies."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from engine.config import Settings
from engine.errors import Damaged, NotFound, Unauthorized
from engine.registry.auth import Credentials
from engine.registry.client import Registries, Remote
from engine.registry.errors import AccessDenied, ImageUnreachable, Unreachable
from engine.registry.rate import Rate
from engine.spec.image import Descriptor
from engine.spec.reference import parse
from tests.lib.registries import (
    MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Certificates,
    DockerRegistry,
    Reply,
    Request,
    Scripted,
    TokenServer,
    digest_of,
    seed,
)

ALICE = Credentials("alice", "correct horse")
BIG = bytes(range(256)) * 4096 * 5 + b"end"  # more than one read, and read past the HTTP library


def at(
    name: str, work: Callable[[Remote], Awaitable[Any]], *, credentials: Credentials | None = None, push: bool = False, **settings: Any
) -> Any:
    """Run `work` with the remote for an image's name, by a daemon with these settings and no configuration of this host's."""

    async def main() -> Any:
        registries = Registries(Settings(**{"registry_config_dirs": ["/nonexistent"], **settings}))
        async with registries.remote(parse(name), credentials, push=push) as remote:
            result = await work(remote)
        assert registries._live is None, "connections stay open after the last use"
        return result

    return trio.run(main)


def source(data: bytes) -> Callable[[int], AsyncIterator[bytes]]:
    async def open_at(offset: int) -> AsyncIterator[bytes]:
        for start in range(offset, len(data), 1 << 20):
            yield data[start : start + (1 << 20)]

    return open_at


def described(data: bytes) -> Descriptor:
    return Descriptor(digest=digest_of(data), size=len(data))


async def content(remote: Remote, data: bytes, start: int = 0, end: int | None = None) -> bytes:
    async with remote.blob(described(data), start, end) as blob:
        assert (blob.start, blob.total) == (start, len(data))
        return b"".join([chunk async for chunk in blob.chunks()])


def test_look_up_and_fetch(plain: DockerRegistry) -> None:
    image = seed(plain, "team/app", "v1")

    async def work(remote: Remote) -> None:
        found = await remote.resolve("v1")
        assert (found.digest, found.media_type) == (image.digest, MANIFEST)
        descriptor, raw = await remote.manifest("v1")
        assert descriptor == found and json.loads(raw) == image.manifest
        assert (await remote.manifest(image.digest))[1] == raw
        config = Descriptor(digest=image.manifest["config"]["digest"], size=len(image.config))
        assert await remote.document(config, 1 << 20) == image.config
        assert await content(remote, image.layers[0]) == image.layers[0]
        assert await remote.has_manifest(image.digest) and not await remote.has_manifest("sha256:" + "0" * 64)
        assert await remote.has_blob(config.digest) and not await remote.has_blob("sha256:" + "0" * 64)

    at(f"{plain.host}/team/app", work)


@pytest.mark.parametrize("reference", ["nope", "sha256:" + "0" * 64])
def test_an_unknown_image_is_not_found_in_dockers_words(plain: DockerRegistry, reference: str) -> None:
    separator = "@" if ":" in reference else ":"
    text = f"^manifest for {plain.host}/team/other{separator}{reference} not found: manifest unknown: manifest unknown$"
    with pytest.raises(NotFound, match=text):
        at(f"{plain.host}/team/other", lambda remote: remote.resolve(reference))


def test_upload_mount_list_delete(plain: DockerRegistry) -> None:
    repository = "up/one"
    heard: list[int] = []

    async def work(remote: Remote) -> None:
        await remote.upload(described(BIG), source(BIG), heard.append)
        await remote.upload(described(b"{}"), source(b"{}"))
        await remote.upload(described(b""), source(b""))
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(b"{}"), "size": 2},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest_of(BIG), "size": len(BIG)}],
        }
        raw = json.dumps(manifest).encode()
        assert await remote.put_manifest("t1", OCI_MANIFEST, raw, ("t2", "t3")) == digest_of(raw)
        assert sorted([tag async for tag in remote.tags()]) == ["t1", "t2", "t3"]
        assert (await remote.manifest("t2"))[1] == raw
        await remote.delete_manifest(digest_of(raw))
        with pytest.raises(NotFound):
            await remote.resolve("t1")

    at(f"{plain.host}/{repository}", work, push=True)
    assert plain.has_blob(repository, digest_of(BIG))
    assert heard[-1] == len(BIG) and heard == sorted(heard)

    async def mount(remote: Remote) -> None:
        assert await remote.mount(digest_of(BIG), repository)
        assert not await remote.mount(digest_of(b"elsewhere"), repository)
        await remote.upload(described(b"elsewhere"), source(b"elsewhere"))  # goes on with what the mount has opened

    at(f"{plain.host}/up/two", mount, push=True)
    assert plain.has_blob("up/two", digest_of(BIG)) and plain.has_blob("up/two", digest_of(b"elsewhere"))


def test_a_part_of_a_blob(plain: DockerRegistry) -> None:
    plain.put_blob("parts", BIG)

    async def work(remote: Remote) -> None:
        assert await content(remote, BIG, 1000) == BIG[1000:]
        assert await content(remote, BIG, 5, 10) == BIG[5:10]
        assert await content(remote, BIG, 0, 1) == BIG[:1]
        assert await content(remote, BIG) == BIG

    at(f"{plain.host}/parts", work)


def test_what_refers_to_a_manifest_by_the_tag_schema(plain: DockerRegistry) -> None:
    image = seed(plain, "signed", "v1", oci=True)
    signature = seed(plain, "signed", "", oci=True, config={"Labels": {"a": "b"}})
    entry = {"mediaType": OCI_MANIFEST, "digest": signature.digest, "size": 1, "artifactType": "application/x.signature"}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
    plain.put_manifest("signed", image.digest.replace(":", "-"), index)

    async def work(remote: Remote) -> None:
        assert [d.digest for d in await remote.referrers(image.digest)] == [signature.digest]
        assert len(await remote.referrers(image.digest, "application/x.signature")) == 1
        assert await remote.referrers(image.digest, "application/x.sbom") == ()
        assert await remote.referrers(signature.digest) == ()

    at(f"{plain.host}/signed", work)


# Who we are


def test_a_password(htpasswd: DockerRegistry) -> None:
    image = seed(htpasswd, "secret/app")
    name = f"{htpasswd.host}/secret/app"
    assert at(name, lambda remote: remote.resolve("latest"), credentials=ALICE).digest == image.digest
    with pytest.raises(Unauthorized, match="no basic auth credentials"):
        at(name, lambda remote: remote.resolve("latest"))
    with pytest.raises(Unauthorized, match=r"^unauthorized: authentication required$"):
        at(name, lambda remote: remote.resolve("latest"), credentials=Credentials("alice", "wrong"))
    at(name, lambda remote: remote.upload(described(BIG), source(BIG)), credentials=ALICE, push=True)
    assert htpasswd.has_blob("secret/app", digest_of(BIG))


def test_a_token_is_asked_for_once_and_for_what_is_needed(bearer: DockerRegistry, tokens: TokenServer) -> None:
    tokens.requests.clear()

    async def work(remote: Remote) -> None:
        await remote.upload(described(BIG), source(BIG))
        await remote.upload(described(b"{}"), source(b"{}"))
        assert await remote.has_blob(digest_of(BIG))

    at(f"{bearer.host}/by/token", work, credentials=ALICE, push=True)
    assert [r.query["scope"] for r in tokens.requests] == [["repository:by/token:pull,push"]]

    async def mount(remote: Remote) -> bool:
        return await remote.mount(digest_of(BIG), "by/token")

    assert at(f"{bearer.host}/by/other", mount, credentials=ALICE, push=True)
    assert tokens.requests[-1].query["scope"] == ["repository:by/other:pull,push", "repository:by/token:pull"]


def test_no_right_is_pull_access_denied_as_in_docker(bearer: DockerRegistry) -> None:
    text = f"^pull access denied for {bearer.host}/by/token, repository does not exist or may require 'docker login': denied: "
    with pytest.raises(AccessDenied, match=text + "requested access to the resource is denied$"):
        at(f"{bearer.host}/by/token", lambda remote: remote.resolve("latest"))
    with pytest.raises(Unauthorized, match="authentication failed"):
        at(f"{bearer.host}/by/token", lambda remote: remote.resolve("latest"), credentials=Credentials("alice", "wrong"))


@pytest.mark.parametrize("ways", [{"post": False}, {"get": False}], ids=["GET alone", "POST alone"])
def test_token_servers_that_know_one_way(certificates: Certificates, ways: dict[str, bool]) -> None:
    with TokenServer({"alice": "correct horse"}, certificates, **ways) as server, DockerRegistry(tokens=server) as registry:
        at(f"{registry.host}/x", lambda remote: remote.upload(described(b"1"), source(b"1")), credentials=ALICE, push=True)
        server.refresh_tokens["r1"] = "alice"
        if server.post:
            refresh = Credentials(identity_token="r1")
            assert at(f"{registry.host}/x", lambda remote: remote.has_blob(digest_of(b"1")), credentials=refresh)
            assert server.requests[-1].method == "POST" and b"grant_type=refresh_token" in server.requests[-1].body


def test_a_token_that_has_run_out_is_replaced_once(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    with TokenServer({"alice": "correct horse"}, certificates) as server, DockerRegistry(tokens=server) as registry:

        async def work(remote: Remote) -> None:
            await remote.upload(described(b"1"), source(b"1"))
            tokens = remote._live.authorizer._tokens
            for key, token in tokens.items():
                tokens[key] = type(token)(token.value[:-8] + "AAAAAAAA", token.until)
            asked = len(server.requests)
            assert await remote.has_blob(digest_of(b"1"))
            assert len(server.requests) == asked + 1

        at(f"{registry.host}/x", work, credentials=ALICE, push=True)


# How we get there


def test_tls_with_a_ca_of_its_own(secure: DockerRegistry, certificates: Certificates, tmp_path: Path) -> None:
    image = seed(secure, "tls/app")
    name = f"localhost:{secure.port}/tls/app"
    folder = tmp_path / f"localhost:{secure.port}"
    folder.mkdir()
    (folder / "ca.crt").write_bytes(certificates.ca.read_bytes())
    assert at(name, lambda r: r.resolve("latest"), registry_config_dirs=[str(tmp_path)]).digest == image.digest
    # Loopback is insecure: without a CA nothing is checked, a wrong CA is.
    assert at(name, lambda r: r.resolve("latest")).digest == image.digest
    (folder / "ca.crt").write_bytes(certificates.server[0].read_bytes())
    with pytest.raises(ImageUnreachable):
        at(name, lambda r: r.resolve("latest"), registry_config_dirs=[str(tmp_path)])


def test_an_unknown_certificate_is_refused_with_a_hint(secure: DockerRegistry, tmp_path: Path) -> None:
    (tmp_path / "reg.example").mkdir()
    (tmp_path / "reg.example/hosts.toml").write_text(f'server = "https://localhost:{secure.port}"\n')
    with pytest.raises(ImageUnreachable, match=r"x509: certificate signed by unknown authority \(.*ca\.crt"):
        at("reg.example/x", lambda r: r.resolve("latest"), registry_config_dirs=[str(tmp_path)])


def test_a_client_certificate(certificates: Certificates, tmp_path: Path) -> None:
    with DockerRegistry(tls=certificates, client_ca=True) as registry:
        folder = tmp_path / f"localhost:{registry.port}"
        folder.mkdir()
        (folder / "ca.crt").write_bytes(certificates.ca.read_bytes())
        with pytest.raises(ImageUnreachable):
            at(f"localhost:{registry.port}/x", lambda r: r.resolve("latest"), registry_config_dirs=[str(tmp_path)])
        (folder / "me.cert").write_bytes(certificates.client[0].read_bytes())
        (folder / "me.key").write_bytes(certificates.client[1].read_bytes())
        with pytest.raises(NotFound, match="manifest unknown"):
            at(f"localhost:{registry.port}/x", lambda r: r.resolve("latest"), registry_config_dirs=[str(tmp_path)])


def test_a_large_blob_over_tls(secure: DockerRegistry) -> None:
    secure.put_blob("big", BIG)
    assert at(f"{secure.host}/big", lambda remote: content(remote, BIG)) == BIG


def test_a_mirror_is_asked_first_and_may_fail(plain: DockerRegistry, tmp_path: Path) -> None:
    image = seed(plain, "mirrored/app")

    def answer(request: Request) -> Reply:
        return Reply(500)

    with Scripted(answer) as mirror:
        (tmp_path / "reg.example").mkdir()
        config = f'server = "{plain.url}"\n[host."http://127.0.0.1:1"]\n[host."{mirror.url}"]\n'
        (tmp_path / "reg.example/hosts.toml").write_text(config)
        found = at("reg.example/mirrored/app", lambda r: r.resolve("latest"), credentials=ALICE, registry_config_dirs=[str(tmp_path)])
        assert found.digest == image.digest
        assert all("ns=reg.example" in target for target in mirror.paths())
        assert not any("authorization" in request.headers for request in mirror.requests)


def test_a_pull_through_cache_serves_what_the_origin_no_longer_has(plain: DockerRegistry, tmp_path: Path) -> None:
    image = seed(plain, "cached/app")
    with DockerRegistry(upstream=plain.url) as cache:
        (tmp_path / "docker.io").mkdir()
        (tmp_path / "docker.io/hosts.toml").write_text(f'server = "http://127.0.0.1:1"\n[host."{cache.url}"]\n')

        async def work(remote: Remote) -> None:
            assert (await remote.manifest("latest"))[0].digest == image.digest
            assert await content(remote, image.layers[0]) == image.layers[0]

        at("cached/app", work, registry_config_dirs=[str(tmp_path)])
        # dockerd's flag is for Docker Hub alone
        at("cached/app", work, registry_mirrors=[cache.url])


def test_through_a_proxy(plain: DockerRegistry) -> None:
    image = seed(plain, "proxied/app")

    def answer(request: Request) -> Reply:  # a forward proxy for plain HTTP, for names that only it knows
        assert request.target.startswith("http://reg.example/v2/")
        status, headers, body = plain.request(
            request.method, request.target.removeprefix("http://reg.example"), headers={"Accept": request.headers["accept"]}
        )
        kept = {k: v for k, v in headers.items() if k in ("content-type", "docker-content-digest", "content-length")}
        return Reply(status, kept, body)

    with Scripted(answer) as proxy:
        url = f"http://user:secret@{proxy.host}"
        found = at(
            "reg.example/proxied/app", lambda r: r.manifest("latest"), http_proxy=url, https_proxy="http://127.0.0.1:1",
            insecure_registries=["reg.example"],
        )  # fmt: skip
        assert found[0].digest == image.digest
        assert all(r.headers["proxy-authorization"].startswith("Basic ") for r in proxy.requests)
        with pytest.raises(ImageUnreachable) as caught:
            at("reg.example/proxied/app", lambda r: r.resolve("latest"), https_proxy=url.replace(str(proxy.port), "1"))
        assert "secret" not in str(caught.value)


class Nameless(trio.abc.HostnameResolver):
    """Knows no name, without asking anybody."""

    async def getaddrinfo(self, host: bytes | None, port: Any, *_: int) -> Any:
        if (host or b"").replace(b".", b"").isdigit():
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def getnameinfo(self, *_: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(("name", "text"), [("127.0.0.1:1/x", "connection refused"), ("no.such.host.invalid/x", "no such host")])
def test_an_image_is_not_found_when_its_registry_cannot_be_reached(name: str, text: str) -> None:
    async def resolve(remote: Remote) -> None:
        trio.socket.set_custom_hostname_resolver(Nameless())
        await remote.resolve("latest")

    async def upload(remote: Remote) -> None:
        trio.socket.set_custom_hostname_resolver(Nameless())
        await remote.upload(described(b"1"), source(b"1"))

    with pytest.raises(NotFound, match=text) as caught:
        at(name, resolve)
    assert caught.value.status == 404
    with pytest.raises(Unreachable) as other:
        at(name, upload, push=True)
    assert other.value.status == 500


def test_a_rate_limit_is_kept() -> None:
    async def main() -> float:
        rate = Rate(1000)
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(rate.take, 2500)
        return trio.current_time() - start

    elapsed = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert 9.8 <= elapsed <= 10.1


def test_a_blob_is_limited_by_the_daemons_rate(plain: DockerRegistry) -> None:
    plain.put_blob("slow", BIG)

    async def work(remote: Remote) -> float:
        start = trio.current_time()
        assert await content(remote, BIG) == BIG
        return trio.current_time() - start

    assert at(f"{plain.host}/slow", work, limit_rate=len(BIG) * 4) >= 0.15


def test_memory_does_not_grow_with_the_blob(plain: DockerRegistry) -> None:
    """In a process of its own: the peak is a process's, for ever."""
    size = 100 << 20
    digest = plain.put_blob("flat", bytes(size))
    program = f"""
import resource, trio
from engine.config import Settings
from engine.registry.client import Registries
from engine.spec.image import Descriptor
from engine.spec.reference import parse
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
async def main():
    async with Registries(Settings()).remote(parse("{plain.host}/flat")) as remote:
        await remote.has_blob("{digest}")
        before = peak()
        async with remote.blob(Descriptor(digest="{digest}", size={size})) as blob:
            assert sum([len(chunk) async for chunk in blob.chunks()]) == {size}
        print(peak() - before)
trio.run(main)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert int(run.stdout) < 8192, "more than 8 MiB for a blob of 100 MiB"


def test_a_wrong_manifest_is_noticed(plain: DockerRegistry) -> None:
    image = seed(plain, "broken/app")
    path = plain.blobs / "sha256" / image.digest[7:9] / image.digest[7:] / "data"
    path.write_bytes(path.read_bytes() + b" ")
    try:
        with pytest.raises(Damaged, match="verification failed"):
            at(f"{plain.host}/broken/app", lambda remote: remote.manifest(image.digest))
    finally:
        path.unlink()
