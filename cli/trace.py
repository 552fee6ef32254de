"""`knarr run --trace`: the steps of a container's start as bars on one time line, in microseconds."""

from cli.streams import output
from cli.terminal import is_terminal, size

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

BAR_LEAST, BAR_MOST = 20, 60
NAME_MOST = 44


def show(steps: "Iterable[dict[str, Any]]") -> None:
    """`steps`: the daemon's list of `{name, at}`; `at` in nanoseconds, when the step began (the last one: when all was done)."""
    output(waterfall(list(steps), size()[1] or 100, is_terminal(1)))


def waterfall(steps: "list[dict[str, Any]]", width: int, colour: bool) -> str:
    """One line a step: name, begin, duration, bar. The longest steps stand out."""
    from itertools import pairwise

    if len(steps) < 2:
        return "no trace: the daemon recorded no steps\n"
    begin = steps[0]["at"]
    total = max(steps[-1]["at"] - begin, 1)
    spans = [(step["name"], step["at"] - begin, following["at"] - step["at"]) for step, following in pairwise(steps)]
    names = min(max(len(name) for name, _, _ in spans), NAME_MOST)
    room = max(BAR_LEAST, min(BAR_MOST, width - names - 24))
    slow = sorted((span for _, _, span in spans), reverse=True)[min(2, len(spans) - 1)]
    lines = [f"{'step':<{names}}  {'at µs':>9}  {'took µs':>9}"]
    for name, at, span in spans:
        bar = _bar(at, span, total, room)
        if colour:
            bar = f"\033[{'33' if span >= slow else '36'}m{bar}\033[0m"
        name = name if len(name) <= names else name[: names - 1] + "…"
        lines.append(f"{name:<{names}}  {at / 1000:>9.1f}  {span / 1000:>9.1f}  {bar}")
    lines.append(f"{'total':<{names}}  {total / 1000:>9.1f}")
    return "\n".join(lines) + "\n"


_EIGHTHS = " ▏▎▍▌▋▊▉█"


def _bar(at: int, span: int, total: int, room: int) -> str:
    """A bar in its place, at least a hair wide; eighths of a character at its end."""
    start = min(room - 1, at * room // total)
    eighths = max(1, round(span * room * 8 / total))
    full, part = divmod(eighths, 8)
    return " " * start + "█" * full + (_EIGHTHS[part] if part else "")
