"""Progress streams of the daemon (one JSON object a line: status, id, stream, progressDetail, errorDetail, aux), written as plain lines.

On a terminal `cli/bars.py` draws them in place instead.
"""

from cli.client import Failure, Response
from cli.streams import write_all

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any


def raise_error(value: "dict[str, Any]") -> None:
    """The stream's own error, if this message is one, as a Failure."""
    error = value.get("errorDetail") or value.get("error")
    if error:
        raise Failure(str(error.get("message", "")) if isinstance(error, dict) else str(error))


def counts(value: "dict[str, Any]") -> bool:
    """Whether a message only says how far something is."""
    detail = value.get("progressDetail") or {}
    return bool(detail.get("current", 0) > 0 or detail.get("total", 0) > 0)


def line(value: "dict[str, Any]") -> str:
    """The text of a message as Docker's clients print it; "" when there is nothing to print."""
    text = value.get("stream")
    if text:
        return str(text)
    status = value.get("status")
    if not status:
        return ""
    key = value.get("id", "")
    return (f"{key}: " if key else "") + str(status) + "\n"


def printable(text: str) -> str:
    """Without control characters: what a registry says must not drive the terminal. Line ends stay."""
    return text if text.isprintable() else "".join(char for char in text if char.isprintable() or char in "\n\t")


def plain(values: "Iterable[dict[str, Any]]", descriptor: int, quiet: bool = False, aux: "Callable[[Any], None] | None" = None) -> None:
    """Write a stream's messages; those that only count are left out. Raises Failure for the stream's error."""
    for value in values:
        raise_error(value)
        if aux and value.get("aux"):
            aux(value["aux"])
            continue
        text = "" if quiet or counts(value) else line(value)
        if text:
            write_all(descriptor, text.encode("utf-8", "replace"))


def show(response: Response, descriptor: int = 1, quiet: bool = False, aux: "Callable[[Any], None] | None" = None) -> None:
    """Show a response's stream: bars on a terminal, else lines. Raises Failure for the stream's error."""
    from cli.terminal import is_terminal

    if quiet or not is_terminal(descriptor):
        plain(response.values(), descriptor, quiet, aux)
        return
    from cli.bars import draw

    draw(response, descriptor, aux)
