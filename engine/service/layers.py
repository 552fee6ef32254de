"""Layers on their way into the stores: each is fetched, checked, inflated and unpacked at once, several of them beside each other.

A job belongs to no request: pulls join the job of a layer, and the last one that leaves ends it. Owns the order in which a layer becomes
durable: bytes and files, one sync of the file system, the blob's name, the row of the snapshot. Decides nothing about images.

What is fetched lands in the ingest's file and is read from there, so no queue grows when the disk is slower than the network, and what was
fetched is kept whatever happens. A layer is unpacked while those below it still are; it waits for them only where it must look at them
(a folder that it only implies, a hard link to a file below), and for its row. Jobs start from the bottom: a started job depends on
started jobs alone, so they cannot wait for each other in a circle.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

import msgspec
import trio

from engine import _core
from engine.aio.blocking import blocking
from engine.aio.handoff import Closed, Handoff
from engine.aio.locks import KeyedLocks
from engine.aio.scopes import shielded
from engine.errors import Conflict, Damaged, DiskFull, InvalidParameter, KnarrError
from engine.service.unpack import READ, Counted, Hashed, bounded
from engine.store.content import Content
from engine.store.ingest import Ingest
from engine.store.snapshots import Snapshots
from engine.store.unpack import DEFAULT_LIMITS, Limits, Unpacked, unpacking
from engine.wire import compression, tar

log = logging.getLogger("knarr.layers")

# Pieces between inflating and unpacking, a mebibyte each.
_ROOM = 4
_UNPACKINGS = 3  # as many as downloads at a time: more of them only share two processors and one disk
_CLEANUP_SECONDS = 120.0
_TIDY_SECONDS = 1.0
# Pages of a blob that was unpacked are given back in steps of this size.
_CACHED = 16 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Wanted(msgspec.Struct, frozen=True):
    """A layer that an image needs: the blob, `size` in bytes, and what it is when unpacked on the chain `parent` ("" for none)."""

    digest: str
    size: int
    diff_id: str
    chain: str
    parent: str


class Fetch(Protocol):
    """Brings what is missing of a blob into its ingest, and calls `grown` whenever there is more. Raises KnarrError, OSError."""

    def __call__(self, ingest: Ingest, grown: Callable[[], None], /) -> Awaitable[None]: ...


class BlobDamaged(Damaged):
    """The bytes are not those that the digest names."""


class GivenUp(KnarrError):
    """Who began the work left it: whoever still wants it begins it again."""


class Job:
    """One layer under way. `phase` is waiting, downloading, extracting or complete; `done` of `total` bytes in that phase.

    `fetch` is from where the blob comes, None when it must be here. `existed`: nothing had to be done. `fetched` counts the bytes that came
    over the network.
    """

    def __init__(self, wanted: Wanted, below: Job | None, fetch: Fetch | None) -> None:
        self.wanted = wanted
        self.below = below
        self.fetch = fetch
        self.phase = "waiting"
        self.done, self.total = 0, wanted.size
        self.existed = False
        self.fetched = 0
        self.placed = False
        self.scope = trio.CancelScope()
        self.waiters = 0
        self.failure: Exception | None = None
        self.started = trio.Event()  # holds its blob's lock
        self.unpacking = trio.Event()  # holds its place among those that unpack
        self.ended = trio.Event()
        self.grown = trio.Event()

    @property
    def cancelled(self) -> bool:
        """Whether nobody wanted it any more."""
        return self.scope.cancel_called

    @property
    def trouble(self) -> Exception | None:
        """Why it ended without its layer; None before the end too."""
        if self.failure is None and self.ended.is_set() and self.phase != "complete":
            return GivenUp(f"unpacking layer {self.wanted.digest}: it was given up")
        return self.failure

    async def reached(self, event: trio.Event) -> None:
        """Wait until this job is so far. Raises KnarrError when it failed before."""
        await event.wait()
        if (trouble := self.trouble) is not None:
            raise trouble

    def is_of_those_below(self, error: Exception) -> bool:
        """Whether an error was handed on by the job below."""
        return self.below is not None and error is self.below.failure


class Layers:
    """The layers under way of one data root. `downloads`: how many are fetched at a time."""

    def __init__(
        self, content: Content, snapshots: Snapshots, nursery: trio.Nursery, *, downloads: int = 3, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self._content = content
        self._snapshots = snapshots
        self._nursery = nursery
        self._limits = limits
        self._jobs: dict[tuple[str, str], Job] = {}
        self._blobs = KeyedLocks()
        self._downloads = trio.Semaphore(max(1, downloads))
        self._unpackings = trio.Semaphore(_UNPACKINGS)
        # Syncs of the file system: how many were begun, and which of them is the last that went well.
        self._syncing = trio.Lock()
        self._syncs = self._synced_upto = 0

    def job(self, wanted: Wanted, below: Job | None, fetch: Fetch | None) -> Job:
        """Join the job of a layer, started unless it is under way. Call `leave` in a `finally`. Without `fetch` the layer is unpacked,
        or its blob is here."""
        key = (wanted.chain, wanted.digest)
        job = self._jobs.get(key)
        if job is None or job.cancelled or job.ended.is_set():
            job = self._jobs[key] = Job(wanted, below, fetch)
            self._nursery.start_soon(self._run, key, job)
        job.fetch = job.fetch or fetch
        job.waiters += 1
        return job

    def leave(self, job: Job) -> None:
        """Want a job no more; the last one ends it. What was fetched stays, to be gone on with."""
        job.waiters -= 1
        if not job.waiters:
            job.scope.cancel()

    async def settled(self, jobs: Iterable[Job]) -> None:
        """Wait until jobs that were left have let go of files and locks."""
        for job in jobs:
            if job.cancelled:
                await job.ended.wait()

    async def abandon(self, digest: str, used: Callable[[], set[str]]) -> None:
        """Remove what has come of a blob that nobody uses or is about to."""
        async with self._blobs.hold(digest):
            if digest not in used():
                await blocking("disk", self._content.abandon, digest)

    async def _run(self, key: tuple[str, str], job: Job) -> None:
        try:
            with job.scope:
                try:
                    await self._bring(job)
                except (KnarrError, OSError) as error:  # handed to everyone who waits for it, see Job.reached
                    job.failure = explained(error, job.wanted.digest) if isinstance(error, OSError) else error
                except Exception as error:  # a defect in one layer must not end the daemon
                    log.exception("layer %s", job.wanted.digest)
                    job.failure = KnarrError(f"unpacking layer {job.wanted.digest}: internal error: {error}")
        finally:
            if self._jobs.get(key) is job:
                del self._jobs[key]
            if job.placed:
                self._unpackings.release()
            for event in (job.started, job.unpacking, job.ended):
                event.set()
            if not self._jobs and not job.existed:
                self._nursery.start_soon(self._tidy)

    async def _tidy(self) -> None:
        """After the last job: what the threads' buffers took goes back to the host. Measured: 16 MB of 64 after a pull of 1.7 GB."""
        await trio.sleep(_TIDY_SECONDS)
        if not self._jobs:
            await blocking("kernel", _core.release_memory)

    async def _bring(self, job: Job) -> None:
        wanted = job.wanted
        if job.below is not None:
            await job.below.reached(job.below.started)
        async with self._blobs.hold(wanted.digest):
            job.started.set()
            here = await blocking("disk", self._content.exists, wanted.digest, wanted.size)
            if (here or job.fetch is None) and self._snapshots.has(wanted.chain):
                job.existed = True
            elif not here or not await self._from_blob(job):
                await self._pull(job)
        job.phase = "complete"

    async def _from_blob(self, job: Job) -> bool:
        """Unpack a blob that is here. False when it turned out damaged and can be fetched: it is set aside then."""
        try:
            await self._unpack(job, None)
        except BlobDamaged as error:
            if job.is_of_those_below(error):
                raise
            with contextlib.suppress(FileNotFoundError):  # a check of the store found it too
                await blocking("disk", self._content.set_aside, job.wanted.digest)
            if job.fetch is None:
                raise
            return False
        return True

    # -- fetching

    async def _pull(self, job: Job) -> None:
        """Fetch and unpack side by side. What turns out damaged is fetched once more from the beginning: something on the way, or a prefix
        that was here before, may be to blame. What cannot be used is not kept, and nothing where the disk is full: that harms more than a
        download that begins anew."""
        wanted, fetch = job.wanted, job.fetch
        if fetch is None:
            raise Damaged(f"blob {wanted.digest} is not here", hint="pull or load the image again")
        ingest = await blocking("disk", self._content.ingest, wanted.digest, wanted.size)
        dispose = ingest.close
        try:
            try:
                await self._attempt(job, ingest, fetch)
            except BlobDamaged as error:
                if job.is_of_those_below(error):
                    raise
                await blocking("disk", ingest.restart)
                job.phase, job.done = "downloading", 0
                await self._attempt(job, ingest, fetch)
        except (KnarrError, OSError) as error:
            useless = isinstance(error, Damaged | InvalidParameter | DiskFull) or (isinstance(error, OSError) and error.errno in _FULL)
            if useless and not job.is_of_those_below(error):
                dispose = ingest.remove
            raise
        finally:
            with shielded(_CLEANUP_SECONDS):
                await blocking("disk", dispose)

    async def _attempt(self, job: Job, ingest: Ingest, fetch: Fetch) -> None:
        failures: list[Exception] = []
        fetched = trio.Event()
        job.grown = trio.Event()

        def grown() -> None:
            job.grown.set()
            job.grown = trio.Event()
            if job.phase in ("waiting", "downloading"):
                job.phase, job.done, job.total = "downloading", ingest.offset, ingest.size

        async def bring() -> None:
            before = ingest.offset
            try:
                async with self._downloads:
                    await fetch(ingest, grown)
            except (KnarrError, OSError) as error:
                failures.append(error)
            finally:
                job.fetched += ingest.offset - before
                fetched.set()
                job.grown.set()

        async def beyond(place: int) -> None:
            while ingest.offset <= place and not fetched.is_set():
                await job.grown.wait()
            if ingest.offset <= place:
                raise failures[0] if failures else KnarrError(f"fetching blob {job.wanted.digest}: it is not complete")

        def read(place: int) -> bytes:
            if place >= ingest.size:
                return b""
            if place >= ingest.offset:
                trio.from_thread.run(beyond, place)
            return ingest.read(place, READ)

        async def work() -> None:
            try:
                if self._snapshots.has(job.wanted.chain):
                    await blocking("layers", self._check_only, job, read, ingest)
                    await blocking("disk", self._content.commit, ingest)
                    blob, unpacked_at = self._snapshots.source(job.wanted.chain)
                    if blob == job.wanted.digest and self._content.set_aside_at(blob) >= unpacked_at:
                        # Its blob was found damaged since: what was unpacked from it is not trusted either.
                        self._snapshots.set_damaged(job.wanted.chain, "the blob it was unpacked from was damaged")
                        await self._unpack(job, None)
                else:
                    await self._unpack(job, ingest, read)
            except (KnarrError, OSError) as error:
                if error not in failures:
                    failures.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(bring)
            nursery.start_soon(work)
        if failures:
            raise failures[0]

    def _check_only(self, job: Job, read: Callable[[int], bytes], ingest: Ingest) -> None:
        """In a worker thread: the blob alone is wanted."""
        packed = _Packed(read, job.wanted.digest, ingest)
        packed.check()

    # -- unpacking

    async def _take_place(self, job: Job) -> None:
        """A place among those that unpack, kept until the job ends, also over a second attempt: the layers above may have taken all others
        and wait for this one."""
        if job.placed:
            return
        if job.below is not None:
            await job.below.reached(job.below.unpacking)
        await self._unpackings.acquire()
        job.placed = True
        job.unpacking.set()

    async def _unpack(self, job: Job, ingest: Ingest | None, read: Callable[[int], bytes] | None = None) -> None:
        wanted, below = job.wanted, job.below
        await self._take_place(job)
        folder = self._snapshots.begin()
        try:
            result = await self._flow(job, folder, ingest, read)
            await self._synced(folder)
            if ingest is not None:
                await blocking("disk", self._settle, ingest)
            if below is not None:
                await below.reached(below.ended)
            try:
                self._snapshots.commit(folder, wanted.chain, wanted.parent, result.size, result.inodes, wanted.digest)
                folder = ""
            except Conflict:
                pass  # the same layer came another way, and was faster
        finally:
            if folder:
                with shielded(_CLEANUP_SECONDS):
                    await blocking("disk", self._snapshots.discard, folder)

    async def _flow(self, job: Job, folder: str, ingest: Ingest | None, read: Callable[[int], bytes] | None) -> Unpacked:
        """Inflating and hashing in one thread, unpacking in another."""
        result = Unpacked()
        pieces = Handoff(_ROOM)
        failures: list[Exception] = []

        def inflate() -> None:
            if read is not None:
                self._inflate(job, _Packed(read, job.wanted.digest, ingest), pieces)
            else:
                with self._content.open(job.wanted.digest) as file:
                    self._inflate(job, _Packed(_from(file.fileno()), job.wanted.digest, None), pieces)

        def place() -> None:
            try:
                reader = tar.TarReader(pieces.get)
                for _ in unpacking(reader, f"{folder}/fs", result, self._lowers(job), self._limits):
                    pass
                while pieces.get():  # padding behind the archive's end belongs to its digest
                    pass
            except Closed:
                trio.from_thread.check_cancelled()  # else the other thread's failure tells
            except (tar.TarError, compression.CompressionError) as error:
                raise InvalidParameter(f"unpacking layer {job.wanted.digest}: {error}") from error

        async def run(step: Callable[[], None], over: Callable[[], None], first: bool) -> None:
            try:
                await blocking("layers", step)
            except (KnarrError, OSError) as error:
                failures.insert(0 if first else len(failures), error)
            finally:
                over()  # here and not in the thread: one that is cancelled may never have begun, and the other waits for it

        async with trio.open_nursery() as nursery:
            # What the digest says comes first: a layer is called malformed only when it is the one that was asked for.
            nursery.start_soon(run, inflate, lambda: pieces.end(Closed()), True)
            nursery.start_soon(run, place, pieces.close, False)
        if failures:
            raise failures[0]
        return result

    def _inflate(self, job: Job, packed: _Packed, pieces: Handoff) -> None:
        """In a worker thread: everything of the blob is read and hashed, whatever becomes of its content."""
        wanted = job.wanted
        failure: Exception | None = None
        counted = Counted(packed)
        try:
            _, content = compression.decompressed(counted)
            hashed = Hashed(bounded(counted, content, self._limits))
            while piece := hashed():
                if job.phase == "extracting" or packed.complete:
                    job.phase, job.done, job.total = "extracting", counted.count, wanted.size
                pieces.put(piece)
            if hashed.digest != wanted.diff_id:
                failure = InvalidParameter(
                    f"layers from manifest don't match image configuration: {wanted.digest} unpacks to {hashed.digest}, "
                    f"not to {wanted.diff_id}"
                )
        except Closed:
            pass  # the unpacker's own failure tells
        except compression.CompressionError as error:
            failure = InvalidParameter(f"unpacking layer {wanted.digest}: {error}")
        except KnarrError as error:
            failure = error
        packed.check()
        if failure is not None:
            raise failure
        job.phase, job.done = "extracting", wanted.size
        pieces.end()

    def _lowers(self, job: Job) -> Callable[[], tuple[str, ...]] | tuple[str, ...]:
        """The folders below a job's, when they are asked for: a worker thread waits for them."""
        below, parent = job.below, job.wanted.parent
        if below is None:
            return self._snapshots.lowers(parent)

        def wait() -> tuple[str, ...]:
            trio.from_thread.run(below.reached, below.ended)
            return trio.from_thread.run_sync(self._snapshots.lowers, parent)

        return wait

    async def _synced(self, folder: str) -> None:
        """Files and bytes durable. Layers that wait while one sync runs share the next."""
        wanted = self._syncs + 1
        async with self._syncing:
            if self._synced_upto < wanted:
                self._syncs += 1
                mine = self._syncs
                await blocking("disk", self._snapshots.sync_files, folder)
                self._synced_upto = mine

    def _settle(self, ingest: Ingest) -> None:
        """In a worker thread: the name of a blob whose bytes are durable."""
        ingest.forget_cached(ingest.size)
        self._content.commit(ingest, synced=True)


class _Packed:
    """A blob's bytes as a source, hashed on their way. `check` reads the rest and compares."""

    def __init__(self, read: Callable[[int], bytes], digest: str, ingest: Ingest | None) -> None:
        self._read = read
        self._digest = digest
        self._hash = hashlib.new(digest.partition(":")[0])
        self._ingest = ingest
        self._place = 0
        self._forgotten = 0

    @property
    def complete(self) -> bool:
        """Whether all of it is here already."""
        return self._ingest is None or self._ingest.complete

    def __call__(self) -> bytes:
        trio.from_thread.check_cancelled()
        piece = self._read(self._place)
        self._hash.update(piece)
        self._place += len(piece)
        if self._ingest is not None and self._place - self._forgotten >= _CACHED:
            self._ingest.forget_cached(self._forgotten)  # a step behind: what the disk has not got yet cannot be given back
            self._forgotten = self._place
        return piece

    def check(self) -> None:
        """Raises BlobDamaged, in dockerd's words."""
        while self():
            pass
        if self._hash.hexdigest() != self._digest.partition(":")[2]:
            raise BlobDamaged(f"filesystem layer verification failed for digest {self._digest}")


def _from(fd: int) -> Callable[[int], bytes]:
    return lambda place: os.pread(fd, READ, place)


def explained(error: OSError, what: str) -> KnarrError:
    """The disk's trouble in words for the client."""
    text = f"storing {what}: {error.strerror or error}"
    if error.errno in _FULL:
        return DiskFull(text)
    return KnarrError(text)
