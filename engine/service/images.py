"""Images: look them up, name them, register them, delete. Owns what refers to what, so that nothing in use is collected.

Everything that blocks runs in worker threads; the stores' memory and the database are touched on the event loop's thread alone.
"""

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec
import trio

from engine.aio.blocking import blocking
from engine.aio.scopes import shielded
from engine.errors import Conflict, InvalidParameter, NotFound
from engine.service import imagedelete, imagefilter
from engine.spec import platform as platforms
from engine.spec import reference as references
from engine.spec.digest import is_digest, short
from engine.spec.platform import Platform
from engine.spec.reference import Reference
from engine.store.content import Content
from engine.store.db import Database
from engine.store.images import ImageRecord, ImageStore, Index
from engine.store.layout import Layout
from engine.store.leases import Leases
from engine.store.snapshots import Snapshots
from engine.store.unpack import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from engine.service.layerblobs import LayerBlobs
    from engine.spec.event import Event

_CLEANUP_SECONDS = 60.0


# Inside a class with a method `list` the word no longer names the type.
_Records = list[ImageRecord]
_Names = list[str]
_Done = list[dict[str, str]]
_Bytes = int
_Moved = list[tuple[str, str]]


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
        self.leases = Leases(db)
        # Others that keep blobs in the same store: each says which, on the event loop's thread.
        self.keepers: list[Callable[[], set[str]]] = []
        self.on_stored: Callable[[], object] = lambda: None
        self._db = db
        self._events = events
        self._users = users
        self.limits = limits
        # Chains and blobs that work under way is about to refer to.
        self._pinned: Counter[str] = Counter()

    @functools.cached_property
    def layer_blobs(self) -> LayerBlobs:
        """Blobs of layers that were built, made when they are wanted."""
        from engine.service.layerblobs import LayerBlobs

        return LayerBlobs(self)

    # -- look-ups

    def get(self, ref_or_id: str, platform: str = "") -> ImageRecord:
        """By name, identifier or unique beginning of an identifier. Raises NotFound in Docker's words, InvalidParameter.

        With `platform` (`os/arch[/variant]`) the image for it, of those that the name's index has; NotFound when there is none.
        """
        image, reference = self.find(ref_or_id)
        if not platform or _is_for(image, platform):
            return image
        for other in self.variants(reference) if reference is not None else ():
            if _is_for(other, platform):
                return other
        raise NotFound(
            f"image with reference {ref_or_id} was found but does not match the specified platform: wanted {platform}, actual: "
            f"{image.config.platform}"
        )

    def variants(self, reference: Reference) -> _Records:
        """The images that are here of those that a full name stands for: several when it is an index. Empty for no such name."""
        target = self.store.target(reference)
        return self.store.members(target) if target else []

    def find(self, asked: str) -> tuple[ImageRecord, Reference | None]:
        """The image, and the name that was meant when it was not an identifier. Raises as `get`."""
        full = asked if asked.startswith("sha256:") else f"sha256:{asked}"
        if is_digest(full):
            exact = self.store.get(full)
            if exact is None:
                raise NotFound(f"No such image: {asked}")
            return exact, None
        prefix = asked.removeprefix("sha256:")
        reference = _parse(asked) if not asked.startswith("sha256:") else None
        full_name = _meant(reference) if reference is not None else None
        named = self.store.named(full_name) if full_name is not None else None
        if named is not None:
            return named, full_name
        found = self.store.by_prefix(prefix) if prefix and all(char in "0123456789abcdef" for char in prefix) else []
        if len(found) == 1:
            return found[0], None
        raise NotFound(f"No such image: {reference.with_default_tag().familiar if reference is not None else asked}")

    def ids(self, asked: str) -> set[str]:
        """The identifiers of the images, for all platforms, that a name or identifier stands for; none when there is no such."""
        try:
            image, reference = self.find(asked)
        except (NotFound, InvalidParameter):
            return set()
        return {image.id, *(one.id for one in (self.variants(reference) if reference is not None else ()))}

    def count(self) -> int:
        """How many there are."""
        return len(self.store)

    def list(self, filters: imagefilter.Filters | None = None, *, all: bool = False) -> _Records:
        """Newest first; Docker's filters: before, dangling, label, reference, since, until. Raises InvalidParameter, NotFound."""
        grouped = self.store.grouped()
        shown = (image for image in self.store if image.repo_tags or image.repo_digests or image.id not in grouped)
        found = sorted(shown, key=lambda image: image.created, reverse=True)
        return found if filters is None else imagefilter.apply(found, filters, self.get)

    def layer_sizes(self, image: ImageRecord) -> tuple[int, ...]:
        """Bytes of the files of each layer, bottom first; 0 for one that is not unpacked."""
        return tuple(self.snapshots.usage(chain)[0] if self.snapshots.has(chain) else 0 for chain in image.chain_ids)

    def layer_folders(self, image: ImageRecord) -> tuple[str, ...]:
        """Host folders of the layers, topmost first; none for an image that is not unpacked."""
        return self.snapshots.lowers(image.chain_id) if image.chain_id and self.snapshots.has(image.chain_id) else ()

    # -- names

    async def tag(self, source: str, repository: str, tag: str = "") -> None:
        """Give an image another name. Raises NotFound, InvalidParameter."""
        image, reference = self.find(source)
        target = _parse(repository)
        if target.digest:
            raise InvalidParameter("refusing to create a tag with a digest reference")
        if target.familiar_name == "sha256":
            raise InvalidParameter("refusing to create an ambiguous tag using digest algorithm as name")
        target = target.with_tag(tag) if tag else target.with_default_tag()
        stands_for = self.store.target(reference) if reference is not None else ""
        index = self.store.index(stands_for)
        self.store.put(msgspec.structs.replace(image, tagged=time.time_ns()), [target], index)
        await self.durable()
        self.emit("tag", image.id, target.familiar)

    async def delete(self, asked: str, force: bool = False, noprune: bool = False, platforms: Sequence[str] = ()) -> _Done:
        """Remove a name, and the image with its last one: Docker's list of {"Untagged": …}, {"Deleted": …}. Raises NotFound, Conflict."""
        return (await self.remove(asked, force, platforms))[0]

    async def remove(self, asked: str, force: bool = False, platforms: Sequence[str] = ()) -> tuple[_Done, _Bytes]:
        """The same, and the bytes of files and blobs that this freed.

        With `platforms` only the images for those are removed of what the name's index has. (`noprune` of `delete` changes nothing: an
        image has no parents here that are images.)
        """
        image, reference = self.find(asked)
        needed = self.blobs_in_use()
        untag: tuple[Reference, ...] = ()
        if platforms:
            doomed = self._of_platforms(asked, image, reference, platforms, force)
        else:
            decision = imagedelete.decide(image.id, self.store.names(image.id), asked, reference, self._users(image.id), force=force)
            untag = decision.untag
            targets = {self.store.target(name) for name in untag}
            group = [member for target in targets for member in self.store.members(target)]
            self.store.unname(*untag)
            doomed = [image] if decision.delete else []
            doomed += [member for member in group if member.id != image.id and self._is_loose(member.id)]
        sizes = self.snapshot_sizes()
        self.store.delete(*(one.id for one in doomed))
        folders = self.snapshots.collect(self.chains_in_use())
        gone = sizes.keys() - set(self.snapshots.chains())
        freed = sum(sizes[chain] for chain in gone)
        deleted = {name: None for one in doomed for name in (one.id, *(chain for chain in reversed(one.chain_ids) if chain in gone))}
        done = [{"Untagged": name.familiar} for name in untag] + [{"Deleted": name} for name in deleted]
        with shielded(_CLEANUP_SECONDS):
            await self.durable()
            freed += await self.delete_files(folders, needed - self.blobs_in_use())
        # As dockerd: an event for each name of an identifier, but one for a name with all its digests.
        for _ in untag if reference is None else untag[:1]:
            self._publish("untag", image.id, {**(image.config.defaults.labels or {}), "name": image.id})
        for one in doomed:
            self.emit("delete", one.id, one.id)
        return done, freed

    def snapshot_sizes(self) -> dict[str, int]:
        """Bytes of the files of every layer that is unpacked."""
        return {chain: self.snapshots.usage(chain)[0] for chain in self.snapshots.chains()}

    def users(self, image: ImageRecord) -> Sequence[imagedelete.User]:
        """The containers made from an image."""
        return self._users(image.id)

    def _is_loose(self, id: str) -> bool:
        """Whether nothing names an image, no named index has it, and no container was made of it."""
        return not self.store.names(id) and id not in self.store.grouped() and not self._users(id)

    def _of_platforms(
        self, asked: str, image: ImageRecord, reference: Reference | None, platforms: Sequence[str], force: bool
    ) -> _Records:  # fmt: skip
        """The images for `platforms`, of which names that stood for them stand for another one from now on. Raises NotFound, Conflict."""
        members = self.variants(reference) if reference is not None else [image]
        doomed: _Records = []
        for wanted in platforms:
            found = [member for member in members if _is_for(member, wanted)]
            if not found:
                raise NotFound(f"no image for platform {wanted} in {asked}")
            doomed += found
        for one in doomed:
            users = [user for user in self._users(one.id) if user.state.running or not force]
            if users:
                raise Conflict(f"conflict: unable to delete {short(one.id)} - container {short(users[0].id)} is using its image")
        left = [member for member in members if member not in doomed]
        for one in doomed if left else ():
            for name in self.store.names(one.id):
                self.store.tag(left[0].id, name, self.store.target(name) if self.store.index(self.store.target(name)) else "")
        return doomed

    async def delete_files(self, folders: Sequence[str], blobs: Iterable[str]) -> int:
        """After the rows are durably gone; the bytes of the blobs. A blob needed again by now stays; another is out of sight before
        anyone can find it."""
        used = self.blobs_in_use()
        # Among what was in use are also names of layers whose digests nobody knows yet.
        trash = [path for blob in blobs if blob not in used and is_digest(blob) and (path := self.content.discard(blob))]

        def work() -> int:
            freed = 0
            for folder in folders:
                self.snapshots.delete_files(folder)
            for path in trash:
                freed += os.stat(path).st_size
                os.unlink(path)
            return freed

        return await blocking("disk", work)

    async def release(self, blobs: Iterable[str]) -> None:
        """Give up blobs and layers that a piece of work brought and that nothing needs."""
        folders = self.snapshots.collect(self.chains_in_use())
        with shielded(_CLEANUP_SECONDS):
            await self.durable()
            await self.delete_files(folders, blobs)

    async def collect(self) -> tuple[int, int]:
        """Mark and sweep: remove every snapshot and blob that nothing needs, leases that are over and downloads that were abandoned; how
        many blobs, and the bytes of blobs and layers.

        What counts as needed: images and names, leases, pins of work under way, and what the `keepers` say.
        """
        listed = [digest for digest, _ in await blocking("disk", self.content.list)]
        sizes = self.snapshot_sizes()
        folders = self.snapshots.collect(self.chains_in_use())
        freed = sum(sizes.values()) - sum(self.snapshot_sizes().values())
        used = self.blobs_in_use()
        blobs = [digest for digest in listed if digest not in used]
        await blocking("disk", self.content.tidy, used)
        if not folders and not blobs:
            return 0, 0
        with shielded(_CLEANUP_SECONDS):
            await self.durable()
            freed += await self.delete_files(folders, blobs)
        return len(blobs), freed

    def register(
        self, image: ImageRecord, names: Sequence[Reference] = (), index: Index | None = None
    ) -> _Moved:  # fmt: skip
        """Write an image and its names; (name, former image) for names that were moved. Not durable before `durable`.

        Where the names stand for an index, they stand here for the image of it that this host runs best, of those that are here.
        """
        former = self.store.get(image.id)
        unpacked = not image.chain_id or self.snapshots.has(image.chain_id)
        size = self.snapshots.chain_size(image.chain_id) if image.chain_id and unpacked else sum(layer.size for layer in image.layers)
        tagged = time.time_ns() if names else former.tagged if former else 0
        default = ""
        if index is not None:
            digests = {one.digest for one in index.manifests}
            here = [image, *(other for other in self.store if other.manifest in digests and other.id != image.id)]
            best = platforms.best([other.config.platform for other in here], self.host)
            default = here[best].id if best is not None else ""
        self.on_stored()
        return self.store.put(msgspec.structs.replace(image, size=size, tagged=tagged), names, index, default)

    # -- start and end

    async def sweep(self) -> _Names:
        """Remove what an interrupted load or delete left: at the start, before anything else runs. Returns what was removed.

        After the database was lost nothing is removed but temporary files; the leftovers go at the start after `Archives.recover`.
        """
        removed = await blocking("disk", self.content.sweep)
        if self.incomplete:
            return removed
        before = set(self.snapshots.chains())
        await self.collect()
        return [*removed, *(before - set(self.snapshots.chains()))]

    @property
    def incomplete(self) -> bool:
        """Whether the database was lost, or rows of it: `Archives.recover` brings images back."""
        return bool(self._db.set_aside or self._db.fresh or self.store.damaged)

    # -- inside

    def pins(self) -> Pins:
        """What one piece of work needs while it runs: `with images.pins() as pin: pin([digest])`."""
        return Pins(self._pinned)

    def chains_in_use(self) -> set[str]:
        """Every layer that must stay: of images, under leases, and of work under way."""
        return {chain for image in self.store for chain in image.chain_ids} | set(self._pinned) | self.leases.held()

    def blobs_in_use(self) -> set[str]:
        """Every blob that must stay: of images and names, under leases, of work under way, and of the `keepers`."""
        return self.store.blobs().union(self._pinned, self.leases.held(), *(keeper() for keeper in self.keepers))

    def make_durable(self) -> None:
        """In a worker thread: rows to the disk, and the mirror beside them."""
        self.store.write_mirror(lambda: trio.from_thread.run_sync(self.store.mirror))
        self._db.sync()

    async def durable(self) -> None:
        """Return when everything written so far survives a power cut."""
        await blocking("disk", self.make_durable)

    def emit(self, action: str, id: str, name: str, actor: str = "") -> None:
        """Publish an event about an image; `actor` is what it is about when that is not the identifier."""
        image = self.store.get(id)
        labels = (image.config.defaults.labels or {}) if image is not None else {}
        self._publish(action, actor or id, {**labels, "name": name})

    def emit_pruned(self, size: int) -> None:
        """Publish that a prune, or a collection, freed so many bytes."""
        self._publish("prune", "", {"reclaimed": str(size)})

    def _publish(self, action: str, id: str, attributes: dict[str, str]) -> None:
        if self._events is not None:
            from engine.spec.event import Event

            self._events.publish(Event.make("image", action, id, attributes))


class Pins:
    """What one load needs while it runs: kept from collection until the block ends."""

    def __init__(self, pinned: Counter[str]) -> None:
        self._pinned = pinned
        self._own: list[str] = []

    def __enter__(self) -> Callable[[Iterable[str]], object]:
        return self.add

    def add(self, names: Iterable[str]) -> None:
        """Keep these too, until the block ends."""
        new = list(names)
        self._own += new
        self._pinned.update(new)

    def __exit__(self, *_: object) -> None:
        self._pinned.subtract(self._own)
        for name in self._own:
            if not self._pinned[name]:
                del self._pinned[name]


def _is_for(image: ImageRecord, platform: str) -> bool:
    """Whether an image is for `os/arch[/variant]`, as far as that is said."""
    wanted, have = platforms.parse(platform), image.config.platform.normalised()
    return (
        wanted.os == have.os and wanted.architecture in ("", have.architecture) and wanted.variant in ("", have.variant)
    )  # fmt: skip


def _meant(reference: Reference) -> Reference:
    """The name to look for: `latest` without a tag, and of `name:tag@digest` the digest alone."""
    return reference.with_digest(reference.digest) if reference.digest else reference.with_default_tag()


def _parse(text: str) -> Reference:
    if not text:
        raise InvalidParameter("invalid reference format")
    return references.parse(text)
