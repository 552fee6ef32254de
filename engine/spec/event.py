"""Events: what happened, to what, when. Pure data; who publishes and who listens is not its business.

Source: Engine API, "SystemEvents".
"""

from __future__ import annotations

import time as clock
from collections.abc import Mapping

import msgspec


class Actor(msgspec.Struct, frozen=True):
    """The object in JSON's form; its id (a volume's or image's may be a name) and attributes."""

    id: str = msgspec.field(name="ID", default="")
    attributes: Mapping[str, str] = msgspec.field(name="Attributes", default_factory=dict)


class Event(msgspec.Struct, frozen=True):
    """`type` is container, image, network, volume, daemon, ...; `time` in nanoseconds since the epoch."""

    type: str
    action: str
    id: str
    attributes: Mapping[str, str]
    time: int
    scope: str = "local"

    @classmethod
    def make(cls, type: str, action: str, id: str, attributes: Mapping[str, str] | None = None, *, time: int = 0) -> Event:
        """An event that happens now, or at `time`."""
        return cls(type, action, id, dict(attributes or {}), time or clock.time_ns())

    def message(self, *, legacy: bool = True) -> Message:
        """The event as Docker sends it; `legacy` adds the status, id and from of API 1.21 for containers and images, as before API 1.52."""
        old = legacy and self.type in ("container", "image")
        return Message(
            status=self.action if old else "",
            id=self.id if old else "",
            image=self.attributes.get("image", "") if old and self.type == "container" else "",
            type=self.type,
            action=self.action,
            actor=Actor(self.id, dict(sorted(self.attributes.items()))),
            scope=self.scope,
            time=self.time // 1_000_000_000,
            time_nano=self.time,
        )


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The JSON object of `GET /events`; `time` in seconds, `time_nano` in nanoseconds since the epoch."""

    status: str = ""
    id: str = ""
    image: str = msgspec.field(name="from", default="")
    type: str = msgspec.field(name="Type")
    action: str = msgspec.field(name="Action")
    actor: Actor = msgspec.field(name="Actor")
    scope: str
    time: int
    time_nano: int = msgspec.field(name="timeNano")
