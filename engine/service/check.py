"""`system check`: is everything in the store what it should be? Owns what is looked at, what is called damage, and how it is repaired.

Blobs are compared with their digests, snapshots with the layers they were unpacked from. What is damaged is set aside and counts as absent,
so that the next pull, or the next container, brings or unpacks it again; a repair does so at once where the layer is here. Nothing
that is damaged is removed before something whole is in its place. Files are read in one worker thread of low priority.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar, TypeVarTuple

import msgspec
import trio

from engine.aio.blocking import blocking
from engine.errors import KnarrError
from engine.service.containers import Containers
from engine.service.context import Context
from engine.service.unpack import READ
from engine.spec.digest import short
from engine.store import check, pack
from engine.store.content import DAMAGED
from engine.store.db import DatabaseError
from engine.store.images import ImageRecord
from engine.store.repositories import RepositoryStore
from engine.store.snapshots import Snapshot
from engine.store.trees import remove_path
from engine.wire import compression, tar

log = logging.getLogger("knarr.check")

# What was written so long before the last sign of life may have been in a disk's cache; Linux hands data over after 30 seconds at most
# (vm.dirty_expire_centisecs), a disk that ignores flushes keeps it for seconds more.
RECENT_SECONDS = 300.0
_SHOWN = 3  # differences of one snapshot that are named
_LOWEST = 19  # nice

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Finding(msgspec.Struct, frozen=True):
    """Something that was looked at. `kind`: blob, snapshot, image, name, ingest, database, lease or upload. `state`: ok, damaged, missing,
    orphan (nothing needs it) or "set aside" (found damaged earlier, and kept)."""

    kind: str
    name: str
    state: str
    detail: str = ""
    repaired: bool = False


class Summary(msgspec.Struct):
    """Things that were looked at and their bytes, what was damaged or missing, and what was repaired or removed."""

    checked: int = 0
    bytes: int = 0
    damaged: int = 0
    repaired: int = 0


class Options(msgspec.Struct, frozen=True):
    """`repair` what can be; report `everything`, not findings alone; `quick` compares no file's content."""

    repair: bool = False
    everything: bool = False
    quick: bool = False


class Checks:
    """The checks of one daemon, one at a time."""

    def __init__(self, context: Context, containers: Containers, repositories: RepositoryStore) -> None:
        self._context = context
        self._images = context.images
        self._content = context.images.content
        self._snapshots = context.snapshots
        self._containers = containers
        self._repositories = repositories
        self._lock = trio.Lock()

    async def run(self, options: Options) -> AsyncGenerator[bytes, None]:
        """JSON lines: findings, at the end `{"summary": …}`. Close the generator when leaving early. Raises KnarrError."""
        async with self._lock:
            summary = Summary()
            async with aclosing(self._told(self._findings(options, summary))) as findings:
                async for finding in findings:
                    summary.checked += 1
                    summary.damaged += finding.state in ("damaged", "missing")
                    summary.repaired += finding.repaired
                    if finding.state != "ok":
                        _report(finding)
                    if finding.state != "ok" or options.everything:
                        yield msgspec.json.encode(finding) + b"\n"
            yield msgspec.json.encode({"summary": summary}) + b"\n"

    async def _told(self, findings: AsyncGenerator[Finding, None]) -> AsyncGenerator[Finding, None]:
        """`findings`; what the disk or the database refuses becomes a KnarrError."""
        async with aclosing(findings):
            try:
                async for finding in findings:
                    yield finding
            except (OSError, DatabaseError) as error:
                raise KnarrError(f"checking the store: {error}") from error

    async def _findings(self, options: Options, summary: Summary) -> AsyncGenerator[Finding, None]:
        steps: list[AsyncGenerator[Finding, None]] = [
            self._database(),
            self._rows(options),
            self._blobs(options, summary),
            self._missing_blobs(options),
            self._unpacked(options),
            self._records(options),
            self._leftovers(options),
        ]
        for step in steps:
            async with aclosing(step) as findings:
                async for finding in findings:
                    yield finding
        if options.repair:
            await self._images.collect()

    async def recent(self, since: float) -> None:
        """After the host stopped without warning: check, and repair, what was stored after `since` (Unix seconds). Raises KnarrError."""
        async with self._lock:
            blobs = await blocking("disk", self._newer, since)
            rows = [row for row in self._snapshots.rows() if row.committed and row.at >= since]
            if not blobs and not rows:
                return
            log.warning("the host stopped without warning: checking %d blobs and %d layers stored shortly before", len(blobs), len(rows))
            findings = []
            for digest in blobs:
                async with self._holding([digest]):
                    findings.append(await self._blob(digest, Summary()))
            for row in rows:
                if self._snapshots.is_current(row):
                    async with self._holding([row.name, *self._sources(row)]):
                        findings.append(await self._snapshot(row, Options(repair=True)))
            for finding in findings:
                if finding.state != "ok":
                    _report(finding)
            log.warning("checked: %d damaged", sum(finding.state != "ok" for finding in findings))

    def _newer(self, since: float) -> list[str]:
        found: list[str] = []
        for digest, _ in self._content.list():
            try:
                if os.stat(self._content.path(digest)).st_mtime >= since:
                    found.append(digest)
            except FileNotFoundError:
                continue
        return found

    # -- rows

    async def _database(self) -> AsyncGenerator[Finding, None]:
        wrong = await self._gently(self._context.db.verify)
        path = self._context.layout.database
        yield Finding("database", path, "damaged" if wrong else "ok", "; ".join(wrong[:_SHOWN]))
        folder, _, name = path.rpartition("/")
        for other in await blocking("disk", _beginning, folder, name + ".damaged-"):
            yield Finding("database", f"{folder}/{other}", "set aside", "images were made again from their blobs; it is not used")

    async def _rows(self, options: Options) -> AsyncGenerator[Finding, None]:
        store = self._images.store
        for name, image in store.lost_names():
            if options.repair:
                store.forget([name])
            yield Finding("name", name, "orphan", f"its image {short(image)} is not here", options.repair)
        for id in store.lost_records():
            if options.repair:
                store.forget([], [id])
            yield Finding("image", id, "damaged", "its record cannot be read; pull or load it again", options.repair)
        for holder in self._images.leases.ended():
            if options.repair:
                self._images.leases.release(holder)
            yield Finding("lease", holder, "orphan", "it is over", options.repair)
        names = await blocking("disk", _listed, self._context.layout.uploads)
        uploads = {upload.id for upload in self._repositories.uploads()}  # after the look: one may have begun meanwhile, or ended
        for name in names:
            path = f"{self._context.layout.uploads}/{name}"
            if name not in uploads and os.path.lexists(path):
                yield await self._stray(options, "upload", path, "orphan", "no upload is known by this name")

    # -- blobs

    async def _blobs(self, options: Options, summary: Summary) -> AsyncGenerator[Finding, None]:
        others, aside = await blocking("disk", self._content.strays)  # before this check sets more aside
        for digest, _ in sorted(await blocking("disk", self._content.list)):
            async with self._holding([digest]):
                finding = await self._blob(digest, summary)
            yield finding
        for path in others:
            yield await self._stray(options, "blob", path, "orphan", "it is no blob")
        needed = self._images.blobs_in_use()
        for path in aside:
            digest = ":".join(path.removesuffix(DAMAGED).rsplit("/", 2)[1:])
            superfluous = digest not in needed or await blocking("disk", self._content.exists, digest)
            if superfluous:
                yield await self._stray(options, "blob", path, "set aside", "it is damaged")
            else:
                yield Finding("blob", path, "set aside", "it is damaged, and no other is here")

    async def _blob(self, digest: str, summary: Summary) -> Finding:
        path = self._content.path(digest)
        try:
            before = os.stat(path).st_ino
            found, size = await self._gently(check.digest_of, path, digest.partition(":")[0], trio.from_thread.check_cancelled)
        except FileNotFoundError:
            return Finding("blob", digest, "ok", "it was removed meanwhile")
        except OSError as error:
            return self._bad_blob(digest, f"it cannot be read: {error.strerror}")
        summary.bytes += size
        if found == digest or os.stat(path).st_ino != before:  # else another one took its place meanwhile
            if digest in self._images.blobs_in_use():
                return Finding("blob", digest, "ok", f"{size} bytes")
            return Finding("blob", digest, "ok", f"{size} bytes; nothing needs it")
        return self._bad_blob(digest, f"its {size} bytes are those of {found}")

    def _bad_blob(self, digest: str, what: str) -> Finding:
        try:
            aside = self._content.set_aside(digest)
        except OSError as error:
            return Finding("blob", digest, "damaged", f"{what}; setting it aside: {error.strerror}")
        return Finding("blob", digest, "damaged", f"{what}; set aside as {aside}")

    async def _missing_blobs(self, options: Options) -> AsyncGenerator[Finding, None]:
        """Blobs that the registry's repositories link and that are not here."""
        here = {digest for digest, _ in await blocking("disk", self._content.list)}
        for digest in sorted(self._repositories.roots() - here):
            holders = ", ".join(self._repositories.holders(digest)) or "of the registry"
            if options.repair:
                self._drop(digest)
            yield Finding("blob", digest, "missing", f"linked in the repositories {holders}", options.repair)

    def _drop(self, digest: str) -> None:
        for name in self._repositories.holders(digest):
            self._repositories.unlink(name, digest)
        for name in self._repositories.names():
            self._repositories.delete_manifest(name, digest)

    # -- snapshots

    async def _unpacked(self, options: Options) -> AsyncGenerator[Finding, None]:
        for row in self._snapshots.rows():
            if row.committed and self._snapshots.is_current(row):
                async with self._holding([row.name, *self._sources(row)]):
                    finding = await self._snapshot(row, options)
                yield finding
        for key in self._snapshots.lost:
            yield Finding("snapshot", key, "missing", "what this container had written is gone; it is empty", True)
        strays, aside = self._snapshots.strays()
        for path in strays:
            yield await self._stray(options, "snapshot", path, "orphan", "nothing owns it")
        for path in aside:
            yield await self._aside(path, options)

    async def _aside(self, path: str, options: Options) -> Finding:
        using = [key for key in self._snapshots.used_by(path) if key in self._containers.by_id and self._containers.get(key).state.running]
        if using:
            names = ", ".join(self._containers.get(key).name for key in using)
            return Finding("snapshot", path, "set aside", f"it is damaged; {names} may run on it: restart it")
        return await self._stray(options, "snapshot", path, "set aside", "it is damaged")

    def _sources(self, row: Snapshot) -> list[str]:
        """Blobs that a snapshot can be unpacked from, the one that it was first."""
        found = [layer.digest for image in self._images.store for layer in image.layers if layer.chain_id == row.name]
        return list(dict.fromkeys([*([row.blob] if row.blob else []), *found]))

    async def _snapshot(self, row: Snapshot, options: Options) -> Finding:
        damage, detail = row.damage, ""
        if not damage:
            damage, detail = await self._compared(row, options.quick)
        if not damage:
            return Finding("snapshot", row.name, "ok", detail)
        if self._snapshots.has(row.name):
            self._snapshots.set_damaged(row.name, damage)
            await self._context.durability.reached()
        trouble = await self._again(row) if options.repair else ""
        repaired = options.repair and not trouble
        running = [record.name for record in self._containers.everything() if record.state.running and self._lies_on(record.id, row.name)]
        if running:
            damage += f"; {', '.join(running)} run on the damaged files until they are restarted"
        return Finding("snapshot", row.name, "damaged", f"{damage}; {trouble}" if trouble else damage, repaired)

    def _lies_on(self, key: str, chain: str) -> bool:
        return self._snapshots.has(key) and chain in self._snapshots.chain_of(key)

    async def _compared(self, row: Snapshot, quick: bool) -> tuple[str, str]:
        """What is wrong with a snapshot, and what is to say when nothing is."""
        if not os.path.isdir(f"{self._snapshots.folder(row)}/fs"):
            return "its folder is missing", ""
        if row.diff_id and not row.blob:
            return await self._repacked(row, quick)
        blob = next((digest for digest in self._sources(row) if self._content.exists(digest)), "")
        if not blob:
            return "", "not compared: the layer it was unpacked from is not here"
        lowers = self._snapshots.lowers(row.parent)
        try:
            found = await self._gently(self._compare, blob, f"{self._snapshots.folder(row)}/fs", lowers, quick)
        except (compression.CompressionError, tar.TarError, KnarrError) as error:
            return "", f"not compared: reading {blob}: {error}"
        except OSError as error:
            return f"it cannot be read: {error.strerror}", ""
        more = f" and {len(found) - _SHOWN} more differences" if len(found) > _SHOWN else ""
        return "; ".join(found[:_SHOWN]) + more, f"like {blob}"

    async def _repacked(self, row: Snapshot, quick: bool) -> tuple[str, str]:
        """`_compared` of a snapshot that was built: what it packs to must be what it did."""
        if quick:
            return "", "not compared: it was built here, and its digest is that of every byte"
        try:
            folder = f"{self._snapshots.folder(row)}/fs"
            packed = await self._gently(lambda: pack.pack(folder, check=trio.from_thread.check_cancelled))
        except OSError as error:
            return f"it cannot be read: {error.strerror}", ""
        if packed.diff_id != row.diff_id:
            return f"its files were changed: they are the layer {packed.diff_id} instead of {row.diff_id}; build it again", ""
        return "", f"packs to {row.diff_id}"

    def _compare(self, blob: str, root: str, lowers: tuple[str, ...], quick: bool) -> list[str]:
        with self._content.open(blob) as file:

            def source() -> bytes:
                trio.from_thread.check_cancelled()
                os.posix_fadvise(file.fileno(), 0, file.tell(), os.POSIX_FADV_DONTNEED)
                return file.read(READ)

            _, content = compression.decompressed(source)
            return check.compare(tar.TarReader(content), root, lowers, quick=quick)

    async def _again(self, row: Snapshot) -> str:
        """Unpack a damaged snapshot from its layer, in its place; what kept it from that, "" for nothing."""
        image = next((image for image in self._images.store if row.name in image.chain_ids), None)
        if image is None:
            return "no image needs it: it goes with the next collection"
        try:
            await self._context.pulls.unpack(image)
        except KnarrError as error:
            return str(error)
        current = next(one for one in self._snapshots.rows() if one.name == row.name)
        return (await self._compared(current, quick=True))[0]

    # -- images

    async def _records(self, options: Options) -> AsyncGenerator[Finding, None]:
        for image in self._images.store:
            if self._images.store.get(image.id) is None:
                continue
            made = self._images.layer_blobs.sources()
            missing = [digest for digest in await blocking("disk", self._missing, image.blobs) if digest not in made]
            yield await self._record(image, missing, options) if missing else Finding("image", image.id, "ok", _named(image))
        for index in self._images.store.indexes():
            if not await blocking("disk", self._content.exists, index.digest):
                if options.repair:
                    await blocking("disk", self._content.put, index.raw, index.digest)
                yield Finding("image", index.digest, "missing", "the index is not among the blobs", options.repair)

    def _missing(self, digests: tuple[str, ...]) -> list[str]:
        return [digest for digest in digests if not self._content.exists(digest)]

    async def _record(self, image: ImageRecord, missing: list[str], options: Options) -> Finding:
        if options.repair and image.id in missing:  # the row has it
            await blocking("disk", self._content.put, image.raw, image.id)
            missing = [digest for digest in missing if digest != image.id]
        detail = f"{_named(image)} lacks {', '.join(missing)}" if missing else f"{_named(image)} lacked its configuration"
        layers = {layer.digest for layer in image.layers}.intersection(missing)
        runs = not layers or not image.chain_id or self._snapshots.whole(image.chain_id)
        if not missing:
            return Finding("image", image.id, "missing", detail, options.repair)
        if runs:
            return Finding("image", image.id, "missing", f"{detail}; it runs, and can be pushed or saved after it was pulled again")
        users = self._images.users(image)
        if not options.repair or users:
            used = f"; {len(users)} containers were made from it" if users else ""
            return Finding("image", image.id, "missing", f"{detail}; it cannot run before it was pulled or loaded again{used}")
        await self._images.remove(image.id, force=True)
        return Finding("image", image.id, "missing", f"{detail}; it cannot run; its record was dropped: pull or load it again", True)

    async def _leftovers(self, options: Options) -> AsyncGenerator[Finding, None]:
        needed = self._images.blobs_in_use()
        for path in await blocking("disk", self._content.stale, needed):
            yield await self._stray(options, "ingest", path, "orphan", "no download will go on with it")
        here = {digest for digest, _ in await blocking("disk", self._content.list)}
        for digest in sorted(here - self._images.blobs_in_use()):  # the collection at the end of a repair takes them
            if await blocking("disk", self._content.exists, digest):  # and another may have been faster
                yield Finding("blob", digest, "orphan", "nothing needs it", options.repair)

    @asynccontextmanager
    async def _holding(self, names: list[str]) -> AsyncGenerator[None, None]:
        """Nothing of `names` is collected while it is looked at. What would have been goes at the end."""
        images = self._images
        needed = (images.blobs_in_use() | images.chains_in_use()).intersection(names)
        with images.pins() as pin:
            pin(names)
            yield
        if not needed <= images.blobs_in_use() | images.chains_in_use():
            await images.release(names)

    async def _stray(self, options: Options, kind: str, path: str, state: str, detail: str) -> Finding:
        """Something that nothing needs: a repair removes it."""
        if not options.repair:
            return Finding(kind, path, state, detail)
        try:
            await blocking("disk", remove_path, path)
        except FileNotFoundError:
            pass  # somebody else, who removes what was left at the start, was faster
        except OSError as error:
            return Finding(kind, path, state, f"{detail}; removing it: {error.strerror}")
        return Finding(kind, path, state, detail, True)

    async def _gently(self, work: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """In a worker thread that leaves processor and disk to everyone else. setpriority(2): 0 is the calling thread."""

        def run() -> T:
            before = os.getpriority(os.PRIO_PROCESS, 0)
            os.setpriority(os.PRIO_PROCESS, 0, _LOWEST)
            try:
                return work(*arguments)
            finally:
                try:
                    os.setpriority(os.PRIO_PROCESS, 0, before)
                except PermissionError as error:  # without CAP_SYS_NICE the thread stays slow
                    log.debug("raising a thread's priority again: %s", error)

        return await blocking("hashing", run)


def _report(finding: Finding) -> None:
    end = "; repaired" if finding.repaired else ""
    log.warning("%s %s: %s: %s%s", finding.kind, finding.name, finding.state, finding.detail, end)


def _named(image: ImageRecord) -> str:
    return ", ".join(image.repo_tags or image.repo_digests) or short(image.id)


def _listed(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def _beginning(folder: str, prefix: str) -> list[str]:
    return [name for name in _listed(folder) if name.startswith(prefix) and not name.endswith(("-wal", "-shm"))]


async def after_unclean_stop(checks: Checks, since: float) -> None:
    """Background task, once: see `Checks.recent`."""
    try:
        await checks.recent(since - RECENT_SECONDS)
    except (KnarrError, OSError, DatabaseError) as error:
        log.error("checking what was stored before the host stopped: %s", error)
