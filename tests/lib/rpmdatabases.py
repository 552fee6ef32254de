"""Databases of rpm, made without rpm: of each kind what its own tools write, so that they read it as well."""

from __future__ import annotations

import sqlite3
import struct
import zlib
from collections.abc import Sequence

TAGS = {"name": 1000, "version": 1001, "release": 1002, "epoch": 1003, "vendor": 1011, "license": 1014, "arch": 1022, "source": 1044}


def header(**fields: str | int) -> bytes:
    """An rpm header as a database keeps it."""
    entries, data = b"", b""
    for name, value in fields.items():
        if isinstance(value, int):
            data += b"\0" * (-len(data) % 4)
            entries += struct.pack(">IIII", TAGS[name], 4, len(data), 1)
            data += struct.pack(">I", value)
        else:
            entries += struct.pack(">IIII", TAGS[name], 6, len(data), 1)
            data += value.encode() + b"\0"
    return struct.pack(">II", len(fields), len(data)) + entries + data


def sqlite(blobs: Sequence[bytes], page: int = 4096) -> bytes:
    """`rpmdb.sqlite`."""
    connection = sqlite3.connect(":memory:")
    connection.execute(f"PRAGMA page_size={page}")
    connection.execute("CREATE TABLE Other (x)")
    connection.execute("CREATE TABLE Packages (hnum INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB NOT NULL)")
    connection.executemany("INSERT INTO Packages (blob) VALUES (?)", [(blob,) for blob in blobs])
    connection.commit()
    return connection.serialize()


def ndb(blobs: Sequence[bytes], free: int = 0) -> bytes:
    """`Packages.db`, after the packages in the first `free` slots were removed."""
    pages = (free + len(blobs) + 2 + 255) // 256
    slots, body = [struct.pack("<4sIII", b"Slot", 0, 0, 0)] * free, b""
    for number, blob in enumerate(blobs, free + 1):
        count = (16 + len(blob) + 12 + 15) // 16
        data = struct.pack("<4sIII", b"BlbS", number, 7, len(blob)) + blob
        data += b"\0" * (count * 16 - 12 - len(data))
        slots.append(struct.pack("<4sIII", b"Slot", number, pages * 256 + len(body) // 16, count))
        body += data + struct.pack("<II4s", zlib.adler32(data), len(blob), b"BlbE")
    slots += [struct.pack("<4sIII", b"Slot", 0, 0, 0)] * (pages * 256 - 2 - len(slots))
    return struct.pack("<4sIIIIIII", b"RpmP", 0, 7, pages, free + len(blobs) + 1, 0, 0, 0) + b"".join(slots) + body


def berkeley(blobs: Sequence[bytes], page: int = 4096, order: str = "<", buckets: int = 4) -> bytes:
    """`Packages`, a hash database of Berkeley DB 5. `order`: struct's sign. Buckets take turns, where a real one hashes the keys."""
    return _Berkeley(page, order).made(blobs, buckets)


class _Berkeley:
    HASH, OVERFLOW = 13, 7

    def __init__(self, size: int, order: str) -> None:
        self._size, self._order = size, order
        self._pages: list[bytes] = [b""]

    def made(self, blobs: Sequence[bytes], buckets: int) -> bytes:
        records = [
            (number, struct.pack(f"{self._order}I", len(blobs)) if not number else blobs[number - 1]) for number in range(len(blobs) + 1)
        ]
        spares = [0] * 32
        first = 0
        for group in range((buckets - 1).bit_length() + 1):  # the buckets of a doubling are side by side, what does not fit behind them
            count = max(first, 1)
            start = len(self._pages)
            spares[group] = start - first
            self._pages += [b""] * count
            for bucket in range(first, first + count):
                self._bucket(start + bucket - first, records[bucket::buckets] if bucket < buckets else [])
            first += count
        mask = (1 << (buckets - 1).bit_length()) - 1
        meta = struct.pack(f"{self._order}8xIIIIBBBxIIIIII", 0, 0x61561, 9, self._size, 0, 8, 0, 0, len(self._pages) - 1, 0, 0, 0, 0)
        meta += b"0123456789abcdefghij"
        meta += struct.pack(f"{self._order}IIIIII32I", buckets - 1, mask, mask >> 1, 0, len(records), 0, *spares)
        self._pages[0] = meta.ljust(self._size, b"\0")
        return b"".join(self._pages)

    def _page(self, number: int, before: int, after: int, entries: int, free: int, kind: int, content: bytes) -> None:
        head = struct.pack(f"{self._order}8xIIIHHBB", number, before, after, entries, free & 0xFFFF, 0, kind)
        self._pages[number] = (head + content).ljust(self._size, b"\0")

    def _new(self) -> int:
        self._pages.append(b"")
        return len(self._pages) - 1

    def _bucket(self, number: int, records: list[tuple[int, bytes]]) -> None:
        before, items, room = 0, list[bytes](), self._size - 26
        for key, value in sorted((struct.pack(f"{self._order}I", key), value) for key, value in records):
            pair = [b"\1" + key, b"\1" + value if len(value) <= self._size // 4 else self._overflow(value)]
            need = sum(map(len, pair)) + 4
            if need > room:
                after = self._new()
                self._bucket_page(number, before, after, items)
                before, number, items, room = number, after, [], self._size - 26
            items += pair
            room -= need
        self._bucket_page(number, before, 0, items)

    def _bucket_page(self, number: int, before: int, after: int, items: list[bytes]) -> None:
        places, end = [], self._size
        for item in items:
            end -= len(item)
            places.append(end)
        index = struct.pack(f"{self._order}{len(places)}H", *places)
        content = index.ljust(end - 26, b"\0") + b"".join(reversed(items))
        self._page(number, before, after, len(items), end, self.HASH, content)

    def _overflow(self, value: bytes) -> bytes:
        room = self._size - 26
        numbers = [self._new() for _ in range(0, len(value), room)]
        for index, number in enumerate(numbers):
            piece = value[index * room : (index + 1) * room]
            after = numbers[index + 1] if index + 1 < len(numbers) else 0
            self._page(number, numbers[index - 1] if index else 0, after, 1, len(piece), self.OVERFLOW, piece)
        return struct.pack(f"{self._order}BxxxII", 3, numbers[0], len(value))
