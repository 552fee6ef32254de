"""Collection on an edge host: when to look, and carrying out what `service.retention` decides. Owns one background task, which is only
there when a rule of `gc` is on: it looks after images came in and every few minutes, and sleeps otherwise.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Set as AbstractSet

import msgspec
import trio

from engine.aio.blocking import blocking
from engine.config import Settings
from engine.errors import KnarrError, NotFound
from engine.service import retention
from engine.service.images import Images
from engine.service.retention import Candidate, Disk, Policy, Removal
from engine.spec.reference import Reference
from engine.store.db import DatabaseError
from engine.store.images import ImageRecord

log = logging.getLogger("knarr.collect")

_EVERY_SECONDS = 300.0  # as the kubelet's image collection
_SETTLE_SECONDS = 1.0  # after an image came in: those of one pull or load come together


class Collected(msgspec.Struct, frozen=True):
    """What a run removed, or would remove; `bytes` were freed (or are expected to be), `before` is the file system as it was found."""

    removals: tuple[Removal, ...]
    bytes: int
    before: Disk


def policy(settings: Settings) -> Policy:
    """The rules that the settings turn on."""
    return Policy(
        high=settings.gc_high_watermark,
        low=settings.gc_low_watermark,
        keep=settings.gc_keep,
        unused_for=float(settings.gc_unused_for),
        pins=tuple(settings.gc_pins),
    )


class Collector:
    """The collection of one daemon."""

    def __init__(self, images: Images, data_root: str, rules: Policy) -> None:
        self._images = images
        self._data_root = data_root
        self._rules = rules
        self._lock = trio.Lock()
        self._came = trio.Event()

    @property
    def active(self) -> bool:
        """Whether there is anything to do in the background."""
        return self._rules.active

    def came(self) -> None:
        """An image came in: look soon."""
        self._came.set()

    async def run(self) -> None:
        """Background task."""
        while True:
            with trio.move_on_after(_EVERY_SECONDS):
                await self._came.wait()
                await trio.sleep(_SETTLE_SECONDS)
            self._came = trio.Event()
            try:
                await self.collect()
            except (KnarrError, OSError, DatabaseError) as error:
                log.error("collecting images: %s", error)

    async def collect(self, *, dry_run: bool = False) -> Collected:
        """Decide, and remove unless it is a `dry_run`. Raises KnarrError, OSError."""
        async with self._lock:
            disk = await blocking("disk", _disk, self._data_root)
            candidates, sizes = self._candidates(), await self._sizes()
            removals = retention.decide(candidates, sizes, disk, self._rules, time.time())
            if dry_run:
                return Collected(tuple(removals), sum(removal.bytes for removal in removals), disk)
            done: list[Removal] = []
            freed = 0
            for removal in removals:
                size = await self._carry_out(removal)
                if size is not None:
                    done.append(removal)
                    freed += size
            if removals:
                freed += (await self._images.collect())[1]
            self._report(freed, disk, done)
            return Collected(tuple(done), freed, disk)

    def _report(self, freed: int, disk: Disk, done: list[Removal]) -> None:
        if done:
            self._images.emit_pruned(freed)
        if self._rules.high and disk.percent >= self._rules.high:
            after = _disk(self._data_root)
            if after.percent > (self._rules.low or self._rules.high):
                log.warning("the file system of %s is %.0f%% full and no further image may be removed", self._data_root, after.percent)

    async def _carry_out(self, removal: Removal) -> int | None:
        """Bytes that it freed; None when it was refused: somebody was faster."""
        store = self._images.store
        all_names = store.names(removal.id)
        names = [name for name in all_names if (name.name, name.tag) in removal.names] if removal.names else all_names
        image = store.get(removal.id)
        if image is None or self._images.users(image):
            return None
        shown = ", ".join(name.familiar for name in names) or removal.id
        freed = 0
        try:
            for asked in [str(name) for name in names] or [removal.id]:
                try:
                    freed += (await self._images.remove(asked))[1]
                except NotFound:
                    continue  # with the last tag of a repository its digests went too
        except KnarrError as error:
            log.info("image %s: not removed: %s", shown, error)
            return None
        log.info("image %s removed: %s (%d bytes)", shown, removal.reason, freed)
        return freed

    # -- what there is

    def _candidates(self) -> list[Candidate]:
        images = self._images
        grouped = images.store.grouped()
        leased = images.leases.held()
        found: list[Candidate] = []
        for image in images.store:
            names = images.store.names(image.id)
            if image.id in grouped and not names:
                continue  # part of an index: it goes with the name of that
            members = {image.id: image}
            for target in {images.store.target(name) for name in names}:
                members.update((member.id, member) for member in images.store.members(target))
            found.append(self._candidate(image, names, list(members.values()), leased))
        return found

    def _candidate(self, image: ImageRecord, names: list[Reference], members: list[ImageRecord], leased: AbstractSet[str]) -> Candidate:
        images = self._images
        resources = tuple({resource for member in members for resource in (*member.blobs, *member.chain_ids)})
        return Candidate(
            id=image.id,
            names=tuple((name.name, name.tag) for name in names),
            used=max(images.store.used(member.id) for member in members) / 1e9,
            loaded=image.loaded / 1e9,
            resources=resources,
            labels=image.config.defaults.labels or {},
            needed=any(images.users(member) for member in members) or not leased.isdisjoint(resources),
        )

    async def _sizes(self) -> dict[str, int]:
        sizes = dict(await blocking("disk", self._images.content.list))
        kept: set[str] = set().union(*(keeper() for keeper in self._images.keepers))
        sizes = {digest: size for digest, size in sizes.items() if digest not in kept}
        return {**sizes, **self._images.snapshot_sizes()}


def _disk(path: str) -> Disk:
    """As df(1): blocks that only root may use count as used when it says how full a file system is."""
    found = os.statvfs(path)
    used = (found.f_blocks - found.f_bfree) * found.f_frsize
    return Disk(used + found.f_bavail * found.f_frsize, used)
