"""Control groups, version 2 (admin-guide/cgroup-v2.rst): one tree, limits as files of the controllers that the parents enable.

Owns groups below its mount; also serves hybrid hosts, where it may have no controller at all and still places, counts CPU time, freezes
and kills. Conversions from OCI's v1 values follow the OCI runtime specification (config-linux.md) and what runc and crun agreed on.
"""

from __future__ import annotations

import errno
import functools
import math
import os
from collections.abc import Iterator

from engine.errors import InvalidParameter, KnarrError, NotImplementedYet
from engine.linux import cgroups_io as io
from engine.linux import devices
from engine.linux.cgroups_types import BlkioEntry, BlkioStats, CpuStats, MemoryStats, PidsStats
from engine.spec import runtime

# What each container is counted by even without limits; cpuset is added when the first container asks for it.
ALWAYS = ("cpu", "io", "memory", "pids")
DAEMON = "knarr-daemon"
BPF_F_ALLOW_MULTI = 2


def weight_from_shares(shares: int) -> int:
    """v1 CPU shares (2 to 262144) to a v2 weight (1 to 10000): a curve through 2→1, 1024→100 and 262144→10000 (runc 1.3, crun 1.23)."""
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    base = math.log2(shares)
    return math.ceil(10 ** ((base * base + 125 * base) / 612 - 7 / 34))


def io_weight(weight: int) -> int:
    """blkio weight (10 to 1000) to an io weight (1 to 10000), as the OCI runtime specification has it."""
    return 1 + (weight - 10) * 9999 // 990


def _ceiling(value: int) -> str:
    return "max" if value < 0 else str(value)


def memory_limits(memory: runtime.Memory) -> Iterator[tuple[str, str]]:
    """memory.* files; swap alone is what v1's memory-plus-swap leaves. Raises InvalidParameter, as runc does, where that makes no sense."""
    if memory.swap:
        if memory.swap > 0 and (memory.limit is None or memory.limit <= 0):
            raise InvalidParameter("unable to set swap limit without memory limit")
        if memory.swap > 0 and memory.limit is not None and memory.swap < memory.limit:
            raise InvalidParameter("memory+swap limit must not be below the memory limit")
        yield "memory.swap.max", _ceiling(memory.swap if memory.swap < 0 else memory.swap - (memory.limit or 0))
    if memory.limit:
        yield "memory.max", _ceiling(memory.limit)
    if memory.reservation:
        yield "memory.low", _ceiling(memory.reservation)


def cpu_limits(cpu: runtime.Cpu) -> Iterator[tuple[str, str]]:
    """cpu.* and cpuset.* files."""
    if cpu.idle is not None:
        yield "cpu.idle", str(cpu.idle)
    if cpu.shares and not cpu.idle:
        yield "cpu.weight", str(weight_from_shares(cpu.shares))
    if cpu.quota or cpu.period:
        quota = str(cpu.quota) if cpu.quota and cpu.quota > 0 else "max"
        yield "cpu.max", f"{quota} {cpu.period or 100000}"
    if cpu.burst is not None:
        yield "cpu.max.burst", str(cpu.burst)
    if cpu.cpus:
        yield "cpuset.cpus", cpu.cpus
    if cpu.mems:
        yield "cpuset.mems", cpu.mems


def io_limits(block: runtime.BlockIO) -> Iterator[tuple[str, str]]:
    """io.* files."""
    if block.weight:
        yield "io.bfq.weight", str(block.weight)
    for device in block.weight_device:
        if device.weight:
            yield "io.bfq.weight", f"{device.major}:{device.minor} {device.weight}"
    for key, rates in (
        ("rbps", block.throttle_read_bps_device), ("wbps", block.throttle_write_bps_device),
        ("riops", block.throttle_read_iops_device), ("wiops", block.throttle_write_iops_device),
    ):  # fmt: skip
        for rate in rates:
            yield "io.max", f"{rate.major}:{rate.minor} {key}={rate.rate or 'max'}"


def limits(resources: runtime.Resources) -> list[tuple[str, str]]:
    """(file, text) for each limit."""
    found: list[tuple[str, str]] = []
    if resources.memory:
        found += memory_limits(resources.memory)
    if resources.cpu:
        found += cpu_limits(resources.cpu)
    if resources.pids and resources.pids.limit is not None:
        found.append(("pids.max", _ceiling(resources.pids.limit or -1)))
    if resources.block_io:
        found += io_limits(resources.block_io)
    for name, value in resources.unified.items():
        if "/" in name or "." not in name:
            raise InvalidParameter(f"invalid cgroup file {name!r}")
        found.append((name, value))
    return found


@functools.cache
def _default_program() -> int:
    from engine import _core

    return _core.bpf_load_device(devices.bpf_program(devices.DEFAULT_RULES))


class V2:
    """The groups below one cgroup2 mount."""

    def __init__(self, root: str, *, controllers: frozenset[str] | None = None) -> None:
        """`root` is where the groups go: the mount, or the daemon's own group in it. `controllers`: those to use (default: all)."""
        self.root = root
        there = frozenset(io.read(f"{root}/cgroup.controllers").split())
        self.controllers = there if controllers is None else there & controllers
        self._parents: dict[str, set[str]] = {}

    def group(self, path: str) -> str:
        """The host path of a group."""
        return f"{self.root}/{path}"

    def _enable(self, group: str, wanted: set[str]) -> None:
        """Give the children of `group` some controllers. Raises KnarrError."""
        file = f"{group}/cgroup.subtree_control"
        missing = wanted - set(io.read(file).split())
        if not missing:
            return
        text = " ".join(f"+{name}" for name in sorted(missing))
        try:
            try:
                io.write(file, text)
            except OSError as error:
                if error.errno != errno.EBUSY or not self._make_room(group):
                    raise
                io.write(file, text)
        except OSError as error:
            hint = "processes live in that group itself" if error.errno == errno.EBUSY else ""
            raise KnarrError(f"enabling cgroup controllers {', '.join(sorted(missing))} in {group}: {error.strerror}", hint=hint) from None

    def _make_room(self, group: str) -> bool:
        """Move the daemon's own processes out of a delegated group, which may have controllers or processes but not both; whether it did.

        Happens inside a container or a delegated systemd unit; the real top of the tree may have both and never gets here.
        """
        members = io.pids(group)
        if os.getpid() not in members:
            return False
        os.makedirs(f"{group}/{DAEMON}", exist_ok=True)
        for pid in members:
            try:
                io.write(f"{group}/{DAEMON}/cgroup.procs", pid)
            except ProcessLookupError:
                pass
        return True

    def _parent(self, path: str, wanted: set[str]) -> None:
        """Make the groups above `path`, with these controllers on all the way; remembered, as it is the same for nearly every container."""
        parent = os.path.dirname(path)
        if wanted <= self._parents.get(parent, set()) and os.path.isdir(self.group(parent)):
            return
        group = self.root
        self._enable(group, wanted)
        for name in parent.split("/") if parent else ():
            group = f"{group}/{name}"
            try:
                os.mkdir(group, 0o755)
            except FileExistsError:
                pass
            self._enable(group, wanted)
        self._parents.setdefault(parent, set()).update(wanted)

    def prepare(self, path: str, resources: runtime.Resources, *, device_program: bool) -> str:
        """Make the group with its limits; its directory. Raises InvalidParameter, KnarrError, Conflict."""
        values = limits(resources)
        used = {name.split(".")[0] for name, _ in values} | set(ALWAYS)
        self._require(values)
        group = self.group(path)
        wanted = used & self.controllers
        self._parent(path, wanted)
        io.make(group)
        try:
            self._write(group, values)
            if device_program and not devices.allows_all(resources.devices):
                self.attach_devices(group, resources.devices)
        except BaseException:
            os.rmdir(group)
            raise
        return group

    def _require(self, values: list[tuple[str, str]]) -> None:
        lacking = sorted({name.split(".")[0] for name, _ in values} - self.controllers)
        if lacking:
            raise KnarrError(f"this host has no {lacking[0]} controller for containers", hint="see cgroup.controllers")

    def _write(self, group: str, values: list[tuple[str, str]]) -> None:
        for name, value in values:
            file = f"{group}/{name}"
            if name == "memory.swap.max" and not os.path.exists(file):
                continue  # no swap accounting: Cgroups.warnings() says so
            if name == "io.bfq.weight" and not os.path.exists(file):
                file, value = f"{group}/io.weight", _as_io_weight(value)
            io.limit(file, value)

    def attach_devices(self, group: str, rules: tuple[runtime.DeviceRule, ...]) -> None:
        """Enforce device rules on a group. Raises KnarrError."""
        from engine import _core

        own = -1
        fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if rules == devices.DEFAULT_RULES:
                program = _default_program()
            else:
                program = own = _core.bpf_load_device(devices.bpf_program(rules))
            _core.bpf_attach_device(fd, program, BPF_F_ALLOW_MULTI)
        except OSError as error:
            raise KnarrError(f"attaching the device program to {group}: {error.strerror}") from None
        finally:
            os.close(fd)
            if own >= 0:
                os.close(own)

    def update(self, path: str, resources: runtime.Resources) -> None:
        """Change limits of a group that exists."""
        values = limits(resources)
        if not values:
            return
        self._require(values)
        self._parent(path, {name.split(".")[0] for name, _ in values})
        self._write(self.group(path), values)

    def cpu(self, path: str) -> CpuStats:
        table = io.flat(f"{self.group(path)}/cpu.stat")
        return CpuStats(
            total=table.get("usage_usec", 0) * 1000, user=table.get("user_usec", 0) * 1000, system=table.get("system_usec", 0) * 1000,
            periods=table.get("nr_periods", 0), throttled_periods=table.get("nr_throttled", 0),
            throttled_time=table.get("throttled_usec", 0) * 1000,
        )  # fmt: skip

    def memory(self, path: str) -> MemoryStats:
        group = self.group(path)
        events = io.flat(f"{group}/memory.events")
        return MemoryStats(
            usage=io.number(f"{group}/memory.current") or 0, limit=io.number(f"{group}/memory.max"),
            max_usage=io.number(f"{group}/memory.peak"), swap_usage=io.number(f"{group}/memory.swap.current") or 0,
            swap_limit=io.number(f"{group}/memory.swap.max"), failures=events.get("max", 0), oom_kills=events.get("oom_kill", 0),
            stat=io.flat(f"{group}/memory.stat"),
        )  # fmt: skip

    def pids_stats(self, path: str) -> PidsStats:
        group = self.group(path)
        current = io.number(f"{group}/pids.current")
        if current is None:
            current = sum(len(io.read(f"{each}/cgroup.threads").split()) for each in io.tree(group))
        return PidsStats(current=current, limit=io.number(f"{group}/pids.max"))

    def blkio(self, path: str) -> BlkioStats:
        size: list[BlkioEntry] = []
        count: list[BlkioEntry] = []
        for line in io.read(f"{self.group(path)}/io.stat").splitlines():
            device, *pairs = line.split()
            major, _, minor = device.partition(":")
            values = dict(pair.partition("=")[::2] for pair in pairs)
            for key, op, into in (("rbytes", "Read", size), ("wbytes", "Write", size), ("rios", "Read", count), ("wios", "Write", count)):
                if key in values:
                    into.append(BlkioEntry(int(major), int(minor), op, int(values[key])))
        return BlkioStats(service_bytes=tuple(size), serviced=tuple(count))

    def freeze(self, path: str) -> None:
        """Stop every task and wait until all stand."""
        self._frozen(path, 1)

    def thaw(self, path: str) -> None:
        """Let every task go on."""
        self._frozen(path, 0)

    def _frozen(self, path: str, value: int) -> None:
        group = self.group(path)
        what = "freezing" if value else "thawing"
        try:
            io.write(f"{group}/cgroup.freeze", value)
        except OSError as error:
            raise KnarrError(f"{what} {group}: {error.strerror}") from None
        io.wait_for(f"{group}/cgroup.events", f"frozen {value}", what)

    def kill(self, path: str) -> bool:
        """SIGKILL all at once; False when the kernel (before 5.14) cannot or the group is gone."""
        try:
            io.write(f"{self.group(path)}/cgroup.kill", 1)
        except FileNotFoundError:
            return False
        return True


def _as_io_weight(value: str) -> str:
    device, _, weight = value.rpartition(" ")
    return f"{device or 'default'} {io_weight(int(weight))}"


def check(resources: runtime.Resources) -> None:
    """Refuse what neither version sets yet. Raises NotImplementedYet."""
    cpu, memory = resources.cpu, resources.memory
    if cpu and (cpu.realtime_period or cpu.realtime_runtime):
        raise NotImplementedYet("--cpu-rt-period and --cpu-rt-runtime")
    if memory and (memory.kernel or memory.kernel_tcp):
        raise NotImplementedYet("--kernel-memory")
    if resources.hugepage_limits:
        raise NotImplementedYet("hugepage limits")
    if resources.network and (resources.network.class_id or resources.network.priorities):
        raise NotImplementedYet("network cgroup limits")
    if resources.rdma:
        raise NotImplementedYet("RDMA limits")
    block = resources.block_io
    if block and (block.leaf_weight or any(device.leaf_weight for device in block.weight_device)):
        raise NotImplementedYet("blkio leaf weights")
