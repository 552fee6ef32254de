"""Restart policies carried out: who is started again after a run, and who when the daemon starts. The rules are in `spec.restart`.

Owns the waits. One that waits is in the state `restarting`; `give_up` ends that. A restart whose start fails is tried again like a run
that failed: what it needs (a disk, an address, another container) may come later. A start that a client asked for is not.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

import trio

from engine.errors import KnarrError
from engine.service.container import Container, now
from engine.service.context import Context
from engine.spec import lifecycle, restart
from engine.spec.restart import Needs

log = logging.getLogger("knarr.restarts")

PATIENCE = 120.0  # seconds that a container waits at the daemon's start for what it depends on
_LOOK_SECONDS = 0.1  # between two looks at a container that is waited for
_AT_ONCE = 8  # containers that the daemon's start brings up side by side


class Restarts:
    """`start` starts a container in state `restarting` whose lock is held; it raises KnarrError after the failure was stored."""

    def __init__(self, context: Context, start: Callable[[Container], Awaitable[None]]) -> None:
        self._context = context
        self._start = start
        self._delays: dict[str, int] = {}  # the last delay of those that are restarted
        self._waiting: dict[str, trio.CancelScope] = {}
        self._starting: dict[str, trio.Event] = {}
        self._open = False
        self._ended_meanwhile: set[str] = set()  # while there was no daemon, or before it was open

    def again(self, container: Container, exit_code: int) -> bool:
        """Whether a run that ended so, or a restart that failed so, is followed by another start. Asked once, before the state changes."""
        policy, state = container.record.host_config.restart_policy, container.record.state
        if not self._open:
            self._ended_meanwhile.add(container.id)
            return False
        if restart.is_none(policy):
            return False
        if not restart.wanted(policy, exit_code=exit_code, count=state.restart_count, stopped=state.manually_stopped):
            self._delays.pop(container.id, None)
            return False
        before = self._delays.get(container.id, 0) if state.restart_count else 0
        ran = max(0, now() - state.started_at) if state.alive else 0
        self._delays[container.id] = restart.backoff(before, ran)
        return True

    def later(self, container: Container) -> None:
        """Start the container, which has become `restarting`, after its delay."""
        scope = self._waiting[container.id] = trio.CancelScope()
        self._context.nursery.start_soon(self._after_delay, container, scope, self._delays.get(container.id, restart.FIRST_DELAY) / 1e9)

    async def _after_delay(self, container: Container, scope: trio.CancelScope, seconds: float) -> None:
        with scope:
            await trio.sleep(seconds)
            await self._restart(container, scope)

    async def _restart(self, container: Container, scope: trio.CancelScope) -> None:
        async with container.lock:
            if self._waiting.get(container.id) is not scope or container.record.state.status != "restarting":
                return
            if restart.is_none(container.record.host_config.restart_policy):  # changed meanwhile
                self._end_wait(container, stopped=False)
                return
            del self._waiting[container.id]
            event = self._starting[container.id] = trio.Event()
            try:
                with trio.CancelScope(shield=True):
                    await self._start(container)
            except KnarrError as error:
                self._failed(container, error)
            except Exception:
                log.exception("container %s: restarting it", container.id[:12])  # must not end the daemon
                if container.record.state.status == "restarting":
                    self._end_wait(container, stopped=False)
            finally:
                del self._starting[container.id]
                event.set()

    def _failed(self, container: Container, error: KnarrError) -> None:
        state = container.record.state
        if state.status == "restarting" and container.id not in self._waiting:  # it failed before the start had begun
            code = lifecycle.EXIT_NOT_STARTED
            container.transition(lifecycle.FailedToStart(code, str(error), now(), restart=self.again(container, code)))
            container.save()
            if container.record.state.status == "restarting":
                self.later(container)
        log.warning(
            "container %s (%s): restarting it: %s%s",
            container.id[:12], container.name, error,
            f"; next try in {self._delays[container.id] / 1e9:.1f} s" if container.id in self._waiting else "",
        )  # fmt: skip

    async def give_up(self, container: Container) -> bool:
        """Somebody stops the container: if it waits for a restart, it does no more. False when there is nothing to give up, perhaps because
        it runs; a restart that is just under way is waited for."""
        while (event := self._starting.get(container.id)) is not None:
            await event.wait()
        if container.record.state.status != "restarting":
            return False
        self._end_wait(container, stopped=True)
        return True

    def _end_wait(self, container: Container, *, stopped: bool) -> None:
        scope = self._waiting.pop(container.id, None)
        if scope is not None:
            scope.cancel()
        self._delays.pop(container.id, None)
        container.transition(lifecycle.GivenUp(stopped))
        container.save()
        container.wake_exit()

    def boot(self, containers: Mapping[str, Container]) -> None:
        """The daemon has found out what runs: from now on ends are followed by restarts. Those who are to run and do not are started in the
        background, in the order of their dependencies."""
        self._open = True
        chosen: list[Container] = []
        for container in containers.values():
            policy, state = container.record.host_config.restart_policy, container.record.state
            if restart.wanted_at_boot(policy, state, ended_meanwhile=container.id in self._ended_meanwhile):
                container.transition(lifecycle.Awaited())
                chosen.append(container)
            elif state.status == "restarting":
                self._end_wait(container, stopped=False)
        self._ended_meanwhile.clear()
        if not chosen:
            return
        edges, cut = restart.without_circles(restart.graph(container.record for container in containers.values()))
        for one, other in cut:
            log.warning("container %s depends in a circle on container %s: not waiting for it", one[:12], other[:12])
        tried = {container.id: trio.Event() for container in chosen}
        limiter = trio.CapacityLimiter(_AT_ONCE)
        for container in chosen:
            scope = self._waiting[container.id] = trio.CancelScope()
            self._context.nursery.start_soon(self._boot_one, container, scope, edges.get(container.id, []), containers, tried, limiter)

    async def _boot_one(
        self,
        container: Container,
        scope: trio.CancelScope,
        needs: list[Needs],
        containers: Mapping[str, Container],
        tried: Mapping[str, trio.Event],
        limiter: trio.CapacityLimiter,
    ) -> None:
        try:
            with scope:
                with trio.move_on_after(PATIENCE) as patience:
                    for need in needs:
                        if need.id in tried:
                            await tried[need.id].wait()
                        other = containers.get(need.id)
                        if other is not None:
                            await _until(container, other, need)
                if patience.cancelled_caught:
                    log.warning("container %s (%s): what it depends on is not ready after %.0f s; starting it without",
                                container.id[:12], container.name, PATIENCE)  # fmt: skip
                async with limiter:
                    await self._restart(container, scope)
        finally:
            tried[container.id].set()


async def _until(container: Container, other: Container, need: Needs) -> None:
    """Wait for a condition of compose's `depends_on`; return with a line in the log when it cannot come true any more."""
    while True:
        state = other.record.state
        waits = state.running and not other.gone.is_set()
        match need.condition:
            case "service_started":
                return
            case "service_healthy":
                if state.alive and (state.health is None or state.health.status == "healthy"):
                    return
            case "service_completed_successfully":
                if state.status == "exited" and state.exit_code == 0 and state.started_at:
                    return
        if not waits:
            log.warning("container %s (%s) depends on container %s, which is %s and not %s; starting it without",
                        container.id[:12], container.name, other.name, state.status, need.condition)  # fmt: skip
            return
        await trio.sleep(_LOOK_SECONDS)
