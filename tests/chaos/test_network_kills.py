"""The daemon is killed at random moments of run, rm, stop, connect, disconnect, of making and removing networks and volumes.

After every start what runs is reachable and what is listed makes sense; at the end no link, address, port, nftables element, namespace or
volume is left. KNARR_NETWORK_KILLS is how many times (200 for the long run); KNARR_CHAOS_SEED repeats a run, which prints its seed. The
daemon has a network namespace of its own, so everything in that is its own. With KNARR_PEER_DOCKER_HOST the same work is done to another
engine, which is not killed.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos import networkwork
from tests.chaos.networkwork import Work, Wrong
from tests.conftest import PEER
from tests.lib import busybox, netns
from tests.lib import leaks as look
from tests.lib.daemon import Daemon, Engine, Peer
from tests.lib.leaks import Leaks
from tests.lib.netns import Namespace, eventually

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")]
KILLS = int(os.environ.get("KNARR_NETWORK_KILLS", "15"))
SEED = int(os.environ.get("KNARR_CHAOS_SEED", "0")) or random.randrange(1 << 30)
WORKERS = 3
BUSY_SECONDS = 0.8  # a kill comes so long after the daemon answers at the latest
STEADY_PORT = 21000


class Clients:
    """Workers in threads until `stop`; a broken connection is no fault once `dying` is set."""

    def __init__(self, engine: Engine, chance: random.Random) -> None:
        self.works = [Work(engine, random.Random(chance.random())) for _ in range(WORKERS)]
        self.dying = threading.Event()
        self.wrong: list[BaseException] = []

    @contextmanager
    def busy(self) -> Iterator[None]:
        self.dying.clear()
        threads = [threading.Thread(target=self._keep_on, args=(work,)) for work in self.works]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.dying.set()
            for thread in threads:
                thread.join()
        if self.wrong:
            raise self.wrong[0]

    def _keep_on(self, work: Work) -> None:
        while not self.dying.is_set():
            try:
                work.step()
            except (OSError, http.client.HTTPException, ValueError) as error:
                if not self.dying.is_set():
                    self.wrong.append(error)
                return
            except Wrong as error:
                if not self.dying.is_set():
                    self.wrong.append(error)
                return

    @property
    def done(self) -> dict[str, int]:
        return {name: sum(work.done.get(name, 0) for work in self.works) for name in {name for work in self.works for name in work.done}}


@pytest.mark.skipif(PEER is None, reason="shows that another engine's answers are the right ones")
def test_the_work_is_right() -> None:
    assert PEER is not None
    engine = Peer(PEER)
    busybox.load(engine)
    networkwork.steady(engine)
    clients = Clients(engine, random.Random(SEED))
    try:
        with clients.busy():
            time.sleep(20)
        print(clients.done)
        assert networkwork.findings(engine) == []
    finally:
        networkwork.clear(engine)
    networkwork.steady(engine)
    try:
        networkwork.all_addresses_are_free(engine)
    finally:
        networkwork.clear(engine)


@pytest.fixture
def host() -> Iterator[Namespace]:
    with netns.made("knarr-kills") as made:
        yield made


def start(daemon: Daemon, host: Namespace) -> None:
    with host:
        daemon.start()


def warm(daemon: Daemon) -> None:
    """Everything once, and away: what the first use leaves for good is there before anything is compared."""
    networkwork.steady(daemon)
    for network in ("bridge", "chaos-steady"):
        daemon.docker("run", "--rm", "--network", network, "-p", f"{STEADY_PORT}:80", "-v", "chaos-vol0:/data", busybox.NAME, "true")
    networkwork.clear(daemon)


@pytest.mark.skipif(PEER is not None, reason="kills the daemon")
def test_kills_leave_nothing_of_networks_and_volumes(host: Namespace) -> None:
    print(f"KNARR_CHAOS_SEED={SEED}")
    chance = random.Random(SEED)
    daemon = Daemon()
    try:
        start(daemon, host)
        busybox.load(daemon)
        warm(daemon)
        daemon.stop()
        at_rest = links_at_rest(daemon, host)
        start(daemon, host)
        warm(daemon)
        leaks = Leaks(daemon)
        networkwork.steady(daemon)
        rock = daemon.out("run", "-d", "--name", "rock", "-p", f"{STEADY_PORT}:80", "-v", "rock:/data", busybox.NAME, *ECHO)
        daemon.docker("network", "connect", "chaos-steady", "rock")
        settings = inspect(daemon, rock)["NetworkSettings"]
        clients = Clients(daemon, chance)
        kills = 0
        while kills < KILLS or sum(clients.done.values()) <= KILLS:  # a slow daemon does little before each
            kills += 1
            with clients.busy():
                time.sleep(chance.uniform(0, BUSY_SECONDS))
                clients.dying.set()
                daemon.kill()
            start(daemon, host)
            assert eventually(lambda: name_servers(host) <= 1)
            assert inspect(daemon, rock)["NetworkSettings"] == settings
            assert eventually(lambda: host.reaches("127.0.0.1", STEADY_PORT)), "what ran is not reachable any more"
            assert networkwork.findings(daemon) == []
            assert unknown_links(daemon, host) == []
        print(kills, clients.done)
        daemon.docker("rm", "-f", "rock")
        daemon.docker("volume", "rm", "rock")
        networkwork.clear(daemon)
        assert daemon.api("GET", "/volumes").json()["Volumes"] in ([], None)
        networkwork.steady(daemon)
        networkwork.all_addresses_are_free(daemon)
        networkwork.clear(daemon)
        ports_are_free(host)
        leaks.pid = -1  # another process by now: its descriptors are its own
        leaks.check()
        daemon.stop()
        assert eventually(lambda: links_at_rest(daemon, host) == at_rest), (host.links(), at_rest)
        assert not list((daemon.data_root / "volumes").glob("chaos-*"))
    finally:
        with host:
            daemon.close()
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(daemon.directory) in line]


ECHO = ("nc", "-ll", "-p", "80", "-e", "cat")


def inspect(daemon: Daemon, container: str) -> dict[str, object]:
    shown: dict[str, object] = daemon.api("GET", f"/containers/{container}/json").json()
    return shown


def name_servers(host: Namespace) -> int:
    """Name server processes in the daemon's network namespace."""
    inside = os.fstat(host.fd).st_ino
    found = 0
    for pid in look.processes():
        with contextlib.suppress(OSError):
            found += look.read(f"/proc/{pid}/comm").strip() == "knarr-netd" and os.stat(f"/proc/{pid}/ns/net").st_ino == inside
    return found


def links_at_rest(daemon: Daemon, host: Namespace) -> set[str]:
    """Links once the daemon has stopped with nothing running. The kernel takes a moment to remove a namespace."""
    found: set[str] = set()

    def quiet() -> bool:
        nonlocal found
        found = host.links()
        return not any(name.startswith("veth") for name in found)

    assert eventually(quiet), f"pairs are left: {sorted(found)}"
    return found


def unknown_links(daemon: Daemon, host: Namespace) -> list[str]:
    """Bridges of no network. Soon after a start: what the kill left is swept before the daemon answers or a moment later."""
    unknown: list[str] = []

    def none() -> bool:
        known = {f"br-{network['Id'][:12]}" for network in networkwork.listed(daemon, "/networks")}
        unknown[:] = sorted(name for name in host.links() if name.startswith("br-") and name not in known)
        return not unknown

    eventually(none)
    return unknown


def ports_are_free(host: Namespace) -> None:
    """Every port that was published can be bound by somebody else."""
    for port in (*range(networkwork.FIRST_PORT, networkwork.FIRST_PORT + networkwork.CONTAINERS), STEADY_PORT):
        with host.socket() as sock:
            sock.bind(("0.0.0.0", port))
    text = host.run("nft", "-j", "list", "ruleset", check=False).stdout
    held = [item for item in json.loads(text or '{"nftables": []}')["nftables"] if "map" in item and str(STEADY_PORT) in json.dumps(item)]
    assert not held, held
