"""`--chown` of COPY and ADD: who owns the copies, by the passwd and group files of the root file system that is copied into.

BuildKit's rules, which differ from those for USER: a number is a user and a group at once, `root` is 0 whatever is listed, a name brings
the group of its line in passwd, a name that is not listed is root. The files are text from a hostile root file system and are read through
descriptors alone.
"""

from __future__ import annotations

import os
import stat

from builder.language.chown import ROOT, is_number, named
from engine.errors import InvalidParameter
from engine.service import users
from engine.store.view import View

Owner = tuple[int, int]

_MOST = 1 << 20  # bytes of passwd or group


def resolve(chown: str, view: View | None) -> Owner | None:
    """User and group of "user[:group]", None for "". `view` is the root file system, None for an empty one, which has no names. Raises
    InvalidParameter, OSError."""
    if not chown:
        return None
    if view is None and named(chown):
        raise InvalidParameter("invalid user index: -1", hint=f"an empty image has no names of users: give numbers instead of {chown}")
    user, colon, group = chown.partition(":")
    uid = gid = 0
    if is_number(user):
        uid = gid = users.resolve(user, "", "").uid
    elif user and user != ROOT:
        found = _listed(user, _text(view, "/etc/passwd"))
        if found is not None:
            uid, gid = found
    if colon:
        gid = _group(group, view)
    return uid, gid


def _group(group: str, view: View | None) -> int:
    if is_number(group):
        return users.resolve(f"0:{group}", "", "").gid
    if group in ("", ROOT):
        return 0
    for line in _text(view, "/etc/group").splitlines():
        parts = line.split(":")
        if len(parts) >= 3 and parts[0] == group and is_number(parts[2]):
            return users.resolve(f"0:{parts[2]}", "", "").gid
    return 0


def _listed(user: str, passwd: str) -> Owner | None:
    """The line of a name: user and group. Raises InvalidParameter for numbers that no system has."""
    for line in passwd.splitlines():
        parts = line.split(":")
        if len(parts) >= 4 and parts[0] == user and is_number(parts[2]) and is_number(parts[3]):
            found = users.resolve(f"{parts[2]}:{parts[3]}", "", "")
            return found.uid, found.gid
    return None


def _text(view: View | None, path: str) -> str:
    node = view.find(path) if view is not None else None
    if view is None or node is None or not stat.S_ISREG(node.info.st_mode):
        return ""
    with os.fdopen(view.open_file(node), "rb") as file:
        return file.read(_MOST).decode("utf-8", "surrogateescape")
