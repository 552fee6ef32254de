"""The life of a container as one table. Pure: a state and an event in, the next state out; effects are run by the caller.

    created ──start──► running ──exit──► exited ──start──► running
    running ──exit, to be restarted──► restarting ──start──► running
    restarting ──start failed, to be retried──► restarting
    restarting ──given up, stopped──► exited
    any but removing ──remove──► removing ──► (gone)
    running ◄──unpause── paused ◄──pause── running
    running ──lost──► exited (exit code 255 and an error text: the truth is not known)

A container that is running refuses remove; one that is removing refuses everything. One that waits for its restart counts as running
(Docker's rule: it can be stopped, and is not removed without force), but has no process.
"""

from __future__ import annotations

import msgspec

from engine.errors import Conflict, NotModified
from engine.spec import health
from engine.spec.container import State, Status


class Started(msgspec.Struct, frozen=True):
    """The first process runs. `at` in nanoseconds since the epoch."""

    pid: int
    pid_start: int
    at: int


class FailedToStart(msgspec.Struct, frozen=True):
    """No process came to be; `exit_code` is Docker's 125, 126 or 127. `restart`: it is tried again later."""

    exit_code: int
    error: str
    at: int
    restart: bool = False


class Ended(msgspec.Struct, frozen=True):
    """The first process ended. `exit_code` is its own, or 128+n for signal n. `restart`: another run follows."""

    exit_code: int
    oom_killed: bool
    at: int
    error: str = ""
    restart: bool = False


class Removing(msgspec.Struct, frozen=True):
    """Removal began; `force` is checked by the caller, which stops the process first."""


class Awaited(msgspec.Struct, frozen=True):
    """The daemon, which has just started, is going to start the container."""


class GivenUp(msgspec.Struct, frozen=True):
    """No restart follows any more. `stopped`: because somebody stopped it."""

    stopped: bool = True


Event = Started | FailedToStart | Ended | Awaited | GivenUp | Removing

EXIT_NOT_STARTED = 128  # what dockerd reports for a start that never reached the runtime
EXIT_UNKNOWN = 255  # what dockerd reports for a container that it finds dead without an exit record


def lost(at: int, reason: str) -> Ended:
    """The process is gone and nobody recorded how it ended."""
    return Ended(exit_code=EXIT_UNKNOWN, oom_killed=False, at=at, error=f"{reason}: its exit code is not known")


def check_start(state: State, name: str, *, again: bool = False) -> None:
    """Raise unless a start makes sense. `again`: it is the restart that the container waits for. Raises NotModified, Conflict."""
    if again and state.status == "restarting":
        return
    if state.status == "paused":
        raise Conflict("cannot start a paused container, try unpause instead")
    if state.running:
        raise NotModified(f"container {name} is already running")
    if state.status in ("removing", "dead"):
        raise Conflict("container is marked for removal and cannot be started")


def step(state: State, event: Event) -> State:
    """The state after `event`. Raises Conflict when the event is impossible in `state`."""
    match event:
        case Started(pid, pid_start, at):
            if state.alive or state.status == "removing":
                raise Conflict(f"a container that is {state.status} cannot start")
            # somebody who starts a container begins to count anew
            count = state.restart_count if state.status == "restarting" else 0
            return State(status="running", pid=pid, pid_start=pid_start, started_at=at, restart_count=count, health=state.health)
        case FailedToStart(exit_code, error, at, restart):
            # a container that never ran stays "created", as in Docker
            status: Status = "restarting" if restart else "exited" if state.started_at else "created"
            return State(
                status=status,
                exit_code=exit_code,
                error=error,
                started_at=state.started_at,
                finished_at=at if state.started_at else 0,
                restart_count=state.restart_count + restart,
                health=state.health,
            )
        case Ended(exit_code, oom_killed, at, error, restart):
            if state.status == "removing":
                status, restart = "removing", False
            else:
                status = "restarting" if restart else "exited"
            return State(
                status=status,
                exit_code=exit_code,
                error=error,
                oom_killed=oom_killed,
                started_at=state.started_at,
                finished_at=at,
                restart_count=state.restart_count + restart,
                manually_stopped=state.manually_stopped,
                health=health.ended(state.health),
            )
        case Awaited():
            if state.status not in ("exited", "restarting"):
                raise Conflict(f"a container that is {state.status} does not wait for a start")
            return msgspec.structs.replace(state, status="restarting", restart_count=0)
        case GivenUp(stopped):
            if state.status != "restarting":
                raise Conflict(f"a container that is {state.status} does not wait for a start")
            return msgspec.structs.replace(state, status="exited", manually_stopped=state.manually_stopped or stopped)
        case Removing():
            if state.running:
                raise Conflict("a running container cannot be removed")
            if state.status == "removing":
                raise Conflict("removal is already in progress")
            return msgspec.structs.replace(state, status="removing")
