"""User namespaces that nobody is in: a mapping of ids, for mounts that show other owners (mount_setattr(2), MOUNT_ATTR_IDMAP).

One is made through a process that is born in it and has ended before anyone looks: the kernel keeps what a zombie was in until it is
reaped, which is time enough to write its mappings and to open the namespace. No program runs in it, then or later, and nothing but the
descriptor and the mounts holds it, so it goes with them, however this process ends.
Sources: user_namespaces(7), proc_pid_uid_map(5), clone(2).
"""

from __future__ import annotations

import os
import weakref
from typing import Final

from engine import _core
from engine.spec import idmapping
from engine.spec.mount import IdMapping

_WALL: Final = 0x40000000  # __WALL: processes without an exit signal too
_KEPT: Final = 16  # namespaces that stay although no plan has them: containers often come one after the other with the same mapping

Mapping = tuple[IdMapping, ...]


def new(uids: Mapping, gids: Mapping) -> int:
    """The descriptor (close-on-exec) of a new user namespace with these mappings. Some tenths of a millisecond.

    Raises OSError: ENOSPC when there are too many (/proc/sys/user/max_user_namespaces), EPERM when the host forbids them, EINVAL for a
    mapping that `idmapping.problem` knows, or without user namespaces in the kernel.
    """
    pid = _core.clone_user()
    try:
        fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            for name, mapping in (("uid_map", uids), ("gid_map", gids)):
                _write(f"/proc/{pid}/{name}", idmapping.text(mapping))
        except BaseException:
            os.close(fd)
            raise
        return fd
    finally:
        os.waitpid(pid, _WALL)


def _write(path: str, text: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text)  # at once or not at all
    finally:
        os.close(fd)


class UserNamespace:
    """A namespace and its descriptor, which is closed when nobody has this object any more. `path`: where others find it until then."""

    __slots__ = ("__weakref__", "_fd", "path")

    def __init__(self, uids: Mapping, gids: Mapping) -> None:
        self._fd = -1
        self._fd = new(uids, gids)
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


class UserNamespaces:
    """The namespaces of this process by their mappings: made when first asked for, there for as long as somebody has one."""

    def __init__(self) -> None:
        self._all: weakref.WeakValueDictionary[tuple[Mapping, Mapping], UserNamespace] = weakref.WeakValueDictionary()
        self._recent: dict[tuple[Mapping, Mapping], UserNamespace] = {}

    def get(self, uids: Mapping, gids: Mapping) -> UserNamespace:
        """The namespace with these mappings; the caller keeps it for as long as its path is needed. Raises OSError as `new` does."""
        key = (uids, gids)
        found = self._all.get(key)
        if found is None:
            found = self._all[key] = UserNamespace(uids, gids)
        self._recent.pop(key, None)
        self._recent[key] = found
        if len(self._recent) > _KEPT:
            del self._recent[next(iter(self._recent))]
        return found
