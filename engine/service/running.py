"""Start, stop, signal and end of a container's process; nothing about clients or rows beyond what these need.

`Runner.start` only sends the plan that create compiled. The end of a process is handled in `_ended`, which has no await: state, row,
event, waiters in one step; removal of an --rm container and of control groups follows as chores.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal as signals
from collections.abc import Callable

import msgspec
import trio

from engine.aio.blocking import blocking
from engine.config import DEFAULT_STOP_TIMEOUT
from engine.errors import Conflict, InvalidParameter, KnarrError, LaunchError, NotFound, NotModified
from engine.linux import files
from engine.linux.signals import signal_number
from engine.monitor.client import MonitorGone
from engine.runtime import ops, plan
from engine.service import bundle, create, mounts, specgen
from engine.service.container import Container, Plan, now
from engine.service.context import Context
from engine.service.health import HealthChecks
from engine.service.logsettings import log_settings
from engine.service.restarts import Restarts
from engine.service.sandboxes import Joining
from engine.service.supervise import Ended, LaunchFailed, Process, launch_error
from engine.spec import lifecycle, restart
from engine.spec.container import Trace
from engine.store.db import DatabaseError
from engine.wire import control

log = logging.getLogger("knarr.running")

_DROP_SECONDS = 0.001  # between two looks at a removal of control groups, which takes some milliseconds
_KILL_SECONDS = 10.0  # Docker's patience after SIGKILL
# With them people end containers; after any other signal it is the restart policy that decides.
ENDING = frozenset((signals.SIGTERM, signals.SIGINT, signals.SIGQUIT))
_UNMOUNT_SECONDS = 2.0  # before the same layer is mounted again; a slow client of the last run may keep its monitor longer


class Runner:
    """Runs containers of one context. `remove` is called (in the loop) for an --rm container that ended; `find` resolves a reference."""

    def __init__(self, context: Context, find: Callable[[str], Container], remove: Callable[[Container], None]) -> None:
        self._context = context
        self._find = find
        self._remove = remove
        self.health = HealthChecks(context, self)
        self.restarts = Restarts(context, lambda container: self.start_locked(container, again=True))

    async def start(self, container: Container) -> None:
        """Start a container. Raises NotModified when it runs, Conflict, LaunchError; a failed start leaves nothing running."""
        lifecycle.check_start(container.record.state, container.name)
        async with container.lock:
            await self.start_locked(container)

    async def start_locked(self, container: Container, *, again: bool = False) -> None:
        """`start` for callers that hold the lock. `again`: it is the restart that the container waits for."""
        lifecycle.check_start(container.record.state, container.name, again=again)
        context, record = self._context, container.record
        if container.previous is not None:
            with trio.move_on_after(_UNMOUNT_SECONDS):
                await container.previous.gone.wait()
            container.previous = None
        connection = await context.monitors.take()
        joining = Joining()
        container.claimed = True
        try:
            while container.dropping:  # noqa: ASYNC110 - a thread tells, which has no way to set an event
                await trio.sleep(_DROP_SECONDS)
            if container.unclean:
                await blocking("kernel", context.cgroups.kill, container.cgroup)
                container.unclean = False
            if record.mount_points:
                await mounts.acquire(context, record)
            ready = self._ready_plan(container)
            joining = await context.endpoints.join(container)
            message = self._message(container, ready)
        except BaseException as refusal:
            connection.close()
            context.endpoints.abandon(container, joining)
            if record.mount_points:
                context.volumes.release(record)
            if isinstance(refusal, OSError):  # no space below one of the roots, mostly
                refusal = LaunchError(f"start container {container.name}: {refusal}", errno=refusal.errno or 0)
            if isinstance(refusal, KnarrError):
                self._did_not_start(container, lifecycle.EXIT_NOT_STARTED, str(refusal))
            raise refusal
        finally:
            container.claimed = False
        process = Process(connection, container.bundle, lambda ended: self._ended(container, process, ended))
        process.on_oom = lambda: container.publish("oom")
        try:
            await self._hand_over_pending(container, process)
            with trio.CancelScope(shield=True):
                await process.begin(message, joining.fd)
                trouble = self._joined_trouble(container, joining)
                started = await process.launched()
        except LaunchFailed as error:
            context.endpoints.abandon(container, joining)
            raise self._failed(container, ready, error) from error
        except MonitorGone as error:
            process.close()
            context.endpoints.abandon(container, joining)
            raise self._failed(container, ready, LaunchFailed(-1, 0, str(error))) from error
        except OSError as error:  # START could not be sent: no descriptors, no memory
            process.close()
            context.endpoints.abandon(container, joining)
            raise self._failed(container, ready, LaunchFailed(-1, error.errno or 0, str(error))) from error
        except BaseException:
            process.close()  # the monitor ends without a START
            context.endpoints.abandon(container, joining)
            if record.mount_points:
                context.volumes.release(record)
            raise
        context.endpoints.keep(container, joining)
        container.process = process
        container.plan = None if create.joins(record.host_config) else ready
        container.transition(lifecycle.Started(started.pid, started.start_time, started.started))
        container.last_start = ready, started
        if record.config.healthcheck is not None:
            self.health.begin(container)
        container.publish("start")
        for op, errno in started.degraded:
            log.warning("container %s: %s: only in part: %s", container.id[:12], ops.describe(ready.ops[op]), os.strerror(errno))
        context.nursery.start_soon(self.watch, container, process)
        if trouble is not None:
            await self._take_down(container, again)
            raise trouble

    def _joined_trouble(self, container: Container, joining: Joining) -> KnarrError | None:
        """Make the container's network known while its process is being made; what went wrong, for when there is something to kill."""
        try:
            self._context.endpoints.joined(container, joining)
        except (OSError, KnarrError) as error:
            return KnarrError(f"start container {container.name}: set up its network: {error}")
        return None

    async def _take_down(self, container: Container, again: bool) -> None:
        """End a container that has just been started and must not run. Not by `kill_and_wait`, which would wait for the restart that this
        may be a part of; a restart that failed so is followed by another one."""
        exited = container.exited
        container.record.state.manually_stopped = not again
        with contextlib.suppress(Conflict):  # it has ended
            await self.signal(container, signals.SIGKILL)
        with trio.move_on_after(_KILL_SECONDS, shield=True):
            await exited.wait()

    async def watch(self, container: Container, process: Process) -> None:
        """Background task of each run."""
        container.save()  # after the reply; a daemon that dies before finds the monitor's socket
        self._context.bundle_sizes.begin(container)
        try:
            await process.watch()
        except Exception:
            log.exception("container %s: watching over its process", container.id[:12])  # must not end the daemon

    def _ready_plan(self, container: Container) -> Plan:
        """The compiled plan, and what it needs on disk: both are there from create, or made again (restart, reboot)."""
        context, record = self._context, container.record
        if not os.path.isdir(container.bundle):
            create.make_bundle(context, container)
        elif record.state.started_at:
            container.save_if_waiting()
            if record.host_config.auto_remove:
                context.snapshots.mount_again(record.id)
            bundle.forget_run(container.bundle)
        hc = record.host_config
        if create.joins(hc):
            pid, network = self._joined(hc.pid_mode, "PID"), self._joined(hc.network_mode, "network")
            if network is not None:  # they share what /etc/hostname says
                record.config.hostname, record.config.domainname = network.record.config.hostname, network.record.config.domainname
            ipc = self._joined_ipc(hc.ipc_mode)
            joined = specgen.Joined(
                pid=pid.record.state.pid if pid else 0,
                network=network.record.state.pid if network else 0,
                ipc=ipc.record.state.pid if ipc else 0,
                alive=tuple({(one.record.state.pid, one.record.state.pid_start) for one in (pid, network, ipc) if one}),
            )
            if network is not None:  # it has the names of the one whose network it has, as in Docker
                network = self._owner(network)
                record.config.hostname, record.config.domainname = network.record.config.hostname, network.record.config.domainname
            container.plan = create.compile_plan(context, container, joined, network.bundle if network else "")
        elif container.plan is None or container.placement is None or record.state.started_at:
            container.plan = create.compile_plan(context, container)
        return container.plan

    def _joined(self, mode: str, what: str) -> Container | None:
        """The container that `container:ID` names. Raises NotFound, Conflict."""
        if not mode.startswith("container:"):
            return None
        other = self._find(mode.partition(":")[2])
        if not other.record.state.alive:
            raise Conflict(f"cannot join {what} of a non running container: {other.id}")
        return other

    def _joined_ipc(self, mode: str) -> Container | None:
        """The container whose IPC namespace and /dev/shm are shared. Raises NotFound, Conflict, InvalidParameter."""
        if not mode.startswith("container:"):
            return None
        other, prefix = self._find(mode.partition(":")[2]), "failed to join IPC namespace: container "
        if not other.record.state.alive:
            raise Conflict(f"{prefix}{other.id} is not running")
        if other.record.host_config.ipc_mode != "shareable":
            raise InvalidParameter(f"{prefix}{other.id}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)")
        return other

    def _owner(self, container: Container) -> Container:
        """Whose network a container has: at the end of the chain, as far as that is still there."""
        seen = {container.id}
        while container.record.host_config.network_mode.startswith("container:"):
            try:
                other = self._find(container.record.host_config.network_mode.partition(":")[2])
            except NotFound:
                break
            if other.id in seen:
                break
            seen.add(other.id)
            container = other
        return container

    def _message(self, container: Container, ready: Plan) -> control.Start:
        record = container.record
        config, hc = record.config, record.host_config
        rows, cols = hc.console_size or (0, 0)
        oom = self._context.cgroups.oom_source(container.cgroup)
        return control.Start(
            plan=ready.encoded,
            bundle=container.bundle,
            tty=config.tty,
            rows=rows,
            cols=cols,
            open_stdin=config.open_stdin,
            stdin_once=config.stdin_once,
            log=log_settings(container),
            oom=control.OomSource(path=oom, version=1 if oom.endswith(".oom_control") else 2, watch=bool(hc.memory)) if oom else None,
        )

    async def _hand_over_pending(self, container: Container, process: Process) -> None:
        while container.pending:
            client = container.pending.pop()
            try:
                await process.attach(client.fd, client.options, lambda reason: detached(container, reason))
            finally:
                client.release()

    def _failed(self, container: Container, ready: Plan, error: LaunchFailed) -> LaunchError:
        explained = launch_error(error, lambda op, errno: self._explain(container, ready, op, errno))
        self._did_not_start(container, plan.exit_code(explained), str(explained))
        return explained

    def _did_not_start(self, container: Container, code: int, text: str) -> None:
        again = container.record.state.status == "restarting" and self.restarts.again(container, code)
        container.transition(lifecycle.FailedToStart(code, text, now(), again))
        if container.record.mount_points:
            self._context.volumes.release(container.record)
        self._drop_group(container)
        if again:
            self.restarts.later(container)
        if container.record.host_config.auto_remove:
            self._remove(container)
        else:
            container.save()

    def _explain(self, container: Container, ready: Plan, op: int, errno: int) -> LaunchError:
        found = plan.explain(ready.ops, op, errno)
        if isinstance(ready.ops[op], ops.Exec):
            found.hint = exec_hint(self._context, container) or found.hint
        return found

    def _ended(self, container: Container, process: Process, ended: Ended) -> None:
        """The process is gone. No await: nobody sees a state between running and ended."""
        self.settle(container, ended)

    def settle(self, container: Container, ended: Ended) -> None:
        """Store how a run ended, tell everyone, and remove an --rm container."""
        at = ended.at or now()
        event = lifecycle.lost(at, ended.reason) if ended.code is None else lifecycle.Ended(ended.code, ended.oom_kills > 0, at)
        container.previous, container.process = container.process, None
        state = container.record.state
        duration = max(0, at - state.started_at) // 1_000_000_000 if state.started_at else 0
        again = self.restarts.again(container, event.exit_code)
        if again:
            event = msgspec.structs.replace(event, restart=True)
        if state.health is not None:
            self.health.end(container)
        container.transition(event)
        if ended.code is None:
            log.error("container %s: %s", container.id[:12], event.error)
        if ended.code is None or container.record.host_config.pid_mode:  # else its namespace's end was everybody's
            self._kill_rest(container)
        if ended.oom_kills:
            container.publish("oom")
        container.publish("die", exitCode=str(event.exit_code), execDuration=str(duration))
        self._context.endpoints.leave(container)
        if container.record.mount_points:
            self._context.volumes.release(container.record)
        if container.record.host_config.auto_remove and not container.stopping:
            container.wake_exit()
            self._remove(container)
            if container.gone.is_set():
                return
        container.save()
        container.wake_exit()
        self._drop_group(container)
        if again:
            self.restarts.later(container)

    def _kill_rest(self, container: Container) -> None:
        """End what the first process left: where it had no PID namespace of its own, or nobody knows what became of it."""
        container.unclean = True  # for a start that is faster than the chore
        work = functools.partial(self._while_idle, container, self._context.cgroups.kill)
        self._context.chores.later(f"ending what is left in control group {container.cgroup}", work)

    def _drop_group(self, container: Container) -> None:
        container.placement = None
        work = functools.partial(self._while_idle, container, self._context.cgroups.remove)
        self._context.chores.later(f"removing control group {container.cgroup}", work)

    @staticmethod
    def _while_idle(container: Container, work: Callable[[str], None]) -> None:
        """`work(control group)` in a chore's thread, unless the container was started again; a start waits for it."""
        container.dropping = True
        try:
            if container.placement is None and not container.claimed:
                work(container.cgroup)
        finally:
            container.dropping = False

    async def signal(self, container: Container, number: int) -> None:
        """Send a signal. Raises Conflict when the container does not run."""
        process = container.process
        check_waits_not(container)
        if process is None or not container.record.state.running:
            raise Conflict(f"cannot kill container: {container.name}: container {container.id} is not running")
        try:
            await process.signal(number)
        except MonitorGone:
            return  # it ended by itself

    async def kill(self, container: Container, number: int) -> None:
        """`signal` with Docker's event."""
        await self.signal(container, number)
        container.publish("kill", signal=str(int(number)))

    async def ask_to_end(self, container: Container, number: int) -> None:
        """`kill` with a signal by which people end containers: no restart follows, and one that is awaited is given up."""
        if not await self.restarts.give_up(container):
            container.record.state.manually_stopped = True
            container.save()
            await self.kill(container, number)
        await self._keep_stopped(container)

    async def _keep_stopped(self, container: Container) -> None:
        """Make it durable that somebody stopped a container: else a daemon that is killed now would start it again."""
        if restart.is_none(container.record.host_config.restart_policy):
            return
        try:
            container.save_if_waiting()
            await self._context.durability.reached()
        except (DatabaseError, OSError) as error:
            log.error("container %s: storing that it was stopped: %s", container.id[:12], error)

    async def stop(self, container: Container, number: int | None, timeout: int | None) -> None:
        """Stop gracefully, then with SIGKILL. Raises NotModified when it does not run."""
        if not container.record.state.running:
            raise NotModified(f"container {container.name} is already stopped")
        await self._stop(container, number, timeout)

    async def _stop(self, container: Container, number: int | None, timeout: int | None) -> None:
        """Does nothing when it does not run. Without the lock: a patient stop must not keep a more urgent one, or a removal, waiting.
        `timeout` in seconds, negative: no limit."""
        config = container.record.config
        if await self.restarts.give_up(container):
            container.publish("stop")
            await self._keep_stopped(container)
            return
        if not container.record.state.running:
            return
        exited = container.exited
        container.record.state.manually_stopped = True
        seconds = timeout if timeout is not None else config.stop_timeout
        if seconds is None:
            seconds = DEFAULT_STOP_TIMEOUT
        await self.kill(container, number or signal_number(config.stop_signal or "SIGTERM"))
        with trio.move_on_after(seconds if seconds >= 0 else float("inf")):
            await exited.wait()
        if not exited.is_set():
            await self.kill_and_wait(container)
        container.publish("stop")
        await self._keep_stopped(container)

    async def kill_and_wait(self, container: Container) -> None:
        """SIGKILL, and wait for the end; no restart follows. Raises KnarrError when it does not die."""
        if await self.restarts.give_up(container):
            await self._keep_stopped(container)
            return
        if not container.record.state.running:
            return
        exited = container.exited
        container.record.state.manually_stopped = True
        await self.kill(container, signals.SIGKILL)
        with trio.move_on_after(_KILL_SECONDS):
            await exited.wait()
            await self._keep_stopped(container)
            return
        raise KnarrError(
            f"container {container.name} did not die {_KILL_SECONDS:.0f} s after SIGKILL", hint="its processes may hang in the kernel"
        )

    async def restart(self, container: Container, number: int | None, timeout: int | None) -> None:
        """Stop if it runs, start; an --rm container is not removed in between."""
        async with container.lock:
            try:
                container.stopping = True
                try:
                    await self._stop(container, number, timeout)
                finally:
                    container.stopping = False
                await self.start_locked(container)
            except BaseException:
                if container.record.host_config.auto_remove and not container.record.state.running and not container.gone.is_set():
                    self._remove(container)  # it has ended, and the end was told to leave it
                raise
        container.publish("restart")


def exec_hint(context: Context, container: Container) -> str:
    """Why the kernel could not run a container's program: another architecture, a missing interpreter. On the failure path only."""
    from engine.linux import elf

    snapshots = context.snapshots
    layers = (snapshots.upper(container.id), *snapshots.lowers(snapshots.parent(container.id)))
    with contextlib.ExitStack() as stack:
        roots = [stack.enter_context(files.Root(layer)).fd for layer in layers]
        return elf.explain_exec(roots, container.record.path) or ""


def check_waits_not(container: Container) -> None:
    """Raise Conflict when the container has no process because it waits for its restart."""
    if container.record.state.status == "restarting":
        raise Conflict(f"Container {container.id} is restarting, wait until the container is running")


def detached(container: Container, reason: str) -> None:
    """A client is no longer served; Docker has an event for those who left by the detach keys."""
    if reason == "keys":
        container.publish("detach")


def trace(container: Container) -> list[Trace]:
    """The waterfall of the container's last start under this daemon, in order of time; empty when there was none."""
    if container.last_start is None:
        return []
    ready, started = container.last_start
    steps = [Trace("monitor received the plan", started.received), Trace("pipes and sockets ready", started.prepared)]
    # The last mark is the moment of exec: its index is the number of operations.
    steps += [Trace(ops.describe(ready.ops[index]) if index < len(ready.ops) else "the program runs", at) for index, at in started.trace]
    steps.append(Trace("monitor saw it run", started.launched))
    return steps


__all__ = ["Runner", "trace"]
