"""Events as `docker events` and other watchers read them. Source: the Engine API reference 1.51 and the answers of dockerd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from engine.api.version import Version


class Event(Protocol):
    """What is needed of `service.events.Event`. `time` in nanoseconds since the epoch."""

    @property
    def type(self) -> str: ...
    @property
    def action(self) -> str: ...
    @property
    def id(self) -> str: ...
    @property
    def attributes(self) -> Mapping[str, str]: ...
    @property
    def time(self) -> int: ...


def event(value: Event, version: Version) -> dict[str, Any]:
    """One event. `status`, `id` and `from` are those of API 1.21, which dockerd still sends for containers and images."""
    shown: dict[str, Any] = {}
    if version < (1, 52) and value.type in ("container", "image"):
        shown = {"status": value.action, "id": value.id}
        if value.type == "container" and "image" in value.attributes:
            shown["from"] = value.attributes["image"]
    shown.update(
        Type=value.type,
        Action=value.action,
        Actor={"ID": value.id, "Attributes": value.attributes},
        scope="local",
        time=value.time // 1_000_000_000,
        timeNano=value.time,
    )
    return shown
