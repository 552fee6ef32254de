"""Overlay mounts in words: how layers lie on each other, and the folders that every one of them shares.

Owns the options and the two folders. Which layers they are is `snapshots`' business, mounting is the container's. The kernel's side is
overlayfs.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from engine.spec.mount import Mount

# Docker's limit for overlay2 is 128 lower folders (125 for images); the kernel's own is 500.
MAX_LAYERS = 128
# Docker's choices: no index (lower folders are shared by many mounts), plain renames and copies, so that an upper folder is a layer.
OPTIONS = ("index=off", "redirect_dir=off", "metacopy=off")
# Stands for a layer where there is none, and beside a single one: overlay wants two lower folders when there is no upper one.
EMPTY = "empty"
# The bottom layer of every container: the places that its mounts need. Without it the kernel makes them at each start in the container's
# own layer, which costs 0.6 ms and leaves files there. An image that has them, or hides them, wins.
PLACES = "places"
_PLACE_FOLDERS = ("dev", "etc", "proc", "sys")
_PLACE_FILES = ("etc/hostname", "etc/hosts", "etc/resolv.conf")
# One page for all options of mount(2).
_OPTIONS_MAX = 4095


def writable(lower: Iterable[str], upper: str, work: str, *, base: str, volatile: bool = False) -> Mount:
    """What is written goes to `upper`; `lower` are the folders below it, topmost first. All are relative to the host path `base`.
    `volatile`: never synced, so that the kernel refuses a second mount until it is told otherwise (`work/incompat`)."""
    lowerdir = "lowerdir=" + ":".join(lower)
    options = (lowerdir, f"upperdir={upper}", f"workdir={work}", *OPTIONS, *(("volatile",) if volatile else ()))
    return Mount(destination="/", type="overlay", source="overlay", options=options, base=base)


def readonly(lower: Iterable[str], *, base: str) -> Mount:
    """The folders `lower`, topmost first, on each other; they are relative to the host path `base`."""
    return Mount(type="overlay", source="overlay", options=("lowerdir=" + ":".join(lower), "ro"), base=base)


def fits(mount: Mount) -> bool:
    """Whether mount(2) takes as much text as the options of this mount are."""
    return sum(map(len, mount.options)) + len(mount.options) <= _OPTIONS_MAX


def escaped(path: str) -> str:
    """A path for the string of options, in which a colon and a comma mean something."""
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def make_shared(base: str) -> None:
    """Make the folders EMPTY and PLACES in the host path `base`, as far as they are missing. Raises OSError."""
    os.makedirs(f"{base}/{EMPTY}/fs", mode=0o755, exist_ok=True)
    for folder in _PLACE_FOLDERS:
        os.makedirs(f"{base}/{PLACES}/fs/{folder}", mode=0o755, exist_ok=True)
    for name in _PLACE_FILES:
        os.close(os.open(f"{base}/{PLACES}/fs/{name}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
