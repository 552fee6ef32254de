"""docker-py against the engine: another client than the CLI, with other habits (no upgrade header, streams read in Python)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.lib.daemon import Engine

docker = pytest.importorskip("docker")


@pytest.fixture
def client(clean: Engine) -> Iterator[Any]:
    found = docker.DockerClient(base_url=f"unix://{clean.socket}", timeout=300)
    yield found
    found.close()


def test_ping_and_version(client: Any) -> None:
    assert client.ping() is True
    assert client.version()["ApiVersion"]
    assert client.info()["OSType"] == "linux"


def test_run_returns_the_output(client: Any) -> None:
    assert client.containers.run("busybox", ["echo", "hello"], remove=True, network_mode="none") == b"hello\n"


def test_a_failing_command_raises(client: Any) -> None:
    with pytest.raises(docker.errors.ContainerError) as caught:
        client.containers.run("busybox", ["sh", "-c", "echo why >&2; exit 3"], remove=True, network_mode="none")
    assert caught.value.exit_status == 3
    assert b"why" in caught.value.stderr


def test_life_of_a_container(client: Any) -> None:
    container = client.containers.run("busybox", ["sleep", "1000"], detach=True, name="py", network_mode="none", labels={"by": "docker-py"})
    container.reload()
    assert container.status == "running"
    assert [c.name for c in client.containers.list(filters={"label": "by=docker-py"})] == ["py"]
    code, output = container.exec_run(["sh", "-c", "echo out; echo err >&2; exit 5"], demux=True)
    assert (code, output) == (5, (b"out\n", b"err\n"))
    container.stop(timeout=0)
    assert container.wait()["StatusCode"] == 137
    container.remove()
    with pytest.raises(docker.errors.NotFound):
        client.containers.get("py")


def test_streamed_logs(client: Any) -> None:
    container = client.containers.run(
        "busybox", ["sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.1; done"], detach=True, network_mode="none"
    )
    assert b"".join(container.logs(stream=True, follow=True)) == b"1\n2\n3\n"


def test_attach_to_the_raw_socket(client: Any) -> None:
    container = client.containers.create("busybox", ["cat"], stdin_open=True, tty=True, network_mode="none")
    socket = container.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
    container.start()
    socket._sock.sendall(b"typed\n\x04")
    received = b""
    while chunk := socket._sock.recv(4096):
        received += chunk
    socket.close()
    assert received == b"typed\r\ntyped\r\n"
    assert container.wait()["StatusCode"] == 0


def test_missing_image(client: Any) -> None:
    with pytest.raises(docker.errors.ImageNotFound):
        client.images.get("nothing-of-that-name")


def test_events(client: Any) -> None:
    since = client.info()["SystemTime"]
    assert since
    container = client.containers.run("busybox", ["true"], detach=True, network_mode="none")
    container.wait()
    import time

    actions = [
        e["Action"]
        for e in client.events(since=int(time.time()) - 60, until=int(time.time()) + 1, decode=True, filters={"container": container.id})
    ]
    assert actions[:3] == ["create", "start", "die"]
