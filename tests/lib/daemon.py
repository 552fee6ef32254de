"""A daemon of our own for tests: its folders, socket and log in one temporary directory, and how to start, stop, kill and ask it.

`Peer` has the same face for a daemon that runs already (another engine's), so that compatibility tests can be tried on it first.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.lib import http

ROOT = Path(__file__).parent.parent.parent
KNARR = ROOT / ".venv/bin/knarr"


def knarr_command() -> list[str]:
    """The program under test: $KNARR, else the launcher in .venv, else the sources under this interpreter."""
    if named := os.environ.get("KNARR"):
        return [named]
    if KNARR.exists():
        return [str(KNARR)]
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); from cli.main import main; main()"]


def docker_program() -> str:
    """The docker CLI: on PATH, else in .venv/bin."""
    return shutil.which("docker") or str(ROOT / ".venv/bin/docker")


class Engine:
    """Any daemon that answers the Engine API on a unix socket."""

    socket: Path
    name = "engine"

    def docker_environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "KNARR_"))}
        return {**kept, "DOCKER_HOST": f"unix://{self.socket}", "DOCKER_CLI_HINTS": "false"}

    def api(self, method: str, target: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 120) -> http.Response:
        """One API call on a fresh connection; `target` without a version prefix unless the caller writes one."""
        return http.request(str(self.socket), method, target, body, headers, timeout)

    def docker(
        self, *arguments: str, input: bytes | None = None, check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the real docker CLI against this daemon. Standard input is empty unless given."""
        stdin: dict[str, Any] = {"input": input} if input is not None else {"stdin": subprocess.DEVNULL}
        command = [docker_program(), *arguments]
        result = subprocess.run(command, env=self.docker_environment(), capture_output=True, timeout=timeout, **stdin)
        if check and result.returncode:
            raise AssertionError(
                f"docker {' '.join(arguments)} ended with {result.returncode}:\n{result.stdout[-2000:].decode(errors='replace')}"
                f"{result.stderr[-2000:].decode(errors='replace')}\n{self.log_tail()}"
            )
        return result

    def out(self, *arguments: str, **options: Any) -> str:
        """`docker` and its standard output as stripped text."""
        return self.docker(*arguments, **options).stdout.decode().strip()

    def docker_popen(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """The docker CLI in the background, with pipes unless told otherwise."""
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen([docker_program(), *arguments], env=self.docker_environment(), **pipes)

    def remove_all(self) -> None:
        """Remove every container."""
        for container in self.api("GET", "/containers/json?all=1").json():
            self.api("DELETE", f"/containers/{container['Id']}?force=1&v=1")

    def log_tail(self, lines: int = 40) -> str:
        return ""


class Peer(Engine):
    """A daemon that runs already, named by KNARR_PEER_DOCKER_HOST."""

    name = "peer"

    def __init__(self, host: str) -> None:
        self.socket = Path(host.removeprefix("unix://"))


class Daemon(Engine):
    """`knarr daemon` on folders of its own. `start` waits until it answers; `stop` is SIGTERM, `kill` SIGKILL."""

    name = "knarr"

    def __init__(self, *options: str, directory: Path | None = None) -> None:
        self.directory = directory or Path(tempfile.mkdtemp(prefix="knarr-test-"))
        self.options = options
        self.socket = self.directory / "knarr.sock"
        self.data_root = self.directory / "data"
        self.exec_root = self.directory / "exec"
        self.log = self.directory / "daemon.log"
        self.cgroup_parent = self.directory.name
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def spawn(self) -> None:
        """Start the process without waiting for it."""
        assert self.process is None, "the daemon runs"
        folders = ["--data-root", str(self.data_root), "--exec-root", str(self.exec_root), "--pidfile", str(self.directory / "knarr.pid")]
        command = [
            *knarr_command(),
            "daemon",
            "-H",
            f"unix://{self.socket}",
            *folders,
            "--cgroup-parent",
            self.cgroup_parent,
            *self.options,
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def start(self, timeout: float = 60) -> Daemon:
        self.spawn()
        self.wait_ready(timeout)
        return self

    def wait_ready(self, timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        while True:
            try:
                if self.api("GET", "/_ping", timeout=5).status == 200:
                    return
            except OSError:
                pass
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"the daemon ended with {self.process.returncode}:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"the daemon does not answer:\n{self.log_tail()}")
            time.sleep(0.01)

    def end(self, number: int, timeout: float = 60) -> int:
        """Send a signal and wait for the end; its return code."""
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(number)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the daemon does not end on signal {number}:\n{self.log_tail()}") from None

    def stop(self) -> int:
        return self.end(signal.SIGTERM)

    def kill(self) -> None:
        self.end(signal.SIGKILL)

    def restart(self, number: int = signal.SIGKILL) -> Daemon:
        self.end(number)
        return self.start()

    def close(self) -> None:
        """Remove every container, stop the daemon and remove the folder. For fixtures; also after the daemon has failed."""
        try:
            if self.process is not None and self.process.poll() is not None:
                self.process = None
            if self.process is None and self.exec_root.exists():
                self.start()
            if self.process is not None:
                self.remove_all()
                self.stop()
        finally:
            if self.process is not None and self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.kill_containers()
            self.unmount()
            self.remove_cgroups()
            if kept := os.environ.get("KNARR_KEEP_LOGS"):
                shutil.copy(self.log, Path(kept) / f"{self.directory.name}.log")
            shutil.rmtree(self.directory, ignore_errors=True)

    def kill_containers(self) -> None:
        """End what still runs in the daemon's control groups."""
        for group in self.cgroups():
            try:
                for pid in (group / "cgroup.procs").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
            except OSError:
                pass

    def unmount(self) -> None:
        """Detach mounts that were left below the folder: a failing test must not fill the host's mount table."""
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            place = line.split()[4]
            if place.startswith(str(self.directory)):
                subprocess.run(["umount", "-l", place], check=False, stderr=subprocess.DEVNULL)

    def cgroups(self) -> list[Path]:
        """Control groups below the daemon's parent group, in every hierarchy, deepest first. (os.walk lives with groups that vanish.)"""
        found = []
        for folder, _, _ in os.walk("/sys/fs/cgroup", topdown=False):
            if f"/{self.cgroup_parent}/" in folder:
                found.append(Path(folder))
        return found

    def remove_cgroups(self) -> None:
        parents = [Path(folder) for folder, _, _ in os.walk("/sys/fs/cgroup") if folder.endswith(f"/{self.cgroup_parent}")]
        for group in [*self.cgroups(), *parents]:
            try:
                group.rmdir()
            except OSError:
                pass

    def log_tail(self, lines: int = 40) -> str:
        if not self.log.exists():
            return ""
        return "--- daemon's log\n" + "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
