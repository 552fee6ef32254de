"""What damage looks like: snapshots beside the archives they were unpacked from. Real files."""

from __future__ import annotations

import os
import random
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.spec.digest import sha256
from engine.store.check import compare, digest_of
from engine.store.unpack import unpack
from engine.wire.tar import TarReader
from tests.lib.images import busybox_layer, entry, tar
from tests.lib.stores import source

FOLDER, LINK, SYMLINK = tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE

BASE = tar(
    [
        entry("usr", FOLDER, mtime=1000), entry("usr/lib", FOLDER), entry("lib", SYMLINK, linkname="usr/lib"),
        entry("usr/lib/a.so", data=b"a" * 5000, mode=0o755), entry("usr/lib/b.so", LINK, linkname="usr/lib/a.so"),
        entry("etc", FOLDER), entry("etc/old", data=b"old"), entry("gone", FOLDER), entry("gone/x", data=b"x"),
        entry("tmp", FOLDER, mode=0o1777), entry("null", tarfile.CHRTYPE, devmajor=1, devminor=3), entry("pipe", tarfile.FIFOTYPE),
    ]
)  # fmt: skip
ABOVE = tar(
    [
        entry("lib/new.so", data=bytes(range(256)) * 5000),  # through a link of the layer below
        entry("etc/.wh.old"), entry(".wh.gone"), entry("gone", FOLDER), entry("gone/y", data=b"y"),
        entry("hard", LINK, linkname="usr/lib/a.so"),  # copied up from the layer below
        entry("etc/empty"), entry("opaque", FOLDER), entry("opaque/.wh..wh..opq"),
        entry("caps", data=b"c", pax_headers={"SCHILY.xattr.user.mark": "yes"}),
        entry("same", SYMLINK, linkname="nowhere"), entry("same", data=b"last one counts"),
    ]
)  # fmt: skip


class Layer:
    """A layer, unpacked over another."""

    def __init__(self, folder: Path, data: bytes, lowers: tuple[str, ...] = ()) -> None:
        self.root = folder / str(len(lowers))
        self.root.mkdir()
        self.data = data
        self.lowers = lowers
        unpack(TarReader(source(data)), str(self.root), lowers)

    def check(self, *, quick: bool = False) -> list[str]:
        return compare(TarReader(source(self.data)), str(self.root), self.lowers, quick=quick)


@pytest.fixture
def base(tmp_path: Path) -> Layer:
    return Layer(tmp_path, BASE)


@pytest.fixture
def above(tmp_path: Path, base: Layer) -> Layer:
    return Layer(tmp_path, ABOVE, (str(base.root),))


@pytest.mark.parametrize("quick", [False, True])
def test_whole_layers_are_whole(base: Layer, above: Layer, quick: bool) -> None:
    assert base.check(quick=quick) == []
    assert above.check(quick=quick) == []


def test_a_real_layer_is_whole(tmp_path: Path) -> None:
    assert Layer(tmp_path, busybox_layer()).check() == []


def truncate(path: Path) -> None:
    keep = path.stat()
    os.truncate(path, 0)
    os.utime(path, ns=(keep.st_atime_ns, keep.st_mtime_ns))


def zeros(path: Path) -> None:
    """As long as it was, as after a power cut."""
    keep = path.stat()
    path.write_bytes(bytes(keep.st_size))
    os.utime(path, ns=(keep.st_atime_ns, keep.st_mtime_ns))


def flip(path: Path) -> None:
    keep = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(keep.st_atime_ns, keep.st_mtime_ns))


def unlinked(path: Path) -> None:
    data, keep = path.read_bytes(), path.stat()
    path.unlink()
    path.write_bytes(data)
    path.chmod(stat.S_IMODE(keep.st_mode))
    os.utime(path, ns=(keep.st_atime_ns, keep.st_mtime_ns))


DAMAGE: dict[str, tuple[int, str, Callable[[Path], object], bool, str]] = {
    "empty": (0, "usr/lib/a.so", truncate, True, "has 0 bytes instead of 5000"),
    "zeros": (0, "usr/lib/a.so", zeros, False, "differs from byte 0"),
    "one bit": (1, "usr/lib/new.so", flip, False, "differs from byte"),
    "missing file": (0, "etc/old", Path.unlink, True, "is missing"),
    "missing folder": (0, "tmp", Path.rmdir, True, "is missing"),
    "missing link": (0, "lib", Path.unlink, True, "is missing"),
    "mode": (0, "tmp", lambda path: path.chmod(0o755), True, "has mode 0755 instead of 1777"),
    "owner": (0, "etc/old", lambda path: os.chown(path, 5, 6), True, "belongs to 5:6 instead of 0:0"),
    "time": (0, "usr", lambda path: os.utime(path, ns=(0, 5)), True, "was modified"),
    "another file": (0, "usr/lib/extra", lambda path: (path.touch(), os.utime(path.parent, ns=(0, 0))), True, "is not in the layer"),
    "hard link": (0, "usr/lib/b.so", unlinked, True, "is no link to"),
    "type": (0, "pipe", lambda path: (path.unlink(), path.mkdir()), True, "is a folder instead of a pipe"),
    "device": (0, "null", lambda path: (path.unlink(), os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 5))), True, "another device"),
    "whiteout": (1, "etc/old", Path.unlink, True, "is not hidden"),
    "opaque": (1, "opaque", lambda path: os.removexattr(path, "trusted.overlay.opaque"), True, "does not hide"),
    "opaque by a whiteout": (1, "gone", lambda path: os.removexattr(path, "trusted.overlay.opaque"), True, "does not hide"),
    "attribute": (1, "caps", lambda path: os.removexattr(path, "user.mark"), True, "lacks its attribute"),
    "copied up": (1, "usr/lib/a.so", flip, False, "differs from byte"),
    "last of two": (1, "same", truncate, True, "has 0 bytes instead of 15"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_named(base: Layer, above: Layer, name: str) -> None:
    which, place, damage, quickly, words = DAMAGE[name]
    layer = (base, above)[which]
    before = layer.root.joinpath(place).parent.stat()
    damage(layer.root / place)
    os.utime(layer.root.joinpath(place).parent, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = layer.check()
    assert len(found) == 1, found
    assert place in found[0]
    assert words in found[0]
    assert bool(layer.check(quick=True)) is quickly


def test_a_lost_tree_is_found_without_end(tmp_path: Path) -> None:
    many = tar(entry(f"d{number % 10}/f{number}", data=b"x") for number in range(5000))
    layer = Layer(tmp_path, many)
    for folder in layer.root.iterdir():
        folder.rename(tmp_path / folder.name)
    assert 1000 <= len(layer.check()) <= 1001


def test_sparse_files(tmp_path: Path) -> None:
    header = entry("sparse", data=b"b" * 512 + b"e" * 512)[0]
    header.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "sparse", "GNU.sparse.size": "2000000",
                          "GNU.sparse.map": "1000000,512,1500000,512"}  # fmt: skip
    layer = Layer(tmp_path, tar([(header, b"b" * 512 + b"e" * 512)]))
    assert layer.check() == []
    path = layer.root / "sparse"
    keep = path.stat()
    for place in (10, 1_000_511, 1_200_000, 1_999_999):
        with path.open("r+b") as file:
            file.seek(place)
            was = file.read(1)
            file.seek(place)
            file.write(b"!")
        os.utime(path, ns=(keep.st_atime_ns, keep.st_mtime_ns))
        assert len(layer.check()) == 1, place
        with path.open("r+b") as file:
            file.seek(place)
            file.write(was)
        os.utime(path, ns=(keep.st_atime_ns, keep.st_mtime_ns))
    assert layer.check() == []


@pytest.mark.parametrize("seed", range(60))
def test_what_was_unpacked_is_whole_whatever_the_layer(tmp_path: Path, seed: int) -> None:
    """Members in any order, twice, through links and over each other: no whole snapshot may be called damaged."""
    chance = random.Random(seed)
    lower = Layer(tmp_path, tar(member(chance, whiteouts=False) for _ in range(20)))
    layer = Layer(tmp_path, tar(member(chance, whiteouts=True) for _ in range(25)), (str(lower.root),))
    assert lower.check() == []
    assert layer.check() == []


def member(chance: random.Random, *, whiteouts: bool) -> tuple[tarfile.TarInfo, bytes]:
    """Names without links in their middle, so that every sequence can be unpacked."""
    folder = chance.choice(("", "p/", "p/q/", "r/"))
    name = folder + chance.choice("abcdef")
    kind = chance.random()
    if whiteouts and kind < 0.15:
        return entry(folder + chance.choice((".wh.a", ".wh.b", ".wh..wh..opq")))
    if kind < 0.3:
        return entry(folder.rstrip("/") or "r", FOLDER, mode=chance.choice((0o755, 0o700)), mtime=chance.randrange(10**9))
    if kind < 0.4:
        return entry(name, SYMLINK, linkname=chance.choice(("a", "/etc", "..")))
    return entry(name, data=chance.randbytes(chance.choice((0, 1, 4096, 5000))), uid=chance.randrange(3), mode=0o4755)


def test_blobs(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    path = tmp_path / "blob"
    path.write_bytes(data)
    calls: list[int] = []
    assert digest_of(str(path), "sha256", lambda: calls.append(1)) == (sha256(data), len(data))
    assert len(calls) == 3
