"""Docker's json-file log: one JSON object a line, `{"log":"text\\n","stream":"stdout","attrs":{...},"time":"RFC3339Nano"}`. Pure.

The monitor writes these files (native/monitor_log.h); this reads them, and writes them for tests. Longer lines than 16 KiB are several
entries, of which only the last ends with a newline.
"""

from __future__ import annotations

import calendar
import datetime
from urllib.parse import quote_plus

import msgspec


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the file; `time` is the text as it stands there, in UTC with up to nine digits of fraction."""

    log: str = ""
    stream: str = ""
    attrs: dict[str, str] | None = None
    time: str = ""


_decoder = msgspec.json.Decoder(Entry)
decode = _decoder.decode
"""One line to an `Entry`. Raises msgspec.MsgspecError."""


def encode(entry: Entry) -> bytes:
    """One line with its newline."""
    return msgspec.json.encode(entry) + b"\n"


def fixed_time(text: str) -> str:
    """The time with all nine digits, as `docker logs --timestamps` prints it."""
    head, _, tail = text.partition(".")
    if not tail:
        return f"{text[:-1]}.000000000{text[-1:]}"
    digits = tail.rstrip("Z")
    return f"{head}.{digits:0<9}{tail[len(digits) :]}"


def nanoseconds(text: str) -> int:
    """RFC 3339 text to nanoseconds since the epoch. Raises ValueError."""
    seconds, zone = text[:19], text[19:]
    fraction = 0
    if zone.startswith("."):
        digits = zone[1:].rstrip("Zz") if zone[-1:] in "Zz" else zone[1:-6]
        fraction, zone = int(f"{digits:0<9}"[:9]), zone[1 + len(digits) :]
    whole = calendar.timegm(datetime.datetime.strptime(seconds, "%Y-%m-%dT%H:%M:%S").timetuple())
    if zone not in ("Z", "z"):
        sign = {"+": 1, "-": -1}[zone[0]]
        whole -= sign * (int(zone[1:3]) * 3600 + int(zone[4:6]) * 60)
    return whole * 1_000_000_000 + fraction


def format_time(value: int) -> str:
    """Nanoseconds since the epoch to RFC3339Nano in UTC: without trailing zeros, which sorts and reads as Go writes it."""
    seconds, fraction = divmod(value, 1_000_000_000)
    text = datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{fraction:09}".rstrip("0") + "Z" if fraction else text + "Z"


def details(attrs: dict[str, str] | None) -> str:
    """The extra attributes as `docker logs --details` prints them before each line: `k=v,k2=v2 `, escaped as in a query string."""
    return ",".join(f"{quote_plus(key)}={quote_plus(value)}" for key, value in sorted((attrs or {}).items())) + " "
