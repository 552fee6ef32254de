"""Registries for the tests of this folder, started once for each module."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib.daemon import Engine
from tests.lib.registries import Certificates, DockerRegistry, TokenServer, make_certificates

USERS = {"alice": "correct horse"}


@pytest.fixture(scope="package")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(Path(tmp_path_factory.mktemp("certificates")))


@pytest.fixture(scope="module")
def plain() -> Iterator[DockerRegistry]:
    with DockerRegistry() as registry:
        yield registry


@pytest.fixture(scope="module")
def htpasswd() -> Iterator[DockerRegistry]:
    with DockerRegistry(users=USERS) as registry:
        yield registry


@pytest.fixture(scope="module")
def tokens(certificates: Certificates) -> Iterator[TokenServer]:
    with TokenServer(USERS, certificates) as server:
        yield server


@pytest.fixture(scope="module")
def bearer(tokens: TokenServer) -> Iterator[DockerRegistry]:
    with DockerRegistry(tokens=tokens) as registry:
        yield registry


@pytest.fixture(scope="module")
def secure(certificates: Certificates) -> Iterator[DockerRegistry]:
    with DockerRegistry(tls=certificates) as registry:
        yield registry


@pytest.fixture(scope="module")
def registry() -> Iterator[DockerRegistry]:
    """A registry that this test and the engine reach by one name."""
    with DockerRegistry() as made:
        namespace = os.environ.get("KNARR_PEER_NETNS") if os.environ.get("KNARR_PEER_DOCKER_HOST") else None
        if namespace is None:
            yield made
            return
        # The same files and port, on the loopback of the engine's network namespace.
        command = ["ip", "netns", "exec", namespace, "docker-registry", "serve", str(made.folder / "config.yml")]
        other = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(1)
        try:
            yield made
        finally:
            other.kill()
            other.wait()


@pytest.fixture
def tidy(engine: Engine, registry: DockerRegistry) -> Iterator[Engine]:
    """The engine, without the images of the registry and without dangling ones afterwards."""
    yield engine
    for image in engine.api("GET", "/images/json").json():
        if any(registry.host in name for name in (*(image["RepoTags"] or ()), *(image["RepoDigests"] or ()))):
            engine.api("DELETE", f"/images/{image['Id']}?force=1")
