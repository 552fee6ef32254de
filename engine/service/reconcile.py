"""The one way to start: what the last daemon left is compared with what is really there, in fixed phases.

Rows are loaded; each bundle's monitor is asked, else its exit record read, else its control group killed and the container reported as
lost; then what no row owns is swept. One damaged object never keeps the daemon from starting: it is named in the log and left out.
"""

from __future__ import annotations

import functools
import logging
import os

import msgspec
import trio

from engine.errors import KnarrError
from engine.linux.process import start_time
from engine.monitor import client
from engine.monitor.client import MonitorGone
from engine.service import bundle
from engine.service.container import Container
from engine.service.containers import Containers
from engine.service.context import Context
from engine.service.mounts import requested
from engine.service.supervise import Process, recorded
from engine.spec import lifecycle
from engine.spec.container import ContainerRecord
from engine.store.db import DatabaseError
from engine.wire import control

log = logging.getLogger("knarr.reconcile")

_ASK_SECONDS = 5.0
_HOST_STOPPED = "the host or its container runtime stopped while it ran"


async def reconcile(context: Context, containers: Containers) -> None:
    """Bring records and reality together. Raises only for what makes the whole store unusable."""
    load(context, containers)
    async with trio.open_nursery() as nursery:
        for container in list(containers.by_id.values()):
            nursery.start_soon(_recover_one, context, containers, container)
    await context.endpoints.adopted()
    sweep(context, containers)


async def _recover_one(context: Context, containers: Containers, container: Container) -> None:
    try:
        await recover(context, containers, container)
    except (OSError, KnarrError, DatabaseError) as error:
        log.error("container %s: finding out what became of it: %s", container.id[:12], error)


def load(context: Context, containers: Containers) -> None:
    """Rows to containers; a row that cannot be read, or whose snapshot is gone, is named and left out of the list."""
    decoder = msgspec.json.Decoder(ContainerRecord)
    for container_id, raw in context.store.load():
        try:
            record = decoder.decode(raw)
        except msgspec.DecodeError as error:
            log.error("container %s: its record is damaged and set aside: %s", container_id[:12], error)
            continue
        if not record.mount_points and (record.host_config.binds or record.host_config.mounts or record.host_config.tmpfs):
            record.mount_points = requested(record.host_config)  # of a version that did not store them
        if not context.snapshots.has(record.id):
            log.error("container %s (%s): its snapshot is gone; dropping its record", record.id[:12], record.name)
            _drop(context, record.id)
            continue
        container = Container(context, record)
        containers.by_id[record.id] = container
        if record.name in containers.by_name:
            record.name = record.id[:12]
        containers.by_name[record.name] = container


def _drop(context: Context, id: str) -> None:
    try:
        context.store.delete(id)
    except DatabaseError as error:
        log.error("container %s: dropping its record: %s", id[:12], error)


async def recover(context: Context, containers: Containers, container: Container) -> None:
    """One container: adopt it, or find out how it ended."""
    state = container.record.state
    with trio.move_on_after(_ASK_SECONDS):
        if await adopt(context, containers, container):
            return
    started = 0 if state.alive else _unstored_start(container)
    if started:
        state = container.record.state = msgspec.structs.replace(state, status="running", started_at=started)
    if not state.alive:
        if container.record.host_config.auto_remove and state.started_at:
            containers.remove_ended(container)
        return
    for pid in context.cgroups.pids(container.cgroup):
        log.warning("container %s: process %d has no monitor and is killed", container.id[:12], pid)
    context.cgroups.kill(container.cgroup)
    container.placement = context.cgroups.placement(container.cgroup)
    containers.runner.settle(container, recorded(container.bundle, _HOST_STOPPED))


def _unstored_start(container: Container) -> int:
    """When a run began that the dead daemon had not stored yet, ns since the epoch; 0 when there was none.

    It left an exit record that is newer than the row, or, if its monitor was killed, the socket that a monitor removes at the end.
    """
    try:
        found = client.read_exit(container.bundle)
        if found is not None:
            return found.started if found.finished > container.record.state.finished_at else 0
    except KnarrError as error:
        log.error("container %s: %s", container.id[:12], error)
    try:
        return os.lstat(f"{container.bundle}/{client.SOCKET_NAME}").st_mtime_ns
    except FileNotFoundError:
        return 0


async def adopt(context: Context, containers: Containers, container: Container) -> bool:
    """Reconnect to the monitor of a running container; False when there is none or its process has ended."""
    try:
        connection = client.connect(container.bundle)
    except (MonitorGone, OSError):
        return False
    process = Process(connection, container.bundle, lambda ended: containers.runner.settle(container, ended))
    try:
        found = await process.status()
    except (MonitorGone, control.MalformedMessage) as error:
        log.warning("container %s: its monitor does not answer: %s", container.id[:12], error)
        process.close()
        return False
    if found.phase != "running" or start_time(found.pid) != found.start_time:
        process.close()
        return False
    state = container.record.state
    if not state.alive or state.started_at != found.started:  # another run than the one that is stored
        container.record.state = msgspec.structs.replace(state, status="exited" if state.alive else state.status)
        container.transition(lifecycle.Started(found.pid, found.start_time, found.started))
        container.save()
    container.record.state.pid, container.record.state.pid_start = found.pid, found.start_time
    container.process = process
    container.placement = context.cgroups.placement(container.cgroup)
    process.on_oom = lambda: container.publish("oom")
    try:
        context.endpoints.adopt(container)
    except (OSError, KnarrError) as error:
        log.error("container %s: what it has of its networks is not known, restart it: %s", container.id[:12], error)
    context.nursery.start_soon(containers.runner.watch, container, process)
    return True


def sweep(context: Context, containers: Containers) -> None:
    """Remove what no record owns: bundles, log folders, snapshots, control groups."""
    known = containers.by_id
    for name in set(os.listdir(context.layout.bundles)) - known.keys():
        # Its control group goes by the bundle that names it: other daemons may have groups below the same parent.
        folder = context.layout.bundle(name)
        _sweep_group(context, bundle.cgroup(folder) or f"{context.settings.cgroup_parent}/{name}")
        _sweep_one(folder)
    for name in set(os.listdir(context.layout.containers)) - known.keys():
        _sweep_one(context.layout.container(name))
    _sweep_one(f"{context.layout.exec_root}/build")  # secrets of builds that were interrupted
    context.chores.later("removing snapshots that no container owns", context.snapshots.sweep)
    for key in context.snapshots.keys():  # noqa: SIM118 - not a mapping
        if key not in known:
            _sweep_snapshot(context, key)


def _sweep_snapshot(context: Context, key: str) -> None:
    try:
        folder = context.snapshots.forget(key)
    except DatabaseError as error:
        log.error("removing snapshot %s, which no container owns: %s", key[:12], error)
        return
    remove = functools.partial(context.snapshots.delete_files, folder)
    context.chores.later(f"removing {folder}, which no container owns", remove)


def _sweep_one(path: str) -> None:
    log.info("removing %s, which no container owns", path)
    try:
        bundle.remove(path)
    except OSError as error:
        log.warning("removing %s: %s", path, error)


def _sweep_group(context: Context, group: str) -> None:
    try:
        context.cgroups.kill(group)
        context.cgroups.remove(group)
    except (OSError, KnarrError) as error:
        log.warning("removing control group %s: %s", group, error)
