"""Builds as people ask for them: what they read when it works, when it does not, and what they find afterwards. Ours alone."""

from __future__ import annotations

import base64
import functools
import glob
import http.server
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lib import busybox
from tests.lib.buildwork import SLEEP, wait, wake
from tests.lib.daemon import Daemon, docker_program, knarr_command
from tests.lib.terminal import Terminal

EPOCH = "1700000000"
FILES = """
FROM busybox
COPY file /file
RUN mkdir -p /a/b && echo made > /a/b/made && touch /etc/new && rm /bin/ash
WORKDIR /work/here
COPY --chown=1:1 file copied
LABEL own=1
"""


class Builder:
    """A folder to build in, and who types there."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self.daemon = daemon
        self.folder = folder
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER", "KNARR_", "BUILD", "SOURCE_DATE", "SSH_"))}
        self.environment = {**kept, "DOCKER_HOST": f"unix://{daemon.socket}", "DOCKER_CONFIG": str(folder / ".docker")}

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def run(
        self, command: list[str], *, input: bytes = b"", fails: int = 0, on: Daemon | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """A command that ends with the status `fails`."""
        environment = self.environment | env | ({"DOCKER_HOST": f"unix://{on.socket}"} if on is not None else {})
        result = subprocess.run(command, input=input, env=environment, cwd=self.folder, capture_output=True, timeout=300)
        shown = subprocess.CompletedProcess(result.args, result.returncode, result.stdout.decode(), result.stderr.decode())
        assert result.returncode == fails, (shown, self.daemon.log_tail())
        return shown

    def __call__(self, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return self.run([*knarr_command(), *words], **more)

    def build(self, *words: str, **more: Any) -> str:
        """What `knarr build` without a network says of its progress."""
        return self("build", "--network", "none", *words, **more).stderr

    def classic(self, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """`docker build` of the unmodified CLI, with the classic builder."""
        return self.run([docker_program(), "build", *words], DOCKER_BUILDKIT="0", **more)


@pytest.fixture
def site(daemon: Daemon, tmp_path: Path) -> Builder:
    return Builder(daemon, tmp_path)


# -- the same input, the same image


def test_with_an_epoch_two_hosts_make_the_same_image(site: Builder, own_daemon: Callable[..., Daemon]) -> None:
    site.write("Dockerfile", FILES)
    found = []
    other = own_daemon().start()
    busybox.load(other)
    for daemon in (site.daemon, other):
        time.sleep(1.1 if found else 0)  # every time of a file is another
        site.write("file", "content")
        site("build", "-q", "--network", "none", "-t", "same", "--metadata-file", "meta", ".", on=daemon, SOURCE_DATE_EPOCH=EPOCH)
        found.append(json.loads((site.folder / "meta").read_text()))
    assert found[0] == found[1]


def test_no_file_of_the_build_is_newer_than_the_epoch_unless_told(site: Builder) -> None:
    site.write("Dockerfile", FILES)
    site.write("file", "content")
    for option, newest in ((), True), (("-o", "type=oci,dest=-,rewrite-timestamp=false"), False):
        output = option or ("-o", "type=oci,dest=-")
        command = [*knarr_command(), "build", "--network", "none", "-q", *output, "."]
        data = subprocess.run(
            command, cwd=site.folder, env=site.environment | {"SOURCE_DATE_EPOCH": EPOCH}, capture_output=True, check=True
        )
        times = [entry.mtime for layer in layers(data.stdout)[1:] for entry in layer]
        assert times and all(time <= int(EPOCH) for time in times) is newest


def layers(archive: bytes) -> list[list[tarfile.TarInfo]]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        blobs = {info.name: (opened.extractfile(info) or io.BytesIO()).read() for info in opened if info.isreg()}
    found = []
    for name in json.loads(blobs["manifest.json"])[0]["Layers"]:
        with tarfile.open(fileobj=io.BytesIO(blobs[name])) as layer:
            found.append(layer.getmembers())
    return found


# -- what is refused, and when


def test_outputs_that_there_are_not_are_refused_before_anything_is_done(site: Builder) -> None:
    site.write("Dockerfile", "FROM busybox\nRUN date\n")
    for words, told in (
        (("-o", "type=jar,dest=x"), 'exporter "jar" could not be found'),
        (("-o", "type=image,compression=rar"), "unsupported layer compression type rar"),
        (("-o", "type=image,nmae=x"), 'unknown attribute "nmae" of the output image'),
        (("--attest", "type=poem"), 'unknown attestation type "poem"'),
    ):
        progress = site.build(*words, ".", fails=1)
        assert f"ERROR: failed to solve: {told}" in progress
        assert "RUN" not in progress


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        ((), 1, "'knarr build' requires 1 argument"),
        (("--nosuch", "."), 125, "unknown flag: --nosuch"),
        (("--ulimit", "nofile", "."), 125, 'invalid argument "nofile" for "--ulimit" flag'),
        (("--shm-size", "much", "."), 125, 'invalid argument "much" for "--shm-size" flag'),
        (("nowhere",), 1, 'ERROR: unable to prepare context: path "nowhere" not found'),
        (("Dockerfile",), 1, 'ERROR: unable to prepare context: path "Dockerfile" not found'),
        (("-f", "none", "."), 1, "ERROR: failed to solve: failed to read dockerfile: open none: no such file or directory"),
        (("--target", "none", "."), 1, 'ERROR: failed to solve: target stage "none" could not be found'),
        (("-t", "Upper", "."), 1, 'ERROR: invalid tag "Upper": repository name must be lowercase'),
        (("--secret", "id=a,src=none", "."), 1, "ERROR: failed to stat none: stat none: no such file or directory"),
        (("--ssh", "default", "."), 1, "ERROR: invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set"),
        (("--allow", "all", "."), 1, "ERROR: unknown entitlement all"),
        (("--push", "."), 1, "ERROR: tag is needed when pushing to registry"),
        (("--build-context", "x=none", "."), 1, "ERROR: failed to get build context x: stat none: no such file or directory"),
        (("--annotation", "poem:a=b", "."), 1, 'ERROR: unknown annotation type "poem"'),
        (("--isolation", "hyperv", "."), 1, 'ERROR: invalid isolation "hyperv"'),
        (("--policy", "x", "."), 1, "not implemented: --policy"),
    ],
)
def test_mistakes_on_the_command_line(site: Builder, words: tuple[str, ...], status: int, told: str) -> None:
    site.write("Dockerfile", "FROM busybox\nRUN date\n")
    result = site("build", *words, fails=status)
    assert told in result.stderr and "RUN date" not in result.stderr and not result.stdout


# -- errors that say where


def test_a_base_image_that_is_not_to_be_had(site: Builder) -> None:
    site.write("Dockerfile", "FROM busybox AS first\nFROM 127.0.0.1:1/none AS second\nCOPY --from=first /bin/sh /sh\n")
    told = site.build(".", fails=1)
    assert "127.0.0.1:1/none" in told and "connection refused" in told
    assert "Dockerfile:2\n" in told and "   2 | >>> FROM 127.0.0.1:1/none AS second" in told


def test_a_base_image_that_is_here_for_another_platform(site: Builder) -> None:
    site.write("Dockerfile", "FROM scratch\nLABEL own=1\n")
    site.build("--platform", "linux/arm64", "-t", "127.0.0.1:1/arm", ".")
    site.write("Dockerfile", "FROM 127.0.0.1:1/arm\n")
    assert "(what is here is for linux/arm64, not for linux/" in site.build(".", fails=1)


@pytest.mark.parametrize("source", ["none", "--from=first /none"])
def test_a_file_that_is_not_there(site: Builder, source: str) -> None:
    site.write("Dockerfile", f"FROM busybox AS first\nRUN true\nFROM busybox\nCOPY {source} /x\n")
    told = site.build(".", fails=1)
    step = re.search(rf"^#(\d+) \[stage-1 2/2\] COPY {source} /x$", told, re.MULTILINE)
    assert step and f'#{step[1]} ERROR: failed to compute cache key: failed to calculate checksum of ref: "/none": not found' in told
    assert f" > [stage-1 2/2] COPY {source} /x:" in told and f"   4 | >>> COPY {source} /x" in told
    classic = site.classic(".", fails=1)
    assert re.search(rf"^Step \d/\d : COPY {source} /x$", classic.stdout, re.MULTILINE)
    assert '"/none": not found' in classic.stderr


def test_all_lines_of_the_instruction_that_failed_are_marked(site: Builder) -> None:
    site.write("Dockerfile", "FROM busybox\nRUN true && \\\n  false\nRUN <<E\nfalse\n\nE\n")
    told = site.build(".", fails=1)
    assert "   2 | >>> RUN true && \\\n   3 | >>>   false\n   4 |     RUN <<E\n" in told
    assert 'process "/bin/sh -c true &&   false" did not complete successfully: exit code: 1' in told
    site.write("Dockerfile", "FROM busybox\nRUN <<E\nfalse\n\nE\n")
    told = site.build(".", fails=1)
    assert "   2 | >>> RUN <<E\n   3 | >>> false\n   4 | >>> \n   5 | >>> E\n" in told
    assert r'process "/bin/sh -c false\n\n" did not complete' in told


def test_a_step_for_another_architecture(site: Builder) -> None:
    data = io.BytesIO()
    shell = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
    with tarfile.open(fileobj=data, mode="w") as root:
        info = tarfile.TarInfo("bin/sh")
        info.mode, info.size = 0o755, len(shell)
        root.addfile(info, io.BytesIO(shell[:18] + b"\xb7\0" + shell[20:]))  # the same for arm64
    (site.folder / "root.tar").write_bytes(data.getvalue())
    site("import", "--platform", "linux/arm64", "root.tar", "foreign")
    site.write("Dockerfile", "FROM foreign\nCOPY Dockerfile /d\n")
    site.build("--platform", "linux/arm64", "-t", "copied", ".")
    assert json.loads(site("image", "inspect", "copied").stdout)[0]["Architecture"] == "arm64"
    site.write("Dockerfile", "FROM foreign\nRUN date\n")
    assert "/bin/sh is for arm64, this host is" in site.build("--platform", "linux/arm64", ".", fails=1)


def test_more_layers_than_can_be_mounted(site: Builder) -> None:
    copies = "".join(f"COPY Dockerfile /deep-{number}\n" for number in range(127))
    site.write("Dockerfile", f"FROM busybox\n{copies}RUN touch /last\nRUN touch /beyond\n")
    told = site.build(".", fails=1)
    assert "ERROR: failed to solve: 129 layers are more than the 128 that can be mounted" in told and ">>> RUN touch /beyond" in told
    site("builder", "prune", "-a", "-f")
    wait(lambda: not glob.glob(f"{site.daemon.data_root}/snapshots/*/fs/deep-*"))  # which ignores what goes meanwhile


def test_files_that_the_user_may_not_read(site: Builder) -> None:
    site.write("Dockerfile", "FROM busybox\nCOPY . /x\n")
    site.write("private", "x").chmod(0o600)
    for folder in (site.folder, *site.folder.parents, site.daemon.directory):
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    site.daemon.socket.chmod(0o666)
    command = ["setpriv", "--reuid", "65534", "--clear-groups", *knarr_command(), "build", "-q", "."]
    told = site.run(command, fails=1).stderr
    assert "ERROR: failed to solve: error from sender: open " in told
    assert "private: permission denied" in told and ".dockerignore" in told
    site.write(".dockerignore", "private")
    assert site.run(command).stdout.startswith("sha256:")


# -- what is shown


def test_quiet_ways(site: Builder) -> None:
    site.write("Dockerfile", "FROM busybox\nLABEL own=1\n")
    image = site("build", "-q", ".")
    assert re.fullmatch(r"sha256:[0-9a-f]{64}\n", image.stdout) and not image.stderr
    assert site("build", "--progress=quiet", ".").stdout == image.stdout
    by_environment = site("build", ".", BUILDKIT_PROGRESS="quiet")
    assert not by_environment.stdout and not by_environment.stderr


def test_rawjson_has_messages_and_then_the_error(site: Builder) -> None:
    site.write("Dockerfile", "FROM busybox\nRUN echo told; false\n")
    lines = site.build("--progress=rawjson", ".", fails=1).splitlines()
    messages = [line for line in lines if line.startswith("{")]
    assert any(b"told" in base64.b64decode(log["data"]) for line in messages for log in json.loads(line).get("logs", ()))
    assert lines[len(messages)] == "Dockerfile:2" and lines[-1].startswith("ERROR: failed to solve: process ")


def test_a_terminal_that_becomes_narrow(site: Builder) -> None:
    site.write("Dockerfile", f"FROM busybox\nRUN for i in 1 2 3; do echo 日本語テキスト 🎉 $i is a long line; done; {SLEEP}; true\n")
    command = [*knarr_command(), "build", "--no-cache", "--network", "none", str(site.folder)]
    with Terminal(command, site.environment | {"LANG": "C.UTF-8"}, 24, 100) as terminal:
        terminal.expect("🎉 1".encode())
        terminal.resize(6, 20)
        terminal.process.send_signal(signal.SIGWINCH)
        terminal.expect(b"Building")
        wake(site.daemon)
        terminal.expect(b"1 step executed")
        assert terminal.wait() == 0


def test_a_tar_is_not_written_to_a_terminal(site: Builder) -> None:
    site.write("Dockerfile", "FROM busybox\n")
    with Terminal([*knarr_command(), "build", "-o", "-", str(site.folder)], site.environment) as terminal:
        terminal.expect(b"refusing to write to console")
        assert terminal.wait() == 1


# -- networks, contexts, platforms, annotations


def test_a_network_by_its_name(site: Builder) -> None:
    site.write("Dockerfile", "FROM busybox\nRUN ip -o -4 addr show eth0\n")
    site("network", "create", "--subnet", "10.213.0.0/24", "own")
    try:
        assert re.search(r" inet 10\.213\.0\.\d+/24 ", site("build", "--no-cache", "--network", "own", ".").stderr)
    finally:
        site("network", "rm", "own")
    assert "network own not found" in site("build", "--no-cache", "--network", "own", ".", fails=1).stderr


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder that a web server on loopback serves, and its address."""
    folder = tmp_path_factory.mktemp("served")

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_contexts_from_elsewhere(site: Builder, served: tuple[Path, str]) -> None:
    folder, address = served
    site.write("repo/sub/Dockerfile", "FROM busybox\nCOPY . /x\nRUN ls /x\n")
    site.write("repo/sub/of-git", "1")
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@x", "-c", "init.defaultBranch=main"]
    for words in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "x"), ("tag", "v1")):
        site.run([*git, "-C", "repo", *words])
    site.run([*git, "clone", "-q", "--bare", "repo", str(folder / "repo.git")])
    site.run([*git, "-C", str(folder / "repo.git"), "update-server-info"])
    assert " of-git" in site.build(f"{address}/repo.git#v1:sub")
    assert "failed to open subdir none" in site.build(f"{address}/repo.git#v1:none", fails=1)
    with tarfile.open(folder / "c.tar.gz", "w:gz") as archive:
        archive.add(site.write("Dockerfile", "FROM busybox\nCOPY --from=git sub/of-git /x\nCOPY f /\nRUN cat /x /f\n"), "Dockerfile")
        archive.add(site.write("f", "of-tar"), "f")
    assert " 1of-tar" in site.build("--build-context", f"git={address}/repo.git", f"{address}/c.tar.gz")
    assert "invalid response status 404" in site.build(f"{address}/none.tar", fails=1)
    assert " 1of-tar" in site.build(
        "--no-cache", "--build-context", f"git={address}/repo.git", "-", input=(folder / "c.tar.gz").read_bytes()
    )


def test_several_platforms_and_annotations_of_several_things(site: Builder) -> None:
    site.write("Dockerfile", "FROM scratch\nARG TARGETARCH\nCOPY Dockerfile /for-$TARGETARCH\nLABEL own=1\n")
    both = ("--platform", "linux/amd64,linux/arm64", "--annotation", "index,manifest:who=me", "-o", "type=oci,dest=out.tar")
    site.build(*both, ".")
    with tarfile.open(site.folder / "out.tar") as archive:
        blobs = {info.name: (archive.extractfile(info) or io.BytesIO()).read() for info in archive if info.isreg()}
    top = json.loads(blobs["index.json"])["manifests"][0]["digest"]
    index = json.loads(blobs["blobs/sha256/" + top.removeprefix("sha256:")])
    assert index["annotations"] == {"who": "me"}
    assert [one["platform"]["architecture"] for one in index["manifests"]] == ["amd64", "arm64"]
    for one in index["manifests"]:
        assert json.loads(blobs["blobs/sha256/" + one["digest"].removeprefix("sha256:")])["annotations"] == {"who": "me"}


# -- docker's own names and clients


def test_under_the_name_docker(site: Builder) -> None:
    site.write("Dockerfile", "FROM busybox\nLABEL own=1\n")
    link = site.folder / "docker"
    link.symlink_to(Path(knarr_command()[0]))
    if len(knarr_command()) > 1:
        pytest.skip("there is no launcher to link to")
    images = {site.run([str(link), *words, "build", "-q", "."]).stdout for words in ((), ("image",), ("builder",), ("buildx",))}
    assert len(images) == 1
    assert "Run 'knarr build --help'" in site.run([str(link), "build", "--nosuch", "."], fails=125).stderr


def test_the_docker_cli_without_a_plugin_falls_back_to_the_classic_builder(site: Builder) -> None:
    site.write("Dockerfile", "FROM busybox\nLABEL own=1\n")
    result = site.run([docker_program(), "build", "-t", "fallen", "."])
    assert "Successfully tagged fallen:latest" in result.stdout and "legacy builder" in result.stderr


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def test_a_client_of_buildkit_is_told_what_to_do(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(str(daemon.socket))
        sock.sendall(b"POST /grpc HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(4096)
        assert head.startswith(b"HTTP/1.1 101 ") and b"Upgrade: h2c" in head
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4) + frame(1, 4, 1, b"\x83"))
        told = b""
        while not all(words in told for words in (b"DOCKER_BUILDKIT=0", b"grpc-status\x0212", b"knarr build")):
            piece = sock.recv(4096)
            assert piece, told
            told += piece
        sock.sendall(frame(7, 0, 0, bytes(8)))
        while sock.recv(4096):  # and then it hangs up
            pass
    session = daemon.api("POST", "/session")
    assert session.status == 501 and "DOCKER_BUILDKIT=0" in session.json()["message"]


def test_buildx_shows_it(site: Builder) -> None:
    version = subprocess.run([docker_program(), "buildx", "version"], env=site.environment, capture_output=True, check=False)
    if version.returncode:
        pytest.skip("no buildx plugin")
    site.write("Dockerfile", "FROM busybox\n")
    assert "set DOCKER_BUILDKIT=0, or use knarr build" in site.run([docker_program(), "build", "."], fails=1).stderr
