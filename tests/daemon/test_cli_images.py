"""Knarr's own client with images and a real registry: what a user types, against our daemon or another engine's.

The same commands are typed into the docker CLI where that is the measure. Endpoints that the engine under test does not have are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lib import images
from tests.lib.daemon import Daemon, Engine, Peer, docker_program, knarr_command
from tests.lib.registries import free_port
from tests.lib.terminal import Terminal

PREFIX = "knarr-cli-test"


class Registry:
    """Debian's docker-registry with the user `me`, password `secret`, on loopback as the engine sees it: another engine may live in a
    network namespace of its own."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.enter: list[str] = []
        if isinstance(engine, Peer):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(engine.socket))
                pid = struct.unpack("iII", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            self.enter = ["nsenter", f"--net=/proc/{pid}/ns/net"]
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        users = subprocess.run(["htpasswd", "-nbB", "-C", "4", "me", "secret"], check=True, capture_output=True).stdout
        (folder / "users").write_bytes(users)
        config = {
            "version": "0.1", "log": {"level": "error"}, "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
            "http": {"addr": self.host}, "auth": {"htpasswd": {"realm": "test", "path": str(folder / "users")}},
        }  # fmt: skip
        (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
        command = [*self.enter, "docker-registry", "serve", str(folder / "config.yml")]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        probing = [*self.enter, "bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{self.port}"]
        deadline = time.monotonic() + 60
        while subprocess.run(probing, capture_output=True).returncode:
            assert self.process.poll() is None, "docker-registry does not start"
            assert time.monotonic() < deadline, "docker-registry does not answer"
            time.sleep(0.05)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Host:
    """A user's home, the engine, a registry with the user `me`, and the two clients."""

    def __init__(self, engine: Engine, registry: Registry, home: Path) -> None:
        self.engine = engine
        self.registry = registry
        self.home = home
        self.image = f"{registry.host}/{PREFIX}/busybox"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "KNARR_"))}
        self.environment = {**kept, "DOCKER_HOST": f"unix://{engine.socket}", "HOME": str(home), "DOCKER_CLI_HINTS": "false"}

    def run(self, program: list[str], *arguments: str, input: bytes = b"") -> tuple[int, str, str]:
        result = subprocess.run([*program, *arguments], env=self.environment, cwd=self.home, input=input, capture_output=True, timeout=120)
        return result.returncode, result.stdout.decode(), result.stderr.decode()

    def knarr(self, *arguments: str, input: bytes = b"") -> tuple[int, str, str]:
        return self.run(knarr_command(), *arguments, input=input)

    def docker(self, *arguments: str, input: bytes = b"") -> tuple[int, str, str]:
        return self.run([docker_program()], *arguments, input=input)

    def login(self) -> None:
        assert self.knarr("login", "-u", "me", "--password-stdin", self.registry.host, input=b"secret\n")[0] == 0

    def forget(self, *tags: str) -> None:
        for tag in tags:
            self.engine.api("DELETE", f"/images/{self.image}:{tag}")

    def has(self, name: str) -> bool:
        return self.engine.api("GET", f"/images/{name}/json").status == 200


def needs(engine: Engine, method: str, target: str) -> None:
    answer = engine.api(method, target)
    if answer.status == 501 or (answer.status == 404 and b"page not found" in answer.body):
        pytest.skip(f"the engine does not have {method} {target} yet")


@pytest.fixture(scope="module")
def registry(engine: Engine) -> Iterator[Registry]:
    with tempfile.TemporaryDirectory() as folder:
        made = Registry(engine, Path(folder))
        yield made
        made.close()


@pytest.fixture
def host(engine: Engine, registry: Registry) -> Iterator[Host]:
    home = Path(tempfile.mkdtemp(prefix="knarr-home-"))
    made = Host(engine, registry, home)
    archive = images.docker_archive(
        [images.tar([images.entry("file", data=os.urandom(100))])], [f"{made.image}:1", f"{made.image}:2"], {"Labels": {PREFIX: "1"}}
    )
    assert engine.api("POST", "/images/load?quiet=1", archive, {"Content-Type": "application/x-tar"}).status == 200
    yield made
    made.forget("1", "2", "3")
    shutil.rmtree(home)


def test_login_push_pull_run_logout(host: Host) -> None:
    needs(host.engine, "POST", "/images/create?fromImage=localhost:1/x&tag=1")
    code, _, error = host.knarr("push", f"{host.image}:1")
    assert (code, "no basic auth credentials" in error or "unauthorized" in error or "authentication required" in error) == (1, True), error
    code, out, error = host.knarr("login", "-u", "me", "--password-stdin", host.registry.host, input=b"wrong\n")
    assert (code, out, "unauthorized" in error.lower()) == (1, "", True), error
    assert not (host.home / ".docker/config.json").exists()
    code, out, error = host.knarr("login", "-u", "me", "--password-stdin", host.registry.host, input=b"secret\n")
    assert (code, out, "stored unencrypted" in error) == (0, "Login Succeeded\n", True), error
    assert stat.S_IMODE((host.home / ".docker/config.json").stat().st_mode) == 0o600
    code, out, error = host.knarr("push", "-a", host.image)
    assert (code, error) == (0, "")
    assert f"The push refers to repository [{host.image}]\n" in out
    assert "1: digest: sha256:" in out
    assert "2: digest: sha256:" in out
    assert host.docker("push", f"{host.image}:1")[0] == 0  # the docker CLI reads what our client wrote
    host.forget("1", "2")
    code, out, error = host.knarr("pull", f"{host.image}:1")
    assert (code, error, out.splitlines()[-1]) == (0, "", f"{host.image}:1")
    assert f"Status: Downloaded newer image for {host.image}:1\n" in out
    assert host.knarr("pull", f"{host.image}:1") == host.docker("pull", f"{host.image}:1")
    digest = host.engine.api("GET", f"/images/{host.image}:1/json").json()["RepoDigests"][0]
    host.forget("1")
    assert host.knarr("pull", "-q", digest) == (0, digest + "\n", "")
    host.engine.api("DELETE", f"/images/{digest}")
    assert host.knarr("logout", host.registry.host) == (0, f"Removing login credentials for {host.registry.host}\n", "")
    assert host.knarr("pull", f"{host.image}:1")[0] == 1


def test_a_container_of_an_image_that_is_not_here(host: Host) -> None:
    needs(host.engine, "POST", "/images/create?fromImage=localhost:1/x&tag=1")
    host.login()
    assert host.knarr("push", "-q", f"{host.image}:1") == (0, f"{host.image}:1\n", "")
    host.forget("1", "2")
    code, out, error = host.knarr("create", "--network", "none", f"{host.image}:1", "/x")
    assert (code, len(out)) == (0, 65), error
    assert error.startswith(f"Unable to find image '{host.image}:1' locally\n1: Pulling from {PREFIX}/busybox\n")
    host.engine.api("DELETE", f"/containers/{out.strip()}?force=1")
    host.forget("1")
    code, out, error = host.knarr("create", "-q", "--network", "none", f"{host.image}:1", "/x")
    assert (code, error) == (0, "")
    host.engine.api("DELETE", f"/containers/{out.strip()}?force=1")
    host.forget("1")
    assert host.knarr("create", "--network", "none", "--pull", "never", f"{host.image}:1", "/x")[0] == 1
    assert not host.has(f"{host.image}:1")


def test_names_nobody_has(host: Host) -> None:
    needs(host.engine, "POST", "/images/create?fromImage=localhost:1/x&tag=1")
    host.login()
    for name in (f"{host.image}:nope", f"{host.registry.host}/{PREFIX}/nope"):
        code, _, error = host.knarr("pull", name)
        assert (code, error) == (host.docker("pull", name)[0], host.docker("pull", name)[2])
    code, out, error = host.knarr("push", f"{host.image}:nope")
    assert (code, out, error) == host.docker("push", f"{host.image}:nope")


def test_typed_at_a_terminal(host: Host) -> None:
    needs(host.engine, "POST", "/auth")
    with Terminal([*knarr_command(), "login", host.registry.host], host.environment) as terminal:
        terminal.expect(b"Username: ")
        terminal.type(b"me\n")
        terminal.expect(b"Password: ")
        terminal.type(b"secret\n")
        assert b"secret" not in terminal.expect(b"Login Succeeded")
        assert terminal.wait() == 0
    with Terminal([*knarr_command(), "save", f"{host.image}:1"], host.environment) as terminal:
        assert terminal.wait() == 1
        assert b"cowardly refusing to save to a terminal" in terminal.screen


def test_save_and_load(host: Host) -> None:
    needs(host.engine, "GET", f"/images/{host.image}:1/get")
    assert host.knarr("save", "-o", "out.tar", f"{host.image}:1", f"{host.image}:2") == (0, "", "")
    host.forget("1", "2")
    code, out, error = host.knarr("load", "-i", "out.tar")
    assert (code, error, sorted(out.splitlines())) == (0, "", [f"Loaded image: {host.image}:1", f"Loaded image: {host.image}:2"])
    code, out, error = host.knarr("save", "-o", "none.tar", f"{host.image}:nope")
    assert (code, error) == (1, host.docker("save", "-o", "none.tar", f"{host.image}:nope")[2])
    code, _, _ = host.knarr("save", "-o", "out.tar", f"{host.image}:nope")
    assert (code, (host.home / "out.tar").stat().st_size > 0) == (1, True)
    assert sorted(path.name for path in host.home.iterdir() if "out" in path.name or "none" in path.name) == ["out.tar"]


def test_prune_takes_only_what_was_asked_for(host: Host) -> None:
    needs(host.engine, "POST", '/images/prune?filters={"label":["' + PREFIX + '=nothing"]}')
    host.engine.api("POST", f"/images/{host.image}:1/tag?repo={host.image}&tag=3")
    assert host.knarr("image", "prune", "--filter", f"label={PREFIX}=1", input=b"n\n")[0] == 0
    code, out, error = host.knarr("image", "prune", "--filter", f"label={PREFIX}=1", "-f")
    assert (code, out, error) == (0, "Total reclaimed space: 0B\n", "")
    assert host.has(f"{host.image}:1")
    code, out, error = host.knarr("image", "prune", "-a", "--filter", f"label={PREFIX}=1", input=b"y\n")
    assert (code, error) == (0, "")
    assert out.startswith("WARNING! This will remove all images without at least one container associated to them.\n")
    assert f"untagged: {host.image}:1\n" in out
    assert not host.has(f"{host.image}:1")


def test_disk_usage_is_told_alike(host: Host) -> None:
    needs(host.engine, "GET", "/system/df")
    for arguments in (("system", "df"), ("system", "df", "--format", "json"), ("system", "df", "-v")):
        # a shared engine may change between the two
        assert any(host.knarr(*arguments) == host.docker(*arguments) for _ in range(5)), (host.knarr(*arguments), host.docker(*arguments))


def test_between_two_hosts_without_a_registry(own_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    """`push --to` and `pull --from` through ssh, which here is a script that runs what it is given beside the other daemon."""
    here, there = own_daemon().start(), own_daemon().start()
    archive = images.docker_archive([images.tar([images.entry("file", data=os.urandom(1 << 20))])], ["app:1"])
    assert here.api("POST", "/images/load?quiet=1", archive, {"Content-Type": "application/x-tar"}).status == 200
    program = tmp_path / "ssh"
    program.write_text(
        f"#!{sys.executable}\nimport os, sys\nwords = sys.argv[sys.argv.index('--') + 3:]\n"
        f"os.environ['KNARR_HOST'] = 'unix://{there.socket}'\nos.execv({knarr_command()[0]!r}, {knarr_command()!r} + words)\n"
    )
    program.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "KNARR_"))}
    environment = {**kept, "KNARR_HOST": f"unix://{here.socket}", "PATH": f"{tmp_path}:{kept['PATH']}"}
    environment |= {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}

    def knarr(*arguments: str) -> tuple[int, str]:
        result = subprocess.run([*knarr_command(), *arguments], env=environment, capture_output=True, text=True, timeout=120)
        return result.returncode, result.stderr

    image = here.api("GET", "/images/app:1/json").json()["Id"]
    assert knarr("push", "--to", "ssh://edge", "app:1") == (0, "")
    assert there.api("GET", "/images/app:1/json").json()["Id"] == image
    here.api("DELETE", "/images/app:1")
    assert knarr("pull", "--from", "ssh://edge", "app:1") == (0, "")
    assert here.api("GET", "/images/app:1/json").json()["Id"] == image
    code, error = knarr("pull", "--from", "ssh://edge", "nope:1")
    assert (code, "nope" in error) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == ["ssh"]
