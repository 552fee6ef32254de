"""Processes under a monitor, as the daemon sees them: the pool of waiting monitors, and one `Process` for each container or exec.

Owns connections to monitors and the tasks that read them. Knows nothing of containers: whoever starts a process gets told when it ended.
The monitor's own file (exit.json) is the truth; a message is only the fast way to hear of it.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import select
import signal
from collections.abc import Callable

import msgspec
import trio

from engine.errors import KnarrError, LaunchError, Unavailable
from engine.monitor import client
from engine.monitor.client import MonitorConnection, MonitorGone, Spawner
from engine.wire import control

log = logging.getLogger("knarr.supervise")

# After a start the pool is refilled this many seconds later, so that the fork does not compete with the container's first instructions.
_REFILL_DELAY = 0.01
_RESPAWN_DELAY = 0.1  # seconds from the end of a spawner to the next one


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a process ended. `code` 0-255, 128+n for signal n; None when nobody knows (then `reason` says why). `at`: ns since the epoch."""

    code: int | None
    oom_kills: int = 0
    at: int = 0
    reason: str = ""


class LaunchFailed(KnarrError):
    """The monitor could not start the process: `op` is the index in the plan (-1: before it), `errno` the kernel's error."""

    def __init__(self, op: int, errno: int, what: str) -> None:
        super().__init__(what or os.strerror(errno))
        self.op = op
        self.errno = errno


class Monitors:
    """The pool of forked monitors, ready to be given a plan. `run` is its background task."""

    def __init__(self, exec_root: str, ready: int) -> None:
        self._exec_root = exec_root
        self._ready = max(1, ready)
        self._waiting: collections.deque[MonitorConnection] = collections.deque()
        self._takers: collections.deque[trio.Event] = collections.deque()
        self._asked = 0
        self._refill = trio.Event()
        self._spawner: Spawner | None = None

    @property
    def spawner_pid(self) -> int:
        """Process id of the spawner, 0 while there is none."""
        return self._spawner.pid if self._spawner else 0

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a spawner and the pool alive until cancelled. A spawner that dies is replaced; its monitors are not affected."""
        started = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._refiller)
                while True:
                    try:
                        # Those who wait have lost what they asked the last one for.
                        self._asked = max(self._ready, len(self._takers))
                        self._spawner = Spawner.start(self._exec_root, self._asked)
                        if not started:
                            started = True
                            task_status.started()
                        await self._receive(self._spawner)
                    except (MonitorGone, OSError, control.MalformedMessage) as error:
                        if not started:
                            raise
                        log.error("the spawner ended, starting another one: %s", error)
                    if self._spawner is not None:
                        self._spawner.close()
                        self._spawner = None
                    await trio.sleep(_RESPAWN_DELAY)
        finally:
            if self._spawner is not None:
                self._spawner.close()
            while self._waiting:
                self._waiting.popleft().close()

    async def _receive(self, spawner: Spawner) -> None:
        while True:
            await trio.lowlevel.wait_readable(spawner.fileno())
            for connection in spawner.receive():
                self._asked = max(0, self._asked - 1)
                self._waiting.append(connection)
                if self._takers:
                    self._takers.popleft().set()

    async def _refiller(self) -> None:
        while True:
            await self._refill.wait()
            self._refill = trio.Event()
            await trio.sleep(_REFILL_DELAY)
            self._request(self._ready - len(self._waiting) - self._asked)

    def _request(self, count: int) -> None:
        if count <= 0 or self._spawner is None:
            return
        try:
            self._spawner.request(count)
            self._asked += count
        except (BlockingIOError, MonitorGone):
            pass  # asked again by the next taker; a dead spawner is replaced by run()

    async def take(self) -> MonitorConnection:
        """A monitor of one's own. Raises Unavailable when none can be had within 10 seconds."""
        while True:
            while not self._waiting:
                await self._wait_turn()
            self._refill.set()
            connection = self._waiting.popleft()
            if _lives(connection):
                return connection
            connection.close()  # killed while it waited

    async def _wait_turn(self) -> None:
        self._request(len(self._takers) + 1 - self._asked)
        event = trio.Event()
        self._takers.append(event)
        try:
            with trio.move_on_after(10) as scope:
                await event.wait()
        finally:
            if event in self._takers:
                self._takers.remove(event)
        if scope.cancelled_caught and not self._waiting:
            raise Unavailable("start a process: no monitor could be forked within 10 s", hint="see the daemon's log")


def _lives(connection: MonitorConnection) -> bool:
    poller = select.poll()
    poller.register(connection.fileno(), 0)  # POLLHUP is always told
    return not poller.poll(0)


class Process:
    """One supervised process. Made with a connection to its monitor; `on_end` is called once, in the event loop, when it ended."""

    def __init__(self, connection: MonitorConnection, bundle: str, on_end: Callable[[Ended], None]) -> None:
        self._connection: MonitorConnection | None = connection
        self._on_end = on_end
        self._attached = 0
        self._detached: dict[int, Callable[[str], None]] = {}
        self._failed: control.Failed | None = None
        self._state: control.State | None = None
        self._told = False
        self._launching = trio.CancelScope()
        self._room = trio.Lock()  # for the one who waits until the monitor takes more messages
        self.bundle = bundle
        self.started: control.Started | None = None
        self.ended: Ended | None = None
        self.pid = 0
        self.pid_start = 0
        self.pidfd = -1
        self.on_oom: Callable[[], None] | None = None
        self.gone = trio.Event()  # the monitor has ended too, and let go of the container's mounts

    async def launch(self, start: control.Start, network: int = -1) -> control.Started:
        """Send START, with the descriptor of the network namespace that the process is born in (the caller keeps its own), and wait for the
        answer. Raises LaunchFailed, MonitorGone."""
        await self.begin(start, network)
        return await self.launched()

    async def begin(self, start: control.Start, network: int = -1) -> None:
        """The first half of `launch`. Raises MonitorGone."""
        await self._send(start, (network,) if network >= 0 else ())

    async def launched(self) -> control.Started:
        """The second half. Raises LaunchFailed, MonitorGone."""
        while self.started is None:
            if self._failed is not None:
                self.close()
                raise LaunchFailed(self._failed.op, self._failed.errno, self._failed.what)
            try:
                with self._launching:
                    await self._read()
            except control.MalformedMessage as error:
                raise MonitorGone(f"the monitor's answer cannot be read: {error}") from error
            except MonitorGone:
                if self.started is None and self._failed is None:  # else catch_up() has read the answer meanwhile
                    raise
        return self.started

    async def status(self) -> control.State:
        """Ask a monitor that was found again for its state. Raises MonitorGone."""
        await self._send(control.Status())
        while self._state is None:
            await self._read()
        state = self._state
        self.pid, self.pid_start = state.pid, state.start_time
        return state

    async def watch(self) -> None:
        """Read messages until the process ended, then call `on_end`. Run as a background task, once."""
        try:
            while self.ended is None:
                await self._read()
        except (MonitorGone, control.MalformedMessage) as error:
            if self.ended is None:
                self.ended = recorded(self.bundle, str(error))
                if self.ended.code is None:
                    self._kill()
        self._tell()
        await self._linger()

    def _kill(self) -> None:
        """Nobody watches over the process any more: it must not run on behind a record that says that it ended."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def catch_up(self) -> None:
        """Handle what the monitor has said already. It tells of an end before it closes a client's stream, so a client that saw its stream
        end and asks for the exit code must find it, whichever of the two descriptors the event loop looked at first."""
        if self._connection is not None and self.ended is None:
            try:
                for message, fds in self._connection.receive():
                    self._dispatch(message, fds)
            except (MonitorGone, control.MalformedMessage):
                return  # for watch() to find out
        if self.started is not None or self._failed is not None:
            self._launching.cancel()  # launch() would wait for an answer that was read here
        self._tell()

    def _tell(self) -> None:
        if self.ended is not None and not self._told:
            self._told = True
            self._on_end(self.ended)

    async def _linger(self) -> None:
        """Until the monitor ends: attached clients may still be taking the last output, and it unmounts what the container had."""
        try:
            while True:
                await self._read()
        except (MonitorGone, control.MalformedMessage):
            pass
        for gone in self._detached.values():
            gone("closed")
        self._detached.clear()
        self.close()
        self.gone.set()

    async def _read(self) -> None:
        if self._connection is None:
            raise MonitorGone("the connection to the monitor is closed")
        await trio.lowlevel.wait_readable(self._connection.fileno())
        for message, fds in self._connection.receive():
            self._dispatch(message, fds)

    def _dispatch(self, message: control.Message, fds: list[int]) -> None:
        match message:
            case control.Started():
                self.started = message
                self.pid, self.pid_start = message.pid, message.start_time
                self._keep_pidfd(fds)
            case control.State():
                self._state = message
                self._keep_pidfd(fds)
            case control.Failed():
                self._failed = message
            case control.Exit():
                code = os.waitstatus_to_exitcode(message.status)
                self.ended = Ended(code=code if code >= 0 else 128 - code, oom_kills=message.oom_kills, at=message.finished)
            case control.Detached():
                gone = self._detached.pop(message.id, None)
                if gone is not None:
                    gone(message.reason)
            case control.Oom():
                if self.on_oom is not None:
                    self.on_oom()
            case control.Warning():
                log.warning("monitor of %s: %s", self.bundle, message.text)
        for fd in fds:
            os.close(fd)

    def _keep_pidfd(self, fds: list[int]) -> None:
        if fds and self.pidfd < 0:
            self.pidfd = fds.pop()

    async def _send(self, message: control.ToMonitor, fds: tuple[int, ...] = ()) -> None:
        if self._trysend(message, fds):
            return
        async with self._room:
            while not self._trysend(message, fds):
                assert self._connection is not None
                with contextlib.suppress(trio.ClosedResourceError):
                    await trio.lowlevel.wait_writable(self._connection.fileno())

    def _trysend(self, message: control.ToMonitor, fds: tuple[int, ...]) -> bool:
        if self._connection is None:
            raise MonitorGone("the process has ended")
        try:
            self._connection.send(message, fds)
        except BlockingIOError:
            return False
        return True

    async def attach(self, fd: int, options: control.Attach, gone: Callable[[str], None]) -> None:
        """Hand a client's socket to the monitor (the caller closes its own copy); `gone(reason)` is called when it is no longer served."""
        self._attached += 1
        number = self._attached
        self._detached[number] = gone
        try:
            await self._send(msgspec.structs.replace(options, id=number), (fd,))
        except MonitorGone:
            self._detached.pop(number, None)
            raise

    async def resize(self, rows: int, cols: int) -> None:
        """Set the size of the pseudo-terminal. Raises MonitorGone."""
        await self._send(control.Resize(rows=rows, cols=cols))

    async def signal(self, number: int) -> None:
        """Send a signal through the monitor, which holds the process unreaped, so it can never hit another one. Raises MonitorGone."""
        await self._send(control.Signal(number=number))

    def close(self) -> None:
        """Give up the connection and the pidfd; the monitor is not affected."""
        if self._connection is not None:
            trio.lowlevel.notify_closing(self._connection.fileno())  # whoever waits to send wakes and finds it gone
            self._connection.close()
            self._connection = None
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def recorded(bundle: str, reason: str) -> Ended:
    """How the process of a bundle ended by its exit record; unknown, with the reason, when there is none."""
    try:
        record = client.read_exit(bundle)
    except KnarrError as error:
        return Ended(code=None, reason=str(error))
    if record is None:
        return Ended(code=None, reason=reason)
    return Ended(code=record.code, oom_kills=record.oom_kills, at=record.finished)


def launch_error(error: LaunchFailed, explain: Callable[[int, int], LaunchError]) -> LaunchError:
    """A failed launch as the user sees it; `explain(op index, errno)` names the operation of the plan."""
    if error.op < 0:
        return LaunchError(f"start the container's process: {error.message}", errno=error.errno)
    return explain(error.op, error.errno)
