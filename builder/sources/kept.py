"""Folders of sources that were fetched from elsewhere, kept for later builds: what each is, who uses it, how it is made and goes.

A folder is made under a name of its own, gets a `record`, and is renamed to its identifier when it is complete; from then on it does not
change. Folders of another boot of the host are not used: their last writes may have been lost, and they can be fetched again.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Collection, Iterator

import msgspec

from builder.sources.contextfolder import remove_below
from engine.aio.blocking import blocking
from engine.aio.scopes import shielded
from engine.spec.buildcache import CacheRecord
from engine.store.trees import usage

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_CLEANUP = 60.0


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a folder is. `type` and `description` are shown; `facts` belong to whoever made it; times in nanoseconds, `size` in bytes."""

    type: str
    description: str
    boot: str = ""
    created: int = 0
    size: int = 0
    facts: dict[str, str] = {}


class Kept:
    """The folders below `root`."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._token = secrets.token_hex(4)
        self._numbers = 0
        self._users: dict[str, int] = {}
        self._fetches = 0
        os.makedirs(root, 0o700, exist_ok=True)

    def tree(self, id: str) -> str:
        """The host path of the folder's content."""
        return f"{self.root}/{id}/tree"

    @contextlib.asynccontextmanager
    async def making(self) -> AsyncIterator[str]:
        """A new folder, with an empty `tree` in it; what `commit` did not take is removed."""
        self._numbers += 1
        name = f"tmp-{self._token}-{self._numbers}"
        path = f"{self.root}/{name}"
        os.makedirs(f"{path}/tree", 0o755)
        try:
            yield path
        finally:
            with shielded(_CLEANUP):
                await blocking("disk", remove_below, self.root, name)

    def commit(self, path: str, id: str, record: Record) -> None:
        """Blocks. Keep a folder that is complete; when there is one of that identifier already, that one stays. Raises OSError."""
        inner = usage(f"{path}/tree")[0]
        complete = msgspec.structs.replace(record, boot=_boot(), created=time.time_ns(), size=inner)
        with open(f"{path}/record", "xb") as file:
            file.write(msgspec.json.encode(complete))
        if self.find(id) is None:
            remove_below(self.root, id)
            os.rename(path, f"{self.root}/{id}")

    def find(self, id: str) -> Record | None:
        """A folder that can be used."""
        try:
            with open(f"{self.root}/{id}/record", "rb") as file:
                record = msgspec.json.decode(file.read(), type=Record)
        except (OSError, msgspec.DecodeError):  # not there, or not whole
            return None
        return record if record.boot == _boot() else None

    def among(self, prefix: str) -> list[tuple[str, Record]]:
        """Folders whose identifiers begin like this, the newest first."""
        found = [(id, record) for id in os.listdir(self.root) if id.startswith(prefix) and (record := self.find(id)) is not None]
        return sorted(found, key=lambda item: item[1].created, reverse=True)

    def use(self, id: str) -> None:
        """A build uses a folder, until `release`."""
        self._users[id] = self._users.get(id, 0) + 1
        with contextlib.suppress(FileNotFoundError):
            os.utime(f"{self.root}/{id}/record")

    def release(self, id: str) -> None:
        """The build is done with it."""
        self._users[id] -= 1
        if not self._users[id]:
            del self._users[id]

    @contextlib.contextmanager
    def fetching(self) -> Iterator[None]:
        """While the block runs nothing is removed: what it has found it may be about to `use`."""
        self._fetches += 1
        try:
            yield
        finally:
            self._fetches -= 1

    def records(self) -> list[CacheRecord]:
        """Blocks. All folders."""
        found: list[CacheRecord] = []
        for id in os.listdir(self.root):
            record = None if id.startswith("tmp-") else self.find(id)
            if record is not None:
                with contextlib.suppress(FileNotFoundError):
                    used = os.stat(f"{self.root}/{id}/record").st_mtime_ns
                    found.append(
                        CacheRecord(
                            id=id,
                            type=record.type,
                            description=record.description,
                            in_use=id in self._users,
                            size=record.size,
                            created_at=record.created,
                            last_used_at=used,
                        )
                    )
        return found

    async def remove(self, ids: Collection[str], *, fetching: bool = False) -> int:
        """Remove folders that no build uses; the bytes that were freed. `fetching`: also while something is fetched, by who does that."""
        freed = 0
        for record in await blocking("disk", self.records):
            if record.id in ids and record.id not in self._users and (fetching or not self._fetches):
                freed += record.size if await self._remove(record.id) else 0
        return freed

    async def _remove(self, id: str) -> bool:
        """Remove a folder; False when somebody else does."""
        # Out of sight first: nobody may begin to use what is being removed.
        self._numbers += 1
        name = f"tmp-{self._token}-{self._numbers}"
        try:
            os.rename(f"{self.root}/{id}", f"{self.root}/{name}")
        except FileNotFoundError:
            return False
        await blocking("disk", remove_below, self.root, name)
        return True

    async def sweep(self) -> None:
        """Remove what a crash or an earlier boot left."""
        for id in await blocking("disk", os.listdir, self.root):
            mine = id.startswith(f"tmp-{self._token}-")
            if not mine and id not in self._users and self.find(id) is None:
                await self._remove(id)


def _boot() -> str:
    with open(_BOOT_ID) as file:
        return file.read().strip()
