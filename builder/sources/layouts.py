"""OCI image layouts among a build's contexts: their documents and blobs, and an image in one as the base of a stage.

A client sends a layout as a context (`oci-layout:N`), of which the blobs that its image needs are there. An image in it is no image of the
store: its layers come through the same jobs as those of a pull, and stay as long as something that was built on them.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from builder.progress import Reporter, stamp
from builder.tree import Tree
from engine.aio.blocking import blocking
from engine.aio.scopes import shielded
from engine.errors import Damaged, InvalidParameter, NotFound
from engine.service.context import Context
from engine.service.layers import Fetch, GivenUp, Job, Layers, Wanted
from engine.service.pull import layers_of
from engine.spec import image as spec
from engine.spec import manifest as manifests
from engine.spec.digest import is_digest, sha256
from engine.spec.image import Descriptor
from engine.spec.platform import Platform
from engine.store.images import ImageRecord
from engine.store.ingest import Ingest
from engine.store.view import View

SCHEME = "oci-layout://"
CONTEXT = "oci-layout:"
"""Begins the name of a context that is a layout: what follows is how addresses name it."""
_ROUNDS = 20  # as of pulls: somebody else gave up on a layer
_CLEANUP_SECONDS = 60.0
_PIECE = 1 << 20


# -- files


def read(tree: Tree, path: str, limit: int) -> bytes:
    """Blocks. A file of a layout. Raises NotFound, InvalidParameter for more than `limit` bytes."""
    fd, size = _open(tree, path)
    with open(fd, "rb") as file:
        if size > limit:
            raise InvalidParameter(f"{path} has {size} bytes, more than {limit}")
        return file.read(limit)


def blob(tree: Tree, digest: str, limit: int) -> bytes:
    """Blocks. A blob, checked. Raises as `read`, Damaged."""
    raw = read(tree, _place(digest), limit)
    if sha256(raw) != digest:
        raise Damaged(f"the blob {digest} of the OCI layout is {sha256(raw)}")
    return raw


def fetch(tree: Tree, wanted: Descriptor) -> Fetch:
    """Brings a blob into the content store, where it is checked."""
    return functools.partial(_fetch, tree, wanted)


async def _fetch(tree: Tree, wanted: Descriptor, ingest: Ingest, grown: Callable[[], None]) -> None:
    def copy(fd: int, start: int, end: int) -> int:
        piece = os.pread(fd, min(_PIECE, end - start), start)
        if not piece:
            raise Damaged(f"the blob {wanted.digest} of the OCI layout ends after {start} of {wanted.size} bytes")
        ingest.write(start, [piece])
        return len(piece)

    fd, size = await blocking("disk", _open, tree, _place(wanted.digest))
    try:
        if size != wanted.size:
            raise Damaged(f"the blob {wanted.digest} of the OCI layout has {size} bytes, not {wanted.size}")
        for start, end in ingest.missing(0):
            while start < end:
                start += await blocking("disk", copy, fd, start, end)
                grown()
    finally:
        os.close(fd)


def _open(tree: Tree, path: str) -> tuple[int, int]:
    """A descriptor of a regular file, and its size. Raises NotFound."""
    if tree.layers:
        with View(tree.layers) as view:
            node = view.find("/" + path)
            if node is not None and stat.S_ISREG(node.info.st_mode):
                return view.open_file(node), node.info.st_size
    raise NotFound(f"could not read {path}: no such file in the OCI layout")


def _place(digest: str) -> str:
    algorithm, _, encoded = digest.partition(":")
    return f"blobs/{algorithm}/{encoded}"


# -- layers


async def bring(layers: Layers, wanted: Sequence[tuple[Wanted, Fetch | None]], reporter: Reporter, vertex: str) -> None:
    """Unpack layers, bottom first, and tell of each as a bar of `vertex`. The caller keeps them from collection. Raises KnarrError."""
    began = stamp()
    for rounds in range(1, _ROUNDS + 1):
        jobs: list[Job] = []
        try:
            for one, source in wanted:
                jobs.append(layers.job(one, jobs[-1] if jobs else None, source))
            for job in jobs:
                told = f"extracting {job.wanted.digest}"
                reporter.status(vertex, told, 0, job.total, started=began)
                await job.reached(job.ended)
                reporter.status(vertex, told, job.total, job.total, started=began, completed=True)
            return
        except GivenUp:
            if rounds == _ROUNDS:
                raise
        finally:
            for job in jobs:
                layers.leave(job)
            with shielded(_CLEANUP_SECONDS):
                await layers.settled(jobs)


# -- images


class _Named(msgspec.Struct, frozen=True):
    context: str
    digest: str


def _parse(address: str) -> _Named:
    """`oci-layout://N@DIGEST`, N as in the context's name; a tag before the digest is for people."""
    name, _, digest = address.removeprefix(SCHEME).partition("@")
    if not is_digest(digest):
        raise InvalidParameter(f"invalid OCI layout {address}: expected the digest of its manifest")
    return _Named(CONTEXT + name.partition(":")[0], digest)


class Layouts:
    """The images in layouts that one build stands on. `brought`: blobs that are to be released when it is over."""

    def __init__(self, context: Context, reporter: Reporter, contexts: Callable[[str], Awaitable[Tree]]) -> None:
        self._context = context
        self._reporter = reporter
        self._contexts = contexts
        self.brought: list[str] = []

    async def find(self, address: str, platform: Platform, vertex: str) -> ImageRecord:
        """The image at an address, with its layers unpacked; `vertex` is what is told of it. The caller keeps it from collection before
        anything else is done. Raises NotFound, InvalidParameter, Damaged, KnarrError."""
        digest = sha256(f"{vertex} {platform}".encode())
        self._reporter.begin(digest, vertex)
        trouble = "the build ended before"
        try:
            image = await self._find(address, platform, digest)
            trouble = ""
            return image
        except Exception as error:
            trouble = str(error)
            raise
        finally:
            self._reporter.end(digest, error=trouble, counts=False)

    async def _find(self, address: str, platform: Platform, vertex: str) -> ImageRecord:
        named = _parse(address)
        tree = await self._contexts(named.context)
        image, described = await blocking("disk", _image, tree, named.digest, platform, address)
        below = ["", *(layer.chain_id for layer in image.layers)]
        wanted = [
            (Wanted(layer.digest, layer.size, layer.diff_id, layer.chain_id, parent), fetch(tree, one))
            for layer, parent, one in zip(image.layers, below, described, strict=False)
        ]
        self.brought += [layer.digest for layer in image.layers]
        with self._context.images.pins() as pin:
            pin([*image.chain_ids, *image.blobs])
            await bring(self._context.layers, wanted, self._reporter, vertex)
            return image


def _image(tree: Tree, digest: str, platform: Platform, what: str) -> tuple[ImageRecord, Sequence[Descriptor]]:
    """In a worker thread: the image of a manifest or an index, and its layers as the manifest has them."""
    media_type = ""
    for _ in range(manifests.NESTING_MAX):
        raw = blob(tree, digest, manifests.MANIFEST_MAX)
        document = manifests.parse(raw, media_type, what)
        if isinstance(document, spec.Manifest):
            manifests.image(document, what)
            config_raw = blob(tree, document.config.digest, manifests.CONFIG_MAX)
            config = manifests.config(config_raw, document, what)
            image = ImageRecord(
                id=document.config.digest, manifest=digest, manifest_size=len(raw), config=config, raw=config_raw,
                layers=tuple(layers_of(document, config)), size=0, manifest_type=document.media_type or spec.MEDIA_MANIFEST,
            )  # fmt: skip
            return image, document.layers or ()
        chosen = manifests.choose(document, platform, what)
        digest, media_type = chosen.digest, chosen.media_type
    raise InvalidParameter(f"{what}: indexes are nested too deeply")
