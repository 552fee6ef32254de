"""Records of images and their names. Owns the tables `images`, `image_names`, `image_indexes` and `image_use`, their copy in memory for
every look-up, and the mirror.

A name stands for one image, and remembers what it stands for in a registry: that image's manifest, or the index that has it among others
(its target). Images of other platforms that the same index names are found through it. The mirror, `content/images.json`, says which
manifest each name stands for. It is what images are rebuilt from when the database is lost. Does not read layers and decides nothing about
what may be deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator

import msgspec

from engine.errors import Damaged
from engine.spec import image as spec
from engine.spec.digest import sha256
from engine.spec.reference import Reference, parse
from engine.store.db import Database
from engine.store.layout import Layout


class Layer(msgspec.Struct, frozen=True):
    """One layer as stored: the blob and what it is when unpacked. `size` is the blob's, in bytes."""

    digest: str
    size: int
    media_type: str
    diff_id: str
    chain_id: str


class Index(msgspec.Struct, frozen=True):
    """An index as it came. `manifests` is what its bytes say; `held` are blobs beside images that belong to it (attestations, say)."""

    digest: str
    media_type: str
    raw: bytes
    manifests: tuple[spec.Descriptor, ...]
    held: tuple[str, ...] = ()

    @classmethod
    def of(cls, raw: bytes, media_type: str = "", held: Iterable[str] = ()) -> Index:
        """From an index's bytes. Raises msgspec.MsgspecError."""
        decoded = spec.decode_index(raw)
        return cls(sha256(raw), media_type or decoded.media_type or spec.MEDIA_INDEX, raw, decoded.manifests or (), tuple(held))


class _Name(msgspec.Struct, frozen=True):
    image: str
    target: str = ""


class _Row(msgspec.Struct, frozen=True):
    manifest: str
    manifest_size: int
    layers: tuple[Layer, ...]
    size: int
    tagged: int = 0
    loaded: int = 0
    manifest_type: str = ""


class ImageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One image. `id` is the digest of its configuration (what Docker's classic store shows), `raw` the configuration's bytes.

    `manifest_type` is the manifest's media type as it came, "" when that is not known. `size` is the bytes of all files of all layers;
    `tagged` and `loaded` are Unix times in nanoseconds (0: never).
    `repo_tags` and `repo_digests` are in Docker's familiar form: `busybox:latest`, `busybox@sha256:…`.
    """

    id: str
    manifest: str
    manifest_size: int
    config: spec.ImageConfig
    raw: bytes
    layers: tuple[Layer, ...]
    size: int
    tagged: int = 0
    loaded: int = 0
    manifest_type: str = ""
    repo_tags: tuple[str, ...] = ()
    repo_digests: tuple[str, ...] = ()

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """Digests of the uncompressed layers, bottom first."""
        return tuple(layer.diff_id for layer in self.layers)

    @property
    def blobs(self) -> tuple[str, ...]:
        """The digests of configuration, manifest and layers."""
        return (self.id, self.manifest, *(layer.digest for layer in self.layers))

    @property
    def chain_ids(self) -> tuple[str, ...]:
        """Names of the snapshots, bottom first."""
        return tuple(layer.chain_id for layer in self.layers)

    @property
    def chain_id(self) -> str | None:
        """The topmost snapshot: what a container's own is prepared on. None for an image without layers."""
        return self.layers[-1].chain_id if self.layers else None

    @property
    def created(self) -> str:
        """RFC 3339 text, or "" when the configuration does not say."""
        return self.config.created or ""

    @property
    def os(self) -> str:
        """Operating system."""
        return self.config.os or "linux"

    @property
    def architecture(self) -> str:
        """Go's name of the architecture."""
        return self.config.architecture

    @property
    def variant(self) -> str:
        """Variant of the architecture, or ""."""
        return self.config.variant

    @property
    def history(self) -> tuple[spec.History, ...]:
        """How it was made, oldest first."""
        return self.config.history or ()


class MirrorEntry(msgspec.Struct, frozen=True):
    """What the mirror keeps of an image: its manifest, its names, and the index that a name stands for, where it is one."""

    manifest: str
    names: tuple[str, ...] = ()
    targets: dict[str, str] = {}


_encode_row = msgspec.msgpack.Encoder().encode
_decode_row = msgspec.msgpack.Decoder(_Row).decode
_PUT_IMAGE = "INSERT INTO images VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET record = excluded.record"
_PUT_NAME = "INSERT INTO image_names VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET image = excluded.image, target = excluded.target"
_PUT_INDEX = "INSERT OR REPLACE INTO image_indexes VALUES (?, ?, ?, ?)"
_DROP_INDEXES = "DELETE FROM image_indexes WHERE digest NOT IN (SELECT target FROM image_names)"
_Mirror = dict[str, MirrorEntry]


class ImageStore:
    """Images of one data root. Everything is for the event-loop thread; writes are one transaction of some 50 µs each.

    `damaged` lists identifiers whose rows could not be read; they were left out, so that one of them keeps nothing else from working.
    """

    def __init__(self, layout: Layout, db: Database) -> None:
        self._db = db
        self._mirror = layout.image_mirror
        self._temporary = layout.ingest  # where the next start removes what a crash left
        self._images: dict[str, ImageRecord] = {}
        self._by_manifest: dict[str, str] = {}
        self._names: dict[str, _Name] = {}
        self._indexes: dict[str, Index] = {}
        self._used: dict[str, int] = {}
        self.damaged: list[str] = []
        self._mirrored = b""
        for id, record, config in db.query("SELECT id, record, config FROM images"):
            self._load(str(id), record, config)  # type: ignore[arg-type]
        for digest, media_type, raw, held in db.query("SELECT digest, media_type, raw, held FROM image_indexes"):
            self._load_index(str(digest), str(media_type), raw, str(held))  # type: ignore[arg-type]
        for name, id, target in db.query("SELECT name, image, target FROM image_names"):
            if id in self._images:
                self._names[str(name)] = _Name(str(id), str(target))
        for id, at in db.query("SELECT image, at FROM image_use"):
            self._used[str(id)] = int(at)  # type: ignore[call-overload]
        for id in self._images:
            self._refresh(id)

    def _load(self, id: str, record: bytes, config: bytes) -> None:
        try:
            image = self._images[id] = _record(id, _decode_row(bytes(record)), bytes(config))
            self._by_manifest[image.manifest] = id
        except msgspec.MsgspecError:
            self.damaged.append(id)

    def _load_index(self, digest: str, media_type: str, raw: bytes, held: str) -> None:
        try:
            self._indexes[digest] = Index.of(bytes(raw), media_type, held.split())
        except msgspec.MsgspecError:
            self.damaged.append(digest)

    # -- look-ups

    def __iter__(self) -> Iterator[ImageRecord]:
        return iter(list(self._images.values()))

    def __len__(self) -> int:
        return len(self._images)

    def get(self, id: str) -> ImageRecord | None:
        """By full identifier."""
        return self._images.get(id)

    def named(self, reference: Reference) -> ImageRecord | None:
        """By a full name, with tag or digest."""
        name = self._names.get(str(reference))
        return self._images.get(name.image) if name is not None else None

    def by_manifest(self, digest: str) -> ImageRecord | None:
        """By the digest of its manifest."""
        return self._images.get(self._by_manifest.get(digest, ""))

    def target(self, reference: Reference) -> str:
        """The digest of what a name stands for in a registry, an index or a manifest; "" when there is no such name."""
        name = self._names.get(str(reference))
        if name is None:
            return ""
        return name.target or self._images[name.image].manifest

    def index(self, digest: str) -> Index | None:
        """An index that some name stands for."""
        return self._indexes.get(digest)

    def members(self, target: str) -> list[ImageRecord]:
        """The images that are here of those that an index names, in its order; for a manifest's digest its image."""
        index = self._indexes.get(target)
        digests = [one.digest for one in index.manifests] if index is not None else [target]
        return [image for digest in digests if (image := self.by_manifest(digest)) is not None]

    def blobs(self) -> set[str]:
        """Every blob that an image, a name or an index needs."""
        used = {name.target for name in self._names.values() if name.target}
        for index in self._indexes.values():
            used.update(index.held)
        for image in self._images.values():
            used.update(image.blobs)
        return used

    def grouped(self) -> set[str]:
        """Images that an index with a name has among others: they need no name of their own."""
        return {image.id for digest in self._indexes for image in self.members(digest)}

    def all_names(self) -> list[Reference]:
        """Every name, in order."""
        return [parse(name) for name in sorted(self._names)]

    def by_prefix(self, prefix: str) -> list[ImageRecord]:
        """Images whose identifier's hexadecimal part begins with `prefix`."""
        wanted = "sha256:" + prefix
        return [image for id, image in self._images.items() if id.startswith(wanted)]

    def names(self, id: str) -> list[Reference]:
        """The names of an image, in order."""
        return [parse(text) for text, name in sorted(self._names.items()) if name.image == id]

    def used(self, id: str) -> int:
        """When a container was last made of an image, or it was last taken in, Unix nanoseconds; 0 when that is not known."""
        image = self._images.get(id)
        return max(self._used.get(id, 0), image.loaded if image is not None else 0)

    def lost_names(self) -> list[tuple[str, str]]:
        """(name, image) of every row whose image is not here."""
        rows = self._db.query("SELECT name, image FROM image_names")
        return [(str(name), str(image)) for name, image in rows if image not in self._images]

    def lost_records(self) -> list[str]:
        """Identifiers of images whose rows cannot be read, and that did not come again since."""
        return [id for id in self.damaged if id not in self._images and id not in self._indexes]

    # -- changes

    def forget(self, names: Iterable[str], ids: Iterable[str] = ()) -> None:
        """Delete rows of names and images that lead nowhere."""
        with self._db.transaction() as cursor:
            cursor.executemany("DELETE FROM image_names WHERE name = ?", [(name,) for name in names])
            for id in ids:
                cursor.execute("DELETE FROM images WHERE id = ?", (id,))
                cursor.execute("DELETE FROM image_indexes WHERE digest = ?", (id,))
                self.damaged.remove(id)

    def indexes(self) -> list[Index]:
        """Every index that some name stands for."""
        return list(self._indexes.values())

    def put(
        self, image: ImageRecord, names: Iterable[Reference] = (), index: Index | None = None, default: str = ""
    ) -> list[tuple[str, str]]:
        """Insert or replace an image and give it names; returns (name, former image) for names that stood for another one.

        With `index` that is what the names stand for in a registry, and `default` (the identifier of another image of it) may be what
        they stand for here. Raises sqlite3.Error.
        """
        row = _Row(image.manifest, image.manifest_size, image.layers, image.size, image.tagged, image.loaded, image.manifest_type)
        name = _Name(default or image.id, index.digest if index is not None else "")
        moved: list[tuple[str, str]] = []
        with self._db.transaction() as cursor:
            cursor.execute(_PUT_IMAGE, (image.id, _encode_row(row), image.raw))
            if index is not None:
                kept = self._indexes.get(index.digest)
                index = msgspec.structs.replace(index, held=tuple({*index.held, *(kept.held if kept else ())}))
                cursor.execute(_PUT_INDEX, (index.digest, index.media_type, index.raw, " ".join(index.held)))
            for text in map(str, names):
                cursor.execute(_PUT_NAME, (text, name.image, name.target))
                moved.append((text, self._names[text].image if text in self._names else ""))
            cursor.execute(_DROP_INDEXES)
        former = self._images.get(image.id)
        if former is not None:
            self._by_manifest.pop(former.manifest, None)
        self._images[image.id] = image
        self._by_manifest[image.manifest] = image.id
        for text, _ in moved:
            self._names[text] = name
        if index is not None:
            self._indexes[index.digest] = index
        self._drop_indexes()
        for id in {image.id, name.image, *(old for _, old in moved)}:
            self._refresh(id)
        return [(text, old) for text, old in moved if old and old != name.image]

    def tag(self, id: str, name: Reference, target: str = "") -> None:
        """Give an image that is here one more name, which stands for `target` (an index that is here, or "")."""
        with self._db.transaction() as cursor:
            cursor.execute(_PUT_NAME, (str(name), id, target))
            cursor.execute(_DROP_INDEXES)
        former = self._names.get(str(name))
        self._names[str(name)] = _Name(id, target)
        self._drop_indexes()
        for changed in {id, former.image if former is not None else id}:
            self._refresh(changed)

    def unname(self, *names: Reference) -> None:
        """Take names away."""
        with self._db.transaction() as cursor:
            cursor.executemany("DELETE FROM image_names WHERE name = ?", [(str(name),) for name in names])
            cursor.execute(_DROP_INDEXES)
        gone = {former.image for name in names if (former := self._names.pop(str(name), None)) is not None}
        self._drop_indexes()
        for id in gone:
            self._refresh(id)

    def delete(self, *ids: str) -> None:
        """Remove images with their names."""
        with self._db.transaction() as cursor:
            for id in ids:
                cursor.execute("DELETE FROM image_names WHERE image = ?", (id,))
                cursor.execute("DELETE FROM images WHERE id = ?", (id,))
                cursor.execute("DELETE FROM image_use WHERE image = ?", (id,))
            cursor.execute(_DROP_INDEXES)
        for id in ids:
            image = self._images.pop(id, None)
            if image is not None:
                self._by_manifest.pop(image.manifest, None)
            self._used.pop(id, None)
        gone = set(ids)
        self._names = {text: name for text, name in self._names.items() if name.image not in gone}
        self._drop_indexes()

    def touch(self, id: str, at: int) -> None:
        """An image was used at `at`, Unix nanoseconds. In memory alone: `write_use` puts it into a transaction."""
        self._used[id] = max(at, self._used.get(id, 0))

    def write_use(self, id: str, cursor: sqlite3.Cursor) -> None:
        """Store when an image was last used, in an open transaction."""
        if id in self._images and id in self._used:
            cursor.execute("INSERT OR REPLACE INTO image_use VALUES (?, ?)", (id, self._used[id]))

    def _drop_indexes(self) -> None:
        used = {name.target for name in self._names.values()}
        self._indexes = {digest: index for digest, index in self._indexes.items() if digest in used}

    def _refresh(self, id: str) -> None:
        image = self._images.get(id)
        if image is None:
            return
        names = self.names(id)
        tags = tuple(name.familiar for name in names if not name.digest)
        digests = tuple(name.familiar for name in names if name.digest)
        self._images[id] = msgspec.structs.replace(image, repo_tags=tags, repo_digests=digests)

    # -- the mirror

    def mirror(self) -> bytes:
        """The mirror's content as of now."""
        names: dict[str, list[str]] = {}
        for text, name in self._names.items():
            names.setdefault(name.image, []).append(text)
        entries: _Mirror = {}
        for id, image in self._images.items():
            own = tuple(sorted(names.get(id, ())))
            targets = {text: target for text in own if (target := self._names[text].target)}
            entries[id] = MirrorEntry(image.manifest, own, targets)
        return msgspec.json.encode(entries)

    def write_mirror(self, current: Callable[[], bytes]) -> None:
        """Replace the mirror when it has changed; `current` gives its content. Blocks; any thread, one after the other, so that the last
        one written is the latest. Synced before it is renamed: a power cut must not leave an empty one in the place of the one before."""
        folder = os.open(os.path.dirname(self._mirror), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            content = current()
            if content != self._mirrored:
                self._replace_mirror(content)
        finally:
            os.close(folder)

    def _replace_mirror(self, content: bytes) -> None:
        temporary = f"{self._temporary}/{os.getpid()}-mirror-{time.monotonic_ns()}"
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._mirror)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        self._mirrored = content

    def read_mirror(self) -> dict[str, MirrorEntry]:
        """The mirror, by image identifier; empty when there is none. Raises Damaged."""
        try:
            with open(self._mirror, "rb") as file:
                return msgspec.json.decode(file.read(), type=_Mirror)
        except FileNotFoundError:
            return {}
        except msgspec.MsgspecError as error:
            raise Damaged(f"reading {self._mirror}: {error}")


def _record(id: str, row: _Row, raw: bytes) -> ImageRecord:
    return ImageRecord(
        id=id, manifest=row.manifest, manifest_size=row.manifest_size, config=spec.decode_config(raw), raw=raw, layers=row.layers,
        size=row.size, tagged=row.tagged, loaded=row.loaded, manifest_type=row.manifest_type,
    )  # fmt: skip
