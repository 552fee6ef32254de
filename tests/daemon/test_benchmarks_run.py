"""`make bench` works: a run with a handful of samples. How fast anything is, no test asks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.lib.daemon import ROOT


def test_a_quick_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "knarr", "--out", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    expected = {
        "start_wait",
        "first_instruction",
        "lifecycle",
        "exec",
        "knarr_run",
        "docker_run",
        "launch",
        "burst",
        "idle_memory",
        "container_memory",
    }
    assert expected <= set(found["measurements"])
    assert found["waterfall_us"]
    assert (tmp_path / "results.svg").read_text().startswith("<svg")


def test_a_run_of_serving(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.transfer", "--only", "serve", "--rounds", "1", "--out", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    assert set(json.loads((tmp_path / "transfer.json").read_text())["serve"]) == {"knarr", "docker-registry"}


def test_a_run_of_networks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.network", "--quick", "--engines", "knarr", "--out", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads((tmp_path / "network.json").read_text())["measurements"]
    assert {"start_none", "start_bridge", "docker_run", "between", "published", "dns_rate", "dns_busy", "crowd_last"} <= set(found)
    assert (tmp_path / "network.svg").read_text().startswith("<svg")
