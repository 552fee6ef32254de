"""Reading tar archives: a pull parser over chunks of bytes. Owns the format, writes nothing to any disk.

Understands what image layers are made of: POSIX ustar and pax (interchange format of POSIX.1-2001, with star's SCHILY.xattr and
libarchive's LIBARCHIVE.xattr), GNU long names, GNU base-256 numbers, the old GNU sparse format and GNU's pax sparse formats 0.0, 0.1 and
1.0 (the "Sparse Formats" appendix of the GNU tar manual). Names and values stay bytes. Every length is bounded before anything is kept.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator
from urllib.parse import unquote_to_bytes

BLOCK = 512
REGULAR, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
KNOWN = frozenset((REGULAR, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO))

# Extended headers and long names: Go's archive/tar (and so Docker) reads at most 1 MiB of each.
_META_MAX = 1 << 20
# A map of a sparse file: a million fragments, some 24 bytes each.
_SPARSE_MAX = 24 << 20
_ZERO = bytes(BLOCK)
_HEADER_ONLY = frozenset((LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO))


class TarError(ValueError):
    """The archive is malformed or exceeds a bound. `entry` is the name of the member concerned, b"" when unknown."""

    def __init__(self, message: str, entry: bytes = b"") -> None:
        super().__init__(f"{message} (entry {show(entry)})" if entry else message)
        self.entry = entry


def show(name: bytes) -> str:
    """A name for a message: quoted, escaped, at most 256 characters."""
    text = name.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 256 else text[:253] + "...")


class Entry:
    """One member. `size` is the length of the file, `stored` that of its data in the archive (less for a sparse file).

    `mtime` in nanoseconds; `sparse` lists (offset, length) of the data, None for a file without holes; `xattrs` maps names to values.
    """

    __slots__ = ("devmajor", "devminor", "gid", "linkname", "mode", "mtime", "name", "size", "sparse", "stored", "type", "uid", "xattrs")

    def __init__(self, name: bytes, type: bytes = REGULAR) -> None:
        self.name = name
        self.type = type
        self.mode = 0o644
        self.uid = self.gid = 0
        self.size = self.stored = 0
        self.mtime = 0
        self.linkname = b""
        self.devmajor = self.devminor = 0
        self.xattrs: dict[bytes, bytes] | None = None
        self.sparse: list[tuple[int, int]] | None = None

    def __repr__(self) -> str:
        return f"Entry({show(self.name)}, {self.type!r}, size={self.size})"


class TarReader:
    """Iterate over the members of an archive; between two, `data()` gives the current one's bytes.

    `source` returns the next chunk of the archive, b"" at its end. Raises TarError, and whatever `source` raises.
    """

    def __init__(self, source: Callable[[], bytes]) -> None:
        self._source = source
        self._buffer = b""
        self._view = memoryview(b"")
        self._position = 0
        self._left = 0  # bytes of the current member's data not yet given out
        self._padding = 0
        self._name = b""

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self.next()) is not None:
            yield entry

    def next(self) -> Entry | None:
        """The next member, or None at the end of the archive."""
        records: dict[bytes, bytes] = {}
        fragments: list[tuple[bytes, bytes]] = []
        long_name = long_link = b""
        while True:
            self._skip(self._left)
            ended = not self._skip_padding()
            self._left = self._padding = 0
            header = None if ended else self._block()
            if header is None or header == _ZERO:
                return None
            _check(header, self._name)
            kind = header[156:157]
            if kind == b"x" or kind == b"X":
                records, fragments = _pax(self._meta(header))
            elif kind == b"L":
                long_name = self._meta(header).partition(b"\0")[0]
            elif kind == b"K":
                long_link = self._meta(header).partition(b"\0")[0]
            elif kind == b"g" or kind == b"V":
                # Global records (git archive's comment) and volume labels say nothing about a layer; Docker leaves them out too.
                self._set_data(_number(header[124:136], self._name))
            else:
                return self._member(header, kind, records, fragments, long_name, long_link)

    def data(self) -> Iterator[memoryview]:
        """The rest of the current member's stored data, in chunks that are valid until the next one is asked for."""
        while self._left:
            if self._position >= len(self._buffer):
                self._fill()
            end = min(self._position + self._left, len(self._buffer))
            chunk = self._view[self._position : end]
            self._left -= len(chunk)
            self._position = end
            yield chunk

    def read(self, limit: int) -> bytes:
        """All of the current member's data. Raises TarError when it is longer than `limit` bytes."""
        if self._left > limit:
            raise TarError(f"{self._left} bytes where at most {limit} are allowed", self._name)
        return b"".join(self.data())

    # -- members

    def _member(
        self,
        header: bytes,
        kind: bytes,
        records: dict[bytes, bytes],
        fragments: list[tuple[bytes, bytes]],
        long_name: bytes,
        long_link: bytes,
    ) -> Entry:
        name = long_name or header[:100].partition(b"\0")[0]
        posix = header[257:263] == b"ustar\0"
        if posix and not long_name and header[345] and (prefix := header[345:500].partition(b"\0")[0]):
            name = prefix + b"/" + name
        entry = Entry(name)
        self._name = name
        entry.mode = _number(header[100:108], name) & 0o7777
        entry.uid = _number(header[108:116], name)
        entry.gid = _number(header[116:124], name)
        entry.size = entry.stored = _number(header[124:136], name)
        entry.mtime = _number(header[136:148], name) * 1_000_000_000
        entry.linkname = long_link or header[157:257].partition(b"\0")[0]
        entry.type = kind
        if kind in (CHARACTER, BLOCK_DEVICE):
            entry.devmajor, entry.devminor = _number(header[329:337], name), _number(header[337:345], name)
        if records or fragments:
            self._apply(entry, records)
        if kind == b"\0" or kind == b"7":
            entry.type = kind = DIRECTORY if entry.name.endswith(b"/") and kind == b"\0" else REGULAR
        elif kind == REGULAR and entry.name.endswith(b"/") and not entry.size:
            entry.type = kind = DIRECTORY
        if kind in _HEADER_ONLY:
            entry.size = entry.stored = 0
        if not entry.name:
            raise TarError("a member without a name")
        if entry.size < 0 or entry.uid < 0 or entry.gid < 0:
            raise TarError("a negative number", entry.name)
        self._set_data(entry.stored)
        if kind == b"S":
            self._old_sparse(entry, header)
        elif b"GNU.sparse.major" in records or b"GNU.sparse.map" in records or fragments:
            self._pax_sparse(entry, records, fragments)
        if entry.sparse is not None:
            _check_sparse(entry, self._left)
        return entry

    def _apply(self, entry: Entry, records: dict[bytes, bytes]) -> None:
        for key, value in records.items():
            if key == b"path":
                entry.name = self._name = value
            elif key == b"linkpath":
                entry.linkname = value
            elif key == b"size":
                entry.size = entry.stored = _decimal(value, self._name)
            elif key == b"uid":
                entry.uid = _decimal(value, self._name)
            elif key == b"gid":
                entry.gid = _decimal(value, self._name)
            elif key == b"mtime":
                entry.mtime = _nanoseconds(value, self._name)
            elif key == b"GNU.sparse.name":
                entry.name = self._name = value
            elif key.startswith(b"SCHILY.xattr."):
                entry.xattrs = entry.xattrs or {}
                entry.xattrs[key[13:]] = value
            elif key.startswith(b"LIBARCHIVE.xattr."):
                self._libarchive(entry, unquote_to_bytes(key[17:]), value)

    def _libarchive(self, entry: Entry, name: bytes, value: bytes) -> None:
        """libarchive writes the same attributes twice, this one in base64 without padding; star's form wins."""
        entry.xattrs = entry.xattrs or {}
        try:
            entry.xattrs.setdefault(name, base64.b64decode(value + b"=" * (-len(value) % 4), validate=True))
        except binascii.Error:
            raise TarError(f"extended attribute {show(name)} is not base64", entry.name)

    # -- sparse files

    def _old_sparse(self, entry: Entry, header: bytes) -> None:
        entry.type = REGULAR
        entry.size = _number(header[483:495], entry.name)
        found = _sparse_pairs(header[386:482], entry.name)
        more = header[482]
        while more:
            block = self._block()
            if block is None or len(found) * 24 > _SPARSE_MAX:
                raise TarError("the map of a sparse file is cut off or too long", entry.name)
            found += _sparse_pairs(block[:504], entry.name)
            more = block[504]
        entry.sparse = found

    def _pax_sparse(self, entry: Entry, records: dict[bytes, bytes], fragments: list[tuple[bytes, bytes]]) -> None:
        name = entry.name
        real = records.get(b"GNU.sparse.realsize") or records.get(b"GNU.sparse.size")
        if real is not None:
            entry.size = _decimal(real, name)
        if records.get(b"GNU.sparse.major") == b"1":
            entry.sparse = self._sparse_map(name)
            entry.stored = self._left
        elif b"GNU.sparse.map" in records:
            numbers = [_decimal(word, name) for word in records[b"GNU.sparse.map"].split(b",") if word]
            entry.sparse = list(zip(numbers[::2], numbers[1::2], strict=False))
        elif fragments:
            numbers = [_decimal(value, name) for _, value in fragments]
            entry.sparse = list(zip(numbers[::2], numbers[1::2], strict=False))

    def _sparse_map(self, name: bytes) -> list[tuple[int, int]]:
        """Format 1.0: decimal numbers, one a line, before the data: how many pairs, then the pairs; padded to a block."""
        numbers: list[int] = []
        rest = b""
        used = 0
        while not numbers or len(numbers) < 1 + 2 * numbers[0]:
            block = self._block() if self._left >= BLOCK and used < _SPARSE_MAX else None
            if block is None or (numbers and numbers[0] * 4 > _SPARSE_MAX):
                raise TarError("the map of a sparse file is cut off or too long", name)
            self._left -= BLOCK
            used += BLOCK
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                if not numbers or len(numbers) < 1 + 2 * numbers[0]:
                    numbers.append(_decimal(line, name))
        return list(zip(numbers[1::2], numbers[2::2], strict=True))

    # -- bytes

    def _set_data(self, size: int) -> None:
        if size < 0:
            raise TarError("a negative size", self._name)
        self._left = size
        self._padding = -size % BLOCK

    def _meta(self, header: bytes) -> bytes:
        size = _number(header[124:136], self._name)
        if not 0 <= size <= _META_MAX:
            raise TarError(f"an extended header of {size} bytes, at most {_META_MAX} are allowed", self._name)
        self._set_data(size)
        return b"".join(self.data())

    def _fill(self) -> None:
        chunk = self._source()
        if not chunk:
            raise TarError("the archive is cut off", self._name)
        self._buffer = chunk
        self._view = memoryview(chunk)
        self._position = 0

    def _block(self) -> bytes | None:
        """The next 512 bytes, or None at a clean end."""
        end = self._position + BLOCK
        if end <= len(self._buffer):
            block = self._buffer[self._position : end]
            self._position = end
            return block
        block = self._buffer[self._position :]
        while len(block) < BLOCK:
            chunk = self._source()
            if not chunk:
                if block:
                    raise TarError("the archive is cut off", self._name)
                self._buffer, self._position = b"", 0
                return None
            self._position = BLOCK - len(block)
            self._buffer = chunk
            self._view = memoryview(chunk)
            block += chunk[: self._position]
        self._position = min(self._position, len(self._buffer))
        return block

    def _skip(self, count: int) -> None:
        while count:
            if self._position >= len(self._buffer):
                self._fill()
            step = min(count, len(self._buffer) - self._position)
            self._position += step
            count -= step

    def _skip_padding(self) -> bool:
        """False at the end of the source: archives without their last padding exist (umoci 0.4 writes them), and Go reads them."""
        while self._padding:
            if self._position >= len(self._buffer):
                chunk = self._source()
                if not chunk:
                    return False
                self._buffer, self._view, self._position = chunk, memoryview(chunk), 0
            step = min(self._padding, len(self._buffer) - self._position)
            self._position += step
            self._padding -= step
        return True


def _check(header: bytes, previous: bytes) -> None:
    try:
        wanted = int(header[148:156].strip(b"\0 ") or b"0", 8)
    except ValueError:
        wanted = -1
    if sum(header) - sum(header[148:156]) + 256 == wanted:
        return
    # Old tars summed signed characters.
    if sum(byte - 256 if byte > 127 else byte for byte in header[:148] + header[156:]) + 256 != wanted:
        after = f" after {show(previous)}" if previous else ""
        raise TarError(f"this is no tar archive: a header{after} has a wrong checksum")


def _number(field: bytes, name: bytes) -> int:
    """Octal, or GNU's base-256 when the first bit is set."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=False) & ((1 << (8 * len(field) - 1)) - 1)
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
        if value >= 1 << 63:
            raise TarError("a number is out of range", name)
        return value
    try:
        return int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        raise TarError(f"a malformed number {field!r}", name)


def _decimal(text: bytes, name: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise TarError(f"a malformed number {text[:32]!r}", name)
    return int(text)


def _nanoseconds(text: bytes, name: bytes) -> int:
    """Pax time: seconds, perhaps negative, perhaps with a fraction."""
    whole, _, fraction = text.partition(b".")
    digits = whole.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > 18 or (fraction and not fraction.isdigit()):
        raise TarError(f"a malformed time {text[:32]!r}", name)
    value = int(digits) * 1_000_000_000 + int((fraction[:9]).ljust(9, b"0") or b"0")
    return -value if whole.startswith(b"-") else value


def _pax(body: bytes) -> tuple[dict[bytes, bytes], list[tuple[bytes, bytes]]]:
    """The records of an extended header, and apart from them format 0.0's repeated offset and length records in order."""
    records: dict[bytes, bytes] = {}
    fragments: list[tuple[bytes, bytes]] = []
    position = 0
    while position < len(body):
        if body[position] == 0:
            break
        space = body.find(b" ", position, position + 20)
        digits = body[position:space] if space > 0 else b""
        if not digits.isdigit():
            raise TarError("a malformed extended header")
        end = position + int(digits)
        record = body[space + 1 : end - 1]
        key, equals, value = record.partition(b"=")
        if end > len(body) or end <= space + 1 or body[end - 1 : end] != b"\n" or not equals or not key:
            raise TarError("a malformed extended header")
        if b"\0" in value and not key.startswith((b"SCHILY.xattr.", b"LIBARCHIVE.xattr.")):
            raise TarError(f"a NUL in the extended header {show(key)}")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            fragments.append((key, value))
        elif value:
            records[key] = value
        elif key.startswith(b"SCHILY.xattr."):
            records[key] = b""
        else:
            records.pop(key, None)
        position = end
    return records, fragments


def _sparse_pairs(area: bytes, name: bytes) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for start in range(0, len(area) - 23, 24):
        if not area[start]:
            break
        found.append((_number(area[start : start + 12], name), _number(area[start + 12 : start + 24], name)))
    return found


def _check_sparse(entry: Entry, stored: int) -> None:
    """Fragments in order, inside the file, and as long together as the data that follows."""
    assert entry.sparse is not None
    end = total = 0
    for offset, length in entry.sparse:
        if length < 0 or offset < end:
            raise TarError("the map of a sparse file is out of order", entry.name)
        end = offset + length
        total += length
    if end > entry.size or total != stored:
        raise TarError("the map of a sparse file does not match its data", entry.name)
