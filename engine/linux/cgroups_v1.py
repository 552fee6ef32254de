"""Control groups, version 1 (admin-guide/cgroup-v1/): a tree for each controller, tasks enter each by writing "0" themselves.

Owns groups below its mounts. A group costs some 70 µs to make and 20 to remove, and entering it 15 to 100, so a container gets one only in
controllers that limit or count something for it; the default device rules are one group that all share.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping

from engine.errors import InvalidParameter, KnarrError
from engine.linux import cgroups_io as io
from engine.linux import devices
from engine.linux.cgroups_types import BlkioEntry, BlkioStats, CpuStats, MemoryStats, PidsStats
from engine.spec import runtime

CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "freezer", "devices")
UNLIMITED = 1 << 62  # memory counters without a limit show the largest page-aligned number
SHARED_DEVICES = "knarr/default-devices"
NANOSECONDS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def memory_limits(memory: runtime.Memory) -> Iterator[tuple[str, str]]:
    """memory.* files; the limit before memory plus swap, which may not be below it."""
    if memory.limit:
        yield "memory.limit_in_bytes", str(memory.limit)
    if memory.swap:
        yield "memory.memsw.limit_in_bytes", str(memory.swap)
    if memory.reservation:
        yield "memory.soft_limit_in_bytes", str(memory.reservation)
    if memory.swappiness is not None:
        yield "memory.swappiness", str(memory.swappiness)
    if memory.disable_oom_killer is not None:
        yield "memory.oom_control", str(int(memory.disable_oom_killer))


def cpu_limits(cpu: runtime.Cpu) -> Iterator[tuple[str, str]]:
    """cpu.* files; the period before the quota, as a quota is checked against it."""
    if cpu.shares:
        yield "cpu.shares", str(cpu.shares)
    if cpu.period:
        yield "cpu.cfs_period_us", str(cpu.period)
    if cpu.quota:
        yield "cpu.cfs_quota_us", str(cpu.quota)
    if cpu.burst is not None:
        yield "cpu.cfs_burst_us", str(cpu.burst)
    if cpu.idle is not None:
        yield "cpu.idle", str(cpu.idle)


def blkio_limits(block: runtime.BlockIO) -> Iterator[tuple[str, str]]:
    """blkio.* files."""
    if block.weight:
        yield "blkio.bfq.weight", str(block.weight)
    for device in block.weight_device:
        if device.weight:
            yield "blkio.bfq.weight_device", f"{device.major}:{device.minor} {device.weight}"
    for name, rates in (
        ("read_bps", block.throttle_read_bps_device), ("write_bps", block.throttle_write_bps_device),
        ("read_iops", block.throttle_read_iops_device), ("write_iops", block.throttle_write_iops_device),
    ):  # fmt: skip
        for rate in rates:
            yield f"blkio.throttle.{name}_device", f"{rate.major}:{rate.minor} {rate.rate}"


def limits(resources: runtime.Resources) -> dict[str, list[tuple[str, str]]]:
    """Files and texts by controller, for limits alone."""
    found: dict[str, list[tuple[str, str]]] = {}
    if resources.memory:
        found["memory"] = list(memory_limits(resources.memory))
    if resources.cpu:
        found["cpu"] = list(cpu_limits(resources.cpu))
        found["cpuset"] = [
            (file, text) for file, text in (("cpuset.cpus", resources.cpu.cpus), ("cpuset.mems", resources.cpu.mems)) if text
        ]
    if resources.pids and resources.pids.limit is not None:
        found["pids"] = [("pids.max", str(resources.pids.limit) if resources.pids.limit > 0 else "max")]
    if resources.block_io:
        found["blkio"] = list(blkio_limits(resources.block_io))
    return {controller: lines for controller, lines in found.items() if lines}


class V1:
    """The groups below the mounts of version 1 controllers."""

    def __init__(self, mounts: Mapping[str, str], always: frozenset[str], *, shared: str = SHARED_DEVICES) -> None:
        """`mounts`: mount point by controller; `always`: those in which every container gets a group; `shared`: the device group's path."""
        self.mounts = dict(mounts)
        self.shared = shared
        self.always = always & set(mounts)
        self._parents: set[str] = set()
        self._shared = ""

    def group(self, controller: str, path: str) -> str:
        """The host path of a group."""
        return f"{self.mounts[controller]}/{path}"

    def groups(self, path: str) -> list[str]:
        """The container's groups that exist, by host path; the shared device group is not among them."""
        found = []
        for controller in self.mounts:
            group = self.group(controller, path)
            # Controllers mounted together (cpu,cpuacct) share their groups.
            if group not in found and os.path.isdir(group):
                found.append(group)
        return found

    def members(self, path: str) -> str:
        """A group that has all of the container's processes, "" for none: one of those it was born in, if there is one."""
        found = self.groups(path)
        return next((group for controller in self.always if (group := self.group(controller, path)) in found), found[0] if found else "")

    def _make(self, controller: str, path: str) -> str:
        group, parent = self.group(controller, path), os.path.dirname(self.group(controller, path))
        if parent not in self._parents or not os.path.isdir(parent):
            self._make_parent(controller, os.path.dirname(path))
            self._parents.add(parent)
        io.make(group)
        if controller == "cpuset":
            _inherit_cpuset(os.path.dirname(group), group)
        return group

    def _make_parent(self, controller: str, path: str) -> None:
        group = self.mounts[controller]
        for name in path.split("/") if path else ():
            above, group = group, f"{group}/{name}"
            try:
                os.mkdir(group, 0o755)
            except FileExistsError:
                pass
            if controller == "cpuset":
                _inherit_cpuset(above, group)

    def prepare(self, path: str, resources: runtime.Resources) -> tuple[str, ...]:
        """Make the groups with their limits; the `tasks` files to enter.

        Raises InvalidParameter, KnarrError, Conflict; then nothing is left.
        """
        values = limits(resources)
        self._require(values)
        made: list[str] = []
        tasks = []
        try:
            for controller in self.mounts:
                if controller not in self.always and controller not in values:
                    continue
                group = self.group(controller, path)
                if group not in made:
                    self._make(controller, path)
                    made.append(group)
                    tasks.append(f"{group}/tasks")
                self._write(controller, group, values.get(controller, []))
            if "devices" in self.mounts and not devices.allows_all(resources.devices):
                tasks.append(self._devices(path, resources.devices) + "/tasks")
        except BaseException:
            for group in made:
                os.rmdir(group)
            raise
        return tuple(tasks)

    def _require(self, values: dict[str, list[tuple[str, str]]]) -> None:
        for controller in values:
            if controller not in self.mounts:
                raise KnarrError(f"this host has no {controller} controller for containers", hint="see /proc/cgroups")

    def _write(self, controller: str, group: str, lines: list[tuple[str, str]]) -> None:
        for name, text in lines:
            file = f"{group}/{name}"
            if name == "memory.memsw.limit_in_bytes" and not os.path.exists(file):
                continue  # no swap accounting: Cgroups.warnings() says so
            if name.startswith("blkio.bfq.weight") and not os.path.exists(file):
                file = file.replace(".bfq", "")
            if name == "memory.limit_in_bytes":
                _raise_swap_first(group, text, dict(lines).get("memory.memsw.limit_in_bytes", ""))
            io.limit(file, text)

    def _devices(self, path: str, rules: tuple[runtime.DeviceRule, ...]) -> str:
        """The group with these device rules: the shared one for the default rules, else one of the container's own."""
        if rules != devices.DEFAULT_RULES:
            group = self._make("devices", path)
            try:
                _write_devices(group, rules)
            except BaseException:
                os.rmdir(group)
                raise
            return group
        if not self._shared or not os.path.isdir(self._shared):
            self._shared = self._make_shared()
        return self._shared

    def _make_shared(self) -> str:
        self._make_parent("devices", os.path.dirname(self.shared))
        group = self.group("devices", self.shared)
        try:
            os.mkdir(group, 0o755)
        except FileExistsError:
            # Left by an earlier daemon, perhaps with containers in it: writing the same rules again would lock them out for a moment.
            if _has_default_devices(group):
                return group
        _write_devices(group, devices.DEFAULT_RULES)
        return group

    def update(self, path: str, resources: runtime.Resources, members: Callable[[], list[int]]) -> None:
        """Change limits; `members` lists the container's processes.

        A controller that had nothing to limit so far gets its group now, and the processes are moved into it.
        """
        values = limits(resources)
        self._require(values)
        for controller, lines in values.items():
            group = self.group(controller, path)
            if not os.path.isdir(group):
                self._make(controller, path)
                self._write(controller, group, lines)
                _move(group, members)
            else:
                self._write(controller, group, lines)

    def cpu(self, path: str) -> CpuStats:
        """Throttling from cpu, times from cpuacct; zero where the container has no such group."""
        table = io.flat(f"{self.group('cpu', path)}/cpu.stat") if "cpu" in self.mounts else {}
        acct = self.group("cpuacct", path) if "cpuacct" in self.mounts else ""
        ticks = io.flat(f"{acct}/cpuacct.stat") if acct else {}
        return CpuStats(
            total=(io.number(f"{acct}/cpuacct.usage") or 0) if acct else 0,
            user=ticks.get("user", 0) * NANOSECONDS_PER_TICK, system=ticks.get("system", 0) * NANOSECONDS_PER_TICK,
            periods=table.get("nr_periods", 0), throttled_periods=table.get("nr_throttled", 0),
            throttled_time=table.get("throttled_time", 0),
            per_cpu=tuple(int(word) for word in io.read(f"{acct}/cpuacct.usage_percpu").split()) if acct else (),
        )  # fmt: skip

    def memory(self, path: str) -> MemoryStats:
        group = self.group("memory", path)
        usage = io.number(f"{group}/memory.usage_in_bytes") or 0
        both = io.number(f"{group}/memory.memsw.usage_in_bytes") or 0
        return MemoryStats(
            usage=usage, limit=_bounded(io.number(f"{group}/memory.limit_in_bytes")),
            max_usage=io.number(f"{group}/memory.max_usage_in_bytes"), swap_usage=max(both - usage, 0),
            swap_limit=_bounded(io.number(f"{group}/memory.memsw.limit_in_bytes")), failures=io.number(f"{group}/memory.failcnt") or 0,
            oom_kills=io.flat(f"{group}/memory.oom_control").get("oom_kill", 0), stat=io.flat(f"{group}/memory.stat"),
        )  # fmt: skip

    def pids_stats(self, path: str) -> PidsStats | None:
        """None where the container has no pids group."""
        if "pids" not in self.mounts:
            return None
        group = self.group("pids", path)
        current = io.number(f"{group}/pids.current")
        return None if current is None else PidsStats(current=current, limit=io.number(f"{group}/pids.max"))

    def blkio(self, path: str) -> BlkioStats:
        if "blkio" not in self.mounts:
            return BlkioStats()
        group = self.group("blkio", path)
        return BlkioStats(
            service_bytes=_blkio(f"{group}/blkio.throttle.io_service_bytes"), serviced=_blkio(f"{group}/blkio.throttle.io_serviced")
        )

    def freeze(self, path: str) -> None:
        """Stop every task and wait until all stand; undone when they do not."""
        group = self.group("freezer", path)
        try:
            io.limit(f"{group}/freezer.state", "FROZEN")
            io.wait_for(f"{group}/freezer.state", "FROZEN", "freezing")
        except KnarrError:
            self.thaw(path)
            raise

    def thaw(self, path: str) -> None:
        """Let every task go on."""
        group = self.group("freezer", path)
        io.limit(f"{group}/freezer.state", "THAWED")
        io.wait_for(f"{group}/freezer.state", "THAWED", "thawing")

    def kill(self, path: str) -> None:
        """SIGKILL until nobody is left to fork again; frozen meanwhile where there is a freezer, so that nobody can."""
        group = self.members(path)
        if not group:
            return
        freezer = self.group("freezer", path) if "freezer" in self.mounts else ""
        frozen = bool(freezer) and os.path.isdir(freezer)
        deadline = time.monotonic() + io.FREEZE_PATIENCE
        while True:
            if frozen:
                io.limit(f"{freezer}/freezer.state", "FROZEN")
            count = io.signal_all(group, signal.SIGKILL)
            if frozen:
                io.limit(f"{freezer}/freezer.state", "THAWED")
            if not count:
                return
            if time.monotonic() > deadline:
                raise KnarrError(f"killing the processes of cgroup {group}: {count} are still there")
            time.sleep(0.002)


def _bounded(value: int | None) -> int | None:
    return None if value is None or value >= UNLIMITED else value


def _blkio(path: str) -> tuple[BlkioEntry, ...]:
    found = []
    for line in io.read(path).splitlines():
        words = line.split()
        if len(words) == 3:
            major, _, minor = words[0].partition(":")
            found.append(BlkioEntry(int(major), int(minor), words[1], int(words[2])))
    return tuple(found)


def _inherit_cpuset(above: str, group: str) -> None:
    """A new cpuset has no CPUs and no memory and lets nobody in: take the parent's."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not io.read(f"{group}/{name}").strip():
            io.limit(f"{group}/{name}", io.read(f"{above}/{name}").strip())


def _raise_swap_first(group: str, limit: str, swap: str) -> None:
    """A limit above the present memory-plus-swap is refused unless that is raised before."""
    file = f"{group}/memory.memsw.limit_in_bytes"
    present = io.number(file)
    if present is not None and present < UNLIMITED and (int(limit) > present or int(limit) < 0):
        if not swap:
            raise InvalidParameter(
                "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"
            )
        io.limit(file, swap)


def _write_devices(group: str, rules: tuple[runtime.DeviceRule, ...]) -> None:
    for name, text in devices.v1_lines(rules):
        io.limit(f"{group}/{name}", text)


def _has_default_devices(group: str) -> bool:
    wanted = {(devices.rule_text(rule).rsplit(" ", 1)[0], rule.access) for rule in devices.DEFAULT_RULES[1:]}
    present = {tuple(line.rsplit(" ", 1)) for line in io.read(f"{group}/devices.list").splitlines()}
    return wanted == present


def _move(group: str, members: Callable[[], list[int]]) -> None:
    """Put processes that already run into a group, until none is left outside; one that forks may need another look.

    Slow (3 ms each on a quiet machine), so for changed limits only.
    """
    while outside := set(members()) - set(io.pids(group)):
        moved = False
        for pid in outside:
            try:
                io.write(f"{group}/cgroup.procs", pid)
                moved = True
            except ProcessLookupError:
                continue
            except OSError as error:
                if error.errno != errno.EINVAL:  # a zombie whose parent has not looked yet
                    raise KnarrError(f"moving process {pid} into {group}: {error.strerror}") from None
        if not moved:
            return
