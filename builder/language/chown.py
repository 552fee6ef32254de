"""The words of `--chown`: "user[:group]", each a number, a name, or `root`, which is 0 whatever is listed. Pure."""

from __future__ import annotations

ROOT = "root"


def named(chown: str) -> bool:
    """Whether a "user[:group]" has names that must be looked up."""
    return any(part not in ("", ROOT) and not is_number(part) for part in chown.split(":", 1))


def is_number(text: str) -> bool:
    """Whether a word is taken as a number: digits that are no name, and few enough to be read."""
    return text.isascii() and text.isdigit() and len(text) < 20
