"""What waits for the client of a build: who waits for room, who does not, and a client that reads nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from builder.outbox import Outbox

PIECE = bytes(1 << 18)


def run(work: Callable[[], Awaitable[None]]) -> None:
    trio.run(work, clock=trio.testing.MockClock(autojump_threshold=0))


def test_messages_arrive_in_order_and_the_end_waits_for_them() -> None:
    outbox = Outbox()
    got: list[bytes] = []

    async def take(message: bytes) -> None:
        await trio.sleep(1)
        got.append(message)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.run, take)
            for number in range(5):
                outbox.put(b"%d" % number)
            outbox.close()

    run(main)
    assert got == [b"0", b"1", b"2", b"3", b"4"]


def test_who_can_wait_waits_for_a_slow_client() -> None:
    outbox = Outbox()

    async def take(message: bytes) -> None:
        await trio.sleep(1)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.run, take)
            for _ in range(20):
                assert await outbox.room()
                outbox.put(PIECE)
            assert trio.current_time() > 10
            nursery.cancel_scope.cancel()

    run(main)


def test_a_client_that_reads_nothing_is_waited_for_once_and_is_given_up_in_the_end() -> None:
    outbox = Outbox()

    async def main() -> None:
        for _ in range(5):
            outbox.put(PIECE)
        assert not await outbox.room()
        waited = trio.current_time()
        assert not await outbox.room()
        assert trio.current_time() == waited
        with pytest.raises(ConnectionAbortedError, match="does not read"):
            outbox.put(bytes(64 << 20))

    run(main)


def test_a_client_that_reads_again_is_told_again() -> None:
    outbox = Outbox()

    async def take(message: bytes) -> None:
        await trio.lowlevel.checkpoint()

    async def main() -> None:
        for _ in range(5):
            outbox.put(PIECE)
        assert not await outbox.room()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.run, take)
            await trio.sleep(1)
            assert await outbox.room()
            nursery.cancel_scope.cancel()

    run(main)
