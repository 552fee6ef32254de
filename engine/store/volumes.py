"""Volumes on disk: rows of the database and folders `volumes/<name>/_data`. Owns both, knows no container.

A row is written before its folder is made and outlives it: a row without a folder gets an empty one at the start. A folder is renamed
before its row goes, so one with a volume's name and without a row means that the database was lost; it is somebody's data and is taken in.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time

import msgspec

from engine.linux import mounts
from engine.spec.volume import VolumeRecord
from engine.store.db import Database
from engine.store.layout import Layout
from engine.store.trees import infos, remove_path

_ENCODER = msgspec.json.Encoder()
_DOOMED = ".removed-"  # no volume's name begins with a dot
_FOLDER_MODE = 0o701  # as Docker's: passed through, not looked into
_DATA_MODE = 0o755


class VolumeStore:
    """The volumes of one data root; lookups answer from memory. Methods are for the event-loop thread unless they say otherwise."""

    def __init__(self, layout: Layout, db: Database) -> None:
        self._folder = layout.volumes
        self._db = db
        self._rows: dict[str, VolumeRecord] = {}
        self._doomed = 0
        self.damaged: list[str] = []
        """Names whose rows could not be read."""
        self.adopted: list[str] = []
        """Names of folders that had no row."""
        self.remade: list[str] = []
        """Names of rows that had no folder."""
        self._load()

    def _load(self) -> None:
        decoder = msgspec.json.Decoder(VolumeRecord)
        for name, raw in self._db.query("SELECT name, record FROM volumes"):
            try:
                self._rows[str(name)] = decoder.decode(raw)  # type: ignore[arg-type]
            except msgspec.DecodeError:
                self.damaged.append(str(name))
        for name in os.listdir(self._folder):
            path = f"{self._folder}/{name}/_data"
            if name[0] != "." and name not in self._rows and os.path.isdir(path):
                self.adopted.append(name)
                self._rows[name] = VolumeRecord(name=name, created_at=int(os.stat(path).st_mtime * 1e9))
        for name in self._rows:
            if not os.path.isdir(self.path(name)):
                self.remade.append(name)
                self.make(name)

    def save_adopted(self) -> None:
        """Write the rows of folders that had none. Raises sqlite3.Error."""
        with self._db.transaction() as cursor:
            for name in self.adopted:
                self._write(self._rows[name], cursor)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def get(self, name: str) -> VolumeRecord | None:
        """A volume by its name, None when there is none."""
        return self._rows.get(name)

    def all(self) -> list[VolumeRecord]:
        """Every volume."""
        return list(self._rows.values())

    def path(self, name: str) -> str:
        """The host path of a volume's files."""
        return f"{self._folder}/{name}/_data"

    def put(self, record: VolumeRecord, cursor: sqlite3.Cursor | None = None) -> None:
        """Write a row, in an open transaction (if that is rolled back, `forget` it) or in one of its own. Raises sqlite3.Error."""
        if cursor is None:
            with self._db.transaction() as own:
                self._write(record, own)
        else:
            self._write(record, cursor)
        self._rows[record.name] = record

    @staticmethod
    def _write(record: VolumeRecord, cursor: sqlite3.Cursor) -> None:
        cursor.execute(
            "INSERT INTO volumes VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET record = excluded.record",
            (record.name, _ENCODER.encode(record)),
        )

    def make(self, name: str) -> None:
        """Make the folders of a volume, some 100 µs. Raises OSError."""
        base = f"{self._folder}/{name}"
        for path, mode in ((base, _FOLDER_MODE), (f"{base}/_data", _DATA_MODE)):
            try:
                os.mkdir(path, mode)
            except FileExistsError:
                continue
            os.chmod(path, mode)  # whatever the umask is

    def forget(self, name: str) -> None:
        """Forget a row that was rolled back or deleted: the name is free."""
        self._rows.pop(name, None)

    def set_aside(self, name: str) -> str:
        """First step of a removal: the folder under another name, for `delete_files` or `put_back`; "" when there was none. Raises
        OSError."""
        self._doomed += 1
        doomed = f"{self._folder}/{_DOOMED}{time.time_ns()}-{self._doomed}"
        try:
            os.rename(f"{self._folder}/{name}", doomed)
        except FileNotFoundError:
            return ""
        return doomed

    def put_back(self, name: str, doomed: str) -> None:
        """Undo `set_aside`. Raises OSError."""
        if doomed:
            os.rename(doomed, f"{self._folder}/{name}")

    def delete_row(self, name: str, cursor: sqlite3.Cursor) -> None:
        """Second step, in an open transaction; once that is committed, `forget` the volume."""
        cursor.execute("DELETE FROM volumes WHERE name = ?", (name,))

    def delete_files(self, path: str) -> None:
        """Remove what `remove` gave. Slow, any thread. Raises OSError."""
        mounts.unmount_below(path, detach=False)  # nothing of another file system is ever removed
        remove_path(path)

    def leftovers(self) -> list[str]:
        """Folders whose removal was interrupted, for `delete_files`."""
        return [f"{self._folder}/{name}" for name in os.listdir(self._folder) if name.startswith(_DOOMED)]

    def size(self, name: str) -> int:
        """Bytes of a volume's files, as Docker counts: lengths of all that is no folder, each hard-linked file once. Walks the tree: call
        it in a worker thread. Raises OSError."""
        return tree_size(self.path(name))


def tree_size(path: str) -> int:
    """Lengths in bytes of everything below `path` that is no folder, each hard-linked file once. Raises OSError."""
    total = 0
    seen: set[tuple[int, int]] = set()
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for info in infos(top):
            if stat.S_ISDIR(info.st_mode):
                continue
            if info.st_nlink > 1:
                key = (info.st_dev, info.st_ino)
                if key in seen:
                    continue
                seen.add(key)
            total += info.st_size
    finally:
        os.close(top)
    return total
