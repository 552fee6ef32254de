"""What builds left for the next ones: which snapshot is the result of what, found by keys. Owns the tables `build_results`, `build_keys`.

A result is named by its snapshot's number, which stays when the snapshot gets the name of a chain. Does not know what a key says, and
does not decide what goes.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable

import msgspec

from engine.store.db import Database
from engine.store.snapshots import Snapshot, Snapshots


class CachedResult(msgspec.Struct):
    """One result. `id` is what people are shown, `created` and `used` are Unix nanoseconds, `uses` how often it was found."""

    row: Snapshot
    id: str
    description: str
    created: int
    used: int
    uses: int = 0


class BuildCache:
    """The results of one data root, in memory and in the database. For the event-loop thread."""

    def __init__(self, db: Database, snapshots: Snapshots) -> None:
        self._db = db
        self._snapshots = snapshots
        rows = {row.number: row for row in snapshots.rows() if row.cached}
        self._results: dict[int, CachedResult] = {}
        for number, id, description, created, used, uses in db.query(
            "SELECT snapshot, id, description, created, used, uses FROM build_results"
        ):
            row = rows.get(int(number))  # type: ignore[call-overload]
            if row is not None:
                self._results[row.number] = CachedResult(row, str(id), str(description), int(created), int(used), int(uses))  # type: ignore[call-overload]
        self._keys: dict[str, int] = {}
        self._by_snapshot: dict[int, set[str]] = {}
        for key, number in db.query("SELECT key, snapshot FROM build_keys"):
            if int(number) in self._results:  # type: ignore[call-overload]
                self._remember(str(key), int(number))  # type: ignore[call-overload]
        self._drop_rest(rows)

    def _drop_rest(self, rows: dict[int, Snapshot]) -> None:
        """Rows of one table that those of the other no longer go with: a power cut took the snapshot."""
        loose = [row for number, row in rows.items() if number not in self._results]
        with self._db.transaction() as cursor:
            for row in loose:
                self._snapshots.set_cached(row, False, cursor)
            cursor.execute("DELETE FROM build_results WHERE snapshot NOT IN (SELECT number FROM snapshots WHERE cached)")
            cursor.execute("DELETE FROM build_keys WHERE snapshot NOT IN (SELECT snapshot FROM build_results)")

    def _remember(self, key: str, number: int) -> None:
        former = self._keys.get(key)
        if former is not None:
            self._by_snapshot[former].discard(key)
        self._keys[key] = number
        self._by_snapshot.setdefault(number, set()).add(key)

    def find(self, key: str) -> CachedResult | None:
        """The result under a key, if its layers are all there undamaged."""
        found = self._results.get(self._keys.get(key, -1))
        if found is None or not self._snapshots.is_current(found.row) or not self._snapshots.whole(found.row.name):
            return None
        return found

    def of(self, row: Snapshot) -> CachedResult | None:
        """What is known of a snapshot."""
        return self._results.get(row.number)

    def put(self, keys: Iterable[str], row: Snapshot, description: str, *, id: str = "", created: int = 0) -> CachedResult:
        """Keep a committed snapshot as the result under these keys. `id` and `created` (Unix nanoseconds) are those that it had elsewhere;
        an identifier that another result has is not taken. Not durable yet; raises sqlite3.Error."""
        at = time.time_ns()
        found = self._results.get(row.number)
        keys = list(keys)
        try:
            with self._db.transaction() as cursor:
                if found is None:
                    if not id or any(one.id == id for one in self._results.values()):
                        id = _new_id()
                    found = CachedResult(row, id, description, created or at, at)
                    values = (row.number, found.id, description, found.created, at, 0)
                    cursor.execute("INSERT INTO build_results VALUES (?, ?, ?, ?, ?, ?)", values)
                    self._snapshots.set_cached(row, True, cursor)
                cursor.executemany("INSERT OR REPLACE INTO build_keys VALUES (?, ?)", [(key, row.number) for key in keys])
        except sqlite3.Error:
            row.cached = row.number in self._results  # else the next collection has it
            raise
        self._results[row.number] = found
        for key in keys:
            self._remember(key, row.number)
        return found

    def alias(self, keys: Iterable[str], found: CachedResult) -> None:
        """Let a result be found under more keys."""
        fresh = [key for key in keys if self._keys.get(key) != found.row.number]
        if not fresh:
            return
        with self._db.transaction() as cursor:
            cursor.executemany("INSERT OR REPLACE INTO build_keys VALUES (?, ?)", [(key, found.row.number) for key in fresh])
        for key in fresh:
            self._remember(key, found.row.number)

    def move(self, found: CachedResult, row: Snapshot) -> None:
        """Let another snapshot with the same content be a result. If that is one already, this one takes its place, and is found under its
        keys too. Raises sqlite3.Error."""
        old = found.row
        with self._db.transaction() as cursor:
            cursor.execute("DELETE FROM build_results WHERE snapshot = ?", (row.number,))
            cursor.execute("UPDATE build_results SET snapshot = ? WHERE snapshot = ?", (row.number, old.number))
            cursor.execute("UPDATE build_keys SET snapshot = ? WHERE snapshot = ?", (row.number, old.number))
            self._snapshots.set_cached(old, False, cursor)
            self._snapshots.set_cached(row, True, cursor)
        keys = self._by_snapshot.pop(old.number, set())
        self._by_snapshot.setdefault(row.number, set()).update(keys)
        self._keys.update(dict.fromkeys(keys, row.number))
        del self._results[old.number]
        found.row = row
        self._results[row.number] = found

    def touch(self, found: CachedResult) -> None:
        """It was used. In memory alone: `write_use` stores it."""
        found.used, found.uses = time.time_ns(), found.uses + 1

    def write_use(self, results: Iterable[CachedResult]) -> None:
        """Store when results were used last, in one transaction."""
        with self._db.transaction() as cursor:
            cursor.executemany(
                "UPDATE build_results SET used = ?, uses = ? WHERE snapshot = ?", [(one.used, one.uses, one.row.number) for one in results]
            )

    def results(self) -> list[CachedResult]:
        """All, oldest first."""
        return sorted(self._results.values(), key=lambda one: one.created)

    def keys(self, found: CachedResult) -> set[str]:
        """The keys of a result."""
        return set(self._by_snapshot.get(found.row.number, ()))

    def forget(self, results: Iterable[CachedResult]) -> None:
        """Give results up: the next collection removes their snapshots, unless an image or something above needs them."""
        results = list(results)
        with self._db.transaction() as cursor:
            self._forget(results, cursor)
        for one in results:
            self._results.pop(one.row.number, None)
            for key in self._by_snapshot.pop(one.row.number, ()):
                self._keys.pop(key, None)

    def _forget(self, results: list[CachedResult], cursor: sqlite3.Cursor) -> None:
        for one in results:
            cursor.execute("DELETE FROM build_results WHERE snapshot = ?", (one.row.number,))
            cursor.execute("DELETE FROM build_keys WHERE snapshot = ?", (one.row.number,))
            self._snapshots.set_cached(one.row, False, cursor)


def _new_id() -> str:
    """25 characters of base 36, as BuildKit's."""
    number, text = int.from_bytes(os.urandom(17), "big"), ""
    for _ in range(25):
        number, digit = divmod(number, 36)
        text += "0123456789abcdefghijklmnopqrstuvwxyz"[digit]
    return text
