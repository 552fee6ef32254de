"""Medians and friends of lists of samples, and how they are written."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Series:
    """The samples of one engine in one measurement, in `unit`."""

    engine: str
    unit: str = "ms"
    samples: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def percentile(self, percent: float) -> float:
        """Nearest rank: the smallest sample that at least `percent` of all are not above."""
        ordered = sorted(self.samples)
        return ordered[max(0, -(-len(ordered) * percent // 100).__trunc__() - 1)]

    @property
    def p99(self) -> float:
        return self.percentile(99)


@dataclass
class Measurement:
    """One thing that was measured, for every engine that can do it."""

    key: str
    title: str
    series: dict[str, Series] = field(default_factory=dict)
    better: str = "lower"

    def add(self, engine: str, value: float, unit: str = "ms") -> None:
        self.series.setdefault(engine, Series(engine, unit)).samples.append(value)

    def median(self, engine: str) -> float | None:
        found = self.series.get(engine)
        return found.median if found and found.samples else None


@dataclass
class Bar:
    """A promise: `key` of `engine` is at most (at least, when higher is better) `factor` times `of_key` of `of_engine`."""

    text: str
    key: str
    engine: str
    factor: float
    of_key: str
    of_engine: str | None  # None: `factor` is the value itself

    def verdict(self, found: dict[str, Measurement]) -> tuple[str, float | None]:
        """("pass" | "FAIL" | "-", the ratio or value)."""
        ours = found[self.key].median(self.engine) if self.key in found else None
        if ours is None:
            return "-", None
        if self.of_engine is None:
            return ("pass" if ours <= self.factor else "FAIL"), ours
        other = found[self.of_key].median(self.of_engine) if self.of_key in found else None
        if not other:
            return "-", None
        ratio = ours / other
        met = ratio >= self.factor if found[self.key].better == "higher" else ratio <= self.factor
        return ("pass" if met else "FAIL"), ratio


def lines(found: dict[str, Measurement], bars: Iterable[Bar]) -> Iterator[str]:
    """A line for each measurement that was made, with the medians, and one for each promise that can be judged."""
    for one in found.values():
        shown = [f"{name} {series.median:.{1 if series.unit == 'ms' else 2}f} {series.unit}" for name, series in one.series.items()]
        if shown:
            yield f"{one.title}: {', '.join(shown)}"
    for bar in bars:
        verdict, value = bar.verdict(found)
        if value is not None:
            yield f"{verdict:4} {bar.text}: {value:.3f}"


def write(folder: Path, name: str, found: dict[str, Measurement], bars: Iterable[Bar]) -> None:
    """Write all samples to `name`.json in a folder, made if missing, and `lines` to `name`.txt; the latter to standard output as well."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record(found), indent=1))
    text = "\n".join(lines(found, bars))
    (folder / f"{name}.txt").write_text(text + "\n")
    print(text)


def record(found: dict[str, Measurement]) -> dict[str, Any]:
    """All samples, for JSON."""
    return {
        key: {name: {"unit": series.unit, "median": series.median, "samples": series.samples} for name, series in one.series.items()}
        for key, one in found.items()
        if one.series
    }
