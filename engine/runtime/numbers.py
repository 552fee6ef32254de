"""Numbers of the kernel that operations carry and their names: namespaces (clone(2)), resource limits (getrlimit(2)). Pure."""

from __future__ import annotations

# clone(2)
NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
NAMESPACES = {
    "mount": NEWNS, "pid": NEWPID, "network": NEWNET, "ipc": NEWIPC, "uts": NEWUTS, "cgroup": NEWCGROUP, "user": NEWUSER, "time": NEWTIME,
}  # fmt: skip

RLIMITS = {
    "CPU": 0, "FSIZE": 1, "DATA": 2, "STACK": 3, "CORE": 4, "RSS": 5, "NPROC": 6, "NOFILE": 7, "MEMLOCK": 8, "AS": 9, "LOCKS": 10,
    "SIGPENDING": 11, "MSGQUEUE": 12, "NICE": 13, "RTPRIO": 14, "RTTIME": 15,
}  # fmt: skip
RLIMIT_NAMES = {number: f"RLIMIT_{name}" for name, number in RLIMITS.items()}
