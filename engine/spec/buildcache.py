"""The build cache as the Engine API shows and prunes it: records, and which of them a prune may take. Pure.

Follows dockerd's `builder prune`: the keys of its filters are BuildKit's fields of a record, `until` is about the last use. Sizes in bytes,
times in nanoseconds since the epoch.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence

import msgspec

from engine.errors import InvalidParameter
from engine.spec.filters import Filters

REGULAR = "regular"
"""The result of a step."""

INTERNAL = "internal"
"""What a build needed itself: a frontend's files."""

FRONTEND = "frontend"
"""A frontend."""

LOCAL = "source.local"
"""A context that a client sent."""

GIT = "source.git.checkout"
"""A checkout."""

CACHE_MOUNT = "exec.cachemount"
"""The folder of a `RUN --mount=type=cache`."""

KEYS = ("until", "id", "parent", "type", "description", "inuse", "shared", "private", "label", "label!")


class CacheRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is kept. `type`: see the constants; `shared`: an image has the same layer; `last_used_at` 0: never."""

    id: str
    type: str = REGULAR
    description: str = ""
    parents: tuple[str, ...] = ()
    in_use: bool = False
    shared: bool = False
    size: int = 0
    created_at: int = 0
    last_used_at: int = 0
    usage_count: int = 0


class Prune(msgspec.Struct, frozen=True, kw_only=True):
    """What a prune may take. `all`: also what builds need themselves, and what images share. `unused_for` in nanoseconds: only what was not
    used for so long. `fields`: values that a record's fields must have. Limits in bytes, 0 for none: `reserved` is kept in any case, the
    cache may have `most_used` and must leave `least_free` on its file system; with neither of the two everything above `reserved` goes."""

    all: bool = False
    unused_for: int = 0
    fields: tuple[tuple[str, str], ...] = ()
    reserved: int = 0
    most_used: int = 0
    least_free: int = 0

    def takes(self, record: CacheRecord, now: int) -> bool:
        """Whether a record may go, apart from the limits; what is in use stays."""
        if record.in_use or (not self.all and (record.shared or record.type in (INTERNAL, FRONTEND))):
            return False
        if self.unused_for and now - (record.last_used_at or record.created_at) < self.unused_for:
            return False
        return all(_matches(record, field, value) for field, value in self.fields)

    def choose(self, records: Sequence[CacheRecord], free: int, now: int) -> list[CacheRecord]:
        """The records that go, least recently used first, so that the limits hold. `free`: bytes free on the file system.

        A record goes only after all that have it as a parent: who is kept keeps what it lies on.
        """
        used = sum(record.size for record in records)
        children = Counter(parent for record in records for parent in record.parents)
        candidates = {record.id: record for record in records if self.takes(record, now)}
        ready = [(_age(record), record.id) for record in candidates.values() if not children[record.id]]
        heapq.heapify(ready)
        chosen: list[CacheRecord] = []
        while ready and self._too_much(used, free):
            record = candidates[heapq.heappop(ready)[1]]
            chosen.append(record)
            used -= record.size
            free += record.size
            for parent in record.parents:
                children[parent] -= 1
                if not children[parent] and parent in candidates:
                    heapq.heappush(ready, (_age(candidates[parent]), parent))
        return chosen

    def _too_much(self, used: int, free: int) -> bool:
        if self.reserved and used <= self.reserved:
            return False
        if not self.most_used and not self.least_free:
            return True
        return bool(self.most_used and used > self.most_used) or free < self.least_free


def _age(record: CacheRecord) -> tuple[int, int]:
    return record.last_used_at or record.created_at, record.created_at


def _matches(record: CacheRecord, field: str, value: str) -> bool:
    match field:
        case "id":
            return record.id.startswith(value)
        case "parent":
            return value in record.parents
        case "type":
            return record.type == value
        case "description":
            return record.description == value
        case "inuse":
            return record.in_use
        case "shared":
            return record.shared
        case "label" | "label!":  # `system prune --filter label=…` means objects with labels, and records have none
            return field == "label!"
        case _:
            return not record.shared


def fields_of(filters: Filters) -> tuple[tuple[str, str], ...]:
    """The filters without `until`, as `Prune.fields`. Raises InvalidParameter for a key that there is not, or several values of one."""
    known = {}
    for key, values in filters.items():
        if key not in KEYS:
            raise InvalidParameter(f"failed to prune build cache: invalid filter '{key}'")
        if len(values) > 1 and key not in ("label", "label!"):
            raise InvalidParameter("failed to prune build cache: filters expect only one value")
        if values and key != "until":
            known[key] = values[0]
    return tuple(known.items())
