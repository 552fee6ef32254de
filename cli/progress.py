"""Progress streams of the daemon (one JSON object a line: status, id, stream, progressDetail, errorDetail), written as plain lines."""

from cli.client import Failure
from cli.streams import write_all

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


def show(values: "Iterable[dict[str, Any]]", descriptor: int = 1, quiet: bool = False) -> None:
    """Write a stream's messages; a progress that only counts is left out. Raises Failure for the stream's error."""
    last: dict[str, str] = {}
    for value in values:
        error = value.get("errorDetail") or value.get("error")
        if error:
            raise Failure(error["message"] if isinstance(error, dict) else error)
        text = value.get("stream")
        if text is None and value.get("status"):
            key, status = value.get("id", ""), value["status"]
            if value.get("progressDetail") and last.get(key) == status:
                continue
            last[key] = status
            text = (f"{key}: " if key else "") + status + "\n"
        if text and not quiet:
            write_all(descriptor, text.encode())
