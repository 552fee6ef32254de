"""What a pull shows of its layers: the lines that dockerd writes, in its order, from what the layers' jobs say. No waiting, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from engine.spec.digest import short
from engine.wire import jsonstream

_PHASES = ("waiting", "downloading", "extracting", "complete")


class Layer(Protocol):
    """What is needed of a `service.layers.Job`."""

    phase: str
    done: int
    total: int
    existed: bool


class _Line:
    """One line of the display: all layers of an image that are the same blob."""

    def __init__(self, id: str, here: bool) -> None:
        self.id = id
        self.here = here
        self.phase = ""
        self.done = -1
        self.told_to_wait = False
        self.complete = False


class Shown:
    """What was told of each layer, so that only what is new is told. `digests` name the layers, bottom first; `here` says of each whether
    nothing needs to be done."""

    def __init__(self, digests: Sequence[str], here: Iterable[bool] = ()) -> None:
        ids = [short(digest) for digest in digests]
        needed = {id for id, known in zip(ids, here, strict=False) if not known} if here else set(ids)
        self._lines = {id: _Line(id, id not in needed) for id in ids}
        self._of = [self._lines[id] for id in ids]

    def lines(self, layers: Sequence[Layer]) -> Iterator[bytes]:
        """Lines for everything that changed since the last call; the first call names every layer."""
        members: dict[str, list[Layer]] = {id: [] for id in self._lines}
        for line, layer in zip(self._of, layers, strict=True):
            members[line.id].append(layer)
        first = [line for line in self._lines.values() if not line.phase]
        for line in first:
            line.phase = "waiting"
            yield jsonstream.status("Already exists" if line.here else "Pulling fs layer", line.id)
        for line in self._lines.values():
            if line not in first:
                yield from self._changed(line, members[line.id])

    def finish(self, layers: Sequence[Layer]) -> Iterator[bytes]:
        """The same, once all layers are complete."""
        yield from self.lines(layers)
        yield from self.lines(layers)

    def _changed(self, line: _Line, layers: Sequence[Layer]) -> Iterator[bytes]:
        # Threads change them meanwhile.
        seen = [(_PHASES.index(layer.phase), layer.done, layer.total) for layer in layers]
        furthest, done, total = max(seen)
        over = min(seen)[0] == furthest == len(_PHASES) - 1
        phase = "complete" if over else _PHASES[min(furthest, _PHASES.index("extracting"))]
        if line.complete or _PHASES.index(phase) < _PHASES.index(line.phase):
            return
        existed = over and all(layer.existed for layer in layers)
        if line.here and line.phase == "waiting" and (phase == "waiting" or existed):
            line.complete = existed
            return
        if phase == "waiting":
            if not line.told_to_wait:
                line.told_to_wait = True
                yield jsonstream.status("Waiting", line.id)
            return
        if existed:
            line.complete = True
            yield jsonstream.status("Already exists", line.id)
            return
        if phase != "downloading" and line.phase in ("waiting", "downloading"):
            yield jsonstream.status("Verifying Checksum", line.id)
            yield jsonstream.status("Download complete", line.id)
            line.done = -1
        if phase == "complete":
            line.complete = True
            yield jsonstream.status("Pull complete", line.id)
        elif total and done != line.done:
            line.done = done
            yield jsonstream.progress("Downloading" if phase == "downloading" else "Extracting", line.id, done, total)
        line.phase = phase
