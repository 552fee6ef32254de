"""The numbered folders of snapshots on the disk, `snapshots/<number>/{fs,work}`: made ahead, filled, replaced, removed.

Owns the files. What a number stands for is `snapshots`' business, and so is which folders somebody owns.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Set

from engine import _core
from engine.store import overlay
from engine.store.trees import remove_path

# Ends the name of a folder that was found damaged and was replaced: evidence, which stays until the store is checked.
DAMAGED = ".damaged"
_POOL = 8
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)


class SnapshotFolders:
    """The folders below one host path. Methods are for the event-loop thread unless they say otherwise."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._next = 1
        self._pool: deque[int] = deque()
        # Folders that are being filled.
        self._begun: set[int] = set()
        # Folders that nothing owns any more and that are being removed, or soon are.
        self._doomed: set[str] = set()
        self._leftovers: list[str] = []

    def _open(self, owned: Set[str]) -> None:
        """Find the leftovers: what is there besides the numbers `owned`. Once, because later a folder may be one that is just being
        made."""
        found = [name for name in os.listdir(self._folder) if not _is_kept(name)]
        self._leftovers = [f"{self._folder}/{name}" for name in found if name not in owned]
        self._doomed.update(self._leftovers)
        self._next = 1 + max((int(name) for name in (*found, *owned) if name.isdecimal()), default=0)
        overlay.make_shared(self._folder)

    # -- new ones

    def refill(self, size: int = _POOL) -> None:
        """Make folders ahead until `size` wait for `prepare`. Some 200 µs each; for a background task on the loop's thread."""
        while len(self._pool) < size:
            self._pool.append(self._make_pair())

    def _take(self) -> int:
        """The number of a new pair of folders, one of those made ahead if there are any."""
        return self._pool.popleft() if self._pool else self._make_pair()

    def _make_pair(self, work: bool = True) -> int:
        number = self._next
        self._next += 1
        base = f"{self._folder}/{number}"
        os.mkdir(base, 0o710)
        os.mkdir(base + "/fs", 0o755)
        if work:
            os.mkdir(base + "/work", 0o700)
        return number

    def begin(self) -> str:
        """A new folder for unpacking a layer; unpack into its `fs`, then `commit` or `discard`."""
        number = self._make_pair(work=False)
        self._begun.add(number)
        return f"{self._folder}/{number}"

    def sync_files(self, path: str) -> None:
        """Make everything in the file system of `path` durable: once per layer, before `commit`. Blocks; any thread."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _core.syncfs(fd)
        finally:
            os.close(fd)

    # -- old ones

    def discard(self, path: str) -> None:
        """Give up a folder of `begin`: its files are removed. Slow; any thread."""
        self.delete_files(path)
        self._begun.discard(int(path.rpartition("/")[2]))

    def delete_files(self, path: str) -> None:
        """Remove a folder that `forget`, `collect` or `begin` gave. Slow, any thread. Raises OSError."""
        try:
            remove_path(path)
        finally:
            self._doomed.discard(path)

    def _doom(self, number: int) -> str:
        """The path of a folder that nothing owns any more."""
        path = f"{self._folder}/{number}"
        self._doomed.add(path)
        return path

    def _replace(self, number: int, damaged: int) -> None:
        """Put one folder in the place of another. Whoever mounted the old one keeps it, under another name."""
        new, old = f"{self._folder}/{number}", f"{self._folder}/{damaged}"
        aside, count = old + DAMAGED, 1
        while os.path.lexists(aside):
            count += 1
            aside = f"{old}-{count}{DAMAGED}"
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if os.path.lexists(old):
                _core.renameat2(folder, new, folder, old, _EXCHANGE)
                os.rename(new, aside)
            else:
                os.rename(new, old)
            os.fsync(folder)  # before the row says that it is whole; a repair is rare enough to wait for the disk here
        finally:
            os.close(folder)

    def _strays(self, owned: Set[str]) -> tuple[list[str], list[str]]:
        """Paths of folders that are not among the numbers `owned` and that nobody is removing, and of damaged ones set aside. On the loop's
        thread, which alone makes folders; other threads remove some meanwhile, so what is doomed is noted before the look."""
        known = owned | {str(number) for number in (*self._pool, *self._begun)}
        doomed = set(self._doomed)
        names = sorted(os.listdir(self._folder))
        aside = [f"{self._folder}/{name}" for name in names if name.endswith(DAMAGED)]
        strays = (f"{self._folder}/{name}" for name in names if name not in known and not _is_kept(name))
        return [path for path in strays if path not in doomed], aside

    def leftovers(self) -> list[str]:
        """The host paths of what the folders that `sweep` will delete have of files."""
        return [f"{path}/fs" for path in self._leftovers]

    def sweep(self) -> list[str]:
        """Delete the folders that no row owned when the store was opened; returns them. Slow when there are many; any thread."""
        swept, self._leftovers = self._leftovers, []
        for path in swept:
            self.delete_files(path)
        return swept


def _is_kept(name: str) -> bool:
    """Whether a name in the folder of snapshots is none of a leftover: what is mounted everywhere, and evidence."""
    return name in (overlay.EMPTY, overlay.PLACES) or name.endswith(DAMAGED)
