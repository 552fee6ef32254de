"""Manifests and tags: read, push, remove, list. Distribution specification, "Pulling manifests", "Pushing
Manifests", "Deleting tags", "Deleting Manifests", "Listing Tags".

A manifest is given out as it was pushed, with its own media type, whatever the client says that it accepts: the digest names these bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence

import msgspec
import trio

from engine.aio.blocking import blocking
from engine.errors import Damaged, NotFound
from engine.http.errors import TooLarge
from engine.registry.server import names
from engine.registry.server.backend import Backend
from engine.registry.server.documents import Document, checked_sizes, parse
from engine.registry.server.errors import ManifestErrors, RegistryError
from engine.registry.server.request import Request, location
from engine.registry.server.uploads import make_folder, no_space
from engine.spec.digest import sha256
from engine.spec.image import MEDIA_INDEX
from engine.spec.manifest import MANIFEST_MAX
from engine.store.content import Content
from engine.store.repositories import StoredManifest

TAGS_MAX = 64  # of one push; the specification asks for ten at least
LIST_MAX = 10_000  # tags in one reply
# Manifests have some kilobytes. Those that say that they are longer, or say nothing, are taken a few at a time: they are held in memory.
_SMALL = 64 << 10
_LARGE_AT_A_TIME = 16


class Manifests:
    """The handlers."""

    def __init__(self, backend: Backend, content: Content) -> None:
        self._backend = backend
        self._content = content
        self._large = trio.Semaphore(_LARGE_AT_A_TIME)

    def find(self, name: str, reference: str) -> StoredManifest | None:
        """What a tag or digest stands for in a repository."""
        if ":" in reference:
            return self._backend.manifest(name, reference)
        digest = self._backend.tag(name, reference) if names.is_tag(reference) else ""
        return self._backend.manifest(name, digest) if digest else None

    def unknown(self, name: str, reference: str) -> RegistryError:
        """The reply when there is no such manifest."""
        if not self._backend.exists(name):
            return RegistryError("NAME_UNKNOWN", {"name": name})
        detail = {"Name": name, "Revision": reference} if ":" in reference else {"Tag": reference}
        return RegistryError("MANIFEST_UNKNOWN", detail)

    async def get(self, request: Request) -> None:
        """GET and HEAD of a manifest (end-3)."""
        found = self.find(request.name, request.address.reference)
        if found is None:
            raise self.unknown(request.name, request.address.reference)
        await self.send(request, found)

    async def send(self, request: Request, manifest: StoredManifest) -> None:
        """Answer with a manifest of the content store."""
        digest = manifest.digest
        fields = {"Docker-Content-Digest": digest, "ETag": f'"{digest}"'}
        if request.matches(digest):
            await request.reply(304, fields)
            return
        try:
            raw = await blocking("disk", self._content.read, digest)
        except (NotFound, Damaged):
            raise RegistryError("MANIFEST_UNKNOWN", {"Revision": digest}, message="the manifest is damaged in this registry, push it again")
        await request.reply(200, fields, raw, manifest.media_type)

    async def put(self, request: Request) -> None:
        """PUT of a manifest by tag (end-7a) or digest, with further tags (end-7b)."""
        reference, tags = request.address.reference, request.query.get("tag", [])
        if ":" in reference:
            names.digest(reference)
        elif tags:
            raise RegistryError("TAG_INVALID", message="further tags need a manifest that is pushed by digest")
        else:
            tags = [reference]
        if len(tags) > TAGS_MAX or not all(names.is_tag(tag) for tag in tags):
            raise RegistryError("TAG_INVALID", message=f"a tag is malformed, or there are more than {TAGS_MAX}")
        raw = await self._body(request)
        digest = self._digest(raw, reference)
        document = parse(raw, request.header(b"content-type"))
        await self.store(request.name, digest, raw, document, tags)
        fields: dict[str, str | Sequence[str]] = {
            "Location": location(request.name, "manifests", digest), "Docker-Content-Digest": digest
        }  # fmt: skip
        if document.subject:
            fields["OCI-Subject"] = document.subject
        if ":" in reference and tags:
            fields["OCI-Tag"] = tags
        await request.reply(201, fields)

    async def _body(self, request: Request) -> bytes:
        """The manifest that is pushed. Raises RegistryError."""
        length = request.header(b"content-length")
        large = contextlib.nullcontext() if length and int(length) <= _SMALL else self._large
        async with large:
            try:
                return await request.exchange.body(MANIFEST_MAX)
            except TooLarge:
                raise RegistryError("MANIFEST_INVALID", message=f"the manifest is larger than {MANIFEST_MAX} bytes", status=413)

    def _digest(self, raw: bytes, reference: str) -> str:
        """The digest under which a manifest is kept: the client's, checked, or sha256. Raises RegistryError."""
        algorithm = reference.partition(":")[0] if ":" in reference else "sha256"
        digest = f"{algorithm}:{hashlib.new(algorithm, raw).hexdigest()}"
        if ":" in reference and digest != reference:
            raise RegistryError("DIGEST_INVALID", {"digest": reference, "computed": digest})
        return digest

    async def store(self, name: str, digest: str, raw: bytes, document: Document, tags: Sequence[str], *, sparse: bool = False) -> None:
        """Keep a manifest durably and move tags to it. `sparse`: what it names may come later. Raises RegistryError."""
        if not sparse:
            self._check(name, document)
        with self._backend.holding(digest):
            try:
                await blocking("disk", _keep, self._content, digest, raw)
            except OSError as error:
                raise no_space(error) or error
            if not sparse:
                self._check(name, document)  # nothing may have gone while the disk was busy
            await self._backend.put_manifest(name, digest, len(raw), document, tags)

    def _check(self, name: str, document: Document) -> None:
        named = [one.digest for one in (*document.blobs, *document.manifests)]
        missing = checked_sizes(document, *self._backend.sizes(name, named))
        if missing:
            raise ManifestErrors(missing)

    async def delete(self, request: Request) -> None:
        """DELETE of a tag or a manifest (end-9)."""
        name, reference = request.name, request.address.reference
        if ":" not in reference:
            if not (names.is_tag(reference) and await self._backend.untag(name, reference)):
                raise self.unknown(name, reference)
            await request.reply(202)
            return
        manifest = self._backend.manifest(name, names.digest(reference))
        if manifest is None or not await self._backend.delete_manifest(name, reference):
            raise self.unknown(name, reference)
        if manifest.subject:
            await self._forget_referrer(name, manifest)
        await request.reply(202)

    async def _forget_referrer(self, name: str, gone: StoredManifest) -> None:
        """Take a removed referrer out of the index that a client kept under the fallback tag, where it did ("Referrers Tag Schema").

        A client that found the referrers API here does not do it any more.
        """
        tag = names.fallback_tag(gone.subject)
        found = self.find(name, tag)
        if found is None or found.media_type != MEDIA_INDEX:
            return
        try:
            index = msgspec.json.decode(await blocking("disk", self._content.read, found.digest))
            kept = [one for one in index["manifests"] if one["digest"] != gone.digest]
            unchanged = len(kept) == len(index["manifests"])
        except (NotFound, Damaged, msgspec.MsgspecError, KeyError, TypeError):
            return
        if unchanged or self._backend.tag(name, tag) != found.digest:
            return
        if kept:
            raw = msgspec.json.encode({**index, "manifests": kept})
            await self.store(name, sha256(raw), raw, parse(raw, MEDIA_INDEX), [tag], sparse=True)
        await self._backend.delete_manifest(name, found.digest)

    async def tags(self, request: Request) -> None:
        """The list of tags (end-8a, end-8b)."""
        name, wanted = request.name, request.value("n")
        if not self._backend.exists(name):
            raise RegistryError("NAME_UNKNOWN", {"name": name})
        limit = names.count(wanted, LIST_MAX) if wanted else LIST_MAX
        found = self._backend.tags(name, request.value("last"), limit + 1) if limit else []
        fields = {}
        if len(found) > limit:
            found = found[:limit]
            fields["Link"] = f'<{location(name, "tags", "list")}?n={limit}&last={found[-1]}>; rel="next"'
        await request.json({"name": name, "tags": found}, fields)


def _keep(content: Content, digest: str, raw: bytes) -> None:
    """A manifest's bytes into the content store, durably. Blocks."""
    if digest.startswith("sha256:"):
        if not content.exists(digest, len(raw)):
            content.put(raw)
        return
    if content.exists(digest, len(raw)):
        return
    make_folder(content, digest)
    path = content.temporary()
    try:
        with open(path, "xb") as file:
            file.write(raw)
        content.adopt(path, digest)
    except BaseException:
        os.unlink(path)
        raise
