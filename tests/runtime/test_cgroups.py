"""Limits that are really enforced, on whatever cgroups this kernel has; test_cgroups_v2.py runs the same under version 2 alone."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from engine.errors import Conflict, InvalidParameter, KnarrError, NotImplementedYet
from engine.linux import devices
from engine.linux.cgroups import Cgroups, Placement
from engine.linux.cgroups_v1 import V1
from engine.spec.runtime import BlockIO, BlockRate, Cpu, DeviceRule, HugepageLimit, Memory, Pids, Resources

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="control groups need root")
PARENT = f"knarr-test-{os.getpid()}"
MIB = 1 << 20
Spawn = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(scope="module", params=["detected", "version-1-alone"])
def cgroups(request: pytest.FixtureRequest) -> Iterator[Cgroups]:
    found = Cgroups.detect()
    if request.param == "version-1-alone":
        if not found.v1 or not found.v2:
            pytest.skip("no hybrid host")
        found = Cgroups(V1(found.v1.mounts, frozenset(("memory", "cpuacct", "freezer"))), None)
    if found.v1:
        found.v1.shared = f"{PARENT}/default-devices"
    yield found
    for path in found.list(PARENT):
        end(found, path)
    found.tidy(PARENT)
    left = [mount for mount in _mounts(found) if os.path.exists(f"{mount}/{PARENT}")]
    assert not left


def _mounts(cgroups: Cgroups) -> list[str]:
    return [*(cgroups.v1.mounts.values() if cgroups.v1 else ()), *([cgroups.v2.root] if cgroups.v2 else ())]


@pytest.fixture
def path(cgroups: Cgroups, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"{PARENT}/{request.node.name.replace('[', '-').strip(']')}"
    yield name
    end(cgroups, name)


def end(cgroups: Cgroups, path: str) -> None:
    """Kill what is in a group, wait for the end of it all, and remove the group."""
    cgroups.kill(path)
    deadline = time.monotonic() + 60
    while cgroups.pids(path):
        assert time.monotonic() < deadline, cgroups.pids(path)
        time.sleep(0.01)
    cgroups.remove(path)


@pytest.fixture
def spawn(cgroups: Cgroups) -> Iterator[Spawn]:
    """Starts programs in a placement, the way a container's first process enters it (but version 2 by a move)."""
    started: list[subprocess.Popen[bytes]] = []

    def start(placement: Placement, program: str, **options: object) -> subprocess.Popen[bytes]:
        def enter() -> None:
            for file in (*placement.tasks, *([f"{placement.directory}/cgroup.procs"] if placement.directory else [])):
                with open(file, "w") as tasks:
                    tasks.write("0")

        started.append(
            subprocess.Popen(
                [sys.executable, "-ISc", program], preexec_fn=enter, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **options
            )
        )  # type: ignore[call-overload]
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


SLEEP = "import time; print('up', flush=True); time.sleep(600)"


def wait_up(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"


def test_a_plain_container_is_placed_counted_and_removed(cgroups: Cgroups, path: str, spawn: Spawn) -> None:
    placement = cgroups.prepare(path, Resources(devices=devices.DEFAULT_RULES))
    process = spawn(placement, "import time\nprint('up', flush=True)\nx = bytearray(30 << 20)\nwhile True: pass")
    wait_up(process)
    deadline = time.monotonic() + 60
    while (  # the division into user's and system's time is a guess by clock ticks: it takes some of them
        (stats := cgroups.stats(path)).cpu.total < 50_000_000 or not stats.cpu.user or (stats.memory and stats.memory.usage < 30 * MIB)
    ):
        assert time.monotonic() < deadline, stats
        time.sleep(0.02)
    assert cgroups.pids(path) == [process.pid]
    assert stats.memory is not None
    assert stats.memory.limit is None
    assert stats.memory.stat
    assert stats.pids.current == 1
    assert cgroups.list(PARENT) == [path]
    process.kill()
    process.wait()
    cgroups.remove(path)
    assert cgroups.list(PARENT) == []
    assert cgroups.pids(path) == []
    assert cgroups.stats(path).cpu.total == 0
    cgroups.remove(path)


def test_memory_limit_kills_and_is_counted(cgroups: Cgroups, path: str, spawn: Spawn) -> None:
    placement = cgroups.prepare(path, Resources(memory=Memory(limit=32 * MIB, swap=32 * MIB)))
    with open(cgroups.oom_source(path)) as file:
        assert "oom_kill 0" in file.read()
    process = spawn(placement, "x = bytearray(100 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1")
    assert process.wait() == -signal.SIGKILL
    stats = cgroups.stats(path)
    assert stats.memory is not None
    assert stats.memory.oom_kills == 1
    assert stats.memory.limit == 32 * MIB
    with open(cgroups.oom_source(path)) as file:
        assert "oom_kill 1" in file.read()


def test_pids_limit(cgroups: Cgroups, path: str, spawn: Spawn) -> None:
    placement = cgroups.prepare(path, Resources(pids=Pids(limit=3)))
    program = (
        "import os, time\nmade = 0\n"
        "while made < 10:\n"
        "    try:\n        pid = os.fork()\n"
        "    except BlockingIOError:\n        break\n"
        "    if not pid: time.sleep(600)\n"
        "    made += 1\n"
        "print(made, flush=True); time.sleep(600)"
    )
    process = spawn(placement, program)
    assert process.stdout is not None
    assert process.stdout.readline() == b"2\n"
    stats = cgroups.stats(path).pids
    assert (stats.current, stats.limit) == (3, 3)
    assert len(cgroups.pids(path)) == 3
    cgroups.kill(path)
    assert process.wait() == -signal.SIGKILL


def test_cpu_quota_throttles(cgroups: Cgroups, path: str, spawn: Spawn) -> None:
    placement = cgroups.prepare(path, Resources(cpu=Cpu(quota=10_000, period=100_000)))
    process = spawn(placement, "print('up', flush=True)\nwhile True: pass")
    wait_up(process)
    deadline = time.monotonic() + 60
    while (cpu := cgroups.stats(path).cpu).throttled_periods < 3 or not cpu.throttled_time:  # the time is told when it goes on
        assert time.monotonic() < deadline, cpu
        time.sleep(0.05)
    assert cpu.periods >= cpu.throttled_periods


def test_cpu_shares_and_cpuset(cgroups: Cgroups, path: str, spawn: Spawn) -> None:
    if "cpuset" not in cgroups.controllers:
        pytest.skip("this kernel has no cpuset controller")
    placement = cgroups.prepare(path, Resources(cpu=Cpu(shares=512, cpus="0", mems="0")))
    process = spawn(placement, "import os\nprint(sorted(os.sched_getaffinity(0)))")
    assert process.communicate()[0] == b"[0]\n"


def test_freeze_stops_and_thaw_goes_on(cgroups: Cgroups, path: str, spawn: Spawn) -> None:
    placement = cgroups.prepare(path, Resources())
    process = spawn(placement, "print('up', flush=True)\nwhile True: pass")
    wait_up(process)
    cgroups.freeze(path)
    before = cgroups.stats(path).cpu.total
    time.sleep(0.1)
    assert cgroups.stats(path).cpu.total == before
    cgroups.thaw(path)
    deadline = time.monotonic() + 60
    while cgroups.stats(path).cpu.total == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    cgroups.freeze(path)
    cgroups.kill(path)
    assert process.wait() == -signal.SIGKILL
    end(cgroups, path)


def test_kill_takes_all_of_a_fork_storm(cgroups: Cgroups, path: str, spawn: Spawn) -> None:
    if os.environ.get("KNARR_TEST_CGROUP2") and os.uname().release.startswith("6.12"):
        pytest.skip("Debian 13's user-mode kernel itself stops in a fork storm")
    placement = cgroups.prepare(path, Resources(pids=Pids(limit=40)))
    program = (
        "import os, signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nprint('up', flush=True)\n"
        "while True:\n    try: os.fork()\n    except OSError: pass"
    )
    wait_up(spawn(placement, program))
    time.sleep(0.1)
    end(cgroups, path)


def test_update_changes_limits_of_a_running_container(cgroups: Cgroups, path: str, spawn: Spawn) -> None:
    placement = cgroups.prepare(path, Resources(memory=Memory(limit=64 * MIB, swap=64 * MIB)))
    process = spawn(placement, SLEEP)
    wait_up(process)
    changed = Resources(memory=Memory(limit=128 * MIB, swap=128 * MIB), pids=Pids(limit=5), cpu=Cpu(quota=50_000, period=100_000))
    cgroups.update(path, changed)
    stats = cgroups.stats(path)
    assert stats.memory is not None
    assert stats.memory.limit == 128 * MIB
    assert stats.pids.limit == 5
    assert stats.pids.current == 1
    cgroups.update(path, Resources(memory=Memory(limit=64 * MIB, swap=64 * MIB)))
    assert cgroups.stats(path).memory.limit == 64 * MIB  # type: ignore[union-attr]


def test_default_devices_only(cgroups: Cgroups, path: str, spawn: Spawn) -> None:
    placement = cgroups.prepare(path, Resources(devices=devices.DEFAULT_RULES))
    assert look_at_devices(spawn, placement) == ["null ok", "zero ok", "kmsg PermissionError", "mknod ok", "loop PermissionError"]


def test_own_device_rules(cgroups: Cgroups, path: str, spawn: Spawn) -> None:
    rules = devices.device_rules(rules=(DeviceRule(allow=True, type="c", major=1, minor=11, access="r"),))
    placement = cgroups.prepare(path, Resources(devices=rules))
    assert look_at_devices(spawn, placement) == ["null ok", "zero ok", "kmsg ok", "mknod ok", "loop PermissionError"]


def test_all_devices_for_the_privileged(cgroups: Cgroups, path: str, spawn: Spawn) -> None:
    placement = cgroups.prepare(path, Resources(devices=devices.ALLOW_ALL))
    assert "kmsg ok" in look_at_devices(spawn, placement)
    assert not any("/devices/" in file for file in placement.tasks)


def look_at_devices(spawn: Spawn, placement: Placement) -> list[str]:
    program = (
        "import os, tempfile\nos.chdir(tempfile.mkdtemp())\n"
        "def look(name, what):\n"
        "    try: what(); print(name, 'ok')\n"
        "    except OSError as error: print(name, 'ok' if error.errno in (6, 19) else type(error).__name__)\n"
        "def node(kind, major, minor):\n"
        "    os.mknod('node', kind | 0o600, os.makedev(major, minor))\n"
        "    try: os.close(os.open('node', os.O_RDONLY | os.O_NONBLOCK))\n"
        "    finally: os.unlink('node')\n"
        "look('null', lambda: open('/dev/null', 'r+b').close())\n"
        "look('zero', lambda: node(0o020000, 1, 5))\n"
        "look('kmsg', lambda: node(0o020000, 1, 11))\n"
        "look('mknod', lambda: (os.mknod('x', 0o020600, os.makedev(99, 1)), os.unlink('x')))\n"
        "look('loop', lambda: node(0o060000, 7, 0))\n"
        "os.rmdir(os.getcwd())\n"
    )
    process = spawn(placement, program)
    return process.communicate()[0].decode().splitlines()


def test_another_daemon_finds_the_same_groups(cgroups: Cgroups, path: str, spawn: Spawn) -> None:
    for rules in (devices.DEFAULT_RULES, devices.ALLOW_ALL):
        placement = cgroups.prepare(path, Resources(devices=rules, pids=Pids(limit=5)))
        assert cgroups.placement(path) is placement
        wait_up(spawn(placement, SLEEP))
        cgroups._known.clear()
        found = cgroups.placement(path)
        assert (set(found.tasks), found.directory) == (set(placement.tasks), placement.directory)
        end(cgroups, path)
    assert cgroups.list(PARENT) == []


def test_a_leftover_is_replaced_and_a_live_one_is_refused(cgroups: Cgroups, path: str, spawn: Spawn) -> None:
    cgroups.prepare(path, Resources(memory=Memory(limit=32 * MIB)))
    placement = cgroups.prepare(path, Resources())
    assert cgroups.stats(path).memory.limit is None  # type: ignore[union-attr]
    wait_up(spawn(placement, SLEEP))
    with pytest.raises(Conflict, match="in use"):
        cgroups.prepare(path, Resources())
    assert len(cgroups.pids(path)) == 1


def test_groups_made_inside_are_removed_too(cgroups: Cgroups, path: str) -> None:
    placement = cgroups.prepare(path, Resources())
    for file in (*[os.path.dirname(tasks) for tasks in placement.tasks], placement.directory):
        if file:
            os.makedirs(f"{file}/inner/deep")
    cgroups.remove(path)
    assert cgroups.list(PARENT) == []


def test_what_the_kernel_refuses_leaves_no_group(cgroups: Cgroups, path: str) -> None:
    with pytest.raises(InvalidParameter, match=r"cpu\..*(max|quota)"):
        cgroups.prepare(path, Resources(cpu=Cpu(quota=1, period=100_000)))
    with pytest.raises((InvalidParameter, KnarrError)):
        cgroups.prepare(path, Resources(cpu=Cpu(cpus="9999")))
    assert cgroups.list(PARENT) == []


def test_not_there_yet(cgroups: Cgroups, path: str) -> None:
    for resources in (Resources(hugepage_limits=(HugepageLimit(page_size="2MB", limit=1),)), Resources(cpu=Cpu(realtime_runtime=1000))):
        with pytest.raises(NotImplementedYet):
            cgroups.prepare(path, resources)


@pytest.mark.parametrize("bad", ["", "/", "..", "a/../../b", "a\0b"])
def test_paths_stay_inside(cgroups: Cgroups, bad: str) -> None:
    with pytest.raises(InvalidParameter):
        cgroups.prepare(bad, Resources())


def test_a_delegated_group_is_made_room_in(cgroups: Cgroups, path: str) -> None:
    """A daemon whose own group is all it was given has to leave that group itself before it can use its controllers."""
    if not cgroups.v2 or "memory" not in cgroups.v2.controllers:
        pytest.skip("version 2 has no memory controller here")
    given = cgroups.prepare(path, Resources()).directory
    program = (
        "import sys; sys.path[:0] = eval(sys.argv[1]); given = sys.argv[2]\n"
        "open(given + '/cgroup.procs', 'w').write('0')\n"
        "from engine.linux.cgroups import Cgroups\nfrom engine.linux.cgroups_v2 import V2\nfrom engine.spec.runtime import *\n"
        "own = Cgroups(None, V2(given))\n"
        "own.prepare('knarr/one', Resources(memory=Memory(limit=1 << 25)))\n"
        "print(own.stats('knarr/one').memory.limit, open('/proc/self/cgroup').read().strip().rsplit('/', 1)[1])\n"
        "own.remove('knarr/one'); own.tidy('knarr')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, repr(sys.path), given], capture_output=True, text=True, timeout=120)
    assert done.stdout == f"{1 << 25} knarr-daemon\n", done.stderr


def test_block_device_rates(cgroups: Cgroups, path: str) -> None:
    if not cgroups.controllers & {"blkio", "io"}:
        pytest.skip("no block io controller")
    lines = pathlib.Path("/proc/partitions").read_text().splitlines()[2:]
    found = [(int(a), int(b)) for a, b in (line.split()[:2] for line in lines)]
    if not found:
        pytest.skip("no block device")
    major, minor = found[0]
    rate = BlockRate(major=major, minor=minor, rate=MIB)
    placement = cgroups.prepare(path, Resources(block_io=BlockIO(throttle_read_bps_device=(rate,), throttle_write_iops_device=(rate,))))
    groups = [os.path.dirname(tasks) for tasks in placement.tasks if "/blkio/" in tasks] or [placement.directory]
    name = "blkio.throttle.read_bps_device" if "/blkio/" in groups[0] else "io.max"
    assert str(MIB) in pathlib.Path(groups[0], name).read_text()
