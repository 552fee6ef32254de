"""Events: memory, live delivery, filters, and listeners that do not keep up."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Awaitable, Callable

import msgspec
import pytest
import trio

from engine.errors import InvalidParameter, KnarrError
from engine.service import events as module
from engine.service.events import Events, Subscription, matches
from engine.spec.event import Event
from engine.spec.filters import Filters


def make(action: str = "start", id: str = "abc123", type: str = "container", at: int = 0, **attributes: str) -> Event:
    return Event.make(type, action, id, attributes, time=at)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(60):
            await test()

    trio.run(bounded)


async def take(subscription: Subscription, count: int) -> list[str]:
    return [(await subscription.__anext__()).action for _ in range(count)]


def test_the_message_is_dockers() -> None:
    event = make(at=1_700_000_000_123_456_789, image="busybox", name="web")
    assert json.loads(msgspec.json.encode(event.message())) == {
        "status": "start", "id": "abc123", "from": "busybox", "Type": "container", "Action": "start", "scope": "local",
        "time": 1_700_000_000,
        "timeNano": 1_700_000_000_123_456_789, "Actor": {"ID": "abc123", "Attributes": {"image": "busybox", "name": "web"}},
    }  # fmt: skip
    assert "status" not in json.loads(msgspec.json.encode(event.message(legacy=False)))
    assert "status" not in json.loads(msgspec.json.encode(make(type="network").message()))


def test_live_from_the_moment_of_subscribing() -> None:
    async def test() -> None:
        events = Events()
        events.publish(make("before"))
        subscription = events.subscribe()
        events.publish(make("one"))
        events.publish(make("two"))
        assert await take(subscription, 2) == ["one", "two"]
        assert events.listeners == 1
        del subscription
        gc.collect()
        assert events.listeners == 0
        events.publish(make("nobody"))

    run(test)


def test_past_and_present() -> None:
    async def test() -> None:
        events = Events()
        now = time.time_ns()
        for age in (30, 20, 10):
            events.publish(make(f"{age}s", at=now - age * 10**9))
        past = events.subscribe(since=now - 25 * 10**9, until=now - 5 * 10**9)
        assert [event.action async for event in past] == ["20s", "10s"]
        assert [event.action async for event in events.subscribe(until=now - 15 * 10**9)] == ["30s", "20s"]
        both = events.subscribe(since=now - 15 * 10**9)
        events.publish(make("live"))
        assert await take(both, 2) == ["10s", "live"]
        ending = events.subscribe(until=time.time_ns() + 50_000_000)
        assert len([event async for event in ending]) == 4

    run(test)


def test_memory_is_bounded() -> None:
    async def test() -> None:
        events = Events()
        for number in range(module.MEMORY + 10):
            events.publish(make(str(number), at=number + 1))
        found = [event.action async for event in events.subscribe(since=1, until=10**6)]
        assert found == [str(number) for number in range(10, module.MEMORY + 10)]

    run(test)


def test_a_slow_listener_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(module, "BACKLOG", 3)
        events = Events()
        slow, quick = events.subscribe(), events.subscribe()
        for number in range(5):
            events.publish(make(str(number)))
            assert await take(quick, 1) == [str(number)]
        assert await take(slow, 3) == ["0", "1", "2"]
        with pytest.raises(KnarrError, match="faster than they were read"):
            await slow.__anext__()

    run(test)


def test_filters() -> None:
    event = make("exec_start: sh -c true", id="0123456789", image="registry:5000/team/app:1.2", name="web", tier="front")
    cases: list[tuple[dict[str, list[str]], bool]] = [
        ({"type": ["container"]}, True), ({"type": ["image"]}, False), ({"event": ["exec_start"]}, True), ({"event": ["exec"]}, False),
        ({"event": ["start"]}, False), ({"container": ["web"]}, True), ({"container": ["0123"]}, True), ({"container": ["db"]}, False),
        ({"image": ["registry:5000/team/app"]}, True), ({"image": ["registry:5000/team/app:1.2"]}, True), ({"image": ["registry"]}, False),
        ({"label": ["tier=front"]}, True), ({"label": ["tier", "other"]}, False), ({"scope": ["local"]}, True),
        ({"scope": ["swarm"]}, False),
    ]  # fmt: skip
    for filters, wanted in cases:
        assert matches(event, Filters.of(filters)) is wanted, filters
    with pytest.raises(InvalidParameter, match="invalid filter 'colour'"):
        Events().subscribe(filters={"colour": ["red"]})
