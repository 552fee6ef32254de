"""The unmodified docker CLI: what a user does all day. Runs against another engine too (KNARR_PEER_DOCKER_HOST)."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.lib import busybox
from tests.lib.daemon import Engine, docker_program
from tests.lib.terminal import Terminal

NONE = ("--network", "none")


def terminal(engine: Engine, *arguments: str, rows: int = 24, columns: int = 80) -> Terminal:
    return Terminal([docker_program(), *arguments], engine.docker_environment(), rows, columns)


def eventually(condition: object, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def megabytes(count: int) -> bytes:
    return random.Random(1).randbytes(count << 20)


# Running


def test_run_prints_and_ends(clean: Engine) -> None:
    result = clean.docker("run", "--rm", *NONE, "busybox", "echo", "hello")
    assert (result.stdout, result.stderr) == (b"hello\n", b"")


@pytest.mark.parametrize("network", ["none", "host"])
def test_networks(clean: Engine, network: str) -> None:
    links = clean.out("run", "--rm", "--network", network, "busybox", "ls", "/sys/class/net").split()
    if network == "none":
        assert links == ["lo"]
    else:
        assert len(links) >= 1


def test_another_network_is_refused_clearly(clean: Engine) -> None:
    if clean.name == "peer":
        pytest.skip("a peer has networks")
    result = clean.docker("run", "--rm", "--network", "somewhere", "busybox", "true", check=False)
    assert result.returncode == 125
    assert b"somewhere" in result.stderr


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 42"], 42),
        (["nonexistent-program"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_exit_codes(clean: Engine, command: list[str], code: int) -> None:
    assert clean.docker("run", "--rm", *NONE, "busybox", *command, check=False).returncode == code


def test_unknown_image(clean: Engine) -> None:
    result = clean.docker("run", "--rm", "--pull", "never", *NONE, "not-here:1", "true", check=False)
    assert result.returncode == 125
    assert b"No such image" in result.stderr


def test_a_start_that_is_refused_ends_an_rm_container(clean: Engine) -> None:
    result = clean.docker("run", "--rm", "--network", "container:nobody", "busybox", "true", check=False)
    assert result.returncode == 125
    assert b"No such container: nobody" in result.stderr
    assert clean.out("ps", "-aq") == ""


def test_standard_error_is_apart(clean: Engine) -> None:
    result = clean.docker("run", "--rm", *NONE, "busybox", "sh", "-c", "echo out; echo err >&2")
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")


def test_what_the_process_sees(clean: Engine) -> None:
    script = "id -u; id -g; hostname; pwd; echo $GREETING; echo $$; umask; cat /proc/1/comm; mount | wc -l"
    output = clean.out(
        "run", "--rm", *NONE, "-u", "33:44", "-h", "box", "-w", "/new/folder", "-e", "GREETING=hei", "busybox", "sh", "-c", script
    )
    lines = output.split("\n")
    assert lines[:8] == ["33", "44", "box", "/new/folder", "hei", "1", "0022", "sh"]


def test_default_sandbox(clean: Engine) -> None:
    """Docker's defaults: capabilities, seccomp, masked and read-only paths, devices."""
    status = clean.out("run", "--rm", *NONE, "busybox", "grep", "-E", "CapEff|CapBnd|Seccomp:|NoNewPrivs", "/proc/self/status")
    values = dict(line.split(":\t") for line in status.splitlines())
    assert values["CapEff"] == values["CapBnd"] == "00000000a80425fb"
    assert values["Seccomp"] == "2"
    refused = clean.docker(
        "run", "--rm", *NONE, "busybox", "sh", "-c", "echo 1 > /proc/sys/kernel/panic; mount -t tmpfs x /tmp", check=False
    )
    assert refused.returncode != 0
    assert b"Read-only file system" in refused.stderr
    assert clean.out("run", "--rm", *NONE, "busybox", "sh", "-c", "cat /proc/kcore /proc/keys | wc -c") == "0"
    devices = set(clean.out("run", "--rm", *NONE, "busybox", "ls", "/dev").split())
    assert {
        "null",
        "zero",
        "full",
        "random",
        "urandom",
        "tty",
        "pts",
        "ptmx",
        "shm",
        "mqueue",
        "stdin",
        "stdout",
        "stderr",
        "fd",
    } <= devices


def test_flags_that_shape_the_sandbox(clean: Engine) -> None:
    assert clean.out("run", "--rm", *NONE, "--cap-drop", "all", "busybox", "grep", "CapEff", "/proc/self/status").endswith(
        "0000000000000000"
    )
    assert (
        clean.out("run", "--rm", *NONE, "--security-opt", "no-new-privileges", "busybox", "grep", "NoNewPrivs", "/proc/self/status")[-1]
        == "1"
    )
    assert clean.docker("run", "--rm", *NONE, "--read-only", "busybox", "touch", "/file", check=False).returncode == 1
    assert (
        clean.out("run", "--rm", *NONE, "--read-only", "--tmpfs", "/t:size=1m,mode=700", "busybox", "sh", "-c", "echo ok > /t/f; cat /t/f")
        == "ok"
    )
    assert clean.out("run", "--rm", *NONE, "--ulimit", "nofile=99:100", "busybox", "sh", "-c", "ulimit -n; ulimit -Hn") == "99\n100"
    assert clean.out("run", "--rm", *NONE, "--ulimit", "nofile=10", "busybox", "sh", "-c", "ulimit -Hn") == "10"
    assert clean.out("run", "--rm", *NONE, "--sysctl", "net.ipv4.ip_forward=1", "busybox", "cat", "/proc/sys/net/ipv4/ip_forward") == "1"
    assert clean.out("run", "--rm", *NONE, "--shm-size", "8m", "busybox", "df", "-m", "/dev/shm").split()[8] == "8"
    assert clean.out("run", "--rm", *NONE, "--entrypoint", "echo", "busybox", "a", "b") == "a b"
    assert clean.out(
        "run", "--rm", *NONE, "--init=false", "--add-host", "there:10.9.8.7", "busybox", "grep", "there", "/etc/hosts"
    ).split() == [
        "10.9.8.7",
        "there",
    ]


def test_bind_mounts(clean: Engine, tmp_path: Path) -> None:
    if clean.name == "peer":
        pytest.skip("a peer may have other files")
    (tmp_path / "file").write_text("from the host")
    assert (
        clean.out("run", "--rm", *NONE, "-v", f"{tmp_path}:/data", "busybox", "sh", "-c", "cat /data/file; echo back > /data/answer")
        == "from the host"
    )
    assert (tmp_path / "answer").read_text() == "back\n"
    read_only = clean.docker("run", "--rm", *NONE, "-v", f"{tmp_path}:/data:ro", "busybox", "touch", "/data/x", check=False)
    assert read_only.returncode == 1
    assert b"Read-only" in read_only.stderr


# Streams


def test_standard_input(clean: Engine) -> None:
    assert clean.docker("run", "--rm", "-i", *NONE, "busybox", "cat", input=b"hi\n").stdout == b"hi\n"
    assert clean.docker("run", "--rm", "-i", *NONE, "busybox", "wc", "-c", input=b"").stdout.strip() == b"0"


def test_standard_input_of_a_program_that_does_not_read(clean: Engine) -> None:
    assert clean.docker("run", "--rm", "-i", *NONE, "busybox", "true", input=megabytes(4)).returncode == 0


def test_fifty_megabytes_through_standard_output(clean: Engine) -> None:
    result = clean.docker("run", "--rm", *NONE, "busybox", "seq", "1", "6700000", timeout=300)
    assert len(result.stdout) > 50_000_000
    assert result.stdout == b"".join(b"%d\n" % n for n in range(1, 6_700_001))


def test_fifty_megabytes_through_standard_input(clean: Engine) -> None:
    data = megabytes(50)
    result = clean.docker("run", "--rm", "-i", *NONE, "busybox", "md5sum", input=data, timeout=300)
    assert result.stdout.split()[0].decode() == hashlib.md5(data).hexdigest()


def test_both_ways_at_once(clean: Engine) -> None:
    data = megabytes(20)
    assert clean.docker("run", "--rm", "-i", *NONE, "busybox", "cat", input=data, timeout=300).stdout == data


def test_a_pipe_that_closes_early_ends_the_program(clean: Engine) -> None:
    """SIGPIPE has its default again in a container: `yes | head` ends."""
    assert clean.out("run", "--rm", *NONE, "busybox", "sh", "-c", "yes | head -n 2") == "y\ny"


# Terminals


def test_interactive_shell(clean: Engine) -> None:
    with terminal(clean, "run", "--rm", "-it", "--name", "typed", *NONE, "busybox", "sh", rows=33, columns=101) as shell:
        shell.expect(b"# ")
        shell.type(b"stty size; tty\n")
        shell.expect(b"33 101")
        shell.expect(b"/dev/")
        shell.expect(b"# ")
        shell.resize_inside(40, 90)
        shell.expect(b"# ")
        shell.type(b"sleep 100\n")
        eventually(lambda: "sleep 100" in clean.out("top", "typed"))
        shell.type(b"\x03")
        shell.expect(b"# ")
        shell.type(b"exit 7\n")
        assert shell.wait() == 7


def test_detach_and_attach_again(clean: Engine) -> None:
    with terminal(clean, "run", "-it", "--name", "detached", *NONE, "busybox", "sh") as shell:
        shell.expect(b"# ")
        shell.type(b"\x10\x11")
        assert shell.wait() == 0
    assert clean.out("inspect", "-f", "{{.State.Running}}", "detached") == "true"
    with terminal(clean, "attach", "detached") as shell:
        shell.type(b"echo again-$((40+2))\n")
        shell.expect(b"again-42")
        shell.type(b"exit 3\n")
        assert shell.wait() == 3


def test_two_terminals_on_one_container(clean: Engine) -> None:
    clean.docker("run", "-dit", "--name", "shared", *NONE, "busybox", "sh")
    with terminal(clean, "attach", "shared") as first, terminal(clean, "attach", "shared") as second:
        for each in (first, second):  # what comes back says that it is attached
            each.type(b"echo here-$((1+2))\n")
            each.expect(b"here-3")
        first.type(b"echo one-$((1+0))\n")
        first.expect(b"one-1")
        second.expect(b"one-1")
        second.type(b"echo two-$((1+1))\n")
        first.expect(b"two-2")
        second.expect(b"two-2")
        second.type(b"exit 5\n")
        assert (first.wait(), second.wait()) == (5, 5)


def test_exec_with_a_terminal(clean: Engine) -> None:
    clean.docker("run", "-d", "--name", "target", *NONE, "busybox", "sleep", "1000")
    with terminal(clean, "exec", "-it", "target", "sh", rows=30, columns=99) as shell:
        shell.expect(b"# ")
        shell.type(b"echo pid-$$-of-$(cat /proc/1/comm); stty size\n")
        shell.expect(b"-of-sleep")
        shell.expect(b"30 99")
        shell.type(b"exit 9\n")
        assert shell.wait() == 9


# A container's life


def test_detached_logs_stop_and_remove(clean: Engine) -> None:
    script = "i=0; trap 'echo bye; exit 4' TERM; while :; do i=$((i+1)); echo line $i; sleep 0.1; done"
    container = clean.out("run", "-d", "--name", "worker", *NONE, "busybox", "sh", "-c", script)
    assert len(container) == 64
    follower = clean.docker_popen("logs", "-f", "worker", stdin=subprocess.DEVNULL, bufsize=0)
    assert follower.stdout is not None
    first = follower.stdout.readline()
    assert "Up" in clean.out("ps", "-a", "--filter", "name=worker", "--format", "{{.Status}}")
    assert clean.out("stop", "worker") == "worker"
    output, _ = follower.communicate(timeout=60)
    lines = (first + output).decode().splitlines()
    assert lines[-1] == "bye"
    assert lines[:-1] == [f"line {n}" for n in range(1, len(lines))]
    assert clean.out("ps", "-a", "--filter", "name=worker", "--format", "{{.Status}}").startswith("Exited (4)")
    assert clean.out("logs", "--tail", "1", "worker") == "bye"
    assert clean.out("wait", "worker") == "4"
    assert clean.out("rm", "worker") == "worker"
    assert clean.out("ps", "-aq", "--filter", "name=worker") == ""


def test_logs_of_a_finished_container(clean: Engine) -> None:
    clean.docker("run", "--name", "done", *NONE, "busybox", "sh", "-c", "echo a; echo b >&2; printf no-newline")
    result = clean.docker("logs", "done")
    assert (result.stdout, result.stderr) == (b"a\nno-newline", b"b\n")
    stamped = clean.out("logs", "-t", "--tail", "1", "done")
    assert stamped[:2] == "20"
    assert stamped.split(" ", 1)[1] == "no-newline"
    assert clean.out("logs", "--until", "2001-01-01T00:00:00Z", "done") == ""


def test_stop_kills_what_does_not_listen(clean: Engine) -> None:
    clean.docker("run", "-d", "--name", "deaf", *NONE, "busybox", "sh", "-c", "trap '' TERM; sleep 1000")
    began = time.monotonic()
    clean.docker("stop", "-t", "1", "deaf")
    assert time.monotonic() - began > 0.9
    assert clean.out("inspect", "-f", "{{.State.ExitCode}} {{.State.Status}}", "deaf") == "137 exited"


def test_kill_restart_rename(clean: Engine) -> None:
    script = "trap 'exit 6' USR1; echo ready; while :; do sleep 0.05; done"
    clean.docker("run", "-d", "--name", "before", *NONE, "busybox", "sh", "-c", script)
    first = clean.out("inspect", "-f", "{{.State.Pid}}", "before")
    eventually(lambda: clean.out("logs", "before") == "ready")
    clean.docker("restart", "-t", "0", "before")
    assert clean.out("inspect", "-f", "{{.State.Pid}}", "before") not in (first, "0")
    clean.docker("rename", "before", "after")
    eventually(lambda: clean.out("logs", "after") == "ready\nready")
    clean.docker("kill", "-s", "USR1", "after")
    assert clean.out("wait", "after") == "6"


def test_wait_from_before_the_end(clean: Engine) -> None:
    clean.docker("run", "-di", "--name", "waited", *NONE, "busybox", "sh", "-c", "read line; exit 11")
    waiting = clean.docker_popen("wait", "waited", stdin=subprocess.DEVNULL)
    time.sleep(0.5)
    assert waiting.poll() is None
    attached = clean.docker_popen("attach", "waited")
    attached.communicate(b"go\n", timeout=60)
    assert waiting.communicate(timeout=60)[0].strip() == b"11"


def test_remove_a_running_container(clean: Engine) -> None:
    clean.docker("run", "-d", "--name", "running", *NONE, "busybox", "sleep", "1000")
    refused = clean.docker("rm", "running", check=False)
    assert refused.returncode == 1
    assert b"running" in refused.stderr
    assert clean.out("rm", "-f", "running") == "running"


def test_names_are_unique(clean: Engine) -> None:
    clean.docker("create", "--name", "taken", *NONE, "busybox")
    again = clean.docker("create", "--name", "taken", *NONE, "busybox", check=False)
    assert again.returncode == 1
    assert b"already in use" in again.stderr


def test_automatic_removal(clean: Engine, tmp_path: Path) -> None:
    clean.docker("run", "-d", "--rm", "--name", "fleeting", "--cidfile", str(tmp_path / "id"), *NONE, "busybox", "sleep", "0.3")
    container = (tmp_path / "id").read_text()
    eventually(lambda: container not in clean.out("ps", "-aq", "--no-trunc").split())


def test_exec(clean: Engine) -> None:
    clean.docker("run", "-d", "--name", "host", "-e", "A=1", *NONE, "busybox", "sleep", "1000")
    assert clean.out("exec", "host", "sh", "-c", "echo $A; hostname") == f"1\n{clean.out('inspect', '-f', '{{.Config.Hostname}}', 'host')}"
    assert clean.docker("exec", "host", "sh", "-c", "exit 21", check=False).returncode == 21
    assert clean.docker("exec", "host", "nonexistent", check=False).returncode in (126, 127)  # Docker has given both
    assert clean.docker("exec", "-i", "host", "cat", input=b"through").stdout == b"through"
    assert clean.out("exec", "-u", "user", "-w", "/var", "-e", "B=2", "host", "sh", "-c", "id -un; pwd; echo $B") == "user\n/var\n2"
    clean.docker("exec", "-d", "host", "sh", "-c", "echo made > /tmp/by-exec")
    eventually(lambda: clean.docker("exec", "host", "cat", "/tmp/by-exec", check=False).stdout == b"made\n")
    assert (
        clean.docker("exec", "-i", "host", "md5sum", input=megabytes(10)).stdout.split()[0].decode()
        == hashlib.md5(megabytes(10)).hexdigest()
    )
    assert clean.docker("exec", "host", "sh", "-c", "echo out; echo err >&2").stderr == b"err\n"


def test_exec_into_a_stopped_container(clean: Engine) -> None:
    clean.docker("create", "--name", "idle", *NONE, "busybox")
    result = clean.docker("exec", "idle", "true", check=False)
    assert result.returncode == 1
    assert b"is not running" in result.stderr


def test_top_and_inspect(clean: Engine) -> None:
    clean.docker("run", "-d", "--name", "watched", "--label", "colour=blue", *NONE, "busybox", "sleep", "1000")
    assert "sleep 1000" in clean.out("top", "watched")
    found = json.loads(clean.out("inspect", "watched"))[0]
    assert found["Name"] == "/watched"
    assert found["Path"] == "sleep"
    assert found["Args"] == ["1000"]
    assert found["State"]["Running"] is True
    assert found["HostConfig"]["NetworkMode"] == "none"
    assert found["Config"]["Labels"] == {"colour": "blue"}
    assert (
        clean.out("ps", "--filter", "label=colour=blue", "--format", "{{.Names}} {{.Image}} {{.Command}}", "--no-trunc")
        == 'watched busybox "sleep 1000"'
    )


def test_events(clean: Engine) -> None:
    form = ("--format", "{{.Type}} {{.Action}}", "--filter", "container=seen", "--since", f"{time.time():.6f}")
    watching = clean.docker_popen("events", *form, stdin=subprocess.DEVNULL)
    clean.docker("run", "--name", "seen", *NONE, "busybox", "sh", "-c", "exit 3", check=False)
    clean.docker("rm", "seen")
    seen: list[str] = []
    assert watching.stdout is not None
    patience = threading.Timer(60, watching.kill)
    patience.start()
    while not seen or seen[-1] not in ("container destroy", ""):
        seen.append(watching.stdout.readline().decode().strip())
    patience.cancel()
    watching.terminate()
    watching.communicate(timeout=60)
    order = [f"container {action}" for action in ("create", "attach", "start", "die", "destroy")]
    assert [line for line in seen if line in order] == order


def test_the_daemon_describes_itself(clean: Engine) -> None:
    version = json.loads(clean.out("version", "--format", "{{json .}}"))
    assert version["Server"]["ApiVersion"]
    info = json.loads(clean.out("info", "--format", "{{json .}}"))
    assert info["Driver"]
    assert info["OSType"] == "linux"
    assert "ServerErrors" not in info


# Images


def test_image_commands(clean: Engine, tmp_path: Path) -> None:
    assert "busybox" in clean.out("images", "--format", "{{.Repository}}").split()
    clean.docker("tag", "busybox", "again:v2")
    assert clean.out("images", "-q", "--no-trunc", "again:v2") == clean.out("images", "-q", "--no-trunc", "busybox")
    assert json.loads(clean.out("image", "inspect", "again:v2"))[0]["Config"]["Cmd"] == ["sh"]
    assert clean.out("history", "-q", "again:v2")
    assert "Untagged: again:v2" in clean.out("rmi", "again:v2")
    missing = clean.docker("rmi", "again:v2", check=False)
    assert missing.returncode == 1
    assert b"No such image" in missing.stderr


def test_load_from_standard_input(clean: Engine) -> None:
    assert "Loaded image: loaded:1" in clean.out("load", input=busybox.archive("loaded:1"))
    assert clean.out("run", "--rm", *NONE, "loaded:1", "echo", "works") == "works"
    clean.docker("rmi", "loaded:1")


def test_import_with_changes(clean: Engine, tmp_path: Path) -> None:
    (tmp_path / "root.tar").write_bytes(busybox.layer())
    image = clean.out("import", "-c", 'CMD ["echo","from the image"]', "-c", "ENV K=v", str(tmp_path / "root.tar"), "imported:1")
    assert image.startswith("sha256:")
    assert clean.out("run", "--rm", *NONE, "imported:1") == "from the image"
    clean.docker("rmi", "imported:1")


@pytest.mark.slow
def test_debian(clean: Engine) -> None:
    """A real distribution: imported, and an interactive bash in it."""
    clean.docker("import", "-c", 'CMD ["bash"]', str(busybox.debian_tar()), "debian:test", timeout=300)
    try:
        assert clean.out("run", "--rm", *NONE, "debian:test", "sh", "-c", ". /etc/os-release; echo $ID") == "debian"
        with terminal(clean, "run", "--rm", "-it", *NONE, "-h", "deb", "debian:test", "bash") as shell:
            shell.expect(b"root@deb:/# ")
            shell.type(b"dpkg -l | grep -c ^ii\n")
            shell.expect(b"root@deb:/# ")
            shell.type(b"exit\n")
            assert shell.wait() == 0
        assert int(clean.out("run", "--rm", *NONE, "debian:test", "perl", "-e", "print 6*7")) == 42
    finally:
        clean.docker("rmi", "-f", "debian:test")


# Limits


def test_memory_limit_is_reported_as_out_of_memory(clean: Engine) -> None:
    clean.docker(
        "run", "--name", "hungry", "-m", "24m", "--memory-swap", "24m", *NONE, "busybox", "tail", "-c", "200m", "/dev/zero", check=False
    )
    state = json.loads(clean.out("inspect", "-f", "{{json .State}}", "hungry"))
    assert state["OOMKilled"] is True
    assert state["ExitCode"] == 137


def test_pids_limit(clean: Engine) -> None:
    script = "for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; wait"
    result = clean.docker("run", "--rm", "--pids-limit", "5", *NONE, "busybox", "sh", "-c", script, check=False)
    assert b"fork" in result.stderr


def test_cpu_limit(clean: Engine) -> None:
    """A quarter of a processor: over two seconds a busy loop gets about half a second of it."""
    busy = "(while :; do :; done) & pid=$!"
    script = f"cut -d' ' -f1 /proc/uptime; {busy}; sleep 2; cut -d' ' -f14,15 /proc/$pid/stat; cut -d' ' -f1 /proc/uptime; kill $pid"
    began, user, system, ended = clean.out("run", "--rm", "--cpus", "0.25", *NONE, "busybox", "sh", "-c", script).split()
    assert (int(user) + int(system)) / 100 < 0.25 * (float(ended) - float(began)) + 0.7
