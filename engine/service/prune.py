"""`prune`: removes what nothing uses. Owns which images and containers that are; how they go is the business of their services.

Follows dockerd: an image without a tag is dangling, and what a container was made from stays. Every prune of images also collects blobs
and layers that nothing needs, leases that are over and downloads that were abandoned.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import msgspec

from engine.aio.blocking import blocking
from engine.errors import Conflict, InvalidParameter, NotFound
from engine.service import imagefilter
from engine.service.containers import Containers
from engine.service.context import Context
from engine.spec import units
from engine.spec.container import ContainerRecord
from engine.spec.event import Event
from engine.spec.filters import Filters
from engine.store.images import ImageRecord

# `unused-for` is an extension: a duration since an image was last used.
IMAGE_KEYS = ("dangling", "label", "label!", "until", "unused-for")
CONTAINER_KEYS = ("label", "label!", "until")


class Pruned(msgspec.Struct, frozen=True):
    """Images as `{"Untagged": …}` and `{"Deleted": …}`, or identifiers of containers; and the bytes that were freed."""

    images: tuple[dict[str, str], ...] = ()
    containers: tuple[str, ...] = ()
    bytes: int = 0


class Pruner:
    """Prunes of one daemon; one of each kind at a time."""

    def __init__(self, context: Context, containers: Containers) -> None:
        self._context = context
        self._images = context.images
        self._containers = containers
        self._busy: set[str] = set()

    async def images(self, filters: Filters) -> Pruned:
        """Remove dangling images, or with `dangling=false` all that no container was made from. Raises InvalidParameter, Conflict."""
        filters.check(IMAGE_KEYS)
        dangling = _dangling(filters)
        until, unused = _until(filters), _unused(filters)
        with self._alone("images"):
            done: list[dict[str, str]] = []
            freed = 0
            for image in list(self._images.store):
                if self._goes(image, dangling) and _passes(image, filters, until) and self._images.store.used(image.id) <= unused:
                    removed, size = await self._remove(image)
                    done += removed
                    freed += size
            freed += (await self._images.collect())[1]
            self._images.emit_pruned(freed)
            return Pruned(images=tuple(done), bytes=freed)

    def _goes(self, image: ImageRecord, dangling: bool) -> bool:
        store = self._images.store
        names = store.names(image.id)
        if dangling and any(not name.digest for name in names):
            return False
        if not names and image.id in store.grouped():
            return False  # it belongs to an index that has a name
        members = [member for target in {store.target(name) for name in names} for member in store.members(target)]
        return not any(self._images.users(one) for one in (image, *members))

    async def _remove(self, image: ImageRecord) -> tuple[list[dict[str, str]], int]:
        done: list[dict[str, str]] = []
        freed = 0
        for asked in [str(name) for name in self._images.store.names(image.id)] or [image.id]:
            try:
                removed, size = await self._images.remove(asked)
            except (NotFound, Conflict):
                continue  # gone with another name, or a container was made from it meanwhile
            done += removed
            freed += size
        return done, freed

    async def containers(self, filters: Filters) -> Pruned:
        """Remove containers that do not run. Raises InvalidParameter, Conflict."""
        filters.check(CONTAINER_KEYS)
        until = _until(filters)
        with self._alone("containers"):
            gone: list[str] = []
            freed = 0
            for record in self._containers.everything():
                if not record.state.running and _chosen(record, filters, until):
                    size = await self._remove_container(record.id)
                    if size is not None:
                        gone.append(record.id)
                        freed += size
            self._context.events.publish(Event.make("container", "prune", "", {"reclaimed": str(freed)}))
            return Pruned(containers=tuple(gone), bytes=freed)

    async def volumes(self, filters: Filters, *, everything: bool = False) -> tuple[list[str], int]:
        """Remove volumes that no container uses, anonymous ones unless `everything`; names and bytes. Raises InvalidParameter, Conflict."""
        with self._alone("volumes"):
            return await self._context.volumes.prune(filters, everything=everything)

    async def _remove_container(self, id: str) -> int | None:
        """Bytes that it had written; None when it was started or removed meanwhile."""
        try:
            size = (await blocking("disk", self._containers.size, id))[0]
            await self._containers.remove(id)
        except (NotFound, Conflict, FileNotFoundError):
            return None
        return size

    @contextlib.contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        if what in self._busy:
            raise Conflict("a prune operation is already running")
        self._busy.add(what)
        try:
            yield
        finally:
            self._busy.discard(what)


def _dangling(filters: Filters) -> bool:
    values = filters.get("dangling")
    wanted = {value.lower() for value in values}
    if not wanted <= {"true", "1", "t", "false", "0", "f"} or len(wanted) > 1:
        raise InvalidParameter(f"invalid filter 'dangling=[{' '.join(values)}]'")
    return not wanted or bool(wanted & {"true", "1", "t"})


def _until(filters: Filters) -> float:
    """Unix seconds; what was made later stays."""
    values = filters.get("until")
    if len(values) > 1:
        raise InvalidParameter("more than one until filter specified")
    return imagefilter.moment(values[0]) if values else float("inf")


def _unused(filters: Filters) -> float:
    """Unix nanoseconds; what was used later stays."""
    values = filters.get("unused-for")
    if len(values) > 1:
        raise InvalidParameter("more than one unused-for filter specified")
    return time.time_ns() - units.seconds(values[0]) * 1e9 if values else float("inf")


def _passes(image: ImageRecord, filters: Filters, until: float) -> bool:
    labels = image.config.defaults.labels or {}
    if until != float("inf") and (not image.created or imagefilter.seconds(image.created) > until):
        return False  # of one that does not say when it was made nobody knows
    return filters.match_labels("label", labels) and filters.lacks_labels("label!", labels)


def _chosen(record: ContainerRecord, filters: Filters, until: float) -> bool:
    labels = record.config.labels or {}
    return record.created_at / 1e9 <= until and filters.match_labels("label", labels) and filters.lacks_labels("label!", labels)
