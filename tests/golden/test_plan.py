"""What a plan is, word for word: a change here is a change of every container's start."""

from __future__ import annotations

import msgspec

from engine.linux.cgroups_types import Placement
from engine.runtime import ops, plan
from engine.spec.mount import Mount
from engine.spec.runtime import VERSION, Capabilities, Linux, Namespace, Process, Rlimit, Root, Spec, User

NAMESPACES = tuple(Namespace(type=name) for name in ("mount", "pid", "network", "ipc", "uts", "cgroup"))
SETS = Capabilities(bounding=("CAP_CHOWN",), permitted=("CAP_CHOWN",), effective=("CAP_CHOWN",))
SPEC = Spec(
    oci_version=VERSION,
    hostname="box",
    root=Root(path="rootfs", readonly=True),
    process=Process(
        user=User(uid=1000, gid=100, additional_gids=(4, 5)), cwd="/work", args=("sh", "-c", "exit 3"), env=("PATH=/bin",),
        capabilities=SETS, rlimits=(Rlimit(type="RLIMIT_NOFILE", soft=10, hard=20),), oom_score_adj=-500,
    ),
    mounts=(
        Mount(destination="/proc", type="proc", source="proc", options=("nosuid", "noexec", "nodev")),
        Mount(destination="/dev", type="tmpfs", source="tmpfs", options=("nosuid", "strictatime", "mode=755", "size=65536k")),
        Mount(destination="/sys/fs/cgroup", type="cgroup", source="cgroup", options=("ro", "nosuid")),
        Mount(destination="/data", type="bind", source="/srv", options=("rbind", "ro", "rprivate")),
    ),
    linux=Linux(
        namespaces=NAMESPACES, masked_paths=("/proc/kcore",), readonly_paths=("/proc/sys",), sysctl={"net.ipv4.conf.eth0/1.forwarding": "1"}
    ),
)  # fmt: skip
OVERLAY = ("lowerdir=2/fs:1/fs", "upperdir=3/fs", "workdir=3/work")
ROOTFS = [Mount(type="overlay", source="overlay", options=OVERLAY, base="/data/snapshots")]
V1 = Placement(tasks=("/sys/fs/cgroup/cpu,cpuacct/knarr/x/tasks", "/sys/fs/cgroup/pids/knarr/x/tasks"))


def container(spec: Spec = SPEC, placement: Placement = V1, seccomp: bytes | None = b"\0" * 16, tty: bool = False) -> tuple[ops.Op, ...]:
    return plan.container_plan(spec, rootfs=ROOTFS, mountpoint="/run/mnt", placement=placement, seccomp=seccomp, tty=tty)


def lines(steps: tuple[ops.Op, ...]) -> list[str]:
    return [ops.describe(op) for op in steps]


CONTAINER = """
make a process in new mount, pid, network, ipc, uts namespaces
enter control group /sys/fs/cgroup/cpu,cpuacct/knarr/x
enter control group /sys/fs/cgroup/pids/knarr/x
make a new cgroup namespace
bring up the loopback interface
make a session keyring
change mount propagation of /
mount overlay on /
mount proc on /proc
mount tmpfs on /dev
mount tmpfs on /sys/fs/cgroup
bind /sys/fs/cgroup/cpu,cpuacct/knarr/x to /sys/fs/cgroup/cpu,cpuacct
link /sys/fs/cgroup/cpu to cpu,cpuacct
link /sys/fs/cgroup/cpuacct to cpu,cpuacct
bind /sys/fs/cgroup/pids/knarr/x to /sys/fs/cgroup/pids
remount /sys/fs/cgroup read-only
bind /srv to /data
make device /dev/null
make device /dev/zero
make device /dev/full
make device /dev/random
make device /dev/urandom
make device /dev/tty
link /dev/fd to /proc/self/fd
link /dev/stdin to /proc/self/fd/0
link /dev/stdout to /proc/self/fd/1
link /dev/stderr to /proc/self/fd/2
link /dev/core to /proc/kcore
link /dev/ptmx to pts/ptmx
mask /proc/kcore
make /proc/sys read-only
set the host name to 'box'
set net.ipv4.conf.eth0/1.forwarding to '1'
set oom_score_adj to -500
pivot to the new root
change directory to /work
remount / read-only
set up standard streams
set RLIMIT_NOFILE to 10:20
drop capabilities from the bounding set
become user 1000:100
set umask to 0022
install a seccomp filter of 2 instructions
set capabilities
exec "sh"
""".strip().splitlines()


def test_container() -> None:
    steps = container()
    assert lines(steps) == CONTAINER
    by_name = {type(op).__name__: op for op in steps}
    assert by_name["Clone"] == ops.Clone(ops.NEWNS | ops.NEWPID | ops.NEWNET | ops.NEWIPC | ops.NEWUTS)
    assert by_name["Propagation"] == ops.Propagation("/", 1 << 18 | 0x4000)
    assert by_name["Root"] == ops.Root(
        "overlay", "/run/mnt", "overlay", 0, "lowerdir=2/fs:1/fs,upperdir=3/fs,workdir=3/work", "/data/snapshots"
    )
    assert by_name["Bind"] == ops.Bind("/srv", "/data", set=1, recursive=True)
    assert by_name["Sysctl"] == ops.Sysctl("net/ipv4/conf/eth0.1/forwarding", "1")
    assert by_name["User"] == ops.User(1000, 100, (4, 5))
    assert by_name["Capabilities"] == ops.Capabilities(1, 1)
    assert by_name["Exec"] == ops.Exec(("sh", "-c", "exit 3"), ("PATH=/bin",))


def test_container_on_cgroup_v2_with_a_terminal() -> None:
    steps = container(placement=Placement(directory="/sys/fs/cgroup/knarr/x"), tty=True, seccomp=None)
    text = lines(steps)
    assert text[0] == CONTAINER[0] + " in /sys/fs/cgroup/knarr/x"
    assert "mount cgroup2 on /sys/fs/cgroup" in text
    assert text.index("make a terminal") < text.index("bind the terminal to /dev/console")
    assert "set up the terminal" in text
    assert not any("seccomp" in line or "enter control group" in line for line in text)


def test_filter_after_the_capabilities_when_privileges_cannot_come_back() -> None:
    assert SPEC.process is not None
    process = msgspec.structs.replace(SPEC.process, no_new_privileges=True)
    text = lines(container(msgspec.structs.replace(SPEC, process=process)))
    assert text[-4:] == ["set no_new_privs", "set capabilities", "install a seccomp filter of 2 instructions", 'exec "sh"']


def test_exec() -> None:
    assert SPEC.process is not None
    steps = plan.exec_plan(SPEC.process, pid=42, start_time=7, placement=V1, seccomp=b"\0" * 8, tty=True)
    assert (
        lines(steps)
        == """
make a process
enter control group /sys/fs/cgroup/cpu,cpuacct/knarr/x
enter control group /sys/fs/cgroup/pids/knarr/x
set oom_score_adj to -500
make a session keyring
join mount, pid, network, ipc, uts, cgroup namespaces of process 42
make a terminal
change directory to /work
set up the terminal
set RLIMIT_NOFILE to 10:20
drop capabilities from the bounding set
become user 1000:100
set umask to 0022
install a seccomp filter of 1 instructions
set capabilities
exec "sh"
""".strip().splitlines()
    )


def test_wire_form() -> None:
    zero, one = bytes(8), (1).to_bytes(8, "little")
    clone = bytes.fromhex("30000000 0100 0100 0000020000000000") + zero * 3 + zero
    link = bytes.fromhex("40000000 0e00 0200") + zero * 4 + bytes.fromhex("3800000000000000 3a00000000000000") + b"a\0/b\0" + bytes(3)
    slots = bytes.fromhex("4800000000000000") + zero + bytes.fromhex("4a00000000000000") + zero
    program = bytes.fromhex("50000000 2000 0400") + one * 2 + zero * 2 + slots + b"x\0A=1\0" + bytes(2)
    encoded = ops.encode([ops.Clone(0x20000), ops.Symlink("a", "/b"), ops.Exec(("x",), ("A=1",))])
    assert encoded == b"KRN1" + bytes.fromhex("03000000 d0000000 00000000") + clone + link + program
