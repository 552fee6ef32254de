"""A progress bar on a terminal's standard error; one line a stage where there is no terminal."""

from __future__ import annotations

import sys

WIDTH = 30


class Progress:
    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.number, self.total, self.title = 0, 1, ""

    def stage(self, number: int, total: int, title: str) -> None:
        self.number, self.total, self.title = number, total, title
        if self.terminal:
            self.part(0)
        else:
            print(f"[{number + 1}/{total}] {title}", file=sys.stderr, flush=True)

    def part(self, fraction: float) -> None:
        """How much of the stage is done, 0 to 1."""
        if self.terminal:
            done = (self.number + fraction) / self.total
            bar = "█" * round(done * WIDTH)
            print(f"\r\x1b[K{bar:░<{WIDTH}} {done:4.0%} {self.title}", end="", file=sys.stderr, flush=True)

    def done(self) -> None:
        if self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
