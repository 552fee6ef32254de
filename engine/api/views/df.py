"""What `system df`, the prunes and `system gc` answer. Source: the Engine API reference 1.51, and dockerd's answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from engine.api.version import Version
from engine.api.views import containers as container_views
from engine.api.views import images as image_views
from engine.api.views import volumes as volume_views

if TYPE_CHECKING:
    from engine.service.collect import Collected
    from engine.service.df import ContainerUse, ImageUse
    from engine.service.prune import Pruned
    from engine.service.volumes import VolumeUse
    from engine.spec.mount import MountPoint

Json = dict[str, Any]


def disk_usage(
    version: Version, layers: int, images: Sequence[ImageUse] | None, containers: Sequence[ContainerUse] | None,
    points: Callable[[str], Sequence[MountPoint]], wanted: Collection[str], volumes: list[Json] | None = None,
) -> Json:  # fmt: skip
    """`GET /system/df`; `volumes` from the function of this name. Kinds that were not asked for are null."""
    return {
        "LayersSize": layers,
        "Images": None if images is None else [_image(one, version) for one in images],
        "Containers": None
        if containers is None
        else [
            container_views.summary(one.record, version, points=points(one.record.id), size=(one.written, one.whole)) for one in containers
        ],
        "Volumes": volumes,
        "BuildCache": [] if "build-cache" in wanted else None,
    }


def _image(use: ImageUse, version: Version) -> Json:
    shown = image_views.summary(use.image, version, shared=use.shared, containers=use.containers)
    return {**shown, "Containers": use.containers, "RepoDigests": shown["RepoDigests"] or None, "RepoTags": shown["RepoTags"] or None}


def volumes(uses: Sequence[VolumeUse], path: Callable[[str], str]) -> list[Json]:
    """The `Volumes` member; `path`: from a name to a host path."""
    return [volume_views.used(use, path(use.record.name)) for use in uses]


def pruned_images(pruned: Pruned) -> Json:
    """`POST /images/prune`."""
    return {"ImagesDeleted": list(pruned.images) or None, "SpaceReclaimed": pruned.bytes}


def pruned_containers(pruned: Pruned) -> Json:
    """`POST /containers/prune`."""
    return {"ContainersDeleted": list(pruned.containers) or None, "SpaceReclaimed": pruned.bytes}


def collected(found: Collected, dry_run: bool) -> Json:
    """`POST /system/gc`."""
    return {
        "DryRun": dry_run,
        "Removed": [
            {
                "Id": removal.id,
                "Names": [f"{repository}:{tag}" for repository, tag in removal.names],
                "Reason": removal.reason,
                "Size": removal.bytes,
            }
            for removal in found.removals
        ],
        "SpaceReclaimed": found.bytes,
        "Used": found.before.used,
        "Total": found.before.total,
    }
