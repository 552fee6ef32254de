"""Locks by key: one container's start must not wait for another's, and nothing may grow with the number of names ever seen."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Hashable

import trio


class KeyedLocks:
    """A fair lock for each key, kept only while somebody holds it or waits for it.

    Taking a free lock is not a checkpoint: on the start path a trip through the scheduler is measurable.
    """

    def __init__(self) -> None:
        self._locks: dict[Hashable, trio.Lock] = {}
        self._users: dict[Hashable, int] = {}

    @contextlib.asynccontextmanager
    async def hold(self, key: Hashable) -> AsyncIterator[None]:
        """Hold the lock of `key`; the same task must not take it twice (RuntimeError)."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = trio.Lock()
        self._users[key] = self._users.get(key, 0) + 1
        try:
            try:
                lock.acquire_nowait()
            except trio.WouldBlock:
                await lock.acquire()
            try:
                yield
            finally:
                lock.release()
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key], self._locks[key]

    def locked(self, key: Hashable) -> bool:
        """Whether somebody holds the lock of `key` now."""
        lock = self._locks.get(key)
        return lock is not None and lock.locked()

    def __len__(self) -> int:
        return len(self._locks)
