"""Fixtures shared by all tests. A test that needs a daemon takes `daemon`; a compatibility test takes `engine`, which can be another
engine's daemon (KNARR_PEER_DOCKER_HOST=unix:///path)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.lib import busybox
from tests.lib.daemon import Daemon, Engine, Peer
from tests.lib.leaks import Leaks

# util-linux's mount uses the new mount API where it can, which takes no relative lower folders for an overlay; the old one does.
os.environ.setdefault("LIBMOUNT_FORCE_MOUNT2", "always")

# Property tests try the same examples each time, as long as they take: what fails does so for a change, not for luck or a busy machine, and
# nothing is kept in between. HYPOTHESIS_PROFILE=search looks for new counterexamples.
hypothesis.settings.register_profile(
    "suite", derandomize=True, deadline=None, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("search", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

PEER = os.environ.get("KNARR_PEER_DOCKER_HOST")

ON_THE_HOST = ("chaos", "compat", "daemon", "runtime")
"""Folders of tests that make links, routes, control groups and the like of the host they share: never two at a time."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several processes (pytest-xdist, `--dist loadgroup`) a file's tests stay together, and all of `ON_THE_HOST`."""
    if not config.pluginmanager.has_plugin("xdist"):
        return
    for item in items:
        folder, _, _ = item.nodeid.removeprefix("tests/").partition("/")
        item.add_marker(pytest.mark.xdist_group("host" if folder in ON_THE_HOST else item.nodeid.partition("::")[0]))


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A running Knarr daemon with busybox loaded; one for all tests of a module."""
    if os.geteuid() != 0:
        pytest.skip("a daemon needs root")
    ours = Daemon()
    try:
        ours.start()
        busybox.load(ours)
        yield ours
    finally:
        ours.close()


@pytest.fixture
def own_daemon() -> Iterator[Callable[..., Daemon]]:
    """Makes daemons that only this test uses (to kill, or with other options); they are not started yet."""
    made: list[Daemon] = []

    def make(*options: str, directory: Path | None = None) -> Daemon:
        made.append(Daemon(*options, directory=directory))
        return made[-1]

    yield make
    for one in reversed(made):
        one.close()


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> Engine:
    """The engine under a compatibility test: the peer when one is named, else our daemon. Has busybox."""
    if PEER:
        peer = Peer(PEER)
        busybox.load(peer)
        return peer
    ours: Daemon = request.getfixturevalue("daemon")
    return ours


@pytest.fixture
def clean(engine: Engine) -> Iterator[Engine]:
    """The engine, with every container that the test made removed after it."""
    before = {c["Id"] for c in engine.api("GET", "/containers/json?all=1").json()}
    yield engine
    for container in engine.api("GET", "/containers/json?all=1").json():
        if container["Id"] not in before:
            engine.api("DELETE", f"/containers/{container['Id']}?force=1&v=1")


@pytest.fixture
def leaks(daemon: Daemon) -> Iterator[Leaks]:
    """Looks before the test; the test (or the fixture's end) checks that nothing is left after it."""
    found = Leaks(daemon)
    yield found
    found.check()
