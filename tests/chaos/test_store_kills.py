"""The daemon is killed at random moments of pull, unpack, load, delete, prune, check and collection: after every start nothing is half
there, the store is sound, and every image that was acknowledged runs.

KNARR_STORE_KILLS is how many times (200 for the long run); KNARR_CHAOS_SEED repeats a run, which prints its seed.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.chaos import storework
from tests.lib import busybox
from tests.lib.daemon import Daemon
from tests.lib.leaks import Leaks
from tests.lib.registries import DockerRegistry

KILLS = int(os.environ.get("KNARR_STORE_KILLS", "20"))
SEED = int(os.environ.get("KNARR_CHAOS_SEED", "0")) or random.randrange(1 << 30)
_BUSY_SECONDS = 0.5  # a kill comes so long after the daemon answers, or has answered a request, at the latest


@pytest.fixture(scope="module")
def registry() -> Iterator[DockerRegistry]:
    with DockerRegistry() as running:
        storework.fill(running)
        yield running


def test_kills_leave_a_sound_store(own_daemon: Callable[..., Daemon], registry: DockerRegistry) -> None:
    print(f"KNARR_CHAOS_SEED={SEED}")
    chance = random.Random(SEED)
    daemon = own_daemon().start()
    busybox.load(daemon)  # from here on there is a mirror
    daemon.docker("rmi", busybox.NAME)
    work = storework.Work(daemon, registry.host, chance)
    leaks = Leaks(daemon)
    for number in range(KILLS):
        killed_amid(work, chance.uniform(0, _BUSY_SECONDS), after=number % 2)
        daemon.start()
        work.look()
        daemon.remove_all()
        if number % 5 == 4 or number == KILLS - 1:
            for name in [name for name, holds in work.expected.items() if holds is not None]:
                work.runs(name)
    # All goes, and nothing is left but what leases keep: then those end.
    for name in list(work.expected):
        assert daemon.api("DELETE", f"/images/{name}?force=1").status == 200
    daemon.api("POST", "/images/prune?filters=" + "%7B%22dangling%22%3A%5B%22false%22%5D%7D")
    daemon.stop()
    end_leases(daemon)
    daemon.start()
    assert work.findings() == []
    assert daemon.api("GET", "/images/json").json() == []
    leaks.pid = -1
    leaks.check()


def killed_amid(work: storework.Work, seconds: float, after: int) -> None:
    """Requests one after the other, and SIGKILL in one of them, `seconds` after so many were answered, however slow the machine is."""
    wrong: list[BaseException] = []
    dying = threading.Event()

    def busy() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            while not dying.is_set():
                try:
                    work.step()
                except AssertionError as error:
                    if not dying.is_set():
                        wrong.append(error)
                    return

    thread = threading.Thread(target=busy)
    enough = work.done + after
    thread.start()
    while work.done < enough and thread.is_alive():
        time.sleep(0.005)
    time.sleep(seconds)
    dying.set()
    work.daemon.kill()
    thread.join()
    if wrong:
        raise wrong[0]


def end_leases(daemon: Daemon) -> None:
    """A day later."""
    import sqlite3

    with contextlib.closing(sqlite3.connect(daemon.data_root / "meta.db")) as database, database:
        database.execute("UPDATE leases SET expires = 1")
    for path in (daemon.data_root / "content/ingest").iterdir():
        os.utime(path, (0, 0))


def test_checks_and_prunes_beside_other_work(own_daemon: Callable[..., Daemon], registry: DockerRegistry) -> None:
    """What comes and goes meanwhile is neither called damaged nor taken away."""
    daemon = own_daemon().start()
    works = [storework.Work(daemon, registry.host, random.Random(number)) for number in range(4)]
    wrong: list[BaseException] = []
    loaded, archive = works[1].archives[0]

    def pull_and_delete() -> None:
        works[0].pull_tag(0)
        works[0].runs(f"{registry.host}/app:0")
        assert daemon.api("DELETE", f"/images/{registry.host}/app:0?force=1").status == 200

    def load_and_delete() -> None:
        works[1].load_archive(loaded, archive)
        works[1].runs(loaded)
        assert daemon.api("DELETE", f"/images/{loaded}?force=1").status == 200

    def pull() -> None:
        works[2].pull_tag(1)
        works[2].runs(f"{registry.host}/app:1")

    def tidy() -> None:
        works[3].prune()
        works[3].check()

    def repeat(work: Callable[[], None]) -> None:
        try:
            for _ in range(15):
                if not wrong:
                    work()
        except (OSError, http.client.HTTPException, AssertionError) as error:
            wrong.append(error)

    threads = [threading.Thread(target=repeat, args=(work,)) for work in (pull_and_delete, load_and_delete, pull, tidy)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise wrong[0]
    assert works[3].findings() == []
