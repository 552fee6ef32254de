"""What is compared: Knarr (a daemon of its own), a Docker daemon by its socket, OCI runtimes by their command, podman, and the floor.

Each has only the operations it can do; a measurement asks with `hasattr`. Times are seconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

from benchmarks import memory
from benchmarks.client import Client
from tests.lib import images
from tests.lib.daemon import Daemon, docker_program

HERE = Path(__file__).parent
BUILD = HERE / "build"
IMAGE = "knarr-bench:latest"
TRUE = ["/bin/true"]
QUIET: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def build(name: str) -> Path:
    """Compile a program of this folder, static, unless it is newer than its source."""
    source, target = HERE / f"{name}.c", BUILD / name
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        BUILD.mkdir(exist_ok=True)
        subprocess.run(["gcc", "-O2", "-static", "-std=gnu11", "-o", target, source], check=True)
    return target


def layer() -> bytes:
    """busybox and the clock program as one layer."""
    clock = images.entry("clock", data=build("clock").read_bytes(), mode=0o755)
    out = BytesIO(images.busybox_layer())
    with tarfile.open(fileobj=out, mode="a") as tar:
        tar.addfile(clock[0], BytesIO(clock[1]))
    return out.getvalue()


def unpack(folder: Path) -> None:
    """The image's root file system as plain files."""
    subprocess.run(["tar", "-xf", "-", "-C", folder], input=layer(), check=True)


def timed(command: list[str], environment: dict[str, str] | None = None) -> float:
    """Milliseconds from the start to the end of a command. Raises CalledProcessError."""
    began = time.monotonic()
    subprocess.run(command, check=True, env=environment, **QUIET)
    return (time.monotonic() - began) * 1000


class ApiEngine:
    """Anything behind the Engine API."""

    name = ""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        self.client = Client(socket)
        self.target = ""  # a running container, for exec

    def prepare(self) -> None:
        archive = images.docker_archive([layer()], [IMAGE])
        answer = self.client.call("POST", "/images/load?quiet=1", archive, kind="application/x-tar")
        assert b"errorDetail" not in answer, answer

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("DOCKER_")}
        return {**kept, "DOCKER_HOST": f"unix://{self.socket}", "DOCKER_CLI_HINTS": "false"}

    @staticmethod
    def spec(command: list[str], **extra: Any) -> dict[str, Any]:
        return {"Image": IMAGE, "Cmd": command, "HostConfig": {"NetworkMode": "none"}, **extra}

    def create(self, command: list[str], client: Client | None = None) -> str:
        return str((client or self.client).json("POST", "/containers/create", self.spec(command))["Id"])

    def start(self, container: str, client: Client | None = None) -> None:
        (client or self.client).call("POST", f"/containers/{container}/start")

    def wait(self, container: str, client: Client | None = None) -> None:
        answer = (client or self.client).json("POST", f"/containers/{container}/wait")
        assert answer["StatusCode"] == 0, answer

    def delete(self, container: str, client: Client | None = None) -> None:
        (client or self.client).call("DELETE", f"/containers/{container}?force=1")

    def start_and_wait(self, gap: float) -> float:
        container = self.create(TRUE)
        time.sleep(gap)
        began = time.monotonic()
        self.start(container)
        self.wait(container)
        taken = time.monotonic() - began
        self.delete(container)
        return taken * 1000

    def to_first_instruction(self, gap: float) -> float:
        """Milliseconds from the start request to the container's first instructions."""
        container = self.create(["/clock"])
        time.sleep(gap)
        began = time.monotonic_ns()
        self.start(container)
        self.wait(container)
        output = self.client.call("GET", f"/containers/{container}/logs?stdout=1")
        self.delete(container)
        return (int(output[8:]) - began) / 1e6

    def lifecycle(self, client: Client | None = None) -> None:
        container = self.create(TRUE, client)
        self.start(container, client)
        self.wait(container, client)
        self.delete(container, client)

    def timed_lifecycle(self, gap: float) -> float:
        time.sleep(gap)
        began = time.monotonic()
        self.lifecycle()
        return (time.monotonic() - began) * 1000

    def exec(self, gap: float) -> float:
        """Milliseconds for exec create, start with the output attached, to its end, and its exit code."""
        if not self.target:
            self.target = self.create(["sleep", "100000"])
            self.start(self.target)
        time.sleep(gap)
        began = time.monotonic()
        made = self.client.json("POST", f"/containers/{self.target}/exec", {"Cmd": TRUE, "AttachStdout": True, "AttachStderr": True})["Id"]
        self.client.hijack(f"/exec/{made}/start", {"Detach": False, "Tty": False})
        code = self.client.json("GET", f"/exec/{made}/json")["ExitCode"]
        taken = time.monotonic() - began
        assert code == 0, code
        return taken * 1000

    def docker_run(self, gap: float) -> float:
        time.sleep(gap)
        return timed([docker_program(), "run", "--rm", "--network", "none", IMAGE, *TRUE], self.environment())

    def drop_target(self) -> None:
        if self.target:
            self.delete(self.target)
            self.target = ""

    def processes(self) -> list[int]:
        """Processes of the engine itself, without those inside containers."""
        return memory.of_daemon(self.client.peer_pid())

    def close(self) -> None:
        self.drop_target()
        self.client.close()


class Knarr(ApiEngine):
    """A daemon started for this run, in a temporary folder."""

    name = "knarr"

    def __init__(self) -> None:
        self.daemon = Daemon()
        self.timed_start()
        super().__init__(str(self.daemon.socket))

    def timed_start(self) -> float:
        began = time.monotonic()
        self.daemon.spawn()
        wait_for_answer(str(self.daemon.socket))
        return (time.monotonic() - began) * 1000

    def daemon_start(self) -> float:
        """Stop the daemon and start it again on the same folders; milliseconds to the first answer."""
        self.close()
        self.daemon.stop()
        taken = self.timed_start()
        self.client = Client(self.socket)
        return taken

    def knarr_run(self, gap: float) -> float:
        time.sleep(gap)
        command = [str(HERE.parent / ".venv/bin/knarr"), "-H", f"unix://{self.socket}", "run", "--rm", "--network", "none", IMAGE, *TRUE]
        return timed(command, {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "KNARR_"))})

    def trace(self, gap: float) -> list[tuple[str, int]]:
        """The waterfall of one start: (step, CLOCK_MONOTONIC ns), from the request to the answer."""
        container = self.create(TRUE)
        time.sleep(gap)
        began = time.monotonic_ns()
        self.start(container)
        answered = time.monotonic_ns()
        self.wait(container)
        steps = self.client.json("GET", f"/containers/{container}/trace")
        self.delete(container)
        return [("request", began), *((step["name"], step["at"]) for step in steps), ("answer", answered)]

    def stop(self) -> None:
        self.close()
        self.daemon.close()


class Dockerd(ApiEngine):
    """A Docker daemon that somebody else runs; `socket` from --docker-host."""

    name = "dockerd"
    second: SecondDockerd | None = None

    def daemon_start(self) -> float | None:
        """Milliseconds from the start of a second dockerd, beside the running one and with the same containerd, to its first answer.
        Folders and network namespace are its own and stay between starts, as after a reboot of the daemon alone."""
        pid = self.client.peer_pid()
        if self.second is None:
            self.second = SecondDockerd(pid)
        try:
            return self.second.timed_start()
        except (ApiStartError, OSError):
            return None

    def close(self) -> None:
        super().close()
        if self.second:
            self.second.close()
            self.second = None


class SecondDockerd:
    """A dockerd made from a running one: its program and mount namespace, everything else of its own."""

    def __init__(self, pid: int) -> None:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        containerd = next((words[i + 1] for i, word in enumerate(words[:-1]) if word == "--containerd"), "/run/containerd/containerd.sock")
        folder = f"/tmp/knarr-bench-{os.getpid()}"
        self.folder = Path(f"/proc/{pid}/root{folder}")
        self.folder.mkdir()
        self.network = subprocess.Popen(["unshare", "--net", "sleep", "100000"], **QUIET)
        self.command = [
            *("nsenter", "--target", str(pid), "--mount", f"--net=/proc/{self.network.pid}/ns/net", "--"),
            *(os.readlink(f"/proc/{pid}/exe"), "-H", f"unix://{folder}/s", "--containerd", containerd),
            *("--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid"),
            *("--containerd-namespace", "knarr-bench", "--containerd-plugins-namespace", "knarr-bench-plugins"),
        ]

    def timed_start(self) -> float:
        began = time.monotonic()
        process = subprocess.Popen(self.command, **QUIET)
        try:
            wait_for_answer(f"{self.folder}/s", process)
            return (time.monotonic() - began) * 1000
        finally:
            process.terminate()
            process.wait()

    def close(self) -> None:
        self.network.kill()
        self.network.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class ApiStartError(Exception):
    """A daemon ended, or did not answer in time."""


def wait_for_answer(path: str, process: subprocess.Popen[bytes] | None = None, timeout: float = 30) -> None:
    """Ask every millisecond until `_ping` is answered."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            client = Client(path, "")
            client.call("GET", "/_ping")
            client.close()
            return
        except OSError:
            if process is not None and process.poll() is not None:
                raise ApiStartError(f"ended with {process.returncode}") from None
            time.sleep(0.001)
    raise ApiStartError(f"no answer on {path}")


class Runtime:
    """crun or runc alone: `run` of an OCI bundle with busybox as its root, namespaces as Docker's with --network none.

    Started by a process of its own. crun refuses hosts that mix both cgroup versions: there that process lives in a mount namespace
    that shows version 2 alone, and crun makes no group at all, which is less work than Knarr's.
    """

    # reads a command a line, writes the milliseconds it took or "failed"
    RUNNER = (
        "import json, subprocess, sys, time\n"
        "for line in sys.stdin:\n"
        "    began = time.monotonic()\n"
        "    code = subprocess.call(json.loads(line), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "    print('failed' if code else (time.monotonic() - began) * 1000, flush=True)\n"
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = Path(tempfile.mkdtemp(prefix=f"knarr-bench-{name}-"))
        self.cgroup = f"knarr-bench-{name}-{os.getpid()}"
        self.count = 0
        self.options: list[str] = []
        self.runner = self.start_runner("true")

    def start_runner(self, preparation: str) -> subprocess.Popen[str]:
        script = f'{preparation} && exec "$0" -c "$1"'
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, sys.executable, self.RUNNER]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def prepare(self) -> None:
        root = self.folder / "rootfs"
        root.mkdir()
        unpack(root)
        subprocess.run([self.name, "spec"], cwd=self.folder, check=True, **QUIET)
        config = json.loads((self.folder / "config.json").read_text())
        config["process"].update(terminal=False, args=TRUE)
        config["process"].pop("rlimits", None)  # above the hard limit on some hosts
        config["root"]["readonly"] = False
        config["linux"]["namespaces"] = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")]
        config["linux"]["cgroupsPath"] = f"/{self.cgroup}"
        (self.folder / "config.json").write_text(json.dumps(config))
        if self.run() is not None:
            return
        if self.name == "crun":
            self.stop_runner()
            self.runner = self.start_runner("mount -t cgroup2 cgroup /sys/fs/cgroup")
            self.options = ["--cgroup-manager=disabled"]
            if self.run() is not None:
                return
        raise OSError(f"{self.name} cannot run a bundle on this host")

    def run(self) -> float | None:
        """Milliseconds of one run, None when it failed."""
        self.count += 1
        state = ["--root", str(self.folder / "state")]
        command = [self.name, *state, *self.options, "run", "--bundle", str(self.folder), f"bench-{os.getpid()}-{self.count}"]
        assert self.runner.stdin
        assert self.runner.stdout
        self.runner.stdin.write(json.dumps(command) + "\n")
        self.runner.stdin.flush()
        answer = self.runner.stdout.readline().strip()
        return None if answer in ("", "failed") else float(answer)

    def runtime_run(self, gap: float) -> float:
        time.sleep(gap)
        taken = self.run()
        if taken is None:
            raise OSError(f"{self.name} run failed")
        return taken

    def stop_runner(self) -> None:
        self.runner.communicate()

    def close(self) -> None:
        self.stop_runner()
        shutil.rmtree(self.folder, ignore_errors=True)
        for group in Path("/sys/fs/cgroup").glob(f"**/{self.cgroup}"):
            group.rmdir()


class Podman:
    """podman by its command; has no daemon."""

    name = "podman"

    def prepare(self) -> None:
        archive = images.docker_archive([layer()], [IMAGE])
        subprocess.run(["podman", "load", "-q"], input=archive, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.podman_run(0)

    def podman_run(self, gap: float) -> float:
        time.sleep(gap)
        return timed(["podman", "run", "--rm", "--network", "none", IMAGE, *TRUE])

    def close(self) -> None:
        subprocess.run(["podman", "rmi", "-f", IMAGE], check=False, **QUIET)
