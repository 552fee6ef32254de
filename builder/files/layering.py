"""The two layers that are neither copied nor run: a WORKDIR's folder, and the layer of `--link` laid on another root file system.

Blocks; for worker threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from builder.files import filecopy, owners, squash
from builder.files.layerfolder import LayerFolder
from builder.graph import MakeFolder


def make_folder(op: MakeFolder, lowers: tuple[str, ...], upper: str) -> None:
    """Make the folder of a WORKDIR in the empty folder `upper` over the layers `lowers`, topmost first. What exists stays as it is, and
    then the layer is empty. Raises InvalidParameter where a file stands in the way, OSError."""
    with LayerFolder(upper, lowers, time.time_ns()) as layer:
        place = layer.resolve(op.path)
        found = layer.look(place)
        if found is None or not found.folder:
            layer.make(place, owners.resolve(op.user, layer.view) or (0, 0))
        layer.finish()


def stack(folder: str, lowers: tuple[str, ...], upper: str, *, stop: Callable[[], bool] = lambda: False) -> None:
    """The files of one layer, as links, in the empty folder `upper`, which is to lie on other layers. Raises OSError, and
    `filecopy.Stopped` soon after `stop` says so."""

    def check() -> None:
        if stop():
            raise filecopy.Stopped

    squash.merge([folder], upper, check=check)
