"""How `knarr build` shows a build: BuildKit's plain format, the picture on a terminal, warnings and the summary. No daemon."""

from __future__ import annotations

import base64
import datetime
import json
import os
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import buildprogress, buildscreen
from cli.buildprogress import Plain, Printer, Raw, State, moment
from cli.tables import width

START = 1_700_000_000.0


def stamp(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(START + seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def vertex(digest: str, name: str, started: float | None = None, completed: float | None = None, **more: Any) -> dict[str, Any]:
    one: dict[str, Any] = {"digest": digest, "name": name, **more}
    if started is not None:
        one["started"] = stamp(started)
    if completed is not None:
        one["completed"] = stamp(completed)
    return {"vertexes": [one]}


def log(digest: str, data: bytes, at: float) -> dict[str, Any]:
    return {"logs": [{"vertex": digest, "stream": 1, "data": base64.b64encode(data).decode(), "timestamp": stamp(at)}]}


class Output:
    """A pipe whose other end is read at the end."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def text(self) -> str:
        os.close(self.writer)
        with open(self.reader, "rb") as file:
            return file.read().decode()


def plain(*steps: tuple[float, dict[str, Any]]) -> str:
    """What plain progress prints for messages at these seconds."""
    out = Output()
    printer = Plain(out.writer)
    for now, message in steps:
        printer.progress(message, now)
    printer.close()
    return out.text()


@given(st.datetimes(datetime.datetime(1970, 1, 1), datetime.datetime(2199, 12, 31)))
def test_moments(when: datetime.datetime) -> None:
    when = when.replace(tzinfo=datetime.UTC)
    assert moment(when.strftime("%Y-%m-%dT%H:%M:%S.%fZ")) == pytest.approx(when.timestamp(), abs=1e-4)


@given(st.text(max_size=30))
def test_what_is_no_moment_is_zero(text: str) -> None:
    assert moment(text) >= 0 or text.startswith("1")


def test_plain_is_buildkits() -> None:
    """Compared with what BuildKit 0.13 printed for such a build."""
    text = plain(
        (0, vertex("a", "[internal] load build definition from Dockerfile", 0)),
        (0, {"statuses": [{"id": "transferring dockerfile:", "vertex": "a", "current": 144, "started": stamp(0), "completed": stamp(0)}]}),
        (0, vertex("a", "[internal] load build definition from Dockerfile", 0, 0.01)),
        (0, vertex("b", "[1/3] FROM docker.io/library/busybox:latest", 0, 0, cached=True)),
        (0, vertex("c", "[2/3] RUN echo hello; false", 0.1)),
        (0.2, log("c", b"hello\nnon", 0.27)),
        (0.4, log("c", b"l", 0.572)),
        (0.4, vertex("c", "[2/3] RUN echo hello; false", 0.1, 0.6, error="process did not complete successfully: exit code: 1")),
    )
    assert text == (
        "#1 [internal] load build definition from Dockerfile\n"
        "#1 transferring dockerfile: 144B done\n"
        "#1 DONE 0.0s\n"
        "\n"
        "#2 [1/3] FROM docker.io/library/busybox:latest\n"
        "#2 CACHED\n"
        "\n"
        "#3 [2/3] RUN echo hello; false\n"
        "#3 0.170 hello\n"
        "#3 0.500 nonl\n"
        "#3 ERROR: process did not complete successfully: exit code: 1\n"
    )


def test_plain_shows_one_at_a_time_until_another_ends() -> None:
    text = plain(
        (0, vertex("a", "A", 0)),
        (0, vertex("b", "B", 0)),
        (0.1, log("a", b"a1\n", 0.1)),
        (0.2, log("b", b"b1\n", 0.2)),
        (0.3, log("a", b"a2\n", 0.3)),
        (0.4, vertex("b", "B", 0, 0.4)),
        (0.5, log("a", b"a3\n", 0.5)),
        (0.6, vertex("a", "A", 0, 0.6, error="context canceled")),
    )
    assert text == (
        "#1 A\n#1 0.100 a1\n#1 0.300 a2\n#1 ...\n\n"
        "#2 B\n#2 0.200 b1\n#2 DONE 0.4s\n\n"
        "#1 A\n#1 0.500 a3\n#1 CANCELED\n"
    )  # fmt: skip


def test_plain_lets_another_speak_when_one_is_silent_or_talks_too_long() -> None:
    messages = [(0.0, vertex("a", "A", 0)), (0.0, vertex("b", "B", 0)), (0.1, log("a", b"a1\n", 0.1)), (0.2, log("b", b"b1\n", 0.2))]
    assert "b1" not in plain(*messages, (0.5, log("a", b"a2\n", 0.5))).split("#2 B")[0]
    silent = plain(*messages, (1.5, log("b", b"b2\n", 1.5)))
    assert silent == "#1 A\n#1 0.100 a1\n#1 ...\n\n#2 B\n#2 0.200 b1\n#2 1.500 b2\n"
    chatty = plain(*messages, *((n / 10, log("a", b"x\n", n / 10)) for n in range(3, 60)))
    assert "#2 0.200 b1\n" in chatty
    assert chatty.index("#2 B") < len(chatty) - 1
    assert chatty.count("#1 A\n") >= 1


def test_plain_tells_when_it_wants_to_be_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Output()
    printer = Plain(out.writer)
    clock = 100.0
    monkeypatch.setattr("cli.buildprogress.time.monotonic", lambda: clock)
    assert printer.due() == float("inf")
    for message in (vertex("a", "A", 0), vertex("b", "B", 0), log("a", b"a\n", 0.1), log("b", b"b\n", 0.2)):
        printer.progress(message, clock)
    assert printer.due() == pytest.approx(buildprogress.IDLE)
    clock += buildprogress.IDLE
    printer.tick()
    assert printer.due() == float("inf")
    assert out.text().endswith("#2 B\n#2 0.200 b\n")


def test_fast_bars_are_shown_when_they_are_done_only() -> None:
    bar = {"id": "extracting", "vertex": "a", "total": 2_000_000, "started": stamp(0)}
    text = plain(
        (0, vertex("a", "A", 0)),
        (0, {"statuses": [{**bar, "current": 1, "timestamp": stamp(0)}]}),
        (0.2, {"statuses": [{**bar, "current": 1_000_000, "timestamp": stamp(0.2)}]}),
        (1.5, {"statuses": [{**bar, "current": 1_500_000, "timestamp": stamp(1.5)}]}),
        (1.7, {"statuses": [{**bar, "current": 2_000_000, "completed": stamp(1.7)}]}),
    )
    assert text == "#1 A\n#1 extracting 1.50MB / 2.00MB 1.5s\n#1 extracting 2.00MB / 2.00MB 1.7s done\n"


def test_names_and_errors_do_not_drive_the_terminal() -> None:
    text = plain((0, vertex("a", "RUN \033[2Jx\ny", 0)), (0, vertex("a", "RUN \033[2Jx\ny", 0, 0, error="\033]0;x\a")))
    assert "\033" not in text
    assert "\a" not in text
    assert text.startswith("#1 RUN [2Jx y\n")


def test_output_without_lines_is_shown_and_not_gathered() -> None:
    state = State()
    state.apply(vertex("a", "RUN", 0), 0)
    for _ in range(100):
        state.apply({"logs": [{"vertex": "a", "data": base64.b64encode(b"x" * 10_000).decode()}]}, 0)
    assert len(state.vertices["a"].partial) <= buildprogress.LONGEST
    assert sum(len(text) for _, text in state.vertices["a"].lines) + len(state.vertices["a"].partial) == 1_000_000


def test_raw_lines_are_the_daemons_own() -> None:
    out = Output()
    printer = Raw(out.writer)
    lines = [json.dumps(vertex("a", "A", 0)).encode(), json.dumps(vertex("a", "A", 0, 1)).encode() + b"\n"]
    for line in lines:
        printer.event(line)
    assert out.text().splitlines() == [line.decode().strip() for line in lines]
    assert printer.state.vertices["a"].seconds == 1


def test_quiet_prints_nothing_but_knows_what_failed() -> None:
    out = Output()
    printer = Printer(out.writer)
    for message in (vertex("a", "RUN x", 0), log("a", b"boom\n", 0.5), vertex("a", "RUN x", 0, 1, error="exit code: 2")):
        printer.progress(message, 0)
    printer.close()
    assert out.text() == ""
    assert buildprogress.failures(printer.state) == "------\n > RUN x:\n0.500 boom\n------\n"


def test_only_the_last_lines_of_what_failed_are_repeated() -> None:
    state = State()
    state.apply(vertex("a", "RUN x", 0), 0)
    state.apply(log("a", b"".join(b"%d\n" % n for n in range(5000)), 0), 0)
    state.apply(vertex("a", "RUN x", 0, 1, error="exit code: 2"), 0)
    state.apply(vertex("b", "RUN y", 0, 1, error="context canceled"), 0)
    lines = buildprogress.failures(state).splitlines()
    assert lines[2:-1] == [f"0.000 {n}" for n in range(4990, 5000)]
    assert len(state.vertices["a"].lines) <= 2 * buildprogress.KEPT


FINDING = {"short": "FromAsCasing: 'as' and 'FROM' keywords' casing do not match", "detail": ["The casing should match"], "lines": [[2, 2]],
    "url": "https://docs.docker.com/go/dockerfile/rule/from-as-casing/", "filename": "Dockerfile"}  # fmt: skip


def test_warnings_are_listed_and_explained_on_demand() -> None:
    assert buildprogress.warnings([], b"", False) == ""
    assert buildprogress.warnings([FINDING], b"", False) == (
        "\n 1 warning found (use --debug to expand):\n - FromAsCasing: 'as' and 'FROM' keywords' casing do not match (line 2)\n"
    )
    text = buildprogress.warnings([FINDING, {"short": "x"}], b"# c\nFROM x as y\nRUN z\nRUN u\nRUN v\n", True)
    assert text == (
        "\n 2 warnings found:\n - FromAsCasing: 'as' and 'FROM' keywords' casing do not match (line 2)\n"
        "The casing should match\n"
        "More info: https://docs.docker.com/go/dockerfile/rule/from-as-casing/\n"
        "Dockerfile:2\n--------------------\n"
        "   1 |     # c\n   2 | >>> FROM x as y\n   3 |     RUN z\n   4 |     RUN u\n--------------------\n\n"
        " - x\n"
    )


def test_summary() -> None:
    state = State()
    for digest, seconds, more in (("a", 9.1, {}), ("b", 0.6, {}), ("c", 0.1, {}), ("d", 5.0, {"cached": True})):
        state.apply(vertex(digest, f"[{digest}] RUN", 0, seconds, **more), 0)
    result = {"image": "sha256:1", "executed": 3, "cached": 1, "seconds": {"context": 0.01, "solve": 9.2, "export": 0.1}}
    assert buildprogress.summary(state, result, 72.4, ["a:1", "b"]) == [
        "Built in 1m12s: 3 steps executed, 1 from the cache",
        "Phases: solve 9.2s, export 0.1s",
        "Slowest: [a] RUN 9.1s, [b] RUN 0.6s",
        "Image: sha256:1 (a:1, b)",
    ]
    assert buildprogress.summary(State(), {"executed": 1}, 0.04, []) == ["Built in 0.0s: 1 step executed, 0 from the cache"]


# -- the picture on a terminal


def picture(state: State, rows: int = 20, columns: int = 60, now: float = 10.0, final: bool = False) -> list[str]:
    lines = buildscreen.compose(state, "Building", 3.2, now, rows, buildscreen._ASCII, final)
    return [line.render(columns, False)[0] for line in lines]


def busy(running: int, lines: int = 10) -> State:
    state = State()
    state.apply(vertex("i", "[internal] load build context", 0, 0.1), 0)
    for n in range(3):
        state.apply(vertex(f"c{n}", f"[a {n}/9] RUN cached", 0, 0, cached=True), 0)
    state.apply(vertex("d", "[a 4/9] RUN done", 0, 2), 0)
    for n in range(running):
        state.apply(vertex(f"r{n}", f"[b {n}/9] RUN work", 1), 8.0)
        for k in range(lines):
            state.apply(log(f"r{n}", b"line %d of %d\n" % (k, n), 2), 8.0)
    return state


def test_the_picture_shows_what_runs_with_its_last_lines() -> None:
    assert picture(busy(1)) == [
        "Building  5 of 6 done                                   3.2s",
        " = 3 steps from the cache",
        " + [a 4/9] RUN done                                     2.0s",
        " - [b 0/9] RUN work                                     2.0s",
        *(f"   | line {n} of 0" for n in range(4, 10)),
    ]


def test_the_picture_of_the_end_lasts() -> None:
    state = busy(1)
    state.apply(vertex("r0", "[b 0/9] RUN work", 1, 3, error="exit code: 1"), 10)
    assert picture(state, final=True) == [
        " = 3 steps from the cache",
        " + [a 4/9] RUN done                                     2.0s",
        " x [b 0/9] RUN work                                     2.0s",
    ]


def test_bars_move() -> None:
    state = State()
    state.apply(vertex("p", "[a 1/2] FROM x", 0), 9)
    state.apply({"statuses": [{"id": "sha256:1", "vertex": "p", "current": 500_000, "total": 1_000_000, "started": stamp(0)}]}, 9)
    assert picture(state)[-1] == "   | sha256:1 ##########----------  500.00kB / 1.00MB"


@given(st.integers(0, 40), st.integers(0, 20), st.integers(2, 60), st.integers(2, 200))
def test_the_picture_fits(running: int, lines: int, rows: int, columns: int) -> None:
    shown = picture(busy(running, lines), rows, columns)
    assert len(shown) <= rows
    assert all(width(line) <= columns for line in shown)
    named = sum("RUN w" in line for line in shown)
    if columns < 40:
        return
    if running <= rows - 1:
        assert named == running
    else:
        assert f"and {running - named} more" in shown[-1]


@given(st.text(alphabet="ab\033[]0;1m\r\tÀ漢\a\\\0\x9b", max_size=40))
def test_output_is_cleaned_of_all_that_moves_the_cursor(text: str) -> None:
    assert buildscreen.clean(text).isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [("\033[1;31mred\033[0m", "red"), ("10%\r20%\r", "20%"), ("a\tb", "a       b"), ("\033]0;title\aafter", "after"), ("\033(Bx", "Bx"),
     ("x\033", "x"), ("\033]8;;http://u\033\\link", "link")],
)  # fmt: skip
def test_clean(text: str, shown: str) -> None:
    assert buildscreen.clean(text) == shown


def shown_until(leader: int, end: str) -> str:
    """What a terminal shows: what was written at once may come in pieces."""
    text = ""
    while not text.endswith(end):
        text += os.read(leader, 65536).decode()
    return text


def test_a_terminal_gets_one_write_for_a_picture_and_the_end_stays() -> None:
    leader, follower = os.openpty()
    try:
        screen = buildscreen.Screen(follower)
        screen.colour = False
        screen.signs = buildscreen._ASCII
        screen.progress(vertex("a", "RUN x", 0), 0)
        screen.draw()
        first = shown_until(leader, "\033[?2026l")
        assert first.startswith("\033[?2026h\rBuilding  0 of 1 done")
        assert first.endswith("\033[J\033[?2026l")
        screen.progress(vertex("a", "RUN x", 0, 1), 1)
        screen.say("below\n")
        last = shown_until(leader, "below\r\n")
        assert last.startswith("\033[?2026h\033[2A\r + RUN x")
        assert re.sub(r"\033\[[0-9;?]*[A-Za-z]", "", last).split() == ["+", "RUN", "x", "1.0s", "below"]
        assert screen.due() == float("inf")
    finally:
        os.close(leader)
        os.close(follower)


def test_modes_choose_printers() -> None:
    out = Output()
    assert type(buildprogress.chosen("auto", out.writer)) is Plain
    assert type(buildprogress.chosen("plain", out.writer)) is Plain
    assert type(buildprogress.chosen("quiet", out.writer)) is Printer
    assert type(buildprogress.chosen("rawjson", out.writer)) is Raw
    with pytest.raises(Exception, match="failed to get console: provided file is not a console"):
        buildprogress.chosen("tty", out.writer)
    assert out.text() == ""
