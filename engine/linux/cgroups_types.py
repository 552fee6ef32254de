"""What cgroups tell and take, whatever their version: placements and statistics. Pure data."""

from __future__ import annotations

import msgspec


class Placement(msgspec.Struct, frozen=True):
    """How a new process enters its control groups.

    ``tasks``: v1 ``tasks`` files into each of which the child itself writes ``0`` before it execs.
    ``directory``: v2 group directory for clone3's CLONE_INTO_CGROUP; empty where there is none.
    """

    tasks: tuple[str, ...] = ()
    directory: str = ""


class CpuStats(msgspec.Struct, frozen=True, kw_only=True):
    """Times in nanoseconds since the group was made; `per_cpu` only where v1's cpuacct counts it."""

    total: int = 0
    user: int = 0
    system: int = 0
    periods: int = 0
    throttled_periods: int = 0
    throttled_time: int = 0
    per_cpu: tuple[int, ...] = ()


class MemoryStats(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes in bytes; `limit` and `max_usage` are None where there is none. `stat` is the kernel's memory.stat."""

    usage: int = 0
    limit: int | None = None
    max_usage: int | None = None
    swap_usage: int = 0
    swap_limit: int | None = None
    failures: int = 0
    oom_kills: int = 0
    stat: dict[str, int] = {}


class PidsStats(msgspec.Struct, frozen=True, kw_only=True):
    """Number of tasks (threads)."""

    current: int = 0
    limit: int | None = None


class BlkioEntry(msgspec.Struct, frozen=True):
    """One counter of one device; `op` is Read, Write, Discard, Sync, Async or Total (v1), or Read and Write (v2)."""

    major: int
    minor: int
    op: str
    value: int


class BlkioStats(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes and operations by device. Empty where no group counts them (v1 without a block device limit)."""

    service_bytes: tuple[BlkioEntry, ...] = ()
    serviced: tuple[BlkioEntry, ...] = ()


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a container's groups. `memory` is None where the host has no memory controller."""

    version: int
    cpu: CpuStats
    memory: MemoryStats | None
    pids: PidsStats
    blkio: BlkioStats
