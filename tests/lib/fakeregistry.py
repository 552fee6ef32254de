"""A registry inside the test's process: what `service.pull` needs of `registry.client`, with bytes counted and trouble on demand."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from engine.errors import NotFound
from engine.spec import image as spec
from engine.spec.image import Descriptor
from tests.lib.images import ARCHITECTURE, entry, tar


def digest_of(data: bytes) -> str:
    """`sha256:` and its digits."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


class FakeBlob:
    """One answer. `start` is where it begins."""

    def __init__(self, registry: FakeRegistry, digest: str, data: bytes, start: int, end: int) -> None:
        self.start = start
        self._registry, self._digest, self._data, self._end = registry, digest, data, end

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The bytes, piece by piece; `registry.disturb` is asked before each."""
        registry, place = self._registry, self.start
        while place < self._end:
            await registry.disturb(self._digest, place)
            piece = self._data[place : min(place + registry.piece, self._end)]
            registry.sent[self._digest] += len(piece)
            place += len(piece)
            yield registry.change(self._digest, place - len(piece), piece)


class FakeRegistry:
    """Images by name and blobs by digest. `sent` counts bytes of each blob; `ranges` tells whether it can send parts."""

    def __init__(self, *, piece: int = 1 << 16, ranges: bool = True) -> None:
        self.piece = piece
        self.ranges = ranges
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.names: dict[str, str] = {}
        self.sent: Counter[str] = Counter()
        self.open = 0
        self.disturb: Callable[[str, int], Awaitable[object]] = self._calm
        self.change: Callable[[str, int, bytes], bytes] = lambda digest, place, piece: piece

    @staticmethod
    async def _calm(digest: str, place: int) -> None:
        await trio.lowlevel.checkpoint()

    def image(self, name: str, layers: Sequence[bytes], *, diff_ids: Sequence[str] | None = None, **fields: Any) -> spec.Manifest:
        """Keep an image of these tar archives, packed by gzip; its manifest."""
        packed = [gzip.compress(layer, 1, mtime=0) for layer in layers]
        ids = list(diff_ids) if diff_ids is not None else [digest_of(layer) for layer in layers]
        document = {"os": "linux", "architecture": ARCHITECTURE, "config": {}, "rootfs": {"type": "layers", "diff_ids": ids}, **fields}
        config = json.dumps(document).encode()
        for blob in (*packed, config):
            self.blobs[digest_of(blob)] = blob
        manifest = {
            "schemaVersion": 2, "mediaType": spec.MEDIA_MANIFEST,
            "config": {"mediaType": spec.MEDIA_CONFIG, "digest": digest_of(config), "size": len(config)},
            "layers": [{"mediaType": spec.MEDIA_LAYER + "+gzip", "digest": digest_of(blob), "size": len(blob)} for blob in packed],
        }  # fmt: skip
        raw = json.dumps(manifest).encode()
        self.manifests[digest_of(raw)] = raw
        self.names[name] = digest_of(raw)
        return spec.decode_manifest(raw)

    # -- registry.client.Registries

    @asynccontextmanager
    async def remote(self, reference: Any, credentials: Any = None, *, rate: Any = None) -> AsyncIterator[FakeRegistry]:
        """Itself, whatever the repository."""
        self.open += 1
        try:
            yield self
        finally:
            self.open -= 1

    # -- registry.client.Remote

    async def resolve(self, tag: str) -> Descriptor:
        """A tag's descriptor."""
        await trio.lowlevel.checkpoint()
        if tag not in self.names:
            raise NotFound(f"manifest unknown: {tag}")
        return Descriptor(media_type=spec.MEDIA_MANIFEST, digest=self.names[tag], size=len(self.manifests[self.names[tag]]))

    async def manifest(self, digest: str) -> tuple[Descriptor, bytes]:
        """A manifest by its digest."""
        await trio.lowlevel.checkpoint()
        return Descriptor(media_type=spec.MEDIA_MANIFEST, digest=digest, size=len(self.manifests[digest])), self.manifests[digest]

    async def document(self, descriptor: Descriptor, limit: int) -> bytes:
        """A small blob."""
        await trio.lowlevel.checkpoint()
        return self.blobs[descriptor.digest]

    @asynccontextmanager
    async def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> AsyncIterator[FakeBlob]:
        """A blob or a part of it."""
        data = self.blobs[descriptor.digest]
        first, last = (start, len(data) if end is None else end) if self.ranges else (0, len(data))
        self.open += 1
        try:
            yield FakeBlob(self, descriptor.digest, data, first, last)
        finally:
            self.open -= 1


def archive(name: str, data: bytes = b"") -> bytes:
    """A layer with one file."""
    return tar([entry(name, data=data or name.encode())])
