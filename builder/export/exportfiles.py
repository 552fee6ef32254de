"""Outputs of a build: what `--output` says, and carrying it out: an image in the store, in a registry or as an archive, or its files.

Follows BuildKit's exporters (image, registry, local, tar, oci, docker) and their attributes. Archives and files go to the client as
streams: it unpacks or writes them. What an image consists of is the business of `export`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence

import msgspec
import trio

from builder.export.images import Attach, Exported, Manner, Part, Pin, Report, export_images
from engine.aio.blocking import blocking
from engine.aio.scopes import shielded
from engine.errors import InvalidParameter, KnarrError, NotImplementedYet
from engine.service import save
from engine.service.context import Context
from engine.service.layerblobs import Form
from engine.service.pull import Options as PushOptions
from engine.spec import reference as references
from engine.spec.build import Endpoint, Options
from engine.spec.digest import chain_ids, is_digest
from engine.spec.docker.registry import Credentials
from engine.spec.image import Descriptor
from engine.spec.platform import Platform
from engine.spec.platform import parse as platform_of
from engine.spec.reference import Reference
from engine.store.packmerged import Merger

_TRUE, _FALSE = ("1", "t", "T", "true", "TRUE", "True"), ("0", "f", "F", "false", "FALSE", "False")
_CLEANUP_SECONDS = 60.0
_READ = 1 << 20
_IMAGES = ("image", "oci", "docker")
_VERTEX = {
    "image": "exporting to image", "local": "exporting to client directory", "tar": "exporting to client tarball",
    "oci": "exporting to oci image format", "docker": "exporting to docker image format", "cacheonly": "",
}  # fmt: skip
_ANNOTATIONS = ("manifest", "index", "manifest-descriptor", "index-descriptor")
_COMMON = frozenset({
    "name", "compression", "compression-level", "force-compression", "oci-mediatypes", "rewrite-timestamp", "buildinfo",
    "buildinfo-attrs", "prefer-nondist-layers", "oci-artifact", "attestation-inline",
})  # fmt: skip
_KNOWN = {
    "image": _COMMON | {"push", "push-by-digest", "registry.insecure", "unpack", "store", "name-canonical", "dangling-name-prefix"},
    "oci": _COMMON | {"tar"},
    "docker": _COMMON | {"tar"},
    "local": frozenset({"platform-split", "attestation-prefix"}),
    "tar": frozenset({"platform-split", "attestation-prefix"}),
    "cacheonly": frozenset[str](),
}

Send = Callable[[AsyncIterable[bytes]], Awaitable[object]]
"""Sends a stream to the client, to its end."""

Write = Callable[[bytes | memoryview], object]


class Annotation(msgspec.Struct, frozen=True):
    """One annotation: `kind` is manifest, index, manifest-descriptor or index-descriptor; `platform` None is every one."""

    kind: str
    key: str
    value: str
    platform: Platform | None = None


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """One output: `kind` is image, local, tar, oci, docker or cacheonly. `canonical`: also a name with the digest; `dangling`: a repository
    for an image without a name; `split`: a folder for each platform, None where there are several; `prefix`: of files with attestations.
    `digests`: the names have no tags, and pushed is by digest; `stored`: the image is in the store; `insecure`: so is the registry."""

    kind: str
    names: tuple[Reference, ...] = ()
    push: bool = False
    manner: Manner = Manner()
    annotations: tuple[Annotation, ...] = ()
    canonical: bool = False
    digests: bool = False
    stored: bool = True
    insecure: bool = False
    dangling: str = ""
    split: bool | None = None
    prefix: str = ""

    @property
    def vertex(self) -> str:
        """What progress calls it, "" for nothing."""
        return _VERTEX[self.kind]

    @property
    def streamed(self) -> bool:
        """Whether the client gets bytes."""
        return self.kind in ("local", "tar", "oci", "docker")


# -- what is asked for


def outputs(options: Options, epoch: int | None = None) -> list[Output]:
    """The outputs of a build, in order; without any the image store. Raises InvalidParameter, NotImplementedYet."""
    return [output(one, options, epoch) for one in options.outputs or (Endpoint(type="image"),)]


def output(endpoint: Endpoint, options: Options, epoch: int | None) -> Output:
    """One of them. Raises as `outputs`."""
    kind, attributes = endpoint.type, dict(endpoint.attributes)
    if kind == "registry":
        kind = "image"
        attributes.setdefault("push", "true")
    if kind not in _KNOWN:
        raise InvalidParameter(f'exporter "{kind}" could not be found', hint="there are: " + ", ".join(sorted({*_KNOWN, "registry"})))
    if kind not in _IMAGES:
        attributes = {key: value for key, value in attributes.items() if key != "name"}
    annotations: list[Annotation] = []
    if kind in _IMAGES:
        annotations = [one for text in options.annotations for one in annotations_of(text)] + _annotations_of(attributes)
    for key in attributes:
        if key not in _KNOWN[kind] and not key.startswith("annotation"):
            raise InvalidParameter(f'unknown attribute "{key}" of the output {kind}', hint="it has: " + ", ".join(sorted(_KNOWN[kind])))
    if kind not in _IMAGES:
        split = _flag(attributes, "platform-split") if "platform-split" in attributes else None
        return Output(kind=kind, manner=Manner(epoch=epoch), split=split, prefix=attributes.get("attestation-prefix", ""))
    for key in ("oci-artifact", "attestation-inline", "prefer-nondist-layers"):
        if _flag(attributes, key):
            raise NotImplementedYet(f"--output type={kind},{key}=true")
    _flag(attributes, "unpack", True)  # layers that were built are unpacked always
    names = tuple(references.parse(name) for name in options.tags or _names(attributes.get("name", "")))
    push = _flag(attributes, "push")
    if push and not names:
        raise InvalidParameter("tag is needed when pushing to registry")
    digests = _flag(attributes, "push-by-digest")
    tagged = next((name for name in names if name.tag or name.digest), None)
    if push and digests and tagged is not None:
        raise InvalidParameter(f"can't push tagged ref {tagged} by digest", hint="name the repository alone")
    return Output(
        kind=kind, names=names, push=push, manner=_manner(kind, attributes, options, epoch), annotations=tuple(annotations),
        canonical=_flag(attributes, "name-canonical"), digests=push and digests, stored=_flag(attributes, "store", True),
        insecure=_flag(attributes, "registry.insecure"), dangling=attributes.get("dangling-name-prefix", ""),
    )  # fmt: skip


def _manner(kind: str, attributes: Mapping[str, str], options: Options, epoch: int | None) -> Manner:
    form: Form | None = None
    packing = attributes.get("compression", "")
    if packing == "estargz":
        raise NotImplementedYet("compression=estargz")
    level = _number(attributes, "compression-level")
    if packing or level is not None:
        form = Form(packing or "gzip", level).check()
    elif kind == "oci":
        form = Form()  # for a registry sooner or later; `docker load` takes plain layers as well
    docker = not _flag(attributes, "oci-mediatypes", kind != "docker")
    return Manner(
        form=form, force=_flag(attributes, "force-compression"), epoch=epoch,
        rewrite=_flag(attributes, "rewrite-timestamp", epoch is not None),
        docker=docker and (form is None or form.kind != "zstd"), squash=options.squash,
    )  # fmt: skip


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _flag(attributes: Mapping[str, str], key: str, default: bool = False) -> bool:
    value = attributes.get(key, "")
    if value == "" and key in attributes:
        return True
    if value in _TRUE or value in _FALSE:
        return value in _TRUE
    if value:
        raise InvalidParameter(f'non-bool value specified for {key}: "{value}"')
    return default


def _number(attributes: Mapping[str, str], key: str) -> int | None:
    value = attributes.get(key, "")
    if not value:
        return None
    if not value.isascii() or not value.isdecimal():
        raise InvalidParameter(f'non-integer value specified for {key}: "{value}"')
    return int(value)


def annotations_of(text: str) -> list[Annotation]:
    """`[TYPE[[PLATFORM]],…:]KEY=VALUE` of `--annotation`; the type is manifest when there is none. Raises InvalidParameter."""
    key, equals, value = text.partition("=")
    kinds, colon, rest = key.partition(":")
    places = [one.partition("[") for one in kinds.split(",")]
    if colon and all(kind in _ANNOTATIONS for kind, _, _ in places):
        key = rest
    else:
        places = [("manifest", "", "")]
    if not equals or not key:
        raise InvalidParameter(f'invalid annotation "{text}", expected key=value')
    return [Annotation(kind, key, value, platform_of(on.removesuffix("]")) if on else None) for kind, _, on in places]


def _annotations_of(attributes: Mapping[str, str]) -> list[Annotation]:
    """`annotation[-TYPE][[PLATFORM]].KEY=VALUE` among the attributes of an output."""
    found: list[Annotation] = []
    for name, value in attributes.items():
        if not name.startswith("annotation"):
            continue
        head, dot, key = name.partition(".")
        kind, _, platform = head.partition("[")
        kind = kind.removeprefix("annotation").removeprefix("-") or "manifest"
        if not dot or not key or kind not in _ANNOTATIONS:
            raise InvalidParameter(f'invalid annotation "{name}" of an output', hint="annotation[-TYPE].KEY=VALUE")
        found.append(Annotation(kind, key, value, platform_of(platform.removesuffix("]")) if platform else None))
    return found


def _annotated(output: Output, parts: Sequence[Part]) -> tuple[Manner, list[Part]]:
    """The manner with the annotations of an index, each platform's image with its own. Raises InvalidParameter."""
    built = [part.target.platform.normalised() for part in parts]
    for one in output.annotations:
        if len(parts) > 1 and one.platform is not None and one.platform.normalised() not in built:
            raise InvalidParameter(f"invalid annotation: no platform {one.platform} found in source")

    def of(kind: str, platform: Platform | None = None) -> dict[str, str]:
        fits = [one for one in output.annotations if one.kind == kind and (one.platform is None or one.platform.normalised() == platform)]
        return {one.key: one.value for one in sorted(fits, key=lambda one: one.platform is not None)}

    own = [
        msgspec.structs.replace(part, annotations=of("manifest", platform), descriptor=of("manifest-descriptor", platform))
        for part, platform in zip(parts, built, strict=True)
    ]
    return msgspec.structs.replace(output.manner, index=of("index")), own


# -- carrying it out


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What an output needs of its build: `send` for a client that takes streams; `credentials` by registry; `attach` for attestations in an
    index, `files` for those beside files of one platform (name without prefix -> content)."""

    report: Report
    send: Send | None = None
    credentials: Callable[[Reference], Credentials | None] = lambda name: None
    attach: Attach | None = None
    files: Callable[[Part], Mapping[str, bytes]] = lambda part: {}


async def carry_out(context: Context, output: Output, parts: Sequence[Part], around: Surroundings) -> Exported | None:
    """Give a build's result to where it is to go; the image, None where there is none. The caller keeps everything that `parts` name.

    Raises InvalidParameter, NotImplementedYet, KnarrError, OSError.
    """
    if output.kind == "cacheonly":
        return None
    if output.streamed and around.send is None:
        raise InvalidParameter(f"the output {output.kind} needs a client that takes it")
    if output.kind in ("local", "tar"):
        await _files(context, output, parts, around)
        return None
    several = len(parts) > 1 or around.attach is not None
    if not several and any(one.kind.startswith("index") for one in output.annotations):
        raise InvalidParameter("index annotations not supported for single platform export")
    manner, parts = _annotated(output, parts)
    if output.kind == "image":
        return await _image(context, output, parts, manner, around)
    return await _archive(context, output, parts, manner, around)


async def _image(context: Context, output: Output, parts: Sequence[Part], manner: Manner, around: Surroundings) -> Exported:
    if not output.stored:
        return await _passing(context, output, parts, manner, around)
    names = () if output.digests else output.names
    exported = await export_images(context, parts, names, manner, report=around.report, attach=around.attach)
    if output.push:
        exported = await _push(context, output, exported, around)
    store = context.images.store
    index = exported.digest if exported.index is not None else ""
    extra: list[Reference] = []
    if output.canonical or output.digests:
        extra += [references.parse(name.name).with_digest(exported.digest) for name in output.names]
    if output.dangling and not output.names:
        extra.append(references.parse(output.dangling).with_digest(exported.digest))
    for name in extra:
        if index:
            store.put(exported.image, [name], exported.index, exported.image.id)
        else:
            store.tag(exported.image.id, name)
        around.report(f"naming to {name}", done=True)
    if extra:
        await context.images.durable()
    return exported


async def _passing(context: Context, output: Output, parts: Sequence[Part], manner: Manner, around: Surroundings) -> Exported:
    """An image that the store has nothing of, but what a push needs while it goes on."""
    if manner.form is None:
        manner = msgspec.structs.replace(manner, form=Form())  # its manifest is what a registry gets
    async with _held(context) as hold:
        exported = await export_images(context, parts, (), manner, report=around.report, attach=around.attach, hold=hold)
        return await _push(context, output, exported, around) if output.push else exported


@contextlib.asynccontextmanager
async def _held(context: Context) -> AsyncIterator[Pin]:
    """Keeps what it is told from collection; what nobody else needs goes at the end."""
    held: list[str] = []
    try:
        with context.images.pins() as pin:

            def hold(digests: Iterable[str]) -> None:
                new = list(digests)
                held.extend(new)
                pin(new)

            yield hold
    finally:
        with shielded(_CLEANUP_SECONDS):
            await context.images.release({digest for digest in held if is_digest(digest)})


async def _push(context: Context, output: Output, exported: Exported, around: Surroundings) -> Exported:
    around.report("pushing layers")
    for name in output.names:
        options = PushOptions(credentials=around.credentials(name), insecure=output.insecure)
        if output.stored and not output.digests:
            lines = context.pushes.push(name.with_default_tag(), options)
        else:
            whole = name if output.digests else name.with_default_tag()
            lines = context.pushes.push_built(whole, exported.images, exported.index, options)
        async for _ in lines:
            pass
    around.report("pushing layers", done=True)
    image = (context.images.store.get(exported.image.id) if output.stored else None) or exported.image
    if exported.index is None:
        exported = msgspec.structs.replace(exported, image=image, images=(image,), digest=image.manifest, size=image.manifest_size)
    for name in output.names:
        shown = name if output.digests else name.with_default_tag()
        around.report(f"pushing manifest for {shown}@{exported.digest}", done=True)
    return exported


async def _archive(context: Context, output: Output, parts: Sequence[Part], manner: Manner, around: Surroundings) -> Exported:
    """An image as an archive; the store has nothing of it but what the archive needs while it is sent."""
    if output.kind == "docker" and (len(parts) > 1 or around.attach is not None):
        raise InvalidParameter("docker exporter does not currently support exporting manifest lists")
    images = context.images
    names = tuple(name.with_default_tag() for name in output.names)
    async with _held(context) as hold:
        exported = await export_images(context, parts, (), manner, report=around.report, attach=around.attach, hold=hold)
        with save.Archive(images, save.plan_of(names, exported.image, exported.images, exported.index)) as archive:
            await archive.check()
            around.report(f"exporting manifest {exported.digest}", done=True)
            around.report(f"exporting config {exported.image.id}", done=True)
            around.report("sending tarball")
            await _piped(lambda pieces: archive.write(_Pipe(pieces)), around.send)
            around.report("sending tarball", done=True)
    return exported


async def _files(context: Context, output: Output, parts: Sequence[Part], around: Surroundings) -> None:
    """The files of the root file systems, in one tar."""
    told = "copying files" if output.kind == "local" else "sending tarball"
    split = output.split if output.split is not None else len(parts) > 1
    if not split and len(parts) > 1:
        raise NotImplementedYet(f"--output type={output.kind},platform-split=false", hint="build one platform at a time")
    trees: list[tuple[bytes, tuple[str, ...], dict[bytes, bytes]]] = []
    with context.images.pins() as pin:
        for part in parts:
            top = part.added[-1].snapshot.name if part.added else _base(part)
            pin([top] if top else [])
            prefix = str(part.target.platform).replace("/", "_") + "/" if split else ""
            extra = {os.fsencode(output.prefix + name): data for name, data in around.files(part).items()}
            trees.append((os.fsencode(prefix), context.snapshots.lowers(top), extra))

        def fill(write: Write) -> None:
            merger = Merger(write, epoch=output.manner.epoch, check=trio.from_thread.check_cancelled)
            for prefix, layers, extra in trees:
                merger.add(layers, prefix=prefix, extra=extra)
            merger.finish()

        async def produce(pieces: trio.MemorySendChannel[bytes]) -> None:
            await blocking("build", fill, lambda piece: trio.from_thread.run(pieces.send, bytes(piece)))

        around.report(told)
        await _piped(produce, around.send)
        around.report(told, done=True)


def _base(part: Part) -> str:
    chains = chain_ids(part.target.base.diff_ids) if part.target.base is not None else ()
    return chains[-1] if chains else ""


class _Pipe:
    """A `save.Sink` whose bytes go into a channel."""

    def __init__(self, pieces: trio.MemorySendChannel[bytes]) -> None:
        self._pieces = pieces

    async def write(self, data: bytes) -> None:
        await self._pieces.send(data)

    async def write_file(self, descriptor: int, offset: int, count: int) -> None:
        end = offset + count
        while offset < end:
            piece = await blocking("disk", os.pread, descriptor, min(_READ, end - offset), offset)
            if not piece:
                raise KnarrError("sending an archive: a blob became shorter meanwhile")
            await self._pieces.send(piece)
            offset += len(piece)


async def _piped(produce: Callable[[trio.MemorySendChannel[bytes]], Awaitable[object]], send: Send | None) -> None:
    """What one side writes into a channel is what the other one sends."""
    assert send is not None
    pieces, taken = trio.open_memory_channel[bytes](2)
    failures: list[Exception] = []

    async def run(step: Awaitable[object], channel: trio.abc.AsyncResource) -> None:
        async with channel:
            try:
                await step
            except trio.BrokenResourceError:
                return  # the other side ended early, and says why
            except Exception as error:  # raised below
                failures.append(error)
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, produce(pieces), pieces)
        nursery.start_soon(run, send(taken), taken)
    if failures:
        raise failures[0]


def metadata(exported: Exported, names: Sequence[Reference], *, tagged: bool = True) -> dict[str, object]:
    """What `--metadata-file` has of an image, as BuildKit's exporter says it; not `tagged`: of repositories."""
    found: dict[str, object] = {
        "containerimage.config.digest": exported.image.id,
        "containerimage.descriptor": Descriptor(media_type=exported.media_type, digest=exported.digest, size=exported.size),
        "containerimage.digest": exported.digest,
    }
    if names:
        found["image.name"] = ",".join(str(name.with_default_tag() if tagged else name) for name in names)
    return found
