"""A spawner, its monitors and a daemon's side of them, without any daemon: what the monitor's tests are made of."""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.monitor import client
from engine.monitor.client import MonitorConnection, MonitorGone, Spawner
from engine.runtime import ops
from engine.wire import control

TIMEOUT = 60.0


def plan(*args: str, tty: bool = False) -> bytes:
    """A plan that only executes: no namespaces, no root of its own."""
    return ops.encode([ops.Clone(namespaces=0), ops.Stdio(tty=tty), ops.Umask(), ops.Exec(args=args, env=("PATH=/bin:/usr/bin",))])


def shell(script: str, tty: bool = False) -> bytes:
    return plan("/bin/busybox", "sh", "-c", script, tty=tty)


def wait_readable(thing: Any, until: float) -> None:
    ready, _, _ = select.select([thing], [], [], max(0.0, until - time.monotonic()))
    assert ready, "nothing came in time"


class Daemon:
    """One connection to a monitor, with the messages that came on it."""

    def __init__(self, connection: MonitorConnection) -> None:
        self.connection = connection
        self.seen: list[control.Message] = []
        self.pidfd = -1

    @property
    def pid(self) -> int:
        return self.connection.pid

    def send(self, message: control.ToMonitor, *fds: int) -> None:
        self.connection.send(message, fds)

    def expect(self, *kinds: type, timeout: float = TIMEOUT) -> Any:
        """The next message of one of `kinds`; others are kept in `seen`."""
        until = time.monotonic() + timeout
        while True:
            for at, message in enumerate(self.seen):
                if isinstance(message, kinds):
                    return self.seen.pop(at)
            wait_readable(self.connection, until)
            for message, fds in self.connection.receive():
                self.seen.append(message)
                for fd in fds:
                    os.close(fd)

    def expect_end(self, timeout: float = TIMEOUT) -> None:
        """The monitor closes the connection, i.e. it ended."""
        until = time.monotonic() + timeout
        try:
            while True:
                wait_readable(self.connection, until)
                self.seen += [message for message, _ in self.connection.receive()]
        except MonitorGone:
            pass

    def settled(self) -> control.State:
        """Its state, once it has done all that comes after STARTED."""
        self.send(control.Status())
        state: control.State = self.expect(control.State)
        return state

    def attach(self, number: int = 1, **options: Any) -> socket.socket:
        """Attach a new client; its own end of the socket."""
        ours, theirs = socket.socketpair()
        ours.settimeout(TIMEOUT)
        with theirs:
            self.send(control.Attach(id=number, **options), theirs.fileno())
        return ours

    def close(self) -> None:
        self.connection.close()


class Monitors:
    """A spawner with a folder for bundles."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="knarr-test-monitor-"))
        self.spawner = Spawner.start(str(self.folder), ready=1)
        self.waiting: list[MonitorConnection] = []
        self.made: list[Daemon] = []
        self.count = 0

    def take(self) -> Daemon:
        until = time.monotonic() + TIMEOUT
        while not self.waiting:
            wait_readable(self.spawner, until)
            self.waiting += self.spawner.receive()
        self.spawner.request(1)
        self.made.append(Daemon(self.waiting.pop(0)))
        return self.made[-1]

    def bundle(self) -> str:
        self.count += 1
        path = self.folder / f"bundle{self.count}"
        path.mkdir()
        return str(path)

    def start(self, script: str, *, log: bool = True, daemon: Daemon | None = None, **options: Any) -> Daemon:
        """Start busybox's shell; the bundle is `daemon.bundle`, the log BUNDLE/log."""
        daemon = daemon or self.take()
        bundle = options.pop("bundle", None) or self.bundle()
        settings = options.pop("log_settings", None) or (control.LogSettings(path=f"{bundle}/log") if log else None)
        daemon.bundle = bundle  # type: ignore[attr-defined]
        daemon.send(control.Start(plan=shell(script, options.get("tty", False)), bundle=bundle, log=settings, **options))
        daemon.started = daemon.expect(control.Started, control.Failed)  # type: ignore[attr-defined]
        assert isinstance(daemon.started, control.Started), daemon.started  # type: ignore[attr-defined]
        return daemon

    def close(self) -> None:
        for one in self.made:
            kill_left(getattr(one, "started", None))
            one.close()
        for connection in self.waiting:
            connection.close()
        self.spawner.close()
        shutil.rmtree(self.folder)


def kill_left(started: control.Started | control.Failed | None) -> None:
    """End a process that a failed test left running, if it is still that one."""
    if isinstance(started, control.Started):
        try:
            stat = Path(f"/proc/{started.pid}/stat").read_text().rpartition(")")[2].split()
            if int(stat[19]) == started.start_time:
                os.kill(started.pid, 9)
        except (OSError, IndexError):
            pass


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_gone(pid: int, timeout: float = TIMEOUT) -> None:
    until = time.monotonic() + timeout
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < until, f"process {pid} is still there: {Path(f'/proc/{pid}/stat').read_text()}"
        time.sleep(0.005)


def log_lines(path: str) -> list[dict[str, str]]:
    """The log's entries; none when there is no file, which is made with the first output."""
    return [json.loads(line) for line in Path(path).read_bytes().splitlines()] if os.path.exists(path) else []


def read_all(sock: socket.socket) -> bytes:
    """Everything until the end of the stream."""
    chunks = []
    while chunk := sock.recv(1 << 16):
        chunks.append(chunk)
    return b"".join(chunks)


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """Docker's stdcopy frames, joined per stream run."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data):
        stream, length = data[at], int.from_bytes(data[at + 4 : at + 8], "big")
        assert data[at + 1 : at + 4] == b"\0\0\0"
        assert at + 8 + length <= len(data), "a frame is cut off"
        found.append((stream, data[at + 8 : at + 8 + length]))
        at += 8 + length
    return found


def stream(data: bytes, number: int) -> bytes:
    return b"".join(chunk for which, chunk in frames(data) if which == number)


@contextmanager
def reading(sock: socket.socket) -> Iterator[list[bytes]]:
    """Read a client's stream in the background; the list holds its bytes when the block is left."""
    result: list[bytes] = []
    thread = threading.Thread(target=lambda: result.append(read_all(sock)))
    thread.start()
    try:
        yield result
    finally:
        thread.join(4 * TIMEOUT)
        assert not thread.is_alive(), "the stream did not end"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def exit_of(daemon: Daemon) -> client.ExitRecord:
    record = client.read_exit(daemon.bundle)  # type: ignore[attr-defined]
    assert record is not None
    return record
