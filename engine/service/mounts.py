"""What `-v`, `--mount` and `--tmpfs` mean: requests to mounts, checked. `requested` is pure; `prepare` touches the host.

Bind mounts and tmpfs are here; named and anonymous volumes and image mounts answer `not implemented`. Options: Docker's bind mount
reference and the OCI runtime specification (mount options).
"""

from __future__ import annotations

import os
import posixpath

import msgspec

from engine.errors import InvalidParameter, NotImplementedYet
from engine.spec.docker.containers import HostConfig, MountRequest
from engine.spec.mount import Mount

_PROPAGATIONS = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
_ACCEPTED = ("z", "Z", "cached", "delegated", "consistent")  # SELinux relabelling and Docker Desktop's hints: nothing to do on this host
_TMPFS_DEFAULTS = ("noexec", "nosuid", "nodev")  # Docker's defaults for --tmpfs


class MountPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One mount as inspect shows it, and what makes it. `create`: make the source folder when it is missing (-v does, --mount does not)."""

    type: str
    source: str
    destination: str
    mode: str
    rw: bool
    propagation: str
    mount: Mount
    create: bool = False


def requested(hc: HostConfig) -> list[MountPoint]:
    """Every mount of a request, ordered so that parents come first. Raises InvalidParameter, NotImplementedYet."""
    found = [_bind(text) for text in hc.binds or ()]
    found += [_mount(item) for item in hc.mounts or ()]
    found += [_tmpfs(target, options) for target, options in (hc.tmpfs or {}).items()]
    seen: set[str] = set()
    for point in found:
        if point.destination in seen:
            raise InvalidParameter(f"Duplicate mount point: {point.destination}")
        seen.add(point.destination)
    return sorted(found, key=lambda point: point.destination.count("/"))


def prepare(points: list[MountPoint]) -> None:
    """Make missing sources of `-v` binds; refuse missing sources of `--mount`. Raises InvalidParameter with Docker's words."""
    for point in points:
        if point.type != "bind" or os.path.lexists(point.source):
            continue
        if not point.create:
            raise InvalidParameter(f'invalid mount config for type "bind": bind source path does not exist: {point.source}')
        try:
            os.makedirs(point.source, 0o755, exist_ok=True)
        except OSError as error:
            raise InvalidParameter(f"error while creating mount source path '{point.source}': {os.strerror(error.errno or 0)}")


def _target(path: str, whole: str) -> str:
    if not path.startswith("/"):
        raise InvalidParameter(f"invalid volume specification: '{whole}': invalid mount path: '{path}' mount path must be absolute")
    clean = posixpath.normpath(path)
    clean = "/" + clean.lstrip("/")
    if clean == "/":
        raise InvalidParameter(f"invalid volume specification: '{whole}': destination can't be '/'")
    if "\0" in clean:
        raise InvalidParameter("invalid volume specification: a NUL byte in the mount path")
    return clean


def _bind(text: str) -> MountPoint:
    parts = text.split(":")
    if not 1 <= len(parts) <= 3 or not all(parts[:2]):
        raise InvalidParameter(f"invalid volume specification: '{text}'")
    if len(parts) == 1:
        raise NotImplementedYet(f"--volume {text}", hint="anonymous volumes are not there yet; bind mounts (-v /host/path:/path) are")
    source, destination = parts[0], _target(parts[1], text)
    if not source.startswith("/"):
        raise NotImplementedYet(f"--volume {text}", hint="named volumes are not there yet; bind mounts (-v /host/path:/path) are")
    mode = parts[2] if len(parts) == 3 else ""
    rw, propagation = True, "rprivate"
    for word in filter(None, mode.split(",")):
        if word in ("ro", "rw"):
            rw = word == "rw"
        elif word in _PROPAGATIONS:
            propagation = word
        elif word not in _ACCEPTED:
            raise InvalidParameter(f"invalid volume specification: '{text}': invalid mode: {mode}")
    return _bind_point(posixpath.normpath(source), destination, mode, rw, propagation, recursive=True, create=True)


def _bind_point(source: str, destination: str, mode: str, rw: bool, propagation: str, *, recursive: bool, create: bool) -> MountPoint:
    options = ("rbind" if recursive else "bind", "rw" if rw else "ro", propagation)
    return MountPoint(
        type="bind", source=source, destination=destination, mode=mode, rw=rw, propagation=propagation, create=create,
        mount=Mount(destination=destination, type="bind", source=source, options=options),
    )  # fmt: skip


def _mount(item: MountRequest) -> MountPoint:
    where = f"mount of type {item.type!r} on {item.target!r}"
    if item.type in ("volume", "image"):
        raise NotImplementedYet(f"--mount type={item.type}", hint="this version has type=bind and type=tmpfs")
    if item.type not in ("bind", "tmpfs"):
        raise InvalidParameter(f"mount type unknown: {item.type!r}")
    destination = _target(item.target, item.target)
    if item.volume_options or item.image_options:
        raise InvalidParameter(f"invalid mount config: options of another type given for {where}")
    if item.type == "tmpfs":
        if item.source:
            raise InvalidParameter('invalid mount config for type "tmpfs": field Source must not be specified')
        return _tmpfs_mount(item, destination)
    if not item.source.startswith("/"):
        raise InvalidParameter(f"invalid mount config for type \"bind\": invalid mount path: '{item.source}' mount path must be absolute")
    bind = item.bind_options
    propagation = (bind.propagation if bind else "") or "rprivate"
    if propagation not in _PROPAGATIONS:
        raise InvalidParameter(f'invalid mount config for type "bind": invalid propagation mode: {propagation}')
    point = _bind_point(
        posixpath.normpath(item.source), destination, "", not item.read_only, propagation,
        recursive=not (bind and bind.non_recursive), create=bool(bind and bind.create_mountpoint),
    )  # fmt: skip
    # Docker mounts read-only recursively where the kernel can (5.12), unless told not to.
    if item.read_only and not (bind and (bind.read_only_non_recursive or bind.non_recursive)):
        options = tuple("rro" if word == "ro" else word for word in point.mount.options)
        return msgspec.structs.replace(point, mount=msgspec.structs.replace(point.mount, options=options))
    return point


def _tmpfs_mount(item: MountRequest, destination: str) -> MountPoint:
    options: list[str] = list(_TMPFS_DEFAULTS)
    given = item.tmpfs_options
    if given:
        if given.size_bytes:
            options.append(f"size={given.size_bytes}")
        if given.mode:
            options.append(f"mode={given.mode:o}")
        for pair in given.options or ():
            options.append("=".join(pair))
    if item.read_only:
        options.append("ro")
    return _tmpfs_point(destination, options)


def _tmpfs(target: str, text: str) -> MountPoint:
    options = list(_TMPFS_DEFAULTS)
    for word in filter(None, text.split(",")):
        opposite = word.removeprefix("no") if word.startswith("no") else "no" + word
        if opposite in options:
            options.remove(opposite)
        if word not in options:
            options.append(word)
    return _tmpfs_point(_target(target, target), options)


def _tmpfs_point(destination: str, options: list[str]) -> MountPoint:
    rw = "ro" not in options
    mount = Mount(destination=destination, type="tmpfs", source="tmpfs", options=tuple(options))
    return MountPoint(type="tmpfs", source="", destination=destination, mode="", rw=rw, propagation="", mount=mount)
