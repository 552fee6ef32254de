"""Attacks on the builder, tried for real: by Dockerfiles, contexts, base images, web servers, processes in RUN and clients that lie."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import os
import re
import socket
import struct
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest

from engine.wire import buildframes as frames
from tests.lib import buildwork, busybox, images
from tests.lib.daemon import Daemon, knarr_command

MARK = "knarr-secret-5f1c"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    if os.geteuid() != 0:
        pytest.skip("a daemon needs root")
    ours = Daemon()
    try:
        busybox.load(ours.start())
        yield ours
    finally:
        ours.close()


class Site:
    """A folder to build in. Whatever is built, the daemon must be there afterwards and have nothing of it left over."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self.daemon = daemon
        self.folder = folder
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DOCKER_", "KNARR_", "BUILDKIT", "SOURCE_DATE"))}
        self.environment = {**kept, "KNARR_HOST": f"unix://{daemon.socket}", "HOME": str(folder / "home")}

    def write(self, name: str, content: str | bytes = "good\n") -> Path:
        path = self.folder / "context" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def command(self, dockerfile: str | bytes, *words: str) -> list[str]:
        self.write("Dockerfile", dockerfile)
        return [*knarr_command(), "build", "--progress=plain", "--no-cache", "--network=none", *words, str(self.folder / "context")]

    def attempt(self, dockerfile: str | bytes, *words: str) -> tuple[int, str]:
        """Build; exit status and what was shown."""
        command = self.command(dockerfile, *words)
        done = subprocess.run(command, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=300)
        assert self.daemon.api("GET", "/_ping").status == 200
        assert self.leftovers() == []
        return done.returncode, done.stderr.decode(errors="replace")

    def build(self, dockerfile: str | bytes, *words: str) -> str:
        """Build; what was shown."""
        code, shown = self.attempt(dockerfile, *words)
        assert code == 0, shown[-3000:]
        return shown

    def refused(self, dockerfile: str | bytes, *words: str) -> str:
        """Build what cannot be built; the error."""
        code, shown = self.attempt(dockerfile, *words)
        assert code == 1, shown
        error = shown[shown.index("ERROR: failed to solve: ") :]
        assert "internal error" not in error and "Traceback" not in error, error
        return error

    def leftovers(self) -> list[str]:
        """What builds had for themselves and is there still."""
        folders = (self.daemon.data_root / "build/scratch", self.daemon.exec_root / "build")
        return [name for folder in folders if folder.exists() for name in os.listdir(folder)]


@pytest.fixture
def site(daemon: Daemon, tmp_path: Path) -> Site:
    return Site(daemon, tmp_path)


def lines(shown: str) -> list[str]:
    """What processes wrote."""
    return re.findall(r"^#\d+ \d+\.\d+ (.*)$", shown, re.MULTILINE)


# -- processes in RUN


def test_a_step_is_confined_like_a_container(site: Site, daemon: Daemon) -> None:
    show = "grep -E '^(Cap|NoNewPrivs|Seccomp)' /proc/self/status; cut -d' ' -f4,5 /proc/self/mountinfo | grep -E ' /(proc|sys)/'; ls /dev"
    step = lines(site.build(f"FROM busybox\nRUN {show}\n"))
    container = daemon.out("run", "--rm", "--network=none", "busybox", "sh", "-c", show).splitlines()

    def told(rows: list[str]) -> list[str]:
        return sorted(re.sub(r"[0-9a-f]{64}", "ID", row) for row in rows)

    assert told(step) == told(container)
    assert any(row.startswith("CapEff:\t00000000a80425fb") for row in step)


def test_a_step_gets_no_descriptors_and_its_folder_is_in_its_root(site: Site) -> None:
    found = lines(site.build("FROM busybox\nRUN ls /proc/self/fd; env | cut -d= -f1 | sort\n"))
    assert found == ["0", "1", "2", "3", "HOME", "PATH", "PWD", "SHLVL"]  # 3 is what ls lists the folder by
    for number in range(3, 12):
        assert "change directory" in site.refused(f"FROM busybox\nWORKDIR /proc/self/fd/{number}\nRUN cat ../../../etc/hostname\n")


@pytest.mark.parametrize("target", ["..", "/..", "/proc/1/root", "/proc/self/cwd", "/link/x"])
def test_mounts_do_not_land_outside(site: Site, target: str) -> None:
    error = site.refused(f"FROM busybox\nRUN ln -s /proc/1/root/tmp /link\nRUN --mount=type=tmpfs,target={target} true\n")
    assert "invalid mount target" in error or "too many levels" in error


def test_sources_of_mounts_stay_in_their_tree(site: Site) -> None:
    text = """FROM busybox AS a
        RUN ln -s ../../../../../../../../etc /rel; ln -s / /abs; ln -s /proc/1/root/etc /magic; ln -s loop /loop
        FROM busybox
        """
    assert lines(site.build(f"{text}RUN --mount=type=bind,from=a,source=/rel,target=/x ls /x\n")) == ["group", "passwd"]
    assert "magic" in lines(site.build(f"{text}RUN --mount=type=bind,from=a,source=/abs,target=/x ls /x\n"))
    for name in ("magic", "loop"):
        site.refused(f"{text}RUN --mount=type=bind,from=a,source=/{name},target=/x ls /x\n")


def test_names_of_folders_are_no_options_of_overlay(site: Site) -> None:
    name = "d,upperdir=:etc,workdir=x"
    text = f"""FROM busybox AS a
        RUN mkdir '/{name}' && echo one > '/{name}/1'
        RUN echo two > '/{name}/2'
        FROM busybox
        ARG NAME='{name}'
        RUN --mount=type=bind,from=a,source=/$NAME,target=/x cat /x/1 /x/2; ! touch /x/3
        RUN --mount=type=bind,from=a,source=/$NAME,target=/x,rw touch /x/3 && cat /x/1 /x/2
        """
    assert [row for row in lines(site.build(text)) if not row.startswith("touch")] == ["one", "two", "one", "two"]


def test_what_others_have_is_never_changed(site: Site) -> None:
    site.write("f")
    text = """FROM busybox AS a
        COPY f /f
        RUN ln /f /hard
        FROM busybox AS b
        COPY f /f
        RUN --mount=type=bind,target=/c,rw --mount=type=bind,source=f,target=/one,rw --mount=type=bind,from=a,target=/a,rw \
            --mount=type=cache,from=a,target=/cache,id=poison \
            for i in /c/f /one /a/f /a/hard /cache/f /f; do echo evil > $i; chmod 777 $i; ln $i $i.2 || true; done
        RUN --mount=type=bind,target=/c --mount=type=bind,from=a,target=/a cat /c/f /a/f /a/hard; ls /c /a | grep -c '[.]2'; \
            ! echo evil > /c/f; true
        FROM busybox
        COPY f /f
        COPY --from=a /hard /hard
        RUN cat /f /hard
        """
    assert [row for row in lines(site.build(text, "--target=b")) if row in ("good", "evil", "0")] == ["good"] * 3 + ["0"]
    assert lines(site.build(text)) == ["good", "good"]
    assert (site.folder / "context/f").read_text() == "good\n"


def test_a_step_leaves_no_process(site: Site) -> None:
    site.build("FROM busybox\nRUN (setsid sleep 7431 &) ; nohup sleep 7431 & true\n")
    buildwork.wait(lambda: not buildwork.running("sleep 7431"), told=lambda: f"left: {buildwork.running('sleep 7431')}")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_devices_and_whiteouts_of_a_process(site: Site, daemon: Daemon) -> None:
    shown = site.build(
        """FROM busybox
        RUN mknod /w c 0 0 || echo refused; mknod /b b 254 0; cat /b || echo refused
        RUN --mount=type=cache,target=/c,id=nodes rm -rf /c/*; mknod /c/w c 0 0; mknod /c/b b 254 0; cat /c/b || echo refused
        RUN touch /.wh.bin /etc/.wh..wh..opq && ls -d /bin /etc/passwd
        """,
        "-t",
        "whiteouts",
    )
    assert [row for row in lines(shown) if not row.startswith(("mknod", "cat"))] == ["refused"] * 3 + ["/bin", "/etc/passwd"]
    with tarfile.open(fileobj=io.BytesIO(daemon.docker("save", "whiteouts").stdout)) as archive:
        names = [name for one in archive if one.isfile() for name in _members(archive.extractfile(one).read())]  # type: ignore[union-attr]
    assert "b" in names and not [name for name in names if ".wh." in name]


def _members(data: bytes) -> list[str]:
    try:
        return tarfile.open(fileobj=io.BytesIO(data)).getnames()
    except tarfile.ReadError:
        return []


def test_trees_of_any_depth_are_removed(site: Site, daemon: Daemon) -> None:
    nest = "p=$(yes d | head -400 | tr '\\n' /); for i in 1 2 3; do mkdir -p $p && cd $p; done; pwd | wc -c"
    (made,) = lines(site.build(f"FROM busybox\nRUN --mount=type=bind,target=/x,rw cd /x; {nest}\n"))
    assert int(made) > 2 * 1200
    site.build(f"FROM busybox\nRUN --mount=type=cache,target=/x,id=deep cd /x; {nest}\n")
    site.build(f"FROM busybox AS a\nRUN mkdir /x; cd /x; {nest}\nFROM busybox\nCOPY --from=a /x /y\n", "-o", "type=tar,dest=/dev/null")
    daemon.docker("builder", "prune", "-af")


# -- secrets


def test_a_secret_is_where_it_was_given_alone(site: Site, daemon: Daemon) -> None:
    (site.folder / "secret").write_text(MARK)
    text = """FROM busybox
        RUN --mount=type=secret,id=s,env=TOKEN --mount=type=secret,id=s test "$TOKEN" = "$(cat /run/secrets/s)" && \
            grep /run/secrets/s /proc/self/mountinfo | cut -d' ' -f6 && stat -c %a /run/secrets/s && ! echo x > /run/secrets/s
        RUN ls -A /run/secrets 2> /dev/null; env | grep -c TOKEN; true
        """
    shown = site.build(text, "--secret", f"id=s,src={site.folder}/secret", "-t", "secret")
    told = lines(shown)
    assert told[0] == "ro,nosuid,nodev,noexec,relatime" and told[1] == "400" and told[-1] == "0"
    assert MARK not in shown and MARK not in daemon.log.read_text()
    assert MARK not in daemon.out("history", "--no-trunc", "secret") + daemon.out("inspect", "secret")
    assert MARK.encode() not in daemon.docker("save", "secret").stdout
    # os.walk passes over what goes meanwhile.
    every = [Path(top, name) for root in (daemon.data_root, daemon.exec_root) for top, _, names in os.walk(root) for name in names]
    found = [path for path in every if not path.is_symlink() and path.is_file()]
    assert any(path.name == "meta.db" for path in found)
    assert [path for path in found if MARK.encode() in _content(path)] == []


# -- what must be allowed, and limits


def test_entitlements(site: Site) -> None:
    for word, name in (("--network=host", "network.host"), ("--security=insecure", "security.insecure"), ("--device=a/b", "device")):
        assert f"{name} is not allowed" in site.refused(f"FROM busybox\nRUN {word} true\n")
    shown = site.build(
        "FROM busybox\nRUN --security=insecure grep -E '^(CapEff|Seccomp):' /proc/self/status\n", "--allow=security.insecure"
    )
    effective, seccomp = (row.split()[1] for row in lines(shown))
    assert int(effective, 16) & (1 << 21) and seccomp == "0"  # CAP_SYS_ADMIN


def test_limits_of_a_build_are_those_of_its_steps(site: Site, daemon: Daemon) -> None:
    memory = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2> /dev/null || cat /sys/fs/cgroup/memory.max"
    found = lines(
        site.build(
            f"FROM busybox\nRUN {memory}; ulimit -n; ulimit -Hn; df -k /dev/shm | tail -1; cat /proc/self/cgroup\n",
            *("-m", "64m", "--ulimit", "nofile=77:88", "--shm-size", "3m", "--cgroup-parent", f"{daemon.cgroup_parent}/inner"),
        )
    )
    assert found[:3] == ["67108864", "77", "88"]
    assert found[3].split()[1] == "3072"
    assert any(f"/{daemon.cgroup_parent}/inner/" in row for row in found[4:])
    assert "exit code: 137" in site.refused("FROM busybox\nRUN head -c 300m /dev/zero | tail\n", "-m", "16m", "--memory-swap", "16m")
    for parent in ("../../x", "a/../../b", ".."):
        assert "invalid cgroup parent" in site.refused("FROM busybox\nRUN true\n", "--cgroup-parent", parent)


def test_limits_that_make_no_sense_are_refused_also_when_nothing_runs(site: Site) -> None:
    text = "FROM busybox\nRUN echo once\n"
    site.build(text)
    for words, told in (
        (("-m", "1m"), "Minimum memory limit allowed is 6MB"),
        (("--cgroup-parent", "a/../../b"), "invalid cgroup parent"),
        (("--security-opt", "nonsense"), "nonsense"),
    ):
        assert told in site.refused(text, *words)
        assert told in site.refused("FROM scratch\nCOPY . /\n", *words)


# -- Dockerfiles


@pytest.mark.parametrize(
    "line", ["RUN echo a\0b", "COPY a\0b /x", "WORKDIR /a\0b", "ENV a=b\0", "COPY <<a\0b /x/", "RUN --mount=target=/a\0b true"]
)
def test_nuls_are_refused(site: Site, line: str) -> None:
    assert "a NUL character" in site.refused(f"FROM busybox\n{line}\n")


DOUBLED = "FROM busybox\nARG A=0123456789abcdef\n" + "ARG A=$A$A\n" * 15


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param(
            "FROM busybox\nENV A=0123456789abcdef\n" + "ENV A=$A$A\n" * 40, "the variables of a stage have more than", id="doubled"
        ),
        pytest.param(DOUBLED + "".join(f"LABEL L{i}=x$A\n" for i in range(600)), "has more than", id="labels"),
        pytest.param(DOUBLED + "".join(f"RUN true {i}\n" for i in range(2000)), "the history of the stages has more than", id="history"),
        pytest.param(DOUBLED + "".join(f"COPY <<E /{i}\n$A $A\nE\n" for i in range(2000)), "add more than", id="documents"),
    ],
)
def test_what_grows_has_an_end(site: Site, text: str, told: str) -> None:
    assert re.search(told, site.refused(text))


def test_patterns_take_no_exponential_time(site: Site) -> None:
    site.write("a" * 250)
    site.write(".dockerignore", "*a" * 60 + "b\n" + "**/a" * 40 + "\n")
    site.build("FROM busybox\nCOPY " + "*a" * 60 + "b /x/\n")
    site.refused("FROM busybox\nARG A=" + "a" * 5000 + "\nLABEL l=${A##" + "*a" * 40 + "b} m=${A//" + "*a?" * 40 + "b/c}\nRUN false\n")


def test_the_daemon_answers_while_it_reads_a_long_dockerfile(site: Site, daemon: Daemon) -> None:
    command = site.command("FROM busybox\n" + "".join(f"ENV A{number}=b\n" for number in range(2500)))

    def answers_meanwhile() -> bool:
        """Whether the daemon answered between the base image and the end of a build. This process may have slept through it."""
        with subprocess.Popen(command, env=site.environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as build:
            assert build.stderr is not None
            assert any(b"load metadata for" in line for line in build.stderr)
            answered = daemon.api("GET", "/_ping").status == 200 and build.poll() is None
            build.stderr.read()
        assert build.returncode == 0
        return answered

    buildwork.wait(answers_meanwhile, told=lambda: "the daemon does not answer while a build goes on")


def test_links_in_a_root_file_system_lead_nowhere_else(site: Site, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    site.write("f", "evil")
    site.build(
        f"""FROM busybox
        RUN ln -s {outside} /a; ln -s ../../../../../../../..{outside} /b; mkdir /w && ln -s /proc/1/root{outside} /w/c
        COPY f /a/f
        COPY f /b/g
        ADD f /w/c/h
        COPY --link f /a/i
        WORKDIR /b/deeper
        COPY f j
        """
    )
    assert list(outside.iterdir()) == []
    (site.folder / "context/passwd").symlink_to("/etc/passwd")
    assert "not found" in site.refused("FROM busybox\nCOPY passwd /x\n")


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ([("../../../../../../../..{outside}/f", {}, b"x")], "a path with '..'"),
        ([("{outside}/f", {}, b"x")], ""),
        ([("l", {"type": tarfile.SYMTYPE, "linkname": "{outside}"}, b""), ("l/f", {}, b"x")], ""),
        ([("l", {"type": tarfile.SYMTYPE, "linkname": "../../../../../..{outside}"}, b""), ("l/f", {}, b"x")], "leads out"),
        ([("l", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}, b"")], "is not there"),
        ([("w", {"type": tarfile.CHRTYPE, "devmajor": 0, "devminor": 0}, b"")], "a device that means removal"),
    ],
)
def test_archives_of_add_stay_where_they_are_put(site: Site, tmp_path: Path, members: list[Any], told: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()

    def filled(value: Any) -> Any:
        return value.replace("{outside}", str(outside)) if isinstance(value, str) else value

    entries = [images.entry(filled(name), data=data, **{key: filled(value) for key, value in more.items()}) for name, more, data in members]
    site.write("a.tar", images.tar(entries))
    code, shown = site.attempt("FROM busybox\nADD a.tar /t/\n")
    assert (code, told in shown) == (1 if told else 0, True), shown
    assert list(outside.iterdir()) == []


# -- base images


def test_base_images_with_odd_files_and_configurations(site: Site, daemon: Daemon) -> None:
    odd = images.tar(
        [
            images.entry("etc/passwd", tarfile.FIFOTYPE),
            images.entry("etc/group", tarfile.CHRTYPE, devmajor=1, devminor=5),
            images.entry("etc/hosts", tarfile.SYMTYPE, linkname="../../../../../elsewhere"),
            images.entry("etc/resolv.conf", tarfile.CHRTYPE, devmajor=254, devminor=0),
            images.entry("disk", tarfile.BLKTYPE, devmajor=254, devminor=0, mode=0o666),
        ]
    )
    base = images.busybox_layer()
    archive = images.docker_archive([base, odd], ["odd:1"], {"WorkingDir": "/tmp/../../..", "Env": ["X", "=y", "PATH=/bin", "Z=\ud7ff"]})
    assert daemon.api("POST", "/images/load", archive, {"Content-Type": "application/x-tar"}).status == 200
    site.write("f")
    shown = site.build("FROM odd:1\nRUN pwd; cat /disk || echo refused\nCOPY --chown=user:user f /f\n")
    assert [row for row in lines(shown) if not row.startswith("cat")] == ["/", "refused"]
    site.refused("FROM odd:1\nUSER nobody\nRUN true\n")
    configs: list[dict[str, object]] = [{"Env": ["A=\0"]}, {"WorkingDir": "/a\0b"}, {"OnBuild": ["RUN \0"]}, {"OnBuild": ["FROM x", "RUN"]}]
    for number, config in enumerate(configs):
        archive = images.docker_archive([base], [f"nul:{number}"], config)
        if daemon.api("POST", "/images/load", archive, {"Content-Type": "application/x-tar"}).status == 200:
            site.refused(f"FROM nul:{number}\nWORKDIR x\nRUN true\n")


# -- web servers


class Web(http.server.BaseHTTPRequestHandler):
    """Answers `/to?LOCATION` with a redirect, everything else with a strange ETag."""

    asked: list[dict[str, str]] = []

    def log_message(self, *unused: object) -> None: ...

    def do_GET(self) -> None:
        self.asked.append(dict(self.headers))
        kind, _, target = self.path.partition("?")
        if kind == "/to":
            self.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: " + unquote_to_bytes(target) + b"\r\nContent-Length: 0\r\n\r\n")
        else:
            self.wfile.write(b'HTTP/1.1 200 OK\r\nETag: "\xff\xfe"\r\nContent-Length: 4\r\n\r\ndata')


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("target", ["file:///etc/passwd", "unix:///run/x.sock", "ftp://a/", "//[::1", "http://a:99999/", "/to?/to%3F/to"])
def test_redirects_lead_to_web_servers_alone(site: Site, web: str, target: str) -> None:
    site.refused(f"FROM busybox\nADD {web}/to?{target} /x\n")


def test_a_server_cannot_spoil_its_address(site: Site, web: str) -> None:
    for _ in range(2):
        assert "data" in lines(site.build(f"FROM busybox\nADD {web}/file /x\nRUN cat /x; echo\n"))


# -- clients that lie


class Liar:
    """A connection for a build with frames of our own."""

    def __init__(self, daemon: Daemon, options: dict[str, object] | None = None) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(120)
        self.socket.connect(str(daemon.socket))
        self.socket.sendall(
            b"POST /build/knarr HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: knarr-build\r\nContent-Length: 0\r\n\r\n"
        )
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.socket.recv(4096)
        self.decoder = frames.Frames()
        self.waiting = self.decoder.feed(head.partition(b"\r\n\r\n")[2])
        self.send(frames.REQUEST, json.dumps({"options": {"noCache": True} | (options or {}), "contexts": ["context"]}).encode())

    def __enter__(self) -> Liar:
        return self

    def __exit__(self, *unused: object) -> None:
        self.socket.close()

    def send(self, kind: int, payload: bytes, stream: int = 0) -> None:
        with contextlib.suppress(BrokenPipeError):  # the answer is there already
            for piece in frames.message(kind, stream, payload):
                self.socket.sendall(piece)

    def next(self) -> tuple[int, int, bytes] | None:
        while not self.waiting:
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self.waiting = self.decoder.feed(data)
        return self.waiting.pop(0)

    def end(self, *contents: bytes) -> dict[str, Any]:
        """Send what is asked for, in order; the result, the error, or {} when the daemon gave this client up."""
        while (frame := self.next()) is not None:
            kind, _, payload = frame
            if kind == frames.NEED:
                for (number,), content in zip(struct.iter_unpack(">I", payload), contents, strict=False):
                    self.socket.sendall(frames.frame(frames.FILES, 0, frames.FILE_HEAD.pack(number, len(content)) + content))
            elif kind in (frames.RESULT, frames.ERROR):
                found: dict[str, Any] = json.loads(payload)
                return found
        return {}


def entry(kind: str, name: bytes, size: int = 0, target: bytes = b"", attributes: bytes = b"", mtime: int = 0) -> bytes:
    head = frames.ENTRY.pack(ord(kind), 0o644, len(name), len(target), len(attributes), size, mtime, frames.RACY_TIME, 0)
    return head + name + target + attributes


def folder(path: bytes, *entries: bytes) -> bytes:
    def name(one: bytes) -> bytes:
        return one[frames.ENTRY.size :]

    ordered = sorted(entries, key=name)
    block = b"".join(ordered)
    return frames.FOLDER_HEAD.pack(len(path), frames.RACY, len(entries), len(block)) + path + block


def manifest(origin: str, *folders: bytes) -> bytes:
    return frames.HEAD.pack(frames.VERSION, frames.FOLDER, 7, len(origin)) + b"context" + origin.encode() + b"".join(folders)


DOCKERFILE = b"FROM busybox\nCOPY . /x/\nRUN --mount=type=bind,target=/y cat /x/* /y/*; ls /x\n"
OWN = entry("f", b"Dockerfile", len(DOCKERFILE))


@pytest.mark.parametrize(
    "folders",
    [
        [folder(b"", OWN, entry("f", b"a/b"))],
        [folder(b"", OWN, entry("d", b"..")), folder(b"..", entry("f", b"x"))],
        [folder(b"", OWN, entry("f", b"a\0b"))],
        [folder(b"", OWN, entry("l", b"s", target=b"/tmp")), folder(b"s", entry("f", b"evil"))],
        [folder(b"", OWN, entry("h", b"s", target=b"../../../../etc/passwd"))],
        [folder(b"", OWN, entry("h", b"s", target=b"s"))],
        [folder(b"", OWN, entry("c", b"s", size=(1 << 64) - 1))],
        [folder(b"", OWN), frames.FOLDER_HEAD.pack(0, 1, 0xFFFFFFFF, 8) + bytes(8)],
        [folder(b"", OWN, entry("d", b"d" * 200)), *(folder(b"/".join([b"d" * 200] * depth)) for depth in range(1, 30))],
    ],
    ids=["slash", "up", "nul", "through a link", "link out", "link to itself", "device", "count", "deep"],
)
def test_manifests_that_lie_are_given_up(site: Site, daemon: Daemon, folders: list[bytes], request: pytest.FixtureRequest) -> None:
    with Liar(daemon) as client:
        client.send(frames.MANIFEST, manifest(request.node.name, *folders))
        assert client.end(DOCKERFILE) == {}
    assert daemon.api("GET", "/_ping").status == 200


def test_what_a_manifest_may_have(site: Site, daemon: Daemon) -> None:
    def named(name: bytes, value: bytes) -> bytes:
        return frames.ATTRIBUTE.pack(len(name), len(value)) + name + value

    adorned = b"".join(named(name, b"y") for name in (b"trusted.overlay.opaque", b"user.overlay.opaque", b"\xff", b"nonsense"))
    odd = [
        *(entry("f", b"huge%d" % number, (1 << 64) - 1, mtime=(1 << 63) - 1) for number in range(2)),
        *(entry("c", b"whiteout"), entry("b", b"disk", 254 << 32), entry("p", b"pipe")),
        *(
            entry("l", b"out", target=b"/proc/1/root/etc/shadow"),
            entry("h", b"same", target=b"Dockerfile"),
            entry("d", b"d", attributes=adorned),
        ),
    ]
    with Liar(daemon) as client:
        client.send(frames.MANIFEST, manifest("odd", folder(b"", OWN, *odd), folder(b"d")))
        found = client.end(DOCKERFILE.replace(b"cat", b"! cat /x/disk && ls"), b"", b"")
    assert "image" in found, found


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dockerfile": "a\0b"}, "contains a NUL byte"),
        ({"buildArgs": {"A": "\0"}}, "contains a NUL byte"),
        ({"target": "\ud800"}, "cannot be read"),
        ({"dockerfile": "../../../../../../etc/passwd"}, "no such file or directory"),
        ({"cgroupParent": "../.."}, "invalid cgroup parent"),
        ({"ulimits": ["nofile=99999999999999999999"]}, "invalid ulimit argument"),
        ({"hosts": ["a:1.2.3.4\n6.6.6.6 b"]}, "bad format for add-host"),
        ({"network": "container:x"}, "not implemented"),
        ({"remote": "file:///etc/passwd"}, "no address of a Git repository or a web server"),
        ({"remote": "ssh://-oProxyCommand=id/x.git"}, "a strange host or path"),
        ({"platforms": ["../x"]}, "cannot parse platform"),
        ({"tags": ["../x"]}, "invalid reference format"),
        ({"shmSize": -1}, "SHM size can not be less than 0"),
    ],
)
def test_options_that_lie_are_refused(site: Site, daemon: Daemon, options: dict[str, object], told: str) -> None:
    with Liar(daemon, options) as client:
        client.send(frames.MANIFEST, manifest(json.dumps(options), folder(b"", OWN)))
        found = client.end(DOCKERFILE)
    assert told in found["message"]


def test_frames_do_not_fill_the_memory(daemon: Daemon) -> None:
    begun = b"".join(frames.frame(frames.MANIFEST | frames.MORE, number, b"") for number in range(2000))
    with Liar(daemon) as client, contextlib.suppress(ConnectionError):
        client.socket.sendall(begun)
        assert client.end().get("message", "too many messages at once").endswith("too many messages at once")
    assert daemon.api("GET", "/_ping").status == 200
