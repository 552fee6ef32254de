"""What a build tells while it runs: BuildKit's SolveStatus, message by message. Owns times and which vertex has been told of; no I/O."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Sequence

import msgspec

from engine.errors import KnarrError
from engine.spec.build import Finding, Log, Progress, Status, VertexStatus

Sink = Callable[[Progress], None]
"""Takes a message; called in the event loop, must not block."""


def stamp() -> str:
    """Now, as RFC 3339 with microseconds."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def _always() -> bool:
    return True


class Reporter:
    """Tells one client of one build. `executed` and `cached` count the steps. Whoever can wait calls `room` before it tells more, so that a
    client that reads slowly slows the work down and nothing grows."""

    def __init__(self, sink: Sink, room: Callable[[], Awaitable[bool]] = _always) -> None:
        self._sink = sink
        self.room = room
        self._vertices: dict[str, VertexStatus] = {}
        self.executed = 0
        self.cached = 0
        self.findings: list[Finding] = []

    def begin(self, digest: str, name: str, inputs: Sequence[str] = ()) -> None:
        """A vertex has begun; begun once more it is not told again."""
        if digest in self._vertices:
            return
        self._put(VertexStatus(digest=digest, name=name, inputs=tuple(inputs), started=stamp()))

    def end(self, digest: str, *, cached: bool = False, error: str = "", counts: bool = True) -> None:
        """A vertex is over. `counts`: it is a step of the Dockerfile."""
        vertex = self._vertices[digest]
        if vertex.completed is not None:
            return
        if counts and not error:
            self.cached += cached
            self.executed += not cached
        self._put(msgspec.structs.replace(vertex, completed=stamp(), cached=cached, error=error))

    @contextlib.contextmanager
    def vertex(self, name: str) -> Iterator[str]:
        """Around something that is no step of the Dockerfile; its digest."""
        digest = "sha256:" + hashlib.sha256(name.encode()).hexdigest()
        self.begin(digest, name)
        try:
            yield digest
        except (KnarrError, OSError) as error:
            self.end(digest, error=str(error), counts=False)
            raise
        except BaseException:
            self.end(digest, error="context canceled", counts=False)
            raise
        self.end(digest, counts=False)

    def told(self, digest: str) -> bool:
        """Whether a vertex has begun."""
        return digest in self._vertices

    def _put(self, vertex: VertexStatus) -> None:
        self._vertices[vertex.digest] = vertex
        self._sink(Progress(vertexes=(vertex,)))

    def log(self, digest: str, stream: int, data: bytes) -> None:
        """What a vertex wrote."""
        self._sink(Progress(logs=(Log(vertex=digest, stream=stream, data=data, timestamp=stamp()),)))

    def status(self, digest: str, id: str, current: int, total: int = 0, *, started: str, completed: bool = False) -> None:
        """A bar below a vertex, in bytes."""
        at = stamp()
        status = Status(
            id=id, vertex=digest, name=id, current=current, total=total, timestamp=at, started=started, completed=at if completed else None
        )
        self._sink(Progress(statuses=(status,)))

    def warn(self, finding: Finding) -> None:
        """A build check that fired."""
        self.findings.append(finding)
        self._sink(Progress(warnings=(finding,)))
