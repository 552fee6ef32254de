"""Every way in which docker-py and Compose ask for a build with the classic builder, and what they get. Written against dockerd 26.1."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lib import compose
from tests.lib.daemon import Engine, docker_program

docker = pytest.importorskip("docker")

OWN = "knarr-compat-clients"  # begins the names of all images that are made here
DOCKERFILE = b'FROM busybox AS first\nARG WORD=none\nRUN echo $WORD > /word\nCMD ["cat", "/word"]\n'


@pytest.fixture
def api(clean: Engine) -> Iterator[Engine]:
    """The engine; images made by the test are removed after it."""
    yield clean
    for image in clean.api("GET", "/images/json").json():
        for tag in image["RepoTags"] or ():
            if tag.startswith(OWN):
                clean.api("DELETE", f"/images/{tag}?force=1")


@pytest.fixture
def client(api: Engine) -> Iterator[Any]:
    found = docker.DockerClient(base_url=f"unix://{api.socket}", timeout=120)
    yield found
    found.close()


def archive(**files: bytes) -> io.BytesIO:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    made.seek(0)
    return made


def said(log: Any) -> str:
    return "".join(line.get("stream", "") for line in log)


def test_a_context_of_ones_own(client: Any) -> None:
    context = archive(Other=b"FROM busybox\nCOPY Other file /here/\n", file=b"x")
    image, _ = client.images.build(fileobj=context, custom_context=True, dockerfile="Other", tag=OWN)
    assert client.containers.run(OWN, "ls /here", remove=True, network_mode="none") == b"Other\nfile\n"
    packed = io.BytesIO(gzip.compress(context.getvalue()))
    again, _ = client.images.build(fileobj=packed, custom_context=True, dockerfile="Other", encoding="gzip")
    assert again.id == image.id


def test_arguments_labels_and_a_target(client: Any) -> None:
    file = DOCKERFILE + b"FROM first\nRUN false\n"
    options = {"buildargs": {"WORD": "two", "UNUSED": "x"}, "labels": {"k": "v"}, "target": "first", "rm": True}
    image, log = client.images.build(fileobj=io.BytesIO(file), tag=OWN, **options)
    assert image.labels == {"k": "v"} and image.tags == [f"{OWN}:latest"]
    assert "[Warning] One or more build-args [UNUSED] were not consumed" in said(log)
    assert client.containers.run(OWN, remove=True, network_mode="none") == b"two\n"


def test_limits_hosts_and_shared_memory(client: Any) -> None:
    shows = b"FROM busybox\nRUN grep own.example /etc/hosts; df /dev/shm | tail -n 1\nRUN ip link | grep -c mtu\n"
    limits = {"memory": 64 << 20, "memswap": 128 << 20, "cpushares": 512, "cpusetcpus": "0"}
    options = {"shmsize": 20 << 20, "extra_hosts": {"own.example": "192.0.2.7"}, "network_mode": "none", "container_limits": limits}
    _, log = client.images.build(fileobj=io.BytesIO(shows), nocache=True, **options)
    told = said(log)
    assert "192.0.2.7\town.example" in told and " 20480 " in told and "\n1\n" in told
    with pytest.raises(docker.errors.DockerException):
        client.images.build(fileobj=io.BytesIO(shows), container_limits={"memroy": 1})


def test_what_comes_line_by_line(client: Any) -> None:
    lines = list(client.api.build(fileobj=io.BytesIO(DOCKERFILE), decode=True, nocache=True, forcerm=True))
    assert all(isinstance(line, dict) for line in lines)
    assert any(line.get("aux", {}).get("ID", "").startswith("sha256:") for line in lines)
    raw = b"".join(client.api.build(fileobj=io.BytesIO(DOCKERFILE)))
    assert said(json.loads(line) for line in raw.splitlines() if line.strip()).count(" ---> Using cache\n") == 3


def test_a_client_that_does_not_wait(client: Any, api: Engine) -> None:
    with pytest.raises(Exception, match="timed out"):
        client.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN sleep 30\n"), timeout=1, nocache=True)
    assert api.api("GET", "/_ping").status == 200


def test_ignored_files_and_an_own_dockerfile(client: Any, tmp_path: Path) -> None:
    for name, text in (("Dockerfile", "FROM scratch\n"), (".dockerignore", "*\n!kept\n"), ("kept", "k"), ("left", "l")):
        (tmp_path / name).write_text(text)
    elsewhere = tmp_path.parent / f"{tmp_path.name}.df"
    elsewhere.write_text("FROM busybox\nCOPY . /all\n")
    client.images.build(path=str(tmp_path), dockerfile=str(elsewhere), tag=OWN, gzip=True)
    found = client.containers.run(OWN, "ls /all", remove=True, network_mode="none").split()
    assert b"kept" in found and b"left" not in found


def test_a_built_image_travels(client: Any) -> None:
    image, _ = client.images.build(fileobj=io.BytesIO(DOCKERFILE), tag=OWN)
    data = b"".join(image.save(named=True))
    client.images.remove(OWN, force=True)
    (loaded,) = client.images.load(data)
    assert loaded.id == image.id and loaded.tags == [f"{OWN}:latest"]
    assert client.containers.run(OWN, remove=True, network_mode="none") == b"none\n"
    assert sum(entry["Size"] > 0 for entry in loaded.history()) == 2


def test_the_step_that_failed_is_the_last_one_shown(api: Engine) -> None:
    environment = {**api.docker_environment(), "DOCKER_BUILDKIT": "0"}
    done = subprocess.run(
        [docker_program(), "build", "-"], input=b"FROM busybox\nRUN true\nCOPY none /\nRUN date\n", env=environment, capture_output=True
    )  # fmt: skip
    assert done.returncode == 1 and b"not found" in done.stderr
    assert done.stdout.rstrip().endswith(b"Step 3/4 : COPY none /")


def test_compose_builds_starts_and_names(api: Engine, tmp_path: Path) -> None:
    found = compose.program("2")
    if found is None:
        pytest.skip("Compose 2 is not here")
    (tmp_path / "Df").write_text(
        "FROM busybox AS one\nARG WORD\nRUN grep own.example /etc/hosts; echo $WORD > /word\nFROM one\nRUN false\n"
    )
    build = {
        "context": ".", "dockerfile": "Df", "target": "one", "args": {"WORD": "composed"}, "network": "none", "shm_size": "10m",
        "extra_hosts": ["own.example:192.0.2.7"], "cache_from": ["busybox"], "tags": [f"{OWN}:second"],
    }  # fmt: skip
    service = {"image": OWN, "build": build, "command": ["cat", "/word"], "network_mode": "none"}
    file = tmp_path / "compose.yaml"
    file.write_text(json.dumps({"services": {"s": service}}))
    environment = {**api.docker_environment(), "DOCKER_BUILDKIT": "0"}

    def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [found or "", "-p", OWN, "-f", str(file), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, timeout=300, stdin=subprocess.DEVNULL, text=True)

    try:
        done = ask("up", "--build")
        assert done.returncode == 0 and "| composed" in done.stdout, (done, api.log_tail())
        assert set(api.api("GET", f"/images/{OWN}/json").json()["RepoTags"]) == {f"{OWN}:latest", f"{OWN}:second"}
    finally:
        ask("down")
