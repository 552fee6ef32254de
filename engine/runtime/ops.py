"""The operations of a plan, one frozen struct for each, and their names.

Owns what an operation is; which ones a container needs is `plan`'s business, their bytes `wire.plan`'s, running them `native/parent.h`'s.
Nothing here touches the host. The codes are `enum plan_code` of `native/plan.h`. Flags are the kernel's numbers (mount(2),
mount_setattr(2), clone(2), capabilities(7)), so that nothing is translated between clone and exec.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import ClassVar

import msgspec

from engine.errors import InvalidParameter
from engine.runtime.describe import describe
from engine.runtime.numbers import (
    NAMESPACES,
    NEWCGROUP,
    NEWIPC,
    NEWNET,
    NEWNS,
    NEWPID,
    NEWTIME,
    NEWUSER,
    NEWUTS,
    RLIMITS,
)
from engine.wire.plan import join, pack, table, text

__all__ = [
    "NAMESPACES", "NEWCGROUP", "NEWIPC", "NEWNET", "NEWNS", "NEWPID", "NEWTIME", "NEWUSER", "NEWUTS", "RLIMITS",
    "Alive", "Attributes", "Bind", "Bounding", "Capabilities", "Clone", "Console", "Cwd", "Domainname", "Exec", "Hostname", "Join",
    "JoinProcess", "Keyring", "Loopback", "Mask", "Mknod", "Mount", "NoNewPrivs", "OomScore", "Op", "Owners", "Pivot", "Propagation",
    "Readonly", "Rlimit", "Root", "Seccomp", "Stdio", "Symlink", "Sysctl", "Tasks", "Terminal", "Umask", "Unshare", "User",
    "describe", "encode",
]  # fmt: skip

_NONE = (0, 0, 0, 0)


class Op(msgspec.Struct, frozen=True, tag_field="op", tag=True):
    """One operation. `wire` is its encoded form; of those that are `common` to many containers it is remembered."""

    common: ClassVar[bool] = False

    def wire(self) -> bytes:
        raise NotImplementedError


class Clone(Op, frozen=True):
    """Make the process in new namespaces, in the v2 group `directory` ("" for none). `plain`: with its own copy of our memory."""

    namespaces: int
    directory: str = ""
    plain: bool = False

    def wire(self) -> bytes:
        return pack(1, (self.namespaces, int(self.plain), 0, 0), text(self.directory) if self.directory else None)


class Join(Op, frozen=True):
    """Enter one namespace by the path of its file."""

    namespace: int
    path: str

    def wire(self) -> bytes:
        return pack(2, (self.namespace, 0, 0, 0), text(self.path))


class JoinProcess(Op, frozen=True):
    """Enter namespaces of a process; `start_time` (field 22 of its stat file, 0: any) makes sure that the pid still means it."""

    pid: int
    start_time: int
    namespaces: int

    def wire(self) -> bytes:
        return pack(3, (self.pid, self.start_time, self.namespaces, 0))


class Tasks(Op, frozen=True):
    """Enter a v1 control group by its `tasks` file."""

    path: str

    def wire(self) -> bytes:
        return pack(4, _NONE, text(self.path))


class Unshare(Op, frozen=True):
    """New namespaces that must not be made by clone: the cgroup namespace's root is the group one is in."""

    common = True

    namespaces: int

    def wire(self) -> bytes:
        return pack(5, (self.namespaces, 0, 0, 0))


class Loopback(Op, frozen=True):
    """Bring up `lo` of a new network namespace."""

    common = True

    def wire(self) -> bytes:
        return pack(6, _NONE)


class Keyring(Op, frozen=True):
    """A new session keyring."""

    common = True

    def wire(self) -> bytes:
        return pack(7, _NONE)


class Propagation(Op, frozen=True):
    """mount(2) propagation flags on `path` as the process sees it at that moment."""

    common = True

    path: str
    flags: int

    def wire(self) -> bytes:
        return pack(8, (self.flags, 0, 0, 0), text(self.path))


class Root(Op, frozen=True):
    """Mount what becomes the container's root on `target`, a host directory; no `type`: a bind. Relative names are meant from `base`."""

    source: str
    target: str
    type: str = ""
    flags: int = 0
    data: str = ""
    base: str = ""

    def wire(self) -> bytes:
        return pack(9, (self.flags, 0, 0, 0), *_mount_slots(self))


class Mount(Op, frozen=True):
    """Mount a new file system on the directory `target` inside, made if missing. `propagation`: MS_ flags, 0 to leave it."""

    common = True

    source: str
    target: str
    type: str
    flags: int = 0
    data: str = ""
    base: str = ""
    propagation: int = 0

    def wire(self) -> bytes:
        return pack(10, (self.flags, self.propagation, 0, 0), *_mount_slots(self))


def _mount_slots(op: Root | Mount) -> tuple[bytes | None, ...]:
    optional = (op.type, op.data, op.base)
    return (text(op.source), text(op.target), *(text(value) if value else None for value in optional))


class Bind(Op, frozen=True):
    """Bind the host path `source` to `target` inside, made if missing as a directory or file like the source.

    `set`, `clear`: mount attributes (MOUNT_ATTR_), on everything below too with `set_recursive`. `keep` >= 0: only clone the source now and
    keep it under that number, before the propagation of the old tree changes; `kept` >= 0: take it from there.

    `part`: a relative path below the directory `source` that is meant; no link in it leads out. `userns`: the path of a user namespace's
    file; the mount shows owners as that namespace has them, with `userns_recursive` (then nosuid in `set` is, too) all mounted below.
    `namespace`: the path of another mount namespace's file, which `source` is a path of then, without links.
    """

    source: str
    target: str
    set: int = 0
    clear: int = 0
    propagation: int = 0
    recursive: bool = False
    set_recursive: bool = False
    keep: int = -1
    kept: int = -1
    part: str = ""
    userns: str = ""
    userns_recursive: bool = False
    namespace: str = ""

    def wire(self) -> bytes:
        bits = self.recursive | self.set_recursive << 1 | self.userns_recursive << 4
        if self.keep >= 0:
            bits |= 4 | self.keep << 8
        elif self.kept >= 0:
            bits |= 8 | self.kept << 8
        args, paths = (self.set, self.clear, self.propagation, bits), (text(self.source), text(self.target))
        if self.part or self.userns or self.namespace:
            return pack(34, args, *paths, *(text(value) if value else None for value in (self.part, self.userns, self.namespace)))
        return pack(11, args, *paths)


class Owners(Op, frozen=True):
    """Show the owners of host folders as a user namespace has them, until the same with no `userns`: for the overlay that is mounted of
    them in between. `folders`: relative to the host path `base`, and through no link; `userns`: the path of the namespace's file."""

    folders: tuple[str, ...]
    base: str
    userns: str = ""

    def wire(self) -> bytes:
        paths = b"".join(map(text, self.folders))
        return pack(35, (0, 0, len(paths), 0), paths, text(self.base), text(self.userns) if self.userns else None)


class Alive(Op, frozen=True):
    """The process `pid` is still the one that began at `start_time` (field 22 of /proc/PID/stat): then whatever was joined through
    /proc/PID before was its."""

    pid: int
    start_time: int

    def wire(self) -> bytes:
        return pack(36, (self.pid, self.start_time, 0, 0))


class Attributes(Op, frozen=True):
    """Change mount attributes of a mount inside."""

    common = True

    path: str
    set: int = 0
    clear: int = 0
    recursive: bool = False

    def wire(self) -> bytes:
        return pack(12, (self.set, self.clear, int(self.recursive), 0), text(self.path))


class Mknod(Op, frozen=True):
    """Make a device node; `mode` includes the type, `device` is os.makedev's number."""

    common = True

    path: str
    mode: int
    device: int
    uid: int = 0
    gid: int = 0

    def wire(self) -> bytes:
        return pack(13, (self.mode, self.device, self.uid, self.gid), text(self.path))


class Symlink(Op, frozen=True):
    """Make a link that says `text`, unless something is there."""

    common = True

    text: str
    path: str

    def wire(self) -> bytes:
        return pack(14, _NONE, text(self.text), text(self.path))


class Console(Op, frozen=True):
    """Bind the terminal on standard input to `path`."""

    common = True

    path: str = "/dev/console"

    def wire(self) -> bytes:
        return pack(15, _NONE, text(self.path))


class Mask(Op, frozen=True):
    """Hide a path, if it exists, behind the null device or an empty directory."""

    common = True

    path: str

    def wire(self) -> bytes:
        return pack(16, _NONE, text(self.path))


class Readonly(Op, frozen=True):
    """Make a path, if it exists, and all mounts below it read-only."""

    common = True

    path: str

    def wire(self) -> bytes:
        return pack(17, _NONE, text(self.path))


class Sysctl(Op, frozen=True):
    """Set a kernel parameter of the new namespaces; `name` as a path below /proc/sys."""

    common = True

    name: str
    value: str

    def wire(self) -> bytes:
        return pack(18, _NONE, text(f"/proc/sys/{self.name}"), text(self.value))


class Hostname(Op, frozen=True):
    """Set the host name."""

    name: str

    def wire(self) -> bytes:
        return pack(19, _NONE, text(self.name))


class Domainname(Op, frozen=True):
    """Set the NIS domain name."""

    name: str

    def wire(self) -> bytes:
        return pack(20, _NONE, text(self.name))


class Pivot(Op, frozen=True):
    """Make the container's root the root and detach the old one."""

    common = True

    def wire(self) -> bytes:
        return pack(21, _NONE)


class Rlimit(Op, frozen=True):
    """Set a resource limit, or what can be had of it."""

    common = True

    resource: int
    soft: int
    hard: int

    def wire(self) -> bytes:
        return pack(22, (self.resource, self.soft, self.hard, 0))


class OomScore(Op, frozen=True):
    """Set oom_score_adj (-1000 to 1000), or leave it when that is not allowed."""

    common = True

    value: int

    def wire(self) -> bytes:
        return pack(23, (self.value & 0xFFFFFFFFFFFFFFFF, 0, 0, 0))


class Cwd(Op, frozen=True):
    """Change the working directory, making it with `create`."""

    path: str
    create: bool = False

    def wire(self) -> bytes:
        return pack(24, (int(self.create), 0, 0, 0), text(self.path))


class Terminal(Op, frozen=True):
    """Make a terminal of the container's own devpts; it takes the place of the three descriptors, its master goes to the launcher."""

    rows: int = 0
    columns: int = 0

    def wire(self) -> bytes:
        return pack(33, (self.rows, self.columns, 0, 0))


class Stdio(Op, frozen=True):
    """Put the launch's three descriptors on 0, 1 and 2 and give them to `uid`; `tty`: it becomes the controlling terminal."""

    common = True

    tty: bool = False
    uid: int = 0

    def wire(self) -> bytes:
        return pack(25, (int(self.tty), self.uid, 0, 0))


class Bounding(Op, frozen=True):
    """Drop all capabilities but `keep` (bit mask) from the bounding set."""

    common = True

    keep: int

    def wire(self) -> bytes:
        return pack(26, (self.keep, 0, 0, 0))


class User(Op, frozen=True):
    """Take on user and groups. `keep`: capabilities survive, for `Capabilities` to choose from."""

    common = True

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    keep: bool = True

    def wire(self) -> bytes:
        groups = table(self.groups) if self.groups else None
        return pack(27, (self.uid, self.gid, len(self.groups), int(self.keep)), groups)


class Capabilities(Op, frozen=True):
    """Set the capability sets (bit masks)."""

    common = True

    effective: int
    permitted: int
    inheritable: int = 0
    ambient: int = 0

    def wire(self) -> bytes:
        return pack(28, (self.effective, self.permitted, self.inheritable, self.ambient))


class NoNewPrivs(Op, frozen=True):
    """No program can give more privileges from now on."""

    common = True

    def wire(self) -> bytes:
        return pack(29, _NONE)


class Seccomp(Op, frozen=True):
    """Install a filter: `program` is an array of struct sock_filter."""

    common = True

    program: bytes
    flags: int = 0

    def wire(self) -> bytes:
        return pack(30, (self.flags, 0, len(self.program) // 8, 0), self.program)


class Umask(Op, frozen=True):
    """Set the file mode creation mask."""

    common = True

    mask: int = 0o022

    def wire(self) -> bytes:
        return pack(31, (self.mask, 0, 0, 0))


class Exec(Op, frozen=True):
    """Unblock signals, close all descriptors above 2 + `keep`, execute. A name without a slash is looked up along PATH of `env`."""

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    keep: int = 0

    def wire(self) -> bytes:
        if len(self.args) + len(self.env) > 0xFFFD:
            raise InvalidParameter(f"argument list too long: {len(self.args)} arguments and {len(self.env)} variables")
        return pack(32, (len(self.args), len(self.env), self.keep, 0), *map(text, self.args), None, *map(text, self.env), None)


@functools.lru_cache(maxsize=2048)
def _remembered(op: Op) -> bytes:
    return op.wire()


def encode(ops: Iterable[Op]) -> bytes:
    """A plan's wire form. The first operation is a `Clone`, the last an `Exec`.

    Raises InvalidParameter for a string with a NUL, too many operations or arguments.
    """
    return join([_remembered(op) if op.common else op.wire() for op in ops])
