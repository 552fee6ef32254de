"""Health checks carried out: a task for each running container that has one, its probes are execs. The rules are in `spec.health`.

A container without a check costs nothing. The state is part of the container's record; it is stored when it changes, not with every probe
that says what the last one said, and at the daemon's end. A daemon that starts goes on where the last one was: who was healthy stays so.
"""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import trio

from engine.errors import KnarrError
from engine.linux.process import is_ending
from engine.service.container import Container, now
from engine.service.context import Context
from engine.spec import health
from engine.spec.docker.containers import ExecRequest
from engine.spec.health import Check, Result

if TYPE_CHECKING:
    from engine.service.execs import Exec, Execs

log = logging.getLogger("knarr.health")

_PROCESS_GROUP = 4  # PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9
_DEATH_SECONDS = 2.0  # from SIGKILL to the end of a probe that took too long
_KILLED = 128 + signal.SIGKILL
_KILLED_SECONDS = 0.25
_END_SECONDS = 30.0  # from the moment that a container's process begins to end until its monitor tells of it, on a very busy host
_PIECE = 65536


class Doer(Protocol):
    """What is done with a container that became unhealthy."""

    async def kill(self, container: Container, number: int) -> None:
        """Send a signal; the restart policy decides what follows."""

    async def stop(self, container: Container, number: int | None, timeout: int | None) -> None:
        """Stop it as a client would."""

    async def restart(self, container: Container, number: int | None, timeout: int | None) -> None:
        """Restart it as a client would."""


class HealthChecks:
    """All health checks of one daemon. `execs` is set by the engine before the first probe is due."""

    def __init__(self, context: Context, doer: Doer) -> None:
        self._context = context
        self._doer = doer
        self._watched: dict[str, tuple[Container, trio.CancelScope]] = {}
        self.execs: Execs | None = None

    def begin(self, container: Container, *, adopted: bool = False) -> None:
        """The container runs: look after it if it has a check. `adopted`: it ran before this daemon did."""
        record = container.record
        plan = health.check(record.config, record.host_config)
        if plan is None:
            record.state.health = None
            return
        state = record.state.health
        if not adopted or state is None:
            state = record.state.health = health.begin(state)
            wait = health.delay(state, plan, record.state.started_at, record.state.started_at)
        else:
            wait = health.resumed(state, plan, record.state.started_at, now())
        self.end(container)
        scope = trio.CancelScope()
        self._watched[container.id] = container, scope
        self._context.nursery.start_soon(self._watch, container, plan, scope, wait)

    def end(self, container: Container) -> None:
        """The container does not run any more."""
        watched = self._watched.pop(container.id, None)
        if watched is not None:
            watched[1].cancel()

    def adopt(self, containers: Mapping[str, Container]) -> None:
        """Look after those that run already."""
        for container in containers.values():
            if container.record.state.alive and container.record.config.healthcheck is not None:
                self.begin(container, adopted=True)

    def keep(self) -> None:
        """The daemon ends: have the last results written, too."""
        for container, _ in self._watched.values():
            container.save()

    async def _watch(self, container: Container, plan: Check, scope: trio.CancelScope, wait: int) -> None:
        with scope:
            try:
                while True:
                    await trio.sleep(wait / 1e9)
                    if container.record.state.status == "running":
                        result = await self._probe(container, plan)
                        if result.exit_code == _KILLED:
                            await _end_told(container)
                        if container.record.state.status == "running":  # a probe that was frozen says nothing
                            self._found(container, plan, result)
                    state = container.record.state
                    wait = health.delay(state.health or health.Health(), plan, state.started_at, now())
            except Exception:
                log.exception("container %s: checking its health", container.id[:12])  # must not end the daemon

    def _found(self, container: Container, plan: Check, result: Result) -> None:
        """Store what a probe said. No await."""
        before = container.record.state.health or health.Health()
        after = health.step(before, plan, result, container.record.state.started_at)
        container.record.state.health = after
        if (after.status, after.failing_streak) != (before.status, before.failing_streak):
            container.save()
        if after.status == before.status:
            return
        container.publish(f"health_status: {after.status}")
        # Who is about to end because somebody wants it may well fail its probes.
        if after.status == "unhealthy" and plan.action != "none" and not container.record.state.manually_stopped:
            log.warning("container %s (%s) is unhealthy: %s", container.id[:12], container.name, plan.action)
            self._context.nursery.start_soon(self._act, container, plan)

    async def _act(self, container: Container, plan: Check) -> None:
        """A task of its own: what it does ends the one that probes."""
        try:
            match plan.action:
                case "kill":
                    await self._doer.kill(container, signal.SIGKILL)
                case "stop":
                    await self._doer.stop(container, None, None)
                case "restart":
                    await self._doer.restart(container, None, None)
        except KnarrError as error:  # it has ended, or does not start again: its state tells
            log.warning("container %s (%s), unhealthy: %s: %s", container.id[:12], container.name, plan.action, error)
        except Exception:
            log.exception("container %s, unhealthy: %s", container.id[:12], plan.action)  # must not end the daemon

    async def _probe(self, container: Container, plan: Check) -> Result:
        """Run the command once."""
        assert self.execs is not None
        began = now()
        printed = bytearray()
        found: Exec | None = None
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            try:
                with trio.move_on_after(plan.timeout / 1e9):
                    with theirs:
                        request = ExecRequest(attach_stdout=True, attach_stderr=True, cmd=list(plan.words))
                        found = await self.execs.run(await self.execs.create(container.id, request), theirs)
                    await _collect(trio.socket.from_stdlib_socket(ours), printed)
                    await found.ended.wait()
                    assert found.record.exit_code is not None
                    return Result(began, now(), found.record.exit_code, health.output(bytes(printed)))
            except KnarrError as error:
                return Result(began, now(), health.NOT_RUN, health.output(str(error).encode()))
            finally:
                if found is not None and not found.ended.is_set():
                    _kill(found)
        if found is not None:
            with trio.move_on_after(_DEATH_SECONDS):
                await found.ended.wait()
        return Result(began, now(), health.NOT_RUN, health.output(bytes(printed), plan.timeout))


async def _end_told(container: Container) -> None:
    """A probe was killed, perhaps with its container, whose own end is told a little later: wait for that."""
    exited, state = container.exited, container.record.state
    with trio.move_on_after(_KILLED_SECONDS):
        await exited.wait()
    if state.pid and is_ending(state.pid, state.pid_start):
        with trio.move_on_after(_END_SECONDS):
            await exited.wait()


async def _collect(stream: trio.socket.SocketType, into: bytearray) -> None:
    """Read to the end; beyond what is kept it is read and dropped, so that the command is not held up."""
    while piece := await stream.recv(_PIECE):
        if len(into) <= health.OUTPUT:
            into += piece[: health.OUTPUT + 1 - len(into)]


def _kill(found: Exec) -> None:
    """End a probe and what it started, as far as that stayed in its process group."""
    process = found.process
    if process is None or process.pidfd < 0:
        return
    for flags in (_PROCESS_GROUP, 0):  # the second for older kernels
        try:
            return signal.pidfd_send_signal(process.pidfd, signal.SIGKILL, None, flags)
        except OSError:
            continue  # or it has just ended
