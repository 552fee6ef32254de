"""Damaged plans: the decoder takes or refuses them and never reads outside. It runs under AddressSanitizer."""

from __future__ import annotations

import atexit
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import _core
from engine.runtime import ops

PLAN = ops.encode([
    ops.Clone(ops.NEWNS, "/sys/fs/cgroup/x"), ops.Root("overlay", "/m", "overlay", 0, "lowerdir=a", "/base"), ops.Mount("proc",
    "/proc", "proc"), ops.Bind("/a", "/b", 1, 2, 3, True), ops.Symlink("a", "/dev/b"), ops.User(1, 2, (3, 4, 5)),
    ops.Seccomp(bytes(range(64))), ops.Owners(("a", "b"), "/c", "/n"), ops.Alive(1, 2),
    ops.Exec(("sh", "-c", "true"), ("PATH=/bin", "A=b")),
])  # fmt: skip

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def decoder() -> Path:
    """The decoder under AddressSanitizer and UndefinedBehaviorSanitizer, as a program of its own."""
    folder = Path(tempfile.mkdtemp(prefix="knarr-test-decoder-"))
    atexit.register(shutil.rmtree, folder)
    flags = ["-g", "-O1", "-std=gnu11", "-D_GNU_SOURCE", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-I", ROOT / "engine"]
    subprocess.run(["gcc", *flags, "-o", folder / "decode", Path(__file__).with_name("decode.c")], check=True)
    return folder / "decode"


def mutate(data: st.DataObject) -> bytes:
    raw = bytearray(PLAN)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(raw) - 1))
        kind = data.draw(st.sampled_from(("byte", "word", "cut", "insert")))
        if kind == "byte":
            raw[at] = data.draw(st.integers(0, 255))
        elif kind == "word":  # sizes, offsets and lengths are aligned numbers
            at -= at % 8
            value = data.draw(st.one_of(st.integers(0, 200), st.integers(2**31, 2**64 - 1), st.integers(2**64 - 200, 2**64 - 1)))
            raw[at : at + 8] = value.to_bytes(8, "little")
        elif kind == "cut":
            del raw[at:]
        else:
            raw[at:at] = data.draw(st.binary(max_size=16))
        if not raw:
            raw = bytearray(b"\0")
    if data.draw(st.booleans()):  # a header that tells the truth gets mutations further
        raw[8:12] = len(raw).to_bytes(4, "little")
    return bytes(raw)


def survives(plans: list[bytes]) -> None:
    data = b"".join(len(plan).to_bytes(4, "little") + plan for plan in plans)
    result = subprocess.run([decoder()], input=data, capture_output=True, timeout=60)
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.startswith(b"done")


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_mutated_plans(data: st.DataObject) -> None:
    survives([mutate(data) for _ in range(25)])


@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.binary(max_size=300), max_size=100))
def test_noise(plans: list[bytes]) -> None:
    survives(plans)


def test_every_single_byte_and_every_cut() -> None:
    plans = [PLAN[:at] for at in range(len(PLAN))]
    plans += [PLAN[:at] + bytes((value,)) + PLAN[at + 1 :] for at in range(len(PLAN)) for value in (0, 1, 127, 255)]
    survives(plans)


def test_the_plan_itself_is_taken() -> None:
    assert _core.decode(PLAN) == 10
    survives([PLAN])


@pytest.mark.parametrize(
    "steps",
    [
        [ops.Clone(0)],
        [ops.Exec(("x",)), ops.Clone(0)],
        [ops.Clone(0), ops.Clone(0), ops.Exec(("x",))],
        [ops.Clone(0), ops.Exec(("x",)), ops.Exec(("x",))],
        [ops.Clone(0), ops.Exec(())],
        [ops.Clone(0), ops.Root("", "", "")],
    ],
)
def test_order_is_checked(steps: list[ops.Op]) -> None:
    with pytest.raises(ValueError, match="does not decode"):
        _core.decode(ops.encode(steps))


def test_launch_checks_too() -> None:
    with pytest.raises(ValueError, match="does not decode"):
        _core.launch(PLAN[:-8], (0, 1, 2))
