"""`docker pull` from Debian's registry, as dockerd does it: KNARR_PEER_DOCKER_HOST names one to try this on, and KNARR_PEER_NETNS the
network namespace whose loopback it has.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest

from tests.lib import images
from tests.lib.daemon import Engine
from tests.lib.registries import DockerRegistry, seed
from tests.lib.registryimages import TAR, put_image, put_index, small


def inspected(engine: Engine, name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(engine.out("image", "inspect", name))
    return found[0]


def lines(text: str) -> dict[str, list[str]]:
    """What the docker CLI printed of each layer, in order; other lines are under ""."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        id, colon, status = line.partition(": ")
        layer = bool(colon) and len(id) == 12 and all(char in "0123456789abcdef" for char in id)
        found.setdefault(id if layer else "", []).append(status if layer else line)
    return found


def test_what_is_pulled_runs(tidy: Engine, registry: DockerRegistry) -> None:
    name = f"{registry.host}/pull/runs:v"
    unseen = small(os.urandom(8).hex())
    put_image(registry, "pull/runs", "v", [unseen, images.busybox_layer(), small("hello"), small("hello")])
    first = lines(tidy.out("pull", name))
    assert len(first) == 4  # three layers, one of them twice, and the rest
    for id, told in first.items():
        if id:
            wanted = ["Pulling fs layer", "Verifying Checksum", "Download complete", "Pull complete"]
            assert [status for status in told if status != "Waiting"] == wanted
    digest = inspected(tidy, name)["RepoDigests"][0].partition("@")[2]
    status = f"Status: Downloaded newer image for {name}"
    assert first[""] == ["v: Pulling from pull/runs", f"Digest: {digest}", status, name]
    assert tidy.out("run", "--rm", "--network", "none", name, "cat", "hello") == "hello"
    again = lines(tidy.out("pull", name))
    assert again == {"": ["v: Pulling from pull/runs", f"Digest: {digest}", f"Status: Image is up to date for {name}", name]}
    assert tidy.out("pull", "-q", name) == name


def test_layers_that_are_here_are_not_fetched(tidy: Engine, registry: DockerRegistry) -> None:
    below, mark = small("below"), os.urandom(8).hex()
    put_image(registry, "pull/shared", "one", [below])
    put_image(registry, "pull/shared", "two", [below, small(mark)])
    tidy.docker("pull", f"{registry.host}/pull/shared:one")
    told = lines(tidy.out("pull", f"{registry.host}/pull/shared:two"))
    assert sorted(status[-1] for id, status in told.items() if id) == ["Already exists", "Pull complete"]
    assert ["Already exists"] in told.values()


def test_a_newer_image_leaves_the_old_one_dangling(tidy: Engine, registry: DockerRegistry) -> None:
    name = f"{registry.host}/pull/newer:v"
    put_image(registry, "pull/newer", "v", [small("old")])
    tidy.docker("pull", name)
    old = inspected(tidy, name)["Id"]
    put_image(registry, "pull/newer", "v", [small("new")])
    assert f"Status: Downloaded newer image for {name}" in tidy.out("pull", name)
    assert inspected(tidy, name)["Id"] != old
    left = inspected(tidy, old)
    assert left["RepoTags"] == []
    assert len(left["RepoDigests"]) == 1  # it is still known under its digest
    tidy.docker("rmi", old)


def test_by_digest(tidy: Engine, registry: DockerRegistry) -> None:
    digest = put_image(registry, "pull/digest", "v", [small("x")])["digest"]
    name = f"{registry.host}/pull/digest@{digest}"
    told = lines(tidy.out("pull", name))[""]
    assert told == [
        f"{registry.host}/pull/digest@{digest}: Pulling from pull/digest",
        f"Digest: {digest}",
        f"Status: Downloaded newer image for {name}",
        name,
    ]
    image = inspected(tidy, name)
    assert (image["RepoTags"], image["RepoDigests"]) == ([], [name])
    assert f"Status: Image is up to date for {name}" in tidy.out("pull", name)
    tidy.docker("rmi", name)


ARMS = {"v5": ("arm", "v5"), "v6": ("arm", "v6"), "v7": ("arm", "v7"), "v8": ("arm64", "v8"), "bare": ("arm64", "")}


@pytest.mark.parametrize(
    ("offered", "platform", "chosen"),
    [
        ("v5 v6 v7 v8", "linux/arm/v5", "v5"), ("v5 v6 v7 v8", "linux/arm/v6", "v6"), ("v5 v6 v7 v8", "linux/arm/v7", "v7"),
        ("v8 v7 v6 v5", "linux/arm", "v7"), ("v5 v6 v7 v8", "linux/arm64", "v8"), ("v5 v6 v7 bare", "linux/arm64/v8", "bare"),
        ("v5 v6", "linux/arm/v7", "v6"), ("v7", "linux/arm/v6", None), ("v6 v7", "linux/riscv64", None),
    ],
)  # fmt: skip
def test_the_platform_that_is_asked_for(tidy: Engine, registry: DockerRegistry, offered: str, platform: str, chosen: str | None) -> None:
    repository = f"pull/arms-{offered.replace(' ', '')}"
    members = []
    for name in offered.split():
        architecture, variant = ARMS[name]
        fields = {"architecture": architecture, **({"variant": variant} if variant else {})}
        members.append(put_image(registry, repository, "", [small(name)], config={"Labels": {"arm": name}}, **fields))
    put_index(registry, repository, "v", members)
    name = f"{registry.host}/{repository}:v"
    result = tidy.docker("pull", "--platform", platform, name, check=False)
    if chosen is None:
        assert result.returncode == 1
        assert f"no matching manifest for {platform}" in result.stderr.decode()
        return
    assert b"Status: Downloaded newer image" in result.stdout
    assert inspected(tidy, name)["Config"]["Labels"]["arm"] == chosen
    tidy.docker("rmi", name)


def test_all_tags(tidy: Engine, registry: DockerRegistry) -> None:
    for tag in ("one", "two", "three"):
        put_image(registry, "pull/all", tag, [small("base"), small(tag)])
    told = lines(tidy.out("pull", "--all-tags", f"{registry.host}/pull/all"))
    assert sorted(line.partition(":")[0] for line in told[""] if "Pulling from" in line) == ["one", "three", "two"]
    assert told[""][-2:] == [f"Status: Downloaded newer image for {registry.host}/pull/all", f"{registry.host}/pull/all"]
    again = tidy.out("pull", "-a", f"{registry.host}/pull/all")
    assert f"Status: Image is up to date for {registry.host}/pull/all" in again
    assert set(lines(again)) == {""}


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True).stdout


@pytest.mark.parametrize("form", ["plain", "gzip", "zstd", "docker"])
def test_every_form_of_layers(tidy: Engine, registry: DockerRegistry, form: str) -> None:
    layers = [images.busybox_layer(), small(form)]
    name = f"{registry.host}/pull/form:{form}"
    if form == "docker":
        seed(registry, "pull/form", form, files=[{"docker": b"docker"}])
        assert tidy.docker("pull", name)
        assert inspected(tidy, name)["Config"]["Cmd"] == ["/hello"]
        return
    kind = {"plain": TAR, "gzip": TAR + "+gzip", "zstd": TAR + "+zstd"}[form]
    pack = {"plain": lambda data: data, "gzip": None, "zstd": zstd}[form]
    put_image(registry, "pull/form", form, layers, kind=kind, pack=pack)
    tidy.docker("pull", name)
    assert tidy.out("run", "--rm", "--network", "none", name, "cat", f"/{form}") == form


@pytest.mark.parametrize(
    ("repository", "text"),
    [
        ("pull/no-tag:v", "manifest for {host}/pull/no-tag:v not found: manifest unknown: manifest unknown"),
        ("pull/no@sha256:" + "0" * 64, "manifest for {host}/pull/no@sha256:" + "0" * 64 + " not found: manifest unknown: manifest unknown"),
        ("Pull/upper", "invalid reference format: repository name (Pull/upper) must be lowercase"),
    ],
)
def test_what_is_not_there(tidy: Engine, registry: DockerRegistry, repository: str, text: str) -> None:
    result = tidy.docker("pull", f"{registry.host}/{repository}", check=False)
    assert result.returncode == 1
    assert text.format(host=registry.host) in result.stderr.decode()
