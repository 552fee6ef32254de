"""The metadata database: durability by sequence, migrations, damage."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path

import pytest

from engine.store.containers import ContainerStore
from engine.store.db import Database


def test_records_survive_a_restart(tmp_path: Path) -> None:
    db = Database(tmp_path / "meta.db")
    store = ContainerStore(db)
    store.put("a", b"1")
    store.put("b", b"2")
    store.put("a", b"3")
    store.delete("b")
    store.delete("never was")
    assert db.commit_sequence == 5
    db.close()
    again = Database(tmp_path / "meta.db")
    assert ContainerStore(again).load() == [("a", b"3")]
    assert not again.set_aside
    again.close()


def test_a_killed_daemon_loses_nothing_committed(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            db = Database(tmp_path / "meta.db")
            store = ContainerStore(db)
            for number in range(100):
                store.put(str(number), b"x")
        finally:
            os._exit(9)
    os.waitpid(pid, 0)
    again = Database(tmp_path / "meta.db")
    assert len(ContainerStore(again).load()) == 100
    again.close()


def test_rolled_back(tmp_path: Path) -> None:
    db = Database(tmp_path / "meta.db")
    store = ContainerStore(db)

    def fail() -> None:
        with db.transaction() as cursor:
            store.put("a", b"1", cursor)
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert store.load() == []
    assert db.commit_sequence == 0
    store.put("b", b"2")
    db.close()


def test_sync_and_checkpoint_from_another_thread(tmp_path: Path) -> None:
    db = Database(tmp_path / "meta.db")
    store = ContainerStore(db)
    done: list[bool] = []

    def work() -> None:
        db.sync()
        done.append(db.checkpoint())

    for number in range(200):
        store.put(str(number), b"x" * 1000)
    thread = threading.Thread(target=work)
    thread.start()
    for number in range(200, 300):
        store.put(str(number), b"x" * 1000)
    thread.join()
    assert db.synced_sequence >= 200
    db.sync()
    assert db.synced_sequence == db.commit_sequence == 300
    assert db.checkpoint()
    grown = db.wal_size()
    for number in range(300):
        store.put(str(number), b"y" * 1000)
    assert db.wal_size() <= grown * 2
    assert len(store.load()) == 300
    db.close()


@pytest.mark.parametrize("damage", ["garbage", "middle", "empty page"])
def test_a_damaged_file_is_set_aside(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "meta.db"
    db = Database(path)
    store = ContainerStore(db)
    for number in range(500):
        store.put(str(number), b"x" * 500)
    db.close()
    data = bytearray(path.read_bytes())
    if damage == "garbage":
        data = bytearray(b"this was a database" * 100)
    elif damage == "middle":
        data[8192:60000] = b"\xa5" * (60000 - 8192)
    else:
        data[0:100] = bytes(100)
    path.write_bytes(data)
    again = Database(path)
    assert again.set_aside_reason
    assert Path(again.set_aside).read_bytes() == bytes(data)
    assert ContainerStore(again).load() == []
    ContainerStore(again).put("new", b"1")
    again.close()


def test_a_newer_schema_is_refused_not_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    Database(path).close()
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA user_version = 99")
    raw.close()
    with pytest.raises(RuntimeError, match="newer version"):
        Database(path)
    assert [name for name in os.listdir(tmp_path) if "damaged" in name] == []


def test_a_truncated_log_is_no_damage(tmp_path: Path) -> None:
    """A power cut leaves a log with a torn end: what came before it counts."""
    path = tmp_path / "meta.db"
    pid = os.fork()
    if pid == 0:
        try:
            store = ContainerStore(Database(path))
            for number in range(20):
                store.put(str(number), b"x" * 100)
        finally:
            os._exit(9)
    os.waitpid(pid, 0)
    wal = Path(f"{path}-wal")
    wal.write_bytes(wal.read_bytes()[:-5000] + os.urandom(2000))
    again = Database(path)
    assert not again.set_aside
    assert 0 < len(ContainerStore(again).load()) < 20
    again.close()
