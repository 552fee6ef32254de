"""Events: a short memory of what happened and live delivery to everyone who listens.

Owns the ring and the subscriptions. Publishing never waits and never fails: a listener that does not keep up loses its subscription and is
told so; it slows nobody. Source: Engine API, "Monitor events"; the rules for since, until and filters are those of dockerd.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Mapping

import trio

from engine.errors import KnarrError
from engine.spec.event import Event
from engine.spec.filters import Filters

MEMORY = 1024  # events; dockerd keeps 256
BACKLOG = 4096  # events that may wait for one listener

_BY_NAME = ("daemon", "container", "plugin", "volume", "network", "node", "service", "secret", "config")
KEYS = frozenset((*_BY_NAME, "event", "image", "label", "scope", "type"))  # Engine API, SystemEvents
# Actions that carry their argument ("exec_start: sh"): a filter names them without it.
_WITH_ARGUMENT = frozenset(("health_status", "exec_create", "exec_start"))


def matches(event: Event, filters: Filters) -> bool:
    """Whether dockerd would show an event to a listener with these filters."""
    if not filters:
        return True
    wanted = filters.get("event")
    right_action = (
        filters.match_prefix("event", event.action) if _WITH_ARGUMENT & set(wanted) else filters.match_any("event", (event.action,))
    )
    return (
        right_action
        and filters.match_any("type", (event.type,))
        and filters.match_any("scope", (event.scope,))
        and all(filters.match_prefix(key, event.id, *_name(event)) for key in _BY_NAME if key in filters)
        and filters.match_any("image", _images(event))
        and filters.match_labels("label", event.attributes)
    )


def _name(event: Event) -> tuple[str, ...]:
    name = event.attributes.get("name")
    return (name,) if name else ()


def _images(event: Event) -> list[str]:
    name = event.attributes.get("name" if event.type == "image" else "image", "")
    return [form for text in (event.id, name) if text for form in (text, _without_tag(text))]


def _without_tag(reference: str) -> str:
    head, colon, tag = reference.partition("@")[0].rpartition(":")
    return head if colon and "/" not in tag else reference


class Subscription:
    """Events for one listener: `async for event in subscription`. It listens from the moment it is made until it is dropped or closed."""

    def __init__(self, past: list[Event], until: int, filters: Filters, live: bool) -> None:
        self._until = until
        self._filters = filters
        self._overrun = False
        self._past = deque(past)
        self._send, self._receive = trio.open_memory_channel[Event](BACKLOG)
        if not live:
            self._send.close()

    def offer(self, event: Event) -> None:
        """Hand over an event if it is wanted; never waits."""
        if not matches(event, self._filters):
            return
        try:
            self._send.send_nowait(event)
        except trio.WouldBlock:
            self._overrun = True
            self._send.close()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    def close(self) -> None:
        """End the subscription; its reader gets what waits and then the end."""
        self._send.close()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        """The next event. Raises KnarrError when this listener was too slow."""
        if self._past:
            await trio.lowlevel.checkpoint()
            return self._past.popleft()
        left = max(self._until - time.time_ns(), 0) / 1e9 if self._until else float("inf")
        with trio.move_on_after(left):
            try:
                return await self._receive.receive()
            except trio.EndOfChannel:
                if self._overrun:
                    raise KnarrError(f"events came faster than they were read: more than {BACKLOG} were waiting") from None
        self.close()
        raise StopAsyncIteration


class Events:
    """All events of this daemon."""

    def __init__(self) -> None:
        self._ring: deque[Event] = deque(maxlen=MEMORY)
        # A listener whose request ended just goes away; nobody has to say goodbye for it.
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()

    @property
    def listeners(self) -> int:
        """How many subscriptions are open."""
        return len(self._subscriptions)

    def publish(self, event: Event) -> None:
        """Remember an event and pass it on. Does not wait, does not fail."""
        self._ring.append(event)
        for subscription in list(self._subscriptions):
            subscription.offer(event)

    def subscribe(self, since: int = 0, until: int = 0, filters: Mapping[str, list[str]] | None = None) -> Subscription:
        """Events from `since` to `until` (nanoseconds since the epoch, 0: not given) that pass the filters.

        Without both, only what happens from now on; with either, remembered ones first; with an `until` in the past, only those. Raises
        InvalidParameter for an unknown filter.
        """
        chosen = Filters.of(filters or {})
        chosen.check(KEYS)
        past = []
        if since or until:
            past = [event for event in self._ring if event.time >= since and (not until or event.time <= until) and matches(event, chosen)]
        live = not until or until > time.time_ns()
        subscription = Subscription(past, until, chosen, live)
        if live:
            self._subscriptions.add(subscription)
        return subscription
