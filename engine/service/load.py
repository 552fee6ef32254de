"""Image archives into images: docker-archive (manifest.json) and OCI layout (index.json). Owns what is taken from an archive and its names.

Synchronous: a generator of progress lines that runs in a worker thread. Follows OCI image-layout.md and the format of `docker save`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import msgspec

from engine.errors import InvalidParameter, NotFound
from engine.service.staging import Staged, Staging
from engine.service.unpack import Counted, OnLoop, Unpacker, chain
from engine.spec import image as spec
from engine.spec import platform as platforms
from engine.spec import reference as references
from engine.spec.digest import sha256, short
from engine.spec.platform import Platform
from engine.spec.reference import Reference
from engine.store.content import Content
from engine.store.images import ImageRecord, Layer
from engine.wire import compression, jsonstream, tar
from engine.wire.compression import Source

# Docker draws ten times a second; more often only costs.
_TICK = 0.1
_NESTING_MAX = 8


class DockerManifest(msgspec.Struct, frozen=True, rename="pascal"):
    """An element of a docker-archive's manifest.json."""

    config: str
    repo_tags: tuple[str, ...] | None = None
    layers: tuple[str, ...] | None = None


class Candidate(msgspec.Struct):
    """An image found in an archive. `manifest` is b"" when the archive has none of its own and the engine writes one."""

    raw: bytes
    config: spec.ImageConfig
    layers: list[Staged]
    names: list[Reference]
    manifest: bytes = b""
    media_types: tuple[str, ...] = ()


_decode_docker = msgspec.json.Decoder(list[DockerManifest]).decode

Register = Callable[[ImageRecord, list[Reference]], list[tuple[str, str]]]
"""Writes an image and its names (on the event loop's thread); returns (name, former image) for names that were moved."""


class Loader:
    """Loads archives into the stores of one data root."""

    def __init__(
        self, content: Content, unpacker: Unpacker, on_loop: OnLoop, register: Register, pin: Callable[[Iterable[str]], object],
        sync: Callable[[], None], host: Platform,
    ) -> None:  # fmt: skip
        self._content = content
        self._unpacker = unpacker
        self._on_loop = on_loop
        self._register = register
        self._pin = pin
        self._sync = sync
        self._host = host

    # -- archives

    def load(self, source: Source, *, quiet: bool = False, wanted: Platform | None = None) -> Iterator[bytes]:
        """Load every image of an archive; yields progress lines. Raises InvalidParameter, NotFound for a missing member."""
        staging = Staging(self._content)
        try:
            yield from self._stage(source, staging, quiet)
            candidates = find(staging, wanted or self._host)
            if not candidates:
                raise InvalidParameter("loading images: there is no image in the archive")
            for candidate in candidates:
                yield from self._take(candidate, staging, quiet)
        except (tar.TarError, compression.CompressionError) as error:
            raise InvalidParameter(f"loading images: {error}") from error
        finally:
            staging.close()

    def _stage(self, source: Source, staging: Staging, quiet: bool) -> Iterator[bytes]:
        counted = Counted(source)
        _, content = compression.decompressed(counted)
        drawn = 0.0
        reader = tar.TarReader(content)
        for entry in reader:
            staging.add(entry, reader)
            if not quiet and time.monotonic() - drawn > _TICK:
                drawn = time.monotonic()
                yield jsonstream.progress("Reading archive", "archive", counted.count, 0)
        while content():
            pass

    def _take(self, candidate: Candidate, staging: Staging, quiet: bool) -> Iterator[bytes]:
        layers: list[Layer] = []
        yield from self.add_layers(candidate, staging, layers, quiet)
        image, moved = self.finish(candidate, layers)
        for name, old in moved:
            yield jsonstream.stream(
                f"The image {references.parse(name).familiar} already exists, renaming the old one with ID {old} to empty string\n"
            )
        for reference in candidate.names:
            yield jsonstream.stream(f"Loaded image: {reference.familiar}\n")
        if not candidate.names:
            yield jsonstream.stream(f"Loaded image ID: {image.id}\n")

    def add_layers(self, candidate: Candidate, staging: Staging, layers: list[Layer], quiet: bool) -> Iterator[bytes]:
        """Store and unpack the layers, bottom first, and append them to `layers`; yields progress."""
        diff_ids = candidate.config.diff_ids
        self._on_loop(self._pin, iter(_chains(diff_ids)))
        parent = ""
        for index, (diff_id, original) in enumerate(zip(diff_ids, candidate.layers, strict=True)):
            staged = original if candidate.manifest else staging.packed(original)
            self._on_loop(self._pin, iter((staged.blob,)))
            drawn = 0.0
            for done in self._unpacker.ensure(staged.reopen(self._content), diff_id, parent):
                if not quiet and time.monotonic() - drawn > _TICK:
                    drawn = time.monotonic()
                    yield jsonstream.progress("Loading layer", short(diff_id), done, staged.blob_size)
            staging.keep(staged)
            if not quiet:
                yield jsonstream.progress("Loading layer", short(diff_id), staged.blob_size, staged.blob_size)
            parent = chain(parent, diff_id)
            media_type = candidate.media_types[index] if candidate.media_types else staged.media_type
            layers.append(Layer(staged.blob, staged.blob_size, media_type, diff_id, parent))

    def finish(self, candidate: Candidate, layers: list[Layer]) -> tuple[ImageRecord, list[tuple[str, str]]]:
        """Store configuration and manifest, then the record, durably."""
        raw = candidate.manifest or manifest_of(candidate.raw, layers)
        self._on_loop(self._pin, iter((sha256(candidate.raw), sha256(raw))))
        id = self._content.put(candidate.raw)
        manifest = self._content.put(raw)
        image = ImageRecord(
            id=id, manifest=manifest, manifest_size=len(raw), config=candidate.config, raw=candidate.raw, layers=tuple(layers), size=0,
            loaded=time.time_ns(),
        )  # fmt: skip
        moved: list[tuple[str, str]] = self._on_loop(self._register, image, candidate.names)
        self._sync()
        return image, moved


def manifest_of(config: bytes, layers: list[Layer]) -> bytes:
    """An OCI manifest for an image that came without one."""
    return spec.encode(
        spec.Manifest(
            schema_version=2,
            media_type=spec.MEDIA_MANIFEST,
            config=spec.Descriptor(media_type=spec.MEDIA_CONFIG, digest=sha256(config), size=len(config)),
            layers=tuple(spec.Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size) for layer in layers),
        )
    )


# -- what is in an archive


def find(staging: Staging, wanted: Platform) -> list[Candidate]:
    """The images of a staged archive: those of manifest.json, or else those of index.json for the platform `wanted`."""
    if staging.find("manifest.json") is not None:
        return _docker(staging)
    if staging.find("index.json") is not None:
        return _layout(staging, wanted)
    raise InvalidParameter(
        "loading images: unrecognized image format: neither manifest.json nor index.json is in the archive",
        hint="a root file system is imported with `import`",
    )


def _docker(staging: Staging) -> list[Candidate]:
    try:
        manifests = _decode_docker(staging.document("manifest.json"))
    except msgspec.MsgspecError as error:
        raise InvalidParameter(f"loading images: manifest.json: {error}") from error
    return [_docker_image(staging, manifest) for manifest in manifests]


def _docker_image(staging: Staging, manifest: DockerManifest) -> Candidate:
    raw = staging.document(manifest.config)
    layers = [staging.get(name) for name in manifest.layers or ()]
    names = [references.parse(name).with_default_tag() for name in manifest.repo_tags or ()]
    return _candidate(raw, layers, names, manifest.config)


def _candidate(raw: bytes, layers: list[Staged], names: list[Reference], shown: str) -> Candidate:
    try:
        config = spec.decode_config(raw)
    except msgspec.MsgspecError as error:
        raise InvalidParameter(f"loading images: {shown} is no image configuration: {error}") from error
    if len(layers) != len(config.diff_ids):
        raise InvalidParameter(f"invalid manifest, layers length mismatch: expected {len(layers)}, got {len(config.diff_ids)}")
    return Candidate(raw, config, layers, names)


def _layout(staging: Staging, wanted: Platform) -> list[Candidate]:
    index = _index(staging.document("index.json"), "index.json")
    groups: dict[str, list[spec.Descriptor]] = {}
    for place, descriptor in enumerate(index.manifests or ()):
        name = _name(descriptor)
        alone = "" if name or descriptor.platform else f"\0{place}"
        groups.setdefault(name + alone, []).append(descriptor)
    found: list[Candidate] = []
    for key, descriptors in groups.items():
        names = [references.parse(key).with_default_tag()] if key and not key.startswith("\0") else []
        found.append(_choose(staging, descriptors, names, wanted))
    return found


def _name(descriptor: spec.Descriptor) -> str:
    """The name an index gives. A bare word is the tag of a repository that nobody named, and names nothing."""
    annotations = descriptor.annotations or {}
    name = annotations.get(spec.ANNOTATION_IMAGE_NAME) or annotations.get(spec.ANNOTATION_REF_NAME, "")
    return name if ":" in name or "/" in name else ""


def _choose(staging: Staging, descriptors: list[spec.Descriptor], names: list[Reference], wanted: Platform, depth: int = 0) -> Candidate:
    """The image for `wanted` among descriptors of manifests and indexes."""
    offered = [one for one in descriptors if not _is_attestation(one)]
    best = platforms.best((one.platform if one.media_type not in spec.INDEXES else None for one in offered), wanted)
    if best is None:
        has = ", ".join(sorted({str(one.platform) for one in offered if one.platform})) or "none"
        raise NotFound(f"loading images: no image for platform {wanted}; the archive has: {has}", hint="choose one of them with --platform")
    chosen = offered[best]
    staged = staging.blob(chosen.digest)
    if staged is None:
        raise NotFound(f"loading images: blob {chosen.digest} of {chosen.platform or 'the index'} is not in the archive")
    raw = _bytes(staged)
    if chosen.media_type in spec.INDEXES or (chosen.media_type not in spec.MANIFESTS and b'"manifests"' in raw):
        if depth >= _NESTING_MAX:
            raise InvalidParameter("loading images: indexes are nested too deeply")
        return _choose(staging, list(_index(raw, chosen.digest).manifests or ()), names, wanted, depth + 1)
    return _oci_image(staging, raw, names, chosen.digest)


def _is_attestation(descriptor: spec.Descriptor) -> bool:
    """BuildKit puts provenance beside images, for a platform `unknown/unknown`."""
    return descriptor.platform is not None and descriptor.platform.os == "unknown"


def _index(raw: bytes, shown: str) -> spec.Index:
    try:
        return spec.decode_index(raw)
    except msgspec.MsgspecError as error:
        raise InvalidParameter(f"loading images: {shown} is no image index: {error}") from error


def _oci_image(staging: Staging, raw: bytes, names: list[Reference], digest: str) -> Candidate:
    try:
        manifest = spec.decode_manifest(raw)
    except msgspec.MsgspecError as error:
        raise InvalidParameter(f"loading images: {digest} is no image manifest: {error}") from error
    if manifest.config.media_type not in (spec.MEDIA_CONFIG, spec.DOCKER_CONFIG, ""):
        raise InvalidParameter(f"loading images: {digest} is no image but {manifest.artifact_type or manifest.config.media_type}")
    config = staging.blob(manifest.config.digest)
    layers = [staging.blob(layer.digest) for layer in manifest.layers or ()]
    wanted = (manifest.config, *(manifest.layers or ()))
    missing = [one.digest for one, staged in zip(wanted, (config, *layers), strict=True) if staged is None]
    if missing or config is None:
        raise NotFound(f"loading images: blob {missing[0]} is not in the archive")
    plain = [staging.plain(staged) for staged in layers if staged is not None]
    candidate = _candidate(_bytes(config), plain, names, manifest.config.digest)
    candidate.manifest = raw
    candidate.media_types = tuple(layer.media_type for layer in manifest.layers or ())
    return candidate


def _bytes(staged: Staged) -> bytes:
    if staged.size > 8 << 20:
        raise InvalidParameter(f"loading images: blob {staged.digest} is no document")
    with staged.open() as file:
        return file.read()


def _chains(diff_ids: tuple[str, ...]) -> tuple[str, ...]:
    found: list[str] = []
    for diff_id in diff_ids:
        found.append(chain(found[-1] if found else "", diff_id))
    return tuple(found)
