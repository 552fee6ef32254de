"""What a misspelt word may have meant. Pure."""

from __future__ import annotations

from collections.abc import Iterable

_NEAR = 3


def nearest(word: str, options: Iterable[str], *, fold: bool = False) -> str:
    """The first of `options` that differs least from `word`, by less than three edits; "" when there is none or `word` is one of them.

    `fold`: case does not matter, and the answer is written like `word` is: all in upper or all in lower case.
    """
    known = [option.lower() for option in options] if fold else list(options)
    wanted = word.lower() if fold else word
    if wanted in known:
        return ""
    found, least = "", _NEAR
    for option in known:
        if abs(len(option) - len(wanted)) < least and (distance := _distance(wanted, option)) < least:
            found, least = option, distance
    return found.upper() if fold and word == word.upper() else found


def hint(word: str, options: Iterable[str], *, fold: bool = False) -> str:
    """`did you mean OPTION?`, or ""."""
    found = nearest(word, options, fold=fold)
    return f"did you mean {found}?" if found else ""


def _distance(left: str, right: str) -> int:
    """Levenshtein's distance. The words are short: their lengths differ by two at most, and one is ours."""
    row = list(range(len(right) + 1))
    for i, char in enumerate(left, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(right, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (char != other))
    return row[-1]
