"""Processes by id, without mistaking one for another: ids are used again, a pair of id and start time is not.

Owns what /proc/PID tells of it (proc_pid_stat(5)); starts nothing.
"""

from __future__ import annotations

_PF_EXITING = 0x4  # linux/sched.h; part of the flags that proc_pid_stat(5) shows


def start_time(pid: int) -> int:
    """Clock ticks from boot to the start of a process; 0 when there is none with this id, or it is a zombie."""
    fields = _fields(pid)
    return 0 if not fields or fields[0] in (b"Z", b"X") else int(fields[19])


def is_ending(pid: int, start: int) -> bool:
    """Whether the process with this id and start time has begun to end, or is not there any more. The first process of a PID namespace
    has begun before any other is killed with it, and has ended after they all have."""
    fields = _fields(pid)
    return not fields or int(fields[19]) != start or bool(int(fields[6]) & _PF_EXITING)


def _fields(pid: int) -> list[bytes]:
    """What follows the name in proc_pid_stat(5), from the state on; empty when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(b")")[2].split()  # the name may have blanks and parentheses of its own: it ends at the last one
