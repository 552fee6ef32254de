"""One container as the daemon holds it: its record, its process if it runs, and who waits for it. No policy.

A state change has no await in it: `transition` steps the table of `spec.lifecycle`, stores the row and wakes the waiters.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator

import msgspec
import trio

from engine.errors import KnarrError
from engine.linux.cgroups import Placement
from engine.runtime.ops import Op
from engine.service.context import Context
from engine.service.supervise import Process
from engine.spec import lifecycle
from engine.spec.container import ContainerRecord
from engine.spec.event import Event
from engine.wire import control

_ENCODER = msgspec.json.Encoder()


class Plan(msgspec.Struct, frozen=True):
    """A compiled start: the operations (for errors and traces) and their encoding; `held`: what keeps its paths alive."""

    ops: tuple[Op, ...]
    encoded: bytes
    held: tuple[object, ...] = ()


class Pending:
    """A client that attached before the start; handed to the monitor with it. `done` when it is served elsewhere or gone."""

    def __init__(self, fd: int, options: control.Attach) -> None:
        self.fd = fd
        self.options = options
        self.done = trio.Event()

    def release(self) -> None:
        """Close the descriptor, once, and tell who waits."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self.done.set()


class Container:
    """Record, process and waiters. `lock` serialises start, stop, restart and remove of this container."""

    def __init__(self, context: Context, record: ContainerRecord) -> None:
        self._context = context
        self.record = record
        self.process: Process | None = None
        self.previous: Process | None = None  # ended, but its monitor may still be unmounting
        self.placement: Placement | None = None
        self.plan: Plan | None = None
        self.resolv_conf = ""  # what this daemon wrote last; "" when it did not
        self.pending: list[Pending] = []
        self.lock = trio.Lock()
        self.last_start: tuple[Plan, control.Started] | None = None
        self.exited = trio.Event()  # of the current or next run; replaced after each
        self.gone = trio.Event()  # the record is deleted
        # A start claims the control groups, a chore in a thread removes those of the run before: each says so before it looks at the other.
        self.claimed = False
        self.dropping = False
        self.unclean = False  # processes of the run before may be left in its control groups
        self.stopping = False  # a restart or stop is under way: --rm waits for it

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def bundle(self) -> str:
        """Host path of the volatile folder."""
        return self._context.layout.bundle(self.record.id)

    @property
    def cgroup(self) -> str:
        """Path of the container's control group below each hierarchy's root."""
        return f"{self.record.host_config.cgroup_parent.strip('/')}/{self.record.id}"

    def encoded(self) -> bytes:
        """The row."""
        return _ENCODER.encode(self.record)

    def save(self) -> None:
        """Write the row within a second or so: for changes that the monitor or its exit record also tells."""
        self._context.durability.soon(self.record.id, self._write)

    def save_now(self) -> None:
        """Write the row; not durable yet."""
        self._context.durability.saved(self.record.id)
        self._context.store.put(self.record.id, self.encoded())

    def save_if_waiting(self) -> None:
        """Write the row if `save` has not yet: before the exit record that tells the same is removed."""
        if self._context.durability.saved(self.record.id):
            self._context.store.put(self.record.id, self.encoded())

    def _write(self, cursor: sqlite3.Cursor) -> None:
        self._context.store.put(self.record.id, self.encoded(), cursor)

    def transition(self, event: lifecycle.Event) -> None:
        """Step the state; raises Conflict when the table says no."""
        self.record.state = lifecycle.step(self.record.state, event)

    def wake_exit(self) -> None:
        """Wake everyone who waits for the end of this run."""
        self.exited.set()
        self.exited = trio.Event()

    def publish(self, action: str, **attributes: str) -> None:
        """Publish an event of this container, with Docker's attributes: image, name and the labels."""
        config = self.record.config
        self._context.events.publish(
            Event.make(
                "container",
                action,
                self.record.id,
                {**(config.labels or {}), "image": self.record.image, "name": self.record.name, **attributes},
            )
        )


def now() -> int:
    """Nanoseconds since the epoch."""
    return time.time_ns()


@contextlib.contextmanager
def told(container: Container, what: str) -> Iterator[None]:
    """What the kernel refuses, in words for the client. Raises KnarrError."""
    try:
        yield
    except OSError as error:
        raise KnarrError(f"container {container.name}: {what}: {error}") from error
