"""Who a process runs as: `--user` and the image's USER resolved against the container's own passwd and group files.

The files are text from a hostile root file system; they are read by the caller through descriptors (never by a host path).
Rules follow Docker: "user", "uid", "user:group", "uid:gid", any mix; a numeric id need not be listed.
"""

from __future__ import annotations

import msgspec

from engine.errors import InvalidParameter
from engine.linux import files

_MAX_ID = 2**31 - 1  # what Docker accepts


class Identity(msgspec.Struct, frozen=True):
    """Resolved ids, `groups` with the primary one first; `home` is the home directory, "/" when the user is not listed."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"


def resolve(user: str, passwd: str, group: str, extra: tuple[str, ...] = ()) -> Identity:
    """Resolve `user` (empty: root); `extra` are --group-add names or ids. Raises InvalidParameter with Docker's words."""
    name, colon, group_name = user.partition(":")
    name = name or "0"
    entry = _passwd_entry(name, passwd)
    if entry is None:
        if not _is_number(name):
            raise InvalidParameter(f"unable to find user {name}: no matching entries in passwd file")
        uid, gid, home, login = _number(name), 0, "/", ""
    else:
        login, uid, gid, home = entry
    if colon and group_name:
        gid = _group_id(group_name, group)
        groups: tuple[int, ...] = ()
    else:
        groups = _memberships(login, gid, group) if login else ()
    # The primary group too, or a set-group-id program would take it away and with it what the group is denied (CVE-2022-36109).
    groups = (gid, *(number for number in groups if number != gid))
    for item in extra:
        added = _group_id(item, group)
        if added not in groups:
            groups += (added,)
    return Identity(uid, gid, groups, home or "/")


def read_layers(layers: tuple[str, ...], path: str) -> str:
    """Text of a file in the topmost of some root folders (host paths) that has it; "" when there is none, or a layer hides it.

    Nothing in the folders is trusted: links stay inside, devices are not opened.
    """
    for layer in layers:
        try:
            with files.Root(layer) as root:
                return root.read(path).decode("utf-8", "surrogateescape")
        except FileNotFoundError:
            continue
        except OSError:
            return ""  # a whiteout, a device, a link that leads nowhere
    return ""


def _is_number(text: str) -> bool:
    """ASCII digits, few enough for int(): the files may hold anything."""
    return text.isascii() and text.isdigit() and len(text) < 20


def _number(text: str) -> int:
    value = int(text)
    if value > _MAX_ID:
        raise InvalidParameter(f"uids and gids must be in range 0-{_MAX_ID}: {text}")
    return value


def _passwd_entry(name: str, passwd: str) -> tuple[str, int, int, str] | None:
    """(login, uid, gid, home) of a name, or of a uid when no login has that name."""
    by_id = None
    for line in passwd.splitlines():
        parts = line.split(":")
        if len(parts) < 6 or not _is_number(parts[2]) or not _is_number(parts[3]):
            continue
        if parts[0] == name:
            return parts[0], _number(parts[2]), _number(parts[3]), parts[5]
        if by_id is None and parts[2] == name:
            by_id = parts[0], _number(parts[2]), _number(parts[3]), parts[5]
    return by_id


def _group_id(name: str, group: str) -> int:
    for line in group.splitlines():
        parts = line.split(":")
        if len(parts) >= 3 and parts[0] == name and _is_number(parts[2]):
            return _number(parts[2])
    if _is_number(name):
        return _number(name)
    raise InvalidParameter(f"unable to find group {name}: no matching entries in group file")


def _memberships(login: str, gid: int, group: str) -> tuple[int, ...]:
    found: list[int] = []
    for line in group.splitlines():
        parts = line.split(":")
        if len(parts) >= 4 and _is_number(parts[2]) and login in parts[3].split(","):
            found.append(_number(parts[2]))
    return tuple(dict.fromkeys(found))
