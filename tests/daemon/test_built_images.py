"""Images that were built: their layers are no blobs until somebody wants them. Saved, loaded, pushed, pulled, copied, checked, and after
crashes. Ours alone."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lib.buildwork import wait
from tests.lib.daemon import Daemon, knarr_command
from tests.lib.images import busybox_layer, docker_archive
from tests.lib.registries import MANIFEST, OCI_MANIFEST, DockerRegistry, digest_of

DOCKERFILE = """
FROM busybox
COPY file /etc/file
RUN mkdir /made && echo made > /made/file && rm /etc/passwd && chmod 4755 /made/file
LABEL a=b
CMD ["cat", "/made/file"]
"""


@pytest.fixture(scope="module")
def busybox() -> bytes:
    return docker_archive([busybox_layer()], ["busybox:latest"], compress=True)


def made(*options: str) -> Daemon:
    if os.geteuid() != 0:
        pytest.skip("a daemon needs root")
    return Daemon(*options)


@pytest.fixture(scope="module")
def host(busybox: bytes) -> Iterator[Daemon]:
    ours = made()
    try:
        ours.start().docker("load", input=busybox)
        yield ours
    finally:
        ours.close()


@pytest.fixture(scope="module")
def other() -> Iterator[Daemon]:
    """Another host, as it were."""
    ours = made()
    try:
        yield ours.start()
    finally:
        ours.close()


@pytest.fixture(scope="module")
def registry() -> Iterator[DockerRegistry]:
    with DockerRegistry() as ours:
        yield ours


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text(DOCKERFILE)
    (folder / "file").write_bytes(os.urandom(8).hex().encode())
    return folder


def knarr(daemon: Daemon, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [*knarr_command(), *arguments]
    result = subprocess.run(command, env=daemon.docker_environment(), capture_output=True, text=True, timeout=300)
    if check and result.returncode:
        told = f"{result.stdout}{result.stderr}\n{daemon.log_tail()}"
        raise AssertionError(f"knarr {' '.join(arguments)} ended with {result.returncode}:\n{told}")
    return result


def build(daemon: Daemon, context: Path, *names: str, options: tuple[str, ...] = ()) -> dict[str, Any]:
    """Build, and what `inspect` says of the first name."""
    knarr(daemon, "build", "-q", *(part for name in names for part in ("-t", name)), *options, str(context))
    return inspect(daemon, names[0])


def inspect(daemon: Daemon, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(daemon.out("image", "inspect", name))[0]
    return found


def blobs(daemon: Daemon) -> set[str]:
    return {f"sha256:{path.name}" for path in (daemon.data_root / "content/blobs/sha256").iterdir()}


def findings(daemon: Daemon, *options: str) -> tuple[list[dict[str, Any]], int]:
    result = knarr(daemon, "system", "check", "--format", "json", *options, check=False)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return [line for line in lines if "summary" not in line], result.returncode


def layers_of(archive: bytes) -> dict[str, bytes]:
    """Blobs of an archive by name."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        return {info.name: (opened.extractfile(info) or io.BytesIO()).read() for info in opened if info.isreg()}


def snapshot(daemon: Daemon, name: str, file: str) -> Path:
    """Where a file of an image's topmost layer lies."""
    data = inspect(daemon, name)["GraphDriver"]["Data"]
    return Path(data["UpperDir"].partition(":")[0]) / file


def test_layers_are_no_blobs_and_the_image_runs(host: Daemon, context: Path) -> None:
    found = build(host, context, "app", "second:name")
    assert sorted(found["RepoTags"]) == ["app:latest", "second:name"]
    assert not blobs(host).intersection(found["RootFS"]["Layers"][1:])
    assert {found["Id"], found["Descriptor"]["digest"]} <= blobs(host)
    assert host.out("run", "--rm", "--network", "none", "app") == "made"
    assert host.out("run", "--rm", "--network", "none", "app", "ls", "-l", "/made/file").startswith("-rwsr-xr-x")
    history = host.out("history", "--no-trunc", "--format", "{{.CreatedBy}}", "app").splitlines()
    assert history[0].startswith("CMD [") and history[-2] == "COPY file /etc/file # buildkit"


def test_the_same_build_again_is_the_same_image(host: Daemon, context: Path) -> None:
    first = build(host, context, "again")
    since = time.time()
    assert build(host, context, "again")["Id"] == first["Id"]
    until = time.time()
    span = ("--since", f"{since:.6f}", "--until", f"{until:.6f}")
    told = host.out("events", *span, "--filter", "type=image", "--format", "{{.Action}} {{.Actor.Attributes.name}}")
    assert set(told.splitlines()) == {"tag again"}


def test_saved_it_is_the_same_elsewhere(host: Daemon, other: Daemon, context: Path) -> None:
    found = build(host, context, "saved")
    archive = host.docker("save", "saved").stdout
    assert archive == host.docker("save", "saved").stdout
    members = layers_of(archive)
    for digest in found["RootFS"]["Layers"][1:]:
        assert "sha256:" + hashlib.sha256(members[f"blobs/sha256/{digest[7:]}"]).hexdigest() == digest
    other.docker("load", input=archive)
    assert inspect(other, "saved")["Id"] == found["Id"]
    assert inspect(other, "saved")["Descriptor"] == found["Descriptor"]
    assert other.out("run", "--rm", "--network", "none", "saved") == "made"
    assert not blobs(host).intersection(found["RootFS"]["Layers"][1:])


def test_an_archive_without_the_layers_of_a_built_base(host: Daemon, context: Path) -> None:
    build(host, context, "lower")
    (context / "Dockerfile").write_text("FROM lower\nRUN echo upper > /upper\n")
    upper = build(host, context, "upper")
    archive = host.docker("save", "upper").stdout
    part = knarr(host, "save", "--since", "lower", "-o", str(context / "part.tar"), "upper")
    assert part.returncode == 0 and (context / "part.tar").stat().st_size < len(archive)
    host.docker("rmi", "upper")
    host.docker("load", "-i", str(context / "part.tar"))
    assert inspect(host, "upper")["Id"] == upper["Id"]
    assert host.out("run", "--rm", "--network", "none", "upper", "cat", "/upper") == "upper"


def test_pushed_it_is_compressed_once_and_the_same_elsewhere(host: Daemon, other: Daemon, context: Path, registry: DockerRegistry) -> None:
    name = f"{registry.host}/built/app:v"
    found = build(host, context, name, "kept")
    told = host.out("push", name).splitlines()
    digest = told[-1].split()[2]
    status, _, raw = registry.request("GET", "/v2/built/app/manifests/v", headers={"Accept": f"{OCI_MANIFEST}, {MANIFEST}"})
    manifest = json.loads(raw)
    assert status == 200 and digest_of(raw) == digest
    assert {layer["mediaType"] for layer in manifest["layers"]} == {"application/vnd.oci.image.layer.v1.tar+gzip"} or {
        layer["mediaType"].rpartition(".")[2].rpartition("+")[2] for layer in manifest["layers"]
    } == {"gzip"}
    assert inspect(host, name)["RepoDigests"] == [f"{registry.host}/built/app@{digest}"]
    assert inspect(host, "kept")["Id"] == found["Id"] and inspect(host, "kept")["Descriptor"]["digest"] == digest
    again = host.out("push", name).splitlines()
    assert again[-1] == told[-1] and sum("Layer already exists" in line for line in again) == 3
    other.docker("pull", name)
    assert inspect(other, name)["Id"] == found["Id"]
    assert other.out("run", "--rm", "--network", "none", name) == "made"
    assert build(host, context, "kept")["Descriptor"]["digest"] == digest
    assert findings(host)[1] == 0
    assert findings(other)[1] == 0


def test_built_and_pushed_at_once(host: Daemon, other: Daemon, context: Path, registry: DockerRegistry, tmp_path: Path) -> None:
    name = f"{registry.host}/built/once:1"
    build(host, context, name, options=("--push", "--metadata-file", str(tmp_path / "told")))
    told = json.loads((tmp_path / "told").read_text())
    status, _, raw = registry.request("GET", "/v2/built/once/manifests/1", headers={"Accept": f"{OCI_MANIFEST}, {MANIFEST}"})
    assert status == 200 and digest_of(raw) == told["containerimage.digest"] == inspect(host, name)["Descriptor"]["digest"]
    other.docker("pull", name)
    assert inspect(other, name)["Id"] == told["containerimage.config.digest"]
    zstd = f"type=image,name={name.replace('once', 'zstd')},push=true,compression=zstd,annotation.note=x"
    knarr(host, "build", "-q", "--output", zstd, str(context))
    _, _, raw = registry.request("GET", "/v2/built/zstd/manifests/1", headers={"Accept": OCI_MANIFEST})
    manifest = json.loads(raw)
    assert manifest["annotations"] == {"note": "x"}
    assert manifest["layers"][-1]["mediaType"] == "application/vnd.oci.image.layer.v1.tar+zstd"
    other.docker("rmi", name)
    other.docker("pull", name.replace("once", "zstd"))
    assert other.out("run", "--rm", "--network", "none", name.replace("once", "zstd")) == "made"


def test_a_host_copies_it_to_another(host: Daemon, other: Daemon, context: Path) -> None:
    found = build(host, context, "pulled", "pushed")
    knarr(other, "pull", "--from", f"unix://{host.socket}", "pulled")
    assert inspect(other, "pulled")["Id"] == found["Id"]
    assert other.out("run", "--rm", "--network", "none", "pulled") == "made"
    (context / "file").write_text("another")
    found = build(host, context, "pushed")
    knarr(host, "push", "--to", f"unix://{other.socket}", "pushed")
    assert inspect(other, "pushed")["Id"] == found["Id"]
    assert other.out("run", "--rm", "--network", "none", "pushed") == "made"


def test_a_check_reads_what_was_built(host: Daemon, context: Path) -> None:
    build(host, context, "checked")
    assert findings(host) == ([], 0)
    found, _ = findings(host, "--all")
    assert any(one["Kind"] == "snapshot" and one["Detail"].startswith("packs to sha256:") for one in found)


def test_damage_is_found_told_and_mended_by_building_again(busybox: bytes, context: Path) -> None:
    ours = made()
    try:
        ours.start().docker("load", input=busybox)
        found = build(ours, context, "broken")
        snapshot(ours, "broken", "made/file").write_text("bad!\n")
        saved = ours.docker("save", "broken", check=False)
        assert saved.returncode and b"unexpected EOF" in saved.stderr
        pushed = ours.docker("push", "broken", check=False)
        assert pushed.returncode and b"its files were changed on the disk" in pushed.stdout + pushed.stderr
        damaged, code = findings(ours)
        assert code and [(one["Kind"], one["State"]) for one in damaged] == [("snapshot", "damaged"), ("image", "missing")]
        assert "its files were changed" in damaged[0]["Detail"] and "build it again" in damaged[0]["Detail"]
        assert build(ours, context, "broken", options=("--no-cache",))["RepoTags"] == ["broken:latest"]
        assert ours.out("run", "--rm", "--network", "none", "broken") == "made"
        assert found["RootFS"]["Layers"][0] == inspect(ours, "broken")["RootFS"]["Layers"][0]
    finally:
        ours.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_is_there_after_the_daemon_ended(busybox: bytes, context: Path, number: int) -> None:
    ours = made()
    try:
        ours.start().docker("load", input=busybox)
        found = build(ours, context, "kept")
        archive = ours.docker("save", "kept").stdout
        ours.restart(number)
        assert inspect(ours, "kept")["Id"] == found["Id"]
        assert ours.out("run", "--rm", "--network", "none", "kept") == "made"
        assert ours.docker("save", "kept").stdout == archive
        assert build(ours, context, "kept")["Id"] == found["Id"]
        assert findings(ours) == ([], 0)
    finally:
        ours.close()


def test_it_is_there_after_the_database_was_lost(busybox: bytes, context: Path) -> None:
    ours = made()
    try:
        ours.start().docker("load", input=busybox)
        found = build(ours, context, "kept")
        ours.stop()
        for name in ours.data_root.glob("meta.db*"):
            name.write_bytes(b"damage" * 1000)
        ours.start()
        assert inspect(ours, "kept")["Id"] == found["Id"]
        assert ours.out("run", "--rm", "--network", "none", "kept") == "made"
        assert "cannot be recovered" not in ours.log.read_text()
    finally:
        ours.close()


def test_removed_with_its_cache_nothing_is_left(busybox: bytes, context: Path) -> None:
    ours = made()
    try:
        ours.start().docker("load", input=busybox)
        before, folders = blobs(ours), len(os.listdir(ours.data_root / "snapshots"))
        build(ours, context, "gone")
        ours.docker("rmi", "gone")
        build(ours, context, "gone")  # from the cache, which outlives the image
        assert ours.out("run", "--rm", "--network", "none", "gone") == "made"
        ours.docker("rmi", "gone")
        ours.docker("builder", "prune", "-af")
        assert blobs(ours) == before
        wait(lambda: len(os.listdir(ours.data_root / "snapshots")) <= folders + 8)
        assert findings(ours) == ([], 0)
        assert ours.out("images", "-q").splitlines() == ours.out("images", "-q", "busybox").splitlines()
    finally:
        ours.close()


def test_a_built_image_is_a_base_like_any_other(host: Daemon, other: Daemon, context: Path) -> None:
    build(host, context, "base")
    (context / "Dockerfile").write_text("FROM base AS one\nRUN echo top > /top\nFROM scratch\nCOPY --from=one /top /made/file /\n")
    found = build(host, context, "top")
    archive = host.docker("save", "top").stdout
    other.docker("load", input=archive)
    assert inspect(other, "top")["Id"] == found["Id"]
    assert len(found["RootFS"]["Layers"]) == 1
    shutil.rmtree(context)
