"""Handoff: whoever goes first, in whatever order, nobody waits for one that is gone and nothing is lost before that."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.aio.handoff import Closed, Handoff


def beside(*steps: Callable[[], object]) -> None:
    """Run steps in threads of their own; fails when one of them does not end."""
    threads = [threading.Thread(target=step, daemon=True) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "it waits for ever"


@settings(max_examples=60, deadline=None)
@given(
    room=st.integers(1, 4), pieces=st.lists(st.binary(min_size=1, max_size=3), max_size=20),
    stop=st.one_of(st.none(), st.integers(0, 20)), fail=st.booleans(),
)  # fmt: skip
def test_pieces_arrive_in_order_until_one_side_goes(room: int, pieces: list[bytes], stop: int | None, fail: bool) -> None:
    handoff = Handoff(room)
    got: list[bytes] = []
    ends: list[object] = []
    ahead: list[int] = []

    def give() -> None:
        try:
            for number, piece in enumerate(pieces):
                handoff.put(piece)
                ahead.append(number + 1 - len(got))
            handoff.end(KeyError("broken") if fail else None)
        except Closed:
            ends.append("unwanted")

    def take() -> None:
        try:
            while len(got) != stop and (piece := handoff.get()):
                got.append(piece)
        except KeyError:
            ends.append("failed")
        finally:
            handoff.close()

    beside(give, take)
    assert got == (pieces if stop is None else pieces[:stop])
    assert max(ahead, default=0) <= room + 1  # one may be on its way out
    if stop is None:
        assert ends == (["failed"] if fail else [])


def test_the_end_stays_the_end() -> None:
    handoff = Handoff(2)
    handoff.put(b"a")
    handoff.end()
    handoff.end(Closed())  # whoever cleans up does not know whether it was ended
    assert [handoff.get(), handoff.get(), handoff.get()] == [b"a", b"", b""]


def test_who_waits_is_woken() -> None:
    full, empty = Handoff(1), Handoff(1)
    full.put(b"a")

    def put() -> None:
        with pytest.raises(Closed):
            full.put(b"b")

    def get() -> None:
        with pytest.raises(Closed):
            empty.get()

    beside(put, get, full.close, lambda: empty.end(Closed()))
