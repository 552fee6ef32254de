"""Folders of layers into archives: the same bytes for the same folder, and a folder again from them."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import socket
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import KnarrError
from engine.store.merged import OPAQUE_ATTRIBUTE
from engine.store.pack import Packed, pack
from engine.store.packmerged import Merger
from engine.store.trees import remove_tree
from engine.store.unpack import unpack
from engine.wire import tar as wire
from tests.lib.stores import describe, source

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="devices, owners and trusted attributes need root")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "fs"
    made.mkdir(mode=0o755)
    os.chmod(made, 0o755)
    return made


def archive(folder: Path, epoch: int | None = None) -> tuple[bytes, Packed]:
    pieces: list[bytes] = []
    packed = pack(str(folder), lambda piece: pieces.append(bytes(piece)), epoch=epoch)
    data = b"".join(pieces)
    assert packed.size == len(data)
    assert packed.diff_id == "sha256:" + hashlib.sha256(data).hexdigest()
    return data, packed


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        return {info.name: info for info in opened}


def whiteout(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR, 0)


def test_an_empty_layer_is_an_empty_archive(folder: Path) -> None:
    data, packed = archive(folder)
    assert data == bytes(1024)
    assert (packed.inodes, packed.files_bytes) == (0, 0)


def test_every_kind_of_file(folder: Path) -> None:
    (folder / "b").mkdir(mode=0o700)
    (folder / "b" / "file").write_bytes(b"x" * 700)
    os.chown(folder / "b" / "file", 70000, 3_000_000)
    os.chmod(folder / "b" / "file", 0o4755)
    os.link(folder / "b" / "file", folder / "again")
    os.symlink("b/file", folder / "link")
    os.mkfifo(folder / "pipe", 0o600)
    os.mknod(folder / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(folder / "disk", 0o600 | stat.S_IFBLK, os.makedev(7, 300))
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(folder / "socket"))
    data, packed = archive(folder)
    found = members(data)
    assert list(found) == ["again", "b", "b/file", "disk", "link", "null", "pipe"]
    assert found["again"].isreg() and found["again"].mode == 0o4755 and found["again"].size == 700
    assert (found["again"].uid, found["again"].gid) == (70000, 3_000_000)
    assert found["b/file"].islnk() and found["b/file"].linkname == "again"
    assert found["link"].issym() and found["link"].linkname == "b/file"
    assert found["null"].ischr() and (found["null"].devmajor, found["null"].devminor) == (1, 3)
    assert found["disk"].isblk() and (found["disk"].devmajor, found["disk"].devminor) == (7, 300)
    assert found["pipe"].isfifo()
    assert (packed.inodes, packed.files_bytes, packed.left_out) == (7, 700, ())


def test_a_file_whose_other_names_are_elsewhere_is_a_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x")
    os.link(tmp_path / "source", folder / "copy")
    data, _ = archive(folder)
    assert members(data)["copy"].isreg()


def test_whiteouts_and_opaque_folders(folder: Path) -> None:
    whiteout(folder / "gone")
    (folder / "new").mkdir()
    os.setxattr(folder / "new", OPAQUE_ATTRIBUTE, b"y")
    (folder / "new" / "-first").write_bytes(b"")
    data, _ = archive(folder)
    assert list(members(data)) == [".wh.gone", "new", "new/.wh..wh..opq", "new/-first"]


def test_names_that_a_layer_cannot_hold_are_told(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a" / ".wh.passwd").write_bytes(b"")
    (folder / "a" / ".wh..wh..opq").write_bytes(b"")
    (folder / ".wh.folder").mkdir()
    (folder / ".wh.folder" / "inside").write_bytes(b"")
    data, packed = archive(folder)
    assert list(members(data)) == ["a"]
    assert packed.left_out == (b".wh.folder", b"a/.wh..wh..opq", b"a/.wh.passwd")


def test_attributes(folder: Path) -> None:
    file = folder / "ping"
    file.write_bytes(b"")
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr(file, "security.capability", capability)
    os.setxattr(file, "user.note", b"\0\n=x")
    os.setxattr(file, "trusted.overlay.origin", b"x")
    os.setxattr(file, "user.overlay.opaque", b"y")
    os.setxattr(folder, "user.top", b"1")
    data, _ = archive(folder)
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        assert [info.name for info in opened] == [".", "ping"]
    entries = {one.name: dict(one.xattrs or {}) for one in wire.TarReader(source(data))}
    assert entries == {b"./": {b"user.top": b"1"}, b"ping": {b"security.capability": capability, b"user.note": b"\0\n=x"}}


def test_a_root_that_was_changed_is_a_member(folder: Path) -> None:
    os.chmod(folder, 0o1777)
    found = members(archive(folder)[0])
    assert found["."].mode == 0o1777 and found["."].isdir()


def test_times_are_whole_seconds_and_bounded_by_the_epoch(folder: Path) -> None:
    for name, time in (("old", -5 * 10**9 - 1), ("early", 999_999_999), ("late", 2_000_000_000 * 10**9)):
        (folder / name).write_bytes(b"")
        os.utime(folder / name, ns=(0, time))
    assert {name: info.mtime for name, info in members(archive(folder)[0]).items()} == {"early": 0, "late": 2_000_000_000, "old": -6}
    assert {name: info.mtime for name, info in members(archive(folder, 100)[0]).items()} == {"early": 0, "late": 100, "old": -6}


def test_long_names_and_deep_folders(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(40):
        os.mkdir("d" * 200, dir_fd=fd)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
    os.close(fd)
    (folder / "after").write_bytes(b"")
    try:
        found = members(archive(folder)[0])
    finally:
        top = os.open(folder, os.O_RDONLY)
        remove_tree(top, "d" * 200)  # pytest cannot
        os.close(top)
    assert len(found) == 42
    assert "/".join(["d" * 200] * 40) + "/file" in found
    assert next(iter(found)) == "after"


def test_a_tree_deeper_than_any_path_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pack", "packmerged"):
        monkeypatch.setattr(f"engine.store.{module}.DEEPEST", 20)
    top = os.open(folder, os.O_RDONLY)
    fd = os.dup(top)
    for _ in range(23):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    try:
        with pytest.raises(KnarrError, match="a path of 21 folders: file name too long"):
            archive(folder)
        with pytest.raises(KnarrError, match="a path of 21 folders: file name too long"):
            Merger(lambda piece: None).add([str(folder)])
    finally:
        remove_tree(top, "d")
        os.close(top)


def test_order_is_that_of_bytes_and_a_folder_comes_before_what_is_in_it(folder: Path) -> None:
    for name in (b"a-", b"b", b"\xff", b"Z"):
        (folder / os.fsdecode(name)).write_bytes(b"")
    (folder / "a").mkdir()
    (folder / "a" / "x").write_bytes(b"")
    names = [entry.name for entry in wire.TarReader(source(archive(folder)[0]))]
    assert names == [b"Z", b"a/", b"a/x", b"a-", b"b", b"\xff"]


def test_a_large_file_goes_in_pieces(folder: Path) -> None:
    (folder / "large").write_bytes(os.urandom((3 << 20) + 77))
    with open(folder / "sparse", "wb") as file:
        file.truncate(5 << 20)
    data, packed = archive(folder)
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        for name in ("large", "sparse"):
            reader = opened.extractfile(name)
            assert reader is not None and reader.read() == (folder / name).read_bytes()
    assert packed.files_bytes == (8 << 20) + 77


def test_work_can_be_ended(folder: Path) -> None:
    (folder / "file").write_bytes(bytes(1 << 20))

    def check() -> None:
        raise KnarrError("enough")

    with pytest.raises(KnarrError, match="enough"):
        pack(str(folder), check=check)


def test_a_file_that_is_cut_meanwhile_is_an_error(folder: Path) -> None:
    (folder / "b").write_bytes(bytes(4 << 20))
    with pytest.raises(KnarrError, match=r"'b': it has \d+ bytes instead of 4194304"):
        pack(str(folder), lambda piece: os.truncate(folder / "b", 100))


_names = st.sampled_from(["a", "b", "c", "dir", "é", "x" * 120])
_steps = st.lists(
    st.tuples(
        st.sampled_from(["file", "folder", "link", "symlink", "whiteout", "opaque", "pipe"]), st.lists(_names, min_size=1, max_size=3)
    ),
    max_size=14,
)


@settings(max_examples=60, deadline=None)
@given(steps=_steps, number=st.integers(0, 5000))
def test_what_is_unpacked_packs_to_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, list[str]]], number: int
) -> None:
    base = tmp_path_factory.mktemp("pack")
    try:
        _round(base, steps, number)
    finally:
        shutil.rmtree(base)


def _round(base: Path, steps: list[tuple[str, list[str]]], number: int) -> None:
    first = base / "first"
    first.mkdir(mode=0o755)
    for position, (kind, parts) in enumerate(steps):
        path = first.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "file":
                with open(path, "xb") as file:
                    file.write(b"%d" % position * number)
            elif kind in ("folder", "opaque"):
                path.mkdir(exist_ok=True)
                if kind == "opaque":
                    os.setxattr(path, OPAQUE_ATTRIBUTE, b"y")
            elif kind == "link":
                os.link(next(one for one in sorted(first.rglob("*")) if one.is_file() and not one.is_symlink()), path)
            elif kind == "symlink":
                os.symlink("/".join(parts), path)
            elif kind == "whiteout":
                whiteout(path)
            else:
                os.mkfifo(path)
            os.utime(path, (0, position * 1000), follow_symlinks=False)
        except (OSError, StopIteration):
            continue  # something else has the name
    data, _ = archive(first)
    lower, second = base / "lower", base / "second"
    for made in (lower, second):
        made.mkdir(mode=0o755)
    unpack(wire.TarReader(source(data)), str(second), (str(lower),))
    assert archive(second)[0] == data
    plain = {path: what for path, what in describe(first).items()}
    assert plain.keys() == describe(second).keys()


class Merging:
    """Layers as folders, and their tree by a real overlay and as an archive."""

    def __init__(self, base: Path, *layers: str) -> None:
        self.base = base
        self.folders: list[Path] = []
        for name in layers:
            self.folders.insert(0, base / name)
            self.folders[0].mkdir(mode=0o755)

    def archive(self, **options: Any) -> bytes:
        pieces: list[bytes] = []
        merger = Merger(lambda piece: pieces.append(bytes(piece)))
        merger.add([str(path) for path in self.folders], **options)
        merger.finish()
        return b"".join(pieces)

    def overlay(self) -> dict[str, tuple[object, ...]]:
        mountpoint = self.base / "merged"
        mountpoint.mkdir()
        lower = ":".join(map(str, self.folders))
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={lower}", mountpoint], check=True)
        try:
            return describe(mountpoint)
        finally:
            subprocess.run(["umount", mountpoint], check=True)


def test_a_merged_tree_is_what_an_overlay_shows(tmp_path: Path) -> None:
    case = Merging(tmp_path, "bottom", "middle", "top")
    top, middle, bottom = case.folders
    for path in ("kept/a", "kept/b", "opaque/x", "gone/x", "file", "tree/deep/x"):
        (bottom / path).parent.mkdir(parents=True, exist_ok=True)
        (bottom / path).write_bytes(b"bottom")
    os.link(bottom / "kept/a", bottom / "kept/again")
    os.symlink("/etc", bottom / "link")
    (middle / "kept").mkdir()
    (middle / "kept/b").write_bytes(b"middle")
    (middle / "opaque").mkdir()
    os.setxattr(middle / "opaque", OPAQUE_ATTRIBUTE, b"y")
    (middle / "opaque/new").write_bytes(b"middle")
    (middle / "tree").write_bytes(b"a file hides a folder")
    whiteout(middle / "gone")
    (top / "kept").mkdir(mode=0o700)
    whiteout(top / "kept/b")
    (top / "file").mkdir()
    os.link(bottom / "opaque/x", top / "shared")
    os.mkfifo(top / "pipe")
    out = tmp_path / "out"
    for folder in case.folders:
        for path, folders, files in os.walk(folder, topdown=False):
            for name in (path, *(os.path.join(path, one) for one in (*folders, *files))):
                os.utime(name, (5, 5), follow_symlinks=False)
    data = case.archive()
    out.mkdir(mode=0o755)
    unpack(wire.TarReader(source(data)), str(out))
    assert describe(out) == case.overlay()
    assert not any(name.startswith(".wh.") for name in os.listdir(out))


def test_a_merged_tree_in_a_folder_with_further_files(tmp_path: Path) -> None:
    case = Merging(tmp_path, "one")
    (case.folders[0] / "a").write_bytes(b"1")
    found = members(case.archive(prefix=b"linux_amd64/", extra={b"provenance.json": b"{}"}))
    assert list(found) == ["linux_amd64", "linux_amd64/provenance.json", "linux_amd64/a"]
    assert case.archive() == case.archive()
