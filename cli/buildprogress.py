"""How a build goes, on stderr: BuildKit's plain format, its JSON lines, and the words at the end (log of what failed, warnings, summary).

Owns the state of every vertex as the daemon's Progress messages tell it (`State`), which `cli/buildscreen.py` draws on a terminal. Times
are the daemon's own, compared with each other only: its clock need not be this one's.
"""

import time

from cli.codec import loads
from cli.streams import write_all

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

TAIL = 10  # lines of a failed vertex's log that are shown at the end, as BuildKit does
LONGEST = 65536  # bytes of a line, which is shown as two when it is longer
KEPT = 100  # lines of a vertex's log that are remembered
PATIENCE = 5.0  # seconds that a vertex's output waits for another's that goes on, as in BuildKit
IDLE = 1.0  # seconds without output after which the vertex that is shown gives way
STATUS_INTERVAL = 1.0  # seconds between two lines about the same bar
_DAYS = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)


def moment(text: str) -> float:
    """Seconds since the epoch of an RFC 3339 time in UTC; 0 for what is none."""
    try:
        year, month, day = int(text[:4]), int(text[5:7]), int(text[8:10])
        before = year - (month < 3)
        days = 365 * (year - 1970) + _DAYS[month - 1] + day - 1
        days += before // 4 - before // 100 + before // 400 - 477  # leap days since 1970
        whole = days * 86400 + int(text[11:13]) * 3600 + int(text[14:16]) * 60 + int(text[17:19])
        fraction = text[19:].rstrip("Z")
        return whole + (float(fraction) if fraction[:1] == "." else 0.0)
    except (ValueError, IndexError):
        return 0.0


def units(size: float) -> str:
    """`144B`, `1.98MB`: powers of 1000, as BuildKit's bars."""
    at = 0
    while size >= 1000 and at < 5:
        size /= 1000
        at += 1
    return f"{size:.2f}{('B', 'kB', 'MB', 'GB', 'TB', 'PB')[at]}" if at else f"{size:.0f}B"


def printable(text: str) -> str:
    """Without control characters: names and messages hold words of Dockerfiles, which must not drive the terminal."""
    return text if text.isprintable() else "".join(char if char.isprintable() else " " if char in "\n\t\r" else "" for char in text)


class Bar:
    """A status below a vertex: `done` and the seconds it took, `shown` when it was last printed."""

    __slots__ = ("current", "done", "name", "seconds", "shown", "total")

    def __init__(self, name: str):
        self.name = name
        self.current = self.total = 0
        self.seconds = 0.0
        self.done = False
        self.shown = 0.0

    def text(self) -> str:
        """`transferring context: 61B done`."""
        size = f" {units(self.current)} / {units(self.total)}" if self.total else f" {units(self.current)}" if self.current else ""
        took = f" {self.seconds:.1f}s" if self.seconds >= 0.01 else ""
        return self.name + size + took + (" done" if self.done else "")


class Vertex:
    """One vertex. `began` by this machine's monotonic clock, `started` and `completed` by the daemon's; `number` 0 until it is printed.
    `lines`: the last of its log, (seconds since its start, text); `pending`: what plain output has not printed yet."""

    __slots__ = ("bars", "began", "cached", "completed", "digest", "error", "lines", "name", "number", "partial", "pending", "since",
        "started")

    def __init__(self, digest: str):
        self.digest = digest
        self.name = ""
        self.number = 0
        self.started = self.completed = 0.0
        self.began = 0.0
        self.cached = False
        self.error = ""
        self.bars: dict[str, Bar] = {}
        self.lines: list[tuple[float, str]] = []
        self.partial = b""
        self.pending: list[str] = []
        self.since = 0.0  # monotonic time of the oldest pending line

    @property
    def running(self) -> bool:
        return bool(self.started) and not self.completed

    @property
    def seconds(self) -> float:
        """How long it took."""
        return max(0.0, self.completed - self.started) if self.completed else 0.0

    @property
    def canceled(self) -> bool:
        return self.error.endswith("context canceled")

    @property
    def internal(self) -> bool:
        return self.name.startswith("[internal]")


class State:
    """All vertices of a build by digest, in the order in which they were told of, and its warnings as JSON."""

    def __init__(self) -> None:
        self.vertices: dict[str, Vertex] = {}
        self.warnings: list[dict[str, Any]] = []

    def apply(self, progress: "dict[str, Any]", now: float) -> "list[Vertex]":
        """Take in one Progress; the vertices that it concerns. `now`: monotonic."""
        touched = {}
        for one in progress.get("vertexes") or ():
            vertex = touched[one["digest"]] = self._vertex(one["digest"])
            vertex.name = printable(one.get("name") or vertex.name)
            vertex.cached = bool(one.get("cached"))
            vertex.error = str(one.get("error") or "")
            if one.get("started"):
                vertex.began = vertex.began or now
                vertex.started = moment(one["started"])
            vertex.completed = moment(one["completed"]) if one.get("completed") else 0.0
            if vertex.completed and vertex.partial:
                self._line(vertex, vertex.completed, vertex.partial, now)
                vertex.partial = b""
        for one in progress.get("statuses") or ():
            vertex = touched[one["vertex"]] = self._vertex(one["vertex"])
            self._status(vertex, one, now)
        for one in progress.get("logs") or ():
            vertex = touched[one["vertex"]] = self._vertex(one["vertex"])
            self._log(vertex, one, now)
        self.warnings += progress.get("warnings") or ()
        return list(touched.values())

    def _vertex(self, digest: str) -> Vertex:
        vertex = self.vertices.get(digest)
        if vertex is None:
            vertex = self.vertices[digest] = Vertex(digest)
        return vertex

    def _status(self, vertex: Vertex, one: "dict[str, Any]", now: float) -> None:
        bar = vertex.bars.get(one["id"])
        if bar is None:
            bar = vertex.bars[one["id"]] = Bar(printable(one["id"]))
            bar.shown = now  # most are done before a line about them is worth it
        bar.current, bar.total = int(one.get("current") or 0), int(one.get("total") or 0)
        end = one.get("completed") or one.get("timestamp")
        bar.seconds = moment(end) - moment(one["started"]) if end and one.get("started") else 0.0
        bar.done = bool(one.get("completed"))
        if bar.done or now - bar.shown >= STATUS_INTERVAL:
            bar.shown = now
            self._pend(vertex, bar.text(), now)

    def _log(self, vertex: Vertex, one: "dict[str, Any]", now: float) -> None:
        from binascii import a2b_base64

        *lines, vertex.partial = (vertex.partial + a2b_base64(one.get("data") or "")).split(b"\n")
        if len(vertex.partial) > LONGEST:
            lines.append(vertex.partial)
            vertex.partial = b""
        for line in lines:
            self._line(vertex, moment(one.get("timestamp") or ""), line, now)

    def _line(self, vertex: Vertex, at: float, line: bytes, now: float) -> None:
        seconds = max(0.0, at - vertex.started) if at and vertex.started else 0.0
        text = line.decode("utf-8", "replace")
        vertex.lines.append((seconds, text))
        if len(vertex.lines) > 2 * KEPT:
            del vertex.lines[:-KEPT]
        self._pend(vertex, f"{seconds:.3f} {text}", now)

    def _pend(self, vertex: Vertex, text: str, now: float) -> None:
        if not vertex.pending:
            vertex.since = now
        vertex.pending.append(text)


class Printer:
    """Takes every Progress line. This one shows nothing, for `--progress=quiet`."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        self.state = State()

    def event(self, payload: bytes) -> None:
        """One Progress as JSON. Raises ValueError for what is none."""
        self.progress(loads(payload), time.monotonic())

    def progress(self, progress: "dict[str, Any]", now: float) -> None:
        for vertex in self.state.apply(progress, now):
            vertex.pending.clear()

    def due(self) -> float:
        """Seconds until `tick` is wanted; infinite for never."""
        return float("inf")

    def tick(self) -> None:
        """Show what is due."""

    def resized(self) -> None:
        """The window has another size."""

    def close(self) -> None:
        """The build is over: leave everything shown."""

    def say(self, text: str) -> None:
        """Write below everything shown so far."""
        write_all(self.descriptor, text.encode("utf-8", "surrogateescape"))


class Raw(Printer):
    """`--progress=rawjson`: each Progress on a line."""

    def event(self, payload: bytes) -> None:
        super().event(payload)
        write_all(self.descriptor, payload.strip() + b"\n")


class Plain(Printer):
    """`--progress=plain`: BuildKit's numbered vertices. One is shown at a time; those that end are shown at once, the others wait until it
    ends or says nothing, or for PATIENCE."""

    def __init__(self, descriptor: int):
        super().__init__(descriptor)
        self.current: Vertex | None = None
        self.spoke = 0.0  # monotonic time of the last output of the current one
        self.count = 0
        self.waiting: dict[str, Vertex] = {}

    def progress(self, progress: "dict[str, Any]", now: float) -> None:
        touched = self.state.apply(progress, now)
        out = ""
        for vertex in touched:
            if vertex.completed and vertex.number >= 0:
                out += self._show(vertex)
            elif vertex.running and vertex is not self.current:
                self.waiting[vertex.digest] = vertex
        out += self._turn(now)
        if out:
            self.say(out)

    def due(self) -> float:
        oldest = min((vertex.since for vertex in self.waiting.values() if vertex.pending), default=None)
        return float("inf") if oldest is None else max(0.0, min(oldest + PATIENCE, self.spoke + IDLE) - time.monotonic())

    def tick(self) -> None:
        if out := self._turn(time.monotonic()):
            self.say(out)

    def _turn(self, now: float) -> str:
        out = ""
        if self.current is not None and self.current.pending:
            out, self.spoke = self._show(self.current), now
        ready = [vertex for vertex in self.waiting.values() if vertex.pending]
        if self.current is None:
            ready = ready or [vertex for vertex in self.waiting.values() if not vertex.internal][:1]
        elif now - self.spoke < IDLE:
            ready = [vertex for vertex in ready if now - vertex.since >= PATIENCE]
        if ready:
            out += self._show(min(ready, key=lambda vertex: vertex.since))
            self.spoke = now
        return out

    def _show(self, vertex: Vertex) -> str:
        """Everything of a vertex that was not shown yet, with its end where it has one."""
        out = ""
        if vertex is not self.current:
            self.waiting.pop(vertex.digest, None)
            if self.current is not None:
                out += f"#{self.current.number} ...\n"
                self.waiting[self.current.digest] = self.current
            out += "\n" if self.count else ""
            if not vertex.number:
                self.count += 1
                vertex.number = self.count
            out += f"#{vertex.number} {vertex.name}\n"
            self.current = vertex
        head = f"#{vertex.number} "
        out += "".join([f"{head}{line}\n" for line in vertex.pending])
        vertex.pending.clear()
        if vertex.completed:
            out += head + ending(vertex) + "\n"
            self.current = None
            vertex.number = -vertex.number  # shown to its end; told of again, it is not shown again
        return out

    def close(self) -> None:
        """Show what was held back of vertices that have not ended."""
        now = time.monotonic()
        for vertex in self.state.vertices.values():
            if vertex.running and vertex.partial:
                self.state._line(vertex, 0.0, vertex.partial, now)
                vertex.partial = b""
            if vertex.running and vertex.pending and vertex.number >= 0:
                self.say(self._show(vertex))


def ending(vertex: Vertex) -> str:
    """`DONE 0.1s`, `CACHED`, `CANCELED` or `ERROR: …`."""
    if vertex.canceled:
        return "CANCELED"
    if vertex.error:
        return f"ERROR: {printable(vertex.error)}"
    return "CACHED" if vertex.cached else f"DONE {vertex.seconds:.1f}s"


def failures(state: State, most: int = TAIL) -> str:
    """The last lines of what failed, as BuildKit repeats them above the error."""
    out = ""
    for vertex in state.vertices.values():
        if not vertex.error or vertex.canceled or vertex.internal:
            continue
        out += f"------\n > {vertex.name}:\n"
        out += "".join(f"{seconds:.3f} {text}\n" for seconds, text in vertex.lines[-most:]) + "------\n"
    return out


def excerpt(name: str, text: "list[str]", ranges: "list[tuple[int, int]]", around: int = 2) -> str:
    """Lines of a Dockerfile (counted from 1, the last one included) with marks, as BuildKit shows them; "" for lines that are not there."""
    if not ranges or not 0 < ranges[0][0] <= len(text):
        return ""
    first = max(1, min(start for start, _ in ranges) - around)
    last = min(len(text), max(end for _, end in ranges) + around)
    out = f"{name}:{ranges[0][0]}\n" + "-" * 20 + "\n"
    for number in range(first, last + 1):
        marked = any(start <= number <= end for start, end in ranges)
        out += f"{number:4d} | {'>>>' if marked else '   '} {printable(text[number - 1])}\n"
    return out + "-" * 20 + "\n"


def warnings(found: "list[dict[str, Any]]", dockerfile: "bytes | None", expand: bool) -> str:
    """The build checks that fired, as buildx lists them: a line for each, with detail and lines of the Dockerfile when asked for."""
    if not found:
        return ""
    plural = "s" if len(found) > 1 else ""
    out = f"\n {len(found)} warning{plural} found{'' if expand else ' (use --debug to expand)'}:\n"
    text = dockerfile.decode("utf-8", "replace").split("\n") if dockerfile is not None else []
    for one in found:
        ranges = [(int(start), int(end)) for start, end in one.get("lines") or ()]
        short = printable(one.get("short", ""))
        at = f" (line {ranges[0][0]})" if ranges else ""
        out += f" - {short}{'' if short.endswith(at) else at}\n"
        if not expand:
            continue
        out += "".join(printable(line) + "\n" for line in one.get("detail") or ())
        if one.get("url"):
            out += f"More info: {printable(one['url'])}\n"
        out += excerpt(printable(one.get("filename") or "Dockerfile"), text, ranges) + "\n"
    return out.rstrip("\n") + "\n"


def seconds_text(seconds: float) -> str:
    """`0.4s`, `12.3s`, `2m05s`, `1h02m`."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    whole = int(seconds + 0.5)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole // 60 % 60:02d}m"


def summary(state: State, result: "dict[str, Any]", total: float, tags: "list[str]") -> "list[str]":
    """What a build that succeeded took and gave: lines for below its progress. `total`: seconds as seen here."""
    executed, cached = int(result.get("executed") or 0), int(result.get("cached") or 0)
    steps = f"{executed} step{'' if executed == 1 else 's'} executed, {cached} from the cache"
    lines = [f"Built in {seconds_text(total)}: {steps}"]
    phases = [f"{name} {seconds_text(took)}" for name, took in (result.get("seconds") or {}).items() if took >= 0.05]
    if phases:
        lines.append("Phases: " + ", ".join(phases))
    took = [vertex for vertex in state.vertices.values() if vertex.seconds >= 0.5 and not vertex.cached and not vertex.internal]
    took.sort(key=lambda vertex: -vertex.seconds)
    if len(took) > 1:
        lines.append("Slowest: " + ", ".join(f"{_short(vertex.name)} {seconds_text(vertex.seconds)}" for vertex in took[:3]))
    if result.get("image"):
        lines.append(f"Image: {result['image']}" + (f" ({', '.join(tags)})" if tags else ""))
    return lines


def _short(name: str) -> str:
    from cli.tables import ellipsis

    return ellipsis(name, 48)


def chosen(mode: str, descriptor: int) -> Printer:
    """The printer for a mode of `--progress`. Raises Failure for `tty` without a terminal."""
    from cli.client import Failure, getenv
    from cli.terminal import is_terminal

    if mode == "quiet":
        return Printer(descriptor)
    if mode == "rawjson":
        return Raw(descriptor)
    terminal = is_terminal(descriptor)
    if mode == "tty" and not terminal:
        raise Failure("ERROR: failed to get console: provided file is not a console")
    if mode == "plain" or not terminal or (mode == "auto" and getenv("TERM") == "dumb"):
        return Plain(descriptor)
    from cli.buildscreen import Screen

    return Screen(descriptor)
