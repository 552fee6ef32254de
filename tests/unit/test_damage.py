"""Snapshots that are damaged and replaced, the mark of a daemon that has not ended, the reserve for a full disk. Real files."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import Conflict, NotFound
from engine.store import mark, reserve
from engine.store.mark import Mark
from engine.store.reserve import Reserve
from tests.lib.stores import Stores, open_stores

BASE, ABOVE = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def commit(stores: Stores, chain: str, parent: str, content: str) -> None:
    folder = stores.snapshots.begin()
    Path(folder, "fs/file").write_text(content)
    try:
        stores.snapshots.commit(folder, chain, parent, len(content), 1, "sha256:" + "c" * 64)
    except Conflict:
        stores.snapshots.discard(folder)
        raise


def test_a_damaged_snapshot_is_replaced_in_its_place(tmp_path: Path) -> None:
    with open_stores(tmp_path) as stores:
        snapshots = stores.snapshots
        commit(stores, BASE, "", "broken")
        commit(stores, ABOVE, BASE, "above")
        key = "container"
        snapshots.prepare(key, ABOVE)
        folders = snapshots.lowers(ABOVE)
        with pytest.raises(Conflict):
            commit(stores, BASE, "", "again")
        snapshots.set_damaged(BASE, "empty files")
        assert (snapshots.has(BASE), snapshots.has(ABOVE), snapshots.whole(ABOVE)) == (False, True, False)
        with pytest.raises(NotFound):
            snapshots.prepare("another", ABOVE)
    with open_stores(tmp_path) as stores:  # it is remembered
        snapshots = stores.snapshots
        assert not snapshots.whole(ABOVE)
        held = os.open(folders[-1], os.O_RDONLY | os.O_DIRECTORY)
        commit(stores, BASE, "", "whole")
        assert snapshots.whole(ABOVE)
        assert snapshots.lowers(ABOVE) == folders
        assert Path(folders[-1], "file").read_text() == "whole"
        # Who had it mounted still has what it had.
        with open("file", opener=lambda name, flags: os.open(name, flags, dir_fd=held)) as file:
            assert file.read() == "broken"
        os.close(held)
        _, (aside,) = snapshots.strays()
        assert snapshots.used_by(aside) == {key}
    with open_stores(tmp_path) as stores:
        assert stores.snapshots.sweep() == []
        assert os.path.exists(aside)
        assert stores.snapshots.whole(ABOVE)


def test_what_is_being_removed_is_no_stray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks may see a folder that is gone the next moment."""
    with open_stores(tmp_path) as stores:
        commit(stores, BASE, "", "x")
        stores.snapshots.refill()
        stores.snapshots.prepare("container", BASE)
        doomed = stores.snapshots.forget("container")
        Path(doomed).with_name("nobodys").mkdir()
        listed = os.listdir

        def look(folder: str) -> list[str]:
            names = listed(folder)
            monkeypatch.undo()
            stores.snapshots.delete_files(doomed)
            return names

        monkeypatch.setattr(os, "listdir", look)
        strays, _ = stores.snapshots.strays()
        assert [os.path.basename(path) for path in strays] == ["nobodys"]
        assert not os.path.exists(doomed)


def test_folders_that_are_gone(tmp_path: Path) -> None:
    with open_stores(tmp_path) as stores:
        commit(stores, BASE, "", "x")
        stores.snapshots.prepare("container", BASE)
        base, own = Path(stores.snapshots.lowers(BASE)[0]).parent, Path(stores.snapshots.upper("container")).parent
    base.rename(tmp_path / "base")
    own.rename(tmp_path / "own")
    with open_stores(tmp_path) as stores:
        assert not stores.snapshots.has(BASE)
        assert stores.snapshots.lost == ["container"]
        assert (own / "fs").is_dir()
        assert (own / "work").is_dir()
        commit(stores, BASE, "", "x")
        assert stores.snapshots.whole(BASE)


def test_the_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boot = tmp_path / "boot_id"
    boot.write_text("first\n")
    monkeypatch.setattr(mark, "_BOOT_ID", str(boot))
    one = Mark(str(tmp_path))
    assert one.unclean_since() == 0
    one.set()
    assert one.unclean_since() == 0  # the daemon alone was killed
    boot.write_text("second\n")
    os.utime(tmp_path / "running", (1000, 1000))
    (tmp_path / "meta.db-wal").touch()
    os.utime(tmp_path / "meta.db-wal", (2000, 2000))
    assert one.unclean_since() == 2000
    (tmp_path / "running").write_bytes(b"\xff\0")
    os.utime(tmp_path / "running", (3000, 3000))
    assert one.unclean_since() == 3000
    one.set()
    assert one.unclean_since() == 0
    one.clear()
    boot.write_text("third\n")
    assert one.unclean_since() == 0


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "small", str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_the_reserve(small: Path) -> None:
    path = small / "reserve"
    kept = Reserve(str(small))
    kept.spend_if_needed()
    kept.keep()
    assert path.stat().st_blocks * 512 == reserve.SIZE
    filler = small / "filler"
    filler.write_bytes(bytes(10 << 20))
    kept.spend_if_needed()
    assert path.exists()
    filler.write_bytes(bytes((16 << 20) - 4096))
    again = Reserve(str(small))  # also after a restart
    again.spend_if_needed()
    assert not path.exists()
    again.keep()
    assert not path.exists()
    filler.unlink()
    again.keep()
    assert path.exists()
