"""One blob on its way from a registry: which bytes of it come, and that they are neither more nor fewer.

Follows RFC 9110 section 14.4 (Content-Range). Checks no digest: who stores the bytes does.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator

from engine.errors import KnarrError
from engine.registry.errors import Interrupted
from engine.registry.rate import Rate
from engine.registry.transport import Response, shown
from engine.spec.image import Descriptor

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


class Blob:
    """A blob under way. `start` is the first byte that comes (0 when the server ignored the range), `total` the blob's size in bytes."""

    def __init__(self, response: Response, start: int, end: int, total: int, rates: list[Rate]) -> None:
        self.start = start
        self.total = total
        self._end = end
        self._response = response
        self._rates = [rate for rate in rates if rate.per_second]

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The bytes from `start` to the end of what was asked for, in pieces of 256 KiB at most. Raises Interrupted when they end early
        (what came is good), KnarrError when there are more than there may be."""
        left = self._end - self.start
        async with contextlib.aclosing(self._response.chunks()) as parts:
            async for part in parts:
                left -= len(part)
                if left < 0:
                    raise KnarrError(f"reading {shown(self._response.url)}: the server sends more than the {self.total} bytes of the blob")
                for rate in self._rates:
                    await rate.take(len(part))
                yield part
        if left:
            raise Interrupted(f"reading {shown(self._response.url)}: unexpected EOF, {left} bytes are missing")


def whole(response: Response, descriptor: Descriptor, rates: list[Rate]) -> Blob:
    """All that a 200 sends. Raises KnarrError for another size than the descriptor's."""
    total = response.length if response.length is not None else descriptor.size
    _same_size(descriptor, total)
    return Blob(response, 0, total, total, rates)


def part(response: Response, descriptor: Descriptor, start: int, end: int | None, rates: list[Rate]) -> Blob:
    """The part that a 206 sends. Raises KnarrError when it is not the one that was asked for, or of another blob."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", "").strip())
    if match is None:
        raise KnarrError(f"{shown(response.url)} answered with a part, but not with which")
    first, last = int(match[1]), int(match[2])
    total = int(match[3]) if match[3] != "*" else descriptor.size or last + 1
    _same_size(descriptor, total)
    if first != start or last < first or last >= total or (end is not None and last >= end):
        raise KnarrError(
            f"{shown(response.url)} answered with bytes {first}-{last}, asked for was {start}-{'' if end is None else end - 1}"
        )
    return Blob(response, first, last + 1, total, rates)


def _same_size(descriptor: Descriptor, total: int) -> None:
    if descriptor.size and total != descriptor.size:
        raise KnarrError(f"{descriptor.digest} has {total} bytes at the registry, its descriptor says {descriptor.size}")
