"""From a blob to a snapshot: inflate, hash, unpack, check, make durable, name. Owns the order of these steps.

All of it is synchronous and runs in a worker thread; what touches the stores' memory goes to the event loop's thread through `on_loop`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol

from engine.errors import Conflict, Damaged, InvalidParameter
from engine.spec.digest import sha256
from engine.store.merged import Refused
from engine.store.snapshots import Snapshots
from engine.store.unpack import DEFAULT_LIMITS, Limits, Unpacked, unpacking
from engine.wire import compression, tar
from engine.wire.compression import Source

READ = 256 << 10


class OnLoop(Protocol):
    """Runs a function on the event loop's thread and returns its result: `trio.from_thread.run_sync`, or a plain call in tests."""

    def __call__(self, fn: Callable[..., Any], *args: Any) -> Any: ...


def file_source(file: BinaryIO) -> Source:
    """A file as a source of pieces."""
    return lambda: file.read(READ)


class Counted:
    """A source that counts what went through it, in bytes."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.count = 0

    def __call__(self) -> bytes:
        piece = self._source()
        self.count += len(piece)
        return piece


class Hashed:
    """A source that hashes what goes through it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._hash = hashlib.sha256()

    def __call__(self) -> bytes:
        piece = self._source()
        self._hash.update(piece)
        return piece

    @property
    def digest(self) -> str:
        """Of everything so far."""
        return "sha256:" + self._hash.hexdigest()


def bounded(packed: Counted, source: Source, limits: Limits) -> Counted:
    """`source`, refused as a bomb once it gives far more than what went in, or more than any layer may hold with its headers."""

    def pull() -> bytes:
        piece = source()
        if limits.ratio and counted.count > limits.ratio_from and counted.count > packed.count * limits.ratio:
            raise Refused(f"{counted.count} bytes came out of {packed.count}: more than {limits.ratio} to one")
        if limits.bytes and counted.count > limits.bytes + 2048 * (limits.entries or limits.bytes):
            raise Refused(f"more than {limits.bytes} bytes")
        return piece

    counted = Counted(pull)
    return counted


class Unpacker:
    """Unpacks layers into the snapshots of one data root."""

    def __init__(self, snapshots: Snapshots, on_loop: OnLoop, limits: Limits = DEFAULT_LIMITS) -> None:
        self._snapshots = snapshots
        self._on_loop = on_loop
        self._limits = limits

    def unpack(self, source: Source, diff_id: str, parent: str, result: Unpacked) -> Iterator[int]:
        """Unpack one layer on the chain `parent` ("" for none) as the snapshot of its chain; `result` is filled in.

        Yields the bytes read from `source` so far, now and then. `diff_id` "" takes what comes; its snapshot is then named by what it is.
        Nothing is left behind when it raises: Refused (hostile or damaged, names the entry), Damaged (other digest), KnarrError, OSError.
        """
        folder = self._on_loop(self._snapshots.begin)
        try:
            packed = Counted(source)
            _, content = compression.decompressed(packed)
            hashed = Hashed(bounded(packed, content, self._limits))
            lowers = self._on_loop(self._snapshots.lowers, parent)
            yield from _apply(packed, hashed, f"{folder}/fs", lowers, self._limits, result)
            if diff_id and hashed.digest != diff_id:
                raise Damaged(f"unpacking layer {diff_id}: its content is {hashed.digest}", hint="the image is damaged")
            self._snapshots.sync_files(folder)
            self._on_loop(self._commit, folder, chain(parent, hashed.digest), parent, result)
        except BaseException:
            self._snapshots.discard(folder)
            raise

    def _commit(self, folder: str, name: str, parent: str, result: Unpacked) -> None:
        self._snapshots.commit(folder, name, parent, result.size, result.inodes)

    def ensure(self, source: Callable[[], BinaryIO], diff_id: str, parent: str) -> Iterator[int]:
        """`unpack` unless the snapshot is there already; someone else's being faster is fine. `source` opens the blob."""
        if self._on_loop(self._snapshots.has, chain(parent, diff_id)):
            return
        with source() as file:
            try:
                yield from self.unpack(file_source(file), diff_id, parent, Unpacked())
            except Conflict:
                if not self._on_loop(self._snapshots.has, chain(parent, diff_id)):
                    raise


def chain(parent: str, diff_id: str) -> str:
    """The name of a layer's snapshot on `parent`."""
    return sha256(f"{parent} {diff_id}".encode()) if parent else diff_id


def _apply(packed: Counted, source: Source, root: str, lowers: tuple[str, ...], limits: Limits, result: Unpacked) -> Iterator[int]:
    reported = 0
    try:
        for _ in unpacking(tar.TarReader(source), root, result, lowers, limits):
            if packed.count - reported >= 8 * READ:
                reported = packed.count
                yield reported
        while source():  # padding behind the archive's end belongs to its digest
            pass
    except (tar.TarError, compression.CompressionError) as error:
        raise InvalidParameter(f"unpacking a layer: {error}") from error
