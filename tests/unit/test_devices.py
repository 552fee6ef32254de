"""Device rules, their v1 lines and their meaning; the programs run in the kernel in tests/runtime/test_cgroups.py."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidParameter
from engine.linux import devices
from engine.spec.runtime import Device, DeviceRule


def run(program: bytes, kind: str, access: str, major: int, minor: int) -> bool:
    """A machine for the instructions that the generator uses."""
    code = list(struct.iter_unpack("<BBhi", program))
    wanted = sum({"m": 1, "r": 2, "w": 4}[letter] for letter in access)
    context = {0: {"b": 1, "c": 2}[kind] | wanted << 16, 4: major, 8: minor}
    registers = [0] * 11
    place = 0
    while True:
        op, both, offset, value = code[place]
        place += 1
        to, source = both & 15, both >> 4
        if op == 0x61:
            registers[to] = context[offset]
        elif op == 0xB7:
            registers[to] = value
        elif op == 0xBF:
            registers[to] = registers[source]
        elif op == 0x57:
            registers[to] &= value
        elif op == 0x77:
            registers[to] >>= value
        elif op == 0x15:
            place += offset if registers[to] == value else 0
        elif op == 0x55:
            place += offset if registers[to] != value else 0
        elif op == 0x5D:
            place += offset if registers[to] != registers[source] else 0
        elif op == 0x95:
            return bool(registers[0])
        else:
            raise AssertionError(hex(op))


def test_default_program() -> None:
    program = devices.bpf_program(devices.DEFAULT_RULES)
    for kind, access, major, minor, allowed in (
        ("c", "rw", 1, 3, True), ("c", "rwm", 1, 9, True), ("c", "m", 77, 1, True), ("b", "m", 8, 0, True), ("b", "r", 8, 0, False),
        ("c", "rw", 136, 12345, True), ("c", "r", 1, 1, False), ("c", "rw", 5, 2, True), ("c", "mr", 10, 229, False),
    ):  # fmt: skip
        assert run(program, kind, access, major, minor) is allowed, (kind, access, major, minor)


RULE = st.builds(
    DeviceRule,
    allow=st.booleans(),
    type=st.sampled_from(["a", "b", "c", "c", "c"]),
    major=st.one_of(st.none(), st.integers(0, 3)),
    minor=st.one_of(st.none(), st.integers(0, 3)),
    access=st.sampled_from(["rwm", "r", "w", "m", "rw", "rm"]),
)


def meaning(rules: list[DeviceRule], kind: str, access: str, major: int, minor: int) -> bool:
    answer, exceptions = devices._effective(rules)
    for (device, a, b), allow, accesses in exceptions:
        fits = set(access) <= accesses if allow else bool(set(access) & accesses)
        if device == kind and a in (None, major) and b in (None, minor) and fits:
            answer = allow
    return answer


@given(st.lists(RULE, max_size=8))
def test_programs_mean_what_the_rules_say(rules: list[DeviceRule]) -> None:
    program = devices.bpf_program(rules)
    for kind in "bc":
        for access in ("r", "w", "m", "rw", "rwm"):
            for major in range(4):
                for minor in range(4):
                    assert run(program, kind, access, major, minor) == meaning(rules, kind, access, major, minor)


def test_v1_lines() -> None:
    lines = devices.v1_lines(devices.DEFAULT_RULES)
    assert lines[:3] == [("devices.deny", "a *:* rwm"), ("devices.allow", "c *:* m"), ("devices.allow", "b *:* m")]
    assert ("devices.allow", "c 136:* rwm") in lines
    with pytest.raises(InvalidParameter):
        devices.v1_lines([DeviceRule(allow=True, type="x", access="rwm")])
    with pytest.raises(InvalidParameter):
        devices.bpf_program([DeviceRule(allow=True, type="c", access="q")])


def test_rules_for_devices() -> None:
    fuse = Device(path="/dev/fuse", type="c", major=10, minor=229)
    assert devices.device_rules([fuse])[-1] == DeviceRule(allow=True, type="c", major=10, minor=229, access="rwm")
    own = DeviceRule(allow=True, type="c", major=10, minor=229, access="r")
    assert devices.device_rules([fuse], [own]) == (*devices.DEFAULT_RULES, own)
    assert devices.device_rules() == devices.DEFAULT_RULES
    assert devices.allows_all(devices.ALLOW_ALL)
    assert devices.allows_all((DeviceRule(allow=True, access="rwm"),))
    assert not devices.allows_all(devices.DEFAULT_RULES)


def test_host_nodes() -> None:
    (null,) = devices.from_host("/dev/null", "/dev/nothing")
    assert (null.path, null.type, null.major, null.minor) == ("/dev/nothing", "c", 1, 3)
    assert null.file_mode == os.stat("/dev/null").st_mode & 0o7777
    with pytest.raises(InvalidParameter, match=r"[Nn]o such file"):
        devices.from_host("/dev/does-not-exist", "/dev/x")
    with pytest.raises(InvalidParameter, match="not a device node"):
        devices.from_host("/etc/hostname", "/dev/x")
    names = {device.path for device in devices.all_host()}
    assert "/dev/null" in names
    assert not any(name.startswith(("/dev/pts/", "/dev/shm/")) or name == "/dev/console" for name in names)
