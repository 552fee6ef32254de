"""Images back from their blobs after the database was lost, as the mirror names them. Blocks: for a worker thread; registers nothing.

Manifests and configurations are read and checked, layers only looked for: they are checked when they are unpacked, which is when an image
is first used, so the daemon starts at once however many images there are. Layers that were built have no blobs: those are made of folders
of snapshots that nothing owns any more.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping

import msgspec

from engine.errors import InvalidParameter, KnarrError, NotFound
from engine.spec import image as spec
from engine.spec import manifest as manifests
from engine.spec import reference as references
from engine.spec.digest import chain_ids
from engine.spec.reference import Reference
from engine.store.content import Content
from engine.store.images import ImageRecord, Index, Layer, MirrorEntry
from engine.store.pack import pack

_PACKED = ("gzip", "zstd")


class Recovered(msgspec.Struct, frozen=True):
    """An image, and names of it that stand for one thing: the image's manifest, or `index`."""

    image: ImageRecord
    names: tuple[Reference, ...] = ()
    index: Index | None = None


def find(content: Content, entries: Mapping[str, MirrorEntry]) -> tuple[list[Recovered], list[str]]:
    """The images of `entries` (by identifier) whose blobs are here, and a line for each one that is lost."""
    found: list[Recovered] = []
    lost: list[str] = []
    for id, entry in entries.items():
        try:
            found += _recover(content, id, entry)
        except (KnarrError, msgspec.MsgspecError) as error:
            names = ", ".join(references.parse(name).familiar for name in entry.names) or id
            lost.append(f"image {names} cannot be recovered: {error}")
    return found, lost


def lacking(content: Content, entries: Mapping[str, MirrorEntry]) -> dict[str, int]:
    """The plain layers, with their bytes, that images of `entries` need and that are not here: layers that were built have no blob."""
    wanted: dict[str, int] = {}
    for entry in entries.values():
        try:
            manifest = manifests.parse(content.read(entry.manifest), "", entry.manifest)
        except KnarrError:
            continue  # `find` tells of it
        for layer in (manifest.layers or ()) if isinstance(manifest, spec.Manifest) else ():
            if not layer.media_type.endswith(_PACKED) and not content.exists(layer.digest, layer.size):
                wanted[layer.digest] = layer.size
    return wanted


def bring_back(content: Content, folders: Iterable[str], wanted: Mapping[str, int], check: Callable[[], object]) -> None:
    """Make blobs of `wanted` layers from the host folders whose snapshots they may be, as far as they are there. Reads every file of the
    folders. Raises what `check` does, OSError when the disk takes no blob."""
    left = dict(wanted)
    for folder in folders:
        if not left:
            return
        try:
            digest = pack(folder, check=check).diff_id
        except (KnarrError, OSError):
            continue  # not that one
        if left.pop(digest, None) is None:
            continue
        path = content.temporary()
        try:
            with open(path, "xb", buffering=0) as file:
                again = pack(folder, file.write, check=check).diff_id
            if again == digest:
                content.adopt(path, digest)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def in_order(found: Iterable[Recovered]) -> list[Recovered]:
    """Those without names first: a name that stands for an index is given to the best image of it that is here by then."""
    return sorted(found, key=lambda one: bool(one.names))


def _recover(content: Content, id: str, entry: MirrorEntry) -> list[Recovered]:
    raw = content.read(entry.manifest)
    manifest = manifests.parse(raw, "", entry.manifest)
    if not isinstance(manifest, spec.Manifest) or manifest.config.digest != id:
        raise InvalidParameter(f"manifest {entry.manifest} is not that of image {id}")
    config_raw = content.read(manifest.config.digest)
    config = manifests.config(config_raw, manifest, entry.manifest)
    layers = manifest.layers or ()
    for layer in layers:
        if not content.exists(layer.digest, layer.size):
            raise NotFound(f"no blob {layer.digest}")
    image = ImageRecord(
        id=id, manifest=entry.manifest, manifest_size=len(raw), config=config, raw=config_raw, size=0, loaded=time.time_ns(),
        layers=tuple(
            Layer(one.digest, one.size, one.media_type or spec.MEDIA_LAYER + "+gzip", diff_id, chain)
            for one, diff_id, chain in zip(layers, config.diff_ids, chain_ids(config.diff_ids), strict=True)
        ),
    )  # fmt: skip
    by_target: dict[str, list[Reference]] = {}
    for name in entry.names:
        by_target.setdefault(entry.targets.get(name, ""), []).append(references.parse(name))
    found = [Recovered(image, tuple(names), _index(content, target)) for target, names in by_target.items()]
    return [Recovered(image), *found]


def _index(content: Content, target: str) -> Index | None:
    """An index with what is here of it beside images; None when it is damaged: the names stand for the manifest then."""
    if not target:
        return None
    try:
        index = Index.of(content.read(target))
    except (KnarrError, msgspec.MsgspecError):
        return None
    held: list[str] = []
    for one in index.manifests:
        if manifests.is_attestation(one) and content.exists(one.digest):
            held.append(one.digest)
            held += _blobs(content, one.digest)
    return msgspec.structs.replace(index, held=tuple(held))


def _blobs(content: Content, digest: str) -> list[str]:
    try:
        document = manifests.parse(content.read(digest), "", digest)
    except KnarrError:
        return []
    named = (document.config, *(document.layers or ())) if isinstance(document, spec.Manifest) else ()
    return [one.digest for one in named if content.exists(one.digest)]
