"""Seccomp profiles: Docker's profile format and its default, resolved for one container and compiled to a filter program.

Owns the meaning of a profile; the default's names are in `seccomp_default.py`, code generation in `seccomp_bpf.py`. Loads no filter itself.
Follows Docker's profile format (docs.docker.com, "Seccomp security profiles"), the OCI runtime specification (config-linux.md, "Seccomp")
for what is left after resolving, and libseccomp where both are silent: a rule without arguments beats rules with arguments, the first
rule that holds beats later ones, an architecture that the profile does not list is killed. Beyond that, as runc does: a call newer than
everything the profile knows fails with ENOSYS and not with the default error, so that programs fall back to older calls.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections import OrderedDict
from collections.abc import Collection

import msgspec

from engine.errors import InvalidParameter, NotImplementedYet
from engine.linux import seccomp_bpf as bpf
from engine.linux import seccomp_default as default
from engine.linux import syscalls
from engine.spec import runtime

EPERM, ENOSYS = 1, 38

# linux/seccomp.h
RET_KILL_PROCESS, RET_KILL_THREAD, RET_TRAP, RET_ERRNO = 0x80000000, 0x00000000, 0x00030000, 0x00050000
RET_TRACE, RET_LOG, RET_ALLOW = 0x7FF00000, 0x7FFC0000, 0x7FFF0000
_ACTIONS = {
    "SCMP_ACT_KILL": RET_KILL_THREAD, "SCMP_ACT_KILL_THREAD": RET_KILL_THREAD, "SCMP_ACT_KILL_PROCESS": RET_KILL_PROCESS,
    "SCMP_ACT_TRAP": RET_TRAP, "SCMP_ACT_ERRNO": RET_ERRNO, "SCMP_ACT_TRACE": RET_TRACE, "SCMP_ACT_LOG": RET_LOG,
    "SCMP_ACT_ALLOW": RET_ALLOW,
}  # fmt: skip
_PERMISSIVE = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE")
_FLAGS = {"SECCOMP_FILTER_FLAG_TSYNC": 1, "SECCOMP_FILTER_FLAG_LOG": 2, "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4}

# linux/audit.h; x32 shares x86_64's value and has bit 30 set in its numbers.
_AUDIT_ARCH = {"x86_64": 0xC000003E, "x32": 0xC000003E, "i386": 0x40000003, "aarch64": 0xC00000B7, "arm": 0x40000028}
_ARCH_NAMES = {
    "SCMP_ARCH_X86_64": "x86_64", "SCMP_ARCH_X86": "i386", "SCMP_ARCH_X32": "x32", "SCMP_ARCH_AARCH64": "aarch64", "SCMP_ARCH_ARM": "arm",
}  # fmt: skip
_NATIVE = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}
_DOCKER_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}
_X32_BIT = 0x40000000
_OPS = {"SCMP_CMP_" + op: op for op in ("EQ", "NE", "LT", "LE", "GT", "GE", "MASKED_EQ")}
_CACHE_SIZE = 64  # programs; one has some 2 kB


class _Json(msgspec.Struct, frozen=True, rename="camel"):
    """Base of the profile's structs: Docker's JSON names; unknown fields are ignored, as Docker does."""


class ArchMap(_Json, frozen=True):
    """A native architecture and those a program may switch to."""

    architecture: str = ""
    sub_architectures: tuple[str, ...] | None = None


class Conditions(_Json, frozen=True):
    """When a rule is used (`includes`) or left out (`excludes`)."""

    caps: tuple[str, ...] | None = None
    arches: tuple[str, ...] | None = None
    min_kernel: str = ""


class Rule(_Json, frozen=True):
    """One entry of `syscalls`."""

    action: str
    names: tuple[str, ...] | None = None
    name: str = ""
    errno_ret: int | None = None
    args: tuple[runtime.ArgRule, ...] | None = None
    includes: Conditions | None = None
    excludes: Conditions | None = None


class Profile(_Json, frozen=True):
    """Docker's profile file."""

    default_action: str
    default_errno_ret: int | None = None
    architectures: tuple[str, ...] | None = None
    arch_map: tuple[ArchMap, ...] | None = None
    syscalls: tuple[Rule, ...] | None = None
    flags: tuple[str, ...] | None = None
    listener_path: str = ""
    listener_metadata: str = ""


@functools.cache
def default_profile() -> Profile:
    """Docker's default profile."""
    allow = "SCMP_ACT_ALLOW"
    rules = [Rule(allow, tuple(" ".join(default.ALWAYS.values()).split()))]
    rules += [Rule(allow, tuple(names.split()), includes=Conditions(min_kernel=version)) for version, names in default.SINCE_KERNEL.items()]
    rules += [Rule(allow, tuple(names.split()), includes=Conditions(arches=arches)) for arches, names in default.BY_ARCH.items()]
    rules += [Rule(allow, tuple(names.split()), includes=Conditions(caps=(cap,))) for cap, names in default.BY_CAPABILITY.items()]

    def when(name: str, op: str, value: int) -> Rule:
        return Rule(allow, (name,), args=(runtime.ArgRule(index=0, op="SCMP_CMP_" + op, value=value),))

    rules.append(when("socket", "LT", default.SOCKET_FAMILIES_BELOW))
    rules += [when("socket", "EQ", family) for family in default.SOCKET_FAMILIES]
    rules += [when("personality", "EQ", persona) for persona in default.PERSONALITIES]
    # clone3 keeps its flags in memory, where no filter can look: ENOSYS makes the C library use clone instead.
    without_admin = Conditions(caps=("CAP_SYS_ADMIN",))
    rules.append(msgspec.structs.replace(when("clone", "MASKED_EQ", default.NAMESPACE_FLAGS), excludes=without_admin))
    rules.append(Rule("SCMP_ACT_ERRNO", ("clone3",), errno_ret=ENOSYS, excludes=without_admin))
    return Profile(
        default_action="SCMP_ACT_ERRNO",
        default_errno_ret=EPERM,
        arch_map=tuple(ArchMap(native, subs) for native, subs in default.ARCH_MAP.items()),
        syscalls=tuple(rules),
    )


def parse(text: str | bytes) -> Profile:
    """A profile from its JSON text. Raises InvalidParameter."""
    try:
        profile = msgspec.json.decode(text, type=Profile)
    except msgspec.MsgspecError as error:
        raise InvalidParameter(f"decoding seccomp profile failed: {error}") from None
    if profile.architectures and profile.arch_map:
        raise InvalidParameter(
            "both 'architectures' and 'archMap' are specified in the seccomp profile, use either 'architectures' or 'archMap'"
        )
    for rule in profile.syscalls or ():
        if rule.name and rule.names:
            raise InvalidParameter("both 'name' and 'names' are specified in the seccomp profile, use either 'name' or 'names'")
    return profile


def _version(text: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", text)
    if match is None:
        raise InvalidParameter(f"invalid kernel version {text!r} in the seccomp profile: expected MAJOR.MINOR")
    return int(match[1]), int(match[2])


def _used(rule: Rule, caps: Collection[str], arch: str, kernel: tuple[int, int]) -> bool:
    excludes, includes = rule.excludes or Conditions(), rule.includes or Conditions()
    if arch in (excludes.arches or ()) or any(cap in caps for cap in excludes.caps or ()):
        return False
    if excludes.min_kernel and kernel >= _version(excludes.min_kernel):
        return False
    if includes.arches and arch not in includes.arches:
        return False
    if not all(cap in caps for cap in includes.caps or ()):
        return False
    return not includes.min_kernel or kernel >= _version(includes.min_kernel)


def native_arch() -> str:
    """`x86_64` or `aarch64`. Raises NotImplementedYet elsewhere."""
    machine = os.uname().machine
    if machine not in _NATIVE:
        raise NotImplementedYet(f"seccomp profiles on {machine}", hint="use --security-opt seccomp=unconfined")
    return machine


def resolve(profile: Profile, caps: Collection[str], arch: str = "", kernel: str = "") -> runtime.Seccomp:
    """What is left of a profile for a container with these capabilities (`CAP_...`).

    `arch` (x86_64, aarch64) and `kernel` (its release) are the host's unless given. Raises InvalidParameter, NotImplementedYet.
    """
    arch = arch or native_arch()
    release = _version(kernel or os.uname().release)
    architectures = profile.architectures or ()
    for entry in profile.arch_map or ():
        if entry.architecture == _NATIVE[arch]:
            architectures = (entry.architecture, *(entry.sub_architectures or ()))
    rules = tuple(
        runtime.SyscallRule(names=rule.names or (rule.name,), action=rule.action, errno_ret=rule.errno_ret, args=rule.args or ())
        for rule in profile.syscalls or ()
        if _used(rule, caps, _DOCKER_ARCH[arch], release)
    )
    return runtime.Seccomp(
        default_action=profile.default_action,
        default_errno_ret=profile.default_errno_ret,
        architectures=architectures,
        flags=profile.flags or (),
        listener_path=profile.listener_path,
        listener_metadata=profile.listener_metadata,
        syscalls=rules,
    )


def _action(name: str, errno: int | None) -> int:
    if name == "SCMP_ACT_NOTIFY":
        raise NotImplementedYet("seccomp action SCMP_ACT_NOTIFY")
    if name not in _ACTIONS:
        raise InvalidParameter(f"unknown seccomp action {name!r}")
    if name not in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        if errno is not None:
            raise InvalidParameter(f"seccomp: errnoRet cannot be used with action {name}")
        return _ACTIONS[name]
    value = EPERM if errno is None else errno
    if value > 4095:
        raise InvalidParameter(f"seccomp: errnoRet {value} is out of range (0 to 4095)")
    return _ACTIONS[name] | value


def _case(rule: runtime.SyscallRule, action: int) -> bpf.Case:
    conditions = []
    for arg in rule.args:
        if arg.op not in _OPS:
            raise InvalidParameter(f"unknown seccomp comparison {arg.op!r}")
        if arg.index > 5 or arg.value >= 1 << 64 or arg.value_two >= 1 << 64:
            raise InvalidParameter(f"seccomp: argument {arg.index} of {', '.join(rule.names[:3])} is out of range")
        conditions.append(bpf.Condition(arg.index, _OPS[arg.op], arg.value, arg.value_two))
    return bpf.Case(tuple(conditions), action)


def _decisions(seccomp: runtime.Seccomp) -> dict[str, bpf.Decision]:
    """What the profile says for each name it has."""
    fallback = _action(seccomp.default_action, seccomp.default_errno_ret)
    cases: dict[str, list[bpf.Case]] = {}
    fixed: dict[str, int] = {}
    for rule in seccomp.syscalls:
        action = _action(rule.action, rule.errno_ret)
        case = _case(rule, action)
        for name in rule.names:
            if case.conditions:
                cases.setdefault(name, []).append(case)
            else:
                fixed.setdefault(name, action)
    decisions = {name: bpf.Decision(tuple(found), fallback) for name, found in cases.items()}
    return decisions | {name: bpf.Decision((), action) for name, action in fixed.items()}


def decisions_by_number(seccomp: runtime.Seccomp, arch: str) -> tuple[dict[int, bpf.Decision], int]:
    """Decisions by call number on one architecture, and the number from which every call is too new for the profile (ENOSYS).

    The second is 2**32 where the default action lets calls pass, or is ENOSYS already.
    """
    numbers = syscalls.numbers(arch)
    known = {numbers[name]: decision for name, decision in _decisions(seccomp).items() if name in numbers}
    if seccomp.default_action in _PERMISSIVE or not known:
        return known, 1 << 32
    # ARM's private calls lie far above the table and say nothing about how new the profile is.
    return known, max((number for number in known if number % _X32_BIT < 0xF0000), default=0) + 1


def _ranges(seccomp: runtime.Seccomp, arch: str) -> bpf.Ranges:
    fallback = bpf.Decision((), _action(seccomp.default_action, seccomp.default_errno_ret))
    unknown = bpf.Decision((), RET_ERRNO | ENOSYS)
    known, newer = decisions_by_number(seccomp, arch)
    base = _X32_BIT if arch == "x32" else 0
    ranges: bpf.Ranges = [(base, fallback)]
    for number, decision in sorted(known.items()):
        if ranges[-1][0] == number:
            ranges.pop()
        ranges.append((number, decision))
        ranges.append((number + 1, fallback if number + 1 < newer else unknown))
    return ranges


def architectures(seccomp: runtime.Seccomp, arch: str = "") -> tuple[str, ...]:
    """The architectures a filter is made for, the native one first. Raises InvalidParameter or NotImplementedYet for other names."""
    native = arch or native_arch()
    chosen = [native]
    for name in seccomp.architectures:
        if name == "SCMP_ARCH_NATIVE":
            continue
        if not name.startswith("SCMP_ARCH_"):
            raise InvalidParameter(f"unknown seccomp architecture {name!r}")
        if name not in _ARCH_NAMES:
            raise NotImplementedYet(f"seccomp architecture {name}")
        if _ARCH_NAMES[name] not in chosen:
            chosen.append(_ARCH_NAMES[name])
    return tuple(chosen)


def compile_filter(seccomp: runtime.Seccomp, arch: str = "") -> bytes:
    """The filter program (an array of struct sock_filter) for a resolved profile.

    Raises InvalidParameter for a profile that makes no sense, NotImplementedYet for SCMP_ACT_NOTIFY and foreign architectures.
    """
    if seccomp.listener_path or seccomp.listener_metadata:
        raise NotImplementedYet("seccomp listenerPath")
    chosen = architectures(seccomp, arch)
    tables: dict[int, bpf.Ranges] = {}
    for name in chosen:
        if name != "x32":
            tables[_AUDIT_ARCH[name]] = _ranges(seccomp, name)
    if "x86_64" in chosen:
        # Without x32 in the profile its numbers are as foreign as another architecture's.
        x32 = _ranges(seccomp, "x32") if "x32" in chosen else [(_X32_BIT, bpf.Decision((), RET_KILL_PROCESS))]
        native = [entry for entry in tables[_AUDIT_ARCH["x86_64"]] if entry[0] < _X32_BIT]
        tables[_AUDIT_ARCH["x86_64"]] = native + x32
    try:
        return bpf.compile_ranges(tables, RET_KILL_PROCESS)
    except ValueError as error:
        raise InvalidParameter(f"compiling the seccomp profile: {error}") from None


def filter_flags(seccomp: runtime.Seccomp) -> int:
    """Flags for seccomp(SECCOMP_SET_MODE_FILTER). Raises InvalidParameter for an unknown name."""
    value = 0
    for flag in seccomp.flags:
        if flag not in _FLAGS:
            raise InvalidParameter(f"unknown seccomp flag {flag!r}")
        value |= _FLAGS[flag]
    return value


_programs: OrderedDict[bytes, bytes] = OrderedDict()


def compile(profile: Profile | runtime.Seccomp, caps: Collection[str] = (), arch: str = "") -> bytes:
    """The filter program for a profile, from memory when the same was compiled before. Errors as `compile_filter`."""
    seccomp = resolve(profile, caps, arch) if isinstance(profile, Profile) else profile
    key = _digest(seccomp, arch)
    program = _programs.get(key)
    if program is None:
        program = _programs[key] = compile_filter(seccomp, arch)
        if len(_programs) > _CACHE_SIZE:
            _programs.popitem(last=False)
    else:
        _programs.move_to_end(key)
    return program


def _digest(seccomp: runtime.Seccomp, arch: str) -> bytes:
    import hashlib

    return hashlib.sha256(msgspec.json.encode((arch, seccomp))).digest()


@functools.cache
def _default_seccomp(caps: frozenset[str]) -> runtime.Seccomp:
    return resolve(default_profile(), caps)


def from_option(option: str | None, caps: Collection[str], *, privileged: bool = False) -> runtime.Seccomp | None:
    """The resolved profile for `--security-opt seccomp=...`; None means no filter.

    `option` is None (not given: the default, or none when privileged), "" or "builtin" (the default), "unconfined", or JSON text as clients
    send it after reading a file. Raises InvalidParameter.
    """
    if option == "unconfined" or (option is None and privileged):
        return None
    if option in (None, "", "builtin", "default"):
        return _default_seccomp(frozenset(caps))
    return resolve(parse(str(option)), caps)


def load_file(path: str) -> str:
    """A profile file's text for `from_option`, checked to be JSON. Raises InvalidParameter."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        json.loads(text)
    except OSError as error:
        raise InvalidParameter(f"opening seccomp profile ({path}) failed: {error.strerror}") from None
    except ValueError as error:
        raise InvalidParameter(f"compacting json for seccomp profile ({path}) failed: {error}") from None
    return text
