"""What the services of one daemon share: settings, stores, mechanisms and the nursery that owns every background task. No behaviour."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import trio

from engine.config import Settings
from engine.linux.cgroups import Cgroups
from engine.service.durability import Chores, Durability
from engine.service.events import Events
from engine.service.specgen import Host
from engine.service.supervise import Monitors
from engine.store.containers import ContainerStore
from engine.store.db import Database
from engine.store.layout import Layout
from engine.store.snapshots import Snapshots

if TYPE_CHECKING:
    from engine.service.images import Images


@dataclasses.dataclass(kw_only=True)
class Context:
    """Made once by `service.engine.open_engine`."""

    settings: Settings
    layout: Layout
    db: Database
    store: ContainerStore
    snapshots: Snapshots
    images: Images
    cgroups: Cgroups
    host: Host
    monitors: Monitors
    events: Events
    durability: Durability
    chores: Chores
    nursery: trio.Nursery
