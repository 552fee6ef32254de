"""Packages of rpm: headers out of its databases, `rpmdb.sqlite`, `Packages.db` (ndb) or `Packages` (Berkeley DB). Pure but for the file.

Follows rpm's package file format ("Header Structure"); what the database keeps of a package is such a header without its magic number.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from builder.export.packages import berkeley, ndb, sqlite
from builder.export.packages.package import Distribution, Package, clean, purl

FOLDERS = ("var/lib/rpm", "usr/lib/sysimage/rpm", "usr/share/rpm")
_NAME, _VERSION, _RELEASE, _EPOCH, _VENDOR, _LICENSE, _ARCHITECTURE, _SOURCE = 1000, 1001, 1002, 1003, 1011, 1014, 1022, 1044
_INT32, _STRING, _ARRAY, _I18N = 4, 6, 8, 9
_MOST_ENTRIES = 10_000
_KEY = "gpg-pubkey"


def packages(headers: Iterable[bytes], found: str, distribution: Distribution, unread: list[str]) -> Iterator[Package]:
    """The packages of a database, whose headers one of READERS read; `unread` is told of headers without a name or version, which every
    package has. Raises what the reader raises."""
    damaged = 0
    for blob in headers:
        fields = header(blob)
        name, version = fields.get(_NAME, ""), fields.get(_VERSION, "")
        if not name or not version:
            damaged += 1
            continue
        if name == _KEY:
            continue
        full = f"{version}-{fields[_RELEASE]}" if fields.get(_RELEASE) else version
        epoch = fields.get(_EPOCH, "")
        qualifiers = {
            "arch": fields.get(_ARCHITECTURE, ""),
            "distro": distribution.qualifier,
            "epoch": epoch,
            "upstream": fields.get(_SOURCE, ""),
        }
        yield Package(
            kind="rpm",
            name=name,
            version=f"{epoch}:{full}" if epoch else full,
            purl=purl("rpm", name, full, distribution.id, qualifiers),
            license=fields.get(_LICENSE, ""),
            supplier=fields.get(_VENDOR, ""),
            found=found,
        )
    if damaged:
        unread.append(f"{found}: {damaged} of its packages have a damaged header")


def header(blob: bytes) -> dict[int, str]:
    """Tag -> value of the texts and numbers in a header; nothing for what is no header."""
    if len(blob) < 8:
        return {}
    count, size = struct.unpack_from(">II", blob)
    data = 8 + 16 * count
    if count > _MOST_ENTRIES or data + size > len(blob):
        return {}
    found: dict[int, str] = {}
    for index in range(count):
        tag, kind, offset, entries = struct.unpack_from(">IIII", blob, 8 + 16 * index)
        start = data + offset
        if offset >= size or not entries:
            continue
        if kind in (_STRING, _ARRAY, _I18N):
            end = blob.find(b"\0", start, data + size)
            found[tag] = clean(blob[start:end].decode("utf-8", "replace")) if end >= 0 else ""
        elif kind == _INT32 and start + 4 <= data + size:
            found[tag] = str(struct.unpack_from(">I", blob, start)[0])
    return found


def _of_sqlite(file: BinaryIO) -> Iterator[bytes]:
    for row in sqlite.rows(file, "Packages"):
        yield next((value for value in row if isinstance(value, bytes)), b"")


READERS: dict[bytes, Callable[[BinaryIO], Iterator[bytes]]] = {
    b"rpmdb.sqlite": _of_sqlite,
    b"Packages.db": ndb.headers,
    b"Packages": berkeley.headers,
}
"""What reads a database, by its name: the newest kind first, as an older one beside it is what a conversion left.
They raise Unreadable, OSError."""
