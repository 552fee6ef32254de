"""A container's mounts: from its request to the list that is stored with it, and from that list to what its start mounts.

Owns which volume or image a mount stands for, in Docker's order of precedence: `-v`, `--mount` and `--tmpfs` over `--volumes-from` over the
image's VOLUMEs. What the words mean is `mountspec`'s business.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence

import msgspec

from engine.aio.blocking import blocking
from engine.errors import InvalidParameter, KnarrError, NotFound
from engine.linux import mounts as table
from engine.service import mountspec
from engine.service.context import Context
from engine.spec import idmapping
from engine.spec.container import ContainerRecord
from engine.spec.docker.containers import Config, HostConfig
from engine.spec.mount import Mount, MountPoint
from engine.spec.volume import VolumeRecord
from engine.store import volumefill
from engine.store.overlay import escaped

__all__ = ["MountPoint", "Resolved", "acquire", "fill", "prepare", "requested", "resolve", "runtime", "unpack"]

_SHARED = frozenset(("shared", "rshared"))
_SLAVE = frozenset(("slave", "rslave"))


class Resolved(msgspec.Struct, frozen=True):
    """The mounts of a new container, parents first, and the volumes that have to be made for them."""

    points: list[MountPoint]
    volumes: list[VolumeRecord]


_NOTHING = Resolved([], [])


def requested(hc: HostConfig) -> list[MountPoint]:
    """The mounts that a host configuration alone names. For records of an older version, which stored none. Raises InvalidParameter."""
    return [request.point for request in mountspec.requested(hc)]


def resolve(context: Context, config: Config, hc: HostConfig, find: Callable[[str], ContainerRecord]) -> Resolved:
    """Mounts and new volumes of a create request; nothing is made yet. `find` resolves --volumes-from.

    Raises InvalidParameter; NotFound for an image that is not here and for an unknown volume driver.
    """
    if not (config.volumes or hc.binds or hc.mounts or hc.tmpfs or hc.volumes_from):
        return _NOTHING
    asked = mountspec.requested(hc)
    by_place = {point.destination: mountspec.Request(point=point) for point in _others(hc, find)}
    taken = {request.point.destination for request in asked}
    by_place = {place: request for place, request in by_place.items() if place not in taken}
    by_place.update((request.point.destination, request) for request in asked)
    for path in config.volumes or ():
        point = mountspec.declared(path, hc.volume_driver)
        if point.destination not in by_place:
            by_place[point.destination] = mountspec.Request(point=point)
    made: dict[str, VolumeRecord] = {}
    points = [_resolved(context, request, made) for request in by_place.values()]
    return Resolved(sorted(points, key=lambda point: point.destination.count("/")), list(made.values()))


def _others(hc: HostConfig, find: Callable[[str], ContainerRecord]) -> Iterable[MountPoint]:
    for source in mountspec.sources(hc.volumes_from):
        try:
            other = find(source.container)
        except NotFound as error:
            raise InvalidParameter(error.message) from error  # Docker's clients take a 404 for a missing image
        for point in other.mount_points:
            if not point.hidden:
                yield mountspec.taken_over(point, source.writable)


def _resolved(context: Context, request: mountspec.Request, made: dict[str, VolumeRecord]) -> MountPoint:
    point = request.point
    if point.type == "image":
        return msgspec.structs.replace(point, image=context.images.get(point.name).id)
    if point.type != "volume":
        return point
    if point.name in made:
        return point
    volume = context.volumes.new(point.name, point.driver, request.driver_options, request.labels)
    if volume is None:
        return msgspec.structs.replace(point, driver=context.volumes.get(point.name).driver)
    made[volume.name] = volume
    return msgspec.structs.replace(point, name=volume.name, driver=volume.driver)


def prepare(points: Iterable[MountPoint]) -> None:
    """Make missing sources of `-v` binds; refuse missing sources of `--mount`. Raises InvalidParameter with Docker's words."""
    for point in points:
        if point.type != "bind":
            continue
        if not os.path.lexists(point.source):
            _make_source(point)


def _make_source(point: MountPoint) -> None:
    if not point.create:
        raise InvalidParameter(f'invalid mount config for type "bind": bind source path does not exist: {point.source}')
    try:
        os.makedirs(point.source, 0o755, exist_ok=True)
    except OSError as error:
        raise InvalidParameter(f"error while creating mount source path '{point.source}': {os.strerror(error.errno or 0)}") from error


async def acquire(context: Context, record: ContainerRecord) -> None:
    """A container with mounts is about to run: check what the host has to have for them, mount what its volumes ask for.

    Raises KnarrError; then nothing is mounted for it.
    """
    for point in record.mount_points:
        if point.propagation in _SHARED or point.propagation in _SLAVE:
            _check_propagation(point)
    await context.volumes.acquire(record)


def _check_propagation(point: MountPoint) -> None:
    """The kernel would take a private source without a word, and no mount would ever appear."""
    source = os.path.realpath(point.source)
    entry = max(
        (entry for entry in table.read() if source == entry.target or source.startswith(entry.target.rstrip("/") + "/")),
        key=lambda entry: len(entry.target),
    )
    words = {word.partition(":")[0] for word in entry.propagation}
    if point.propagation in _SHARED and "shared" not in words:
        raise KnarrError(f"path {point.source} is mounted on {entry.target} but it is not a shared mount")
    if point.propagation in _SLAVE and not words & {"shared", "master"}:
        raise KnarrError(f"path {point.source} is mounted on {entry.target} but it is not a shared or slave mount")


def runtime(context: Context, points: Sequence[MountPoint]) -> list[Mount]:
    """What a start mounts. Raises InvalidParameter, NotFound."""
    return [_runtime(context, point) for point in points]


def _runtime(context: Context, point: MountPoint) -> Mount:
    if point.type == "tmpfs":
        return Mount(destination=point.destination, type="tmpfs", source="tmpfs", options=point.options)
    if point.type == "image":
        made = _image(context, point)
        return _image_owners(made, point) if point.uid_mappings else made
    source = context.volumes.path(point.name) if point.type == "volume" else point.source
    return Mount(
        destination=point.destination, type="bind", source=source, options=point.options, subpath=point.subpath,
        uid_mappings=point.uid_mappings, gid_mappings=point.gid_mappings,
    )  # fmt: skip


def _image(context: Context, point: MountPoint) -> Mount:
    """The image's layers as a read-only overlay, or the part of them that `subpath` leads to."""
    image = context.images.get(point.image)
    if not image.chain_id:
        return Mount(destination=point.destination, type="tmpfs", source="tmpfs", options=("ro", "size=4k"))
    whole = context.snapshots.view(image.chain_id)
    if not point.subpath:
        return msgspec.structs.replace(whole, destination=point.destination)
    from engine.store.view import View

    with View(context.snapshots.lowers(image.chain_id)) as view:
        node = view.find(point.subpath)
        if node is None:
            raise InvalidParameter(f"mount of image {point.name}: it has no {point.subpath!r}")
        if not node.folder:
            source = view.host_path(node, node.layers[0])
            return Mount(destination=point.destination, type="bind", source=source, options=("bind", "ro", "rprivate"))
        layers = [escaped(view.host_path(node, index).removeprefix(whole.base + "/")) for index in node.layers]
    if len(layers) == 1:
        return Mount(
            destination=point.destination, type="bind", source=view.host_path(node, node.layers[0]), options=("bind", "ro", "rprivate")
        )
    return msgspec.structs.replace(whole, destination=point.destination, options=("lowerdir=" + ":".join(layers), "ro"))


def _image_owners(made: Mount, point: MountPoint) -> Mount:
    """An image's mount with the owners that are asked for. An image without layers is one empty folder."""
    if made.type == "tmpfs":
        uid, gid = idmapping.shown(point.uid_mappings, 0), idmapping.shown(point.gid_mappings, 0)
        return msgspec.structs.replace(made, options=(*made.options, "nosuid", f"uid={uid}", f"gid={gid}"))
    return msgspec.structs.replace(
        made, options=(*made.options, *point.options), uid_mappings=point.uid_mappings, gid_mappings=point.gid_mappings
    )


async def unpack(context: Context, hc: HostConfig) -> None:
    """See to it that the layers of images that are to be mounted are here. Raises NotFound, KnarrError."""
    for item in hc.mounts or ():
        if item.type == "image" and item.source:
            image = context.images.get(item.source)
            if image.chain_id and not context.snapshots.whole(image.chain_id):
                await context.pulls.unpack(image)


async def fill(context: Context, record: ContainerRecord, new: Sequence[VolumeRecord]) -> None:
    """Make the folders of a new container's volumes, and copy what the image has at their destinations into those that are empty.

    Raises InvalidParameter for a volume in the place of a file, KnarrError, OSError.
    """
    volumes = context.volumes
    for volume in new:
        volumes.make(volume)
    names = {point.name for point in record.mount_points if point.type == "volume"}
    if names:
        async with volumes.alone_with(names):
            await _fill(context, record)


async def _fill(context: Context, record: ContainerRecord) -> None:
    volumes = context.volumes
    layers = context.snapshots.lowers(context.snapshots.parent(record.id))
    kept = not record.host_config.auto_remove
    plain: list[volumefill.Copy] = []
    for point in record.mount_points:
        if not point.copy:
            continue
        volume = volumes.get(point.name)
        copy = volumefill.Copy(
            destination=point.destination,
            folder=volumes.path(point.name),
            fresh=not (volume.mounted or volume.project) and volumes.users(point.name) == [record.id],
            durable=kept or not point.anonymous,
            declared=point.anonymous and not point.mode,
        )
        if not volume.mounted:
            plain.append(copy)
        elif (volume.options or {}).get("type") != "tmpfs":  # of what is copied into one nothing would be left at the start
            await volumes.borrowed(point.name, record.id, functools.partial(volumefill.fill, layers, [copy]))
    if plain:
        await blocking("disk", volumefill.fill, layers, plain)
