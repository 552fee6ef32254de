"""Volumes as records: what is stored of one, and how a container names them. Pure data.

Names and members follow Docker's API ("Volume"); the rules for names are those of its local driver.
"""

from __future__ import annotations

import re

import msgspec

from engine.errors import InvalidParameter

ANONYMOUS = "com.docker.volume.anonymous"
"""The label of a volume that was made without a name; `prune` takes only these unless it is told otherwise."""
LOCAL = "local"
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")


class VolumeRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One row of the volumes table, msgspec-encoded JSON. `created_at`: nanoseconds since the epoch.

    `options`: of the local driver (`type`, `device`, `o`, `size`) as given, None when there were none. `project`: the project
    identifier that its size is limited by, 0 for none.
    """

    name: str
    created_at: int
    driver: str = LOCAL
    labels: dict[str, str] | None = None
    options: dict[str, str] | None = None
    project: int = 0

    @property
    def anonymous(self) -> bool:
        """Whether it was made without a name."""
        return ANONYMOUS in (self.labels or {})

    @property
    def mounted(self) -> bool:
        """Whether a file system of its own is mounted on it while it is in use."""
        return bool(self.options and self.options.get("device"))


def check_name(name: str) -> None:
    """Raises InvalidParameter in the words of Docker's local driver."""
    if not _NAME.fullmatch(name):
        raise InvalidParameter(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. '
            "If you intended to pass a host directory, use absolute path"
        )
    if len(name) < 2:
        raise InvalidParameter(f"create {name}: volume name is too short, names should be at least two alphanumeric characters")
    if len(name) > 255:
        raise InvalidParameter(f"create {name}: volume name is too long, a file's name has at most 255 characters")
