"""What a new volume begins with: the files that the image has where it is mounted (Docker copies them when the container is made).

Blocks on the disk: for a worker thread. A copy into a volume that nobody has yet appears as a whole or not at all, also after a crash.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from engine import _core
from engine.errors import InvalidParameter
from engine.store.merged import FOLDER
from engine.store.trees import remove_tree
from engine.store.view import Node, View

_ASIDE = "_copy"


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """`destination`: the path in the image; `folder`: the volume's, a host path. `fresh`: nobody else has it yet. `durable`: it must
    survive a power cut. `declared`: it stands for a VOLUME of the image, which must not be a file there."""

    destination: str
    folder: str
    fresh: bool
    durable: bool
    declared: bool


def fill(layers: Sequence[str], copies: Sequence[Copy]) -> None:
    """Fill empty volumes from `layers` (host paths of their folders, topmost first). Raises InvalidParameter, OSError."""
    if not layers:
        return
    with View(layers) as view:
        for copy in copies:
            node = view.find(copy.destination)
            if node is None:
                continue
            if not node.folder:
                if copy.declared:
                    raise InvalidParameter(f"cannot mount volume over existing file, file exists {copy.destination}")
                continue
            _fill(view, node, copy)


def _fill(view: View, node: Node, copy: Copy) -> None:
    target = os.open(copy.folder, FOLDER)
    try:
        with os.scandir(target) as entries:
            if next(entries, None) is not None:
                return
        if not copy.fresh:
            _settle(view.copy(node, target), target, copy)
            return
    finally:
        os.close(target)
    base = os.open(os.path.dirname(copy.folder), FOLDER)
    try:
        remove_tree(base, _ASIDE)
        os.mkdir(_ASIDE, 0o700, dir_fd=base)
        aside = os.open(_ASIDE, FOLDER, dir_fd=base)
        try:
            _settle(view.copy(node, aside), aside, copy)
        finally:
            os.close(aside)
        os.rename(_ASIDE, os.path.basename(copy.folder), src_dir_fd=base, dst_dir_fd=base)
    finally:
        os.close(base)


def _settle(files: int, target: int, copy: Copy) -> None:
    if not copy.durable:
        return
    if files:
        _core.syncfs(target)
    else:
        os.fsync(target)
