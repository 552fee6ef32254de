"""docker-py on images: pull, push, tag, save, load, registry data, prune, disk usage, against Debian's docker-registry on loopback.

A peer's daemon must reach this host's loopback for the tests that pull and push; they skip when it lives in another network namespace.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.lib import images, registries
from tests.lib.daemon import Engine

docker = pytest.importorskip("docker")


@pytest.fixture(scope="module")
def registry() -> Iterator[registries.DockerRegistry]:
    with registries.DockerRegistry() as found:
        yield found


@pytest.fixture
def client(clean: Engine) -> Iterator[Any]:
    found = docker.DockerClient(base_url=f"unix://{clean.socket}", timeout=300)
    yield found
    found.close()


@pytest.fixture
def reachable(client: Any, registry: registries.DockerRegistry) -> str:
    """host:port of the registry, with an image `seeded:1`; skips when the engine cannot reach it."""
    for tag in ("1", "2"):
        registries.seed(registry, "seeded", tag, files=[{"hello": b"hello from a registry\n"}])
    try:
        client.images.get_registry_data(f"{registry.host}/seeded:1")
    except docker.errors.APIError:
        pytest.skip("the engine does not reach the registry")
    return registry.host


def forget(client: Any, *names: str) -> None:
    for name in names:
        try:
            client.images.remove(name, force=True)
        except docker.errors.ImageNotFound:
            pass


def test_pull_push_and_registry_data(client: Any, reachable: str) -> None:
    name = f"{reachable}/seeded"
    try:
        image = client.images.pull(name, tag="1")
        assert image.tags == [f"{name}:1"]
        digest = client.images.get_registry_data(f"{name}:1").id
        assert image.attrs["RepoDigests"] == [f"{name}@{digest}"]
        assert {one.tags[0] for one in client.images.pull(name, all_tags=True)} <= {f"{name}:1", f"{name}:2"}
        assert image.tag(f"{reachable}/pushed", tag="x")
        lines = list(client.images.push(f"{reachable}/pushed", tag="x", stream=True, decode=True))
        assert not [line for line in lines if "error" in line]
        assert lines[-1]["aux"]["Digest"] == client.images.get_registry_data(f"{reachable}/pushed:x").id
    finally:
        forget(client, f"{name}:1", f"{name}:2", f"{reachable}/pushed:x")


def test_what_is_not_there(client: Any, reachable: str) -> None:
    with pytest.raises(docker.errors.NotFound):
        client.images.pull(f"{reachable}/nosuch", tag="1")
    with pytest.raises(docker.errors.NotFound):
        client.images.pull(f"{reachable}/seeded", tag="nosuch")
    errors = [line["error"] for line in client.images.push("nosuch", tag="1", stream=True, decode=True) if "error" in line]
    assert errors == ["An image does not exist locally with the tag: nosuch"]


def test_save_and_load(client: Any) -> None:
    layer = images.tar([images.entry("a", data=b"a")])
    (loaded,) = client.images.load(images.docker_archive([layer], ["saved:1"]))
    try:
        archive = b"".join(loaded.save(named=True))
        client.images.remove("saved:1")
        (again,) = client.images.load(archive)
        assert again.id == loaded.id
        assert again.tags == ["saved:1"]
    finally:
        forget(client, "saved:1")


def test_prune_and_disk_usage(client: Any) -> None:
    client.images.load(images.docker_archive([images.tar([images.entry("one", data=b"1" * 5000)])], ["pruned:1"]))
    (newer,) = client.images.load(images.docker_archive([images.tar([images.entry("two", data=b"2" * 5000)])], ["pruned:1"]))
    try:
        dangling = client.images.list(filters={"dangling": True})
        assert len(dangling) >= 1
        usage = client.df()
        assert newer.id in {image["Id"] for image in usage["Images"]}
        assert usage["LayersSize"] > 0
        result = client.images.prune(filters={"dangling": True})
        assert {entry["Deleted"] for entry in result["ImagesDeleted"] if "Deleted" in entry} >= {image.id for image in dangling}
        assert client.images.list(filters={"dangling": True}) == []
        assert client.images.get("pruned:1").id == newer.id
    finally:
        forget(client, "pruned:1")


def test_login_to_nowhere(client: Any) -> None:
    with pytest.raises(docker.errors.APIError):
        client.login(username="u", password="p", registry="127.0.0.1:1")
