"""From an OCI spec to the operations that start it. Pure: a value in, a value out; the host is not looked at.

Follows config.md and config-linux.md of the OCI runtime specification 1.3. The order of the operations is part of the design:

* control groups first, so that all memory of the set-up is charged to the container, and the cgroup namespace after them;
* everything inside the root before pivot_root, by descriptors, while host paths (sources of binds, the host's /proc and /dev/pts) exist;
* limits late, so that they do not hinder the set-up; capabilities after the user; seccomp as the last thing that the privileges allow.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Sequence

from engine.errors import InvalidParameter, NotImplementedYet
from engine.linux import caps
from engine.linux.cgroups_types import Placement
from engine.runtime import ops, options
from engine.runtime.explain import exit_code, explain
from engine.runtime.ops import Op
from engine.spec import idmapping
from engine.spec.mount import IdMapping, Mount
from engine.spec.runtime import Capabilities, Device, Linux, Namespace, Process, Rlimit, Spec

__all__ = ["INHERITED", "UserNamespaces", "container_plan", "exec_plan", "exit_code", "explain"]

# From the mappings of user and group ids to the path of a user namespace that has them, which is there until the plan has run.
UserNamespaces = Callable[[tuple[IdMapping, ...], tuple[IdMapping, ...]], str]

# The path of a network namespace that the process is born in, because whoever starts it has entered it: no operation is needed.
INHERITED = "/proc/self/ns/net"

# config-linux.md, "Default Devices" and "Default symbolic links"; runc adds /dev/core where the kernel has /proc/kcore.
_NODES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
_LINKS = (
    ("/proc/self/fd", "/dev/fd"), ("/proc/self/fd/0", "/dev/stdin"), ("/proc/self/fd/1", "/dev/stdout"), ("/proc/self/fd/2", "/dev/stderr"),
    ("/proc/kcore", "/dev/core"), ("pts/ptmx", "/dev/ptmx"),
)  # fmt: skip
_DEFAULT_NODES = tuple(ops.Mknod(f"/dev/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor)) for name, major, minor in _NODES)
_DEFAULT_LINKS = tuple(ops.Symlink(text, path) for text, path in _LINKS)
_DEVICE_TYPES = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}

# namespaces(7) and ipc_namespaces(7)
_IPC_SYSCTLS = frozenset({
    "kernel/auto_msgmni", "kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem", "kernel/shmall", "kernel/shmmax",
    "kernel/shmmni", "kernel/shm_rmid_forced", "kernel/msg_next_id", "kernel/sem_next_id", "kernel/shm_next_id",
})  # fmt: skip
_CGROUP_ROOT = "/sys/fs/cgroup/"
_ROOT_PROPAGATION = {"": options.MS_PRIVATE, "private": options.MS_PRIVATE, "rprivate": options.MS_PRIVATE} | {
    word: options.MS_SLAVE for word in ("slave", "rslave", "shared", "rshared", "unbindable", "runbindable")
}


def container_plan(
    spec: Spec,
    *,
    rootfs: Sequence[Mount],
    mountpoint: str,
    placement: Placement,
    seccomp: bytes | None,
    tty: bool,
    userns: UserNamespaces | None = None,
    alive: Sequence[tuple[int, int]] = (),
) -> tuple[Op, ...]:
    """The operations that start a container.

    `rootfs`: what is mounted on `mountpoint`, an empty host directory, to be its root (more mounts go to their destination below it).
    `seccomp`: a compiled filter, None for none. `tty`: standard input, output and error are a terminal. `userns`: asked for the user
    namespaces of mounts with mapped owners; what it raises is passed on. `alive`: (pid, start time) of processes whose files in /proc the
    spec names, and which must be there when all of those are open.
    Raises InvalidParameter for a spec that makes no sense, NotImplementedYet for parts of the specification that are missing here.
    """
    process = spec.process
    if process is None or not process.args:
        raise InvalidParameter("no command specified")
    linux = spec.linux or Linux()
    _refuse(spec, linux, process)
    new, joined = _namespaces(linux.namespaces)
    plan: list[Op] = [ops.Clone(new & ~ops.NEWCGROUP, placement.directory)]
    plan += map(ops.Tasks, placement.tasks)
    plan += joined
    if new & ops.NEWCGROUP:
        plan.append(ops.Unshare(ops.NEWCGROUP))
    if new & ops.NEWNET:
        plan.append(ops.Loopback())
    plan.append(ops.Keyring())
    plan += _filesystem(spec, linux, rootfs, mountpoint, placement, tty, userns)
    plan += [ops.Alive(pid, began) for pid, began in alive]
    own = frozenset(namespace.type for namespace in linux.namespaces)
    if (spec.hostname or spec.domainname) and "uts" not in own:
        raise InvalidParameter("a host or domain name needs a UTS namespace of its own")
    if spec.hostname:
        plan.append(ops.Hostname(spec.hostname))
    if spec.domainname:
        plan.append(ops.Domainname(spec.domainname))
    plan += [_sysctl(name, value, own) for name, value in linux.sysctl.items()]
    if process.oom_score_adj is not None:
        plan.append(ops.OomScore(process.oom_score_adj))
    plan += (ops.Pivot(), ops.Cwd(process.cwd, create=True))
    if linux.rootfs_propagation in ("shared", "rshared", "unbindable", "runbindable"):
        plan.append(ops.Propagation("/", options.PROPAGATION[linux.rootfs_propagation]))
    if spec.root is not None and spec.root.readonly:
        plan.append(ops.Attributes("/", options.ATTR_RDONLY))
    plan += _identity(process, linux, seccomp, tty)
    return tuple(plan)


def exec_plan(
    process: Process,
    *,
    pid: int,
    start_time: int = 0,
    namespaces: int = ops.NEWNS | ops.NEWPID | ops.NEWUTS | ops.NEWIPC | ops.NEWNET | ops.NEWCGROUP,
    placement: Placement,
    seccomp: bytes | None,
    tty: bool,
    linux: Linux | None = None,
) -> tuple[Op, ...]:
    """The operations that start another process in a running container.

    `pid`: the container's first process in the caller's pid namespace; `start_time`: field 22 of its /proc/PID/stat, so that a pid that was
    used again is refused (ESRCH). `namespaces`: which ones to join (CLONE_NEW*). `linux`: the container's, for its seccomp flags.
    """
    if not process.args:
        raise InvalidParameter("no exec command specified")
    _refuse_process(process)
    # Whoever may trace in the container could trace this process before its exec: then at least not with our memory in it.
    traceable = process.capabilities is not None and "CAP_SYS_PTRACE" in process.capabilities.bounding
    plan: list[Op] = [ops.Clone(0, placement.directory, plain=traceable)]
    plan += map(ops.Tasks, placement.tasks)
    if process.oom_score_adj is not None:
        plan.append(ops.OomScore(process.oom_score_adj))
    plan += (ops.Keyring(), ops.JoinProcess(pid, start_time, namespaces))
    if tty:
        plan.append(_terminal(process))
    plan.append(ops.Cwd(process.cwd))
    plan += _identity(process, linux or Linux(), seccomp, tty)
    return tuple(plan)


def _refuse(spec: Spec, linux: Linux, process: Process) -> None:
    if spec.hooks is not None:
        raise NotImplementedYet("hooks")
    missing = (
        ("linux.uidMappings", linux.uid_mappings or linux.gid_mappings),
        ("linux.mountLabel", linux.mount_label),
        ("linux.intelRdt", linux.intel_rdt),
        ("linux.memoryPolicy", linux.memory_policy),
        ("linux.netDevices", linux.net_devices),
        ("linux.personality", linux.personality),
        ("linux.timeOffsets", linux.time_offsets),
        ("linux.seccomp.listenerPath", linux.seccomp is not None and linux.seccomp.listener_path),
    )
    for name, value in missing:
        if value:
            raise NotImplementedYet(name)
    if linux.rootfs_propagation not in _ROOT_PROPAGATION:
        raise InvalidParameter(f"unknown rootfs propagation {linux.rootfs_propagation!r}")
    _refuse_process(process)


def _refuse_process(process: Process) -> None:
    if not process.cwd.startswith("/"):
        raise InvalidParameter(f"the working directory {process.cwd!r} is not an absolute path")
    missing = (
        ("process.apparmorProfile", process.apparmor_profile not in ("", "unconfined")),
        ("process.selinuxLabel", process.selinux_label),
        ("process.scheduler", process.scheduler),
        ("process.ioPriority", process.io_priority),
        ("process.execCPUAffinity", process.exec_cpu_affinity),
    )
    for name, value in missing:
        if value:
            raise NotImplementedYet(name)


@functools.lru_cache(maxsize=64)
def _namespaces(namespaces: tuple[Namespace, ...]) -> tuple[int, tuple[Op, ...]]:
    """Flags of the new ones, operations for the joined ones."""
    new, joined = 0, []
    for namespace in namespaces:
        flag = ops.NAMESPACES.get(namespace.type)
        if flag is None:
            raise InvalidParameter(f"unknown namespace {namespace.type!r}")
        if flag in (ops.NEWUSER, ops.NEWTIME):
            raise NotImplementedYet(f"{namespace.type} namespaces")
        if namespace.path and flag == ops.NEWNS:
            raise NotImplementedYet("joining a mount namespace")
        if namespace.path == INHERITED:
            continue
        if namespace.path:
            joined.append(ops.Join(flag, namespace.path))
        else:
            new |= flag
    if not new & ops.NEWNS:
        raise InvalidParameter("a container needs a mount namespace of its own")
    return new, tuple(joined)


def _filesystem(
    spec: Spec, linux: Linux, rootfs: Sequence[Mount], mountpoint: str, placement: Placement, tty: bool, userns: UserNamespaces | None
) -> list[Op]:
    parsed = [(mount, options.parse(mount.options)) for mount in (*rootfs[1:], *spec.mounts)]
    plan: list[Op] = []
    kept: dict[int, int] = {}
    for index, (mount, opts) in enumerate(parsed):
        if opts.propagation & options.MS_SHARED and _is_bind(mount, opts):  # in the host's peer group only if cloned before we leave it
            kept[index] = len(kept)
            plan.append(ops.Bind(mount.source, mount.destination, recursive=opts.bind_recursive, keep=kept[index]))
    plan.append(ops.Propagation("/", _ROOT_PROPAGATION[linux.rootfs_propagation] | options.MS_REC))
    plan.append(_root(rootfs, mountpoint))
    for index, (mount, opts) in enumerate(parsed):
        if _is_bind(mount, opts):
            plan.append(_bind(mount, opts, kept.get(index, -1), userns))
        elif mount.type == "overlay" and (userns_path := _owners(mount, opts, userns)):
            plan += _mapped_overlay(mount, opts, userns_path)
        elif opts.idmap or mount.uid_mappings or mount.gid_mappings:
            raise NotImplementedYet(f"id mappings of the mount on {mount.destination}, which is no bind")
        elif mount.type == "cgroup":
            plan += _cgroup(mount.destination, mount.options, placement)
        else:
            plan.append(_mount(mount, opts))
    if tty and spec.process is not None:
        plan.append(_terminal(spec.process))
    plan += _devices(linux, parsed, tty)
    plan += _hidden(linux.masked_paths, linux.readonly_paths)
    return plan


def _is_bind(mount: Mount, opts: options.Options) -> bool:
    return opts.bind or mount.type in ("bind", "rbind")


def _root(rootfs: Sequence[Mount], mountpoint: str) -> Op:
    if not rootfs:
        raise InvalidParameter("the container has no root file system")
    mount, opts = rootfs[0], options.parse(rootfs[0].options)
    if not _is_bind(mount, opts):
        return ops.Root(mount.source or mount.type, mountpoint, mount.type, opts.flags, opts.data, mount.base)
    if opts.set:
        raise NotImplementedYet("mount options of a bind-mounted root", hint='use "readonly" of the root')
    return ops.Root(mount.source, mountpoint, "", options.MS_BIND | options.MS_REC, "", mount.base)


def _check(mount: Mount) -> None:
    if not mount.destination.strip("/") or not mount.destination.startswith("/"):
        raise InvalidParameter(f"the mount's destination {mount.destination!r} is not an absolute path below the root")


def _owners(mount: Mount, opts: options.Options, userns: UserNamespaces | None) -> str:
    """The path of the user namespace that maps a bind's owners, "" for none (config.md, "idmap", "uidMappings")."""
    if mount.userns:
        return mount.userns
    if not (mount.uid_mappings or mount.gid_mappings):
        if opts.idmap:
            raise InvalidParameter(
                f"mount on {mount.destination}: idmap without mappings means those of the container's user namespace, and it has none"
            )
        return ""
    if not (mount.uid_mappings and mount.gid_mappings):
        raise InvalidParameter(f"mount on {mount.destination}: mappings of user ids and of group ids go together")
    for mapping in (mount.uid_mappings, mount.gid_mappings):
        if problem := idmapping.problem(mapping):  # the kernel would cut numbers off at 32 bits
            raise InvalidParameter(f"mount on {mount.destination}: mapping of ids: {problem}")
    if userns is None:
        raise NotImplementedYet(f"id mappings of the mount on {mount.destination}")
    return userns(mount.uid_mappings, mount.gid_mappings)


def _bind(mount: Mount, opts: options.Options, kept: int, userns: UserNamespaces | None) -> Op:
    _check(mount)
    if opts.data:
        raise InvalidParameter(f"mount on {mount.destination}: unknown option {opts.data!r} for a bind")
    recursive = opts.bind_recursive or mount.type == "rbind"
    # What a clone of our private tree is anyway, but not one of another namespace, whose owner may share mounts.
    propagation = 0 if opts.propagation & options.MS_PRIVATE and not mount.namespace else opts.propagation
    return ops.Bind(
        mount.source, mount.destination, opts.set, opts.clear, propagation, recursive, opts.attributes_recursive, -1, kept,
        mount.subpath, _owners(mount, opts, userns), opts.idmap_recursive, mount.namespace,
    )  # fmt: skip


@functools.lru_cache(maxsize=256)
def _mount_op(source: str, destination: str, type: str, opts: options.Options, base: str) -> Op:
    propagation = 0 if opts.propagation & options.MS_PRIVATE else opts.propagation
    return ops.Mount(source or type, destination, type, opts.flags, opts.data, base, propagation)


def _mount(mount: Mount, opts: options.Options) -> Op:
    _check(mount)
    if not mount.type:
        raise InvalidParameter(f"the mount on {mount.destination} has no type")
    if mount.destination == "/dev" and opts.flags & options.MS_RDONLY:  # read-only once the nodes are made
        opts = options.parse((*mount.options, "rw"))
    return _mount_op(mount.source, mount.destination, mount.type, opts, mount.base)


def _mapped_overlay(mount: Mount, opts: options.Options, userns: str) -> list[Op]:
    """An overlay has the owners that its folders have, so it is those whose owners are mapped, for as long as it is made."""
    found = options.lowers(mount.options)
    if not found or not mount.base or any(word.startswith("upperdir=") for word in mount.options):
        raise NotImplementedYet(f"id mappings of the mount on {mount.destination}, an overlay that is written to or of unknown folders")
    return [ops.Owners(found, mount.base, userns), _mount(mount, opts), ops.Owners(found, mount.base)]


def _cgroup(destination: str, words: tuple[str, ...], placement: Placement) -> list[Op]:
    """The container's own groups: on v2 the file system (its namespace makes the container's group the root), on v1 a bind for each
    hierarchy that it was placed in, which also hides the others."""
    opts = options.parse(words)
    if not placement.tasks:
        return [ops.Mount("cgroup", destination, "cgroup2", opts.flags, opts.data)]
    plan: list[Op] = [ops.Mount("tmpfs", destination, "tmpfs", opts.flags & ~options.MS_RDONLY, "mode=755")]
    for path in placement.tasks:
        group = path.removesuffix("/tasks")
        name = group.removeprefix(_CGROUP_ROOT).partition("/")[0]
        plan.append(ops.Bind(group, f"{destination}/{name}", opts.set, opts.clear))
        if "," in name:
            plan += [ops.Symlink(name, f"{destination}/{part}") for part in name.split(",")]
    if opts.flags & options.MS_RDONLY:
        plan.append(ops.Attributes(destination, options.ATTR_RDONLY))
    return plan


def _terminal(process: Process) -> Op:
    size = process.console_size
    return ops.Terminal(size.height, size.width) if size else ops.Terminal()


def _devices(linux: Linux, mounts: list[tuple[Mount, options.Options]], tty: bool) -> list[Op]:
    """Nodes and links of /dev; a /dev that is bound from the host has its own (as in runc)."""
    dev = next(((mount, opts) for mount, opts in mounts if mount.destination.rstrip("/") == "/dev"), None)
    if dev is not None and _is_bind(*dev):
        return []
    nodes: dict[str, Op] = {node.path: node for node in _DEFAULT_NODES}
    for device in linux.devices:
        nodes[device.path] = _node(device)
    plan = [*nodes.values(), *_DEFAULT_LINKS]
    if tty:
        plan.append(ops.Console())
    if dev is not None and dev[1].flags & options.MS_RDONLY:
        plan.append(ops.Attributes("/dev", options.ATTR_RDONLY))
    return plan


def _node(device: Device) -> Op:
    kind = _DEVICE_TYPES.get(device.type)
    if kind is None or not device.path.startswith("/"):
        raise InvalidParameter(f"invalid device {device.path!r} of type {device.type!r}")
    number = 0 if kind == stat.S_IFIFO else os.makedev(device.major, device.minor)
    mode = 0o666 if device.file_mode is None else device.file_mode & 0o7777
    return ops.Mknod(device.path, kind | mode, number, device.uid or 0, device.gid or 0)


@functools.lru_cache(maxsize=16)
def _hidden(masked: tuple[str, ...], readonly: tuple[str, ...]) -> tuple[Op, ...]:
    return (*map(ops.Mask, masked), *map(ops.Readonly, readonly))


@functools.lru_cache(maxsize=256)
def _sysctl(name: str, value: str, own: frozenset[str]) -> Op:
    """`net.ipv4.ip_forward` or `net/ipv4/ip_forward` (as sysctl(8) reads it); only what belongs to a namespace that is not the host's."""
    first = min((name.find(c) for c in "./" if c in name), default=-1)
    path = name if first < 0 or name[first] == "/" else name.translate(str.maketrans("./", "/."))
    if not path or any(part in ("", ".", "..") for part in path.split("/")):
        raise InvalidParameter(f"invalid sysctl {name!r}")
    if path.startswith("net/"):
        namespace = "network"
    elif path in _IPC_SYSCTLS or path.startswith("fs/mqueue/"):
        namespace = "ipc"
    elif path in ("kernel/hostname", "kernel/domainname"):
        namespace = "uts"
    else:
        raise InvalidParameter(f"sysctl {name!r} is not in a separate kernel namespace")
    if namespace not in own:
        raise InvalidParameter(f"sysctl {name!r} is not allowed in the host's {namespace} namespace")
    return ops.Sysctl(path, value)


def _rlimit(limit: Rlimit) -> Op:
    number = ops.RLIMITS.get(limit.type.upper().removeprefix("RLIMIT_"))
    if number is None:
        raise InvalidParameter(f"unknown resource limit {limit.type!r}")
    if limit.soft > limit.hard:
        raise InvalidParameter(f"{limit.type}: the soft limit {limit.soft} is above the hard limit {limit.hard}")
    return ops.Rlimit(number, limit.soft, limit.hard)


@functools.lru_cache(maxsize=64)
def _capabilities(sets: Capabilities) -> tuple[ops.Bounding, ops.Capabilities]:
    try:
        masks = [caps.mask(names) for names in (sets.bounding, sets.effective, sets.permitted, sets.inheritable, sets.ambient)]
    except KeyError as error:
        raise InvalidParameter(f"unknown capability {error.args[0]!r}") from None
    return ops.Bounding(masks[0]), ops.Capabilities(*masks[1:])


def _seccomp(program: bytes, linux: Linux) -> Op:
    flags = 0
    if linux.seccomp is not None and linux.seccomp.flags:
        from engine.linux.seccomp import filter_flags  # rarely needed

        flags = filter_flags(linux.seccomp)
    return ops.Seccomp(program, flags)


def _identity(process: Process, linux: Linux, seccomp: bytes | None, tty: bool) -> list[Op]:
    """From the standard streams to exec."""
    user = process.user
    plan: list[Op] = [ops.Stdio(tty, user.uid)]
    # A limit on open files counts what the child shares with the engine, so nothing opens a file afterwards; raising one needs privileges.
    plan += [_rlimit(limit) for limit in process.rlimits]
    sets = None if process.capabilities is None else _capabilities(process.capabilities)
    if sets:
        plan.append(sets[0])
    plan.append(ops.User(user.uid, user.gid, user.additional_gids, keep=sets is not None or seccomp is not None))
    plan.append(ops.Umask(0o022 if user.umask is None else user.umask))
    # Without no_new_privs a filter needs CAP_SYS_ADMIN, so it comes before the capabilities go.
    filters = [] if seccomp is None else [_seccomp(seccomp, linux)]
    if process.no_new_privileges:
        plan.append(ops.NoNewPrivs())
    else:
        plan += filters
    if sets:
        plan.append(sets[1])
    if process.no_new_privileges:
        plan += filters
    plan.append(ops.Exec(process.args, process.env))
    return plan
