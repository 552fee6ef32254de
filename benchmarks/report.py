"""The table, the bars and the files of one run."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

from benchmarks import svg
from benchmarks.measures import BARS, Session
from benchmarks.stats import Measurement

ORDER = ("floor", "knarr", "crun", "runc", "podman", "dockerd")


def machine() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"kernel": platform.release(), "cpus": os.cpu_count(), "memory_gib": round(memory / 2**30), "python": platform.python_version()}


def rows(measurement: Measurement) -> list[tuple[str, ...]]:
    """(title, engine, median, p99, samples, ratio to Knarr), the title in the first row only."""
    ours = measurement.median("knarr")
    found: list[tuple[str, ...]] = []
    for engine in ORDER:
        series = measurement.series.get(engine)
        if series is None or not series.samples:
            continue
        ratio = f"{series.median / ours:.2f}" if ours else ""
        title = measurement.title if not found else ""
        found.append((title, engine, f"{series.median:.2f} {series.unit}", f"{series.p99:.2f}", str(len(series.samples)), ratio))
    return found


def table(lines: list[tuple[str, ...]]) -> str:
    """Columns as wide as their widest cell; the first two left, the others right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))) for line in lines
    )


def text(session: Session) -> str:
    head: list[tuple[str, ...]] = [("what", "engine", "median", "p99", "samples", "× knarr")]
    body = [row for measurement in session.found.values() for row in rows(measurement)]
    bars: list[tuple[str, ...]] = [("bar", "", "measured", "bound")]
    for bar in BARS:
        verdict, value = bar.verdict(session.found)
        bars.append((bar.text, verdict, "not measured" if value is None else f"{value:.3g}", f"{bar.factor:.3g}"))
    notes = "".join(f"\n{note}" for note in dict.fromkeys(session.skipped))
    return f"{table([*head, *body])}\n\n{table(bars)}{notes}\n"


def data(session: Session) -> dict[str, Any]:
    """Everything, for a machine."""
    return {
        "machine": machine(),
        "measurements": {
            m.key: {
                "title": m.title,
                "better": m.better,
                "engines": {
                    s.engine: {"unit": s.unit, "median": s.median, "p99": s.p99, "samples": s.samples}
                    for s in m.series.values()
                    if s.samples
                },
            }
            for m in session.found.values()
        },
        "bars": [
            dict(zip(("text", "verdict", "value", "bound"), (b.text, *b.verdict(session.found), b.factor), strict=True)) for b in BARS
        ],
        "waterfall_us": session.waterfall,
        "notes": session.skipped,
    }


def write(session: Session, folder: Path) -> None:
    """results.json, results.svg and results.txt in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    about = machine()
    subtitle = f"kernel {about['kernel']}, {about['cpus']} processors, {about['memory_gib']} GiB"
    (folder / "results.json").write_text(json.dumps(data(session), indent=1) + "\n")
    (folder / "results.svg").write_text(svg.plot(session.found, session.waterfall, subtitle))
    (folder / "results.txt").write_text(text(session))
