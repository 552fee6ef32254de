"""The headers in a database of rpm's own kind: `Packages.db`, as SUSE has it. Pure but for the file.

Follows what rpm's ndb writes, little-endian throughout: pages of slots at the beginning, the first two slots being the file's head; a used
slot names a package's number and its blob, in blocks of 16 bytes; a blob repeats the number, and ends with an Adler-32 of what is before,
its length and a mark. Blobs do not overlap, so no more is read than the file has.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from builder.export.packages.pieces import RECORDS_MAX, VALUE_MAX, Pieces, Unreadable

_BLOCK = 16
_PAGE = 4096
_SLOT = struct.Struct("<4sIII")  # mark, package, first block (0: not used), blocks
_HEAD = struct.Struct("<4sIII")  # mark, package, generation, bytes
_TAIL = struct.Struct("<II4s")  # sum, bytes, mark
_FILE = struct.Struct("<4sIII")  # mark, version, generation, pages of slots
_FILE_SLOTS = 2
_PAGES_MAX = 4096


def headers(file: BinaryIO) -> Iterator[bytes]:
    """The header of every package, in the file's order. Memory: a blob, and the places of all. Raises Unreadable, OSError."""
    pieces = Pieces(file)
    if pieces.size < _PAGE:
        raise Unreadable("it is no ndb database")
    mark, version, _, pages = _FILE.unpack(pieces.read(0, _FILE.size))
    if mark != b"RpmP":
        raise Unreadable("it is no ndb database")
    if version:
        raise Unreadable(f"it is an ndb database in version {version}, which is not read")
    if not 0 < pages <= min(_PAGES_MAX, pieces.size // _PAGE):
        raise Unreadable(f"it has {pieces.size} bytes and {pages} pages of slots")
    free = pages * _PAGE // _BLOCK
    for start, count, package in sorted(_slots(pieces, pages)):
        if start < free:
            raise Unreadable(f"package {package} of it overlaps others")
        free = start + count
        yield _blob(pieces, start * _BLOCK, count * _BLOCK, package)


def _slots(pieces: Pieces, pages: int) -> Iterator[tuple[int, int, int]]:
    """First block, blocks, package."""
    found = 0
    for page in range(pages):
        for index, (mark, package, start, count) in enumerate(_SLOT.iter_unpack(pieces.read(page * _PAGE, _PAGE))):
            if page == 0 and index < _FILE_SLOTS:
                continue
            if mark != b"Slot":
                raise Unreadable(f"page {page} of it has no slots")
            if start:
                found += 1
                if found > RECORDS_MAX:
                    raise Unreadable(f"it has more than {RECORDS_MAX} records")
                yield start, count, package


def _blob(pieces: Pieces, offset: int, size: int, package: int) -> bytes:
    if not _HEAD.size + _TAIL.size <= size <= VALUE_MAX:
        raise Unreadable(f"package {package} of it has {size} bytes")
    data = memoryview(pieces.read(offset, size))
    mark, own, _, length = _HEAD.unpack_from(data)
    total, again, end = _TAIL.unpack_from(data, size - _TAIL.size)
    if (mark, end, own, again) != (b"BlbS", b"BlbE", package, length) or zlib.adler32(data[: -_TAIL.size]) != total:
        raise Unreadable(f"package {package} of it is damaged")
    if _HEAD.size + length + _TAIL.size > size:
        raise Unreadable(f"package {package} of it has {length} bytes in {size}")
    return bytes(data[_HEAD.size : _HEAD.size + length])
