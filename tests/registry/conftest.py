"""Registries for the tests of this folder, started once for each module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib.daemon import Engine
from tests.lib.registries import Certificates, DockerRegistry, TokenServer, beside_engine, make_certificates

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
    with beside_engine() as made:
        yield made


@pytest.fixture
def tidy(engine: Engine, registry: DockerRegistry) -> Iterator[Engine]:
    """The engine, without the images of the registry and without dangling ones afterwards."""
    yield engine
    for image in engine.api("GET", "/images/json").json():
        if any(registry.host in name for name in (*(image["RepoTags"] or ()), *(image["RepoDigests"] or ()))):
            engine.api("DELETE", f"/images/{image['Id']}?force=1")
