"""COPY and ADD: files from trees into the folder of a new layer.

Nothing is copied that need not be: a file whose owner, mode and time are to stay is linked, else the kernel copies or shares its extents.
Rules are BuildKit's (fsutil's `copy`), and so are the words of errors. Trees and layers are hostile and read through descriptors alone.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from builder.files import archives, filecopy, owners
from builder.files.layerfolder import LayerFolder, copy_attributes, shown
from builder.files.selection import Entry, Selected, Source, Within, changed, refuse_deep, select
from builder.graph import Copy, CopySource
from builder.language import chown, modes
from builder.tree import Tree
from engine.errors import DiskFull, InvalidParameter
from engine.store.merged import OPAQUE_ATTRIBUTE, is_whiteout
from engine.store.view import Node, Place

_UNLINKED = (b"etc/cron", b"var/spool", b"var/log")
"""Where files must have one name only: cron, at, postfix and logrotate pass over a file with more."""
_LINKABLE = (stat.S_IFREG, stat.S_IFLNK)
_NO_LINK = (errno.EMLINK, errno.EPERM)


def apply(
    op: Copy,
    lowers: tuple[str, ...],
    upper: str,
    sources: Sequence[Tree],
    *,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Do `op` over the root file system `lowers` (host folders, topmost first), into the empty folder `upper`.

    `sources`: the trees of the vertex's inputs.  Blocks: for a worker thread. Raises
    NotFound and InvalidParameter in BuildKit's words, DiskFull, OSError; `filecopy.Stopped` soon after `stop` says so.
    """
    opened: dict[int, Source] = {}
    try:
        with LayerFolder(upper, lowers, time.time_ns()) as layer:
            work = _Work(op, layer, stop)
            for asked in op.sources:
                if asked.content is not None:
                    work.document(asked.path, asked.content)
                    continue
                if asked.input not in opened:
                    opened[asked.input] = Source(sources[asked.input])
                for one in select(opened[asked.input], asked, op):
                    work.copy(opened[asked.input], one, asked)
            layer.finish()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"copying to {op.destination}: {error.strerror}") from error
        raise
    finally:
        for source in opened.values():
            source.close()


class _Into(NamedTuple):
    """A folder that is copied into: its place, its descriptor, and those of the folders below that show through it, with their index."""

    place: Place
    fd: int
    lowers: tuple[tuple[int, int], ...]


class _Pending:
    """A folder of a source whose entries are still to be copied. `target` is None until it is made, which waits for the first thing that is
    taken below it; `above` is the folder that it is in."""

    __slots__ = ("above", "node", "target", "within")

    def __init__(self, node: Node, within: Within | None, target: Node | None, above: _Pending | None) -> None:
        self.node = node
        self.within = within
        self.target = target
        self.above = above


class _Work:
    def __init__(self, op: Copy, layer: LayerFolder, stop: Callable[[], bool]) -> None:
        self._op = op
        self._layer = layer
        self._stop = stop
        if op.link and chown.named(op.chown):
            raise InvalidParameter(
                f"--link with --chown={op.chown}: names are looked up in the root file system below, which --link does without",
                hint="use numbers, or leave out --link",
            )
        self._owner = owners.resolve(op.chown, layer.view if len(layer.root().layers) > 1 else None)
        self._change = modes.parse(op.chmod)
        self._made_by = self._owner or (0, 0)  # of folders that nothing was the source of
        self._number = 0  # of what is copied: files with several names stay together within one
        # Files by device and inode: what was copied, from which layer, and where to.
        self._known: dict[tuple[int, int], tuple[int, int, Place, str]] = {}
        self._linking = True
        self._source: Source

    # -- one source

    def document(self, name: str, content: bytes) -> None:
        """A file with this content: a document of the Dockerfile."""
        self._number += 1
        mode = 0o644 if self._change is None else self._change(stat.S_IFREG | 0o644)
        parent, target = self._file_place(posixpath.basename(name))
        into = self._enter(parent)
        self._layer.times.setdefault(into.place, os.fstat(into.fd).st_mtime_ns)
        try:
            if into.lowers:
                self._check_below(into, target)
            self._clear(into, target)
            filecopy.write(content, into.fd, target, self._made_by, mode, self._layer.now)
        finally:
            self._leave(into)

    def copy(self, source: Source, one: Selected, asked: CopySource) -> None:
        """What a source named."""
        self._number += 1
        self._source = source
        self._linking = source.tree.linkable
        node = one.node
        if not node.folder:
            if asked.unpack and stat.S_ISREG(node.info.st_mode) and self._unpack(source, node):
                return
            self._file(source, one)
            return
        target = self._folder_place()
        if not one.delayed:
            self._layer.times[target.place] = node.info.st_mtime_ns
        pending = [_Pending(node, one.within, target, None)]
        while pending:
            if self._stop():
                raise filecopy.Stopped
            self._entries(pending.pop(), pending)

    def _unpack(self, source: Source, node: Node) -> bool:
        """Unpack an archive; False when it is none."""
        fd = source.open(node.layers[0], node.place, filecopy.READ)
        try:
            if not archives.is_archive(fd):
                return False
            target = self._layer.make(self._layer.resolve(self._op.destination), self._made_by)
            into = self._enter(target)
            try:
                archives.unpack(fd, into.fd, tuple(lower for _, lower in into.lowers), shown(node.place), self._owner, self._stop)
            finally:
                self._leave(into)
        finally:
            os.close(fd)
        return True

    def _folder_place(self) -> Node:
        """The folder that folders are copied into."""
        destination = self._op.destination
        if destination.endswith("/"):
            return self._layer.make(self._layer.resolve(destination), self._made_by)
        self._layer.make(self._layer.resolve(posixpath.dirname(destination) or "/"), self._made_by)
        place = self._layer.resolve(destination)
        there = self._layer.look(place)
        if there is not None and not there.folder:
            raise InvalidParameter(f"cannot copy to non-directory: {shown(place)}")
        return self._layer.make(place, self._made_by)

    def _file_place(self, name: str) -> tuple[Node, str]:
        """The folder that a file is put into, and its name there."""
        destination = self._op.destination
        above = destination if destination.endswith("/") else posixpath.dirname(destination) or "/"
        self._layer.make(self._layer.resolve(above), self._made_by)
        place = self._layer.resolve(destination)
        there = self._layer.look(place)
        if there is not None and there.folder:
            return self._layer.make(place, self._made_by), name
        return self._layer.make(place[:-1], self._made_by), os.fsdecode(place[-1])

    def _file(self, source: Source, one: Selected) -> None:
        node = one.node
        parent, target = self._file_place(one.name)
        above = source.open(node.layers[0], node.place[:-1], filecopy.FOLDER)
        try:
            into = self._enter(parent)
            self._layer.times.setdefault(into.place, os.fstat(into.fd).st_mtime_ns)
            try:
                entry = Entry(os.fsdecode(node.place[-1]), node.info, above, node.layers)
                self._leaf(entry, node.place[:-1], into, target)
            finally:
                self._leave(into)
        finally:
            os.close(above)

    # -- folders

    def _entries(self, here: _Pending, pending: list[_Pending]) -> None:
        """Copy what is in a folder, and put the folders in it to those that wait."""
        place, within = here.node.place, here.within
        refuse_deep(place)
        into: _Into | None = None
        try:
            for entry in self._source.scan(place, here.node.layers):
                folder = stat.S_ISDIR(entry.info.st_mode)
                taken = within is None or within.takes(entry.name)
                below: Within | None = None
                if within is not None and folder:
                    below = within.enter(entry.name)
                    if below is None and not taken:
                        continue
                if not folder:
                    if taken:
                        into = into or self._enter(self._target(here))
                        self._leaf(entry, place, into, entry.name)
                    continue
                node = Node((*place, os.fsencode(entry.name)), entry.info, entry.layers)
                target: Node | None = None
                if taken:
                    into = into or self._enter(self._target(here))
                    target = self._folder(entry.fd, node, into)
                if within is None or below is not None:
                    pending.append(_Pending(node, below, target, here))
        finally:
            if into is not None:
                self._leave(into)

    def _target(self, here: _Pending) -> Node:
        """Where a folder is copied to, made with those above it if it is not there yet."""
        chain: list[_Pending] = []
        at: _Pending | None = here
        while at is not None and at.target is None:
            chain.append(at)
            at = at.above
        for one in reversed(chain):
            assert one.above is not None and one.above.target is not None
            into = self._enter(one.above.target)
            try:
                with self._source.folder(one.node) as fd:
                    one.target = self._folder(fd, one.node, into)
            finally:
                self._leave(into)
        assert here.target is not None
        return here.target

    def _folder(self, source: int, node: Node, into: _Into) -> Node:
        """Make a folder as its source is, or change the one that is there."""
        name = node.place[-1]
        place = (*into.place, name)
        under, layers = self._below(into, os.fsdecode(name))
        try:
            made = self._layer.mkdir(into.fd, name, bool(layers))
        except FileExistsError as error:
            raise InvalidParameter(f"cannot copy to non-directory: {shown(place)}") from error
        if made and under is not None and not layers:
            raise InvalidParameter(f"cannot copy to non-directory: {shown(place)}")
        info = node.info
        path = os.fsdecode(name)
        target = f"/proc/self/fd/{into.fd}/{path}"
        os.chown(name, *(self._owner or (info.st_uid, info.st_gid)), dir_fd=into.fd, follow_symlinks=False)
        os.chmod(name, stat.S_IMODE(info.st_mode) if self._change is None else self._change(info.st_mode), dir_fd=into.fd)
        if made and layers:
            below = dict(into.lowers)[layers[0]]
            copy_attributes(f"/proc/self/fd/{below}/{path}", target)
        if self._source.adorned(node.place):
            copy_attributes(f"/proc/self/fd/{source}/{path}", target)
        self._layer.times[place] = info.st_mtime_ns
        if made:
            return Node(place, info, (0, *layers))
        opaque = _has_attribute(target, OPAQUE_ATTRIBUTE)
        return Node(place, info, (0,) if opaque else (0, *layers))

    def _enter(self, node: Node) -> _Into:
        opened: list[tuple[int, int]] = []
        fd = self._layer.open(node.place)
        try:
            for layer in node.layers:
                if layer:
                    opened.append((layer, self._layer.open(node.place, layer)))
        except BaseException:
            os.close(fd)
            for _, lower in opened:
                os.close(lower)
            raise
        return _Into(node.place, fd, tuple(opened))

    @staticmethod
    def _leave(into: _Into) -> None:
        os.close(into.fd)
        for _, fd in into.lowers:
            os.close(fd)

    @staticmethod
    def _below(into: _Into, name: str) -> tuple[os.stat_result | None, tuple[int, ...]]:
        """What the layers below have under a name, and in which of them it is a folder that shows."""
        info: os.stat_result | None = None
        layers: list[int] = []
        for index, fd in into.lowers:
            try:
                here = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if is_whiteout(here):
                break
            if not stat.S_ISDIR(here.st_mode):
                info = info or here
                break
            info = info or here
            layers.append(index)
            if _has_attribute(f"/proc/self/fd/{fd}/{name}", OPAQUE_ATTRIBUTE):
                break
        return info, tuple(layers)

    # -- everything else

    def _leaf(self, entry: Entry, place: Place, into: _Into, name: str) -> None:
        """Copy something that is no folder."""
        if self._stop():
            raise filecopy.Stopped
        info = entry.info
        kind = stat.S_IFMT(info.st_mode)
        if into.lowers:
            self._check_below(into, name)
        identity = (info.st_dev, info.st_ino)
        known = self._known.get(identity)
        if known is None:
            self._known[identity] = (self._number, entry.layers[0], into.place, name)
            if self._linking and kind in _LINKABLE and self._keeps(info) and not _alone(into.place, name):
                try:
                    self._link(entry.fd, entry.name, into, name)
                    return
                except OSError as error:
                    if error.errno == errno.EXDEV:
                        self._linking = False
                    elif error.errno == errno.ENOENT:
                        raise changed(place, entry.name) from error
                    elif error.errno not in _NO_LINK:
                        raise
        elif known[:2] == (self._number, entry.layers[0]):
            fd = self._layer.open(known[2])
            try:
                self._link(fd, known[3], into, name)
                return
            except OSError as error:
                if error.errno != errno.EMLINK:
                    raise
            finally:
                os.close(fd)
        owner = self._owner or (info.st_uid, info.st_gid)
        mode = stat.S_IMODE(info.st_mode) if self._change is None else self._change(info.st_mode)
        adorned = self._source.adorned((*place, os.fsencode(entry.name)))
        arguments = (entry.fd, entry.name, info, into.fd, name, owner, mode, info.st_mtime_ns, adorned, self._stop)
        try:
            try:
                filecopy.copy(*arguments)
            except FileExistsError:
                self._clear(into, name)
                filecopy.copy(*arguments)
        except (FileNotFoundError, filecopy.Changed) as error:
            raise changed(place, entry.name) from error

    def _link(self, source: int, old: str, into: _Into, name: str) -> None:
        try:
            os.link(old, name, src_dir_fd=source, dst_dir_fd=into.fd, follow_symlinks=False)
        except FileExistsError:
            self._clear(into, name)
            os.link(old, name, src_dir_fd=source, dst_dir_fd=into.fd, follow_symlinks=False)

    def _keeps(self, info: os.stat_result) -> bool:
        """Whether the copy has the owner, mode and time of its source."""
        return (self._owner is None or self._owner == (info.st_uid, info.st_gid)) and (
            self._change is None or stat.S_ISLNK(info.st_mode) or self._change(info.st_mode) == stat.S_IMODE(info.st_mode)
        )

    def _check_below(self, into: _Into, name: str) -> None:
        """Refuse to hide a folder of the layers below."""
        _, layers = self._below(into, name)
        if layers:
            try:
                os.stat(name, dir_fd=into.fd, follow_symlinks=False)
            except FileNotFoundError:
                raise InvalidParameter(f"cannot replace to directory {shown((*into.place, os.fsencode(name)))} with file") from None

    @staticmethod
    def _clear(into: _Into, name: str) -> None:
        """Remove what an earlier source left under a name."""
        try:
            os.unlink(name, dir_fd=into.fd)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.EPERM):
                raise
            path = shown((*into.place, os.fsencode(name)))
            raise InvalidParameter(f"cannot replace to directory {path} with file") from error


def _alone(place: Place, name: str) -> bool:
    return bool(place) and place[0] in (b"etc", b"var") and b"/".join((*place, os.fsencode(name))).startswith(_UNLINKED)


def _has_attribute(path: str, name: str) -> bool:
    try:
        return os.getxattr(path, name, follow_symlinks=False) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return False
        raise
