"""Images: look them up, name them, load, import, delete. Owns what refers to what, so that nothing in use is collected.

Everything that blocks runs in worker threads; the stores' memory and the database are touched on the event loop's thread alone.
"""

from __future__ import annotations

import errno
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec
import trio

from engine.aio.blocking import blocking
from engine.aio.scopes import shielded
from engine.errors import Damaged, InvalidParameter, KnarrError, NotFound
from engine.service import imagedelete, imagefilter
from engine.service.load import Loader
from engine.service.unpack import Unpacker
from engine.spec import platform as platforms
from engine.spec import reference as references
from engine.spec.digest import is_digest
from engine.spec.platform import Platform
from engine.spec.reference import Reference
from engine.store.content import Content
from engine.store.db import Database
from engine.store.images import ImageRecord, ImageStore
from engine.store.layout import Layout
from engine.store.snapshots import Snapshots
from engine.store.unpack import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from engine.spec.event import Event
    from engine.spec.hostimage import HostImage

# A piece handed to the worker thread: a hop costs some 0.2 ms, so several network reads go in one.
_HOP = 512 << 10
_CLEANUP_SECONDS = 60.0


# Inside a class with a method `list` the word no longer names the type.
_Records = list[ImageRecord]
_Names = list[str]
_Done = list[dict[str, str]]


class Publisher(Protocol):
    """Where events go."""

    def publish(self, event: Event) -> object: ...


class Images:
    """The images of one data root. Synchronous methods answer from memory and are for the event-loop thread."""

    def __init__(
        self, layout: Layout, db: Database, content: Content, snapshots: Snapshots, events: Publisher | None = None, *,
        users: Callable[[str], Sequence[imagedelete.User]] = lambda id: (), host: Platform | None = None, limits: Limits = DEFAULT_LIMITS,
    ) -> None:  # fmt: skip
        self.host = host or platforms.from_machine(os.uname().machine)
        self.content = content
        self.snapshots = snapshots
        self.store = ImageStore(layout, db)
        self._db = db
        self._events = events
        self._users = users
        self._limits = limits
        # Chains and blobs that a running load is about to refer to.
        self._pinned: Counter[str] = Counter()

    # -- look-ups

    def get(self, ref_or_id: str) -> ImageRecord:
        """By name, identifier or unique beginning of an identifier. Raises NotFound in Docker's words, InvalidParameter."""
        image, _ = self._find(ref_or_id)
        return image

    def _find(self, asked: str) -> tuple[ImageRecord, Reference | None]:
        """The image, and the name that was meant when it was not an identifier."""
        full = asked if asked.startswith("sha256:") else f"sha256:{asked}"
        if is_digest(full):
            exact = self.store.get(full)
            if exact is None:
                raise NotFound(f"No such image: {asked}")
            return exact, None
        prefix = asked.removeprefix("sha256:")
        reference = _parse(asked) if not asked.startswith("sha256:") else None
        named = self.store.named(reference.with_default_tag()) if reference is not None else None
        if named is not None and reference is not None:
            return named, reference.with_default_tag()
        found = self.store.by_prefix(prefix) if prefix and all(char in "0123456789abcdef" for char in prefix) else []
        if len(found) == 1:
            return found[0], None
        raise NotFound(f"No such image: {reference.with_default_tag().familiar if reference is not None else asked}")

    def count(self) -> int:
        """How many there are."""
        return len(self.store)

    def list(self, filters: imagefilter.Filters | None = None, *, all: bool = False) -> _Records:
        """Newest first; Docker's filters: before, dangling, label, reference, since, until. Raises InvalidParameter, NotFound."""
        found = sorted(self.store, key=lambda image: image.created, reverse=True)
        return found if filters is None else imagefilter.apply(found, filters, self.get)

    def layer_sizes(self, image: ImageRecord) -> tuple[int, ...]:
        """Bytes of the files of each layer, bottom first; 0 for one that is not unpacked."""
        return tuple(self.snapshots.usage(chain)[0] if self.snapshots.has(chain) else 0 for chain in image.chain_ids)

    def layer_folders(self, image: ImageRecord) -> tuple[str, ...]:
        """Host folders of the layers, topmost first."""
        return self.snapshots.lowers(image.chain_id) if image.chain_id else ()

    # -- names

    async def tag(self, source: str, repository: str, tag: str = "") -> None:
        """Give an image another name. Raises NotFound, InvalidParameter."""
        image, _ = self._find(source)
        target = _parse(repository)
        if target.digest:
            raise InvalidParameter("refusing to create a tag with a digest reference")
        target = target.with_tag(tag) if tag else target.with_default_tag()
        self.store.put(msgspec.structs.replace(image, tagged=time.time_ns()), [target])
        await self._durable()
        self._emit("tag", image.id, target.familiar)

    async def delete(self, asked: str, force: bool = False, noprune: bool = False) -> _Done:
        """Remove a name, and the image with its last one: Docker's list of {"Untagged": …}, {"Deleted": …}. Raises NotFound, Conflict."""
        image, reference = self._find(asked)
        decision = imagedelete.decide(image.id, self.store.names(image.id), asked, reference, self._users(image.id), force=force)
        for name in decision.untag:
            self.store.unname(name)
        done = [{"Untagged": name.familiar} for name in decision.untag]
        folders: _Names = []
        if decision.delete:
            self.store.delete(image.id)
            before = set(self.snapshots.chains())
            folders = self.snapshots.collect(self._chains_in_use())
            gone = before - set(self.snapshots.chains())
            done += [{"Deleted": name} for name in (image.id, *(chain for chain in reversed(image.chain_ids) if chain in gone))]
        with shielded(_CLEANUP_SECONDS):
            await self._durable()
            await self._delete_files(folders, _blobs(image) if decision.delete else ())
        for _ in decision.untag:
            self._emit("untag", image.id, image.id)
        if decision.delete:
            self._emit("delete", image.id, image.id)
        return done

    async def _delete_files(self, folders: Sequence[str], blobs: Sequence[str]) -> None:
        """After the rows are durably gone. A blob needed again by now stays; another is out of sight before anyone can find it."""
        used = self._blobs_in_use()
        trash = [self.content.discard(blob) for blob in blobs if blob not in used]

        def work() -> None:
            for folder in folders:
                self.snapshots.delete_files(folder)
            for path in filter(None, trash):
                os.unlink(path)

        await blocking("disk", work)

    # -- archives

    async def load(self, stream: AsyncIterator[bytes], quiet: bool = False, platform: str = "") -> AsyncIterator[bytes]:
        """Load a docker-archive or an OCI layout, plain or compressed; yields lines of Docker's progress stream.

        Close the generator (`aclosing`) when leaving early. Raises InvalidParameter, NotFound, Damaged, KnarrError.
        """
        wanted = platforms.parse(platform) if platform else self.host
        loaded: list[ImageRecord] = []
        with self._pins() as pin:
            loader = self._loader(pin, loaded.append)
            async for line in _driven(lambda source: loader.load(source, quiet=quiet, wanted=wanted), stream):
                yield line
        for image in loaded:
            for name in image.repo_tags or (image.id,):
                self._emit("load", image.id, name)

    async def import_(
        self, stream: AsyncIterator[bytes], repo: str = "", tag: str = "", message: str = "", changes: Sequence[str] = (),
        platform: str = "",
    ) -> AsyncIterator[bytes]:  # fmt: skip
        """Make an image of one layer from a root file system's tar, plain or compressed; the last line's status is its identifier.

        `changes` are Dockerfile instructions. Raises InvalidParameter, KnarrError.
        """
        from engine.service.fromtar import importing

        names = _target(repo, tag)
        wanted = platforms.parse(platform) if platform else self.host
        message = message or "Imported from -"  # dockerd's
        loaded: list[ImageRecord] = []
        with self._pins() as pin:
            loader = self._loader(pin, loaded.append)
            async for line in _driven(lambda source: importing(loader, self.content, source, names, message, changes, wanted), stream):
                yield line
        for image in loaded:
            self._emit("import", image.id, names[0].familiar if names else image.id)

    async def from_host(self, wanted: HostImage) -> ImageRecord:
        """Make an image of host programs and what they need: equal files, equal identifier. Raises InvalidParameter, KnarrError."""
        from engine.service.fromhost import building

        names = _target(wanted.tag, "")
        loaded: list[ImageRecord] = []
        with self._pins() as pin:
            loader = self._loader(pin, loaded.append)
            async for _ in _driven(lambda source: building(loader, self.content, wanted, names, self.host), _nothing()):
                pass
        self._emit("import", loaded[0].id, names[0].familiar if names else loaded[0].id)
        return self.store.get(loaded[0].id) or loaded[0]

    def _loader(self, pin: Callable[[Iterator[str]], object], done: Callable[[ImageRecord], object]) -> Loader:
        unpacker = Unpacker(self.snapshots, trio.from_thread.run_sync, self._limits)

        def register(image: ImageRecord, names: list[Reference]) -> list[tuple[str, str]]:
            former = self.store.get(image.id)
            size = self.snapshots.chain_size(image.chain_id) if image.chain_id else 0
            tagged = time.time_ns() if names else former.tagged if former else 0
            moved = self.store.put(msgspec.structs.replace(image, size=size, tagged=tagged), names)
            done(self.store.get(image.id) or image)
            return moved

        return Loader(self.content, unpacker, trio.from_thread.run_sync, register, pin, self._make_durable, self.host)

    # -- start and end

    async def sweep(self) -> _Names:
        """Remove what an interrupted load or delete left: at the start, before anything else runs. Returns what was removed.

        After the database was lost nothing is removed but temporary files: call `recover`; its leftovers go at the start after it.
        """
        removed = await blocking("disk", self.content.sweep)
        if self._db.set_aside or self.store.damaged:
            return removed
        folders = self.snapshots.collect(self._chains_in_use())
        used = self._blobs_in_use()
        blobs = [digest for digest, _ in await blocking("disk", self.content.list) if digest not in used]
        if folders or blobs:
            await self._durable()
            await self._delete_files(folders, blobs)
        return [*removed, *folders, *blobs]

    async def recover(self) -> _Names:
        """After the database was lost: make images again from their blobs, as the mirror names them. Returns what is lost."""
        from engine.service.recover import recovering

        if not self._db.set_aside and not self.store.damaged:
            return []
        try:
            entries = self.store.read_mirror()
        except Damaged as error:
            return [str(error)]
        lost: _Names = []
        with self._pins() as pin:
            loader = self._loader(pin, lambda image: None)
            missing = {id: entry for id, entry in entries.items() if self.store.get(id) is None}
            async for line in _driven(lambda source: recovering(loader, self.content, missing), _nothing()):
                lost.append(line.decode())
        return lost

    # -- inside

    def _pins(self) -> _Pins:
        return _Pins(self._pinned)

    def _chains_in_use(self) -> set[str]:
        return {chain for image in self.store for chain in image.chain_ids} | set(self._pinned)

    def _blobs_in_use(self) -> set[str]:
        return {blob for image in self.store for blob in _blobs(image)} | set(self._pinned)

    def _make_durable(self) -> None:
        """In a worker thread: rows to the disk, and the mirror beside them."""
        self.store.write_mirror(trio.from_thread.run_sync(self.store.mirror))
        self._db.sync()

    async def _durable(self) -> None:
        await blocking("disk", self._make_durable)

    def _emit(self, action: str, id: str, name: str) -> None:
        if self._events is None:
            return
        from engine.spec.event import Event

        image = self.store.get(id)
        labels = (image.config.defaults.labels or {}) if image is not None else {}
        self._events.publish(Event.make("image", action, id, {**labels, "name": name}))


class _Pins:
    """What one load needs while it runs: kept from collection until the block ends."""

    def __init__(self, pinned: Counter[str]) -> None:
        self._pinned = pinned
        self._own: list[str] = []

    def __enter__(self) -> Callable[[Iterator[str]], object]:
        return self._add

    def _add(self, names: Iterator[str]) -> None:
        new = list(names)
        self._own += new
        self._pinned.update(new)

    def __exit__(self, *_: object) -> None:
        self._pinned.subtract(self._own)
        for name in self._own:
            if not self._pinned[name]:
                del self._pinned[name]


def _blobs(image: ImageRecord) -> tuple[str, ...]:
    return (image.id, image.manifest, *(layer.digest for layer in image.layers))


def _parse(text: str) -> Reference:
    if not text:
        raise InvalidParameter("invalid reference format")
    return references.parse(text)


def _target(repository: str, tag: str) -> list[Reference]:
    """The name a new image gets: none for an empty repository."""
    if not repository:
        return []
    reference = _parse(repository)
    if reference.digest:
        raise InvalidParameter("cannot import digest reference")
    return [reference.with_tag(tag) if tag else reference.with_default_tag()]


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


async def _driven(make: Callable[[Callable[[], bytes]], Iterator[bytes]], stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Run a generator in worker threads, one step at a time; it pulls from `stream` through the event loop. No task of its own."""

    async def pull() -> bytes:
        pieces: list[bytes] = []
        size = 0
        while size < _HOP and (piece := await anext(stream, b"")):
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces)

    def source() -> bytes:
        trio.from_thread.check_cancelled()
        return trio.from_thread.run(pull)

    steps: Iterable[bytes] = make(source)
    iterator = iter(steps)

    def step() -> bytes | None:
        trio.from_thread.check_cancelled()
        try:
            return next(iterator, None)
        except OSError as error:
            hint = "free some space on the file system of --data-root" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise KnarrError(f"storing an image: {error.strerror or error}", hint=hint) from error

    try:
        while (line := await blocking("network", step)) is not None:
            yield line
    finally:
        with shielded(_CLEANUP_SECONDS):
            await blocking("disk", iterator.close)  # type: ignore[attr-defined]
