"""The builder as the API sees it (`engine.service.build.Builder`): every build of a daemon, and the cache they share.

Owns what outlives a build: results, folders of cache mounts, contexts that clients sent, and which of it is in use. How one build goes is
`build.py`'s business.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING

import trio

from builder import build as builds
from builder.classic import Classic
from builder.graph import Graph
from builder.language.instructions import Dockerfile
from builder.outbox import Outbox
from builder.secrets import Gifts, Nothing
from builder.session import Connection, Session
from builder.solving import duplicates
from builder.solving.cachemounts import CacheMounts
from builder.sources.contextfolder import remove_below
from builder.sources.contexts import Contexts
from builder.sources.fetching import Fetcher, Sources
from builder.tree import Tree
from engine.aio.blocking import blocking
from engine.aio.locks import KeyedLocks
from engine.aio.scopes import shielded, ungrouped
from engine.errors import KnarrError
from engine.registry import proxies
from engine.registry.transport import Transport
from engine.service.build import ClassicBuild, Send
from engine.service.context import Context
from engine.spec.build import MAIN_CONTEXT, Progress, Result
from engine.spec.buildcache import CACHE_MOUNT, CacheRecord, Prune, rules
from engine.spec.event import Event
from engine.store.buildcache import BuildCache, CachedResult
from engine.store.db import DatabaseError
from engine.store.snapshots import Snapshot

if TYPE_CHECKING:
    from builder.caches.cacheexport import PackedLayers

log = logging.getLogger("knarr.build")

_CLOSE_SECONDS = 5.0
_SETTLE_SECONDS = 1.0  # between a build and the collection after it: builds often come one after another
_COLLECT_SECONDS = 60.0  # at least between two collections


class BuildService:
    """The builder of one daemon; made when the first build comes."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.folder = f"{context.layout.data_root}/build"
        os.makedirs(self.folder, 0o700, exist_ok=True)
        self.cache = BuildCache(context.db, context.snapshots)
        self.locks = KeyedLocks()
        self.mounts = CacheMounts(f"{self.folder}/mounts")
        self.contexts = Contexts(f"{self.folder}/contexts")
        settings = context.settings
        self._transport = Transport(proxies.from_settings(settings.http_proxy, settings.https_proxy, settings.no_proxy))
        self._builds = 0
        self._collecting = False
        self._collected = float("-inf")
        self.sources = Sources(f"{self.folder}/sources", f"{context.layout.exec_root}/build", self._transport)
        self._running: dict[str, trio.CancelScope] = {}
        self._users: dict[int, dict[int, CachedResult]] = {}
        self._numbers = 0
        scratch = f"{self.folder}/scratch"
        with contextlib.suppress(FileNotFoundError):  # what a crash left may take long to remove
            os.rename(scratch, f"{scratch}-{os.urandom(8).hex()}")
        for folder in (scratch, f"{context.layout.exec_root}/build"):
            os.makedirs(folder, 0o700, exist_ok=True)
        context.nursery.start_soon(self._sweep)

    async def _sweep(self) -> None:
        """Background task, once: what a crash left."""
        for sweep in (self._sweep_scratch, self.mounts.sweep, self.contexts.sweep, self.sources.sweep):
            try:
                await sweep()
            except OSError as error:
                log.warning("removing what an interrupted build left: %s", error)

    async def _sweep_scratch(self) -> None:
        for name in os.listdir(self.folder):
            if name.startswith("scratch-"):
                await blocking("disk", remove_below, self.folder, name)

    @contextlib.asynccontextmanager
    async def building(self, gifts: Gifts) -> AsyncIterator[Fetcher]:
        """Around one build: what it fetches stays while the block runs. Connections are closed with the last one."""
        self._builds += 1
        try:
            with self.sources.opened(gifts) as fetcher:
                yield fetcher
        finally:
            self._builds -= 1
            self._collect_soon()
            if not self._builds:
                with shielded(_CLOSE_SECONDS):
                    await self._transport.close()

    @contextlib.contextmanager
    def scratch(self) -> Iterator[str]:
        """A folder for one build on the file system of the layers; who uses it removes what it puts there."""
        self._numbers += 1
        path = f"{self.folder}/scratch/{self._numbers}"
        os.mkdir(path, 0o700)
        try:
            yield path
        finally:
            with contextlib.suppress(OSError):
                remove_below(*os.path.split(path))

    @functools.cached_property
    def packed(self) -> PackedLayers:
        """What layers were packed to for caches elsewhere."""
        from builder.caches.cacheexport import PackedLayers

        return PackedLayers()

    # -- builds

    async def classic(self, build: ClassicBuild, context: AsyncIterator[bytes] | None, send: Send) -> None:
        """`POST /build`; see the protocol."""
        output = Classic(build)
        outbox = Outbox()

        def tell(pieces: Sequence[bytes]) -> None:
            for piece in pieces:
                outbox.put(piece)

        class Hooks(builds.Hooks):
            def parsed(self, dockerfile: Dockerfile) -> None:
                output.parsed(dockerfile)

            def planned(self, graph: Graph, digests: list[str]) -> None:
                tell(output.planned(graph, digests))

            def told(self, progress: Progress) -> None:
                tell(output.feed(progress))

            async def room(self) -> bool:
                return await outbox.room()

        trees: dict[str, Tree] = {}

        async def tree(name: str) -> Tree:
            if name not in trees:
                raise KnarrError(f"there is no build context {name!r}")
            return trees[name]

        with self._cancellable(build.id):
            async with contextlib.AsyncExitStack() as stack:
                options = build.options
                if context is not None:
                    sent = await stack.enter_async_context(self.contexts.from_tar(context, options.dockerfile))
                    trees |= {MAIN_CONTEXT: sent.tree, "dockerfile": sent.dockerfile}
                    options = sent.options(options)
                request = builds.Request(options=options, auths=build.auths, gifts=Nothing(), contexts=tree, strict=True)
                failure: KnarrError | None = None
                with ungrouped():
                    async with trio.open_nursery() as writing:
                        writing.start_soon(outbox.run, send)
                        try:
                            tell(output.finish(await builds.build(self, request, Hooks())))
                        except KnarrError as error:
                            if output.takes(error):
                                tell(output.fail(error))
                            else:  # raised below, so that it does not arrive wrapped in a group
                                failure = error
                        outbox.close()
                if failure is not None:
                    raise failure

    async def session(self, connection: Connection) -> None:
        """`POST /build/knarr`; see the protocol."""
        session = Session(connection)
        try:
            if not await session.request():
                return
        except KnarrError as error:
            await session.refuse(error)
            return

        class Hooks(builds.Hooks):
            def told(self, progress: Progress) -> None:
                session.tell(progress)

            async def room(self) -> bool:
                return await session.outbox.room()

        async def work() -> Result:
            request = builds.Request(
                options=session.options, auths=session.auths, gifts=session, contexts=session.context, outputs=session.output
            )
            return await builds.build(self, request, Hooks())

        async with self.contexts.uploads() as open_upload:
            await session.serve(open_upload, work)

    @contextlib.contextmanager
    def _cancellable(self, id: str) -> Iterator[None]:
        with trio.CancelScope() as scope:
            if id:
                self._running[id] = scope
            try:
                yield
            finally:
                if self._running.get(id) is scope:
                    del self._running[id]
        if scope.cancelled_caught:
            raise KnarrError("the build was cancelled")

    def cancel(self, id: str) -> None:
        """End the build of that identifier."""
        scope = self._running.get(id)
        if scope is not None:
            scope.cancel()

    # -- the cache

    @contextlib.contextmanager
    def using(self, used: dict[int, CachedResult]) -> Iterator[None]:
        """Results that a build uses are not pruned while the block runs; `used` grows meanwhile."""
        key = id(used)
        self._users[key] = used
        try:
            yield
        finally:
            del self._users[key]

    def keep(self, used: Sequence[CachedResult]) -> None:
        """At the end of a build: store when it used what, and see to it that what it made reaches the disk. Nobody waits for that: the
        cache may lose what a power cut takes, and an image was synced when it was exported."""
        try:
            self.cache.write_use(used)
        except DatabaseError as error:
            log.warning("storing what a build used: %s", error)
        self.context.durability.lazily()
        rows = [one.row for one in used if one.row.boot]
        if rows:
            self.context.nursery.start_soon(self._sync, rows)

    async def _sync(self, rows: list[Snapshot]) -> None:
        """Background task."""
        try:
            await blocking("disk", self.context.snapshots.sync_files, self.folder)
            self.context.snapshots.synced(row for row in rows if self.context.snapshots.is_current(row))
        except (OSError, DatabaseError) as error:
            log.warning("writing the build cache to the disk: %s", error)

    def _in_use(self) -> set[int]:
        """The snapshots of results that builds use now, by number."""
        return {one.row.number for used in self._users.values() for one in used.values()}

    async def usage(self) -> Sequence[CacheRecord]:
        """What the cache has."""
        users = self._in_use()
        shared = {chain for image in self.context.images.store for chain in image.chain_ids}
        by_name = {one.row.name: one.id for one in self.cache.results()}
        records = [
            CacheRecord(
                id=one.id, description=one.description, parents=(by_name[one.row.parent],) if one.row.parent in by_name else (),
                in_use=one.row.number in users, shared=one.row.name in shared, size=one.row.size, created_at=one.created,
                last_used_at=one.used, usage_count=one.uses,
            )
            for one in self.cache.results()
        ]  # fmt: skip
        for mount in self.mounts.all():
            record = mount.record
            records.append(
                CacheRecord(
                    id=os.path.basename(mount.path), type=CACHE_MOUNT, description=record.description, in_use=mount.users > 0,
                    size=await self.mounts.size(mount), created_at=record.created, last_used_at=record.used, usage_count=record.uses,
                )
            )  # fmt: skip
        return [*records, *await self.contexts.usage(), *await self.sources.usage()]

    def _collect_soon(self) -> None:
        """A build has ended: look soon whether the cache has become too large."""
        nursery = self.context.nursery
        if not self._collecting and not nursery.cancel_scope.cancel_called:
            self._collecting = True
            nursery.start_soon(self._collect)

    async def _collect(self) -> None:
        """Background task: `builder.gc` of daemon.json, once."""
        await trio.sleep(max(_SETTLE_SECONDS, self._collected + _COLLECT_SECONDS - trio.current_time()))
        self._collected, self._collecting = trio.current_time(), False
        settings, disk = self.context.settings.builder, os.statvfs(self.folder)
        try:
            await self._unite()
            if not (wanted := rules(settings.get("gc", {}), disk.f_blocks * disk.f_frsize)):
                return
            records, free, chosen = await self.usage(), disk.f_bavail * disk.f_frsize, list[CacheRecord]()
            for rule in wanted:
                gone = rule.choose(records, free, time.time_ns())
                chosen += gone
                free += sum(record.room for record in gone)
                ids = {record.id for record in gone}
                records = [record for record in records if record.id not in ids]
            if chosen:
                freed = await self._remove(chosen)
                log.info("%d records of the build cache were removed, %d bytes", len(chosen), freed)
                self._publish_pruned(freed)
        except (KnarrError, OSError, DatabaseError) as error:
            log.error("collecting the build cache: %s", error)

    async def _unite(self) -> int:
        """Give up layers that are there twice, when no build could hold them; the bytes that were freed."""
        context = self.context
        if not self._builds and duplicates.unite(self.cache, context.snapshots, context.images.chains_in_use()):
            return (await context.images.collect())[1]
        return 0

    async def prune(self, wanted: Prune) -> tuple[Sequence[str], int]:
        """Remove from the cache; identifiers of what went, and the bytes that were freed."""
        selective = wanted.fields or wanted.types or wanted.unused_for
        freed = 0 if selective else await self._unite()
        records, disk = await self.usage(), os.statvfs(self.folder)
        chosen = wanted.choose(records, disk.f_bavail * disk.f_frsize, time.time_ns())
        freed += await self._remove(chosen)
        self._publish_pruned(freed)
        return [record.id for record in chosen], freed

    def _publish_pruned(self, freed: int) -> None:
        self.context.events.publish(Event.make("builder", "prune", "", {"reclaimed": str(freed)}))

    async def _remove(self, chosen: Sequence[CacheRecord]) -> int:
        """Bytes that were freed."""
        ids = {record.id for record in chosen}
        # First what no row of the database knows: when the disk is full there is room for those then.
        gone = await self.mounts.remove([mount for mount in self.mounts.all() if os.path.basename(mount.path) in ids])
        mounts = {os.path.basename(mount.path) for mount in gone}
        freed = await self.contexts.remove(ids) + await self.sources.remove(ids)
        freed += sum(record.size for record in chosen if record.type == CACHE_MOUNT and record.id in mounts)
        users = self._in_use()  # some may have come since they were chosen
        if doomed := [one for one in self.cache.results() if one.id in ids and one.row.number not in users]:
            self.cache.forget(doomed)
        return freed + (await self.context.images.collect())[1]
