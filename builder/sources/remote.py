"""Files from web servers: ADD of a URL, and main contexts at one. Owns what was fetched, so that what is unchanged is not fetched again.

Follows BuildKit: the file has mode 0600, belongs to root and has the time of `Last-Modified`, or the epoch. A server is asked with
`If-None-Match` and `If-Modified-Since`; with a checksum that is here already it is not asked at all.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

import trio

from builder.files.archives import is_archive
from builder.graph import HttpSource
from builder.sources.authorization import for_web, origin
from builder.sources.contextarchive import unpack_into
from builder.sources.kept import Kept, Record
from builder.tree import Tree
from engine.aio.blocking import blocking
from engine.aio.locks import KeyedLocks
from engine.errors import DiskFull, InvalidParameter, KnarrError
from engine.registry.transport import Response, Transport, shown
from engine.spec.buildcache import REGULAR
from engine.wire import compression

_REDIRECTS = 10
_LONGEST_VALUE = 1000  # characters of a header that is sent back
_BATCH = 4 << 20
_LIMIT = 64 << 30
"""Bytes of a file; a server that never ends must not fill the disk."""
_ACCEPTED = re.compile(r"application/((x-)?(tar|gzip|bzip2?|xz|zstd)|octet-stream)|text/plain")


class Downloads:
    """What was fetched, for all builds of a daemon."""

    def __init__(self, kept: Kept, transport: Transport) -> None:
        self.kept = kept
        self._transport = transport
        self._locks = KeyedLocks()

    async def fetch(self, op: HttpSource, secrets: Mapping[str, bytes] = {}) -> tuple[str, Tree]:
        """The file, as (identifier among what is kept, tree). `secrets`: those of the client, of which one may be for the server. Raises
        KnarrError."""
        if not re.fullmatch(r"(sha256:[0-9a-f]{64})?", op.checksum):
            raise InvalidParameter(f"invalid checksum {op.checksum!r} for {shown(op.url)}", hint="it is sha256: and 64 hexadecimal digits")
        key = hashlib.sha256(f"{op.url}\0{op.filename}".encode("utf-8", "surrogateescape")).hexdigest()[:24]
        async with self._locks.hold(key):
            return await self._fetch(op, key, for_web(op.url, secrets))

    async def _fetch(self, op: HttpSource, key: str, authorization: str) -> tuple[str, Tree]:
        here = self.kept.among(f"http-{key}-")
        if op.checksum:
            for id, record in here:
                if record.facts["digest"] == op.checksum:
                    return id, self._tree(op, id, record)
        known = _comparable(here, authorization)
        url, response = await self._ask(op.url, known, authorization)
        try:
            if response.status == 304 and known:
                id, record = _unchanged(known, response.headers.get("etag", ""), url)
            else:
                if not 200 <= response.status < 300:
                    raise KnarrError(f"invalid response status {response.status} for {shown(url)}")
                id, record = await self._save(op, key, response, private=bool(authorization))
        finally:
            await response.close()
        if op.checksum and record.facts["digest"] != op.checksum:
            raise KnarrError(f"digest mismatch for {shown(op.url)}: {record.facts['digest']} (expected: {op.checksum})")
        return id, self._tree(op, id, record)

    def _tree(self, op: HttpSource, id: str, record: Record) -> Tree:
        digest = record.facts["digest"]
        name = os.fsencode(op.filename)
        return Tree(
            layers=(self.kept.tree(id),), digests={name: digest.removeprefix("sha256:")}, identity=f"http {digest} {op.filename}",
            attributes=frozenset(),
        )  # fmt: skip

    async def _ask(self, url: str, known: list[tuple[str, Record]], secret: str) -> tuple[str, Response]:
        """The head of the answer, redirects followed. `secret` is a header for the server of `url`, until it redirects elsewhere."""
        headers: list[tuple[str, str]] = []
        etags = [record.facts["etag"] for _, record in known if record.facts.get("etag")]
        if etags:
            headers.append(("If-None-Match", ", ".join(etags)))
        elif known:
            headers.append(("If-Modified-Since", known[0][1].facts["modified"]))
        first = None
        for _ in range(_REDIRECTS):
            if not url.startswith(("http://", "https://")):
                raise InvalidParameter(f"fetching {shown(url)}: it is no address of a web server")
            plain, authorization = _credentials(url)
            first = first or origin(plain)
            if origin(plain) != first:
                secret, authorization = "", ""
            authorization = secret or authorization
            sent = [*headers, ("Authorization", authorization)] if authorization else headers
            response = await self._transport.send("GET", plain, sent)
            if response.status not in (301, 302, 303, 307, 308):
                return plain, response
            target = response.headers.get("location", "")
            await response.close()
            if not target:
                raise KnarrError(f"fetching {shown(url)}: {response.status} response missing Location header")
            url = _target(plain, target)
        raise KnarrError(f"fetching {shown(url)}: stopped after {_REDIRECTS} redirects")

    async def _save(self, op: HttpSource, key: str, response: Response, *, private: bool) -> tuple[str, Record]:
        if not op.filename or "/" in op.filename or op.filename in (".", ".."):
            raise InvalidParameter(f"fetching {shown(op.url)}: {op.filename!r} is no name of a file")
        async with self.kept.making() as path:
            target = f"{path}/tree/{op.filename}"
            try:
                digest = await _download(response, target)
                modified = response.headers.get("last-modified", "")
                when = _seconds(modified)
                os.utime(target, (when, when))
            except OSError as error:
                raise DiskFull(f"storing {shown(op.url)}: {error.strerror}") from error
            record = Record(
                type=REGULAR,
                description=f"http url {shown(op.url)}",
                facts={
                    "digest": digest,
                    # They are sent back in headers, by everybody who asks for this address from now on.
                    "etag": _sendable(response.headers.get("etag", "")),
                    "modified": _sendable(modified),
                    "type": response.headers.get("content-type", ""),
                    **({"private": "1"} if private else {}),
                },
            )
            id = f"http-{key}-{digest[7:31]}"
            await blocking("disk", self.kept.commit, path, id, record)
            return id, self.kept.find(id) or record

    async def context(
        self, url: str, dockerfile: str, *, strict: bool, secrets: Mapping[str, bytes] = {}
    ) -> tuple[str, Tree]:  # fmt: skip
        """A main context at a URL: an archive is unpacked, text is the Dockerfile (under the name `dockerfile`).

        `strict`: only content types that the classic builder takes. Raises InvalidParameter, KnarrError.
        """
        id, _ = await self.fetch(HttpSource(url=url, filename="context"), secrets)
        record = self.kept.find(id)
        assert record is not None
        self.kept.use(id)
        try:
            file = f"{self.kept.tree(id)}/context"
            archive = await blocking("disk", _is_archive, file)
            kind = record.facts["type"].partition(";")[0].strip().lower()
            if strict and not archive and kind and not _ACCEPTED.fullmatch(kind):
                raise InvalidParameter(f"unsupported Content-Type {kind!r}")
            name = dockerfile if not archive else ""
            inner = f"context-{record.facts['digest'][7:31]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
            async with self._locks.hold(inner):
                if self.kept.find(inner) is None:
                    async with self.kept.making() as path:
                        await blocking("layers", _make_context, file, f"{path}/tree", name)
                        made = Record(type=REGULAR, description=f"context from {shown(url)}")
                        await blocking("disk", self.kept.commit, path, inner, made)
        finally:
            self.kept.release(id)
        return inner, Tree(layers=(self.kept.tree(inner),), identity=inner)


def _comparable(here: list[tuple[str, Record]], authorization: str) -> list[tuple[str, Record]]:
    """What a server is asked about whether it is unchanged: all that has an ETag; without any the newest, by its time, but not where that
    may be another user's file: a time says nothing about whose."""
    tagged = [one for one in here if one[1].facts.get("etag")]
    if tagged or authorization:
        return tagged
    return [one for one in here if one[1].facts.get("modified") and not one[1].facts.get("private")][:1]


def _unchanged(known: list[tuple[str, Record]], etag: str, url: str) -> tuple[str, Record]:
    """Which of what was asked about is unchanged. Raises KnarrError when the server does not say."""
    found = next((one for one in known if etag and one[1].facts.get("etag") == etag), None)
    if found is None and (len(known) == 1 or not any(record.facts.get("private") for _, record in known)):
        found = known[0]
    if found is None:
        raise KnarrError(f"invalid not-modified ETag {etag[:100]!r} for {shown(url)}")
    return found


async def _download(response: Response, target: str) -> str:
    """Write a body to a new file; its digest."""
    hasher = hashlib.sha256()
    size = 0
    pending: list[bytes] = []
    waiting = 0
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(data: bytes) -> None:
        hasher.update(data)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    try:
        os.fchmod(fd, 0o600)
        chunks = response.chunks()
        try:
            async for chunk in chunks:
                size += len(chunk)
                if size > _LIMIT:
                    raise KnarrError(f"fetching {shown(response.url)}: more than {_LIMIT} bytes")
                pending.append(chunk)
                waiting += len(chunk)
                if waiting >= _BATCH:
                    await blocking("hashing", write, b"".join(pending))
                    pending.clear()
                    waiting = 0
        finally:
            await chunks.aclose()
        if pending:
            await blocking("hashing", write, b"".join(pending))
        await trio.lowlevel.checkpoint()
    finally:
        os.close(fd)
    return f"sha256:{hasher.hexdigest()}"


def _target(url: str, location: str) -> str:
    """Where a redirect leads. Raises InvalidParameter."""
    try:
        target = urljoin(url, location)
        _ = urlsplit(target).port
    except ValueError as error:
        raise InvalidParameter(f"fetching {shown(url)}: a redirect to {location[:200]!r}: {error}") from None
    return target


def _sendable(value: str) -> str:
    """The value of a header, "" for one that no request could have."""
    return value if value.isascii() and value.isprintable() and len(value) <= _LONGEST_VALUE else ""


def _credentials(url: str) -> tuple[str, str]:
    """A URL without user and password, and the header that says them."""
    parts = urlsplit(url)
    user, mark, host = parts.netloc.rpartition("@")
    if not mark:
        return url, ""
    name, _, password = user.partition(":")
    word = base64.b64encode(f"{unquote(name)}:{unquote(password)}".encode()).decode()
    return urlunsplit(parts._replace(netloc=host)), f"Basic {word}"


def _seconds(modified: str) -> int:
    """Unix seconds of a Last-Modified, 0 for none."""
    try:
        return max(0, int(parsedate_to_datetime(modified).timestamp()))
    except (ValueError, TypeError, OverflowError):
        return 0


def _is_archive(path: str) -> bool:
    with open(path, "rb") as file:
        return is_archive(file.fileno())


def _make_context(file: str, folder: str, dockerfile: str) -> None:
    if not dockerfile:
        with open(file, "rb") as source:
            unpack_into(folder, lambda: source.read(compression.PIECE))
        return
    target = os.path.normpath("/" + dockerfile)[1:] or "Dockerfile"
    os.makedirs(os.path.dirname(f"{folder}/{target}"), 0o755, exist_ok=True)
    with open(file, "rb") as source, open(f"{folder}/{target}", "xb") as copy:
        while piece := source.read(compression.PIECE):
            copy.write(piece)
