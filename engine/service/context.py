"""What the services of one daemon share: settings, stores, mechanisms and the nursery that owns every background task.

No behaviour but this: what speaks to registries is imported and made when it is first used, an idle daemon has no need of it.
"""

from __future__ import annotations

import dataclasses
import functools
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
    from engine.linux.userns import UserNamespaces
    from engine.registry.client import Registries
    from engine.service.archives import Archives
    from engine.service.bundlesize import BundleSizes
    from engine.service.endpoints import Endpoints
    from engine.service.images import Images
    from engine.service.layers import Layers
    from engine.service.networks import Networks
    from engine.service.pull import Pulls
    from engine.service.push import Pushes
    from engine.service.volumes import Volumes


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
    networks: Networks = dataclasses.field(init=False)
    endpoints: Endpoints = dataclasses.field(init=False)

    @functools.cached_property
    def bundle_sizes(self) -> BundleSizes:
        """What containers write into their bundles."""
        from engine.service.bundlesize import BundleSizes

        return BundleSizes(self.nursery)

    @functools.cached_property
    def volumes(self) -> Volumes:
        """The volumes."""
        from engine.service.volumes import Volumes

        return Volumes(self)

    @functools.cached_property
    def user_namespaces(self) -> UserNamespaces:
        """Mappings of owners for mounts."""
        from engine.linux.userns import UserNamespaces

        return UserNamespaces()

    @functools.cached_property
    def registries(self) -> Registries:
        """The client of registries."""
        from engine.registry.client import Registries

        return Registries(self.settings)

    @functools.cached_property
    def layers(self) -> Layers:
        """The layers under way: one for all, or two would work on the same blob."""
        from engine.service.layers import Layers

        return Layers(
            self.images.content, self.snapshots, self.nursery, downloads=self.settings.max_concurrent_downloads, limits=self.images.limits
        )

    @functools.cached_property
    def archives(self) -> Archives:
        """Images from and into archives."""
        from engine.service.archives import Archives

        return Archives(self.images, self.layers, self.nursery)

    @functools.cached_property
    def pulls(self) -> Pulls:
        """Pulling, and unpacking what is here."""
        from engine.service.pull import Pulls

        return Pulls(self.images, self.registries, self.layers, attempts=self.settings.max_download_attempts)

    @functools.cached_property
    def pushes(self) -> Pushes:
        """Pushing."""
        from engine.service.push import Pushes

        return Pushes(self.images, self.registries, self.nursery, uploads=self.settings.max_concurrent_uploads)
