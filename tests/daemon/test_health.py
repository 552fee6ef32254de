"""Health checks where Knarr does more than Docker, and across the daemon's life."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lib import busybox
from tests.lib.daemon import Daemon
from tests.lib.leaks import Leaks
from tests.lib.reboot import stored

NONE = ("--network", "none")
FAST = ("--health-interval", "150ms", "--health-retries", "1")


def until(what: Callable[[], Any], wanted: Any = True, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while (found := what()) != wanted:
        assert time.monotonic() < deadline, f"{found!r} instead of {wanted!r}"
        time.sleep(0.03)
    return found


def health(daemon: Daemon, name: str) -> Any:
    return json.loads(daemon.out("inspect", "-f", "{{json .State.Health}}", name))


def status(daemon: Daemon, name: str) -> str:
    return str(health(daemon, name)["Status"])


@pytest.fixture(scope="module")
def daemon(daemon: Daemon) -> Daemon:
    """One that has what all containers share, so that the first of them leaves nothing."""
    daemon.docker("run", "--rm", *NONE, "busybox", "true")
    return daemon


@pytest.fixture
def mortal(own_daemon: Callable[..., Daemon]) -> Daemon:
    daemon = own_daemon().start()
    busybox.load(daemon)
    return daemon


def test_it_stays_healthy_when_the_daemon_is_killed(mortal: Daemon) -> None:
    mortal.docker("run", "-d", "--name", "web", *NONE, "--health-cmd", "test ! -e /bad", *FAST, "busybox", "sleep", "1000")
    until(lambda: status(mortal, "web"), "healthy")
    until(lambda: stored(mortal)["web"].get("health", {}).get("status"), "healthy")
    mortal.kill()
    mortal.start()
    assert status(mortal, "web") == "healthy"
    assert mortal.out("ps", "--format", "{{.Status}}").endswith("(healthy)")
    mortal.docker("exec", "web", "touch", "/bad")
    until(lambda: (status(mortal, "web"), len(health(mortal, "web")["Log"])), ("unhealthy", 5))
    mortal.stop()
    mortal.start()
    found = health(mortal, "web")
    assert (found["Status"], len(found["Log"])) == ("unhealthy", 5)


@pytest.mark.parametrize("how", ["--label", "--annotation"])
def test_restart_on_failure(daemon: Daemon, leaks: Leaks, how: str) -> None:
    option = (how, "io.knarr.health-on-failure=restart")
    daemon.docker(
        "run", "-d", "--name", "sick", *NONE, *option, "--stop-signal", "KILL", "--health-cmd", "false", *FAST, "busybox", "sleep", "1000"
    )

    def told() -> list[str]:
        past = ("events", "--since", "10m", "--until", str(time.time()), "--filter", "container=sick", "--format", "{{.Action}}")
        return [action for action in daemon.out(*past).split("\n") if not action.startswith("exec_")][:8]

    until(lambda: len(told()), 8)
    assert told() == ["create", "start", "health_status: unhealthy", "kill", "die", "stop", "start", "restart"]
    daemon.docker("rm", "-f", "sick")


def test_kill_and_stop_on_failure(daemon: Daemon, leaks: Leaks) -> None:
    for action in ("kill", "stop"):
        option = ("--label", f"io.knarr.health-on-failure={action}", "--stop-signal", "KILL")
        daemon.docker(
            "run",
            "-d",
            "--name",
            action,
            *NONE,
            "--restart",
            "on-failure:1",
            *option,
            "--health-cmd",
            "false",
            *FAST,
            "busybox",
            "sleep",
            "99",
        )
    shown = "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}"
    until(lambda: daemon.out("inspect", "-f", shown, "kill"), "exited 137 1")  # the policy decides: one more run
    until(lambda: daemon.out("inspect", "-f", shown, "stop"), "exited 137 0")
    daemon.docker("rm", "kill", "stop")


def test_a_word_that_is_none_of_them(daemon: Daemon) -> None:
    refused = daemon.docker("create", *NONE, "--label", "io.knarr.health-on-failure=reboot", "busybox", check=False).stderr.decode()
    assert "use one of 'none', 'kill', 'restart' or 'stop'" in refused
    warned = daemon.docker("create", "--name", "warned", *NONE, "--label", "io.knarr.health-on-failure=stop", "busybox").stderr.decode()
    assert "there is no health check that could fail" in warned
    daemon.docker("rm", "warned")


def test_what_a_slow_probe_started_is_gone(daemon: Daemon, leaks: Leaks) -> None:
    slow = ("--health-cmd", "sleep 4242; true", "--health-timeout", "200ms", "--health-interval", "100ms")
    daemon.docker("run", "-d", "--name", "slow", *NONE, *slow, "busybox", "sleep", "1000")
    until(lambda: health(daemon, "slow")["FailingStreak"] >= 4)
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if release >= (6, 9):  # the shell and its child of a probe that runs now; those before it need a moment to die
        until(lambda: daemon.out("exec", "slow", "ps").count("sleep 4242") <= 2)
    daemon.docker("rm", "-f", "slow")


def test_probes_leave_nothing(daemon: Daemon, leaks: Leaks) -> None:
    daemon.docker(
        "run",
        "-d",
        "--name",
        "tidy",
        *NONE,
        "--health-cmd",
        "yes",
        "--health-timeout",
        "50ms",
        "--health-interval",
        "20ms",
        "busybox",
        "sleep",
        "1000",
    )
    id = daemon.out("inspect", "-f", "{{.Id}}", "tidy")
    until(lambda: health(daemon, "tidy")["FailingStreak"] >= 10)
    files = len(os.listdir(f"/proc/{daemon.pid}/fd"))
    until(lambda: health(daemon, "tidy")["FailingStreak"] >= 30)
    until(lambda: len(os.listdir(f"/proc/{daemon.pid}/fd")) <= files + 4)
    folder = Path(daemon.exec_root) / "bundles" / id / "exec"
    until(lambda: len(os.listdir(folder)) <= 5)
    daemon.docker("rm", "-f", "tidy")


def test_the_images_check_with_another_interval(daemon: Daemon, leaks: Leaks) -> None:
    change = 'HEALTHCHECK --interval=1h --retries=1 CMD ["test", "-e", "/absent"]'
    image = daemon.out("import", "--change", change, "--change", "CMD sleep 1000", "-", "checked", input=busybox.layer())
    daemon.docker("run", "-d", "--name", "own", *NONE, "--health-interval", "100ms", "checked", "sleep", "1000")
    until(lambda: status(daemon, "own"), "unhealthy")
    assert json.loads(daemon.out("inspect", "-f", "{{json .Config.Healthcheck}}", "own")) == {
        "Test": ["CMD", "test", "-e", "/absent"], "Interval": 100_000_000, "Retries": 1,
    }  # fmt: skip
    daemon.docker("run", "-d", "--name", "none", *NONE, "--no-healthcheck", "checked", "sleep", "1000")
    assert health(daemon, "none") is None
    daemon.docker("rm", "-f", "own", "none")
    daemon.docker("rmi", image)


def test_a_probe_that_dies_with_its_container_says_nothing(daemon: Daemon, leaks: Leaks) -> None:
    option = (
        "--label",
        "io.knarr.health-on-failure=restart",
        "--stop-signal",
        "KILL",
        "--health-interval",
        "10ms",
        "--health-retries",
        "1",
    )
    for number in range(4):
        name = f"dies-{number}"
        daemon.docker("run", "-d", "--name", name, *NONE, *option, "--health-cmd", "exec sleep 100", "busybox", "sleep", "1000")
        until(lambda name=name: any(line.endswith("sleep 100") for line in daemon.out("top", name).splitlines()))
        daemon.docker("stop", name)
        assert daemon.out("inspect", "-f", "{{.State.Status}} {{len .State.Health.Log}}", name) == "exited 0"
    seen = daemon.out(
        "events", "--since", "10m", "--until", str(time.time()), "--filter", "event=health_status", "--format", "{{.Actor.Attributes.name}}"
    )
    assert not [name for name in seen.split() if name.startswith("dies-")]
    for number in range(4):
        assert daemon.out("inspect", "-f", "{{.State.Status}}", f"dies-{number}") == "exited"
        daemon.docker("rm", f"dies-{number}")
