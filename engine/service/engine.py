"""The engine: every service of one daemon, put together and started in order. Owns nothing else.

`open_engine` is the only way to get one; it returns after reconciliation, ready for requests.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import trio

from engine.aio.blocking import blocking
from engine.config import Settings
from engine.errors import KnarrError, NotImplementedYet
from engine.linux import devices
from engine.linux.cgroups import Cgroups
from engine.service.connecting import Changes
from engine.service.containers import Containers
from engine.service.context import Context
from engine.service.durability import Chores, Durability
from engine.service.endpoints import Endpoints
from engine.service.events import Events
from engine.service.execs import Execs
from engine.service.images import Images
from engine.service.networks import Networks
from engine.service.reconcile import reconcile
from engine.service.registries import Registries
from engine.service.registry import Registry, permanent
from engine.service.specgen import Host
from engine.service.supervise import Monitors
from engine.service.system import System
from engine.spec.event import Event
from engine.store.containers import ContainerStore
from engine.store.content import Content
from engine.store.db import Database, DatabaseError, is_full
from engine.store.layout import Layout
from engine.store.mark import Mark
from engine.store.snapshots import Snapshots
from engine.store.trees import remove_path

if TYPE_CHECKING:
    from engine.registry.server.app import RegistryApp
    from engine.service.archives import Archives
    from engine.service.build import Builder
    from engine.service.check import Checks
    from engine.service.collect import Collector
    from engine.service.prune import Pruner
    from engine.service.pull import Pulls
    from engine.service.push import Pushes
    from engine.service.volumes import Volumes

log = logging.getLogger("knarr.engine")

_LAST_CHORES = 2.0  # seconds for small removals at the end; the next start does what is left


class Engine:
    """What the API calls: `containers`, `execs`, `images`, `events`, `system`, `registries`."""

    def __init__(
        self, context: Context, containers: Containers, execs: Execs, system: System, registries: Registries, registry: Registry
    ) -> None:  # fmt: skip
        self.context = context
        self.containers = containers
        self.execs = execs
        self.images = context.images
        self.events = context.events
        self.system = system
        self.registry = registry
        self.registries = registries
        self.make_builder: Callable[[Engine], Builder] | None = None

    @property
    def archives(self) -> Archives:
        """Images from and into archives; made when it is first used."""
        return self.context.archives

    @property
    def volumes(self) -> Volumes:
        """Volumes."""
        return self.context.volumes

    @property
    def networks(self) -> Networks:
        """Networks."""
        return self.context.networks

    @functools.cached_property
    def pruner(self) -> Pruner:
        """Removing what nothing uses."""
        from engine.service.prune import Pruner

        return Pruner(self.context, self.containers)

    @functools.cached_property
    def checks(self) -> Checks:
        """Looking for damage in the store."""
        from engine.service.check import Checks

        return Checks(self.context, self.containers, self.registry.store)

    @functools.cached_property
    def collector(self) -> Collector:
        """The rules by which an edge host gives up images."""
        from engine.service.collect import Collector, policy

        return Collector(self.images, self.context.layout.data_root, policy(self.context.settings))

    @property
    def pulls(self) -> Pulls:
        """Pulling; made when it is first used."""
        return self.context.pulls

    @functools.cached_property
    def peers(self) -> RegistryApp:
        """The images of this daemon as a registry, for other daemons that reach its socket."""
        from engine.registry.server.app import Options, RegistryApp
        from engine.service.peers import ImageRepositories

        return RegistryApp(ImageRepositories(self.context), self.images.content, self.registry.uploads, Options(delete=False))

    @functools.cached_property
    def builder(self) -> Builder:
        """Building images; made when it is first used, by `make_builder`. Raises NotImplementedYet in a daemon without one."""
        if self.make_builder is None:
            raise NotImplementedYet("building images")
        return self.make_builder(self)

    @property
    def pushes(self) -> Pushes:
        """Pushing; made when it is first used."""
        return self.context.pushes


def host_facts(settings: Settings, cgroups: Cgroups) -> Host:
    """What specs need to know of this host. Read once."""
    return Host(
        hostname=socket.gethostname(),
        cgroupns_private=cgroups.version == 2,
        privileged_devices=devices.all_host(),
        ulimits=tuple((name, int(limit["Soft"]), int(limit["Hard"])) for name, limit in settings.default_ulimits.items()),
        shm_size=int(settings.default_shm_size),
        no_new_privileges=settings.no_new_privileges,
    )


@asynccontextmanager
async def open_engine(settings: Settings) -> AsyncIterator[Engine]:
    """Open stores, find what is running, start the background tasks; undone in the reverse order. Running containers are left alone."""
    permanent(settings.registry)  # settings that make no sense are refused before anything is opened
    layout = Layout(settings.data_root, settings.exec_root)
    layout.create()
    mark = Mark(layout.data_root)
    unclean_since = mark.unclean_since()
    db = _open_database(layout)
    if db.set_aside:
        log.error("the database was damaged (%s) and set aside as %s", db.set_aside_reason, db.set_aside)
    try:
        async with trio.open_nursery() as nursery:
            engine = await _assemble(settings, layout, db, nursery)
            nursery.start_soon(_set_mark, mark, engine, unclean_since)
            yield engine
            engine.containers.runner.health.keep()
            nursery.cancel_scope.cancel()
            try:
                engine.context.durability.flush()
            except DatabaseError as error:
                log.error("writing the database to the disk: %s", error)
            if not engine.containers.running():
                engine.networks.tidy()
        engine.context.chores.work(_LAST_CHORES)  # of builds that were ended just now
        if not engine.containers.by_id:
            engine.context.cgroups.tidy(settings.cgroup_parent)
    finally:
        db.sync()
        db.close()
        mark.clear()


def _open_database(layout: Layout) -> Database:
    """A disk without any room must not keep the daemon from starting: it is needed to make some. Raises KnarrError."""
    try:
        return Database(layout.database)
    except DatabaseError as error:
        if not is_full(error):
            raise KnarrError(f"opening the database {layout.database}: {error}") from error
        log.error("opening the database %s: %s; unfinished downloads are given up to make room", layout.database, error)
    for name in os.listdir(layout.ingest):
        remove_path(f"{layout.ingest}/{name}")
    try:
        return Database(layout.database)
    except DatabaseError as error:
        raise KnarrError(f"opening the database {layout.database}: {error}", hint="free some space on the file system of --data-root")


async def _set_mark(mark: Mark, engine: Engine, unclean_since: float) -> None:
    """Background task, once. The mark of a host that stopped stays until what was stored shortly before was checked."""
    try:
        if unclean_since:
            from engine.service.check import after_unclean_stop

            await after_unclean_stop(engine.checks, unclean_since)
        await blocking("disk", mark.set)
    except OSError as error:
        log.error("marking the data root as in use: %s", error)


@contextmanager
def _going_on(what: str) -> Iterator[None]:
    """Nothing that is found on the disk, or that a full one refuses, keeps the daemon from starting."""
    try:
        yield
    except (OSError, KnarrError, DatabaseError) as error:
        log.error("%s: %s", what, error)


async def _assemble(settings: Settings, layout: Layout, db: Database, nursery: trio.Nursery) -> Engine:
    events, durability, chores = Events(), Durability(db), Chores()
    snapshots = Snapshots(layout, db)
    cgroups = Cgroups.detect()
    if cgroups.v1 is not None:
        # Below this daemon's own parent: another daemon that ends removes its shared group, and must not remove ours.
        cgroups.v1.shared = f"{settings.cgroup_parent.strip('/')}/default-devices"
    holder: list[Containers] = []
    images = Images(layout, db, Content(layout), snapshots, events, users=lambda image: holder[0].holding(image))
    context = Context(
        settings=settings,
        layout=layout,
        db=db,
        store=ContainerStore(db),
        snapshots=snapshots,
        images=images,
        cgroups=cgroups,
        host=host_facts(settings, cgroups),
        monitors=Monitors(layout.exec_root, settings.monitors),
        events=events,
        durability=durability,
        chores=chores,
        nursery=nursery,
    )
    containers = Containers(context)
    holder.append(containers)
    networks = context.networks = Networks(context, lambda: (container.record for container in containers.by_id.values()))
    networks.open()
    endpoints = context.endpoints = Endpoints(context, networks, containers.find)
    networks.changes = Changes(context, networks, endpoints, containers.find)
    context.volumes.containers = lambda: [container.record for container in containers.by_id.values()]
    await nursery.start(context.monitors.run)
    if images.incomplete:
        with _going_on("making images again from their blobs"):
            for line in await context.archives.recover():
                log.error("after the loss of the database: %s", line)
    registry = Registry(context)
    images.keepers.append(registry.store.roots)
    with _going_on("removing what an interrupted load, pull or delete left"):
        await images.sweep()
    for key in snapshots.lost:
        log.error("container %s: what it had written is gone, its folder is missing", key[:12])
    await reconcile(context, containers)
    with _going_on("finding out which volumes are in use"):
        context.volumes.recover()
    chores.after = snapshots.refill
    with _going_on("making folders ahead"):
        snapshots.refill()
    nursery.start_soon(durability.run)
    nursery.start_soon(endpoints.run)
    nursery.start_soon(chores.run)
    nursery.start_soon(registry.run)
    registry.open_permanent(settings.registry)
    execs = containers.runner.health.execs = Execs(context, containers)
    containers.runner.health.adopt(containers.by_id)
    system = System(context, containers)
    events.publish(Event.make("daemon", "start", system.id, {"name": os.uname().nodename}))
    containers.runner.restarts.boot(containers.by_id)
    engine = Engine(context, containers, execs, system, Registries(context), registry)
    if settings.gc_high_watermark or settings.gc_keep or settings.gc_unused_for:
        images.on_stored = engine.collector.came
        nursery.start_soon(engine.collector.run)
    return engine
