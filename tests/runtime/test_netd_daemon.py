"""The daemon's side of knarr-netd: started when needed, replaced when killed, corrected and taken over by the next daemon."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from engine.netd import client
from engine.service.dns import Dns
from engine.wire import dns
from tests.lib import netns
from tests.lib.netd import PORT, Host
from tests.unit.test_dns import question

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    # A thread that the event loop starts is in the namespace too: it must not wait there for the work of the next test.
    monkeypatch.setattr("trio._core._thread_cache.IDLE_TIMEOUT", 0, raising=False)
    made = Host(tmp_path)
    try:
        yield made
    finally:
        made.close()


class Daemon:
    """A `Dns` in its nursery; netd is started in the host's namespace because the whole event loop runs there."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.reopened: list[str] = []
        self.dns = Dns(host.root, network_name=lambda id: {"n1": "front"}[id], reopen=self.reopen, host_resolv_conf=str(host.resolv_conf))

    def reopen(self, container_id: str) -> tuple[int, int]:
        self.reopened.append(container_id)
        udp, tcp = self.host.container()
        return udp.detach(), tcp.detach()

    def serve(self, sockets: tuple[socket.socket, socket.socket] | None, id: str = "c1") -> None:
        self.dns.publish("n1", "e1", ["web"], "10.0.0.2", "", "web")
        fds = None if sockets is None else (sockets[0].fileno(), sockets[1].fileno())
        self.dns.serve(id, fds, networks=["n1"], links={}, upstreams=["host"], internal=False)
        for sock in sockets or ():
            sock.close()  # the caller's own copies

    async def resolves(self, name: str = "web") -> bool:
        """Asked without blocking the event loop, which has work to do meanwhile."""
        with trio.move_on_after(60):
            while True:
                response = await trio.to_thread.run_sync(lambda: self.host.namespace.asks("127.0.0.11", PORT, question(name), timeout=1))
                if response is not None and not dns.rcode(response):
                    return True
        return False

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(60):
            while not condition():  # noqa: ASYNC110  # another process's doing
                await trio.sleep(0.01)


def run(host: Host, *lives: Callable[[Daemon], object]) -> None:
    """Each life is one daemon after the other."""

    async def one(life: Callable[[Daemon], object]) -> None:
        daemon = Daemon(host)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(daemon.dns.run)
            await life(daemon)  # type: ignore[misc]
            if daemon.dns.pid:
                host.pids.add(daemon.dns.pid)
            nursery.cancel_scope.cancel()

    with host.namespace:
        for life in lives:
            trio.run(one, life)


def test_netd_is_started_when_a_container_needs_it_and_given_everything(host: Host) -> None:
    async def life(daemon: Daemon) -> None:
        await daemon.dns.adopt()
        daemon.dns.settle()
        daemon.dns.publish("n1", "e9", ["early"], "10.0.0.9", "", "early")
        await trio.sleep(0.05)
        assert daemon.dns.pid == 0
        daemon.serve(host.container())
        assert await daemon.resolves() and await daemon.resolves("early")
        daemon.dns.withdraw("n1", "e9")
        assert (await daemon.dns.status())["containers"] == 1
        daemon.dns.leave("c1")
        assert (await daemon.dns.status())["containers"] == 0

    run(host, life)


def test_a_killed_netd_is_replaced_and_told_everything(host: Host) -> None:
    async def life(daemon: Daemon) -> None:
        daemon.dns.settle()
        daemon.serve(host.container())
        with netns.Echo(host.namespace, 0, "127.0.0.1") as echo, host.namespace.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            where = listener.getsockname()
            daemon.dns.relay("r", listener.fileno(), "tcp", "127.0.0.1", echo.port)
            listener.close()
            assert await daemon.resolves()
            first = daemon.dns.pid
            os.kill(first, signal.SIGKILL)
            await daemon.until(lambda: daemon.dns.pid not in (0, first))
            host.pids.add(daemon.dns.pid)
            assert await daemon.resolves()
            assert daemon.reopened == ["c1"]
            assert await trio.to_thread.run_sync(lambda: host.namespace.reaches(*where))

    run(host, life)


def test_the_next_daemon_corrects_what_netd_holds(host: Host) -> None:
    async def first(daemon: Daemon) -> None:
        daemon.dns.settle()
        daemon.serve(host.container())
        daemon.serve(host.container(address="127.0.0.12"), "c2")
        daemon.dns.publish("n1", "e2", ["old"], "10.0.0.3", "", "old")
        listener = host.keep(host.namespace.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        for key in ("keep", "drop"):
            daemon.dns.relay(key, listener.fileno(), "tcp", "127.0.0.1", 1)
        assert await daemon.resolves("old")

    async def second(daemon: Daemon) -> None:
        pid = next(iter(host.pids))
        await daemon.dns.adopt()
        assert sorted(daemon.dns.held()) == ["drop", "keep"]
        daemon.serve(None)
        daemon.dns.relay("keep", None, "tcp", "127.0.0.1", 2)
        with pytest.raises(KeyError):
            daemon.dns.relay("other", None, "tcp", "127.0.0.1", 2)
        daemon.dns.settle()
        assert await daemon.resolves()
        while True:
            state = await daemon.dns.status()
            if (state.get("containers"), state.get("relays")) == (1, 1):
                break
            await trio.sleep(0.01)
        assert daemon.dns.pid == pid and daemon.reopened == []
        response = host.namespace.asks("127.0.0.11", PORT, question("old"))
        assert response is not None and dns.rcode(response) == dns.SERVFAIL  # unknown here, and no upstream answers

    run(host, first, second)


def test_a_netd_that_was_killed_without_a_daemon(host: Host) -> None:
    async def life(daemon: Daemon) -> None:
        daemon.serve(None)
        daemon.dns.settle()
        assert await daemon.resolves()
        assert daemon.reopened == ["c1"]

    run(host, life)


def test_a_netd_of_another_build_hands_over(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def first(daemon: Daemon) -> None:
        daemon.dns.settle()
        daemon.serve(host.container())
        assert await daemon.resolves()

    async def second(daemon: Daemon) -> None:
        old = next(iter(host.pids))
        monkeypatch.setattr(client, "build", lambda: "newer")
        daemon.serve(None)
        daemon.dns.settle()
        await daemon.until(lambda: daemon.dns.pid not in (0, old))
        assert await daemon.resolves()
        assert daemon.reopened == []
        await daemon.until(lambda: os.waitpid(old, os.WNOHANG)[0] == old)

    run(host, first, second)


def test_a_container_that_ends_while_its_sockets_are_made_again(host: Host) -> None:
    async def life(daemon: Daemon) -> None:
        release = threading.Event()
        original = daemon.dns._reopen

        def slow(container_id: str) -> tuple[int, int]:
            release.wait(60)
            return original(container_id)

        daemon.dns._reopen = slow
        daemon.serve(None)
        daemon.dns.settle()
        await daemon.until(lambda: daemon.dns.pid != 0)
        await trio.sleep(0.05)
        daemon.dns.leave("c1")
        release.set()
        await daemon.until(lambda: daemon.reopened == ["c1"])
        assert (await daemon.dns.status())["containers"] == 0

    run(host, life)
