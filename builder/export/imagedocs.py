"""The documents of an image that was built: its configuration and its manifest. Pure; the same input gives the same bytes.

Follows BuildKit's exporter in what a configuration has, in which order and how it is encoded (Go's encoding/json), so that an image that
differs from its base in metadata alone has the identifier that BuildKit gives it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from builder.graph import Target
from engine.spec import image as spec
from engine.store.images import Layer

_SECOND = 1_000_000_000
# encoding/json escapes these in strings, where alone they can be in JSON.
_ESCAPED = ((b"&", b"\\u0026"), (b"<", b"\\u003c"), (b">", b"\\u003e"), ("\u2028".encode(), b"\\u2028"), ("\u2029".encode(), b"\\u2029"))
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_FORMS = ("gzip", "zstd")


class Squashed(msgspec.Struct, frozen=True):
    """The layers of a build became one: `comment` of its entry in the history."""

    comment: str


def timestamp(nanoseconds: int) -> str:
    """Unix nanoseconds as Go's RFC3339Nano."""
    seconds, rest = divmod(nanoseconds, _SECOND)
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + fraction + "Z"


def history(target: Target, created: Sequence[int], epoch: int | None, squashed: Squashed | None = None) -> tuple[spec.History, ...]:
    """The history: that of the base, then an entry for each step. `created`: when each layer was made (Unix nanoseconds), one for each step
    with a vertex; `epoch` (Unix seconds) takes the place of all of them.

    A step without a layer has the time of the first layer that comes after the first such step, or that of the layer before (BuildKit).
    """
    found = list(target.base.history or ()) if target.base is not None else []
    times = iter([timestamp(epoch * _SECOND)] * len(created) if epoch is not None else map(timestamp, created))
    for step in target.steps:
        layer = step.vertex is not None
        entry = spec.History(
            created=next(times) if layer else None, created_by=step.created_by, author=step.author, comment=step.comment,
            empty_layer=not layer or squashed is not None,
        )  # fmt: skip
        found.append(entry)
    found = _filled(found, epoch)
    if squashed is not None:
        found.append(spec.History(created=found[-1].created if found else None, comment=squashed.comment))
    return tuple(found)


def _filled(entries: list[spec.History], epoch: int | None) -> list[spec.History]:
    if epoch is not None:
        fixed: str | None = timestamp(epoch * _SECOND)
    else:
        fixed = None
        missing = False
        for entry in entries:
            if entry.created is None:
                missing = True
                continue
            fixed = entry.created
            if missing:
                break
    result: list[spec.History] = []
    missing = False
    for entry in entries:
        if entry.created is None:
            missing = True
            entry = msgspec.structs.replace(entry, created=fixed)
        elif missing and epoch is None:
            fixed = entry.created
        result.append(entry)
    return result


def config(
    target: Target, diff_ids: Sequence[str], entries: Sequence[spec.History], extra: Mapping[str, msgspec.Raw] | None = None
) -> bytes:  # fmt: skip
    """The configuration's bytes. `diff_ids`: of all layers, bottom first; `entries`: see `history`; `extra`: further members."""
    image = target.config
    created = next((entry.created for entry in reversed(entries) if entry.created), None)
    members: dict[str, Any] = {
        "architecture": image.architecture or target.platform.architecture,
        "author": image.author,
        "config": _defaults(image.defaults),
        "created": created,
        "history": list(entries),
        "os": image.os,
        "os.version": image.os_version or target.platform.os_version,
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        "variant": image.variant or target.platform.variant,
        **(extra or {}),
    }
    return _encoded({key: value for key, value in sorted(members.items()) if value not in ("", None)})


def _defaults(config: spec.ContainerConfig) -> dict[str, Any]:
    """In the order of BuildKit's structure; what is empty is left out."""
    members = {
        "User": config.user,
        "ExposedPorts": _sorted(config.exposed_ports),
        "Env": config.env,
        "Entrypoint": config.entrypoint,
        "Cmd": config.cmd,
        "Volumes": _sorted(config.volumes),
        "WorkingDir": config.working_dir,
        "Labels": _sorted(config.labels),
        "StopSignal": config.stop_signal,
        "ArgsEscaped": config.args_escaped,
        "Healthcheck": config.healthcheck,
        "OnBuild": config.on_build,
        "StopTimeout": config.stop_timeout,
        "Shell": config.shell,
    }
    return {key: value for key, value in members.items() if value or (key == "StopTimeout" and value is not None)}


def _sorted(members: Mapping[str, Any] | None) -> dict[str, Any]:
    return dict(sorted((members or {}).items(), key=lambda item: item[0].encode()))


def manifest(
    raw: bytes, digest: str, layers: Sequence[Layer], *, docker: bool = False, annotations: Mapping[str, str] | None = None
) -> bytes:  # fmt: skip
    """The manifest's bytes, for the configuration `raw` with its digest; with `docker` in Docker's media types."""
    document = spec.Manifest(
        schema_version=2,
        media_type=spec.DOCKER_MANIFEST if docker else spec.MEDIA_MANIFEST,
        config=spec.Descriptor(media_type=spec.DOCKER_CONFIG if docker else spec.MEDIA_CONFIG, digest=digest, size=len(raw)),
        layers=tuple(
            spec.Descriptor(media_type=layer_type(form_of(one.media_type), docker=docker), digest=one.digest, size=one.size)
            for one in layers
        ),
        annotations=_sorted(annotations) or None,
    )
    return _encoded(document)


def form_of(media_type: str) -> str:
    """How a layer is packed by what its media type says: gzip, zstd or uncompressed."""
    return next((form for form in _FORMS if media_type.endswith(("+" + form, "." + form))), "uncompressed")


def layer_type(form: str, *, docker: bool = False) -> str:
    """The media type of a layer."""
    if docker:
        return f"{_DOCKER_LAYER}.{form}" if form in _FORMS else _DOCKER_LAYER
    return f"{spec.MEDIA_LAYER}+{form}" if form in _FORMS else spec.MEDIA_LAYER


def _encoded(value: Any) -> bytes:
    data = spec.encode(value)
    for plain, escaped in _ESCAPED:
        data = data.replace(plain, escaped)
    return data
