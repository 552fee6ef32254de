"""What makes two vertices the same work: keys, as texts. Pure.

A key is a digest over what an op says and over what its inputs are. The *definition* of an input is its own key: known before anything was
executed. Its *content* is what it turned out to be: another way to the same content finds the same results. Whatever does not change what
an op makes takes no part: names for progress, times, proxies, the content of secrets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from builder.graph import Copy, Graph, HttpSource, ImageSource, Op, Run

_VERSION = b"knarr-build-1"
"""Changes whenever an op comes to mean something else, so that no older result is found."""
_ENCODER = msgspec.msgpack.Encoder(order="deterministic")


def definition(op: Op) -> bytes:
    """What an op says, in a canonical form."""
    if isinstance(op, Run):
        op = msgspec.structs.replace(op, proxies=())  # they take no part
    elif isinstance(op, ImageSource):  # by its layers alone
        return b"image " + op.chain.encode()
    elif isinstance(op, HttpSource):
        op = msgspec.structs.replace(op, checksum="")
    elif isinstance(op, Copy):
        # What is selected is part of the content's digest, the order of sources is kept there.
        op = msgspec.structs.replace(op, sources=tuple(msgspec.structs.replace(one, content=None) for one in op.sources))
    return _ENCODER.encode(op)


def key(op: Op, inputs: Sequence[str], extra: str = "") -> str:
    """The key of an op on inputs, each by its key or by its content. `extra`: limits of the build that an outcome may depend on."""
    digest = hashlib.sha256(_VERSION)
    for part in (definition(op), extra.encode(), *(one.encode() for one in inputs)):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def display(graph: Graph) -> list[str]:
    """A digest for each vertex, by which progress names it."""
    found: list[str] = []
    for index, vertex in enumerate(graph.vertices):
        above = [found[one] if one >= 0 else "" for one in vertex.inputs]
        found.append("sha256:" + key(vertex.op, [*above, vertex.name, str(index)]))
    return found
