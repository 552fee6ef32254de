"""SIGKILL at random moments while containers with volumes are made, run and removed: no volume without a user, no mount is left."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from tests.lib import busybox
from tests.lib.daemon import Daemon

KILLS = int(os.environ.get("KNARR_CHAOS_KILLS", "20"))
SEED = int(os.environ.get("KNARR_CHAOS_SEED", "0")) or random.randrange(1 << 30)
ANONYMOUS = "com.docker.volume.anonymous"


def keep_busy(daemon: Daemon, ending: threading.Event, number: int) -> None:
    """Anonymous, named and tmpfs volumes, some through --rm and some through `rm -v`; errors are the killed daemon's."""
    moments = random.Random(SEED + number)
    while not ending.is_set():
        binds = ["/anonymous", f"named{number}:/named", "memory:/memory", f"new{moments.randrange(1000)}:/new"]
        host = {"NetworkMode": "none", "Binds": binds, "AutoRemove": moments.random() < 0.5}
        try:
            made = daemon.api("POST", "/containers/create", {"Image": busybox.NAME, "Cmd": ["true"], "HostConfig": host}, timeout=60)
            id = made.json()["Id"]
            daemon.api("POST", f"/containers/{id}/start", timeout=60)
            daemon.api("POST", f"/containers/{id}/wait", timeout=60)
            daemon.api("DELETE", f"/containers/{id}?v=1&force=1", timeout=60)
        except (OSError, KeyError, ValueError, AssertionError, HTTPException):
            ending.wait(0.02)


def eventually(condition: Callable[[], object], what: str) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError(what)


def test_kills_leave_no_volume_and_no_mount(own_daemon: Callable[..., Daemon]) -> None:
    print(f"KNARR_CHAOS_SEED={SEED}")
    moments = random.Random(SEED)
    daemon = own_daemon().start()
    busybox.load(daemon)
    daemon.api("POST", "/volumes/create", {"Name": "memory", "DriverOpts": {"type": "tmpfs", "device": "tmpfs"}})
    ending = threading.Event()
    clients = [threading.Thread(target=keep_busy, args=(daemon, ending, number)) for number in range(4)]
    for client in clients:
        client.start()
    try:
        for _ in range(KILLS):
            time.sleep(moments.random() * 0.4)
            daemon.restart()
    finally:
        ending.set()
        for client in clients:
            client.join()
    daemon.restart()
    eventually(
        lambda: not any(one["State"] == "running" for one in daemon.api("GET", "/containers/json?all=1").json()), "a container runs on"
    )
    folders = daemon.data_root / "volumes"

    def labels() -> dict[str, dict[str, str]]:
        return {one["Name"]: one["Labels"] or {} for one in daemon.api("GET", "/volumes").json()["Volumes"]}

    def consistent() -> bool:
        """Those that go by themselves may just be going: looked at one after the other they need not fit."""
        containers = daemon.api("GET", "/containers/json?all=1").json()
        used = {mount["Name"] for one in containers for mount in one["Mounts"]}
        found = labels()
        return used <= found.keys() and not [name for name in found if ANONYMOUS in found[name] and name not in used]

    eventually(consistent, "a user without its volume, or an anonymous volume without a user")
    eventually(lambda: set(os.listdir(folders)) == labels().keys(), "folders and rows differ")
    eventually(lambda: str(folders) not in Path("/proc/self/mountinfo").read_text(), "something is mounted")
    daemon.remove_all()
    eventually(lambda: not any(ANONYMOUS in found for found in labels().values()), "anonymous volumes are left")
    for name in labels():
        daemon.api("DELETE", f"/volumes/{name}")
    eventually(lambda: not os.listdir(folders), "folders are left")
