"""The table of a container's life."""

from __future__ import annotations

import pytest

from engine.errors import Conflict, NotModified
from engine.spec import lifecycle
from engine.spec.container import State
from engine.spec.lifecycle import Ended, FailedToStart, Removing, Started


def test_a_whole_life() -> None:
    state = lifecycle.step(State(), Started(pid=7, pid_start=8, at=9))
    assert (state.status, state.pid, state.started_at) == ("running", 7, 9)
    state = lifecycle.step(state, Ended(exit_code=3, oom_killed=True, at=20))
    assert (state.status, state.pid, state.exit_code, state.oom_killed, state.finished_at) == ("exited", 0, 3, True, 20)
    state = lifecycle.step(state, Started(pid=9, pid_start=8, at=30))
    assert (state.exit_code, state.oom_killed, state.finished_at) == (0, False, 0)
    state = lifecycle.step(lifecycle.step(state, Ended(exit_code=0, oom_killed=False, at=40)), Removing())
    assert state.status == "removing"


def test_a_container_that_never_ran_stays_created() -> None:
    state = lifecycle.step(State(), FailedToStart(127, "no such program", 5))
    assert (state.status, state.exit_code, state.finished_at) == ("created", 127, 0)


def test_an_unknown_end_says_so() -> None:
    state = lifecycle.step(State(status="running", started_at=1), lifecycle.lost(5, "the host stopped"))
    assert state.exit_code == lifecycle.EXIT_UNKNOWN
    assert "not known" in state.error


@pytest.mark.parametrize(
    ("state", "event"),
    [
        (State(status="running"), Started(1, 1, 1)),
        (State(status="removing"), Started(1, 1, 1)),
        (State(status="running"), Removing()),
        (State(status="removing"), Removing()),
    ],
)
def test_impossible_events_are_conflicts(state: State, event: lifecycle.Event) -> None:
    with pytest.raises(Conflict):
        lifecycle.step(state, event)


def test_what_may_be_started() -> None:
    lifecycle.check_start(State(), "n")
    lifecycle.check_start(State(status="exited"), "n")
    with pytest.raises(NotModified):
        lifecycle.check_start(State(status="running"), "n")
    for status in ("paused", "removing", "dead"):
        with pytest.raises(Conflict):
            lifecycle.check_start(State(status=status), "n")  # type: ignore[arg-type]
