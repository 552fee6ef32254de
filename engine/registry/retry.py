"""When to try again: back-off with jitter, and what Retry-After asks for. Pure but for the random number.

Follows RFC 9110 section 10.2.3 (Retry-After) and the habit of registries' clients: 429 and 5xx pass, other statuses do not.
"""

from __future__ import annotations

import datetime
import random

RETRIED = frozenset((408, 429, 500, 502, 503, 504))
FIRST_DELAY = 0.5  # seconds before the second attempt; doubled for each further one
LONGEST_DELAY = 15.0
# Longer than this nobody waits in front of a terminal: the request fails, and the error says how long the registry wants to be left alone.
LONGEST_WAIT_ASKED = 60.0


def delay(attempt: int, asked: float = 0.0) -> float:
    """Seconds to wait after attempt number `attempt` (from 1) has failed: at least what the server asked for."""
    pause: float = min(FIRST_DELAY * 2.0 ** min(attempt - 1, 20), LONGEST_DELAY)
    return max(asked, pause * random.uniform(0.75, 1.25))


def retry_after(value: str, now: datetime.datetime | None = None) -> float:
    """The seconds of a Retry-After header, a number or a date; 0 when it is absent or makes no sense."""
    text = value.strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    if not text:
        return 0.0
    import email.utils

    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return max(0.0, (moment - (now or datetime.datetime.now(datetime.UTC))).total_seconds())
