"""The trio helpers: threads behind limiters, shared work, locks by key, shields."""

from __future__ import annotations

import threading

import pytest
import trio
import trio.testing

from engine.aio.blocking import blocking, limiter
from engine.aio.locks import KeyedLocks
from engine.aio.once import Flights
from engine.aio.scopes import first, shielded


def test_blocking_returns_and_raises() -> None:
    async def main() -> None:
        assert await blocking("disk", divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await blocking("disk", divmod, 1, 0)

    trio.run(main)


def test_one_kind_does_not_hold_up_another() -> None:
    running = 0
    most = 0
    lock = threading.Lock()
    gate = threading.Event()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        gate.wait(60)
        with lock:
            running -= 1

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(blocking, "database", work)
            await trio.testing.wait_all_tasks_blocked()
            assert limiter("database").statistics().tasks_waiting == 3
            assert await blocking("disk", lambda: 5) == 5
            gate.set()
        assert most == 1

    trio.run(main)


def test_shared_work_is_done_once_and_survives_a_waiter() -> None:
    calls = 0
    gate = trio.Event()

    async def work() -> int:
        nonlocal calls
        calls += 1
        await gate.wait()
        return 7

    async def main() -> None:
        results: list[int] = []
        async with trio.open_nursery() as owner:
            flights: Flights[int] = Flights(owner)

            async def wait() -> None:
                results.append(await flights.join("k", work))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                nursery.start_soon(wait)
                with trio.move_on_after(0.01) as leaver:
                    await flights.join("k", work)
                assert leaver.cancelled_caught
                gate.set()
            assert "k" not in flights
            assert (results, calls) == ([7, 7], 1)

    trio.run(main)


def test_shared_failure_reaches_every_waiter() -> None:
    async def work() -> int:
        await trio.lowlevel.checkpoint()
        raise KeyError("broken")

    async def main() -> None:
        failures = 0
        async with trio.open_nursery() as owner:
            flights: Flights[int] = Flights(owner)

            async def wait() -> None:
                nonlocal failures
                with pytest.raises(KeyError):
                    await flights.join("k", work)
                failures += 1

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                nursery.start_soon(wait)
        assert failures == 2

    trio.run(main)


def test_unwanted_work_is_cancelled() -> None:
    ended: list[str] = []

    async def work() -> int:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("cancelled")
        return 0

    async def main() -> None:
        async with trio.open_nursery() as owner:
            flights: Flights[int] = Flights(owner, cancel_unwanted=True)
            with trio.move_on_after(0.01):
                await flights.join("k", work)
        assert ended == ["cancelled"]

    trio.run(main)


def test_locks_by_key() -> None:
    order: list[str] = []

    async def main() -> None:
        locks = KeyedLocks()
        gate = trio.Event()

        async def use(key: str, name: str) -> None:
            async with locks.hold(key):
                order.append(f"{name} in")
                await gate.wait()
                order.append(f"{name} out")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(use, "a", "one")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(use, "a", "two")
            nursery.start_soon(use, "b", "other")
            await trio.testing.wait_all_tasks_blocked()
            assert locks.locked("a")
            assert len(locks) == 2
            gate.set()
        assert order.index("other in") < order.index("one out") < order.index("two in")
        assert len(locks) == 0

    trio.run(main)


def test_a_shield_has_an_end() -> None:
    async def main() -> None:
        done = False
        with trio.move_on_after(0.01) as outer:
            with shielded(60) as scope:
                await trio.sleep(0.03)
                done = True
            assert not scope.cancelled_caught
            await trio.sleep(1)
        assert done
        assert outer.cancelled_caught
        with shielded(0.01) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught

    trio.run(main)


def test_first() -> None:
    async def slow() -> str:
        await trio.sleep_forever()
        return "slow"

    async def quick() -> str:
        await trio.sleep(0.001)
        return "quick"

    async def broken() -> str:
        raise KeyError("x")

    async def main() -> None:
        assert await first(slow, quick) == "quick"
        with pytest.raises(KeyError):
            await first(slow, broken)

    trio.run(main)
