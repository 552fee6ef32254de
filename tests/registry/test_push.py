"""`docker push` to Debian's registry. The tests that take `tidy` are what dockerd does too, and can be tried on it, see `test_pull`."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lib import images
from tests.lib.daemon import Daemon, Engine, knarr_command
from tests.lib.leaks import Leaks
from tests.lib.proxy import Fault, Proxy
from tests.lib.registries import MANIFEST, OCI_INDEX, OCI_MANIFEST, DockerRegistry, Request, digest_of
from tests.lib.registryimages import put_image, put_index, small

MANIFESTS = ", ".join((OCI_INDEX, OCI_MANIFEST, MANIFEST))


def loaded(engine: Engine, tag: str, layers: list[bytes]) -> str:
    """An image that no registry has seen; its tag."""
    archive = images.docker_archive(layers, [tag], {"Labels": {"mark": os.urandom(8).hex()}})
    engine.docker("load", input=archive)
    return tag


def stored(registry: DockerRegistry, repository: str, reference: str) -> tuple[str, dict[str, Any]]:
    """The digest of a manifest that the registry has, and the manifest."""
    status, _, raw = registry.request("GET", f"/v2/{repository}/manifests/{reference}", headers={"Accept": MANIFESTS})
    assert status == 200, raw
    return digest_of(raw), json.loads(raw)


def final(told: list[str]) -> set[str]:
    """What the last line of each layer says."""
    last = {line.partition(": ")[0]: line.partition(": ")[2] for line in told if len(line.partition(": ")[0]) == 12}
    return set(last.values())


def test_nothing_there_then_everything(tidy: Engine, registry: DockerRegistry) -> None:
    name = loaded(tidy, f"{registry.host}/push/first:v", [images.busybox_layer(), small(os.urandom(8).hex())])
    told = tidy.out("push", name).splitlines()
    digest, manifest = stored(registry, "push/first", "v")
    assert told[0] == f"The push refers to repository [{registry.host}/push/first]"
    assert final(told) == {"Pushed"}
    assert told[-1].startswith(f"v: digest: {digest} size: ")
    assert all(registry.has_blob("push/first", blob["digest"]) for blob in (manifest["config"], *manifest["layers"]))
    again = tidy.out("push", name).splitlines()
    assert final(again) == {"Layer already exists"}
    assert again[-1] == told[-1]
    assert json.loads(tidy.out("image", "inspect", name))[0]["RepoDigests"] == [f"{registry.host}/push/first@{digest}"]
    tidy.docker("rmi", name)
    assert b"Downloaded newer image" in tidy.docker("pull", name).stdout  # and back
    assert tidy.out("run", "--rm", "--network", "none", name, "echo", "runs") == "runs"


def test_layers_of_another_repository_are_mounted(tidy: Engine, registry: DockerRegistry) -> None:
    name = f"{registry.host}/push/from:v"
    put_image(registry, "push/from", "v", [small(os.urandom(8).hex()), small(os.urandom(8).hex())])
    tidy.docker("pull", name)
    other = f"{registry.host}/push/into:v"
    tidy.docker("tag", name, other)
    told = tidy.out("push", other).splitlines()
    assert final(told) == {"Mounted from push/from"}
    assert stored(registry, "push/into", "v")


def test_every_tag(tidy: Engine, registry: DockerRegistry) -> None:
    layer = small(os.urandom(8).hex())
    for tag in ("one", "two"):
        loaded(tidy, f"{registry.host}/push/tags:{tag}", [layer, small(tag)])
    told = tidy.out("push", "--all-tags", f"{registry.host}/push/tags")
    for tag in ("one", "two"):
        assert f"{tag}: digest: {stored(registry, 'push/tags', tag)[0]} size: " in told


def test_what_cannot_be_pushed(tidy: Engine, registry: DockerRegistry) -> None:
    result = tidy.docker("push", f"{registry.host}/push/nothing:v", check=False)
    assert result.returncode == 1
    assert f"An image does not exist locally with the tag: {registry.host}/push/nothing" in result.stderr.decode()
    result = tidy.docker("push", f"{registry.host}/push/nothing@sha256:{'0' * 64}", check=False)
    assert result.returncode == 1
    assert b"cannot push a digest reference" in result.stderr


# What dockerd of that age does not do


@pytest.fixture
def own(daemon: Daemon, registry: DockerRegistry) -> Iterator[Daemon]:
    """Knarr, without the registry's images afterwards."""
    yield daemon
    for image in daemon.api("GET", "/images/json").json():
        if any(registry.host in name or "127.0.0.1" in name for name in (*image["RepoTags"], *image["RepoDigests"])):
            daemon.api("DELETE", f"/images/{image['Id']}?force=1")


def test_a_manifest_is_pushed_as_it_came(own: Daemon, registry: DockerRegistry) -> None:
    """With its own compression and its own bytes: the digest is the one that somebody may have signed."""
    zstd = lambda data: subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True).stdout  # noqa: E731
    kind = "application/vnd.oci.image.layer.v1.tar+zstd"
    described = put_image(registry, "push/same", "v", [small("a"), small("b")], kind=kind, pack=zstd)
    own.docker("pull", f"{registry.host}/push/same:v")
    with DockerRegistry() as other:
        own.docker("tag", f"{registry.host}/push/same:v", f"{other.host}/push/same:w")
        own.docker("push", f"{other.host}/push/same:w")
        assert stored(other, "push/same", "w")[0] == described["digest"]


def test_an_index_goes_whole_or_not_at_all(own: Daemon, registry: DockerRegistry) -> None:
    shared = small("in both")
    members = [put_image(registry, "push/index", "", [shared, small(one)], architecture=one) for one in (images.ARCHITECTURE, "s390x")]
    digest = put_index(registry, "push/index", "v", members)
    name = f"{registry.host}/push/index:v"
    with DockerRegistry() as other, Proxy(other) as proxy:
        target = f"{proxy.host}/push/index:v"
        own.docker("pull", name)
        own.docker("tag", name, target)
        # One of two platforms is here: its manifest goes alone, and that is told.
        answer = own.api("POST", f"/v1.47/images/{proxy.host}/push/index/push?tag=v", headers={"X-Registry-Auth": "e30="})
        told = [json.loads(line) for line in answer.body.splitlines()]
        note = next(line["aux"] for line in told if "manifestPushedInsteadOfIndex" in line.get("aux", {}))
        assert note["manifestPushedInsteadOfIndex"] is True
        assert note["originalIndex"]["digest"] == digest
        assert note["selectedManifest"]["digest"] == members[0]["digest"]
        assert stored(other, "push/index", "v")[0] == members[0]["digest"]
        # Both are here: all of it goes, and what they share once.
        own.docker("pull", "--platform", "linux/s390x", name)
        proxy.begin()
        own.docker("push", target)
        assert stored(other, "push/index", "v")[0] == digest
        assert stored(other, "push/index", members[1]["digest"])
        begun = [path for path in proxy.paths("POST") if path.endswith("/blobs/uploads/")]
        assert len(begun) == 2  # the other platform's own layer and configuration


def test_a_push_that_is_cut_goes_on(own: Daemon, registry: DockerRegistry) -> None:
    noise = random.Random(3).randbytes(3 << 20)
    with Proxy(registry) as proxy:
        name = loaded(own, f"{proxy.host}/push/cut:v", [images.tar([images.entry("noise", data=noise)])])
        refused: list[Request] = []

        def choose(request: Request) -> Fault | None:
            if request.method in ("PATCH", "PUT") and "/uploads/" in request.target and not refused:
                refused.append(request)
                return Fault(garbage=b"\0")
            return None

        proxy.begin(choose)
        assert "Pushed" in own.out("push", name)
        assert refused
        assert stored(registry, "push/cut", "v")


def test_a_client_that_leaves_ends_its_push(own: Daemon, registry: DockerRegistry) -> None:
    leaks = Leaks(own)
    noise = random.Random(4).randbytes(4 << 20)
    with Proxy(registry) as proxy:
        name = loaded(own, f"{proxy.host}/push/left:v", [images.tar([images.entry("noise", data=noise)])])
        proxy.begin(lambda request: Fault(wait=30) if request.method == "PATCH" else None)
        client = own.docker_popen("push", name)
        while not proxy.paths("PATCH"):
            assert client.poll() is None
            time.sleep(0.01)
        client.kill()
        client.communicate()
        own.docker("rmi", name)  # what is being pushed would be kept
        leaks.check()
    assert registry.request("GET", "/v2/push/left/manifests/v")[0] == 404


def test_our_own_client_limits_the_rate(own: Daemon, registry: DockerRegistry) -> None:
    """The bytes that went, over the time that they took."""
    noise = random.Random(5).randbytes(2 << 20)
    with Proxy(registry) as proxy:
        name = loaded(own, f"{proxy.host}/push/rate:v", [images.tar([images.entry("noise", data=noise)])])
        command = [*knarr_command(), "-H", f"unix://{own.socket}", "push", "--limit-rate", "2MB", name]
        begin = time.monotonic()
        result = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=120)
        assert result.returncode == 0, result.stderr
        assert proxy.received > len(noise)
        assert proxy.received / (time.monotonic() - begin) < 2_500_000


@pytest.mark.parametrize("kind", ["htpasswd", "bearer"])
def test_a_password_is_needed_and_works(daemon: Daemon, tmp_path: Path, request: pytest.FixtureRequest, kind: str) -> None:
    guarded: DockerRegistry = request.getfixturevalue(kind)
    name = loaded(daemon, f"{guarded.host}/push/guarded:v", [small(kind)])
    config = ("--config", str(tmp_path / "config"))
    denied = daemon.docker(*config, "push", name, check=False)
    assert denied.returncode == 1
    assert (b"no basic auth credentials" if kind == "htpasswd" else b"requested access to the resource is denied") in denied.stderr
    daemon.docker(*config, "login", "-u", "alice", "--password-stdin", guarded.host, input=b"correct horse")
    assert b"Pushed" in daemon.docker(*config, "push", name).stdout
    daemon.docker("rmi", name)
    assert b"Downloaded newer image" in daemon.docker(*config, "pull", name).stdout
    daemon.docker("rmi", name)
    daemon.docker(*config, "logout", guarded.host)
    denied = daemon.docker(*config, "pull", name, check=False)
    assert denied.returncode == 1
    text = "no basic auth credentials" if kind == "htpasswd" else f"pull access denied for {guarded.host}/push/guarded"
    assert text in denied.stderr.decode()
    assert name not in daemon.out("images", "--format", "{{.Repository}}:{{.Tag}}")
