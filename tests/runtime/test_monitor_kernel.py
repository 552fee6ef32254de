"""The monitor with cgroups and namespaces: lack of memory, processes in PID namespaces, execs that join them.

The tests of memory run again under cgroup v2 alone.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator

import pytest

from engine.linux.cgroups import Cgroups
from engine.runtime import ops
from engine.spec.runtime import Memory, Resources
from engine.wire import control
from tests.lib import cgroup2
from tests.runtime.monitor_tools import Daemon, Monitors, exit_of, log_lines, read_all, stream, wait_gone

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def monitors() -> Iterator[Monitors]:
    made = Monitors()
    yield made
    pids = [one.pid for one in made.made]
    made.close()
    for pid in pids:
        wait_gone(pid)


@pytest.fixture
def group() -> Iterator[tuple[Cgroups, str]]:
    cgroups = Cgroups.detect()
    path = f"knarr-test-monitor-{os.getpid()}/box"
    yield cgroups, path
    cgroups.remove(path)
    cgroups.tidy(os.path.dirname(path))
    cgroups.remove(os.path.dirname(path))


def launch(monitors: Monitors, operations: list[ops.Op], **options: object) -> Daemon:
    one, bundle = monitors.take(), monitors.bundle()
    one.bundle = bundle  # type: ignore[attr-defined]
    log = control.LogSettings(path=f"{bundle}/log")
    one.send(control.Start(plan=ops.encode(operations), bundle=bundle, log=log, **options))  # type: ignore[arg-type]
    one.started = one.expect(control.Started, control.Failed)  # type: ignore[attr-defined]
    assert isinstance(one.started, control.Started), one.started  # type: ignore[attr-defined]
    return one


def in_group(monitors: Monitors, group: tuple[Cgroups, str], script: str, *, watch: bool) -> Daemon:
    cgroups, path = group
    limit = 24 << 20
    placement = cgroups.prepare(path, Resources(memory=Memory(limit=limit, swap=limit if cgroups.swap_limit else None)))
    source = cgroups.oom_source(path)
    assert source
    oom = control.OomSource(path=source, version=1 if source.endswith("oom_control") else 2, watch=watch)
    operations: list[ops.Op] = [ops.Clone(0, placement.directory), *map(ops.Tasks, placement.tasks), ops.Stdio()]
    operations.append(ops.Exec(args=("/bin/busybox", "sh", "-c", script), env=("PATH=/bin:/usr/bin",)))
    return launch(monitors, operations, oom=oom)


def test_process_killed_for_want_of_memory(monitors: Monitors, group: tuple[Cgroups, str]) -> None:
    one = in_group(monitors, group, "exec busybox tail /dev/zero", watch=True)
    ended = one.expect(control.Exit)
    assert (ended.status & 0x7F, ended.oom_kills) == (signal.SIGKILL, 1)
    assert exit_of(one).oom_kills == 1
    assert [m for m in one.seen if isinstance(m, control.Oom)]


def test_child_killed_for_want_of_memory_is_noticed_at_once(monitors: Monitors, group: tuple[Cgroups, str]) -> None:
    one = in_group(monitors, group, "busybox tail /dev/zero; sleep 100", watch=True)
    assert one.expect(control.Oom).kills <= 1
    one.send(control.Signal(number=9))
    assert one.expect(control.Exit).oom_kills == 1


def test_kills_are_counted_without_a_watch(monitors: Monitors, group: tuple[Cgroups, str]) -> None:
    one = in_group(monitors, group, "busybox tail /dev/zero; exit 4", watch=False)
    ended = one.expect(control.Exit)
    assert (ended.status, ended.oom_kills) == (4 << 8, 1)
    assert not [m for m in one.seen if isinstance(m, control.Oom)]


def test_no_kills_no_notice(monitors: Monitors, group: tuple[Cgroups, str]) -> None:
    one = in_group(monitors, group, "exit 0", watch=True)
    assert one.expect(control.Exit).oom_kills == 0
    assert not [m for m in one.seen if isinstance(m, control.Oom)]


@pytest.mark.skipif(cgroup2.INSIDE in os.environ, reason="this is that kernel")
def test_memory_under_cgroup_version_2_alone() -> None:
    reason = cgroup2.missing()
    if reason and not os.environ.get("CI"):
        pytest.skip(reason)
    assert not reason
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "memory or kills"]
    status, output = cgroup2.run(command)
    assert status == 0, output[-6000:]
    assert "4 passed" in output


def test_missing_counter_is_a_warning(monitors: Monitors) -> None:
    oom = control.OomSource(path="/sys/fs/cgroup/none/memory.events", version=2, watch=True)
    one = monitors.start("exit 3", oom=oom)
    assert "lack of memory" in one.expect(control.Warning).text
    assert one.expect(control.Exit).status == 3 << 8


NAMESPACES = ops.NEWPID | ops.NEWUTS | ops.NEWIPC


def container(monitors: Monitors, script: str) -> Daemon:
    return launch(monitors, [ops.Clone(NAMESPACES), ops.Stdio(), ops.Exec(args=("/bin/busybox", "sh", "-c", script), env=("PATH=/bin",))])


def inside(container: Daemon, script: str, tty: bool = False) -> list[ops.Op]:
    started = container.started  # type: ignore[attr-defined]
    return [
        ops.Clone(0),
        ops.JoinProcess(started.pid, started.start_time, NAMESPACES),
        ops.Stdio(tty=tty),
        ops.Exec(args=("/bin/busybox", "sh", "-c", script), env=("PATH=/bin",)),
    ]


def test_first_process_of_a_namespace(monitors: Monitors) -> None:
    one = container(monitors, "echo I am $$; exit 6")
    assert one.expect(control.Exit).status == 6 << 8
    assert log_lines(f"{one.bundle}/log")[0]["log"] == "I am 1\n"  # type: ignore[attr-defined]


def test_ending_the_first_process_ends_all_and_the_output(monitors: Monitors) -> None:
    def seconds() -> float:
        one = container(monitors, "busybox sleep 1000 & busybox sleep 1000 & echo ready; wait")
        while not log_lines(f"{one.bundle}/log"):  # type: ignore[attr-defined]
            time.sleep(0.01)
        one.send(control.Signal(number=9))
        begun = time.monotonic()
        one.expect(control.Exit)
        return time.monotonic() - begun

    # It does not wait for the pipes, which would take two seconds every time; a busy machine may take as long once.
    assert any(seconds() < 1.9 for _ in range(20))


def test_exec_joins_and_reports(monitors: Monitors) -> None:
    first = container(monitors, "busybox sleep 1000")
    one, bundle = monitors.take(), monitors.bundle()
    with one.attach(stdin=True) as sock:
        plan = ops.encode(inside(first, "echo $$ $PPID; cat; exit 8"))
        one.send(control.Start(plan=plan, bundle=bundle, open_stdin=True, stdin_once=True))
        started = one.expect(control.Started, control.Failed)
        assert isinstance(started, control.Started), started
        assert os.stat(f"/proc/{started.pid}/ns/pid").st_ino == os.stat(f"/proc/{first.started.pid}/ns/pid").st_ino  # type: ignore[attr-defined]
        sock.sendall(b"typed")
        sock.shutdown(1)
        data = stream(read_all(sock), 1)
    own, parent = data.split(b"\n")[0].split()
    assert int(own) > 1
    assert int(parent) == 0
    assert data.endswith(b"typed")
    assert one.expect(control.Exit).status == 8 << 8
    assert sorted(os.listdir(bundle)) == ["exit.json"]
    first.send(control.Signal(number=9))
    first.expect(control.Exit)


def test_exec_with_a_terminal(monitors: Monitors) -> None:
    first = container(monitors, "busybox sleep 1000")
    one, bundle = monitors.take(), monitors.bundle()
    with one.attach(stdin=True, framed=False) as sock:
        plan = ops.encode(inside(first, "busybox stty size; read x; echo got $x", tty=True))
        one.send(control.Start(plan=plan, bundle=bundle, open_stdin=True, stdin_once=True, tty=True, rows=11, cols=22))
        assert isinstance(one.expect(control.Started, control.Failed), control.Started)
        sock.sendall(b"it\r")
        assert read_all(sock).replace(b"it\r\n", b"", 1) == b"11 22\r\ngot it\r\n"
    assert one.expect(control.Exit).status == 0
    first.send(control.Signal(number=9))
    first.expect(control.Exit)


def test_exec_ends_with_its_container(monitors: Monitors) -> None:
    first = container(monitors, "busybox sleep 1000")
    one = launch(monitors, inside(first, "busybox sleep 1000"))
    first.send(control.Signal(number=9))
    assert first.expect(control.Exit).status == 9
    assert one.expect(control.Exit).status == 9


def test_exec_into_a_container_that_ended(monitors: Monitors) -> None:
    first = container(monitors, "exit 0")
    operations = inside(first, "true")
    first.expect(control.Exit)
    one = monitors.take()
    one.send(control.Start(plan=ops.encode(operations), bundle=monitors.bundle()))
    assert isinstance(one.expect(control.Failed), control.Failed)
    one.expect_end()
