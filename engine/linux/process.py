"""Processes by id, without mistaking one for another: ids are used again, a pair of id and start time is not.

Owns what /proc/PID tells (proc_pid_stat(5), proc_pid_smaps_rollup) and pidfds; starts nothing.
"""

from __future__ import annotations

import os
import signal

import msgspec

PAGE = os.sysconf("SC_PAGE_SIZE")


class ProcessInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One process. `start` and the times are clock ticks (`SC_CLK_TCK` a second), `start` since boot; `rss` bytes; `command` is argv."""

    pid: int
    parent: int
    name: str
    state: str
    threads: int
    start: int
    user_ticks: int
    system_ticks: int
    rss: int
    uid: int
    command: tuple[str, ...]


def _stat(pid: int) -> tuple[str, list[str]]:
    with open(f"/proc/{pid}/stat", "rb") as file:
        text = file.read().decode("utf-8", "replace")
    # The name may have blanks and parentheses of its own: it ends at the last one.
    name, _, rest = text.partition("(")[2].rpartition(")")
    return name, rest.split()


def start_time(pid: int) -> int:
    """Clock ticks from boot to the start of a process; 0 when there is none with this id, or it is a zombie."""
    try:
        _, fields = _stat(pid)
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in ("Z", "X") else int(fields[19])


def is_alive(pid: int, start: int) -> bool:
    """Whether the process that had this id and start time still runs (a zombie does not)."""
    return pid > 0 and start > 0 and start_time(pid) == start


def open_pidfd(pid: int, start: int) -> int:
    """A pidfd for exactly that process. Raises ProcessLookupError when it is gone, even if its id is in use again."""
    fd = os.pidfd_open(pid)
    # Now that the descriptor holds the id, the look at the start time cannot be about another process.
    if start_time(pid) != start:
        os.close(fd)
        raise ProcessLookupError(f"process {pid} is gone")
    return fd


def send_signal(pid: int, start: int, number: int) -> bool:
    """Signal exactly that process; False when it is gone. Raises PermissionError."""
    try:
        fd = open_pidfd(pid, start)
    except ProcessLookupError:
        return False
    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def info(pid: int) -> ProcessInfo:
    """What a process is. Raises ProcessLookupError when it ended."""
    try:
        name, fields = _stat(pid)
        uid = os.stat(f"/proc/{pid}").st_uid
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read()
    except FileNotFoundError:
        raise ProcessLookupError(f"process {pid} is gone") from None
    return ProcessInfo(
        pid=pid, parent=int(fields[1]), name=name, state=fields[0], threads=int(fields[17]), start=int(fields[19]),
        user_ticks=int(fields[11]), system_ticks=int(fields[12]), rss=int(fields[21]) * PAGE, uid=uid,
        command=tuple(command.decode("utf-8", "replace").rstrip("\0").split("\0")) if command else (),
    )  # fmt: skip


def list_info(pids: list[int]) -> list[ProcessInfo]:
    """`info` of each that still runs."""
    found = []
    for pid in pids:
        try:
            found.append(info(pid))
        except ProcessLookupError:
            continue
    return found


def memory_share(pid: int) -> int:
    """Proportional set size in bytes: own pages, and of shared ones a fair part. 0 when the process is gone or has no memory."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0
