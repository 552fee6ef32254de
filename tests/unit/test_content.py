"""Blobs: whole or absent."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import Damaged, InvalidParameter, NotFound
from engine.spec.digest import sha256
from engine.store.content import Content
from engine.store.ingest import BLOCK, SUMS
from tests.lib.stores import open_stores


@pytest.fixture
def content(tmp_path: Path) -> Iterator[Content]:
    with open_stores(tmp_path) as stores:
        yield stores.content


def ingest(content: Content) -> list[str]:
    return os.listdir(os.path.dirname(content.temporary()))


def test_write_read_delete(content: Content) -> None:
    digest = content.put(b"hello world")
    assert digest == sha256(b"hello world")
    assert content.exists(digest)
    assert content.exists(digest, 11)
    assert content.size(digest) == 11
    assert content.read(digest) == b"hello world"
    assert content.list() == [(digest, 11)]
    assert ingest(content) == []
    content.delete(digest)
    content.delete(digest)
    assert not content.exists(digest)
    with pytest.raises(NotFound):
        content.open(digest)


def test_what_is_not_as_expected_is_not_stored(content: Content) -> None:
    with pytest.raises(Damaged, match="not those of"):
        content.put(b"hello", sha256(b"other"))
    assert content.list() == []
    assert ingest(content) == []


def test_a_download_is_resumed(content: Content) -> None:
    data = os.urandom(3 * BLOCK + 100)
    digest = sha256(data)
    first = content.ingest(digest, len(data))
    assert first.write(0, [data[: 2 * BLOCK], data[2 * BLOCK : 2 * BLOCK + 10]]) == 2 * BLOCK + 10
    first.close()
    assert content.sweep() == []
    again = content.ingest(digest, len(data))
    assert again.resumed == again.offset == 2 * BLOCK + 10
    assert again.missing(0) == [(2 * BLOCK + 10, len(data))]
    again.write(2 * BLOCK, [data[2 * BLOCK :]])
    assert again.complete
    content.commit(again)
    assert ingest(content) == []
    assert content.read(digest) == data
    with pytest.raises(InvalidParameter):
        content.ingest("../../etc/passwd", 1)


def test_parts_may_come_in_any_order(content: Content) -> None:
    data = os.urandom(4 * BLOCK)
    coming = content.ingest(sha256(data), len(data))
    assert coming.missing(BLOCK) == [(n * BLOCK, (n + 1) * BLOCK) for n in range(4)]
    assert coming.write(2 * BLOCK, [data[2 * BLOCK : 3 * BLOCK]]) == 0
    assert coming.write(0, [data[:BLOCK]]) == BLOCK
    assert coming.write(BLOCK, [data[BLOCK : 2 * BLOCK]]) == 3 * BLOCK
    coming.close()
    again = content.ingest(sha256(data), len(data))
    assert again.offset == 3 * BLOCK
    with pytest.raises(InvalidParameter, match="more than"):
        again.write(3 * BLOCK, [b"x" * (BLOCK + 1)])
    again.remove()
    assert ingest(content) == []


@pytest.mark.parametrize("damage", ["zeros", "cut", "sums"])
def test_what_a_power_cut_left_is_checked(content: Content, damage: str) -> None:
    data = os.urandom(3 * BLOCK)
    coming = content.ingest(sha256(data), len(data))
    coming.write(0, [data])
    coming.close()
    path = Path(coming.path)
    if damage == "zeros":
        path.write_bytes(data[:BLOCK] + bytes(BLOCK) + data[2 * BLOCK :])
    elif damage == "cut":
        os.truncate(path, BLOCK + 5)
    else:
        os.truncate(str(path) + SUMS, 5)
    again = content.ingest(sha256(data), len(data))
    assert again.offset == BLOCK
    assert again.read(0, 2 * BLOCK) == data[:BLOCK]
    again.remove()


def test_sweep(content: Content) -> None:
    orphan = content.temporary()
    Path(orphan).write_bytes(b"x")
    old = sha256(b"old")
    coming = content.ingest(old, 10)
    coming.close()
    assert content.sweep() == [orphan]
    for path in (coming.path, coming.path + SUMS):
        os.utime(path, (time.time() - 1e6,) * 2)
    assert sorted(content.sweep()) == [coming.path, coming.path + SUMS]
    assert ingest(content) == []


@pytest.mark.parametrize(
    "digest", ["", "sha256:", "sha256:../../../etc/passwd", "sha256:" + "g" * 64, "md5:" + "0" * 32, "sha256:" + "0" * 63]
)
def test_a_digest_is_checked_before_it_is_a_path(content: Content, digest: str) -> None:
    with pytest.raises(InvalidParameter):
        content.path(digest)


def test_damaged_blobs_count_as_absent(content: Content) -> None:
    for way in ("exists", "read", "verify"):
        digest = content.put(b"hello")
        with open(content.path(digest), "wb") as file:
            file.write(b"" if way == "exists" else b"hellO")
        if way == "exists":
            assert not content.exists(digest, 5)
        elif way == "read":
            with pytest.raises(Damaged, match="set aside"):
                content.read(digest)
        else:
            assert not content.verify(digest)
        assert not content.exists(digest)
        assert os.path.exists(content.path(digest) + ".damaged")
        assert content.list() == []
    assert content.put(b"hello") == digest
    assert content.verify(digest)


def test_large_blobs_are_not_read_as_documents(content: Content) -> None:
    digest = content.put(b"x" * 1000)
    with pytest.raises(InvalidParameter):
        content.read(digest, 999)


def test_a_blob_that_goes_while_one_looks_is_no_stray(content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = content.put(b"goes")
    listed = os.listdir

    def look(folder: str) -> list[str]:
        names = listed(folder)
        monkeypatch.undo()
        content.delete(digest)
        return names

    monkeypatch.setattr(os, "listdir", look)
    assert content.strays() == ([], [])
    assert not content.exists(digest)


def test_discard_hides_at_once(content: Content) -> None:
    digest = content.put(b"hello")
    path = content.discard(digest)
    assert not content.exists(digest)
    assert content.discard(digest) == ""
    assert content.sweep() == [path]
