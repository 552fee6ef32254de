"""A build on a terminal: what runs with its last lines, what is done, redrawn in place.

The pure part is `compose`, which lays out a `State` for so many columns and rows; `Screen` writes, a whole picture with one call, at most
ten times a second and while the daemon says nothing, too. Lines of a build's own output lose their control characters.
"""

import time

from cli.buildprogress import Bar, Printer, State, Vertex, seconds_text, units
from cli.client import getenv
from cli.streams import write_all
from cli.tables import ellipsis
from cli.tables import width as columns_of
from cli.terminal import size

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

INTERVAL = 0.1  # seconds between two pictures
MOST_LINES = 6  # of the output of one vertex
_QUICK = 0.5  # seconds; what BuildKit calls internal is only shown when it took longer
_UNICODE = {"done": "✔", "failed": "✘", "cached": "≡", "canceled": "∅", "bar": "│", "spin": "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "full": "━", "empty": "─"}
_ASCII = {"done": "+", "failed": "x", "cached": "=", "canceled": "o", "bar": "|", "spin": "-\\|/", "full": "#", "empty": "-"}
_COLOURS = {"done": "32", "failed": "1;31", "cached": "2", "canceled": "33", "run": "36", "log": "2", "title": "1", "time": "2"}
_SYNC = ("\033[?2026h", "\033[?2026l")  # a terminal that knows it shows the picture at once; others ignore it


class Line:
    """One line of the picture: pieces of (text, kind of colour); `right` stands at the right edge."""

    __slots__ = ("pieces", "right")

    def __init__(self, *pieces: "tuple[str, str]", right: str = ""):
        self.pieces = pieces
        self.right = right

    def render(self, columns: int, colour: bool) -> "tuple[str, int]":
        """The text, with codes where there is colour, and the columns it takes: never more than `columns`."""
        room = columns - (columns_of(self.right) + 1 if self.right else 0)
        out, used = "", 0
        for text, kind in self.pieces:
            if room - used <= 0:
                break
            text = ellipsis(text, room - used)
            used += columns_of(text)
            out += paint(text, kind, colour)
        if self.right and room > 0:
            out += " " * (room - used + 1) + paint(self.right, "time", colour)
            used = columns
        return out, used


def paint(text: str, kind: str, colour: bool) -> str:
    code = _COLOURS.get(kind, "")
    return f"\033[{code}m{text}\033[0m" if colour and code else text


def clean(text: str) -> str:
    """A line of output as it can stand in the picture: what the last carriage return left, without escape sequences, tabs as blanks."""
    text = text.rstrip("\r").rpartition("\r")[2]
    if text.isprintable():
        return text
    out, at, last = "", 0, len(text)
    while at < last:
        char = text[at]
        if char == "\033":
            at = _after_escape(text, at)
            continue
        if char == "\t":
            out += " " * (8 - len(out) % 8)
        elif char.isprintable():
            out += char
        at += 1
    return out


def _after_escape(text: str, at: int) -> int:
    """The index after an escape sequence (ECMA-48): CSI to its final byte, strings to their end, else two characters."""
    at += 1
    if text[at:at + 1] == "[":
        at += 1
        while at < len(text) and not "@" <= text[at] <= "~":
            at += 1
        return at + 1
    if text[at:at + 1] in ("]", "P", "_", "^", "X"):
        ends = [end + len(mark) for mark in ("\a", "\033\\") if (end := text.find(mark, at)) >= 0]
        return min(ends, default=len(text))
    return at + 1


def compose(state: State, title: str, elapsed: float, now: float, rows: int, signs: "dict[str, str]", final: bool = False) -> "list[Line]":
    """The picture in at most `rows` lines (all that is worth it when `final`). Done first, then what runs, with its last lines."""
    vertices = list(state.vertices.values())
    running = [vertex for vertex in vertices if vertex.running]
    ended = [vertex for vertex in vertices if vertex.completed]
    cached = [vertex for vertex in ended if vertex.cached and not vertex.error]
    done = [vertex for vertex in ended if not vertex.cached and not vertex.error and (not vertex.internal or vertex.seconds >= _QUICK)]
    failed = [vertex for vertex in ended if vertex.error]
    head = Line((title, "title"), (f"  {len(ended)} of {len(vertices)} done", "log"), right=seconds_text(elapsed))
    fixed = [head] if not final else []
    bottom = [_ended(vertex, signs) for vertex in failed]
    if final:
        bottom += [_running(vertex, signs, now) for vertex in running if not vertex.internal]
        top = _folded(cached, signs) + [_ended(vertex, signs) for vertex in done]
        return fixed + top + bottom
    room = max(1, rows - len(fixed))
    if len(running) > room - len(bottom):
        fit = max(0, room - len(bottom) - 1)
        bottom += [_running(vertex, signs, now) for vertex in running[:fit]]
        bottom.append(Line((f"  … and {len(running) - fit} more", "log")))
        return (fixed + bottom)[:max(1, rows)]
    spare = room - len(bottom) - len(running)
    share = min(MOST_LINES, spare // len(running)) if running else 0
    for vertex in running:
        bottom.append(_running(vertex, signs, now))
        bottom += _below(vertex, share, signs)
    spare = room - len(bottom)
    top = _folded(cached, signs)[:max(0, spare)]
    if spare > len(top):
        top += [_ended(vertex, signs) for vertex in done[-(spare - len(top)):]]
    return fixed + top + bottom


def _folded(cached: "list[Vertex]", signs: "dict[str, str]") -> "list[Line]":
    steps = sum(not vertex.internal and "] FROM " not in vertex.name for vertex in cached)
    if not steps:
        return []
    return [Line((f" {signs['cached']} {steps} step{'' if steps == 1 else 's'} from the cache", "cached"))]


def _ended(vertex: Vertex, signs: "dict[str, str]") -> Line:
    kind = "canceled" if vertex.canceled else "failed" if vertex.error else "done"
    name = vertex.name + (" (canceled)" if kind == "canceled" else "")
    return Line((f" {signs[kind]} ", kind), (name, "failed" if kind == "failed" else ""), right=seconds_text(vertex.seconds))


def _running(vertex: Vertex, signs: "dict[str, str]", now: float) -> Line:
    spin = signs["spin"]
    sign = spin[int(now / INTERVAL) % len(spin)]
    return Line((f" {sign} ", "run"), (vertex.name, "run"), right=seconds_text(max(0.0, now - vertex.began)))


def _below(vertex: Vertex, most: int, signs: "dict[str, str]") -> "list[Line]":
    """Bars that move, and the last lines of the output."""
    bars = [_bar(bar, signs) for bar in vertex.bars.values() if not bar.done][:most]
    texts = [text for _, text in vertex.lines[-most:]] if most else []
    if vertex.partial:
        texts.append(vertex.partial.decode("utf-8", "replace"))
    shown = [text for text in map(clean, texts) if text.strip()]
    free = most - len(bars)
    return bars + [Line((f"   {signs['bar']} {text}", "log")) for text in (shown[-free:] if free > 0 else [])]


def _bar(bar: Bar, signs: "dict[str, str]") -> Line:
    numbers = f"{units(bar.current)} / {units(bar.total)}" if bar.total else units(bar.current) if bar.current else ""
    track = ""
    if bar.total:
        full = max(0, min(20, bar.current * 20 // bar.total))
        track = " " + signs["full"] * full + signs["empty"] * (20 - full)
    return Line((f"   {signs['bar']} {bar.name}", "log"), (track, "run"), ("  " + numbers if numbers else "", "log"))


class Screen(Printer):
    """The block of lines at the cursor. `colour` is off with NO_COLOR (no-color.org) and on a dumb terminal."""

    def __init__(self, descriptor: int, title: str = "Building"):
        super().__init__(descriptor)
        self.title = title
        self.colour = not getenv("NO_COLOR") and getenv("TERM") != "dumb"
        locale = (getenv("LC_ALL") or getenv("LC_CTYPE") or getenv("LANG")).upper().replace("-", "")
        self.signs = _ASCII if locale and not locale.endswith("UTF8") else _UNICODE
        self.start = self.last = time.monotonic()
        self.shown: list[int] = []  # columns that each line took
        self.changed = False
        self.closed = False

    def progress(self, progress: "dict[str, Any]", now: float) -> None:
        for vertex in self.state.apply(progress, now):
            vertex.pending.clear()
        self.changed = True

    def due(self) -> float:
        """A picture soon after a change, and ten a second while something runs, for its times."""
        return float("inf") if self.closed else max(0.0, self.last + INTERVAL - time.monotonic())

    def tick(self) -> None:
        self.draw()

    def resized(self) -> None:
        self.draw()

    def _size(self) -> "tuple[int, int]":
        """Columns and rows, asked for at each drawing."""
        rows, columns = size(self.descriptor)
        return columns or 80, rows or 24

    def draw(self, final: bool = False) -> None:
        """Replace the picture; `final` leaves the lasting lines above the cursor."""
        columns, height = self._size()
        now = time.monotonic()
        lines = compose(self.state, self.title, now - self.start, now, max(2, height - 2), self.signs, final)
        # one column stays free: a full line would move the cursor on some terminals
        rendered = [line.render(max(1, columns - 1), self.colour) for line in lines]
        write_all(self.descriptor, (self._up(columns) + "".join(f"\r{text}\033[K\n" for text, _ in rendered) + "\033[J" + _SYNC[1])
            .encode("utf-8", "replace"))
        self.shown = [used for _, used in rendered]
        self.changed, self.last = False, now

    def _up(self, columns: int) -> str:
        """To the first line of the last picture, which may take more lines after the window became narrower."""
        up = sum(1 + max(0, used - 1) // columns for used in self.shown)
        return _SYNC[0] + (f"\033[{up}A" if up else "")

    def say(self, text: str) -> None:
        self.close()
        super().say(text)

    def close(self) -> None:
        if not self.closed:
            self.draw(final=True)
            self.closed = True
