"""`system df`: what images and containers take on the disk. Reads, changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from engine.aio.blocking import blocking
from engine.errors import NotFound
from engine.service.containers import Containers
from engine.service.images import Images
from engine.spec.container import ContainerRecord
from engine.store.images import ImageRecord


class ImageUse(msgspec.Struct, frozen=True):
    """An image, the bytes of its layers that other images have too, and how many containers were made from it."""

    image: ImageRecord
    shared: int
    containers: int


class ContainerUse(msgspec.Struct, frozen=True):
    """A container, the bytes it has written, and those with the layers it lies on."""

    record: ContainerRecord
    written: int
    whole: int


def shared_sizes(images: Images, among: Iterable[ImageRecord]) -> dict[str, int]:
    """Image -> bytes of its layers that another one of `among` has too."""
    found = list(among)
    count = Counter(chain for image in found for chain in image.chain_ids)
    return {
        image.id: sum(size for chain, size in zip(image.chain_ids, images.layer_sizes(image), strict=True) if count[chain] > 1)
        for image in found
    }


def layers_size(images: Images) -> int:
    """Bytes of the files of all images' layers, each once; layers that builds alone keep are not among them."""
    needed = {chain for image in images.store for chain in image.chain_ids}
    return sum(size for chain, size in images.snapshot_sizes().items() if chain in needed)


def of_images(images: Images, containers: Containers) -> list[ImageUse]:
    """Every image that `docker images` lists."""
    listed = images.list()
    shared = shared_sizes(images, listed)
    return [ImageUse(image, shared[image.id], len(containers.using(image.id))) for image in listed]


async def of_containers(containers: Containers) -> list[ContainerUse]:
    """Every container, newest first. Walks their folders, in worker threads."""
    found: list[ContainerUse] = []
    for record in containers.everything():
        try:
            written, whole = await blocking("disk", containers.size, record.id)
        except (NotFound, FileNotFoundError):
            continue  # removed meanwhile
        found.append(ContainerUse(record, written, whole))
    return found
