"""What a stack of layers shows, what of it a new volume gets, and volumes on disk. Files are real, nothing is mounted."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from engine.errors import InvalidParameter, NotFound
from engine.service import volumedriver
from engine.spec.volume import VolumeRecord, check_name
from engine.store import volumefill
from engine.store.db import Database
from engine.store.layout import Layout
from engine.store.view import View
from engine.store.volumes import VolumeStore, tree_size

root = pytest.mark.skipif(os.geteuid() != 0, reason="layers have owners and whiteouts")


def layer(path: Path, files: dict[str, str | None], links: dict[str, str] | None = None) -> str:
    """A layer's folder: text of files, None for a folder, "W" names end in a whiteout."""
    path.mkdir(exist_ok=True)
    for name, text in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            target.mkdir(exist_ok=True)
        elif text == "WHITEOUT":
            os.mknod(target, stat.S_IFCHR, 0)
        else:
            target.write_text(text)
    for name, text in (links or {}).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).symlink_to(text)
    return str(path)


def opaque(path: Path) -> None:
    os.setxattr(path, "trusted.overlay.opaque", b"y")


def copied(layers: list[str], destination: str, target: Path) -> dict[str, str]:
    """What `fill` puts into an empty volume: text by path, a link's by "->"."""
    target.mkdir(parents=True)
    copy = volumefill.Copy(destination=destination, folder=str(target), fresh=True, durable=False, declared=False)
    volumefill.fill(layers, [copy])
    return tree(target)


def tree(top: Path) -> dict[str, str]:
    found = {}
    for path in sorted(top.rglob("*")):
        name = str(path.relative_to(top))
        if path.is_symlink():
            found[name] = "->" + os.readlink(path)
        else:
            found[name] = "/" if path.is_dir() else path.read_text() if path.is_file() else "?"
    return found


@root
def test_layers_are_merged_as_overlayfs_does(tmp_path: Path) -> None:
    top = layer(tmp_path / "top", {"d/both": "top", "d/gone": "WHITEOUT", "d/cut/new": "new", "d/file": "was a folder", "d/sub/a": "a"})
    low = layer(tmp_path / "low", {
        "d/both": "low", "d/gone": "x", "d/cut/old": "x", "d/file/x": "x", "d/sub/b": "b", "d/only": "low", "d/under": "x",
    })  # fmt: skip
    bottom = layer(tmp_path / "bottom", {"d/sub/c": "c", "d/cut/older": "x", "d/gone/x": "x", "d/both/x": "x"})
    opaque(tmp_path / "top/d/cut")
    found = copied([top, low, bottom], "/d", tmp_path / "v/_data")
    assert found == {
        "both": "top", "cut": "/", "cut/new": "new", "file": "was a folder", "only": "low", "sub": "/", "sub/a": "a", "sub/b": "b",
        "sub/c": "c", "under": "x",
    }  # fmt: skip


@root
def test_nothing_below_an_opaque_or_whited_out_folder_is_found(tmp_path: Path) -> None:
    top = layer(tmp_path / "top", {"a/b": None, "c": "WHITEOUT"})
    low = layer(tmp_path / "low", {"a/b/x": "x", "c/d/x": "x"})
    opaque(tmp_path / "top/a")
    with View([top, low]) as view:
        assert view.find("/a/b").layers == (0,)  # type: ignore[union-attr]
        assert view.find("/a/b/x") is None
        assert view.find("/c/d") is None


@root
def test_owners_modes_times_attributes_and_hard_links_are_kept(tmp_path: Path) -> None:
    low = layer(tmp_path / "low", {"d/f": "hello", "d/sub/x": "x"}, {"d/l": "/etc/passwd"})
    base = tmp_path / "low/d"
    os.link(base / "f", base / "sub/h")
    os.mkfifo(base / "p", 0o620)
    os.setxattr(base / "f", "user.note", b"kept")
    os.chown(base / "f", 5, 6)
    os.chmod(base / "f", 0o4750)
    os.chown(base / "sub", 7, 8)
    os.chmod(base / "sub", 0o2701)
    os.lchown(base / "l", 9, 10)
    os.chown(base, 33, 44)
    os.chmod(base, 0o1751)
    for path, at in ((base / "f", 11), (base / "sub", 12), (base, 13)):
        os.utime(path, (at, at))
    target = tmp_path / "v/_data"
    copied([low], "/d", target)

    def shown(path: Path) -> tuple[int, ...]:
        info = path.lstat()
        return info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode), int(info.st_mtime), info.st_nlink

    for name in ("", "f", "sub", "sub/x", "l", "p"):
        assert shown(target / name) == shown(base / name), name
    assert os.getxattr(target / "f", "user.note") == b"kept"
    assert (target / "f").stat().st_ino == (target / "sub/h").stat().st_ino
    assert stat.S_ISFIFO((target / "p").lstat().st_mode)


@root
def test_links_in_the_way_stay_inside_the_image(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("secret")
    climb = "../" * 30 + str(secret).lstrip("/")
    low = layer(
        tmp_path / "low", {"real/f": "f"}, {"abs": "/real", "rel": "x/../real", "out": climb, "outabs": str(secret), "loop": "loop"}
    )
    assert copied([low], "/abs", tmp_path / "v1/_data") == {"f": "f"}
    assert copied([low], "/out", tmp_path / "v2/_data") == {}
    assert copied([low], "/outabs", tmp_path / "v3/_data") == {}
    with View([low]) as view:
        assert view.find("/rel") is None  # x is not there
        with pytest.raises(InvalidParameter, match="symbolic links"):
            view.find("/loop")


@root
def test_a_link_inside_is_copied_as_a_link_and_never_followed(tmp_path: Path) -> None:
    low = layer(tmp_path / "low", {"d/x": "x"}, {"d/etc": "/etc", "d/up": "../../../.."})
    assert copied([low], "/d", tmp_path / "v/_data") == {"etc": "->/etc", "up": "->../../../..", "x": "x"}


@root
def test_a_deep_tree_needs_no_long_path(tmp_path: Path) -> None:
    base = tmp_path / "low/d"
    base.mkdir(parents=True)
    fd = os.open(base, os.O_RDONLY)
    for _ in range(60):
        os.mkdir("n" * 200, dir_fd=fd)
        below = os.open("n" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("leaf", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
    os.close(fd)
    target = tmp_path / "v/_data"
    target.mkdir(parents=True)
    copy = volumefill.Copy(destination="/d", folder=str(target), fresh=False, durable=False, declared=False)
    volumefill.fill([str(tmp_path / "low")], [copy])
    depth, fd = 0, os.open(target, os.O_RDONLY)
    while names := [name for name in os.listdir(fd) if name != "leaf"]:
        below = os.open(names[0], os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd, depth = below, depth + 1
    assert os.listdir(fd) == ["leaf"]
    os.close(fd)
    assert depth == 60


@root
def test_a_volume_with_files_stays_as_it_is(tmp_path: Path) -> None:
    low = layer(tmp_path / "low", {"d/f": "image"})
    target = tmp_path / "v/_data"
    target.mkdir(parents=True)
    (target / "mine").write_text("mine")
    volumefill.fill([low], [volumefill.Copy(destination="/d", folder=str(target), fresh=False, durable=True, declared=True)])
    assert tree(target) == {"mine": "mine"}


@root
def test_a_declared_volume_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    low = layer(tmp_path / "low", {"file": "x"})
    target = tmp_path / "v/_data"
    target.mkdir(parents=True)
    with pytest.raises(InvalidParameter, match="cannot mount volume over existing file, file exists /file"):
        volumefill.fill([low], [volumefill.Copy(destination="/file", folder=str(target), fresh=True, durable=True, declared=True)])


@root
def test_a_copy_that_was_cut_off_leaves_an_empty_volume_and_no_obstacle(tmp_path: Path) -> None:
    low = layer(tmp_path / "low", {"d/f": "image"})
    half = tmp_path / "v/_copy"
    half.mkdir(parents=True)
    (half / "partial").write_text("par")
    assert copied([low], "/d", tmp_path / "v/_data") == {"f": "image"}
    assert sorted(os.listdir(tmp_path / "v")) == ["_data"]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "data", tmp_path / "exec")
    made.create()
    return made


def stored(layout: Layout) -> tuple[Database, VolumeStore]:
    db = Database(layout.database)
    return db, VolumeStore(layout, db)


def test_volumes_survive_and_are_found_again(layout: Layout) -> None:
    db, store = stored(layout)
    record = VolumeRecord(name="data", created_at=1, labels={"a": "b"}, options={"type": "tmpfs", "device": "tmpfs"})
    store.put(record)
    store.make("data")
    db.close()
    db, store = stored(layout)
    assert store.get("data") == record
    assert stat.S_IMODE(os.stat(store.path("data")).st_mode) == 0o755
    assert stat.S_IMODE(os.stat(f"{layout.volumes}/data").st_mode) == 0o701
    db.close()


def test_a_row_without_a_folder_gets_one_and_a_folder_without_a_row_is_taken_in(layout: Layout) -> None:
    db, store = stored(layout)
    store.put(VolumeRecord(name="lost", created_at=1))
    db.close()
    os.makedirs(f"{layout.volumes}/found/_data")
    Path(f"{layout.volumes}/found/_data/f").write_text("precious")
    db, store = stored(layout)
    assert (store.remade, store.adopted) == (["lost"], ["found"])
    store.save_adopted()
    db.close()
    db, store = stored(layout)
    assert (store.remade, store.adopted) == ([], [])
    assert Path(f"{store.path('found')}/f").read_text() == "precious"
    db.close()


def test_a_removal_frees_the_name_at_once_and_can_be_undone(layout: Layout) -> None:
    db, store = stored(layout)
    store.put(VolumeRecord(name="data", created_at=1))
    store.make("data")
    Path(f"{store.path('data')}/f").write_text("x")
    doomed = store.set_aside("data")
    assert not os.path.exists(store.path("data"))
    store.put_back("data", doomed)
    assert os.path.exists(f"{store.path('data')}/f")
    doomed = store.set_aside("data")
    with db.transaction() as cursor:
        store.delete_row("data", cursor)
    store.forget("data")
    assert "data" not in store
    assert store.leftovers() == [doomed]
    db.close()
    db, store = stored(layout)  # a crash before the files were removed
    assert store.adopted == []
    for path in store.leftovers():
        store.delete_files(path)
    assert os.listdir(layout.volumes) == []
    db.close()


def test_a_size_counts_each_file_once(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 100)
    os.link(tmp_path / "f", tmp_path / "g")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/h").write_bytes(b"x" * 5)
    assert tree_size(str(tmp_path)) == 105


@pytest.mark.parametrize("name", ["", "x", "-ab", ".ab", "a/b", "a b", "a" * 256, "ab\n", "ä1"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(InvalidParameter, match="create"):
        check_name(name)


@pytest.mark.parametrize("name", ["ab", "A9", "a_b.c-d", "0" * 64])
def test_names_that_are_taken(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"foo": "x"}, 'create v: invalid option: "foo"'),
        ({"type": "tmpfs"}, 'create v: missing required option: "device"'),
        ({"device": "/x"}, 'create v: missing required option: "type"'),
        ({"o": "bind"}, 'create v: missing required option: "device"'),
        ({"size": "abc"}, "create v: invalid size: 'abc'"),
    ],
)
def test_options_of_the_local_driver(options: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        volumedriver.check_options("v", options)
    assert caught.value.message == words


def test_sizes_and_plugins() -> None:
    assert volumedriver.check_options("v", {"size": "10m"}) == 10 << 20
    assert volumedriver.check_options("v", {"type": "", "device": "", "o": ""}) == 0
    with pytest.raises(NotFound, match='error looking up volume plugin x: plugin "x" not found'):
        volumedriver.check_driver("v", "x")
