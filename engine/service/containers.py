"""The containers of a daemon: finding, listing, making, renaming, removing, waiting; the rest is delegated.

This is what the API talks to. Messages are Docker's, because its clients match on some of them.
"""

from __future__ import annotations

import contextlib
import logging
import os
from builtins import list as List  # a method is called `list`, as in the API
from collections.abc import AsyncIterator, Callable, Mapping

import msgspec

from engine.errors import Conflict, InvalidParameter, KnarrError, NotFound
from engine.linux.signals import signal_number
from engine.service import attach, create, listing, logs, running, top
from engine.service.attach import Attachment
from engine.service.container import Container
from engine.service.context import Context
from engine.service.mounts import MountPoint
from engine.service.running import Runner
from engine.spec import lifecycle
from engine.spec.container import ContainerRecord, State, Trace
from engine.spec.docker.containers import CreateRequest, HostConfig
from engine.spec.docker.streams import AttachOptions, LogsOptions
from engine.spec.filters import Filters
from engine.store.db import DatabaseError

log = logging.getLogger("knarr.containers")

_CONDITIONS = ("", "not-running", "next-exit", "removed")


class Paths(msgspec.Struct, frozen=True):
    """Host paths that inspect shows."""

    hosts: str
    hostname: str
    resolv_conf: str
    log: str
    upper: str
    lowers: tuple[str, ...]
    work: str
    merged: str = ""


class Holder(msgspec.Struct, frozen=True):
    """A container that mounts an image: counts as running, whether or not it does."""

    id: str
    state: State = msgspec.field(default_factory=lambda: State(status="running"))


class Waiter:
    """A wait that has begun; `result` returns (exit code, error text)."""

    def __init__(self, container: Container, condition: str) -> None:
        self._container = container
        self._condition = condition
        self._exited = container.exited
        self._done = condition in ("", "not-running") and not container.record.state.running

    @property
    def done(self) -> bool:
        """Whether `result` returns at once."""
        return self._done or (self._container.gone if self._condition == "removed" else self._exited).is_set()

    async def result(self) -> tuple[int, str]:
        """(exit code, error text) when the condition has come true."""
        container = self._container
        if not self.done:
            await (container.gone if self._condition == "removed" else self._exited).wait()
        state = container.record.state
        return state.exit_code, state.error if state.exit_code == lifecycle.EXIT_UNKNOWN else ""


class Containers:
    """All containers by id and by name. Methods that return at once answer from memory."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.by_id: dict[str, Container] = {}
        self.by_name: dict[str, Container] = {}
        self.on_removed: Callable[[str], None] = lambda id: None
        self.runner = Runner(context, self.find, self.remove_ended)

    def find(self, ref: str) -> Container:
        """By id, name, or a prefix of exactly one id. Raises NotFound, InvalidParameter when the prefix is ambiguous."""
        name = ref.removeprefix("/")
        found = self.by_id.get(name) or self.by_name.get(name)
        if found is not None:
            return found
        if not name:
            raise InvalidParameter("prefix can't be empty")
        matches = [container for id, container in self.by_id.items() if id.startswith(name)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise InvalidParameter(f"multiple IDs found with provided prefix: {name}")
        raise NotFound(f"No such container: {ref}")

    def get(self, ref: str) -> ContainerRecord:
        """The record. Raises NotFound."""
        return self.find(ref).record

    def everything(self) -> List[ContainerRecord]:
        """Every record, newest first."""
        return sorted((container.record for container in self.by_id.values()), key=lambda record: record.created_at, reverse=True)

    def list(self, *, all: bool, limit: int, filters: Mapping[str, List[str]], size: bool = False) -> List[ContainerRecord]:
        """What `docker ps` shows, newest first. Raises InvalidParameter for a bad filter, NotFound for an unknown before/since."""
        ancestors = listing.same_image(lambda ref: self._context.images.get(ref).id)
        networks = self._context.networks
        return listing.select(
            self.everything(),
            Filters.of(filters),
            show_all=all,
            limit=limit,
            find=self.get,
            ancestors=ancestors,
            sandbox=networks.sandbox,
            known=networks.known,
        )

    def using(self, image_id: str) -> List[ContainerRecord]:
        """Records of the containers made from an image."""
        return [container.record for container in self.by_id.values() if container.record.image_id == image_id]

    def holding(self, image_id: str) -> List[ContainerRecord | Holder]:
        """What keeps an image: containers made from it, and those that mount it, which it cannot be taken from by force either."""
        found: List[ContainerRecord | Holder] = [*self.using(image_id)]
        for id, container in self.by_id.items():
            if any(point.image == image_id for point in container.record.mount_points):
                found.append(Holder(id))
        return found

    def running(self) -> int:
        """How many run."""
        return sum(container.record.state.running for container in self.by_id.values())

    def paths(self, ref: str) -> Paths:
        """Host paths for inspect. Raises NotFound."""
        container = self.find(ref)
        bundle, snapshots = container.bundle, self._context.snapshots
        upper = snapshots.upper(container.id)
        return Paths(
            hosts=f"{bundle}/hosts",
            hostname=f"{bundle}/hostname",
            resolv_conf=f"{bundle}/resolv.conf",
            log=container.record.log_path,
            upper=upper,
            lowers=snapshots.lowers(snapshots.parent(container.id)),
            work=upper.removesuffix("fs") + "work",
            merged=f"/proc/{container.record.state.pid}/root" if container.record.state.alive else "",
        )

    def mount_points(self, ref: str) -> List[MountPoint]:
        """The mounts that inspect shows. Raises NotFound."""
        points = self.get(ref).mount_points
        return [
            msgspec.structs.replace(point, source=self._context.volumes.path(point.name)) if point.type == "volume" else point
            for point in points
            if not point.hidden
        ]

    def size(self, ref: str) -> tuple[int, int]:
        """(bytes written, bytes of everything); walks a tree: call it in a worker thread. Raises NotFound."""
        container, snapshots = self.find(ref), self._context.snapshots
        written = snapshots.usage(container.id)[0]
        return written, written + snapshots.chain_size(snapshots.parent(container.id))

    async def create(self, name: str | None, request: CreateRequest, platform: str = "") -> tuple[str, List[str]]:
        """Make a container; (id, warnings). Raises KnarrError."""
        container, warnings = await create.create(self._context, name, request, platform, self.by_id, self.by_name, self.get)
        return container.id, warnings

    async def start(self, ref: str, detach_keys: str = "") -> None:
        """Raises NotFound, NotModified, Conflict, LaunchError."""
        if detach_keys:
            attach.detach_keys(detach_keys)
        await self.runner.start(self.find(ref))

    async def stop(self, ref: str, signal: str = "", timeout: int | None = None) -> None:
        """Raises NotFound, NotModified, InvalidParameter."""
        await self.runner.stop(self.find(ref), signal_number(signal) if signal else None, timeout)

    async def restart(self, ref: str, signal: str = "", timeout: int | None = None) -> None:
        """Raises NotFound, Conflict, LaunchError."""
        await self.runner.restart(self.find(ref), signal_number(signal) if signal else None, timeout)

    async def kill(self, ref: str, signal: str = "") -> None:
        """Raises NotFound, Conflict when it does not run, InvalidParameter. SIGKILL waits for the end, as in Docker."""
        container = self.find(ref)
        number = signal_number(signal or "SIGKILL")
        if number == 9:
            if not container.record.state.running:
                raise Conflict(f"cannot kill container: {ref}: container {container.id} is not running")
            await self.runner.kill_and_wait(container)
        elif number in running.ENDING or number == signal_number(container.record.config.stop_signal or "SIGTERM"):
            await self.runner.ask_to_end(container, number)
        else:
            await self.runner.kill(container, number)

    async def update(self, ref: str, asked: HostConfig) -> List[str]:
        """Other limits and restart policy; warnings. Raises NotFound, InvalidParameter, Conflict."""
        from engine.service import update

        return await update.update(self._context, self.find(ref), asked)

    async def resize(self, ref: str, height: int, width: int) -> None:
        """Raises NotFound, Conflict when it does not run."""
        container = self.find(ref)
        if container.process is None:
            raise Conflict(f"container {container.id} is not running")
        await container.process.resize(height, width)
        container.publish("resize", height=str(height), width=str(width))

    async def rename(self, ref: str, name: str) -> None:
        """Raises NotFound, InvalidParameter, Conflict."""
        container = self.find(ref)
        new = name.removeprefix("/")
        if not new:
            raise InvalidParameter("Neither old nor new names may be empty")
        if new == container.name:
            raise InvalidParameter("Renaming a container with the same name as its current name")
        try:
            new = create.choose_name(new, container.id, self.by_name)
        except KnarrError as error:
            raise type(error)(f"Error when allocating new name: {error.message}") from error
        old = container.name
        del self.by_name[old]
        container.record.name = new
        try:
            container.save_now()
        except DatabaseError as error:
            container.record.name, self.by_name[old] = old, container
            raise KnarrError(f"rename container {old}: {error}") from error
        self.by_name[new] = container
        self._context.endpoints.renamed(container)
        await self._context.durability.reached()
        container.publish("rename", oldName=f"/{old}")

    async def remove(self, ref: str, *, force: bool = False, volumes: bool = False, link: bool = False) -> None:
        """Remove a container; its files go after the reply. Raises NotFound, Conflict."""
        container = self.find(ref)
        if link:
            raise InvalidParameter("Conflict, cannot remove the default link name of the container")
        await self._end(container, force)  # before the lock: a restart that waits for the end holds it
        async with container.lock:
            if container.gone.is_set():
                return  # --rm was faster
            await self._end(container, force)  # it may have been started meanwhile
            self._remove_now(container, volumes)
        await self._context.durability.reached()

    async def _end(self, container: Container, force: bool) -> None:
        if not container.record.state.running:
            return
        if not force:
            raise Conflict(
                f'cannot remove container "/{container.name}": container is {container.record.state.status}: '
                "stop the container before removing or force remove"
            )
        container.stopping = True
        try:
            await self.runner.kill_and_wait(container)
        finally:
            container.stopping = False

    def remove_ended(self, container: Container) -> None:
        """Remove an --rm container that ended; durable soon. One that the database does not let go stays in the list until somebody, or
        the next start, removes it."""
        try:
            self._remove_now(container, volumes=True)
        except (OSError, DatabaseError) as error:
            log.error("removing container %s, which has ended: %s", container.id[:12], error)
            return
        self._context.durability.lazily()

    def _remove_now(self, container: Container, volumes: bool) -> None:
        """No await: row, names and waiters in one step; files are a chore."""
        before = container.record.state
        container.transition(lifecycle.Removing())
        try:
            create.undo(self._context, container, self.by_id, self.by_name, volumes=volumes)
        except (OSError, DatabaseError):
            container.record.state = before
            raise
        for client in container.pending:
            client.release()
        container.pending.clear()
        self.on_removed(container.id)
        container.wake_exit()
        container.gone.set()
        container.publish("destroy")

    def wait(self, ref: str, condition: str = "") -> Waiter:
        """Begin to wait: the headers can be sent now. Raises NotFound, InvalidParameter."""
        if condition not in _CONDITIONS:
            raise InvalidParameter(f'invalid condition: "{condition}"')
        return Waiter(self.find(ref), condition)

    async def top(self, ref: str, ps_args: str = "") -> tuple[List[str], List[List[str]]]:
        """(titles, rows) of `ps`. Raises NotFound, Conflict, InvalidParameter."""
        container = self.find(ref)
        if not container.record.state.running:
            raise Conflict(f"container {container.id} is not running")
        running.check_waits_not(container)
        found = await top.processes(self._context.cgroups.pids(container.cgroup), ps_args)
        container.publish("top")
        return found

    def trace(self, ref: str) -> List[Trace]:
        """The waterfall of the last start. Raises NotFound."""
        return running.trace(self.find(ref))

    def attach(self, ref: str, options: AttachOptions) -> Attachment:
        """Check an attach. Raises NotFound, InvalidParameter, Conflict for a paused container."""
        container = self.find(ref)
        if container.record.state.status == "paused":
            raise Conflict(f"container {ref} is paused, unpause the container before attach")
        running.check_waits_not(container)
        tty = container.record.config.tty
        container_message = attach.message(options, tty)
        container.publish("attach")
        history = None
        if options.logs:
            history = lambda: self._logs(container, LogsOptions(stdout=options.stdout, stderr=options.stderr))  # noqa: E731
        return Attachment(
            container_message,
            process=lambda: container.process,
            pending=container.pending,
            gone=lambda reason: running.detached(container, reason),
            stream=options.stream,
            history=history,
            tty=tty,
        )

    def logs(self, ref: str, options: LogsOptions) -> AsyncIterator[bytes]:
        """The log, framed unless the container has a terminal. Raises NotFound, InvalidParameter."""
        container = self.find(ref)
        if not (options.stdout or options.stderr):
            raise InvalidParameter("Bad parameters: you must choose at least one stream")
        if not container.record.log_path:
            raise KnarrError("configured logging driver does not support reading")
        return self._logs(container, options)

    def _logs(self, container: Container, options: LogsOptions) -> AsyncIterator[bytes]:
        if options.follow:  # the monitor makes the folder with the first output; it must be there to be watched
            with contextlib.suppress(FileExistsError):
                os.mkdir(os.path.dirname(container.record.log_path), 0o710)
        exited = container.exited  # of this run: who follows is not led on into the next one, which compose follows anew
        return logs.read(
            container.record.log_path,
            follow=options.follow,
            tail=options.tail,
            since=options.since,
            until=options.until,
            timestamps=options.timestamps,
            stdout=options.stdout,
            stderr=options.stderr,
            details=options.details,
            framed=not container.record.config.tty,
            finished=lambda: exited.is_set() or not container.record.state.alive or container.gone.is_set(),
        )
