"""Paragraphs of `Field: value` lines, as in dpkg's status and Python's METADATA. Pure.

Follows deb-control(5) and RFC 822: a line that begins with a blank goes on with the field above. Names are lower case here.
"""

from __future__ import annotations

from collections.abc import Iterator


def paragraphs(text: str) -> Iterator[dict[str, str]]:
    """Every paragraph; of a field that comes twice the first one counts."""
    fields: dict[str, str] = {}
    last = ""
    for line in text.split("\n"):
        if not line.strip():
            if fields:
                yield fields
            fields, last = {}, ""
        elif line[0] in " \t":
            if last:
                fields[last] += "\n" + line.strip()
        else:
            name, colon, value = line.partition(":")
            last = ""
            if colon and name.lower() not in fields:
                last = name.lower()
                fields[last] = value.strip()
    if fields:
        yield fields
