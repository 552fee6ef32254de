"""Overlay folders: committed ones named by chain identifier, active ones by key (a container's identifier).

Owns the rows that say what a number is; the files are `snapshotfolders`' business, the words of a mount `overlay`'s. A row without its
folder cannot be (the folder is made durable first); a folder without a row is a leftover and is swept. Does not mount, does not unpack.

A committed snapshot that was found damaged keeps its row, so that what lies on it stays in order, but does not count as there: the next
`commit` of its chain puts whole files in its place, under the same number, and leaves the damaged ones beside it as `<number>.damaged`.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable

from engine.errors import Conflict, InvalidParameter, NotFound
from engine.spec.mount import Mount
from engine.store import overlay
from engine.store.db import Database
from engine.store.layout import Layout
from engine.store.snapshotfolders import SnapshotFolders
from engine.store.snapshotrows import COLUMNS, PROVISIONAL, Snapshot, boot_id, insert, row_of
from engine.store.trees import remove_path, usage

__all__ = ["PROVISIONAL", "Snapshot", "Snapshots"]


class Snapshots(SnapshotFolders):
    """The snapshots of one data root. Lookups answer from memory; methods are for the event-loop thread unless they say otherwise."""

    def __init__(self, layout: Layout, db: Database) -> None:
        super().__init__(layout.snapshots)
        self._db = db
        self._rows: dict[str, Snapshot] = {}
        self._children: dict[str, int] = {}
        self._damaged: set[str] = set()
        for values in db.query(f"SELECT {COLUMNS} FROM snapshots"):
            self._remember(row_of(values))
        self._drop_torn()
        # Keys of active snapshots whose folders were gone, with what was written there: they are empty from here on.
        self.lost: list[str] = []
        for row in self._rows.values():
            if not os.path.isdir(f"{self._folder}/{row.number}/fs"):
                self._without_folder(row)
        self._open(self._owned())

    def _drop_torn(self) -> None:
        """Forget what an earlier boot of the host committed and nobody synced: the disk may have any part of it. Only results of builds
        are committed so, and only other such results lie on them."""
        torn = {row.name for row in self._rows.values() if row.boot and row.boot != boot_id()}
        if not torn:
            return
        size = 0
        while size != len(torn):
            size = len(torn)
            torn |= {row.name for row in self._rows.values() if row.parent in torn}
        with self._db.transaction() as cursor:
            for name in torn:
                cursor.execute("DELETE FROM snapshots WHERE name = ?", (name,))
        for name in torn:
            self.abandon(name)
        self._children = {parent: count for parent, count in self._children.items() if count > 0}

    def _without_folder(self, row: Snapshot) -> None:
        if row.committed:
            self._mark(row, row.damage or "its folder is missing")
            return
        for folder, mode in (("", 0o710), ("/fs", 0o755), ("/work", 0o700)):
            with contextlib.suppress(FileExistsError):
                os.mkdir(f"{self._folder}/{row.number}{folder}", mode)
        self.lost.append(row.name)

    # -- active ones

    def prepare(self, key: str, parent: str | None, cursor: sqlite3.Cursor | None = None, *, volatile: bool = False) -> Mount:
        """Make the writable layer `key` on the chain `parent` (None: nothing below) and say how to mount it.

        With `cursor` the row goes into that open transaction; if it is rolled back, call `abandon(key)`. Costs one dictionary entry and one
        row when the pool is filled. Raises NotFound for an unknown parent, Conflict for a known key.
        """
        if key in self._rows:
            raise Conflict(f"preparing snapshot {key}: it exists already")
        if parent is not None and not self.whole(parent):
            raise NotFound(f"preparing snapshot {key}: no layers {parent}", hint="load or pull the image again")
        number = self._take()
        row = Snapshot(number, key, False, parent or "")
        if cursor is None:
            with self._db.transaction() as own:
                insert(own, row)
        else:
            insert(cursor, row)
        self._remember(row)
        return self.mount(key, volatile=volatile)

    def mount(self, key: str, *, volatile: bool = False) -> Mount:
        """How to mount the active snapshot `key` on /. Raises NotFound, or InvalidParameter when there are too many layers.

        `volatile` leaves out every sync of the upper file system: for a container that is removed when it ends. Such a mount cannot be
        repeated before `work/incompat` is removed, which the kernel insists on: `mount_again`.
        """
        row = self._active(key)
        lower, number = self._lower(row.parent), row.number
        below = (*lower, f"{overlay.PLACES}/fs")
        mount = overlay.writable(below, f"{number}/fs", f"{number}/work", base=self._folder, volatile=volatile)
        if not overlay.fits(mount):
            raise InvalidParameter(f"mounting snapshot {key}: {len(lower)} layers do not fit into one page of mount options")
        return mount

    def mount_again(self, key: str) -> None:
        """Let an active snapshot that was mounted `volatile` be mounted once more. Raises NotFound, OSError."""
        incompat = f"{self._folder}/{self._active(key).number}/work/work/incompat"
        if os.path.lexists(incompat):
            self.delete_files(incompat)

    def view(self, chain: str) -> Mount:
        """How to mount the committed layers `chain` read-only. Raises NotFound."""
        if chain not in self._rows:
            raise NotFound(f"no layers {chain}")
        lower = self._lower(chain)
        return overlay.readonly(lower if len(lower) > 1 else (*lower, f"{overlay.EMPTY}/fs"), base=self._folder)

    def upper(self, key: str) -> str:
        """The host path of a snapshot's own folder (of an active or a committed one). Raises NotFound."""
        row = self._rows.get(key)
        if row is None:
            raise NotFound(f"no snapshot {key}")
        return f"{self._folder}/{row.number}/fs"

    def lowers(self, parent: str) -> tuple[str, ...]:
        """The host paths of a chain's folders, topmost first; none for ""."""
        return tuple(f"{self._folder}/{part}" for part in self._lower(parent)) if parent else ()

    def has(self, name: str) -> bool:
        """Whether there is a snapshot with this chain identifier or key, and not found damaged."""
        return name in self._rows and name not in self._damaged

    def whole(self, chain: str) -> bool:
        """Whether a committed snapshot and all those below it are there."""
        row = self._rows.get(chain)
        if row is None or not row.committed:
            return False
        while self._damaged:
            if chain in self._damaged:
                return False
            chain = self._rows[chain].parent
            if not chain:
                break
        return True

    def parent(self, key: str) -> str:
        """The chain below a snapshot, "" for none. Raises NotFound."""
        if key not in self._rows:
            raise NotFound(f"no snapshot {key}")
        return self._rows[key].parent

    def usage(self, key: str) -> tuple[int, int]:
        """(bytes allocated, inodes) of a snapshot's own folder. For an active one it walks the tree: call it in a worker thread."""
        row = self._rows.get(key)
        if row is None:
            raise NotFound(f"no snapshot {key}")
        return (row.size, row.inodes) if row.committed else usage(f"{self._folder}/{row.number}/fs")

    def forget(self, key: str, cursor: sqlite3.Cursor | None = None) -> str:
        """Drop the row; returns the folder for `delete_files`. Raises NotFound, or Conflict while another snapshot lies on it."""
        row = self._rows.get(key)
        if row is None:
            raise NotFound(f"no snapshot {key}")
        if self._children.get(key):
            raise Conflict(f"removing snapshot {key}: {self._children[key]} other snapshots need it")
        if cursor is None:
            with self._db.transaction() as own:
                own.execute("DELETE FROM snapshots WHERE number = ?", (row.number,))
        else:
            cursor.execute("DELETE FROM snapshots WHERE number = ?", (row.number,))
        self.abandon(key)
        return f"{self._folder}/{row.number}"

    def delete_row(self, key: str, cursor: sqlite3.Cursor) -> None:
        """Delete the row of an active snapshot, if there is one, in an open transaction; once that is committed, call `abandon`."""
        cursor.execute("DELETE FROM snapshots WHERE name = ? AND NOT committed", (key,))

    def abandon(self, key: str) -> str:
        """Forget `key` in memory alone: its row was rolled back, or deleted. Returns its folder, "" when there is none; if it is not
        deleted it is swept at the next start."""
        row = self._rows.pop(key, None)
        if row is None:
            return ""
        self._damaged.discard(key)
        if row.parent:
            self._children[row.parent] -= 1
        return self._doom(row.number)

    # -- committed ones

    def commit(
        self, path: str, chain: str, parent: str, size: int, inodes: int, blob: str = "", *, synced: bool = True
    ) -> Snapshot:  # fmt: skip
        """Name the unpacked folder. The caller synced it first, unless it says otherwise: then it is a build's, kept until the build cache
        has it, and `synced` is called later. Raises Conflict when the chain is there (someone was faster).

        Where the chain is there and damaged, the folder takes its place.
        """
        if self.has(chain):
            raise Conflict(f"layer {chain} is there already")
        if parent and parent not in self._rows:
            raise NotFound(f"no layers {parent} below {chain}")
        number = int(path.rpartition("/")[2])
        damaged = self._rows.get(chain)
        boot = "" if synced else boot_id()
        row = Snapshot(damaged.number if damaged else number, chain, True, parent, size, inodes, int(time.time()), blob, boot=boot)
        if damaged is not None:
            self._replace(number, row.number)
        with self._db.transaction() as cursor:
            if damaged is not None:
                cursor.execute("DELETE FROM snapshots WHERE number = ?", (row.number,))
            insert(cursor, row)
        self._begun.discard(number)
        if damaged is not None:
            self._rows[chain] = row
            self._damaged.discard(chain)
        else:
            self._remember(row)
        row.cached = not synced
        return row

    def commit_active(self, key: str, name: str, size: int, inodes: int) -> Snapshot:
        """Make the writable layer `key` a committed one, which is not synced yet and is kept until the build cache has it, or this daemon
        ends. Its folder `work` goes with `drop_work`, once nothing has it mounted. Raises NotFound, Conflict."""
        row = self._active(key)
        if name in self._rows:
            raise Conflict(f"layer {name} is there already")
        boot, at = boot_id(), int(time.time())
        with self._db.transaction() as cursor:
            cursor.execute(
                "UPDATE snapshots SET name = ?, committed = 1, size = ?, inodes = ?, at = ?, boot = ? WHERE number = ?",
                (name, size, inodes, at, boot, row.number),
            )
        del self._rows[key]
        row.name, row.committed, row.size, row.inodes, row.at, row.boot, row.cached = name, True, size, inodes, at, boot, True
        self._rows[name] = row
        return row

    def drop_work(self, row: Snapshot) -> None:
        """Remove what the kernel needed beside the files of a layer that `commit_active` made. Any thread. Raises OSError."""
        remove_path(f"{self.folder(row)}/work")

    def rename(self, name: str, chain: str) -> Snapshot:
        """Call a committed snapshot by what it is, once that is known; what lies on it follows. It must be synced. Raises NotFound,
        Conflict when the chain is there already."""
        row = self._rows.get(name)
        if row is None or not row.committed:
            raise NotFound(f"no layers {name}")
        if chain in self._rows:
            raise Conflict(f"layer {chain} is there already")
        with self._db.transaction() as cursor:
            cursor.execute("UPDATE snapshots SET name = ? WHERE number = ?", (chain, row.number))
            cursor.execute("UPDATE snapshots SET parent = ? WHERE parent = ?", (chain, name))
        del self._rows[name]
        row.name = chain
        self._rows[chain] = row
        if name in self._damaged:
            self._damaged.remove(name)
            self._damaged.add(chain)
        if name in self._children:
            self._children[chain] = self._children.pop(name)
            for other in self._rows.values():
                if other.parent == name:
                    other.parent = chain
        return row

    def synced(self, rows: Iterable[Snapshot]) -> None:
        """The files of these are on the disk: `sync_files` came back after they were committed."""
        fresh = [row for row in rows if row.boot]
        if not fresh:
            return
        with self._db.transaction() as cursor:
            cursor.executemany("UPDATE snapshots SET boot = '' WHERE number = ?", [(row.number,) for row in fresh])
        for row in fresh:
            row.boot = ""

    def set_cached(self, row: Snapshot, cached: bool, cursor: sqlite3.Cursor) -> None:
        """Whether the build cache keeps a committed snapshot; in an open transaction."""
        cursor.execute("UPDATE snapshots SET cached = ? WHERE number = ?", (cached, row.number))
        row.cached = cached

    def set_packed(self, row: Snapshot, diff_id: str, packed: int) -> None:
        """What `store.pack` makes of a committed snapshot: the archive's digest and its bytes."""
        with self._db.transaction() as cursor:
            cursor.execute("UPDATE snapshots SET diff_id = ?, packed = ? WHERE number = ?", (diff_id, packed, row.number))
        row.diff_id, row.packed = diff_id, packed

    def put_on(self, row: Snapshot, parent: str) -> None:
        """Lay a committed snapshot on another one, which has the same content as the one that it lies on. Raises NotFound."""
        if parent not in self._rows:
            raise NotFound(f"no layers {parent} below {row.name}")
        with self._db.transaction() as cursor:
            cursor.execute("UPDATE snapshots SET parent = ? WHERE number = ?", (parent, row.number))
        self._children[row.parent] -= 1
        self._children[parent] = self._children.get(parent, 0) + 1
        row.parent = parent

    def get(self, name: str) -> Snapshot | None:
        """The row of a chain identifier or key. Not to be changed."""
        return self._rows.get(name)

    def set_damaged(self, chain: str, what: str) -> None:
        """A committed snapshot was found damaged: it counts as absent until its chain is committed again. Raises sqlite3.Error."""
        row = self._rows[chain]
        with self._db.transaction() as cursor:
            cursor.execute("UPDATE snapshots SET damage = ? WHERE number = ?", (what, row.number))
        self._mark(row, what)

    def source(self, chain: str) -> tuple[str, int]:
        """The blob that a committed snapshot was unpacked from ("" when that is not known), and when, in Unix seconds."""
        row = self._rows.get(chain)
        return (row.blob, row.at) if row is not None else ("", 0)

    def _mark(self, row: Snapshot, what: str) -> None:
        row.damage = what
        self._damaged.add(row.name)

    def rows(self) -> list[Snapshot]:
        """Every row, oldest first, for those who look at all of them. Not to be changed."""
        return sorted(self._rows.values(), key=lambda row: row.number)

    def is_current(self, row: Snapshot) -> bool:
        """Whether a row that `rows` gave is still one."""
        return self._rows.get(row.name) is row

    def folder(self, row: Snapshot) -> str:
        """The host path of the folder that holds a row's `fs`."""
        return f"{self._folder}/{row.number}"

    def strays(self) -> tuple[list[str], list[str]]:
        """Host paths of folders that nothing owns and nobody is removing, and of damaged ones set aside."""
        return self._strays(self._owned())

    def chain_of(self, key: str) -> list[str]:
        """The committed snapshots that an active one lies on, topmost first. Raises NotFound."""
        return self._chain(self.parent(key))

    def used_by(self, path: str) -> set[str]:
        """The active snapshots that a damaged folder which was set aside may still be mounted for."""
        number = path.rpartition("/")[2].partition(".")[0].partition("-")[0]
        chain = next((row.name for row in self._rows.values() if str(row.number) == number), "")
        return {key for key in self.keys() if chain and chain in self._chain(self._rows[key].parent)}

    def _chain(self, chain: str) -> list[str]:
        found: list[str] = []
        while chain and chain in self._rows:
            found.append(chain)
            chain = self._rows[chain].parent
        return found

    def chain_size(self, chain: str) -> int:
        """Bytes of all layers of a chain."""
        total = 0
        while chain:
            row = self._rows[chain]
            total += row.size
            chain = row.parent
        return total

    def chains(self) -> list[str]:
        """Names of the committed snapshots."""
        return [row.name for row in self._rows.values() if row.committed]

    def keys(self) -> list[str]:
        """Names of the active snapshots."""
        return [row.name for row in self._rows.values() if not row.committed]

    def collect(self, keep: Iterable[str]) -> list[str]:
        """Forget committed snapshots that nothing lies on, that are not in `keep` and not the build cache's; returns folders for
        `delete_files`."""
        kept = set(keep) | {row.name for row in self._rows.values() if row.cached}
        folders: list[str] = []
        with self._db.transaction() as cursor:
            while True:
                loose = [row.name for row in self._rows.values() if row.committed and not self._children.get(row.name)]
                idle = [name for name in loose if name not in kept]
                if not idle:
                    return folders
                folders.extend(self.forget(name, cursor) for name in idle)

    # -- inside

    def _owned(self) -> set[str]:
        """The numbers of all rows, as names of folders."""
        return {str(row.number) for row in self._rows.values()}

    def _active(self, key: str) -> Snapshot:
        row = self._rows.get(key)
        if row is None or row.committed:
            raise NotFound(f"no snapshot {key}")
        return row

    def _lower(self, chain: str) -> tuple[str, ...]:
        found: list[str] = []
        while chain:
            row = self._rows.get(chain)
            if row is None:
                raise NotFound(f"no layers {chain}", hint="load or pull the image again")
            found.append(f"{row.number}/fs")
            chain = row.parent
        if len(found) > overlay.MAX_LAYERS:
            raise InvalidParameter(f"{len(found)} layers are more than the {overlay.MAX_LAYERS} that can be mounted")
        return tuple(found) or (f"{overlay.EMPTY}/fs",)

    def _remember(self, row: Snapshot) -> None:
        self._rows[row.name] = row
        if row.damage:
            self._damaged.add(row.name)
        if row.parent:
            self._children[row.parent] = self._children.get(row.parent, 0) + 1
