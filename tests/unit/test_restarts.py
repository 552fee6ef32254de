"""Restart policies, updates and the order of starts as pure functions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import Conflict, InvalidParameter
from engine.service.update import resources, updated
from engine.spec import lifecycle, restart
from engine.spec.container import ContainerRecord, State
from engine.spec.docker.containers import Config, HostConfig, NetworkingConfig, RestartPolicy
from engine.spec.lifecycle import Awaited, Ended, FailedToStart, GivenUp, Removing, Started
from engine.spec.restart import Needs
from engine.spec.runtime import Pids

S = restart.SECOND
policies = st.builds(RestartPolicy, name=st.sampled_from(["", *restart.POLICIES]), maximum_retry_count=st.integers(0, 3))


@given(policies, st.integers(0, 255), st.integers(0, 10))
def test_who_is_restarted(policy: RestartPolicy, code: int, count: int) -> None:
    found = restart.wanted(policy, exit_code=code, count=count, stopped=False)
    match policy.name:
        case "always" | "unless-stopped":
            assert found
        case "on-failure":
            assert found == (code != 0 and (policy.maximum_retry_count == 0 or count < policy.maximum_retry_count))
        case _:
            assert not found
    assert not restart.wanted(policy, exit_code=code, count=count, stopped=True)


@given(st.lists(st.integers(0, 20 * S), max_size=30))
def test_delays_double_until_a_run_lasts(runs: list[int]) -> None:
    delay = 0
    for ran in runs:
        before, delay = delay, restart.backoff(delay, ran)
        assert restart.FIRST_DELAY <= delay <= restart.LONGEST_DELAY
        if ran >= restart.STEADY or not before:
            assert delay == restart.FIRST_DELAY
        else:
            assert delay == min(2 * before, restart.LONGEST_DELAY)


events = st.one_of(
    st.builds(Started, pid=st.just(1), pid_start=st.just(1), at=st.integers(1, 9)),
    st.builds(FailedToStart, exit_code=st.integers(125, 128), error=st.just("e"), at=st.integers(1, 9), restart=st.booleans()),
    st.builds(Ended, exit_code=st.integers(0, 255), oom_killed=st.booleans(), at=st.integers(1, 9), restart=st.booleans()),
    st.just(Awaited()), st.builds(GivenUp, stopped=st.booleans()), st.just(Removing()),
)  # fmt: skip


@given(st.lists(events, max_size=20))
def test_a_life_in_any_order(life: list[lifecycle.Event]) -> None:
    state = State()
    for event in life:
        before = state
        try:
            state = lifecycle.step(state, event)
        except Conflict:
            assert state is before
            continue
        assert not state.alive or state.pid
        assert state.status != "restarting" or not state.pid
        if isinstance(event, Started):
            assert state.restart_count == (before.restart_count if before.status == "restarting" else 0)
        if isinstance(event, Removing):
            assert not before.running


def test_stopping_what_waits_for_its_restart() -> None:
    state = lifecycle.step(State(status="running", pid=5, started_at=1), Ended(3, False, 2, restart=True))
    assert (state.status, state.running, state.alive, state.exit_code, state.restart_count) == ("restarting", True, False, 3, 1)
    lifecycle.check_start(state, "n", again=True)
    state = lifecycle.step(state, GivenUp())
    assert (state.status, state.exit_code, state.restart_count, state.manually_stopped) == ("exited", 3, 1, True)


@pytest.mark.parametrize(
    ("name", "state", "ended_meanwhile", "starts"),
    [
        ("always", State(status="exited", started_at=1), False, True),
        ("always", State(status="exited", started_at=1, manually_stopped=True), False, True),
        ("always", State(status="created"), False, False),
        ("always", State(status="running", started_at=1), False, False),
        ("unless-stopped", State(status="exited", started_at=1), False, True),
        ("unless-stopped", State(status="exited", started_at=1, manually_stopped=True), True, False),
        ("unless-stopped", State(status="restarting", started_at=1), False, True),
        ("on-failure", State(status="exited", started_at=1, exit_code=255), True, True),
        ("on-failure", State(status="exited", started_at=1, exit_code=255), False, False),
        ("on-failure", State(status="exited", started_at=1, exit_code=0), True, False),
        ("on-failure", State(status="exited", started_at=1, exit_code=137, manually_stopped=True), True, False),
        ("on-failure", State(status="restarting", started_at=1, exit_code=1, restart_count=9), False, True),
        ("no", State(status="exited", started_at=1, exit_code=255), True, False),
        ("", State(status="restarting", started_at=1, exit_code=255), True, False),
    ],
)
def test_who_starts_with_the_daemon(name: str, state: State, ended_meanwhile: bool, starts: bool) -> None:
    assert restart.wanted_at_boot(RestartPolicy(name=name), state, ended_meanwhile=ended_meanwhile) is starts


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (RestartPolicy("sometimes"), "unknown policy 'sometimes'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"),
        (RestartPolicy("always", 3), "maximum retry count can only be used with 'on-failure'"),
        (RestartPolicy("on-failure", -1), "maximum retry count cannot be negative"),
    ],
)
def test_dockers_words_for_bad_policies(policy: RestartPolicy, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        restart.validate(policy)


def record(id: str, hc: HostConfig | None = None, **labels: str) -> ContainerRecord:
    compose = {f"com.docker.compose.{key}": value for key, value in labels.items()}
    return ContainerRecord(
        id=id, name=f"name-{id}", created_at=1, image="i", image_id="i", path="p", args=[], config=Config(labels=compose),
        host_config=hc or HostConfig(), networking=NetworkingConfig(),
    )  # fmt: skip


def test_composes_label() -> None:
    assert restart.depends_on("db:service_healthy:false, cache:service_started:true,init:service_completed_successfully:false,old,") == [
        ("db", "service_healthy"), ("cache", "service_started"), ("init", "service_completed_successfully"), ("old", "service_started"),
    ]  # fmt: skip


def test_the_edges() -> None:
    shared = HostConfig(
        network_mode="container:web", pid_mode="container:name-db1", volumes_from=["db2:ro", "side"], links=["/name-other:x"]
    )  # fmt: skip
    found = restart.graph([
        record("web", project="p", service="web", depends_on="db:service_healthy:false,gone:service_started:false"),
        record("db1", project="p", service="db"), record("db2", project="p", service="db"),
        record("once", project="p", service="db", oneoff="True"), record("other", project="q", service="db"),
        record("side", shared),
    ])  # fmt: skip
    assert found["web"] == [Needs("db1", "service_healthy"), Needs("db2", "service_healthy")]
    assert {need.id for need in found["side"]} == {"web", "db1", "db2", "other"}
    assert found["db1"] == []


@given(st.dictionaries(st.integers(0, 8), st.lists(st.integers(0, 8), max_size=5)))
def test_no_circle_is_left_and_nothing_else_is_lost(numbers: dict[int, list[int]]) -> None:
    edges = {str(node): [Needs(str(other)) for other in others if other != node] for node, others in numbers.items()}
    kept, cut = restart.without_circles(edges)
    for node, others in edges.items():
        assert sorted(need.id for need in others) == sorted([need.id for need in kept[node]] + [two for one, two in cut if one == node])
    waiting = {node: {need.id for need in needs if need.id in kept} for node, needs in kept.items()}
    while waiting:
        ready = [node for node, needs in waiting.items() if not needs & waiting.keys()]
        assert ready, f"a circle among {sorted(waiting)}"
        for node in ready:
            del waiting[node]


M = 1024 * 1024


@pytest.mark.parametrize(
    ("now", "asked", "words"),
    [
        (HostConfig(), HostConfig(memory=100 * M), "Memory limit should be smaller than already set memoryswap limit"),
        (HostConfig(memory=100 * M), HostConfig(memory=300 * M), "Memory limit should be smaller"),
        (HostConfig(nano_cpus=10**9), HostConfig(cpu_quota=50000), "CPU Quota cannot be updated as NanoCPUs has already been set"),
        (HostConfig(cpu_period=50000), HostConfig(nano_cpus=10**9), "Nano CPUs cannot be updated as CPU Period has already been set"),
        (HostConfig(auto_remove=True), HostConfig(restart_policy=RestartPolicy("always")), "AutoRemove is enabled"),
    ],
)
def test_updates_that_contradict_what_is_there(now: HostConfig, asked: HostConfig, words: str) -> None:
    with pytest.raises(Conflict, match=words):
        updated(now, asked)


@pytest.mark.parametrize(
    "asked",
    [
        HostConfig(memory=4 * M),
        HostConfig(blkio_weight=5),
        HostConfig(cpuset_cpus="a"),
        HostConfig(memory_swappiness=3),
        HostConfig(init=True),
    ],
)
def test_updates_that_make_no_sense(asked: HostConfig) -> None:
    with pytest.raises(InvalidParameter):
        updated(HostConfig(), asked)


def test_an_update_changes_what_it_names() -> None:
    now = HostConfig(memory=100 * M, pids_limit=10, cpuset_cpus="0", privileged=True, restart_policy=RestartPolicy("always"))
    after = updated(now, HostConfig(pids_limit=-1))
    assert (after.memory, after.pids_limit, after.restart_policy) == (100 * M, -1, RestartPolicy("always"))
    assert resources(now, after).pids == Pids(limit=-1)
    assert resources(now, after).memory is None
    after = updated(now, HostConfig(memory=50 * M, restart_policy=RestartPolicy("no")))
    assert (after.memory, after.memory_swap, after.restart_policy) == (50 * M, 200 * M, RestartPolicy("no"))
    limits = resources(now, after)
    assert limits.memory is not None
    assert (limits.memory.limit, limits.memory.swap, limits.cpu, limits.pids) == (50 * M, 200 * M, None, None)
