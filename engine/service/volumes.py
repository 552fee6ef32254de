"""Volumes: making, finding, listing, removing; who uses them, and what is mounted on them meanwhile.

Who uses a volume is never stored: it follows from the containers' records, so it is right after any crash. File systems that volumes ask
for by their options are mounted for the first running container and unmounted after the last; which they are is found out again at the
start.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from builtins import list as List  # a method is called `list`, as in the API
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import trio

from engine.aio.blocking import blocking
from engine.errors import Conflict, InvalidParameter, KnarrError, NotFound
from engine.linux import quota
from engine.service import volumedriver
from engine.service.context import Context
from engine.spec.container import ContainerRecord
from engine.spec.event import Event
from engine.spec.filters import Filters
from engine.spec.volume import ANONYMOUS, LOCAL, VolumeRecord, check_name
from engine.store.db import DatabaseError
from engine.store.volumes import VolumeStore

if TYPE_CHECKING:
    import sqlite3

log = logging.getLogger("knarr.volumes")

LIST_KEYS = ("dangling", "driver", "label", "name")
PRUNE_KEYS = ("all", "label", "label!")


class VolumeUse(msgspec.Struct, frozen=True):
    """A volume, the bytes of its files (-1 when they cannot be counted), and how many containers use it."""

    record: VolumeRecord
    size: int
    containers: int


class Removal:
    """Volumes that are being taken out together with other rows: `delete` in the transaction, then `done`, or `undo` if it failed."""

    def __init__(self, volumes: Volumes, names: Iterable[str]) -> None:
        """Raises OSError; then all are still there."""
        self._volumes = volumes
        self._aside: dict[str, str] = {}
        try:
            for name in names:
                self._aside[name] = volumes.store.set_aside(name)
        except BaseException:
            self.undo()
            raise

    def delete(self, cursor: sqlite3.Cursor) -> None:
        """Delete the rows."""
        for name in self._aside:
            self._volumes.store.delete_row(name, cursor)

    def undo(self) -> None:
        """Put the folders back."""
        for name, doomed in self._aside.items():
            self._volumes.store.put_back(name, doomed)

    def done(self) -> None:
        """The rows are gone: forget the volumes, and remove their files after the reply."""
        for name, doomed in self._aside.items():
            self._volumes.store.forget(name)
            self._volumes.publish("destroy", name)
            if doomed:
                self._volumes.delete_later(name, doomed)


class Volumes:
    """The volumes of one daemon. Methods without await answer from memory."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.store = VolumeStore(context.layout, context.db)
        self.containers: Callable[[], Sequence[ContainerRecord]] = tuple
        """Every container's record; set by the service of containers."""
        self._users: dict[str, set[str]] = {}  # of volumes with a file system of their own: containers it is mounted for
        self._locks: dict[str, trio.Lock] = {}
        self._filling: dict[str, trio.Lock] = {}
        self._acquired: set[str] = set()  # containers whose volumes are in use

    # -- looking

    def get(self, name: str) -> VolumeRecord:
        """Raises NotFound."""
        found = self.store.get(name)
        if found is None:
            raise NotFound(f"get {name}: no such volume")
        return found

    def path(self, name: str) -> str:
        """The host path of a volume's files."""
        return self.store.path(name)

    def users(self, name: str) -> List[str]:
        """Identifiers of the containers that use a volume, running or not."""
        return [record.id for record in self.containers() for point in record.mount_points if point.type == "volume" and point.name == name]

    def _used(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for record in self.containers():
            for point in record.mount_points:
                if point.type == "volume":
                    found.setdefault(point.name, set()).add(record.id)
        return found

    def list(self, filters: Filters) -> List[VolumeRecord]:
        """Volumes that pass, by name. Raises InvalidParameter."""
        filters.check(LIST_KEYS)
        dangling = filters.flag("dangling") if "dangling" in filters else None
        used = self._used() if dangling is not None else {}
        found = [
            record
            for record in self.store.all()
            if (dangling is None or dangling == (record.name not in used))
            and filters.match_any("driver", (record.driver,))
            and filters.match_labels("label", record.labels or {})
            and filters.match_pattern("name", record.name)
        ]
        return sorted(found, key=lambda record: record.name)

    async def usage(self) -> List[VolumeUse]:
        """Every volume with its size. Walks their folders, in worker threads."""
        used = self._used()
        return [
            VolumeUse(record, await self._size(record.name), len(used.get(record.name, ())))
            for record in sorted(self.store.all(), key=lambda record: record.name)
        ]

    async def _size(self, name: str) -> int:
        try:
            return await blocking("disk", self.store.size, name)
        except OSError as error:
            log.warning("volume %s: counting its bytes: %s", name, error)
            return -1

    # -- making

    def new(
        self, name: str, driver: str = "", given: Mapping[str, str] | None = None, labels: Mapping[str, str] | None = None
    ) -> VolumeRecord | None:
        """The record of a volume to be made; None when there is one of this name already. An empty name makes it anonymous.

        Raises NotFound for another driver, InvalidParameter.
        """
        anonymous = not name
        name = name or os.urandom(32).hex()
        volumedriver.check_driver(name, driver)
        if name in self.store:
            return None
        check_name(name)
        size = volumedriver.check_options(name, given or {})
        record = VolumeRecord(
            name=name,
            created_at=time.time_ns(),
            driver=LOCAL,
            labels={**(labels or {}), ANONYMOUS: ""} if anonymous else dict(labels) if labels else None,
            options=dict(given) if given else None,
        )
        return msgspec.structs.replace(record, project=self._project(name)) if size else record

    def _project(self, name: str) -> int:
        """A project identifier that no volume has. Raises InvalidParameter where the file system knows no project quotas."""
        if not quota.supported(os.path.dirname(os.path.dirname(self.store.path(name)))):
            raise InvalidParameter(
                f"create {name}: quota size requested but no quota support",
                hint="the file system of --data-root has to be XFS or ext4, mounted with the option prjquota",
            )
        return 1 + max((record.project for record in self.store.all()), default=quota.FIRST_PROJECT)

    def make(self, record: VolumeRecord) -> None:
        """Make the folder of a volume whose row is written. Raises OSError, KnarrError."""
        self.store.make(record.name)
        if record.project:
            size = volumedriver.check_options(record.name, record.options or {})
            quota.limit(self.store.path(record.name), record.project, size)
        self.publish("create", record.name)

    async def create(
        self, name: str, driver: str = "", given: Mapping[str, str] | None = None, labels: Mapping[str, str] | None = None
    ) -> VolumeRecord:
        """Make a volume, or give the one of this name as it is. On return it is durable. Raises NotFound, InvalidParameter, KnarrError."""
        record = self.new(name, driver, given, labels)
        if record is None:
            return self.get(name)
        try:
            self.store.put(record)
            try:
                self.make(record)
            except BaseException:
                removal = Removal(self, (record.name,))
                with self._context.db.transaction() as cursor:
                    removal.delete(cursor)
                removal.done()
                raise
            await self._context.durability.reached()
        except (OSError, DatabaseError) as error:
            raise KnarrError(f"create {record.name}: {error}", hint="the daemon's data root needs free space") from error
        return record

    # -- removing

    async def remove(self, name: str, *, force: bool = False) -> None:
        """Remove a volume; its files go after the reply. Raises NotFound unless `force`, Conflict while a container uses it."""
        if name not in self.store and force:
            return
        self.get(name)
        self._take_out(name)
        await self._context.durability.reached()

    def _take_out(self, name: str) -> None:
        users = self.users(name)
        if users:
            raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
        if self._locks.get(name) is not None and self._locks[name].locked():
            raise Conflict(f"remove {name}: volume is in use")
        try:
            removal = Removal(self, (name,))
            try:
                with self._context.db.transaction() as cursor:
                    removal.delete(cursor)
            except BaseException:
                removal.undo()
                raise
        except (OSError, DatabaseError) as error:
            raise KnarrError(f"remove {name}: {error}") from error
        self._users.pop(name, None)
        removal.done()

    def orphans(self, record: ContainerRecord) -> List[str]:
        """Anonymous volumes that nobody has once this container is gone."""
        mine = {point.name for point in record.mount_points if point.anonymous and point.name in self.store}
        if mine:
            for other in self.containers():
                if other.id != record.id:
                    mine -= {point.name for point in other.mount_points}
        return sorted(mine)

    def removal(self, names: Iterable[str]) -> Removal:
        """Begin to take volumes out. Raises OSError."""
        return Removal(self, names)

    def delete_later(self, name: str, doomed: str) -> None:
        """Queue the removal of a folder."""
        self._context.chores.later(f"removing the files of volume {name}", functools.partial(self.store.delete_files, doomed))

    async def prune(self, filters: Filters, *, everything: bool = False) -> tuple[List[str], int]:
        """Remove volumes that no container uses, anonymous ones alone unless `everything` or `all=true`: their names, and the bytes of
        their files. Raises InvalidParameter."""
        filters.check(PRUNE_KEYS)
        everything = _all(filters) or everything
        gone: List[str] = []
        freed = 0
        for record in sorted(self.store.all(), key=lambda record: record.name):
            if not everything and not record.anonymous:
                continue
            labels = record.labels or {}
            if not (filters.match_labels("label", labels) and filters.lacks_labels("label!", labels)) or self.users(record.name):
                continue
            size = await self._size(record.name)
            try:
                if record.name in self.store:
                    self._take_out(record.name)
            except KnarrError as error:
                if not isinstance(error, Conflict):
                    log.error("prune: %s", error)
                continue
            gone.append(record.name)
            freed += max(0, size)
        await self._context.durability.reached()
        self._context.events.publish(Event.make("volume", "prune", "", {"reclaimed": str(freed)}))
        return gone, freed

    # -- in use by what runs

    async def acquire(self, record: ContainerRecord) -> None:
        """A container is about to run: mount what its volumes ask for. Raises KnarrError; then nothing is mounted for it."""
        self._acquired.add(record.id)
        try:
            for point in record.mount_points:
                if point.type != "volume":
                    continue
                volume = self.store.get(point.name)
                if volume is None:
                    raise NotFound(f"get {point.name}: no such volume", hint="its row was lost; make the container anew")
                if volume.mounted:
                    await self._mount(volume, record.id)
                self.publish(
                    "mount", point.name, container=record.id, destination=point.destination, propagation=point.propagation,
                    **{"read/write": "true" if point.rw else "false"},
                )  # fmt: skip
        except BaseException:
            self.release(record)
            raise

    def release(self, record: ContainerRecord) -> None:
        """A container does not run any more; what was mounted for it alone is unmounted in the background. A second call does nothing."""
        if record.id not in self._acquired:
            return
        self._acquired.discard(record.id)
        for point in record.mount_points:
            if point.type == "volume":
                self.publish("unmount", point.name, container=record.id)
                self._leave(point.name, record.id)

    def _leave(self, name: str, user: str) -> None:
        users = self._users.get(name)
        if users is not None:
            users.discard(user)
            if not users:
                self._context.nursery.start_soon(self._unmount, name)

    async def _mount(self, volume: VolumeRecord, user: str) -> None:
        name = volume.name
        users = self._users.setdefault(name, set())
        users.add(user)  # at once: an unmount that waits for the lock sees it
        try:
            async with self._lock(name):
                path = self.store.path(name)
                if await blocking("kernel", volumedriver.mounted, [path]):
                    return  # for another container, or an unmount that was about to happen sees this one
                await blocking("network", volumedriver.mount, volume.options or {}, path)
        except BaseException:
            self._leave(name, user)
            raise

    async def _unmount(self, name: str) -> None:
        """Background task."""
        async with self._lock(name):
            if self._users.get(name):
                return
            try:
                await blocking("kernel", volumedriver.unmount, self.store.path(name))
            except OSError as error:
                log.error("volume %s: unmounting it: %s", name, error)
                return
            if not self._users.get(name):
                self._users.pop(name, None)

    def _lock(self, name: str) -> trio.Lock:
        return self._locks.setdefault(name, trio.Lock())

    async def borrowed(self, name: str, user: str, work: Callable[[], object]) -> None:
        """Run `work` in a worker thread while a volume is mounted. Raises KnarrError, OSError."""
        volume = self.get(name)
        if not volume.mounted:
            await blocking("disk", work)
            return
        key = f"copy for {user}"
        await self._mount(volume, key)
        try:
            await blocking("disk", work)
        finally:
            self._leave(name, key)

    @asynccontextmanager
    async def alone_with(self, names: Iterable[str]) -> AsyncIterator[None]:
        """While one container's volumes are made and filled, others that have one of them are not made yet."""
        held: List[str] = []
        try:
            for name in sorted(names):  # in one order, or two would wait for each other
                lock = self._filling.setdefault(name, trio.Lock())
                try:
                    lock.acquire_nowait()
                except trio.WouldBlock:
                    await lock.acquire()
                held.append(name)
            yield
        finally:
            for name in held:
                lock = self._filling[name]
                if not lock.statistics().tasks_waiting:
                    del self._filling[name]
                lock.release()

    # -- the start

    def recover(self) -> None:
        """After the containers were found: whose volumes are in use, and what is still mounted for nobody. Raises OSError,
        sqlite3.Error."""
        for name in self.store.damaged:
            log.error("volume %s: its row is damaged", name)
        for name in self.store.remade:
            log.error("volume %s: its folder was gone and is empty now", name)
        if self.store.adopted:
            log.error("volumes without a row are taken in, without labels and options: %s", ", ".join(self.store.adopted))
            self.store.save_adopted()
        for doomed in self.store.leftovers():
            self.delete_later(os.path.basename(doomed), doomed)
        volumes = {record.name: record for record in self.store.all() if record.mounted}
        for record in self.containers():
            if record.state.alive and any(point.type == "volume" for point in record.mount_points):
                self._acquired.add(record.id)
                for point in record.mount_points:
                    if point.type == "volume" and point.name in volumes:
                        self._users.setdefault(point.name, set()).add(record.id)
        if volumes:
            paths = {self.store.path(name): name for name in volumes}
            for path in volumedriver.mounted(list(paths)):
                if not self._users.get(paths[path]):
                    log.warning("volume %s: it is mounted, and no container that uses it runs; unmounting it", paths[path])
                    self._context.nursery.start_soon(self._unmount, paths[path])

    def publish(self, action: str, name: str, **attributes: str) -> None:
        """Publish an event of a volume, with Docker's attributes."""
        self._context.events.publish(Event.make("volume", action, name, {"driver": LOCAL, **attributes}))


def _all(filters: Filters) -> bool:
    """The `all` filter, read as Go reads a boolean. Raises InvalidParameter."""
    values = filters.get("all")
    if not values:
        return False
    if len(values) > 1:
        raise InvalidParameter("invalid filter 'all': only one value is expected")
    if values[0] in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if values[0] in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise InvalidParameter(f"invalid filter 'all': strconv.ParseBool: parsing \"{values[0]}\": invalid syntax")
