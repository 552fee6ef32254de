"""Sources that a layer passes through on its way from a blob to a folder: counted, hashed, bounded. Reads nothing by itself; any thread."""

from __future__ import annotations

import hashlib

from engine.store.merged import Refused
from engine.store.unpack import Limits
from engine.wire.compression import Source

READ = 256 << 10


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
