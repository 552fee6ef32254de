"""Records of networks as opaque bytes. Owns the table, not the meaning of the bytes."""

from __future__ import annotations

import sqlite3

from engine.store.db import Database


class NetworkStore:
    """The table of networks. All methods are for the event-loop thread and take some 50 µs; raise sqlite3.Error."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def put(self, id: str, record: bytes, cursor: sqlite3.Cursor | None = None) -> None:
        """Insert or replace; with `cursor` inside that open transaction, else in one of its own."""
        if cursor is not None:
            cursor.execute("INSERT INTO networks VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET record = excluded.record", (id, record))
            return
        with self._db.transaction() as own:
            self.put(id, record, own)

    def delete(self, id: str, cursor: sqlite3.Cursor | None = None) -> None:
        """Remove a record; nothing happens when there is none."""
        if cursor is not None:
            cursor.execute("DELETE FROM networks WHERE id = ?", (id,))
            return
        with self._db.transaction() as own:
            self.delete(id, own)

    def load(self) -> list[tuple[str, bytes]]:
        """Every record, for the start of the daemon."""
        return [(str(id), bytes(record)) for id, record in self._db.query("SELECT id, record FROM networks")]  # type: ignore[call-overload]
