"""Several clients at one container, helpers that die, a full disk: whatever happens to one request or container, the daemon goes on."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from engine.monitor.client import MonitorConnection
from engine.service.supervise import Monitors, Process
from engine.wire import control
from tests.lib import busybox
from tests.lib.daemon import Daemon
from tests.lib.http import Response, UnixConnection

FOREVER = ["sleep", "1000"]


def create(daemon: Daemon, name: str, command: list[str], host: dict[str, Any] | None = None) -> str:
    body = {"Image": busybox.NAME, "Cmd": command, "HostConfig": {"NetworkMode": "none", **(host or {})}}
    answer = daemon.api("POST", f"/containers/create?name={name}", body)
    assert answer.status == 201, answer.body
    return str(answer.json()["Id"])


def run(daemon: Daemon, name: str, command: list[str], host: dict[str, Any] | None = None) -> str:
    container = create(daemon, name, command, host)
    answer = daemon.api("POST", f"/containers/{name}/start")
    assert answer.status == 204, answer.body
    return container


def state(daemon: Daemon, name: str) -> dict[str, Any]:
    answer = daemon.api("GET", f"/containers/{name}/json")
    return dict(answer.json()["State"]) if answer.status == 200 else {"Status": "none", "Running": False}


def until(true: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Later:
    """A call of the API whose answer is read later."""

    def __init__(self, daemon: Daemon, method: str, target: str, body: Any = None) -> None:
        self.daemon = daemon
        self.connection = UnixConnection(str(daemon.socket))
        data = b"" if body is None else json.dumps(body).encode()
        self.connection.request(method, target, data, {"Content-Type": "application/json"} if data else {})

    def arrived(self) -> Later:
        """Wait until the daemon has read the call, and has had several turns since to deal with it as far as it can."""
        until(lambda: not self._unread(), "the daemon does not read")
        for _ in range(5):
            assert self.daemon.api("GET", "/_ping").status == 200
        return self

    def _unread(self) -> int:
        """Bytes on their way to the other side (on a unix socket: SIOCOUTQ, the same number as the terminals' TIOCOUTQ)."""
        return int(struct.unpack("i", fcntl.ioctl(self.connection.sock, termios.TIOCOUTQ, bytes(4)))[0])

    def result(self) -> Response:
        try:
            answer = self.connection.getresponse()
            return Response(answer.status, {}, answer.read())
        finally:
            self.connection.close()


@pytest.fixture
def here(daemon: Daemon) -> Iterator[Daemon]:
    """The module's daemon; it must be the same process after the test."""
    if daemon.process is not None and daemon.process.poll() is not None:  # after a failed test
        daemon.process = None
        daemon.start()
    pid = daemon.pid
    before = daemon.log.stat().st_size
    yield daemon
    assert daemon.process is not None
    assert daemon.process.poll() is None, daemon.log_tail()
    assert daemon.pid == pid
    daemon.remove_all()
    assert "Traceback" not in daemon.log.read_text()[before:], daemon.log_tail()


@contextlib.contextmanager
def stopped_spawner(daemon: Daemon) -> Iterator[None]:
    (spawner,) = children(daemon.pid)
    os.kill(spawner, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(spawner, signal.SIGCONT)


def empty_pool(daemon: Daemon) -> None:
    """With the spawner stopped: use the waiting monitors up."""
    for number in range(2):
        run(daemon, f"filler{number}", FOREVER)


def test_a_killed_monitor_takes_its_container_with_it_and_nothing_else(here: Daemon) -> None:
    run(here, "orphan", FOREVER)
    pid = state(here, "orphan")["Pid"]
    os.kill(parent(pid), signal.SIGKILL)
    until(lambda: not state(here, "orphan")["Running"], "nobody noticed")
    found = state(here, "orphan")
    assert (found["Status"], found["ExitCode"]) == ("exited", 255)
    assert found["Error"]
    until(lambda: not alive(pid), "its process was left behind")
    time.sleep(1.5)  # the removal of a control group in use has been given up
    assert here.api("POST", "/containers/orphan/start").status == 204
    assert state(here, "orphan")["Running"]


def test_processes_that_outlive_the_first_one_in_the_hosts_pid_namespace(here: Daemon) -> None:
    run(here, "parent", ["sh", "-c", "sleep 987 & sleep 987 & wait"], {"PidMode": "host"})
    first = state(here, "parent")["Pid"]
    until(lambda: len(children(first)) == 2, "no child")
    pids = children(first)
    assert here.api("POST", "/containers/parent/kill").status == 204
    until(lambda: not state(here, "parent")["Running"], "it did not end")
    until(lambda: not any(map(alive, pids)), "a process was left behind")
    assert here.api("DELETE", "/containers/parent").status == 204


def test_removal_without_force_does_not_kill_what_was_started_meanwhile(here: Daemon) -> None:
    create(here, "late", FOREVER)
    with stopped_spawner(here):
        empty_pool(here)
        start = Later(here, "POST", "/containers/late/start").arrived()
        removal = Later(here, "DELETE", "/containers/late").arrived()
    assert start.result().status == 204
    assert removal.result().status == 409
    assert state(here, "late")["Running"]


def test_forced_removal_of_a_container_being_started(here: Daemon) -> None:
    create(here, "late", FOREVER)
    with stopped_spawner(here):
        empty_pool(here)
        start = Later(here, "POST", "/containers/late/start").arrived()
        removals = [Later(here, "DELETE", "/containers/late?force=1").arrived() for _ in range(3)]
        assert here.api("POST", "/containers/late/rename?name=later").status == 204
    assert start.result().status == 204
    assert {removal.result().status for removal in removals} <= {204, 404, 409}
    assert state(here, "later")["Status"] == "none"
    assert here.api("POST", "/containers/create?name=late", {"Image": busybox.NAME}).status == 201


@pytest.mark.parametrize("request_", [("POST", "/stop?t=0"), ("DELETE", "?force=1"), ("POST", "/restart?t=0")])
def test_a_patient_stop_holds_nobody_up(here: Daemon, request_: tuple[str, str]) -> None:
    run(here, "stubborn", ["sh", "-c", "trap 'echo asked' TERM; echo ready; while :; do sleep 0.1; done"])
    said = lambda: here.api("GET", "/containers/stubborn/logs?stdout=1").body  # noqa: E731
    until(lambda: b"ready" in said(), "it does not begin")
    patient = Later(here, "POST", "/containers/stubborn/stop?t=-1")
    until(lambda: b"asked" in said(), "it is not asked to stop")
    method, rest = request_
    name, query = ("/containers/stubborn", rest) if rest[0] == "?" else (f"/containers/stubborn{rest}", "")
    assert here.api(method, name + query).status == 204
    assert patient.result().status == 204


def test_two_creations_of_one_name(here: Daemon) -> None:
    calls = [Later(here, "POST", "/containers/create?name=only", {"Image": busybox.NAME}) for _ in range(8)]
    assert sorted(call.result().status for call in calls) == [201] + [409] * 7


def test_everything_at_once(here: Daemon) -> None:
    """Any order of answers is right; a 500, a container that hangs or a dead daemon is not."""
    create(here, "busy", FOREVER)
    seen: set[int] = set()

    def loop(method: str, target: str, body: Any = None) -> None:
        for _ in range(12):
            seen.add(here.api(method, target, body).status)

    targets: list[tuple[str, str]] = [
        ("POST", "/containers/busy/start"),
        ("POST", "/containers/busy/stop?t=0"),
        ("POST", "/containers/busy/restart?t=0"),
        ("POST", "/containers/busy/kill"),
        ("GET", "/containers/json?all=1&size=1"),
        ("GET", "/containers/busy/top"),
    ]
    threads = [threading.Thread(target=loop, args=target) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive()
    assert seen <= {200, 204, 304, 409}, seen
    assert here.api("DELETE", "/containers/busy?force=1").status == 204


def test_listing_sizes_while_containers_go(here: Daemon) -> None:
    for number in range(12):
        create(here, f"going{number}", ["true"])
    listings: list[int] = []
    done = threading.Event()

    def watch() -> None:
        ended = False
        while not ended:
            ended = done.is_set()
            listings.append(here.api("GET", "/containers/json?all=1&size=1").status)

    thread = threading.Thread(target=watch)
    thread.start()
    for number in range(12):
        assert here.api("DELETE", f"/containers/going{number}").status == 204
    done.set()
    thread.join()
    assert set(listings) == {200}


def test_a_start_right_after_an_end_keeps_its_control_groups(here: Daemon) -> None:
    container = create(here, "again", FOREVER, {"Memory": 64 << 20})
    for number in range(24):
        assert here.api("POST", "/containers/again/start").status == 204
        groups = {line.rpartition(":")[2] for line in Path(f"/proc/{state(here, 'again')['Pid']}/cgroup").read_text().splitlines()}
        assert any(group.endswith(container) for group in groups), groups
        assert not any("(deleted)" in group for group in groups)
        here.api("POST", "/containers/again/kill")
        time.sleep(0.018 + number / 4000)


def test_the_spawner_is_replaced(here: Daemon) -> None:
    (spawner,) = children(here.pid)
    os.kill(spawner, signal.SIGKILL)
    for number in range(6):
        create(here, f"next{number}", FOREVER)
    starts = [Later(here, "POST", f"/containers/next{number}/start") for number in range(6)]
    assert {start.result().status for start in starts} == {204}


def test_execs_of_a_container_go_with_it(here: Daemon) -> None:
    run(here, "host", FOREVER)
    execs = [here.api("POST", "/containers/host/exec", {"Cmd": ["true"]}).json()["Id"] for _ in range(3)]
    assert here.api("DELETE", "/containers/host?force=1").status == 204
    assert {here.api("GET", f"/exec/{one}/json").status for one in execs} == {404}


def test_execs_into_a_container_that_ends(here: Daemon) -> None:
    run(here, "ending", ["sleep", "0.4"])
    statuses: set[int] = set()

    def many() -> None:
        while True:
            made = here.api("POST", "/containers/ending/exec", {"Cmd": ["sleep", "5"], "AttachStdout": True})
            if made.status != 201:
                statuses.add(made.status)
                return
            statuses.add(here.api("POST", f"/exec/{made.json()['Id']}/start", {"Detach": True}).status)

    threads = [threading.Thread(target=many) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert statuses <= {200, 400, 409}, statuses


def test_layers_that_are_gone(here: Daemon) -> None:
    create(here, "bare", ["true"])
    layers = [Path(folder) for folder in here.api("GET", "/containers/bare/json").json()["GraphDriver"]["Data"]["LowerDir"].split(":")]
    folder = next(layer for layer in layers if (layer / "bin").exists())
    folder.rename(folder.with_name("aside"))
    try:
        answer = here.api("POST", "/containers/bare/start")
        assert answer.status in (400, 500), answer.body
        assert answer.message
        assert "internal error" not in answer.message
    finally:
        folder.with_name("aside").rename(folder)
    assert here.api("POST", "/containers/bare/start").status == 204


def test_no_descriptors_left(here: Daemon) -> None:
    before, _ = resource.prlimit(here.pid, resource.RLIMIT_NOFILE)
    run(here, "before", FOREVER)
    used = len(os.listdir(f"/proc/{here.pid}/fd"))
    resource.prlimit(here.pid, resource.RLIMIT_NOFILE, (used + 12, resource.prlimit(here.pid, resource.RLIMIT_NOFILE)[1]))
    clients = []
    try:
        for _ in range(20):
            client = UnixConnection(str(here.socket), 2)
            client.connect()
            clients.append(client)
        (spawner,) = children(here.pid)
        time.sleep(0.2)
        clients[0].request("POST", "/containers/before/exec", b'{"Cmd": ["true"]}', {"Content-Type": "application/json"})
        with contextlib.suppress(OSError):
            clients[0].getresponse().read()
        clients[1].request("POST", "/containers/before/restart?t=0")
        with contextlib.suppress(OSError):
            clients[1].getresponse().read()
        with contextlib.suppress(ProcessLookupError):  # it may have been replaced meanwhile
            os.kill(spawner, signal.SIGKILL)
        time.sleep(0.5)
    finally:
        for client in clients:
            client.close()
        resource.prlimit(here.pid, resource.RLIMIT_NOFILE, (before, resource.prlimit(here.pid, resource.RLIMIT_NOFILE)[1]))
    run(here, "after", FOREVER)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A folder on a file system of its own with 24 MiB."""
    folder = Path(tempfile.mkdtemp(prefix="knarr-test-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def test_a_full_disk(small_disk: Path) -> None:
    daemon = Daemon(directory=Path(tempfile.mkdtemp(prefix="knarr-test-")))
    daemon.data_root = small_disk / "data"
    try:
        daemon.start()
        busybox.load(daemon)
        for number in range(6):
            run(daemon, f"short{number}", ["sleep", "1"], {"AutoRemove": True})
        run(daemon, "long", FOREVER)
        fill(small_disk / "filler")
        for number in range(30):  # what was written ahead is used up
            daemon.api("POST", f"/containers/create?name=more{number}", {"Image": busybox.NAME, "Cmd": ["true"]})
            daemon.api("POST", f"/containers/more{number}/start")
        time.sleep(1.2)
        assert daemon.api("GET", "/_ping").status == 200
        daemon.api("POST", "/containers/long/restart?t=0")
        daemon.api("DELETE", "/containers/more0?force=1")
        time.sleep(1.2)
        assert daemon.api("GET", "/containers/json").status == 200, daemon.log_tail()
        (small_disk / "filler").unlink()
        run(daemon, "afterwards", FOREVER)
        for container in daemon.api("GET", "/containers/json?all=1").json():
            assert daemon.api("DELETE", f"/containers/{container['Id']}?force=1").status in (204, 404), container
        assert daemon.api("GET", "/containers/json?all=1").json() == []
        time.sleep(1.5)
        daemon.restart()
        until(lambda: daemon.api("GET", "/containers/json?all=1").json() == [], "containers are back")
    finally:
        daemon.close()


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while True:
                    if file.write(b"x" * size) < size:
                        break
            except OSError:
                continue


# -- the parts by themselves, where the order of things cannot be had from outside


def test_an_answer_that_another_task_read_wakes_the_launch() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    started = control.Started(pid=1, start_time=1, started=1, received=1, prepared=1, launched=1, trace=(), degraded=())

    async def main() -> None:
        process = Process(MonitorConnection(ours), "/nowhere", lambda ended: None)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(process.launch, control.Start(plan=b"", bundle="/nowhere"))
                await trio.testing.wait_all_tasks_blocked()
                theirs.send(control.encode(started))
                process.catch_up()
        process.close()

    trio.run(main)
    theirs.close()


@pytest.fixture
def exec_root() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="knarr-test-") as folder:
        yield folder


def with_monitors(exec_root: str, use: Callable[[Monitors], Any]) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                monitors = Monitors(exec_root, 2)
                await nursery.start(monitors.run)
                await use(monitors)
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_monitor_that_died_while_it_waited_is_not_given_out(exec_root: str) -> None:
    async def use(monitors: Monitors) -> None:
        while len(monitors._waiting) < 2:  # noqa: ASYNC110
            await trio.sleep(0.01)
        dead = {connection.pid for connection in monitors._waiting}
        for pid in dead:
            os.kill(pid, signal.SIGKILL)
        while any(map(alive, dead)):  # noqa: ASYNC110
            await trio.sleep(0.01)
        with await monitors.take() as taken:
            assert taken.pid not in dead

    with_monitors(exec_root, use)


def test_a_cancelled_taker_takes_nobodys_turn(exec_root: str) -> None:
    async def use(monitors: Monitors) -> None:
        while len(monitors._waiting) < 2:  # noqa: ASYNC110
            await trio.sleep(0.01)
        os.kill(monitors.spawner_pid, signal.SIGSTOP)
        (await monitors.take()).close()
        (await monitors.take()).close()
        with trio.move_on_after(0.05):
            await monitors.take()
        assert not monitors._takers
        os.kill(monitors.spawner_pid, signal.SIGCONT)
        (await monitors.take()).close()

    with_monitors(exec_root, use)
