"""Bytes of one blob from a registry into its ingest: only what is missing, over several ranges when it is large, again after a cut.

Owns how often and how long it tries. Checks nothing of the content: the reader of the ingest does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, suppress

import trio

from engine.aio.blocking import blocking
from engine.aio.scopes import shielded
from engine.errors import KnarrError
from engine.registry import retry
from engine.registry.client import Remote
from engine.registry.errors import Interrupted, ServerError, TooManyRequests, Unreachable
from engine.spec.image import Descriptor
from engine.store.ingest import BLOCK, Ingest

# A hop to a thread costs some 0.2 ms, so what comes is stored when it finishes a block of the ingest, which counts after a crash; on a slow
# link so often, in seconds, for it to be seen to come.
_SECONDS = 0.25
_KEEP_SECONDS = 5.0
# From here on one connection is rarely as fast as the link; a range is large enough that its round trip does not count.
_LARGE = 64 << 20
_RANGE = 16 << 20
_CONNECTIONS = 3

Connect = Callable[[], AbstractAsyncContextManager[Remote]]


class _NoRanges(Exception):
    """The server sends whole blobs only."""


class Fetcher:
    """Fetches one blob. `attempts`: how many times in a row nothing may come before it is an error; each piece that comes counts anew."""

    def __init__(self, connect: Connect, descriptor: Descriptor, attempts: int) -> None:
        self._connect = connect
        self._descriptor = descriptor
        self._attempts = max(1, attempts)
        self._writing = trio.Lock()

    async def __call__(self, ingest: Ingest, grown: Callable[[], None]) -> None:
        """Bring all that is missing. Raises KnarrError, OSError."""
        async with self._connect() as remote:
            pieces = ingest.missing(_RANGE)
            if sum(end - start for start, end in pieces) >= _LARGE:
                with suppress(_NoRanges):
                    await self._ranges(remote, ingest, pieces, grown)
            while gaps := ingest.missing(0):
                await self._range(remote, ingest, *gaps[0], grown, alone=True)

    async def _ranges(self, remote: Remote, ingest: Ingest, pieces: list[tuple[int, int]], grown: Callable[[], None]) -> None:
        waiting = pieces[::-1]
        failures: list[Exception] = []

        async def work() -> None:
            try:
                while waiting:
                    start, end = waiting.pop()
                    await self._range(remote, ingest, start, end, grown, alone=False)
            except (KnarrError, OSError, _NoRanges) as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(min(_CONNECTIONS, len(waiting))):
                nursery.start_soon(work)
        if failures:
            raise failures[0]

    async def _range(self, remote: Remote, ingest: Ingest, start: int, end: int, grown: Callable[[], None], *, alone: bool) -> None:
        """Bring the bytes from `start` to `end`, however many requests that takes. `alone`: a whole blob instead of a range will do."""
        place, failed = start, 0

        async def store(pieces: list[bytes]) -> None:
            nonlocal place, failed
            async with self._writing:
                await blocking("disk", ingest.write, place, pieces)
            place += sum(map(len, pieces))
            failed = 0
            grown()

        while place < end:
            try:
                await self._request(remote, place, None if end == ingest.size else end, store, alone=alone)
                if place < end:
                    raise Interrupted(f"fetching blob {self._descriptor.digest}: it ended after {place} of {end} bytes")
            except (Interrupted, ServerError, TooManyRequests, Unreachable) as error:
                failed += 1
                asked = error.after if isinstance(error, TooManyRequests) else 0
                final = isinstance(error, Unreachable) and error.final
                if failed >= self._attempts or final or asked > retry.LONGEST_WAIT_ASKED:
                    raise
                await trio.sleep(retry.delay(failed, asked))

    async def _request(
        self, remote: Remote, start: int, end: int | None, store: Callable[[list[bytes]], Awaitable[None]], *, alone: bool
    ) -> None:  # fmt: skip
        """One request. What had come before a cut is stored before the cut is told."""
        async with remote.blob(self._descriptor, start, end) as blob:
            if blob.start != start and not alone:
                raise _NoRanges
            skip = start - blob.start
            pieces: list[bytes] = []
            place, held, stored = start, 0, trio.current_time()
            try:
                async with aclosing(blob.chunks()) as chunks:
                    async for chunk in chunks:
                        if skip:
                            chunk, skip = chunk[skip:], max(0, skip - len(chunk))
                        if chunk:
                            pieces.append(chunk)
                            held += len(chunk)
                        finished = (place + held) // BLOCK > place // BLOCK
                        if finished or (held and trio.current_time() - stored >= _SECONDS):
                            await store(pieces)
                            place += held
                            pieces, held, stored = [], 0, trio.current_time()
                if pieces:
                    await store(pieces)
                    pieces = []
            finally:
                if pieces:
                    with shielded(_KEEP_SECONDS):
                        await store(pieces)
