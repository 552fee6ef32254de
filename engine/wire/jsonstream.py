"""Docker's progress streams: one JSON object a line, made by the daemon and read by clients. Bytes in, objects out.

Follows moby's `jsonmessage`: members `stream`, `status`, `id`, `progressDetail`, `progress`, `errorDetail`, `error`, `aux`.
"""

from __future__ import annotations

from typing import Any

import msgspec

# A line of a progress stream is short; longer is no progress stream.
_LINE_MAX = 1 << 20


class ProgressDetail(msgspec.Struct, frozen=True, omit_defaults=True):
    """Bytes done and to do; 0 when unknown."""

    current: int = 0
    total: int = 0


class ErrorDetail(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error that came after the answer had begun."""

    message: str = ""
    code: int = 0


class Message(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One line."""

    stream: str = ""
    status: str = ""
    id: str = ""
    progress: str = ""
    progress_detail: ProgressDetail | None = None
    error: str = ""
    error_detail: ErrorDetail | None = None
    aux: Any = None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Message)


def _line(message: dict[str, Any]) -> bytes:
    return _encoder.encode(message) + b"\r\n"


def stream(text: str) -> bytes:
    """Text that a client prints as it is; the newline is part of it."""
    return _line({"stream": text})


def status(text: str, id: str = "") -> bytes:
    """A finished step; with `id` it replaces that line on a terminal."""
    return _line({"status": text, "progressDetail": {}, "id": id} if id else {"status": text})


def title(text: str, id: str) -> bytes:
    """What the lines after it are about. No step: tools count those by their `progressDetail`."""
    return _line({"status": text, "id": id})


def progress(text: str, id: str, current: int, total: int) -> bytes:
    """A step under way, in bytes. Also carries the bar as text, for clients that show no own."""
    detail = {"current": current, "total": total} if total else {"current": current}
    return _line({"status": text, "progressDetail": detail, "progress": bar(current, total), "id": id})


def error(message: str, code: int = 0) -> bytes:
    """The last line of a stream that failed after its answer had begun."""
    return _line({"errorDetail": {"code": code, "message": message} if code else {"message": message}, "error": message})


def aux(value: object) -> bytes:
    """A result for programs, such as the identifier of an image."""
    return _line({"aux": value})


def size(value: int) -> str:
    """Bytes in decimal units with four digits, as Docker's `units.HumanSize`: 1.234MB."""
    amount, unit = float(value), 0
    while amount >= 1000 and unit < 8:
        amount /= 1000
        unit += 1
    return f"{amount:.4g}{('B', 'kB', 'MB', 'GB', 'TB', 'PB', 'EB', 'ZB', 'YB')[unit]}"


def bar(current: int, total: int, width: int = 50) -> str:
    """Docker's progress bar: `[====>    ]  1.2MB/3.4MB`."""
    if total <= 0:
        return f"{size(current):>8}"
    done = min(width, current * width // total)
    head = "=" * done if done >= width else "=" * done + ">" + " " * (width - done - 1)
    return f"[{head}]  {size(current):>8}/{size(total)}"


class Decoder:
    """Splits a stream into messages. Feed any pieces; raises ValueError for a line that is too long or no JSON object."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """The messages completed by `data`."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LINE_MAX:
            raise ValueError("a line of the progress stream is too long")
        return [_decoder.decode(line) for line in lines if line.strip()]

    def finish(self) -> list[Message]:
        """What is left at the end of the stream, which may lack its newline."""
        rest, self._rest = self._rest.strip(), b""
        return [_decoder.decode(rest)] if rest else []
