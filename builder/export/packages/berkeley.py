"""The headers in a hash database of Berkeley DB: `Packages` of rpm before 4.16. Read without Berkeley DB: a file out of an image is
hostile, and only values are wanted. Pure but for the file.

Follows the page formats of Berkeley DB 4 and 5 (db_page.h): bucket b begins on page b + spares[bits of b] and goes on along the pages'
links; a page's items are found by offsets that fall from the page's end; a value that does not fit is a chain of overflow pages. A key is
a package's number in the order of the machine that wrote it, as all numbers are; under 0 stands the last number given. Every page is read
once at most, so damage ends and does not loop.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from builder.export.packages.pieces import RECORDS_MAX, VALUE_MAX, Pieces, Unreadable

_MAGIC = 0x061561
_VERSIONS = (8, 9, 10)
_META, _UNSORTED, _SORTED, _OVERFLOW = 8, 2, 13, 7  # kinds of pages
_INLINE, _OFF_PAGE = 1, 3  # kinds of items
_HEAD = 26  # bytes before a page's content
_BUCKETS_MAX = 1 << 31  # of that many, `spares` has the places
_KEY = 4


def headers(file: BinaryIO) -> Iterator[bytes]:
    """The header of every package, in no order. Memory: a page, a value and a byte for each page. Raises Unreadable, OSError."""
    return _Hash(Pieces(file)).values()


class _Hash:
    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        if pieces.size < 512:
            raise Unreadable("it is no Berkeley DB database")
        meta = pieces.read(0, 512)
        order = next((one for one in "<>" if struct.unpack_from(f"{one}I", meta, 12)[0] == _MAGIC), "")
        if not order:
            raise Unreadable("it is no hash database of Berkeley DB")
        version, size, encrypted, kind, flags = struct.unpack_from(f"{order}IIBBB", meta, 16)
        if version not in _VERSIONS or kind != _META:
            raise Unreadable(f"it is a hash database of Berkeley DB in version {version}, which is not read")
        if encrypted or flags:
            raise Unreadable("it is a Berkeley DB database that is encrypted, parted or has checksums, which is not read")
        if not 512 <= size <= 65536 or size & (size - 1):
            raise Unreadable(f"its pages have {size} bytes")
        self._size = size
        self._pages = pieces.size // size
        last_bucket = struct.unpack_from(f"{order}I", meta, 72)[0]
        if last_bucket >= min(self._pages, _BUCKETS_MAX):
            raise Unreadable(f"it has {self._pages} pages and {last_bucket + 1} buckets")
        self._buckets = last_bucket + 1
        self._spares = struct.unpack_from(f"{order}32I", meta, 96)
        self._head = struct.Struct(f"{order}8xI4xIHHxB")  # its number, the next page, items, bytes of an overflow page, kind
        self._reference = struct.Struct(f"{order}4xII")
        self._order = order
        self._seen = bytearray(self._pages)
        self._seen[0] = 1

    def values(self) -> Iterator[bytes]:
        count = 0
        for bucket in range(self._buckets):
            pending = [bucket + self._spares[bucket.bit_length()]]
            for number in pending:
                page, following, entries, _ = self._page(number, _SORTED, _UNSORTED)
                if following:
                    pending.append(following)
                items = self._items(page, number, entries)
                for key, value in zip(items, items, strict=True):
                    count += 1
                    if count > RECORDS_MAX:
                        raise Unreadable(f"it has more than {RECORDS_MAX} records")
                    if key[0] != _INLINE or len(key) != 1 + _KEY:
                        raise Unreadable(f"page {number} of it has a key that is no package's number")
                    if any(key[1:]):
                        yield self._value(value, number)

    def _page(self, number: int, *kinds: int) -> tuple[bytes, int, int, int]:
        """A page, the page after it, its items, and how many bytes an overflow page has. A page that was never written is refused, as rpm
        does: an empty bucket and a lost one would look the same."""
        if number >= self._pages:
            raise Unreadable(f"it names page {number}, which it does not have")
        if self._seen[number]:
            raise Unreadable(f"page {number} is in it twice")
        self._seen[number] = 1
        page = self._pieces.read(number * self._size, self._size)
        own, following, entries, used, kind = self._head.unpack_from(page)
        if own != number or kind not in kinds:
            raise Unreadable(f"where page {number} belongs, it has page {own} of kind {kind}")
        return page, following, entries, used

    def _items(self, page: bytes, number: int, entries: int) -> Iterator[bytes]:
        """Each begins with its kind; none is empty."""
        first = _HEAD + 2 * entries
        if entries % 2 or first > self._size:
            raise Unreadable(f"page {number} of it has {entries} items")
        end = self._size
        for start in struct.unpack_from(f"{self._order}{entries}H", page, _HEAD):
            if not first <= start < end:
                raise Unreadable(f"page {number} of it has an item at {start}")
            yield page[start:end]
            end = start

    def _value(self, item: bytes, number: int) -> bytes:
        if item[0] == _INLINE:
            return item[1:]
        if item[0] != _OFF_PAGE or len(item) != self._reference.size:
            raise Unreadable(f"page {number} of it has an item of kind {item[0]}")
        following, size = self._reference.unpack(item)
        if size > VALUE_MAX:
            raise Unreadable(f"a value of it has {size} bytes")
        made = bytearray()
        while len(made) < size:
            number = following
            page, following, _, used = self._page(number, _OVERFLOW)
            if not 0 < used <= min(self._size - _HEAD, size - len(made)):
                raise Unreadable(f"page {number} of it has {used} bytes of a value")
            made += page[_HEAD : _HEAD + used]
        return bytes(made)
