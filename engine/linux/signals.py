"""Signals by name or number, as Docker's command lines and API write them."""

from __future__ import annotations

import signal as signals

from engine.errors import InvalidParameter


def signal_number(text: str) -> int:
    """`SIGTERM`, `TERM`, `term`, `15`, `RTMIN+3` -> number. Raises InvalidParameter in Docker's words."""
    word = text.strip().upper().removeprefix("SIG")
    if word.isdigit():
        number = int(word)
        if 1 <= number <= signals.NSIG - 1:
            return number
        raise InvalidParameter(f"invalid signal: {text}")
    for base, value in (("RTMIN", int(signals.SIGRTMIN)), ("RTMAX", int(signals.SIGRTMAX))):
        if word.startswith(base):
            offset = word[len(base) :] or "+0"
            if offset[0] in "+-" and offset[1:].isdigit() and signals.SIGRTMIN <= value + int(offset) <= signals.SIGRTMAX:
                return value + int(offset)
            raise InvalidParameter(f"invalid signal: {text}")
    try:
        return int(signals.Signals[f"SIG{word}"])
    except KeyError:
        raise InvalidParameter(f"invalid signal: {text}")
