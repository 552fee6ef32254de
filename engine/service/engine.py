"""The engine: every service of one daemon, put together and started in order. Owns nothing else.

`open_engine` is the only way to get one; it returns after reconciliation, ready for requests.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from engine.config import Settings
from engine.linux import devices
from engine.linux.cgroups import Cgroups
from engine.service.containers import Containers
from engine.service.context import Context
from engine.service.durability import Chores, Durability
from engine.service.events import Events
from engine.service.execs import Execs
from engine.service.images import Images
from engine.service.reconcile import reconcile
from engine.service.registries import Registries
from engine.service.registry import Registry, permanent
from engine.service.specgen import Host
from engine.service.supervise import Monitors
from engine.service.system import System
from engine.spec.event import Event
from engine.store.containers import ContainerStore
from engine.store.content import Content
from engine.store.db import Database, DatabaseError
from engine.store.layout import Layout
from engine.store.snapshots import Snapshots

if TYPE_CHECKING:
    from engine.registry.server.app import RegistryApp
    from engine.service.archives import Archives
    from engine.service.pull import Pulls
    from engine.service.push import Pushes

log = logging.getLogger("knarr.engine")


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

    @property
    def archives(self) -> Archives:
        """Images from and into archives; made when it is first used."""
        return self.context.archives

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
    db = Database(layout.database)
    if db.set_aside:
        log.error("the database was damaged (%s) and set aside as %s", db.set_aside_reason, db.set_aside)
    try:
        async with trio.open_nursery() as nursery:
            engine = await _assemble(settings, layout, db, nursery)
            yield engine
            nursery.cancel_scope.cancel()
            try:
                engine.context.durability.flush()
            except DatabaseError as error:
                log.error("writing the database to the disk: %s", error)
            if not engine.containers.by_id:
                engine.context.cgroups.tidy(settings.cgroup_parent)
    finally:
        db.sync()
        db.close()


async def _assemble(settings: Settings, layout: Layout, db: Database, nursery: trio.Nursery) -> Engine:
    events, durability, chores = Events(), Durability(db), Chores()
    snapshots = Snapshots(layout, db)
    cgroups = Cgroups.detect()
    holder: list[Containers] = []
    images = Images(layout, db, Content(layout), snapshots, events, users=lambda image: holder[0].using(image))
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
    await nursery.start(context.monitors.run)
    if images.incomplete:
        for line in await context.archives.recover():
            log.error("after the loss of the database: %s", line)
    registry = Registry(context)
    images.keepers.append(registry.store.roots)
    await images.sweep()
    await reconcile(context, containers)
    chores.after = snapshots.refill
    try:
        snapshots.refill()
    except OSError as error:
        log.error("making folders ahead: %s", error)
    nursery.start_soon(durability.run)
    nursery.start_soon(chores.run)
    nursery.start_soon(registry.run)
    registry.open_permanent(settings.registry)
    execs = Execs(context, containers)
    system = System(context, containers)
    events.publish(Event.make("daemon", "start", system.id, {"name": os.uname().nodename}))
    return Engine(context, containers, execs, system, Registries(context), registry)
