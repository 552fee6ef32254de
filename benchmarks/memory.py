"""Proportional set sizes, and which processes are an engine's own. Memory that processes share counts once, divided among them."""

from __future__ import annotations

import os
from pathlib import Path


def pss(pid: int) -> int:
    """Bytes, 0 for a process that is gone."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def parents() -> dict[int, int]:
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                found[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    return found


def namespace(pid: int, kind: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return ""


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def of_daemon(pid: int) -> list[int]:
    """The daemon, its descendants, and containerd with its shims when they live beside it (same mount namespace); never what runs in a
    container (another PID namespace)."""
    parent = parents()
    home, mounts = namespace(pid, "pid"), namespace(pid, "mnt")
    found = {pid}
    if name_of(pid) == "dockerd":
        found |= {p for p in parent if name_of(p).startswith("containerd") and namespace(p, "mnt") == mounts}
    while more := {child for child, father in parent.items() if father in found and child not in found}:
        found |= more
    return [p for p in sorted(found) if namespace(p, "pid") == home]


def total(pids: list[int]) -> float:
    """Megabytes (10^6)."""
    return sum(map(pss, pids)) / 1e6
