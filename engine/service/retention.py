"""Which images an edge host gives up by itself: those that nobody used for long, all but the newest of a repository, and, while the disk is
fuller than it should be, the least recently used ones. Pure decisions; `service.collect` carries them out.

Never an image with a container, with a name that is pinned, or with the label `knarr.pin=true`. An image without a tag goes first.
"""

from __future__ import annotations

import fnmatch
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

PIN_LABEL = "knarr.pin"


class Policy(msgspec.Struct, frozen=True):
    """What to give up and when; 0 turns a rule off. `high` and `low` in percent of the file system, `unused_for` in seconds, `keep` tags
    of each repository. `pins` are patterns of full names, `docker.io/library/*`; `*` stands for anything."""

    high: int = 0
    low: int = 0
    keep: int = 0
    unused_for: float = 0.0
    pins: tuple[str, ...] = ()

    @property
    def active(self) -> bool:
        """Whether any rule is on."""
        return bool(self.high or self.keep or self.unused_for)


class Candidate(msgspec.Struct, frozen=True):
    """An image. `names` are its full names as (repository, tag), tag "" for a name by digest; `used` and `loaded` in Unix seconds, 0 when
    that is not known; `resources` are the layers and blobs that it needs. `needed`: a container, or work under way, needs it to stay."""

    id: str
    names: tuple[tuple[str, str], ...] = ()
    used: float = 0.0
    loaded: float = 0.0
    resources: tuple[str, ...] = ()
    labels: Mapping[str, str] = {}
    needed: bool = False

    @property
    def tags(self) -> tuple[tuple[str, str], ...]:
        """Its names that are tags."""
        return tuple(name for name in self.names if name[1])


class Disk(msgspec.Struct, frozen=True):
    """The file system of the data root, in bytes."""

    total: int
    used: int

    @property
    def percent(self) -> float:
        """How full it is."""
        return 100 * self.used / self.total if self.total else 0.0


class Removal(msgspec.Struct, frozen=True):
    """What to remove: the tags `names` of an image, all of the image when there are none. `bytes` is what that frees."""

    id: str
    reason: str
    names: tuple[tuple[str, str], ...] = ()
    bytes: int = 0


def pinned(image: Candidate, pins: Collection[str]) -> bool:
    """Whether a pattern or the label says that an image stays."""
    if image.labels.get(PIN_LABEL, "").lower() in ("true", "1"):
        return True
    forms = [form for repository, tag in image.tags for form in (repository, f"{repository}:{tag}")]
    return any(fnmatch.fnmatchcase(form, pin) for form in forms for pin in pins)


def decide(images: Sequence[Candidate], sizes: Mapping[str, int], disk: Disk, policy: Policy, now: float) -> list[Removal]:
    """What to remove, in order. `sizes`: bytes of each resource; one that several images share is freed with the last of them."""
    decision = _Decision(images, sizes, policy.pins)
    if policy.keep:
        decision.keep_newest(policy.keep)
    if policy.unused_for:
        decision.unused(now - policy.unused_for, now)
    if policy.high and disk.percent >= policy.high:
        decision.make_room(disk, min(policy.low or policy.high, policy.high))
    return decision.removals


class _Decision:
    def __init__(self, images: Sequence[Candidate], sizes: Mapping[str, int], pins: Collection[str]) -> None:
        self.removals: list[Removal] = []
        self._sizes = sizes
        self._names = {image.id: set(image.tags) for image in images}
        self._left = {image.id: image for image in images}
        self._holders = Counter(resource for image in images for resource in set(image.resources))
        self._free = [image for image in images if not image.needed and not pinned(image, pins)]
        # Without a tag first, then least recently used.
        self._free.sort(key=lambda image: (bool(image.tags), image.used, image.loaded, image.id))

    def keep_newest(self, count: int) -> None:
        """All tags but the newest `count` of each repository. Tags of images that must stay count among the newest."""
        movable = {image.id for image in self._free}
        repositories: dict[str, list[tuple[float, str, Candidate]]] = {}
        for image in self._left.values():
            for repository, tag in image.tags:
                repositories.setdefault(repository, []).append((image.loaded, tag, image))
        for repository, tags in sorted(repositories.items()):
            newest = sorted(tags, key=lambda one: (one[0], one[1]), reverse=True)
            for _, tag, image in newest[count:]:
                if image.id in movable:
                    self._untag(image, (repository, tag), f"more than {count} newer tags of {repository}" if count > 1 else
                                f"a newer tag of {repository}")  # fmt: skip

    def unused(self, limit: float, now: float) -> None:
        """Images that were not used since `limit`, Unix seconds."""
        for image in self._free:
            if image.id in self._left and 0 < image.used < limit:
                self._remove(image, f"unused for {(now - image.used) / 86400:.1f} days")

    def make_room(self, disk: Disk, low: int) -> None:
        """Least recently used ones until the file system is no fuller than `low` percent."""
        wanted = math.ceil(disk.used - disk.total * low / 100) - sum(removal.bytes for removal in self.removals)
        for image in self._free:
            if wanted <= 0:
                return
            if image.id in self._left:
                wanted -= self._remove(image, f"the file system is {disk.percent:.0f}% full")

    def _untag(self, image: Candidate, name: tuple[str, str], reason: str) -> None:
        self._names[image.id].discard(name)
        freed = 0 if self._names[image.id] else self._forget(image)
        self.removals.append(Removal(image.id, reason, (name,), freed))

    def _remove(self, image: Candidate, reason: str) -> int:
        freed = self._forget(image)
        self.removals.append(Removal(image.id, reason, (), freed))
        return freed

    def _forget(self, image: Candidate) -> int:
        del self._left[image.id]
        resources = set(image.resources)
        self._holders.subtract(resources)
        return total(self._sizes, (resource for resource in resources if not self._holders[resource]))


def total(sizes: Mapping[str, int], resources: Iterable[str]) -> int:
    """Bytes of resources; one that is not there has none."""
    return sum(sizes.get(resource, 0) for resource in resources)
