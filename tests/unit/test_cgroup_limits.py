"""Limits as files of both versions, and which hierarchies are chosen; what they enforce is in tests/runtime/test_cgroups.py."""

from __future__ import annotations

import pathlib

import pytest

from engine.errors import InvalidParameter, KnarrError
from engine.linux import cgroups_io, cgroups_v1, cgroups_v2, mounts
from engine.linux.cgroups import Cgroups
from engine.spec.runtime import BlockIO, BlockRate, BlockWeight, Cpu, Memory, Pids, Resources

MIB = 1 << 20


def test_weights() -> None:
    assert [cgroups_v2.weight_from_shares(shares) for shares in (2, 1024, 262144)] == [1, 100, 10000]
    weights = [cgroups_v2.weight_from_shares(shares) for shares in range(2, 262145, 97)]
    assert weights == sorted(weights)
    assert [cgroups_v2.io_weight(weight) for weight in (10, 1000)] == [1, 10000]


def v2(**kw: object) -> dict[str, str]:
    return dict(cgroups_v2.limits(Resources(**kw)))  # type: ignore[arg-type]


def v1(**kw: object) -> dict[str, str]:
    return dict(line for lines in cgroups_v1.limits(Resources(**kw)).values() for line in lines)  # type: ignore[arg-type]


def test_memory() -> None:
    memory = Memory(limit=64 * MIB, swap=96 * MIB, reservation=32 * MIB)
    assert v2(memory=memory) == {"memory.max": str(64 * MIB), "memory.swap.max": str(32 * MIB), "memory.low": str(32 * MIB)}
    assert v1(memory=memory) == {
        "memory.limit_in_bytes": str(64 * MIB), "memory.memsw.limit_in_bytes": str(96 * MIB), "memory.soft_limit_in_bytes": str(32 * MIB),
    }  # fmt: skip
    assert v2(memory=Memory(limit=-1, swap=-1)) == {"memory.max": "max", "memory.swap.max": "max"}
    assert v2(memory=Memory(limit=MIB, swap=MIB))["memory.swap.max"] == "0"
    assert v1(memory=Memory(swappiness=0, disable_oom_killer=True)) == {"memory.swappiness": "0", "memory.oom_control": "1"}
    for wrong in (Memory(swap=MIB), Memory(limit=2 * MIB, swap=MIB)):
        with pytest.raises(InvalidParameter):
            v2(memory=wrong)


def test_cpu() -> None:
    assert v2(cpu=Cpu(quota=150_000, period=100_000, shares=1024, cpus="0-1")) == {
        "cpu.weight": "100", "cpu.max": "150000 100000", "cpuset.cpus": "0-1",
    }  # fmt: skip
    assert v2(cpu=Cpu(quota=-1)) == {"cpu.max": "max 100000"}
    assert v2(cpu=Cpu(period=50_000)) == {"cpu.max": "max 50000"}
    assert v2(cpu=Cpu(idle=1, shares=2)) == {"cpu.idle": "1"}
    assert list(v1(cpu=Cpu(quota=150_000, period=100_000, mems="0")).items()) == [
        ("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "150000"), ("cpuset.mems", "0"),
    ]  # fmt: skip


def test_pids_and_blocks() -> None:
    assert v2(pids=Pids(limit=7)) == v1(pids=Pids(limit=7)) == {"pids.max": "7"}
    assert v2(pids=Pids(limit=0)) == v1(pids=Pids(limit=-1)) == {"pids.max": "max"}
    assert cgroups_v1.limits(Resources(pids=Pids())) == {}
    block = BlockIO(
        weight=500, weight_device=(BlockWeight(major=8, minor=0, weight=10),), throttle_read_bps_device=(BlockRate(major=8,
        minor=0, rate=9),)
    )  # fmt: skip
    assert cgroups_v2.limits(Resources(block_io=block)) == [
        ("io.bfq.weight", "500"), ("io.bfq.weight", "8:0 10"), ("io.max", "8:0 rbps=9"),
    ]  # fmt: skip
    assert v1(block_io=block)["blkio.throttle.read_bps_device"] == "8:0 9"


def test_unified_is_checked() -> None:
    assert v2(unified={"memory.high": "1"}) == {"memory.high": "1"}
    with pytest.raises(InvalidParameter):
        v2(unified={"../../x": "1"})


def table(*lines: str) -> list[mounts.MountEntry]:
    return mounts.parse("\n".join(f"{30 + n} 20 0:{n} / {line}" for n, line in enumerate(lines)))


def test_detection(tmp_path: pathlib.Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu io memory pids\n")
    pure = Cgroups.detect(table(f"{tmp_path} rw - cgroup2 cgroup2 rw,nsdelegate"))
    assert (pure.version, pure.v1) == (2, None)
    assert pure.controllers == {"cpu", "io", "memory", "pids"}
    old = Cgroups.detect(table("/cg/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct", "/cg/memory rw - cgroup cgroup rw,memory"))
    assert old.version == 1
    assert old.v2 is None
    assert old.v1 is not None
    assert old.v1.mounts == {"cpu": "/cg/cpu,cpuacct", "cpuacct": "/cg/cpu,cpuacct", "memory": "/cg/memory"}
    assert old.v1.always == {"memory", "cpuacct"}
    (tmp_path / "cgroup.controllers").write_text("hugetlb\n")
    hybrid = Cgroups.detect(table("/cg/memory rw - cgroup cgroup rw,memory", f"{tmp_path} rw - cgroup2 cgroup2 rw"))
    assert hybrid.version == 1
    assert hybrid.v2 is not None
    assert hybrid.v1 is not None
    assert hybrid.v1.always == {"memory"}
    with pytest.raises(KnarrError, match="no cgroup file system"):
        Cgroups.detect([])


def test_a_controller_is_limited_where_it_is(tmp_path: pathlib.Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("pids\n")
    hybrid = Cgroups.detect(table("/cg/memory rw - cgroup cgroup rw,memory", f"{tmp_path} rw - cgroup2 cgroup2 rw"))
    first, second = hybrid._split(Resources(memory=Memory(limit=MIB), pids=Pids(limit=3)))
    assert (first.memory, first.pids) == (Memory(limit=MIB), None)
    assert (second.memory, second.pids) == (None, Pids(limit=3))


def test_warnings_for_what_version_2_cannot(tmp_path: pathlib.Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("memory\n")
    pure = Cgroups.detect(table(f"{tmp_path} rw - cgroup2 cgroup2 rw"))
    found = pure.warnings(Resources(memory=Memory(swappiness=10, disable_oom_killer=True)))
    assert [line.split(". ")[-1] for line in found] == ["Memory swappiness discarded.", "OomKillDisable discarded."]


def test_reading_what_is_not_there() -> None:
    assert cgroups_io.read("/nonexistent/file") == ""
    assert cgroups_io.number("/nonexistent/file") is None
    assert cgroups_io.tree("/nonexistent") == []
    assert cgroups_io.remove("/nonexistent/group") is False
