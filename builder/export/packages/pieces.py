"""A database out of an image, read in pieces at offsets that the database itself names: all of them are checked here. Pure but for the
file that it is given."""

from __future__ import annotations

import os
from typing import BinaryIO

VALUE_MAX = 64 << 20
"""Bytes of one record: no package's header comes near."""
RECORDS_MAX = 200_000
"""Records of one database."""


class Unreadable(ValueError):
    """A database is damaged or is of another kind. Its text goes on after the database's name: "it ends …"."""


class Pieces:
    """`size`: bytes of the file, which does not change meanwhile."""

    def __init__(self, file: BinaryIO) -> None:
        """`file`: open for reading, can seek; it stays the caller's."""
        self._file = file
        self.size = file.seek(0, os.SEEK_END)

    def read(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes. Raises Unreadable when the file ends before, OSError."""
        if offset + count > self.size:
            raise Unreadable(f"it has {self.size} bytes and names what lies after them")
        self._file.seek(offset)
        data = self._file.read(count)
        if len(data) < count:
            raise Unreadable("it was cut off while it was read")
        return data
