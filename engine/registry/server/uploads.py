"""Uploads that are under way: each a file in `content/uploads/` and a row, so that it outlives the daemon. Becomes a blob at its end.

The offset is the file's size. The hash is kept while the daemon runs and computed again from the file after a restart, or when the
client in the end names another algorithm. Bytes are hashed and written in a worker, a megabyte at a time. An upload that nobody wrote to
for a day is removed; there is a bound on their number. Follows the OCI distribution specification, "Pushing blobs".
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator
from typing import Protocol

import trio

from engine.aio.blocking import blocking
from engine.http.errors import BadRequest, ClientGone
from engine.registry.server.errors import RegistryError
from engine.store.content import Content
from engine.store.db import DatabaseError
from engine.store.repositories import Upload

# What goes to a worker at once: a trip costs some 0.2 ms, hashing this much some 1 ms.
PIECE = 1 << 20
# What all uploads together may hold in memory; with many at a time each hands less to a worker.
_HELD_MAX = 64 << 20
_PIECE_MIN = 64 << 10
_OBJECT = 64  # bytes that a piece takes beside its content: there are chunks of one byte
EXPIRE_SECONDS = 24 * 3600.0
# Docker pushes five layers at a time; this is room for two hundred of its clients, and a bound for a hostile one.
UPLOADS_MAX = 1024
# When there are too many, one that nobody touched for this long makes room.
_IDLE_SECONDS = 3600.0

_FULL = (errno.ENOSPC, errno.EDQUOT)

log = logging.getLogger("knarr.registry")


class Rows(Protocol):
    """Where uploads are remembered; `RepositoryStore` does."""

    def uploads(self) -> list[Upload]: ...
    def add_upload(self, upload: Upload) -> None: ...
    def remove_uploads(self, ids: list[str]) -> None: ...


class Hash(Protocol):
    """A hash of `hashlib`."""

    def update(self, data: bytes | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


class Session:
    """One upload. `offset` is in bytes. Only the holder of `Uploads.using` may touch it."""

    def __init__(self, upload: Upload, path: str, offset: int) -> None:
        self.id = upload.id
        self.repository = upload.repository
        self.algorithm = upload.algorithm
        self.path = path
        self.offset = offset
        self.touched = time.time()
        self.hash: Hash | None = None if offset else hashlib.new(upload.algorithm)  # None: to be computed from the file
        self.lock = trio.Lock()
        self.scope: trio.CancelScope | None = None
        self.ended = False


def no_space(error: OSError | DatabaseError) -> RegistryError | None:
    """The reply when the disk is full, None for any other error."""
    if getattr(error, "errno", 0) in _FULL or getattr(error, "sqlite_errorname", "") == "SQLITE_FULL":
        return RegistryError("UNKNOWN", message="the registry's disk is full", status=507)
    return None


class Uploads:
    """The uploads of one data root."""

    def __init__(self, content: Content, folder: str, rows: Rows, *, limit: int = UPLOADS_MAX) -> None:
        self._content = content
        self._folder = folder
        self._rows = rows
        self._limit = limit
        self._sessions: dict[str, Session] = {}
        self._writers = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self) -> None:
        """Find what an earlier run of the daemon left; files and rows without the other half are removed. Blocks on the disk shortly."""
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        files = {entry.name: entry.stat() for entry in os.scandir(self._folder)}
        lost = []
        for upload in self._rows.uploads():
            found = files.pop(upload.id, None)
            if found is None or upload.algorithm not in hashlib.algorithms_available:
                lost.append(upload.id)
                continue
            session = Session(upload, f"{self._folder}/{upload.id}", found.st_size)
            session.touched = found.st_mtime
            self._sessions[upload.id] = session
        for name in files:
            os.unlink(f"{self._folder}/{name}")
        if lost:
            self._rows.remove_uploads(lost)

    def begin(self, repository: str, algorithm: str = "sha256") -> Session:
        """A new upload. Raises RegistryError when there are too many, or the disk is full."""
        if len(self._sessions) >= self._limit:
            self._make_room()
        upload = Upload(secrets.token_hex(16), repository, algorithm, int(time.time()))
        path = f"{self._folder}/{upload.id}"
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise no_space(error) or error
        try:
            self._rows.add_upload(upload)
        except BaseException:
            os.unlink(path)
            raise
        session = self._sessions[upload.id] = Session(upload, path, 0)
        return session

    def _make_room(self) -> None:
        oldest = min(self._sessions.values(), key=lambda session: session.touched)
        if oldest.lock.locked() or time.time() - oldest.touched < _IDLE_SECONDS:
            raise RegistryError("TOOMANYREQUESTS", message="too many uploads are under way", fields=b"Retry-After: 30\r\n")
        _unlink(oldest.path)
        self._forget(oldest)

    def find(self, repository: str, id: str) -> Session:
        """An upload of a repository. Raises RegistryError."""
        session = self._sessions.get(id)
        if session is None or session.repository != repository:
            raise RegistryError("BLOB_UPLOAD_UNKNOWN")
        return session

    @contextlib.asynccontextmanager
    async def using(self, session: Session) -> AsyncIterator[None]:
        """Have the upload alone. A request that still writes to it is ended: its client lost the connection and came back.

        Raises RegistryError when the upload ended meanwhile, ClientGone in the request that is ended.
        """
        if session.scope is not None:
            session.scope.cancel()
        with trio.CancelScope() as scope:
            session.scope = scope
            try:
                async with session.lock:
                    if session.ended:
                        raise RegistryError("BLOB_UPLOAD_UNKNOWN")
                    yield
            finally:
                session.touched = time.time()
                if session.scope is scope:
                    session.scope = None
        if scope.cancelled_caught:
            raise ClientGone

    async def append(self, session: Session, pieces: AsyncIterator[bytes], most: int = -1) -> None:
        """Write what comes, `most` bytes at most (-1: no bound). Raises RegistryError; what was written until then stays, unless the disk
        is full."""
        end = session.offset + most
        descriptor = await blocking("disk", _open_at, session.path, session.offset)
        waiting: list[bytes] = []
        size = held = 0
        self._writers += 1
        try:
            if session.hash is None:
                await self._rehash(session)
            async for piece in pieces:
                waiting.append(piece)
                size += len(piece)
                held += len(piece) + _OBJECT
                if most >= 0 and session.offset + size > end:
                    raise RegistryError("SIZE_INVALID", message="the chunk is longer than its Content-Range says")
                if held >= max(_PIECE_MIN, min(PIECE, _HELD_MAX // self._writers)):
                    await self._write(session, descriptor, waiting)
                    waiting, size, held = [], 0, 0
        except (ClientGone, BadRequest):
            # What did arrive counts: the client comes back and asks how far it got.
            if waiting:
                await self._write(session, descriptor, waiting)
            raise
        else:
            if waiting:
                await self._write(session, descriptor, waiting)
        finally:
            self._writers -= 1
            os.close(descriptor)

    async def _write(self, session: Session, descriptor: int, pieces: list[bytes]) -> None:
        try:
            assert session.hash is not None
            session.offset += await blocking("hashing", write_pieces, descriptor, pieces, session.hash)
        except OSError as error:
            session.hash = None
            full = no_space(error)
            if full is None:
                raise
            await self._drop(session)
            raise full

    async def _rehash(self, session: Session) -> None:
        session.hash = await blocking("hashing", _hash_file, session.path, session.algorithm)

    async def finish(self, session: Session, digest: str) -> None:
        """Check the digest and make the file a durable blob. Raises RegistryError; the upload is over in any case.

        The caller keeps the garbage collector off (`Backend.holding`) until the blob is linked.
        """
        algorithm, _, encoded = digest.partition(":")
        session.scope = None  # who comes from here on waits for the end
        try:
            if algorithm != session.algorithm or session.hash is None:
                session.algorithm = algorithm
                await self._rehash(session)
            assert session.hash is not None
            computed = session.hash.hexdigest()
            if computed != encoded:
                raise RegistryError("DIGEST_INVALID", {"digest": digest, "computed": f"{algorithm}:{computed}"})
            try:
                await blocking("disk", _commit, self._content, session.path, digest)
            except OSError as error:
                raise no_space(error) or error
        finally:
            with trio.CancelScope(shield=True):
                await self._drop(session)

    async def cancel(self, session: Session) -> None:
        """Give the upload up."""
        await self._drop(session)

    async def _drop(self, session: Session) -> None:
        """The file first: on a full disk the row may need its space."""
        session.ended = True
        await blocking("disk", _unlink, session.path)
        self._forget(session)

    def _forget(self, session: Session) -> None:
        session.ended = True
        if self._sessions.pop(session.id, None) is not None:
            try:
                self._rows.remove_uploads([session.id])
            except DatabaseError as error:  # a row without its file is dropped at the next start
                log.warning("forgetting upload %s: %s", session.id, error)

    async def expire(self, age: float = EXPIRE_SECONDS) -> int:
        """Remove uploads that nobody wrote to for `age` seconds; how many."""
        horizon = time.time() - age
        old = [session for session in self._sessions.values() if session.touched < horizon and not session.lock.locked()]
        for session in old:
            await self._drop(session)
        return len(old)


def _open_at(path: str, offset: int) -> int:
    """The file for appending at `offset`: what lies beyond was written by a request that was cut off in the middle of a write."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size != offset:
            os.ftruncate(descriptor, offset)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def write_pieces(descriptor: int, pieces: list[bytes], sink: Hash) -> int:
    """Hash and write; how many bytes. Blocks. Raises OSError."""
    total = 0
    for piece in pieces:
        view = memoryview(piece)
        sink.update(view)
        total += len(view)
        while view:
            view = view[os.write(descriptor, view) :]
    return total


def _hash_file(path: str, algorithm: str) -> Hash:
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, algorithm)


def _commit(content: Content, path: str, digest: str) -> None:
    """Make the file a blob. One that is there already is replaced: its bytes were checked long ago, these were just now."""
    make_folder(content, digest)
    content.adopt(path, digest)


def make_folder(content: Content, digest: str) -> None:
    """The folder of a digest's algorithm; that of sha256 is always there."""
    folder = os.path.dirname(content.path(digest))
    if os.path.isdir(folder):
        return
    os.makedirs(folder, mode=0o710, exist_ok=True)
    parent = os.open(os.path.dirname(folder), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)

