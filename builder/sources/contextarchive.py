"""A context that comes as an archive: unpacked into a folder that lives as long as its build.

The archive is hostile: `engine.store.unpack` keeps its members inside and bounded. It is no layer, so names of whiteouts mean nothing in
it; everything belongs to root, as in what the docker CLI sends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import Protocol

import msgspec
import trio

from builder.language.ignore import Patterns, check_size, read
from builder.sources.contextfolder import remove_below
from builder.tree import Tree
from engine.aio.blocking import blocking
from engine.errors import InvalidParameter
from engine.service.staging import pulling
from engine.service.unpack import Counted, bounded
from engine.spec.build import Options
from engine.store.merged import FOLDER
from engine.store.unpack import DEFAULT_LIMITS, unpack
from engine.store.view import View, open_below
from engine.wire import compression, tar

_WAITING = 16  # pieces of an archive


class Upload(Protocol):
    """One context on its way. `need` is the NEED for its client; `feed` takes what comes, `finish` waits for the end of it."""

    need: bytes

    async def feed(self, data: bytes) -> None:
        """A payload of FILES, b"" at the end. Raises MalformedFrame; other troubles are told by `finish`."""

    async def finish(self) -> Tree:
        """The tree, when everything is there. Raises KnarrError, OSError."""

    async def close(self) -> None:
        """The build needs the tree no more, or never got it."""


class Sent(msgspec.Struct, frozen=True):
    """A context that came as an archive. `dockerfile`: a tree that has the Dockerfile, which may be missing in `tree`, because
    .dockerignore names it."""

    tree: Tree
    dockerfile: Tree
    path: str

    def options(self, options: Options) -> Options:
        """The options of the build that name the Dockerfile as it is here."""
        return msgspec.structs.replace(options, dockerfile=self.path, dockerfile_sent=self.dockerfile is not self.tree)


class ArchiveUpload:
    """A context that comes as an archive into a folder of its own. The pieces wait in a short queue; `finish` takes them."""

    def __init__(self, path: str) -> None:
        self.need = b""
        self._path = path
        self._give, self._take = trio.open_memory_channel[bytes](_WAITING)

    async def feed(self, data: bytes) -> None:
        try:
            if data:
                await self._give.send(data)
            else:
                self._give.close()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it was refused, `finish` tells

    async def finish(self) -> Tree:
        try:
            await blocking("uploads", _unpack, self._path, pulling(aiter(self._take)))
        finally:
            self._take.close()
        return Tree(layers=(self._path,))

    async def close(self) -> None:
        self._take.close()
        await blocking("disk", remove_below, os.path.dirname(self._path), os.path.basename(self._path))


class _Owned(tar.TarReader):
    """Members as a context has them: everything is root's."""

    def next(self) -> tar.Entry | None:
        entry = super().next()
        if entry is not None:
            entry.uid = entry.gid = 0
        return entry


def _unpack(folder: str, source: compression.Source) -> None:
    os.mkdir(folder, 0o755)
    unpack_into(folder, source)


def unpack_into(folder: str, source: compression.Source) -> None:
    """Blocks. Unpack an archive, plain or compressed, into an empty folder. Raises InvalidParameter, KnarrError."""
    packed = Counted(source)
    try:
        _, plain = compression.decompressed(packed)
        content = bounded(packed, plain, DEFAULT_LIMITS)
        unpack(_Owned(content), folder, whiteouts=False)
        while content():  # what follows the archive's end: the client is heard out
            pass
    except (tar.TarError, compression.CompressionError) as error:
        raise InvalidParameter(f"reading the build context: {error}") from error


def unpack_classic(folder: str, source: compression.Source, dockerfile: str) -> Sent:
    """Blocks. Unpack an archive for `POST /build` below the new folder `folder`. Raises InvalidParameter, KnarrError."""
    os.mkdir(folder, 0o700)
    context = f"{folder}/context"
    _unpack(context, source)
    tree = Tree(layers=(context,))
    with View(tree.layers) as view:
        path = dockerfile
        above, slash, name = path.rpartition("/")
        if name == "Dockerfile" and view.find(path) is None and view.find(f"{above}{slash}dockerfile") is not None:
            path = f"{above}{slash}dockerfile"
        ignore = view.find(".dockerignore")
        patterns = Patterns()
        if ignore is not None and not ignore.folder:
            check_size(".dockerignore", ignore.info.st_size)
            with open(view.open_file(ignore), "rb") as file:
                patterns = Patterns(read(file.read()))
        relative = os.path.normpath("/" + path)[1:]
        hidden = patterns.excluded(relative)
        other = tree
        if hidden and (node := view.find(path)) is not None and not node.folder:
            os.makedirs(f"{folder}/dockerfile/{os.path.dirname(relative)}", 0o755)
            with open(view.open_file(node), "rb") as file, open(f"{folder}/dockerfile/{relative}", "xb") as copy:
                shutil.copyfileobj(file, copy)
            other = Tree(layers=(f"{folder}/dockerfile",))
            _unlink(context, view, relative)
        if patterns.excluded(".dockerignore"):
            _unlink(context, view, ".dockerignore")
    return Sent(tree, other, path)


def _unlink(folder: str, view: View, path: str) -> None:
    """Remove a name from a tree; a link in its way is not followed out of it."""
    above = view.find(os.path.dirname(path))
    if above is None or not above.folder:
        return
    top = os.open(folder, FOLDER)
    try:
        fd = open_below(top, above.place, FOLDER)
        try:
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                os.unlink(os.path.basename(path), dir_fd=fd)
        finally:
            os.close(fd)
    finally:
        os.close(top)
