"""Moments as users give them to `--since` and `--until`: RFC 3339 in any precision, Unix seconds, or a duration before now."""

import time

from cli.client import Failure

_FORMS = ("%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H", "%Y-%m-%d")


def timestamp(text: str, name: str) -> str:
    """`seconds.nanoseconds` for the API. Raises Failure."""
    seconds, _, fraction = text.partition(".")
    if seconds.lstrip("-").isdigit() and (not fraction or fraction.isdigit()):
        return text
    from cli.values import duration

    try:
        ago = duration(text)
    except ValueError:
        return _absolute(text, name)
    now = time.time_ns() - ago
    return f"{now // 10**9}.{now % 10**9:09d}"


def _absolute(text: str, name: str) -> str:
    body, zone = text, ""
    if text.endswith("Z"):
        body, zone = text[:-1], "+0000"
    elif len(text) > 6 and text[-6] in "+-" and text[-3] == ":" and "T" in text:
        body, zone = text[:-6], text[-6:-3] + text[-2:]
    whole, _, fraction = body.partition(".")
    for form in _FORMS:
        try:
            # strptime is a large import, paid only here
            parsed = time.strptime(whole, form)
        except ValueError:
            continue
        if fraction and not fraction.isdigit():
            break
        if zone:
            from calendar import timegm

            offset = (int(zone[1:3]) * 60 + int(zone[3:5])) * 60
            seconds = timegm(parsed) - (offset if zone[0] == "+" else -offset)
        else:
            seconds = int(time.mktime(parsed))
        return f"{seconds}.{fraction[:9].ljust(9, '0')}"
    raise Failure(f'invalid value for "{name}": failed to parse value as time or duration: "{text}"')
