"""Uploading one blob: open, send in chunks, close; after a cut, go on from where the registry has got to.

Follows the distribution specification, "Pushing Blobs": POST then PUT for small blobs; POST, PATCH and PUT for the others; the status
request for going on. Reads the blob through a function, so it may come from anywhere.
"""

from __future__ import annotations

import functools
import re
from collections.abc import AsyncIterator, Callable
from urllib.parse import quote

import trio

from engine.errors import Damaged, InvalidParameter, KnarrError
from engine.registry import retry
from engine.registry.errors import Interrupted, ServerError, TooManyRequests, Unreachable
from engine.registry.session import Session
from engine.registry.transport import Response
from engine.spec.image import Descriptor

WHOLE = 1 << 20  # bytes up to which a blob goes in one PUT: configurations, small layers
# Bytes of a PATCH: what is lost at most when a registry forgets the chunk of a cut connection.
CHUNK = 64 << 20
SMALLEST_CHUNK = 1 << 20
LARGEST_CHUNK = 1 << 30  # a registry's OCI-Chunk-Min-Length beyond that is not believed
_ATTEMPTS = 5  # in a row without a byte of progress
_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,18})")


class _StartOver(Exception):
    """The registry does not know the upload any more."""


class Upload:
    """One blob on its way. `run` may be called once."""

    def __init__(
        self,
        session: Session,
        repository: str,
        descriptor: Descriptor,
        open_at: Callable[[int], AsyncIterator[bytes]],
        progress: Callable[[int], None],
    ) -> None:
        self._session = session
        self._repository = repository
        self._descriptor = descriptor
        self._open_at = open_at
        self._progress = progress
        self._chunk = CHUNK
        self._least = 0  # OCI-Chunk-Min-Length
        self._whole = descriptor.size <= WHOLE
        self._offset = 0
        self._location = ""

    async def run(self, location: str = "") -> None:
        """Upload; `location` is an upload that is open already. Raises Unauthorized, Damaged, Unreachable, KnarrError."""
        self._location = location
        failures = 0
        while True:
            before = self._offset
            try:
                if not self._location:
                    await self._begin()
                if self._whole:
                    await self._put(whole=True)
                else:
                    await self._send_chunks()
                    await self._put(whole=False)
                return
            except _StartOver:
                self._location, self._offset = "", 0
                failures += 1
                if failures >= _ATTEMPTS:
                    raise KnarrError(f"uploading {self._descriptor.digest}: the registry forgets the upload again and again")
            except (Unreachable, Interrupted, ServerError, TooManyRequests) as error:
                failures = 1 if self._offset > before else failures + 1
                if failures >= _ATTEMPTS or (isinstance(error, Unreachable) and error.final):
                    raise
                await trio.sleep(retry.delay(failures, min(getattr(error, "after", 0.0), retry.LONGEST_WAIT_ASKED)))
                await self._ask_offset()

    async def _begin(self) -> None:
        url = self._session.url(f"/{self._repository}/blobs/uploads/")
        async with self._session.open("POST", url) as response:
            if response.status != 202:
                raise await self._session.error(response)
            self._take_location(response)
            least = response.headers.get("oci-chunk-min-length", "")
            if least.isascii() and least.isdecimal() and len(least) < 19:
                self._least = min(int(least), LARGEST_CHUNK)
                self._chunk = max(self._chunk, self._least)

    async def _send_chunks(self) -> None:
        while self._offset < self._descriptor.size:
            end = min(self._offset + self._chunk, self._descriptor.size)
            headers = [
                ("Content-Type", "application/octet-stream"),
                ("Content-Length", str(end - self._offset)),
                ("Content-Range", f"{self._offset}-{end - 1}"),
            ]
            body = functools.partial(self._read, self._offset, end)
            response = await self._session.send("PATCH", self._location, headers, body=body, again=False)
            try:
                await self._chunk_sent(response, end)
            finally:
                await response.close()

    async def _chunk_sent(self, response: Response, end: int) -> None:
        if response.status in (200, 201, 202, 204):
            self._take_location(response)
            reached = _reached(response)
            self._offset = end if reached is None else min(reached, end)
            return
        if response.status == 413 and self._chunk > max(SMALLEST_CHUNK, self._least):
            # A proxy in front of the registry limits the size of requests.
            self._chunk = max((end - self._offset) // 8, SMALLEST_CHUNK, self._least)
            await self._ask_offset()
            return
        if response.status == 416:
            before = self._offset
            await self._ask_offset()
            if self._offset == before:
                raise await self._session.error(response)
            return
        if response.status == 404 and self._offset:
            raise _StartOver
        if response.status in (404, 405, 501):
            self._whole = True
            raise _StartOver
        raise await self._session.error(response)

    async def _put(self, *, whole: bool) -> None:
        """Close the upload; with the bytes when nothing has been sent before."""
        digest = self._descriptor.digest
        joiner = "&" if "?" in self._location else "?"
        url = f"{self._location}{joiner}digest={quote(digest, safe='')}"
        size = self._descriptor.size if whole else 0
        headers = [("Content-Type", "application/octet-stream"), ("Content-Length", str(size))]
        body: bytes | Callable[[], AsyncIterator[bytes]] = functools.partial(self._read, 0, size) if size else b""
        async with self._session.open("PUT", url, headers, body=body, again=False) as response:
            if response.status in (404, 413) and whole and self._descriptor.size > SMALLEST_CHUNK and response.status == 413:
                self._whole = False
                raise _StartOver
            if response.status == 404:
                raise _StartOver
            if response.status not in (200, 201, 202, 204):
                raise await self._session.error(response)
            told = response.headers.get("docker-content-digest", digest)
            if told.partition(":")[0] == digest.partition(":")[0] and told != digest:
                raise Damaged(f"uploading {digest}: the registry stored {told}")
        self._progress(self._descriptor.size)

    async def _ask_offset(self) -> None:
        """Where the registry has got to. An upload that it has forgotten, or cannot tell about, begins anew."""
        if not self._location or self._whole:
            self._location, self._offset = "", 0
            return
        async with self._session.open("GET", self._location) as response:
            reached = _reached(response)
            if response.status not in (200, 202, 204) or reached is None or reached > self._descriptor.size:
                self._location, self._offset = "", 0
                return
            self._offset = reached
            if response.headers.get("location"):
                self._take_location(response)

    def _take_location(self, response: Response) -> None:
        location = response.headers.get("location", "")
        if location:
            self._location = self._session.here(response.url, location)
        elif not self._location:
            raise InvalidParameter(f"uploading {self._descriptor.digest}: the registry did not say where to")

    async def _read(self, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from `start` to `end` of the blob, told to `progress` as they go."""
        at = start
        source = self._open_at(start)
        try:
            async for part in source:
                part = part[: end - at]
                at += len(part)
                yield part
                self._progress(at)
                if at >= end:
                    break
        finally:
            close = getattr(source, "aclose", None)
            if close is not None:
                await close()
        if at < end:
            raise Damaged(f"uploading {self._descriptor.digest}: the blob ends at byte {at}, its size is {self._descriptor.size}")


def _reached(response: Response) -> int | None:
    """How many bytes the registry has, by the Range header; None when it does not say. `0-0` is nothing: a blob of one byte goes whole."""
    match = _RANGE.fullmatch(response.headers.get("range", "").strip())
    if match is None:
        return None
    return int(match[1]) + 1 if int(match[1]) else 0
