"""When the database is durable and when slow leftovers of a removal go: the daemon's two background chores.

`Durability.reached` is awaited before something is acknowledged; all who wait at one time share one fdatasync. `Chores` runs removals
after their reply was sent.
"""

from __future__ import annotations

import collections
import logging
import math
import sqlite3
import time
from collections.abc import Callable

import trio

from engine.aio.blocking import blocking
from engine.errors import KnarrError
from engine.store.db import Database

log = logging.getLogger("knarr.durability")

_CHECKPOINT_BYTES = 4 * 1024 * 1024  # SQLite's own default is 1000 pages of 4 KiB
_LAZY_SECONDS = 1.0  # a state change that nobody waits for is on the disk this much later
_RETRY_SECONDS = 5.0  # after the disk said no
_DELAY = 0.02  # seconds from a reply to its chores, so that they do not compete with the next request
_MANY = 64  # chores that wait; from here on they are done at once


class Durability:
    """Group commit over one database."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._running: trio.Event | None = None
        self._dirty = trio.Event()
        self._unsaved: dict[str, Callable[[sqlite3.Cursor], None]] = {}

    def soon(self, key: str, write: Callable[[sqlite3.Cursor], None]) -> None:
        """Write and make durable within a second or so; later calls for one key replace earlier ones. For changes whose truth is also
        elsewhere (the monitor, its exit record), so that a start or an end costs no transaction of its own."""
        self._unsaved[key] = write
        self._dirty.set()

    def saved(self, key: str) -> Callable[[sqlite3.Cursor], None] | None:
        """Take back what `soon` was given for a key: it is written elsewhere, or not worth writing any more."""
        return self._unsaved.pop(key, None)

    def flush(self) -> None:
        """Write what waits, in one transaction. Event-loop thread only. Raises sqlite3.Error."""
        if not self._unsaved:
            return
        with self._db.transaction() as cursor:
            for write in self._unsaved.values():
                write(cursor)
        self._unsaved.clear()

    async def reached(self) -> None:
        """Return when everything committed so far is on the disk. Raises OSError when the disk says no."""
        wanted = self._db.commit_sequence
        while self._db.synced_sequence < wanted:
            if self._running is not None:
                await self._running.wait()
                continue
            self._running = trio.Event()
            try:
                await blocking("database", self._db.sync)
            finally:
                self._running.set()
                self._running = None

    def lazily(self) -> None:
        """Somebody committed and does not wait: make it durable soon."""
        self._dirty.set()

    async def run(self) -> None:
        """Background task: lazy syncs, and checkpoints when the log has grown. Sleeps while nothing is written."""
        while True:
            await self._dirty.wait()
            await trio.sleep(_LAZY_SECONDS)
            self._dirty = trio.Event()
            try:
                self.flush()
                await self.reached()
                if self._db.wal_size() > _CHECKPOINT_BYTES:
                    await blocking("database", self._db.checkpoint)
            except (OSError, sqlite3.Error) as error:
                log.error("writing the database to the disk: %s", error)
                await trio.sleep(_RETRY_SECONDS)
                self._dirty.set()  # what could not be written still waits


class Chores:
    """Small synchronous jobs that can wait; done in order, in a worker thread. A failed one is logged; the next start sweeps."""

    def __init__(self) -> None:
        self._jobs: collections.deque[tuple[str, Callable[[], object]]] = collections.deque()
        self._wake = trio.Event()
        self.after: Callable[[], object] | None = None  # called on the loop's thread when a batch is done

    def later(self, what: str, job: Callable[[], object]) -> None:
        """Queue `job`; `what` names it in the log."""
        self._jobs.append((what, job))
        self._wake.set()

    async def run(self) -> None:
        """Background task."""
        while True:
            await self._wake.wait()
            if len(self._jobs) < _MANY:
                await trio.sleep(_DELAY)
            self._wake = trio.Event()
            while self._jobs:
                await blocking("kernel", self.work)
            try:
                if self.after is not None:
                    self.after()
            except OSError as error:
                log.warning("after removals: %s", error)

    def work(self, seconds: float = math.inf) -> None:
        """Do what waits now, and begin nothing more after so many seconds. Any thread, one at a time."""
        end = time.monotonic() + seconds
        for _ in range(len(self._jobs)):
            if time.monotonic() > end:
                return
            what, job = self._jobs.popleft()
            try:
                job()
            except (OSError, KnarrError) as error:
                log.warning("%s: %s", what, error)
            except Exception:
                log.exception("%s", what)  # a defect in one removal must not end the daemon
