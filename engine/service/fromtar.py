"""`import`: a root file system's tar becomes an image of one layer. Synchronous, in a worker thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from engine.errors import InvalidParameter
from engine.service.load import Candidate, Loader
from engine.service.staging import Staging
from engine.spec import changes as instructions
from engine.spec import image as spec
from engine.spec.platform import Platform
from engine.spec.reference import Reference
from engine.store.content import Content
from engine.store.images import Layer
from engine.wire import compression, jsonstream
from engine.wire.compression import CompressionError, Source


def importing(
    loader: Loader, content: Content, source: Source, names: list[Reference], message: str, changes: Sequence[str], platform: Platform
) -> Iterator[bytes]:
    """Progress lines; the last one's status is the image's identifier, as in dockerd. Raises InvalidParameter, KnarrError.

    The layer is kept as gzip, whatever it came as: half the disk of a plain tar, and taken by every registry.
    """
    defaults = instructions.apply(spec.ContainerConfig(), changes)
    staging = Staging(content)
    try:
        try:
            _, plain = compression.decompressed(source)
            staged = staging.take(plain, -1)
        except CompressionError as error:
            raise InvalidParameter(f"importing a root file system: {error}") from error
        if not staged.size:
            raise InvalidParameter("importing a root file system: the archive is empty")
        raw = spec.encode(_config(defaults, staged.digest, message, platform))
        candidate = Candidate(raw, spec.decode_config(raw), [staged], names)
        layers: list[Layer] = []
        yield from loader.add_layers(candidate, staging, layers, quiet=True)
        image, _ = loader.finish(candidate, layers)
        yield jsonstream.status(image.id)
    finally:
        staging.close()


def _config(defaults: spec.ContainerConfig, diff_id: str, message: str, platform: Platform) -> spec.ImageConfig:
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return spec.ImageConfig(
        created=now, architecture=platform.architecture, variant=platform.variant, os=platform.os, config=defaults, comment=message,
        rootfs=spec.RootFS(diff_ids=(diff_id,)), history=(spec.History(created=now, comment=message),),
    )  # fmt: skip
