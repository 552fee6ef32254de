"""Control groups of containers: one interface, version 2 and version 1 behind it, also both at once.

Owns which group goes where. On a host with version 2 alone everything is there. On a hybrid host every container gets a version 2 group
(clone3 puts the process into it, and it counts CPU time, freezes and kills) and version 1 groups for what is not there: memory for its
statistics and the others when something is limited. Where version 1 is alone, freezer and cpuacct groups do what version 2 does elsewhere.

Groups are `<mount>/<path>`, with `path` such as `knarr/<container id>`. In an unprivileged place, where the top of the tree cannot be
written, they go below the daemon's own group instead.

Measured on a hybrid host, medians with 50 ms pauses, mkdir + clone to exit + rmdir beyond none: version 2 alone 216 µs; with memory 364;
with the shared device group 351; with pids 500; version 1 alone with cpu, cpuacct, memory, pids, freezer, devices 569; a move into
version 2 by writing cgroup.procs 5600, which is why nothing ever does it. Attaching the device program to a version 2 group: 155 to 210.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

import msgspec

from engine.errors import InvalidParameter, KnarrError
from engine.linux import cgroups_io as io
from engine.linux import mounts
from engine.linux.cgroups_types import BlkioEntry, BlkioStats, CpuStats, MemoryStats, PidsStats, Placement, Stats
from engine.linux.cgroups_v1 import CONTROLLERS as V1_CONTROLLERS
from engine.linux.cgroups_v1 import V1
from engine.linux.cgroups_v2 import V2, check
from engine.spec.runtime import Resources

__all__ = ["BlkioEntry", "BlkioStats", "Cgroups", "CpuStats", "MemoryStats", "PidsStats", "Placement", "Stats"]

CLONE_INTO_CGROUP_SINCE = (5, 7)
_SWAP_WARNING = "Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap."


class Cgroups:
    """The control groups of this host. All methods are synchronous; those that wait say so."""

    def __init__(self, v1: V1 | None, v2: V2 | None) -> None:
        self.v1 = v1
        self.v2 = v2
        # What this daemon made and nobody changed; for anything else (an earlier daemon's) all hierarchies are looked through.
        self._known: dict[str, Placement] = {}

    @classmethod
    def detect(cls, table: list[mounts.MountEntry] | None = None) -> Cgroups:
        """Look at the mount table (default: this process's) and choose. Raises KnarrError when no cgroups are mounted at all."""
        found: dict[str, str] = {}
        unified = ""
        for entry in mounts.read() if table is None else table:
            if entry.type == "cgroup2":
                unified = unified or entry.target
            elif entry.type == "cgroup":
                for word in entry.super_options:
                    if word in V1_CONTROLLERS:
                        found.setdefault(word, entry.target)
        if not found and not unified:
            raise KnarrError("no cgroup file system is mounted", hint="mount -t cgroup2 cgroup2 /sys/fs/cgroup")
        placeable = unified and (not found or _kernel() >= CLONE_INTO_CGROUP_SINCE)
        v2 = V2(_usable(unified)) if placeable else None
        always = {"memory"} if v2 else {"memory", "cpuacct", "freezer"}
        v1 = V1(found, frozenset(always)) if found else None
        return cls(v1, v2)

    @property
    def version(self) -> int:
        """2 where version 2 is alone, else 1: what `docker info` calls the cgroup version."""
        return 1 if self.v1 else 2

    @property
    def controllers(self) -> frozenset[str]:
        """Controllers that can limit containers here, by their names in version 1 or 2 (`cpu memory pids cpuset blkio io ...`)."""
        return frozenset(self.v1.mounts if self.v1 else ()) | (self.v2.controllers if self.v2 else frozenset())

    def swap_limit(self) -> bool:
        """Whether swap can be limited."""
        if self.v1 and "memory" in self.v1.mounts:
            return os.path.exists(f"{self.v1.mounts['memory']}/memory.memsw.limit_in_bytes")
        # The top group of version 2 has no such file, any group below may be asked; without swap support in the kernel none has it.
        return self.v2 is not None and "memory" in self.v2.controllers and os.path.exists("/proc/swaps")

    def warnings(self, resources: Resources) -> list[str]:
        """What of these limits this host cannot do and `prepare` leaves out, in Docker's words for the client."""
        memory = resources.memory
        found = []
        if memory and memory.limit and memory.swap and not self.swap_limit():
            found.append(_SWAP_WARNING)
        if memory and not (self.v1 and "memory" in self.v1.mounts):
            if memory.swappiness is not None:
                found.append(
                    "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded."
                )
            if memory.disable_oom_killer:
                found.append("Your kernel does not support OomKillDisable. OomKillDisable discarded.")
        return found

    def prepare(self, path: str, resources: Resources | None = None) -> Placement:
        """Make a container's groups with their limits and device rules; how to enter them.

        A leftover of the same name without processes is replaced. Raises InvalidParameter for a value that the kernel refuses, Conflict
        when processes still live in a group of that name, NotImplementedYet for limits that are not there yet, KnarrError otherwise; then
        no group is left behind.
        """
        path = _clean(path)
        limits = resources or Resources()
        check(limits)
        has_v1_devices = self.v1 is not None and "devices" in self.v1.mounts
        tasks: tuple[str, ...] = ()
        directory = ""
        for_v1, for_v2 = self._split(limits)
        if self.v2:
            directory = self.v2.prepare(path, for_v2, device_program=not has_v1_devices)
        try:
            if self.v1:
                tasks = self.v1.prepare(path, for_v1)
        except BaseException:
            if directory:
                os.rmdir(directory)
            raise
        placement = self._known[path] = Placement(tasks, directory)
        return placement

    def placement(self, path: str) -> Placement:
        """How another process enters the groups that a container has now (an exec, or after a restart of the daemon)."""
        path = _clean(path)
        known = self._known.get(path)
        if known is not None:
            return known
        groups = self.v1.groups(path) if self.v1 else []
        if self.v1 and (shared := self._shared_devices(path)):
            groups.append(shared)
        directory = self.v2.group(path) if self.v2 else ""
        return Placement(tuple(f"{group}/tasks" for group in groups), directory if directory and os.path.isdir(directory) else "")

    def _shared_devices(self, path: str) -> str:
        """The shared device group if the container's processes are in it; a privileged container's are in none."""
        assert self.v1 is not None
        if "devices" not in self.v1.mounts:
            return ""
        wanted = f"/{self.v1.shared}"
        for pid in self.pids(path):
            for line in io.read(f"/proc/{pid}/cgroup").splitlines():
                _, controllers, group = line.split(":", 2)
                if "devices" in controllers.split(",") and group.endswith(wanted):
                    return self.v1.group("devices", self.v1.shared)
        return ""

    def _split(self, resources: Resources) -> tuple[Resources, Resources]:
        """What version 1 enforces and what version 2 does: a controller is bound to one of them. Raises InvalidParameter."""
        if not self.v1:
            return Resources(), resources
        if not self.v2:
            if resources.unified:
                raise InvalidParameter("unified cgroup settings need cgroup version 2")
            return resources, Resources()
        moved = {
            field: getattr(resources, field)
            for field, controller in (("memory", "memory"), ("cpu", "cpu"), ("pids", "pids"), ("block_io", "io"))
            if controller in self.v2.controllers
        }
        first = msgspec.structs.replace(resources, unified={}, **dict.fromkeys(moved))
        return first, Resources(devices=resources.devices, unified=resources.unified, **moved)

    def update(self, path: str, resources: Resources) -> None:
        """Change the limits of a container, running or not. Errors as `prepare`; device rules cannot be changed."""
        path = _clean(path)
        check(resources)
        for_v1, for_v2 = self._split(resources)
        self._known.pop(path, None)
        if self.v2:
            self.v2.update(path, for_v2)
        if self.v1:
            self.v1.update(path, for_v1, lambda: self.pids(path))

    def stats(self, path: str) -> Stats:
        """Counters at this moment; zeros for groups that are gone."""
        path = _clean(path)
        cpu = self.v2.cpu(path) if self.v2 else CpuStats()
        if self.v1:
            cpu = _join(cpu, self.v1.cpu(path))
        return Stats(version=self.version, cpu=cpu, memory=self._memory(path), pids=self._pids_stats(path), blkio=self._blkio(path))

    def _memory(self, path: str) -> MemoryStats | None:
        if self.v1 and "memory" in self.v1.mounts:
            return self.v1.memory(path)
        return self.v2.memory(path) if self.v2 and "memory" in self.v2.controllers else None

    def _pids_stats(self, path: str) -> PidsStats:
        found = self.v1.pids_stats(path) if self.v1 else None
        if found is None:
            found = self.v2.pids_stats(path) if self.v2 else PidsStats(current=len(self.pids(path)))
        return found

    def _blkio(self, path: str) -> BlkioStats:
        if self.v1 and "blkio" in self.v1.mounts:
            return self.v1.blkio(path)
        return self.v2.blkio(path) if self.v2 else BlkioStats()

    def pids(self, path: str) -> list[int]:
        """Ids of the container's processes, as this process sees them; empty when the groups are gone."""
        group = self._members(_clean(path))
        return io.all_pids(group) if group else []

    def _members(self, path: str) -> str:
        """A group that has all of the container's processes."""
        if self.v2:
            return self.v2.group(path)
        assert self.v1 is not None
        return self.v1.members(path)

    def freeze(self, path: str) -> None:
        """Stop all tasks; returns when they stand. Waits up to io.FREEZE_PATIENCE seconds, then raises KnarrError."""
        self._freezer().freeze(_clean(path))

    def thaw(self, path: str) -> None:
        """Let all tasks go on. Waits and raises as `freeze`."""
        self._freezer().thaw(_clean(path))

    def _freezer(self) -> V1 | V2:
        if self.v2:
            return self.v2
        if self.v1 and "freezer" in self.v1.mounts:
            return self.v1
        raise KnarrError("this host has no cgroup freezer")

    def kill(self, path: str) -> None:
        """SIGKILL every process of the container, frozen or not. May wait some milliseconds before Linux 5.14 and on version 1."""
        path = _clean(path)
        if self.v2 and self.v2.kill(path):
            return
        if self.v1:
            self.v1.kill(path)
        elif self.v2:
            io.signal_all(self.v2.group(path))

    def oom_source(self, path: str) -> str:
        """The file with an `oom_kill N` line that counts tasks killed for want of memory; "" without a memory controller."""
        path = _clean(path)
        if self.v1 and "memory" in self.v1.mounts:
            return f"{self.v1.group('memory', path)}/memory.oom_control"
        return f"{self.v2.group(path)}/memory.events" if self.v2 and "memory" in self.v2.controllers else ""

    def remove(self, path: str) -> None:
        """Remove the container's groups and any below them; those that are not there are fine.

        Waits up to io.RMDIR_PATIENCE seconds for processes that are ending; raises KnarrError when a group stays in use.
        """
        path = _clean(path)
        for group in self._removable(path):
            try:
                io.remove(group)
            except OSError as error:
                raise KnarrError(f"removing cgroup {group}: {error.strerror}") from None

    def _removable(self, path: str) -> Iterable[str]:
        known = self._known.pop(path, None)
        if known is not None:
            own = f"/{path}/tasks"
            groups = [os.path.dirname(file) for file in known.tasks if file.endswith(own)]
            return [*groups, known.directory] if known.directory else groups
        groups = [self.v2.group(path)] if self.v2 else []
        return [*groups, *(self.v1.group(controller, path) for controller in self.v1.mounts)] if self.v1 else groups

    def list(self, parent: str) -> list[str]:
        """Paths of the containers' groups directly below a parent such as `knarr`, from all hierarchies."""
        parent = _clean(parent)
        roots = [self.v2.root] if self.v2 else []
        roots += self.v1.mounts.values() if self.v1 else []
        names: set[str] = set()
        for root in roots:
            try:
                with os.scandir(f"{root}/{parent}") as entries:
                    names.update(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
            except FileNotFoundError:
                continue
        shared = self.v1.shared if self.v1 else ""
        return sorted(path for name in names if (path := f"{parent}/{name}") != shared)

    def tidy(self, parent: str) -> None:
        """Remove a parent such as `knarr`, and the shared device group, from every hierarchy in which nothing is below them any more."""
        parent = _clean(parent)
        groups = [self.v2.group(parent)] if self.v2 else []
        if self.v1:
            if "devices" in self.v1.mounts:
                shared = self.v1.group("devices", self.v1.shared)
                groups += [shared, os.path.dirname(shared)]
            groups += [self.v1.group(controller, parent) for controller in self.v1.mounts]
        for group in groups:
            try:
                os.rmdir(group)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EBUSY, errno.ENOTEMPTY):
                    raise KnarrError(f"removing cgroup {group}: {error.strerror}") from None


def _clean(path: str) -> str:
    """A group's path, relative and without tricks. Raises InvalidParameter."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or "\0" in path:
        raise InvalidParameter(f"invalid cgroup path {path!r}")
    return "/".join(parts)


def _join(v2: CpuStats, v1: CpuStats) -> CpuStats:
    """Times from version 2 where it has them, throttling from whichever controller does it."""
    times = v2 if v2.total or not v1.total else v1
    return CpuStats(
        total=times.total, user=times.user, system=times.system, per_cpu=v1.per_cpu, periods=v1.periods or v2.periods,
        throttled_periods=v1.throttled_periods or v2.throttled_periods, throttled_time=v1.throttled_time or v2.throttled_time,
    )  # fmt: skip


def _kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(letter for letter in minor if letter.isdigit()))


def _usable(unified: str) -> str:
    """Where version 2 groups may be made: the top, or the daemon's own group where that was delegated to it."""
    if os.access(unified, os.W_OK):
        return unified
    for line in io.read("/proc/self/cgroup").splitlines():
        if line.startswith("0::"):
            own = unified + line[3:].rstrip("/")
            if os.access(own, os.W_OK):
                return own
    raise KnarrError(
        f"cgroups cannot be made below {unified}", hint="delegate a group to the daemon (systemd: Delegate=yes) or run it as root"
    )
