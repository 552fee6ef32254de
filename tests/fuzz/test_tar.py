"""Damaged archives end in TarError or in members, never in another exception, a hang or large memory."""

from __future__ import annotations

import random
import tarfile

from engine.wire import tar
from tests.lib.images import entry
from tests.lib.images import tar as archive
from tests.lib.stores import source


def seed() -> list[bytes]:
    members = [
        entry("folder", tarfile.DIRTYPE),
        entry("n" * 150, data=b"x" * 700, pax_headers={"SCHILY.xattr.user.x": "1", "mtime": "1.5"}),
        entry("sparse", data=b"12345", pax_headers={"GNU.sparse.map": "3,5", "GNU.sparse.size": "50"}),
        entry("old", data=b"2\n0\n1\n5\n1\n".ljust(512, b"\0") + b"ab",
              pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}),
        entry("link", tarfile.SYMTYPE, linkname="l" * 120),
    ]  # fmt: skip
    return [archive(members, format) for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)]


def mended(data: bytearray) -> bytes:
    """Make checksums right again, so that damage gets further than the first check."""
    for start in range(0, len(data) - 511, 512):
        if data[start + 257 : start + 262] == b"ustar":
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    return bytes(data)


def test_damage() -> None:
    chance = random.Random(20240607)
    seeds = seed()
    for round in range(3000):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 6)):
            place = chance.randrange(len(data))
            data[place] = chance.choice((0, 0x80, 0xFF, ord("9"), ord("0"), chance.randrange(256)))
        if chance.random() < 0.2:
            del data[chance.randrange(len(data)) :]
        reader = tar.TarReader(source(mended(data) if round % 4 else bytes(data), 300))
        try:
            for member in reader:
                assert member.name
                for _ in reader.data():
                    pass
        except tar.TarError:
            continue
