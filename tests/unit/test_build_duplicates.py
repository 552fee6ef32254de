"""Layers that a build made although they were there: one of the two goes, the result stays, and a crash at any place loses neither."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from builder.solving.duplicates import unite
from engine.spec.digest import chain_of
from engine.store.buildcache import BuildCache
from engine.store.snapshots import PROVISIONAL, Snapshot
from tests.lib.stores import Stores, open_stores

BASE, DIFF, UPPER = (f"sha256:{digit * 64}" for digit in "abc")
CHAIN = chain_of(BASE, DIFF)


class Crash(Exception):
    pass


class Bench:
    def __init__(self, stores: Stores) -> None:
        self.stores = stores
        self.snapshots = stores.snapshots
        self.cache = BuildCache(stores.db, stores.snapshots)

    def layer(self, name: str, parent: str = "", diff_id: str = "") -> Snapshot:
        path = self.snapshots.begin()
        (Path(path) / "fs" / "file").write_text(diff_id or name)
        row = self.snapshots.commit(path, name, parent, 4096, 1, synced=not name.startswith(PROVISIONAL))
        self.snapshots.synced([row])
        if diff_id:
            self.snapshots.set_packed(row, diff_id, 512)
        return row

    def read(self, key: str) -> str:
        """What a build that finds the result sees."""
        found = self.cache.find(key)
        assert found is not None and self.snapshots.is_current(found.row), key
        return Path(self.snapshots.upper(found.row.name), "file").read_text()

    def twice(self) -> tuple[Snapshot, Snapshot]:
        """An image's layer, the same one once more as the result of a step, and one that was built on that."""
        self.layer(BASE)
        image = self.layer(CHAIN, BASE)
        row = self.layer(f"{PROVISIONAL}1", BASE, DIFF)
        self.cache.put(["step", "by content"], row, "RUN step", id="id-of-step")
        upper = self.layer(f"{PROVISIONAL}2", row.name, UPPER)
        self.cache.put(["upper"], upper, "RUN upper")
        return image, row

    def unite(self, *pinned: str) -> int:
        return unite(self.cache, self.snapshots, pinned)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with open_stores(tmp_path) as stores:
        yield Bench(stores)


def reopened(root: Path, check: Callable[[Bench], None]) -> None:
    with open_stores(root) as stores:
        check(Bench(stores))


def numbers(bench: Bench) -> set[int]:
    return {row.number for row in bench.snapshots.rows()}


def test_the_result_becomes_the_layer_that_was_there(bench: Bench, tmp_path: Path) -> None:
    image, row = bench.twice()
    assert bench.unite() == 1
    found = bench.cache.find("step")
    assert found is not None and found.row is image and found.id == "id-of-step" and bench.cache.find("by content") is found
    assert bench.cache.of(row) is None and image.cached and image.diff_id == DIFF
    upper = bench.cache.find("upper")
    assert upper is not None and upper.row.parent == CHAIN
    assert bench.unite() == 0
    gone = bench.snapshots.collect([])
    assert gone == [f"{bench.stores.layout.snapshots}/{row.number}"]

    def check(again: Bench) -> None:
        assert (again.read("step"), again.read("by content"), again.read("upper")) == (CHAIN, CHAIN, UPPER)

    check(bench)
    reopened(tmp_path, check)


def test_what_lies_on_a_duplicate_may_be_one_too(bench: Bench) -> None:
    bench.twice()
    top = bench.layer(chain_of(CHAIN, UPPER), CHAIN)
    assert bench.unite() == 2
    found = bench.cache.find("upper")
    assert found is not None and found.row is top
    assert len(bench.snapshots.collect([])) == 2


def test_what_somebody_uses_stays(bench: Bench) -> None:
    _, row = bench.twice()
    assert bench.unite(row.name) == 0
    bench.snapshots.prepare("running", row.name)
    assert bench.unite() == 0
    bench.snapshots.forget("running")
    bench.snapshots.set_damaged(CHAIN, "a test")
    assert bench.unite() == 0
    assert not bench.snapshots.collect([CHAIN])


@pytest.mark.parametrize("later", ["step", "other"])
def test_of_two_results_the_one_that_was_used_last_is_found_for_both(bench: Bench, tmp_path: Path, later: str) -> None:
    image, row = bench.twice()
    bench.cache.put(["other"], image, "RUN other", id="id-of-other")
    found = bench.cache.find(later)
    assert found is not None
    bench.cache.touch(found)
    bench.cache.write_use(bench.cache.results())
    assert bench.unite() == 1 and bench.cache.of(row) is None

    def check(again: Bench) -> None:
        results = [again.cache.find(key) for key in ("step", "by content", "other")]
        assert all(one is not None and one.id == f"id-of-{later}" and one.row.name == CHAIN for one in results)
        assert len(again.cache.results()) == 2 and again.read("upper") == UPPER

    check(bench)
    reopened(tmp_path, check)


def test_of_two_results_of_one_step_the_last_one_stays(bench: Bench, tmp_path: Path) -> None:
    """`--no-cache`: what was found before is found no more."""
    image, row = bench.twice()
    bench.cache.put(["old"], image, "RUN step")
    bench.cache.alias(["old"], bench.cache.of(row))  # type: ignore[arg-type]
    assert bench.unite() == 1
    found = bench.cache.find("old")
    assert found is not None and found.row is image and found.id == "id-of-step" and len(bench.cache.results()) == 2
    later = bench.layer(f"{PROVISIONAL}3", BASE, DIFF)
    bench.cache.put(["forgotten"], later, "RUN step")
    bench.cache.alias(["forgotten"], found)
    assert bench.unite() == 1 and bench.cache.of(later) is None
    assert bench.cache.find("forgotten") is found
    assert {one.split("/")[-1] for one in bench.snapshots.collect([])} == {str(row.number), str(later.number)}
    reopened(tmp_path, lambda again: None if len(again.cache.results()) == 2 else pytest.fail("results"))


def test_any_transaction_may_be_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for last in range(10):
        root = tmp_path / str(last)
        root.mkdir()
        ended = False
        with open_stores(root) as stores:
            bench = Bench(stores)
            bench.twice()
            transaction, left = stores.db.transaction, iter(range(last))

            def limited() -> object:
                if next(left, None) is None:  # noqa: B023
                    raise Crash
                return transaction()  # noqa: B023

            with monkeypatch.context() as patch:
                patch.setattr(stores.db, "transaction", limited)
                try:
                    bench.unite()
                    ended = True
                except Crash:
                    pass

        def check(again: Bench) -> None:
            assert (again.read("upper"), len(again.cache.results())) == (UPPER, 2)
            assert again.read("step") in (DIFF, CHAIN) and again.read("step") == again.read("by content")
            again.unite()
            again.snapshots.collect([])
            assert again.read("step") == CHAIN and len(numbers(again)) == 3

        reopened(root, check)
        if ended:
            assert last > 2
            return
    raise AssertionError("it never ended")
