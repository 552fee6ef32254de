"""Images back from their blobs after the database was lost. Synchronous, in a worker thread; yields what could not be recovered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from engine.errors import KnarrError
from engine.service.load import Candidate, Loader
from engine.service.staging import Staging
from engine.spec import image as spec
from engine.spec import reference as references
from engine.store.content import Content
from engine.store.images import Layer, MirrorEntry


def recovering(loader: Loader, content: Content, entries: Mapping[str, MirrorEntry]) -> Iterator[bytes]:
    """Unpack and register every image of `entries` (by identifier) whose blobs are whole; a line for each one that is lost."""
    for id, entry in entries.items():
        try:
            yield from (line for line in _recover(loader, content, entry) if not line)
        except (KnarrError, msgspec.MsgspecError) as error:
            names = ", ".join(references.parse(name).familiar for name in entry.names) or id
            yield f"image {names} cannot be recovered: {error}".encode()


def _recover(loader: Loader, content: Content, entry: MirrorEntry) -> Iterator[bytes]:
    raw = content.read(entry.manifest)
    manifest = spec.decode_manifest(raw)
    config = content.read(manifest.config.digest)
    staging = Staging(content)
    try:
        stored = [staging.stored(layer) for layer in manifest.layers or ()]
        names = [references.parse(name) for name in entry.names]
        media_types = tuple(layer.media_type for layer in manifest.layers or ())
        candidate = Candidate(config, spec.decode_config(config), stored, names, raw, media_types)
        layers: list[Layer] = []
        yield from loader.add_layers(candidate, staging, layers, quiet=True)
        loader.finish(candidate, layers)
    finally:
        staging.close()
