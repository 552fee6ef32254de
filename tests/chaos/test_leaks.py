"""Two hundred containers, twenty at a time, and nothing is left; the same while the daemon is killed a hundred times."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable

from tests.chaos import load
from tests.lib import busybox
from tests.lib.daemon import Daemon
from tests.lib.leaks import Leaks

KILLS = int(os.environ.get("KNARR_CHAOS_KILLS", "100"))
SEED = int(os.environ.get("KNARR_CHAOS_SEED", "0")) or random.randrange(1 << 30)


def test_two_hundred_containers_leave_nothing(daemon: Daemon) -> None:
    load.run(daemon, 10, 5)  # warm: pools are filled, templates made
    leaks = Leaks(daemon)
    result = load.run(daemon, 200, 20)
    assert (result.wrong, result.finished) == ([], 200)
    assert daemon.api("GET", "/containers/json?all=1").json() == []
    leaks.check()


def test_refused_and_failed_starts_leave_nothing(daemon: Daemon) -> None:
    leaks = Leaks(daemon)
    for _ in range(20):
        made = daemon.api("POST", "/containers/create", {"Image": "busybox", "Cmd": ["not-there"], "HostConfig": {"NetworkMode": "none"}})
        assert made.status == 201, made.body
        container = made.json()["Id"]
        assert daemon.api("POST", f"/containers/{container}/start").status in (400, 404)
        assert daemon.api("DELETE", f"/containers/{container}").status == 204
    leaks.check()


def some_finish(result: load.Result) -> None:
    """Wait until containers have been through all of their life, however slow the machine is."""
    before, deadline = result.finished, time.monotonic() + 60
    while result.finished < before + 4:
        assert time.monotonic() < deadline, "no container gets to its end"
        time.sleep(0.005)


def test_a_hundred_kills_of_the_daemon_leave_nothing(own_daemon: Callable[..., Daemon]) -> None:
    """SIGKILL at random moments while containers are made, started and removed; after the last start all is swept."""
    print(f"KNARR_CHAOS_SEED={SEED}")
    moments = random.Random(SEED)
    daemon = own_daemon().start()
    busybox.load(daemon)
    load.run(daemon, 10, 5)
    daemon.restart()
    leaks = Leaks(daemon)
    ending = threading.Event()
    done = load.Result()

    def keep_busy() -> None:
        while not ending.is_set():
            before = done.finished
            load.run(daemon, 40, 10, daemon_may_die=lambda: True, result=done)
            if done.finished == before:
                ending.wait(0.01)

    busy = threading.Thread(target=keep_busy)
    busy.start()
    try:
        for number in range(KILLS):
            if number % 4 == 0:
                some_finish(done)
            time.sleep(moments.uniform(0.005, 0.4))
            daemon.restart()
    finally:
        ending.set()
        busy.join()
    daemon.restart()
    for container in daemon.api("GET", "/containers/json?all=1").json():
        assert container["State"] in ("created", "running", "exited", "dead", "removing"), container
    daemon.remove_all()
    assert daemon.api("GET", "/containers/json?all=1").json() == []
    leaks.pid = -1  # another process by now: its descriptors are its own
    leaks.check()
    result = load.run(daemon, 20, 5)
    assert (result.wrong, result.finished) == ([], 20)
