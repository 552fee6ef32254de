"""Which images `docker images --filter` shows. Pure. Follows the Engine API reference, "ImageList"."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

import msgspec

from engine.errors import InvalidParameter
from engine.spec import glob
from engine.spec import reference as references
from engine.store.images import ImageRecord

KEYS = ("before", "dangling", "label", "label!", "reference", "since", "until")
_RELATIVE = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Filters(Protocol):
    """What is needed of parsed filters."""

    def get(self, key: str, /) -> Sequence[str]: ...


def apply(images: list[ImageRecord], filters: Filters, find: Callable[[str], ImageRecord]) -> list[ImageRecord]:
    """Those of `images` that pass every filter. Raises InvalidParameter for a bad value, NotFound for an unknown image."""
    tests: list[Callable[[ImageRecord], bool]] = []
    if values := filters.get("dangling"):
        tests.append(_dangling(values))
    for label in filters.get("label") or ():
        tests.append(_labelled(label, True))
    for label in filters.get("label!") or ():
        tests.append(_labelled(label, False))
    if limits := [find(name).created for name in filters.get("before") or ()]:
        tests.append(lambda image: image.created < min(limits))
    if floors := [find(name).created for name in filters.get("since") or ()]:
        tests.append(lambda image: image.created > max(floors))
    if moments := [moment(value) for value in filters.get("until") or ()]:
        tests.append(lambda image: seconds(image.created) <= min(moments))
    if patterns := filters.get("reference"):
        compiled = [glob.compile(pattern) for pattern in patterns]
        images = [shown for image in images if (shown := _named(image, compiled)) is not None]
    return [image for image in images if all(test(image) for test in tests)]


def _named(image: ImageRecord, patterns: Sequence[re.Pattern[str]]) -> ImageRecord | None:
    """The image with only those of its names that match, as Docker lists it; None when none does."""
    tags, digests = (
        tuple(name for name in names if any(_matches(name, pattern) for pattern in patterns))
        for names in (image.repo_tags, image.repo_digests)
    )
    return msgspec.structs.replace(image, repo_tags=tags, repo_digests=digests) if tags or digests else None


def _dangling(values: Sequence[str]) -> Callable[[ImageRecord], bool]:
    wanted = {value.lower() for value in values}
    if not wanted <= {"true", "1", "t", "false", "0", "f"}:
        raise InvalidParameter(f"invalid filter 'dangling=[{' '.join(values)}]'")
    if wanted & {"true", "1", "t"}:
        return lambda image: not image.repo_tags
    return lambda image: bool(image.repo_tags or image.repo_digests)  # dockerd shows what has a digest alone both times


def _labelled(label: str, wanted: bool) -> Callable[[ImageRecord], bool]:
    key, equals, value = label.partition("=")

    def test(image: ImageRecord) -> bool:
        labels = image.config.defaults.labels or {}
        return (key in labels and (not equals or labels[key] == value)) is wanted

    return test


def _matches(name: str, pattern: re.Pattern[str]) -> bool:
    """Docker's `reference.FamiliarMatch`: the whole familiar name or only its repository."""
    return any(pattern.fullmatch(form) for form in (name, references.parse(name).familiar_name))


def moment(text: str) -> float:
    """A Unix time, a duration before now (10m, 1h30m) or RFC 3339; Unix seconds. Raises InvalidParameter."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    found = _RELATIVE.findall(text)
    if found and "".join(number + unit for number, unit in found) == text:
        return time.time() - sum(float(number) * _SECONDS[unit] for number, unit in found)
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise InvalidParameter(f'failed to parse value as time or duration: "{text}"') from None


def seconds(created: str) -> float:
    """Unix seconds of an image's creation, 0 when it does not say."""
    try:
        return datetime.fromisoformat(created).timestamp()
    except ValueError:
        return 0.0
