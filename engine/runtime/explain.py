"""What the kernel's refusal of an operation means to a user. Pure: an operation and an errno in, an error with a hint out."""

from __future__ import annotations

import errno as E
import os
from collections.abc import Sequence

from engine.errors import LaunchError
from engine.runtime import ops
from engine.runtime.ops import Op

# (operation, errno): hint; an operation of "" stands for all.
_HINTS = {
    ("Clone", E.EPERM): "root rights are needed, or a security profile around us forbids new namespaces",
    ("Clone", E.ENOSPC): "the limit on namespaces is reached: see /proc/sys/user",
    ("Clone", E.EAGAIN): "the limit on processes is reached",
    ("Clone", E.ENOMEM): "out of memory, or the container's first process has ended",
    ("Clone", E.EBUSY): "the control group has controllers enabled for groups below it, so no process may be in it",
    ("Clone", E.ENOENT): "its control group is gone",
    ("Tasks", E.ENOENT): "its control group is gone",
    ("Tasks", E.EAGAIN): "the limit on processes of the group is reached",
    ("Tasks", E.ENOSPC): "the cpuset has no CPUs or memory nodes",
    ("JoinProcess", E.ESRCH): "the container is not running",
    ("Alive", E.ESRCH): "the container whose namespaces are shared has ended meanwhile",
    ("Root", E.EINVAL): "the kernel's log (dmesg) has overlay's reason; the upper folder's file system may not be fit for it",
    ("Root", E.ENOENT): "a layer of the image or the mount point is missing",
    ("Root", E.ENODEV): "the kernel has no such file system",
    ("Mount", E.ENODEV): "the kernel has no such file system",
    ("Mount", E.EINVAL): "an unknown mount option, or a bad value of one",
    ("Bind", E.ENOENT): "the source does not exist",
    ("Bind", E.EXDEV): "a symbolic link in the path leads out of the volume",
    ("Bind", E.ENOTDIR): "a directory over a file, or a file over a directory: see what the host's path is",
    ("Bind", E.EINVAL): "a directory over a file, or a file over a directory: see what the host's path is",  # of move_mount(2)
    ("Sysctl", E.ENOENT): "the kernel has no such parameter, or it is not one of a namespace",
    ("Sysctl", E.EINVAL): "the kernel does not take this value",
    ("Cwd", E.ENOENT): "set another working directory with --workdir",
    ("Cwd", E.ENOTDIR): "it is not a directory",
    ("User", E.EINVAL): "the id is not mapped",
    ("Seccomp", E.EINVAL): "the filter is malformed, or the kernel has no seccomp filters",
    ("Exec", E.ENOEXEC): "a program for another processor, or a script without #!",
    ("Exec", E.ELOOP): "too many symbolic links",
    ("Exec", E.E2BIG): "arguments and environment are too long",
    ("Exec", E.ETXTBSY): "the program is open for writing",
    ("", E.ENOSYS): "Linux 5.12 or newer is needed",
    ("", E.ENOSPC): "no space, or a limit of the kernel is reached",
    ("", E.ELOOP): "a symbolic link points to itself or through /proc",
}

# Of a bind with owners mapped: what mount_setattr(2) says to MOUNT_ATTR_IDMAP.
_OWNER_HINTS = {
    E.EINVAL: "the file system of the source, or one mounted below it, cannot show other owners",
    E.EPERM: "the owners of the source, or of something mounted below it, are mapped already, or its file system is not the host's",
}

_NOT_FOUND = (E.ENOENT, E.ENOTDIR)


def _program(op: ops.Exec, errno: int) -> tuple[str, str]:
    name = op.args[0]
    if errno in _NOT_FOUND and "/" not in name:
        return f'exec: "{name}": executable file not found in $PATH', ""
    if errno == E.ENOENT:
        return f'exec: "{name}": no such file or directory', "the file, the interpreter on its first line, or its dynamic loader is missing"
    return f'exec: "{name}": {os.strerror(errno).lower()}', _HINTS.get(("Exec", errno), "")


def explain(plan: Sequence[Op], index: int, errno: int) -> LaunchError:
    """The error for operation `index` of a plan (-1: none of them) failing with `errno`, as a launch reports them."""
    if not 0 <= index < len(plan):
        return LaunchError(f"starting the process: {os.strerror(errno).lower()}", index=index, errno=errno)
    op = plan[index]
    name = type(op).__name__
    if isinstance(op, ops.Exec):
        text, hint = _program(op, errno)
    else:
        text = f"{ops.describe(op)}: {os.strerror(errno).lower()}"
        hint = _OWNER_HINTS.get(errno, "") if isinstance(op, ops.Bind | ops.Owners) and op.userns else ""
        if isinstance(op, ops.Mount) and isinstance(plan[index - 1], ops.Owners) and errno == E.EINVAL:
            hint = "overlays of layers with mapped owners need Linux 5.19 or newer"
        hint = hint or _HINTS.get((name, errno)) or _HINTS.get(("", errno), "")
    return LaunchError(text, op=name, index=index, errno=errno, hint=hint)


def exit_code(error: LaunchError) -> int:
    """Docker's exit code of a container that did not start: 127 the program is not there, 126 it cannot be executed, 125 our failure."""
    if error.op == "Cwd" and error.errno in _NOT_FOUND:
        return 127
    if error.op != "Exec":
        return 125
    return 127 if error.errno in _NOT_FOUND else 126
