"""Names of COPY's and ADD's sources in which `*`, `?` and `[` match: Go's `filepath.Match` on every name of a path. Pure.

What BuildKit does: names before the first one with such a character are taken as they are written; from there on every name is a
pattern, in which a backslash protects. `**` is no more than `*` here. With `--parents` the part behind `/./` (or all of it) is a pattern
as in .dockerignore.
"""

from __future__ import annotations

from builder.language.ignore import Patterns, clean


def has_wildcard(path: str) -> bool:
    """Whether a path is a pattern. A character behind a backslash does not make it one."""
    at = 0
    while at < len(path):
        if path[at] in "*?[":
            return True
        at += 2 if path[at] == "\\" else 1
    return False


def with_parents(path: str) -> tuple[str, Patterns]:
    """A source of `COPY --parents`: the folder whose name is not kept, cleaned and relative ("" for the top), and what to take below it.

    The patterns match (`excluded`) what is to be taken: walk with `Patterns.root`, `Folder.promising` says where there may be something.
    Raises InvalidParameter in Docker's words.
    """
    pivot, found, below = path.partition("/./")
    if not found:
        pivot, below = "", path
    return clean("/" + pivot)[1:], Patterns([clean("/" + below)[1:] or "**"])
