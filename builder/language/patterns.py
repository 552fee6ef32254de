"""Names of COPY's and ADD's sources in which `*`, `?` and `[` match: Go's `filepath.Match` on every name of a path. Pure.

What BuildKit does: names before the first one with such a character are taken as they are written; from there on every name is a
pattern, in which a backslash protects. `**` is no more than `*` here. With `--parents` the part behind `/./` (or all of it) is a pattern
as in .dockerignore.
"""

from __future__ import annotations

from collections.abc import Callable

from builder.language.ignore import Patterns, clean
from engine.spec import glob


def has_wildcard(path: str) -> bool:
    """Whether a path is a pattern. A character behind a backslash does not make it one."""
    at = 0
    while at < len(path):
        if path[at] in "*?[":
            return True
        at += 2 if path[at] == "\\" else 1
    return False


class Glob:
    """A source, ready to use. `base`: the names that are taken as they are, apart by `/`, "" for none; `names`: tests of the names below,
    () when it is no pattern. Raises InvalidParameter in Docker's words."""

    def __init__(self, path: str) -> None:
        cleaned = clean("/" + path)[1:]
        names = cleaned.split("/") if cleaned else []
        first = next((index for index, name in enumerate(names) if has_wildcard(name)), len(names))
        self.base = "/".join(names[:first])
        self.names: tuple[Callable[[str], object], ...] = tuple(glob.compile(name).fullmatch for name in names[first:])

    def matches(self, names: tuple[str, ...]) -> bool:
        """Whether a path below `base`, as its names, matches."""
        return len(names) == len(self.names) and self.may_contain(names)

    def may_contain(self, names: tuple[str, ...]) -> bool:
        """Whether a folder below `base` may contain what matches, or matches itself."""
        return len(names) <= len(self.names) and all(test(name) for test, name in zip(self.names, names, strict=False))


def with_parents(path: str) -> tuple[str, Patterns]:
    """A source of `COPY --parents`: the folder whose name is not kept, cleaned and relative ("" for the top), and what to take below it.

    The patterns match (`excluded`) what is to be taken: walk with `Patterns.root`, `Folder.promising` says where there may be something.
    Raises InvalidParameter in Docker's words.
    """
    pivot, found, below = path.partition("/./")
    if not found:
        pivot, below = "", path
    return clean("/" + pivot)[1:], Patterns([clean("/" + below)[1:] or "**"])
