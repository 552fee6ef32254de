"""Attacks by clients of the registry, by archives and by images, tried for real: on the daemon's loop, memory, files and answers."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import socket
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from cli import main, registry
from cli.client import Failure
from cli.configfile import ConfigFile
from cli.credentials import find
from engine.errors import InvalidParameter
from engine.http.exchange import Exchange
from engine.http.listeners import open_listeners
from engine.http.server import Server
from engine.registry.server.auth import Htpasswd
from engine.registry.server.uploads import Uploads
from engine.service.staging import Staging
from engine.store.repositories import Upload
from engine.store.unpack import Limits
from tests.lib import images
from tests.lib.daemon import Daemon
from tests.lib.distribution import Client, Served, digest_of
from tests.lib.registries import DockerRegistry, Reply, Scripted
from tests.unit.test_images import opened

CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    if os.geteuid() != 0:
        pytest.skip("a daemon needs root")
    ours = Daemon()
    try:
        yield ours.start()
    finally:
        ours.close()


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    before = set(Served.running)
    yield
    for one in Served.running - before:
        one.end()


# -- the loop and its memory


async def exchange_with(path: str, body: bytes, handler: Any) -> None:
    """One chunked request with `body` on its way to `handler`, all of it in the socket before it is read as far as it fits."""
    listeners = open_listeners([f"unix://{path}"])
    async with trio.open_nursery() as nursery:
        await nursery.start(Server(handler).run, listeners)
        stream = await trio.open_unix_socket(path)
        async with stream:
            await stream.send_all(b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("way", ["body", "chunks"])
def test_others_have_their_turn_while_a_body_comes_in_tiny_chunks(tmp_path: Path, way: str) -> None:
    turns: list[int] = []
    got: list[int] = []

    async def handler(exchange: Exchange) -> None:
        ended = False

        async def other() -> None:
            count = 0
            while not ended:
                await trio.lowlevel.checkpoint()
                count += 1
            turns.append(count)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            got.append(len(await exchange.body()) if way == "body" else sum([len(part) async for part in exchange.chunks()]))
            ended = True
        await exchange.reply(200)

    trio.run(exchange_with, f"{tmp_path}/s", b"1\r\nx\r\n" * 10_000, handler)
    assert got == [10_000]
    assert turns[0] >= 10_000 // 64


def test_idle_connections_do_not_keep_others_out(tmp_path: Path) -> None:
    """As many as the server takes, opened and kept: whoever comes then is answered."""

    async def handler(exchange: Exchange) -> None:
        await exchange.reply(200, b"here", "text/plain")

    async def run() -> None:
        path = f"{tmp_path}/s"
        async with trio.open_nursery() as nursery:
            await nursery.start(Server(handler, most=8).run, open_listeners([f"unix://{path}"]))
            idle = [await trio.open_unix_socket(path) for _ in range(20)]
            stream = await trio.open_unix_socket(path)
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            with trio.fail_after(60):  # for a failure to be seen; it takes a tenth of a second
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
            for one in [*idle, stream]:
                await one.aclose()
            nursery.cancel_scope.cancel()

    trio.run(run)


class Rows:
    """Uploads without a database."""

    def uploads(self) -> list[Upload]:
        return []

    def add_upload(self, upload: Upload) -> None: ...

    def remove_uploads(self, ids: list[str]) -> None: ...


def test_many_uploads_at_a_time_hold_little_each(tmp_path: Path) -> None:
    """Each client stops before its first mebibyte is full: what it sent is on the disk all the same, not in memory."""
    with opened(tmp_path / "root") as box:
        (tmp_path / "uploads").mkdir()
        uploads = Uploads(box.images.content, str(tmp_path / "uploads"), Rows())
        count, sent = 600, 512 << 10
        held: list[int] = []

        async def run() -> None:
            everybody = trio.Event()

            async def one() -> None:
                session = uploads.begin("a/b")

                async def pieces() -> AsyncIterator[bytes]:
                    for _ in range(sent // (64 << 10)):
                        yield bytes(64 << 10)
                        await trio.lowlevel.checkpoint()
                    held.append(sent - session.offset)
                    if len(held) == count:
                        everybody.set()
                    await everybody.wait()

                await uploads.append(session, pieces())

            async with trio.open_nursery() as nursery:
                for _ in range(count):
                    nursery.start_soon(one)

        trio.run(run)
        assert len(held) == count
        assert sum(held) <= 128 << 20


# -- what clients of a registry can reach


def test_a_cache_speaks_to_nobody_but_its_upstreams(daemon: Daemon) -> None:
    with Scripted(lambda request: Reply(200, {}, b"secret")) as elsewhere, Scripted(lambda request: Reply(404)) as upstream:
        served = Served(daemon, "--proxy", upstream.url)
        client = Client(served.url)
        for host in (elsewhere.host, f"{elsewhere.host}/v2", f"user@{elsewhere.host}", "127.0.0.1", f"x%0d%0aHost: {elsewhere.host}"):
            answer = client.get(f"/v2/a/b/manifests/latest?ns={host.replace(' ', '%20')}")
            assert (answer.status, answer.code) == (404, "NAME_UNKNOWN")
        assert elsewhere.requests == []
        assert upstream.requests == []


def test_a_client_of_a_cache_does_not_lend_it_a_password(daemon: Daemon) -> None:
    with Scripted(lambda request: Reply(401, {"WWW-Authenticate": 'Basic realm="x"'})) as upstream:
        client = Client(Served(daemon, "--proxy", upstream.url).url, authorization="Basic c2VjcmV0OnNlY3JldA==")
        assert client.get("/v2/a/b/manifests/latest").status == 403
        assert upstream.requests
        assert not [one for one in upstream.requests if "authorization" in {name.lower() for name in one.headers}]


def test_what_a_cache_keeps_cannot_be_mounted_elsewhere(daemon: Daemon) -> None:
    """A blob of another registry's private repository is not given to whoever knows its digest."""
    with DockerRegistry() as upstream:
        digest = upstream.put_blob("private/image", b"a private layer")
        cache = Client(Served(daemon, "--proxy", upstream.url).url)
        assert cache.get(f"/v2/private/image/blobs/{digest}").body == b"a private layer"
    plain = Client(Served(daemon).url)
    host = upstream.host
    for source in ("", "&from=private/image", f"&from={host}//private/image", f"&from={host}%2F%2Fprivate%2Fimage"):
        assert plain.request("POST", f"/v2/mine/image/blobs/uploads/?mount={digest}{source}").status == 202
    assert plain.get(f"/v2/mine/image/blobs/{digest}").status == 404
    assert plain.get(f"/v2/{host}//private/image/blobs/{digest}").status in (400, 404)


def test_no_name_leads_out_of_the_store(daemon: Daemon) -> None:
    served = Served(daemon)
    where = served.url.removeprefix("http://").split(":")
    for path in (
        "/v2/../../etc/passwd/manifests/x", "/v2/%2e%2e/%2e%2e/blobs/sha256:%2e%2e%2fx", "/v2/a/blobs/sha256:../../../x",
        "/v2/a/blobs/uploads/../../../etc/passwd", "/v2/a/blobs/uploads/%2e%2e%2fx", "/v2/a/manifests/..%2f..%2fx", "/v2/a%00b/tags/list",
        "/v2/a%0d%0aX-Evil:%201/tags/list",
    ):  # fmt: skip
        with socket.create_connection((where[0], int(where[1])), 60) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            said = b"".join(iter(lambda: sock.recv(65536), b""))
        assert said.split()[1] in (b"400", b"404"), path
        assert b"root:" not in said and b"\r\nX-Evil" not in said


def test_authentication_takes_no_pipe_and_no_realm_that_breaks_its_header(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidParameter, match="not a regular file"):
        Htpasswd(str(tmp_path / "pipe"))
    (tmp_path / "htpasswd").write_text("a:b\n")
    with pytest.raises(InvalidParameter, match="no header takes"):
        Htpasswd(str(tmp_path / "htpasswd"), realm='x"\r\nSet-Cookie: y')


# -- the registry on the daemon's own socket


def push(daemon: Daemon, name: str, data: bytes) -> str:
    """A blob to the daemon's socket."""
    digest = digest_of(data)
    answer = daemon.api("POST", f"/v2/{name}/blobs/uploads/?digest={digest}", data, {"Content-Type": "application/octet-stream"})
    assert answer.status == 201, answer.body
    return digest


def image_of(daemon: Daemon, name: str, text: bytes) -> bytes:
    """Push the blobs of an image of one file; its manifest, which is not pushed yet."""
    layer = images.tar([images.entry("file", data=text)])
    config = images.image_config([digest_of(layer)])
    packed = gzip.compress(layer, 1, mtime=0)
    described = {"mediaType": CONFIG, "digest": push(daemon, name, config), "size": len(config)}
    layers = [{"mediaType": LAYER, "digest": push(daemon, name, packed), "size": len(packed)}]
    return json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": layers}).encode()


def test_pushes_to_one_repository_do_not_disturb_each_other(daemon: Daemon) -> None:
    name = "registry.example/twice"
    one, two = image_of(daemon, name, b"one"), image_of(daemon, name, b"two")
    for tag, manifest in (("one", one), ("two", two)):
        answer = daemon.api("PUT", f"/v2/{name}/manifests/{tag}", manifest, {"Content-Type": MANIFEST})
        assert answer.status == 201, answer.body
    assert [daemon.api("GET", f"/images/{name}:{tag}/json").status for tag in ("one", "two")] == [200, 200]


def test_a_media_type_of_a_hostile_index_does_not_end_its_header(daemon: Daemon) -> None:
    layout = images.Layout()
    image = layout.image([images.tar([images.entry("file", data=b"x")])])
    attestation = layout.attestation(image) | {"mediaType": "text/html\r\nX-Evil: 1"}
    archive = layout.archive([
        layout.index([image, attestation], annotations={"io.containerd.image.name": "docker.io/library/hostile:1"})
    ])  # fmt: skip
    loaded = daemon.api("POST", "/images/load", archive)
    assert loaded.status == 200, loaded.body
    answer = daemon.api("GET", f"/v2/docker.io/library/hostile/manifests/{attestation['digest']}")
    assert answer.status == 200
    assert "x-evil" not in answer.headers


# -- archives


def load_error(daemon: Daemon, archive: bytes) -> str:
    """What the daemon says to an archive that it refuses."""
    answer = daemon.api("POST", "/images/load?quiet=1", archive)
    said = answer.body.decode()
    assert answer.status >= 400 or "errorDetail" in said, said
    return said


def docker_archive(manifest: Any, **members: bytes) -> bytes:
    files = [images.entry(name, data=data) for name, data in members.items()]
    return images.tar([*files, images.entry("manifest.json", data=json.dumps(manifest).encode())])


def test_one_layer_named_fifty_thousand_times(daemon: Daemon) -> None:
    layer = images.tar([images.entry("file", data=b"x")])
    config = images.image_config(["sha256:" + hashlib.sha256(layer).hexdigest()] * 50_000)
    archive = docker_archive([{"Config": "c", "RepoTags": ["many:1"], "Layers": ["l"] * 50_000}], c=config, l=layer)
    assert "at most" in load_error(daemon, archive)
    assert daemon.api("GET", "/_ping").status == 200


def test_one_configuration_named_a_thousand_times(daemon: Daemon) -> None:
    """A few kilobytes on the way, gigabytes to parse."""
    config = images.image_config([], labels={"x": "y" * (6 << 20)})
    archive = docker_archive([{"Config": "c", "RepoTags": None, "Layers": []}] * 1000, c=config)
    assert "documents have more than" in load_error(daemon, gzip.compress(archive, 1))


def test_members_that_replace_each_other_are_counted(daemon: Daemon) -> None:
    header = images.tar([images.entry("x")])[:512]
    assert "more than 100000 members" in load_error(daemon, gzip.compress(header * 100_001 + bytes(1024), 1))


def test_names_in_an_archive_do_not_drive_a_terminal(daemon: Daemon) -> None:
    said = load_error(daemon, docker_archive([{"Config": "c\x1b[31m", "RepoTags": None, "Layers": []}], **{"c\x1b[31m": b"{"}))
    assert "no image configuration" in said
    assert "\x1b" not in json.loads(said.splitlines()[-1]).get("message", json.loads(said.splitlines()[-1]).get("error", ""))


def test_an_archive_that_is_a_bomb_is_refused(tmp_path: Path) -> None:
    """The compression around all of it counts too, not only that of its layers."""
    archive = images.tar([images.entry("member", data=bytes(64 << 20))])
    packed = gzip.compress(archive, 9)

    async def stream() -> AsyncIterator[bytes]:
        for place in range(0, len(packed), 4096):
            yield packed[place : place + 4096]

    async def run(ratio: int) -> None:
        staging = Staging(box.images.content, box.images.snapshots, Limits(ratio=ratio, ratio_from=1 << 20))
        try:
            await staging.read(stream())
        finally:
            staging.close()

    with opened(tmp_path / "root") as box:
        with pytest.raises(InvalidParameter, match="more than 100 to one"):
            trio.run(run, 100)
        trio.run(run, 5000)
        assert not [path for path in (tmp_path / "root").rglob("*") if path.is_file() and path.stat().st_size == 64 << 20]


# -- layers


def oci(layout: images.Layout, name: str, image: dict[str, Any]) -> bytes:
    return layout.archive([image | {"annotations": {"io.containerd.image.name": name}}])


def content_of(daemon: Daemon, name: str, path: str) -> bytes:
    """A file of the topmost layer of an image."""
    folder = daemon.api("GET", f"/images/{name}/json").json()["GraphDriver"]["Data"]["UpperDir"]
    return Path(folder, path).read_bytes()


def test_an_image_cannot_put_its_content_under_anothers_chain(daemon: Daemon) -> None:
    """It claims the diff_id of a layer of another image, and brings something else."""
    honest = images.tar([images.entry("file", data=b"honest")])
    hostile = images.tar([images.entry("file", data=b"hostile")])
    for compress in (False, True):
        layout = images.Layout()
        image = layout.image([hostile], compress=compress)
        manifest = json.loads(layout.blobs[image["digest"]])
        config = images.image_config(["sha256:" + hashlib.sha256(honest).hexdigest()])
        manifest["config"] = layout.blob(config, CONFIG)
        lying = layout.blob(json.dumps(manifest).encode(), MANIFEST)
        load_error(daemon, oci(layout, "docker.io/library/lying:1", lying))
    good = images.Layout()
    answer = daemon.api("POST", "/images/load?quiet=1", oci(good, "docker.io/library/honest:1", good.image([honest])))
    assert "errorDetail" not in answer.body.decode()
    assert content_of(daemon, "honest:1", "file") == b"honest"


def test_layers_unpacked_beside_each_other_stay_inside(daemon: Daemon, tmp_path: Path) -> None:
    """A layer writes through a link that the layer below it, which is being unpacked at the same time, brings last."""
    link = images.entry("way", tarfile.SYMTYPE, linkname="../" * 40 + str(tmp_path).lstrip("/"))
    filler = [images.entry(f"filler/{number}", data=os.urandom(4096)) for number in range(500)]
    below = images.tar([*filler, link])
    above = images.tar([
        images.entry("way/escaped", data=b"inside"),
        images.entry("hard", tarfile.LNKTYPE, linkname="way/escaped"),
        images.entry("filler/.wh.1"),
    ])  # fmt: skip
    layout = images.Layout()
    archive = oci(layout, "docker.io/library/linked:1", layout.image([below, above, above], compress=True))
    assert "a link in its way leads out of the image" in load_error(daemon, archive)
    assert not list(tmp_path.iterdir())
    # As a path of the image the same link is fine: what is written lies in the image.
    link[0].linkname = str(tmp_path)
    layout = images.Layout()
    bottom = images.tar([*filler, images.entry(str(tmp_path), tarfile.DIRTYPE), link])
    archive = oci(layout, "docker.io/library/linked:2", layout.image([bottom, above, above], compress=True))
    assert daemon.api("POST", "/images/load?quiet=1", archive).status == 200
    assert not list(tmp_path.iterdir())
    assert content_of(daemon, "linked:2", "hard") == b"inside"


# -- the client


def test_the_access_log_does_not_drive_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    line = {"Time": 0, "Peer": "127.0.0.1:1", "User": "a\x1b]0;b\x07\nc", "Method": "GET", "Target": "/v2/", "Status": 200, "Bytes": 0}
    registry._show(line | {"Seconds": 0.1}, False)
    main.write_error("error of a registry \x1b[2J\x9b31m, é")
    out, err = capfd.readouterr()
    assert out.count("\n") == 1
    assert "\x1b" not in out + err and "\x9b" not in out + err and "\x07" not in out
    assert "é" in err


def test_a_credential_helper_is_looked_for_on_path_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docker-credential-x").mkdir()
    helper = tmp_path / "evil"
    helper.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    helper.chmod(0o755)
    (tmp_path / "config.json").write_text('{"credsStore": "x/../evil"}')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Failure, match="not found"):
        find(ConfigFile(str(tmp_path)), "registry.example")
    assert not (tmp_path / "ran").exists()
