"""The daemon dies, containers do not notice: no log line is missing, and every command works on them afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lib import busybox
from tests.lib.daemon import Daemon, docker_program
from tests.lib.leaks import Leaks, start_time
from tests.lib.terminal import Terminal

NONE = ("--network", "none")
COUNT = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.01; done"


@pytest.fixture
def mortal(own_daemon: Callable[..., Daemon]) -> Daemon:
    daemon = own_daemon().start()
    busybox.load(daemon)
    return daemon


def state(daemon: Daemon, container: str) -> dict[str, object]:
    found = json.loads(daemon.out("inspect", "-f", "{{json .State}}", container))
    assert isinstance(found, dict)
    return found


def status_of(pid: int) -> str:
    """/proc/PID/status, "" when there is no such process (a zombie is one that its new parent has not reaped yet)."""
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""


def lines_of(daemon: Daemon, container: str) -> list[str]:
    return daemon.out("logs", container).splitlines()


def until(true: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


class Alone:
    """A container that ends while no daemon runs, and not before: its script goes on when there is a file."""

    def __init__(self, daemon: Daemon, folder: Path, script: str, *options: str) -> None:
        self.daemon, self.go = daemon, folder / "go"
        wait = "while [ ! -e /wait/go ]; do sleep 0.05; done"
        command = ["run", "-d", "--name", "loner", "-v", f"{folder}:/wait", *options, *NONE, "busybox", "sh", "-c", f"{wait}; {script}"]
        daemon.docker(*command)
        self.monitor = parent(int(str(state(daemon, "loner")["Pid"])))

    def end(self) -> None:
        """The daemon is killed, the container ends, its monitor writes that down and goes; then comes the next daemon."""
        self.daemon.kill()
        self.go.touch()
        until(lambda: "\nState:\tZ" in status_of(self.monitor) or not status_of(self.monitor), "it does not end")
        self.daemon.start()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_logging_container_never_stops(mortal: Daemon) -> None:
    mortal.docker("run", "-d", "--name", "counter", *NONE, "busybox", "sh", "-c", COUNT)
    before = state(mortal, "counter")
    pid = int(str(before["Pid"]))
    began = start_time(pid)
    for _ in range(3):
        time.sleep(0.3)
        mortal.kill()
        time.sleep(0.3)
        assert start_time(pid) == began, "the container's process ended with the daemon"
        mortal.start()
        after = state(mortal, "counter")
        assert (after["Running"], after["Pid"], after["StartedAt"]) == (True, before["Pid"], before["StartedAt"])
    until(lambda: len(lines_of(mortal, "counter")) > 60, "it writes no more")
    lines = lines_of(mortal, "counter")
    assert lines == [f"line {n}" for n in range(1, len(lines) + 1)]
    assert mortal.out("exec", "counter", "echo", "inside") == "inside"
    assert mortal.out("top", "counter")
    waiting = mortal.docker_popen("wait", "counter", stdin=subprocess.DEVNULL)
    attached = mortal.docker_popen("attach", "--no-stdin", "counter", stdin=subprocess.DEVNULL)
    assert attached.stdout is not None
    assert attached.stdout.readline().startswith(b"line")
    assert mortal.out("stop", "-t", "0", "counter") == "counter"
    assert waiting.communicate(timeout=60)[0].strip() == b"137"
    attached.communicate(timeout=60)
    total = lines_of(mortal, "counter")
    assert total == [f"line {n}" for n in range(1, len(total) + 1)]


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("echo last words; kill -9 $$; exit 3", 3)])
def test_the_exit_code_of_one_that_ended_alone(mortal: Daemon, tmp_path: Path, script: str, code: int) -> None:
    Alone(mortal, tmp_path, script).end()
    found = state(mortal, "loner")
    assert (found["Status"], found["ExitCode"]) == ("exited", code)
    assert str(found["FinishedAt"]) > str(found["StartedAt"])
    assert mortal.out("wait", "loner") == str(code)
    assert lines_of(mortal, "loner") == (["last words"] if "last" in script else [])


def test_out_of_memory_while_no_daemon_ran(mortal: Daemon, tmp_path: Path) -> None:
    Alone(mortal, tmp_path, "tail -c 200m /dev/zero; exit 137", "-m", "24m", "--memory-swap", "24m").end()
    found = state(mortal, "loner")
    assert (found["Status"], found["ExitCode"], found["OOMKilled"]) == ("exited", 137, True)


def test_automatic_removal_of_one_that_ended_alone(mortal: Daemon, tmp_path: Path) -> None:
    Alone(mortal, tmp_path, "true", "--rm").end()
    until(lambda: not mortal.out("ps", "-aq"), "it was not removed")


def test_a_terminal_is_found_again(mortal: Daemon) -> None:
    mortal.docker("run", "-dit", "--name", "shell", *NONE, "busybox", "sh")
    mortal.restart()
    with Terminal([docker_program(), "attach", "shell"], mortal.docker_environment()) as terminal:
        time.sleep(0.5)
        terminal.type(b"echo found-$((6*7))\n")
        terminal.expect(b"found-42")
        terminal.type(b"exit 12\n")
        assert terminal.wait() == 12


def test_a_running_container_whose_monitor_is_gone_is_not_given_an_invented_exit_code(mortal: Daemon) -> None:
    mortal.docker("run", "-d", "--name", "orphan", *NONE, "busybox", "sleep", "1000")
    pid = int(str(state(mortal, "orphan")["Pid"]))
    monitor = parent(pid)
    mortal.kill()
    assert status_of(monitor), "it has no monitor"
    os.kill(monitor, signal.SIGKILL)
    mortal.start()
    until(lambda: state(mortal, "orphan")["Status"] in ("exited", "dead"), "nobody noticed")
    found = state(mortal, "orphan")
    assert found["ExitCode"] == 255
    assert found["Error"]
    until(lambda: "State:\tZ" in status_of(pid) or not status_of(pid), "its process was left behind")


def test_a_stop_of_the_daemon_leaves_containers_running(mortal: Daemon) -> None:
    mortal.docker("run", "-d", "--name", "steady", *NONE, "busybox", "sleep", "1000")
    pid = str(state(mortal, "steady")["Pid"])
    assert mortal.stop() == 0
    mortal.start()
    assert str(state(mortal, "steady")["Pid"]) == pid


def test_logs_go_on_for_a_reader_of_the_next_daemon(mortal: Daemon) -> None:
    mortal.docker("run", "-d", "--name", "counter", *NONE, "busybox", "sh", "-c", COUNT)
    mortal.restart()
    follower = mortal.docker_popen("logs", "-f", "counter", stdin=subprocess.DEVNULL, bufsize=0)
    assert follower.stdout is not None
    first = follower.stdout.readline()
    until(lambda: len(lines_of(mortal, "counter")) > 50, "it writes no more")
    mortal.docker("kill", "counter")
    lines = (first + follower.communicate(timeout=60)[0]).decode().splitlines()
    assert len(lines) > 50
    assert lines == [f"line {n}" for n in range(1, len(lines) + 1)]


def test_nothing_is_left_after_kill_and_removal(mortal: Daemon) -> None:
    mortal.docker("run", "--rm", *NONE, "busybox", "true")
    leaks = Leaks(mortal)
    for number in range(4):
        mortal.docker("run", "-d", "--name", f"c{number}", *NONE, "busybox", "sleep", "1000")
    mortal.restart()
    mortal.docker("rm", "-f", "c0", "c1", "c2", "c3")
    leaks.pid = -1
    leaks.check()
