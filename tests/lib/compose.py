"""Docker Compose against an engine: which versions are here, the example application, and how it is called."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tests.lib.daemon import ROOT, Engine
from tests.lib.netns import Namespace

EXAMPLE = ROOT / "examples/compose"
IMAGE = "compose-example"
PLUGINS = (".docker/cli-plugins", "/usr/local/lib/docker/cli-plugins", "/usr/libexec/docker/cli-plugins", "/usr/lib/docker/cli-plugins")
LABEL = "com.docker.compose"


def candidates() -> Iterator[str]:
    """Programs that may be Compose, of either kind: $KNARR_COMPOSE, PATH, what packaging/system-packages puts into .venv, plugins."""
    if named := os.environ.get("KNARR_COMPOSE"):
        yield named
    if found := shutil.which("docker-compose"):
        yield found
    yield str(ROOT / ".venv/bin/docker-compose-v2")
    for folder in PLUGINS:
        yield str(Path.home() / folder / "docker-compose")


@cache
def program(version: str) -> str | None:
    """The Compose whose version starts with `version` ("1" or "2"); None when it is not here."""
    for candidate in candidates():
        if not os.access(candidate, os.X_OK):
            continue
        answer = subprocess.run([candidate, "version", "--short"], capture_output=True, text=True, check=False)
        if answer.returncode == 0 and answer.stdout.strip().lstrip("v").startswith(f"{version}."):
            return candidate
    return None


def files() -> Path:
    """The example's root file system as an archive, made once for each recipe and kept in the user's cache."""
    recipe = hashlib.sha256((EXAMPLE / "image").read_bytes()).hexdigest()[:12]
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "knarr-tests"
    cache_home.mkdir(parents=True, exist_ok=True)
    target = cache_home / f"compose-{recipe}.tar"
    with (cache_home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            for old in cache_home.glob("compose-*.tar"):
                old.unlink()
            with tempfile.TemporaryDirectory(dir=cache_home) as folder:
                made = Path(folder) / "files.tar"
                subprocess.run([EXAMPLE / "image", "--tar", made], check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=300)
                made.rename(target)
    return target


def load_image(engine: Engine) -> None:
    if engine.api("GET", f"/images/{IMAGE}/json").status != 200:
        engine.docker("import", "--change", 'CMD ["bash"]', str(files()), IMAGE, timeout=300)


class Project:
    """The example under one Compose: a copy of its files where the engine sees them under the same path, a name, a port."""

    def __init__(self, engine: Engine, version: str, host: Namespace, folder: Path, port: int) -> None:
        found = program(version)
        assert found is not None
        self.engine, self.version, self.host, self.port = engine, version, host, port
        self.name = f"shop{version}-{os.getpid()}"
        self.folder = folder / self.name
        shutil.copytree(EXAMPLE, self.folder)
        files = ["compose.yaml"] if version == "2" else ["compose.yaml", "compose.v1.yaml"]
        self.command = [found, "-p", self.name, *(word for file in files for word in ("-f", str(self.folder / file)))]

    def compose(self, *arguments: str, check: bool = True, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        environment = {**self.engine.docker_environment(), "PORT": str(self.port), "COMPOSE_ANSI": "never", "COMPOSE_HTTP_TIMEOUT": "100"}
        result = subprocess.run(
            [*self.command, *arguments],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and result.returncode:
            shown = "\n".join(f"--- {c['Names'][0]} {c['Status']}\n{self.logs_of(c['Id'])}" for c in self.containers())
            raise AssertionError(
                f"compose {' '.join(arguments)} ended with {result.returncode}:\n{result.stdout[-2000:]}{result.stderr[-3000:]}\n"
                f"{shown}\n{self.engine.log_tail()}"
            )
        return result

    def logs_of(self, container: str) -> str:
        return self.engine.docker("logs", "--tail", "15", container, check=False).stdout.decode(errors="replace")

    def listed(self, what: str, member: str = "") -> list[dict[str, Any]]:
        """Containers, networks or volumes with the project's label."""
        filters = json.dumps({"label": [f"{LABEL}.project={self.name}"]})
        answer = self.engine.api("GET", f"/{what}{'&' if '?' in what else '?'}filters={filters}").json()
        return (answer[member] or []) if member else answer

    def containers(self, service: str = "") -> list[dict[str, Any]]:
        found = [c for c in self.listed("containers/json?all=1") if service in ("", c["Labels"][f"{LABEL}.service"])]
        return sorted(found, key=lambda c: int(c["Labels"].get(f"{LABEL}.container-number", "0")))

    def inspect(self, service: str, number: int = 0) -> Any:
        return self.engine.api("GET", f"/containers/{self.containers(service)[number]['Id']}/json").json()

    def curl(self, path: str = "/", *options: str, address: str = "127.0.0.1", check: bool = True) -> str:
        """Ask the web server through its published port, from the host that the engine runs on."""
        url = f"http://{address}:{self.port}{path}"
        return self.host.run("curl", "-sS", "--max-time", "60", "--noproxy", "*", *options, url, check=check).stdout

    def visit(self, **options: str) -> dict[str, Any]:
        """What the API answers through the web server. (A web server that was just started over may need a moment.)"""
        deadline = time.monotonic() + 60
        while True:
            text = self.curl(check=False, **options)
            try:
                found: dict[str, Any] = json.loads(text)
                return found
            except ValueError:
                if time.monotonic() > deadline:
                    raise AssertionError(f"the application does not answer: {text!r}") from None
                time.sleep(0.1)

    def close(self) -> None:
        self.compose("--profile", "debug", "down", "-v", "-t", "1", check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
