"""Bodies of the volume endpoints as Docker's clients send them (Engine API 1.51). Pure data, no policy."""

from __future__ import annotations

import msgspec

from engine.spec.docker.names import pascal


class VolumeCreateRequest(msgspec.Struct, rename=pascal):
    """`POST /volumes/create`. `cluster_volume_spec` is Swarm's."""

    name: str = ""
    driver: str = ""
    driver_opts: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    cluster_volume_spec: dict[str, object] | None = None
