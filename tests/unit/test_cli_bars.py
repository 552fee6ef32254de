"""Progress on a terminal: what fits, what is drawn, how often; the pure part and a real pseudo-terminal."""
# ruff: noqa: E501

from __future__ import annotations

import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cli import bars
from cli.tables import width as columns_of
from tests.golden.cli_fake import FakeDaemon
from tests.lib.daemon import knarr_command
from tests.lib.terminal import Terminal


def row(status: str, current: int = 0, total: int = 0, speed: float = 0, key: str = "8d3ac3489996", units: str = "") -> bars.Row:
    made = bars.Row(key)
    detail = {"current": current, "total": total} | ({"units": units} if units else {})
    if speed:
        made.update({"status": status, "progressDetail": {"current": max(1, current - int(speed)), "total": total}}, 1.0)
    made.update({"status": status, "progressDetail": detail}, 2.0)
    return made


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (120, "8d3ac3489996: Downloading [==============>                                   ] 12.3MB/45.6MB  8.1MB/s  4s"),
        (70, "8d3ac3489996: Downloading [===>         ] 12.3MB/45.6MB  8.1MB/s  4s"),
        (62, "8d3ac3489996: Downloading [==>      ] 12.3MB/45.6MB  8.1MB/s"),
        (52, "8d3ac3489996: Downloading [==>      ] 12.3MB/45.6MB"),
        (40, "8d3ac3489996: Downloading 12.3MB/45.6MB"),
        (20, "8d3ac3489996: Downl…"),
    ],
)
def test_what_fits(width: int, text: str) -> None:
    shown = bars.row_text(row("Downloading", 12_300_000, 45_600_000, 8_100_000), width)
    assert columns_of(shown) <= width
    assert re.sub(r"\[.*\]", "[]", shown) == re.sub(r"\[.*\]", "[]", text)
    bar = re.search(r"\[.*\]", shown)
    assert bar is None or 10 <= len(bar[0]) <= 52


def test_bars() -> None:
    assert [bars.bar(current, 10, 10) for current in (0, 1, 5, 9, 10, 11)] == [
        "[>         ]", "[=>        ]", "[=====>    ]", "[=========>]", "[==========]", "[==========]",
    ]  # fmt: skip


@given(
    st.text(max_size=30), st.integers(-5, 1 << 63), st.integers(-5, 1 << 63), st.floats(0, 1e12), st.integers(1, 200), st.sampled_from(["", "s"])
)
@example("", -1, 1, 0.0, 32, "")
def test_nothing_is_wider_than_the_terminal(status: str, current: int, total: int, speed: float, width: int, units: str) -> None:
    shown = bars.row_text(row(status, current, total, speed, units=units), width)
    assert columns_of(shown) <= width
    assert "\n" not in shown
    assert "\033" not in shown


def test_times() -> None:
    assert [bars.time_left(seconds) for seconds in (0.2, 59.4, 130, 3900, 1e9)] == ["0s", "59s", "2m10s", "1h05m", ""]


def test_more_layers_than_lines() -> None:
    rows = [*(row("Pull complete", key=f"done{n}") for n in range(30)), row("Downloading", 5, 10, key="moves"), *(row("Waiting", key=f"w{n}") for n in range(9))]
    lines = [text for text, _ in bars.layout(rows, 79, 10)]
    assert lines[0] == "30 of 40 layers done"
    assert lines[1].startswith("moves: Downloading [")
    assert len(lines) == 2
    assert len(bars.layout(rows, 79, 1 << 30)) == 40


def test_speed_follows_the_last_seconds() -> None:
    made = bars.Row("x")
    for second in range(20):
        made.update({"status": "Downloading", "progressDetail": {"current": second * 1000 + 1, "total": 10**6}}, float(second))
    for second in range(20, 40):
        made.update({"status": "Downloading", "progressDetail": {"current": second * 5000, "total": 10**6}}, float(second))
    assert made.speed() == pytest.approx(5000, rel=0.3)
    assert len(made.samples) < 10
    made.update({"status": "Extracting", "progressDetail": {"current": 1, "total": 10}}, 41.0)
    assert made.speed() == 0


def progress(status: str, current: int, total: int, key: str = "8d3ac3489996") -> bytes:
    return json.dumps({"status": status, "progressDetail": {"current": current, "total": total}, "id": key}).encode() + b"\r\n"


def told(status: str, key: str = "") -> bytes:
    return json.dumps({"status": status} | ({"progressDetail": {}, "id": key} if key else {})).encode() + b"\r\n"


@pytest.fixture
def pulled() -> Iterator[Any]:
    """Run `knarr pull x` on a terminal against a daemon that sends these pieces; what was written, and the exit code."""
    with tempfile.TemporaryDirectory() as folder:

        def run(pieces: list[object], rows: int = 24, columns: int = 80, **environment: str) -> Terminal:
            fake = FakeDaemon(Path(folder) / "s", {"POST /images/create": (200, pieces)})
            fakes.append(fake)
            kept = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "KNARR_", "NO_COLOR", "COLUMNS"))}
            terminal = Terminal([*knarr_command(), "pull", "x"], {**kept, "KNARR_HOST": f"unix://{fake.path}", "HOME": folder, **environment}, rows, columns)
            return terminal

        fakes: list[FakeDaemon] = []
        yield run
        for fake in fakes:
            fake.close()


def screen_of(written: bytes, columns: int) -> list[str]:
    """The lines a terminal shows after these bytes: cursor up, clear to the end of line and screen, colours; no wrapping expected."""
    lines, at, column = [""], 0, 0
    for token in re.findall(r"\033\[[0-9;]*[A-Za-z]|\r|\n|[^\033\r\n]+", written.decode()):
        if token == "\r":
            column = 0
        elif token == "\n":
            at += 1
            column = 0
            if at == len(lines):
                lines.append("")
        elif token.endswith("A") and token[0] == "\033":
            at -= int(token[2:-1])
            assert at >= 0, "the cursor went above the first line"
        elif token == "\033[K":
            lines[at] = lines[at][:column]
        elif token == "\033[J":
            lines[at:] = [lines[at][:column]]
        elif token[0] != "\033":
            lines[at] = lines[at][:column] + token + lines[at][column + len(token):]
            column += len(token)
            assert column < columns, f"a line is too long: {token}"
    return lines


def test_layers_are_redrawn_in_place(pulled: Any) -> None:
    begun, half = threading.Event(), threading.Event()
    pieces: list[object] = [
        b'{"status":"Pulling from library/x","id":"latest"}\r\n', told("Pulling fs layer", "aaa"), told("Pulling fs layer", "bbb"), told("Waiting", "bbb"),
        progress("Downloading", 1_000_000, 10_000_000, "aaa"), begun, progress("Downloading", 5_000_000, 10_000_000, "aaa"), half,
        told("Download complete", "aaa"), told("Pull complete", "aaa"), told("Pull complete", "bbb"),
        told("Digest: sha256:ab"), told("Status: Downloaded newer image for x:latest"),
    ]  # fmt: skip
    with pulled(pieces) as terminal:
        seen = terminal.expect(b"1MB/10MB")
        time.sleep(0.3)  # of less time than this no speed is told
        begun.set()
        seen += terminal.expect(b"5MB/10MB") + terminal.expect(b"MB/s")
        half.set()
        assert terminal.wait() == 0
        written = seen + terminal.screen
    assert screen_of(written, 80) == [
        "Using default tag: latest", "latest: Pulling from library/x", "aaa: Pull complete", "bbb: Pull complete", "Digest: sha256:ab",
        "Status: Downloaded newer image for x:latest", "docker.io/library/x:latest", "",
    ]  # fmt: skip
    assert b"\033[32m" in written


def test_drawing_is_bounded_and_the_last_state_is_seen(pulled: Any) -> None:
    """Thousands of messages in no time are some drawings; a state after which nothing comes is drawn all the same."""
    seen = threading.Event()
    pieces: list[object] = [b"".join(progress("Downloading", n * 1000 + 1, 5_000_000) for n in range(5000)), progress("Downloading", 4_900_000, 5_000_000), seen]
    with pulled(pieces) as terminal:
        start = time.monotonic()
        before = terminal.expect(b"4.9MB/5MB")
        seen.set()
        assert before.count(b"\033[J") <= 2 + (time.monotonic() - start) / bars.INTERVAL
        assert terminal.wait() == 0


def test_no_colour(pulled: Any) -> None:
    with pulled([told("Pull complete", "aaa")], NO_COLOR="1") as terminal:
        assert terminal.wait() == 0
        assert b"aaa: Pull complete" in terminal.screen
        assert not re.search(rb"\033\[[0-9;]*m", terminal.screen)


def test_a_narrow_low_terminal(pulled: Any) -> None:
    seen = threading.Event()
    pieces: list[object] = [*(told("Pull complete", f"layer{n}") for n in range(30)), progress("Downloading", 5, 10, "last"), seen]
    with pulled(pieces, rows=6, columns=30) as terminal:
        written = terminal.expect(b"30 of 31 layers done")
        seen.set()
        assert terminal.wait() == 0
        written += terminal.screen
    lines = screen_of(written, 30)
    assert [line for line in lines if line.startswith("layer")] == [f"layer{n}: Pull complete" for n in range(30)]


def test_the_window_may_be_resized(pulled: Any) -> None:
    resized, seen = threading.Event(), threading.Event()
    pieces: list[object] = [progress("Downloading", 2_000_000, 9_000_000), resized, progress("Downloading", 8_000_000, 9_000_000), seen]
    with pulled(pieces, columns=100) as terminal:
        terminal.expect(b"2MB/9MB")
        terminal.resize(24, 34)
        resized.set()
        after = terminal.expect(b"8MB/9MB")
        seen.set()
        drawn = re.sub(rb"\033\[[0-9;]*[A-Za-z]", b"", after).rpartition(b"\r")[2]
        assert len(drawn) < 34
        assert terminal.wait() == 0


def test_what_a_registry_says_cannot_drive_the_terminal(pulled: Any) -> None:
    pieces: list[object] = [told("\033[2J\033]0;title\a evil", "aaa"), told("\033[31mred\u202e")]
    with pulled(pieces) as terminal:
        assert terminal.wait() == 0
        assert b"[2J]0;title evil" in terminal.screen
        for sequence in (b"\033[2J", b"\033]", b"\033[31m", b"\a", "\u202e".encode()):
            assert sequence not in terminal.screen


def test_an_error_leaves_the_lines_whole(pulled: Any) -> None:
    error = json.dumps({"errorDetail": {"message": "the network is gone"}, "error": "the network is gone"}).encode() + b"\r\n"
    with pulled([progress("Downloading", 1, 10, "aaa"), error]) as terminal:
        assert terminal.wait() == 1
        lines = screen_of(terminal.screen, 80)
    assert lines[-3].startswith("aaa: Downloading [")
    assert lines[-2:] == ["the network is gone", ""]


def test_the_daemon_that_vanishes(pulled: Any) -> None:
    with pulled([progress("Downloading", 1, 10, "aaa"), b"{"]) as terminal:
        assert terminal.wait() == 1
