"""The mount table: parsing /proc/PID/mountinfo (proc_pid_mountinfo(5)) and taking down everything below a folder.

Owns reading and unmounting on the host's own paths; makes no mounts and never looks into a container's root.
"""

from __future__ import annotations

import errno
import os
import re

import msgspec

from engine import _core

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
_ESCAPE = re.compile(r"\\([0-7]{3})")


class MountEntry(msgspec.Struct, frozen=True):
    """One line of mountinfo. `root` is the folder of the file system that is mounted; options are split at commas."""

    id: int
    parent: int
    device: str
    root: str
    target: str
    options: tuple[str, ...]
    propagation: tuple[str, ...]
    type: str
    source: str
    super_options: tuple[str, ...]


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text) if "\\" in text else text


def parse(text: str) -> list[MountEntry]:
    """mountinfo's lines, in mount order. Raises ValueError for a line that is not one."""
    entries = []
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        fields, rest = left.split(" "), right.split(" ")
        if not separator or len(fields) < 6 or len(rest) < 2:
            raise ValueError(f"not a mountinfo line: {line!r}")
        entries.append(
            MountEntry(
                int(fields[0]), int(fields[1]), fields[2], _unescape(fields[3]), _unescape(fields[4]), tuple(fields[5].split(",")),
                tuple(fields[6:]), rest[0], _unescape(rest[1]), tuple(_unescape(rest[2]).split(",")) if len(rest) > 2 else (),
            )
        )  # fmt: skip
    return entries


def read(pid: int | str = "self") -> list[MountEntry]:
    """The mount table that a process sees. Raises OSError when there is no such process."""
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return parse(file.read())


def below(folder: str, entries: list[MountEntry] | None = None) -> list[MountEntry]:
    """Mounts at or below a folder, the newest first, which is an order in which they can be unmounted."""
    prefix = os.path.abspath(folder)
    inside = prefix.rstrip("/") + "/"
    table = read() if entries is None else entries
    return [entry for entry in reversed(table) if entry.target == prefix or entry.target.startswith(inside)]


def unmount_below(folder: str, *, detach: bool = True) -> int:
    """Unmount everything at or below a host folder; the number of mounts taken down.

    With `detach` a busy mount leaves the tree at once and goes away with its last user. Never follows a symbolic link in the last step of a
    path. Mounts that went away meanwhile are fine; any other failure raises OSError.
    """
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if detach else 0)
    count = 0
    for entry in below(folder):
        try:
            _core.umount2(entry.target, flags)
            count += 1
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):
                raise
    return count
