"""Pulls inside the test's process, on real stores: with a registry of `fakeregistry`, or the real client and a real one behind it."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio
import trio.testing

from engine.service import layers as module
from engine.service.images import Images
from engine.service.layers import Layers
from engine.service.pull import Options, Pulls
from engine.spec.reference import parse
from engine.store.unpack import Limits
from engine.wire import jsonstream
from tests.lib.fakeregistry import FakeRegistry
from tests.lib.stores import Stores, open_stores


@contextmanager
def folder() -> Iterator[Path]:
    """On a file system in memory: a sync there waits for nobody else's writes."""
    path = tempfile.mkdtemp(prefix="knarr-test-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    try:
        yield Path(path)
    finally:
        shutil.rmtree(path)


@dataclass
class Bench:
    """What pulls need. A name below is a tag of `repository`."""

    stores: Stores
    images: Images
    layers: Layers
    pulls: Pulls
    registry: Any
    repository: str

    async def pull(self, name: str, **options: Any) -> list[str]:
        """Every status line of one pull."""
        told: list[str] = []
        decoder = jsonstream.Decoder()
        reference = parse(f"{self.repository}:{name}")
        async with aclosing(self.pulls.pull(reference, Options(**options))) as lines:  # type: ignore[type-var]
            async for line in lines:
                told += [f"{message.id} {message.status}".strip() for message in decoder.feed(line)]
        return told

    def has(self, name: str) -> bool:
        """Whether the image is named here; then all of it must be."""
        image = self.images.store.named(parse(f"{self.repository}:{name}"))
        if image is None:
            return False
        assert all(self.stores.snapshots.has(chain) for chain in image.chain_ids)
        assert all(self.stores.content.verify(blob) for blob in image.blobs)
        return True

    def at_rest(self) -> None:
        """Nothing is held by anybody."""
        assert not self.layers._jobs
        assert len(self.layers._blobs) == 0
        assert self.layers._downloads.value == 3
        assert self.layers._unpackings.value == module._UNPACKINGS
        assert not self.images._pinned
        if isinstance(self.registry, FakeRegistry):
            assert self.registry.open == 0

    def folders(self) -> int:
        """Folders of snapshots, with and without a row."""
        return sum(name.isdecimal() for name in os.listdir(self.stores.layout.snapshots))

    def unfinished(self) -> list[str]:
        """Downloads that are not done."""
        return os.listdir(self.stores.layout.ingest)

    def nothing_left(self) -> None:
        """As before the first pull."""
        assert self.unfinished() == []
        assert self.stores.snapshots.chains() == []
        assert self.stores.content.list() == []
        assert self.images.leases.holders() == {}


def run(
    work: Callable[[Bench], Any], *, registry: Any = None, repository: str = "registry.test/a/b", root: Path | None = None,
    limits: Limits | None = None, attempts: int = 5, seconds: float = 120,
) -> None:  # fmt: skip
    """Run `work` on stores of its own, and look that nothing is left running or open. `registry` as `registry.client.Registries`."""

    async def main(stores: Stores) -> None:
        with trio.fail_after(seconds):
            async with trio.open_nursery() as nursery:
                images = Images(stores.layout, stores.db, stores.content, stores.snapshots, **({"limits": limits} if limits else {}))
                layers = Layers(stores.content, stores.snapshots, nursery, limits=images.limits)
                served = registry or FakeRegistry()
                bench = Bench(stores, images, layers, Pulls(images, served, layers, attempts=attempts), served, repository)
                await work(bench)
                await layers.settled(list(layers._jobs.values()))
                await trio.testing.wait_all_tasks_blocked(0.005)
                bench.at_rest()
                nursery.cancel_scope.cancel()
        assert bench.folders() == len(stores.snapshots.chains())

    before = len(os.listdir("/proc/self/fd"))
    with nullcontext(root) if root is not None else folder() as place, open_stores(place) as stores:
        trio.run(main, stores)
    deadline = time.monotonic() + 60  # a server in this process closes its ends in its own time
    while len(os.listdir("/proc/self/fd")) > before:
        assert time.monotonic() < deadline, [os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")[:-1]]
        time.sleep(0.02)
