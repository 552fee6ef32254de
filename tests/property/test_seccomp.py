"""Compiled filters against the meaning of their profile, for every system call number and many arguments."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.linux import caps, seccomp, syscalls
from engine.linux import seccomp_bpf as bpf
from engine.spec import runtime
from tests.lib.bpf import Machine

AUDIT = {"x86_64": 0xC000003E, "i386": 0x40000003, "x32": 0xC000003E, "aarch64": 0xC00000B7, "arm": 0x40000028}
INTERESTING = [0, 1, 7, 8, 12, 38, 40, 0x11, 0x20000, 0x10000000, 0x7E020000, 0xFFFFFFFF, 1 << 32, (1 << 64) - 1]


def expected(profile: runtime.Seccomp, arch: str, number: int, arguments: tuple[int, ...]) -> int:
    """The meaning, read straight from the rules: no ranges, no trees."""
    by_number = {value: name for name, value in syscalls.numbers(arch).items()}
    # Two names of one number (ARM has such) mean the same call.
    names = {name for name, value in syscalls.numbers(arch).items() if value == number} if number in by_number else set()
    rules = [rule for rule in profile.syscalls if names & set(rule.names)]
    named = [syscalls.numbers(arch)[n] for rule in profile.syscalls for n in rule.names if n in syscalls.numbers(arch)]
    newest = max((n for n in named if n % 0x40000000 < 0xF0000), default=None)

    def action(rule: runtime.SyscallRule) -> int:
        return seccomp._action(rule.action, rule.errno_ret)

    for rule in rules:
        if not rule.args:
            return action(rule)
    for rule in rules:
        if all(holds(arg, arguments[arg.index]) for arg in rule.args):
            return action(rule)
    if not rules and newest is not None and number > newest and number < 0xF0000 and profile.default_action not in seccomp._PERMISSIVE:
        return seccomp.RET_ERRNO | 38
    return seccomp._action(profile.default_action, profile.default_errno_ret)


def holds(arg: runtime.ArgRule, value: int) -> bool:
    return {
        "SCMP_CMP_EQ": value == arg.value,
        "SCMP_CMP_NE": value != arg.value,
        "SCMP_CMP_LT": value < arg.value,
        "SCMP_CMP_LE": value <= arg.value,
        "SCMP_CMP_GT": value > arg.value,
        "SCMP_CMP_GE": value >= arg.value,
        "SCMP_CMP_MASKED_EQ": value & arg.value == arg.value_two,
    }[arg.op]


@pytest.mark.parametrize("capabilities", [caps.DEFAULT, (), caps.NAMES, ("CAP_SYS_ADMIN",)], ids=["default", "none", "all", "admin"])
@pytest.mark.parametrize("arch", ["x86_64", "i386", "aarch64", "arm"])
def test_default_profile_for_every_number(arch: str, capabilities: tuple[str, ...]) -> None:
    native = "x86_64" if arch in ("x86_64", "i386") else "aarch64"
    profile = seccomp.resolve(seccomp.default_profile(), capabilities, native, "6.1")
    machine = Machine(seccomp.compile(profile, arch=native))
    for number in range(600):
        for value in INTERESTING if number in conditional(profile, arch) else (0, (1 << 64) - 1):
            arguments = (value, value, 0, 0, 0, 0)
            assert machine.run(number, AUDIT[arch], arguments) == expected(profile, arch, number, arguments), (number, value)


def conditional(profile: runtime.Seccomp, arch: str) -> set[int]:
    numbers = syscalls.numbers(arch)
    return {numbers[name] for rule in profile.syscalls if rule.args for name in rule.names if name in numbers}


def test_x32_numbers_are_their_own() -> None:
    profile = seccomp.resolve(seccomp.default_profile(), caps.DEFAULT, "x86_64", "6.1")
    machine = Machine(seccomp.compile(profile, arch="x86_64"))
    numbers = syscalls.numbers("x32")
    assert machine.run(numbers["read"], AUDIT["x32"]) == seccomp.RET_ALLOW
    assert machine.run(numbers["execve"], AUDIT["x32"]) == seccomp.RET_ALLOW
    assert machine.run(numbers["keyctl"], AUDIT["x32"]) == seccomp.RET_ERRNO | 1
    alone = Machine(seccomp.compile(runtime.Seccomp(default_action="SCMP_ACT_ALLOW"), arch="x86_64"))
    assert alone.run(0, AUDIT["x86_64"]) == seccomp.RET_ALLOW
    assert alone.run(numbers["read"], AUDIT["x32"]) == seccomp.RET_KILL_PROCESS
    assert alone.run(3, AUDIT["i386"]) == seccomp.RET_KILL_PROCESS


ARGUMENT = st.one_of(st.sampled_from(INTERESTING), st.integers(0, 50), st.integers(0, (1 << 64) - 1))
ARG_RULE = st.builds(
    runtime.ArgRule, index=st.integers(0, 5), value=ARGUMENT, value_two=ARGUMENT, op=st.sampled_from(sorted(seccomp._OPS))
)  # fmt: skip
NAMES = sorted(syscalls.numbers("x86_64"))
RULE = st.builds(
    runtime.SyscallRule,
    names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=30).map(tuple),
    action=st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_ERRNO"]),
    args=st.one_of(st.just(()), st.lists(ARG_RULE, max_size=3).map(tuple)),
)
# Alternating numbers make the tree as long as it gets, which puts its returns out of reach of short jumps.
STRIPES = st.integers(1, 4).map(lambda step: runtime.SyscallRule(names=tuple(NAMES[::step]), action="SCMP_ACT_TRAP"))
PROFILE = st.builds(
    runtime.Seccomp,
    default_action=st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL"]),
    architectures=st.sampled_from([(), ("SCMP_ARCH_X86",), ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32")]),
    syscalls=st.lists(st.one_of(RULE, STRIPES), max_size=12).map(tuple),
)


@settings(max_examples=120, deadline=None)
@given(PROFILE, st.lists(st.tuples(*[ARGUMENT] * 6), min_size=1, max_size=4))
def test_any_profile(profile: runtime.Seccomp, arguments: list[tuple[int, ...]]) -> None:
    machine = Machine(seccomp.compile_filter(profile, "x86_64"))
    values = {value for rule in profile.syscalls for arg in rule.args for value in (arg.value, arg.value_two)}
    edges = [(edge % (1 << 64),) * 6 for value in list(values)[:6] for edge in (value - 1, value, value + 1)]
    hot = conditional(profile, "x86_64")
    cache: dict[int, int] = {}
    for number in range(0, 500):
        if number not in hot:
            cache[number] = machine.run(number, AUDIT["x86_64"], arguments[0])
    decisions, newer = seccomp.decisions_by_number(profile, "x86_64")
    default = seccomp._action(profile.default_action, None)
    for number, result in cache.items():
        wanted = decisions.get(number, bpf.Decision((), default if number < newer else seccomp.RET_ERRNO | 38))
        assert result == bpf.decide(wanted, arguments[0]), number
    for number in hot:
        for each in [*arguments, *edges]:
            assert machine.run(number, AUDIT["x86_64"], each) == expected(profile, "x86_64", number, each), (number, each)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 3)), min_size=1, max_size=400, unique_by=lambda pair: pair[0]), st.booleans()
)
def test_tree_finds_every_range(pairs: list[tuple[int, int]], dense: bool) -> None:
    starts = sorted({start // 4 if dense else start for start, _ in pairs} | {0})
    actions = [0x50000 + dict(pairs).get(start, 0) for start in starts]
    ranges = [(start, bpf.Decision((), action)) for start, action in zip(starts, actions, strict=True)]
    machine = Machine(bpf.compile_ranges({7: ranges}, 0x80000000))
    for start, action, end in zip(starts, actions, [*starts[1:], 1 << 32], strict=True):
        for number in {start, (start + end) // 2, end - 1}:
            assert machine.run(number, 7) == action
    assert machine.run(0, 8) == 0x80000000
