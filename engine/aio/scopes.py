"""Cancel scopes with a name for what they are for. Holds no state."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import trio

T = TypeVar("T")


@contextlib.contextmanager
def shielded(seconds: float) -> Iterator[trio.CancelScope]:
    """A part that must not be torn in two by a client that goes away: shielded from cancellation, for `seconds` at most.

    When the time is over the block is cancelled and left quietly; ask `scope.cancelled_caught`.
    """
    with trio.move_on_after(seconds, shield=True) as scope:
        yield scope


async def first(*functions: Callable[[], Awaitable[T]]) -> T:
    """The result of whichever function ends first; the others are cancelled. An exception of any of them is raised as it is."""
    results: list[T] = []
    errors: list[BaseException] = []

    async def run(function: Callable[[], Awaitable[T]]) -> None:
        try:
            results.append(await function())
        except trio.Cancelled:
            raise
        except BaseException as error:  # carried over to the caller, not swallowed: a nursery would wrap it in a group
            errors.append(error)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for function in functions:
            nursery.start_soon(run, function)
    if results:
        return results[0]
    raise errors[0]


@contextlib.contextmanager
def ungrouped() -> Iterator[None]:
    """Around a nursery: what ends it is raised as it is and not in a group; of several errors the first."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise _one(group) from None


def _one(group: BaseExceptionGroup[BaseException]) -> BaseException:
    leaves: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending += error.exceptions
        else:
            leaves.append(error)
    return next((error for error in leaves if not isinstance(error, trio.Cancelled)), leaves[0])
