"""Snapshots: names, mounts, what needs what, and what a restart finds."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import Conflict, InvalidParameter, NotFound
from engine.spec.mount import Mount
from engine.store.snapshots import Snapshots
from tests.lib.stores import Stores, open_stores


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    with open_stores(tmp_path) as opened:
        yield opened


def add(snapshots: Snapshots, chain: str, parent: str, files: dict[str, str]) -> None:
    folder = snapshots.begin()
    for name, text in files.items():
        Path(folder, "fs", name).write_text(text)
    snapshots.sync_files(folder)
    snapshots.commit(folder, chain, parent, 10, len(files))


def mounted(mount: Mount, target: Path) -> dict[str, str]:
    """What a mount shows; writes `new` when it can be written to."""
    target.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", mount.type, mount.source, "-o", ",".join(mount.options), target], cwd=mount.base, check=True)
    try:
        found = {name: (target / name).read_text() for name in sorted(os.listdir(target)) if (target / name).is_file()}
        if any(option.startswith("upperdir=") for option in mount.options):
            (target / "new").write_text("new")
        return found
    finally:
        subprocess.run(["umount", target], check=True)


def test_layers_merge_and_writes_stay_in_the_active_one(stores: Stores, tmp_path: Path) -> None:
    snapshots = stores.snapshots
    add(snapshots, "one", "", {"a": "1", "b": "1"})
    add(snapshots, "two", "one", {"b": "2"})
    mount = snapshots.prepare("container", "two")
    assert mount == snapshots.mount("container")
    assert mounted(mount, tmp_path / "mnt") == {"a": "1", "b": "2"}
    assert mounted(mount, tmp_path / "mnt") == {"a": "1", "b": "2", "new": "new"}
    assert mounted(snapshots.view("two"), tmp_path / "mnt") == {"a": "1", "b": "2"}
    assert mounted(snapshots.view("one"), tmp_path / "mnt") == {"a": "1", "b": "1"}
    assert os.listdir(snapshots.upper("container")) == ["new"]
    assert [os.path.basename(os.path.dirname(path)) for path in snapshots.lowers("two")] == ["2", "1"]
    assert snapshots.parent("container") == "two"
    assert snapshots.usage("two") == (10, 1)
    assert snapshots.usage("container")[1] == 1
    assert snapshots.chain_size("two") == 20


def test_without_layers(stores: Stores, tmp_path: Path) -> None:
    assert mounted(stores.snapshots.prepare("c", None), tmp_path / "mnt") == {}
    assert stores.snapshots.lowers("") == ()


def test_volatile(stores: Stores) -> None:
    assert "volatile" in stores.snapshots.prepare("c", None, volatile=True).options
    assert "volatile" not in stores.snapshots.mount("c").options


def test_who_needs_whom(stores: Stores) -> None:
    snapshots = stores.snapshots
    with pytest.raises(NotFound):
        snapshots.prepare("c", "one")
    add(snapshots, "one", "", {})
    snapshots.prepare("c", "one")
    with pytest.raises(Conflict):
        snapshots.prepare("c", "one")
    with pytest.raises(Conflict):
        add(snapshots, "one", "", {})
    with pytest.raises(Conflict, match="other snapshots need it"):
        snapshots.forget("one")
    with pytest.raises(NotFound):
        snapshots.prepare("d", "c")
    assert snapshots.collect([]) == []
    snapshots.delete_files(snapshots.forget("c"))
    assert not snapshots.has("c")
    for method in (snapshots.mount, snapshots.upper, snapshots.parent, snapshots.usage, snapshots.forget):
        with pytest.raises(NotFound):
            method("c")
    add(snapshots, "two", "one", {})
    add(snapshots, "other", "", {})
    folders = snapshots.collect(["other"])
    assert len(folders) == 2
    assert snapshots.chains() == ["other"]
    for folder in folders:
        snapshots.delete_files(folder)


def test_a_rolled_back_transaction(stores: Stores) -> None:
    snapshots = stores.snapshots

    def fail() -> None:
        with stores.db.transaction() as cursor:
            snapshots.prepare("c", None, cursor)
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    snapshots.abandon("c")
    assert not snapshots.has("c")
    snapshots.prepare("c", None)


def folders(stores: Stores) -> list[str]:
    """The numbered ones."""
    return sorted(name for name in os.listdir(stores.layout.snapshots) if name.isdecimal())


def test_the_pool(stores: Stores) -> None:
    snapshots = stores.snapshots
    snapshots.refill(3)
    ahead = folders(stores)
    assert len(ahead) == 3
    snapshots.prepare("c", None)
    assert os.listdir(snapshots.upper("c")) == []
    assert folders(stores) == ahead
    snapshots.refill(3)
    assert len(folders(stores)) == 4


def test_restart_keeps_rows_and_sweeps_the_rest(tmp_path: Path) -> None:
    with open_stores(tmp_path) as stores:
        snapshots = stores.snapshots
        add(snapshots, "one", "", {"a": "1"})
        snapshots.prepare("c", "one")
        snapshots.refill(2)
        unfinished = snapshots.begin()
        Path(unfinished, "fs", "half").write_text("x")
        gone = snapshots.forget(snapshots.prepare("d", "one") and "d")
        Path(stores.layout.snapshots, "strange").mkdir()
    with open_stores(tmp_path) as stores:
        snapshots = stores.snapshots
        assert (snapshots.chains(), snapshots.keys()) == (["one"], ["c"])
        fresh = snapshots.begin()
        swept = snapshots.sweep()
        assert {unfinished, gone, f"{stores.layout.snapshots}/strange"} <= set(swept)
        assert os.path.isdir(fresh)
        assert os.path.isdir(snapshots.upper("c"))
        assert Path(snapshots.upper("one"), "a").read_text() == "1"
        snapshots.discard(fresh)
        assert len(folders(stores)) == 2


def test_many_layers_fit_one_page(stores: Stores, tmp_path: Path) -> None:
    snapshots = stores.snapshots
    for number in range(128):
        add(snapshots, str(number), str(number - 1) if number else "", {f"f{number}": ""})
    mount = snapshots.prepare("c", "127")
    assert len(mounted(mount, tmp_path / "mnt")) == 128
    add(snapshots, "128", "127", {})
    with pytest.raises(InvalidParameter, match="129 layers"):
        snapshots.prepare("d", "128")
