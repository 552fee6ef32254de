"""The `filters` value of list, prune and events requests: parsing and the ways in which values are compared. Pure.

Source: Engine API ("filters"), with the errors and rules of Docker's api/types/filters. A key that is not given lets everything pass;
of several values for a key one is enough, but for labels all are needed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

import msgspec

from engine.errors import InvalidParameter

_decode = msgspec.json.Decoder(dict[str, list[str] | dict[str, bool] | None]).decode


class Filters(dict[str, list[str]]):
    """Values by key."""

    @classmethod
    def parse(cls, text: str | bytes | None) -> Filters:
        """From a query value: `{"key": ["v"]}`, or the older `{"key": {"v": true}}`. Raises InvalidParameter."""
        if not text:
            return cls()
        try:
            raw = _decode(text)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            raise InvalidParameter("invalid filter") from None
        return cls.of(
            {key: values if isinstance(values, list) else [v for v, on in (values or {}).items() if on] for key, values in raw.items()}
        )

    @classmethod
    def of(cls, values: Mapping[str, Iterable[str]]) -> Filters:
        """From values that are there already; the same value twice counts once."""
        return cls({key: list(dict.fromkeys(found)) for key, found in values.items()})

    def check(self, known: Collection[str]) -> None:
        """Raises InvalidParameter in Docker's words for a key that is not in `known`."""
        for key in self:
            if key not in known:
                raise InvalidParameter(f"invalid filter '{key}'")

    def get(self, key: str, default: list[str] | None = None) -> list[str]:  # type: ignore[override]
        """The values of a key; an empty list (or `default`) when it is not given."""
        return super().get(key) or default or []

    def flag(self, key: str, default: bool = False) -> bool:
        """A key whose only values may be 1, true, 0, false. Raises InvalidParameter in Docker's words."""
        values = self.get(key)
        if not values:
            return default
        yes, no = {"1", "true"} & set(values), {"0", "false"} & set(values)
        if bool(yes) == bool(no):
            raise InvalidParameter(f"invalid filter '{key}=[{' '.join(values)}]'")
        return bool(yes)

    def match_any(self, key: str, candidates: Iterable[str]) -> bool:
        """Whether a value equals one of `candidates`."""
        values = self.get(key)
        return not values or any(candidate in values for candidate in candidates)

    def match_prefix(self, key: str, *candidates: str) -> bool:
        """Whether a candidate begins with a value."""
        values = self.get(key)
        return not values or any(candidate.startswith(value) for candidate in candidates for value in values)

    def match_pattern(self, key: str, *candidates: str) -> bool:
        """Whether a value equals a candidate or is a regular expression found in it; one that is no expression only compares equal."""
        values = self.get(key)
        return not values or any(_found(value, candidate) for candidate in candidates for value in values)

    def match_names(self, key: str, *names: str) -> bool:
        """`match_pattern` for container names, with and without their leading slash."""
        return self.match_pattern(key, *(form for name in names for form in (name.lstrip("/"), "/" + name.lstrip("/"))))

    def match_labels(self, key: str, labels: Mapping[str, str]) -> bool:
        """Whether all values hold: `k` asks for a label, `k=v` for its value."""
        return all(_has(labels, value) for value in self.get(key))

    def lacks_labels(self, key: str, labels: Mapping[str, str]) -> bool:
        """Whether no value holds, for `label!`; true when the key is not given."""
        return not any(_has(labels, value) for value in self.get(key))


def _has(labels: Mapping[str, str], wanted: str) -> bool:
    name, equals, value = wanted.partition("=")
    return name in labels and (not equals or labels[name] == value)


def _found(pattern: str, text: str) -> bool:
    if pattern == text:
        return True
    try:
        return re.search(pattern, text) is not None
    except re.error:
        return False
