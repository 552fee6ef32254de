"""Mappings of user and group ids, for mounts that show other owners than their files have. Pure.

The form and its rules are the kernel's (user_namespaces(7), "User and group ID mappings"). Of a mount's mapping `container_id` is an
owner as the file system has it, `host_id` the one that is seen and that counts; owners outside the mapping are seen as nobody's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from engine.spec.mount import IdMapping

IDS = (1 << 32) - 1  # 0 up to 4294967294; the last number means "none"
NOBODY = 65534  # what is seen in the place of an id outside a mapping
IDENTITY = (IdMapping(container_id=0, host_id=0, size=IDS),)

_RANGES = 340  # user_namespaces(7), since Linux 4.15
_BYTES = 4096  # a mapping is written at once, and less than a page


def text(mapping: Sequence[IdMapping]) -> bytes:
    """What is written to /proc/PID/uid_map or gid_map."""
    return b"".join(b"%d %d %d\n" % (item.container_id, item.host_id, item.size) for item in mapping)


def shown(mapping: Sequence[IdMapping], owner: int) -> int:
    """Which id is seen as the owner of what belongs to `owner`."""
    for item in mapping:
        if item.container_id <= owner < item.container_id + item.size:
            return item.host_id + owner - item.container_id
    return NOBODY


def problem(mapping: Sequence[IdMapping]) -> str:
    """Why the kernel would not take a mapping; "" when it would."""
    if not mapping:
        return "it has no range"
    for item in mapping:
        shown = f"{item.container_id}-{item.host_id}-{item.size}"
        if item.size < 1:
            return f"the range {shown} is empty"
        if min(item.container_id, item.host_id) < 0 or max(item.container_id, item.host_id) + item.size > IDS:
            return f"the range {shown} leaves 0-{IDS - 1}"
    for starts, kind in ((_sorted(mapping, "container_id"), "files"), (_sorted(mapping, "host_id"), "the host")):
        for (start, size), (following, _) in itertools.pairwise(starts):
            if start + size > following:
                return f"the id {following} of {kind} is in two ranges"
    if len(mapping) > _RANGES or len(text(mapping)) >= _BYTES:
        return "it has too many ranges"
    return ""


def _sorted(mapping: Sequence[IdMapping], side: str) -> list[tuple[int, int]]:
    return sorted((getattr(item, side), item.size) for item in mapping)
