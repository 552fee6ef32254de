"""What is in an image archive: docker-archive (manifest.json) and OCI layout (index.json), all platforms. Stores nothing.

Follows OCI image-layout.md and image-index.md and the format of `docker save`. Runs in a worker thread: layers that must be packed or
unpacked again are, on the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from engine.errors import InvalidParameter, NotFound
from engine.service.staging import Staged, Staging
from engine.spec import archive as documents
from engine.spec import image as spec
from engine.spec import manifest as manifests
from engine.spec import platform as platforms
from engine.spec import reference as references
from engine.spec.digest import sha256
from engine.spec.platform import Platform
from engine.spec.reference import Reference
from engine.store.images import Index

_CONFIGS = frozenset({spec.MEDIA_CONFIG, spec.DOCKER_CONFIG, "application/octet-stream", ""})
_DOCUMENTS = spec.INDEXES | spec.MANIFESTS | {""}
_NAMES_MAX = 10_000  # of one image; each is a row
_PLAIN = frozenset({spec.MEDIA_LAYER, "application/vnd.docker.image.rootfs.diff.tar", ""})


class Part(msgspec.Struct):
    """A layer of an image: what its manifest says of it, and the member, None when it is not in the archive."""

    digest: str
    size: int
    media_type: str
    diff_id: str
    staged: Staged | None


class Found(msgspec.Struct):
    """One image. `manifest` is b"" when the archive has none and the engine writes one. `annotations` and `platform` as its index has
    them."""

    raw: bytes
    config: spec.ImageConfig
    parts: list[Part]
    manifest: bytes = b""
    digest: str = ""


class Group(msgspec.Struct):
    """What a name stands for: the images of an index, or one alone. The first of `images` is what it stands for here.

    `held` are blobs of the index that are no images, attestations for example.
    """

    names: list[Reference]
    images: list[Found]
    index: Index | None = None
    held: list[Staged] = []


class Contents(msgspec.Struct):
    """An archive. `since`: the image without whose layers it was saved, "" for none."""

    groups: list[Group]
    since: str = ""


def find(staging: Staging, wanted: Sequence[Platform], host: Platform) -> Contents:
    """The images of a staged archive; for the platforms `wanted` alone when there are any. Raises InvalidParameter, NotFound."""
    index = _index_of(staging) if staging.find(documents.INDEX) is not None else None
    if staging.find(documents.MANIFEST) is not None and (index is None or not _Layout(staging, wanted, host).tells_more(index)):
        groups = _docker(staging)
        for group in groups:
            _picked(group.images, wanted)
        return Contents(groups)
    if index is None:
        raise InvalidParameter(
            "loading images: unrecognized image format: neither manifest.json nor index.json is in the archive",
            hint="a root file system is imported with `import`",
        )
    return Contents(_Layout(staging, wanted, host).groups(index), (index.annotations or {}).get(documents.ANNOTATION_SINCE, ""))


def manifest_of(config: bytes, layers: Iterable[spec.Descriptor]) -> bytes:
    """An OCI manifest for an image that came without one."""
    described = spec.Descriptor(media_type=spec.MEDIA_CONFIG, digest=sha256(config), size=len(config))
    return spec.encode(spec.Manifest(schema_version=2, media_type=spec.MEDIA_MANIFEST, config=described, layers=tuple(layers)))


# -- docker-archive


def _docker(staging: Staging) -> list[Group]:
    try:
        elements = documents.decode_docker(staging.document(documents.MANIFEST))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidParameter(f"loading images: manifest.json: {error}") from error
    return [_docker_image(staging, element) for element in elements]


def _docker_image(staging: Staging, element: documents.DockerManifest) -> Group:
    raw = staging.document(element.config)
    try:
        config = spec.decode_config(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidParameter(f"loading images: {element.config!r} is no image configuration: {error}") from error
    layers = [staging.packed(staging.get(name)) for name in element.layers or ()]
    if len(layers) != len(config.diff_ids):
        raise InvalidParameter(f"invalid manifest, layers length mismatch: expected {len(layers)}, got {len(config.diff_ids)}")
    described = tuple(spec.Descriptor(media_type=one.media_type, digest=one.blob, size=one.blob_size) for one in layers)
    made = manifest_of(raw, described)
    shown = repr(element.config)  # a name of the archive's own making goes to a terminal
    manifest = manifests.image(manifests.parse(made, "", shown), shown)  # type: ignore[arg-type]
    manifests.config(raw, manifest, shown)
    parts = [
        Part(one.digest, one.size, one.media_type, diff_id, staged)
        for one, diff_id, staged in zip(described, config.diff_ids, layers, strict=True)
    ]
    if len(element.repo_tags or ()) > _NAMES_MAX:
        raise InvalidParameter(f"loading images: {shown} has more than {_NAMES_MAX} names")
    names = [references.parse(name).with_default_tag() for name in element.repo_tags or ()]
    return Group(_checked(names, ""), [Found(raw, config, parts, made, sha256(made))])


def one_layer(raw: bytes, staged: Staged, names: list[Reference]) -> Group:
    """An image of one layer that was not in an archive of images: `raw` is its configuration."""
    part = Part(staged.blob, staged.blob_size, staged.media_type, staged.digest, staged)
    described = spec.Descriptor(media_type=part.media_type, digest=part.digest, size=part.size)
    manifest = manifest_of(raw, [described])
    return Group(names, [Found(raw, spec.decode_config(raw), [part], manifest, sha256(manifest))])


# -- OCI layout


def _index_of(staging: Staging) -> spec.Index:
    index = manifests.parse(staging.document(documents.INDEX), "", documents.INDEX)
    if not isinstance(index, spec.Index):
        raise InvalidParameter(f"loading images: {documents.INDEX} is no image index")
    return index


def _name(descriptor: spec.Descriptor) -> str:
    """The name an index gives. A bare word is the tag of a repository that nobody named, and names nothing."""
    annotations = descriptor.annotations or {}
    name = annotations.get(spec.ANNOTATION_IMAGE_NAME) or annotations.get(spec.ANNOTATION_REF_NAME, "")
    return name if ":" in name or "/" in name else ""


class _Layout:
    def __init__(self, staging: Staging, wanted: Sequence[Platform], host: Platform) -> None:
        self._staging = staging
        self._wanted = wanted
        self._host = host
        self._read: dict[str, spec.Manifest | spec.Index] = {}
        self._made: dict[str, Found] = {}

    def tells_more(self, index: spec.Index) -> bool:
        """Whether the layout has what manifest.json has not: platforms, manifests of registries, the form that layers were stored in.

        dockerd's classic store makes its manifests up while it saves, and their layers are plain: keeping those would only take disk.
        """
        if (index.annotations or {}).get(documents.ANNOTATION_LAYERS) == documents.AS_STORED:
            return True
        for one in index.manifests or ():
            document = self._document(one)
            if isinstance(document, spec.Index):
                return True
            if document is not None and any(layer.media_type not in _PLAIN for layer in document.layers or ()):
                return True
        return False

    def groups(self, index: spec.Index) -> list[Group]:
        named: dict[str, list[spec.Descriptor]] = {}
        for place, descriptor in enumerate(index.manifests or ()):
            name = _name(descriptor)
            alone = "" if name or descriptor.platform else f"\0{place}"
            named.setdefault(name + alone, []).append(descriptor)
        found: list[Group] = []
        for key, descriptors in named.items():
            names = [references.parse(key).with_default_tag()] if key and not key.startswith("\0") else []
            found.append(self._group(descriptors, names))
        return _merged(found)

    def _group(self, descriptors: list[spec.Descriptor], names: list[Reference]) -> Group:
        """What one name stands for. Several descriptors with one name are an index that the archive has not written down."""
        if len(descriptors) == 1:
            (only,) = descriptors
            document = self._document(only)
            if document is None:
                raise NotFound(f"loading images: blob {only.digest} is not in the archive")
            if isinstance(document, spec.Manifest):
                return Group(_checked(names, only.digest), _picked([self._image(only, document)], self._wanted))
            index = Index.of(self._raw(only), document.media_type or only.media_type)
        else:
            plain = tuple(msgspec.structs.replace(one, annotations=None) for one in descriptors)
            index = Index.of(spec.encode(spec.Index(schema_version=2, media_type=spec.MEDIA_INDEX, manifests=plain)))
        return self._of_index(index, names)

    def _of_index(self, index: Index, names: list[Reference]) -> Group:
        images, held = self._members(index.manifests, 0, {index.digest})
        if not images:
            raise NotFound(f"loading images: none of the images of index {index.digest} is in the archive")
        images = _picked(images, self._wanted)
        best = platforms.best((image.config.platform for image in images), self._host) or 0
        images.insert(0, images.pop(best))
        if not names:  # nothing would keep the index, or an image that nobody can call
            return Group(names, images if self._wanted else images[:1])
        direct = {one.digest for one in index.manifests}
        # Images of an index within the index: a name stands for one of them at most, the others would be loose.
        images = [image for place, image in enumerate(images) if not place or image.digest in direct]
        return Group(_checked(names, index.digest), images, index, held)

    def _members(self, descriptors: Sequence[spec.Descriptor], depth: int, seen: set[str]) -> tuple[list[Found], list[Staged]]:
        """Every image of an index that is in the archive, and the blobs of what is no image. `seen`: digests that were looked at."""
        if depth >= manifests.NESTING_MAX:
            raise InvalidParameter("loading images: indexes are nested too deeply")
        images: list[Found] = []
        held: list[Staged] = []
        for one in descriptors:
            if one.digest in seen:
                continue
            seen.add(one.digest)
            document = self._document(one) if one.media_type in _DOCUMENTS else None
            if document is None:
                held += self._blobs(one)  # something that this program knows nothing of belongs to the index all the same
            elif isinstance(document, spec.Index):
                inner, blobs = self._members(document.manifests or (), depth + 1, seen)
                images += inner
                held += [*blobs, *self._blobs(one)]
            elif manifests.is_attestation(one) or document.config.media_type not in _CONFIGS:
                held += self._blobs(one, document.config, *(document.layers or ()))
            else:
                images.append(self._image(one, document))
        return images, held

    def _document(self, descriptor: spec.Descriptor) -> spec.Manifest | spec.Index | None:
        """A manifest or an index; None when it is not in the archive. Raises InvalidParameter, but not for what is beside the images."""
        if self._staging.blob(descriptor.digest) is None:
            return None
        found = self._read.get(descriptor.digest)
        if found is not None:
            return found
        try:
            found = self._read[descriptor.digest] = manifests.parse(self._raw(descriptor), descriptor.media_type, descriptor.digest)
        except InvalidParameter:
            if not manifests.is_attestation(descriptor):
                raise
        return found

    def _raw(self, descriptor: spec.Descriptor) -> bytes:
        staged = self._staging.blob(descriptor.digest)
        if staged is None:
            raise NotFound(f"loading images: blob {descriptor.digest} is not in the archive")
        _same_size(descriptor, staged)
        return self._staging.bytes(staged, descriptor.digest)

    def _blobs(self, *descriptors: spec.Descriptor) -> list[Staged]:
        found = [self._staging.blob(one.digest) for one in descriptors]
        return [self._staging.plain(staged) for staged in found if staged is not None]

    def _image(self, descriptor: spec.Descriptor, manifest: spec.Manifest) -> Found:
        """An image, each time one of its own: what a group makes of it is not another's business."""
        if descriptor.digest not in self._made:
            self._made[descriptor.digest] = self._checked_image(descriptor, manifest)
        return msgspec.structs.replace(self._made[descriptor.digest])

    def _checked_image(self, descriptor: spec.Descriptor, manifest: spec.Manifest) -> Found:
        shown = descriptor.digest
        manifests.image(manifest, shown)
        raw = self._raw(manifest.config)
        config = manifests.config(raw, manifest, shown)
        parts: list[Part] = []
        for layer, diff_id in zip(manifest.layers or (), config.diff_ids, strict=True):
            staged = self._staging.blob(layer.digest)
            plain = self._staging.plain(staged) if staged is not None else None
            if plain is not None:
                _same_size(layer, plain)
            parts.append(Part(layer.digest, layer.size, layer.media_type or _media(plain), diff_id, plain))
        return Found(raw, config, parts, self._raw(descriptor), descriptor.digest)


def _picked(images: list[Found], wanted: Sequence[Platform]) -> list[Found]:
    """Those for the platforms that are wanted, the best for each; all when none is. Raises NotFound."""
    if not wanted:
        return images
    have = [image.config.platform for image in images]
    places: dict[int, None] = {}
    for one in wanted:
        best = platforms.best(have, one)
        if best is None:
            has = ", ".join(sorted(map(str, have)))
            what = f"loading images: no image for platform {one}; the archive has: {has}"
            raise NotFound(what, hint="choose one of them with --platform")
        places[best] = None
    return [images[place] for place in places]


def _checked(names: list[Reference], digest: str) -> list[Reference]:
    """Names; one with a digest must be of that digest, or an archive could call anything so. Raises InvalidParameter."""
    for name in names:
        if name.digest and name.digest != digest:
            raise InvalidParameter(f"loading images: {name.familiar} is not what the archive calls so")
    return names


def _same_size(descriptor: spec.Descriptor, staged: Staged) -> None:
    if staged.size != descriptor.size:
        raise InvalidParameter(f"loading images: blob {descriptor.digest} has {staged.size} bytes, not {descriptor.size}")


def _media(staged: Staged | None) -> str:
    return staged.media_type if staged is not None else spec.MEDIA_LAYER + "+gzip"


def _merged(groups: list[Group]) -> list[Group]:
    """Groups that stand for the same thing as one with all their names."""
    found: dict[tuple[str, ...], Group] = {}
    for group in groups:
        key = (group.index.digest if group.index is not None else "", *(image.digest for image in group.images))
        if key in found and found[key].names and group.names:
            found[key].names += group.names
        else:
            found.setdefault(key, group)
    return list(found.values())
