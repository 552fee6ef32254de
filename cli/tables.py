"""Aligned columns as Go's text/tabwriter lays them out for Docker, and its words for sizes and times."""

import time


def columns(lines: "list[str]", minimum: int = 10, padding: int = 3) -> str:
    """Lines whose cells are separated by tabs, aligned; a cell counts for a column only when a tab ends it.

    A column is a run of neighbouring lines that have it, so a line without tabs starts every column anew.
    """
    rows = [line.split("\t") for text in lines for line in text.split("\n")]
    out = [[] for _ in rows]  # type: list[list[str]]
    _block(rows, out, 0, len(rows), 0, minimum, padding)
    return "".join("".join(cells) + row[-1] + "\n" for cells, row in zip(out, rows, strict=True))


def _block(rows: "list[list[str]]", out: "list[list[str]]", start: int, end: int, column: int, minimum: int, padding: int) -> None:
    at = start
    while at < end:
        if len(rows[at]) - 1 <= column:
            at += 1
            continue
        last = at
        while last < end and len(rows[last]) - 1 > column:
            last += 1
        cells = [row[column] for row in rows[at:last]]
        size = max(minimum, max(width(cell) for cell in cells) + padding)
        for line, cell in zip(out[at:last], cells, strict=True):
            line.append(cell + " " * (size - width(cell)))
        _block(rows, out, at, last, column + 1, minimum, padding)
        at = last


def width(text: str) -> int:
    """Columns of a terminal: East Asian wide characters take two."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def ellipsis(text: str, most: int) -> str:
    """At most that many columns, the last of them `…` when something was cut."""
    if width(text) <= most:
        return text
    if text.isascii():
        return text[:most - 1] + "…"
    taken = 0
    for at, char in enumerate(text):
        taken += width(char)
        if taken > most - 1:
            return text[:at] + "…"
    return text


_DECIMAL = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB")


def human_size(size: float, digits: int = 3) -> str:
    """Powers of 1000, `12.3MB`."""
    at = 0
    while size >= 1000 and at < len(_DECIMAL) - 1:
        size /= 1000
        at += 1
    return f"{size:.{digits}g}{_DECIMAL[at]}"


def binary_size(size: float) -> str:
    """Powers of 1024, `1.953GiB`."""
    at = 0
    while size >= 1024 and at < len(_BINARY) - 1:
        size /= 1024
        at += 1
    return f"{size:.4g}{_BINARY[at]}"


def human_duration(seconds: float) -> str:
    """`2 minutes`, `About an hour`, `3 weeks`."""
    if seconds < 1:
        return "Less than a second"
    if seconds < 2:
        return "1 second"
    if seconds < 60:
        return f"{int(seconds)} seconds"
    minutes = int(seconds / 60)
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    for limit, divisor, unit in ((48, 1, "hours"), (24 * 14, 24, "days"), (24 * 60, 24 * 7, "weeks"), (24 * 365 * 2, 24 * 30, "months")):
        if hours < limit:
            return f"{hours // divisor} {unit}"
    return f"{int(seconds / 3600) // 24 // 365} years"


def ago(timestamp: float) -> str:
    return human_duration(time.time() - timestamp) + " ago"


def local_time(timestamp: int) -> str:
    """As Go prints a time: `2023-11-14 22:13:20 +0000 UTC`."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(timestamp))


def rfc3339(timestamp: int) -> str:
    """In the local zone, `Z` for UTC."""
    moment = time.localtime(timestamp)
    zone = time.strftime("%z", moment)
    return time.strftime("%Y-%m-%dT%H:%M:%S", moment) + ("Z" if zone == "+0000" else zone[:3] + ":" + zone[3:])
