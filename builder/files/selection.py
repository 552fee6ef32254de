"""What the sources of a COPY or ADD name in a tree, and the walk through it: wildcards, `--parents`, `--exclude`.

The tree is hostile: everything goes through descriptors below its layers, no link is followed in the kernel. Rules are BuildKit's, whose
wildcards are Go's `filepath.Match` name by name and whose exclusions are those of .dockerignore, relative to the folder that is copied.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import re
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from builder.graph import Copy, CopySource
from builder.language.ignore import Folder, Patterns, clean
from builder.language.patterns import has_wildcard, with_parents
from builder.tree import Tree
from engine.errors import InvalidParameter, NotFound
from engine.spec import glob
from engine.store.merged import DEEPEST, FOLDER, OPAQUE_ATTRIBUTE, is_whiteout
from engine.store.view import Node, Place, View

_NOTHING = os.stat_result((stat.S_IFDIR | 0o755, 0, 0, 1, 0, 0, 0, 0, 0, 0), {"st_mtime_ns": 0, "st_rdev": 0})
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


class Entry(NamedTuple):
    """Something in a folder: `name` with undecodable bytes as surrogates, lstat's answer, the open folder that has it, and the layers
    (indexes, topmost first) that show it: several for a folder only."""

    name: str
    info: os.stat_result
    fd: int
    layers: tuple[int, ...]


class Selected(NamedTuple):
    """One thing that a source names. `name`: what it is called where it is put into a folder. `within`: for a folder, what of it is taken,
    None for all; `delayed`: folders in it are made only for what is taken below them, and so is itself."""

    name: str
    node: Node
    within: Within | None = None
    delayed: bool = False


class Within(NamedTuple):
    """A folder as patterns see it: those of `--exclude`, and that of `--parents`, of which what it "leaves out" is what is taken."""

    exclude: Folder | None
    include: Folder | None

    def takes(self, name: str) -> bool:
        """Whether the entry of this name is taken."""
        return (self.include is None or self.include.leaves_out(name)) and not (self.exclude is not None and self.exclude.leaves_out(name))

    def enter(self, name: str) -> Within | None:
        """The folder of this name, None when nothing in it can be taken."""
        exclude = self.exclude.enter(name) if self.exclude is not None else None
        include = self.include.enter(name) if self.include is not None else None
        if exclude is not None and exclude.skippable:
            return None
        if include is not None and not include.excluded and not include.promising:
            return None
        return Within(exclude, include)


class Source:
    """A tree, open. Use as a context manager; one thread at a time."""

    def __init__(self, tree: Tree) -> None:
        """Raises OSError when a layer is not there."""
        self.tree = tree
        self.view = View(tree.layers) if tree.layers else None

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every descriptor."""
        if self.view is not None:
            self.view.close()
            self.view = None

    def find(self, path: str | bytes) -> Node | None:
        """What a path leads to, links followed inside the tree."""
        return self.view.find(path) if self.view is not None else None

    def open(self, layer: int, place: Place, flags: int) -> int:
        """A descriptor of something in one layer. Raises OSError."""
        assert self.view is not None  # there is a layer
        return self.view.open(layer, place, flags)

    @contextlib.contextmanager
    def folder(self, node: Node) -> Iterator[int]:
        """The open folder that has a node in its topmost layer."""
        fd = self.open(node.layers[0], node.place[:-1], FOLDER)
        try:
            yield fd
        finally:
            os.close(fd)

    def adorned(self, place: Place) -> bool:
        """Whether something may have extended attributes."""
        known = self.tree.attributes
        return known is None or (bool(known) and b"/".join(place) in known)

    def scan(self, place: Place, layers: Sequence[int]) -> Iterator[Entry]:
        """What the merged folder `place` of some layers has, by name; descriptors are good until the next step. Raises OSError,
        NotFound for what went away meanwhile."""
        fds: list[int] = []
        try:
            found: dict[str, Entry] = {}
            done: set[str] = set()
            for index in layers:
                fd = self._enter(index, place)
                fds.append(fd)
                last = index == layers[-1]
                try:
                    with os.scandir(fd) as entries:
                        for entry in entries:
                            if entry.name not in done:
                                self._merge(entry.name, entry.stat(follow_symlinks=False), fd, index, last, found, done)
                except FileNotFoundError as error:
                    raise changed(place, error.filename) from error
            for name in sorted(found):
                yield found[name]
        finally:
            for fd in fds:
                os.close(fd)

    def _enter(self, layer: int, place: Place) -> int:
        try:
            return self.open(layer, place, FOLDER)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise changed(place[:-1], os.fsdecode(place[-1]) if place else "") from error
            raise

    def _merge(self, name: str, info: os.stat_result, fd: int, index: int, last: bool, found: dict[str, Entry], done: set[str]) -> None:
        known = found.get(name)
        if not stat.S_ISDIR(info.st_mode):
            if not last:
                done.add(name)
            if known is None and not is_whiteout(info):
                found[name] = Entry(name, info, fd, (index,))
            return
        found[name] = Entry(name, info, fd, (index,)) if known is None else known._replace(layers=(*known.layers, index))
        if not last and _opaque(fd, name):
            done.add(name)


def select(source: Source, asked: CopySource, op: Copy) -> list[Selected]:
    """What `asked` names, [] for a wildcard without a match. Raises NotFound and InvalidParameter in BuildKit's words, OSError."""
    exclude = Patterns(op.exclude).root if op.exclude else None
    if op.parents:
        return _with_parents(source, asked, exclude)
    within = Within(exclude, None) if exclude is not None else None
    wild = not asked.literal and has_wildcard(asked.path)
    found = _named(source, asked.path, asked.literal)
    return [Selected(name, node, within) for name, node in found if not (wild and exclude is not None and exclude.leaves_out(name))]


def _with_parents(source: Source, asked: CopySource, exclude: Folder | None) -> list[Selected]:
    """The folder before the `/./` of a path (the root where there is none), and in it what the rest says."""
    above, pivot, below = asked.path.partition("/./")
    if not pivot:
        above, below = "", asked.path
    below = clean("/" + below)[1:]
    include = with_parents(_literal(asked.path) if asked.literal else asked.path)[1]
    found = _named(source, above or "/", asked.literal)
    if below and (asked.literal or not has_wildcard(below)) and not any(_has(source, node, below) for _, node in found):
        raise missing(f"{above}/{below}")
    within = Within(exclude, include.root)
    return [Selected(name, node, within, delayed=True) for name, node in found if node.folder]


def _named(source: Source, path: str, literal: bool) -> list[tuple[str, Node]]:
    """Names and nodes that a path leads to, wildcards resolved."""
    parts = [part for part in path.split("/") if part]
    first = next((index for index, part in enumerate(parts) if not literal and has_wildcard(part)), len(parts))
    above = "/" + "/".join(parts[:first])
    if first == len(parts):
        node = _whole(source) if not parts else source.find(above)
        if node is None and "\\" in path and not literal:
            above = _ESCAPED.sub(r"\1", above)
            node = source.find(above)
        if node is None:
            raise missing(above)
        return [(posixpath.basename(above), node)]
    base = _whole(source) if not first else source.find(above)
    if base is None:
        raise NotFound(f"lstat {above}: no such file or directory")
    if not base.folder:
        return []
    named = []
    for place, node in _matches(source, [glob.compile(part) for part in parts[first:]], base):
        final = source.find(b"/" + b"/".join(place)) if stat.S_ISLNK(node.info.st_mode) else node
        if final is None:
            raise missing("/" + os.fsdecode(b"/".join(place)))
        named.append((os.fsdecode(place[-1]), final))
    return named


def _whole(source: Source) -> Node | None:
    """The root of a tree; an empty tree has one too."""
    if source.view is not None:
        return source.view.find("/")
    return Node((), _NOTHING, ())


def _matches(source: Source, patterns: list[re.Pattern[str]], base: Node) -> list[tuple[Place, Node]]:
    """What names below a folder match, one pattern a level, in the order of a walk. Links are not followed."""
    level = [base]
    for number, pattern in enumerate(patterns):
        below: list[Node] = []
        for folder in level:
            for entry in source.scan(folder.place, folder.layers):
                if pattern.fullmatch(entry.name) and (number == len(patterns) - 1 or stat.S_ISDIR(entry.info.st_mode)):
                    below.append(Node((*folder.place, os.fsencode(entry.name)), entry.info, entry.layers))
        level = below
    return [(node.place, node) for node in level]


def _has(source: Source, node: Node, path: str) -> bool:
    return source.find(b"/" + b"/".join((*node.place, os.fsencode(path)))) is not None


def _literal(path: str) -> str:
    """A pattern that only this path matches."""
    return re.sub(r"([\\*?\[])", r"\\\1", path)


def _opaque(fd: int, name: str) -> bool:
    try:
        return os.getxattr(f"/proc/self/fd/{fd}/{name}", OPAQUE_ATTRIBUTE, follow_symlinks=False) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP, errno.ENOENT):
            return False
        raise


def refuse_deep(place: Place) -> None:
    """Refuse a folder whose path is longer than the kernel takes: what lists such a tree by paths needs the square of its depth. Raises
    InvalidParameter."""
    if len(place) > DEEPEST:
        raise InvalidParameter(f"/{os.fsdecode(b'/'.join(place[:8]))}/…: a path of {len(place)} folders: file name too long")


def missing(path: str) -> NotFound:
    """A source that is not there, in BuildKit's words."""
    return NotFound(f'failed to compute cache key: failed to calculate checksum of ref: "{path}": not found')


def changed(place: Place, name: object) -> InvalidParameter:
    """A source was changed while it was read."""
    shown = os.fsdecode(b"/".join((*place, os.fsencode(str(name)))))
    return InvalidParameter(f"/{shown} changed or went away while it was copied")
