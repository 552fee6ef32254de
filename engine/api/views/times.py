"""Times as Docker shows them: RFC 3339 with nanoseconds, and how long ago in words. Pure.

The words and their bounds are those of Docker's `units.HumanDuration`, which `docker ps` prints as they come.
"""

from __future__ import annotations

import time

NEVER = "0001-01-01T00:00:00Z"  # Go's zero time


def rfc3339(ns: int) -> str:
    """Nanoseconds since the epoch as Go's time.RFC3339Nano in UTC, trailing zeros dropped; 0 is `NEVER`."""
    if not ns:
        return NEVER
    seconds, fraction = divmod(ns, 1_000_000_000)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{text}.{fraction:09d}".rstrip("0") + "Z" if fraction else f"{text}Z"


def seconds_from_rfc3339(text: str | None) -> int:
    """Whole seconds since the epoch of an image's `created`; 0 when it is absent or not a time."""
    if not text:
        return 0
    import datetime

    head, _, rest = text.partition(".")
    zone = rest.lstrip("0123456789") if rest else ""
    try:
        return int(datetime.datetime.fromisoformat((head + (zone or "")).replace("Z", "+00:00")).timestamp())
    except ValueError:
        return 0


def duration(seconds: float) -> str:
    """`Less than a second`, `5 seconds`, `About an hour`, `3 weeks`, ..."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    minutes = whole // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{int(seconds / 3600) // 24 // 365} years"
