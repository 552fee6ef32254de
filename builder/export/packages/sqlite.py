"""The rows of one table of an SQLite database, read without SQLite: a file out of an image is hostile, and only rows are wanted. Pure but
for the file.

Follows "Database File Format" (sqlite.org/fileformat2.html): table b-trees, records, overflow pages. A write-ahead log beside the file is
not looked at; what is read is what a checkpoint wrote. Every page is visited once at most, and rows
have no more bytes than the file, so damage ends and does not loop.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from builder.export.packages.pieces import RECORDS_MAX, VALUE_MAX, Pieces, Unreadable

_MAGIC = b"SQLite format 3\0"
_INTERIOR, _LEAF = 5, 13

Value = None | int | float | str | bytes


def rows(file: BinaryIO, table: str) -> Iterator[list[Value]]:
    """Every row of a table, columns in order. Raises Unreadable for what is no database or has no such table, OSError."""
    database = _Database(Pieces(file))
    root = next(
        (row[3] for row in database.table(1) if len(row) >= 5 and row[0] == "table" and row[1] == table and isinstance(row[3], int)), 0
    )
    if not isinstance(root, int) or not root:
        raise Unreadable(f"it has no table {table}")
    yield from database.table(root)


class _Database:
    def __init__(self, pieces: Pieces) -> None:
        data = pieces.read(0, 100) if pieces.size >= 512 else b""
        if data[:16] != _MAGIC:
            raise Unreadable("it is no SQLite database")
        size = struct.unpack_from(">H", data, 16)[0]
        self._page_size = 65536 if size == 1 else size
        if self._page_size < 512 or self._page_size & (self._page_size - 1):
            raise Unreadable(f"its pages have {self._page_size} bytes")
        self._usable = self._page_size - data[20]
        if self._usable < 480:
            raise Unreadable("its pages have no room")
        if struct.unpack_from(">I", data, 56)[0] not in (0, 1):
            raise Unreadable("its texts are not in UTF-8")
        self._pieces = pieces
        self._seen: set[int] = set()
        self._left = 0  # bytes that rows may still have

    def _page(self, number: int) -> bytes:
        start = (number - 1) * self._page_size
        if number < 1 or start + self._page_size > self._pieces.size:
            raise Unreadable(f"it names page {number}, which it does not have")
        if number in self._seen:
            raise Unreadable(f"page {number} is in it twice")
        self._seen.add(number)
        return self._pieces.read(start, self._page_size)

    def table(self, root: int) -> Iterator[list[Value]]:
        """The rows of the b-tree whose root page is `root`."""
        self._seen, self._left = set(), self._pieces.size
        pending, count = [root], 0
        while pending:
            number = pending.pop()
            page = self._page(number)
            try:
                children, cells = self._node(page, 100 if number == 1 else 0)
                for cell in cells:
                    count += 1
                    if count > RECORDS_MAX:
                        raise Unreadable(f"it has more than {RECORDS_MAX} rows")
                    yield self._row(page, cell)
            except (struct.error, IndexError) as error:
                raise Unreadable(f"page {number} is damaged") from error
            pending += reversed(children)

    def _node(self, page: bytes, head: int) -> tuple[list[int], list[int]]:
        """The child pages of an interior page, or the offsets of a leaf's cells."""
        kind, _, count = struct.unpack_from(">BHH", page, head)
        if kind not in (_INTERIOR, _LEAF):
            raise Unreadable(f"a page of kind {kind} is in the table")
        first = head + (12 if kind == _INTERIOR else 8)
        cells = list(struct.unpack_from(f">{count}H", page, first))
        if kind == _LEAF:
            return [], cells
        children = [struct.unpack_from(">I", page, cell)[0] for cell in cells]
        return [*children, struct.unpack_from(">I", page, head + 8)[0]], []

    def _row(self, page: bytes, cell: int) -> list[Value]:
        size, cell = _varint(page, cell)
        _, cell = _varint(page, cell)  # the row's number
        if size > VALUE_MAX:
            raise Unreadable(f"a row of it has {size} bytes")
        self._left -= size
        if self._left < 0:
            raise Unreadable("its rows overlap")
        most, least = self._usable - 35, (self._usable - 12) * 32 // 255 - 23
        local = size
        if size > most:
            local = least + (size - least) % (self._usable - 4)
            if local > most:
                local = least
        payload = bytearray(page[cell : cell + local])
        if local < size:
            following = struct.unpack_from(">I", page, cell + local)[0]
            while following and len(payload) < size:
                overflow = self._page(following)
                payload += overflow[4 : min(self._usable, 4 + size - len(payload))]
                following = struct.unpack_from(">I", overflow)[0]
        if len(payload) < size:
            raise Unreadable("a row of it is cut off")
        return _record(bytes(payload))


def _record(payload: bytes) -> list[Value]:
    end, position = _varint(payload, 0)
    kinds = []
    while position < end:
        kind, position = _varint(payload, position)
        kinds.append(kind)
    values: list[Value] = []
    position = end
    for kind in kinds:
        if kind in (8, 9):
            values.append(kind - 8)
            continue
        size = (kind - 12) // 2 if kind >= 12 else (0, 1, 2, 3, 4, 6, 8, 8)[kind]
        piece = payload[position : position + size]
        position += size
        if len(piece) < size:
            raise Unreadable("a value of it is cut off")
        if kind >= 12:
            values.append(piece.decode("utf-8", "replace") if kind % 2 else piece)
        elif kind == 7:
            values.append(struct.unpack(">d", piece)[0])
        else:
            values.append(int.from_bytes(piece, "big", signed=True) if kind else None)
    return values


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for index in range(8):
        byte = data[position + index]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, position + index + 1
    return value << 8 | data[position + 8], position + 9
