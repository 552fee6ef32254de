"""Builds whose client goes away at any moment, and builds of a daemon that stops: they end at once, and nothing is left of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lib import buildwork, busybox
from tests.lib.buildwork import WAYS, building, running, site, wait
from tests.lib.daemon import Daemon
from tests.lib.leaks import Leaks

QUIET = ("--network", "none")


@pytest.fixture(scope="module")
def warm(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    """A daemon that has built before: what it keeps for all builds is there."""
    folder = site(tmp_path_factory.mktemp("warm") / "context", "FROM busybox\nRUN true\n")
    for way in WAYS:
        buildwork.build(daemon, folder, "--no-cache", way=way)
    buildwork.forget(daemon)
    return daemon


@pytest.fixture
def clean(warm: Daemon) -> Iterator[Daemon]:
    """The daemon; afterwards nothing of a build is left, and with the cache everything goes."""
    leaks = Leaks(warm)
    yield warm
    wait(lambda: not buildwork.leftovers(warm), told=lambda: f"left behind: {buildwork.leftovers(warm)}\n{warm.log_tail()}")
    buildwork.forget(warm)
    leaks.check()
    assert "Traceback" not in warm.log.read_text(errors="replace"), warm.log_tail(80)


def gone_soon(words: str) -> None:
    """Long before it would end by itself: within a second, unless the machine is busy."""
    wait(lambda: not running(words), told=lambda: f"it still runs: {running(words)}")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_client_that_goes_ends_its_step(clean: Daemon, tmp_path: Path, way: str, number: int) -> None:
    folder = site(tmp_path / "context", "FROM busybox\nRUN echo first > /first\nRUN echo now; exec sleep 98765\n")
    with building(clean, folder, *QUIET, way=way) as build:
        build.says("now\n")
        wait(lambda: running("sleep 98765"))
        assert build.interrupt(number) != 0
        gone_soon("sleep 98765")
    site(folder, "FROM busybox\nRUN echo first > /first\n")
    _, told = buildwork.build(clean, folder, *QUIET, way=way)
    assert "CACHED" in told or "Using cache" in told, "what was finished is in the cache"


def test_a_compressed_context_is_watched_over_too(clean: Daemon, tmp_path: Path) -> None:
    folder = site(tmp_path / "context", "FROM busybox\nRUN echo now; exec sleep 98764\n")
    with building(clean, folder, *QUIET, "--compress", way="classic") as build:
        build.says("now\n")
        assert build.interrupt(signal.SIGKILL) != 0
        gone_soon("sleep 98764")


def test_a_client_that_goes_while_it_uploads(clean: Daemon, tmp_path: Path) -> None:
    """At many moments of the upload, by both ways."""
    files = {f"folder-{number % 7}/{number}": os.urandom(40_000) for number in range(300)}
    folder = site(tmp_path / "context", "FROM busybox\nCOPY . /all\n", files)
    for way in WAYS:
        for delay in (0.12, 0.18, 0.25, 0.4):
            with building(clean, folder, *QUIET, way=way) as build:
                time.sleep(delay)
                build.interrupt(signal.SIGKILL)
    buildwork.build(clean, folder, *QUIET)


@pytest.mark.parametrize("mounts", ["--mount=type=cache,target=/c", "--mount=type=bind,target=/b,rw", "--mount=type=secret,id=word"])
def test_mounts_of_a_step_that_was_given_up(clean: Daemon, tmp_path: Path, mounts: str) -> None:
    (tmp_path / "word").write_text("hush")
    folder = site(tmp_path / "context", f"FROM busybox\nRUN {mounts} echo now; exec sleep 98763\n")
    with building(clean, folder, *QUIET, "--secret", f"id=word,src={tmp_path / 'word'}") as build:
        build.says("now\n")
        build.interrupt()
        gone_soon("sleep 98763")


def test_copying_many_files_ends_at_once(clean: Daemon, tmp_path: Path) -> None:
    """The owner is another one, so that every file is copied and none is linked."""
    files = {f"{number % 40}/{number}": b"%d" % number for number in range(2_500)}
    folder = site(tmp_path / "context", "FROM busybox\nCOPY --chown=5:6 . /all\nRUN sleep 98762\n", files)
    for delay in (0.02, 0.05, 0.1):
        with building(clean, folder, *QUIET, "--no-cache") as build:
            wait(lambda build=build: "COPY --chown" in build.output or build.process.poll() is not None)
            time.sleep(delay)
            build.interrupt()
    gone_soon("sleep 98762")
    wait(lambda: not buildwork.leftovers(clean), told=lambda: f"left behind: {buildwork.leftovers(clean)}")


class Stalled:
    """A web server that begins to answer and says nothing more; `asked` is set when somebody waits for it, `left` when they gave up."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.asked, self.left = threading.Event(), threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        try:
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self._answer, args=(client,), daemon=True).start()
        except OSError:
            pass

    def _answer(self, client: socket.socket) -> None:
        with client:
            client.recv(65536)
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 5000)
            self.asked.set()
            with contextlib.suppress(ConnectionError):
                while client.recv(65536):
                    pass
            self.left.set()

    def close(self) -> None:
        self.listener.close()


@pytest.fixture
def stalled() -> Iterator[Stalled]:
    server = Stalled()
    yield server
    server.close()


@pytest.mark.parametrize("way", WAYS)
def test_a_fetch_that_hangs_is_given_up(clean: Daemon, tmp_path: Path, stalled: Stalled, way: str) -> None:
    folder = site(tmp_path / "context", f"FROM busybox\nADD http://127.0.0.1:{stalled.port}/file /file\n")
    with building(clean, folder, way=way) as build:
        assert stalled.asked.wait(60)
        build.interrupt(signal.SIGKILL)
        assert stalled.left.wait(60)


def test_git_that_hangs_is_given_up(clean: Daemon, tmp_path: Path, stalled: Stalled) -> None:
    address = f"http://127.0.0.1:{stalled.port}/repository.git"
    folder = site(tmp_path / "context", f"FROM busybox\nADD {address} /file\n")
    with building(clean, folder) as build:
        assert stalled.asked.wait(60)
        build.interrupt(signal.SIGKILL)
        assert stalled.left.wait(60)
        gone_soon(address)


def test_a_pull_that_hangs_is_given_up(clean: Daemon, tmp_path: Path, stalled: Stalled) -> None:
    folder = site(tmp_path / "context", f"FROM 127.0.0.1:{stalled.port}/there\n")
    with building(clean, folder) as build:
        assert stalled.asked.wait(60)
        build.interrupt(signal.SIGKILL)
        assert stalled.left.wait(60)


def test_a_build_ends_with_its_number(clean: Daemon, tmp_path: Path) -> None:
    """`POST /build/cancel`, as the docker CLI asks for it."""
    from tests.lib.images import entry, tar

    archive = tar([entry("Dockerfile", data=b"FROM busybox\nRUN sleep 98761\n")])
    answers: list[bytes] = []

    def post() -> None:
        answers.append(clean.api("POST", "/build?buildid=seven&networkmode=none", archive, {"Content-Type": "application/x-tar"}).body)

    thread = threading.Thread(target=post)
    thread.start()
    wait(lambda: running("sleep 98761"))
    assert clean.api("POST", "/build/cancel?id=seven").status == 200
    thread.join(60)
    gone_soon("sleep 98761")
    assert b"cancel" in answers[0]


def test_the_daemon_stops_amid_builds(own_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    daemon = own_daemon().start()
    busybox.load(daemon)
    folder = site(
        tmp_path / "context", "FROM busybox\nRUN echo first > /first\nRUN --mount=type=cache,target=/c echo now; exec sleep 98760\n"
    )
    other = site(tmp_path / "other", "FROM busybox\nRUN echo now; exec sleep 98760\n")
    with building(daemon, folder) as own, building(daemon, other, way="classic") as classic:
        own.says(" now\n")
        classic.says("now\n")
        daemon.stop()
        assert own.result() != 0
        assert classic.result() != 0
        assert "Traceback" not in own.output
    gone_soon("sleep 98760")
    assert not buildwork.leftovers(daemon)
    daemon.start()
    _, told = buildwork.build(daemon, site(folder, "FROM busybox\nRUN echo first > /first\n"))
    assert "CACHED" in told
    assert buildwork.findings(daemon) == []
    buildwork.forget(daemon)
    wait(lambda: not buildwork.leftovers(daemon), told=lambda: f"left behind: {buildwork.leftovers(daemon)}")
    assert "Traceback" not in daemon.log.read_text(), daemon.log_tail(80)


def test_secrets_do_not_outlive_a_daemon_that_was_killed(own_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    """They are gone before anybody builds again."""
    daemon = own_daemon().start()
    busybox.load(daemon)
    (tmp_path / "word").write_text("hush")
    folder = site(tmp_path / "context", "FROM busybox\nRUN --mount=type=secret,id=word echo now; exec sleep 98759\n")
    with building(daemon, folder, "--secret", f"id=word,src={tmp_path / 'word'}") as build:
        build.says("now\n")
        daemon.kill()
        build.result()
    daemon.start()
    gone_soon("sleep 98759")
    assert not (daemon.exec_root / "build").exists()
    buildwork.forget(daemon)
    wait(lambda: not buildwork.leftovers(daemon), told=lambda: f"left behind: {buildwork.leftovers(daemon)}")


def test_git_does_not_outlive_a_daemon_that_was_killed(own_daemon: Callable[..., Daemon], tmp_path: Path, stalled: Stalled) -> None:
    """It is ended when the next one begins to build."""
    daemon = own_daemon().start()
    busybox.load(daemon)
    address = f"http://127.0.0.1:{stalled.port}/repository.git"
    folder = site(tmp_path / "context", f"FROM busybox\nADD {address} /file\n")
    with building(daemon, folder) as build:
        assert stalled.asked.wait(60)
        daemon.kill()
        build.result()
    daemon.start()
    assert running(address)
    buildwork.build(daemon, site(tmp_path / "other", "FROM busybox\n"))
    gone_soon(address)
    assert stalled.left.wait(60)


def test_a_client_that_reads_nothing(clean: Daemon, tmp_path: Path) -> None:
    """It neither fails the build nor makes the daemon grow: the step waits for it, and others do not."""
    lines = 400_000
    folder = site(tmp_path / "context", f"FROM busybox\nRUN yes 'a line that says no more than others' | head -n {lines}\n")
    other = site(tmp_path / "other", "FROM busybox\nRUN echo other\n")
    before = buildwork.memory(clean)
    with building(clean, folder, *QUIET) as build:
        build.says("a line")
        os.kill(build.process.pid, signal.SIGSTOP)
        time.sleep(1.5)
        buildwork.build(clean, other, *QUIET)
        assert buildwork.memory(clean) - before < 40 << 20
        os.kill(build.process.pid, signal.SIGCONT)
        assert build.result(300) == 0, build.output[-2000:]


def test_many_builds_leave_the_daemon_as_it_was(clean: Daemon, tmp_path: Path) -> None:
    """Descriptors are looked at by `clean`. KNARR_BUILDS is how many."""
    count = buildwork.environ("KNARR_BUILDS", 16)
    from tests.lib.images import entry, tar

    def one(number: int) -> None:
        data = b"FROM busybox\nCOPY Dockerfile /\nRUN echo %d > /number\n" % number
        answer = clean.api("POST", "/build?networkmode=none&t=many", tar([entry("Dockerfile", data=data)]))
        assert b"Successfully built" in answer.body, answer.body[-500:]

    for number in range(count // 2):
        one(number)
    before = buildwork.memory(clean)
    for number in range(count // 2, count):
        one(number)
    grown = buildwork.memory(clean) - before
    print(json.dumps({"builds": count, "bytes grown by the second half": grown}))
    assert grown < (4 << 20) + 40_000 * count
