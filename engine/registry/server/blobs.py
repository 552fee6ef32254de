"""Blobs: read them, in parts too, upload, mount and remove them. Distribution specification, "Pulling blobs", "Pushing blobs",
"Deleting Blobs".

A blob is served by sendfile from the content store; its bytes do not pass through Python.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import trio

from engine.aio.blocking import blocking
from engine.registry.server import names
from engine.registry.server.backend import Backend
from engine.registry.server.errors import RegistryError
from engine.registry.server.request import Request, encode_fields, location, wrong_method
from engine.registry.server.uploads import Session, Uploads
from engine.store.content import Content

OCTETS = "application/octet-stream"
# Content of a digest never changes (Docker's registry says a year too).
_FOREVER = "max-age=31536000"
_ALGORITHMS = ("sha256", "sha384", "sha512")

_log = logging.getLogger("knarr.registry")


class Blobs:
    """The handlers. `visible` tells whether a repository is served at all; a mount must not reach beyond."""

    def __init__(self, backend: Backend, content: Content, uploads: Uploads, visible: Callable[[str], bool]) -> None:
        self._backend = backend
        self._content = content
        self._uploads = uploads
        self._visible = visible

    # -- blobs

    def find(self, name: str, digest: str) -> int | None:
        """The size of a blob that the repository has and the content store too, else None."""
        size = self._backend.blob_size(name, digest)
        if size is None or not self._content.exists(digest, size):
            return None
        return size

    async def get(self, request: Request) -> None:
        """GET and HEAD of a blob (end-2)."""
        digest = names.digest(request.address.reference)
        size = self.find(request.name, digest)
        if size is None and await self._backend.bring(request.name, digest):
            size = self.find(request.name, digest)
        if size is None:
            raise RegistryError("BLOB_UNKNOWN", {"digest": digest})
        await self.send(request, digest, size)

    async def send(self, request: Request, digest: str, size: int) -> None:
        """Answer with a blob of the content store, or the part of it that was asked for."""
        if request.method == "HEAD" or request.matches(digest):
            await begin(request, digest, size)
            return
        try:
            descriptor = await blocking("disk", os.open, self._content.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            _log.error("blob %s of repository %s is gone from the content store", digest, request.name)
            raise RegistryError("BLOB_UNKNOWN", {"digest": digest})
        try:
            offset, count = await begin(request, digest, size)
            await request.exchange.part(descriptor, offset, count)
        finally:
            os.close(descriptor)

    async def delete(self, request: Request) -> None:
        """DELETE of a blob (end-10): out of this repository; its bytes go when no other has it."""
        digest = names.digest(request.address.reference)
        if not await self._backend.unlink(request.name, digest):
            raise RegistryError("BLOB_UNKNOWN", {"digest": digest})
        await request.reply(202)

    # -- uploads

    async def upload(self, request: Request) -> None:
        """Everything below `blobs/uploads/`."""
        if not request.address.reference:
            if request.method != "POST":
                raise wrong_method("POST")
            await self._begin(request)
            return
        if not names.is_session(request.address.reference):
            raise RegistryError("BLOB_UPLOAD_UNKNOWN")
        session = self._uploads.find(request.name, request.address.reference)
        if request.method in ("GET", "HEAD"):
            await request.reply(204, _progress(session))
            return
        if request.method not in ("PATCH", "PUT", "DELETE"):
            raise wrong_method("GET, PATCH, PUT, DELETE")
        async with self._uploads.using(session):
            if request.method == "PATCH":
                await self._append(request, session)
                await request.reply(202, _progress(session))
            elif request.method == "PUT":
                await self._finish(request, session)
            else:
                await self._uploads.cancel(session)
                await request.reply(204)

    async def _begin(self, request: Request) -> None:
        """POST: a session (end-4a), a whole blob (end-4b), or a mount (end-11)."""
        mount = request.value("mount")
        if mount and await self._mount(request, names.digest(mount)):
            return
        digest = request.value("digest")
        if digest and not mount:
            await self._whole(request, names.digest(digest))
            return
        algorithm = request.value("digest-algorithm") or "sha256"
        if algorithm not in _ALGORITHMS:
            raise RegistryError("DIGEST_INVALID", {"algorithm": algorithm[:100]}, message="unsupported digest algorithm")
        session = self._uploads.begin(request.name, algorithm)
        await request.reply(202, _progress(session))

    async def _mount(self, request: Request, digest: str) -> bool:
        """Take over a blob from a repository that this client may read; whether that was possible."""
        source = request.value("from")
        backend = self._backend
        if source:
            sources = [source] if backend.valid_name(source) else []
        else:
            # What a cache keeps of another registry lies under names that nobody can ask for: it is not given to others either.
            sources = [name for name in backend.holders(digest) if backend.valid_name(name) and request.may_pull(name)]
        with backend.holding(digest):
            for name in sources:
                size = self.find(name, digest) if self._visible(name) else None
                if size is not None:
                    await self._created(request, digest, size)
                    return True
        return False

    async def _whole(self, request: Request, digest: str) -> None:
        session = self._uploads.begin(request.name, digest.partition(":")[0])
        try:
            async with self._uploads.using(session):
                await self._append(request, session)
                await self._finish(request, session, digest)
        except BaseException:
            await self._give_up(session)
            raise

    async def _give_up(self, session: Session) -> None:
        """A session that no client knows of is no use to anybody."""
        if not session.ended:
            with trio.CancelScope(shield=True):
                await self._uploads.cancel(session)

    async def _append(self, request: Request, session: Session) -> None:
        """The request's body at the end of the upload; its Content-Range, when there is one, must begin there."""
        length = request.header(b"content-length")
        most = -1
        if given := request.header(b"content-range"):
            chunk = names.content_range(given)
            if chunk is None:
                raise RegistryError("BLOB_UPLOAD_INVALID", message=f"invalid Content-Range {given[:100]!r}")
            if chunk[0] != session.offset:
                message = f"the chunk begins at {chunk[0]}, {session.offset} bytes are here"
                raise RegistryError("RANGE_INVALID", message=message, fields=encode_fields(_progress(session)))
            most = chunk[1] - chunk[0] + 1
            if length and int(length) != most:
                raise RegistryError("SIZE_INVALID", message=f"Content-Length is {length}, Content-Range has {most} bytes")
        before = session.offset
        await self._uploads.append(session, request.exchange.chunks(), most)
        if 0 <= most != session.offset - before:
            raise RegistryError("SIZE_INVALID", message=f"Content-Range has {most} bytes, {session.offset - before} came")

    async def _finish(self, request: Request, session: Session, digest: str = "") -> None:
        """PUT (end-6): the last chunk, if there is one, and the digest of the whole."""
        if not digest:
            digest = names.digest(request.value("digest"))
            if request.exchange.has_body:
                await self._append(request, session)
        with self._backend.holding(digest):
            await self._uploads.finish(session, digest)
            await self._created(request, digest, session.offset)

    async def _created(self, request: Request, digest: str, size: int) -> None:
        await self._backend.link(request.name, digest, size)
        await request.reply(201, {"Location": location(request.name, "blobs", digest), "Docker-Content-Digest": digest})


async def begin(request: Request, digest: str, size: int) -> tuple[int, int]:
    """Send the head of a reply with a blob of `size` bytes; the offset and number of those that follow, none for HEAD and for 304."""
    tag = f'"{digest}"'
    fields = {"Docker-Content-Digest": digest, "ETag": tag, "Accept-Ranges": "bytes", "Cache-Control": _FOREVER}
    if request.matches(digest):
        await request.reply(304, fields)
        return 0, 0
    part = None
    if b"range" in request.exchange.headers and request.header(b"if-range") in ("", tag):
        part = names.byte_range(request.header(b"range"), size)
    offset, count = part or (0, size)
    if part is not None:
        fields["Content-Range"] = f"bytes {offset}-{offset + count - 1}/{size}"
    await request.sized(count, fields, OCTETS, 200 if part is None else 206)
    return (0, 0) if request.method == "HEAD" else (offset, count)


def _progress(session: Session) -> dict[str, str]:
    """What tells a client where to go on. Without any byte the range is 0-0, as in Docker's registry."""
    return {
        "Location": location(session.repository, "blobs", "uploads", session.id),
        "Range": f"0-{max(session.offset - 1, 0)}",
        "Docker-Upload-UUID": session.id,
    }

