"""`POST /containers/create`: from a request to a stored container that only has to be started.

Everything a start needs is made here: row and snapshot in one transaction, bundle, control groups, compiled plan.
"""

from __future__ import annotations

import errno
import functools
import os
import posixpath
import re
import shutil
import stat
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from engine.errors import Conflict, InvalidParameter, KnarrError, NotFound
from engine.linux import devices as host_devices
from engine.linux import seccomp
from engine.runtime import ops, plan
from engine.service import admission, bundle, hostfiles, mounts, names, specgen, users
from engine.service.container import Container, Plan, now
from engine.service.context import Context
from engine.service.networkmode import split_link
from engine.service.resolvconf import resolv_conf
from engine.spec.container import ContainerRecord
from engine.spec.docker.containers import Config, CreateRequest, HostConfig, ThrottleDevice
from engine.spec.mount import IdMapping
from engine.spec.runtime import BlockIO, BlockRate, BlockWeight, Device, DeviceRule, Spec
from engine.store.db import DatabaseError
from engine.store.images import ImageRecord

if TYPE_CHECKING:
    from engine.linux.userns import UserNamespace

_RULE = re.compile(r"([abc]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})")


def image_config(image: ImageRecord) -> Config:
    """The image's configuration as a container Config; converted once for each image."""
    found = _CONFIGS.get(image.id)
    if found is None:
        if len(_CONFIGS) >= _CONFIGS_KEPT:
            _CONFIGS.clear()
        found = _CONFIGS[image.id] = msgspec.convert(msgspec.to_builtins(image.config.defaults), Config)
    return found


_CONFIGS_KEPT = 256
_ALONE = specgen.Joined()
_CONFIGS: dict[str, Config] = {}


def record(context: Context, container_id: str, name: str, request: CreateRequest, image: ImageRecord) -> tuple[ContainerRecord, list[str]]:
    """The record of a new container, checked, and Docker's warnings. Raises InvalidParameter, NotImplementedYet."""
    defaults = image_config(image)
    hc, networking, warnings = admission.check(request, request.host_config or HostConfig(), defaults, context.settings)
    config = admission.merge(request, defaults)
    if hc.network_mode == "host" and not config.hostname:
        config.hostname = context.host.hostname
    elif hc.uts_mode == "host":
        if config.hostname:
            raise InvalidParameter("conflicting options: hostname and the UTS mode")
        config.hostname = context.host.hostname
    elif not config.hostname:
        config.hostname = container_id[:12]
    config.working_dir = posixpath.normpath(config.working_dir) if config.working_dir else ""
    warnings += context.cgroups.warnings(specgen.resources(hc))
    words = [*(config.entrypoint or ()), *(config.cmd or ())]
    folder = context.layout.container(container_id)
    driver = hc.log_config.type if hc.log_config else "json-file"
    return ContainerRecord(
        id=container_id,
        name=name,
        created_at=now(),
        image=request.image,
        image_id=image.id,
        path=words[0],
        args=words[1:],
        config=config,
        host_config=hc,
        networking=context.networks.checked(networking),
        log_path=f"{folder}/{container_id}-json.log" if driver == "json-file" else "",
    ), warnings


def new_id(taken: dict[str, Container]) -> str:
    """64 hexadecimal digits; the short form is not all digits, so that it is never taken for a number (as in Docker)."""
    while True:
        found = os.urandom(32).hex()
        if found not in taken and not found[:12].isdigit():
            return found


def choose_name(asked: str | None, container_id: str, by_name: dict[str, Container]) -> str:
    """The checked name asked for, or a free random one. Raises InvalidParameter, Conflict with Docker's words."""
    if asked:
        name = admission.check_name(asked)
        holder = by_name.get(name)
        if holder is not None:
            raise Conflict(
                f'Conflict. The container name "/{name}" is already in use by container "{holder.id}". '
                "You have to remove (or rename) that container to be able to reuse that name."
            )
        return name
    for attempt in range(8):
        name = names.random_name(attempt)
        if name not in by_name:
            return name
    return container_id[:12]


def identity(context: Context, record: ContainerRecord) -> users.Identity:
    """Who the container runs as, by the passwd and group files of its own layer if it has any, else of the image (kept for each chain)."""
    extra = tuple(record.host_config.group_add or ())
    chain = context.snapshots.parent(record.id)
    upper = context.snapshots.upper(record.id)
    if os.path.lexists(f"{upper}/etc"):
        return users.resolve(record.config.user, *_account_files((upper, *context.snapshots.lowers(chain))), extra)
    return _image_identity(chain, context.snapshots.lowers(chain), record.config.user, extra)


@functools.lru_cache(maxsize=128)
def _image_identity(chain: str, lowers: tuple[str, ...], user: str, extra: tuple[str, ...]) -> users.Identity:
    return users.resolve(user, *_account_files(lowers), extra)


def _account_files(layers: tuple[str, ...]) -> tuple[str, str]:
    return users.read_layers(layers, "etc/passwd"), users.read_layers(layers, "etc/group")


def compile_plan(context: Context, container: Container, joined: specgen.Joined = _ALONE, names: str = "") -> Plan:
    """The plan of a container's start. `joined`: whose namespaces it enters; `names`: the bundle whose files of names it has, if it is not
    its own. Raises InvalidParameter."""
    record = container.record
    points = record.mount_points
    if points:
        mounts.prepare(points)
    devices, rules = requested_devices(record.host_config)
    limits = specgen.resources(record.host_config, devices, rules, block_io(record.host_config))
    if container.placement is None:
        if record.host_config.cgroup_parent != context.settings.cgroup_parent:
            bundle.note_cgroup(container.bundle, container.cgroup)
        container.placement = context.cgroups.prepare(container.cgroup, limits)
    spec = specgen.spec(
        record,
        identity(context, record),
        context.host,
        files=bundle.binds(names or container.bundle, readonly=record.host_config.readonly_rootfs),
        mounts=mounts.runtime(context, points),
        devices=devices,
        limits=limits,
        joined=joined,
    )
    return encode_plan(context, container, spec, joined.alive)


def make_bundle(context: Context, container: Container) -> None:
    """The volatile folder, with what can be said before the start: addresses come with it. Raises OSError, InvalidParameter."""
    record = container.record
    hc = record.host_config
    container.resolv_conf = ""
    if hc.network_mode not in ("host", "none"):
        bundle.make(container.bundle, "", record.config.hostname, "")
        return
    servers = hostfiles.host_resolv_conf()
    if hc.dns or hc.dns_search or hc.dns_options:
        servers, _ = resolv_conf(servers, dns=hc.dns or (), search=hc.dns_search or (), options=hc.dns_options or (), embedded=False)
    gateways = context.endpoints.files.host_gateways() if hostfiles.needs_gateway(hc) else ()
    bundle.make(container.bundle, hostfiles.hosts(record, None, gateways), record.config.hostname, servers)


def joins(hc: HostConfig) -> bool:
    """Whether the plan depends on another container that must run by then."""
    return any(mode.startswith("container:") for mode in (hc.pid_mode, hc.network_mode, hc.ipc_mode))


def encode_plan(context: Context, container: Container, spec: Spec, alive: Sequence[tuple[int, int]] = ()) -> Plan:
    """Compile and encode a spec; `alive` as for `container_plan`."""
    record = container.record
    assert spec.process is not None and container.placement is not None
    held: list[UserNamespace] = []
    compiled = plan.container_plan(
        spec,
        # What an --rm container writes is thrown away: no need to write it out when it is unmounted.
        rootfs=(context.snapshots.mount(record.id, volatile=record.host_config.auto_remove),),
        mountpoint=context.layout.root_mountpoint,
        placement=container.placement,
        seccomp=seccomp_filter(context, record, spec.process.capabilities.bounding if spec.process.capabilities else ()),
        tty=record.config.tty,
        userns=functools.partial(_user_namespace, context, held),
        alive=alive,
    )
    return Plan(compiled, ops.encode(compiled), tuple(held))


def _user_namespace(context: Context, held: list[UserNamespace], uids: tuple[IdMapping, ...], gids: tuple[IdMapping, ...]) -> str:
    """The path of a user namespace with these mappings, which stays while `held` has it. Raises KnarrError."""
    try:
        found = context.user_namespaces.get(uids, gids)
    except OSError as error:
        hint = "the limit is /proc/sys/user/max_user_namespaces" if error.errno == errno.ENOSPC else "does this host allow user namespaces?"
        raise KnarrError(f"make a user namespace for a mount with mapped owners: {error}", hint=hint) from error
    held.append(found)
    return found.path


def seccomp_filter(context: Context, record: ContainerRecord, capabilities: tuple[str, ...], privileged: bool = False) -> bytes | None:
    """The container's seccomp program, None for unconfined. Programs are kept by profile and capabilities."""
    option = None
    for item in record.host_config.security_opt or ():
        # JSON has colons of its own, so the older form with a colon counts only where there is no equals sign (as in dockerd).
        key, _, value = item.partition("=" if "=" in item else ":")
        if key == "seccomp":
            option = value
    if option is None and context.settings.seccomp_profile:
        profile = context.settings.seccomp_profile
        option = profile if profile == "unconfined" else seccomp.load_file(profile)
    return _seccomp_program(option, capabilities, privileged or record.host_config.privileged)


@functools.lru_cache(maxsize=32)
def _seccomp_program(option: str | None, capabilities: tuple[str, ...], privileged: bool) -> bytes | None:
    resolved = seccomp.from_option(option, capabilities, privileged=privileged)
    return None if resolved is None else seccomp.compile(resolved)


def requested_devices(hc: HostConfig) -> tuple[tuple[Device, ...], tuple[DeviceRule, ...]]:
    """--device and --device-cgroup-rule. Raises InvalidParameter with Docker's words."""
    devices: list[Device] = []
    rules: list[DeviceRule] = []
    for item in hc.devices or ():
        target = item.path_in_container or item.path_on_host
        found = host_devices.from_host(item.path_on_host, target)
        devices.extend(found)
        access = item.cgroup_permissions or "rwm"
        if set(access) - set("rwm"):
            raise InvalidParameter(f"invalid device mode: {access}")
        rules.extend(DeviceRule(allow=True, type=device.type, major=device.major, minor=device.minor, access=access) for device in found)
    for text in hc.device_cgroup_rules or ():
        match = _RULE.fullmatch(text)
        if match is None:
            raise InvalidParameter(f"invalid device cgroup rule format: '{text}'")
        kind, major, minor, access = match.groups()
        rules.append(
            DeviceRule(
                allow=True, type=kind, access=access, major=None if major == "*" else int(major), minor=None if minor == "*" else int(minor)
            )
        )
    return tuple(devices), tuple(rules)


def block_io(hc: HostConfig) -> BlockIO | None:
    """--blkio-weight, --blkio-weight-device, --device-{read,write}-{bps,iops}. Raises InvalidParameter for what is no block device."""
    weights = tuple(
        BlockWeight(major=major, minor=minor, weight=item.weight)
        for item in hc.blkio_weight_device or ()
        for major, minor in [_numbers(item.path)]
    )
    rates = [
        _rates(items)
        for items in (hc.blkio_device_read_bps, hc.blkio_device_write_bps, hc.blkio_device_read_iops, hc.blkio_device_write_iops)
    ]
    if not (hc.blkio_weight or weights or any(rates)):
        return None
    return BlockIO(
        weight=hc.blkio_weight or None,
        weight_device=weights,
        throttle_read_bps_device=rates[0],
        throttle_write_bps_device=rates[1],
        throttle_read_iops_device=rates[2],
        throttle_write_iops_device=rates[3],
    )


def _rates(items: list[ThrottleDevice] | None) -> tuple[BlockRate, ...]:
    return tuple(BlockRate(major=major, minor=minor, rate=item.rate) for item in items or () for major, minor in [_numbers(item.path)])


def _numbers(path: str) -> tuple[int, int]:
    try:
        info = os.stat(path)
    except OSError as error:
        raise InvalidParameter(f"limiting the block device {path}: {os.strerror(error.errno or 0)}")
    if not stat.S_ISBLK(info.st_mode):
        raise InvalidParameter(f"limiting the block device {path}: it is not a block device")
    return os.major(info.st_rdev), os.minor(info.st_rdev)


def find_image(context: Context, request: CreateRequest, platform: str) -> ImageRecord:
    """The image of a request. Raises NotFound in Docker's words, InvalidParameter without an image."""
    if not request.image:
        raise InvalidParameter("no image was specified: the request has an empty Image")
    return context.images.get(request.image, platform)


def _check_links(links: list[str], find: Callable[[str], ContainerRecord]) -> None:
    """Raises InvalidParameter when a --link leads to no container."""
    for ref, _ in map(split_link, links):
        try:
            find(ref)
        except NotFound as error:
            raise InvalidParameter(f"could not get container for {ref}: {error.message}") from None


def _with_ids(hc: HostConfig, find: Callable[[str], ContainerRecord]) -> HostConfig:
    """`container:NAME` modes with the identifier that the name has now: another container may be called so later. A network's owner may
    come later, as in Docker. Raises InvalidParameter."""
    modes: dict[str, str] = {}
    for field in ("network_mode", "pid_mode", "ipc_mode"):
        word, _, ref = getattr(hc, field).partition(":")
        if word == "container" and ref:
            try:
                modes[field] = f"container:{find(ref).id}"
            except NotFound as error:
                if field != "network_mode":
                    raise InvalidParameter(error.message) from None
    return msgspec.structs.replace(hc, **modes) if modes else hc


async def create(
    context: Context,
    asked_name: str | None,
    request: CreateRequest,
    platform: str,
    by_id: dict[str, Container],
    by_name: dict[str, Container],
    find: Callable[[str], ContainerRecord],
) -> tuple[Container, list[str]]:
    """Make a container. On return it is durable (unless it is an --rm one) and listed. Raises KnarrError."""
    image = find_image(context, request, platform)
    if image.chain_id and not context.snapshots.whole(image.chain_id):
        await context.pulls.unpack(image)
    if request.host_config and request.host_config.mounts:
        await mounts.unpack(context, request.host_config)
    container_id = new_id(by_id)
    name = choose_name(asked_name, container_id, by_name)
    made, warnings = record(context, container_id, name, request, image)
    if joins(made.host_config):
        made.host_config = _with_ids(made.host_config, find)
    if made.host_config.links and made.host_config.network_mode == "bridge":  # elsewhere a link is a name, which may come to be later
        _check_links(made.host_config.links, find)
    found = mounts.resolve(context, made.config, made.host_config, find)
    made.mount_points = found.points
    container = Container(context, made)
    try:
        with context.db.transaction() as cursor:
            context.snapshots.prepare(container_id, image.chain_id or None, cursor, volatile=made.host_config.auto_remove)
            context.store.put(container_id, container.encoded(), cursor)
            for volume in found.volumes:
                context.volumes.store.put(volume, cursor)
    except BaseException as error:
        context.snapshots.abandon(container_id)
        for volume in found.volumes:
            context.volumes.store.forget(volume.name)
        raise _refusal(name, error) from error
    by_id[container_id] = by_name[name] = container
    try:
        if found.points:
            await mounts.fill(context, made, found.volumes)
        make_bundle(context, container)
        container.plan = None if joins(made.host_config) else compile_plan(context, container)
        if not made.host_config.auto_remove or any(not volume.anonymous for volume in found.volumes):
            await context.durability.reached()
    except BaseException as error:
        if not container.gone.is_set():  # by another client, who was faster
            undo(context, container, by_id, by_name, volumes=True)
        raise _refusal(name, error) from error
    container.publish("create")
    context.images.store.touch(image.id, time.time_ns())
    context.durability.soon(f"image {image.id}", functools.partial(context.images.store.write_use, image.id))
    return container, warnings


def _refusal(name: str, error: BaseException) -> BaseException:
    """What the disk or the database said, in words for the client; everything else as it is."""
    if isinstance(error, (OSError, DatabaseError)):
        return KnarrError(f"create container {name}: {error}", hint="the daemon's roots need free space")
    return error


def undo(
    context: Context, container: Container, by_id: dict[str, Container], by_name: dict[str, Container], *, volumes: bool = False
) -> None:
    """Take back everything of a container: rows at once, files and control groups as a chore. With `volumes` the anonymous ones that nobody
    else has go, too. Raises DatabaseError, OSError; then it is still there."""
    orphans = context.volumes.orphans(container.record) if volumes and container.record.mount_points else ()
    removal = context.volumes.removal(orphans) if orphans else None
    try:
        with context.db.transaction() as cursor:
            context.store.delete(container.id, cursor)
            context.snapshots.delete_row(container.id, cursor)
            if removal is not None:
                removal.delete(cursor)
    except BaseException:
        if removal is not None:
            removal.undo()
        raise
    if removal is not None:
        removal.done()
    context.durability.saved(container.id)
    folder = context.snapshots.abandon(container.id)
    by_id.pop(container.id, None)
    if by_name.get(container.name) is container:
        del by_name[container.name]
    release(context, container, folder)
    context.durability.lazily()


def release(context: Context, container: Container, snapshot: str) -> None:
    """Queue the removal of a container's files and control groups."""
    container_id = container.id
    container.placement = container.plan = None
    group, folder, own = container.cgroup, container.bundle, context.layout.container(container_id)

    def work() -> None:
        context.cgroups.remove(group)  # also where this daemon has not placed it: one before it may have
        bundle.remove(folder)
        if os.path.isdir(own):  # there since the container's first output
            shutil.rmtree(own)
        if snapshot:
            context.snapshots.delete_files(snapshot)

    context.chores.later(f"removing the files of container {container_id[:12]}", work)
