"""Ingests: parts in any order, a crash at any point, damage of any kind; what counts as there afterwards is right, and little is lost."""

from __future__ import annotations

import errno
import os
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvalidParameter
from engine.spec.digest import sha256
from engine.store import ingest as module
from engine.store.ingest import BLOCK, SUMS, Ingest

_DATA = random.Random(7).randbytes(5 * BLOCK)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path)


parts = st.lists(st.tuples(st.integers(0, 260), st.integers(0, 90)), max_size=25)


def right(ingest: Ingest, data: bytes) -> None:
    """What it says is there, is."""
    raw = Path(ingest.path).read_bytes()
    gaps = ingest.missing(0)
    place = 0
    for start, end in [*gaps, (len(data), len(data))]:
        assert raw[place:start] == data[place:start]
        assert place <= start <= end
        place = end
    assert ingest.offset == (gaps[0][0] if gaps else len(data))
    assert ingest.complete == (not gaps)


@settings(max_examples=120, deadline=None)
@given(
    size=st.integers(0, 260),
    first=parts,
    again=parts,
    crash=st.booleans(),
    harm=st.lists(st.tuples(st.booleans(), st.integers(0, 300)), max_size=4),
)
def test_any_order_any_crash_any_damage(
    size: int, first: list[tuple[int, int]], again: list[tuple[int, int]], harm: list[tuple[bool, int]], crash: bool
) -> None:  # fmt: skip
    block, module.BLOCK = module.BLOCK, 16
    try:
        with tempfile.TemporaryDirectory() as folder:
            data = _DATA[:size]
            digest = sha256(data)
            written: set[int] = set()

            def write(ingest: Ingest, wanted: list[tuple[int, int]]) -> None:
                for at, length in wanted:
                    piece = data[at : at + length]
                    if at <= size:
                        assert ingest.write(at, [piece[:5], piece[5:]]) == ingest.offset
                        written.update(range(at, at + len(piece)))
                    right(ingest, data)

            ingest = Ingest(folder, digest, size)
            write(ingest, first)
            assert {n for start, end in ingest.missing(7) for n in range(start, end)} == set(range(size)) - written
            ended = {end for _, end in ingest._parts}
            if crash:
                for fd in (ingest._fd, ingest._sums):
                    os.close(fd)
            else:
                ingest.close()
            harmed = False
            for sums, at in harm:
                path = ingest.path + (SUMS if sums else "")
                raw = bytearray(Path(path).read_bytes())
                if at < len(raw):
                    raw[at] ^= 0x55
                    harmed = True
                    Path(path).write_bytes(raw)
            ingest = Ingest(folder, digest, size)
            right(ingest, data)
            if not harmed:  # whole blocks are never lost
                blocks = {n for n in written if set(range(n // 16 * 16, min(n // 16 * 16 + 16, size))) <= written}
                last = max(ended, default=0) // 16 * 16
                if not crash and set(range(last, max(ended, default=0))) <= written:  # nor what was begun, at a proper end
                    blocks |= set(range(last, max(ended, default=0)))
                assert blocks == set(range(size)) - {n for start, end in ingest.missing(0) for n in range(start, end)}
            write(ingest, again)
            for start, end in ingest.missing(11):
                assert end - start <= 11
                ingest.write(start, [data[start:end]])
            right(ingest, data)
            assert ingest.complete
            assert ingest.read(0, size + 5) == data
            ingest.remove()
            assert os.listdir(folder) == []
    finally:
        module.BLOCK = block


def test_a_part_behind_a_gap_outlives_a_restart(folder: str) -> None:
    digest = sha256(_DATA)
    ingest = Ingest(folder, digest, len(_DATA))
    ingest.write(3 * BLOCK, [_DATA[3 * BLOCK :]])
    ingest.write(0, [_DATA[: BLOCK + 10]])
    ingest.close()
    again = Ingest(folder, digest, len(_DATA))
    assert (again.offset, again.resumed) == (BLOCK, 3 * BLOCK)
    assert again.missing(0) == [(BLOCK, 3 * BLOCK)]
    assert again.write(BLOCK, [_DATA[BLOCK : 3 * BLOCK]]) == len(_DATA)
    again.close()


def test_zeros_of_a_power_cut_do_not_count(folder: str) -> None:
    """A file may be as long as it was and hold nothing; so may the sums."""
    digest = sha256(_DATA)
    ingest = Ingest(folder, digest, len(_DATA))
    ingest.write(0, [_DATA])
    ingest.close()
    Path(ingest.path).write_bytes(bytes(len(_DATA)))
    Path(ingest.path + SUMS).write_bytes(bytes(20))
    again = Ingest(folder, digest, len(_DATA))
    assert (again.offset, again.resumed) == (0, 0)
    again.close()


def test_another_size_takes_only_what_is_sure(folder: str) -> None:
    digest = sha256(_DATA)
    ingest = Ingest(folder, digest, len(_DATA))
    ingest.write(0, [_DATA])
    ingest.close()
    lied = Ingest(folder, digest, 2 * BLOCK + 7)
    assert lied.offset == 2 * BLOCK
    with pytest.raises(InvalidParameter, match="more than"):
        lied.write(2 * BLOCK, [b"12345678"])
    lied.close()


def test_restart_forgets(folder: str) -> None:
    ingest = Ingest(folder, sha256(_DATA), len(_DATA))
    ingest.write(0, [_DATA])
    ingest.restart()
    assert (ingest.offset, ingest.missing(0)) == (0, [(0, len(_DATA))])
    ingest.close()
    again = Ingest(folder, sha256(_DATA), len(_DATA))
    assert again.offset == 0
    again.close()


def test_a_full_disk_is_told_and_what_was_there_stays(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest = Ingest(folder, sha256(_DATA), len(_DATA))
    ingest.write(0, [_DATA[:BLOCK]])

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", full)
        with pytest.raises(OSError, match="No space"):
            ingest.write(BLOCK, [_DATA[BLOCK : 2 * BLOCK]])
    right(ingest, _DATA)
    assert ingest.offset == BLOCK
    ingest.close()


def test_short_writes_are_finished(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest = Ingest(folder, sha256(_DATA), len(_DATA))
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, pieces, at: real(fd, [bytes(pieces[0])[:3]], at))
    assert ingest.write(0, [_DATA[:100], _DATA[100:200]]) == 200
    assert ingest.read(0, 200) == _DATA[:200]
    ingest.close()
