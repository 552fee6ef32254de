"""Leases: what work under way needs, so that no collection takes it, also after a restart. Owns the table `leases` and its copy in memory.

A resource is the digest of a blob or the chain identifier of a snapshot. A lease has a holder (the name of the pull, say) and an end: a
download that was cut off keeps its finished layers until then, and finds them when it is begun again. Decides nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from engine.store.db import Database

# As long as an unfinished download is kept for being resumed.
DEFAULT_SECONDS = 24 * 3600
_RENEWED_SECONDS = 600


class Leases:
    """The leases of one data root. For the event-loop thread."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._ends: dict[str, dict[str, int]] = {}
        for holder, resource, expires in db.query("SELECT holder, resource, expires FROM leases"):
            self._ends.setdefault(str(holder), {})[str(resource)] = int(expires)  # type: ignore[call-overload]

    def add(self, holder: str, resources: Iterable[str], seconds: float = DEFAULT_SECONDS) -> None:
        """Keep `resources` for `holder` for so many seconds from now; what it holds already is kept that long too. Raises sqlite3.Error."""
        expires = int(time.time() + seconds)
        held = self._ends.setdefault(holder, {})
        # What was renewed a moment ago is not written again with every layer of a push.
        old = (resource for resource, end in held.items() if end < expires - _RENEWED_SECONDS)
        new = {resource: expires for resource in (*old, *resources)}
        with self._db.transaction() as cursor:
            cursor.executemany("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", [(holder, resource, expires) for resource in new])
        held.update(new)

    def release(self, holder: str) -> None:
        """End a holder's lease. Raises sqlite3.Error."""
        if holder in self._ends:
            with self._db.transaction() as cursor:
                cursor.execute("DELETE FROM leases WHERE holder = ?", (holder,))
            del self._ends[holder]

    def holders(self) -> dict[str, int]:
        """Each holder and when its lease ends, Unix seconds."""
        return {holder: max(held.values(), default=0) for holder, held in self._ends.items()}

    def ended(self) -> list[str]:
        """Holders whose leases are over and were not dropped yet."""
        now = time.time()
        return [holder for holder, end in self.holders().items() if end <= now]

    def held(self) -> set[str]:
        """Every resource under a lease that has not ended; leases that have are dropped. Raises sqlite3.Error."""
        for holder in self.ended():
            self.release(holder)
        return {resource for held in self._ends.values() for resource in held}
