"""Operations in words, for error messages, traces and `debug plan`."""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from engine.runtime.numbers import NAMESPACES, RLIMIT_NAMES

if TYPE_CHECKING:
    from engine.runtime.ops import Bind, Clone, Op


def _namespace_names(flags: int) -> str:
    names = [name for name, flag in NAMESPACES.items() if flags & flag]
    return ", ".join(names) + (" namespace" if len(names) == 1 else " namespaces")


def _clone_text(op: Clone) -> str:
    text = f"make a process in new {_namespace_names(op.namespaces)}" if op.namespaces else "make a process"
    return f"{text} in {op.directory}" if op.directory else text


def _bind_text(op: Bind) -> str:
    if op.keep >= 0:
        return f"open {op.source} for a mount on {op.target}"
    if op.namespace:
        return f"bind another container's {op.source} to {op.target}"
    return f"bind {op.source}{'/' if op.part else ''}{op.part} to {op.target}{' with owners mapped' if op.userns else ''}"


_SWAPPED = str.maketrans("./", "/.")  # a path below /proc/sys as sysctl(8) writes it
_DESCRIPTIONS: dict[str, Callable[[Any], str]] = {
    "Clone": _clone_text,
    "Join": lambda op: f"join {_namespace_names(op.namespace)} {op.path}",
    "JoinProcess": lambda op: f"join {_namespace_names(op.namespaces)} of process {op.pid}",
    "Tasks": lambda op: f"enter control group {op.path.removesuffix('/tasks')}",
    "Unshare": lambda op: f"make a new {_namespace_names(op.namespaces)}",
    "Loopback": lambda op: "bring up the loopback interface",
    "Keyring": lambda op: "make a session keyring",
    "Propagation": lambda op: f"change mount propagation of {op.path}",
    "Root": lambda op: f"mount {op.type or op.source} on /",
    "Mount": lambda op: f"mount {op.type} on {op.target}",
    "Bind": _bind_text,
    "Owners": lambda op: f"map owners of {len(op.folders)} layers" if op.userns else "leave the layers' owners as they are again",
    "Alive": lambda op: f"see that process {op.pid} is still there",
    "Attributes": lambda op: f"remount {op.path}" + (" read-only" if op.set & 1 else ""),
    "Mknod": lambda op: f"make {'device' if stat.S_IFMT(op.mode) != stat.S_IFIFO else 'pipe'} {op.path}",
    "Symlink": lambda op: f"link {op.path} to {op.text}",
    "Console": lambda op: f"bind the terminal to {op.path}",
    "Mask": lambda op: f"mask {op.path}",
    "Readonly": lambda op: f"make {op.path} read-only",
    "Sysctl": lambda op: f"set {op.name.translate(_SWAPPED)} to {op.value!r}",
    "Hostname": lambda op: f"set the host name to {op.name!r}",
    "Domainname": lambda op: f"set the domain name to {op.name!r}",
    "Pivot": lambda op: "pivot to the new root",
    "Rlimit": lambda op: f"set {RLIMIT_NAMES.get(op.resource, f'resource limit {op.resource}')} to {op.soft}:{op.hard}",
    "OomScore": lambda op: f"set oom_score_adj to {op.value}",
    "Cwd": lambda op: f"change directory to {op.path}",
    "Terminal": lambda op: "make a terminal",
    "Stdio": lambda op: "set up the terminal" if op.tty else "set up standard streams",
    "Bounding": lambda op: "drop capabilities from the bounding set",
    "User": lambda op: f"become user {op.uid}:{op.gid}",
    "Capabilities": lambda op: "set capabilities",
    "NoNewPrivs": lambda op: "set no_new_privs",
    "Seccomp": lambda op: f"install a seccomp filter of {len(op.program) // 8} instructions",
    "Umask": lambda op: f"set umask to {op.mask:04o}",
    "Exec": lambda op: f'exec "{op.args[0]}"',
}


def describe(op: Op) -> str:
    """What an operation does, for error messages and traces: "mount proc on /proc"."""
    return _DESCRIPTIONS[type(op).__name__](op)
