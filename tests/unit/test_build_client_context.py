"""The client's side of a context: what a walk finds, what is left out, what is sent, and the words for what cannot be read."""

from __future__ import annotations

import io
import os
import socket
import struct
import tarfile
import time
from pathlib import Path

import pytest

from builder.language.ignore import Patterns, read
from builder.sources import manifest
from cli import buildcontext
from cli.client import Failure
from engine.wire import buildframes


def paths(found: buildcontext.Manifest) -> dict[str, str]:
    """Path -> type of everything in a manifest."""
    folders = manifest.decode(found.payload).folders
    return {
        os.fsdecode(folder.path + b"/" + entry.name if folder.path else entry.name): chr(entry.type)
        for folder in folders
        for entry in manifest.entries(folder)
    }


def sent(found: buildcontext.Manifest) -> dict[str, bytes]:
    """Path -> content when everything is asked for."""
    folders = manifest.decode(found.payload).folders
    names = [(f.path + b"/" + e.name if f.path else e.name, e.type) for f in folders for e in manifest.entries(f)]
    need = b"".join(struct.pack(">I", i) for i, (_, kind) in enumerate(names) if kind == manifest.FILE)
    stream = b"".join(found.pieces(need))
    contents = {}
    while stream:
        number, size = buildframes.FILE_HEAD.unpack_from(stream)
        contents[os.fsdecode(names[number][0])] = stream[12 : 12 + size]
        stream = stream[12 + size :]
    return contents


def make(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_a_walk_finds_everything_and_sends_it(tmp_path: Path) -> None:
    make(tmp_path, {"a": "A", "d/b": "B" * 3_000_000, "d/e/c": "", "z": "Z"})
    (tmp_path / "empty").mkdir()
    (tmp_path / "ünï").write_text("u")
    os.symlink("/etc/passwd", tmp_path / "link")
    os.link(tmp_path / "a", tmp_path / "d" / "hard")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        found = buildcontext.walk("context", str(tmp_path))
        content = sent(found)
    assert paths(found) == {
        "a": "f", "d": "d", "d/b": "f", "d/e": "d", "d/e/c": "f", "d/hard": "h", "empty": "d", "link": "l", "pipe": "p", "sock": "f",
        "z": "f", "ünï": "f",
    }  # fmt: skip
    assert content == {"a": b"A", "d/b": b"B" * 3_000_000, "d/e/c": b"", "sock": b"", "z": b"Z", "ünï": b"u"}
    assert (found.files, found.size) == (6, 3_000_003)
    names = [e.name for f in manifest.decode(found.payload).folders for e in manifest.entries(f)]
    assert all(len(piece) <= buildframes.MAX_PAYLOAD for piece in found.pieces(struct.pack(">I", names.index(b"b"))))


def test_the_root_may_be_a_link(tmp_path: Path) -> None:
    make(tmp_path / "real", {"a": "A"})
    os.symlink("real", tmp_path / "link")
    assert buildcontext.walk("context", str(tmp_path / "link")).payload == buildcontext.walk("context", str(tmp_path / "real")).payload


@pytest.mark.parametrize(
    ("ignore", "left"),
    [
        ("", {"a.txt", "b.log", "docs", "docs/deep", "docs/deep/x.md", "docs/y.md", "docs/z.log"}),
        ("*.log", {"a.txt", "docs", "docs/deep", "docs/deep/x.md", "docs/y.md", "docs/z.log"}),
        ("**/*.log", {"a.txt", "docs", "docs/deep", "docs/deep/x.md", "docs/y.md"}),
        ("docs", {"a.txt", "b.log"}),
        ("docs\n!docs/y.md", {"a.txt", "b.log", "docs", "docs/y.md"}),
        ("docs\n!docs/deep/*.md", {"a.txt", "b.log", "docs", "docs/deep", "docs/deep/x.md"}),
        ("docs\n!docs/nothing", {"a.txt", "b.log"}),
        ("*\n!a.txt", {"a.txt"}),
    ],
)
def test_dockerignore(tmp_path: Path, ignore: str, left: set[str]) -> None:
    make(tmp_path, {"a.txt": "", "b.log": "", "docs/y.md": "", "docs/z.log": "", "docs/deep/x.md": ""})
    assert set(paths(buildcontext.walk("context", str(tmp_path), Patterns(read(ignore.encode()))))) == left


def test_hard_links_to_what_is_left_out_are_files(tmp_path: Path) -> None:
    make(tmp_path, {"a": "text"})
    os.link(tmp_path / "a", tmp_path / "b")
    assert sent(buildcontext.walk("context", str(tmp_path), Patterns(["a"]))) == {"b": b"text"}


def test_what_is_young_may_change_unseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, {"a": "A"})
    with monkeypatch.context() as patched:
        patched.setattr(buildcontext, "_RACY_NS", 3600 * 10**9)  # this process may sleep between the lines
        young = manifest.decode(buildcontext.walk("context", str(tmp_path)).payload).folders[0]
    assert young.flags == buildframes.RACY and manifest.entries(young)[0].ctime == buildframes.RACY_TIME
    time.sleep(0.06)
    old = manifest.decode(buildcontext.walk("context", str(tmp_path)).payload).folders[0]
    assert old.flags == 0 and manifest.entries(old)[0].ctime == (tmp_path / "a").stat().st_ctime_ns


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path: Path) -> None:
    make(tmp_path, {"log": "x" * 2_500_000})
    found = buildcontext.walk("context", str(tmp_path))
    pieces = found.pieces(struct.pack(">I", 0))
    next(pieces)
    with (tmp_path / "log").open("a") as file:
        file.write("more")
    with pytest.raises(Failure, match=r"error from sender: .*/log changed while it was read") as error:
        list(pieces)
    assert ".dockerignore" in error.value.text
    (tmp_path / "log").write_text("x" * 2_500_000)
    pieces = found.pieces(struct.pack(">I", 0))
    next(pieces)
    os.truncate(tmp_path / "log", 10)
    with pytest.raises(Failure, match="changed while it was read"):
        list(pieces)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    make(tmp_path, {"gone": "x", "fifo": "x"})
    found = buildcontext.walk("context", str(tmp_path))
    (tmp_path / "gone").unlink()
    with pytest.raises(Failure, match=r"error from sender: open .*/gone: no such file or directory"):
        list(found.pieces(struct.pack(">I", 1)))
    (tmp_path / "fifo").unlink()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Failure, match="changed"):  # and nothing waits for a writer
        list(found.pieces(struct.pack(">I", 0)))
    with pytest.raises(Failure, match=r"error from sender: open .*/none: no such file or directory"):
        buildcontext.walk("context", str(tmp_path / "none"))


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else")
def test_permission_denied(tmp_path: Path) -> None:
    make(tmp_path, {"d/secret": "x"})
    os.chmod(tmp_path / "d", 0o700)
    above = tmp_path
    while above != above.parent and above != Path("/tmp"):
        os.chmod(above, 0o755)
        above = above.parent
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setresuid(65534, 65534, 65534)
            buildcontext.walk("context", str(tmp_path))
            os.write(writer, b"nothing was wrong")
        except Failure as failure:
            os.write(writer, failure.text.encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    told = os.read(reader, 1000).decode()
    os.close(reader)
    hint = "(a file that the build does not need can be left out by .dockerignore)"
    assert told == f"error from sender: open {tmp_path}/d: permission denied {hint}"


def test_questions_about_files_that_are_none(tmp_path: Path) -> None:
    found = buildcontext.walk("context", str(tmp_path))
    with pytest.raises(Failure, match="the daemon asks for"):
        list(found.pieces(struct.pack(">I", 0)))


def test_documents_are_files_too() -> None:
    found = buildcontext.documents("dockerfile", {"Dockerfile": b"FROM x", "Dockerfile.dockerignore": b"*"})
    assert sent(found) == {"Dockerfile": b"FROM x", "Dockerfile.dockerignore": b"*"}


def peeked(data: bytes) -> tuple[bool, bytes]:
    reader, writer = os.pipe()
    try:
        os.write(writer, data)
        os.close(writer)
        return buildcontext.peek(reader)
    finally:
        os.close(reader)


def test_archives_on_standard_input_are_told_from_dockerfiles() -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    assert peeked(packed.getvalue()[:1024]) == (True, packed.getvalue()[:512])
    assert peeked(b"\x1f\x8b\x08\0")[0]
    assert peeked(b"FROM busybox\n") == (False, b"FROM busybox\n")
    with pytest.raises(Failure, match="EOF"):
        peeked(b"")


def test_an_archive_is_sent_as_it_is() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"rest")
    os.close(writer)
    assert b"".join(buildcontext.archive_pieces(reader, b"begin ")) == b"begin rest"
    os.close(reader)
    assert manifest.decode(buildcontext.archive("context").payload).kind == buildframes.TAR
