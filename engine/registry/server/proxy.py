"""The pull-through cache: what is not here is fetched from another registry, given to the client while it is stored, and kept.

A digest is fetched once for all who ask at a time. A tag is asked for upstream at each pull, and answered from the cache when upstream
cannot be reached. `?ns=HOST` (distribution specification, "Registry Proxying") chooses among the upstreams that the operator named: this is
no open proxy. Each upstream has repositories of its own here. Clients' credentials are for this registry and go nowhere else.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec
import trio

from engine.aio.blocking import blocking
from engine.aio.once import Flights
from engine.errors import Damaged, InvalidParameter, KnarrError, NotFound, Unauthorized
from engine.http.errors import ClientGone
from engine.registry.errors import Interrupted, ServerError, TooManyRequests, Unreachable
from engine.registry.server import blobs, names
from engine.registry.server.backend import RepositoryBackend
from engine.registry.server.blobs import Blobs
from engine.registry.server.documents import parse
from engine.registry.server.errors import RegistryError
from engine.registry.server.manifests import LIST_MAX, Manifests
from engine.registry.server.request import Request, location
from engine.registry.server.uploads import PIECE, Hash, no_space, write_pieces
from engine.spec.digest import is_digest
from engine.spec.docker.registry import Credentials
from engine.spec.image import MEDIA_INDEX, Descriptor
from engine.spec.reference import DEFAULT_DOMAIN, Reference
from engine.store.content import Content
from engine.store.repositories import CACHE_MARK, StoredManifest

if TYPE_CHECKING:
    from engine.registry.client import Registries, Remote

_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")
_ATTEMPTS = 5  # at one blob, each going on where the last broke off
_TAGS_SECONDS = 60.0
# A client that goes does not end what it asked for, so these bound what clients can have begun at a time.
_DOWNLOADS_MAX = 64
_MANIFESTS_MAX = 64

# Upstream does not answer, or not now: what is in the cache is served.
_AWAY = (Unreachable, ServerError, TooManyRequests, Interrupted)

_log = logging.getLogger("knarr.registry")


class Source(msgspec.Struct, frozen=True):
    """One upstream. `domain` is its name in references."""

    domain: str
    credentials: Credentials = Credentials()

    @property
    def prefix(self) -> str:
        """What its repositories' names begin with here: no name that a client can ask for, so that neither another upstream's nor what was
        pushed to this host can be taken for it."""
        return self.domain + CACHE_MARK


def source(url: str, *, insecure: bool, credentials: Credentials) -> Source:
    """An upstream from its URL, or host alone. `insecure`: plain HTTP to it is allowed. Raises InvalidParameter."""
    parts = urlsplit(url if "://" in url else f"https://{url}")
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.rstrip("/") or parts.query or "@" in parts.netloc:
        raise InvalidParameter(f"serving a registry: --proxy {url}: not the URL of a registry, such as https://registry.example.com")
    if parts.scheme == "http" and not insecure:
        hint = f"start the daemon with --insecure-registry {parts.netloc}"
        raise InvalidParameter(f"serving a registry: --proxy {url}: plain HTTP is not allowed there", hint=hint)
    domain = DEFAULT_DOMAIN if parts.netloc in _HUB else parts.netloc.lower()
    return Source(domain, credentials)


class Download:
    """A blob on its way from upstream into a file, from which clients are served meanwhile.

    `total` is -1 until upstream answered. The last byte is given out only when the digest was right: what breaks off is seen as broken.
    """

    def __init__(self) -> None:
        self.total = -1
        self.descriptor = -1
        self.written = 0
        self.checked = False
        self.ended = False
        self.failure: Exception | None = None
        self.readers = 0
        self._moved = trio.Event()

    @property
    def available(self) -> int:
        """Bytes that may be given out."""
        return self.written if self.checked else min(self.written, max(self.total - 1, 0))

    def moved(self) -> None:
        """Wake everybody who waits."""
        event, self._moved = self._moved, trio.Event()
        event.set()

    async def wait(self) -> None:
        """Return when something changed."""
        await self._moved.wait()

    def close(self) -> None:
        """Close the file when nobody reads or writes it any more."""
        if self.descriptor >= 0 and self.ended and not self.readers:
            os.close(self.descriptor)
            self.descriptor = -1


class Proxy:
    """Answers reads from the cache or from upstream. Its downloads live in `nursery`: a client that goes ends nobody else's."""

    def __init__(
        self, registries: Registries, sources: Sequence[Source], backend: RepositoryBackend, content: Content, blobs: Blobs,
        manifests: Manifests, nursery: trio.Nursery,
    ) -> None:  # fmt: skip
        self._registries = registries
        self._sources = tuple(sources)
        self._backend = backend
        self._content = content
        self._blobs = blobs
        self._manifests = manifests
        self._nursery = nursery
        self._manifest_flights: Flights[str] = Flights(nursery)
        self._asking = trio.Semaphore(_MANIFESTS_MAX)
        self._downloads: dict[tuple[str, str], Download] = {}

    def _source(self, request: Request) -> Source:
        """The upstream that a request is for. Raises RegistryError."""
        wanted = request.value("ns")
        if not wanted:
            return self._sources[0]
        domain = DEFAULT_DOMAIN if wanted in _HUB else wanted.lower()
        for one in self._sources:
            if one.domain == domain:
                request.always["OCI-Namespace"] = wanted if wanted.isascii() and wanted.isprintable() else domain
                return one
        raise RegistryError("NAME_UNKNOWN", {"ns": wanted[:200]}, message="this registry does not cache that one")

    @contextlib.asynccontextmanager
    async def _remote(self, source: Source, name: str) -> AsyncIterator[Remote]:
        async with self._registries.remote(Reference(source.domain, name), source.credentials) as remote:
            yield remote

    # -- manifests

    async def manifest(self, request: Request) -> None:
        """GET and HEAD of a manifest."""
        source, reference = self._source(request), request.address.reference
        if not (is_digest(reference) or names.is_tag(reference)):
            raise RegistryError("MANIFEST_UNKNOWN", {"Tag": reference[:200]})
        local = source.prefix + request.name
        found = self._manifests.find(local, reference)
        if found is None or ":" not in reference or not self._content.exists(found.digest, found.size):
            try:
                digest = await self._manifest_flights.join(
                    (local, reference), lambda: self._fetch_manifest(source, request.name, reference)
                )
            except _AWAY as error:
                if found is None:
                    raise _upstream_failed(error)
                _log.warning("%s:%s is served from the cache: %s", request.name, reference, error)
            except NotFound as error:
                raise RegistryError("MANIFEST_UNKNOWN", {"Tag": reference}, message=error.message)
            except KnarrError as error:
                raise error if isinstance(error, RegistryError) else _upstream_failed(error)
            else:
                found = self._backend.manifest(local, digest)
        if found is None:
            raise RegistryError("MANIFEST_UNKNOWN", {"Tag": reference})
        self._backend.store.touch(local, found.digest, time.time())
        await self._manifests.send(request, found)

    async def _fetch_manifest(self, source: Source, name: str, reference: str) -> str:
        """Have a manifest as upstream has it now; its digest."""
        async with self._asking:
            return await self._ask_manifest(source, name, reference)

    async def _ask_manifest(self, source: Source, name: str, reference: str) -> str:
        local, by_tag = source.prefix + name, ":" not in reference
        async with self._remote(source, name) as remote:
            if by_tag:
                found = self._manifests.find(local, reference)
                if found is not None and self._content.exists(found.digest, found.size):
                    digest = (await remote.resolve(reference)).digest
                    if digest == found.digest:
                        return digest
            descriptor, raw = await remote.manifest(reference)
        document = parse(raw, descriptor.media_type)
        await self._manifests.store(local, descriptor.digest, raw, document, [reference] if by_tag else [], sparse=True)
        return descriptor.digest

    # -- blobs

    async def blob(self, request: Request) -> None:
        """GET and HEAD of a blob."""
        source, digest = self._source(request), names.digest(request.address.reference)
        local = source.prefix + request.name
        size = self._blobs.find(local, digest)
        if size is None:
            size = await self._adopt(source, request.name, digest)
        if size is not None:
            self._backend.store.touch(local, digest, time.time())
            await self._blobs.send(request, digest, size)
        elif request.method == "HEAD":
            await blobs.begin(request, digest, await self._size(source, request.name, digest))
        else:
            await self._stream(request, self._download(source, request.name, digest), digest)

    async def _adopt(self, source: Source, name: str, digest: str) -> int | None:
        """The size of a blob that this host has for another reason, once upstream has said that it is of this repository; else None."""
        with self._backend.holding(digest):
            if not self._content.exists(digest):
                return None
            try:
                async with self._remote(source, name) as remote:
                    if not await remote.has_blob(digest):
                        return None
                size = self._content.size(digest)
            except KnarrError as error:
                raise _blob_failed(error, digest)
            await self._backend.link(source.prefix + name, digest, size)
            return size

    async def _size(self, source: Source, name: str, digest: str) -> int:
        """How long a blob is upstream, without fetching it."""
        try:
            async with self._remote(source, name) as remote, remote.blob(Descriptor(digest=digest)) as blob:
                return blob.total
        except KnarrError as error:
            raise _blob_failed(error, digest)

    def _download(self, source: Source, name: str, digest: str) -> Download:
        """The download of a blob, begun now unless it is under way. Raises RegistryError when too many are."""
        key = (source.prefix + name, digest)
        download = self._downloads.get(key)
        if download is None:
            if len(self._downloads) >= _DOWNLOADS_MAX:
                raise RegistryError("TOOMANYREQUESTS", message="too many downloads are under way", fields=b"Retry-After: 5\r\n")
            download = self._downloads[key] = Download()
            self._nursery.start_soon(self._fetch_blob, key, download, source, name, digest)
        return download

    async def _stream(self, request: Request, download: Download, digest: str) -> None:
        """Give a client what is there of a blob, as it comes."""
        download.readers += 1
        try:
            while download.total < 0 and not download.ended:
                await download.wait()
            if download.total < 0:
                raise _blob_failed(download.failure, digest)
            offset, count = await blobs.begin(request, digest, download.total)
            end = offset + count
            while offset < end:
                ready = min(download.available, end)
                if ready > offset:
                    await request.exchange.part(download.descriptor, offset, ready - offset)
                    offset = ready
                elif download.ended:
                    raise ClientGone  # the reply has begun: breaking off tells that it failed
                else:
                    await download.wait()
        finally:
            download.readers -= 1
            download.close()

    async def _fetch_blob(self, key: tuple[str, str], download: Download, source: Source, name: str, digest: str) -> None:
        """Background task: fetch, check, store, link. A failure is told to the readers."""
        path = self._content.temporary()
        try:
            with self._backend.holding(digest):
                await self._fetch_into(path, download, source, name, digest)
                await self._backend.link(key[0], digest, download.total)
        except OSError as error:
            _log.error("fetching %s of %s: %s", digest, name, error)
            download.failure = no_space(error) or error
        except Exception as error:  # told to every reader, see _stream; what is no error of a registry is a defect, and logged as one
            download.failure = error
            if not isinstance(error, KnarrError):
                _log.exception("fetching %s of %s", digest, name)
            else:
                _log.warning("fetching %s of %s: %s", digest, name, error)
        finally:
            download.ended = True
            del self._downloads[key]
            download.moved()
            download.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    async def _fetch_into(self, path: str, download: Download, source: Source, name: str, digest: str) -> None:
        algorithm, _, encoded = digest.partition(":")
        download.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        sink = hashlib.new(algorithm)
        async with self._remote(source, name) as remote:
            for attempt in range(_ATTEMPTS):
                try:
                    await self._receive(remote, download, digest, sink)
                    break
                except (Interrupted, Unreachable):
                    if attempt + 1 == _ATTEMPTS or download.total < 0:
                        raise
        if sink.hexdigest() != encoded:
            raise Damaged(f"fetching {digest} of {name}: upstream sent {algorithm}:{sink.hexdigest()}")
        download.checked = True
        download.moved()
        await blocking("disk", self._content.adopt, path, digest)

    async def _receive(self, remote: Remote, download: Download, digest: str, sink: Hash) -> None:
        """One request to upstream: what is missing, as far as it comes."""
        wanted = Descriptor(digest=digest, size=max(download.total, 0))
        async with remote.blob(wanted, download.written) as blob:
            if blob.start != download.written:
                raise KnarrError(f"fetching {digest}: upstream cannot go on where it broke off")
            download.total = blob.total
            download.moved()
            waiting: list[bytes] = []
            size = 0
            try:
                async with contextlib.aclosing(blob.chunks()) as chunks:
                    async for chunk in chunks:
                        waiting.append(chunk)
                        size += len(chunk)
                        if size >= PIECE:
                            await _keep(download, waiting, sink)
                            waiting, size = [], 0
            finally:
                if waiting:
                    await _keep(download, waiting, sink)

    # -- lists

    def names(self, last: str, limit: int) -> list[str]:
        """Repositories of the first upstream of which something is in the cache, after `last`."""
        prefix = self._sources[0].prefix
        found = self._backend.names(prefix + last, limit)
        return [name.removeprefix(prefix) for name in found if name.startswith(prefix)]

    async def tags(self, request: Request) -> None:
        """The list of tags, as upstream has it; those in the cache when it does not answer."""
        source = self._source(request)
        found: list[str] = []
        try:
            with trio.fail_after(_TAGS_SECONDS):
                async with self._remote(source, request.name) as remote:
                    found = [tag async for tag in remote.tags() if names.is_tag(tag)]
        except (*_AWAY, trio.TooSlowError) as error:
            _log.warning("tags of %s are served from the cache: %s", request.name, error)
            local = source.prefix + request.name
            if not self._backend.exists(local):
                raise RegistryError("UNAVAILABLE", message="the upstream registry does not answer", status=502)
            found = self._backend.tags(local, "", -1)
        except KnarrError as error:
            raise _name_failed(error, request.name)
        wanted, last = request.value("n"), request.value("last")
        limit = names.count(wanted, LIST_MAX) if wanted else LIST_MAX
        ordered = sorted((tag.lower(), tag) for tag in set(found))
        shown = [tag for key, tag in ordered if (key, tag) > (last.lower(), last)]
        fields = {}
        if len(shown) > limit > 0:
            fields["Link"] = f'<{location(request.name, "tags", "list")}?n={limit}&last={shown[limit - 1]}>; rel="next"'
        await request.json({"name": request.name, "tags": shown[:limit]}, fields)

    async def referrers(self, request: Request) -> None:
        """Referrers, as upstream has them; those in the cache when it does not answer."""
        source, digest = self._source(request), names.digest(request.address.reference)
        wanted = request.value("artifactType")
        try:
            async with self._remote(source, request.name) as remote:
                found = await remote.referrers(digest, wanted)
        except NotFound:
            found = ()
        except _AWAY as error:
            _log.warning("referrers in %s are served from the cache: %s", request.name, error)
            local = self._backend.referrers(source.prefix + request.name, digest, "", -1, wanted)
            found = tuple(map(_descriptor, local))
        except KnarrError as error:
            raise _name_failed(error, request.name)
        fields = {"OCI-Filters-Applied": "artifactType"} if wanted else {}
        await request.json({"schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": list(found)}, fields, MEDIA_INDEX)


async def _keep(download: Download, pieces: list[bytes], sink: Hash) -> None:
    with trio.CancelScope(shield=True):
        download.written += await blocking("hashing", write_pieces, download.descriptor, pieces, sink)
    download.moved()


def _descriptor(found: StoredManifest) -> Descriptor:
    kind, artifact = found.media_type, found.artifact_type
    return Descriptor(media_type=kind, digest=found.digest, size=found.size, artifact_type=artifact, annotations=found.annotations)


def _upstream_failed(error: KnarrError) -> RegistryError:
    """Upstream's failure in this API's words. Its own refusal of our credentials is no business of the client's."""
    if isinstance(error, TooManyRequests):
        return RegistryError("TOOMANYREQUESTS", message=f"upstream: {error.message}")
    if isinstance(error, Unauthorized):
        return RegistryError("DENIED", message="the upstream registry refuses this cache")
    return RegistryError("UNKNOWN", message=f"upstream: {error.message}", status=502)


def _blob_failed(error: Exception | None, digest: str) -> RegistryError:
    if isinstance(error, RegistryError):
        return error
    if isinstance(error, NotFound) and not isinstance(error, Unreachable):
        return RegistryError("BLOB_UNKNOWN", {"digest": digest})
    if isinstance(error, KnarrError):
        return _upstream_failed(error)
    return RegistryError("UNKNOWN")


def _name_failed(error: KnarrError, name: str) -> RegistryError:
    if isinstance(error, NotFound):
        return RegistryError("NAME_UNKNOWN", {"name": name})
    return _upstream_failed(error)
