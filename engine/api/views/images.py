"""Images as `inspect`, `images` and `history` show them. Source: the Engine API reference 1.51, dockerd's classic store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from engine.api.version import Version
from engine.api.views.times import NEVER, rfc3339, seconds_from_rfc3339
from engine.spec.image import ContainerConfig, History
from engine.spec.platform import Platform

if TYPE_CHECKING:
    from engine.service.imagemanifests import Summary
    from engine.spec.image import Descriptor
    from engine.store.images import ImageRecord

Json = dict[str, Any]

# Members of a container's configuration that dockerd shows for images too, always empty; 1.50 was the last that had them all.
_CONTAINER_ONLY: Json = {
    "Hostname": "",
    "Domainname": "",
    "AttachStdin": False,
    "AttachStdout": False,
    "AttachStderr": False,
    "Tty": False,
    "OpenStdin": False,
    "StdinOnce": False,
    "Image": "",
}


def config(value: ContainerConfig, version: Version) -> Json:
    """The `Config` member: the image's defaults for containers."""
    shown: Json = dict(_CONTAINER_ONLY) if version < (1, 50) else {}
    shown.update(
        User=value.user,
        Env=value.env,
        Cmd=value.cmd,
        Volumes=value.volumes,
        WorkingDir=value.working_dir,
        Entrypoint=value.entrypoint,
        OnBuild=value.on_build,
        Labels=value.labels,
    )
    if value.exposed_ports:
        shown["ExposedPorts"] = dict(sorted(value.exposed_ports.items()))  # as Go sorts the keys of a map
    if value.healthcheck:
        shown["Healthcheck"] = msgspec.to_builtins(value.healthcheck)
    if value.args_escaped:
        shown["ArgsEscaped"] = True
    if value.stop_signal:
        shown["StopSignal"] = value.stop_signal
    if value.shell:
        shown["Shell"] = value.shell
    return shown


def inspect(image: ImageRecord, version: Version, *, driver: str = "overlay2", layers: Sequence[str] = ()) -> Json:
    """`GET /images/{name}/json`. `layers`: host folders of the layers, topmost first."""
    own = image.config
    data: Json = {"UpperDir": layers[0]} if layers else {}
    if len(layers) > 1:
        data["LowerDir"] = ":".join(layers[1:])
    shown: Json = {
        "Id": image.id,
        "RepoTags": image.repo_tags,
        "RepoDigests": image.repo_digests,
        "Parent": own.parent,
        "Comment": own.comment or (own.history[-1].comment if own.history else ""),
        "DockerVersion": own.docker_version,
        "Author": own.author,
        "Config": config(own.defaults, version),
        "Architecture": own.architecture,
        "Os": own.os,
        "Size": image.size,
        "GraphDriver": {"Data": data or None, "Name": driver},
        "RootFS": {"Type": "layers", "Layers": image.diff_ids},
        "Metadata": {"LastTagTime": rfc3339(image.tagged) if image.tagged else NEVER},
    }
    if own.created or version < (1, 44):
        shown["Created"] = own.created or NEVER
    if own.variant:
        shown["Variant"] = own.variant
    if own.os_version:
        shown["OsVersion"] = own.os_version
    if version < (1, 44):
        shown["VirtualSize"] = image.size
    if version < (1, 45):
        shown |= container_config(version)
    return shown


def container_config(version: Version) -> Json:
    """A member of inspect below 1.45, always empty since dockerd 26."""
    return {"ContainerConfig": config(ContainerConfig(), version)}


def summary(image: ImageRecord, version: Version, *, shared: int = -1, containers: int = -1) -> Json:
    """One member of `GET /images/json`. `shared`: bytes that other images have too, -1 when it was not asked for."""
    tags, digests = list(image.repo_tags), list(image.repo_digests)
    if version < (1, 43) and not tags and not digests:
        tags, digests = ["<none>:<none>"], ["<none>@<none>"]  # what clients of that time expect for an image without a name
    shown: Json = {
        "Containers": containers if version >= (1, 51) else -1,
        "Created": seconds_from_rfc3339(image.config.created),
        "Id": image.id,
        "Labels": image.config.defaults.labels,
        "ParentId": image.config.parent,
        "RepoDigests": digests,
        "RepoTags": tags,
        "SharedSize": shared,
        "Size": image.size,
    }
    if version < (1, 44):
        shown["VirtualSize"] = image.size
    return shown


def descriptor(value: Descriptor) -> Json:
    """`Descriptor`: OCI's own form and names."""
    shown: Json = msgspec.to_builtins(value)
    return {"mediaType": value.media_type, "digest": value.digest, "size": value.size, **shown}


def manifest(one: Summary) -> Json:
    """One member of `Manifests`: `ImageManifestSummary`."""
    shown: Json = {
        "ID": one.descriptor.digest,
        "Descriptor": descriptor(one.descriptor),
        "Available": one.available,
        "Size": {"Content": one.content, "Total": one.content + one.unpacked},
        "Kind": one.kind,
    }
    if one.kind == "image":
        shown["ImageData"] = {
            "Platform": platform(one.platform or Platform()), "Containers": list(one.containers), "Size": {"Unpacked": one.unpacked},
        }  # fmt: skip
    if one.kind == "attestation":
        shown["AttestationData"] = {"For": one.attests}
    return shown


def platform(value: Platform) -> Json:
    """OCI's platform; the operating system and the architecture are always there."""
    return {"architecture": value.architecture, "os": value.os, **({"variant": value.variant} if value.variant else {})}


def history(image: ImageRecord, sizes: Sequence[int]) -> list[Json]:
    """`GET /images/{name}/history`, newest first. `sizes`: bytes of each layer, bottom first."""
    entries: Sequence[History] = image.config.history or ()
    if not entries:  # an archive without a history still has layers to show
        entries = [History(created=image.config.created) for _ in sizes]
    shown: list[Json] = []
    left = list(sizes)
    for entry in entries:
        size = 0 if entry.empty_layer or not left else left.pop(0)
        shown.append(
            {
                "Comment": entry.comment,
                "Created": seconds_from_rfc3339(entry.created),
                "CreatedBy": entry.created_by,
                "Id": "<missing>",
                "Size": size,
                "Tags": None,
            }
        )
    shown.reverse()
    if shown:
        shown[0].update(Id=image.id, Tags=image.repo_tags or None)
    return shown
