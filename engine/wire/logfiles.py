"""Turning bytes of json-file logs into what a client of `logs` gets: cut into lines, chosen by stream and time, framed. Pure.

`Formatter` takes pieces of a file as they are read; a line that is not complete yet waits for the next piece.
"""

from __future__ import annotations

import msgspec

from engine.wire import jsonlog, stdcopy

_STREAMS = {"stdout": stdcopy.STDOUT, "stderr": stdcopy.STDERR}


class Formatter:
    """The choices of one request. `since` and `until` in nanoseconds since the epoch, 0: not given."""

    def __init__(
        self,
        *,
        stdout: bool = True,
        stderr: bool = True,
        since: int = 0,
        until: int = 0,
        timestamps: bool = False,
        details: bool = False,
        framed: bool = True,
    ) -> None:
        self._streams = {name: number for name, number in _STREAMS.items() if (stdout if name == "stdout" else stderr)}
        # Times in a log are UTC: with all digits they sort as text, which is much cheaper than turning each into a number.
        self._since = jsonlog.fixed_time(jsonlog.format_time(since)) if since else ""
        self._until = jsonlog.fixed_time(jsonlog.format_time(until)) if until else ""
        self._timestamps = timestamps
        self._details = details
        self._framed = framed
        self._rest = b""
        self.past_until = False

    @property
    def pending(self) -> int:
        """Bytes of an incomplete line that wait for their end."""
        return len(self._rest)

    def drop_pending(self) -> None:
        """Forget the incomplete line: its writer took it back, or the file goes on elsewhere."""
        self._rest = b""

    def feed(self, piece: bytes) -> bytes:
        """What the complete lines in `piece`, and in what waited, come to. Nothing more once a line is younger than `until`."""
        lines = (self._rest + piece).split(b"\n")
        self._rest = lines.pop()
        out = []
        for line in lines:
            if self.past_until:
                break
            try:
                entry = jsonlog.decode(line)
            except msgspec.MsgspecError:
                # A line torn by a crash of the host or a full disk: what follows it is whole again.
                continue
            text = self._text(entry)
            if text:
                out.append(text)
        return b"".join(out)

    def _text(self, entry: jsonlog.Entry) -> bytes:
        if self._since or self._until:
            moment = jsonlog.fixed_time(entry.time)
            if self._until and moment > self._until:
                self.past_until = True
                return b""
            if moment < self._since:
                return b""
        stream = self._streams.get(entry.stream)
        if stream is None:
            return b""
        text = entry.log
        if self._details:
            text = jsonlog.details(entry.attrs) + text
        if self._timestamps:
            text = f"{jsonlog.fixed_time(entry.time)} {text}"
        data = text.encode()
        return stdcopy.frame(stream, data) if self._framed else data
