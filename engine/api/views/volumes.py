"""Volumes as the API shows them. Source: the Engine API reference 1.51, "Volume", and dockerd's answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.api.views.times import rfc3339
from engine.spec.volume import VolumeRecord

if TYPE_CHECKING:
    from engine.service.volumes import VolumeUse

Json = dict[str, Any]

_SECOND = 1_000_000_000


def volume(record: VolumeRecord, path: str) -> Json:
    """One volume; `path`: the host path of its files."""
    return {
        "CreatedAt": rfc3339(record.created_at // _SECOND * _SECOND),
        "Driver": record.driver,
        "Labels": record.labels and dict(sorted(record.labels.items())),
        "Mountpoint": path,
        "Name": record.name,
        "Options": record.options and dict(sorted(record.options.items())),
        "Scope": "local",
    }


def used(use: VolumeUse, path: str) -> Json:
    """One volume of `GET /system/df`."""
    return {**volume(use.record, path), "UsageData": {"RefCount": use.containers, "Size": use.size}}


def pruned(names: list[str], size: int) -> Json:
    """`POST /volumes/prune`."""
    return {"VolumesDeleted": names, "SpaceReclaimed": size}
