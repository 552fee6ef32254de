"""The wire form of a plan, the program that starts a process: bytes only, no I/O.

Owns the layout, which is the comment on top of `native/plan.h`, where the decoder is: native byte order, because a plan never leaves the
machine. Which codes, arguments and slots an operation has is `runtime.ops`' business.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct as Packer

from engine.errors import InvalidParameter

MAGIC = 0x314E524B
MAX_OPS = 1024  # KNARR_MAX_OPS of native/launch.h

_HEADER = Packer("=IIII")
_PACKERS = tuple(Packer(f"=IHH4Q{n}Q") for n in range(6))
_PADDING = tuple(b"\0" * n for n in range(8))


def text(value: str) -> bytes:
    """A string for a slot; a path that is no UTF-8 keeps its bytes. Raises InvalidParameter for one with a NUL."""
    raw = value.encode("utf-8", "surrogateescape")
    if b"\0" in raw:
        raise InvalidParameter(f"a NUL character is not allowed in {value!r}")
    return raw + b"\0"


def table(values: Sequence[int]) -> bytes:
    """A table of u32 for a slot; an argument of the operation says how many."""
    return Packer(f"={len(values)}I").pack(*values)


def pack(code: int, args: tuple[int, int, int, int], *slots: bytes | None) -> bytes:
    """One operation: its code, four u64 and any number of slots (None: NULL). A multiple of 8 bytes."""
    offset = 40 + 8 * len(slots)
    offsets = []
    for slot in slots:
        if slot is None:
            offsets.append(0)
        else:
            offsets.append(offset)
            offset += len(slot)
    padding = -offset & 7
    packer = _PACKERS[len(slots)] if len(slots) < len(_PACKERS) else Packer(f"=IHH4Q{len(slots)}Q")
    head = packer.pack(offset + padding, code, len(slots), *args, *offsets)
    return b"".join((head, *(s for s in slots if s), _PADDING[padding]))


def join(operations: Sequence[bytes]) -> bytes:
    """A plan of packed operations. Raises InvalidParameter for more than MAX_OPS."""
    if len(operations) > MAX_OPS:
        raise InvalidParameter(
            f"too many operations to start the process: {len(operations)}, at most {MAX_OPS}", hint="fewer mounts or devices"
        )
    body = b"".join(operations)
    return _HEADER.pack(MAGIC, len(operations), _HEADER.size + len(body), 0) + body
