"""Frames of a build for any input: what was sent comes out whole at any boundaries, and hostile bytes only ever raise MalformedFrame."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from engine.wire import buildframes
from engine.wire.buildframes import MESSAGE_LIMITS, Frames, MalformedFrame, frame, message

JOINED = st.tuples(st.sampled_from(sorted(MESSAGE_LIMITS)), st.integers(0, 5), st.binary(max_size=1000))
PIECES = st.tuples(
    st.sampled_from([buildframes.FILES, buildframes.CHANNEL, buildframes.OUTPUT]), st.integers(0, (1 << 24) - 1), st.binary(max_size=1000)
)


def cut(data: bytes, step: int) -> list[bytes]:
    return [data[i : i + step] for i in range(0, len(data), step)]


@given(st.lists(JOINED | PIECES, max_size=12), st.integers(1, 300))
def test_what_is_sent_comes_out(sent: list[tuple[int, int, bytes]], step: int) -> None:
    data = b"".join(b"".join(message(*m)) if m[0] in MESSAGE_LIMITS else frame(*m) for m in sent)
    frames = Frames()
    assert [m for piece in cut(data, step) for m in frames.feed(piece)] == sent
    assert frames.clean


@given(st.binary(min_size=1, max_size=900), st.lists(st.integers(0, 900), max_size=5), st.integers(1, 100))
def test_a_message_in_pieces_is_one_between_others(payload: bytes, cuts: list[int], step: int) -> None:
    edges = [0, *sorted(min(c, len(payload)) for c in cuts), len(payload)]
    pieces = [payload[a:b] for a, b in itertools.pairwise(edges)]
    data = b""
    for i, piece in enumerate(pieces):
        last = i == len(pieces) - 1
        data += frame(buildframes.MANIFEST | (0 if last else buildframes.MORE), 1, piece)
        data += frame(buildframes.FILES, 1, b"between")
    frames = Frames()
    got = [m for piece in cut(data, step) for m in frames.feed(piece)]
    assert [m for m in got if m[0] == buildframes.MANIFEST] == [(buildframes.MANIFEST, 1, payload)]
    assert len(got) == len(pieces) + 1


HEADERS = st.builds(
    lambda kind, stream, length: bytes([kind]) + stream.to_bytes(3, "big") + length.to_bytes(4, "big"),
    st.integers(0, 255),
    st.integers(0, 3),
    st.integers(0, 30) | st.integers(0, (1 << 32) - 1),
)


@given(st.lists(HEADERS | st.binary(max_size=40), max_size=20).map(b"".join), st.integers(1, 50))
def test_hostile_bytes(data: bytes, step: int) -> None:
    frames = Frames()
    out = 0
    try:
        for piece in cut(data, step):
            out += sum(len(payload) for _, _, payload in frames.feed(piece))
    except MalformedFrame:
        return
    assert out <= len(data)
