"""What the registry server keeps: repositories and their grace time, uploads, and replies from files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from engine.http.sendfile import send_file
from engine.http.transport import Plain
from engine.registry.server import uploads as module
from engine.registry.server.errors import RegistryError
from engine.registry.server.uploads import Uploads
from engine.store.repositories import GRACE_SECONDS, RepositoryStore, StoredManifest
from tests.lib.stores import Stores, open_stores

A, B, C, D = ("sha256:" + letter * 64 for letter in "abcd")


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    with open_stores(tmp_path) as found:
        yield found


@pytest.fixture
def store(stores: Stores) -> RepositoryStore:
    return RepositoryStore(stores.db)


def manifest(digest: str, **fields: str) -> StoredManifest:
    return StoredManifest(digest=digest, media_type="m", size=1, **fields)  # type: ignore[arg-type]


def test_a_blob_without_a_manifest_has_its_grace_time(store: RepositoryStore) -> None:
    store.link("a", A, 1)
    store.link("a", B, 1)
    store.put_manifest("a", manifest(C), [B], ["latest"])
    assert store.expire(time.time() + GRACE_SECONDS - 60) == 0
    assert store.expire(time.time() + GRACE_SECONDS + 60) == 1
    assert (store.blob_size("a", A), store.blob_size("a", B)) == (None, 1)
    assert store.roots() == {B, C}
    store.delete_manifest("a", C)
    assert store.expire(time.time() + GRACE_SECONDS + 60) == 1
    assert store.names() == []
    assert store.roots() == set()


def test_a_manifest_keeps_blobs_of_its_own_repository_only(store: RepositoryStore) -> None:
    store.link("a", A, 1)
    store.link("b", A, 1)
    store.put_manifest("a", manifest(C), [A])
    store.expire(time.time() + 2 * GRACE_SECONDS)
    assert (store.blob_size("a", A), store.blob_size("b", A)) == (1, None)
    assert not store.exists("b")


def test_linking_again_begins_the_grace_time_anew(store: RepositoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 2 * GRACE_SECONDS)
    store.link("a", A, 1)
    monkeypatch.undo()
    store.link("a", A, 1)
    assert store.expire(now) == 0


def test_what_is_held_counts_as_linked(store: RepositoryStore) -> None:
    assert store.roots() == set()
    with store.holding(A, B), store.holding(A):
        assert store.roots() == {A, B}
    assert store.roots() == set()
    store.link("a", A, 1)
    store.put_manifest("a", manifest(C), [D])
    assert store.roots() == {A, C}
    assert store.refs(C) == {D}
    store.unlink("a", A)
    assert store.roots() == {C}


def test_a_cache_forgets_what_nobody_uses(store: RepositoryStore) -> None:
    now = time.time()
    for repository in ("host//a", "host//b", "pushed"):
        store.link(repository, A, 1)
        store.put_manifest(repository, manifest(C), [A], ["latest"])
    week = 7 * 24 * 3600
    store.touch("host//a", A, now + week)
    store.touch("host//a", C, now + week)
    assert store.expire_cached(now - 60) == 0
    assert store.expire_cached(now + 60) == 2
    store.expire(now + week)
    assert store.names() == ["host//a", "pushed"]
    assert store.tag("host//a", "latest") == C
    assert store.expire_cached(now + 2 * week) == 2
    assert store.tags("host//a") == []


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    with open_stores(tmp_path) as stores:
        store = RepositoryStore(stores.db)
        store.link("a/b", A, 7)
        found = manifest(C, subject=B, artifact_type="t")
        store.put_manifest("a/b", found, [A], ["x"])
    with open_stores(tmp_path) as stores:
        store = RepositoryStore(stores.db)
        assert (store.names(), store.tags("a/b"), store.tag("a/b", "x"), store.blob_size("a/b", A)) == (["a/b"], ["x"], C, 7)
        assert store.manifest("a/b", C) == found
        assert store.referrers("a/b", B) == [found]


# uploads


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def uploads_of(stores: Stores, **options: int) -> Uploads:
    found = Uploads(stores.content, stores.layout.uploads, RepositoryStore(stores.db), **options)
    found.open()
    return found


def files(stores: Stores) -> list[str]:
    return os.listdir(stores.layout.uploads)


def test_an_upload_goes_on_after_a_restart(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()

    async def begin(stores: Stores) -> str:
        uploads = uploads_of(stores)
        session = uploads.begin("a")
        async with uploads.using(session):
            await uploads.append(session, pieces(data[:1_000_000], data[1_000_000:2_500_000]))
        return session.id

    async def end(stores: Stores, id: str) -> None:
        uploads = uploads_of(stores)
        session = uploads.find("a", id)
        assert session.offset == 2_500_000
        async with uploads.using(session):
            await uploads.append(session, pieces(data[2_500_000:]))
            await uploads.finish(session, digest)
        assert len(uploads) == 0

    with open_stores(tmp_path) as stores:
        id = trio.run(begin, stores)
    with open_stores(tmp_path) as stores:
        (Path(stores.layout.uploads) / ("f" * 32)).write_bytes(b"of a session that no row knows")
        RepositoryStore(stores.db).add_upload(module.Upload("e" * 32, "a", "sha256", 0))  # and a row without a file
        trio.run(end, stores, id)
        assert stores.content.verify(digest)
        assert files(stores) == []
        assert RepositoryStore(stores.db).uploads() == []


def test_abandoned_uploads_are_removed(stores: Stores) -> None:
    async def run() -> None:
        uploads = uploads_of(stores)
        old, young = uploads.begin("a"), uploads.begin("a")
        old.touched -= 2 * module.EXPIRE_SECONDS
        assert await uploads.expire() == 1
        assert files(stores) == [young.id]
        with pytest.raises(RegistryError, match="unknown"):
            uploads.find("a", old.id)

    trio.run(run)


def test_the_number_of_uploads_is_bounded(stores: Stores) -> None:
    async def run() -> None:
        uploads = uploads_of(stores, limit=2)
        first, _ = uploads.begin("a"), uploads.begin("a")
        with pytest.raises(RegistryError, match="too many uploads") as caught:
            uploads.begin("a")
        assert (caught.value.status, caught.value.code) == (429, "TOOMANYREQUESTS")
        first.touched -= 7200  # idle for two hours: it makes room
        third = uploads.begin("a")
        assert set(files(stores)) >= {third.id}
        assert first.id not in files(stores)

    trio.run(run)


def test_a_full_disk(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """507, and the space that the upload took is free again."""

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    async def run() -> None:
        uploads = uploads_of(stores)
        session = uploads.begin("a")
        async with uploads.using(session):
            await uploads.append(session, pieces(b"x" * 10))
        monkeypatch.setattr(module, "write_pieces", full)
        with pytest.raises(RegistryError, match="disk is full") as caught:
            async with uploads.using(session):
                await uploads.append(session, pieces(b"y" * 10))
        assert caught.value.status == 507

    trio.run(run)
    assert files(stores) == []


def test_what_a_cut_off_write_left_is_not_counted(stores: Stores) -> None:
    async def run() -> None:
        uploads = uploads_of(stores)
        session = uploads.begin("a")
        async with uploads.using(session):
            await uploads.append(session, pieces(b"good"))
            os.truncate(session.path, 11)
            await uploads.append(session, pieces(b" bytes"))
            await uploads.finish(session, "sha256:" + hashlib.sha256(b"good bytes").hexdigest())

    trio.run(run)


# replies from files


@pytest.mark.parametrize("cached", [True, False])
def test_send_file(tmp_path: Path, cached: bool) -> None:
    """The part of the file arrives whole through a socket that takes little at a time, whether the file is in memory or not."""
    data = os.urandom(5_000_000)
    file = tmp_path / "blob"
    file.write_bytes(data)
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 50_000)
    received = bytearray()

    async def receive() -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(far))
        async for part in stream:
            received.extend(part)

    async def run() -> None:
        descriptor = os.open(file, os.O_RDONLY)
        if not cached:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                transport = Plain(near)
                await send_file(transport, descriptor, 1000, 4_500_000)
                transport.close()
        finally:
            os.close(descriptor)

    with contextlib.closing(far):
        trio.run(run)
    assert bytes(received) == data[1000:4_501_000]
