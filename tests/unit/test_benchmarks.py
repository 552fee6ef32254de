"""The benchmarks' own arithmetic and files, without running anything."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

from benchmarks import report, svg
from benchmarks.measures import BARS, Plan, Session
from benchmarks.progress import Progress
from benchmarks.stats import Bar, Measurement, Series


def measured(**medians: float) -> Measurement:
    found = Measurement("start_wait", "start + wait")
    for engine, value in medians.items():
        for sample in (value, value * 0.5, value * 2):
            found.add(engine, sample)
    return found


def test_percentiles_are_samples() -> None:
    series = Series("x", samples=[float(n) for n in range(1, 101)])
    assert (series.median, series.p99, series.percentile(1), series.percentile(100)) == (50.5, 99.0, 1.0, 100.0)
    assert Series("x", samples=[3.0]).p99 == 3.0


def test_bars() -> None:
    found = {"start_wait": measured(knarr=5, dockerd=100)}
    bar = Bar("", "start_wait", "knarr", 1 / 10, "start_wait", "dockerd")
    assert bar.verdict(found) == ("pass", 0.05)
    assert Bar("", "start_wait", "knarr", 1 / 40, "start_wait", "dockerd").verdict(found)[0] == "FAIL"
    assert Bar("", "start_wait", "knarr", 4.0, "", None).verdict(found) == ("FAIL", 5)
    assert Bar("", "start_wait", "knarr", 1, "start_wait", "crun").verdict(found) == ("-", None)
    found["start_wait"].better = "higher"
    assert Bar("", "start_wait", "dockerd", 20, "start_wait", "knarr").verdict(found) == ("pass", 20.0)


def test_report_and_plot(tmp_path: Path) -> None:
    session = Session([], None, Plan(quick=True), Progress())
    session.found["start_wait"] = measured(knarr=5, dockerd=100, floor=2)
    session.waterfall = [("request", 0.0), ("clone", 900.0), ("mount overlay on / <root>", 1100.0), ("exec", 2500.0)]
    report.write(session, tmp_path)
    data = json.loads((tmp_path / "results.json").read_text())
    assert data["measurements"]["start_wait"]["engines"]["knarr"]["median"] == 5
    assert len(data["bars"]) == len(BARS)
    text = (tmp_path / "results.txt").read_text()
    assert "start + wait" in text
    assert "not measured" in text
    plot = ET.fromstring((tmp_path / "results.svg").read_text())
    words = [element.text for element in plot.iter("{http://www.w3.org/2000/svg}text")]
    assert "mount overlay on / <root>" in words
    assert "dockerd" in words


def test_a_plot_of_nothing() -> None:
    ET.fromstring(svg.plot({}, [], ""))
