"""Results that are there twice: a step was executed, and turned out to be a layer that another snapshot is. The result becomes that one's.

Where both are results, the one that was used last stays, because what was built since then knows it by its identifier; it is found for the
other one as well. Only while no build runs: builds hold snapshots, and layers below those, without saying so. Every transaction leaves a
store that is whole, so that it does not matter which one is the last before a crash; files go with the next collection.
"""

from __future__ import annotations

from collections.abc import Collection

from engine.spec.digest import chain_of
from engine.store.buildcache import BuildCache
from engine.store.snapshots import PROVISIONAL, Snapshot, Snapshots


def unite(cache: BuildCache, snapshots: Snapshots, pinned: Collection[str]) -> int:
    """Give up snapshots whose content is also that of a layer by its chain identifier; how many. `pinned`: names of those that somebody
    uses. What lies on one is laid on the other. Raises sqlite3.Error."""
    count = 0
    while True:
        # What was laid on another one may be a duplicate now, too.
        found = [one for row in snapshots.rows() if (one := _duplicate(cache, snapshots, row, pinned))]
        if not found:
            return count
        for row, other in found:
            _unite(cache, snapshots, row, other)
        count += len(found)


def _duplicate(
    cache: BuildCache, snapshots: Snapshots, row: Snapshot, pinned: Collection[str]
) -> tuple[Snapshot, Snapshot] | None:  # fmt: skip
    if not (row.cached and row.diff_id and row.name.startswith(PROVISIONAL)) or row.name in pinned:
        return None
    if row.parent.startswith(PROVISIONAL):
        return None
    result, other = cache.of(row), snapshots.get(chain_of(row.parent, row.diff_id))
    if result is None or other is None or other.boot or not snapshots.whole(other.name):
        return None
    active = snapshots.keys()
    if any(snapshots.parent(key) == row.name for key in active):
        return None
    return row, other


def _unite(cache: BuildCache, snapshots: Snapshots, row: Snapshot, other: Snapshot) -> None:
    if not other.diff_id:
        snapshots.set_packed(other, row.diff_id, row.packed)
    for child in snapshots.rows():
        if child.parent == row.name:
            snapshots.put_on(child, other.name)
    result, others = cache.of(row), cache.of(other)
    assert result is not None
    if others is None or not cache.keys(others) or (cache.keys(result) and others.used <= result.used):
        cache.move(result, other)
    else:
        cache.alias(cache.keys(result), others)
        cache.forget([result])
