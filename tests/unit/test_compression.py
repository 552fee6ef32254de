"""Compressed streams: every format, in any pieces, damaged or cut off, and never more than a piece at a time."""

from __future__ import annotations

import bz2
import gzip
import itertools
import lzma
import random
import tracemalloc

import pytest
import zstandard

from engine.wire.compression import PIECE, CompressionError, GzipWriter, decompressed, detect
from tests.lib.stores import source

DATA = random.Random(1).randbytes(100_000) + b"text " * 50_000
SKIPPABLE = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
FORMS = {
    "gzip": gzip.compress(DATA),
    "gzip members": gzip.compress(DATA[:1000]) + gzip.compress(DATA[1000:]) + bytes(100),
    "zstd": zstandard.compress(DATA),
    "zstd frames": zstandard.compress(DATA[:1000]) + SKIPPABLE + zstandard.ZstdCompressor(write_checksum=True).compress(DATA[1000:]),
    "zstd skippable first": SKIPPABLE + zstandard.compress(DATA),
    "bzip2": bz2.compress(DATA),
    "xz": lzma.compress(DATA),
    "": DATA,
}


def drain(data: bytes) -> None:
    _, pull = decompressed(source(data))
    while pull():
        pass


@pytest.mark.parametrize(("form", "step"), [*itertools.product(FORMS, (7, 1000, 1 << 20)), ("gzip members", 1), ("zstd frames", 1)])
def test_every_form(form: str, step: int) -> None:
    name, pull = decompressed(source(FORMS[form], step))
    assert name == form.partition(" ")[0]
    assert b"".join(iter(pull, b"")) == DATA
    assert pull() == b""


@pytest.mark.parametrize("form", [form for form in FORMS if form])
def test_cut_off(form: str) -> None:
    whole = FORMS[form].rstrip(b"\0")
    for cut in (5, 100, len(whole) // 2):
        with pytest.raises(CompressionError, match=r"cut off|damaged"):
            drain(whole[:-cut])


@pytest.mark.parametrize("form", ["gzip", "bzip2", "xz", "zstd"])
def test_garbage_behind(form: str) -> None:
    with pytest.raises(CompressionError):
        drain(FORMS[form] + b"garbage")


def test_bombs_come_out_in_pieces() -> None:
    zeros = zstandard.ZstdCompressor(write_content_size=False)
    bombs = [gzip.compress(bytes(64 << 20)), b"".join(zeros.compress(bytes(64 << 20)) for _ in range(2))]
    for bomb in bombs:
        tracemalloc.start()
        _, pull = decompressed(source(bomb))
        total = 0
        while piece := pull():
            assert len(piece) <= PIECE
            total += len(piece)
        assert total in (64 << 20, 128 << 20)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
        tracemalloc.stop()


def test_detect() -> None:
    assert [detect(data) for data in (b"", b"\x1f", b"\x1f\x8b", b"BZh9", b"hello", b"\x5f\x2a\x4d\x18")] == [
        "",
        "",
        "gzip",
        "bzip2",
        "",
        "zstd",
    ]


def test_the_writer_is_reproducible() -> None:
    def pack(step: int) -> bytes:
        out: list[bytes] = []
        writer = GzipWriter(out.append)
        for start in range(0, len(DATA), step):
            writer.write(DATA[start : start + step])
        writer.finish()
        return b"".join(out)

    assert gzip.decompress(pack(1 << 18)) == DATA
    assert pack(1 << 18) == pack(1 << 18)
