"""Restart policies across the daemon's and the host's life, starts that fail, and the order in which containers come back."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lib import busybox
from tests.lib.daemon import Daemon, knarr_command
from tests.lib.leaks import Leaks
from tests.lib.reboot import all_stored, stored, switch_off

NONE = ("--network", "none")
SLEEP = ("busybox", "sleep", "1000")


def until(what: Callable[[], Any], wanted: Any = True, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while (found := what()) != wanted:
        assert time.monotonic() < deadline, f"{found!r} instead of {wanted!r}"
        time.sleep(0.03)
    return found


def state(daemon: Daemon, name: str) -> str:
    return daemon.out("inspect", "-f", "{{.State.Status}}", name)


def started(daemon: Daemon, name: str) -> str:
    return daemon.out("inspect", "-f", "{{.State.StartedAt}}", name)


def run(daemon: Daemon, name: str, *options: str, command: tuple[str, ...] = SLEEP) -> None:
    daemon.docker("run", "-d", "--name", name, *NONE, *options, *command)


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


def reboot(daemon: Daemon) -> Daemon:
    """The host stops, once all that the daemon tells is stored, and starts."""
    until(lambda: all_stored(daemon))
    switch_off(daemon)
    return daemon.start()


def test_after_a_reboot(mortal: Daemon) -> None:
    run(mortal, "always", "--restart", "always")
    run(mortal, "unless", "--restart", "unless-stopped")
    run(mortal, "failure", "--restart", "on-failure:3")
    run(mortal, "never")
    for name, policy in (("stopped-always", "always"), ("stopped-unless", "unless-stopped"), ("stopped-failure", "on-failure")):
        run(mortal, name, "--restart", policy)
        mortal.docker("stop", "-t", "0", name)
    run(mortal, "done", "--restart", "on-failure", command=("busybox", "true"))
    mortal.docker("create", "--name", "created", *NONE, "--restart", "always", *SLEEP)
    until(lambda: state(mortal, "done"), "exited")
    reboot(mortal)
    for name in ("always", "unless", "failure", "stopped-always"):
        until(lambda name=name: state(mortal, name), "running")
        assert mortal.out("inspect", "-f", "{{.RestartCount}}", name) == "0"
    for name in ("never", "stopped-unless", "stopped-failure", "done"):
        assert state(mortal, name) == "exited"
    assert state(mortal, "created") == "created"
    assert mortal.out("exec", "always", "echo", "here") == "here"


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_those_that_run_on_are_left_alone(mortal: Daemon, how: str) -> None:
    run(mortal, "on", "--restart", "always")
    run(mortal, "off", "--restart", "unless-stopped")
    mortal.docker("stop", "-t", "0", "off")
    pid, began = mortal.out("inspect", "-f", "{{.State.Pid}}", "on"), started(mortal, "on")
    getattr(mortal, how)()
    mortal.start()
    assert (mortal.out("inspect", "-f", "{{.State.Pid}}", "on"), started(mortal, "on")) == (pid, began)
    assert mortal.out("inspect", "-f", "{{.RestartCount}} {{.State.Status}}", "off") == "0 exited"
    until(lambda: mortal.out("exec", "on", "kill", "-9", "1") == "" and state(mortal, "on"), "running")


def test_who_ended_while_there_was_no_daemon(mortal: Daemon, tmp_path: Path) -> None:
    for name, policy, code in (("a1", "always", 0), ("f1", "on-failure", 5), ("f0", "on-failure", 0), ("n1", "no", 5)):
        script = f"until [ -e /gate/open ]; do sleep 0.05; done; test -e /again || {{ touch /again; exit {code}; }}; sleep 1000"
        run(mortal, name, "--restart", policy, "-v", f"{tmp_path}:/gate", command=("busybox", "sh", "-c", script))
    before = {name: started(mortal, name) for name in ("a1", "f1")}
    pids = [mortal.out("inspect", "-f", "{{.State.Pid}}", name) for name in ("a1", "f1", "f0", "n1")]
    mortal.kill()
    (tmp_path / "open").touch()
    until(lambda: not any(Path("/proc", pid).exists() for pid in pids))
    mortal.start()
    for name in ("a1", "f1"):
        until(lambda name=name: (state(mortal, name), started(mortal, name) != before[name]), ("running", True))
    assert [state(mortal, name) for name in ("f0", "n1")] == ["exited", "exited"]


def test_one_that_was_waiting_when_the_daemon_was_killed(mortal: Daemon) -> None:
    run(mortal, "loop", "--restart", "always", command=("busybox", "sh", "-c", "exit 3"))
    until(lambda: mortal.out("inspect", "-f", "{{ge .RestartCount 4}} {{.State.Status}}", "loop"), "true restarting")
    until(lambda: stored(mortal)["loop"].get("restart_count", 0) >= 2)
    mortal.kill()
    mortal.start()
    until(lambda: mortal.out("inspect", "-f", "{{ge .RestartCount 2}} {{.State.ExitCode}}", "loop"), "true 3")
    mortal.docker("stop", "loop")
    assert state(mortal, "loop") == "exited"


def needing(daemon: Daemon, name: str, policy: str, source: Path) -> None:
    """Run a container that needs a folder; take the folder away, then let the container end."""
    source.mkdir()
    (source / "stay").touch()
    mount = f"type=bind,src={source},dst=/disk"
    script = "while [ -e /disk/stay ]; do sleep 0.05; done; exit 1"
    run(daemon, name, "--restart", policy, "--mount", mount, command=("busybox", "sh", "-c", script))
    away = source.rename(source.with_name("away"))
    (away / "stay").unlink()


def test_a_restart_that_fails_is_tried_again(daemon: Daemon, leaks: Leaks, tmp_path: Path) -> None:
    source = tmp_path / "disk"
    needing(daemon, "needs", "always", source)
    until(lambda: "disk" in daemon.out("inspect", "-f", "{{.State.Error}}", "needs"))
    until(lambda: state(daemon, "needs"), "restarting")
    until(lambda: daemon.out("inspect", "-f", "{{ge .RestartCount 3}}", "needs"), "true")
    (tmp_path / "away/stay").touch()
    (tmp_path / "away").rename(source)
    until(lambda: state(daemon, "needs"), "running")
    assert daemon.out("inspect", "-f", "{{.State.Error}}", "needs") == ""
    daemon.docker("rm", "-f", "needs")


def test_failed_restarts_count(daemon: Daemon, leaks: Leaks, tmp_path: Path) -> None:
    needing(daemon, "few", "on-failure:2", tmp_path / "disk")
    until(lambda: daemon.out("inspect", "-f", "{{.RestartCount}} {{.State.Status}}", "few"), "2 exited")
    assert "disk" in daemon.out("inspect", "-f", "{{.State.Error}}", "few")
    daemon.docker("rm", "few")


def test_signals_that_do_not_end_containers_leave_the_policy_on(daemon: Daemon, leaks: Leaks) -> None:
    run(daemon, "usr", "--restart", "always", command=("busybox", "sh", "-c", "trap 'exit 7' USR1; echo up; while :; do sleep 0.05; done"))
    until(lambda: daemon.out("logs", "usr"), "up")
    daemon.docker("kill", "-s", "USR1", "usr")
    until(lambda: daemon.out("inspect", "-f", "{{.RestartCount}} {{.State.Status}}", "usr"), "1 running")
    daemon.docker("rm", "-f", "usr")


def test_commands_in_the_middle_of_restarts(daemon: Daemon, leaks: Leaks) -> None:
    """Whatever the moment: what was stopped stays stopped, what was removed is gone."""
    for number in range(12):
        name = f"storm-{number}"
        run(daemon, name, "--restart", "always", command=("busybox", "true"))
        time.sleep(0.05 + number * 0.013)
        if number % 2:
            assert daemon.docker("stop", "-t", "0", name).returncode == 0
            found = daemon.out("inspect", "-f", "{{.State.Status}} {{.RestartCount}} {{.State.StartedAt}}", name)
            assert found.startswith("exited ")
            time.sleep(0.15)
            assert daemon.out("inspect", "-f", "{{.State.Status}} {{.RestartCount}} {{.State.StartedAt}}", name) == found
        daemon.docker("rm", "-f", name)


def compose(project: str, service: str, depends_on: str = "") -> list[str]:
    labels = {"project": project, "service": service, "oneoff": "False", "depends_on": depends_on}
    return [word for key, value in labels.items() for word in ("--label", f"com.docker.compose.{key}={value}")]


def test_the_order_after_a_reboot(mortal: Daemon, tmp_path: Path) -> None:
    check = ("--health-cmd", "test -e /ready", "--health-interval", "100ms")
    slow = ("busybox", "sh", "-c", "rm -f /ready; until [ -e /gate/open ]; do sleep 0.05; done; touch /ready; sleep 1000")
    run(mortal, "web", "--restart", "always", *compose("p", "web", "db:service_healthy:true,init:service_completed_successfully:false"))
    run(mortal, "side", "--restart", "always", "--pid", "container:web")
    run(mortal, "db", "--restart", "always", "-v", f"{tmp_path}:/gate", *check, *compose("p", "db"), command=slow)
    run(
        mortal,
        "init",
        "--restart",
        "on-failure",
        *compose("p", "init", "db:service_started:false"),
        command=("busybox", "sh", "-c", "sleep 0.2; exit 0"),
    )
    mortal.docker("wait", "init")
    run(mortal, "circle1", "--restart", "always", *compose("c", "one", "two:service_started:true"))
    run(mortal, "circle2", "--restart", "always", *compose("c", "two", "one:service_started:true"))
    reboot(mortal)
    assert mortal.out("inspect", "-f", "{{.State.Status}}", "web") == "restarting"
    (tmp_path / "open").touch()
    for name in ("db", "web", "side", "circle1", "circle2"):
        until(lambda name=name: state(mortal, name), "running")
    assert mortal.out("inspect", "-f", "{{.State.Health.Status}}", "db") == "healthy"
    healthy = [
        entry["End"] for entry in json.loads(mortal.out("inspect", "-f", "{{json .State.Health.Log}}", "db")) if not entry["ExitCode"]
    ]
    assert started(mortal, "db") < started(mortal, "web") < started(mortal, "side")
    assert healthy
    assert "circle" in mortal.log_tail(200)


def test_a_dependency_that_cannot_come(mortal: Daemon) -> None:
    run(mortal, "app", "--restart", "always", *compose("p", "app", "db:service_healthy:true"))
    run(mortal, "db", *compose("p", "db"), "--health-cmd", "true")
    reboot(mortal)
    until(lambda: state(mortal, "app"), "running")
    assert state(mortal, "db") == "exited"
    assert "starting it without" in mortal.log_tail(200)


def test_an_update_is_kept_and_has_an_effect(mortal: Daemon) -> None:
    run(mortal, "up", "--restart", "always", "-m", "64m", "--memory-swap", "128m")
    mortal.docker("update", "-m", "96m", "--pids-limit", "77", "--cpuset-cpus", "0", "--cpu-shares", "300", "up")
    id = mortal.out("inspect", "-f", "{{.Id}}", "up")

    def limits() -> set[str]:
        names = {"memory.limit_in_bytes", "memory.max", "pids.max", "cpuset.cpus", "cpu.shares"}
        return {
            (group / name).read_text().strip()
            for group in mortal.cgroups()
            if group.name == id
            for name in names
            if (group / name).exists()
        }

    assert {str(96 << 20), "77", "0"} <= limits()
    mortal.docker("update", "--pids-limit", "-1", "--restart", "no", "up")
    assert "77" not in limits()
    mortal.docker("restart", "-t", "0", "up")
    assert {str(96 << 20), "0"} <= limits()
    mortal.docker("stop", "-t", "0", "up")
    mortal.docker("update", "-m", "80m", "up")
    mortal.docker("start", "up")
    assert str(80 << 20) in limits()
    mortal.restart()
    assert mortal.out("inspect", "-f", "{{.HostConfig.Memory}} {{.HostConfig.RestartPolicy.Name}}", "up") == f"{80 << 20} no"


def test_knarrs_own_commands(daemon: Daemon, leaks: Leaks) -> None:
    def knarr(*words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([*knarr_command(), "-H", f"unix://{daemon.socket}", *words], capture_output=True, check=False, timeout=60)

    health = ("--health-cmd", "true", "--health-interval", "100ms", "--health-on-failure", "restart")
    made = knarr("run", "-d", "--name", "own", *NONE, "--restart", "on-failure:3", *health, *SLEEP)
    assert (made.returncode, made.stderr) == (0, b"")
    until(lambda: b"(healthy)" in knarr("ps").stdout)
    assert daemon.out("inspect", "-f", "{{json .HostConfig.Annotations}}", "own") == '{"io.knarr.health-on-failure":"restart"}'
    changed = knarr("update", "--restart", "always", "--pids-limit", "99", "own", "nowhere")
    assert (changed.returncode, changed.stdout) == (1, b"own\n")
    assert b"No such container: nowhere" in changed.stderr
    shown = "{{.HostConfig.RestartPolicy.Name}} {{.HostConfig.PidsLimit}}"
    assert daemon.out("inspect", "-f", shown, "own") == "always 99"
    assert b"you must provide one or more flags when using this command" in knarr("update", "own").stderr
    assert knarr("run", "--health-on-failure", "reboot", *SLEEP).returncode == 125
    knarr("rm", "-f", "own")
