"""Calls in BuildKit's protocol are answered with an error that a gRPC client shows."""

from __future__ import annotations

from struct import pack, unpack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.wire.grpcrefusal import PREFACE, Malformed, Refusal

DATA, HEADERS, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 4, 6, 7, 8, 9


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return pack(">I", len(payload))[1:] + pack(">BBI", kind, flags, stream) + payload


def frames(data: bytes) -> list[tuple[int, int, int, bytes]]:
    found = []
    while data:
        length = int.from_bytes(data[:3], "big")
        kind, flags, stream = unpack(">BBI", data[3:9])
        found.append((kind, flags, stream, data[9 : 9 + length]))
        data = data[9 + length :]
    return found


def fields(block: bytes) -> list[tuple[str, str]]:
    """Header fields that are literal, after the status."""
    assert block[:1] == b"\x88"
    block, found = block[1:], []

    def text() -> str:
        nonlocal block
        length, used = block[0], 1
        if length == 127:
            shift = 0
            while True:
                length += (block[used] & 127) << shift
                shift, used = shift + 7, used + 1
                if block[used - 1] < 128:
                    break
        value, block = block[used : used + length], block[used + length :]
        return value.decode()

    while block:
        assert block[0] == 0
        block = block[1:]
        found.append((text(), text()))
    return found


CALL = PREFACE + frame(SETTINGS) + frame(WINDOW, 0, 0, b"\0\0\1\0") + frame(HEADERS, 4, 1, b"\x83\x86") + frame(DATA, 1, 1, b"\0\0\0\0\0")


def test_a_call_gets_an_error_and_its_text() -> None:
    told = frames(Refusal("not here: 50 % ürgently\nand on").feed(CALL))
    assert [one[:3] for one in told] == [(SETTINGS, 0, 0), (SETTINGS, 1, 0), (HEADERS, 5, 1)]
    assert fields(told[2][3]) == [
        ("content-type", "application/grpc"), ("grpc-status", "12"), ("grpc-message", "not here: 50 %25 %C3%BCrgently%0Aand on")
    ]  # fmt: skip


@pytest.mark.parametrize("length", [0, 126, 127, 128, 254, 255, 300, 9000])
def test_texts_of_any_length(length: int) -> None:
    assert fields(frames(Refusal("x" * length).feed(CALL))[2][3])[2] == ("grpc-message", "x" * length)


def test_headers_may_come_in_several_frames() -> None:
    refusal = Refusal("no")
    refusal.feed(PREFACE)
    assert refusal.feed(frame(HEADERS, 0, 3, b"\x83")) == b""
    assert [one[:3] for one in frames(refusal.feed(frame(CONTINUATION, 4, 3, b"\x86")))] == [(HEADERS, 5, 3)]


def test_pings_are_answered_and_a_goodbye_is_the_end() -> None:
    refusal = Refusal("no")
    refusal.feed(PREFACE)
    assert refusal.feed(frame(PING, 0, 0, b"12345678")) == frame(PING, 1, 0, b"12345678")
    assert refusal.feed(frame(PING, 1, 0, b"12345678") + frame(SETTINGS, 1)) == b"" and not refusal.closed
    assert refusal.feed(frame(GOAWAY, 0, 0, bytes(8)) + frame(PING, 0, 0, bytes(8))) == b"" and refusal.closed


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", b"PRX", PREFACE + b"\xff\xff\xff\0\0\0\0\0\0"])
def test_what_is_not_the_protocol(data: bytes) -> None:
    with pytest.raises(Malformed):
        Refusal("no").feed(data)


@given(st.lists(st.integers(0, len(CALL)), max_size=6))
def test_pieces_do_not_matter(cuts: list[int]) -> None:
    refusal, at, told = Refusal("no"), 0, b""
    for cut in [*sorted(cuts), len(CALL)]:
        told += refusal.feed(CALL[at:cut])
        at = cut
    assert told == Refusal("no").feed(CALL)


@given(st.binary(max_size=300))
def test_any_bytes_are_answered_or_refused(data: bytes) -> None:
    try:
        frames(Refusal("no").feed(PREFACE + data))
    except Malformed:
        pass
