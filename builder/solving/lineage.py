"""What the layers of a vertex lie on, by its graph. Pure."""

from __future__ import annotations

import msgspec

from builder.graph import SCRATCH, Graph, ImageSource


class Ground(msgspec.Struct, frozen=True):
    """`vertices`: those that make a layer each, topmost first; below them the layers of `image`, None for nothing."""

    vertices: tuple[int, ...]
    image: ImageSource | None

    @property
    def chain(self) -> str:
        """The chain below, "" for none."""
        return self.image.chain if self.image is not None else ""


def ground(graph: Graph, index: int) -> Ground:
    """Of a vertex that gives a root file system."""
    vertices: list[int] = []
    while index != SCRATCH:
        vertex = graph.vertices[index]
        if isinstance(vertex.op, ImageSource):
            return Ground(tuple(vertices), vertex.op)
        vertices.append(index)
        index = vertex.inputs[0]
    return Ground(tuple(vertices), None)
