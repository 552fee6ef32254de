"""Knarr's own client against Knarr's daemon: streams, terminals, signals, exit codes, files, starting the daemon by itself."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lib.daemon import Daemon, knarr_command
from tests.lib.terminal import Terminal

NONE = ("--network", "none")


class Knarr:
    """`knarr …` as a user of one daemon types it."""

    def __init__(self, daemon: Daemon) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "KNARR_"))}
        self.environment = {**kept, "KNARR_HOST": f"unix://{daemon.socket}"}
        self.daemon = daemon

    def __call__(self, *arguments: str, input: bytes | None = None, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        stdin: dict[str, Any] = {"input": input} if input is not None else {"stdin": subprocess.DEVNULL}
        result = subprocess.run([*knarr_command(), *arguments], env=self.environment, capture_output=True, timeout=120, **stdin)
        assert not check or result.returncode == 0, (arguments, result, self.daemon.log_tail())
        return result

    def out(self, *arguments: str) -> str:
        return self(*arguments).stdout.decode().strip()

    def popen(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen([*knarr_command(), *arguments], env=self.environment, **pipes)

    def terminal(self, *arguments: str) -> Terminal:
        return Terminal([*knarr_command(), *arguments], self.environment, 31, 97)


@pytest.fixture
def knarr(daemon: Daemon) -> Iterator[Knarr]:
    yield Knarr(daemon)
    daemon.remove_all()


def eventually(condition: Callable[[], object], timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_run_separates_stdout_stderr_and_exit_code(knarr: Knarr) -> None:
    result = knarr("run", "--rm", *NONE, "busybox", "sh", "-c", "echo out; echo err >&2; exit 7", check=False)
    assert (result.returncode, result.stdout, result.stderr) == (7, b"out\n", b"err\n")
    assert knarr.out("ps", "-aq") == ""


def test_stdin_is_closed_halfway(knarr: Knarr) -> None:
    assert knarr("run", "--rm", "-i", *NONE, "busybox", "tr", "a-z", "A-Z", input=b"hello\n").stdout == b"HELLO\n"


def test_a_process_that_does_not_read_its_stdin(knarr: Knarr) -> None:
    assert knarr("run", "--rm", "-i", *NONE, "busybox", "echo", "done", input=b"x" * 5_000_000).stdout == b"done\n"


def test_megabytes_through_both_ends(knarr: Knarr) -> None:
    data = random.Random(3).randbytes(20 << 20)
    assert knarr("run", "--rm", "-i", *NONE, "busybox", "cat", input=data).stdout == data


@pytest.mark.parametrize(("command", "code"), [("/nonexistent", 127), ("nonexistent", 127), ("/tmp", 126)])
def test_codes_of_failed_starts(knarr: Knarr, command: str, code: int) -> None:
    result = knarr("run", "--rm", *NONE, "busybox", command, check=False)
    assert result.returncode == code, result.stderr
    assert result.stderr.startswith(b"knarr: ")
    eventually(lambda: knarr.out("ps", "-aq") == "")


def test_death_by_signal_is_128_and_more(knarr: Knarr) -> None:
    running = knarr.popen("run", "--rm", "--name", "victim", *NONE, "busybox", "sh", "-c", "echo ready; sleep 100")
    assert running.stdout is not None
    assert running.stdout.readline() == b"ready\n"
    knarr("kill", "victim")
    assert running.wait(60) == 137


def test_an_image_that_is_not_there(knarr: Knarr) -> None:
    result = knarr("run", "localhost:1/nothing:here", check=False)
    assert result.returncode == 125
    assert result.stderr.startswith(b"Unable to find image 'localhost:1/nothing:here' locally\nknarr: Error response from daemon: ")
    never = knarr("run", "--pull", "never", "nothing:here", check=False)
    assert b"No such image: nothing:here" in never.stderr


def test_a_taken_name(knarr: Knarr) -> None:
    knarr("create", "--name", "taken", *NONE, "busybox", "true")
    result = knarr("run", "--name", "taken", *NONE, "busybox", "true", check=False)
    assert result.returncode == 125
    assert b'The container name "/taken" is already in use' in result.stderr


def test_detached_life(knarr: Knarr) -> None:
    identity = knarr.out(
        "run",
        "-d",
        "--name",
        "service",
        *NONE,
        "busybox",
        "sh",
        "-c",
        "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done",
    )
    assert len(identity) == 64
    eventually(lambda: knarr.out("logs", "service") == "up")
    assert knarr.out("ps", "--format", "{{.Names}} {{.State}}") == "service running"
    assert knarr("exec", "service", "sh", "-c", "echo in; exit 4", check=False).returncode == 4
    eventually(lambda: "sleep" in knarr.out("top", "service"))
    waiter = knarr.popen("wait", "service")
    assert knarr.out("stop", "service") == "service"
    assert waiter.communicate(timeout=60)[0] == b"3\n"
    assert knarr.out("logs", "--tail", "1", "service") == "bye"
    assert knarr.out("start", "service") == "service"
    assert knarr.out("restart", "-t", "5", "service") == "service"
    assert knarr.out("rename", "service", "renamed") == ""
    assert knarr.out("kill", "renamed") == "renamed"
    eventually(lambda: knarr.out("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "renamed") == "exited 137")
    assert knarr.out("rm", "renamed") == "renamed"


def test_stopping_several_takes_as_long_as_one(knarr: Knarr) -> None:
    names = [f"deaf{n}" for n in range(4)]
    for name in names:
        knarr("run", "-d", "--name", name, *NONE, "busybox", "sleep", "100")
    begin = str(time.time())
    assert knarr.out("stop", "-t", "2", *names).split() == names
    past = ("events", "--since", begin, "--until", str(time.time()), "-f", "event=kill", "-f", "event=die", "--format", "{{.Action}}")
    assert knarr.out(*past).split()[:4] == ["kill"] * 4, "one is asked after another has ended"
    assert knarr.out("rm", *names).split() == names


def test_a_terminal(knarr: Knarr) -> None:
    with knarr.terminal("run", "--rm", "-it", "--name", "typed", *NONE, "busybox", "sh") as screen:
        screen.expect(b"# ")
        screen.type(b"stty size\n")
        screen.expect(b"31 97")
        screen.resize_inside(40, 120)
        screen.type(b"sleep 100\n")
        eventually(lambda: "sleep 100" in knarr.out("top", "typed"))
        screen.type(b"\x03")  # the terminal is raw: the container's shell gets it
        screen.type(b"exit 9\n")
        assert screen.wait() == 9


def test_detach_and_attach_again(knarr: Knarr) -> None:
    with knarr.terminal("run", "-it", "--name", "left", *NONE, "busybox", "sh") as screen:
        screen.expect(b"# ")
        screen.type(b"\x10\x11")
        assert screen.wait() == 0
    assert knarr.out("ps", "--format", "{{.Names}}") == "left"
    with knarr.terminal("attach", "left") as screen:
        screen.type(b"echo a$((1+1))b\n")
        screen.expect(b"a2b")
        screen.type(b"exit 5\n")
        assert screen.wait() == 5


def test_exec_with_a_terminal(knarr: Knarr) -> None:
    knarr("run", "-d", "--name", "box", *NONE, "busybox", "sleep", "100")
    with knarr.terminal("exec", "-it", "-e", "A=b", "-w", "/tmp", "box", "sh") as screen:
        screen.type(b"echo $A-$PWD; stty size; exit 6\n")
        screen.expect(b"b-/tmp")
        screen.expect(b"31 97")
        assert screen.wait() == 6


def test_a_terminal_needs_one(knarr: Knarr) -> None:
    for command in (["run", "-it", *NONE, "busybox", "true"], ["exec", "-it", "x", "true"]):
        result = knarr(*command, check=False)
        assert (result.returncode, result.stderr) == (1, b"the input device is not a TTY\n")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 41), (signal.SIGUSR1, 42)])
def test_signals_are_passed_on(knarr: Knarr, sent: int, code: int) -> None:
    script = "trap 'exit 41' TERM; trap 'exit 42' USR1; echo ready; while :; do sleep 0.05; done"
    running = knarr.popen("run", "--rm", *NONE, "busybox", "sh", "-c", script)
    assert running.stdout is not None
    assert running.stdout.readline() == b"ready\n"
    running.send_signal(sent)
    assert running.wait(60) == code


def test_start_attached(knarr: Knarr) -> None:
    knarr("create", "--name", "later", "-i", *NONE, "busybox", "cat")
    assert knarr("start", "-ai", "later", input=b"through\n").stdout == b"through\n"
    knarr("create", "--name", "code", *NONE, "busybox", "sh", "-c", "exit 8")
    assert knarr("start", "-a", "code", check=False).returncode == 8


def test_cidfile(knarr: Knarr, tmp_path: Path) -> None:
    path = tmp_path / "id"
    identity = knarr.out("create", "--cidfile", str(path), *NONE, "busybox", "true")
    assert path.read_text() == identity
    result = knarr("create", "--cidfile", str(path), *NONE, "busybox", "true", check=False)
    assert b"container ID file found" in result.stderr
    other = tmp_path / "other"
    assert knarr("create", "--cidfile", str(other), "--name", "b@d", *NONE, "busybox", "true", check=False).returncode != 0
    assert not other.exists()


def test_trace_draws_the_start(knarr: Knarr) -> None:
    lines = knarr.out("run", "--rm", "--trace", *NONE, "busybox", "echo", "hi").splitlines()
    assert lines[0] == "hi"
    assert lines[1].split() == ["step", "at", "µs", "took", "µs"]
    assert lines[-1].startswith("total")
    assert len(lines) > 10
    assert knarr.out("ps", "-aq") == ""


def test_logs_follow_until_the_end(knarr: Knarr) -> None:
    knarr("run", "-d", "--name", "talker", *NONE, "busybox", "sh", "-c", "for i in 1 2 3; do echo $i; echo e$i >&2; sleep 0.1; done")
    result = knarr("logs", "-f", "-t", "talker")
    assert [line.split()[1] for line in result.stdout.decode().splitlines()] == ["1", "2", "3"]
    assert [line.split()[1] for line in result.stderr.decode().splitlines()] == ["e1", "e2", "e3"]
    assert knarr.out("logs", "--since", "1h", "--tail", "2", "talker") in ("3", "2\n3")


def test_events(knarr: Knarr) -> None:
    begin = str(time.time())
    knarr("run", "--rm", "--name", "seen", *NONE, "busybox", "true")
    text = knarr.out("events", "--since", begin, "--until", str(time.time()), "-f", "container=seen", "--format", "{{.Action}}")
    assert [action for action in text.split() if action in ("create", "start", "die")] == ["create", "start", "die"]


def test_image_commands(knarr: Knarr, tmp_path: Path) -> None:
    knarr("tag", "busybox", "other/name:v1")
    assert "other/name" in knarr.out("images", "--format", "{{.Repository}}:{{.Tag}}")
    assert knarr.out("rmi", "other/name:v1") == "Untagged: other/name:v1"
    assert json.loads(knarr.out("inspect", "busybox"))[0]["RepoTags"] == ["busybox:latest"]
    assert knarr.out("history", "-q", "busybox")
    result = knarr("image", "from-host", "-t", "echo:test", "--cmd", "made 'here today'", "/bin/echo")
    assert result.stdout.startswith(b"sha256:")
    assert knarr.out("run", "--rm", *NONE, "echo:test") == "made here today"
    knarr("rmi", "echo:test")


def test_import_and_load_stream(knarr: Knarr, tmp_path: Path) -> None:
    from tests.lib import busybox

    (tmp_path / "image.tar").write_bytes(busybox.archive("loaded:1"))
    assert knarr.out("load", "-i", str(tmp_path / "image.tar")) == "Loaded image: loaded:1"
    assert knarr("load", input=busybox.archive("loaded:2")).stdout == b"Loaded image: loaded:2\n"
    identity = knarr("import", "-c", 'CMD ["echo", "imported"]', "-", "imported:1", input=busybox.layer()).stdout.decode().strip()
    assert identity.startswith("sha256:")
    assert knarr.out("run", "--rm", *NONE, "imported:1") == "imported"
    assert knarr("load", "-i", "/nonexistent", check=False).stderr == b"open /nonexistent: no such file or directory\n"
    assert knarr("load", input=b"not a tar", check=False).returncode == 1
    knarr("rmi", "loaded:1", "loaded:2", "imported:1")


def test_a_reader_that_stops_reading(knarr: Knarr) -> None:
    running = knarr.popen("run", "--rm", *NONE, "busybox", "sh", "-c", "yes | head -c 3000000")
    assert running.stdout is not None
    running.stdout.read(10)
    running.stdout.close()
    assert running.wait(60) == 141
    assert running.stderr is not None
    assert running.stderr.read() == b""


def test_no_daemon() -> None:
    environment = {**os.environ, "KNARR_HOST": "unix:///nonexistent/socket"}
    result = subprocess.run([*knarr_command(), "ps"], env=environment, capture_output=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr.startswith(b"Cannot connect to the Knarr daemon at unix:///nonexistent/socket")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_first_clients_start_one_daemon() -> None:
    """In a mount namespace of its own, because it is about the default folders."""
    program = " ".join(knarr_command())
    if len(knarr_command()) > 1:
        pytest.skip("needs the launcher")
    script = f"""
        mount -t tmpfs none /run && mount -t tmpfs none /var/lib || exit 1
        unset KNARR_HOST DOCKER_HOST
        for i in 1 2 3 4; do {program} version --format 'v{{{{.Server.Version}}}}' & done; wait
        for pid in $(ls /proc | grep -E '^[0-9]+$'); do
            [ "$(readlink /proc/$pid/ns/mnt)" = "$(readlink /proc/self/ns/mnt)" ] || continue
            case "$(tr '\\0' ' ' < /proc/$pid/cmdline 2>/dev/null)" in *'knarr daemon --idle-exit 5m ') echo daemon; kill $pid;; esac
        done
        for i in $(seq 1000); do [ -e /run/knarr/knarr.sock ] || break; sleep 0.05; done
    """
    before = set(Path("/sys/fs/cgroup").glob("*/knarr"))
    result = subprocess.run(["unshare", "-m", "--propagation", "private", "sh", "-c", script], capture_output=True, timeout=180, text=True)
    lines = result.stdout.split()
    assert lines.count("daemon") == 1, result
    assert len([line for line in lines if line.startswith("v")]) == 4, result
    for group in set(Path("/sys/fs/cgroup").glob("*/knarr")) - before:
        for folder in [*group.glob("*/"), group]:
            eventually(lambda folder=folder: removed(folder))


def removed(group: Path) -> bool:
    """Remove a control group, whose last process may still be ending."""
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
