"""What a build does in worker threads ends soon after it is cancelled, and nothing of it stays: squashed layers, cache mounts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from builder.files import filecopy, layering, squash
from builder.graph import Mount
from builder.solving import mounting
from builder.solving.cachemounts import CacheMount, CacheMounts
from builder.solving.worker import stopping
from builder.tree import Tree
from engine.store import view
from engine.store.snapshots import Snapshot
from engine.store.trees import usage
from tests.lib.stores import Stores, open_stores

FILES = 20

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and whiteouts need root")


class Enough(Exception):
    pass


def after(count: int) -> Callable[[], None]:
    """A look that finds the work cancelled at the `count`th time."""
    left = iter(range(count - 1))

    def check() -> None:
        if next(left, None) is None:
            raise Enough

    return check


def tree(folder: Path) -> Path:
    for number in range(FILES):
        (folder / f"d{number % 3}").mkdir(parents=True, exist_ok=True)
        (folder / f"d{number % 3}" / f"f{number}").write_bytes(b"x" * 10_000)
    return folder


def files(folder: str | Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def test_merging_looks_between_files(tmp_path: Path) -> None:
    source, target = tree(tmp_path / "source"), tmp_path / "target"
    target.mkdir()
    with pytest.raises(Enough):
        squash.merge([str(source)], str(target), check=after(8))
    assert 0 < files(target) < 8
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(filecopy.Stopped):
        layering.stack(str(source), (), str(other), stop=lambda: files(other) > 4)
    assert files(other) == 5


def test_filling_looks_between_files_and_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tree(tmp_path / "source")
    for count in (1, 8, 15):
        target = tmp_path / f"target{count}"
        target.mkdir()
        with pytest.raises(Enough):
            mounting.fill_cache(Mount(kind="cache", target="/c", source="/"), Tree(layers=(str(source),)), after(count), str(target))
        assert files(target) < count
    monkeypatch.setattr(view, "_PIECE", 1000)
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "file").write_bytes(b"x" * 10_000)
    target = tmp_path / "part"
    target.mkdir()
    with pytest.raises(Enough):
        mounting.fill_cache(Mount(kind="cache", target="/c", source="/"), Tree(layers=(str(tmp_path / "large"),)), after(5), str(target))
    assert 0 < (target / "file").stat().st_size < 10_000


def test_measuring_looks_now_and_then(tmp_path: Path) -> None:
    for number in range(2001):
        (tmp_path / f"f{number}").touch()
    with pytest.raises(Enough):
        usage(str(tmp_path), after(2))
    assert usage(str(tmp_path), after(3))[1] == 2001


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    with open_stores(tmp_path) as opened:
        yield opened


def layer(stores: Stores, name: str) -> Snapshot:
    path = stores.snapshots.begin()
    tree(Path(path) / "fs")
    return stores.snapshots.commit(path, name, "", 4096, FILES)


def test_a_cancelled_squash_leaves_nothing(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    row = layer(stores, "build:1")
    before = set(os.listdir(stores.layout.snapshots)), {row.name for row in stores.snapshots.rows()}
    link, linked, pinned = os.link, list[Any](), list[Any]()

    async def main() -> None:
        with trio.CancelScope() as scope:

            def counted(*words: Any, **more: Any) -> None:
                linked.append(words)
                if len(linked) == 5:
                    trio.from_thread.run_sync(scope.cancel)
                link(*words, **more)

            monkeypatch.setattr(os, "link", counted)
            await squash.squash(stores.snapshots, [row], pinned.append)
        assert scope.cancelled_caught

    trio.run(main)
    assert len(linked) == 5 and not pinned
    assert (set(os.listdir(stores.layout.snapshots)), {row.name for row in stores.snapshots.rows()}) == before


def use(mounts: CacheMounts, fill: Callable[[str], object] | None, sharing: str = "shared") -> Any:
    return mounts.use("key", "a mount", sharing, 0o755, 0, 0, fill)


def test_a_cancelled_filling_leaves_nothing_and_who_waits_fills_again(tmp_path: Path) -> None:
    source, folder = tree(tmp_path / "source"), tmp_path / "mounts"
    mounts = CacheMounts(str(folder))
    began, found = trio.Event(), list[CacheMount]()

    def fill(target: str) -> None:
        mounting.fill_cache(Mount(kind="cache", target="/c", source="/"), Tree(layers=(str(source),)), stopping, target)

    async def first(scope: trio.CancelScope) -> None:
        def part(target: str) -> None:
            (Path(target) / "part").touch()
            trio.from_thread.run_sync(began.set)
            trio.from_thread.run_sync(scope.cancel)
            fill(target)

        with scope:
            async with use(mounts, part):
                raise AssertionError("it was filled")
        assert scope.cancelled_caught

    async def second() -> None:
        await began.wait()
        async with use(mounts, fill) as mount:
            found.append(mount)
            assert files(mount.data) == FILES and not os.path.exists(f"{mount.data}/part")

    async def main() -> None:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(first, trio.CancelScope())
                nursery.start_soon(second)

    trio.run(main)
    assert os.listdir(folder) == [os.path.basename(found[0].path)]
    assert mounts.all() == found


def test_what_was_half_filled_when_the_daemon_was_killed_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "mounts"
    mounts, seen = CacheMounts(str(folder)), list[CacheMounts]()

    def fill(target: str) -> None:
        (Path(target) / "part").touch()
        seen.append(CacheMounts(str(folder)))  # what a daemon would find that starts after a crash now

    async def main() -> None:
        async with use(mounts, fill) as mount:
            assert [one.path for one in CacheMounts(str(folder)).all()] == [mount.path]
        (after_crash,) = seen
        assert not after_crash.all() and after_crash.leftovers == [mount.path]
        await after_crash.sweep()
        assert not os.listdir(folder)

    trio.run(main)
