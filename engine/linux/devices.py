"""Which devices a container has: Docker's default nodes and access rules, as v1 lists and as v2 BPF programs.

Owns the rules' meaning and the look at the host's nodes; opens no device and attaches no program. Follows the OCI runtime specification
(config-linux.md, "Allowed Device List") and the kernel's device controller (admin-guide/cgroup-v1/devices.rst, admin-guide/cgroup-v2.rst).

A request is allowed as the last rule that fits says: an allowing rule fits when it covers all of the access asked for, a denying one when
it covers any of it. Several rules for the same type and numbers are one rule with the sum of their accesses, as in the v1 controller.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence

from engine.errors import InvalidParameter
from engine.spec.runtime import Device, DeviceRule

ALLOW_ALL = (DeviceRule(allow=True, type="a", access="rwm"),)


def _char(major: int | None, minor: int | None, access: str = "rwm") -> DeviceRule:
    return DeviceRule(allow=True, type="c", major=major, minor=minor, access=access)


# Nodes in every /dev (OCI "Default Devices"): ptmx, console and the standard streams are links or mounts and are made by the plan.
DEFAULT_DEVICES = tuple(
    Device(path=f"/dev/{name}", type="c", major=major, minor=minor, file_mode=0o666, uid=0, gid=0)
    for name, major, minor in (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
)

# Nothing but: making any node, the default nodes, /dev/console, /dev/ptmx and pseudo terminals.
DEFAULT_RULES = (
    DeviceRule(allow=False, type="a", access="rwm"),
    _char(None, None, "m"),
    DeviceRule(allow=True, type="b", access="m"),
    *(_char(device.major, device.minor) for device in DEFAULT_DEVICES),
    _char(5, 1),
    _char(5, 2),
    _char(136, None),
)


def device_rules(devices: Iterable[Device] = (), rules: Iterable[DeviceRule] = ()) -> tuple[DeviceRule, ...]:
    """The default rules, then `rules`, and full access to each of `devices` that no rule names."""
    given = tuple(rules)
    named = {(rule.type, rule.major, rule.minor) for rule in given}
    nodes = tuple(
        DeviceRule(allow=True, type=kind, major=device.major, minor=device.minor, access="rwm")
        for device in devices
        if (kind := "c" if device.type == "u" else device.type) != "p" and (kind, device.major, device.minor) not in named
    )
    return (*DEFAULT_RULES, *given, *nodes)


# Below /dev but not devices of the host: terminals, shared memory and queues have their own mounts, the rest belongs to other tools.
_NOT_HOST = frozenset(("pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"))


def _node(path: str, target: str, info: os.stat_result) -> Device:
    kind = "b" if stat.S_ISBLK(info.st_mode) else "c"
    return Device(
        path=target, type=kind, major=os.major(info.st_rdev), minor=os.minor(info.st_rdev), file_mode=stat.S_IMODE(info.st_mode),
        uid=info.st_uid, gid=info.st_gid,
    )  # fmt: skip


def _is_device(info: os.stat_result) -> bool:
    return stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode)


def from_host(path: str, target: str) -> tuple[Device, ...]:
    """The nodes for `--device PATH:TARGET`: one device, or all in a folder (terminals and the like left out), as Docker does.

    Symbolic links on the host are followed. Raises InvalidParameter when there is no device.
    """
    try:
        info = os.stat(path)
        if _is_device(info):
            return (_node(path, target, info),)
        found = tuple(_walk(path, target)) if stat.S_ISDIR(info.st_mode) else ()
    except OSError as error:
        raise InvalidParameter(f'error gathering device information while adding custom device "{path}": {error.strerror}') from None
    if not found:
        raise InvalidParameter(f'error gathering device information while adding custom device "{path}": not a device node')
    return found


def all_host() -> tuple[Device, ...]:
    """Every device node of the host's /dev, for a privileged container; /dev/console is the container's own."""
    return tuple(device for device in _walk("/dev", "/dev") if device.path != "/dev/console")


def _walk(folder: str, target: str) -> Iterator[Device]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            try:
                info = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if entry.is_dir(follow_symlinks=False) and entry.name not in _NOT_HOST:
                yield from _walk(entry.path, f"{target}/{entry.name}")
            elif _is_device(info):
                yield _node(entry.path, f"{target}/{entry.name}", info)


def allows_all(rules: Sequence[DeviceRule]) -> bool:
    """Whether the rules leave nothing forbidden: none at all, or the last word is "all devices, all access"."""
    return not rules or (rules[-1].allow and rules[-1].type in ("a", "") and set(rules[-1].access) == set("rwm"))


def _check(rule: DeviceRule) -> None:
    if rule.type not in ("a", "b", "c", "") or not set(rule.access) <= set("rwm"):
        raise InvalidParameter(f"invalid device rule: {rule_text(rule)}")


def rule_text(rule: DeviceRule) -> str:
    """A rule as the v1 files and `--device-cgroup-rule` spell it: `c 1:3 rwm`."""
    number = [str(value) if value is not None and value >= 0 else "*" for value in (rule.major, rule.minor)]
    return f"{rule.type or 'a'} {number[0]}:{number[1]} {rule.access or 'rwm'}"


def v1_lines(rules: Iterable[DeviceRule]) -> list[tuple[str, str]]:
    """(file, text) to write, one write each and in this order, into a v1 devices group. Raises InvalidParameter."""
    lines = []
    for rule in rules:
        _check(rule)
        lines.append(("devices.allow" if rule.allow else "devices.deny", rule_text(rule)))
    return lines


_Key = tuple[str, int | None, int | None]


def _effective(rules: Iterable[DeviceRule]) -> tuple[bool, list[tuple[_Key, bool, set[str]]]]:
    """The default answer, and the exceptions to it in ascending priority."""
    default = False
    exceptions: list[tuple[_Key, bool, set[str]]] = []
    for rule in rules:
        _check(rule)
        access = set(rule.access or "rwm")
        if rule.type in ("a", ""):
            default = rule.allow
            exceptions.clear()
            continue
        major = None if rule.major is None or rule.major < 0 else rule.major
        minor = None if rule.minor is None or rule.minor < 0 else rule.minor
        key: _Key = (rule.type, major, minor)
        for index, (known, allow, accesses) in enumerate(exceptions):
            if known == key and allow == rule.allow:
                access |= accesses
                del exceptions[index]
                break
        exceptions.append((key, rule.allow, access))
    return default, exceptions


# struct bpf_insn: code, registers (source << 4 | destination), jump offset, immediate value (linux/bpf.h)
_INSTRUCTION = struct.Struct("<BBhi")
_LOAD_WORD, _MOVE, _MOVE_REGISTER, _AND, _SHIFT_RIGHT, _EXIT = 0x61, 0xB7, 0xBF, 0x57, 0x77, 0x95
_JUMP_EQUAL, _JUMP_UNEQUAL, _JUMP_UNEQUAL_REGISTER = 0x15, 0x55, 0x5D
_TYPES = {"b": 1, "c": 2}  # BPF_DEVCG_DEV_*
_ACCESS = {"m": 1, "r": 2, "w": 4}  # BPF_DEVCG_ACC_*
_ALL_ACCESS = 7
# Registers: the answer, the context, then what is asked for.
_ANSWER, _CONTEXT, _TYPE, _WANTED, _MAJOR, _MINOR, _SCRATCH = 0, 1, 2, 3, 4, 5, 6


def _op(code: int, destination: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return _INSTRUCTION.pack(code, source << 4 | destination, offset, value)


def _block(key: _Key, allow: bool, access: set[str]) -> bytes:
    """One exception: answer and leave if it fits, else fall through to the next."""
    device, major, minor = key
    mask = sum(_ACCESS[letter] for letter in access)
    tests = [(_JUMP_UNEQUAL, _TYPE, 0, _TYPES[device])]
    if major is not None:
        tests.append((_JUMP_UNEQUAL, _MAJOR, 0, major))
    if minor is not None:
        tests.append((_JUMP_UNEQUAL, _MINOR, 0, minor))
    covers: list[bytes | tuple[int, int, int, int]] = []
    if mask != _ALL_ACCESS:
        covers = [_op(_MOVE_REGISTER, _SCRATCH, _WANTED), _op(_AND, _SCRATCH, value=mask)]
        covers.append((_JUMP_UNEQUAL_REGISTER, _SCRATCH, _WANTED, 0) if allow else (_JUMP_EQUAL, _SCRATCH, 0, 0))
    steps: list[bytes | tuple[int, int, int, int]] = [*tests, *covers, _op(_MOVE, _ANSWER, value=int(allow)), _op(_EXIT)]
    out = b""
    for place, step in enumerate(steps):
        out += step if isinstance(step, bytes) else _op(step[0], step[1], step[2], len(steps) - place - 1, step[3])
    return out


def bpf_program(rules: Iterable[DeviceRule]) -> bytes:
    """A BPF_PROG_TYPE_CGROUP_DEVICE program (array of struct bpf_insn) for the rules. Raises InvalidParameter."""
    default, exceptions = _effective(rules)
    out = [
        _op(_LOAD_WORD, _WANTED, _CONTEXT, 0),
        _op(_MOVE_REGISTER, _TYPE, _WANTED),
        _op(_AND, _TYPE, value=0xFFFF),
        _op(_SHIFT_RIGHT, _WANTED, value=16),
        _op(_LOAD_WORD, _MAJOR, _CONTEXT, 4),
        _op(_LOAD_WORD, _MINOR, _CONTEXT, 8),
    ]
    out += [_block(key, allow, access) for key, allow, access in reversed(exceptions)]
    out += [_op(_MOVE, _ANSWER, value=int(default)), _op(_EXIT)]
    return b"".join(out)
