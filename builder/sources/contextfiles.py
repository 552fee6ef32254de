"""Files of a context that the builder itself reads: the Dockerfile and .dockerignore. Hostile: looked up inside its tree alone."""

from __future__ import annotations

import os
import posixpath
import stat

from builder.language import ignore
from builder.tree import Tree
from engine.aio.blocking import blocking
from engine.errors import InvalidParameter
from engine.store.view import View

_LARGEST = 16 << 20
"""Bytes of a Dockerfile that is read at all; BuildKit's messages hold as much."""


async def dockerfile(tree: Tree, path: str) -> bytes:
    """The text of the Dockerfile at a path of a tree. Raises InvalidParameter in BuildKit's words."""
    return await blocking("disk", _read, tree, path)


async def ignored(tree: Tree, path: str) -> bytes | None:
    """The .dockerignore at a path of a tree, None when there is none. Raises InvalidParameter for one that is too large."""
    return await blocking("disk", _ignored, tree, path)


def _ignored(tree: Tree, path: str) -> bytes | None:
    if not tree.layers:
        return None
    with View(tree.layers) as view:
        node = view.find(posixpath.normpath("/" + path))
        if node is None or not stat.S_ISREG(node.info.st_mode):
            return None
        ignore.check_size(path, node.info.st_size)
        with open(view.open_file(node), "rb") as file:
            return file.read()


def _read(tree: Tree, path: str) -> bytes:
    place = posixpath.normpath("/" + path)
    if not tree.layers:
        raise _missing(path)
    with View(tree.layers) as view:
        node = view.find(place)
        if node is None and posixpath.basename(place) == "Dockerfile":
            node = view.find(posixpath.join(posixpath.dirname(place), "dockerfile"))  # as BuildKit and the classic builder
        if node is None:
            raise _missing(path)
        if not stat.S_ISREG(node.info.st_mode):
            raise InvalidParameter(
                f"failed to read dockerfile: read {path}: is a directory"
                if node.folder
                else f"failed to read dockerfile: {path} is no file"
            )
        if node.info.st_size > _LARGEST:
            raise InvalidParameter(f"failed to read dockerfile: {path} has {node.info.st_size} bytes, more than {_LARGEST}")
        with open(view.open_file(node), "rb") as file:
            return file.read(_LARGEST + 1)


def _missing(path: str) -> InvalidParameter:
    return InvalidParameter(f"failed to read dockerfile: open {os.fspath(path)}: no such file or directory")
