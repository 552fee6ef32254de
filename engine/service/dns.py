"""Names for containers: owns knarr-netd on behalf of the daemon.

What netd should hold is remembered here, in a few small tuples for each endpoint, so that a netd that was killed is replaced and
told everything again, and one that a former daemon left is corrected. All calls are for the event loop: they never block, and a container's
start costs one message. Nothing runs before a container needs it.

The life of a daemon here: `adopt` (what does a running netd hold?), then `publish`, `serve`, `relay` for what runs, then `settle`, which
tells netd the difference. From then on every change is told at once.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence

import trio

from engine.aio.blocking import blocking
from engine.errors import KnarrError
from engine.netd import client, messages
from engine.netd.client import NetdConnection, NetdGone
from engine.service.resolvconf import resolv_conf as resolv_conf

log = logging.getLogger("knarr.dns")

HOST_RESOLV_CONF = "/etc/resolv.conf"
_BATCH_LIMIT = 32 * 1024  # bytes of one packet
_STUCK_LIMIT = 4096  # packets that wait for a netd that does not read; then it is replaced
_ANSWER_SECONDS = 5.0  # for a netd to say what it holds
_CALM_SECONDS = 5.0  # a netd that lived shorter than this is not replaced at once ...
_RESTART_SECONDS = 1.0  # ... but after this
_REAP_SECONDS = 5.0

Reopen = Callable[[str], tuple[int, int]]


class Dns:
    """Names, their servers, and relays. `run` must run in the background.

    `reopen(container id)`: makes the name server's UDP and TCP sockets again in the namespace of a running container; called in a worker
    thread, raises OSError or KnarrError. `network_name(id)`: what a network is called.
    """

    def __init__(
        self, exec_root: str, *, network_name: Callable[[str], str], reopen: Reopen, host_resolv_conf: str = HOST_RESOLV_CONF
    ) -> None:
        self._exec_root = exec_root
        self._network_name = network_name
        self._reopen = reopen
        self._hello = (host_resolv_conf,)
        # What there should be; values are the messages' own.
        self._endpoints: dict[tuple[str, str], tuple[object, ...]] = {}
        self._containers: dict[str, tuple[object, ...]] = {}
        self._relays: dict[str, tuple[object, ...]] = {}
        # Sockets of containers that netd has not been given yet, and of relays for good: a port must not get lost with a netd.
        self._sockets: dict[str, tuple[int, int]] = {}
        self._listeners: dict[str, int] = {}
        # Of the netd that was found.
        self._held_containers: set[str] = set()
        self._held_endpoints: set[tuple[str, str]] = set()
        self._missing: set[str] = set()  # containers whose sockets nobody has
        self._repairing = ""  # the one whose sockets are being opened
        self._adopting = trio.Lock()
        self._adopted = False
        self._settled = False  # `settle` was called
        self._live = False  # and netd was told; every change is told from now on
        self._resting = False  # netd died young; the next one is started by `_follow`
        self._connection: NetdConnection | None = None
        self._batch: list[bytes] = []
        self._batch_size = 0
        self._stuck: list[tuple[bytes, list[int]]] = []
        self._wake = trio.Event()
        self._connected = trio.Event()
        self._states: list[tuple[trio.Event, dict[str, int]]] = []

    # -- what there should be

    def publish(self, network_id: str, endpoint_id: str, names: Sequence[str], ipv4: str, ipv6: str, container_name: str) -> None:
        """An endpoint's names in its network; takes the place of what was said of it. Addresses are "" where there is none."""
        values = (self._network_name(network_id), endpoint_id, container_name, list(names), [each for each in (ipv4, ipv6) if each])
        self._endpoints[network_id, endpoint_id] = values
        if self._live and self._connection is not None:
            self._add(messages.encode(messages.PUBLISH, network_id, *values))

    def withdraw(self, network_id: str, endpoint_id: str) -> None:
        """The endpoint is gone."""
        if self._endpoints.pop((network_id, endpoint_id), None) is not None and self._live and self._connection is not None:
            self._add(messages.encode(messages.WITHDRAW, network_id, endpoint_id))

    def serve(
        self,
        container_id: str,
        fds: tuple[int, int] | None,
        *,
        networks: Sequence[str],
        links: Mapping[str, Sequence[str]],
        upstreams: Sequence[str],
        internal: bool,
    ) -> None:
        """Answer on a container's sockets (UDP, TCP; the caller keeps and closes its own), or what is answered has changed (None).

        `links`: alias to addresses or to names in the container's networks. `upstreams`: as `resolvconf.resolv_conf` returns them.
        `internal`: nothing is asked outside. Sockets that neither the caller nor a netd has are opened by `reopen`.
        """
        values = (
            int(internal),
            [(id, self._network_name(id)) for id in networks],
            [(alias, list(targets)) for alias, targets in links.items()],
            list(upstreams),
        )
        known = container_id in self._containers
        self._containers[container_id] = values
        if fds is not None:
            self._forget_repair(container_id)
        if self._live and self._connection is not None:
            if fds is not None or known:
                self._add(messages.encode(messages.SERVE, container_id, *values, 0 if fds is None else 2), fds or ())
            else:
                self._missing.add(container_id)
                self._wake.set()
            return
        if fds is not None:
            _close(self._sockets.pop(container_id, ()))
            self._sockets[container_id] = (os.dup(fds[0]), os.dup(fds[1]))
        self._start()

    def leave(self, container_id: str) -> None:
        """The container ended: its sockets are closed."""
        self._forget_repair(container_id)
        _close(self._sockets.pop(container_id, ()))
        if self._containers.pop(container_id, None) is not None and self._live and self._connection is not None:
            self._add(messages.encode(messages.LEAVE, container_id))

    def relay(self, key: str, fd: int | None, protocol: str, address: str, port: int) -> None:
        """Relay what comes to a listening (tcp) or bound (udp) socket of the host to a container's address.

        The caller keeps and closes its own `fd`. None: the one that netd has (`held`), or the target is another. Raises KeyError when
        there is no such relay.
        """
        if fd is not None:
            _close((self._listeners.pop(key, -1),))
            self._listeners[key] = os.dup(fd)
        elif key not in self._listeners:
            raise KeyError(key)
        self._relays[key] = values = (protocol, address, port)
        if self._live and self._connection is not None:
            self._add(messages.encode(messages.RELAY, key, *values, 0 if fd is None else 1), () if fd is None else (fd,))
        else:
            self._start()

    def unrelay(self, key: str) -> None:
        """No longer: the port is free again within a moment, connections through it are reset."""
        _close((self._listeners.pop(key, -1),))
        if self._relays.pop(key, None) is not None and self._live and self._connection is not None:
            self._add(messages.encode(messages.UNRELAY, key))
            self.flush()

    def settle(self) -> None:
        """Everything that runs was said: `run` makes netd hold that and nothing else."""
        self._settled = True
        self._wake.set()

    # -- what there is

    async def adopt(self) -> None:
        """Find the netd that a former daemon left and ask what it holds. `run` does it when nobody did before."""
        async with self._adopting:
            if not self._adopted:
                await self._adopt()
                self._adopted = True

    async def _adopt(self) -> None:
        try:
            connection = client.connect(self._exec_root)
        except OSError as error:
            log.error("connect to the knarr-netd of %s: %s", self._exec_root, error)
            return
        if connection is None:
            return
        try:
            with trio.fail_after(_ANSWER_SECONDS):
                same = await self._greet(connection)
        except (NetdGone, messages.MalformedMessage, trio.TooSlowError) as error:
            log.warning("the knarr-netd that was found (%d) is replaced: %s", connection.pid, str(error) or "it does not answer")
            _kill(connection.pid)
            same = False
        if same:
            self._connection = connection
            self._connected.set()
        else:
            self._held_containers.clear()
            self._held_endpoints.clear()
            connection.close()

    async def _greet(self, connection: NetdConnection) -> bool:
        """Learn what a netd holds. False: it is of another build, and has handed its descriptors over."""
        builds: list[str] = []
        connection.send(messages.encode(messages.HELLO, client.build(), *self._hello))
        await self._hear(connection, builds)
        if builds == [client.build()]:
            return True
        connection.send(messages.encode(messages.HANDOVER))
        await self._hear(connection, builds)
        return False

    async def _hear(self, connection: NetdConnection, builds: list[str]) -> None:
        while True:
            await trio.lowlevel.wait_readable(connection.fileno())
            for kind, values, fds in connection.receive():
                if kind == messages.HELD:
                    return
                if kind == messages.WELCOME:
                    builds.append(values[0])
                else:
                    self._learn(kind, values, fds)

    def _learn(self, kind: int, values: Sequence[str], fds: list[int]) -> None:
        if kind == messages.HAS_CONTAINER:
            self._held_containers.add(values[0])
        elif kind == messages.HAS_ENDPOINT:
            self._held_endpoints.add((values[0], values[1]))
        elif kind in (messages.HAS_RELAY, messages.GIVES_RELAY) and len(fds) == 1:
            _close((self._listeners.pop(values[0], -1),))
            self._listeners[values[0]] = fds[0]
        elif kind == messages.GIVES_CONTAINER and len(fds) == 2:
            _close(self._sockets.pop(values[0], ()))
            self._sockets[values[0]] = (fds[0], fds[1])
        else:
            _close(fds)

    def held(self) -> dict[str, int]:
        """The relays' sockets by key, those of a netd that was found among them. They stay this object's."""
        return dict(self._listeners)

    @property
    def pid(self) -> int:
        """Of netd, 0 when there is none."""
        return 0 if self._connection is None else self._connection.pid

    async def status(self) -> dict[str, int]:
        """Numbers of netd: pid, containers, networks, relays, connections, forwarding, forwarded. {} when there is none, or no answer."""
        if self._connection is None or not self._live:
            return {}
        asked = (trio.Event(), dict[str, int]())
        self._states.append(asked)
        self._add(messages.encode(messages.STATUS))
        with trio.move_on_after(_ANSWER_SECONDS):
            await asked[0].wait()
        return asked[1]

    # -- telling it

    def _start(self) -> None:
        """Make sure that there is a netd and that it holds what it should, if the time has come for it."""
        if not self._live or self._resting or self._connection is not None:
            return
        try:
            self._connection = client.start(self._exec_root)
        except OSError as error:
            log.error("start knarr-netd: %s", error)
            return
        self._add(messages.encode(messages.HELLO, client.build(), *self._hello))
        self._say_all(relays=True)
        self._connected.set()

    def _say_all(self, *, relays: bool) -> None:
        """Everything that there should be; `relays`: with their sockets."""
        for (network_id, _), values in self._endpoints.items():
            self._add(messages.encode(messages.PUBLISH, network_id, *values))
        for id, values in self._containers.items():
            fds = self._sockets.pop(id, ())
            if fds or id in self._held_containers:
                self._add(messages.encode(messages.SERVE, id, *values, len(fds)), fds)
                _close(fds)
            else:
                self._missing.add(id)
        for key, values in self._relays.items():
            own = (self._listeners[key],) if relays else ()
            self._add(messages.encode(messages.RELAY, key, *values, len(own)), own)
        self.flush()
        self._wake.set()

    def _add(self, message: bytes, fds: Sequence[int] = ()) -> None:
        """Send soon; at once when descriptors go with it. What no packet can hold is not said: netd would take it for damage, and end."""
        if len(message) > messages.PACKET_LIMIT:
            log.error("knarr-netd is not told of names: their %d bytes are more than a packet holds", len(message))
            return
        if self._batch_size + len(message) > _BATCH_LIMIT:
            self.flush()
        self._batch.append(message)
        self._batch_size += len(message)
        if fds:
            self._send(fds)
        else:
            self._wake.set()

    def flush(self) -> None:
        """Send what waits for the next round of the event loop."""
        if self._batch:
            self._send(())

    def _send(self, fds: Sequence[int]) -> None:
        packet = b"".join(self._batch)
        self._batch.clear()
        self._batch_size = 0
        if self._connection is None:
            return
        try:
            if self._stuck:
                raise BlockingIOError
            self._connection.send(packet, fds)
        except BlockingIOError:
            self._stuck.append((packet, [os.dup(fd) for fd in fds]))
            self._wake.set()
        except NetdGone:
            pass  # whoever reads from it sees that too, and the next one is told everything

    # -- in the background

    async def run(self) -> None:
        """Background task: sends what was batched, replaces a netd that ended. Leaves netd to the next daemon when it is cancelled."""
        try:
            await self.adopt()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell)
                nursery.start_soon(self._follow)
        finally:
            if self._connection is not None:
                self.flush()
                self._connection.close()
                self._connection = None
            self._drop_stuck()
            for fds in self._sockets.values():
                _close(fds)
            _close(self._listeners.values())
            self._sockets.clear()
            self._listeners.clear()

    async def _tell(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            if self._settled and not self._live:
                self._reconcile()
            self.flush()
            while self._stuck and self._connection is not None:
                await self._unstick(self._connection)
            while self._missing and self._connection is not None:
                await self._repair(self._missing.pop())

    def _reconcile(self) -> None:
        """What was found and what should be are both known: make them one."""
        self._live = True
        for id in [id for id in self._sockets if id not in self._containers]:
            _close(self._sockets.pop(id))
        for key in [key for key in self._listeners if key not in self._relays]:
            _close((self._listeners.pop(key),))
            self._add(messages.encode(messages.UNRELAY, key))
        if self._connection is None:
            self._batch.clear()
            if self._containers or self._relays:
                self._start()
            return
        for id in self._held_containers - self._containers.keys():
            self._add(messages.encode(messages.LEAVE, id))
        for network_id, endpoint_id in self._held_endpoints - self._endpoints.keys():
            self._add(messages.encode(messages.WITHDRAW, network_id, endpoint_id))
        self._say_all(relays=False)
        self._held_containers.clear()
        self._held_endpoints.clear()

    async def _unstick(self, connection: NetdConnection) -> None:
        if len(self._stuck) > _STUCK_LIMIT:
            log.error("knarr-netd (%d) takes no messages any more, it is replaced", connection.pid)
            _kill(connection.pid)
            self._drop_stuck()
            return
        try:
            await trio.lowlevel.wait_writable(connection.fileno())
            while self._stuck:
                packet, fds = self._stuck[0]
                connection.send(packet, fds)
                _close(fds)
                del self._stuck[0]
        except BlockingIOError:
            return
        except (NetdGone, OSError):
            self._drop_stuck()  # the next one is told everything

    def _drop_stuck(self) -> None:
        for _, fds in self._stuck:
            _close(fds)
        self._stuck.clear()

    async def _repair(self, container_id: str) -> None:
        """Open the sockets of a container that nobody answers."""
        self._repairing = container_id
        self._repairing = container_id
        try:
            fds = await blocking("kernel", self._reopen, container_id)
        except (OSError, KnarrError) as error:
            if container_id in self._containers:
                log.error("container %s: open the sockets of its name server: %s", container_id[:12], error)
            return
        try:
            values = self._containers.get(container_id)
            if self._repairing == container_id and values is not None and self._connection is not None:
                self._add(messages.encode(messages.SERVE, container_id, *values, 2), fds)
        finally:
            _close(fds)

    def _forget_repair(self, container_id: str) -> None:
        """It ended, or has sockets of a later start: what is being opened is not its any more."""
        self._missing.discard(container_id)
        if self._repairing == container_id:
            self._repairing = ""

    async def _follow(self) -> None:
        """Reads what netd says, until its end; then another one takes its place if one is needed."""
        while True:
            await self._connected.wait()
            self._connected = trio.Event()
            connection = self._connection
            if connection is None:
                continue
            began = trio.current_time()
            try:
                while True:
                    await trio.lowlevel.wait_readable(connection.fileno())
                    for kind, values, fds in connection.receive():
                        self._told(kind, values, fds)
            except (NetdGone, messages.MalformedMessage) as error:
                log.warning("%s", error)
            self._lost(connection)
            await self._reap(connection)
            self._resting = trio.current_time() - began < _CALM_SECONDS
            if self._resting:
                await trio.sleep(_RESTART_SECONDS)
                self._resting = False
            if self._containers or self._relays:
                self._start()

    def _told(self, kind: int, values: Sequence[str], fds: list[int]) -> None:
        _close(fds)
        if kind == messages.WARNING:
            log.warning("%s", values[0])
        elif kind == messages.STATE and self._states:
            done, numbers = self._states.pop(0)
            numbers.update(zip(values[::2], map(int, values[1::2]), strict=True))
            done.set()

    def _lost(self, connection: NetdConnection) -> None:
        self._connection = None
        connection.close()
        self._drop_stuck()
        self._batch.clear()
        self._batch_size = 0
        self._resting = True
        while self._states:
            self._states.pop()[0].set()

    @staticmethod
    async def _reap(connection: NetdConnection) -> None:
        if not connection.child:
            return
        with trio.move_on_after(_REAP_SECONDS):
            while os.waitpid(connection.pid, os.WNOHANG)[0] == 0:  # noqa: ASYNC110, ASYNC222  # it does not wait; nobody tells
                await trio.sleep(0.01)


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        if fd >= 0:
            os.close(fd)


def _kill(pid: int) -> None:
    """End a netd that does not do its work, if the pid is still one's."""
    try:
        with open(f"/proc/{pid}/comm") as file:
            if file.read().strip() != "knarr-netd":
                return
        os.kill(pid, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        return
