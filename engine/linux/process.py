"""Processes by id, without mistaking one for another: ids are used again, a pair of id and start time is not.

Owns what /proc/PID tells of it (proc_pid_stat(5)); starts nothing.
"""

from __future__ import annotations


def start_time(pid: int) -> int:
    """Clock ticks from boot to the start of a process; 0 when there is none with this id, or it is a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # The name may have blanks and parentheses of its own: it ends at the last one.
    fields = text.rpartition(b")")[2].split()
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])
