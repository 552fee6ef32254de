"""`knarr build` against a daemon that is played: what it sends, answers and leaves, and how it ends when the other side misbehaves."""

from __future__ import annotations

import contextlib
import io
import json
import os
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

from engine.wire import buildframes as frames
from tests.lib.daemon import knarr_command

RESULT = {"image": "sha256:" + "ab" * 32, "digest": "sha256:" + "cd" * 32, "executed": 1}


class Played:
    """One connection of a client, after its request and lists of files have come."""

    def __init__(self, sock: socket.socket):
        self.sock = sock
        self.decoder = frames.Frames()
        self.waiting: list[tuple[int, int, bytes]] = []
        kind, _, payload = self.next()
        assert kind == frames.REQUEST
        self.request: dict[str, Any] = json.loads(payload)
        self.manifests: dict[str, bytes] = {}
        for number, name in enumerate(self.request["contexts"]):
            kind, stream, payload = self.next()
            assert (kind, stream) == (frames.MANIFEST, number)
            self.manifests[name] = payload

    def next(self) -> tuple[int, int, bytes]:
        while not self.waiting:
            data = self.sock.recv(1 << 16)
            if not data:
                raise EOFError
            self.waiting = self.decoder.feed(data)
        return self.waiting.pop(0)

    def send(self, kind: int, stream: int = 0, payload: bytes | dict[str, Any] = b"") -> None:
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        for piece in frames.message(kind, stream, data):
            self.sock.sendall(piece)

    def files(self, name: str) -> dict[int, bytes]:
        """Ask for every file of a context; what comes, by number."""
        kind, entries = entries_of(self.manifests[name])
        assert kind == frames.FOLDER
        wanted = [number for number, (letter, _, _) in enumerate(entries) if letter == "f"]
        stream = self.request["contexts"].index(name)
        self.send(frames.NEED, stream, b"".join(struct.pack(">I", number) for number in wanted))
        data = self.stream_of(frames.FILES, stream)
        found = {}
        while data:
            number, size = frames.FILE_HEAD.unpack_from(data)
            found[number] = data[frames.FILE_HEAD.size : frames.FILE_HEAD.size + size]
            data = data[frames.FILE_HEAD.size + size :]
        assert list(found) == wanted
        return found

    def named_files(self, name: str) -> dict[str, bytes]:
        entries = entries_of(self.manifests[name])[1]
        return {entries[number][1]: content for number, content in self.files(name).items()}

    def stream_of(self, wanted: int, number: int) -> bytes:
        data = b""
        while True:
            kind, stream, payload = self.next()
            assert (kind, stream) == (wanted, number)
            if not payload:
                return data
            data += payload


def entries_of(manifest: bytes) -> tuple[int, list[tuple[str, str, int]]]:
    """The kind of a context, and (type, path, size) of what is in it, numbered as NEED counts."""
    _, kind, name, origin = frames.HEAD.unpack_from(manifest)
    at = frames.HEAD.size + name + origin
    found = []
    while at < len(manifest):
        path, _, count, _ = frames.FOLDER_HEAD.unpack_from(manifest, at)
        at += frames.FOLDER_HEAD.size
        folder = manifest[at : at + path].decode()
        at += path
        for _ in range(count):
            letter, _, length, target, attributes, size, _, _, _ = frames.ENTRY.unpack_from(manifest, at)
            at += frames.ENTRY.size
            file = manifest[at : at + length].decode()
            found.append((chr(letter), f"{folder}/{file}" if folder else file, size))
            at += length + target + attributes
    return kind, found


class Daemon:
    """Listens; `play` is run for the one build that comes. What it raises, `run` raises."""

    def __init__(self, folder: Path, play: Callable[[Played], None]):
        self.path = folder / "s"
        self.play = play
        self.failure: BaseException | None = None
        self.head = b""
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        try:
            sock, _ = self.listener.accept()
            with sock:
                while b"\r\n\r\n" not in self.head:
                    self.head += sock.recv(1)
                sock.sendall(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: knarr-build\r\n\r\n")
                self.play(Played(sock))
        except BaseException as error:
            self.failure = error

    def close(self) -> None:
        self.thread.join(60)
        self.listener.close()
        if self.failure:
            raise self.failure


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "ctx"
    (folder / "sub").mkdir(parents=True)
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    (folder / "sub" / "file").write_text("content")
    return folder


def environment(daemon: Daemon) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "KNARR_", "BUILD", "SOURCE_DATE", "SSH_AUTH"))}
    return {**kept, "DOCKER_HOST": f"unix://{daemon.path}", "HOME": str(daemon.path.parent), "TERM": "xterm"}


def build(tmp_path: Path, play: Callable[[Played], None], *words: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
    daemon = Daemon(tmp_path, play)
    result = subprocess.run(
        [*knarr_command(), "build", *words], env=environment(daemon) | more.pop("env", {}), capture_output=True, timeout=120,
        **({"stdin": subprocess.DEVNULL} | more if "input" not in more else more),
    )  # fmt: skip
    daemon.close()
    return result


def succeed(played: Played) -> None:
    played.send(frames.RESULT, 0, RESULT)


def test_a_folder_is_sent_as_it_is_asked_for(tmp_path: Path, context: Path) -> None:
    got: dict[str, Any] = {}

    def play(played: Played) -> None:
        got.update(request=played.request, dockerfile=played.named_files("dockerfile"), files=played.named_files("context"))
        succeed(played)

    result = build(tmp_path, play, "-q", "-t", "a:b", str(context))
    assert (result.returncode, result.stdout, result.stderr) == (0, RESULT["image"].encode() + b"\n", b"")  # type: ignore[attr-defined]
    assert got["request"] == {
        "options": {"tags": ["a:b"], "dockerfile": "Dockerfile", "dockerfileSent": True}, "contexts": ["dockerfile", "context"],
    }  # fmt: skip
    assert got["dockerfile"] == {"Dockerfile": b"FROM scratch\nCOPY . /\n"}
    assert got["files"] == {"Dockerfile": b"FROM scratch\nCOPY . /\n", "sub/file": b"content"}


def test_what_is_ignored_stays_here_and_the_dockerfile_comes_all_the_same(tmp_path: Path, context: Path) -> None:
    (context / ".dockerignore").write_text("Dockerfile\n**/*.log\n")
    (context / "sub" / "x.log").write_text("")
    got: dict[str, Any] = {}

    def play(played: Played) -> None:
        got.update(dockerfile=played.named_files("dockerfile"), files=played.named_files("context"))
        succeed(played)

    assert build(tmp_path, play, "-q", str(context)).returncode == 0
    assert set(got["dockerfile"]) == {"Dockerfile", ".dockerignore"}
    assert set(got["files"]) == {".dockerignore", "sub/file"}


def test_a_dockerfile_elsewhere_has_its_own_ignore_file(tmp_path: Path, context: Path) -> None:
    (context / ".dockerignore").write_text("*\n")
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    (elsewhere / "my.Dockerfile").write_text("FROM x")
    (elsewhere / "my.Dockerfile.dockerignore").write_text("sub\n")
    got: dict[str, Any] = {}

    def play(played: Played) -> None:
        got.update(options=played.request["options"])
        got.update(dockerfile=set(played.named_files("dockerfile")), files=set(played.named_files("context")))
        succeed(played)

    assert build(tmp_path, play, "-q", "-f", f"{elsewhere}/my.Dockerfile", str(context)).returncode == 0
    assert got["options"] == {"dockerfile": "my.Dockerfile", "dockerfileSent": True}
    assert got["dockerfile"] == {"my.Dockerfile", "my.Dockerfile.dockerignore"}
    assert got["files"] == {".dockerignore", "Dockerfile"}


def test_standard_input_is_a_dockerfile_or_an_archive(tmp_path: Path, context: Path) -> None:
    got: dict[str, Any] = {}

    def text(played: Played) -> None:
        got.update(dockerfile=played.named_files("dockerfile"), files=played.named_files("context"))
        succeed(played)

    assert build(tmp_path, text, "-q", "-", input=b"FROM x\n" * 200).returncode == 0
    assert got == {"dockerfile": {"Dockerfile": b"FROM x\n" * 200}, "files": {}}
    os.unlink(tmp_path / "s")
    assert build(tmp_path, text, "-q", "-f", "-", str(context), input=b"FROM y\n").returncode == 0
    assert got["dockerfile"] == {"Dockerfile": b"FROM y\n"}
    assert set(got["files"]) == {"Dockerfile", "sub/file"}
    os.unlink(tmp_path / "s")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        tar.add(context, ".")
    data = out.getvalue() + os.urandom(3 << 20)  # more than the socket holds

    def archive(played: Played) -> None:
        assert entries_of(played.manifests["context"])[0] == frames.TAR
        got.update(request=played.request, data=played.stream_of(frames.FILES, 0))
        succeed(played)

    assert build(tmp_path, archive, "-q", "-f", "d/Dockerfile", "-", input=data).returncode == 0
    assert got["request"] == {"options": {"dockerfile": "d/Dockerfile"}, "contexts": ["context"]}
    assert got["data"] == data


def test_named_contexts_and_secrets_are_sent(tmp_path: Path, context: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "l").write_text("l")
    (tmp_path / "lib" / ".dockerignore").write_text("no\n")
    (tmp_path / "lib" / "no").write_text("")
    got: dict[str, Any] = {}

    def play(played: Played) -> None:
        got.update(request=played.request, files=set(played.named_files("lib")))
        succeed(played)

    words = ["--build-context", f"lib={tmp_path}/lib", "--build-context", "img=docker-image://x", "--secret", "id=S,env=SECRET"]
    assert build(tmp_path, play, "-q", *words, str(context), env={"SECRET": "hush"}).returncode == 0
    assert got["request"]["contexts"] == ["dockerfile", "context", "lib"]
    assert got["request"]["options"]["contexts"] == {"lib": "sent:", "img": "docker-image://x"}
    assert got["request"]["options"]["secrets"] == ["S"]
    assert got["request"]["secrets"] == {"S": "aHVzaA=="}
    assert got["files"] == {".dockerignore", "l"}


def test_addresses_are_the_daemons_business(tmp_path: Path) -> None:
    got: dict[str, Any] = {}

    def play(played: Played) -> None:
        got.update(played.request)
        succeed(played)

    assert build(tmp_path, play, "-q", "-f", "sub/D", "https://git.invalid/x.git#main").returncode == 0
    assert got == {"options": {"remote": "https://git.invalid/x.git#main", "dockerfile": "sub/D"}, "contexts": []}


def test_a_large_file_and_much_progress_pass_each_other(tmp_path: Path, context: Path) -> None:
    """Neither side may wait for the other: megabytes of events come while megabytes of files go."""
    data = os.urandom(5 << 20)
    (context / "big").write_bytes(data)
    event = {"logs": [{"vertex": "v", "data": "eHh4eHh4eHh4eHgK" * 500}]}
    got: dict[str, Any] = {}

    def play(played: Played) -> None:
        entries = entries_of(played.manifests["context"])[1]
        number = next(n for n, entry in enumerate(entries) if entry[1] == "big")
        played.send(frames.NEED, 1, struct.pack(">I", number))
        for _ in range(500):
            played.send(frames.EVENT, 0, event)
        got["data"] = played.stream_of(frames.FILES, 1)[frames.FILE_HEAD.size :]
        succeed(played)

    assert build(tmp_path, play, "-q", str(context)).returncode == 0
    assert got["data"] == data


def test_outputs_arrive_in_pieces_and_at_once(tmp_path: Path, context: Path) -> None:
    tars = []
    for name in ("one", "two"):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            info = tarfile.TarInfo(name)
            info.size = 300_000
            tar.addfile(info, io.BytesIO(name.encode() * 100_000))
        tars.append(out.getvalue())

    def play(played: Played) -> None:
        assert [one["type"] for one in played.request["options"]["outputs"]] == ["local", "tar", "local"]
        assert all("dest" not in one["attributes"] for one in played.request["options"]["outputs"])
        for at in range(0, len(tars[0]), 50_000):
            for number, data in ((0, tars[0]), (1, tars[1]), (2, tars[1])):
                played.send(frames.OUTPUT, number, data[at : at + 50_000])
        for number in (2, 1, 0):
            played.send(frames.OUTPUT_END, number)
        succeed(played)

    words = ["-o", f"{tmp_path}/a", "-o", f"type=tar,dest={tmp_path}/b.tar", "-o", f"type=local,dest={tmp_path}/c"]
    result = build(tmp_path, play, "-q", *words, str(context))
    assert (result.returncode, result.stderr) == (0, b"")
    assert (tmp_path / "a/one").read_bytes() == b"one" * 100_000
    assert (tmp_path / "b.tar").read_bytes() == tars[1]
    assert (tmp_path / "c/two").read_bytes() == b"two" * 100_000


def test_a_tar_on_standard_output_is_all_that_is_there(tmp_path: Path, context: Path) -> None:
    def play(played: Played) -> None:
        played.send(frames.OUTPUT, 0, b"bytes")
        played.send(frames.OUTPUT_END, 0)
        succeed(played)

    result = build(tmp_path, play, "-o", "-", str(context))
    assert result.stdout == b"bytes"
    assert b"Built in" in result.stderr


def test_an_output_that_does_not_come_is_an_error(tmp_path: Path, context: Path) -> None:
    def half(played: Played) -> None:
        played.send(frames.OUTPUT, 0, b"half")
        succeed(played)

    result = build(tmp_path, half, "-q", "-o", f"type=tar,dest={tmp_path}/x.tar", str(context))
    assert (result.returncode, result.stderr) == (1, b"ERROR: the daemon ended the build without its output of type tar\n")
    assert not [one for one in tmp_path.iterdir() if "tar" in one.name]


def test_the_agent_is_reached_through_the_connection(tmp_path: Path, context: Path) -> None:
    agent = tmp_path / "agent"
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
    got = b""

    def play(played: Played) -> None:
        nonlocal got
        assert played.request["options"]["ssh"] == ["default"]
        played.send(frames.OPEN, 7, b"default")
        played.send(frames.CHANNEL, 7, b"sign this")
        while len(got) < 9:
            kind, stream, payload = played.next()
            assert (kind, stream) == (frames.CHANNEL, 7)
            got += payload
        played.send(frames.CHANNEL_END, 7)
        played.send(frames.OPEN, 8, b"unknown")
        assert played.next() == (frames.CHANNEL_END, 8, b"")
        succeed(played)

    result = build(tmp_path, play, "-q", "--ssh", "default", str(context), env={"SSH_AUTH_SOCK": str(agent)})
    thread.join(60)
    listener.close()
    assert (result.returncode, got) == (0, b"SIGN THIS")
    assert b"it was not given with --ssh" in result.stderr


def test_a_failed_step_is_told_with_its_log_and_place(tmp_path: Path, context: Path) -> None:
    iid = tmp_path / "iid"
    iid.write_text("of the build before")

    def play(played: Played) -> None:
        at = "2024-01-01T00:00:00.%dZ"
        name = "[2/2] RUN false"
        played.send(frames.EVENT, 0, {"vertexes": [{"digest": "v", "name": name, "started": at % 0}]})
        played.send(frames.EVENT, 0, {"logs": [{"vertex": "v", "data": "Ym9vbQo=", "timestamp": at % 5}]})
        error = "process did not complete successfully: exit code: 1"
        played.send(frames.EVENT, 0, {"vertexes": [{"digest": "v", "name": name, "started": at % 0, "completed": at % 6, "error": error}]})
        played.send(frames.ERROR, 0, {"message": error, "status": 400, "excerpt": "Dockerfile:2\n--\n   2 | >>> RUN false\n--"})

    result = build(tmp_path, play, "--iidfile", str(iid), str(context))
    assert result.returncode == 1
    assert result.stdout == b""
    assert result.stderr.decode() == (
        "#1 [2/2] RUN false\n#1 0.500 boom\n#1 ERROR: process did not complete successfully: exit code: 1\n"
        "------\n > [2/2] RUN false:\n0.500 boom\n------\n"
        "Dockerfile:2\n--\n   2 | >>> RUN false\n--\n"
        "ERROR: failed to solve: process did not complete successfully: exit code: 1\n"
    )
    assert not iid.exists()


@pytest.mark.parametrize(
    ("kind", "payload", "error"),
    [
        (None, b"", "ERROR: the daemon closed the connection before the build ended"),
        (99, b"", "ERROR: the daemon does not keep to the protocol of builds: a frame of the unknown kind 99"),
        (frames.REQUEST, b"", "ERROR: the daemon does not keep to the protocol of builds: a frame of the kind 1"),
        (
            frames.EVENT,
            b"{",
            "ERROR: the daemon does not keep to the protocol of builds: a frame of the kind 17 cannot be read (ValueError: not JSON: '{')",
        ),
        (frames.OUTPUT, b"x", "ERROR: the daemon sends an output that was not asked for (0)"),
        (frames.NEED, struct.pack(">I", 999), "ERROR: the daemon asks for the file 999 of 1 in the context"),
    ],
)
def test_a_daemon_that_misbehaves_is_named(tmp_path: Path, context: Path, kind: int | None, payload: bytes, error: str) -> None:
    def play(played: Played) -> None:
        if kind is not None:
            played.sock.sendall(struct.pack(">II", kind << 24, len(payload)) + payload)
            with contextlib.suppress(EOFError, ConnectionError):
                while True:
                    played.next()

    result = build(tmp_path, play, "-q", str(context))
    assert (result.returncode, result.stderr.decode().strip()) == (1, error)


def test_a_file_that_cannot_be_read_ends_the_build(tmp_path: Path, context: Path) -> None:
    def play(played: Played) -> None:
        (context / "sub" / "file").write_text("grown meanwhile")
        os.unlink(context / "sub" / "file")
        with contextlib.suppress(EOFError, ConnectionError):
            played.files("context")

    result = build(tmp_path, play, "-q", str(context))
    assert result.returncode == 1
    assert f"ERROR: failed to solve: error from sender: open {context}/sub/file: no such file or directory" in result.stderr.decode()


def test_calls_print_their_answer_and_give_their_status(tmp_path: Path, context: Path) -> None:
    def play(played: Played) -> None:
        played.send(frames.RESULT, 0, {"text": "Check complete, 1 warning", "answer": {"warnings": [1]}, "code": 1})

    result = build(tmp_path, play, "--check", str(context))
    assert (result.returncode, result.stdout, result.stderr) == (1, b"Check complete, 1 warning\n", b"")
    os.unlink(tmp_path / "s")
    result = build(tmp_path, play, "--call", "check,format=json,ignorestatus=true", str(context))
    assert (result.returncode, json.loads(result.stdout)) == (0, {"warnings": [1]})


@contextlib.contextmanager
def running(daemon: Daemon, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [*knarr_command(), "build", *words],
        env=environment(daemon), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("answers", [True, False])
def test_an_interrupt_asks_for_the_end_of_the_build(tmp_path: Path, context: Path, answers: bool) -> None:
    ready = threading.Event()

    def play(played: Played) -> None:
        ready.set()
        assert played.next() == (frames.CANCEL, 0, b"")
        if answers:
            played.send(frames.ERROR, 0, {"message": "context canceled", "status": 499, "excerpt": ""})

    daemon = Daemon(tmp_path, play)
    with running(daemon, str(context)) as process:
        assert ready.wait(60)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 130
        assert error.decode().endswith("ERROR: failed to solve: Canceled: context canceled\n")
    daemon.close()


def test_a_second_interrupt_ends_at_once(tmp_path: Path, context: Path) -> None:
    ready, over = threading.Event(), threading.Event()

    def play(played: Played) -> None:
        ready.set()
        assert played.next()[0] == frames.CANCEL
        over.wait(60)  # a daemon that takes its time

    daemon = Daemon(tmp_path, play)
    with running(daemon, str(context)) as process:
        assert ready.wait(60)
        started = time.monotonic()
        while process.poll() is None and time.monotonic() - started < 60:
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        assert process.returncode == 130
    over.set()
    daemon.close()


def test_another_engine_is_told_apart(tmp_path: Path, context: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()

    def refuse() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(65536)
            body = b'{"message":"page not found"}'
            sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    thread = threading.Thread(target=refuse, daemon=True)
    thread.start()
    result = subprocess.run(
        [*knarr_command(), "-H", f"unix://{tmp_path}/s", "build", str(context)], capture_output=True, timeout=120, stdin=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    thread.join(60)
    listener.close()
    assert result.returncode == 1
    assert b"is none of Knarr's: it does not know how to build for this client (page not found)" in result.stderr


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["nope"], 'ERROR: unable to prepare context: path "nope" not found'),
        (["-f", "nope", "."], "ERROR: failed to solve: failed to read dockerfile: open nope: no such file or directory"),
        (["-f", "sub", "."], "ERROR: failed to solve: failed to read dockerfile: read sub: is a directory"),
        (["-f", "-", "-"], "ERROR: invalid argument: can't use stdin for both build context and dockerfile"),
        ([], "knarr: 'knarr build' requires 1 argument"),
    ],
)
def test_what_cannot_be_built_is_refused_before_a_daemon_is_asked(context: Path, words: list[str], error: str) -> None:
    result = subprocess.run(
        [*knarr_command(), "-H", "unix:///nonexistent/s", "build", *words],
        capture_output=True, timeout=120, stdin=subprocess.DEVNULL, cwd=context,
    )  # fmt: skip
    assert (result.returncode, result.stderr.decode().splitlines()[0]) == (1, error)
