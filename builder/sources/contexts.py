"""The contexts that clients sent, kept so that the next build needs only what changed. Owns `<data root>/build/contexts`.

A context has a folder named by its key: `index` (what `tree-<generation>` certainly has) and the tree. A tree that no build uses is changed
in place; while one does, the next client's changes go into a new generation, whose unchanged files are links. An index is replaced before
the tree is touched by one that claims less, so that a crash at any moment costs files that are sent again and nothing else. After another
boot of the host everything that an index claims is read and compared, because the last writes before a power cut may be lost.

Archives are unpacked (`contextarchive`) into folders `tmp-…` that live as long as their build.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence

import msgspec
import trio

from builder.sources import contextfolder, manifest
from builder.sources.contextarchive import ArchiveUpload, Sent, Upload, unpack_classic
from builder.sources.contextfolder import remove_below
from builder.sources.manifest import Digests, Index, Manifest, Plan
from builder.tree import Tree
from engine.aio.blocking import blocking
from engine.aio.scopes import shielded
from engine.errors import KnarrError
from engine.service.staging import pulling
from engine.spec.buildcache import LOCAL, CacheRecord
from engine.wire import buildframes

log = logging.getLogger("knarr.build")

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_PATIENCE = 1.0
"""Seconds that a build waits for another one that is filling the same context, before it takes all of it into a folder of its own."""
_CLEANUP = 60.0
_SHARE = 10
"""Contexts may have a tenth of their file system."""
_LEAST = 2 << 30

OpenUpload = Callable[[str, bytes], Awaitable[Upload]]


class Contexts:
    """All contexts of one daemon. `most`: bytes that unused ones may have, 0 for a tenth of the file system."""

    def __init__(self, root: str, most: int = 0) -> None:
        self._root = root
        os.makedirs(root, 0o700, exist_ok=True)
        self._most = most
        self._token = secrets.token_hex(4)
        self._numbers = 0
        self._busy: dict[str, trio.Event] = {}
        self._users: dict[tuple[str, int], int] = {}
        self._current: dict[str, int] = {}

    # -- folders that clients send

    @contextlib.asynccontextmanager
    async def uploads(self) -> AsyncIterator[OpenUpload]:
        """For one build: the function that opens what its client sends, from a context's name and MANIFEST. What it got stays as it is
        while the block runs."""
        opened: list[Upload] = []

        async def open_upload(name: str, payload: bytes) -> Upload:
            found = manifest.decode(payload)
            if found.name != name:
                raise buildframes.MalformedFrame(f"a manifest of {found.name!r} where that of {name!r} belongs")
            upload = self._archive() if found.kind == buildframes.TAR else await self._open(found)
            opened.append(upload)
            return upload

        try:
            yield open_upload
        finally:
            with shielded(_CLEANUP):
                for upload in opened:
                    try:
                        await upload.close()
                    except OSError as error:
                        log.warning("after a build: %s", error)
                if opened:
                    try:
                        await self.shrink(self._most or max(_LEAST, _total(self._root) // _SHARE))
                    except OSError as error:
                        log.warning("removing contexts that were not used for long: %s", error)

    async def _open(self, found: Manifest) -> Upload:
        key = found.key
        with trio.move_on_after(_PATIENCE):
            while key in self._busy:
                await self._busy[key].wait()
        private = key in self._busy
        if private:
            key = self._temporary()
        self._busy[key] = trio.Event()
        upload = _Folder(self, key, private)
        try:
            await blocking("disk", upload.prepare, found, self._in_use(key))
        except BaseException:
            with shielded(_CLEANUP):
                await upload.close()
            raise
        return upload

    def _temporary(self) -> str:
        self._numbers += 1
        return f"tmp-{self._token}-{self._numbers}"

    def _in_use(self, key: str) -> frozenset[int]:
        return frozenset(generation for (one, generation) in self._users if one == key)

    def path(self, key: str) -> str:
        """The folder of a context."""
        return f"{self._root}/{key}"

    def use(self, key: str, generation: int) -> None:
        """A build begins to use a tree."""
        self._users[key, generation] = self._users.get((key, generation), 0) + 1
        self._current[key] = generation

    async def release(self, key: str, generation: int) -> None:
        """A build is done with a tree; one that is out of date goes with its last user."""
        self._users[key, generation] -= 1
        if self._users[key, generation]:
            return
        del self._users[key, generation]
        if self._current.get(key) != generation:
            await blocking("disk", _discard, self.path(key), f"tree-{generation}")
        elif not self._in_use(key):
            del self._current[key]

    def free(self, key: str) -> None:
        """The context is not being filled any more."""
        self._busy.pop(key).set()

    # -- archives

    def _archive(self) -> Upload:
        return ArchiveUpload(self.path(self._temporary()))

    @contextlib.asynccontextmanager
    async def from_tar(self, stream: AsyncIterator[bytes], dockerfile: str) -> AsyncIterator[Sent]:
        """A context from an archive, plain or compressed, as long as the block runs. As in the classic builder, .dockerignore is the
        client's business, but the Dockerfile and itself are left out here when it says so. Raises InvalidParameter for what is no archive
        or a hostile one, KnarrError."""
        folder = self.path(self._temporary())
        try:
            yield await blocking("uploads", unpack_classic, folder, pulling(stream), dockerfile)
        finally:
            with shielded(_CLEANUP):
                await blocking("disk", remove_below, self._root, os.path.basename(folder))

    # -- what is kept

    async def usage(self) -> list[CacheRecord]:
        """What is stored, without the temporary."""
        found = await blocking("disk", _records, self._root)
        used = {key for key, _ in self._users} | self._busy.keys()
        return [msgspec.structs.replace(one, in_use=one.id in used) for one in found]

    async def remove(self, ids: Collection[str]) -> int:
        """Remove contexts that are not in use; the bytes of their files."""
        freed = 0
        for record in await self.usage():
            if record.id not in ids or record.id in self._busy or self._in_use(record.id):
                continue
            self._busy[record.id] = trio.Event()
            try:
                await blocking("disk", remove_below, self._root, record.id)
            finally:
                self.free(record.id)
            freed += record.size
        return freed

    async def shrink(self, most: int) -> int:
        """Remove those that were not used for the longest time until the rest has at most `most` bytes; the bytes that went."""
        records = await self.usage()
        total = sum(record.size for record in records)
        chosen: set[str] = set()
        for record in sorted(records, key=lambda one: one.last_used_at):
            if total <= most:
                break
            if not record.in_use:
                chosen.add(record.id)
                total -= record.size
        return await self.remove(chosen) if chosen else 0

    async def sweep(self) -> None:
        """Remove what a crash left: folders of builds, trees that no index names."""
        for name in await blocking("disk", os.listdir, self._root):
            if name in self._busy or self._in_use(name) or name.startswith(f"tmp-{self._token}-"):
                continue
            self._busy[name] = trio.Event()
            try:
                await blocking("disk", _sweep, self._root, name)
            finally:
                self.free(name)


class _Folder:
    """A context that comes as changes of a stored one, or whole, into a folder of its own (`private`)."""

    def __init__(self, contexts: Contexts, key: str, private: bool) -> None:
        self.need = b""
        self._contexts = contexts
        self._key = key
        self._private = private
        self._path = contexts.path(key)
        self._filling: contextfolder.Filling | None = None
        self._plan: Plan | None = None
        self._manifest: Manifest | None = None
        self._created = time.time_ns()
        self._generation = 0
        self._missing = 0
        self._complete = trio.Event()
        self._failure: Exception | None = None
        self._tree: Tree | None = None
        self._held = True

    def prepare(self, found: Manifest, in_use: frozenset[int]) -> None:
        """Blocks. Compare, and make the tree ready for what will come. Raises MalformedFrame, OSError."""
        self._manifest = found
        os.makedirs(self._path, 0o700, exist_ok=True)
        index = None if self._private else _index(self._path, trio.from_thread.check_cancelled)
        plan = self._plan = manifest.compare(found, index)
        if index is not None:
            self._generation, self._created = index.generation, index.created
        if index is None or not plan.empty:
            self._make_generation(index, in_use)
            self._write_index(manifest.partial(plan))
            self._filling = contextfolder.Filling(f"{self._path}/tree-{self._generation}", plan)
            self._filling.prepare(trio.from_thread.check_cancelled)
        else:
            os.utime(f"{self._path}/index")
        self.need = b"".join(number.to_bytes(4, "big") for number, _, _ in plan.need)
        if not plan.need:
            self._complete.set()

    def _make_generation(self, index: Index | None, in_use: frozenset[int]) -> None:
        """A tree that no build uses: that of the index, a copy of it, or a new one."""
        if index is not None and index.generation not in in_use:
            return
        trees = [int(name[5:]) for name in os.listdir(self._path) if name.startswith("tree-") and name[5:].isdecimal()]
        for stale in set(trees) - in_use - {self._generation}:
            _discard(self._path, f"tree-{stale}")
        self._generation = max([*trees, *in_use], default=0) + 1
        new = f"{self._path}/tree-{self._generation}"
        if index is None:
            os.mkdir(new, 0o755)
        else:
            contextfolder.clone(f"{self._path}/tree-{index.generation}", new)

    def _write_index(self, folders: tuple[manifest.Folder, ...]) -> None:
        if self._private:
            return
        assert self._manifest is not None
        index = Index(_boot(), self._generation, self._created, self._manifest.name, self._manifest.origin, folders)
        with contextfolder.explained("storing the index of a context"):
            with open(f"{self._path}/index.new", "wb") as file:
                file.write(manifest.encode_index(index))
            os.rename(f"{self._path}/index.new", f"{self._path}/index")

    async def feed(self, data: bytes) -> None:
        if self._failure is not None:
            return  # `finish` tells; the client has sent on before it heard of that
        if self._complete.is_set():
            if data:
                raise buildframes.MalformedFrame("more files of a context than it was asked for")
            return
        if not data:
            raise buildframes.MalformedFrame("a context ended before all files were sent")
        assert self._filling is not None
        try:
            await blocking("disk", self._filling.feed, data)
        except (KnarrError, OSError) as error:
            self._failure = error
            self._complete.set()
            return
        if self._filling.complete:
            self._complete.set()

    async def finish(self) -> Tree:
        await self._complete.wait()
        if self._failure is not None:
            raise self._failure
        if self._tree is None:
            identity = await blocking("disk", self._finish)
            assert self._plan is not None
            folders = [one.folder for one in self._plan.folders]
            self._tree = Tree(
                layers=(f"{self._path}/tree-{self._generation}",),
                digests=Digests(folders),
                attributes=manifest.adorned(folders),
                identity=f"context {identity}",
            )
            self._plan = None
            self._contexts.use(self._key, self._generation)
            self._let_go()
        return self._tree

    def _finish(self) -> str:
        assert self._plan is not None
        if self._filling is not None:
            self._filling.finish()
            self._write_index(manifest.full(self._plan))
        else:
            manifest.full(self._plan)
        return manifest.identity(one.folder for one in self._plan.folders)

    def _let_go(self) -> None:
        if self._filling is not None:
            self._filling.close()
            self._filling = None
        if self._held:
            self._held = False
            self._contexts.free(self._key)

    async def close(self) -> None:
        try:
            await self._close()
        finally:
            self._let_go()

    async def _close(self) -> None:
        if self._tree is not None:
            self._tree = None
            await self._contexts.release(self._key, self._generation)
        elif self._plan is not None and self._filling is not None and not self._private:
            # What came before the end need not come again.
            with contextlib.suppress(OSError, KnarrError):
                await blocking("disk", self._write_index, manifest.partial(self._plan))
        self._plan = None
        if self._private:
            await blocking("disk", remove_below, os.path.dirname(self._path), self._key)


# -- the disk


def _discard(folder: str, name: str) -> None:
    """Remove a tree of a context; of two that do so at once one does. Raises OSError."""
    gone = f"gone-{secrets.token_hex(8)}"
    try:
        os.rename(f"{folder}/{name}", f"{folder}/{gone}")
    except FileNotFoundError:
        return
    remove_below(folder, gone)


def _boot() -> str:
    with open(_BOOT_ID) as file:
        return file.read().strip()


def _index(path: str, check: Callable[[], object]) -> Index | None:
    """What is stored, as far as it can be trusted. `check` is called now and then, to raise what ends the work."""
    try:
        with open(f"{path}/index", "rb") as file:
            index = manifest.decode_index(file.read())
    except FileNotFoundError:
        return None
    if index is None or not os.path.isdir(f"{path}/tree-{index.generation}"):
        return None
    if index.boot == _boot():
        return index
    tree = f"{path}/tree-{index.generation}"
    certain = [manifest.claimed(folder.path, files) for folder, files in contextfolder.verified(tree, index.folders, check)]
    return msgspec.structs.replace(index, folders=tuple(certain))


def _records(root: str) -> Sequence[CacheRecord]:
    found: list[CacheRecord] = []
    for name in os.listdir(root):
        if name.startswith("tmp-"):
            continue
        try:
            with open(f"{root}/{name}/index", "rb") as file:
                summary = manifest.index_summary(file.read(manifest.SUMMARY))
                used = os.fstat(file.fileno()).st_mtime_ns
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                continue
            raise
        if summary is not None:
            created, size, context, _ = summary
            description = f"local source for {context}"
            found.append(CacheRecord(id=name, type=LOCAL, description=description, size=size, created_at=created, last_used_at=used))
    return found


def _sweep(root: str, name: str) -> None:
    path = f"{root}/{name}"
    index: Index | None = None
    if not name.startswith("tmp-"):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), open(f"{path}/index", "rb") as file:
            index = manifest.decode_index(file.read())
    if index is None:
        remove_below(root, name)
        return
    for inner in os.listdir(path):
        if inner not in ("index", f"tree-{index.generation}"):
            remove_below(path, inner)


def _total(root: str) -> int:
    found = os.statvfs(root)
    return found.f_blocks * found.f_frsize
