"""Health checks as pure data and functions: what is asked for, when the next probe is due, what its result makes of the state.

Times are nanoseconds. Source: Dockerfile reference, HEALTHCHECK; Engine API, "HealthConfig" and "Health"; dockerd's answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from engine.errors import InvalidParameter
from engine.spec.docker.containers import Config, Healthcheck, HostConfig

Status = Literal["starting", "healthy", "unhealthy"]
STATUSES = ("starting", "healthy", "unhealthy", "none")

SECOND = 1_000_000_000
DEFAULT_INTERVAL = 30 * SECOND
DEFAULT_TIMEOUT = 30 * SECOND
DEFAULT_RETRIES = 3
DEFAULT_START_INTERVAL = 5 * SECOND
MINIMUM = 1_000_000  # 1 ms, the shortest time that may be asked for
KEPT = 5  # results that inspect shows
OUTPUT = 4096  # bytes of a probe's output that are kept
NOT_RUN = -1  # exit code of a probe that could not be started, or was killed because it took too long

ON_FAILURE = "io.knarr.health-on-failure"  # annotation or label: what is done with a container that became unhealthy
Action = Literal["none", "kill", "restart", "stop"]
ACTIONS: tuple[Action, ...] = ("none", "kill", "restart", "stop")

_TIMES = (("Interval", "interval"), ("Timeout", "timeout"), ("StartPeriod", "start_period"), ("StartInterval", "start_interval"))


class Result(msgspec.Struct, frozen=True):
    """One probe: begin and end (since the epoch), exit code, what it printed."""

    start: int
    end: int
    exit_code: int
    output: str


class Health(msgspec.Struct, frozen=True, omit_defaults=True):
    """`log` has the last results, oldest first."""

    status: Status = "starting"
    failing_streak: int = 0
    log: tuple[Result, ...] = ()


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """A health check that is to be run: the words of its command, its times with defaults filled in, and what follows a failure."""

    words: tuple[str, ...]
    interval: int = DEFAULT_INTERVAL
    timeout: int = DEFAULT_TIMEOUT
    retries: int = DEFAULT_RETRIES
    start_period: int = 0
    start_interval: int = DEFAULT_START_INTERVAL
    action: Action = "none"


def validate(asked: Healthcheck | None) -> None:
    """Raise InvalidParameter, in Docker's words, for times and counts that make no sense."""
    if asked is None:
        return
    for name, field in _TIMES:
        if getattr(asked, field) and getattr(asked, field) < MINIMUM:
            raise InvalidParameter(f"{name} in Healthcheck cannot be less than 1ms")
    if asked.retries < 0:
        raise InvalidParameter("Retries in Healthcheck cannot be negative")


def merge(asked: Healthcheck | None, image: Healthcheck | None) -> Healthcheck | None:
    """The request's fields over the image's, each for itself: `--health-interval` alone changes how often the image's command runs."""
    if asked is None or image is None:
        return asked or image
    return Healthcheck(
        test=asked.test or image.test,
        interval=asked.interval or image.interval,
        timeout=asked.timeout or image.timeout,
        retries=asked.retries or image.retries,
        start_period=asked.start_period or image.start_period,
        start_interval=asked.start_interval or image.start_interval,
    )


def warnings(merged: Healthcheck | None) -> list[str]:
    """What of a check will not have the effect its author may expect."""
    if merged is None or merged == Healthcheck() or (merged.test and merged.test[0] in ("CMD", "CMD-SHELL", "NONE")):
        return []
    if not merged.test:
        return ["neither the request nor the image has a health check's command: no health check is run"]
    return [f"unknown type of health check '{merged.test[0]}' (CMD, CMD-SHELL and NONE are known): no health check is run"]


def action(annotations: Mapping[str, str], labels: Mapping[str, str]) -> Action:
    """What is done when the container becomes unhealthy, by its annotation or else its label. Raises InvalidParameter."""
    chosen = annotations.get(ON_FAILURE) or labels.get(ON_FAILURE) or "none"
    for known in ACTIONS:
        if chosen == known:
            return known
    raise InvalidParameter(f"invalid value for {ON_FAILURE}: '{chosen}'; use one of 'none', 'kill', 'restart' or 'stop'")


def check(config: Config, hc: HostConfig) -> Check | None:
    """The check that a container is to have; None when it has none. Raises InvalidParameter for a bad `action`."""
    asked = config.healthcheck
    if asked is None or not asked.test or asked.test[0] not in ("CMD", "CMD-SHELL"):
        return None
    words = tuple(asked.test[1:])
    if asked.test[0] == "CMD-SHELL":
        words = (*(config.shell or ("/bin/sh", "-c")), *words)
    return Check(
        words=words,
        interval=asked.interval or DEFAULT_INTERVAL,
        timeout=asked.timeout or DEFAULT_TIMEOUT,
        retries=asked.retries or DEFAULT_RETRIES,
        start_period=asked.start_period,
        start_interval=asked.start_interval or DEFAULT_START_INTERVAL,
        action=action(hc.annotations or {}, config.labels or {}),
    )


def begin(before: Health | None) -> Health:
    """The state at the start of a run: what earlier runs' probes said stays in the log."""
    return Health(log=before.log if before else ())


def ended(before: Health | None) -> Health | None:
    """The state when the run has ended: who does not run is not healthy (dockerd shows it so, without an event)."""
    return None if before is None else msgspec.structs.replace(before, status="unhealthy")


def step(before: Health, plan: Check, result: Result, started_at: int) -> Health:
    """The state after a probe. Failures of a container that has not been healthy yet do not count in its start period."""
    log = (*before.log[-(KEPT - 1) :], result)
    if result.exit_code == 0:
        return Health("healthy", 0, log)
    if before.status == "starting" and result.start - started_at < plan.start_period:
        return Health("starting", before.failing_streak, log)
    streak = before.failing_streak + 1
    return Health("unhealthy" if streak >= plan.retries else before.status, streak, log)


def delay(state: Health, plan: Check, started_at: int, now: int) -> int:
    """How long to wait from `now`, the end of a probe or the start, until the next probe begins."""
    if state.status == "starting" and now - started_at < plan.start_period:
        return plan.start_interval
    return plan.interval


def resumed(state: Health, plan: Check, started_at: int, now: int) -> int:
    """`delay` when nobody looked for a while: what is left of the interval since the last probe of this run."""
    last = max([started_at, *(result.end for result in state.log)])
    whole = delay(state, plan, started_at, now)
    return min(whole, max(0, last + whole - now))


def output(raw: bytes, timeout: int | None = None) -> str:
    """What a probe printed, as inspect shows it; `timeout`: it was killed after so long. A cut is marked as dockerd does."""
    text = raw[:OUTPUT].decode(errors="replace") + ("..." if len(raw) > OUTPUT else "")
    if timeout is None:
        return text
    return f"Health check exceeded timeout ({duration(timeout)})" + (f": {text}" if text else "")


def duration(nanoseconds: int) -> str:
    """A positive time as Go writes it: 1m30s, 500ms, 1.5s."""
    if nanoseconds < SECOND:
        for unit, size in (("ms", 1_000_000), ("µs", 1000)):
            if nanoseconds >= size:
                return f"{nanoseconds / size:.6f}".rstrip("0").rstrip(".") + unit
        return f"{nanoseconds}ns"
    minutes, rest = divmod(nanoseconds, 60 * SECOND)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{rest // SECOND}.{rest % SECOND:09}".rstrip("0").rstrip(".") + "s"
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + seconds


def described(state: Health | None) -> str:
    """What `docker ps` adds to "Up 5 seconds"; "" for a container without a check."""
    if state is None:
        return ""
    return " (health: starting)" if state.status == "starting" else f" ({state.status})"
