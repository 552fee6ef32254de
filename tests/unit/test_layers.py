"""Pulls beside each other, on real stores and a registry inside the test: nothing waits for ever, is fetched twice or is left behind."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import Damaged, InvalidParameter, KnarrError
from engine.registry import retry
from engine.service import layers as module
from engine.service.images import Images
from engine.service.layers import Layers
from engine.service.pull import Pulls
from engine.spec.digest import chain_ids
from engine.store.ingest import BLOCK
from engine.store.unpack import Limits
from tests.lib.fakeregistry import FakeRegistry, archive, digest_of
from tests.lib.images import entry, tar
from tests.lib.pulling import Bench, folder, run
from tests.lib.stores import Stores, open_stores


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.001)
    monkeypatch.setattr(module, "_TIDY_SECONDS", 0.0)


def pause(seconds: float) -> Callable[[str, int], Any]:
    """A registry that takes its time over each piece."""

    async def disturb(digest: str, place: int) -> None:
        await trio.sleep(seconds)

    return disturb


ARCHIVES = [archive(f"file-{n}", random.Random(n).randbytes(3000)) for n in range(5)]
ARCHIVES.append(tar([]))
ARCHIVES.append(tar([entry("deep/er/file", data=b"x"), entry("file-0", type=b"1", linkname="file-1")]))  # looks below


# Each pull: which image, when it begins, and when its client goes away.
pulls = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30), st.one_of(st.none(), st.integers(0, 60))), min_size=1, max_size=6)
stacks = st.lists(st.lists(st.integers(0, 5), max_size=6), min_size=4, max_size=4)


@settings(max_examples=40, deadline=None)
@given(stacks=stacks, clients=pulls, seed=st.integers(0, 1000))
def test_any_pulls_beside_each_other_end(stacks: list[list[int]], clients: list[tuple[int, int, int | None]], seed: int) -> None:
    chance = random.Random(seed)
    registry = FakeRegistry(piece=700)
    for number, stack in enumerate(stacks):
        registry.image(f"v{number}", [ARCHIVES[layer] for layer in stack])

    async def slow(digest: str, place: int) -> None:
        await trio.sleep(chance.random() * 0.002)

    registry.disturb = slow

    async def work(bench: Bench) -> None:
        async def client(which: int, begin: int, stay: int | None) -> None:
            await trio.sleep(begin / 1000)
            with trio.move_on_after(float("inf") if stay is None else stay / 1000):
                await bench.pull(f"v{which}")

        async with trio.open_nursery() as nursery:
            for one in clients:
                nursery.start_soon(client, *one)
        for which, _, stay in clients:
            assert bench.has(f"v{which}") or stay is not None
        if all(stay is None for _, _, stay in clients):
            for digest, count in registry.sent.items():
                assert count == len(registry.blobs[digest])
            assert bench.unfinished() == []
            assert bench.images.leases.holders() == {}
        for number in range(len(stacks)):
            await bench.pull(f"v{number}")
            assert bench.has(f"v{number}")
        assert bench.unfinished() == []
        assert bench.images.leases.holders() == {}

    run(work, registry=registry)


@settings(max_examples=25, deadline=None)
@given(
    stacks=stacks,
    clients=pulls,
    broken=st.sets(st.integers(0, 5), min_size=1, max_size=2),
    kind=st.sampled_from(["bytes", "once", "gone", "no tar", "lie"]),
)
def test_trouble_in_some_layers_hurts_only_those(
    stacks: list[list[int]], clients: list[tuple[int, int, int | None]], broken: set[int], kind: str
) -> None:
    registry = FakeRegistry(piece=700)
    archives = [b"no archive at all " * 100 if kind == "no tar" and n in broken else layer for n, layer in enumerate(ARCHIVES)]
    bad = set()
    for number, stack in enumerate(stacks):
        ids = [digest_of(b"lie") if kind == "lie" and layer in broken else digest_of(archives[layer]) for layer in stack]
        manifest = registry.image(f"v{number}", [archives[layer] for layer in stack], diff_ids=ids)
        bad |= {one.digest for one, layer in zip(manifest.layers or (), stack, strict=True) if layer in broken}
    changed: set[str] = set()

    def flip(digest: str, place: int, piece: bytes) -> bytes:
        if digest not in bad or kind not in ("bytes", "once") or (kind == "once" and digest in changed):
            return piece
        changed.add(digest)
        return bytes([piece[0] ^ 1]) + piece[1:]

    async def gone(digest: str, place: int) -> None:
        await trio.lowlevel.checkpoint()
        if kind == "gone" and digest in bad and place:
            raise KnarrError("the registry says no")

    registry.change, registry.disturb = flip, gone

    async def work(bench: Bench) -> None:
        failed: set[int] = set()

        async def client(which: int, begin: int, stay: int | None) -> None:
            await trio.sleep(begin / 1000)
            with trio.move_on_after(float("inf") if stay is None else stay / 1000):
                try:
                    await bench.pull(f"v{which}")
                except KnarrError:
                    failed.add(which)

        async with trio.open_nursery() as nursery:
            for one in clients:
                nursery.start_soon(client, *one)
        for which, _, stay in clients:
            hurt = kind != "once" and bool(set(stacks[which]) & broken)
            if kind == "gone":  # a layer that is one piece arrives
                hurt = hurt and any(len(registry.blobs[digest]) > registry.piece for digest in bad)
            if not hurt:
                assert which not in failed
                assert bench.has(f"v{which}") or stay is not None
            elif kind != "gone":
                assert not bench.has(f"v{which}")

    run(work, registry=registry)


def test_a_damaged_layer_below_three_that_wait_for_it() -> None:
    """Its second attempt needs the place that the first one had."""
    registry = FakeRegistry(piece=500)
    below = archive("below", random.Random(1).randbytes(4000))
    looking = [tar([entry(f"new-{n}/x", data=b"x"), entry(f"link-{n}", type=b"1", linkname="below")]) for n in range(5)]
    manifest = registry.image("v", [below, *looking])
    bad = (manifest.layers or ())[0].digest
    flipped: list[int] = []

    def flip(digest: str, place: int, piece: bytes) -> bytes:
        if digest != bad or flipped or place < 2000:
            return piece
        flipped.append(place)
        return bytes([piece[0] ^ 1]) + piece[1:]

    async def slowly(digest: str, place: int) -> None:
        await trio.sleep(0.01 if digest == bad else 0)

    registry.change, registry.disturb = flip, slowly

    async def work(bench: Bench) -> None:
        await bench.pull("v")
        assert bench.has("v")
        assert registry.sent[bad] == 2 * len(registry.blobs[bad])
        assert all(registry.sent[one.digest] == one.size for one in (manifest.layers or ())[1:])

    run(work, registry=registry)
    assert flipped


def test_a_client_that_leaves_does_not_hurt_another() -> None:
    registry = FakeRegistry(piece=100)
    registry.image("v", [archive("a", random.Random(1).randbytes(5000)), archive("b", random.Random(2).randbytes(5000))])
    registry.disturb = pause(0.002)

    async def work(bench: Bench) -> None:
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(0.03):
                nursery.start_soon(bench.pull, "v")
                await bench.pull("v")
        assert bench.has("v")
        assert all(registry.sent[digest] == len(blob) for digest, blob in registry.blobs.items() if registry.sent[digest])

    run(work, registry=registry)


def test_who_shares_work_that_fails_elsewhere_tries_its_own_way() -> None:
    """The first one's registry says no; the second one's has the same blob."""
    first, second = FakeRegistry(piece=200), FakeRegistry(piece=200)
    for registry in (first, second):
        registry.image("v", [archive("a", random.Random(1).randbytes(3000))])

    begun = trio.Event()

    async def fail(digest: str, place: int) -> None:
        begun.set()
        await trio.sleep(0.01)
        if place > 400:
            raise KnarrError("no")

    first.disturb = fail

    async def work(bench: Bench) -> None:
        other = Bench(bench.stores, bench.images, bench.layers, Pulls(bench.images, second, bench.layers), second, bench.repository)  # type: ignore[arg-type]

        async def doomed() -> None:
            with pytest.raises(KnarrError, match="no"):
                await bench.pull("v")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(doomed)
            await begun.wait()
            await other.pull("v")
        assert other.has("v")
        assert max(first.sent.values()) < 1000
        assert all(count == len(second.blobs[digest]) for digest, count in (first.sent + second.sent).items())

    run(work, registry=first)


def test_a_shutdown_is_no_success() -> None:
    """The engine's tasks end before the request that waits for them."""
    registry = FakeRegistry(piece=100)
    registry.image("v", [archive("a", random.Random(1).randbytes(3000))])
    registry.disturb = pause(0.01)

    async def main(stores: Stores) -> None:
        images = Images(stores.layout, stores.db, stores.content, stores.snapshots)
        async with trio.open_nursery() as outer:

            async def engine(task_status: trio.TaskStatus[trio.Nursery] = trio.TASK_STATUS_IGNORED) -> None:
                async with trio.open_nursery() as nursery:
                    task_status.started(nursery)
                    await trio.sleep_forever()

            nursery = await outer.start(engine)
            layers = Layers(stores.content, stores.snapshots, nursery)
            bench = Bench(stores, images, layers, Pulls(images, registry, layers), registry, "registry.test/a/b")  # type: ignore[arg-type]

            async def ask() -> None:
                with pytest.raises((KnarrError, RuntimeError)):
                    await bench.pull("v")

            async with trio.open_nursery() as asking:
                asking.start_soon(ask)
                await trio.sleep(0.05)
                nursery.cancel_scope.cancel()
            assert not bench.has("v")

    with folder() as made, open_stores(made) as stores:
        trio.run(main, stores)


def test_a_blob_that_rotted_is_set_aside_and_fetched() -> None:
    registry = FakeRegistry()
    manifest = registry.image("v", [archive("a", b"good")])
    digest = (manifest.layers or ())[0].digest

    async def work(bench: Bench) -> None:
        await bench.pull("v")
        chain = chain_ids([digest_of(archive("a", b"good"))])[0]
        path = Path(bench.stores.content.path(digest))
        raw = bytearray(path.read_bytes())
        raw[-9] ^= 1
        path.write_bytes(raw)
        await bench.images.delete("registry.test/a/b:v")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(raw)  # as the disk might bring it back
        assert not bench.stores.snapshots.has(chain)
        await bench.pull("v")
        assert bench.has("v")
        assert Path(f"{path}.damaged").exists()

    run(work, registry=registry)


def test_a_lie_about_the_size_harms_nobody_else() -> None:
    """A manifest that names another image's blob with a wrong size must not have it set aside."""
    registry = FakeRegistry()
    manifest = registry.image("good", [archive("a", b"good")])
    layer = (manifest.layers or ())[0]
    raw = registry.manifests[registry.names["good"]].replace(f'"size": {layer.size}}}]'.encode(), f'"size": {layer.size + 1}}}]'.encode())
    registry.manifests[digest_of(raw)] = raw
    registry.names["lie"] = digest_of(raw)

    async def work(bench: Bench) -> None:
        await bench.pull("good")
        with pytest.raises(KnarrError):
            await bench.pull("lie")
        assert bench.has("good")
        assert bench.stores.content.exists(layer.digest, layer.size)

    run(work, registry=registry)


@pytest.mark.parametrize("kind", ["no tar", "lie", "bomb", "climbs"])
def test_what_is_refused_leaves_nothing(kind: str) -> None:
    registry = FakeRegistry()
    good = archive("good", random.Random(5).randbytes(2 * BLOCK))
    bad = {
        "no tar": b"this is no archive" * 1000, "lie": archive("x"), "bomb": archive("zeros", bytes(9 << 20)),
        "climbs": tar([entry("../../../tmp/evil", data=b"x")]),
    }[kind]  # fmt: skip
    ids = [digest_of(good), digest_of(b"") if kind == "lie" else digest_of(bad)]
    registry.image("v", [good, bad], diff_ids=ids)

    async def work(bench: Bench) -> None:
        with pytest.raises(InvalidParameter) as caught:
            await bench.pull("v")
        assert str(caught.value).isprintable()
        assert not bench.has("v")
        bench.nothing_left()

    run(work, registry=registry, limits=Limits(ratio=100, ratio_from=1 << 20))


def test_a_wrong_digest_is_told_in_dockers_words_and_the_rest_is_kept() -> None:
    registry = FakeRegistry()
    manifest = registry.image("v", [archive("a"), archive("b")])
    bad = (manifest.layers or ())[1].digest
    registry.change = lambda digest, place, piece: bytes(len(piece)) if digest == bad else piece

    async def work(bench: Bench) -> None:
        with pytest.raises(Damaged, match=f"filesystem layer verification failed for digest {bad}"):
            await bench.pull("v")
        assert bench.unfinished() == []
        registry.change = lambda digest, place, piece: piece
        before = registry.sent.copy()
        await bench.pull("v")
        assert bench.has("v")
        assert [digest for digest, count in (registry.sent - before).items() if count] == [bad]

    run(work, registry=registry)


def test_another_daemon_goes_on_where_this_one_was_killed() -> None:
    """A second opening of the same files is what a SIGKILL leaves."""
    registry = FakeRegistry(piece=1 << 18)
    data = random.Random(9).randbytes(5 * BLOCK)
    manifest = registry.image("v", [archive("a", data)])
    layer = (manifest.layers or ())[0]
    with folder() as root:

        async def killed(bench: Bench) -> None:
            with trio.CancelScope() as scope:

                async def stop(digest: str, place: int) -> None:
                    await trio.lowlevel.checkpoint()
                    if place > 3 * BLOCK:
                        scope.cancel()

                registry.disturb = stop
                await bench.pull("v")
            assert not bench.has("v")

        run(killed, registry=registry, root=root)
        registry.disturb = FakeRegistry._calm
        before = registry.sent[layer.digest]

        async def again(bench: Bench) -> None:
            await bench.pull("v")
            assert bench.has("v")
            assert bench.images.leases.holders() == {}

        run(again, registry=registry, root=root)
        assert layer.size <= registry.sent[layer.digest] <= layer.size + BLOCK
        assert registry.sent[layer.digest] - before < 3 * BLOCK
