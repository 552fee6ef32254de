"""What `-v`, `--mount`, `--tmpfs` and `--volumes-from` say: requests to mounts, checked. Pure.

Rules and messages are those of Docker's parser (Engine API "Mount", "HostConfig.Binds"); mount options those of the OCI runtime
specification. Which volume or image a mount stands for is `service.mounts`' business.
"""

from __future__ import annotations

import posixpath

import msgspec

from engine.errors import InvalidParameter
from engine.spec import idmapping
from engine.spec.docker.containers import HostConfig, IdRange, MountRequest, VolumeOptions
from engine.spec.mount import IdMapping, MountPoint
from engine.spec.volume import LOCAL

_PROPAGATIONS = frozenset(("private", "rprivate", "shared", "rshared", "slave", "rslave"))
# Words of `-v`'s third part; of each kind at most one may be given.
_MODES = {
    **dict.fromkeys(("ro", "rw"), "access"),
    **dict.fromkeys(("z", "Z"), "label"),  # SELinux relabelling: accepted, there is nothing to do on this host
    **dict.fromkeys(_PROPAGATIONS, "propagation"),
    "nocopy": "copy",
    **dict.fromkeys(("consistent", "cached", "delegated", "default"), "consistency"),  # Docker Desktop's hints
}
_MOUNTS_MAX = 512  # each is one step of a start or two, and a start has 1024 at most
_TMPFS_DEFAULTS = ("noexec", "nosuid", "nodev")  # Docker's defaults for --tmpfs
_OPTIONS = {"bind": "bind_options", "volume": "volume_options", "image": "image_options", "tmpfs": "tmpfs_options"}
_OPTION_NAMES = {"bind": "BindOptions", "volume": "VolumeOptions", "image": "ImageOptions", "tmpfs": "TmpfsOptions"}


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A mount as asked for. `labels` and `driver_options` are for its volume, should it have to be made."""

    point: MountPoint
    labels: dict[str, str] | None = None
    driver_options: dict[str, str] | None = None


class Source(msgspec.Struct, frozen=True):
    """A container whose mounts are taken over (--volumes-from), and whether they can be written to."""

    container: str
    writable: bool


def requested(hc: HostConfig) -> list[Request]:
    """Every mount that a host configuration names, in the request's order. Raises InvalidParameter."""
    driver = hc.volume_driver or LOCAL
    found = [_bind(text, driver) for text in hc.binds or ()]
    found += [_mount(item, driver) for item in hc.mounts or ()]
    found += [Request(point=_tmpfs(target, options)) for target, options in (hc.tmpfs or {}).items()]
    if len(found) > _MOUNTS_MAX:
        raise InvalidParameter(f"{len(found)} mounts: a container may have {_MOUNTS_MAX}")
    seen: set[str] = set()
    for request in found:
        destination = request.point.destination
        if destination in seen:
            raise InvalidParameter(f"Duplicate mount point: {destination}")
        seen.add(destination)
    return found


def sources(texts: list[str] | None) -> list[Source]:
    """`CONTAINER[:MODE]` of --volumes-from. Raises InvalidParameter."""
    found = []
    for text in texts or ():
        if not text:
            raise InvalidParameter("volumes-from specification cannot be an empty string")
        container, _, mode = text.partition(":")
        words = _mode(mode)
        if "copy" in words or "propagation" in words:
            raise InvalidParameter(f"invalid mode: {mode}")
        found.append(Source(container, words.get("access") != "ro"))
    return found


def taken_over(point: MountPoint, writable: bool) -> MountPoint:
    """A mount of another container for one that takes it over; read-only if either says so."""
    rw = point.rw and writable
    if point.rw != rw:
        point = msgspec.structs.replace(point, rw=rw, options=tuple("rro" if word == "rw" else word for word in point.options))
        if point.type == "tmpfs":
            point = msgspec.structs.replace(point, options=(*point.options, "ro"))
    return msgspec.structs.replace(point, mode="", copy=False, create=False)


def declared(path: str, driver: str) -> MountPoint:
    """The anonymous volume of one entry of `Config.Volumes`, which the image's VOLUMEs are in. Raises InvalidParameter."""
    destination = posixpath.normpath(f"/{path}")
    destination = f"/{destination.lstrip('/')}"
    if destination == "/" or "\0" in destination:
        raise InvalidParameter(f"invalid volume specification: '{path}': invalid specification: destination can't be '/'")
    return _volume("", destination, driver, "", rw=True, copy=True)


def _mode(text: str) -> dict[str, str]:
    """The words of a mode by kind."""
    found: dict[str, str] = {}
    if text:
        for word in text.split(","):
            kind = _MODES.get(word)
            if kind is None or kind in found:
                raise InvalidParameter(f"invalid mode: {text}")
            found[kind] = word
    return found


def _destination(path: str, prefix: str) -> str:
    if not path:
        raise InvalidParameter(f"{prefix}field Target must not be empty")
    if not path.startswith("/"):
        raise InvalidParameter(f"{prefix}invalid mount path: '{path}' mount path must be absolute")
    if "\0" in path:
        raise InvalidParameter(f"{prefix}a NUL byte in the mount path")
    clean = "/" + posixpath.normpath(path).lstrip("/")
    if clean == "/":
        raise InvalidParameter(f"{prefix}invalid specification: destination can't be '/'")
    return clean


def _invalid(kind: str) -> str:
    return f'invalid mount config for type "{kind}": '


def _bind(text: str, driver: str) -> Request:
    """One `-v`: [SOURCE:]TARGET[:MODE]."""
    whole = f"invalid volume specification: '{text}'"
    parts = text.split(":")
    if not 1 <= len(parts) <= 3 or not all(parts) or (len(parts) == 2 and not parts[1].startswith("/") and parts[1] in _MODES):
        raise InvalidParameter(whole)
    source, target, mode = "", parts[0], ""
    if len(parts) > 1:
        source, target, mode = parts[0], parts[1], parts[2] if len(parts) == 3 else ""
    kind = "bind" if source.startswith("/") else "volume"
    words = _mode(mode)
    prefix = f"{whole}: {_invalid(kind)}"
    destination = _destination(target, prefix)
    rw, propagation = words.get("access") != "ro", words.get("propagation", "")
    if kind == "volume":
        if propagation:
            raise InvalidParameter(f"{prefix}field BindOptions must not be specified")
        return Request(point=_volume(source, destination, driver, mode or "z", rw=rw, copy="copy" not in words))
    if "copy" in words:
        raise InvalidParameter(f"{prefix}field VolumeOptions must not be specified")
    if "\0" in source:
        raise InvalidParameter(f"{prefix}a NUL byte in the source path")
    access = "rw" if rw else "rro"
    return Request(point=_bind_point(posixpath.normpath(source), destination, mode, access, propagation or "rprivate", create=True))


def _bind_point(
    source: str, destination: str, mode: str, access: str, propagation: str, *, recursive: bool = True, create: bool = False
) -> MountPoint:
    """`access`: rw, ro or rro (everything mounted below, too, which is what Docker does where the kernel can)."""
    options = ("rbind" if recursive else "bind", access, propagation)
    return MountPoint(
        type="bind", source="/" + source.lstrip("/"), destination=destination, mode=mode, rw=access == "rw", propagation=propagation,
        create=create, options=options,
    )  # fmt: skip


def _volume(name: str, destination: str, driver: str, mode: str, *, rw: bool, copy: bool, subpath: str = "") -> MountPoint:
    return MountPoint(
        type="volume", name=name, destination=destination, driver=driver, mode=mode, rw=rw, copy=copy, subpath=subpath,
        anonymous=not name, options=("rbind", "rw" if rw else "rro", "rprivate"),
    )  # fmt: skip


def _mount(item: MountRequest, driver: str) -> Request:
    """One `--mount`."""
    kind = item.type
    prefix = _invalid(kind)
    if kind not in _OPTIONS:
        raise InvalidParameter(f"{prefix}mount type unknown")
    for other, field in _OPTIONS.items():
        if other != kind and getattr(item, field) is not None:
            raise InvalidParameter(f'{_OPTION_NAMES[other]} must not be specified on mount type "{kind}"')
    destination = _destination(item.target, prefix)
    if "\0" in item.source:
        raise InvalidParameter(f"{prefix}a NUL byte in the source")
    mapped = item.uid_mappings or item.gid_mappings
    if mapped and kind == "tmpfs":
        raise InvalidParameter(f"{prefix}field UIDMappings or GIDMappings must not be specified")
    if kind == "bind":
        return Request(point=_owners(item, _mount_bind(item, destination, prefix), prefix))
    if kind == "tmpfs":
        if item.source:
            raise InvalidParameter(f"{prefix}field Source must not be specified")
        return Request(point=_mount_tmpfs(item, destination))
    if kind == "image":
        return Request(point=_owners(item, _mount_image(item, destination, prefix), prefix))
    return _mount_volume(item, item.volume_options or VolumeOptions(), destination, driver, prefix)


def _mount_bind(item: MountRequest, destination: str, prefix: str) -> MountPoint:
    if not item.source:
        raise InvalidParameter(f"{prefix}field Source must not be empty")
    if not item.source.startswith("/"):
        raise InvalidParameter(f"{prefix}invalid mount path: '{item.source}' mount path must be absolute")
    bind = item.bind_options
    propagation = (bind.propagation if bind else "") or "rprivate"
    if propagation not in _PROPAGATIONS:
        raise InvalidParameter(f"{prefix}invalid propagation mode: {propagation}")
    recursive = not (bind and bind.non_recursive)
    access = "rw"
    if item.read_only:
        access = "ro" if bind and (bind.read_only_non_recursive or bind.non_recursive) else "rro"
    return _bind_point(
        posixpath.normpath(item.source), destination, "", access, propagation,
        recursive=recursive, create=bool(bind and bind.create_mountpoint),
    )  # fmt: skip


def _mount_volume(item: MountRequest, options: VolumeOptions, destination: str, driver: str, prefix: str) -> Request:
    if not item.source and item.read_only:
        raise InvalidParameter(f"{prefix}must not set ReadOnly mode when using anonymous volumes")
    subpath = _subpath(options.subpath, prefix)
    if not item.source and subpath:
        raise InvalidParameter(f"{prefix}must not set Subpath when using anonymous volumes")
    config = options.driver_config
    point = _volume(
        item.source, destination, (config.name if config else "") or driver, "z",
        rw=not item.read_only, copy=not (options.no_copy or subpath), subpath=subpath,
    )  # fmt: skip
    return Request(point=_owners(item, point, prefix), labels=options.labels, driver_options=config.options if config else None)


def _owners(item: MountRequest, point: MountPoint, prefix: str) -> MountPoint:
    """The mount with the mappings of owners that were asked for; ids of the kind that has none stay as they are.

    With nosuid: who may write as the owner that a file has could else make set-user-ID programs of the one that is shown, of root perhaps.
    """
    if not (item.uid_mappings or item.gid_mappings):
        return point
    recursive = "rbind" in point.options
    return msgspec.structs.replace(
        point,
        options=(*point.options, "nosuid", "ridmap" if recursive else "idmap"),
        uid_mappings=_mapping(item.uid_mappings, "UIDMappings", prefix),
        gid_mappings=_mapping(item.gid_mappings, "GIDMappings", prefix),
    )


def _mapping(ranges: list[IdRange] | None, field: str, prefix: str) -> tuple[IdMapping, ...]:
    if not ranges:
        return idmapping.IDENTITY
    mapping = tuple(IdMapping(container_id=item.container_id, host_id=item.host_id, size=item.size) for item in ranges)
    problem = idmapping.problem(mapping)
    if problem:
        raise InvalidParameter(f"{prefix}{field}: {problem}")
    return mapping


def _mount_image(item: MountRequest, destination: str, prefix: str) -> MountPoint:
    if not item.source:
        raise InvalidParameter(f"{prefix}field Source must not be empty")
    subpath = _subpath(item.image_options.subpath if item.image_options else "", prefix)
    return MountPoint(type="image", name=item.source, destination=destination, rw=False, subpath=subpath)


def _subpath(text: str, prefix: str) -> str:
    """A relative path that stays inside by its words; whether links in it do is looked at when it is mounted."""
    if not text:
        return ""
    clean = posixpath.normpath(text)
    if text.startswith("/") or clean == ".." or clean.startswith("../") or "\0" in text:
        raise InvalidParameter(f"{prefix}subpath must be a relative path within the volume")
    return "" if clean == "." else clean


def _mount_tmpfs(item: MountRequest, destination: str) -> MountPoint:
    options: list[str] = list(_TMPFS_DEFAULTS)
    given = item.tmpfs_options
    if given:
        if given.size_bytes < 0:
            raise InvalidParameter(f"{_invalid('tmpfs')}invalid size: {given.size_bytes}")
        if given.size_bytes:
            options.append(f"size={given.size_bytes}")
        if given.mode:
            options.append(f"mode={given.mode:o}")
        for pair in given.options or ():
            if not 1 <= len(pair) <= 2 or any("," in word or "\0" in word for word in pair):
                raise InvalidParameter(f"{_invalid('tmpfs')}invalid option array length, or a comma in an option: {pair}")
            _tmpfs_word(options, "=".join(pair))
    if item.read_only:
        options.append("ro")
    return MountPoint(type="tmpfs", destination=destination, rw=not item.read_only, options=tuple(options))


def _tmpfs(target: str, text: str) -> MountPoint:
    """One `--tmpfs`."""
    options = list(_TMPFS_DEFAULTS)
    for word in filter(None, text.split(",")):
        _tmpfs_word(options, word)
    return MountPoint(
        type="tmpfs", destination=_destination(target, _invalid("tmpfs")), rw="ro" not in options, options=tuple(options), hidden=True
    )


def _tmpfs_word(options: list[str], word: str) -> None:
    """Add a word; `exec` takes `noexec` away."""
    opposite = word.removeprefix("no") if word.startswith("no") else "no" + word
    if opposite in options:
        options.remove(opposite)
    if word not in options:
        options.append(word)
