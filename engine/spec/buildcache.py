"""The build cache as the Engine API shows and prunes it: records, and which of them a prune may take. Pure.

Follows dockerd's `builder prune`: the keys of its filters are BuildKit's fields of a record, `until` is about the last use. Sizes in bytes,
times in nanoseconds since the epoch.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from engine.errors import InvalidParameter
from engine.spec.filters import Filters
from engine.spec.units import memory_bytes, seconds

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

    @property
    def room(self) -> int:
        """Bytes that are free when it is gone: none of what an image has too."""
        return 0 if self.shared else self.size


class Prune(msgspec.Struct, frozen=True, kw_only=True):
    """What a prune may take. `all`: also what builds need themselves, and what images share. `unused_for` in nanoseconds: only what was not
    used for so long. `fields`: values that a record's fields must have; `types`: its type is one of these, if there are any. Limits in
    bytes, 0 for none: `reserved` is kept in any case, the cache may have `most_used` and must leave `least_free` on its file system; with
    neither of the two everything above `reserved` goes."""

    all: bool = False
    unused_for: int = 0
    fields: tuple[tuple[str, str], ...] = ()
    types: tuple[str, ...] = ()
    reserved: int = 0
    most_used: int = 0
    least_free: int = 0

    def takes(self, record: CacheRecord, now: int) -> bool:
        """Whether a record may go, apart from the limits; what is in use stays."""
        if record.in_use or (not self.all and (record.shared or record.type in (INTERNAL, FRONTEND))):
            return False
        if self.unused_for and now - (record.last_used_at or record.created_at) < self.unused_for:
            return False
        if self.types and record.type not in self.types:
            return False
        return all(_matches(record, field, value) for field, value in self.fields)

    def choose(self, records: Sequence[CacheRecord], free: int, now: int) -> list[CacheRecord]:
        """The records that go, least recently used first, so that the limits hold. `free`: bytes free on the file system.

        A record goes only after all that have it as a parent: who is kept keeps what it lies on. What an image has too takes no room of
        the cache, and gives none free.
        """
        used = sum(record.room for record in records)
        children = Counter(parent for record in records for parent in record.parents)
        candidates = {record.id: record for record in records if self.takes(record, now)}
        ready = [(_age(record), record.id) for record in candidates.values() if not children[record.id]]
        heapq.heapify(ready)
        chosen: list[CacheRecord] = []
        while ready and self._too_much(used, free):
            record = candidates[heapq.heappop(ready)[1]]
            chosen.append(record)
            used -= record.room
            free += record.room
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


# -- what is removed without being asked for: `builder.gc` of daemon.json

_GB = 1_000_000_000
_HOUR = 3600 * _GB  # nanoseconds
_SIZES = ("defaultKeepStorage", "defaultReservedSpace", "defaultMaxUsedSpace", "defaultMinFreeSpace")
_RULE = ("all", "filter", "keepDuration", "keepStorage", "reservedSpace", "maxUsedSpace", "minFreeSpace")


def rules(gc: Mapping[str, Any], disk: int) -> tuple[Prune, ...]:
    """The rules of `builder.gc`, to be applied in order; `disk`: bytes of the file system. None when it is turned off.

    Raises InvalidParameter.
    """
    for key in gc:
        if key not in ("enabled", "policy", *_SIZES):
            raise InvalidParameter(f"the following directives don't match any configuration option: builder.gc.{key}")
    enabled, policy = gc.get("enabled", True), gc.get("policy") or ()
    if not isinstance(enabled, bool) or not isinstance(policy, list | tuple):
        raise InvalidParameter("builder.gc: enabled is true or false, policy is a list")
    reserved = _size(gc, "defaultReservedSpace") or _size(gc, "defaultKeepStorage")
    most, least = _size(gc, "defaultMaxUsedSpace"), _size(gc, "defaultMinFreeSpace")
    found = tuple(_rule(one) for one in policy) or default_rules(disk, reserved, most, least)
    return found if enabled else ()


def default_rules(disk: int, reserved: int = 0, most: int = 0, least: int = 0) -> tuple[Prune, ...]:
    """BuildKit's rules. Without any limit given, the cache may have 80 % of the file system, at most 100 GB, and leaves 20 % of it free; it
    may keep 10 % in any case, at most 10 GB.

    First what is easily had again and was not used for two days, beyond a seventh of what is reserved or 512 MB; then what was not used
    for 60 days; then the least recently used; at last also what builds need themselves and what images share.
    """
    if not reserved and not most and not least:
        reserved, most, least = min(disk // 10, 10 * _GB), min(disk * 4 // 5, 100 * _GB), disk // 5
    last = Prune(reserved=reserved, most_used=most, least_free=least)
    temporary = max(reserved * 138 // 1000, 512_000_000)
    return (
        Prune(types=(LOCAL, CACHE_MOUNT, GIT), unused_for=48 * _HOUR, reserved=temporary),
        msgspec.structs.replace(last, unused_for=60 * 24 * _HOUR),
        last,
        msgspec.structs.replace(last, all=True),
    )


def _rule(members: Any) -> Prune:
    if not isinstance(members, dict):
        raise InvalidParameter("builder.gc.policy: a rule is an object")
    for key in members:
        if key not in _RULE:
            raise InvalidParameter(f"the following directives don't match any configuration option: builder.gc.policy.{key}")
    everything, texts = members.get("all", False), members.get("filter") or ()
    if not isinstance(everything, bool) or not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise InvalidParameter("builder.gc.policy: all is true or false, filter is a list of texts")
    unused = _duration(members.get("keepDuration"))
    fields: list[tuple[str, str]] = []
    types: list[str] = []
    for text in texts:
        key, _, value = text.partition("=")
        if key in ("unused-for", "until"):
            unused = _duration(value)
        elif key == "type":
            types += [one.removeprefix("type").lstrip("=") for one in value.lstrip("=").split(",")]  # "type=a,type=b" is any of them
        elif key in KEYS and not key.startswith("label") and "," not in value:
            fields.append((key, value.lstrip("=")))
        else:
            raise InvalidParameter(f"builder.gc.policy: invalid filter {text!r}")
    return Prune(
        all=everything, unused_for=unused, fields=tuple(fields), types=tuple(types),
        reserved=_size(members, "reservedSpace") or _size(members, "keepStorage"), most_used=_size(members, "maxUsedSpace"),
        least_free=_size(members, "minFreeSpace"),
    )  # fmt: skip


def _size(members: Mapping[str, Any], key: str) -> int:
    value = members.get(key, 0)
    if isinstance(value, str):
        value = memory_bytes(value) if value else 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidParameter(f"builder.gc: {key} is a size, got {value!r}")
    return value


def _duration(value: Any) -> int:
    """`"48h"`, seconds, or a list of one of them; in nanoseconds."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None:
        return 0
    found = seconds(value) if isinstance(value, str) else value
    if not isinstance(found, int | float) or isinstance(found, bool) or found < 0:
        raise InvalidParameter(f"builder.gc: {value!r} is no duration", hint="for example 48h")
    return int(found * _GB)
