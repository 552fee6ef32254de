"""ELF files: why a program does not run, and what one needs. `image from-host` end to end."""

from __future__ import annotations

import gc
import io
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from engine.errors import InvalidParameter, KnarrError, NotFound
from engine.linux import elf
from engine.linux.closure import Closure
from engine.service.archives import Archives
from engine.service.images import Images
from engine.service.layers import Layers
from engine.spec.hostimage import HostImage
from engine.store.images import ImageRecord
from tests.lib.images import BUSYBOX
from tests.lib.stores import open_stores

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")
ENV = "/usr/bin/env"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Callable[..., str | None]]:
    """Explains a program in a root made of layers, topmost first."""
    gc.collect()  # what an earlier test left to the collector must not go in between
    before = len(os.listdir("/proc/self/fd"))

    def explain(path: str, *layers: dict[str, bytes | str | None]) -> str | None:
        fds = []
        for number, layer in enumerate(layers):
            base = tmp_path / str(number)
            base.mkdir(exist_ok=True)
            for name, value in layer.items():
                put(base / name, value)
            fds.append(os.open(base, os.O_PATH | os.O_DIRECTORY))
        try:
            return elf.explain_exec(fds[0] if len(fds) == 1 else fds, path)
        finally:
            for fd in fds:
                os.close(fd)

    yield explain
    assert len(os.listdir("/proc/self/fd")) <= before  # a server of an earlier test may have ended meanwhile


def put(path: Path, value: bytes | str | None) -> None:
    """Bytes: a program; text: a link; None: a whiteout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, str):
        path.symlink_to(value)
    elif value is None:
        os.mknod(path, 0o600 | 0o020000, 0)
    else:
        path.write_bytes(value)
        path.chmod(0o755)


def foreign(machine: int) -> bytes:
    data = bytearray(Path(BUSYBOX).read_bytes())
    data[18:20] = machine.to_bytes(2, "little")
    return bytes(data)


def test_a_good_program_needs_no_explanation(root: Callable[..., str | None]) -> None:
    assert root("/bin/busybox", {"bin/busybox": Path(BUSYBOX).read_bytes()}) is None
    assert root("busybox", {}) is None
    assert root("/nowhere", {}) is None


@pytest.mark.parametrize(
    ("machine", "name"), [(183, "arm64"), (40, "arm"), (243, "riscv64"), (22, "s390x"), (8, "mipsle"), (21, "ppc64le")]
)
def test_another_architecture(root: Callable[..., str | None], machine: int, name: str) -> None:
    host = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    assert root("/p", {"p": foreign(machine)}) == f"/p is for {name}, this host is {host}"


def test_a_missing_interpreter(root: Callable[..., str | None]) -> None:
    program = Path(ENV).read_bytes()
    interpreter = elf.read(io.BytesIO(program)).interpreter
    assert root("/p", {"p": program}) == f"the interpreter {interpreter} of /p is not in the image"


def test_layers_links_and_whiteouts(root: Callable[..., str | None]) -> None:
    program = Path(ENV).read_bytes()
    interpreter = elf.read(io.BytesIO(program)).interpreter.lstrip("/")
    top, base = {"usr/bin/p": program, "bin": "usr/bin"}, {"real/ld.so": b"x", interpreter: "../real/ld.so"}
    assert root("/bin/p", top, base) is None
    assert root("p", {}, {}) is None


def test_a_hidden_interpreter(root: Callable[..., str | None]) -> None:
    program = Path(ENV).read_bytes()
    interpreter = elf.read(io.BytesIO(program)).interpreter
    found = root("/p", {"p": program, interpreter.lstrip("/"): None}, {interpreter.lstrip("/"): b"x"})
    assert found == f"the interpreter {interpreter} of /p is not in the image"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"#!/bin/nope\n", "the interpreter /bin/nope of the script /s is not in the image"),
        (b"#! /bin/nope -x y\n", "the interpreter /bin/nope of the script /s is not in the image"),
        (b"#!/bin/sh\r\n", "the #! line of /s ends with a carriage return: the file has Windows line endings"),
        (b"#!\n", "the #! line of /s names no interpreter"),
        (b"#!/s\n", "the interpreter of /s is a script itself, and so on"),
        (b"echo hello\n", "/s is neither an ELF program nor a script with a #! line"),
        (b"", "/s is empty"),
        (b"\x7fELF", "/s is a damaged ELF file"),
        (b"\x7fELF" + b"\xff" * 100, "/s is a damaged ELF file"),
    ],
)
def test_scripts_and_rubbish(root: Callable[..., str | None], content: bytes, message: str) -> None:
    assert (root("/s", {"s": content}) or "").startswith(message)


def test_modes_and_links_out_of_the_image(root: Callable[..., str | None], tmp_path: Path) -> None:
    assert root("/", {"d/x": b""}) is None
    assert root("/d", {}) == "/d is a folder"
    (tmp_path / "0" / "plain").write_bytes(b"x")
    (tmp_path / "0" / "plain").chmod(0o640)
    assert root("/plain", {}) == "/plain is not executable, its mode is 0640"
    assert root("/out", {"out": "../../../../.." + str(tmp_path / "0/plain")}) is None
    assert root("/loop", {"loop": "loop"}) is None
    os.mkfifo(tmp_path / "0" / "pipe", 0o755)
    assert root("/pipe", {}) == "/pipe is no regular file"


def test_damaged_files_end_in_one_error() -> None:
    chance = random.Random(3)
    whole = Path(ENV).read_bytes()
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 30)):
            data[chance.randrange(1024)] = chance.randrange(256)
        del data[chance.choice((len(data), chance.randrange(100, len(data)))) :]
        try:
            elf.read(io.BytesIO(bytes(data)))
        except elf.NotElf:
            continue


# -- what a program needs


def build(folder: Path, name: str, source: str, *options: str) -> Path:
    out = folder / name
    out.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["gcc", "-x", "c", "-", "-x", "none", "-o", out, *options], input=source.encode(), check=True)
    return out


@needs_gcc
@pytest.mark.parametrize("tags", ["--enable-new-dtags", "--disable-new-dtags"])
def test_libraries_are_found_as_the_loader_finds_them(tmp_path: Path, tags: str) -> None:
    """RUNPATH and RPATH with $ORIGIN, a library that needs another one beside it, links that stay links."""
    shared = ("-shared", "-fPIC")
    build(tmp_path, "lib/libinner.so.1.2", "int inner(void){return 42;}", *shared, "-Wl,-soname,libinner.so.1")
    (tmp_path / "lib/libinner.so.1").symlink_to("libinner.so.1.2")
    own = "-Wl,-rpath,$ORIGIN"
    build(tmp_path, "lib/libouter.so", "int inner(void);int outer(void){return inner();}", *shared, f"{tmp_path}/lib/libinner.so.1",
          f"-Wl,{tags}", own)  # fmt: skip
    program = build(tmp_path, "bin/program", "int outer(void);int main(void){return outer();}", f"-L{tmp_path}/lib", "-louter",
                    f"-Wl,-rpath-link,{tmp_path}/lib", f"-Wl,{tags}", "-Wl,-rpath,$ORIGIN/../lib")  # fmt: skip
    found = elf.read(io.BytesIO(program.read_bytes()))
    assert (found.runpath if "enable" in tags else found.rpath) == ("$ORIGIN/../lib",)
    closure = Closure()
    assert closure.program(str(program)) == str(program)
    assert {f"{tmp_path}/lib/{name}" for name in ("libouter.so", "libinner.so.1", "libinner.so.1.2")} <= closure.paths
    assert any(os.path.basename(path).startswith("libc.so") for path in closure.paths)
    assert found.interpreter in closure.paths or os.path.realpath(found.interpreter) in closure.paths


@needs_gcc
def test_a_library_that_is_nowhere(tmp_path: Path) -> None:
    build(tmp_path, "libgone.so", "int gone(void){return 1;}", "-shared", "-fPIC")
    program = build(tmp_path, "program", "int gone(void);int main(void){return gone();}", f"-L{tmp_path}", "-lgone")
    with pytest.raises(NotFound, match=r"needs the library libgone\.so, which is not on this host"):
        Closure().program(str(program))


def test_scripts_bring_their_interpreter(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/usr/bin/env sh\n")
    closure = Closure()
    closure.program(str(script))
    assert {str(script), "/usr/bin/env"} <= closure.paths
    assert any(os.path.basename(path) in ("sh", "dash", "bash") for path in closure.paths)
    for name, error in (("nope-nope", NotFound), ("/nope", NotFound), ("./x", InvalidParameter)):
        with pytest.raises(error):
            Closure().program(name)


async def from_host(images: Images, wanted: HostImage) -> ImageRecord:
    made: list[ImageRecord] = []
    failures: list[KnarrError] = []
    async with trio.open_nursery() as nursery:
        try:
            made.append(await Archives(images, Layers(images.content, images.snapshots, nursery), nursery).from_host(wanted))
        except KnarrError as error:  # raised below, so that it does not arrive wrapped in a group
            failures.append(error)
    if failures:
        raise failures[0]
    return made[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")
def test_from_host(tmp_path: Path) -> None:
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "file").write_text("hello")
    with open_stores(tmp_path / "root") as stores:
        images = Images(stores.layout, stores.db, stores.content, stores.snapshots)
        wanted = HostImage(
            programs=("cat", BUSYBOX), tag="tools", passwd=True, nsswitch=True, files=(f"{tmp_path}/extra",), env=("A=b",), user="0",
            labels={"x": "y"}, cmd=("/etc/passwd",),
        )  # fmt: skip
        image = trio.run(from_host, images, wanted)
        again = trio.run(from_host, images, wanted)
        assert image.id == again.id
        assert images.get("tools").id == image.id
        defaults = image.config.defaults
        assert os.path.basename((defaults.entrypoint or ("",))[0]) == "cat"
        assert (defaults.cmd, defaults.user, defaults.labels) == (("/etc/passwd",), "0", {"x": "y"})
        (folder,) = images.layer_folders(image)
        for command in (["cat", "/etc/passwd"], ["/bin/busybox", "cat", "/etc/passwd"], ["cat", f"{tmp_path}/extra/file"]):
            subprocess.run(["chroot", folder, *command], check=True, capture_output=True)
        with pytest.raises(NotFound):
            trio.run(from_host, images, HostImage(programs=("nope-nope",)))
        with pytest.raises(InvalidParameter):
            trio.run(from_host, images, HostImage(programs=()))
        assert os.listdir(stores.layout.ingest) == []
