"""The bare system calls of a container start, by a C program without any engine (`floor.c`): what no engine can go below."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks import engines


class Floor:
    """Keeps one process of the floor program, so that its own start is not measured."""

    name = "floor"

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="knarr-bench-floor-"))
        self.program = engines.build("floor")
        self.root = self.folder / "lower"
        self.root.mkdir()
        engines.unpack(self.root)

    def sample(self, gap: float) -> tuple[float, float]:
        """(milliseconds to exec, milliseconds to exit) of one start after `gap` seconds of quiet."""
        command = [str(self.program), str(self.root), "1", str(round(gap * 1000))]
        output = subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
        found = json.loads(output.splitlines()[-1])
        return found["exec_ns"] / 1e6, found["exit_ns"] / 1e6

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
