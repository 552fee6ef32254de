"""`python -m benchmarks.transfer`: pulling, pushing and serving a real image, beside dockerd, skopeo with umoci, and docker-registry.

Needs root, Debian's docker-registry and skopeo; mmdebstrap to make the image, unless one is given. Everything goes over loopback.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import memory, stats
from benchmarks.client import Client
from benchmarks.progress import Progress
from benchmarks.stats import Bar, Measurement
from tests.lib import images
from tests.lib.daemon import Daemon, docker_program, knarr_command
from tests.lib.distribution import Client as DistributionClient

PACKAGES = "python3,build-essential,git,nodejs,npm,ca-certificates"
LAYERS = 6
SETTLE_SECONDS = 65
BLOB_BYTES, CLIENTS = 100 << 20, 32
QUIET: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

TITLES = {
    "pull": ("Pull and unpack, wall time", "s"),
    "pull_cpu": ("Pull and unpack, processor time of the engine", "s"),
    "pull_memory": ("Pull and unpack, peak memory above idle", "MB"),
    "push": ("Push, nothing there", "s"),
    "push_again": ("Push, everything there", "s"),
    "serve": (f"Registry: a blob of {BLOB_BYTES >> 20} MB, {CLIENTS} clients at once", "s"),
}
BARS = (
    Bar("pull at most half of dockerd's wall time", "pull", "knarr", 0.5, "pull", "dockerd"),
    Bar("pull at most half of dockerd's processor time", "pull_cpu", "knarr", 0.5, "pull_cpu", "dockerd"),
    Bar("pull faster than skopeo copy and umoci unpack", "pull", "knarr", 1, "pull", "skopeo+umoci"),
    Bar("peak memory of a pull at most 60 MB above idle", "pull_memory", "knarr", 60, "", None),
    Bar("push at most half of dockerd's", "push", "knarr", 0.5, "push", "dockerd"),
    Bar("push of what is there at most 0.1 s", "push_again", "knarr", 0.1, "", None),
    Bar("the registry not slower than docker-registry", "serve", "knarr", 1, "serve", "docker-registry"),
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer", description=__doc__)
    parser.add_argument("--docker-host", default="", help="unix socket of a running dockerd to compare with")
    parser.add_argument("--docker-netns", default="", help="name of the network namespace that this dockerd lives in, if it is another one")
    parser.add_argument("--image", type=Path, help="docker-archive of the image (default: a Debian with compilers, in six layers)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="comma-separated measurements: pull, push, serve")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for transfer.json and transfer.txt")
    return parser.parse_args()


def debian(folder: Path) -> Path:
    """A docker-archive with the files of a Debian that has compilers, in layers of about the same size."""
    root = folder / "root.tar"
    subprocess.run(["mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", root], check=True, **QUIET)
    parts = [tarfile.open(folder / f"{n}.tar", "w", format=tarfile.PAX_FORMAT) for n in range(LAYERS)]  # noqa: SIM115 closed below
    share = root.stat().st_size / LAYERS + 1
    done = 0
    with tarfile.open(root) as source:
        for member in source:
            part = parts[min(int(done / share), LAYERS - 1)]
            part.addfile(member, source.extractfile(member) if member.isreg() else None)
            done += member.size + 512
    for part in parts:
        part.close()
    target = folder / "image.tar"
    target.write_bytes(images.docker_archive([Path(part.name).read_bytes() for part in parts], ["image:latest"]))
    return target


def docker_registry() -> str:
    """The program: on PATH, else where `make bench-transfer` puts it."""
    return shutil.which("docker-registry") or str(Path(__file__).parent.parent / ".venv/bin/docker-registry")


class Registry:
    """docker-registry on a loopback port, in a network namespace if one is named."""

    def __init__(self, folder: Path, port: int, netns: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        config = folder.with_suffix(f".{port}{netns}.yml")
        config.write_text(
            "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {folder}}}, delete: {{enabled: true}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
        )
        inside = ["ip", "netns", "exec", netns] if netns else []
        self.name = f"127.0.0.1:{port}"
        self.process = subprocess.Popen([*inside, docker_registry(), "serve", str(config)], **QUIET)
        if not netns:
            wait_for_port(port)
        else:
            time.sleep(1)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    """A port that nobody listens on, below those that the kernel gives to clients: another connection could have one of those meanwhile."""
    while True:
        with socket.socket() as sock, contextlib.suppress(OSError):
            port = random.randrange(20000, 24000)
            sock.bind(("", port))
            return port


def wait_for_port(port: int) -> None:
    for _ in range(1200):
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"nothing listens on port {port}")


def cpu(pids: list[int]) -> float:
    """Seconds of processor time of processes and of their children that have ended."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(map(int, fields[11:15]))
    return total / os.sysconf("SC_CLK_TCK")


class Docker:
    """An engine behind a Docker socket, by the docker CLI."""

    def __init__(self, name: str, host: str) -> None:
        self.name = name
        self.host = host
        self.client = Client(host.removeprefix("unix://"), "")
        self.pid = self.client.peer_pid()

    def run(self, *command: str) -> float:
        environment = {**os.environ, "DOCKER_HOST": self.host, "DOCKER_CLI_HINTS": "false"}
        began = time.monotonic()
        subprocess.run([docker_program(), *command], check=True, env=environment, **QUIET)
        return time.monotonic() - began

    def status(self, field: str) -> float:
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(text.split(f"{field}:")[1].split()[0]) * 1024 / 1e6

    def pull(self, image: str) -> tuple[float, float, float]:
        """Seconds, seconds of the engine's processors, megabytes above what it had before."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        before, idle = cpu(memory.of_daemon(self.pid)), self.status("VmRSS")
        taken = self.run("pull", "-q", image)
        return taken, cpu(memory.of_daemon(self.pid)) - before, self.status("VmHWM") - idle

    def drop(self, *names: str) -> None:
        for name in names:
            self.run("rmi", "-f", name)

    def forget(self, image_id: str) -> None:
        """Have no layer of an image, whatever its name here: a pull of what is there measures nothing."""
        environment = {**os.environ, "DOCKER_HOST": self.host, "DOCKER_CLI_HINTS": "false"}
        subprocess.run([docker_program(), "rmi", "-f", image_id], env=environment, check=False, **QUIET)


def skopeo_umoci(image: str, folder: Path) -> tuple[float, float]:
    """Seconds and processor seconds for `skopeo copy` into an OCI layout and `umoci unpack` of it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    subprocess.run(["skopeo", "copy", "--src-tls-verify=false", f"docker://{image}", f"oci:{folder}/layout:x"], check=True, **QUIET)
    subprocess.run(["umoci", "unpack", "--image", f"{folder}/layout:x", f"{folder}/bundle"], check=True, **QUIET)
    taken = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(folder)
    return taken, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def settle() -> None:
    """Write everything out, and wait until ext4 takes inodes that were removed a moment ago: for a minute (RECENTCY_MIN in its ialloc.c) it
    passes over them one by one, and whoever makes many files just after many were removed is measured with that."""
    os.sync()
    time.sleep(SETTLE_SECONDS)


def image_id_of(archive: Path) -> str:
    """The identifier of a docker-archive's first image: the digest of its configuration."""
    with tarfile.open(archive) as tar:
        manifest = json.loads(tar.extractfile("manifest.json").read())  # type: ignore[union-attr]
        return hashlib.sha256(tar.extractfile(manifest[0]["Config"]).read()).hexdigest()  # type: ignore[union-attr]


class Session:
    """One run over all engines, each in turn."""

    def __init__(self, options: argparse.Namespace, work: Path, stack: ExitStack) -> None:
        self.options, self.work, self.stack = options, work, stack
        self.found = {key: Measurement(key, title) for key, (title, _) in TITLES.items()}
        self.daemon = Daemon()
        stack.callback(self.daemon.close)
        self.daemon.start()
        self.engines = [Docker("knarr", f"unix://{self.daemon.socket}")]
        if options.docker_host:
            self.engines.append(Docker("dockerd", options.docker_host))
        self.progress = Progress()

    def add(self, key: str, engine: str, value: float) -> None:
        self.found[key].add(engine, value, TITLES[key][1])

    def registry(self, name: str) -> dict[str, str]:
        """A docker-registry for each engine over one folder: engine's name -> host:port."""
        port = free_port()
        folder = self.work / name
        host = Registry(folder, port)
        self.stack.callback(host.close)
        if self.options.docker_netns:
            inside = Registry(folder, port, self.options.docker_netns)
            self.stack.callback(inside.close)
        return {"folder": str(folder), "name": host.name}

    def pulls(self, archive: Path) -> str:
        registry = self.registry("source")["name"]
        image = f"{registry}/image:latest"
        image_id = image_id_of(archive)
        subprocess.run(["skopeo", "copy", "--dest-tls-verify=false", f"docker-archive:{archive}", f"docker://{image}"], check=True, **QUIET)
        for number in range(self.options.rounds):
            self.progress.stage(number, self.options.rounds, "pull")
            for engine in self.engines:
                engine.forget(image_id)
                settle()
                wall, processor, peak = engine.pull(image)
                self.add("pull", engine.name, wall)
                self.add("pull_cpu", engine.name, processor)
                if engine.name == "knarr":
                    self.add("pull_memory", engine.name, peak)
            if shutil.which("umoci"):
                settle()
                wall, processor = skopeo_umoci(image, self.work / "umoci")
                self.add("pull", "skopeo+umoci", wall)
                self.add("pull_cpu", "skopeo+umoci", processor)
        return image

    def pushes(self, image: str) -> None:
        for number in range(self.options.rounds):
            self.progress.stage(number, self.options.rounds, "push")
            for engine in self.engines:
                target = f"{self.registry(f'target-{engine.name}-{number}')['name']}/image:latest"
                engine.run("tag", image, target)
                self.add("push", engine.name, engine.run("push", "-q", target))
                for _ in range(3):
                    self.add("push_again", engine.name, engine.run("push", "-q", target))
                engine.drop(target)
                shutil.rmtree(self.work / f"target-{engine.name}-{number}")

    def serving(self) -> None:
        port = free_port()
        command = [*knarr_command(), "-H", f"unix://{self.daemon.socket}", "registry", "serve", "--addr", f"127.0.0.1:{port}"]
        process = subprocess.Popen(command, **QUIET)
        self.stack.callback(lambda: (process.terminate(), process.wait()))
        wait_for_port(port)
        servers = {"knarr": f"127.0.0.1:{port}", "docker-registry": self.registry("served")["name"]}
        blob = os.urandom(1 << 20) * (BLOB_BYTES >> 20)
        digests = {name: DistributionClient(f"http://{address}").push_blob("bench", blob) for name, address in servers.items()}
        for number in range(self.options.rounds):
            self.progress.stage(number, self.options.rounds, "serve")
            for name, address in servers.items():
                url = f"http://{address}/v2/bench/blobs/{digests[name]}"
                began = time.monotonic()
                clients = [subprocess.Popen(["curl", "-sf", "-o", "/dev/null", url]) for _ in range(CLIENTS)]
                if any([client.wait() for client in clients]):
                    raise RuntimeError(f"{name} did not serve the blob")
                self.add("serve", name, time.monotonic() - began)


def main() -> int:
    options = arguments()
    missing = [name for name in (docker_registry(), "skopeo", "curl") if not shutil.which(name)]
    if os.geteuid() or missing:
        print(f"benchmarks: needs root, and these programs: {' '.join(missing) or '(all here)'}", file=sys.stderr)
        return 1
    wanted = options.only.split(",") if options.only else ["pull", "push", "serve"]
    made = tempfile.TemporaryDirectory(prefix="knarr-transfer-", dir="/var/tmp", ignore_cleanup_errors=True)
    with made as work, ExitStack() as stack:
        session = Session(options, Path(work), stack)
        steps: list[Callable[[], object]] = []
        if {"pull", "push"} & set(wanted):
            print("Making the image", file=sys.stderr)
            image = session.pulls(options.image or debian(Path(work)))
            if "push" in wanted:
                steps.append(lambda: session.pushes(image))
        if "serve" in wanted:
            steps.append(session.serving)
        try:
            for step in steps:
                step()
        finally:
            session.progress.done()
            stats.write(options.out, "transfer", session.found, BARS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
