"""Health checks as a pure machine: any row of results, any settings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidParameter
from engine.spec import health
from engine.spec.docker.containers import Config, Healthcheck, HostConfig
from engine.spec.health import Check, Health, Result

S = health.SECOND
PLAN = Check(words=("true",), retries=3, start_period=10 * S, start_interval=S, interval=30 * S)

results = st.lists(st.tuples(st.integers(-1, 255), st.integers(0, 100 * S)), max_size=30)
plans = st.builds(
    Check, words=st.just(("true",)), retries=st.integers(1, 5), start_period=st.integers(0, 50 * S),
    interval=st.integers(1, 60 * S), start_interval=st.integers(1, 60 * S),
)  # fmt: skip
checks = st.builds(
    Healthcheck, test=st.sampled_from([None, ["NONE"], ["CMD", "a"], ["CMD-SHELL", "a b"]]), interval=st.sampled_from([0, S]),
    timeout=st.sampled_from([0, S]), retries=st.integers(0, 3), start_period=st.sampled_from([0, S]),
    start_interval=st.sampled_from([0, S]),
)  # fmt: skip


def run(plan: Check, found: list[tuple[int, int]]) -> list[Health]:
    states = [health.begin(None)]
    at = 0
    for code, later in found:
        at += later
        states.append(health.step(states[-1], plan, Result(at, at + 1, code, ""), 0))
    return states


@given(plans, results)
def test_whatever_the_probes_say(plan: Check, found: list[tuple[int, int]]) -> None:
    states = run(plan, found)
    streak = 0
    for (code, _), before, after in zip(found, states, states[1:], strict=False):
        assert (after.status == "healthy") == (code == 0 or (before.status == "healthy" and after.failing_streak < plan.retries))
        assert after.status == "unhealthy" or after.failing_streak < plan.retries
        streak = 0 if code == 0 else streak + 1
        assert after.failing_streak <= streak
        assert len(after.log) == min(len(before.log) + 1, health.KEPT)
        assert after.log[-1].exit_code == code
        # only a start makes `starting`
        assert after.status != "starting" or before.status == "starting"


@given(plans, results)
def test_failures_in_the_start_period_do_not_count(plan: Check, found: list[tuple[int, int]]) -> None:
    early = [(1, 0) for _ in found]
    assert all(state.status == "starting" and not state.failing_streak for state in run(plan, early)) or not plan.start_period


def test_a_success_ends_the_start_period() -> None:
    states = run(PLAN, [(1, S), (0, S), (1, S), (1, S), (1, S), (0, S)])
    assert [state.status for state in states] == ["starting", "starting", "healthy", "healthy", "healthy", "unhealthy", "healthy"]
    assert [state.failing_streak for state in states] == [0, 0, 0, 1, 2, 3, 0]


def test_when_the_next_probe_is_due() -> None:
    starting, healthy = Health(), Health("healthy")
    assert health.delay(starting, PLAN, 0, 5 * S) == S
    assert health.delay(starting, PLAN, 0, 10 * S) == 30 * S
    assert health.delay(healthy, PLAN, 0, 5 * S) == 30 * S


@given(plans, st.integers(0, 10**12), st.integers(0, 10**12), st.lists(st.integers(0, 10**12), max_size=5))
def test_a_daemon_that_comes_back_waits_no_longer_than_one_that_stayed(plan: Check, started: int, now: int, ends: list[int]) -> None:
    state = Health("healthy", 0, tuple(Result(end, end, 0, "") for end in sorted(ends)))
    assert 0 <= health.resumed(state, plan, started, now) <= health.delay(state, plan, started, now)


@given(checks, checks)
def test_each_field_of_the_request_goes_before_the_images(asked: Healthcheck, image: Healthcheck) -> None:
    merged = health.merge(asked, image)
    assert merged is not None
    for field in Healthcheck.__struct_fields__:
        assert getattr(merged, field) == (getattr(asked, field) or getattr(image, field))
    assert health.merge(None, image) == image
    assert health.merge(asked, None) == asked


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (Healthcheck(interval=100), "Interval in Healthcheck cannot be less than 1ms"),
        (Healthcheck(timeout=-5), "Timeout in Healthcheck cannot be less than 1ms"),
        (Healthcheck(start_period=999_999), "StartPeriod in Healthcheck cannot be less than 1ms"),
        (Healthcheck(start_interval=1), "StartInterval in Healthcheck cannot be less than 1ms"),
        (Healthcheck(retries=-1), "Retries in Healthcheck cannot be negative"),
    ],
)
def test_dockers_words_for_bad_values(asked: Healthcheck, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        health.validate(asked)


def test_the_command() -> None:
    def words(test: list[str], **config: object) -> tuple[str, ...] | None:
        found = health.check(Config(healthcheck=Healthcheck(test=test), **config), HostConfig())  # type: ignore[arg-type]
        return found and found.words

    assert words(["CMD", "a", "b c"]) == ("a", "b c")
    assert words(["CMD-SHELL", "a b"]) == ("/bin/sh", "-c", "a b")
    assert words(["CMD-SHELL", "a b"], shell=["/bin/bash", "-ec"]) == ("/bin/bash", "-ec", "a b")
    assert words(["NONE"]) is None
    assert words([]) is None
    assert words(["WHAT", "x"]) is None
    assert health.warnings(Healthcheck(test=["WHAT", "x"]))
    assert health.warnings(Healthcheck(interval=S))
    assert not health.warnings(Healthcheck())


def test_defaults() -> None:
    found = health.check(Config(healthcheck=Healthcheck(test=["CMD", "a"])), HostConfig())
    assert found == Check(words=("a",), interval=30 * S, timeout=30 * S, retries=3, start_period=0, start_interval=5 * S)


def test_what_follows_a_failure() -> None:
    key = health.ON_FAILURE
    assert health.action({}, {}) == "none"
    assert health.action({}, {key: "stop"}) == "stop"
    assert health.action({key: "kill"}, {key: "stop"}) == "kill"
    with pytest.raises(InvalidParameter, match="'reboot'; use one of"):
        health.action({}, {key: "reboot"})


def test_output() -> None:
    assert health.output(b"x" * 5000) == "x" * 4096 + "..."
    assert health.output(b"x" * 4096) == "x" * 4096
    assert health.output(b"so far\n", 90 * S) == "Health check exceeded timeout (1m30s): so far\n"
    assert health.output(b"", S // 2) == "Health check exceeded timeout (500ms)"


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [(1, "1ns"), (1500, "1.5µs"), (1_500_000, "1.5ms"), (S, "1s"), (3 * S // 2, "1.5s"), (60 * S, "1m0s"), (3661 * S, "1h1m1s")],
)
def test_times_as_go_writes_them(nanoseconds: int, text: str) -> None:
    assert health.duration(nanoseconds) == text


def test_ps() -> None:
    assert [health.described(state) for state in (None, Health(), Health("healthy"), Health("unhealthy"))] == [
        "", " (health: starting)", " (healthy)", " (unhealthy)",
    ]  # fmt: skip
    assert health.ended(Health("healthy", 1)) == Health("unhealthy", 1)
    assert health.ended(None) is None
