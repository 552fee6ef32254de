"""RUN: a process in a new layer, by the same plans, monitors and networks as a container's, but without a record of one.

Nothing of it is in the database but the layer's row, which no container owns: whenever the daemon dies, the next one ends the process by
its bundle and sweeps the rest.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import struct
from collections.abc import Callable
from typing import Protocol

import msgspec
import trio

from builder.faults import BuildFault
from builder.graph import Run
from builder.language.errors import quoted
from builder.solving.mounting import Stubs
from engine.aio.blocking import blocking
from engine.aio.scopes import shielded
from engine.errors import InvalidParameter, KnarrError, LaunchError
from engine.monitor.client import MonitorGone
from engine.runtime import plan
from engine.runtime.ops import Exec
from engine.service import admission, bundle, create, specgen
from engine.service.container import Container, Plan, now
from engine.service.context import Context
from engine.service.running import exec_hint
from engine.service.sandboxes import Joining
from engine.service.supervise import Ended, LaunchFailed, Process, launch_error
from engine.spec.container import ContainerRecord
from engine.spec.docker.containers import Config, CreateRequest, HostConfig
from engine.spec.mount import Mount
from engine.store.db import DatabaseError
from engine.store.snapshots import PROVISIONAL, Snapshot
from engine.store.trees import usage
from engine.wire import control

log = logging.getLogger("knarr.build")

_HOSTNAME = "buildkitsandbox"  # what BuildKit calls it; images' scripts have come to know it
_HEADER = struct.Struct(">BxxxI")
_READ = 1 << 16
_LITTLE = 1 << 20  # bytes: a file system with less room is full
_UNMOUNT_SECONDS = 30.0
_CLEANUP_SECONDS = 60.0


class Output(Protocol):
    """Takes what a process writes."""

    def __call__(self, stream: int, data: bytes) -> None:
        """A piece of standard output (1) or standard error (2)."""

    async def room(self) -> None:
        """Wait until there is room for more; the process waits meanwhile."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a build's options say of every RUN: the fields of a host configuration."""

    host_config: HostConfig


async def run(
    context: Context, op: Run, parent: str | None, mounts: list[Mount], secret_env: list[str], limits: Limits, output: Output
) -> Snapshot:  # fmt: skip
    """Run `op` on the chain or result `parent` and commit what it wrote under a provisional name, not synced.

    Raises BuildFault when the process fails, InvalidParameter, KnarrError. Cancelled or failed, it leaves nothing.
    """
    container = _container(context, op, limits)
    try:
        context.snapshots.prepare(container.id, parent)
        stubs = None
        targets = [mount.destination for mount in mounts]
        if targets:
            stubs = await blocking("disk", Stubs, context.snapshots.lowers(parent or ""), targets)
        try:
            process = await _start(context, op, container, mounts, secret_env, output)
        except LaunchError as error:
            raise BuildFault(_incomplete(op, error.message), hint=error.hint) from error
        if process.code:
            raise BuildFault(_failed(op, process.code, process.oom), code=process.code, hint=_room(context))
        return await _commit(context, container, stubs)
    except BaseException:
        row = context.snapshots.get(container.id)
        if row is None:
            raise  # there was nothing to begin with
        folder = context.snapshots.folder(row)
        if _room(context):
            await clear_away(context, folder, context.snapshots.delete_files)
        try:
            context.snapshots.forget(container.id)
        except DatabaseError as error:
            log.warning("forgetting a step that failed: %s", error)
            context.snapshots.abandon(container.id)  # the row goes at the next start
        context.chores.later(f"removing {folder} of a step that failed", functools.partial(context.snapshots.delete_files, folder))
        raise


async def clear_away(context: Context, folder: str, remove: Callable[[str], object]) -> None:
    """Remove what a step that failed left: soon, or at once when the disk is full, because the database needs room to forget it."""
    what = f"removing {folder} of a step that failed"
    if not _room(context):
        context.chores.later(what, functools.partial(remove, folder))
        return
    with shielded(_CLEANUP_SECONDS):
        try:
            await blocking("disk", remove, folder)
        except OSError as error:
            log.warning("%s: %s", what, error)


def _room(context: Context) -> str:
    """What may be why a process failed, and its output does not always say."""
    found = os.statvfs(context.layout.snapshots)
    return "no space left on the file system of --data-root" if found.f_bavail * found.f_frsize < _LITTLE else ""


async def _commit(context: Context, container: Container, stubs: Stubs | None) -> Snapshot:
    upper = context.snapshots.upper(container.id)

    def measure() -> tuple[int, int]:
        if stubs is not None:
            stubs.remove(upper)
        return usage(upper)

    size, inodes = await blocking("disk", measure)
    row = context.snapshots.commit_active(container.id, PROVISIONAL + os.urandom(8).hex(), size, inodes)
    context.chores.later("removing what overlay needed for a step", functools.partial(context.snapshots.drop_work, row))
    return row


def _failed(op: Run, code: int, oom: bool) -> str:
    more = ": the kernel killed a process because there was no memory left" if oom else ""
    return _incomplete(op, f"exit code: {code}{more}")


def _incomplete(op: Run, why: str) -> str:
    """BuildKit's words."""
    return f"process {quoted(' '.join(op.args))} did not complete successfully: {why}"


def check_limits(context: Context, limits: Limits) -> None:
    """Refuse what no step could begin with, also for a build that executes none. Raises InvalidParameter, NotImplementedYet."""
    _container(context, Run(args=("true",), env=(), cwd="/", network="none"), limits)


def _container(context: Context, op: Run, limits: Limits) -> Container:
    config = Config(
        hostname=op.hostname or _HOSTNAME, user=op.user, env=[*op.env, *op.proxies], working_dir=op.cwd or "/", cmd=list(op.args)
    )
    hc = msgspec.structs.replace(
        limits.host_config,
        network_mode={"default": "bridge"}.get(op.network, op.network) if op.network else "bridge",
        extra_hosts=list(op.hosts) or None,
        privileged=op.security == "insecure",
        auto_remove=True,  # what it writes is not worth a sync when it is unmounted
    )
    request = msgspec.convert({**msgspec.structs.asdict(config), "host_config": hc}, CreateRequest, from_attributes=True)
    hc, networking, _ = admission.check(request, hc, Config(), context.settings)
    container_id = create.new_id({})
    return Container(
        context,
        ContainerRecord(
            id=container_id,
            name=f"build-{container_id[:12]}",
            created_at=now(),
            image="",
            image_id="",
            path=op.args[0],
            args=list(op.args[1:]),
            config=config,
            host_config=hc,
            networking=context.networks.checked(networking),
        ),
    )


class _Done(msgspec.Struct):
    code: int
    oom: bool


async def _start(
    context: Context, op: Run, container: Container, mounts: list[Mount], secret_env: list[str], output: Output
) -> _Done:  # fmt: skip
    """From nothing to the end of the process, with everything of it given back."""
    joining = Joining()
    process: Process | None = None
    ended: list[Ended] = []
    try:
        connection = await context.monitors.take()
        try:
            create.make_bundle(context, container)
            ready = _plan(context, container, op, mounts, secret_env)
            joining = await context.endpoints.join(container)
        except BaseException as error:
            connection.close()
            if isinstance(error, OSError):
                raise LaunchError(f"start {' '.join(op.args)}: {error}", errno=error.errno or 0) from error
            raise
        process = Process(connection, container.bundle, ended.append)
        await _launch(context, container, process, ready, joining, output, ended)
    finally:
        with trio.move_on_after(_CLEANUP_SECONDS, shield=True):
            await _clean_up(context, container, process, joining)
    last = ended[0]
    if last.code is None:
        raise KnarrError(f"running {' '.join(op.args)}: nobody knows how it ended: {last.reason}")
    return _Done(last.code, last.oom_kills > 0)


async def _launch(
    context: Context, container: Container, process: Process, ready: Plan, joining: Joining, output: Output, ended: list[Ended]
) -> None:
    ours, theirs = trio.socket.socketpair()
    with ours:
        with theirs:
            await process.attach(theirs.fileno(), control.Attach(id=0, stdin=False), lambda reason: None)
        oom = context.cgroups.oom_source(container.cgroup)
        start = control.Start(
            plan=ready.encoded, bundle=container.bundle, tty=False, rows=0, cols=0, open_stdin=False, stdin_once=False, log=None,
            oom=control.OomSource(path=oom, version=1 if oom.endswith(".oom_control") else 2, watch=False) if oom else None,
        )  # fmt: skip
        try:
            with trio.CancelScope(shield=True):
                await process.begin(start, joining.fd)
                trouble = _joined(context, container, joining)
                started = await process.launched()
        except LaunchFailed as error:
            raise launch_error(error, functools.partial(_explain, context, container, ready)) from error
        except MonitorGone as error:
            raise LaunchError(f"start {container.record.path}: {error}") from error
        container.record.state.pid, container.record.state.pid_start = started.pid, started.start_time
        context.endpoints.keep(container, joining)
        if trouble is not None:
            raise trouble  # now that there is something to kill
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_copy_output, ours, output)
            nursery.start_soon(process.watch)


def _joined(context: Context, container: Container, joining: Joining) -> KnarrError | None:
    """Make the step's network known while its process is being made; what went wrong."""
    try:
        context.endpoints.joined(container, joining)
    except (OSError, KnarrError) as error:
        return KnarrError(f"start {container.record.path}: set up its network: {error}")
    return None


def _explain(context: Context, container: Container, ready: Plan, op: int, errno: int) -> LaunchError:
    found = plan.explain(ready.ops, op, errno)
    if isinstance(ready.ops[op], Exec):  # another architecture, a missing interpreter
        found.hint = exec_hint(context, container) or found.hint
    return found


async def _copy_output(stream: trio.socket.SocketType, output: Output) -> None:
    """The monitor's frames until it has no more."""
    pending = b""
    while data := await stream.recv(_READ):
        pending = pending + data if pending else data
        at = 0
        while len(pending) - at >= _HEADER.size:
            number, length = _HEADER.unpack_from(pending, at)
            if len(pending) - at - _HEADER.size < length:
                break
            output(number, pending[at + _HEADER.size : at + _HEADER.size + length])
            at += _HEADER.size + length
        pending = pending[at:]
        await output.room()


async def _clean_up(context: Context, container: Container, process: Process | None, joining: Joining) -> None:
    """End what still runs, wait until nothing has the layer mounted, give everything back."""
    if process is not None:
        if not process.gone.is_set() and process.started is not None:
            if process.ended is None:
                await blocking("kernel", context.cgroups.kill, container.cgroup)
            with trio.move_on_after(_UNMOUNT_SECONDS):
                if process.ended is None or not process.gone.is_set():
                    with contextlib.suppress(MonitorGone, KnarrError):
                        await process.watch()
        process.close()
    context.endpoints.abandon(container, joining)
    if container.placement is not None:
        await blocking("kernel", context.cgroups.kill, container.cgroup)
        context.chores.later(f"removing control group {container.cgroup}", functools.partial(context.cgroups.remove, container.cgroup))
        container.placement = None
    context.chores.later(f"removing {container.bundle}", functools.partial(bundle.remove, container.bundle))


def _plan(context: Context, container: Container, op: Run, mounts: list[Mount], secret_env: list[str]) -> Plan:
    record = container.record
    limits = specgen.resources(record.host_config)
    if record.host_config.cgroup_parent != context.settings.cgroup_parent:
        bundle.note_cgroup(container.bundle, container.cgroup)
    container.placement = context.cgroups.prepare(container.cgroup, limits)
    # As BuildKit: a step that writes to these hears that it cannot, since nothing of it would be kept; and what it writes to /etc/hostname
    # is kept.
    files = [mount for mount in bundle.binds(container.bundle, readonly=True) if mount.destination != "/etc/hostname"]
    files += _scripts(container.bundle, op)
    try:
        identity = create.identity(context, record)
    except InvalidParameter as error:
        raise BuildFault(_incomplete(op, error.message)) from error
    spec = specgen.spec(record, identity, context.host, files=files, mounts=mounts, limits=limits)
    assert spec.process is not None
    env = specgen.merge_env([specgen.DEFAULT_PATH], [*op.env, *op.proxies, *secret_env])
    if not any(entry.startswith("HOME=") for entry in env):
        env.append(f"HOME={identity.home}")
    spec = msgspec.structs.replace(spec, process=msgspec.structs.replace(spec.process, env=tuple(env)))
    return create.encode_plan(context, container, spec)


def _scripts(folder: str, op: Run) -> list[Mount]:
    """Files that only this process sees."""
    made = []
    for number, (target, content) in enumerate(op.files):
        path = f"{folder}/script-{number}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o755)
        with open(fd, "wb") as file:
            file.write(content)
            os.fchmod(fd, 0o755)
        made.append(Mount(destination=target, type="bind", source=path, options=("bind", "rprivate", "ro")))
    return made
