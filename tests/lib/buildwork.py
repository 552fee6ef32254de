"""Builds in the background, to be interrupted, and what of them may be left afterwards."""

from __future__ import annotations

import contextlib
import glob
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.lib.daemon import Daemon, docker_program, knarr_command

WAYS = ("knarr", "classic")


def command(way: str, *words: str) -> list[str]:
    """`build` by Knarr's client, or by the docker CLI's classic one."""
    return [*knarr_command(), "build", "--progress=plain", *words] if way == "knarr" else [docker_program(), "build", *words]


def environment(daemon: Daemon, home: Path) -> dict[str, str]:
    return {**daemon.docker_environment(), "KNARR_HOST": f"unix://{daemon.socket}", "HOME": str(home), "DOCKER_BUILDKIT": "0"}


class Build:
    """A build that runs; what it says goes to a file."""

    def __init__(self, daemon: Daemon, folder: Path, *words: str, way: str = "knarr", **more: Any) -> None:
        self.path = folder.parent / f"{folder.name}-{time.monotonic_ns()}.log"
        with self.path.open("wb") as output:
            self.process = subprocess.Popen(
                command(way, *words, str(folder)), env=environment(daemon, folder.parent), stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True, **more,
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self.path.read_text(errors="replace")

    def says(self, words: str) -> None:
        """Wait until it has said this."""
        wait(lambda: words in self.output, told=lambda: f"{words!r} is not in:\n{self.output}")

    def interrupt(self, number: int = signal.SIGINT) -> int:
        """Ctrl-C, or another signal; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def result(self, timeout: float = 120) -> int:
        return self.process.wait(timeout)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@contextmanager
def building(daemon: Daemon, folder: Path, *words: str, way: str = "knarr", **more: Any) -> Iterator[Build]:
    build = Build(daemon, folder, *words, way=way, **more)
    try:
        yield build
    finally:
        build.close()


def build(daemon: Daemon, folder: Path, *words: str, way: str = "knarr", check: bool = True) -> tuple[int, str]:
    """A whole build: exit status and what it said."""
    done = subprocess.run(
        command(way, *words, str(folder)), env=environment(daemon, folder.parent), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, timeout=300,
    )  # fmt: skip
    text = done.stdout.decode(errors="replace")
    assert not check or done.returncode == 0, f"{text}\n{daemon.log_tail(60)}"
    return done.returncode, text


def site(folder: Path, dockerfile: str, files: dict[str, bytes] | None = None) -> Path:
    """A context."""
    for name, content in {"Dockerfile": dockerfile.encode(), **(files or {})}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def wait(condition: Callable[[], object], timeout: float = 60, told: Callable[[], str] = lambda: "it never was so") -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.02)


def running(words: str) -> list[str]:
    """Command lines of processes, other than builds' clients, that have these words."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if words in line and " build " not in line:
                found.append(line)
    return found


SLEEP = "sleep 86399"
"""A command of a step that ends when a test says so: `wake`."""


def wake(daemon: Daemon) -> None:
    """End the `SLEEP` of a daemon's steps, once there is one: what comes after it in the step follows."""

    def sleepers() -> set[int]:
        found = set()
        for group in daemon.cgroups():
            with contextlib.suppress(OSError):  # it ends while one looks
                pids = (group / "cgroup.procs").read_text().split()
                found |= {int(pid) for pid in pids if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1] == SLEEP.encode().split()}
        return found

    wait(sleepers, told=lambda: "no step sleeps")
    for pid in sleepers():
        os.kill(pid, signal.SIGKILL)


def leftovers(daemon: Daemon) -> list[str]:
    """What only builds that run have: folders of steps, of contexts under way, of fetches, secrets, bundles."""
    data, volatile = daemon.data_root / "build", daemon.exec_root
    places = [f"{volatile}/build/*", f"{volatile}/bundles/*", *(f"{data}/{one}" for one in ("scratch-*", "scratch/*", "sources/tmp-*"))]
    # Folders go while one looks, which pathlib's glob takes for an error.
    found = [path for place in (*places, f"{data}/contexts/tmp-*", f"{data}/contexts/*/gone-*") for path in glob.glob(place)]
    groups = [str(group) for group in daemon.cgroups() if group.name != "default-devices"]
    return found + groups


def forget(daemon: Daemon) -> None:
    """Remove images, the build cache and what only they needed, once no build uses it."""
    for image in daemon.api("GET", "/images/json?all=1").json():
        if "busybox:latest" not in (image["RepoTags"] or ()):
            daemon.api("DELETE", f"/images/{image['Id']}?force=1")
    wait(lambda: pruned(daemon), told=lambda: f"in the build cache: {cache(daemon)}")
    daemon.api("POST", "/images/prune")


def pruned(daemon: Daemon) -> bool:
    """Prune the build cache; whether all of it went. A build's client hears of its end before its context is let go of."""
    answer = daemon.api("POST", "/build/prune?all=1")
    assert answer.status == 200, answer.body
    return not cache(daemon)


def cache(daemon: Daemon) -> list[dict[str, Any]]:
    """What the build cache has."""
    return list(daemon.api("GET", "/system/df?type=build-cache").json()["BuildCache"] or ())


def findings(daemon: Daemon) -> list[str]:
    """What `system check` finds wrong."""
    answer = daemon.api("GET", "/system/check")
    lines = answer.body.decode().splitlines()
    assert '"summary"' in lines[-1], lines[-1:]
    return lines[:-1]


def memory(daemon: Daemon) -> int:
    """Private memory of the daemon in bytes."""
    for line in Path(f"/proc/{daemon.pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Private_Dirty")


def environ(name: str, default: int) -> int:
    return int(os.environ.get(name, str(default)))
