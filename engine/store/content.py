"""Blobs by digest. Owns `content/blobs/<algorithm>/<hex>` and `content/ingest/`.

A blob that is there is whole and durable: it is written under another name, synced, checked, renamed, and the folder synced. A blob found
damaged later is set aside under its name with `.damaged`, so that it counts as absent and the next pull or load brings it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Collection
from typing import BinaryIO

from engine.errors import Damaged, InvalidParameter, NotFound
from engine.spec.digest import check_digest, is_digest, sha256
from engine.store.ingest import SUMS, Ingest
from engine.store.ingest import remove as remove_ingest
from engine.store.layout import Layout
from engine.store.trees import remove_path

DAMAGED = ".damaged"
_CHUNK = 1 << 20
# An ingest that nobody wrote to for a day belongs to no download that will be resumed.
_STALE_SECONDS = 24 * 3600.0

# Inside a class with a method `list` the word no longer names the type.
_Names = list[str]


class Content:
    """The blobs of one data root. Every method blocks on the disk; any thread."""

    def __init__(self, layout: Layout) -> None:
        self._blobs = layout.blobs
        self._ingest = layout.ingest
        self._count = 0

    def path(self, digest: str) -> str:
        """Where a blob lies or would lie. Raises InvalidParameter for what is no digest (a digest from outside becomes a path here)."""
        algorithm, _, encoded = check_digest(digest).partition(":")
        return f"{self._blobs}/{algorithm}/{encoded}"

    def ingest(self, digest: str, size: int) -> Ingest:
        """Begin a blob of a known digest, or go on with it: `offset` of what is returned says from where. One at a time for each digest.

        Blocks while what is there is checked. Raises InvalidParameter for what is no digest, OSError.
        """
        return Ingest(self._ingest, digest, size)

    def abandon(self, digest: str) -> None:
        """Remove what has come of a blob. Nobody may be at it."""
        remove_ingest(f"{self._ingest}/{check_digest(digest).replace(':', '-')}")

    def commit(self, ingest: Ingest, *, synced: bool = False) -> None:
        """Make a complete ingest, whose digest the caller checked, a blob: sync (unless the caller did), rename, sync the folder."""
        if not synced:
            ingest.sync()
        ingest.close()
        target = self.path(ingest.digest)
        os.rename(ingest.path, target)
        remove_ingest(ingest.path)
        _sync_folder(os.path.dirname(target))

    def temporary(self) -> str:
        """A fresh path in the ingest folder, for a caller that writes by itself and then calls `adopt`, or unlinks it."""
        self._count += 1
        return f"{self._ingest}/{os.getpid()}-{self._count}-{time.monotonic_ns()}"

    def adopt(self, path: str, digest: str) -> None:
        """Make a finished file, whose digest the caller computed while writing it, a blob: sync, rename, sync the folder."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        target = self.path(digest)
        os.rename(path, target)
        _sync_folder(os.path.dirname(target))

    def put(self, data: bytes, digest: str = "") -> str:
        """Store small bytes; returns the digest (`digest`, which must be theirs, else sha256). Nothing is written when the blob is there.
        Raises Damaged."""
        algorithm, _, encoded = check_digest(digest or sha256(data)).partition(":")
        if hashlib.new(algorithm, data).hexdigest() != encoded:
            raise Damaged(f"storing a blob: its bytes are not those of {digest}")
        digest = f"{algorithm}:{encoded}"
        if not self.exists(digest, len(data)):
            path = self.temporary()
            with open(path, "xb", buffering=0) as file:
                file.write(data)
            self.adopt(path, digest)
        return digest

    def exists(self, digest: str, size: int = -1) -> bool:
        """Whether the blob is there, with `size` when that is given. A blob of another length is hashed, and set aside when it is damaged:
        the size may come from outside, and be the one that is wrong."""
        try:
            found = os.stat(self.path(digest)).st_size
        except FileNotFoundError:
            return False
        if 0 <= size != found:
            self.verify(digest)
            return False
        return True

    def size(self, digest: str) -> int:
        """Length in bytes. Raises NotFound."""
        try:
            return os.stat(self.path(digest)).st_size
        except FileNotFoundError:
            raise NotFound(f"no blob {digest}")

    def open(self, digest: str) -> BinaryIO:
        """A file open for reading, not checked while read: use `verify` or hash it. Raises NotFound."""
        try:
            return open(self.path(digest), "rb", buffering=0)
        except FileNotFoundError:
            raise NotFound(f"no blob {digest}", hint="load or pull the image again")

    def read(self, digest: str, limit: int = 16 << 20) -> bytes:
        """A small blob, checked. Raises NotFound, or Damaged (it is set aside then), or InvalidParameter above `limit` bytes."""
        with self.open(digest) as file:
            if os.fstat(file.fileno()).st_size > limit:
                raise InvalidParameter(f"reading blob {digest}: longer than {limit} bytes")
            data = file.read()
        if hashlib.new(digest.partition(":")[0], data).hexdigest() != digest.partition(":")[2]:
            self.set_aside(digest)
            raise Damaged(f"reading blob {digest}: its content does not match", hint="it was set aside; load or pull the image again")
        return data

    def verify(self, digest: str) -> bool:
        """Hash a blob; a damaged one is set aside. False when it is absent or damaged."""
        algorithm, _, encoded = digest.partition(":")
        sink = hashlib.new(algorithm)
        try:
            with self.open(digest) as file:
                while chunk := file.read(_CHUNK):
                    sink.update(chunk)
        except NotFound:
            return False
        if sink.hexdigest() == encoded:
            return True
        self.set_aside(digest)
        return False

    def set_aside(self, digest: str) -> str:
        """Rename a damaged blob, so that it is absent; returns the new path."""
        path = self.path(digest)
        os.rename(path, path + DAMAGED)
        return path + DAMAGED

    def set_aside_at(self, digest: str) -> int:
        """When a blob was last set aside, Unix seconds; -1 when no damaged one is kept."""
        try:
            return int(os.stat(self.path(digest) + DAMAGED).st_ctime)
        except FileNotFoundError:
            return -1

    def delete(self, digest: str) -> None:
        """Remove a blob; absent is fine."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path(digest))

    def discard(self, digest: str) -> str:
        """Make a blob absent at once, by a rename into the ingest folder; returns the path to unlink. "" when there is none. Any thread."""
        path = self.temporary()
        try:
            os.rename(self.path(digest), path)
        except FileNotFoundError:
            return ""
        return path

    def list(self) -> list[tuple[str, int]]:
        """(digest, bytes) of every blob."""
        found: list[tuple[str, int]] = []
        for algorithm in _folders(self._blobs):
            with os.scandir(f"{self._blobs}/{algorithm}") as entries:
                named = ((f"{algorithm}:{entry.name}", entry) for entry in entries if entry.is_file(follow_symlinks=False))
                for digest, entry in named:
                    if is_digest(digest):
                        with contextlib.suppress(FileNotFoundError):  # removed since: a collection may run beside this
                            found.append((digest, entry.stat().st_size))
        return found

    def strays(self) -> tuple[_Names, _Names]:
        """Paths among the blobs of what is no blob, and of damaged ones that were set aside."""
        others: _Names = []
        aside: _Names = []
        for algorithm in _folders(self._blobs):
            for name in sorted(os.listdir(f"{self._blobs}/{algorithm}")):
                path = f"{self._blobs}/{algorithm}/{name}"
                if is_digest(f"{algorithm}:{name.removesuffix(DAMAGED)}") and os.path.isfile(path):
                    aside += [path] if name.endswith(DAMAGED) else []
                elif os.path.lexists(path):  # else removed since: a collection may run beside this
                    others.append(path)
        return others, aside

    def stale(self, needed: Collection[str] = (), age: float = _STALE_SECONDS) -> _Names:
        """Paths of temporary files of writers that are gone, and of downloads that nobody wrote to for `age` seconds, but for those of
        `needed` digests."""
        found: _Names = []
        own = f"{os.getpid()}-"
        with os.scandir(self._ingest) as entries:
            for entry in entries:
                digest = entry.name.removesuffix(SUMS).replace("-", ":", 1)
                if not is_digest(digest):
                    found += [] if entry.name.startswith(own) else [entry.path]
                elif digest not in needed:
                    with contextlib.suppress(FileNotFoundError):  # it has become a blob since
                        found += [entry.path] if time.time() - entry.stat(follow_symlinks=False).st_mtime > age else []
        return found

    def tidy(self, needed: Collection[str] = (), age: float = _STALE_SECONDS) -> _Names:
        """Remove what is `stale`, and return it."""
        removed = self.stale(needed, age)
        for path in removed:
            remove_path(path)
        return removed

    def sweep(self, age: float = _STALE_SECONDS) -> _Names:
        """At start alone: remove every temporary file (a process identifier comes again) and downloads that nobody wrote to for `age`
        seconds."""
        own = f"{os.getpid()}-"
        removed = [f"{self._ingest}/{name}" for name in os.listdir(self._ingest) if name.startswith(own)]
        for path in removed:
            remove_path(path)
        return removed + self.tidy((), age)


def _folders(path: str) -> _Names:
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
