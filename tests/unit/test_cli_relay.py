"""Connections to another host through ssh: `-H ssh://`, `--from`, `--to` and `system dial-stdio`, with a script in ssh's place."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.client import Failure
from cli.relay import Relay
from cli.ssh import arguments
from tests.golden.cli_fake import FakeDaemon
from tests.lib.daemon import knarr_command

STREAM = b'{"status":"Pulling from library/x","id":"latest"}\n{"status":"Status: Downloaded newer image for x:latest"}\n'


class Hosts:
    """`here` and `there` are two daemons; `ssh` on PATH runs what it is given on `there`, and writes down its arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.here = FakeDaemon(folder / "here", {})
        self.there = FakeDaemon(folder / "there", {"GET /info": (200, {"Name": "there"})})
        program = folder / "ssh"
        program.write_text(
            f"#!{sys.executable}\nimport os, sys\nopen({str(folder / 'calls')!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10))\n"
            f"words = sys.argv[sys.argv.index('--') + 3:]\ncommand = {knarr_command()!r} + ['-H', 'unix://{folder}/there', *words]\n"
            "os.execv(command[0], command)\n"
        )
        program.chmod(0o755)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "KNARR_"))}
        self.environment = {**kept, "PATH": f"{folder}:{kept['PATH']}", "HOME": str(folder), "TMPDIR": str(folder)}

    def knarr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*knarr_command(), *arguments], env=self.environment, capture_output=True, text=True, timeout=120)

    def leftovers(self) -> list[str]:
        return [one.name for one in self.folder.iterdir() if one.name.startswith("knarr-relay")]


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    with tempfile.TemporaryDirectory() as folder:
        made = Hosts(Path(folder))
        for name in ("PATH", "HOME", "TMPDIR"):
            monkeypatch.setenv(name, made.environment[name])
        yield made
        made.here.close()
        made.there.close()


def ask(path: str, target: str) -> bytes:
    """One request over a unix socket; the answer's body."""

    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(path)

    connection = Connection("x")
    connection.request("GET", target)
    data = connection.getresponse().read()
    connection.close()
    return data


def test_another_hosts_daemon_as_the_daemon(hosts: Hosts) -> None:
    result = hosts.knarr("-H", "ssh://me@there:2222", "info", "-f", "{{.Name}}")
    assert (result.returncode, result.stdout, result.stderr) == (0, "there\n", "")
    assert (hosts.folder / "calls").read_text().splitlines()[0] == "-l me -p 2222 -o ConnectTimeout=30 -T -- there knarr system dial-stdio"


def test_no_ssh_and_a_host_that_does_not_answer(hosts: Hosts) -> None:
    (hosts.folder / "ssh").write_text("#!/bin/sh\necho 'ssh: no route' >&2\nexit 255\n")
    result = hosts.knarr("-H", "ssh://there", "info")
    assert result.returncode == 1
    assert "ssh: no route" in result.stderr
    assert "closed the connection before it answered" in result.stderr
    hosts.environment["PATH"] = "/nonexistent"
    assert "no ssh on PATH" in hosts.knarr("-H", "ssh://there", "info").stderr


def test_a_pull_gives_the_daemon_a_socket_to_the_other_host(hosts: Hosts) -> None:
    asked: list[bytes] = []

    def pull(request: dict[str, dict[str, str]]) -> tuple[int, bytes]:
        source = request["query"]["from"].removeprefix("unix://")
        assert os.stat(os.path.dirname(source)).st_mode & 0o777 == 0o700
        asked.extend(ask(source, "/info") for _ in range(3))
        return 200, STREAM

    hosts.here.table["POST /images/create"] = pull  # type: ignore[assignment]
    result = hosts.knarr("-H", f"unix://{hosts.folder}/here", "pull", "--from", "ssh://there", "--limit-rate", "500k", "x")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("docker.io/library/x:latest\n")
    assert asked == [b'{"Name": "there"}\n'] * 3
    sent = hosts.here.requests[-1]
    assert sent["query"]["limit-rate"] == "512000"  # type: ignore[index]
    assert "x-registry-auth" not in sent
    assert hosts.leftovers() == []


def test_a_temporary_folder_with_a_long_path_does_not_matter(hosts: Hosts) -> None:
    """A socket's address holds 107 bytes (unix(7))."""
    asked: list[bytes] = []

    def pull(request: dict[str, dict[str, str]]) -> tuple[int, bytes]:
        asked.append(ask(request["query"]["from"].removeprefix("unix://"), "/info"))
        return 200, STREAM

    long = hosts.folder / ("long" * 25)
    long.mkdir()
    hosts.environment["TMPDIR"] = str(long)
    hosts.here.table["POST /images/create"] = pull  # type: ignore[assignment]
    result = hosts.knarr("-H", f"unix://{hosts.folder}/here", "pull", "--from", "ssh://there", "x")
    assert (result.returncode, result.stderr, asked) == (0, "", [b'{"Name": "there"}\n'])


def test_a_push_to_a_socket(hosts: Hosts) -> None:
    hosts.here.table["POST /images/.*/push"] = (200, STREAM)
    result = hosts.knarr("-H", f"unix://{hosts.folder}/here", "push", "-q", "--to", "unix:///run/other.sock", "x:1")
    assert (result.returncode, result.stdout) == (0, "docker.io/library/x:1\n")
    assert hosts.here.requests[-1]["query"] == {"tag": "1", "to": "unix:///run/other.sock"}


def test_nothing_is_left_after_an_error(hosts: Hosts) -> None:
    hosts.here.table["POST /images/create"] = (500, {"message": "no"})
    assert hosts.knarr("-H", f"unix://{hosts.folder}/here", "pull", "--from", "ssh://there", "x").returncode == 1
    assert hosts.leftovers() == []


def test_a_killed_client_takes_its_relay_with_it(hosts: Hosts) -> None:
    hosts.here.table["POST /images/create"] = (200, [STREAM, 60])
    command = [*knarr_command(), "-H", f"unix://{hosts.folder}/here", "pull", "--from", "ssh://there", "x"]
    process = subprocess.Popen(command, env=hosts.environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    while not process.stdout.readline().startswith(b"latest: Pulling"):
        pass
    assert len(hosts.leftovers()) == 1
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 60
    while hosts.leftovers():
        assert time.monotonic() < deadline, "the relay's folder stays"
        time.sleep(0.05)


@pytest.mark.parametrize("url", ["unix://relative", "tcp://x:1", "x", "ssh://-oProxyCommand=x", "ssh://"])
def test_what_is_no_other_host(url: str) -> None:
    with pytest.raises(Failure), Relay(url):
        pass


def test_addresses() -> None:
    assert arguments("ssh://[::1]:22/run/k.sock")[-8:] == ["-T", "--", "::1", "knarr", "-H", "unix:///run/k.sock", "system", "dial-stdio"]


def test_each_direction_is_closed_on_its_own(hosts: Hosts) -> None:
    """The end of standard input is passed on, and the answer still comes, however large."""
    data = os.urandom(3_000_000)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(hosts.folder / "echo"))
    listener.listen()
    listener.settimeout(60)
    with (hosts.folder / "out").open("wb") as out:
        command = [*knarr_command(), "-H", f"unix://{hosts.folder}/echo", "system", "dial-stdio"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out)
    connection, _ = listener.accept()
    connection.settimeout(60)
    assert process.stdin is not None
    process.stdin.write(b"hello")
    process.stdin.close()
    received = b""
    while piece := connection.recv(100):
        received += piece
    connection.sendall(data)
    connection.close()
    listener.close()
    assert received == b"hello"
    assert process.wait(60) == 0
    assert (hosts.folder / "out").read_bytes() == data
