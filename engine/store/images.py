"""Records of images and their names. Owns the tables `images` and `image_names`, their copy in memory for every look-up, and the mirror.

The mirror, `content/images.json`, says which manifest each name stands for. It is what images are rebuilt from when the database is lost.
Does not read layers and decides nothing about what may be deleted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator

import msgspec

from engine.errors import Damaged
from engine.spec import image as spec
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


class _Row(msgspec.Struct, frozen=True):
    manifest: str
    manifest_size: int
    layers: tuple[Layer, ...]
    size: int
    tagged: int = 0
    loaded: int = 0


class ImageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One image. `id` is the digest of its configuration (what Docker's classic store shows), `raw` the configuration's bytes.

    `size` is the bytes of all files of all layers; `tagged` and `loaded` are Unix times in nanoseconds (0: never).
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
    repo_tags: tuple[str, ...] = ()
    repo_digests: tuple[str, ...] = ()

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """Digests of the uncompressed layers, bottom first."""
        return tuple(layer.diff_id for layer in self.layers)

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
    """What the mirror keeps of an image."""

    manifest: str
    names: tuple[str, ...] = ()


_encode_row = msgspec.msgpack.Encoder().encode
_decode_row = msgspec.msgpack.Decoder(_Row).decode
_PUT_IMAGE = "INSERT INTO images VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET record = excluded.record"
_PUT_NAME = "INSERT INTO image_names VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET image = excluded.image"
_Mirror = dict[str, MirrorEntry]


class ImageStore:
    """Images of one data root. Everything is for the event-loop thread; writes are one transaction of some 50 µs each.

    `damaged` lists identifiers whose rows could not be read; they were left out, so that one of them keeps nothing else from working.
    """

    def __init__(self, layout: Layout, db: Database) -> None:
        self._db = db
        self._mirror = layout.image_mirror
        self._images: dict[str, ImageRecord] = {}
        self._names: dict[str, str] = {}
        self.damaged: list[str] = []
        for id, record, config in db.query("SELECT id, record, config FROM images"):
            self._load(str(id), record, config)  # type: ignore[arg-type]
        for name, id in db.query("SELECT name, image FROM image_names"):
            if id in self._images:
                self._names[str(name)] = str(id)
        for id in self._images:
            self._refresh(id)

    def _load(self, id: str, record: bytes, config: bytes) -> None:
        try:
            self._images[id] = _record(id, _decode_row(bytes(record)), bytes(config))
        except msgspec.MsgspecError:
            self.damaged.append(id)

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
        id = self._names.get(str(reference))
        return self._images.get(id) if id is not None else None

    def by_prefix(self, prefix: str) -> list[ImageRecord]:
        """Images whose identifier's hexadecimal part begins with `prefix`."""
        wanted = "sha256:" + prefix
        return [image for id, image in self._images.items() if id.startswith(wanted)]

    def names(self, id: str) -> list[Reference]:
        """The names of an image, in order."""
        return [parse(name) for name, image in sorted(self._names.items()) if image == id]

    # -- changes

    def put(self, image: ImageRecord, names: Iterable[Reference] = ()) -> list[tuple[str, str]]:
        """Insert or replace an image and give it names; returns (name, former image) for names that stood for another one."""
        row = _Row(image.manifest, image.manifest_size, image.layers, image.size, image.tagged, image.loaded)
        moved: list[tuple[str, str]] = []
        with self._db.transaction() as cursor:
            cursor.execute(_PUT_IMAGE, (image.id, _encode_row(row), image.raw))
            for name in map(str, names):
                cursor.execute(_PUT_NAME, (name, image.id))
                moved.append((name, self._names.get(name, "")))
        self._images[image.id] = image
        for name, _ in moved:
            self._names[name] = image.id
        for id in {image.id, *(old for _, old in moved)}:
            self._refresh(id)
        return [(name, old) for name, old in moved if old and old != image.id]

    def unname(self, name: Reference) -> None:
        """Take a name away."""
        with self._db.transaction() as cursor:
            cursor.execute("DELETE FROM image_names WHERE name = ?", (str(name),))
        self._refresh(self._names.pop(str(name), ""))

    def delete(self, id: str) -> None:
        """Remove an image with its names."""
        with self._db.transaction() as cursor:
            cursor.execute("DELETE FROM image_names WHERE image = ?", (id,))
            cursor.execute("DELETE FROM images WHERE id = ?", (id,))
        self._images.pop(id, None)
        self._names = {name: image for name, image in self._names.items() if image != id}

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
        """The mirror's content as of now, for `write_mirror`."""
        names: dict[str, list[str]] = {}
        for name, id in self._names.items():
            names.setdefault(id, []).append(name)
        entries = {id: MirrorEntry(image.manifest, tuple(sorted(names.get(id, ())))) for id, image in self._images.items()}
        return msgspec.json.encode(entries)

    def write_mirror(self, content: bytes) -> None:
        """Replace the mirror. Blocks; any thread. It is a copy, so it is renamed into place but not synced."""
        temporary = f"{self._mirror}.{os.getpid()}-{time.monotonic_ns()}"
        with open(temporary, "wb") as file:
            file.write(content)
        os.replace(temporary, self._mirror)

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
        size=row.size, tagged=row.tagged, loaded=row.loaded,
    )  # fmt: skip
