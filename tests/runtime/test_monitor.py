"""The monitor with real processes: starting, ending, exit.json, reconnecting, surviving the daemon, leaving nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.monitor import client
from engine.monitor.client import MonitorGone
from engine.wire import control
from tests.runtime.monitor_tools import TIMEOUT, Daemon, Monitors, alive, exit_of, log_lines, plan, shell, wait_gone

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def monitors() -> Iterator[Monitors]:
    made = Monitors()
    yield made
    pids = [one.pid for one in made.made]
    made.close()
    for pid in pids:
        wait_gone(pid)


def test_start_exit_and_record(monitors: Monitors) -> None:
    before = time.time_ns()
    one = monitors.start("echo; exit 3")
    assert one.expect(control.Exit).status == 3 << 8
    record = exit_of(one)
    assert (record.code, record.signal, record.status) == (3, 0, 768)
    assert (record.pid, record.start_time) == (one.started.pid, one.started.start_time)
    assert record.start_time > 0
    assert before <= record.finished <= time.time_ns()
    assert sorted(os.listdir(one.bundle)) == ["exit.json", "log"]


def test_started_carries_pidfd_and_times(monitors: Monitors) -> None:
    one = monitors.take()
    one.send(control.Start(plan=shell("sleep 100"), bundle=monitors.bundle()))
    deadline = time.monotonic() + TIMEOUT
    found: list[tuple[control.Message, list[int]]] = []
    while not found and time.monotonic() < deadline:
        found = one.connection.receive()
    message, (pidfd,) = found[0]
    assert isinstance(message, control.Started)
    assert 0 < message.received <= message.prepared <= message.launched
    assert message.trace
    stat = Path(f"/proc/{message.pid}/stat").read_text().rpartition(")")[2].split()
    assert int(stat[19]) == message.start_time
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)
    assert one.expect(control.Exit).status == signal.SIGKILL


def test_socket_is_there_before_started_and_private(monitors: Monitors) -> None:
    one = monitors.start("sleep 100")
    assert os.stat(f"{one.bundle}/monitor.sock").st_mode & 0o777 == 0o600
    one.send(control.Signal(number=9))
    one.expect(control.Exit)
    assert not os.path.exists(f"{one.bundle}/monitor.sock")


def test_signal_ends_with_128_plus_n(monitors: Monitors) -> None:
    one = monitors.start("sleep 100")
    one.send(control.Signal(number=signal.SIGTERM))
    assert os.waitstatus_to_exitcode(one.expect(control.Exit).status) == -15
    assert exit_of(one).code == 143
    assert exit_of(one).signal == 15


def test_bad_signal_is_a_warning(monitors: Monitors) -> None:
    one = monitors.start("sleep 100")
    one.send(control.Signal(number=500))
    assert "signal 500" in one.expect(control.Warning).text
    one.send(control.Signal(number=9))
    one.expect(control.Exit)


def test_failed_launch(monitors: Monitors) -> None:
    one, bundle = monitors.take(), monitors.bundle()
    one.send(control.Start(plan=plan("/no/such/program"), bundle=bundle))
    failed = one.expect(control.Failed)
    assert failed.op >= 0
    assert failed.errno == errno.ENOENT
    one.expect_end()
    assert os.listdir(bundle) == []


@pytest.mark.parametrize("bad", [b"", b"garbage", b"\0" * 100_000])
def test_plan_that_does_not_decode(monitors: Monitors, bad: bytes) -> None:
    one = monitors.take()
    one.send(control.Start(plan=bad, bundle=monitors.bundle()))
    failed = one.expect(control.Failed)
    assert failed.op == -1
    assert failed.errno
    one.expect_end()


def test_missing_bundle_is_named(monitors: Monitors) -> None:
    one = monitors.take()
    one.send(control.Start(plan=shell("true"), bundle=str(monitors.folder / "none")))
    failed = one.expect(control.Failed)
    assert (failed.op, failed.errno) == (-1, errno.ENOENT)
    assert "bundle" in failed.what
    assert "No such file" in failed.what


def test_failed_start_leaves_the_clients_socket_to_the_daemon(monitors: Monitors) -> None:
    one = monitors.take()
    ours, theirs = socket.socketpair()
    one.send(control.Attach(id=1), theirs.fileno())
    one.send(control.Start(plan=plan("/no/such/program"), bundle=monitors.bundle()))
    one.expect(control.Failed)
    one.expect_end()
    theirs.sendall(b"no such program")
    theirs.close()
    assert ours.recv(100) == b"no such program"
    assert ours.recv(100) == b""
    ours.close()


def test_second_start_is_refused(monitors: Monitors) -> None:
    one = monitors.start("sleep 100")
    one.send(control.Start(plan=shell("true"), bundle=one.bundle))
    assert "twice" in one.expect(control.Warning).text
    one.send(control.Signal(number=9))
    one.expect(control.Exit)


def test_stale_files_of_a_killed_monitor_are_replaced(monitors: Monitors) -> None:
    bundle = monitors.bundle()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
        stale.bind(f"{bundle}/monitor.sock")
    Path(bundle, "exit.json").write_text("{}")
    one = monitors.start("sleep 100", bundle=bundle)
    assert not os.path.exists(f"{bundle}/exit.json")
    client.connect(bundle).close()
    one.send(control.Signal(number=9))
    one.expect(control.Exit)


def test_restart_in_the_same_bundle(monitors: Monitors) -> None:
    bundle = monitors.bundle()
    for code in range(5):
        one = monitors.start(f"echo {code}; exit {code}", bundle=bundle)
        assert one.expect(control.Exit).status == code << 8
        assert exit_of(one).code == code
    assert [line["log"] for line in log_lines(f"{bundle}/log")] == [f"{code}\n" for code in range(5)]


def test_daemon_dies_and_reconnects(monitors: Monitors) -> None:
    script = "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); [ $((i % 50)) = 0 ] && sleep 0.05; done; read x; exit 7"
    one = monitors.start(script, open_stdin=True, stdin_once=True)
    client_end = one.attach(1)
    one.close()
    with client.connect(one.bundle) as connection:
        again = Daemon(connection)
        again.send(control.Status())
        state = again.expect(control.State)
        assert (state.phase, state.pid, state.start_time) == ("running", one.started.pid, one.started.start_time)
        assert state.clients == (1,)
        assert again.pid == one.pid
        again.attach(2, stdin=True, early=b"go\n").close()
        assert again.expect(control.Exit).status == 7 << 8
    assert [line["log"] for line in log_lines(f"{one.bundle}/log")] == [f"line {i}\n" for i in range(300)]
    client_end.close()


def test_exit_record_while_no_daemon_is_connected(monitors: Monitors) -> None:
    one = monitors.start("sleep 0.2; echo done; exit 9")
    one.close()
    deadline = time.monotonic() + TIMEOUT
    while client.read_exit(one.bundle) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert exit_of(one).code == 9
    assert [line["log"] for line in log_lines(f"{one.bundle}/log")] == ["done\n"]
    wait_gone(one.pid)
    with pytest.raises(MonitorGone):
        client.connect(one.bundle)


def test_several_daemons_hear_of_the_end(monitors: Monitors) -> None:
    one = monitors.start("sleep 100")
    others = [Daemon(client.connect(one.bundle)) for _ in range(5)]
    for other in others:
        other.send(control.Status())
        assert other.expect(control.State).phase == "running"
    others[0].send(control.Signal(number=9))
    for other in [one, *others]:
        assert other.expect(control.Exit).status == 9
        other.close()


def test_more_connections_than_places_harm_nobody(monitors: Monitors) -> None:
    one = monitors.start("sleep 100")
    crowd = [client.connect(one.bundle) for _ in range(40)]
    assert one.settled().phase == "running"
    for connection in crowd:
        connection.close()
    with client.connect(one.bundle) as connection:
        again = Daemon(connection)
        again.send(control.Status())
        again.expect(control.State)
        again.send(control.Signal(number=9))
        again.expect(control.Exit)


def test_waiting_monitor_ends_with_its_daemon(monitors: Monitors) -> None:
    one = monitors.take()
    assert alive(one.pid)
    one.close()
    wait_gone(one.pid)


def test_monitors_live_on_without_the_spawner(monitors: Monitors) -> None:
    one = monitors.start("read x; exit 4", open_stdin=True, stdin_once=True)
    monitors.spawner.close()
    wait_gone(monitors.spawner.pid)
    assert alive(one.pid)
    one.attach(stdin=True, early=b"go\n").close()
    assert one.expect(control.Exit).status == 4 << 8
    one.expect_end()
    wait_gone(one.pid)


def test_monitor_ignores_terminal_and_service_signals(monitors: Monitors) -> None:
    one = monitors.start("read x; exit 5", open_stdin=True, stdin_once=True)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        os.kill(one.pid, number)
    one.attach(stdin=True, early=b"go\n").close()
    assert one.expect(control.Exit).status == 5 << 8


def test_process_gets_default_signals_and_clean_descriptors(monitors: Monitors) -> None:
    one = monitors.start("grep -E 'SigIgn|SigBlk' /proc/self/status; ls /proc/self/fd; umask; pwd")
    one.expect(control.Exit)
    lines = [line["log"].strip() for line in log_lines(f"{one.bundle}/log")]
    assert [line.split()[1] for line in lines[:2]] == ["0" * 16, "0" * 16]
    assert lines[2:6] == ["0", "1", "2", "3"]  # 3 is ls's own


def test_monitor_holds_only_what_it_needs(monitors: Monitors) -> None:
    one = monitors.start("sleep 100")
    one.settled()
    targets = sorted(os.readlink(f"/proc/{one.pid}/fd/{name}").split(":")[0] for name in os.listdir(f"/proc/{one.pid}/fd"))
    bundle = str(one.bundle)
    files = [bundle, os.path.dirname(bundle), f"{bundle}/.exit.json.new"]
    assert targets == sorted([*["/dev/null"] * 3, "socket", "socket", "anon_inode", "pipe", "pipe", *files])
    assert os.readlink(f"/proc/{one.pid}/cwd") == "/"
    assert Path(f"/proc/{one.pid}/comm").read_text() == "knarr-monitor\n"
    assert Path(f"/proc/{one.pid}/cmdline").read_bytes().rstrip(b"\0") == f"knarr-monitor {bundle}".encode()
    assert os.readlink(f"/proc/{one.pid}/exe").startswith("/memfd:")
    assert os.getsid(one.pid) == one.pid
    one.send(control.Signal(number=9))
    one.expect(control.Exit)


def test_interpreter_copy_is_sealed(monitors: Monitors) -> None:
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    with open(f"/proc/{monitors.spawner.pid}/exe", "rb") as program:
        assert fcntl.fcntl(program, fcntl.F_GET_SEALS) & seals == seals
    with pytest.raises(OSError, match=r"Text file busy|not permitted"):
        os.open(f"/proc/{monitors.spawner.pid}/exe", os.O_RDWR)


def test_private_memory_is_small(monitors: Monitors) -> None:
    one = monitors.start("sleep 100")
    one.settled()
    rollup = Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines()
    private = sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))
    one.send(control.Signal(number=9))
    one.expect(control.Exit)
    assert private < 500, f"{private} kB"


def test_large_message_in_a_memfd(monitors: Monitors) -> None:
    one, bundle = monitors.take(), monitors.bundle()
    log = control.LogSettings(path=f"{bundle}/log")
    one.send(control.Start(plan=plan("/bin/busybox", "sh", "-c", "echo ${#0}", "x" * 100_000), bundle=bundle, log=log))
    one.expect(control.Started)
    one.expect(control.Exit)
    assert [line["log"] for line in log_lines(f"{bundle}/log")] == ["100000\n"]


@pytest.mark.parametrize("packet", [b"x", b"\x01\x01\0\0\x08\0\0\0", b"\x02" * 64, os.urandom(4096), struct.pack("<BBHI", 1, 1, 1, 5000)])
def test_garbage_disconnects_and_harms_nobody(monitors: Monitors, packet: bytes) -> None:
    one = monitors.start("sleep 100")
    bad = client.connect(one.bundle)
    with socket.socket(fileno=os.dup(bad.fileno())) as raw:
        raw.send(packet)
    culprit = Daemon(bad)
    assert "protocol" in culprit.expect(control.Warning).text
    culprit.expect_end()
    bad.close()
    assert one.settled().phase == "running"
    one.send(control.Signal(number=9))
    one.expect(control.Exit)


def test_descriptors_that_nobody_asked_for_are_closed(monitors: Monitors) -> None:
    one = monitors.start("sleep 100")
    one.settled()
    before = len(os.listdir(f"/proc/{one.pid}/fd"))
    for _ in range(50):
        one.send(control.Resize(rows=1, cols=1), 0, 1, 2)
    one.settled()
    assert len(os.listdir(f"/proc/{one.pid}/fd")) == before
    one.send(control.Signal(number=9))
    one.expect(control.Exit)


def test_daemon_that_never_reads_is_cut_off(monitors: Monitors) -> None:
    one = monitors.start("sleep 100")
    deaf = client.connect(one.bundle)

    def pester() -> None:
        for _ in range(100_000):
            try:
                deaf.send(control.Status())
            except BlockingIOError:
                time.sleep(0.001)

    with pytest.raises(MonitorGone):
        pester()
    deaf.close()
    one.send(control.Signal(number=9))
    one.expect(control.Exit)


def test_many_at_once_leave_nothing(monitors: Monitors) -> None:
    monitors.spawner.request(30)
    running = [monitors.start(f"echo {i}; exit {i}") for i in range(30)]
    for i, one in enumerate(running):
        assert one.expect(control.Exit).status == i << 8
        one.close()
    for one in running:
        wait_gone(one.pid)
    children = Path(f"/proc/{monitors.spawner.pid}/task/{monitors.spawner.pid}/children").read_text().split()
    assert not [pid for pid in children if not alive(int(pid))]
    deadline = time.monotonic() + TIMEOUT
    while len(os.listdir(f"/proc/{monitors.spawner.pid}/fd")) > 6:  # it may be forking the next ones
        assert time.monotonic() < deadline, os.listdir(f"/proc/{monitors.spawner.pid}/fd")
        time.sleep(0.01)
