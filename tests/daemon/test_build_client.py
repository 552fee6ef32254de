"""`knarr build` and `knarr builder` against Knarr's daemon: what a user types, sees and finds afterwards."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lib.buildwork import SLEEP, running, wait, wake
from tests.lib.daemon import Daemon, knarr_command
from tests.lib.terminal import Terminal

QUIET = ("--network", "none")


class Site:
    """A folder to build in, and `knarr` as a user of one daemon types it there."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self.daemon = daemon
        self.folder = folder
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "KNARR_", "BUILDKIT", "SOURCE_DATE"))}
        self.environment = {**kept, "KNARR_HOST": f"unix://{daemon.socket}", "HOME": str(folder / "home")}
        self.command = knarr_command()

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def __call__(self, *words: str, input: bytes | None = None, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        stdin: dict[str, Any] = {"input": input} if input is not None else {"stdin": subprocess.DEVNULL}
        result = subprocess.run(
            [*self.command, *words], env=self.environment | env, cwd=self.folder, capture_output=True, timeout=300, **stdin
        )  # fmt: skip
        shown = subprocess.CompletedProcess(result.args, result.returncode, result.stdout.decode(), result.stderr.decode())
        assert not check or shown.returncode == 0, (words, shown, self.daemon.log_tail())
        return shown

    def build(self, *words: str, **more: Any) -> str:
        """Build quietly; the image's id."""
        return self("build", "-q", *QUIET, *words, **more).stdout.strip()

    def run(self, image: str, *words: str) -> str:
        return self("run", "--rm", *QUIET, image, *words).stdout


@pytest.fixture
def site(daemon: Daemon, tmp_path: Path) -> Iterator[Site]:
    site = Site(daemon, tmp_path)
    yield site
    daemon.remove_all()
    site("image", "prune", "-a", "-f", "--filter", "label=own")
    site("builder", "prune", "-a", "-f")


def test_a_folder_becomes_an_image(site: Site) -> None:
    site.write("Dockerfile", 'FROM busybox\nARG WHO\nLABEL own=1\nRUN echo hello $WHO > /made\nCOPY app /app\nCMD ["/app"]\n')
    site.write("app", "#!/bin/sh\ncat /made\n", 0o755)
    result = site("build", *QUIET, "-t", "app:1", "--build-arg", "WHO=you", "--iidfile", "iid", "--metadata-file", "meta.json", ".")
    assert result.stdout == ""
    assert re.search(r"^#\d+ \[.*2/3\] RUN echo hello you > /made$", result.stderr, re.MULTILINE)
    assert "2 steps executed, 0 from the cache" in result.stderr
    image = (site.folder / "iid").read_text()
    assert site("images", "-q", "--no-trunc", "app:1").stdout.strip() == image
    metadata = json.loads((site.folder / "meta.json").read_text())
    assert metadata["containerimage.config.digest"] == image
    assert metadata["image.name"] == "docker.io/library/app:1"
    assert site.run("app:1") == "hello you\n"


def test_the_second_build_runs_nothing_and_gives_the_same(site: Site) -> None:
    site.write("Dockerfile", "FROM busybox\nLABEL own=1\nRUN date > /made\nCOPY data /\n")
    site.write("data", "1")
    first = site.build(".")
    again = site("build", *QUIET, ".")
    assert "0 steps executed, 2 from the cache" in again.stderr
    assert "CACHED" in again.stderr
    assert first in again.stderr
    site.write("data", "2")
    assert "1 step executed, 1 from the cache" in site("build", *QUIET, ".").stderr
    assert site.build("--no-cache", ".") != first


def test_only_files_that_changed_are_sent(site: Site) -> None:
    site.write("Dockerfile", "FROM busybox\nLABEL own=1\nCOPY . /\n")
    for number in range(20):
        site.write(f"files/{number}", "x" * 10_000)
    time.sleep(0.1)  # a file as young as that is sent in any case
    sent = re.compile(r"DEBUG: sent (\S+) of files")
    first = sent.search(site("build", "-D", *QUIET, ".").stderr)
    assert first is not None
    assert first[1].startswith("200.")
    site.write("files/7", "y" * 10_000)
    second = sent.search(site("build", "-D", *QUIET, ".").stderr)
    assert second is not None
    assert second[1].startswith("10.")
    image = site.build("-t", "own:changed", ".")
    assert image
    assert site.run("own:changed", "cat", "/files/7") == "y" * 10_000


def test_ignored_files_are_not_there(site: Site) -> None:
    site.write("Dockerfile", "FROM busybox\nLABEL own=1\nCOPY . /in/\n")
    site.write(".dockerignore", "*.log\n!keep.log\nDockerfile\n.dockerignore\nhome\n")
    for name in ("a.log", "keep.log", "b"):
        site.write(name, "")
    site.build("-t", "own:ignored", ".")
    assert site.run("own:ignored", "ls", "-A", "/in").split() == ["b", "keep.log"]


def test_a_file_of_patterns_that_is_too_large_is_refused(site: Site) -> None:
    site.write("Dockerfile", "FROM busybox\nLABEL own=1\nCOPY . /all\n")
    site.write(".dockerignore", "secret\n" + "#" * (1 << 20))
    site.write("secret", "1")
    refused = site("build", *QUIET, ".", check=False)
    assert refused.returncode == 1 and ".dockerignore: larger than 1048576 bytes" in refused.stderr


def test_a_dockerfile_from_standard_input_or_elsewhere(site: Site) -> None:
    site.write("ctx/file", "from the context")
    text = b"FROM busybox\nLABEL own=1\nCOPY file /\n"
    one = site.build("-f", "-", "ctx", input=text)
    site.write("other/Some.Dockerfile", text.decode())
    assert site.build("-f", "other/Some.Dockerfile", "ctx") == one
    assert site.build("-", input=b"FROM busybox\nLABEL own=1\n")
    with tarfile.open(site.folder / "ctx.tar.gz", "w:gz") as tar:
        tar.add(site.folder / "ctx" / "file", "file")
        tar.add(site.folder / "other/Some.Dockerfile", "D")
    site.build("-t", "own:tar", "-f", "D", "-", input=(site.folder / "ctx.tar.gz").read_bytes())
    assert site.run("own:tar", "cat", "/file") == "from the context"


def test_named_contexts(site: Site) -> None:
    site.write("Dockerfile", "FROM base\nLABEL own=1\nCOPY --from=lib part /\n")
    site.write("elsewhere/part", "named")
    site.build("-t", "own:named", "--build-context", "lib=elsewhere", "--build-context", "base=docker-image://busybox", ".")
    assert site.run("own:named", "cat", "/part") == "named"


def test_a_secret_is_seen_and_leaves_nothing(site: Site) -> None:
    step = "RUN --mount=type=secret,id=token wc -c < /run/secrets/token > /size"
    site.write("Dockerfile", f"FROM busybox\nLABEL own=1\n{step}\n")
    result = site("build", *QUIET, "--secret", "id=token,env=TOKEN", "-t", "own:secret", ".", TOKEN="hush-hush")
    assert "hush-hush" not in result.stderr
    assert site.run("own:secret", "sh", "-c", "cat /size; cat /run/secrets/token 2>/dev/null || echo gone") == "9\ngone\n"
    assert "hush-hush" not in site("history", "--no-trunc", "own:secret").stdout
    found = subprocess.run(["grep", "-rl", "hush-hush", str(site.daemon.directory)], capture_output=True, timeout=60)
    assert found.stdout == b""


TALK = r"""
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
int main(void) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    char data[100];
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    strncpy(to.sun_path, getenv("SSH_AUTH_SOCK"), sizeof to.sun_path - 1);
    if (connect(s, (struct sockaddr *)&to, sizeof to) || write(s, "hello\n", 6) != 6) return 1;
    return write(1, data, read(s, data, sizeof data)) != 6;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_an_ssh_agent_is_reached_from_a_step(site: Site) -> None:
    agent = site.folder / "agent"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(agent))
    listener.listen()

    def answer() -> None:
        sock, _ = listener.accept()
        with sock:
            while data := sock.recv(100):
                sock.sendall(data.upper())

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    site.write("talk.c", TALK)
    subprocess.run(["cc", "-static", "-o", site.folder / "talk", site.folder / "talk.c"], check=True)
    site.write("Dockerfile", "FROM busybox\nLABEL own=1\nCOPY talk /\nRUN --mount=type=ssh /talk\n")
    result = site("build", *QUIET, "--ssh", f"default={agent}", ".")
    assert " HELLO\n" in result.stderr
    thread.join(60)
    listener.close()


def test_a_step_that_fails_is_named_with_its_place(site: Site) -> None:
    site.write("Dockerfile", "FROM busybox\nRUN echo before; exit 3\n")
    result = site("build", *QUIET, "-t", "own:never", ".", check=False)
    assert result.returncode == 1
    assert "------\n > [2/2] RUN echo before; exit 3:\n" in result.stderr
    assert "   2 | >>> RUN echo before; exit 3\n" in result.stderr
    error = 'ERROR: failed to solve: process "/bin/sh -c echo before; exit 3" did not complete successfully: exit code: 3'
    assert result.stderr.splitlines()[-1] == error
    assert site("images", "-q", "own:never").stdout == ""


def test_mistakes_in_a_dockerfile_are_shown(site: Site) -> None:
    site.write("Dockerfile", "FROM busybox\nRUNN x\n")
    result = site("build", ".", check=False)
    assert result.returncode == 1
    assert "Dockerfile:2\n" in result.stderr
    assert ">>> RUNN x" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("ERROR: failed to solve: dockerfile parse error on line 2: unknown instruction: RUNN")


def test_rawjson_is_one_message_a_line(site: Site) -> None:
    site.write("Dockerfile", "FROM busybox\nLABEL own=1\nRUN echo hello\n")
    result = site("build", *QUIET, "--progress", "rawjson", ".")
    messages = [json.loads(line) for line in result.stderr.splitlines()]
    names = {vertex["name"] for message in messages for vertex in message.get("vertexes", ())}
    assert any(name.endswith("RUN echo hello") for name in names)
    assert any(message.get("logs") for message in messages)


def test_progress_on_a_terminal(site: Site) -> None:
    site.write("Dockerfile", f"FROM busybox\nLABEL own=1\nRUN echo working; {SLEEP}; echo more\n")
    terminal = Terminal([*knarr_command(), "build", *QUIET, str(site.folder)], site.environment, 24, 80)
    terminal.expect(b"Building")
    terminal.expect(b"working")
    wake(site.daemon)
    terminal.expect(b"Built in")
    assert terminal.wait() == 0
    terminal.close()


def test_an_interrupt_stops_the_build(site: Site) -> None:
    site.write("Dockerfile", "FROM busybox\nRUN echo began; sleep 4321\n")
    terminal = Terminal([*knarr_command(), "build", *QUIET, str(site.folder)], site.environment, 24, 80)
    terminal.expect(b"began")
    wait(lambda: running("sleep 4321"))
    terminal.type(b"\x03")
    terminal.expect(b"Canceled: context canceled")
    assert terminal.wait() == 130
    terminal.close()
    wait(lambda: not running("sleep 4321"), told=lambda: "the step of a build that was stopped still runs")
    wait(lambda: f"{site.daemon.exec_root}/build" not in Path("/proc/self/mountinfo").read_text(), told=lambda: "its mounts are left")


def test_a_client_that_dies_stops_its_build(site: Site) -> None:
    site.write("Dockerfile", "FROM busybox\nRUN echo began; sleep 4322\n")
    process = subprocess.Popen(
        [*knarr_command(), "build", *QUIET, "."], env=site.environment, cwd=site.folder, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )  # fmt: skip
    assert process.stderr is not None
    assert any(line.endswith(b" began\n") for line in process.stderr)
    wait(lambda: running("sleep 4322"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    wait(lambda: not running("sleep 4322"), told=lambda: "the step of a client that died still runs")


def test_the_names_that_docker_has(site: Site) -> None:
    site.write("Dockerfile", "FROM busybox\nLABEL own=1\nRUN true\n")
    image = site.build(".")
    for words in (["image", "build"], ["builder", "build"], ["buildx", "build"]):
        assert site(*words, "-q", *QUIET, ".").stdout.strip() == image
    program = site.folder / "docker"
    program.symlink_to(shutil.which(knarr_command()[0]) or knarr_command()[0])
    site.command = [str(program)]
    assert site.build(".") == image


def test_what_builds_keep_is_shown_and_removed(site: Site) -> None:
    site.write("Dockerfile", "FROM busybox\nLABEL own=1\nRUN echo hello > /x\n")
    site.build(".")
    shown = site("builder", "du").stdout
    assert shown.splitlines()[0].split() == ["ID", "RECLAIMABLE", "SIZE", "LAST", "ACCESSED"]
    assert "Total:" in shown
    assert "RUN echo hello > /x" in site("builder", "du", "--verbose").stdout
    names = site("buildx", "du", "--format", "{{.CacheType}}", "--filter", "type=regular").stdout.split()
    assert set(names) == {"regular"}
    assert "Are you sure you want to continue? [y/N] " in site("builder", "prune", input=b"n\n").stdout
    assert "Build Cache" in site("system", "df").stdout
    removed = site("builder", "prune", "-a", "-f").stdout
    assert "Deleted build cache objects:\n" in removed
    assert "Total reclaimed space: " in removed
    assert "1 step executed, 0 from the cache" in site("build", *QUIET, ".").stderr


def test_files_are_an_output(site: Site) -> None:
    step = "RUN mkdir /o && echo x > /o/f && ln -s f /o/l && chmod 750 /o/f"
    site.write("Dockerfile", f"FROM busybox AS b\n{step}\nFROM scratch\nCOPY --from=b /o /\n")
    site("build", *QUIET, "-o", "out", ".")
    assert (site.folder / "out/f").read_text() == "x\n"
    assert (site.folder / "out/f").stat().st_mode & 0o7777 == 0o750
    assert os.readlink(site.folder / "out/l") == "f"
    result = subprocess.run(
        [*knarr_command(), "build", *QUIET, "-o", "-", "."], env=site.environment, cwd=site.folder, capture_output=True, timeout=300
    )  # fmt: skip
    (site.folder / "o.tar").write_bytes(result.stdout)
    with tarfile.open(site.folder / "o.tar") as tar:
        assert sorted(name.strip("./") for name in tar.getnames() if name.strip("./")) == ["f", "l"]


@pytest.mark.parametrize("kind", ["oci", "docker"])
def test_an_archive_is_an_output_that_can_be_loaded(site: Site, kind: str) -> None:
    site.write("Dockerfile", "FROM busybox\nLABEL own=1\nRUN echo in archive > /x\n")
    site("build", *QUIET, "-t", f"own:{kind}", "-o", f"type={kind},dest=image.tar", ".")
    assert site("images", "-q", f"own:{kind}").stdout == ""
    site("load", "-i", "image.tar")
    assert site.run(f"own:{kind}", "cat", "/x") == "in archive\n"


def test_checks_end_with_a_status(site: Site) -> None:
    site.write("Dockerfile", "FROM busybox as x\nMAINTAINER me\n")
    result = site("build", "--check", ".", check=False)
    assert result.returncode == 1
    assert "FromAsCasing" in result.stdout
    assert "MaintainerDeprecated" in result.stdout
    site.write("Dockerfile", "FROM busybox AS x\n")
    assert "no warnings" in site("build", "--check", ".").stdout
    assert "x" in site("build", "--call", "targets", ".").stdout
