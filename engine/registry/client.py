"""The client of registries: resolve, fetch, check, upload, list, delete, at mirrors and at the origin.

Follows the OCI distribution specification 1.1 and Docker's registry HTTP API V2. Every byte that it returns as a manifest or a document is
checked against its digest; the bytes of a blob are checked by the one who stores them. Keeps nothing on disk.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from engine.config import Settings
from engine.errors import Damaged, InvalidParameter, KnarrError, NotFound, Unauthorized
from engine.registry import manifests, proxies
from engine.registry.auth import Authorizer, Challenge, Credentials, scope
from engine.registry.blob import Blob, part, whole
from engine.registry.errors import ImageUnreachable, Interrupted, Unreachable
from engine.registry.hosts import Endpoint, Hosts, api_host
from engine.registry.rate import Rate
from engine.registry.session import Session
from engine.registry.transport import Response, Transport, shown
from engine.registry.upload import Upload
from engine.spec import image, manifest
from engine.spec.digest import check_digest, is_digest
from engine.spec.image import Descriptor
from engine.spec.reference import DEFAULT_DOMAIN, Reference

T = TypeVar("T")
log = logging.getLogger("knarr.registry")

LARGEST_MANIFEST = 4 << 20  # bytes; the distribution specification's "Pushing Manifests" asks registries to take that much
_MOST_TAGS = 100_000
_PAGE = 1000
_MOST_PAGES = 1000
_LARGEST_PAGE = 8 << 20
_MOST_REFERRERS = 10_000
ACCEPT = ", ".join((image.MEDIA_INDEX, image.MEDIA_MANIFEST, image.DOCKER_INDEX, image.DOCKER_MANIFEST, "*/*;q=0.1"))
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")  # distribution specification, "Pulling manifests"
_LINK_NEXT = re.compile(r'<([^>]{1,4000})>\s*;[^,]*\brel="?next"?')


class _Tags(msgspec.Struct, frozen=True):
    tags: list[str] | None = None


class Live:
    """What is there while somebody uses it: connections, tokens, and what was learned of the servers."""

    def __init__(self, settings: Settings) -> None:
        self.transport = Transport(proxies.from_settings(settings.http_proxy, settings.https_proxy, settings.no_proxy))
        self.authorizer = Authorizer(self.transport)
        self.challenges: dict[str, Challenge] = {}
        self.plain: set[str] = set()  # insecure registries that turned out to speak HTTP alone
        self.users = 0


class Registries:
    """All registries, for one daemon. Cheap to make; the HTTP library is loaded by the first use, and connections are closed with the
    last. `rate` limits all downloads together."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.rate = Rate(int(settings.limit_rate))
        self.hosts = Hosts(
            folders=tuple(settings.registry_config_dirs),
            mirrors=tuple(settings.registry_mirrors),
            insecure=tuple(settings.insecure_registries),
        )
        self._live: Live | None = None

    @contextlib.asynccontextmanager
    async def live(self) -> AsyncIterator[Live]:
        """The shared connections, closed when the last user leaves."""
        if self._live is None:
            self._live = Live(self._settings)
        live = self._live
        live.users += 1
        try:
            yield live
        finally:
            live.users -= 1
            if not live.users:
                self._live = None
                await live.transport.close()

    @contextlib.asynccontextmanager
    async def remote(
        self, reference: Reference, credentials: Credentials | None = None, *, push: bool = False, rate: Rate | None = None,
        insecure: bool = False,
    ) -> AsyncIterator[Remote]:  # fmt: skip
        """One repository. `push` asks for the right to write; `rate` limits what this one reads; `insecure` takes its registry for one of
        --insecure-registry. Raises InvalidParameter for registry configuration that makes no sense."""
        endpoints = self.hosts.endpoints(reference.domain, insecure=insecure)
        async with self._at(endpoints, reference, credentials or Credentials(), push=push, rate=rate) as remote:
            yield remote

    @contextlib.asynccontextmanager
    async def peer(self, address: str, reference: Reference, *, push: bool = False, rate: Rate | None = None) -> AsyncIterator[Remote]:
        """A repository of another Knarr daemon, whose socket is `unix:///path`. Raises InvalidParameter for another address."""
        path = address.removeprefix("unix://")
        if path == address or not path.startswith("/"):
            raise InvalidParameter(f"invalid address of a daemon: {address!r}", hint="write unix:///path/of/its/socket")
        endpoint = Endpoint("http://localhost/v2", insecure=True, socket=path)
        # Another daemon serves its images under their full names, whatever registry they are of.
        reference = Reference(DEFAULT_DOMAIN, reference.name, reference.tag, reference.digest)
        async with self._at([endpoint], reference, Credentials(), push=push, rate=rate) as remote:
            try:
                yield remote
            except NotFound as error:
                if await self._serves(endpoint):
                    raise
                raise InvalidParameter(f"the daemon at {address} serves no images: it is not Knarr's") from error

    async def _serves(self, endpoint: Endpoint) -> bool:
        async with self.live() as live:
            session = Session(live.transport, live.authorizer, endpoint, Credentials(), (), name=endpoint.socket, attempts=1)
            async with session.plainly("GET", f"{endpoint.url}/") as response:
                return response.status == 200

    @contextlib.asynccontextmanager
    async def _at(
        self, endpoints: list[Endpoint], reference: Reference, credentials: Credentials, *, push: bool, rate: Rate | None
    ) -> AsyncIterator[Remote]:
        async with self.live() as live:
            rates = [self.rate, *([rate] if rate else [])]
            yield Remote(live, reference, endpoints, credentials, push=push, rates=rates, attempts=self._settings.max_download_attempts)


class Remote:
    """One repository at its servers: mirrors first, then the origin. Made by `Registries.remote`."""

    def __init__(
        self,
        live: Live,
        reference: Reference,
        endpoints: list[Endpoint],
        credentials: Credentials,
        *,
        push: bool,
        rates: list[Rate],
        attempts: int,
    ) -> None:
        self.reference = reference
        self._live = live
        self._push = push
        self._rates = rates
        actions = ("pull", "push") if push else ("pull",)
        self._sessions = [
            Session(
                live.transport,
                live.authorizer,
                endpoint,
                credentials if _are_for(credentials, endpoint, reference.domain) else Credentials(),
                [scope(reference.path, *actions)],
                name=reference.familiar_name,
                attempts=1 if endpoint.mirror else attempts,
                # A server that never answered is most likely not there, the more so when plain HTTP comes after it.
                attempts_unseen=1 if endpoint.insecure and not endpoint.plain else 2,
                push=push,
                known={} if endpoint.socket else live.challenges,
            )
            for endpoint in endpoints
            if not (endpoint.host in live.plain and not endpoint.plain)
        ]
        self._uploads: dict[str, str] = {}  # digest -> an upload that a mount has opened

    # What is looked up

    async def resolve(self, tag_or_digest: str) -> Descriptor:
        """The descriptor of a manifest: its media type, digest and size. Raises NotFound, ImageUnreachable, Unauthorized."""
        name = _name(tag_or_digest)
        with self._image_is_unknown():
            return await self._anywhere("resolve", lambda session: self._resolve(session, name))

    async def manifest(self, tag_or_digest: str) -> tuple[Descriptor, bytes]:
        """A manifest or index, and its descriptor. The bytes are those of the digest that was asked for or that the registry tells.
        Raises as `resolve`, and Damaged for other bytes."""
        name = _name(tag_or_digest)
        with self._image_is_unknown():
            return await self._anywhere("pull" if is_digest(name) else "resolve", lambda session: self._manifest(session, name))

    async def document(self, descriptor: Descriptor, limit: int) -> bytes:
        """A small blob as a whole, checked. Raises InvalidParameter when it is larger than `limit` bytes, Damaged for other bytes."""
        if descriptor.size > limit:
            raise InvalidParameter(f"{descriptor.digest} has {descriptor.size} bytes, more than the {limit} that are read of its kind")
        attempts = 3
        while True:
            attempts -= 1
            found = bytearray()
            try:
                async with self.blob(descriptor) as blob:
                    if blob.total > limit:
                        raise InvalidParameter(f"{descriptor.digest} has {blob.total} bytes, more than {limit}")
                    async with contextlib.aclosing(blob.chunks()) as chunks:
                        async for part in chunks:
                            found += part
                raw = bytes(found)
                manifests.check(raw, descriptor.digest, f"blob of {self.reference.familiar_name}")
                return raw
            except (Interrupted, Damaged):  # something on the way may be to blame
                if not attempts:
                    raise

    @contextlib.asynccontextmanager
    async def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> AsyncIterator[Blob]:
        """A blob, or its bytes from `start` up to `end` (exclusive). Raises NotFound, Unreachable, KnarrError for a wrong size. Its bytes
        are not checked here."""
        response, blob = await self._anywhere("pull", lambda session: self._open_blob(session, descriptor, start, end))
        try:
            yield blob
        finally:
            await response.close()

    async def has_blob(self, digest: str) -> bool:
        """Whether the repository has this blob."""
        return await self._has(f"/{self.reference.path}/blobs/{check_digest(digest)}")

    async def has_manifest(self, digest: str) -> bool:
        """Whether the repository has this manifest."""
        return await self._has(f"/{self.reference.path}/manifests/{check_digest(digest)}")

    async def tags(self) -> AsyncIterator[str]:
        """Every tag of the repository. Raises NotFound, KnarrError for a list without an end."""
        session = await self._anywhere("resolve", self._knows_tags)
        url, count = session.url(f"/{self.reference.path}/tags/list?n={_PAGE}"), 0
        for _ in range(_MOST_PAGES):
            page, url = await self._page(session, url)
            for tag in page:
                count += 1
                yield tag
            if not url:
                return
            if count > _MOST_TAGS:
                break
        raise KnarrError(f"the list of tags of {self.reference.familiar_name} does not end: more than {count}")

    async def referrers(self, digest: str, artifact_type: str = "") -> tuple[Descriptor, ...]:
        """What refers to a manifest (signatures, SBOMs), of one type or of all. By the API, or by the tag that stands in for it."""
        return await self._anywhere("pull", lambda session: self._referrers(session, check_digest(digest), artifact_type))

    # What is changed

    async def mount(self, digest: str, source_repository_path: str) -> bool:
        """Have the registry take a blob over from another repository of its own. False when it cannot: then the blob must be uploaded."""
        session = await self._writer()
        query = f"?mount={quote(check_digest(digest))}&from={quote(source_repository_path, safe='')}"
        url = session.url(f"/{self.reference.path}/blobs/uploads/{query}")
        try:
            async with session.open("POST", url, scopes=[scope(source_repository_path, "pull")]) as response:
                if response.status == 201:
                    return True
                if response.status == 202 and response.headers.get("location"):
                    self._uploads[digest] = session.here(response.url, response.headers["location"])
                return False
        except Unauthorized as error:  # the source is not for us, which is no failure of the push
            log.debug("mounting %s from %s: %s", digest, source_repository_path, error)
            return False

    async def upload(
        self, descriptor: Descriptor, open_at: Callable[[int], AsyncIterator[bytes]], progress: Callable[[int], None] = lambda sent: None
    ) -> None:
        """Upload a blob of known size. `open_at(offset)` gives its bytes from there on, possibly several times; `progress` hears how many
        bytes have been sent. Goes on from where the registry has got to after a cut."""
        session = await self._writer()
        await Upload(session, self.reference.path, descriptor, open_at, progress).run(self._uploads.pop(descriptor.digest, ""))

    async def put_manifest(self, tag_or_digest: str, media_type: str, raw: bytes, tags: tuple[str, ...] = ()) -> str:
        """Store a manifest under a tag or its digest, and under more `tags`; its digest. Raises Damaged when the registry tells another."""
        digest = manifests.digest_like(raw, tag_or_digest)
        session = await self._writer()
        for name in map(_name, (tag_or_digest, *tags)):
            url = session.url(f"/{self.reference.path}/manifests/{name}")
            async with session.open("PUT", url, [("Content-Type", media_type)], body=raw) as response:
                if response.status not in (200, 201, 202):
                    raise await session.error(response)
                reported = response.headers.get("docker-content-digest", digest)
                if reported.partition(":")[0] == digest.partition(":")[0] and reported != digest:
                    raise Damaged(f"pushing {self.reference.familiar_name}: the registry stored {reported}, sent was {digest}")
        return digest

    async def delete_manifest(self, tag_or_digest: str) -> None:
        """Delete a manifest, or a tag where the registry can. Raises NotFound, NotThisWay when deleting is off."""
        await self._delete(f"/{self.reference.path}/manifests/{_name(tag_or_digest)}")

    # How

    async def _anywhere(self, capability: str, ask: Callable[[Session], Awaitable[T]]) -> T:
        """The first answer of the servers that do this. A mirror's failure is no failure; an insecure registry is tried with TLS first."""
        wanted = [session for session in self._sessions if capability in session.endpoint.capabilities]
        if not wanted:
            raise NotFound(f"no server of {self.reference.domain} is configured for {capability}")
        for number, session in enumerate(wanted):
            last = number + 1 == len(wanted)
            try:
                result = await ask(session)
            except Unreachable as error:
                if last or (session.answered and not session.endpoint.mirror):
                    raise
                log.debug("%s: %s", session.endpoint.url, error)
                if session in self._sessions:  # another task of this repository may have found out first
                    self._sessions.remove(session)
            except KnarrError as error:
                if last or not session.endpoint.mirror:
                    raise
                log.debug("mirror %s: %s", session.endpoint.url, error)
            else:
                if session.endpoint.plain and not session.endpoint.socket:
                    self._live.plain.add(session.endpoint.host)
                return result
        raise AssertionError("the last server returns or raises")

    async def _writer(self) -> Session:
        """The server that is written to: found once, by asking which of the origin's answers."""
        return await self._anywhere("push", self._answers)

    async def _answers(self, session: Session) -> Session:
        if not session.answered:
            async with session.open("GET", session.url("/")) as response:
                if response.status not in (200, 401, 403, 404):
                    raise await session.error(response)
        return session

    @contextlib.contextmanager
    def _image_is_unknown(self) -> Iterator[None]:
        """An image whose registry cannot be reached is one that is not found."""
        try:
            yield
        except ImageUnreachable:
            raise
        except Unreachable as error:
            raise ImageUnreachable(error.message, hint=error.hint, tls=error.tls, final=error.final) from error

    async def _resolve(self, session: Session, name: str) -> Descriptor:
        url = session.url(f"/{self.reference.path}/manifests/{name}")
        async with session.open("HEAD", url, [("Accept", ACCEPT)]) as response:
            digest = response.headers.get("docker-content-digest", "")
            media_type = _media_type(response)
            if response.status == 200 and is_digest(digest) and response.length is not None and media_type not in manifest.UNSPECIFIC:
                if is_digest(name) and digest != name:
                    raise Damaged(f"asked for {name} of {self.reference.familiar_name}, the registry has {digest}")
                manifest.refuse_schema1(media_type, self.reference.familiar)
                return Descriptor(media_type=media_type, digest=digest, size=response.length)
        # Servers that cannot do HEAD, or say too little; and the body of an error tells what is wrong.
        return (await self._manifest(session, name))[0]

    async def _manifest(self, session: Session, name: str) -> tuple[Descriptor, bytes]:
        url = session.url(f"/{self.reference.path}/manifests/{name}")
        whole = f"{self.reference.familiar_name}{'@' if is_digest(name) else ':'}{name}"
        for attempt in (1, 2, 3):
            async with session.open("GET", url, [("Accept", ACCEPT)]) as response:
                if response.status != 200:
                    raise await session.error(response, whole)
                told = response.headers.get("docker-content-digest", "")
                expected = name if is_digest(name) else told if is_digest(told) else ""
                manifest.refuse_schema1(_media_type(response), self.reference.familiar)  # before the digest, which leaves its signature out
                try:
                    raw = await response.read(LARGEST_MANIFEST)
                    if expected:
                        manifests.check(raw, expected, f"manifest of {whole}")
                except (Interrupted, Damaged):  # something on the way may be to blame
                    if attempt == 3:
                        raise
                    continue
                digest = manifests.digest_like(raw, expected)
                return Descriptor(
                    media_type=manifest.kind(raw, _media_type(response), self.reference.familiar), digest=digest, size=len(raw)
                ), raw
        raise AssertionError("the last attempt returns or raises")

    async def _open_blob(self, session: Session, descriptor: Descriptor, start: int, end: int | None) -> tuple[Response, Blob]:
        url = session.url(f"/{self.reference.path}/blobs/{check_digest(descriptor.digest)}")
        ranged = start > 0 or end is not None
        headers = [("Range", f"bytes={start}-{'' if end is None else end - 1}")] if ranged else []
        response = await session.send("GET", url, headers)
        try:
            if response.status == 206 and ranged:
                return response, part(response, descriptor, start, end, self._rates)
            if response.status == 200:
                return response, whole(response, descriptor, self._rates)
            if response.status == 404:
                raise NotFound(f"blob {descriptor.digest} of {self.reference.familiar_name} not found: {await session.error(response)}")
            raise await session.error(response)
        except BaseException:
            await response.close()
            raise

    async def _has(self, path: str) -> bool:
        async def ask(session: Session) -> bool:
            async with session.open("HEAD", session.url(path), [("Accept", ACCEPT)] if "/manifests/" in path else []) as response:
                if response.status == 404:
                    return False
                if response.status != 200:
                    raise await session.error(response)
                return True

        return await self._anywhere("push" if self._push else "pull", ask)

    async def _knows_tags(self, session: Session) -> Session:
        async with session.open("GET", session.url(f"/{self.reference.path}/tags/list?n=1")) as response:
            if response.status != 200:
                raise await session.error(response)
        return session

    async def _page(self, session: Session, url: str) -> tuple[list[str], str]:
        async with session.open("GET", url) as response:
            if response.status != 200:
                raise await session.error(response)
            try:
                tags = msgspec.json.decode(await response.read(_LARGEST_PAGE), type=_Tags).tags or []
            except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
                raise KnarrError(f"reading {shown(url)}: not a list of tags: {error}")
            return tags, _next(session, url, response)

    async def _referrers(self, session: Session, digest: str, artifact_type: str) -> tuple[Descriptor, ...]:
        wanted = f"?artifactType={quote(artifact_type, safe='')}" if artifact_type else ""
        url = session.url(f"/{self.reference.path}/referrers/{digest}{wanted}")
        found: list[Descriptor] = []
        for _ in range(_MOST_PAGES):
            async with session.open("GET", url) as response:
                if response.status in (400, 404, 405) and not found:
                    return await self._referrers_by_tag(session, digest, artifact_type)
                if response.status != 200:
                    raise await session.error(response)
                found += manifests.index(await response.read(_LARGEST_PAGE), shown(url))
                url = _next(session, url, response)
            if not url or len(found) > _MOST_REFERRERS:
                break
        return tuple(d for d in found[:_MOST_REFERRERS] if not artifact_type or d.artifact_type == artifact_type)

    async def _referrers_by_tag(self, session: Session, digest: str, artifact_type: str) -> tuple[Descriptor, ...]:
        """distribution specification, "Referrers Tag Schema"."""
        try:
            _, raw = await self._manifest(session, digest.replace(":", "-", 1)[:128])
        except NotFound:
            return ()
        found = manifests.index(raw, f"the referrers of {digest}")
        return tuple(d for d in found[:_MOST_REFERRERS] if not artifact_type or d.artifact_type == artifact_type)

    async def _delete(self, path: str) -> None:
        session = await self._writer()
        async with session.open("DELETE", session.url(path)) as response:
            if response.status not in (200, 202, 204):
                raise await session.error(response)


def _are_for(credentials: Credentials, endpoint: Endpoint, domain: str) -> bool:
    """Whether credentials may be shown to a server. Those of a registry are not shown to its mirrors, unless they were given for one."""
    if not endpoint.mirror or endpoint.host in (domain, api_host(domain)):
        return True
    address = credentials.server_address
    return bool(address) and (urlsplit(address).netloc if "://" in address else address.partition("/")[0]) == endpoint.host


def _name(tag_or_digest: str) -> str:
    """A tag or a digest that may be put into an address. Raises InvalidParameter; a digest of an unknown kind is never taken for a tag."""
    if ":" in tag_or_digest:
        return check_digest(tag_or_digest)
    if _TAG.fullmatch(tag_or_digest) is None:
        raise InvalidParameter("invalid tag format")
    return tag_or_digest


def _media_type(response: Response) -> str:
    return response.headers.get("content-type", "").partition(";")[0].strip().lower()


def _next(session: Session, url: str, response: Response) -> str:
    """The address of the next page by the Link header (RFC 8288); "" for none. It must stay at the same server."""
    match = _LINK_NEXT.search(response.headers.get("link", "")[:8192])
    if match is None:
        return ""
    found = session.target(url, match[1])
    if urlsplit(found).netloc != urlsplit(url).netloc:
        raise KnarrError(f"{shown(url)}: the next page would be at another host, {shown(found)}")
    return found
