"""The OCI runtime specification 1.3 (config.md, config-linux.md) as frozen structs. Pure data: no policy, no checks of the host.

Attribute names are snake_case; JSON has the specification's names. A field that is left out has its Go zero value here; `None` means
"not given" where the specification tells that apart from zero. Sizes are bytes, times are microseconds unless a field says otherwise.
Sections for other operating systems (Windows, Solaris, z/OS, VM) are ignored when decoding, as the specification allows.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from engine.spec.mount import IdMapping, Mount

__all__ = [
    "VERSION", "ArgRule", "BlockIO", "BlockRate", "BlockWeight", "Box", "Capabilities", "Cpu", "CpuAffinity", "Device", "DeviceRule",
    "Hook", "Hooks", "HugepageLimit", "IdMapping", "IntelRdt", "InterfacePriority", "IoPriority", "Linux", "Memory", "MemoryPolicy",
    "Mount", "Namespace", "NetDevice", "Network", "Personality", "Pids", "Process", "Rdma", "Resources", "Rlimit", "Root", "Scheduler",
    "Seccomp", "Spec", "SyscallRule", "TimeOffset", "User",
]  # fmt: skip

VERSION = "1.3.0"

Uint16 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
Uint32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
Uint64 = Annotated[int, msgspec.Meta(ge=0)]  # up to 2**64-1, which msgspec's `le` cannot express


class _Struct(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Base: immutable, OCI names, defaults left out of JSON."""


class Box(_Struct, frozen=True, kw_only=True):
    """Size of a terminal, in characters."""

    height: Uint32
    width: Uint32


class User(_Struct, frozen=True, kw_only=True):
    """Ids the process runs with, as seen inside its user namespace."""

    uid: Uint32
    gid: Uint32
    umask: Uint32 | None = None
    additional_gids: tuple[Uint32, ...] = ()
    username: str = ""


class Capabilities(_Struct, frozen=True, kw_only=True):
    """Capability sets by name (`CAP_CHOWN`)."""

    bounding: tuple[str, ...] = ()
    effective: tuple[str, ...] = ()
    inheritable: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()


class Rlimit(_Struct, frozen=True, kw_only=True):
    """One resource limit; `type` is `RLIMIT_NOFILE` and so on, 2**64-1 means no limit."""

    type: str
    hard: Uint64
    soft: Uint64


class Scheduler(_Struct, frozen=True, kw_only=True):
    """Arguments of sched_setattr(2); runtime, deadline and period in nanoseconds."""

    policy: str
    nice: int = 0
    priority: int = 0
    flags: tuple[str, ...] = ()
    runtime: Uint64 = 0
    deadline: Uint64 = 0
    period: Uint64 = 0


class IoPriority(_Struct, frozen=True, kw_only=True):
    """`class_` is `IOPRIO_CLASS_RT`, `IOPRIO_CLASS_BE` or `IOPRIO_CLASS_IDLE`."""

    class_: str = msgspec.field(name="class")
    priority: int


class CpuAffinity(_Struct, frozen=True, kw_only=True):
    """CPU lists of an exec: while it is being set up, and when it runs."""

    initial: str = ""
    final: str = ""


class Process(_Struct, frozen=True, kw_only=True):
    """The program of a container or of an exec."""

    user: User
    cwd: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    terminal: bool = False
    console_size: Box | None = None
    capabilities: Capabilities | None = None
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = False
    apparmor_profile: str = ""
    oom_score_adj: int | None = None
    scheduler: Scheduler | None = None
    selinux_label: str = ""
    io_priority: IoPriority | None = None
    exec_cpu_affinity: CpuAffinity | None = msgspec.field(name="execCPUAffinity", default=None)


class Root(_Struct, frozen=True, kw_only=True):
    """The root file system of a bundle."""

    path: str
    readonly: bool = False


class Hook(_Struct, frozen=True, kw_only=True):
    """A host program run at one moment of the lifecycle; `timeout` in seconds."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


class Hooks(_Struct, frozen=True, kw_only=True):
    """Hooks by moment (`prestart` is deprecated by the specification and still accepted)."""

    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = ()
    create_container: tuple[Hook, ...] = ()
    start_container: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


class DeviceRule(_Struct, frozen=True, kw_only=True):
    """One entry of the device controller's list; `type` is a, b or c, `access` a subset of "rwm"."""

    allow: bool
    type: str = ""
    major: int | None = None
    minor: int | None = None
    access: str = ""


class Memory(_Struct, frozen=True, kw_only=True):
    """Limits in bytes, -1 for none; `swap` is memory plus swap."""

    limit: int | None = None
    reservation: int | None = None
    swap: int | None = None
    kernel: int | None = None
    kernel_tcp: int | None = msgspec.field(name="kernelTCP", default=None)
    swappiness: Uint64 | None = None
    disable_oom_killer: bool | None = msgspec.field(name="disableOOMKiller", default=None)
    use_hierarchy: bool | None = None
    check_before_update: bool | None = None


class Cpu(_Struct, frozen=True, kw_only=True):
    """Shares are v1 weights (2 to 262144); quota, burst and period in microseconds; cpus and mems are lists like "0-3,7"."""

    shares: Uint64 | None = None
    quota: int | None = None
    burst: Uint64 | None = None
    period: Uint64 | None = None
    realtime_runtime: int | None = None
    realtime_period: Uint64 | None = None
    cpus: str = ""
    mems: str = ""
    idle: int | None = None


class Pids(_Struct, frozen=True, kw_only=True):
    """Number of tasks; 0 or below (or not given): no limit."""

    limit: int | None = None


class BlockWeight(_Struct, frozen=True, kw_only=True):
    """Weight of one block device."""

    major: int
    minor: int
    weight: Uint16 | None = None
    leaf_weight: Uint16 | None = None


class BlockRate(_Struct, frozen=True, kw_only=True):
    """Bytes or operations per second of one block device."""

    major: int
    minor: int
    rate: Uint64


class BlockIO(_Struct, frozen=True, kw_only=True):
    """Block device weights (10 to 1000) and rates."""

    weight: Uint16 | None = None
    leaf_weight: Uint16 | None = None
    weight_device: tuple[BlockWeight, ...] = ()
    throttle_read_bps_device: tuple[BlockRate, ...] = ()
    throttle_write_bps_device: tuple[BlockRate, ...] = ()
    throttle_read_iops_device: tuple[BlockRate, ...] = msgspec.field(name="throttleReadIOPSDevice", default=())
    throttle_write_iops_device: tuple[BlockRate, ...] = msgspec.field(name="throttleWriteIOPSDevice", default=())


class HugepageLimit(_Struct, frozen=True, kw_only=True):
    """`page_size` is a word like "2MB"; `limit` in bytes."""

    page_size: str
    limit: Uint64


class InterfacePriority(_Struct, frozen=True, kw_only=True):
    """net_prio of one interface."""

    name: str
    priority: Uint32


class Network(_Struct, frozen=True, kw_only=True):
    """net_cls and net_prio (v1 only)."""

    class_id: Uint32 | None = msgspec.field(name="classID", default=None)
    priorities: tuple[InterfacePriority, ...] = ()


class Rdma(_Struct, frozen=True, kw_only=True):
    """Limits of one RDMA device."""

    hca_handles: Uint32 | None = None
    hca_objects: Uint32 | None = None


class Resources(_Struct, frozen=True, kw_only=True):
    """What the container's cgroup enforces. `unified` is raw v2: file name to value."""

    devices: tuple[DeviceRule, ...] = ()
    memory: Memory | None = None
    cpu: Cpu | None = None
    pids: Pids | None = None
    block_io: BlockIO | None = msgspec.field(name="blockIO", default=None)
    hugepage_limits: tuple[HugepageLimit, ...] = ()
    network: Network | None = None
    rdma: dict[str, Rdma] = {}
    unified: dict[str, str] = {}


class ArgRule(_Struct, frozen=True, kw_only=True):
    """A condition on one system call argument; `op` is `SCMP_CMP_EQ` and so on, `value_two` the compared value of `SCMP_CMP_MASKED_EQ`."""

    index: Uint32
    value: Uint64
    value_two: Uint64 = 0
    op: str


class SyscallRule(_Struct, frozen=True, kw_only=True):
    """An action for some system calls when all `args` hold."""

    names: tuple[str, ...]
    action: str
    errno_ret: Uint32 | None = None
    args: tuple[ArgRule, ...] = ()


class Seccomp(_Struct, frozen=True, kw_only=True):
    """A seccomp filter before it is compiled."""

    default_action: str
    default_errno_ret: Uint32 | None = None
    architectures: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    listener_path: str = ""
    listener_metadata: str = ""
    syscalls: tuple[SyscallRule, ...] = ()


class Namespace(_Struct, frozen=True, kw_only=True):
    """`type`: mount pid network ipc uts user cgroup time. With `path` it is joined, else created."""

    type: str
    path: str = ""


class Device(_Struct, frozen=True, kw_only=True):
    """A device node to create; `type` is c, b, u or p."""

    path: str
    type: str
    major: int = 0
    minor: int = 0
    file_mode: Uint32 | None = None
    uid: Uint32 | None = None
    gid: Uint32 | None = None


class TimeOffset(_Struct, frozen=True, kw_only=True):
    """Offset of one clock of a time namespace."""

    secs: int = 0
    nanosecs: Uint32 = 0


class NetDevice(_Struct, frozen=True, kw_only=True):
    """A host network device moved into the container; `name` is its name inside."""

    name: str = ""


class MemoryPolicy(_Struct, frozen=True, kw_only=True):
    """NUMA policy (set_mempolicy(2)): `mode` like `MPOL_BIND`, `nodes` a list like "0-1"."""

    mode: str
    nodes: str = ""
    flags: tuple[str, ...] = ()


class IntelRdt(_Struct, frozen=True, kw_only=True):
    """Intel Resource Director Technology."""

    clos_id: str = msgspec.field(name="closID", default="")
    schemata: tuple[str, ...] = ()
    l3_cache_schema: str = ""
    mem_bw_schema: str = ""
    enable_monitoring: bool = False


class Personality(_Struct, frozen=True, kw_only=True):
    """Execution domain: `LINUX` or `LINUX32`."""

    domain: str
    flags: tuple[str, ...] = ()


class Linux(_Struct, frozen=True, kw_only=True):
    """The `linux` section."""

    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    sysctl: dict[str, str] = {}
    resources: Resources | None = None
    cgroups_path: str = ""
    namespaces: tuple[Namespace, ...] = ()
    devices: tuple[Device, ...] = ()
    net_devices: dict[str, NetDevice] = {}
    seccomp: Seccomp | None = None
    rootfs_propagation: str = ""
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    mount_label: str = ""
    intel_rdt: IntelRdt | None = None
    memory_policy: MemoryPolicy | None = None
    personality: Personality | None = None
    time_offsets: dict[str, TimeOffset] = {}


class Spec(_Struct, frozen=True, kw_only=True):
    """`config.json` of a bundle."""

    oci_version: str = msgspec.field(name="ociVersion")
    process: Process | None = None
    root: Root | None = None
    hostname: str = ""
    domainname: str = ""
    mounts: tuple[Mount, ...] = ()
    hooks: Hooks | None = None
    annotations: dict[str, str] = {}
    linux: Linux | None = None
