"""`save` and `load` with a whole daemon: the docker CLI, skopeo, another engine, and connections that break."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.conftest import PEER
from tests.lib.daemon import Daemon, Engine, Peer
from tests.lib.images import ARCHITECTURE, Layout, busybox_layer, docker_archive, entry, tar

NONE = ("--network", "none")
OTHER = "arm64" if ARCHITECTURE != "arm64" else "amd64"
MORE = tar([entry("more", data=b"more\n")])


@pytest.fixture(scope="module")
def busybox() -> bytes:
    return busybox_layer()


@pytest.fixture(scope="module")
def second() -> Iterator[Daemon]:
    """Another daemon, of another host as it were."""
    other = Daemon()
    try:
        yield other.start()
    finally:
        other.close()


@pytest.fixture(autouse=True)
def _no_images(daemon: Daemon, second: Daemon) -> Iterator[None]:
    yield
    for engine in (daemon, second):
        engine.remove_all()
        for image in engine.api("GET", "/images/json?all=1").json():
            if engine is second or "busybox:latest" not in image["RepoTags"]:
                for name in image["RepoTags"] or [image["Id"]]:
                    assert engine.api("DELETE", f"/images/{name}?force=1").status == 200


def multi(busybox: bytes) -> bytes:
    layout = Layout()
    images = [
        layout.image([busybox], ARCHITECTURE, compress=True),
        layout.image([tar([entry("arch", data=b"other")])], OTHER, compress=True),
        layout.image([tar([entry("arch", data=b"s390x")])], "s390x", compress=True),
    ]
    index = layout.index([*images, layout.attestation(images[0])])
    return layout.archive([{**index, "annotations": {"io.containerd.image.name": "docker.io/library/multi:1"}}])


def saved(engine: Engine, *names: str, **options: str) -> bytes:
    return engine.docker("save", *(f"--{key}={value}" for key, value in options.items()), *names).stdout


def documents(data: bytes) -> dict[str, Any]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {name: json.load(archive.extractfile(name)) for name in ("index.json", "manifest.json")}  # type: ignore[arg-type]


def test_from_one_host_to_another(daemon: Daemon, second: Daemon, busybox: bytes) -> None:
    daemon.docker("load", input=docker_archive([busybox, MORE], ["app:1", "app:2"], {"Cmd": ["cat", "/more"]}))
    data = saved(daemon, "app", "busybox")
    assert second.out("load", input=data).splitlines() == ["Loaded image: app:1", "Loaded image: app:2", "Loaded image: busybox:latest"]
    assert second.out("run", "--rm", *NONE, "app:2") == "more"
    assert saved(second, "app", "busybox") == data
    by_id = saved(daemon, second.out("image", "inspect", "-f", "{{.Id}}", "app:1"))
    assert documents(by_id)["manifest.json"][0]["RepoTags"] is None


def test_errors_come_before_the_archive(daemon: Daemon) -> None:
    result = daemon.docker("save", "busybox", "nope:1", check=False)
    assert (result.returncode, result.stdout) == (1, b"")
    assert result.stderr.strip() == b"Error response from daemon: No such image: nope:1"
    assert daemon.api("GET", "/images/nope/get").status == 404
    assert daemon.api("GET", "/images/get").status == 400
    reply = daemon.api("GET", "/images/busybox/get?platform=linux/s390x")
    assert (reply.status, "does not provide the specified platform (linux/s390x)" in reply.json()["message"]) == (404, True)


def test_the_reply_is_a_stream_of_a_tar(daemon: Daemon) -> None:
    reply = daemon.api("GET", "/images/busybox/get")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/x-tar")
    assert reply.headers["transfer-encoding"] == "chunked"


def test_skopeo_reads_both_forms(daemon: Daemon, tmp_path: Path, busybox: bytes) -> None:
    daemon.docker("load", input=docker_archive([busybox, MORE], ["app:1"]))
    path = tmp_path / "app.tar"
    path.write_bytes(saved(daemon, "app:1"))
    id = daemon.out("image", "inspect", "-f", "{{.Id}}", "app:1")
    for source in (f"docker-archive:{path}:app:1", f"oci-archive:{path}:1"):
        config = skopeo("inspect", "--config", "--raw", source)
        assert json.loads(config)["rootfs"]["diff_ids"] == image(daemon, "app:1")["RootFS"]["Layers"]
        skopeo("copy", "-q", source, f"oci:{tmp_path}/out-{source.partition(':')[0]}:x")
    manifest = json.loads(skopeo("inspect", "--raw", f"oci-archive:{path}:1"))
    assert manifest["config"]["digest"] == id
    assert skopeo("inspect", "--raw", f"oci-archive:{path}:1") == skopeo("inspect", "--raw", f"oci:{tmp_path}/out-oci-archive:x")


def test_skopeo_takes_every_platform(daemon: Daemon, second: Daemon, tmp_path: Path, busybox: bytes) -> None:
    """And gives them back: the index keeps its digest through both."""
    daemon.docker("load", input=multi(busybox))
    (tmp_path / "multi.tar").write_bytes(saved(daemon, "multi:1"))
    skopeo("copy", "-q", "--all", f"oci-archive:{tmp_path}/multi.tar:1", f"oci:{tmp_path}/layout:multi:1")
    packed = subprocess.run(["tar", "-C", tmp_path / "layout", "-cf", "-", "."], check=True, capture_output=True).stdout
    assert second.out("load", input=packed) == "Loaded image: multi:1"
    assert platforms(second) == platforms(daemon) == {ARCHITECTURE: True, OTHER: True, "s390x": True, "unknown": True}
    assert image(second, "multi:1")["Descriptor"] == image(daemon, "multi:1")["Descriptor"]
    assert second.out("run", "--rm", *NONE, "multi:1", "echo", "runs") == "runs"


def skopeo(command: str, *arguments: str) -> str:
    return subprocess.run(["skopeo", "--insecure-policy", command, *arguments], check=True, capture_output=True, text=True).stdout


def image(engine: Engine, name: str, query: str = "") -> dict[str, Any]:
    found: dict[str, Any] = engine.api("GET", f"/v1.51/images/{name}/json{query}").json()
    return found


def platforms(engine: Engine) -> dict[str, bool]:
    """Architecture -> whether that manifest of multi:1 is here."""
    manifests = image(engine, "multi:1", "?manifests=1")["Manifests"]
    return {one["Descriptor"]["platform"]["architecture"]: one["Available"] for one in manifests}


def test_platforms_one_by_one(daemon: Daemon, second: Daemon, busybox: bytes) -> None:
    daemon.docker("load", input=multi(busybox))
    id = image(daemon, "multi:1")["Id"]
    other = image(daemon, "multi:1", "?platform=" + quote(json.dumps({"os": "linux", "architecture": OTHER})))
    assert (other["Architecture"], other["RepoTags"], other["Id"] != id) == (OTHER, ["multi:1"], True)
    assert daemon.out("image", "inspect", "-f", "{{.Architecture}}", "--platform", f"linux/{OTHER}", "multi:1") == OTHER
    assert daemon.out("history", "-q", "--platform", f"linux/{OTHER}", "multi:1") == other["Id"][7:19]
    reply = daemon.api("GET", "/v1.51/images/multi:1/json?platform=linux/riscv64")
    assert (reply.status, "does not match the specified platform" in reply.json()["message"]) == (404, True)
    reply = daemon.api("GET", f"/v1.51/images/multi:1/json?manifests=1&platform=linux/{OTHER}")
    assert reply.json()["message"] == "conflicting options: manifests and platform options cannot both be set"
    single = saved(daemon, "multi:1", platform=f"linux/{OTHER}")
    assert second.out("load", input=single) == "Loaded image: multi:1"
    assert image(second, "multi:1")["Id"] == other["Id"]
    data = saved(daemon, "multi:1")
    second.docker("load", f"--platform=linux/{ARCHITECTURE}", input=data)
    assert platforms(second) == {ARCHITECTURE: True, OTHER: True, "s390x": False, "unknown": True}
    second.docker("load", input=data)
    assert saved(second, "multi:1") == data
    second.docker("rmi", "--platform", f"linux/{OTHER}", "multi:1")
    assert platforms(second) == {ARCHITECTURE: True, OTHER: False, "s390x": True, "unknown": True}


def test_manifests_as_the_api_shows_them(daemon: Daemon, busybox: bytes) -> None:
    daemon.docker("load", input=multi(busybox))
    container = daemon.out("create", *NONE, "multi:1", "true")
    shown = image(daemon, "multi:1", "?manifests=1")
    own, other, _, attestation = shown["Manifests"]
    assert shown["Descriptor"]["mediaType"] == "application/vnd.oci.image.index.v1+json"
    assert own["ID"] == own["Descriptor"]["digest"]
    assert (own["Kind"], own["Available"], own["ImageData"]["Containers"]) == ("image", True, [container])
    assert own["ImageData"]["Platform"] == {"architecture": ARCHITECTURE, "os": "linux"}
    assert own["Size"]["Total"] == own["Size"]["Content"] + own["ImageData"]["Size"]["Unpacked"] > own["Size"]["Content"] > 0
    assert (other["ImageData"]["Containers"], other["ImageData"]["Size"]["Unpacked"]) == ([], 0)
    assert (attestation["Kind"], attestation["AttestationData"]) == ("attestation", {"For": own["ID"]})
    assert "ImageData" not in attestation
    listed = {one["RepoTags"][0]: one for one in daemon.api("GET", "/v1.51/images/json?manifests=1").json()}
    assert listed["multi:1"]["Manifests"] == shown["Manifests"]
    assert [one["Kind"] for one in listed["busybox:latest"]["Manifests"]] == ["image"]
    assert "Manifests" not in daemon.api("GET", "/v1.46/images/json?manifests=1").json()[0]
    assert "Descriptor" not in daemon.api("GET", "/v1.47/images/multi:1/json").json()
    tree = daemon.out("image", "ls", "--tree")
    assert f"linux/{OTHER}" in tree
    assert "linux/s390x" in tree


def test_since(daemon: Daemon, second: Daemon, busybox: bytes) -> None:
    daemon.docker("load", input=docker_archive([busybox, MORE], ["app:1"], {"Cmd": ["cat", "/more"]}))
    whole, rest = saved(daemon, "app:1"), daemon.api("GET", "/images/app:1/get?since=busybox").body
    assert len(rest) < len(whole) / 10
    result = second.docker("load", input=rest, check=False)
    assert result.returncode == 1
    assert b"is neither in the archive nor here (it was saved with --since busybox; load that first)" in result.stderr
    assert second.api("GET", "/images/json?all=1").json() == []
    second.docker("load", input=saved(daemon, "busybox"))
    assert second.out("load", input=rest) == "Loaded image: app:1"
    assert second.out("run", "--rm", *NONE, "app:1") == "more"
    assert saved(second, "app:1") == whole


def test_a_damaged_layer_breaks_the_connection(daemon: Daemon) -> None:
    """The client must not take what it got for an archive."""
    layer = tar([entry("data", data=os.urandom(3_000_000))])
    daemon.docker("load", input=docker_archive([layer], ["app:1"]))
    blobs = documents(saved(daemon, "app:1"))["manifest.json"][0]["Layers"]
    path = daemon.data_root / "content" / blobs[0]
    data = path.read_bytes()
    path.write_bytes(data[:2_000_000] + b"damage" + data[2_000_006:])
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(daemon.socket))
        client.sendall(b"GET /images/app:1/get HTTP/1.1\r\nHost: d\r\n\r\n")
        reply = b""
        while piece := client.recv(1 << 20):
            reply += piece
    assert reply.startswith(b"HTTP/1.1 200")
    assert not reply.endswith(b"0\r\n\r\n"), "the stream has no end"
    path.with_name(path.name + ".damaged").rename(path)
    assert daemon.docker("save", "app:1", check=False).returncode == 1
    assert "is damaged" in daemon.log_tail()
    assert daemon.docker("save", "app:1", check=False).stderr.endswith(b"(pull or load the image again)\n")
    daemon.docker("load", input=docker_archive([layer], ["app:1"]))
    assert documents(saved(daemon, "app:1"))["manifest.json"][0]["Layers"] == blobs


def test_a_client_that_leaves_keeps_nothing(daemon: Daemon) -> None:
    before = kept(daemon)
    layer = tar([entry("data", data=os.urandom(20_000_000))])
    daemon.docker("load", input=docker_archive([layer], ["app:1"]))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(daemon.socket))
        client.sendall(b"GET /images/app:1/get HTTP/1.1\r\nHost: d\r\n\r\n")
        assert client.recv(1000)
    half = docker_archive([tar([entry("data", data=os.urandom(5_000_000))])], ["half:1"])
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(daemon.socket))
        client.sendall(f"POST /images/load HTTP/1.1\r\nHost: d\r\nContent-Length: {len(half)}\r\n\r\n".encode() + half[:4_000_000])
    daemon.docker("rmi", "app:1")
    eventually(lambda: all(now <= then for now, then in zip(kept(daemon), before, strict=True)))
    assert daemon.api("GET", "/images/half:1/json").status == 404


def kept(daemon: Daemon) -> tuple[set[str], set[str], set[str]]:
    """Blobs, temporary files and unpacked layers."""
    content, snapshots = daemon.data_root / "content", daemon.data_root / "snapshots"
    layers = {name for name in os.listdir(snapshots) if name.isdecimal() and not (snapshots / name / "work").exists()}
    return set(os.listdir(content / "blobs/sha256")), set(os.listdir(content / "ingest")), layers


def eventually(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@pytest.mark.skipif(not PEER, reason="KNARR_PEER_DOCKER_HOST names no other engine")
def test_another_engine_takes_ours_and_we_its(daemon: Daemon, busybox: bytes) -> None:
    peer = Peer(str(PEER))
    names = ["knarr-archive-test:1", "knarr-archive-test:2"]
    daemon.docker("load", input=docker_archive([busybox, MORE], names, {"Cmd": ["cat", "/more"]}))
    try:
        assert peer.out("load", input=saved(daemon, *names)).splitlines() == [f"Loaded image: {name}" for name in names]
        assert peer.out("run", "--rm", *NONE, names[0]) == "more"
        theirs = peer.docker("save", *names).stdout
        id, there = (engine.out("image", "inspect", "-f", "{{.Id}}", names[0]) for engine in (daemon, peer))
        assert id == there
        layers = documents(saved(daemon, *names))["manifest.json"][0]["Layers"]
        daemon.docker("rmi", *names)
        assert daemon.out("load", input=theirs).splitlines() == [f"Loaded image: {name}" for name in names]
        assert daemon.out("image", "inspect", "-f", "{{.Id}}", names[0]) == id
        assert documents(saved(daemon, *names))["manifest.json"][0]["Layers"] == layers, "packed as before"
        rest = daemon.api("GET", f"/images/{names[1]}/get?since={names[0]}").body
        assert peer.out("load", input=rest) == f"Loaded image: {names[1]}"
    finally:
        peer.docker("rmi", "-f", *names, check=False)
