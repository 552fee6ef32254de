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
from tests.lib.builds import Builder, Built, Case
from tests.lib.daemon import Daemon, Peer

PEER = os.environ.get("KNARR_PEER_DOCKER_HOST")
BUILDX = os.environ.get("KNARR_PEER_BUILDX")
ALL = builds.cases()

FOLDER_TIMES = r": 'd (\d+ \d+:\d+) -?\d+' instead of 'd \1 now'$"
"""A folder has the time of its source, or the one it has below, where BuildKit may give it that of the build: when something is put into
it, and now and then when it is one of a context. Kept, the same input makes the same layer."""
ANY_TIMES = r": 'd (\d+ \d+:\d+) (-?\d+|now)' instead of 'd \1 (-?\d+|now)'$"
"""The same of another engine. And an archive of the classic client lacks folders that are left out but for something in them."""
KNOWN: dict[str, dict[str, str]] = {
    "17-chmod": {"by-arg": "variables in --chmod are newer than what is recorded, which took an unknown mode for none"},
    "30-add-archives": {
        r"(tree|layer 9): owned/": "--chown of what an archive has is newer (0.23)",
        r"(tree|layer 3): xz/": "BuildKit needs a program `xz` beside dockerd; there was none",
    },
    "31-add-broken-archive": {"the gzip stream is cut off' instead of 'unexpected EOF": "says which archive, and what is wrong with it"},
    "36-user-workdir": {"'WORKDIR /trailing'": "newer ones clean the path in the history too"},
    "73-copy-of-special-files": {r"disk: 'b .* instead of 'c ": "BuildKit makes character devices of block devices"},
    "75-command-reset": {"/trailing/slash'": "newer ones clean the path"},
    "79-whiteout-names": {"all/.wh.x: 'nothing' instead of 'whiteout'": "no layer can hold such a file: it is left out, and hides nothing"},
    "86-wildcard-and-dangling-links": {
        "'none' instead of '\"/sub/nowhere": "BuildKit asks that all links below a folder lead somewhere when a wildcard named it"
    },
    "89-program-not-found": {"instead of": "says what was not found: BuildKit has only the status of its runtime"},
    "45-link": {
        "dest|alias|modes": "dockerd's own store cannot put layers together and does a plain copy; elsewhere --link does what is "
        "documented: a layer does not depend on what is below, links there are not followed and folders are made anew"
    },
    "53-attributes": {
        r"(all/capable|changed): .*security.capability": "BuildKit loses capabilities of files on the way from the client, because it "
        "changes owners last; the classic builder keeps them"
    },
}
"""Where Knarr differs from what is recorded: case to patterns of lines of `builds.differences`, with the reason of each."""


def differences(case: Case, built: Built, times: str = FOLDER_TIMES) -> list[str]:
    return [line for line in builds.differences(case.expected, built) if not re.search(times, line)]


def unknown(case: Case, found: list[str]) -> list[str]:
    return [line for line in found if not any(re.search(pattern, line) for pattern in KNOWN.get(case.name, ()))]


def marked(cases: list[Case]) -> list[object]:
    return [pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.debian else []) for case in cases]


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
    found = differences(case, knarr.build(case, tmp_path))
    assert unknown(case, found) == []
    assert [pattern for pattern in KNOWN.get(case.name, ()) if not any(re.search(pattern, line) for line in found)] == [], "as recorded now"


@pytest.mark.parametrize("case", marked([case for case in ALL if case.classic]))
def test_by_the_classic_client(case: Case, classic: Builder, tmp_path: Path) -> None:
    """The docker CLI without buildx: what it sends is another context archive, what comes out is the same."""
    assert unknown(case, differences(case, classic.build(case, tmp_path), ANY_TIMES)) == []


@pytest.mark.skipif(not (PEER and BUILDX), reason="KNARR_PEER_DOCKER_HOST and KNARR_PEER_BUILDX name no other engine")
@pytest.mark.parametrize("case", marked([case for case in ALL if not case.alone]))
def test_by_the_peer(case: Case, peer: Builder, tmp_path: Path) -> None:
    assert differences(case, peer.build(case, tmp_path), ANY_TIMES) == []


def test_corpus_is_large() -> None:
    assert len(ALL) >= 40


def test_comparison_sees_what_differs() -> None:
    """One change of every kind in a result, each found."""
    case = next(case for case in ALL if case.name == "73-copy-of-special-files")
    assert list(builds.differences(case.expected, recorded(case))) == []
    changes = {
        "copied/a": "f 6711 0:0 2 0000000000000000 1115269505", "copied/b": "f 6711 0:0 2 73cb3858a687a849 1115269505",
        "copied/dir": "d 755 1:1 now", "copied/null": "c 666 0:0 1:5 now", "copied/pipe": "p 600 0:0 now", "copied/x": "p 0 0:0 1",
    }  # fmt: skip
    for name, line in changes.items():
        found = recorded(case)
        found.layers[0][name] = line
        assert [line for line in builds.differences(case.expected, found) if f": {name}: " in line], name
    found = recorded(case)
    del found.layers[0]["copied/pipe"]
    found.layers[-1]["single"] = "whiteout"
    found.config["User"] = "nobody"
    found.history[0][0] += "x"
    parts = {line.partition(":")[0] for line in builds.differences(case.expected, found)}
    assert parts == {"config", "history", "tree", "layer 0", "layer 3"}
    assert list(builds.differences({"error": "this"}, found)) == ["error: 'none' instead of 'this'"]


def recorded(case: Case) -> Built:
    return Built(**case.expected)
