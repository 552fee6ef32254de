"""`import`: what the configuration of an image says that is made from a root file system's tar. Touches no store."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from engine.spec import changes as instructions
from engine.spec import image as spec
from engine.spec.platform import Platform


def defaults(changes: Sequence[str]) -> spec.ContainerConfig:
    """What Dockerfile instructions say about containers. Raises InvalidParameter."""
    return instructions.apply(spec.ContainerConfig(), changes)


def config(defaults: spec.ContainerConfig, diff_id: str, message: str, platform: Platform) -> bytes:
    """The bytes of the configuration of an image of one layer, made at this moment."""
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return spec.encode(spec.ImageConfig(
        created=now, architecture=platform.architecture, variant=platform.variant, os=platform.os, config=defaults, comment=message,
        rootfs=spec.RootFS(diff_ids=(diff_id,)), history=(spec.History(created=now, comment=message),),
    ))  # fmt: skip
