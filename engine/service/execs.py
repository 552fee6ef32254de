"""Execs: further processes in a running container, each under a monitor of its own. They live in memory, as in Docker.

The plan joins the container's namespaces by its first process, enters its control groups, and runs with its limits.
"""

from __future__ import annotations

import contextlib
import logging
import os
import posixpath
import socket

import trio

from engine.errors import Conflict, InvalidParameter, LaunchError, NotFound
from engine.linux.process import start_time
from engine.monitor.client import MonitorGone
from engine.runtime import ops, plan
from engine.runtime.ops import Op
from engine.service import attach, bundle, create, specgen, users
from engine.service.attach import Attachment
from engine.service.container import Container, Pending
from engine.service.containers import Containers
from engine.service.context import Context
from engine.service.supervise import Ended, LaunchFailed, Process, launch_error
from engine.spec.container import ExecRecord
from engine.spec.docker.containers import ExecRequest, ExecStartRequest
from engine.spec.docker.streams import AttachOptions
from engine.wire import control

log = logging.getLogger("knarr.execs")

_KEPT = 300.0  # seconds that a finished exec can be inspected; Docker drops them on a 5 minute timer


class Exec:
    """One exec: its record and, while it runs, its process."""

    def __init__(self, record: ExecRecord, container: Container) -> None:
        self.record = record
        self.container = container
        self.process: Process | None = None
        self.pending: list[Pending] = []
        self.ops: tuple[Op, ...] = ()
        self.ended = trio.Event()
        self.kept = True  # for a while after its end, to be inspected


class Execs:
    """All execs by id."""

    def __init__(self, context: Context, containers: Containers) -> None:
        self._context = context
        self._containers = containers
        self._by_id: dict[str, Exec] = {}
        containers.on_removed = self.forget

    def get(self, ref: str) -> ExecRecord:
        """The record. Raises NotFound."""
        found = self._find(ref)
        if found.process is not None:
            found.process.catch_up()
        return found.record

    def running(self, container_id: str) -> list[str]:
        """Ids of a container's running execs, for inspect."""
        return [id for id, found in self._by_id.items() if found.record.container_id == container_id and found.record.running]

    def _find(self, ref: str) -> Exec:
        found = self._by_id.get(ref)
        if found is None:
            raise NotFound(f"No such exec instance: {ref}")
        return found

    async def create(self, ref: str, request: ExecRequest) -> str:
        """Register an exec; its id. Raises NotFound, Conflict when the container does not run, InvalidParameter."""
        container = self._containers.find(ref)
        self._check_runs(container)
        words = [request.cmd] if isinstance(request.cmd, str) else request.cmd or []
        if not words:
            raise InvalidParameter("No exec command specified")
        if any("\0" in word for word in (*words, *(request.env or ()))):
            raise InvalidParameter("invalid argument: a NUL byte in the command or the environment")
        if request.working_dir and not request.working_dir.startswith("/"):
            raise InvalidParameter(f"the working directory '{request.working_dir}' is invalid, it needs to be an absolute path")
        attach.detach_keys(request.detach_keys)
        record = ExecRecord(
            id=os.urandom(32).hex(),
            container_id=container.id,
            tty=request.tty,
            open_stdin=request.attach_stdin,
            open_stdout=request.attach_stdout,
            open_stderr=request.attach_stderr,
            detach_keys=request.detach_keys,
            path=words[0],
            args=words[1:],
            env=request.env or [],
            user=request.user,
            privileged=request.privileged,
            working_dir=posixpath.normpath(request.working_dir) if request.working_dir else "",
            console_size=request.console_size,
        )
        self._by_id[record.id] = Exec(record, container)
        container.publish(f"exec_create: {' '.join(words)}", execID=record.id)
        return record.id

    def _check_runs(self, container: Container) -> None:
        state = container.record.state
        if state.status == "paused":
            raise Conflict(f"container {container.name} is paused, unpause the container before exec")
        if state.status == "restarting":
            raise Conflict(f"Container {container.id} is restarting, wait until the container is running")
        if not state.running or container.process is None:
            raise Conflict(f"container {container.id} is not running")

    def prepare(self, ref: str, request: ExecStartRequest) -> Attachment:
        """Check a start; what it returns is run with the connection, or without one by `start`. Raises NotFound, Conflict."""
        found = self._find(ref)
        record = found.record
        if record.started:
            raise Conflict(
                f"exec command {record.id} is already running" if record.running else f"exec command {record.id} has already run"
            )
        self._check_runs(found.container)
        record.started = True
        if request.console_size:
            record.console_size = request.console_size
        options = AttachOptions(
            stream=True, stdin=record.open_stdin, stdout=record.open_stdout, stderr=record.open_stderr, detach_keys=record.detach_keys
        )
        return Attachment(
            attach.message(options, record.tty),
            process=lambda: None,
            pending=found.pending,
            gone=lambda reason: self._detached(found, reason),
            after=lambda: self._launch(found),
            tty=record.tty,
        )

    async def start(self, ref: str, request: ExecStartRequest, connection: None = None) -> None:
        """Start detached. Raises NotFound, Conflict, LaunchError."""
        self.prepare(ref, request)
        await self._launch(self._find(ref))

    async def run(self, ref: str, output: socket.socket) -> Exec:
        """Start with both outputs going unframed to a copy of `output`; `ended` of what is returned is set at the end, and nothing is kept
        after it. Raises as `start`."""
        self.prepare(ref, ExecStartRequest())
        found = self._find(ref)
        found.kept = False
        options = AttachOptions(stream=True, stdin=False, stdout=True, stderr=True, detach_keys="")
        found.pending.append(Pending(os.dup(output.fileno()), attach.message(options, tty=True)))
        await self._launch(found)
        return found

    async def _launch(self, found: Exec) -> None:
        record, container = found.record, found.container
        folder = f"{container.bundle}/exec/{record.id}"
        try:
            connection = await self._context.monitors.take()
        except BaseException:
            self._end(found, 126, folder)
            raise
        try:
            self._check_runs(container)
            found.ops = self._plan(found)
            _make_folder(folder)
        except BaseException as error:
            connection.close()
            self._end(found, 126, folder)
            if isinstance(error, OSError):
                raise LaunchError(f"start exec {record.id[:12]} in container {container.name}: {error}", errno=error.errno or 0) from error
            raise
        process = found.process = Process(connection, folder, lambda ended: self._ended(found, process, ended))
        rows, cols = record.console_size or (0, 0)
        start = control.Start(
            plan=ops.encode(found.ops),
            bundle=folder,
            tty=record.tty,
            rows=rows,
            cols=cols,
            open_stdin=record.open_stdin,
            stdin_once=record.open_stdin,
        )
        container.publish(f"exec_start: {' '.join((record.path, *record.args))}", execID=record.id)
        try:
            await self._hand_over(found, process)
            with trio.CancelScope(shield=True):
                started = await process.launch(start)
        except (LaunchFailed, MonitorGone) as error:
            process.close()
            raise self._failed(found, folder, error) from error
        record.pid = started.pid
        if record.exit_code is None:
            record.running = True
        self._context.nursery.start_soon(self._watch, found, process)

    async def _watch(self, found: Exec, process: Process) -> None:
        try:
            await process.watch()
        except Exception:
            log.exception("exec %s: watching over its process", found.record.id[:12])  # must not end the daemon

    def _plan(self, found: Exec) -> tuple[Op, ...]:
        context, record, container = self._context, found.record, found.container
        init = container.record.state.pid
        process = specgen.exec_process(container.record, record, self._identity(found), context.host)
        capabilities = process.capabilities.bounding if process.capabilities else ()
        return plan.exec_plan(
            process,
            pid=init,
            start_time=container.record.state.pid_start,
            placement=context.cgroups.placement(container.cgroup),
            seccomp=create.seccomp_filter(context, container.record, capabilities, record.privileged),
            tty=record.tty,
        )

    def _identity(self, found: Exec) -> users.Identity:
        """The exec's user by the files that the container has now, read through its own root."""
        container = found.container
        user = found.record.user or container.record.config.user
        state = container.record.state
        roots = (f"/proc/{state.pid}/root",)
        passwd, group = users.read_layers(roots, "etc/passwd"), users.read_layers(roots, "etc/group")
        if start_time(state.pid) != state.pid_start:  # checked last: what was read was read from this very process
            raise Conflict(f"container {container.id} is not running")
        return users.resolve(user, passwd, group, tuple(container.record.host_config.group_add or ()))

    async def _hand_over(self, found: Exec, process: Process) -> None:
        while found.pending:
            client = found.pending.pop()
            try:
                await process.attach(client.fd, client.options, lambda reason: self._detached(found, reason))
            finally:
                client.release()

    def _failed(self, found: Exec, folder: str, error: LaunchFailed | MonitorGone) -> LaunchError:
        failure = error if isinstance(error, LaunchFailed) else LaunchFailed(-1, 0, str(error))
        explained = launch_error(failure, lambda op, errno: plan.explain(found.ops, op, errno))
        self._end(found, plan.exit_code(explained), folder)
        return explained

    def _detached(self, found: Exec, reason: str) -> None:
        if reason == "keys":
            found.container.publish("exec_detach", execID=found.record.id)

    def _ended(self, found: Exec, process: Process, ended: Ended) -> None:
        code = ended.code if ended.code is not None else 255
        self._end(found, code, process.bundle)
        found.container.publish("exec_die", execID=found.record.id, exitCode=str(code))

    def _end(self, found: Exec, code: int, folder: str) -> None:
        record = found.record
        record.running, record.exit_code, record.started, found.process = False, code, True, None
        for client in found.pending:
            client.release()
        found.pending.clear()
        self._context.chores.later(f"removing the folder of exec {record.id[:12]}", lambda: bundle.remove(folder))
        found.ended.set()
        if found.kept:
            self._context.nursery.start_soon(self._forget_later, record.id)
        else:
            self._by_id.pop(record.id, None)

    async def _forget_later(self, exec_id: str) -> None:
        await trio.sleep(_KEPT)
        self._by_id.pop(exec_id, None)

    def forget(self, container_id: str) -> None:
        """Drop the execs of a container that was removed."""
        for exec_id in [id for id, found in self._by_id.items() if found.record.container_id == container_id]:
            del self._by_id[exec_id]

    async def resize(self, ref: str, height: int, width: int) -> None:
        """Raises NotFound, Conflict when it does not run."""
        found = self._find(ref)
        if found.process is None:
            raise Conflict(f"exec command {ref} is not running")
        with contextlib.suppress(MonitorGone):
            await found.process.resize(height, width)


def _make_folder(folder: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(os.path.dirname(folder), 0o700)
    os.mkdir(folder, 0o700)
