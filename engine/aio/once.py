"""Work that many wait for and that is done once: two clients pulling one image share one pull.

The work runs in a nursery that outlives the waiters, so a waiter that is cancelled ends only its own wait.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class Flight(Generic[T]):
    """One piece of work under way. `waiters` counts those who wait, the scope ends it."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.scope = trio.CancelScope()
        self.waiters = 0
        self.results: list[T] = []
        self.failure: Exception | None = None


class Flights(Generic[T]):
    """Work by key. `cancel_unwanted`: when the last waiter has gone, the work is cancelled too; otherwise it goes on."""

    def __init__(self, nursery: trio.Nursery, *, cancel_unwanted: bool = False) -> None:
        self._nursery = nursery
        self._cancel_unwanted = cancel_unwanted
        self._flights: dict[Hashable, Flight[T]] = {}

    async def join(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """The result of the work under `key`, started now unless it is under way; raises what the work raised.

        A result is not kept: who comes after the end starts anew.
        """
        while (flight := self._flights.get(key)) is not None and flight.scope.cancel_called:
            await flight.done.wait()
        if flight is None:
            flight = self._flights[key] = Flight()
            self._nursery.start_soon(self._fly, key, flight, work)
        flight.waiters += 1
        try:
            await flight.done.wait()
        finally:
            flight.waiters -= 1
            if self._cancel_unwanted and not flight.waiters:
                flight.scope.cancel()
        if flight.failure is not None:
            raise flight.failure
        if not flight.results:
            raise RuntimeError(f"the shared work for {key!r} was cancelled")
        return flight.results[0]

    async def _fly(self, key: Hashable, flight: Flight[T], work: Callable[[], Awaitable[T]]) -> None:
        try:
            with flight.scope:
                try:
                    flight.results.append(await work())
                except Exception as error:  # handed to every waiter, see join
                    flight.failure = error
        finally:
            del self._flights[key]
            flight.done.set()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._flights
