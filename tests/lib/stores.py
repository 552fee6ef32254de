"""A data root in a temporary folder, and helpers to look into a snapshot."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.store.content import Content
from engine.store.db import Database
from engine.store.layout import Layout
from engine.store.snapshots import Snapshots


@dataclass
class Stores:
    """Open stores; `close` and `open_stores` again is a restart of the daemon."""

    layout: Layout
    db: Database
    content: Content
    snapshots: Snapshots


@contextmanager
def open_stores(root: Path) -> Iterator[Stores]:
    layout = Layout(root / "data", root / "run")
    layout.create()
    db = Database(layout.database)
    try:
        yield Stores(layout, db, Content(layout), Snapshots(layout, db))
    finally:
        db.close()


def source(data: bytes, step: int = 65536) -> Callable[[], bytes]:
    """Bytes as a source of pieces."""
    file = io.BytesIO(data)
    return lambda: file.read(step)


def describe(root: str | Path) -> dict[str, tuple[Any, ...]]:
    """Every path below `root` with what an archive keeps of it; inode numbers become the first path with that inode."""
    found: dict[str, tuple[Any, ...]] = {}
    first: dict[int, str] = {}
    for folder, folders, files in os.walk(root):
        for name in sorted((*folders, *files)):
            path = os.path.join(folder, name)
            info = os.lstat(path)
            shown = os.path.relpath(path, root)
            extra: Any = ""
            if stat.S_ISREG(info.st_mode):
                with open(path, "rb") as file:
                    extra = hashlib.sha256(file.read()).hexdigest()
            elif stat.S_ISLNK(info.st_mode):
                extra = os.readlink(path)
            elif stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
                extra = (os.major(info.st_rdev), os.minor(info.st_rdev))
            same = first.setdefault(info.st_ino, shown)
            xattrs = {key: os.getxattr(path, key, follow_symlinks=False) for key in sorted(os.listxattr(path, follow_symlinks=False))}
            found[shown] = (info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, same, extra, xattrs)
    return found
