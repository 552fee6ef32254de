"""What a pull shows of its layers: the lines that dockerd writes, from what the layers' jobs say. No waiting, no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from engine.spec.digest import short
from engine.wire import jsonstream


class Layer(Protocol):
    """What is needed of a `service.layers.Job`."""

    phase: str
    done: int
    total: int
    existed: bool


class Shown:
    """What was told of each layer, so that only what is new is told. `digests` name the layers, bottom first."""

    def __init__(self, digests: Sequence[str]) -> None:
        self._ids = [short(digest) for digest in digests]
        self._told: list[tuple[str, int]] = [("", -1)] * len(self._ids)

    def lines(self, layers: Sequence[Layer]) -> Iterator[bytes]:
        """Lines for everything that changed since the last call."""
        for number, (id, layer) in enumerate(zip(self._ids, layers, strict=True)):
            phase, done = self._told[number]
            if (layer.phase, layer.done) == (phase, done):
                continue
            self._told[number] = layer.phase, layer.done
            if layer.phase != phase:
                yield from self._entered(id, layer, phase)
            if layer.phase == "downloading" or (layer.phase == "extracting" and layer.total):
                text = "Downloading" if layer.phase == "downloading" else "Extracting"
                yield jsonstream.progress(text, id, layer.done, layer.total)

    def _entered(self, id: str, layer: Layer, before: str) -> Iterator[bytes]:
        if layer.phase == "complete" and layer.existed:
            yield jsonstream.status("Already exists", id)
            return
        if not before:
            yield jsonstream.status("Pulling fs layer", id)
        if layer.phase == "waiting":
            yield jsonstream.status("Waiting", id)
        elif layer.phase == "extracting" and before in ("", "waiting", "downloading"):
            yield jsonstream.status("Download complete", id)
        elif layer.phase == "complete":
            yield jsonstream.status("Pull complete", id)
