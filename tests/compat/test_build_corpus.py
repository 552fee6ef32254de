"""Dockerfiles as people write them: what Knarr makes of each is what BuildKit made of it, file by file and field by field.

`expected.json` of a case is the description of BuildKit's result (dockerd 26.1), recorded by `python -m tests.lib.builds`. With
KNARR_PEER_DOCKER_HOST and KNARR_PEER_BUILDX the same is asked of another engine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib import builds, busybox
from tests.lib.builds import Builder, Case
from tests.lib.daemon import Daemon, Peer

PEER = os.environ.get("KNARR_PEER_DOCKER_HOST")
BUILDX = os.environ.get("KNARR_PEER_BUILDX")
ALL = builds.cases()

KNOWN: dict[str, dict[str, str]] = {}
"""Where Knarr differs from what is recorded: case to patterns of lines of `builds.differences`, with the reason of each."""


def marked(cases: list[Case]) -> list[object]:
    return [pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else []) for case in cases]


@pytest.fixture(scope="module")
def knarr(daemon: Daemon) -> Iterator[Builder]:
    made = Builder(daemon, "knarr")
    yield made
    made.close()


@pytest.fixture(scope="module")
def classic(daemon: Daemon) -> Iterator[Builder]:
    made = Builder(daemon, "classic")
    yield made
    made.close()


@pytest.fixture(scope="module")
def peer() -> Iterator[Builder]:
    assert PEER
    other = Peer(PEER)
    busybox.load(other)
    made = Builder(other, "buildx")
    yield made
    made.close()


@pytest.mark.parametrize("case", marked(ALL))
def test_as_recorded(case: Case, knarr: Builder, tmp_path: Path) -> None:
    known = KNOWN.get(case.name, {})
    found = list(builds.differences(case.expected, knarr.build(case, tmp_path)))
    assert [line for line in found if not any(re.search(pattern, line) for pattern in known)] == []
    assert [pattern for pattern in known if not any(re.search(pattern, line) for line in found)] == [], "no longer different"


@pytest.mark.parametrize("case", marked([case for case in ALL if case.classic]))
def test_by_the_classic_client(case: Case, classic: Builder, tmp_path: Path) -> None:
    """The docker CLI without buildx: what it sends is another context archive, what comes out is the same."""
    known = KNOWN.get(case.name, {})
    found = list(builds.differences(case.expected, classic.build(case, tmp_path)))
    assert [line for line in found if not any(re.search(pattern, line) for pattern in known)] == []


@pytest.mark.skipif(not (PEER and BUILDX), reason="KNARR_PEER_DOCKER_HOST and KNARR_PEER_BUILDX name no other engine")
@pytest.mark.parametrize("case", marked([case for case in ALL if not case.alone]))
def test_by_the_peer(case: Case, peer: Builder, tmp_path: Path) -> None:
    assert list(builds.differences(case.expected, peer.build(case, tmp_path))) == []


def test_corpus_is_large() -> None:
    assert len(ALL) >= 40
