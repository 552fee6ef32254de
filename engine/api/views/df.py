"""What `system df`, the prunes and `system gc` answer. Source: the Engine API reference 1.51, and dockerd's answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from engine.api.version import Version
from engine.api.views import containers as container_views
from engine.api.views import images as image_views
from engine.api.views import volumes as volume_views
from engine.api.views.times import rfc3339

if TYPE_CHECKING:
    from engine.service.collect import Collected
    from engine.service.df import ContainerUse, ImageUse
    from engine.service.prune import Pruned
    from engine.service.volumes import VolumeUse
    from engine.spec.buildcache import CacheRecord
    from engine.spec.mount import MountPoint

Json = dict[str, Any]


def disk_usage(
    version: Version, layers: int, images: Sequence[ImageUse] | None, containers: Sequence[ContainerUse] | None,
    points: Callable[[str], Sequence[MountPoint]], volumes: list[Json] | None = None, cache: Sequence[CacheRecord] | None = None,
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
        "BuildCache": None if cache is None else [_cached(record) for record in cache],
    }


def _cached(record: CacheRecord) -> Json:
    # The blank in the name is dockerd's, and its clients look for it.
    parents = {" Parents": list(record.parents)} if record.parents else {}
    return {
        "ID": record.id,
        **parents,
        "Type": record.type,
        "Description": record.description,
        "InUse": record.in_use,
        "Shared": record.shared,
        "Size": record.size,
        "CreatedAt": rfc3339(record.created_at),
        "LastUsedAt": rfc3339(record.last_used_at) if record.last_used_at else None,
        "UsageCount": record.usage_count,
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
