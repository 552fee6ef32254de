"""Control groups of containers: one interface, cgroup v1 and v2 behind it."""

from __future__ import annotations

import msgspec


class Placement(msgspec.Struct, frozen=True):
    """How a new process enters its control groups.

    ``tasks``: v1 ``tasks`` files into each of which the child itself writes ``0`` before it execs.
    ``directory``: v2 group directory for clone3's CLONE_INTO_CGROUP; empty where there is none.
    """

    tasks: tuple[str, ...] = ()
    directory: str = ""
