"""The registry under test: our own, or any other that runs already and takes pushes without a password (KNARR_PEER_REGISTRY=http://host:port).

What only ours does is marked with `ours` and skipped for a peer.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from tests.lib.daemon import Daemon
from tests.lib.distribution import Client, Served

PEER = os.environ.get("KNARR_PEER_REGISTRY", "")


@pytest.fixture(scope="package")
def registry_url() -> Iterator[str]:
    if PEER:
        yield PEER
        return
    if os.geteuid() != 0:
        pytest.skip("a daemon needs root")
    daemon = Daemon()
    try:
        daemon.start()
        served = Served(daemon)
        yield served.url
        assert served.end() == 0
    finally:
        daemon.close()


@pytest.fixture(scope="package")
def registry(registry_url: str) -> Client:
    return Client(registry_url)


@pytest.fixture
def ours() -> None:
    """For what the specification leaves open, or a peer of an older version does not have."""
    if PEER:
        pytest.skip("another registry may do otherwise")


@pytest.fixture
def conforming() -> None:
    """For what the specification asks, and Debian's docker-registry 2.8 does not do."""
    if PEER and not os.environ.get("KNARR_PEER_REGISTRY_CONFORMS"):
        pytest.skip("docker-registry 2.8 falls short of the specification here; KNARR_PEER_REGISTRY_CONFORMS=1 for one that does not")


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """No `registry serve` of a test outlives it."""
    before = set(Served.running)
    yield
    for one in Served.running - before:
        one.end()


@pytest.fixture
def name() -> str:
    """A repository of this test alone."""
    return f"conformance/{uuid.uuid4().hex[:12]}"
