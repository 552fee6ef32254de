"""`POST /build` with outputs: images of builds by the Engine API that go to a registry, or nowhere. Layers that are made twice."""

from __future__ import annotations

import base64
import glob
import io
import json
import os
import secrets
import tarfile
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.lib.buildwork import wait
from tests.lib.daemon import Daemon
from tests.lib.http import Response
from tests.lib.registries import OCI_INDEX, OCI_MANIFEST, DockerRegistry

ACCEPT = {"Accept": f"{OCI_MANIFEST}, {OCI_INDEX}"}
USER, PASSWORD = "me", "hush"


@pytest.fixture(scope="module")
def registry() -> Iterator[DockerRegistry]:
    with DockerRegistry(users={USER: PASSWORD}) as made:
        yield made


def build(daemon: Daemon, outputs: Any, headers: dict[str, str] | None = None, **parameters: str) -> Response:
    """A build of one file that no other build has."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data in (("Dockerfile", b"FROM scratch\nLABEL more=1\nCOPY data /\n"), ("data", secrets.token_bytes(8))):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    query = "&".join(f"{key}={quote(value)}" for key, value in {"outputs": json.dumps(outputs), **parameters}.items())
    return daemon.api("POST", f"/build?{query}", archive.getvalue(), {"Content-Type": "application/x-tar", **(headers or {})})


def lines(answer: Response) -> list[dict[str, Any]]:
    assert answer.status == 200, answer.body
    return [json.loads(line) for line in answer.body.splitlines()]


def text(answer: Response) -> str:
    return "".join(line.get("stream", "") for line in lines(answer))


def images(daemon: Daemon) -> set[str]:
    return {name for image in daemon.api("GET", "/images/json").json() for name in image["RepoTags"] or ()}


@pytest.fixture
def fresh(own_daemon: Callable[..., Daemon]) -> Daemon:
    made = own_daemon()
    made.start()
    return made


@pytest.fixture(autouse=True)
def tidy(daemon: Daemon) -> Iterator[None]:
    yield
    daemon.docker("image", "prune", "-a", "-f", "--filter", "label=more")


def test_names_of_an_output(daemon: Daemon) -> None:
    built = text(build(daemon, [{"Type": "image", "Attrs": {"name": "more/one,more/two:2"}}]))
    assert built.endswith("Successfully tagged more/one:latest\nSuccessfully tagged more/two:2\n")
    assert {"more/one:latest", "more/two:2"} <= images(daemon)


@pytest.mark.parametrize(
    "output", [{"Type": "registry"}, {"Type": "image", "Attrs": {"push": "true"}}, {"Type": "moby", "Attrs": {"push": "true"}}]
)
def test_a_push_with_the_credentials_of_the_request(daemon: Daemon, registry: DockerRegistry, output: dict[str, Any]) -> None:
    name = f"{registry.host}/more/{output['Type']}{len(output)}:1"
    config = {registry.host: {"username": USER, "password": PASSWORD}}
    header = {"X-Registry-Config": base64.urlsafe_b64encode(json.dumps(config).encode()).decode()}
    built = text(build(daemon, [output], header, t=name))
    basic = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    repository = name.rpartition(":")[0].partition("/")[2]
    status, headers, _ = registry.request("HEAD", f"/v2/{repository}/manifests/1", headers={**ACCEPT, "Authorization": f"Basic {basic}"})
    assert status == 200
    assert built.endswith(f"Successfully tagged {name}\nSuccessfully pushed {name}@{headers['docker-content-digest']}\n")
    refused = lines(build(daemon, [output], t=name))[-1]
    assert "error" in refused and ("push" in refused["error"] or "auth" in refused["error"]), refused


def test_an_image_that_only_the_cache_keeps(daemon: Daemon) -> None:
    built = text(build(daemon, [{"Type": "cacheonly"}], t="more/none"))
    assert "COPY data /" in built and "Successfully" not in built
    assert "more/none:latest" not in images(daemon)


def test_an_output_that_there_is_not_is_a_status(daemon: Daemon) -> None:
    for output, status, message in (
        ({"Type": "x"}, 400, 'exporter "x" could not be found'),
        ({"Type": "image", "Attrs": {"nosuch": "1"}}, 400, 'unknown attribute "nosuch"'),
        ({"Type": "registry"}, 400, "tag is needed when pushing to registry"),
        ({"Type": "local", "Attrs": {"dest": "/tmp/x"}}, 501, "use knarr build --output type=local"),
    ):
        answer = build(daemon, [output])
        assert answer.status == status and message in answer.json()["message"], answer.body


def test_a_layer_that_was_made_twice_is_there_once(fresh: Daemon) -> None:
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for name, data in (("Dockerfile", b"FROM scratch\nCOPY one /\nCOPY two /\n"), ("one", b"1"), ("two", b"2")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

    def built(query: str) -> tuple[list[str], str]:
        """The digests of the layers, and what was said."""
        said = text(fresh.api("POST", f"/build?t=twice&{query}", context.getvalue(), {"Content-Type": "application/x-tar"}))
        return fresh.api("GET", "/images/twice/json").json()["RootFS"]["Layers"], said

    def layers() -> int:
        """Those that have files: the daemon keeps empty ones ready. Folders may go while one looks, which `glob` ignores."""
        return len({os.path.dirname(path) for path in glob.glob(f"{fresh.data_root}/snapshots/[0-9]*/fs/*")})

    def unused() -> None:
        """Nothing is that old; but what is there twice goes, unless a build runs still."""
        fresh.api("POST", f"/build/prune?all=1&filters={quote(json.dumps({'until': ['9999h']}))}")

    first, _ = built("")
    assert layers() == 2
    again, said = built("nocache=1")
    assert again == first and "Using cache" not in said

    def once() -> bool:
        unused()
        return layers() == 2

    wait(once)
    third, said = built("")
    assert third == first and said.count("Using cache") == 2
    fresh.docker("rmi", "twice")
    fourth, said = built("")
    assert fourth == first and said.count("Using cache") == 2
    records = fresh.api("GET", "/system/df").json()["BuildCache"]
    assert sum("COPY" in record["Description"] for record in records) == 2
