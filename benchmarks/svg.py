"""Plots as plain SVG text: bars of the medians (logarithmic) for each measurement, and the waterfall of one start. No dependency."""

from __future__ import annotations

import itertools
import math
from html import escape

from benchmarks.stats import Measurement, Series

COLOURS = {"knarr": "#0b7285", "dockerd": "#e8590c", "crun": "#5f3dc4", "runc": "#2b8a3e", "podman": "#c2255c", "floor": "#868e96"}
WIDTH, LEFT, RIGHT, ROW = 1000, 350, 130, 18

# Measurements of others that belong beside one: (key, engine).
BESIDE = {
    "start_wait": [("floor_exit", "floor"), ("runtime_run", "crun"), ("runtime_run", "runc")],
    "lifecycle": [("floor_exit", "floor")],
    "launch": [("floor_exec", "floor")],
    "knarr_run": [("docker_run", "dockerd")],
}
LABELS = {
    ("floor_exit", "floor"): "system calls",
    ("floor_exec", "floor"): "system calls",
    ("runtime_run", "crun"): "crun run",
    ("runtime_run", "runc"): "runc run",
    ("docker_run", "dockerd"): "docker run",
}


class Canvas:
    """Elements from top to bottom; `y` is where the next one goes."""

    def __init__(self) -> None:
        self.y = 0.0
        self.parts: list[str] = []

    def text(
        self, x: float, y: float, words: str, size: int = 12, anchor: str = "start", weight: str = "normal", fill: str = "#212529"
    ) -> None:
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" fill="{fill}">'
            f"{escape(words)}</text>"
        )

    def bar(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{height:.1f}" rx="2" fill="{colour}"/>')

    def line(self, x: float, top: float, bottom: float) -> None:
        self.parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}" stroke="#dee2e6"/>')

    def svg(self) -> str:
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.y + 20:.0f}" font-family="system-ui, sans-serif">'
        return "\n".join([head, '<rect width="100%" height="100%" fill="#ffffff"/>', *self.parts, "</svg>\n"])


def figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def groups(found: dict[str, Measurement]) -> list[tuple[str, list[tuple[str, Series]]]]:
    """(title, [(label, series)]): each measurement with what it is compared with, from other measurements too."""
    result = []
    for key, measurement in found.items():
        if key.startswith("floor_"):
            continue
        bars = [(one.engine, one) for one in measurement.series.values() if one.samples]
        for other, engine in BESIDE.get(key, ()):
            one = found[other].series.get(engine) if other in found else None
            if one and one.samples:
                bars.append((LABELS.get((other, engine), engine), one))
        if bars:
            result.append((measurement.title, bars))
    return result


def medians(canvas: Canvas, found: dict[str, Measurement]) -> None:
    """A group of bars for each measurement, every group on its own logarithmic scale from a third of its least value."""
    for title, bars in groups(found):
        low = min(one.median for _, one in bars) / 3 or 0.001
        high = max(max(one.median for _, one in bars), low * 10)
        canvas.y += 10
        canvas.text(LEFT - 110, canvas.y + 13, title, 11, anchor="end", weight="bold")
        for label, one in bars:
            share = math.log(max(one.median, low) / low) / math.log(high / low)
            width = share * (WIDTH - LEFT - RIGHT)
            canvas.text(LEFT - 8, canvas.y + 13, label, 11, anchor="end")
            canvas.bar(LEFT, canvas.y + 2, width, ROW - 4, COLOURS.get(one.engine, "#495057"))
            canvas.text(LEFT + width + 6, canvas.y + 13, f"{figure(one.median)} {one.unit}", 11, fill="#495057")
            canvas.y += ROW


def waterfall(canvas: Canvas, steps: list[tuple[str, float]]) -> None:
    """One start, each step from its beginning to the next one's, in microseconds."""
    if len(steps) < 2:
        return
    end = steps[-1][1] or 1.0
    scale = (WIDTH - LEFT - RIGHT) / end
    top = canvas.y
    tick = 10 ** math.floor(math.log10(end)) / (2 if end / 10 ** math.floor(math.log10(end)) < 3 else 1)
    height = (len(steps) - 1) * 13 + 18
    for number in range(int(end / tick) + 1):
        canvas.line(LEFT + number * tick * scale, top, top + height)
        canvas.text(LEFT + number * tick * scale, top - 2, f"{number * tick:.0f} µs", size=9, anchor="middle", fill="#868e96")
    for (name, at), (_, after) in itertools.pairwise(steps):
        canvas.text(LEFT - 8, canvas.y + 12, name[:60], size=10, anchor="end")
        canvas.bar(LEFT + at * scale, canvas.y + 4, (after - at) * scale, 9, COLOURS["knarr"])
        canvas.text(LEFT + after * scale + 4, canvas.y + 12, f"{after - at:.0f}", size=9, fill="#495057")
        canvas.y += 13
    canvas.y += 18


def plot(found: dict[str, Measurement], steps: list[tuple[str, float]], subtitle: str) -> str:
    """The whole picture."""
    canvas = Canvas()
    canvas.text(20, 30, "Knarr beside the others: medians, logarithmic", 18, weight="bold")
    canvas.text(20, 48, subtitle, 11, fill="#868e96")
    canvas.y = 58
    medians(canvas, found)
    if steps:
        canvas.y += 40
        canvas.text(20, canvas.y, "One start of Knarr, step by step", 18, weight="bold")
        canvas.y += 26
        waterfall(canvas, steps)
    return canvas.svg()
