"""Registries and images that mean harm: refused with the reason, and nothing of them stays. Manifests alone are `unit/test_manifest`'s,
members of layers `unit/test_unpack`'s, the client's own answers `test_hostile`'s; here each goes through a whole pull."""

from __future__ import annotations

import base64
import gzip
import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engine.config import Settings
from engine.errors import KnarrError
from engine.registry import retry
from engine.registry.auth import Credentials
from engine.registry.client import Registries
from engine.store.unpack import Limits
from tests.lib.daemon import Daemon
from tests.lib.images import entry, image_config, tar
from tests.lib.leaks import Leaks
from tests.lib.pulling import Bench, run
from tests.lib.registries import MANIFEST, OCI_INDEX, OCI_MANIFEST, Reply, Request, Scripted, digest_of

CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.001)


class Hostile:
    """A registry that says whatever it is given: documents by tag and digest, blobs by digest, answers by a part of the address."""

    def __init__(self) -> None:
        self.documents: dict[str, tuple[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.answers: dict[str, Callable[[Request], Reply]] = {}

    def answer(self, request: Request) -> Reply:
        """For `Scripted`."""
        for part, make in self.answers.items():
            if part in request.target:
                return make(request)
        name = request.path.rpartition("/")[2]
        if "/manifests/" in request.path and name in self.documents:
            kind, raw = self.documents[name]
            return Reply(200, {"Content-Type": kind, "Docker-Content-Digest": digest_of(raw)}, raw)
        if name in self.blobs:
            return Reply(200, {}, self.blobs[name])
        return Reply(404, {}, b"{}")

    def blob(self, data: bytes, kind: str, **changes: Any) -> dict[str, Any]:
        """Keep a blob; its descriptor, with lies."""
        self.blobs[digest_of(data)] = data
        return {"mediaType": kind, "digest": digest_of(data), "size": len(data), **changes}

    def document(self, document: Any, kind: str = OCI_MANIFEST, *, tag: str = "v", **changes: Any) -> dict[str, Any]:
        """Keep a manifest or index under a tag and its digest; its descriptor."""
        raw = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.documents[digest_of(raw)] = self.documents[tag] = kind, raw
        return {"mediaType": kind, "digest": digest_of(raw), "size": len(raw), **changes}

    def image(
        self, archives: list[bytes], *, packed: list[bytes] | None = None, diff_ids: list[str] | None = None, **changes: Any
    ) -> dict[str, Any]:
        """A manifest that is right but for what is changed."""
        ids = diff_ids if diff_ids is not None else [digest_of(one) for one in archives]
        packed = packed or [gzip.compress(one, 1, mtime=0) for one in archives]
        return {
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": self.blob(image_config(ids), CONFIG),
            "layers": [self.blob(data, LAYER) for data in packed], **changes,
        }  # fmt: skip


GOOD = tar([entry("good", data=b"good" * 1000)])


def refused(
    build: Callable[[Hostile], object], text: str, *, status: int | None = None, limits: Limits | None = None, **options: Any
) -> Scripted:
    """Pull what `build` makes; the error's text and status, and that nothing stays."""
    hostile = Hostile()
    build(hostile)
    with Scripted(hostile.answer) as server:

        async def work(bench: Bench) -> None:
            with pytest.raises(KnarrError, match=text) as caught:
                await bench.pull("v", **options)
            assert all(char.isprintable() or char == "\n" for char in str(caught.value))
            assert len(str(caught.value)) < 2000
            if status is not None:
                assert caught.value.status == status
            bench.nothing_left()
            assert len(bench.images.store) == 0

        registries = Registries(Settings(registry_config_dirs=["/nonexistent"], max_download_attempts=2))
        run(work, registry=registries, repository=f"{server.host}/hostile/image", limits=limits, attempts=2)
    return server


# Documents


def nested(depth: int) -> Callable[[Hostile], object]:
    def build(hostile: Hostile) -> None:
        inner = hostile.document(hostile.image([GOOD]))
        for _ in range(depth):
            inner = hostile.document({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [inner]}, OCI_INDEX)

    return build


def cycle(hostile: Hostile) -> None:
    """An index whose member is always the index again, whatever its digest says."""
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{"mediaType": OCI_INDEX, "digest": digest_of(b"x"), "size": 9}]}
    hostile.document(index, OCI_INDEX)
    hostile.documents[digest_of(b"x")] = hostile.documents["v"]
    hostile.answers[f"/manifests/{digest_of(b'x')}"] = lambda request: Reply(200, {"Content-Type": OCI_INDEX}, hostile.documents["v"][1])


def confused(content_type: str, own: str) -> Callable[[Hostile], object]:
    def build(hostile: Hostile) -> None:
        hostile.document({**hostile.image([GOOD]), "mediaType": own}, content_type)

    return build


DOCUMENTS: dict[str, tuple[Callable[[Hostile], object], str]] = {
    "an index in an index in an index": (nested(6), "nested too deeply|hops"),
    "a cycle": (cycle, "verification failed"),
    "lists in lists": (lambda h: h.document(b'{"schemaVersion":2,"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}"), "manifest|recursion"),
    "a million keys": (
        lambda h: h.document({"schemaVersion": 2, "annotations": {str(n): 0 for n in range(300_000)}}), "manifest"
    ),
    "manifest and index": (lambda h: h.document({**h.image([GOOD]), "manifests": []}), "index"),
    "a header that lies": (confused(OCI_INDEX, OCI_MANIFEST), "media type|sent as"),
    "a body that lies": (confused(OCI_MANIFEST, OCI_INDEX), "media type|sent as"),
    "schema 1": (lambda h: h.document({"schemaVersion": 1, "fsLayers": []}, SCHEMA1), "schema 1"),
    "schema 1 under another name": (lambda h: h.document({"schemaVersion": 1, "fsLayers": []}, MANIFEST), "schema 1"),
    "schema 3": (lambda h: h.document({**h.image([GOOD]), "schemaVersion": 3}), "schema version 3|schemaVersion"),
    "no JSON": (lambda h: h.document(b"\x1b[31m<html>"), "malformed|manifest"),
    "foreign layers": (lambda h: h.document(h.image([GOOD], layers=[h.blob(GOOD, LAYER, urls=["http://127.0.0.1:1/x"])])), "foreign"),
    "a layer of a strange kind": (lambda h: h.document(h.image([GOOD], layers=[h.blob(GOOD, "text/\x1b[31mred")])), "unknown media type"),
    "a chart": (lambda h: h.document(h.image([GOOD], config=h.blob(b"{}", "application/vnd.cncf.helm.config.v1+json"))), "is no image but"),
    "a path for a digest": (lambda h: h.document(h.image([GOOD], layers=[h.blob(GOOD, LAYER, digest="sha256:../../etc/x")])), "no digest"),
    "a layer of 8 TiB": (lambda h: h.document(h.image([GOOD], layers=[h.blob(GOOD, LAYER, size=1 << 43)])), "size"),
    "a layer of less than nothing": (lambda h: h.document(h.image([GOOD], layers=[h.blob(GOOD, LAYER, size=-1)])), "size"),
    "a configuration of a gigabyte": (lambda h: h.document(h.image([GOOD], config=h.blob(b"{}", CONFIG, size=1 << 30))), "size"),
    "a configuration that is none": (lambda h: h.document(h.image([GOOD], config=h.blob(b"[1]", CONFIG))), "configuration is malformed"),
    "a configuration without layers": (lambda h: h.document(h.image([GOOD], diff_ids=[])), "0 diff_ids"),
    "a configuration with a path": (lambda h: h.document(h.image([GOOD], diff_ids=["../../x"])), "no diff_id"),
    "an index of nothing": (lambda h: h.document({"schemaVersion": 2, "manifests": []}, OCI_INDEX), "no matching manifest"),
    "a platform in colour": (
        lambda h: h.document(
            {"schemaVersion": 2, "manifests": [h.document(h.image([GOOD]), platform={"os": "\x1b[31m", "architecture": "\x07"})]}, OCI_INDEX
        ),
        "no matching manifest",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents(name: str) -> None:
    build, text = DOCUMENTS[name]
    server = refused(build, text)
    assert len(server.requests) < 30
    assert not [path for path in server.paths() if path.startswith("/x")]


def test_a_member_of_another_size_than_the_index_says() -> None:
    def build(hostile: Hostile) -> None:
        member = hostile.document(hostile.image([GOOD]))
        hostile.document({"schemaVersion": 2, "manifests": [{**member, "size": member["size"] + 1}]}, OCI_INDEX)

    refused(build, "bytes, not", status=400)


# Layers


def zeros(size: int) -> bytes:
    return tar([entry("zeros", data=bytes(size))])


def zstd(data: bytes, *options: str) -> bytes:
    return subprocess.run(["zstd", "-q", "-c", *options], input=data, capture_output=True, check=True).stdout


def wide(data: bytes) -> bytes:
    """A zstd frame of one raw block whose header asks for a window of 512 MiB (RFC 8878, 3.1.1)."""
    return b"\x28\xb5\x2f\xfd\x00" + bytes([(29 - 10) << 3]) + (len(data) << 3 | 1).to_bytes(3, "little") + data


LAYERS: dict[str, tuple[Callable[[Hostile], object], str]] = {
    "another digest": (lambda h: h.blobs.update(dict.fromkeys(_layers(h, GOOD), gzip.compress(b"evil"))), "verification|descriptor"),
    "the same size, other bytes": (lambda h: h.blobs.update({d: bytes(len(h.blobs[d])) for d in _layers(h, GOOD)}), "verification failed"),
    "shorter than it says": (
        lambda h: h.document(h.image([GOOD], layers=[h.blob(gzip.compress(GOOD), LAYER, size=9_000_000)])), "descriptor says"
    ),
    "longer than it says": (lambda h: h.document(h.image([GOOD], layers=[h.blob(gzip.compress(GOOD), LAYER, size=10)])), "descriptor says"),
    "nothing where something is": (
        lambda h: h.document(h.image([GOOD], layers=[h.blob(gzip.compress(GOOD), LAYER, size=0)])), "verification"
    ),
    "another content than the configuration says": (lambda h: h.document(h.image([GOOD], diff_ids=[digest_of(b"x")])), "don't match image"),
    "a gzip bomb": (lambda h: h.document(h.image([zeros(30 << 20)])), "more than 100 to one"),
    "a zstd bomb": (lambda h: h.document(h.image([zeros(30 << 20)], packed=[zstd(zeros(30 << 20), "-19")])), "more than 100 to one"),
    "a window of half a gigabyte": (lambda h: h.document(h.image([GOOD], packed=[wide(GOOD)])), "zstd stream is damaged.*memory|window"),
    "no archive": (lambda h: h.document(h.image([b"#!/bin/sh\nrm -rf /\n" * 100])), "unpacking layer"),
    "half a gzip": (lambda h: h.document(h.image([GOOD], packed=[gzip.compress(GOOD)[:-20]])), "cut off"),
    "out of the image": (lambda h: h.document(h.image([tar([entry("../../../etc/cron.d/x", data=b"x")])])), r"\.\./"),
    "through a link": (
        lambda h: h.document(h.image([tar([entry("l", type=b"2", linkname="/etc"), entry("l/../../../x", data=b"x")])])), "unpacking|entry"
    ),
}  # fmt: skip


def _layers(hostile: Hostile, *layers: bytes) -> list[str]:
    document = hostile.image(list(layers))
    hostile.document(document)
    return [layer["digest"] for layer in document["layers"]]


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    """A layer that is good lies below: it goes as well, unless another try may bring the rest."""
    build, text = LAYERS[name]
    hostile = Hostile()
    build(hostile)
    transient = "verification" in text or "descriptor" in text
    with Scripted(hostile.answer) as server:

        async def work(bench: Bench) -> None:
            with pytest.raises(KnarrError, match=text) as caught:
                await bench.pull("v")
            assert str(caught.value).isprintable()
            assert len(bench.images.store) == 0
            assert bench.stores.snapshots.chains() == []
            assert [name for name in bench.unfinished() if not transient] == []
            if not transient:
                bench.nothing_left()

        registries = Registries(Settings(registry_config_dirs=["/nonexistent"], max_download_attempts=2))
        limits = Limits(ratio=100, ratio_from=1 << 20)
        run(work, registry=registries, repository=f"{server.host}/hostile/image", limits=limits, attempts=2)


# What is shown, and to whom


@pytest.mark.parametrize("status", [400, 401, 403, 404, 418, 429, 500])
def test_no_escape_reaches_a_terminal(status: int) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\u202e"
    bodies = [{"errors": [{"code": f"X{evil}", "message": evil * 200}] * 20}, {"message": evil}, {"details": evil}, evil]
    for body in bodies:
        raw = json.dumps(body).encode() if not isinstance(body, str) else body.encode()
        reply = Reply(
            status, {"WWW-Authenticate": 'Basic realm="\x1b[31m"', "Content-Type": "application/json", "Retry-After": "999999"}, raw
        )
        refused(lambda hostile, reply=reply: hostile.answers.update({"/v2/": lambda request: reply}), None)  # type: ignore[misc]


@pytest.mark.parametrize(
    "realm", ["ftp://127.0.0.1/token", "//127.0.0.1/token", "http://alice@127.0.0.1:1/token", "javascript:alert(1)", "\x1b[31m"]
)
def test_a_password_goes_to_no_strange_place(realm: str) -> None:
    challenge = {"WWW-Authenticate": f'Bearer realm="{realm}",service="x"'}
    server = refused(
        lambda hostile: hostile.answers.update({"/v2/": lambda request: Reply(401, challenge)}),
        "not a web address|authentication required", credentials=Credentials("alice", "correct horse"),
    )  # fmt: skip
    secret = base64.b64encode(b"alice:correct horse").decode()
    assert not [request for request in server.requests if secret in request.headers.get("authorization", "")]


def test_a_token_server_that_sends_us_elsewhere_gets_no_further() -> None:
    """The password is for the realm that the registry names, not for where that one points."""
    with Scripted(lambda request: Reply(200, {}, b'{"token":"x"}'), address="127.0.0.2") as elsewhere:
        server = refused(
            lambda hostile: hostile.answers.update({
                "/token": lambda request: Reply(307, {"Location": f"{elsewhere.url}/token"}),
                "/v2/": lambda request: Reply(401, {"WWW-Authenticate": f'Bearer realm="http://{request.headers["host"]}/token"'}),
            }),
            "token", credentials=Credentials("alice", "correct horse"),
        )  # fmt: skip
        assert [path for path in server.paths() if path.startswith("/token")]
        assert elsewhere.requests == []


def test_a_list_of_tags_without_an_end() -> None:
    def tags(request: Request) -> Reply:
        number = int(request.query.get("last", ["0"])[0])
        page = json.dumps({"name": "x", "tags": [f"t{n}" for n in range(number, number + 1000)]}).encode()
        return Reply(200, {"Link": f'</v2/hostile/image/tags/list?last={number + 1000}>; rel="next"'}, page)

    refused(lambda hostile: hostile.answers.update({"/tags/list": tags}), "does not end", all_tags=True)


@pytest.mark.parametrize("tag", ["\x1b[31m", "../../x", "a b", "x" * 200, ""])
def test_tags_that_are_none(tag: str) -> None:
    page = json.dumps({"tags": [tag]}).encode()
    refused(lambda hostile: hostile.answers.update({"/tags/list": lambda request: Reply(200, {}, page)}), "tag", all_tags=True)


# A whole daemon


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    ours = Daemon("--max-download-attempts", "1")
    try:
        yield ours.start()
    finally:
        ours.close()


def test_a_daemon_after_many_of_them(daemon: Daemon) -> None:
    """Each is an error of the docker CLI; then none of them has left a file, a descriptor or a process."""
    hostile = Hostile()
    with Scripted(hostile.answer) as server:
        hostile.document(hostile.image([GOOD]), tag="good")
        daemon.docker("pull", f"{server.host}/hostile/image:good")
        daemon.docker("rmi", f"{server.host}/hostile/image:good")
        leaks = Leaks(daemon)
        for name in ("manifest and index", "a million keys", "foreign layers", "a cycle", "an index in an index in an index"):
            DOCUMENTS[name][0](hostile)
            result = daemon.docker("pull", f"{server.host}/hostile/image:v", check=False)
            assert (result.returncode, name) == (1, name)
            hostile.answers.clear()
        for name in ("another content than the configuration says", "no archive", "half a gzip", "out of the image"):
            LAYERS[name][0](hostile)
            result = daemon.docker("pull", f"{server.host}/hostile/image:v", check=False)
            assert (result.returncode, name) == (1, name)
            assert result.stderr.decode().strip().isprintable()
        assert daemon.api("GET", "/images/json?all=1").json() == []
        leaks.check()
