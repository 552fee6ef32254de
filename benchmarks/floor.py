"""The bare system calls of a container start, by a C program without any engine (`floor.c`): what no engine can go below."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks import engines


class Floor:
    """Runs the floor program; only what it times itself counts, not its own start."""

    name = "floor"
    BATCH = 3  # samples of one process

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="knarr-bench-floor-"))
        self.program = engines.build("floor")
        self.root = self.folder / "lower"
        self.root.mkdir()
        engines.unpack(self.root)

    def samples(self, gap: float) -> list[tuple[float, float]]:
        """(milliseconds to exec, milliseconds to exit) of some starts, `gap` seconds of quiet before each."""
        command = [str(self.program), str(self.root), str(self.BATCH), str(round(gap * 1000))]
        output = subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
        found = [json.loads(line) for line in output.splitlines()]
        return [(one["exec_ns"] / 1e6, one["exit_ns"] / 1e6) for one in found]

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
