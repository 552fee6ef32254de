"""ADD's archives: a tar, plain or compressed with gzip, bzip2, xz or zstd, told by its content alone and unpacked into a folder.

Like BuildKit's: owners are the archive's unless there is a `--chown`, modes are the archive's, the folder that it is unpacked into keeps
its own. Absolute links in it lead below that folder. Layers' whiteouts are whiteouts: a layer with such names could not say anything else.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from builder.files.filecopy import Stopped
from builder.files.layerfolder import Owner
from engine.errors import InvalidParameter
from engine.service.unpack import Counted, bounded
from engine.store import unpack as unpacking
from engine.store.merged import Refused
from engine.store.unpack import DEFAULT_LIMITS
from engine.wire import compression, tar


def is_archive(fd: int) -> bool:
    """Whether an open file begins as an archive does: its first member can be read. Raises OSError."""
    try:
        return tar.TarReader(_content(fd)).next() is not None
    except (tar.TarError, compression.CompressionError):
        return False


def unpack(fd: int, target: int, lowers: tuple[int, ...], name: str, owner: Owner | None, stop: Callable[[], bool]) -> None:
    """Unpack the open file `fd` into the open folder `target`, which shows the open folders `lowers` of layers below. `owner`: of
    everything instead of the archive's. Raises InvalidParameter naming the archive, Stopped, DiskFull."""
    packed = Counted(_pulled(fd))
    reader = _Reader(bounded(packed, compression.decompressed(packed)[1], DEFAULT_LIMITS), owner, stop)
    try:
        # The dot makes the path end in something that is no link.
        unpacking.unpack(reader, f"/proc/self/fd/{target}/.", tuple(f"/proc/self/fd/{lower}/." for lower in lowers))
    except (tar.TarError, compression.CompressionError, Refused) as error:
        raise InvalidParameter(f"failed to unpack {name}: {error}") from error


def _content(fd: int) -> compression.Source:
    return compression.decompressed(_pulled(fd))[1]


def _pulled(fd: int) -> compression.Source:
    at = 0

    def pull() -> bytes:
        nonlocal at
        piece = os.pread(fd, compression.PIECE, at)
        at += len(piece)
        return piece

    return pull


class _Reader(tar.TarReader):
    """An archive's members as they are to be made."""

    def __init__(self, source: compression.Source, owner: Owner | None, stop: Callable[[], bool]) -> None:
        super().__init__(source)
        self._owner = owner
        self._stop = stop

    def next(self) -> tar.Entry | None:
        while (entry := super().next()) is not None:
            if self._stop():
                raise Stopped
            if all(part in (b"", b".") for part in entry.name.split(b"/")):
                continue  # the folder itself
            if entry.type == tar.CHARACTER and not entry.devmajor and not entry.devminor:
                raise tar.TarError("a device that means removal to the kernel", entry.name)
            if self._owner is not None:
                entry.uid, entry.gid = self._owner
            return entry
        return None
