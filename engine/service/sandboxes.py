"""Network namespaces made ahead of need, so that their cost is not part of a start. Owns the pool, not what is in one.

A kind is made ahead only once it was asked for, and only the kinds asked for last: an idle daemon that never starts a container with a
network has none.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from typing import NamedTuple

import trio

from engine.aio.blocking import blocking
from engine.errors import KnarrError
from engine.linux.rtnetlink import Rtnetlink
from engine.network import sandbox
from engine.network.pair import DEFAULT_MTU, Port
from engine.network.sandbox import Prepared

log = logging.getLogger("knarr.sandboxes")

# After a start the pool is refilled so many seconds later: making a namespace takes the locks that the container's own start needs.
_REFILL_DELAY = 0.012
_RETRY_SECONDS = 1.0
_KINDS = 4  # made ahead at the same time: each holds some descriptors and a pair of links


class Kind(NamedTuple):
    """What a namespace is prepared for: `kind` of `network.sandbox`, the bridge's port, the links' MTU in bytes."""

    kind: str
    port: Port = Port()
    mtu: int = DEFAULT_MTU


class Joining:
    """What a start was given. `fd`: the namespace the process is born in, -1 for one that exists already. Use `done` or `undo` once."""

    def __init__(self, prepared: Prepared | None = None) -> None:
        self.prepared = prepared

    @property
    def fd(self) -> int:
        return self.prepared.ns if self.prepared is not None else -1

    def done(self) -> None:
        """The process holds the namespace now."""
        if self.prepared is not None:
            self.prepared.close()
            self.prepared = None


class Sandboxes:
    """`take` gives a namespace of one's own; `run` is the background task that refills. `ready`: how many of a kind wait."""

    def __init__(self, ready: int) -> None:
        self._ready = max(1, ready)
        self._waiting: OrderedDict[Kind, deque[Prepared]] = OrderedDict()
        self._wake = trio.Event()

    async def take(self, kind: Kind) -> Prepared:
        """One that waits, or one made now. The caller closes it. Raises OSError, NftablesError."""
        waiting = self._waiting.get(kind)
        if waiting is None:
            waiting = self._waiting[kind] = deque()
            while len(self._waiting) > _KINDS:
                self._close(self._waiting.popitem(last=False)[1])
        self._waiting.move_to_end(kind)
        self._wake.set()
        if waiting:
            return waiting.popleft()
        return await blocking("kernel", _prepare, kind)

    def forget(self, bridge: int) -> None:
        """A bridge goes: what was made for it is of no use any more."""
        for kind in [kind for kind in self._waiting if kind.port.bridge == bridge]:
            self._close(self._waiting.pop(kind))

    async def run(self) -> None:
        """Background task: keep `ready` of each kind."""
        try:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                await trio.sleep(_REFILL_DELAY)
                for kind in reversed(list(self._waiting)):
                    await self._fill(kind)
        finally:
            for waiting in self._waiting.values():
                self._close(waiting)

    async def _fill(self, kind: Kind) -> None:
        while (waiting := self._waiting.get(kind)) is not None and len(waiting) < self._ready:
            try:
                made = await blocking("kernel", _prepare, kind)
            except (OSError, KnarrError) as error:
                if self._waiting.get(kind) is not waiting:  # its bridge is gone
                    return
                log.warning("making a network namespace ahead: %s", error)  # whoever needs one is told by its own attempt
                await trio.sleep(_RETRY_SECONDS)
                return
            if self._waiting.get(kind) is waiting:
                waiting.append(made)
            else:
                made.close()

    @staticmethod
    def _close(waiting: deque[Prepared]) -> None:
        while waiting:
            waiting.popleft().close()


def _prepare(kind: Kind) -> Prepared:
    """In a worker thread."""
    with Rtnetlink() as host:
        return sandbox.prepare(kind.kind, host, mtu=kind.mtu, port=kind.port)
