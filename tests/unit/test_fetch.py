"""Fetching one blob: ranges, cuts and retries; what is asked for is what is missing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from engine.errors import KnarrError, NotFound
from engine.registry import retry
from engine.registry.errors import Interrupted, ServerError, TooManyRequests, Unreachable
from engine.service import fetch as module
from engine.service.fetch import Fetcher
from engine.spec.image import Descriptor
from engine.store.ingest import BLOCK, Ingest
from tests.lib.fakeregistry import FakeRegistry, digest_of

DATA = random.Random(3).randbytes(6 * BLOCK + 100)
DIGEST = digest_of(DATA)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.001)


@pytest.fixture
def registry() -> FakeRegistry:
    made = FakeRegistry()
    made.blobs[DIGEST] = DATA
    return made


def fetched(registry: FakeRegistry, folder: Path, *, attempts: int = 3) -> int:
    """Fetch into an ingest that stays; how many bytes of it are there. Raises what the fetcher raises."""

    async def main() -> int:
        ingest = Ingest(str(folder), DIGEST, len(DATA))
        try:
            with trio.fail_after(60):
                await Fetcher(lambda: registry.remote(None), Descriptor(digest=DIGEST, size=len(DATA)), attempts)(ingest, lambda: None)  # type: ignore[arg-type]
            assert ingest.read(0, len(DATA)) == DATA
        finally:
            ingest.close()
            assert registry.open == 0
        return len(DATA)

    return trio.run(main)


def there(folder: Path) -> list[tuple[int, int]]:
    ingest = Ingest(str(folder), DIGEST, len(DATA))
    ingest.close()
    return ingest.missing(0)


@pytest.fixture(params=["one", "ranges"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small blobs come in one piece, large ones in ranges beside each other."""
    if request.param == "ranges":
        monkeypatch.setattr(module, "_LARGE", BLOCK)
        monkeypatch.setattr(module, "_RANGE", 3 * BLOCK // 2)
    return str(request.param)


@pytest.mark.parametrize("ranges", [True, False])
def test_all_of_it_comes(registry: FakeRegistry, tmp_path: Path, way: str, ranges: bool) -> None:
    registry.ranges = ranges
    assert fetched(registry, tmp_path)
    if ranges or way == "one":
        assert registry.sent[DIGEST] == len(DATA)
    before = registry.sent[DIGEST]
    assert fetched(registry, tmp_path)
    assert registry.sent[DIGEST] == before


def test_after_a_cut_the_rest_is_asked_for(registry: FakeRegistry, tmp_path: Path, way: str) -> None:
    cuts = {400_000, 2_000_000, 2_500_000, 5_000_000}

    async def cut(digest: str, place: int) -> None:
        await trio.lowlevel.checkpoint()
        for at in [at for at in cuts if at <= place < at + 200_000]:
            cuts.remove(at)
            raise Interrupted("cut")

    registry.disturb = cut
    assert fetched(registry, tmp_path)
    assert not cuts
    assert registry.sent[DIGEST] == len(DATA)


@pytest.mark.parametrize(
    ("error", "most"),
    [(Interrupted("x"), 3), (ServerError("x"), 3), (Unreachable("x"), 3), (Unreachable("x", final=True), 1), (NotFound("x"), 1),
     (TooManyRequests("x", after=3600), 1), (KnarrError("x"), 1)],
)  # fmt: skip
def test_how_often_it_tries(registry: FakeRegistry, tmp_path: Path, error: KnarrError, most: int) -> None:
    tries = 0

    async def fail(digest: str, place: int) -> None:
        nonlocal tries
        tries += 1
        raise error

    registry.disturb = fail
    with pytest.raises(type(error)):
        fetched(registry, tmp_path)
    assert tries == most


def test_a_piece_that_came_begins_the_count_again(registry: FakeRegistry, tmp_path: Path) -> None:
    served = 0

    async def drip(digest: str, place: int) -> None:
        nonlocal served
        served += 1
        if served % 2:
            raise Interrupted("cut")

    registry.disturb = drip
    assert fetched(registry, tmp_path, attempts=2)
    assert registry.sent[DIGEST] == len(DATA)


def test_what_came_stays_when_it_is_given_up(registry: FakeRegistry, tmp_path: Path, way: str) -> None:
    """Finished blocks are there afterwards, those behind a gap too, and only the others are fetched then."""

    async def stop(digest: str, place: int) -> None:
        await trio.lowlevel.checkpoint()
        if registry.sent[DIGEST] > 4 * BLOCK:
            raise NotFound("gone")

    registry.disturb = stop
    with pytest.raises(NotFound):
        fetched(registry, tmp_path)
    missing = there(tmp_path)
    lost = sum(end - start for start, end in missing) - (len(DATA) - registry.sent[DIGEST])
    assert 0 <= lost < (1 if way == "one" else 2 * 3) * BLOCK  # a range may lose a block at its beginning and one at its end
    registry.disturb = FakeRegistry._calm
    before = registry.sent[DIGEST]
    assert fetched(registry, tmp_path)
    assert registry.sent[DIGEST] - before == sum(end - start for start, end in missing)


def test_a_cancelled_one_keeps_what_it_had(registry: FakeRegistry, tmp_path: Path) -> None:
    async def main() -> None:
        ingest = Ingest(str(tmp_path), DIGEST, len(DATA))
        with trio.CancelScope() as scope:

            async def stop(digest: str, place: int) -> None:
                if place > 2 * BLOCK + BLOCK // 2:
                    scope.cancel()
                await trio.lowlevel.checkpoint()

            registry.disturb = stop
            await Fetcher(lambda: registry.remote(None), Descriptor(digest=DIGEST, size=len(DATA)), 3)(ingest, lambda: None)  # type: ignore[arg-type]
        assert scope.cancelled_caught
        assert ingest.offset == registry.sent[DIGEST]
        ingest.close()

    trio.run(main)
    assert registry.open == 0
    assert there(tmp_path) == [(registry.sent[DIGEST], len(DATA))]


def test_slow_links_are_seen_to_move(registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SECONDS", 0.0)
    registry.piece = 4096
    seen: list[int] = []

    async def main() -> None:
        ingest = Ingest(str(tmp_path), DIGEST, len(DATA))
        with trio.move_on_after(60) as scope:

            def grown() -> None:
                seen.append(ingest.offset)
                if len(seen) == 5:
                    scope.cancel()

            await Fetcher(lambda: registry.remote(None), Descriptor(digest=DIGEST, size=len(DATA)), 3)(ingest, grown)  # type: ignore[arg-type]
        ingest.close()

    trio.run(main)
    assert seen[:5] == [4096, 8192, 12288, 16384, 20480]
