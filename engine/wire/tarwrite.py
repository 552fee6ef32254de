"""Writing tar archives: the header blocks of members. Owns the format, reads no disk.

Writes POSIX ustar, and a pax extended header in front only where ustar cannot say it, so that equal members give equal bytes.
"""

from __future__ import annotations

from engine.wire.tar import BLOCK, BLOCK_DEVICE, CHARACTER, REGULAR, Entry

# POSIX: an archive ends with two zero blocks.
END = bytes(2 * BLOCK)
_OCTAL7 = 0o7777777
_OCTAL11 = 0o77777777777
_EXTENDED = b"././@PaxHeader"


def padding(size: int) -> bytes:
    """What follows data of `size` bytes up to the next block."""
    return bytes(-size % BLOCK)


def header(entry: Entry) -> bytes:
    """Everything that stands before a member's data. The data itself, `entry.size` bytes and `padding(entry.size)`, is the caller's.

    Sparse files are written out in full; `entry.sparse` is not looked at.
    """
    records: dict[bytes, bytes] = {}
    name, prefix = _split(entry.name)
    if name is None:
        records[b"path"] = entry.name
        name, prefix = entry.name[:100], b""
    if len(entry.linkname) > 100:
        records[b"linkpath"] = entry.linkname
    for key, number, limit in ((b"uid", entry.uid, _OCTAL7), (b"gid", entry.gid, _OCTAL7), (b"size", entry.size, _OCTAL11)):
        if number > limit:
            records[key] = b"%d" % number
    if entry.mtime % 1_000_000_000 or not 0 <= entry.mtime // 1_000_000_000 <= _OCTAL11:
        records[b"mtime"] = _time(entry.mtime)
    for key, value in sorted((entry.xattrs or {}).items()):
        records[b"SCHILY.xattr." + key] = value
    block = _block(entry, name, prefix)
    if not records:
        return block
    body = b"".join(_record(key, value) for key, value in sorted(records.items()))
    extended = Entry(_EXTENDED, b"x")
    extended.size = len(body)
    return _block(extended, _EXTENDED, b"") + body + padding(len(body)) + block


def _split(name: bytes) -> tuple[bytes | None, bytes]:
    """ustar's name (100) and prefix (155), or None when they do not hold it."""
    if len(name) <= 100:
        return name, b""
    cut = name.find(b"/", len(name) - 101)
    if 0 < cut <= 155 and cut < len(name) - 1:
        return name[cut + 1 :], name[:cut]
    return None, b""


def _record(key: bytes, value: bytes) -> bytes:
    rest = b" %s=%s\n" % (key, value)
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length += 1
    return b"%d%s" % (length, rest)


def _time(nanoseconds: int) -> bytes:
    sign, value = (b"-", -nanoseconds) if nanoseconds < 0 else (b"", nanoseconds)
    return sign + b"%d.%09d" % divmod(value, 1_000_000_000)


def _block(entry: Entry, name: bytes, prefix: bytes) -> bytes:
    device = entry.type in (CHARACTER, BLOCK_DEVICE)
    seconds = entry.mtime // 1_000_000_000
    block = b"".join((
        name.ljust(100, b"\0"),
        b"%07o\0" % (entry.mode & 0o7777),
        b"%07o\0" % (entry.uid if entry.uid <= _OCTAL7 else 0),
        b"%07o\0" % (entry.gid if entry.gid <= _OCTAL7 else 0),
        b"%011o\0" % (entry.size if entry.size <= _OCTAL11 else 0),
        b"%011o\0" % (seconds if 0 <= seconds <= _OCTAL11 else 0),
        b" " * 8,
        entry.type or REGULAR,
        entry.linkname[:100].ljust(100, b"\0"),
        b"ustar\00000",
        bytes(64),
        b"%07o\0" % entry.devmajor if device else bytes(8),
        b"%07o\0" % entry.devminor if device else bytes(8),
        prefix.ljust(155, b"\0"),
        bytes(12),
    ))  # fmt: skip
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
