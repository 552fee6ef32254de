"""A snapshot as a row of the database. Data only; what the rows mean is `snapshots`' business."""

from __future__ import annotations

import functools
import sqlite3

import msgspec

COLUMNS = "number, name, committed, parent, size, inodes, at, blob, damage, boot, cached, diff_id, packed"
# Results of builds are called this and something random until an image has them, because nobody has yet computed what they are.
PROVISIONAL = "build:"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class Snapshot(msgspec.Struct):
    """One row. `parent` is a chain identifier or ""; `size` in bytes (allocated) and `inodes` are 0 for active ones.

    Of a committed one: `at` is when it was committed (Unix seconds), `blob` what it was unpacked from ("" when that is not known),
    `damage` what is wrong with it. `boot`: in which boot of the host it was committed, while its files are not known to be on the disk
    ("" when they are); a power cut takes it. `cached`: the build cache keeps it. `diff_id`: the digest of what `store.pack` makes of it,
    and `packed` the bytes of that, once they are known. A row that is renamed stays the same object, so whoever works with one holds that
    and not its name.
    """

    number: int
    name: str
    committed: bool
    parent: str
    size: int = 0
    inodes: int = 0
    at: int = 0
    blob: str = ""
    damage: str = ""
    boot: str = ""
    cached: bool = False
    diff_id: str = ""
    packed: int = 0


def row_of(values: tuple[object, ...]) -> Snapshot:
    """From the values of COLUMNS."""
    number, name, committed, parent, size, inodes, at, blob, damage, boot, cached, diff_id, packed = values
    return Snapshot(
        int(number), str(name), bool(committed), str(parent), int(size), int(inodes), int(at), str(blob), str(damage),  # type: ignore[call-overload]
        str(boot), bool(cached), str(diff_id), int(packed),  # type: ignore[call-overload]
    )  # fmt: skip


@functools.cache
def boot_id() -> str:
    """Which boot of the host this is."""
    with open(_BOOT_ID, encoding="ascii") as file:
        return file.read().strip()


def insert(cursor: sqlite3.Cursor, row: Snapshot) -> None:
    """Add a row, in an open transaction."""
    cursor.execute(
        f"INSERT INTO snapshots ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            row.number,
            row.name,
            row.committed,
            row.parent,
            row.size,
            row.inodes,
            row.at,
            row.blob,
            row.damage,
            row.boot,
            row.cached,
            row.diff_id,
            row.packed,
        ),
    )
