"""Power cuts: the daemon works in a machine of its own (user-mode Linux), on a disk of its own, and the machine is killed. What was only in
its page cache is gone. After the next boot every acknowledged image is there, runs, and the store is sound.

KNARR_POWER_CUTS is how many times.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos import storework
from tests.lib import cgroup2
from tests.lib.registries import DockerRegistry

CUTS = int(os.environ.get("KNARR_POWER_CUTS", "1"))
_MEMORY = "600M"


@pytest.mark.slow
@pytest.mark.skipif(cgroup2.INSIDE in os.environ, reason="this is that kernel")
def test_power_cuts_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    reason = cgroup2.missing()
    if reason and not os.environ.get("CI"):
        pytest.skip(reason)
    assert not reason
    disk = tmp_path / "disk"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(disk), "300M"], check=True)
    registry = DockerRegistry(folder=tmp_path / "registry")
    registry.folder.mkdir()
    registry.start()
    try:
        storework.fill(registry)
    finally:
        registry.stop()
    for _ in range(CUTS):
        cut_amid(tmp_path, disk, random.uniform(0.2, 4))
    work = tmp_path / "last"
    work.mkdir()
    kernel = cgroup2.start(work, command(tmp_path, "last"), memory=_MEMORY, disk=disk)
    try:
        kernel.wait(600)
    finally:
        cgroup2.end(kernel)
    assert (work / "status").exists(), output(work)
    assert (work / "status").read_text().strip() == "0", output(work)


def command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "tests.chaos.powercut", str(folder), str(folder / "registry"), *more]


def cut_amid(folder: Path, disk: Path, seconds: float) -> None:
    """Boot, wait until what was there before is found whole and requests follow one another, and cut the power in the middle of that."""
    ready, work = folder / "ready", folder / f"cut-{time.monotonic_ns()}"
    ready.unlink(missing_ok=True)
    work.mkdir()
    kernel = cgroup2.start(work, command(folder), memory=_MEMORY, disk=disk)
    try:
        deadline = time.monotonic() + 600
        while not ready.exists():
            assert kernel.poll() is None, output(work)
            assert not (work / "status").exists(), output(work)
            assert time.monotonic() < deadline, output(work)
            time.sleep(0.05)
        time.sleep(seconds)
        assert not (work / "status").exists(), output(work)
    finally:
        cgroup2.end(kernel)


def output(work: Path) -> str:
    """What was said inside, and the console's end."""
    texts = [(work / name).read_text(errors="replace")[-4000:] for name in ("output", "console") if (work / name).exists()]
    return "\n--- console\n".join(texts)
