"""Whose repositories a registry server shows: the protocol, and the one over the `repository_*` tables.

A method without `async` answers from memory or the database at once, on the event loop's thread. One with `async` returns when the change
is durable: what the server acknowledges after it survives a power cut. Bytes of blobs and manifests are the content store's; a backend
only says which of them belong to which repository.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from engine.registry.server import names
from engine.registry.server.documents import Document
from engine.store.repositories import RepositoryStore, StoredManifest


class Backend(Protocol):
    """Repositories by name. A repository that does not exist has no blobs, manifests and tags."""

    def valid_name(self, name: str) -> bool:
        """Whether `name` can be a repository here."""

    def names(self, last: str, limit: int) -> list[str]:
        """Repositories after `last` in byte order, `limit` at most."""

    def exists(self, name: str) -> bool:
        """Whether there is such a repository."""

    def tags(self, name: str, last: str, limit: int) -> list[str]:
        """Tags after `last` in lexical order, case ignored first; `limit` at most."""

    def tag(self, name: str, tag: str) -> str:
        """The digest of the manifest behind a tag, or ""."""

    def manifest(self, name: str, digest: str) -> StoredManifest | None:
        """A manifest or index of the repository."""

    def blob_size(self, name: str, digest: str) -> int | None:
        """Bytes of a blob of the repository."""

    def sizes(self, name: str, digests: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
        """Those of `digests` that the repository has, as blobs and as manifests, with their sizes in bytes."""

    def holders(self, digest: str) -> list[str]:
        """Some repositories that have a blob, for a mount that does not say where from."""

    def referrers(self, name: str, subject: str, last: str, limit: int, artifact_type: str) -> list[StoredManifest]:
        """Manifests with that subject by digest, after `last`; of `artifact_type` when it is not ""."""

    def holding(self, *digests: str) -> AbstractContextManager[None]:
        """Keep the garbage collector from blobs while they are on the way into a repository."""

    async def bring(self, name: str, digest: str) -> bool:
        """Put a blob of the repository that is not in the content store there; False when that cannot be done."""

    async def link(self, name: str, digest: str, size: int) -> None:
        """Add a blob, whose bytes are durable in the content store, to a repository."""

    async def unlink(self, name: str, digest: str) -> bool:
        """Take a blob out; False when it was not there."""

    async def put_manifest(self, name: str, digest: str, size: int, document: Document, tags: Sequence[str]) -> None:
        """Add a manifest, whose bytes are durable in the content store, and move tags to it."""

    async def delete_manifest(self, name: str, digest: str) -> bool:
        """Remove a manifest and every tag on it; False when it was not there."""

    async def untag(self, name: str, tag: str) -> bool:
        """Remove a tag; False when it was not there."""


class RepositoryBackend:
    """The repositories of `registry serve`. `durable` returns when everything committed to the database so far is on the disk."""

    def __init__(self, store: RepositoryStore, durable: Callable[[], Awaitable[None]]) -> None:
        self.store = store
        self._durable = durable
        self.names = store.names
        self.exists = store.exists
        self.tags = store.tags
        self.tag = store.tag
        self.manifest = store.manifest
        self.blob_size = store.blob_size
        self.holders = store.holders
        self.referrers = store.referrers
        self.holding = store.holding

    def valid_name(self, name: str) -> bool:
        """The specification's grammar."""
        return names.is_name(name)

    def sizes(self, name: str, digests: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
        """See Backend."""
        return self.store.blob_sizes(name, digests), self.store.manifest_sizes(name, digests)

    async def bring(self, name: str, digest: str) -> bool:
        """See Backend. Everything is in the content store already."""
        return False

    async def link(self, name: str, digest: str, size: int) -> None:
        """See Backend."""
        self.store.link(name, digest, size)
        await self._durable()

    async def unlink(self, name: str, digest: str) -> bool:
        """See Backend."""
        found = self.store.unlink(name, digest)
        await self._durable()
        return found

    async def put_manifest(self, name: str, digest: str, size: int, document: Document, tags: Sequence[str]) -> None:
        """See Backend."""
        manifest = StoredManifest(
            digest=digest,
            media_type=document.media_type,
            size=size,
            subject=document.subject,
            artifact_type=document.artifact_type,
            annotations=document.annotations,
        )
        self.store.put_manifest(name, manifest, document.refers, tags)
        await self._durable()

    async def delete_manifest(self, name: str, digest: str) -> bool:
        """See Backend."""
        found = self.store.delete_manifest(name, digest)
        await self._durable()
        return found

    async def untag(self, name: str, tag: str) -> bool:
        """See Backend."""
        found = self.store.untag(name, tag)
        await self._durable()
        return found
