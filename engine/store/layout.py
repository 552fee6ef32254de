"""Where everything lies on disk. Owns the names of files and folders below the two roots and nothing of what is in them.

Modes follow Docker's data root (0710): set-user-id programs of images must not be reachable for the host's users.
"""

from __future__ import annotations

import os
import time

_PRIVATE = 0o710


class Layout:
    """Paths, as text, of one installation. `create()` makes the folders; nothing else here touches the disk."""

    def __init__(self, data_root: str | os.PathLike[str], exec_root: str | os.PathLike[str]) -> None:
        self.data_root = os.path.abspath(data_root)
        self.exec_root = os.path.abspath(exec_root)
        self.database = f"{self.data_root}/meta.db"
        self.content = f"{self.data_root}/content"
        self.blobs = f"{self.content}/blobs"
        self.ingest = f"{self.content}/ingest"
        self.uploads = f"{self.content}/uploads"
        self.image_mirror = f"{self.content}/images.json"
        self.snapshots = f"{self.data_root}/snapshots"
        self.containers = f"{self.data_root}/containers"
        self.volumes = f"{self.data_root}/volumes"
        self.root_mountpoint = f"{self.exec_root}/mnt"
        self.bundles = f"{self.exec_root}/bundles"
        self.forwarding = f"{self.exec_root}/forwarding"  # there when it was us who made this host a router

    def create(self) -> None:
        """Make every folder that is not there yet; what has the name of one and is none is renamed. Raises OSError."""
        for folder in (self.data_root, self.exec_root):
            os.makedirs(folder, mode=_PRIVATE, exist_ok=True)
        blobs = (self.content, self.blobs, f"{self.blobs}/sha256", f"{self.blobs}/sha512", self.ingest)
        for folder in (*blobs, self.snapshots, self.containers, self.bundles):
            _make(folder, _PRIVATE)
        _make(self.volumes, 0o701)
        _make(self.root_mountpoint, 0o700)

    def container(self, container_id: str) -> str:
        """The folder of a container's log."""
        return f"{self.containers}/{container_id}"

    def bundle(self, container_id: str) -> str:
        """The volatile folder of a container."""
        return f"{self.bundles}/{container_id}"


def _make(folder: str, mode: int) -> None:
    try:
        os.mkdir(folder, mode)
    except FileExistsError:
        if os.path.isdir(folder):
            return
        # Something else took the place: it must not keep the daemon from starting, and is kept for whoever wants to look at it.
        os.rename(folder, f"{folder}.damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
        os.mkdir(folder, mode)
