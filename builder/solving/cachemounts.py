"""The folders of `RUN --mount=type=cache`: kept beside the layers, shared by builds, never part of an image.

Owns `<data root>/build/mounts/<number>/`: `data` is what is mounted, `record.json` says which identifier it belongs to. A folder without a
readable record is removed at the next look. `sharing` is BuildKit's: shared by all at once, locked by one at a time, or private: one
that another build uses is left alone and the next free one is taken, or a new one.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable

import msgspec
import trio

from builder.sources.contextfolder import remove_below
from engine.aio.blocking import blocking
from engine.aio.scopes import shielded
from engine.store.trees import usage

_CLEANUP_SECONDS = 60.0


class Record(msgspec.Struct):
    """One folder. `key` is what finds it; times in Unix nanoseconds."""

    key: str
    description: str
    created: int
    used: int
    uses: int = 0


class CacheMount:
    """A folder and who uses it."""

    def __init__(self, path: str, record: Record) -> None:
        self.path = path
        self.record = record
        self.users = 0  # also those who wait for it
        self.lock = trio.Lock()
        self.filling: trio.Event | None = None  # while what it begins with is put there
        self.gone = False

    @property
    def data(self) -> str:
        """Host path of what is mounted."""
        return f"{self.path}/data"


class CacheMounts:
    """Those of one data root. For the event-loop thread."""

    def __init__(self, folder: str) -> None:
        """Blocks for as long as it takes to list a folder. Raises OSError."""
        self._folder = folder
        self._by_key: dict[str, list[CacheMount]] = {}
        self.leftovers: list[str] = []
        os.makedirs(folder, 0o700, exist_ok=True)
        self._next = 1
        for name in sorted(os.listdir(folder)):
            self._load(name)

    def _load(self, name: str) -> None:
        path = f"{self._folder}/{name}"
        if name.isdecimal():
            self._next = max(self._next, int(name) + 1)
        try:
            with open(f"{path}/record.json", "rb") as file:
                record = msgspec.json.decode(file.read(), type=Record)
        except (OSError, msgspec.DecodeError):
            self.leftovers.append(path)
            return
        self._by_key.setdefault(record.key, []).append(CacheMount(path, record))

    @contextlib.asynccontextmanager
    async def use(
        self, key: str, description: str, sharing: str, mode: int, uid: int, gid: int, fill: Callable[[str], object] | None = None
    ) -> AsyncIterator[CacheMount]:
        """The folder of a key for as long as the block runs. A new one gets this mode and owner, and what `fill(path)` puts there (in a
        worker thread, where it should look whether it is cancelled); one that could not be filled is gone. Waits where `sharing` is locked
        and another build has it. Raises OSError."""
        while True:
            mount = self._choose(key, sharing)
            if mount is None:
                mount = self._make(key, description, mode, uid, gid, recorded=fill is None)
                if fill is not None:
                    await self._fill(mount, fill)
            async with self._using(mount, locked=sharing == "locked"):
                if mount.gone:
                    continue  # who made it could not fill it
                mount.record.used, mount.record.uses = time.time_ns(), mount.record.uses + 1
                self._write(mount)
                yield mount
                return

    async def _fill(self, mount: CacheMount, fill: Callable[[str], object]) -> None:
        mount.users += 1
        mount.filling = trio.Event()
        try:
            await blocking("disk", fill, mount.data)
            self._write(mount)  # now it is whole, also for a daemon that starts after a crash
        except BaseException:
            mount.gone = True
            self._by_key[mount.record.key].remove(mount)
            with shielded(_CLEANUP_SECONDS):
                await blocking("disk", _remove, [mount.path])
            raise
        finally:
            mount.users -= 1
            mount.filling.set()
            mount.filling = None

    @contextlib.asynccontextmanager
    async def _using(self, mount: CacheMount, *, locked: bool) -> AsyncIterator[None]:
        mount.users += 1
        try:
            if mount.filling is not None:
                await mount.filling.wait()
            if locked:
                async with mount.lock:
                    yield
            else:
                yield
        finally:
            mount.users -= 1

    def _choose(self, key: str, sharing: str) -> CacheMount | None:
        found = self._by_key.get(key, [])
        if sharing == "private":
            found = [mount for mount in found if not mount.users]
        return found[0] if found else None

    def _make(self, key: str, description: str, mode: int, uid: int, gid: int, *, recorded: bool) -> CacheMount:
        path = f"{self._folder}/{self._next}"
        self._next += 1
        at = time.time_ns()
        mount = CacheMount(path, Record(key, description, at, at))
        try:
            os.mkdir(path, 0o700)
            os.mkdir(f"{path}/data", 0o700)
            os.chown(f"{path}/data", uid, gid)
            os.chmod(f"{path}/data", mode)
            if recorded:
                self._write(mount)
        except OSError:
            _remove([path])
            raise
        self._by_key.setdefault(key, []).append(mount)
        return mount

    @staticmethod
    def _write(mount: CacheMount) -> None:
        temporary = f"{mount.path}/record.new"
        with open(temporary, "wb") as file:
            file.write(msgspec.json.encode(mount.record))
        os.rename(temporary, f"{mount.path}/record.json")

    def all(self) -> list[CacheMount]:
        """Every folder, oldest first."""
        return sorted((mount for mounts in self._by_key.values() for mount in mounts), key=lambda mount: mount.record.created)

    async def size(self, mount: CacheMount) -> int:
        """Bytes allocated, 0 of one that was removed meanwhile."""
        try:
            return (await blocking("disk", usage, mount.data))[0]
        except FileNotFoundError:
            if mount.gone:
                return 0
            raise

    async def remove(self, mounts: list[CacheMount]) -> list[CacheMount]:
        """Remove folders that nobody uses; which ones that were. Raises OSError."""
        doomed = [mount for mount in mounts if not mount.users and not mount.gone]
        for mount in doomed:
            mount.gone = True
            left = self._by_key[mount.record.key]
            left.remove(mount)
            if not left:
                del self._by_key[mount.record.key]
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{mount.path}/record.json")  # from here on it is nobody's
        await blocking("disk", _remove, [mount.path for mount in doomed])
        return doomed

    async def sweep(self) -> None:
        """Remove what a crash left."""
        leftovers, self.leftovers = self.leftovers, []
        await blocking("disk", _remove, leftovers)


def _remove(paths: list[str]) -> None:
    for path in paths:
        remove_below(*os.path.split(path))
