"""Layers into folders: everything a layer may hold, and everything it may try."""

from __future__ import annotations

import gc
import os
import stat
import struct
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import InvalidParameter
from engine.store.merged import Refused
from engine.store.trees import remove_tree
from engine.store.unpack import Limits, Unpacked, unpack
from engine.wire import tar as wire
from tests.lib.images import entry, tar
from tests.lib.stores import describe, source

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="devices, owners and trusted attributes need root")

DIR, LINK, SYM = tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE


class Layers:
    """Unpacks layers one on another and shows them merged through a real overlay."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.folders: list[str] = []

    def add(self, data: bytes, limits: Limits = Limits()) -> Unpacked:  # noqa: B008
        root = self.base / f"layer{len(self.folders)}"
        root.mkdir(mode=0o755)
        result = unpack(wire.TarReader(source(data)), str(root), tuple(self.folders), limits)
        self.folders.insert(0, str(root))
        return result

    def merged(self) -> dict[str, tuple[object, ...]]:
        mountpoint = self.base / "merged"
        mountpoint.mkdir(exist_ok=True)
        (self.base / "none").mkdir(exist_ok=True)
        lower = ":".join((*self.folders, str(self.base / "none")))
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={lower}", mountpoint], check=True)
        try:
            return describe(mountpoint)
        finally:
            subprocess.run(["umount", mountpoint], check=True)


@pytest.fixture
def layers(tmp_path: Path) -> Iterator[Layers]:
    """Everything outside must be as it was afterwards."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "victim").write_text("untouched")
    (tmp_path / "work").mkdir()
    before = describe(tmp_path / "outside")
    gc.collect()  # what an earlier test left to the collector must not go in between
    descriptors = os.listdir("/proc/self/fd")
    yield Layers(tmp_path / "work")
    assert describe(tmp_path / "outside") == before
    assert sorted(os.listdir(tmp_path)) == ["outside", "work"]
    assert len(os.listdir("/proc/self/fd")) <= len(descriptors)  # a server of an earlier test may have ended meanwhile


def capability(effective: int) -> bytes:
    """struct vfs_cap_data, revision 2, with cap_net_raw permitted."""
    return struct.pack("<IIIII", 0x02000000 | effective, 1 << 13, 0, 0, 0)


def test_round_trip_of_everything(tmp_path: Path, layers: Layers) -> None:
    tree = tmp_path / "outside"
    (tree / "folder" / "deep").mkdir(parents=True)
    (tree / "folder" / "file").write_bytes(b"x" * 3_000_000)
    os.link(tree / "folder" / "file", tree / "hard")
    (tree / "link").symlink_to("/absolute/target")
    os.mkfifo(tree / "pipe")
    os.mknod(tree / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(tree / "disk", 0o660 | stat.S_IFBLK, os.makedev(259, 300_000))
    (tree / ("n" * 200)).mkdir()
    (tree / ("n" * 200) / ("m" * 250)).write_bytes(b"")
    os.chown(tree / "hard", 3_000_000_000, 70_000)
    os.chmod(tree / "hard", 0o6755)
    os.chmod(tree / "folder", 0o3777)
    os.setxattr(tree / "hard", "security.capability", capability(1))
    os.setxattr(tree / "folder", "user.note", b"a\0b")
    with open(tree / "sparse", "wb") as file:
        file.seek(50_000_000)
        file.write(b"end")
    os.utime(tree / "folder", ns=(1, 1_600_000_000_123_456_789))
    before = describe(tree)
    made = subprocess.run(
        ["tar", "-C", tree, "-S", "--format=pax", "--xattrs", "--xattrs-include=*", "-cf", "-", "."], check=True, capture_output=True
    )
    result = layers.add(made.stdout)
    assert describe(layers.folders[0]) == before
    assert os.stat(f"{layers.folders[0]}/sparse").st_blocks * 512 < 1_000_000
    assert result.inodes == len(before) + 1
    for name in os.listdir(tree):  # the fixture compares this folder with what it was
        if name != "victim":
            subprocess.run(["rm", "-rf", tree / name], check=True)
    victim = os.stat(tree / "victim")
    os.utime(tree, ns=(victim.st_mtime_ns, victim.st_mtime_ns))


def test_whiteouts(layers: Layers) -> None:
    layers.add(tar([
        entry("gone", data=b"1"), entry("kept", data=b"1"), entry("folder", DIR), entry("folder/old", data=b"1"), entry("opaque", DIR),
        entry("opaque/old", data=b"1"), entry("replaced", DIR), entry("replaced/old", data=b"1"), entry("late", DIR), entry("late/old"),
    ]))  # fmt: skip
    layers.add(tar([
        entry(".wh.gone"), entry(".wh.folder"), entry("opaque", DIR), entry("opaque/.wh..wh..opq"), entry("opaque/new", data=b"2"),
        entry(".wh.replaced"), entry("replaced", DIR), entry("replaced/new", data=b"2"),
        entry("late", DIR), entry("late/new"), entry(".wh.late"), entry(".wh..wh.plnk"), entry(".wh.nothing"),
    ]))  # fmt: skip
    assert sorted(layers.merged()) == ["kept", "late", "late/new", "opaque", "opaque/new", "replaced", "replaced/new"]
    top = layers.folders[0]
    assert stat.S_ISCHR(os.stat(f"{top}/gone").st_mode)
    assert os.getxattr(f"{top}/opaque", "trusted.overlay.opaque") == b"y"


def test_an_opaque_root(layers: Layers) -> None:
    layers.add(tar([entry("a"), entry("b", DIR), entry("b/c"), entry("d", DIR), entry("d/e")]))
    layers.add(tar([entry("d", DIR), entry("d/new"), entry(".wh..wh..opq"), entry("n")]))
    assert sorted(layers.merged()) == ["d", "d/new", "n"]


def test_whiteouts_of_the_lowest_layer_hide_nothing(layers: Layers) -> None:
    layers.add(tar([entry(".wh.x"), entry("y", DIR), entry("y/.wh..wh..opq")]))
    assert os.listdir(layers.folders[0]) == ["y"]
    assert os.listxattr(f"{layers.folders[0]}/y") == []


def test_folders_that_the_archive_implies_look_as_below(layers: Layers) -> None:
    layers.add(tar([entry("tmp", DIR, mode=0o1777, uid=5, gid=6, mtime=77), entry("lib", SYM, linkname="usr/lib"), entry("usr/lib", DIR)]))
    layers.add(tar([entry("tmp/file"), entry("lib/new", data=b"1"), entry("fresh/x/y")]))
    merged = layers.merged()
    assert merged["tmp"][:4] == (stat.S_IFDIR | 0o1777, 5, 6, 77 * 10**9)
    assert merged["lib"][5] == "usr/lib"
    assert "usr/lib/new" in merged
    assert merged["fresh"][0] == stat.S_IFDIR | 0o755


def test_hidden_folders_below_do_not_shine_through(layers: Layers) -> None:
    layers.add(tar([entry("a", DIR, mode=0o700), entry("a/b", DIR, mode=0o700), entry("a/f", data=b"1"), entry("s", SYM, linkname="/a")]))
    layers.add(tar([entry(".wh.a"), entry(".wh.s")]))
    layers.add(tar([entry("a/b/c"), entry("s/x")]))
    merged = layers.merged()
    assert merged["a"][0] == merged["a/b"][0] == merged["s"][0] == stat.S_IFDIR | 0o755
    assert "a/f" not in merged
    with pytest.raises(Refused, match="target 'a/f' is not there"):
        layers.add(tar([entry("hard", LINK, linkname="a/f")]))


def test_a_hard_link_to_a_file_below_copies_it_up(layers: Layers) -> None:
    layers.add(tar([entry("usr/file", data=b"body", mode=0o4755, uid=7, mtime=99)]))
    layers.add(tar([entry("usr/hard", LINK, linkname="usr/file")]))
    merged = layers.merged()
    assert merged["usr/hard"][:4] == merged["usr/file"][:4] == (stat.S_IFREG | 0o4755, 7, 0, 99 * 10**9)
    assert merged["usr/hard"][4] == merged["usr/file"][4]


def test_later_members_replace_earlier_ones(layers: Layers) -> None:
    layers.add(tar([
        entry("x", DIR), entry("x/y", DIR), entry("x/y/z", data=b"1"), entry("x", data=b"file"),
        entry("a", data=b"1"), entry("a", DIR), entry("a/b"), entry("s", SYM, linkname="a"), entry("s/through"),
        entry("s", SYM, linkname="x"),
        entry("p", tarfile.FIFOTYPE), entry("p", data=b"p"), entry("h", LINK, linkname="p"), entry("p", SYM, linkname="q"),
        entry("h", LINK, linkname="h"), entry("a", DIR, mode=0o711),
    ]))  # fmt: skip
    found = describe(layers.folders[0])
    assert sorted(found) == ["a", "a/b", "a/through", "h", "p", "s", "x"]
    assert found["a"][0] == stat.S_IFDIR | 0o711
    assert found["s"][5] == "x"


def test_links_in_the_way_lead_inside(layers: Layers) -> None:
    layers.add(tar([
        entry("run", DIR), entry("var/run", SYM, linkname="/run"), entry("var/run/pid", data=b"1"),
        entry("abs", SYM, linkname="/etc"), entry("abs/passwd", data=b"inside"), entry("up/rel", SYM, linkname="../run"), entry("up/rel/x"),
    ]))  # fmt: skip
    found = describe(layers.folders[0])
    assert {"run/pid", "etc/passwd", "run/x"} <= set(found)
    assert found["abs"][5] == "/etc"


def test_leading_slashes_count_for_nothing(layers: Layers) -> None:
    layers.add(tar([entry("/etc/passwd", data=b"mine"), entry("//x", LINK, linkname="/etc/passwd"), entry("./", DIR, mode=0o711)]))
    assert sorted(describe(layers.folders[0])) == ["etc", "etc/passwd", "x"]
    assert stat.S_IMODE(os.stat(layers.folders[0]).st_mode) == 0o711


OUTSIDE = "../../outside"


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ([entry("../../outside/victim", data=b"x")], "../../outside/victim"),
        ([entry("a/../../../outside/victim", data=b"x")], "a/../../../outside/victim"),
        ([entry("a/..", DIR)], "a/.."),
        ([entry("good", data=b"1"), entry("hard", LINK, linkname="../../outside/victim")], "hard"),
        ([entry("hard", LINK, linkname="nothing")], "hard"),
        ([entry("hard", LINK, linkname="")], "hard"),
        ([entry("d", DIR), entry("hard", LINK, linkname="d")], "hard"),
        ([entry("s", SYM, linkname=OUTSIDE), entry("s/victim", data=b"x")], "s/victim"),
        ([entry("d", DIR), entry("d/s", SYM, linkname="../../../outside"), entry("d/s/victim", data=b"x")], "d/s/victim"),
        ([entry("s", SYM, linkname=OUTSIDE), entry("hard", LINK, linkname="s/victim")], "hard"),
        ([entry("s", SYM, linkname="s"), entry("s/x", data=b"x")], "s/x"),
        ([entry("a", SYM, linkname="b"), entry("b", SYM, linkname="a"), entry("a/x", data=b"x")], "a/x"),
        ([entry("f", data=b"1"), entry("f/x", data=b"x")], "f/x"),
        ([entry("s", SYM, linkname="")], "s"),
        ([entry(".wh...")], ".wh..."),
        ([entry(".wh..")], ".wh.."),
        ([entry(".wh.")], ".wh."),
        ([entry("n" * 256)], "n" * 253),
        ([entry("d/" * 2050 + "f")], "d/d/d"),
        ([entry("./", SYM, linkname="/")], "./"),
        ([entry("odd", b"Q")], "odd"),
    ],
)
def test_hostile_layers_are_refused_by_name(layers: Layers, members: list[tuple[tarfile.TarInfo, bytes]], named: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        layers.add(tar(members))
    assert f"entry '{named}" in str(caught.value)


def test_swapped_links(layers: Layers, tmp_path: Path) -> None:
    """A folder that becomes a link, and a link that becomes another one, after members were put through them."""
    outside = str(tmp_path / "outside")
    layers.add(tar([
        entry("d", DIR), entry("d/a", data=b"1"), entry("d", SYM, linkname=outside), entry("d/victim", data=b"evil"),
        entry("l", SYM, linkname="/one"), entry("l/x", data=b"1"), entry("l", SYM, linkname="/two"), entry("l/x", data=b"2"),
        entry("e", DIR, mtime=5), entry("e", SYM, linkname=outside), entry("e", LINK, linkname="l"),
    ]))  # fmt: skip
    found = describe(layers.folders[0])
    assert outside[1:] + "/victim" in found
    assert {"one/x", "two/x"} <= set(found)
    assert "d/a" not in found


def test_attributes_of_overlay_itself_are_not_taken(layers: Layers) -> None:
    names = ("trusted.overlay.redirect", "trusted.overlay.opaque", "user.overlay.opaque", "security.selinux", "user.fine")
    layers.add(tar([entry("f", data=b"1", pax_headers={f"SCHILY.xattr.{name}": "/x" for name in names})]))
    assert os.listxattr(f"{layers.folders[0]}/f") == ["user.fine"]


def test_a_link_can_carry_attributes_but_user_ones_are_reported(layers: Layers) -> None:
    result = layers.add(tar([entry("s", SYM, linkname="/x", pax_headers={"SCHILY.xattr.user.no": "1", "SCHILY.xattr.trusted.yes": "1"})]))
    assert os.listxattr(f"{layers.folders[0]}/s", follow_symlinks=False) == ["trusted.yes"]
    assert len(result.warnings) == 1


@pytest.mark.parametrize(
    ("limits", "message"),
    [(Limits(bytes=1000), "entry 'b': more than 1000 bytes"), (Limits(entries=1), "entry 'b': more than 1 entries")],
)
def test_limits(layers: Layers, limits: Limits, message: str) -> None:
    with pytest.raises(Refused, match=message):
        layers.add(tar([entry("a", data=b"x" * 600), entry("b", data=b"x" * 600)]), limits)


def test_a_sparse_file_of_petabytes_is_only_holes_or_refused(layers: Layers) -> None:
    headers = {"GNU.sparse.map": "0,5", "GNU.sparse.size": str(1 << 42)}
    layers.add(tar([entry("a", data=b"12345", pax_headers=headers)]))
    assert os.stat(f"{layers.folders[0]}/a").st_blocks < 100
    with pytest.raises(InvalidParameter, match="entry 'b'"):
        layers.add(tar([entry("b", data=b"12345", pax_headers={**headers, "GNU.sparse.size": str((1 << 63) - 1)})]))


def test_many_folders_use_few_descriptors(layers: Layers) -> None:
    layers.add(tar([entry(f"d{number}/e/f", data=b"1") for number in range(3000)]))
    assert len(os.listdir(layers.folders[0])) == 3000


def test_deep_folders(layers: Layers) -> None:
    layers.add(tar([entry("d/" * 1000 + "f", data=b"1")]))
    subprocess.run(["test", "-e", layers.folders[0] + "/d" * 900], check=True)
    fd = os.open(layers.base, os.O_RDONLY)
    remove_tree(fd, "layer0")  # pytest's own clean-up recurses
    os.close(fd)
