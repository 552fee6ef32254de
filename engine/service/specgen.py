"""From a container record to an OCI spec: `spec()` for the container, `exec_process()` for an exec in it.

Pure: everything that depends on the host comes in as `Host` or `Identity`. Defaults are Docker's (as documented in the Engine API and the
docker run reference); checks of the request were made at create by `service.admission`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import msgspec

from engine.linux import caps
from engine.linux.devices import DEFAULT_RULES, device_rules
from engine.runtime import plan
from engine.service.users import Identity
from engine.spec.container import ContainerRecord, ExecRecord
from engine.spec.docker.containers import HostConfig
from engine.spec.mount import Mount
from engine.spec.runtime import (
    VERSION,
    BlockIO,
    Box,
    Capabilities,
    Cpu,
    Device,
    DeviceRule,
    Linux,
    Memory,
    Namespace,
    Pids,
    Process,
    Resources,
    Rlimit,
    Root,
    Spec,
    User,
)

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

MASKED_PATHS = (
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
    "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
)  # fmt: skip
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_PROC = Mount(destination="/proc", type="proc", source="proc", options=("nosuid", "noexec", "nodev"))
_DEV = Mount(destination="/dev", type="tmpfs", source="tmpfs", options=("nosuid", "strictatime", "mode=755", "size=65536k"))
_DEVPTS = Mount(
    destination="/dev/pts", type="devpts", source="devpts",
    options=("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
)  # fmt: skip
_SYSFS = Mount(destination="/sys", type="sysfs", source="sysfs", options=("nosuid", "noexec", "nodev", "ro"))
_SYSFS_RW = Mount(destination="/sys", type="sysfs", source="sysfs", options=("nosuid", "noexec", "nodev"))
_CGROUP_RW = Mount(destination="/sys/fs/cgroup", type="cgroup", source="cgroup", options=("nosuid", "noexec", "nodev"))
_CGROUP = msgspec.structs.replace(_CGROUP_RW, options=(*_CGROUP_RW.options, "ro"))
_MQUEUE = Mount(destination="/dev/mqueue", type="mqueue", source="mqueue", options=("nosuid", "noexec", "nodev"))
_HOST_SHM = Mount(destination="/dev/shm", type="bind", source="/dev/shm", options=("rbind",))


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What a spec needs to know of this host and of the daemon's settings.

    `privileged_devices`: all device nodes of the host; `ulimits`: the daemon's defaults as (name, soft, hard).
    """

    hostname: str
    cgroupns_private: bool
    privileged_devices: tuple[Device, ...] = ()
    ulimits: tuple[tuple[str, int, int], ...] = ()
    shm_size: int = 64 * 1024 * 1024
    no_new_privileges: bool = False


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """Process ids whose namespaces are joined (`container:ID` modes), 0 for none. `alive`: (pid, start time) of each."""

    pid: int = 0
    network: int = 0
    ipc: int = 0
    alive: tuple[tuple[int, int], ...] = ()


def spec(
    record: ContainerRecord,
    identity: Identity,
    host: Host,
    *,
    files: Sequence[Mount],
    mounts: Sequence[Mount],
    devices: Sequence[Device] = (),
    limits: Resources | None = None,
    joined: Joined | None = None,
) -> Spec:
    """The OCI spec of a container.

    `files`: binds of /etc/hosts, /etc/resolv.conf, /etc/hostname; `mounts`: the user's, sorted by depth; `devices`: from --device;
    `limits`: from `resources`.
    """
    config, hc = record.config, record.host_config
    privileged = hc.privileged
    return Spec(
        oci_version=VERSION,
        root=Root(path="rootfs", readonly=hc.readonly_rootfs),
        hostname="" if hc.uts_mode == "host" else config.hostname,
        domainname="" if hc.uts_mode == "host" else config.domainname,
        process=Process(
            terminal=config.tty,
            console_size=_box(hc.console_size),
            user=User(uid=identity.uid, gid=identity.gid, additional_gids=identity.groups),
            args=(record.path, *record.args),
            env=environment(config.env or (), config.hostname, config.tty, identity.home),
            cwd=config.working_dir or "/",
            capabilities=capabilities(hc.cap_add, hc.cap_drop, privileged, identity.uid),
            rlimits=_rlimits(hc, host),
            no_new_privileges=no_new_privileges(hc.security_opt, host.no_new_privileges),
            oom_score_adj=hc.oom_score_adj,
        ),
        mounts=_mounts(hc, host, files, mounts, joined.ipc if joined else 0),
        annotations=hc.annotations or {},
        linux=Linux(
            namespaces=_namespaces(hc, host, joined or Joined()),
            resources=limits,
            cgroups_path=f"{hc.cgroup_parent}/{record.id}",
            devices=host.privileged_devices if privileged else tuple(devices),
            sysctl=hc.sysctls or {},  # what a network namespace has by default is there already
            masked_paths=_paths(hc.masked_paths, MASKED_PATHS, privileged),
            readonly_paths=_paths(hc.readonly_paths, READONLY_PATHS, privileged),
            rootfs_propagation=_propagation(mounts),
        ),
    )


def exec_process(record: ContainerRecord, execution: ExecRecord, identity: Identity, host: Host) -> Process:
    """The process of an exec: the container's environment, capabilities and limits, with what the exec asks for."""
    config, hc = record.config, record.host_config
    privileged = execution.privileged or hc.privileged
    return Process(
        terminal=execution.tty,
        console_size=_box(execution.console_size),
        user=User(uid=identity.uid, gid=identity.gid, additional_gids=identity.groups),
        args=(execution.path, *execution.args),
        env=environment(merge_env(config.env or (), execution.env), config.hostname, execution.tty, identity.home),
        cwd=execution.working_dir or config.working_dir or "/",
        capabilities=capabilities(hc.cap_add, hc.cap_drop, privileged, identity.uid),
        rlimits=_rlimits(hc, host),
        no_new_privileges=no_new_privileges(hc.security_opt, host.no_new_privileges),
        oom_score_adj=hc.oom_score_adj,
    )


def merge_env(base: Iterable[str], override: Iterable[str]) -> list[str]:
    """`override` replaces variables of `base` in place and appends new ones; a name without `=` removes the variable (Docker)."""
    merged = {entry.partition("=")[0]: entry for entry in base}
    for entry in override:
        name, equals, _ = entry.partition("=")
        if equals:
            merged[name] = entry
        else:
            merged.pop(name, None)
    return list(merged.values())


def environment(env: Iterable[str], hostname: str, tty: bool, home: str) -> tuple[str, ...]:
    """Docker's order: PATH, HOSTNAME, TERM for a terminal, then the container's own, HOME last unless it is set."""
    base = [DEFAULT_PATH, f"HOSTNAME={hostname}"]
    if tty:
        base.append("TERM=xterm")
    merged = merge_env(base, env)
    if not any(entry.startswith("HOME=") for entry in merged):
        merged.append(f"HOME={home}")
    return tuple(merged)


def capabilities(add: list[str] | None, drop: list[str] | None, privileged: bool, uid: int) -> Capabilities:
    """The sets of a process: bounding and permitted alike, effective for root alone, nothing inheritable (CVE-2022-24769)."""
    return _capabilities(tuple(add or ()), tuple(drop or ()), privileged, uid == 0)


@functools.lru_cache(maxsize=64)
def _capabilities(add: tuple[str, ...], drop: tuple[str, ...], privileged: bool, root: bool) -> Capabilities:
    names = caps.resolve(add, drop, privileged=privileged)
    return Capabilities(bounding=names, permitted=names, effective=names if root else ())


def no_new_privileges(options: list[str] | None, default: bool) -> bool:
    """`--security-opt no-new-privileges[=BOOL]`."""
    for option in options or ():
        key, _, value = option.replace(":", "=", 1).partition("=")
        if key == "no-new-privileges":
            return value in ("", "true", "1", "t", "T", "TRUE", "True")
    return default


def resources(
    hc: HostConfig, devices: Sequence[Device] = (), rules: Sequence[DeviceRule] = (), block_io: BlockIO | None = None
) -> Resources:
    """Limits of the container's cgroup. As Docker: swap plus memory is twice the memory unless given; --cpus is a quota for 100 ms."""
    if hc.privileged:
        allowed: tuple[DeviceRule, ...] = (DeviceRule(allow=True, access="rwm"),)
    else:
        allowed = device_rules(devices, rules) if devices or rules else DEFAULT_RULES
    return Resources(
        devices=allowed,
        memory=_memory(hc),
        cpu=_cpu(hc),
        pids=Pids(limit=hc.pids_limit) if hc.pids_limit and hc.pids_limit > 0 else None,
        block_io=block_io,
    )


def _memory(hc: HostConfig) -> Memory | None:
    swap = hc.memory_swap or (hc.memory * 2 if hc.memory else 0)
    swappiness = hc.memory_swappiness if hc.memory_swappiness is not None and hc.memory_swappiness >= 0 else None
    if not (hc.memory or swap or hc.memory_reservation or swappiness is not None or hc.oom_kill_disable):
        return None
    return Memory(
        limit=hc.memory or None,
        swap=swap or None,
        reservation=hc.memory_reservation or None,
        swappiness=swappiness,
        disable_oom_killer=hc.oom_kill_disable or None,
    )


def _cpu(hc: HostConfig) -> Cpu | None:
    period, quota = hc.cpu_period or None, hc.cpu_quota or None
    if hc.nano_cpus:
        period, quota = 100_000, hc.nano_cpus * 100_000 // 1_000_000_000
    if not (period or quota or hc.cpu_shares or hc.cpuset_cpus or hc.cpuset_mems or hc.cpu_realtime_period or hc.cpu_realtime_runtime):
        return None
    return Cpu(
        shares=hc.cpu_shares or None,
        quota=quota,
        period=period,
        cpus=hc.cpuset_cpus,
        mems=hc.cpuset_mems,
        realtime_period=hc.cpu_realtime_period or None,
        realtime_runtime=hc.cpu_realtime_runtime or None,
    )


def _box(size: tuple[int, int] | None) -> Box | None:
    return Box(height=size[0], width=size[1]) if size and any(size) else None


def _rlimits(hc: HostConfig, host: Host) -> tuple[Rlimit, ...]:
    limits = {name: (soft, hard) for name, soft, hard in host.ulimits}
    limits.update((limit.name, (limit.soft, limit.hard)) for limit in hc.ulimits or ())
    return tuple(
        Rlimit(type=f"RLIMIT_{name.upper()}", soft=_unlimited(soft), hard=_unlimited(hard)) for name, (soft, hard) in limits.items()
    )


def _unlimited(value: int) -> int:
    return value if value >= 0 else 2**64 - 1


def _namespaces(hc: HostConfig, host: Host, joined: Joined) -> tuple[Namespace, ...]:
    return _namespace_set(
        hc.pid_mode != "host", joined.pid, hc.uts_mode != "host", hc.ipc_mode != "host", joined.ipc,
        _network(hc.network_mode, joined.network),
        hc.cgroupns_mode == "private" or (not hc.cgroupns_mode and host.cgroupns_private and not hc.privileged),
    )  # fmt: skip


def _network(mode: str, joined: int) -> str | None:
    """The path of its namespace, None for the host's."""
    if mode == "host":
        return None
    return f"/proc/{joined}/ns/net" if joined else plan.INHERITED


@functools.lru_cache(maxsize=64)
def _namespace_set(pid: bool, pid_of: int, uts: bool, ipc: bool, ipc_of: int, network: str | None, cgroup: bool) -> tuple[Namespace, ...]:
    found = [Namespace(type="mount")]
    if pid_of:
        found.append(Namespace(type="pid", path=f"/proc/{pid_of}/ns/pid"))
    elif pid:
        found.append(Namespace(type="pid"))
    if network is not None:
        found.append(Namespace(type="network", path=network))
    if ipc_of:
        found.append(Namespace(type="ipc", path=f"/proc/{ipc_of}/ns/ipc"))
    wanted = (("uts", uts), ("ipc", ipc and not ipc_of), ("cgroup", cgroup))
    return tuple(found + [Namespace(type=name) for name, on in wanted if on])


def _mounts(hc: HostConfig, host: Host, files: Sequence[Mount], mounts: Sequence[Mount], ipc_of: int) -> tuple[Mount, ...]:
    targets = {mount.destination for mount in mounts}
    base = _base_mounts(hc.privileged, hc.ipc_mode, ipc_of, hc.shm_size or host.shm_size)
    if targets:
        base = tuple(mount for mount in base if mount.destination not in targets)
        files = [mount for mount in files if mount.destination not in targets]
    return (*base, *files, *mounts)


@functools.lru_cache(maxsize=64)
def _base_mounts(privileged: bool, ipc: str, ipc_of: int, shm_size: int) -> tuple[Mount, ...]:
    shm = Mount(destination="/dev/shm", type="tmpfs", source="shm", options=("nosuid", "noexec", "nodev", "mode=1777", f"size={shm_size}"))
    if ipc_of:
        shm = Mount(destination="/dev/shm", source="/dev/shm", options=("bind", "rprivate"), namespace=f"/proc/{ipc_of}/ns/mnt")
    return (
        _PROC,
        _DEV,
        _DEVPTS,
        _SYSFS_RW if privileged else _SYSFS,
        _CGROUP_RW if privileged else _CGROUP,
        _MQUEUE,  # with --ipc host, mounting it shows the host's queues, whether or not the host has them mounted
        *(() if ipc == "none" else (_HOST_SHM if ipc == "host" else shm,)),
    )


def _paths(given: list[str] | None, default: tuple[str, ...], privileged: bool) -> tuple[str, ...]:
    if given is not None:
        return tuple(given)
    return () if privileged else default


def _propagation(mounts: Sequence[Mount]) -> str:
    words = {word for mount in mounts for word in mount.options}
    if words & {"shared", "rshared"}:
        return "shared"
    return "rslave" if words & {"slave", "rslave"} else ""
