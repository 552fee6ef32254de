"""The one currency between parts that never meet: a mount as store, volumes and plans all understand it. Pure data."""

from __future__ import annotations

import msgspec


class IdMapping(msgspec.Struct, frozen=True, kw_only=True):
    """A range of user or group ids: `size` ids from `container_id` inside are `host_id` onwards outside (config-linux.md)."""

    container_id: int = msgspec.field(name="containerID")
    host_id: int = msgspec.field(name="hostID")
    size: int


class Mount(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One mount, with the fields of the OCI runtime specification (config.md, "Mounts").

    `type` is a file system type or "bind"; `source` a device, a host path or a name; `destination` an absolute path inside
    the container ("" or "/" for its root); `options` are mount(8) words such as "ro", "nosuid", "rbind", "lowerdir=...".
    `base`: when set, a host directory that relative paths in `source` and in overlay options are meant from, which keeps
    overlay's option string below one page with many layers. `subpath`: for a bind, the relative path below `source` that is meant; links
    in it must not lead out. `uid_mappings` and `gid_mappings` ask for an idmapped mount; `userns` is the path of a namespace that has them.
    `namespace`: for a bind, the path of another mount namespace's file, if `source` is a path of that.
    """

    destination: str = "/"
    type: str = "bind"
    source: str = ""
    options: tuple[str, ...] = ()
    base: str = ""
    subpath: str = ""
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    userns: str = ""
    namespace: str = ""


class MountPoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One mount of a container, resolved at create and stored with it: the members that inspect shows, and what makes it.

    `type`: bind, volume, tmpfs or image; `name`: the volume's, or the image as it was asked for; `source`: a host path, "" for a volume
    (its place follows from its name) and for a tmpfs; `image`: identifier of the image. `options`: mount(8) words.

    `create`: make the source when it is missing (`-v` does). `copy`: a new volume begins with what the image has at the destination.
    `anonymous`: its volume was made for it and goes with `rm -v`. `hidden`: inspect does not list it (`--tmpfs`).
    """

    type: str
    destination: str
    name: str = ""
    source: str = ""
    driver: str = ""
    mode: str = ""
    rw: bool = True
    propagation: str = ""
    options: tuple[str, ...] = ()
    subpath: str = ""
    image: str = ""
    create: bool = False
    copy: bool = False
    anonymous: bool = False
    hidden: bool = False
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
