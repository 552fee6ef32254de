"""A host that is switched off while its daemon runs, and what the disk says by then."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
from typing import Any

from tests.lib.daemon import Daemon
from tests.lib.leaks import descriptors, link, processes, read
from tests.lib.netns import eventually


def stored(daemon: Daemon) -> dict[str, dict[str, Any]]:
    """The state of each container by its name as the database has it: what changes by itself is written a second later."""
    with contextlib.closing(sqlite3.connect(f"file:{daemon.data_root}/meta.db?mode=ro", uri=True)) as db:
        records = [json.loads(raw) for (raw,) in db.execute("SELECT record FROM containers")]
    return {record["name"]: record["state"] for record in records}


def all_stored(daemon: Daemon) -> bool:
    """Whether the database has the state of every container that the daemon tells of."""
    listed = daemon.api("GET", "/containers/json?all=1").json()
    return {one["Names"][0][1:]: one["State"] for one in listed} == {
        name: state.get("status", "created") for name, state in stored(daemon).items()
    }


def own(daemon: Daemon) -> set[int]:
    """Processes that have to do with the daemon's folders: itself, monitors, the name server, helpers."""
    folder = str(daemon.directory)
    found = set()
    for pid in processes():
        if pid != os.getpid() and (
            folder in read(f"/proc/{pid}/cmdline") or link(f"/proc/{pid}/cwd").startswith(folder) or folder in " ".join(descriptors(pid))
        ):
            found.add(pid)
    return found


def switch_off(daemon: Daemon) -> None:
    """No process, no mount, no volatile folder, as after a power cut; the daemon is not started again."""
    daemon.kill()

    def dead() -> bool:
        daemon.kill_containers()  # in turns: whoever was just starting is in its group a moment later
        for pid in own(daemon):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not own(daemon) and not any(read(f"{group}/cgroup.procs") for group in daemon.cgroups())

    assert eventually(dead)
    daemon.unmount()
    shutil.rmtree(daemon.exec_root)
    daemon.remove_cgroups()
