"""The only door to threads: `blocking(kind, fn, ...)` runs synchronous work off the event loop, bounded for each kind of work.

A limiter per kind keeps slow work of one kind (hashing a layer) from delaying another (a row for `ps`). It must not know what the work is.
A hop costs about 0.2 ms, so work that is shorter and cannot block (a lookup, building a plan) is called directly instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal, TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Kind = Literal["database", "disk", "hashing", "kernel", "network", "build", "layers", "uploads", "passwords"]

_CPUS = os.cpu_count() or 1

# database: SQLite has one writer. hashing and build burn a CPU each. disk and network wait, so a few more of them pay off.
# layers: long work that waits for the network or for each other; the service that starts it bounds it further.
# uploads: work that waits for clients, which may stall for as long as they like: not at the expense of pulls.
# passwords: burns a CPU for strangers; one at a time, so that guessing leaves the others to work.
# kernel: mounts, cgroups, clean-up; the kernel's own locks make more than a few useless.
_LIMITS: dict[str, int] = {
    "database": 1, "disk": 8, "hashing": _CPUS, "kernel": 4, "network": 8, "build": _CPUS, "layers": 16, "uploads": 16, "passwords": 1
}  # fmt: skip
_limiters: dict[str, trio.CapacityLimiter] = {}


def limiter(kind: Kind) -> trio.CapacityLimiter:
    """The limiter shared by all work of `kind`; `limiter(kind).statistics()` tells how many run and wait."""
    found = _limiters.get(kind)
    if found is None:
        found = _limiters[kind] = trio.CapacityLimiter(_LIMITS[kind])
    return found


async def blocking(kind: Kind, fn: Callable[[*Ts], T], *args: *Ts, abandon: bool = False) -> T:
    """Run `fn(*args)` in a worker thread and return what it returns (or raise what it raises).

    A cancelled caller waits for the thread unless `abandon` is true; then the thread goes on alone and its result is dropped, so only pass
    `abandon` for work that leaves nothing behind.
    """
    return await trio.to_thread.run_sync(fn, *args, limiter=limiter(kind), abandon_on_cancel=abandon)
