"""The document of a build cache that lies elsewhere, and what the options say of such caches. Pure.

Has the shape of BuildKit's `application/vnd.buildkit.cacheconfig.v0`: layers, each a blob on a parent, and records, each a key with the
layer that it leads to. A cache of BuildKit's is read as well, but none of its keys is one of ours; BuildKit reads ours and finds as little.
What is ours alone is in members that BuildKit does not know: `base`, the chain that a bottom layer lies on, since layers of base images are
left out, and `id` of a result, by which other keys name it.

Documents come from strangers: everything is checked before it is believed, and a layer is believed only when its bytes are what it says.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from builder.export.imagedocs import timestamp
from builder.language.platformargs import INLINE_CACHE
from engine.errors import InvalidParameter, NotImplementedYet
from engine.service.layerblobs import Form
from engine.spec import image as spec
from engine.spec.build import Endpoint, Options
from engine.spec.digest import chain_ids, is_digest, sha256
from engine.spec.image import Descriptor

MEDIA_CONFIG = "application/vnd.buildkit.cacheconfig.v0"
INLINE = "moby.buildkit.cache.v0"
"""The member of an image's configuration that holds records about its own layers."""

DIFF_ID = "containerd.io/uncompressed"
CREATED = "buildkit/createdat"
LARGEST = 64 << 20
"""Bytes of a document that are read at all."""

MOST_LAYERS = 20_000
MOST_RECORDS = 400_000
_LARGEST_LAYER = 1 << 42
DEEPEST = 128
"""Layers on each other: more cannot be mounted."""

_TRUE, _FALSE = ("1", "t", "T", "true", "TRUE", "True"), ("0", "f", "F", "false", "FALSE", "False")
_KEY = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[0-9a-z]{25}")
_ELSEWHERE = ("gha", "s3", "azblob")
_PACKING = frozenset({"compression", "compression-level", "force-compression", "oci-mediatypes", "image-manifest", "ignore-error", "mode"})
_TO = {
    "inline": frozenset({"mode"}),
    "registry": _PACKING | {"ref", "registry.insecure"},
    "local": _PACKING | {"dest", "tag", "reset"},
}
_FROM = {"registry": frozenset({"ref", "registry.insecure"}), "local": frozenset({"src", "tag", "digest"})}


# -- what the options say


class CacheTo(msgspec.Struct, frozen=True, kw_only=True):
    """One `--cache-to` that is a document of its own. `kind`: registry or local; `ref`: where it goes to, `tag` of a folder's index;
    `everything`: mode=max; `image`: the manifest looks like an image's; `docker`: Docker's media types. `number` of its output."""

    kind: str
    ref: str = ""
    tag: str = "latest"
    everything: bool = False
    image: bool = True
    docker: bool = False
    form: Form = Form()
    ignore_error: bool = False
    insecure: bool = False
    number: int = 0


class CacheFrom(msgspec.Struct, frozen=True, kw_only=True):
    """One `--cache-from`. `kind`: registry or local; `context`: the name under which the client sends the folder; `tag` or `digest` of its
    index."""

    kind: str
    ref: str = ""
    context: str = ""
    tag: str = "latest"
    digest: str = ""
    insecure: bool = False


def context_name(number: int) -> str:
    """The context in which the folder of the `--cache-from` with that index comes."""
    return f"cache:{number}"


def imports(options: Options) -> list[CacheFrom]:
    """The caches to read. Raises InvalidParameter, NotImplementedYet."""
    found: list[CacheFrom] = []
    for number, one in enumerate(options.cache_from):
        attributes = one.attributes
        _check("cache-from", one, _FROM, "importer")
        if one.type == "registry":
            ref = _needed("cache-from", one, "ref")
            found.append(CacheFrom(kind="registry", ref=ref, insecure=_flag(attributes, "registry.insecure")))
            continue
        digest = attributes.get("digest", "")
        if digest and not is_digest(digest):
            raise InvalidParameter(f"--cache-from type=local: invalid digest {digest!r}")
        src = _needed("cache-from", one, "src")
        tag = attributes.get("tag") or "latest"
        found.append(CacheFrom(kind="local", ref=src, context=context_name(number), tag=tag, digest=digest))
    return found


def exports(options: Options) -> list[CacheTo]:
    """The caches to write, but for those within images. Raises InvalidParameter, NotImplementedYet."""
    found: list[CacheTo] = []
    for number, one in enumerate(options.cache_to):
        _check("cache-to", one, _TO, "exporter")
        mode = one.attributes.get("mode", "min")
        if mode not in ("min", "max"):
            raise InvalidParameter(f'invalid cache export mode: "{mode}"', hint="min or max")
        if one.type == "inline":
            continue  # of every image, mode max or not, only its own layers can be said
        found.append(_export(one, len(options.outputs) + number))
    return found


def _export(one: Endpoint, number: int) -> CacheTo:
    attributes = one.attributes
    packing = attributes.get("compression") or "gzip"
    if packing == "estargz":
        raise NotImplementedYet(f"--cache-to type={one.type},compression=estargz")
    if _flag(attributes, "reset"):
        raise NotImplementedYet("--cache-to type=local,reset=true", hint="remove the folder before")
    level = attributes.get("compression-level", "")
    if level and not (level.isascii() and level.isdecimal()):
        raise InvalidParameter(f'non-integer value specified for compression-level: "{level}"')
    docker = not _flag(attributes, "oci-mediatypes", True)
    if docker and packing == "zstd":
        raise InvalidParameter("compression=zstd needs oci-mediatypes=true")
    image = _flag(attributes, "image-manifest", not docker)
    if image and docker:
        raise InvalidParameter("image-manifest=true needs oci-mediatypes=true")
    _flag(attributes, "force-compression")  # all of a cache's layers are packed the same way in any case
    return CacheTo(
        kind=one.type, ref=_needed("cache-to", one, "ref" if one.type == "registry" else "dest"), tag=attributes.get("tag") or "latest",
        everything=attributes.get("mode") == "max", image=image, docker=docker, form=Form(packing, int(level) if level else None).check(),
        ignore_error=_flag(attributes, "ignore-error"), insecure=_flag(attributes, "registry.insecure"), number=number,
    )  # fmt: skip


def wants_inline(options: Options) -> bool:
    """Whether images are to have records about their own layers."""
    return any(one.type == "inline" for one in options.cache_to) or options.build_args.get(INLINE_CACHE) in _TRUE


def _check(flag: str, one: Endpoint, known: Mapping[str, frozenset[str]], what: str) -> None:
    if one.type in _ELSEWHERE:
        raise NotImplementedYet(f"--{flag} type={one.type}")
    if one.type not in known:
        raise InvalidParameter(f'unknown cache {what}: "{one.type}"', hint="there are: " + ", ".join(sorted(known)))
    for key in one.attributes:
        if key not in known[one.type]:
            allowed = ", ".join(sorted(known[one.type]))
            raise InvalidParameter(f'unknown attribute "{key}" of --{flag} type={one.type}', hint=f"it has: {allowed}")


def _needed(flag: str, one: Endpoint, key: str) -> str:
    value = one.attributes.get(key, "")
    if not value:
        what = "importer" if flag == "cache-from" else "exporter"
        raise InvalidParameter(f"{one.type} cache {what} requires {key}")
    return value


def _flag(attributes: Mapping[str, str], key: str, default: bool = False) -> bool:
    value = attributes.get(key)
    if value is None:
        return default
    if value in _TRUE or value == "":
        return True
    if value in _FALSE:
        return False
    raise InvalidParameter(f'non-bool value specified for {key}: "{value}"')


# -- what is known of a cache


class CacheLayer(msgspec.Struct, frozen=True, kw_only=True):
    """A layer: its blob, what that unpacks to, the index of the layer below (-1: none in this cache), the chain below ("" for nothing) and
    the chain that it makes."""

    blob: Descriptor
    diff_id: str
    parent: int
    below: str
    chain: str


class CacheEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Where a key leads to: a layer by its index, when it was made (Unix nanoseconds, 0 where that is not said), its identifier or ""."""

    layer: int
    created: int = 0
    id: str = ""


class CacheContent(msgspec.Struct, frozen=True, kw_only=True):
    """A cache: layers, and entries by key."""

    layers: tuple[CacheLayer, ...] = ()
    entries: Mapping[str, CacheEntry] = {}

    def lineage(self, layer: int, depth: int, base: str) -> list[CacheLayer]:
        """The uppermost `depth` layers up to that one, bottom first. Raises InvalidParameter unless they lie on the chain `base`."""
        found: list[CacheLayer] = []
        at = layer
        while at >= 0 and len(found) < depth:
            found.append(self.layers[at])
            at = self.layers[at].parent
        below = found[-1].below if found else ""
        if len(found) < depth or below != base:
            raise InvalidParameter(f"its layers lie on {below or 'nothing'}, not on {base or 'nothing'}")
        return found[::-1]


# -- reading


class _Layer(msgspec.Struct, omit_defaults=True):
    """BuildKit leaves a parent out that is 0."""

    blob: str = ""
    parent: int = 0
    base: str = ""


class _Result(msgspec.Struct, omit_defaults=True, rename="camel"):
    layer: int = 0
    created_at: str = ""
    id: str = ""


class _Record(msgspec.Struct, omit_defaults=True):
    digest: str = ""
    results: tuple[_Result, ...] | None = ()
    inputs: tuple[msgspec.Raw, ...] | None = None


class _Document(msgspec.Struct):
    layers: tuple[_Layer, ...] | None = ()
    records: tuple[_Record, ...] | None = ()


def parse(raw: bytes, blobs: Iterable[Descriptor]) -> CacheContent:
    """A document, and the descriptors that its manifest has of the blobs. Raises InvalidParameter with what is wrong with it."""
    try:
        document = msgspec.json.decode(raw, type=_Document)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidParameter(f"the cache's configuration cannot be read: {error}") from error
    layers = document.layers or ()
    if len(layers) > MOST_LAYERS:
        raise InvalidParameter(f"the cache has {len(layers)} layers, at most {MOST_LAYERS} are read")
    known = {one.digest: one for one in blobs}
    described: list[tuple[Descriptor, str]] = []
    for number, one in enumerate(layers):
        blob = known.get(one.blob)
        if blob is None:
            raise InvalidParameter(f"layer {number} of the cache is the blob {one.blob!r}, which its manifest does not have")
        _check_blob(blob)
        diff_id = (blob.annotations or {}).get(DIFF_ID, "")
        described.append((blob, _checked(diff_id, f"what layer {number} of the cache unpacks to")))
        if one.base:
            _checked(one.base, f"the base of layer {number} of the cache")
        if one.base and one.parent != -1:
            raise InvalidParameter(f"layer {number} of the cache has a parent and lies on a base")
        if not -1 <= one.parent < len(layers):
            raise InvalidParameter(f"layer {number} of the cache lies on layer {one.parent}, which there is not")
    stacked = _stacked(described, [one.parent for one in layers], [one.base for one in layers])
    return CacheContent(layers=tuple(stacked), entries=_entries(document.records or (), len(stacked)))


def parse_inline(config: bytes, blobs: Sequence[Descriptor]) -> CacheContent | None:
    """The cache within an image, of which the configuration and the layers' descriptors are given; None where it has none.

    Raises InvalidParameter.
    """

    class Image(msgspec.Struct):
        cache: str | None = msgspec.field(name=INLINE, default=None)
        rootfs: spec.RootFS = spec.RootFS()

    try:
        image = msgspec.json.decode(config, type=Image)
        if not image.cache:
            return None
        raw = base64.b64decode(image.cache, validate=True)
        records = msgspec.json.decode(raw, type=tuple[_Record, ...] | None)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, binascii.Error) as error:
        raise InvalidParameter(f"the cache within the image cannot be read: {error}") from error
    diff_ids = image.rootfs.diff_ids or ()
    if len(diff_ids) != len(blobs):
        raise InvalidParameter(f"the image has {len(blobs)} layers and says what {len(diff_ids)} of them unpack to")
    for blob in blobs:
        _check_blob(blob)
    described = [(blob, _checked(one, "what a layer unpacks to")) for blob, one in zip(blobs, diff_ids, strict=True)]
    stacked = _stacked(described, range(-1, len(blobs) - 1), [""] * len(blobs))
    return CacheContent(layers=tuple(stacked), entries=_entries(records or (), len(stacked)))


def _check_blob(blob: Descriptor) -> None:
    _checked(blob.digest, "a layer's digest")
    if not 0 <= blob.size <= _LARGEST_LAYER:
        raise InvalidParameter(f"the layer {blob.digest} is said to have {blob.size} bytes")


def _checked(digest: str, what: str) -> str:
    if not is_digest(digest):
        raise InvalidParameter(f"{what} is no digest: {digest[:80]!r}")
    return digest


def _stacked(described: Sequence[tuple[Descriptor, str]], parents: Sequence[int], bases: Sequence[str]) -> list[CacheLayer]:
    """Layers with their chains. Raises InvalidParameter for circles and for too many on each other."""
    chains: dict[int, tuple[str, int]] = {}
    for start in range(len(described)):
        path: list[int] = []
        at = start
        while at >= 0 and at not in chains:
            path.append(at)
            if len(path) > DEEPEST:
                circle = len(set(path)) < len(path)
                what = "lie on each other in a circle" if circle else f"are more than {DEEPEST} on each other"
                raise InvalidParameter(f"the cache's layers {what} (from layer {start} on)")
            at = parents[at]
        for number in reversed(path):
            parent = parents[number]
            below, depth = chains[parent] if parent >= 0 else (bases[number], 0)
            if depth >= DEEPEST:
                raise InvalidParameter(f"the cache's layers are more than {DEEPEST} on each other (layer {number})")
            chains[number] = chain_on(below, described[number][1]), depth + 1
    return [
        CacheLayer(
            blob=blob, diff_id=diff_id, parent=parent, below=chains[parent][0] if parent >= 0 else bases[number], chain=chains[number][0]
        )
        for number, ((blob, diff_id), parent) in enumerate(zip(described, parents, strict=True))
    ]  # fmt: skip


def chain_on(below: str, diff_id: str) -> str:
    """The chain of a layer on another chain, "" for none."""
    return chain_ids([diff_id])[0] if not below else sha256(f"{below} {diff_id}".encode())


def _entries(records: Sequence[_Record], layers: int) -> dict[str, CacheEntry]:
    if len(records) > MOST_RECORDS:
        raise InvalidParameter(f"the cache has {len(records)} records, at most {MOST_RECORDS} are read")
    found: dict[str, CacheEntry] = {}
    for record in records:
        key = record.digest.removeprefix("sha256:")
        if record.inputs or not record.results or not _KEY.fullmatch(key):
            continue  # BuildKit's: a digest that says nothing without its inputs
        result = record.results[0]
        if not 0 <= result.layer < layers:
            raise InvalidParameter(f"a record of the cache leads to layer {result.layer}, which there is not")
        id = result.id if _ID.fullmatch(result.id) else ""
        found[key] = CacheEntry(layer=result.layer, created=_moment(result.created_at), id=id)
    return found


def _moment(text: str) -> int:
    """Go's time as Unix nanoseconds; 0 for what is none."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return 0
    if moment.tzinfo is None or moment.year < 1970:
        return 0
    whole = int(moment.replace(microsecond=0).timestamp()) * 1_000_000_000
    fraction = re.search(r"\.(\d{1,9})", text)
    return whole + (int(fraction[1].ljust(9, "0")) if fraction else 0)


# -- writing


class Packed(msgspec.Struct, frozen=True, kw_only=True):
    """A layer as it is put into a cache: blob, what it unpacks to, the index of the layer below or -1 with the chain below, keys that lead
    to it, when it was made (Unix nanoseconds) and its identifier."""

    blob: Descriptor
    diff_id: str
    parent: int = -1
    base: str = ""
    keys: tuple[str, ...] = ()
    created: int = 0
    id: str = ""


def descriptor(one: Packed) -> Descriptor:
    """Of a layer in a cache's manifest."""
    annotations = {CREATED: timestamp(one.created), DIFF_ID: one.diff_id}
    return msgspec.structs.replace(one.blob, annotations=annotations)


def document(layers: Sequence[Packed]) -> bytes:
    """The configuration of a cache; parents stand before the layers on them."""
    records = [
        _Record(digest=f"sha256:{key}", results=(_Result(number, timestamp(one.created), one.id),))
        for number, one in enumerate(layers)
        for key in sorted(one.keys)
    ]
    described = [_Layer(one.blob.digest, one.parent, one.base) for one in layers]
    return msgspec.json.encode({"layers": described, "records": records})


def inline(records: Iterable[tuple[str, int, int]]) -> msgspec.Raw:
    """The value of `INLINE`: keys, each with the index of its layer in the image and when that was made. Always the same for the same
    records, so that an image's identifier is."""
    found = [_Record(digest=f"sha256:{key}", results=(_Result(layer, timestamp(created)),)) for key, layer, created in records]
    return msgspec.Raw(msgspec.json.encode(base64.b64encode(msgspec.json.encode(found)).decode()))


def manifest(config: Descriptor, layers: Sequence[Descriptor], *, image: bool, docker: bool) -> tuple[str, bytes]:
    """Media type and bytes of what names all blobs: an image's manifest, or an index as caches used to be."""
    unique = list({one.digest: one for one in layers}.values())
    if image:
        return spec.MEDIA_MANIFEST, spec.encode(
            spec.Manifest(schema_version=2, media_type=spec.MEDIA_MANIFEST, config=config, layers=tuple(unique))
        )
    kind = spec.DOCKER_INDEX if docker else spec.MEDIA_INDEX
    return kind, spec.encode(spec.Index(schema_version=2, media_type=kind, manifests=(*unique, config)))
