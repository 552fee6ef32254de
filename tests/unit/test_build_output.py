"""What `knarr build --output` leaves in folders and files: merged, exact, and never outside of the folder. No daemon."""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.buildflags import Sink
from cli.buildoutput import Archive, Unpacker, remove_stale, write_iidfile, write_metadata
from cli.client import Failure


def member(name: str, type: bytes = tarfile.REGTYPE, data: bytes = b"", mode: int = 0o644, **more: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size, info.mtime = type, mode, len(data), 1_000_000_000
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def source(data: bytes, piece: int = 700) -> Callable[[], bytes]:
    at = 0

    def give() -> bytes:
        nonlocal at
        at += piece
        return data[at - piece : at]

    return give


def unpack(folder: Path, *members: tuple[tarfile.TarInfo, bytes], delete: bool = False) -> None:
    Unpacker(Sink("local", str(folder), True, delete)).run(source(archive(*members)))


def test_a_tree_is_unpacked_as_the_callers(tmp_path: Path) -> None:
    target = tmp_path / "new" / "out"
    unpack(
        target,
        member("d", tarfile.DIRTYPE, mode=0o500),
        member("d/f", data=b"x" * 5000, mode=0o640, uid=12345, gid=12345),
        member("h", tarfile.LNKTYPE, linkname="d/f"),
        member("s", tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("p", tarfile.FIFOTYPE, mode=0o622),
        member("é/ü", data=b"1"),
    )
    info = os.stat(target / "d/f")
    assert (info.st_size, stat.S_IMODE(info.st_mode), info.st_uid, info.st_mtime) == (5000, 0o640, os.getuid(), 1_000_000_000)
    folder = os.stat(target / "d")
    assert (stat.S_IMODE(folder.st_mode), folder.st_mtime) == (0o500, 1_000_000_000)
    assert os.stat(target / "h").st_ino == info.st_ino
    assert os.readlink(target / "s") == "/etc/passwd"
    assert stat.S_ISFIFO(os.lstat(target / "p").st_mode)
    assert (target / "é/ü").read_bytes() == b"1"


def test_a_folder_that_exists_is_merged_into_and_nothing_is_written_through(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("safe")
    out = tmp_path / "out"
    (out / "file").mkdir(parents=True)
    (out / "file" / "old").write_text("old")
    (out / "kept").write_text("kept")
    (out / "linked").symlink_to(outside)
    (out / "to-victim").symlink_to(outside / "victim")
    os.link(outside / "victim", out / "shared")
    unpack(
        out,
        member("file", data=b"new"),
        member("linked", tarfile.DIRTYPE, mode=0o755),
        member("linked/victim", data=b"new"),
        member("to-victim", data=b"new"),
        member("shared", data=b"new"),
    )
    assert (outside / "victim").read_text() == "safe"
    assert not (out / "linked").is_symlink()
    assert {path.name for path in out.iterdir()} == {"file", "kept", "linked", "to-victim", "shared"}
    assert {(out / name).read_text() for name in ("file", "linked/victim", "to-victim", "shared")} == {"new"}


@pytest.mark.parametrize(
    "members",
    [
        [member("../x", data=b"x")],
        [member("a/../../x", data=b"x")],
        [member("a", tarfile.SYMTYPE, linkname="../outside"), member("a/victim", data=b"x")],
        [member("a", tarfile.SYMTYPE, linkname="../outside"), member("b", tarfile.LNKTYPE, linkname="a/victim")],
        [member("b", tarfile.LNKTYPE, linkname="../outside/victim")],
        [member("b", tarfile.LNKTYPE, linkname="/etc/passwd")],
        [member("b", tarfile.LNKTYPE, linkname="b")],
        [member("/abs/../../x", data=b"x")],
    ],
)
def test_an_archive_cannot_lead_out_of_its_folder(tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "victim").write_text("safe")
    before = os.stat(tmp_path / "outside" / "victim")
    try:
        unpack(tmp_path / "out", *members)
    except Failure as failure:
        assert failure.text.startswith("ERROR: ")  # noqa: PT017 - some of these only lose their power
    after = os.stat(tmp_path / "outside" / "victim")
    assert (tmp_path / "outside" / "victim").read_text() == "safe"
    assert (after.st_nlink, after.st_ino) == (before.st_nlink, before.st_ino)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "outside"]


@pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root")
def test_nobody_gets_the_rights_of_the_caller(tmp_path: Path) -> None:
    unpack(
        tmp_path,
        member("own", mode=0o6755, uid=0, gid=0),
        member("foreign", mode=0o6755, uid=1000, gid=1000),
        member("disk", tarfile.BLKTYPE, mode=0o666, devmajor=254, devminor=0),
        member("pipe", tarfile.FIFOTYPE, mode=0o666),
    )
    assert {path.name: stat.S_IMODE(path.lstat().st_mode) for path in tmp_path.iterdir()} == {
        "own": 0o6755, "foreign": 0o755, "disk": 0o600, "pipe": 0o666,
    }  # fmt: skip


def test_a_name_that_no_path_could_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="a name of 20002 bytes"):
        unpack(tmp_path, member("a/" * 10000 + "ab"))


def test_absolute_names_are_below_the_folder(tmp_path: Path) -> None:
    unpack(tmp_path / "out", member("/etc/thing", data=b"x"))
    assert (tmp_path / "out/etc/thing").read_bytes() == b"x"


def test_mode_delete_removes_what_is_not_in_the_output(tmp_path: Path) -> None:
    for name in ("gone/deep/x", "kept/old", "kept/new"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    unpack(tmp_path, member("kept", tarfile.DIRTYPE, mode=0o755), member("kept/new", data=b"1"), delete=True)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["kept", "kept/new"]


@given(st.binary(max_size=3000), st.integers(1, 600))
def test_any_bytes_are_unpacked_or_refused(data: bytes, cut: int) -> None:
    import tempfile

    good = archive(member("a/b", data=b"x" * 900), member("c", tarfile.SYMTYPE, linkname="a"))
    for stream in (data, good[:cut] + data + good[cut:], good[: cut * 4]):
        with tempfile.TemporaryDirectory() as folder:
            try:
                Unpacker(Sink("local", folder + "/out", True)).run(source(stream))
            except Failure:
                pass
            assert os.listdir(folder) == ["out"]


def test_an_archive_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.tar"
    out = Archive(Sink("tar", str(path), False))
    out.feed(b"12")
    assert not path.exists()
    out.feed(b"3")
    out.end()
    assert path.read_bytes() == b"123"
    again = Archive(Sink("tar", str(path), False))
    again.feed(b"half")
    again.discard()
    assert path.read_bytes() == b"123"
    assert [one.name for one in path.parent.iterdir()] == ["x.tar"]


def test_a_pipe_is_written_in_place() -> None:
    reader, writer = os.pipe()
    out = Archive(Sink("tar", f"/proc/self/fd/{writer}", False))
    out.feed(b"abc")
    out.end()
    os.close(writer)
    assert os.read(reader, 10) == b"abc"
    os.close(reader)


def test_a_target_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Failure, match=r"ERROR: open .*/file/x.tar: not a directory"):
        Archive(Sink("tar", f"{tmp_path}/file/x.tar", False))
    with pytest.raises(Failure, match=r"ERROR: failed to create .*/file: "):
        Unpacker(Sink("local", f"{tmp_path}/file", True))


def test_identifier_and_metadata_are_written_as_buildx_does(tmp_path: Path) -> None:
    write_iidfile(str(tmp_path / "iid"), "sha256:1")
    assert (tmp_path / "iid").read_bytes() == b"sha256:1"
    result = {"image": "sha256:1", "digest": "sha256:2", "metadata": {"buildx.build.ref": "x", "containerimage.descriptor": {"size": 5}}}
    write_metadata(str(tmp_path / "meta"), result, {"tags": ["a", "r.example/b:c"]})
    text = (tmp_path / "meta").read_text()
    assert json.loads(text) == {
        "buildx.build.ref": "x", "containerimage.config.digest": "sha256:1", "containerimage.descriptor": {"size": 5},
        "containerimage.digest": "sha256:2", "image.name": "docker.io/library/a:latest,r.example/b:c",
    }  # fmt: skip
    assert text.startswith('{\n  "buildx.build.ref": "x",\n')
    remove_stale(str(tmp_path / "iid"))
    remove_stale(str(tmp_path / "iid"))
    assert not (tmp_path / "iid").exists()
