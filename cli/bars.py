"""Progress on a terminal: one line for each layer, redrawn in place, with a bar, the speed and the time left.

The pure part is `Row` (one layer) and `layout` (what fits in so many columns); `Screen` writes. Drawn at most ten times a second, and also
while the daemon says nothing, so that the last state is always seen.
"""

import time
from select import POLLIN, poll

from cli.client import Response, getenv
from cli.progress import counts, line, printable, raise_error
from cli.streams import write_all
from cli.tables import human_size
from cli.tables import width as columns_of
from cli.terminal import size

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

INTERVAL = 0.1  # seconds between two drawings: fluent for the eye, cheap over a slow line
SPEED_WINDOW = 3.0  # seconds over which the speed is averaged
BAR = (8, 50)  # columns of a bar's inside, least and most (Docker's own is 50)
DONE = frozenset((
    "Pull complete", "Already exists", "Pushed", "Layer already exists", "Download complete", "Mounted", "Loaded",
))  # fmt: skip


class Row:
    """One layer: its status and, while bytes move, how many of how many. `moment` is a monotonic time in seconds."""

    def __init__(self, key: str):
        self.key = key
        self.status = ""
        self.current = 0
        self.total = 0
        self.units = ""
        self.samples: list[tuple[float, int]] = []

    def update(self, value: "dict[str, Any]", moment: float) -> None:
        status = printable(str(value.get("status", ""))).replace("\n", " ")
        if status != self.status:
            self.status, self.samples = status, []
        if not counts(value):
            self.current = self.total = 0
            return
        detail = value["progressDetail"]
        self.current, self.total, self.units = int(detail.get("current", 0)), int(detail.get("total", 0)), str(detail.get("units", ""))
        self.samples.append((moment, self.current))
        while len(self.samples) > 2 and moment - self.samples[1][0] > SPEED_WINDOW:
            del self.samples[0]

    def speed(self) -> float:
        """Bytes a second lately; 0 when not known."""
        if len(self.samples) < 2:
            return 0.0
        (start, before), (end, after) = self.samples[0], self.samples[-1]
        return max(0, after - before) / (end - start) if end - start > 0.2 else 0.0

    @property
    def done(self) -> bool:
        return self.status in DONE or self.status.startswith("Mounted from ")


def bar(current: int, total: int, inside: int) -> str:
    """`[=====>    ]` with `inside` columns between the brackets."""
    full = max(0, min(inside, current * inside // total))
    return "[" + ("=" * inside if full == inside else ("=" * full + ">")[:inside] + " " * (inside - full - 1)) + "]"


def time_left(seconds: float) -> str:
    """`4s`, `2m10s`, `1h05m`."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole // 60 % 60:02d}m" if whole < 360000 else ""


def row_text(row: Row, width: int) -> str:
    """A row in at most `width` columns: without room the time left goes first, then the speed, then the bar, then the numbers."""
    head = (f"{row.key}: " if row.key else "") + row.status
    if row.units:
        return cut(f"{head} {row.current} {row.units}", width)
    if row.current <= 0 and row.total <= 0:
        return cut(head, width)
    numbers = human_size(row.current) + (f"/{human_size(row.total)}" if row.total > 0 else "")
    speed = row.speed()
    rate = f"  {human_size(speed)}/s" if speed else ""
    left = f"  {time_left((row.total - row.current) / speed)}" if speed and row.total > row.current else ""
    for tail in (numbers + rate + left, numbers + rate, numbers):
        room = width - columns_of(head) - 4 - len(tail)
        if row.total > 0 and row.current <= row.total and room >= BAR[0]:
            return f"{head} {bar(row.current, row.total, min(BAR[1], room))} {tail}"
        if row.total <= 0 and room >= 0:
            return f"{head} {tail}"
    return cut(f"{head} {numbers}", width)


def cut(text: str, width: int) -> str:
    from cli.tables import ellipsis

    return ellipsis(text, max(1, width))


def layout(rows: "Sequence[Row]", width: int, height: int) -> "list[tuple[str, Row | None]]":
    """The lines to draw, at most `height`: when there are more layers, those that are done or wait are only counted."""
    if len(rows) <= height:
        return [(row_text(row, width), row) for row in rows]
    moving = [row for row in rows if row.total > 0 or row.current > 0][:max(0, height - 1)]
    done = sum(row.done for row in rows)
    return [(cut(f"{done} of {len(rows)} layers done", width), None), *((row_text(row, width), row) for row in moving)]


class Screen:
    """The block of lines at the cursor. `colour` is off with NO_COLOR (no-color.org) and on a dumb terminal."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        self.colour = not getenv("NO_COLOR") and getenv("TERM") != "dumb"
        self.rows: dict[str, Row] = {}
        self.shown: list[str] = []
        self.changed = False
        self.last = 0.0

    def size(self) -> "tuple[int, int]":
        """Columns and rows, asked for at each drawing: the window may have changed."""
        rows, columns = size(self.descriptor)
        if not columns:
            given = getenv("COLUMNS")
            columns = int(given) if given.isdigit() and len(given) < 6 else 0
        return columns or 80, rows or 24

    def due(self) -> float:
        """Seconds until the next drawing may happen; infinite when there is nothing to draw."""
        return max(0.0, self.last + INTERVAL - time.monotonic()) if self.changed else float("inf")

    def draw(self, final: bool = False) -> None:
        """Redraw the block; `final` shows every row, however many, and leaves them above the cursor."""
        columns, height = self.size()
        # one column stays free: a full line would move the cursor on some terminals
        lines = layout(list(self.rows.values()), columns - 1, 1 << 30 if final else max(2, height - 2))
        # what was drawn may take more lines after the window became narrower
        up = sum(1 + max(0, columns_of(text) - 1) // columns for text in self.shown)
        out = (f"\033[{up}A" if up else "") + "".join(f"\r{self._coloured(text, row)}\033[K\n" for text, row in lines) + "\033[J"
        write_all(self.descriptor, out.encode("utf-8", "replace"))
        self.shown = [text for text, _ in lines]
        self.changed, self.last = False, time.monotonic()

    def _coloured(self, text: str, row: "Row | None") -> str:
        if not self.colour or row is None:
            return text
        code = "32" if row.done else "36" if row.total > 0 else ""
        head = f"{row.key}: "
        if not code or not text.startswith(head):
            return text
        end = len(head) + len(row.status)
        return f"{head}\033[{code}m{text[len(head):end]}\033[0m{text[end:]}"

    def close(self) -> None:
        """Leave the block as it is, finished; what follows is written below."""
        if self.rows:
            self.draw(final=True)
        self.rows, self.shown, self.changed = {}, [], False

    def message(self, value: "dict[str, Any]") -> None:
        key = printable(str(value.get("id", "")))
        if key and "progressDetail" in value:
            row = self.rows.setdefault(key, Row(key))
        elif counts(value):
            row = self.rows.setdefault("", Row(""))
        else:
            self.close()
            write_all(self.descriptor, printable(line(value)).encode("utf-8", "replace"))
            return
        row.update(value, time.monotonic())
        self.changed = True
        if not self.due():
            self.draw()


class Watched:
    """A connection's socket for reading: while nothing comes, what is due is drawn."""

    def __init__(self, sock: "Any", screen: Screen):
        self.sock = sock
        self.screen = screen
        self.waiting = poll()
        self.waiting.register(sock.fileno(), POLLIN)

    def recv(self, most: int) -> bytes:
        while (due := self.screen.due()) != float("inf"):
            if self.waiting.poll(int(due * 1000) + 1):
                break
            self.screen.draw()
        data: bytes = self.sock.recv(most)
        return data

    def close(self) -> None:
        self.sock.close()


def draw(response: Response, descriptor: int, aux: "Callable[[Any], None] | None" = None) -> None:
    """Draw a response's stream on the terminal `descriptor`. Raises Failure for the stream's error, with the block left whole."""
    screen = Screen(descriptor)
    connection = response.connection
    plain, connection.sock = connection.sock, Watched(connection.sock, screen)  # type: ignore[assignment]
    try:
        for value in response.values():
            raise_error(value)
            if value.get("aux"):
                if aux:
                    screen.close()
                    aux(value["aux"])
                continue
            screen.message(value)
    finally:
        connection.sock = plain
        screen.close()
