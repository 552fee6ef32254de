"""Finds the packages of an image: looks for the databases and folders that the other modules read. Owns all access to the tree.

The tree is hostile: it is read through `View` alone, folders' links are not followed on the way down, and files, folders and bytes are
bounded.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator

import msgspec

from builder.export.packages import apk, dpkg, npm, pip, rpm
from builder.export.packages.package import Distribution, Package, distribution
from builder.export.packages.pieces import Unreadable
from engine.errors import InvalidParameter
from engine.store.view import Node, View

_DATABASE_MAX = 256 << 20
_FILE_MAX = 16 << 20
_FOLDERS_MAX = 1_000_000
_DEPTH_MAX = 64
_SKIPPED = frozenset((b"proc", b"sys", b"dev"))  # at the top
_METADATA = ((b".dist-info", b"METADATA"), (b".egg-info", b"PKG-INFO"))
_FLAT = b".egg-info"


class Found(msgspec.Struct, frozen=True):
    """`packages` in order, each once; `unread`: databases that are there and could not be read, with the reason."""

    packages: tuple[Package, ...]
    unread: tuple[str, ...] = ()


def scan(layers: Iterable[str]) -> Found:
    """The packages in a stack of layers (host folders, topmost first). Blocks on the disk. Raises OSError."""
    paths = tuple(layers)
    if not paths:
        return Found(())
    with View(paths) as view:
        return _Scan(view).run()


class _Scan:
    def __init__(self, view: View) -> None:
        self._view = view
        self._unread: list[str] = []
        self._distribution = Distribution()

    def run(self) -> Found:
        self._distribution = distribution(self._text("etc/os-release") or self._text("usr/lib/os-release"))
        found = {(one.purl, one.found): one for one in (*self._databases(), *self._walk())}
        unique: dict[str, Package] = {}
        for one in sorted(found.values()):
            unique.setdefault(one.purl, one)
        return Found(tuple(sorted(unique.values())), tuple(self._unread))

    # files

    def _node(self, path: str | bytes) -> Node | None:
        try:
            return self._view.find(path)
        except (InvalidParameter, OSError):
            return None  # links in a circle, or a name that cannot be one

    def _file(self, path: str | bytes) -> Node | None:
        node = self._node(path)
        return node if node is not None and stat.S_ISREG(node.info.st_mode) else None

    def _read(self, path: str | bytes, most: int = _FILE_MAX) -> bytes:
        node = self._file(path)
        if node is None:
            return b""
        if node.info.st_size > most:
            self._unread.append(f"{os.fsdecode(path)}: larger than {most} bytes")
            return b""
        with open(self._view.open_file(node), "rb") as file:
            return file.read(most)

    def _text(self, path: str, most: int = _FILE_MAX) -> str:
        return self._read(path, most).decode("utf-8", "replace")

    def _folder(self, path: str) -> dict[bytes, bool]:
        node = self._node(path)
        return self._view.names(node) if node is not None and node.folder else {}

    # databases

    def _databases(self) -> Iterator[Package]:
        yield from dpkg.packages(self._text(dpkg.STATUS, _DATABASE_MAX), f"/{dpkg.STATUS}", self._distribution, self._copyright)
        for name, folder in sorted(self._folder(dpkg.FOLDER).items()):
            if not folder and not name.endswith(b".md5sums"):
                path = f"{dpkg.FOLDER}/{os.fsdecode(name)}"
                yield from dpkg.packages(self._text(path), f"/{path}", self._distribution, self._copyright)
        for path in apk.DATABASES:
            yield from apk.packages(self._text(path, _DATABASE_MAX), f"/{path}", self._distribution)
        yield from self._rpm()

    def _copyright(self, name: str) -> str:
        return "" if "/" in name or name.startswith(".") else self._text(f"usr/share/doc/{name}/copyright")

    def _rpm(self) -> Iterator[Package]:
        folders = {node.place for node in map(self._node, rpm.FOLDERS) if node is not None and node.folder}  # one may be a link to another
        for folder in sorted(folders):
            for name, reader in rpm.READERS.items():
                path = b"/".join((*folder, name))
                node = self._file(path)
                if node is None or not node.info.st_size:
                    continue
                log = self._file(path + b"-wal")
                if log is not None and log.info.st_size:
                    self._unread.append(f"{_shown(path)}-wal: a log of changes that are not in the database yet")
                if node.info.st_size > _DATABASE_MAX:
                    self._unread.append(f"{_shown(path)}: larger than {_DATABASE_MAX} bytes")
                    break
                with open(self._view.open_file(node), "rb") as file:
                    try:
                        yield from list(rpm.packages(reader(file), _shown(path), self._distribution, self._unread))
                    except Unreadable as error:
                        self._unread.append(f"{_shown(path)}: {error}")
                break

    # folders of languages

    def _walk(self) -> Iterator[Package]:
        root = self._view.find("/")
        assert root is not None
        pending: list[Node] = [root]
        count = 0
        while pending:
            node = pending.pop()
            count += 1
            if count > _FOLDERS_MAX:
                self._unread.append(f"more than {_FOLDERS_MAX} folders: what is in the others was not looked at")
                return
            names = self._view.names(node)
            yield from self._of_folder(node, names)
            if len(node.place) >= _DEPTH_MAX:
                continue
            for name, folder in sorted(names.items(), reverse=True):
                if folder and not (not node.place and name in _SKIPPED):
                    child = self._view.child(node, name)
                    if child is not None and child.folder:
                        pending.append(child)

    def _of_folder(self, node: Node, names: dict[bytes, bool]) -> Iterator[Package]:
        last = node.place[-1] if node.place else b""
        above = node.place[-2] if len(node.place) > 1 else b""
        path = b"/".join(node.place)
        for ending, name in _METADATA:
            if last.endswith(ending) and name in names:
                yield from self._python(path + b"/" + name)
        for name, folder in names.items():
            if name.endswith(_FLAT) and not folder:
                yield from self._python(path + b"/" + name)
        if last == b"node_modules" and npm.LOCK in names:
            lock = path + b"/" + npm.LOCK
            yield from npm.locked(self._read(lock), _shown(lock))
        scoped = above.startswith(b"@") and len(node.place) > 2 and node.place[-3] == b"node_modules"
        if (above == b"node_modules" or scoped) and b"package.json" in names:
            document = path + b"/package.json"
            one = npm.package(self._read(document), _shown(document))
            if one is not None:
                yield one

    def _python(self, path: bytes) -> Iterator[Package]:
        one = pip.package(self._read(path).decode("utf-8", "replace"), _shown(path))
        if one is not None:
            yield one


def _shown(path: bytes) -> str:
    return "/" + path.decode("utf-8", "backslashreplace")
