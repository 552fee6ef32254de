"""COPY and ADD into the folder of a layer: what BuildKit makes of the same sources."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from builder.files import copying
from builder.files.filecopy import Stopped
from builder.graph import Copy, CopySource
from builder.tree import Tree
from engine.errors import InvalidParameter, NotFound
from engine.store.view import View

OLD = 1_000_000_000_500_000_000  # ns


@pytest.fixture(autouse=True)
def descriptors(tmp_path: Path) -> Iterator[None]:
    """Nothing of a test's trees stays open. What else this process has may come and go."""
    yield
    held = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            held.append(os.readlink(f"/proc/self/fd/{name}"))
    assert [path for path in held if path.startswith(str(tmp_path))] == []


class Site:
    """A context, layers below, and the layer that is made."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.lowers: list[str] = []
        self.context = self.folder("context")
        self.made = 0
        self.upper = Path()

    def folder(self, name: str) -> Path:
        path = self.top / name
        path.mkdir()
        return path

    def lower(self, name: str) -> Path:
        """A layer on those that there are."""
        path = self.folder(name)
        self.lowers.insert(0, str(path))
        return path

    def copy(
        self,
        sources: str | Sequence[str | CopySource],
        destination: str,
        tree: Tree | None = None,
        *,
        unpack: bool = False,
        **options: object,
    ) -> Path:
        """The folder of the new layer."""
        named = [sources] if isinstance(sources, str) else sources
        asked = tuple(CopySource(input=1, path=one, unpack=unpack) if isinstance(one, str) else one for one in named)
        op = Copy(sources=asked, destination=destination, **options)  # type: ignore[arg-type]
        self.made += 1
        self.upper = self.folder(f"upper{self.made}")
        from_ = tree or Tree(layers=(str(self.context),), attributes=None)
        copying.apply(op, tuple(self.lowers), str(self.upper), [Tree(), from_])
        return self.upper

    def shown(self, path: str) -> Path | None:
        """Where the merged tree has something."""
        with View((str(self.upper), *self.lowers)) as view:
            node = view.find(path)
            return None if node is None else Path(view.host_path(node, node.layers[0]))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def put(path: Path, content: bytes = b"x", mode: int = 0o644, owner: tuple[int, int] = (0, 0), mtime: int = OLD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.chown(path, *owner)
    path.chmod(mode)
    os.utime(path, ns=(mtime, mtime))
    return path


def aged(path: Path) -> Path:
    os.utime(path, ns=(OLD, OLD), follow_symlinks=False)
    return path


def modes(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def names(path: Path) -> list[str]:
    return sorted(str(one.relative_to(path)) for one in path.rglob("*"))


# -- where things go


def test_a_file_keeps_its_mode_and_time_and_is_not_copied(site: Site) -> None:
    source = put(site.context / "a", mode=0o640)
    upper = site.copy("/a", "/x/y/z")
    copy = upper / "x/y/z"
    assert copy.stat().st_ino == source.stat().st_ino
    assert (modes(copy), copy.stat().st_mtime_ns) == (0o640, OLD)
    assert modes(upper / "x") == modes(upper / "x/y") == 0o755


def test_a_file_goes_into_a_folder_that_is_there(site: Site) -> None:
    tmp = site.lower("base") / "tmp"
    tmp.mkdir()
    os.chown(tmp, 3, 4)
    tmp.chmod(0o1777)
    aged(tmp)
    put(site.context / "a")
    upper = site.copy("/a", "/tmp")
    assert names(upper) == ["tmp", "tmp/a"]
    info = (upper / "tmp").stat()
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (3, 4, 0o1777, OLD)


def test_what_a_folder_has_is_copied_not_the_folder(site: Site) -> None:
    put(site.context / "d/sub/g")
    (site.context / "d/empty").mkdir()
    (site.context / "d").chmod(0o700)
    (site.context / "d/sub").chmod(0o1777)
    for one in ("d/sub", "d/empty", "d"):
        aged(site.context / one)
    for destination in ("/x", "/x/"):
        upper = site.copy("/d", destination)
        assert names(upper) == ["x", "x/empty", "x/sub", "x/sub/g"]
        assert [modes(upper / one) for one in ("x", "x/sub")] == [0o755, 0o1777]
        assert {(upper / one).stat().st_mtime_ns for one in ("x", "x/sub", "x/empty")} == {OLD}


def test_the_top_folder_keeps_its_owner_and_those_in_it_get_the_sources(site: Site) -> None:
    base = site.lower("base")
    for one in ("etc", "etc/sub"):
        (base / one).mkdir()
        os.chown(base / one, 9, 9)
        (base / one).chmod(0o711)
    os.setxattr(base / "etc/sub", "user.kept", b"1")
    put(site.context / "d/sub/f")
    os.setxattr(site.context / "d/sub", "user.new", b"2")
    upper = site.copy("/d", "/etc")
    assert (modes(upper / "etc"), (upper / "etc").stat().st_uid) == (0o711, 9)
    assert (modes(upper / "etc/sub"), (upper / "etc/sub").stat().st_uid) == (0o755, 0)
    assert {name: os.getxattr(upper / "etc/sub", name) for name in os.listxattr(upper / "etc/sub")} == {
        "user.kept": b"1",
        "user.new": b"2",
    }


def test_links_on_the_way_to_a_destination_stay_inside(site: Site) -> None:
    base = site.lower("base")
    (base / "tmp").mkdir()
    (base / "new").symlink_to("/tmp/made")
    (base / "out").symlink_to("../../../../tmp")
    put(base / "etc/passwd")
    (base / "pw").symlink_to("etc/passwd")
    put(site.context / "a")
    assert names(site.copy("/a", "/new/")) == ["tmp", "tmp/made", "tmp/made/a"]
    assert names(site.copy("/a", "/out/")) == ["tmp", "tmp/a"]
    assert names(site.copy("/a", "/pw")) == ["etc", "etc/passwd"]


def test_links_named_as_sources_are_followed_and_others_stay_links(site: Site) -> None:
    put(site.context / "d/f")
    (site.context / "d/l").symlink_to("/etc/passwd")
    (site.context / "to-file").symlink_to("d/f")
    (site.context / "to-folder").symlink_to("/d")
    upper = site.copy(["/to-file", "/to-folder"], "/x/")
    assert names(upper) == ["x", "x/f", "x/l", "x/to-file"]
    assert os.readlink(upper / "x/l") == "/etc/passwd"
    assert not (upper / "x/to-file").is_symlink()


def test_a_link_in_a_folder_is_replaced_by_a_file_and_not_followed(site: Site) -> None:
    base = site.lower("base")
    (base / "x").mkdir()
    (base / "x/a").symlink_to("../victim")
    put(base / "victim", b"safe")
    put(site.context / "a", b"new")
    upper = site.copy("/a", "/x/")
    assert (upper / "x/a").read_bytes() == b"new"
    assert names(upper) == ["x", "x/a"]


@pytest.mark.parametrize(
    ("below", "source", "named", "destination", "words"),
    [
        ("etc/f/x", "etc/f", "/", "/", "cannot replace to directory /etc/f with file"),
        ("etc/f/x", "etc/f", "/etc/f", "/etc/", "cannot replace to directory /etc/f with file"),
        ("etc/f", "etc/f/x", "/", "/", "cannot copy to non-directory: /etc/f"),
        ("etc/f", "d/x", "/d", "/etc/f", "cannot copy to non-directory: /etc/f"),
        ("etc/f", "d/x", "/d", "/etc/f/", "mkdir /etc/f: not a directory"),
        ("etc/f", "a", "/a", "/etc/f/x", "mkdir /etc/f: not a directory"),
    ],
)
def test_a_folder_is_not_replaced_by_a_file_nor_a_file_by_a_folder(
    site: Site, below: str, source: str, named: str, destination: str, words: str
) -> None:
    put(site.lower("base") / below)
    put(site.context / source)
    with pytest.raises(InvalidParameter, match=words):
        site.copy(named, destination)


def test_a_circle_of_links_is_an_error(site: Site) -> None:
    (site.lower("base") / "loop").symlink_to("loop")
    put(site.context / "a")
    with pytest.raises(InvalidParameter, match="too many links"):
        site.copy("/a", "/loop/")


# -- sources


def test_wildcards(site: Site) -> None:
    for name in ("b.txt", "c.txt", "d/f", "e/f", "e/[x]", "odd*"):
        put(site.context / name)
    assert names(site.copy("/*.txt", "/x/")) == ["x", "x/b.txt", "x/c.txt"]
    assert names(site.copy("/[de]", "/x")) == ["x", "x/[x]", "x/f"]
    assert names(site.copy("/*/f", "/x/")) == ["x", "x/f"]
    assert names(site.copy("/odd\\*", "/x/")) == ["x", "x/odd*"]
    assert names(site.copy([CopySource(input=1, path="/e/[x]", literal=True)], "/x/")) == ["x", "x/[x]"]
    assert names(site.copy("/nothing*", "/x/")) == []
    with pytest.raises(InvalidParameter, match="syntax error in pattern"):
        site.copy("/b[", "/x/")


@pytest.mark.parametrize("path", ["/missing", "/a/x", "/dangling", "/out/etc/passwd"])
def test_a_source_that_is_not_there(site: Site, path: str) -> None:
    put(site.context / "a")
    (site.context / "dangling").symlink_to("nowhere")
    (site.context / "out").symlink_to("../../../../../../..")
    with pytest.raises(NotFound, match=r'failed to calculate checksum of ref.*": not found'):
        site.copy(path, "/x")
    with pytest.raises(NotFound, match="lstat /zz: no such file or directory"):
        site.copy("/zz/*", "/x")


def test_exclusions_are_relative_to_what_is_copied(site: Site) -> None:
    for name in ("d/a.md", "d/b.txt", "d/sub/c.md", "d/sub/keep.md", "home.txt", "homer"):
        put(site.context / name)
    assert names(site.copy("/d", "/x", exclude=("**/*.md", "!**/keep.md"))) == ["x", "x/b.txt", "x/sub", "x/sub/keep.md"]
    assert names(site.copy("/d", "/x", exclude=("sub",))) == ["x", "x/a.md", "x/b.txt"]
    assert names(site.copy("/d", "/x", exclude=("sub", "!sub/c.md"))) == ["x", "x/a.md", "x/b.txt", "x/sub", "x/sub/c.md"]
    assert names(site.copy("/hom*", "/x/", exclude=("*.txt",))) == ["x", "x/homer"]


def test_parents(site: Site) -> None:
    for name in ("a/b/f", "a/c/f", "a/c/other", "assets/app1/icons/i", "assets/testapp/icons/i", "assets/app1/notes/n"):
        put(site.context / name)
    (site.context / "a/b").chmod(0o750)
    aged(site.context / "a/b")
    upper = site.copy("/a/b/f", "/x/", parents=True)
    assert names(upper) == ["x", "x/a", "x/a/b", "x/a/b/f"]
    assert (modes(upper / "x/a/b"), (upper / "x/a/b").stat().st_mtime_ns) == (0o750, OLD)
    assert names(site.copy("/a/*/f", "/", parents=True)) == ["a", "a/b", "a/b/f", "a/c", "a/c/f"]
    assert names(site.copy("/a/./*/f", "/", parents=True)) == ["b", "b/f", "c", "c/f"]
    assert names(site.copy("/**/f", "/", parents=True)) == ["a", "a/b", "a/b/f", "a/c", "a/c/f"]
    assert names(site.copy("/assets/./**/icons*", "/", parents=True, exclude=("testapp",))) == ["app1", "app1/icons", "app1/icons/i"]
    with pytest.raises(NotFound):
        site.copy("/a/nope", "/x/", parents=True)


def test_documents(site: Site) -> None:
    upper = site.copy([CopySource(path="EOF", content=b"hi\n")], "/x/", chown="5:6", chmod="755")
    file = upper / "x/EOF"
    assert (file.read_bytes(), modes(file), file.stat().st_uid, (upper / "x").stat().st_gid) == (b"hi\n", 0o755, 5, 6)
    assert modes(site.copy([CopySource(path="EOF", content=b"")], "/y") / "y") == 0o644


def test_a_stack_of_layers_is_copied_as_it_shows(site: Site) -> None:
    below, above = site.folder("below"), site.folder("above")
    put(below / "d/gone")
    put(below / "d/old", b"below")
    put(below / "d/hidden/f")
    put(above / "d/old", b"above")
    os.mknod(above / "d/gone", stat.S_IFCHR)
    (above / "d/hidden").mkdir()
    os.setxattr(above / "d/hidden", "trusted.overlay.opaque", b"y")
    upper = site.copy("/d", "/", Tree(layers=(str(above), str(below))))
    assert names(upper) == ["hidden", "old"]
    assert (upper / "old").read_bytes() == b"above"
    assert os.listxattr(upper / "hidden") == []


def test_an_empty_tree_has_a_root(site: Site) -> None:
    assert names(site.copy("/", "/x/", Tree())) == ["x"]
    with pytest.raises(NotFound):
        site.copy("/a", "/x/", Tree())


def test_names_of_any_bytes(site: Site) -> None:
    for name in (b"d/\xff\xfe", b"d/a\nb", "d/\u00fc".encode()):
        (site.context / "d").mkdir(exist_ok=True)
        Path(os.fsdecode(os.fsencode(site.context) + b"/" + name)).write_bytes(b"1")
    upper = site.copy("/d", "/x")
    assert sorted(os.listdir(os.fsencode(upper) + b"/x")) == [b"a\nb", "\u00fc".encode(), b"\xff\xfe"]


# -- owners, modes, attributes


def test_owners(site: Site) -> None:
    base = site.lower("base")
    put(base / "etc/passwd", b"root:x:0:0::/:\nu:x:77:88::/:\nbad:x:y\nhuge:x:1:99999999999::/:\n")
    put(base / "etc/group", b"g:x:99:\n")
    put(site.context / "a", owner=(5, 6))
    for chown, owner in {
        "": (5, 6), "u": (77, 88), "u:g": (77, 99), ":g": (0, 99), "77": (77, 77), "100:g": (100, 99), "77:5": (77, 5),
        "u:": (77, 0), "nobody": (0, 0), "0:nogroup": (0, 0), "bad": (0, 0),
    }.items():  # fmt: skip
        info = (site.copy("/a", "/made/1", chown=chown) / "made/1").stat()
        assert (info.st_uid, info.st_gid) == owner, chown
        assert (site.upper / "made").stat().st_uid == (0 if not chown else owner[0])
    for chown in ("4294967295", "huge"):
        with pytest.raises(InvalidParameter, match="range"):
            site.copy("/a", "/1", chown=chown)


def test_a_layer_on_nothing_knows_no_names(site: Site) -> None:
    put(site.context / "a")
    assert (site.copy("/a", "/x", chown="5:6", link=True) / "x").stat().st_gid == 6
    with pytest.raises(InvalidParameter, match="--link with --chown=5:users: names are looked up"):
        site.copy("/a", "/x", chown="5:users", link=True)


def test_an_empty_root_has_no_names_but_root(site: Site) -> None:
    put(site.context / "a", owner=(5, 6))
    info = (site.copy("/a", "/x", chown="root:root") / "x").stat()
    assert (info.st_uid, info.st_gid) == (0, 0)
    with pytest.raises(InvalidParameter, match="invalid user index: -1"):
        site.copy("/a", "/y", chown="daemon")


def test_a_passwd_that_is_a_pipe_or_leads_out_lists_nobody(site: Site) -> None:
    base = site.lower("base")
    (base / "etc").mkdir()
    os.mkfifo(base / "etc/passwd")
    (base / "etc/group").symlink_to("../../../../../../etc/group-")
    put(site.context / "a")
    info = (site.copy("/a", "/1", chown="root:daemon") / "1").stat()
    assert (info.st_uid, info.st_gid) == (0, 0)


def test_a_mode_is_for_files_and_folders_but_not_the_destination(site: Site) -> None:
    put(site.context / "d/sub/f", mode=0o4755)
    (site.context / "d/l").symlink_to("sub/f")
    upper = site.copy("/d", "/x", chmod="640")
    assert [modes(upper / one) for one in ("x", "x/sub", "x/sub/f", "x/l")] == [0o755, 0o640, 0o640, 0o777]
    upper = site.copy("/d", "/x", chmod="u=rwX,go=rX")
    assert [modes(upper / one) for one in ("x/sub", "x/sub/f")] == [0o755, 0o755]
    assert modes(site.context / "d/sub/f") == 0o4755


def test_set_ids_and_attributes_survive_a_new_owner(site: Site) -> None:
    file = put(site.context / "f", mode=0o6755)
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(file, "security.capability", capability)
    os.setxattr(file, "trusted.overlay.origin", b"x")
    copy = site.copy("/f", "/x", chown="5:5") / "x"
    assert (modes(copy), os.getxattr(copy, "security.capability"), len(os.listxattr(copy))) == (0o6755, capability, 1)
    known = Tree(layers=(str(site.context),), attributes=frozenset())
    assert os.listxattr(site.copy("/f", "/x", known, chown="5:5") / "x") == []


def test_devices_pipes_and_sockets(site: Site) -> None:
    folder = site.context / "d"
    folder.mkdir()
    os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkfifo(folder / "pipe", 0o600)
    os.mknod(folder / "sock", stat.S_IFSOCK | 0o600)
    os.mknod(folder / "whiteout", stat.S_IFCHR, 0)
    for one in folder.iterdir():
        aged(one)
    upper = site.copy("/d", "/", chown="1:2")
    assert names(upper) == ["null", "pipe", "sock"]
    assert (upper / "null").stat().st_rdev == os.makedev(1, 3)
    for one in upper.iterdir():
        assert (one.stat().st_uid, one.stat().st_gid, one.stat().st_mtime_ns) == (1, 2, OLD)


# -- one file, several names


@pytest.mark.parametrize("chown", ["", "5:5"])
def test_names_of_one_file_stay_together_within_a_source_only(site: Site, chown: str) -> None:
    put(site.context / "d/f")
    os.link(site.context / "d/f", site.context / "d/g")
    upper = site.copy("/d", "/x", chown=chown)
    assert (upper / "x/f").stat().st_ino == (upper / "x/g").stat().st_ino
    upper = site.copy(["/d/f", "/d/g"], "/x/", chown=chown)
    assert (upper / "x/f").stat().st_ino != (upper / "x/g").stat().st_ino


def test_a_file_that_is_copied_twice_is_two_files(site: Site) -> None:
    put(site.context / "a")
    upper = site.copy(["/a", "/[a]", CopySource(input=1, path="/a")], "/x/")
    assert (upper / "x/a").stat().st_nlink == 1
    upper = site.copy(["/", "/"], "/x/")
    assert (upper / "x/a").read_bytes() == b"x"


def test_cron_and_logs_do_not_get_files_with_several_names(site: Site) -> None:
    put(site.context / "a")
    assert (site.copy("/a", "/etc/cron.d/") / "etc/cron.d/a").stat().st_nlink == 1
    assert (site.copy("/a", "/etc/") / "etc/a").stat().st_nlink == 2


def test_a_tree_that_may_change_is_never_linked(site: Site) -> None:
    put(site.context / "a")
    upper = site.copy("/a", "/", Tree(layers=(str(site.context),), linkable=False))
    assert (upper / "a").stat().st_nlink == 1


def test_from_another_file_system(site: Site) -> None:
    other = Path("/dev/shm") / f"knarr-copy-{os.getpid()}"
    other.mkdir()
    try:
        for number in range(3):
            put(other / f"d/{number}", b"x" * number, mode=0o711)
        upper = site.copy("/d", "/", Tree(layers=(str(other),)))
        assert [(upper / f"{number}").stat().st_size for number in range(3)] == [0, 1, 2]
        assert modes(upper / "1") == 0o711
    finally:
        for one in (other / "d").iterdir():
            one.unlink()
        (other / "d").rmdir()
        other.rmdir()


def test_holes_stay_holes(site: Site) -> None:
    file = site.context / "sparse"
    with file.open("wb") as out:
        out.truncate(1 << 40)
        out.seek(1 << 30)
        out.write(b"data")
    copy = site.copy("/sparse", "/x", chown="1") / "x"
    assert copy.stat().st_size == 1 << 40
    assert copy.stat().st_blocks < 1000
    with copy.open("rb") as content:
        content.seek(1 << 30)
        assert content.read(5) == b"data\0"


# -- archives


def archive(*members: tuple[str, dict[str, object]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, fields in members:
            info = tarfile.TarInfo(name)
            info.uid, info.gid, info.mtime, info.mode = 5, 6, 123, 0o640
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return out.getvalue()


def test_archives_are_known_by_their_content(site: Site) -> None:
    import bz2
    import lzma

    import zstandard

    data = archive(("q", {"type": tarfile.DIRTYPE, "mode": 0o750}), ("q/f", {"size": 3}), (".", {"type": tarfile.DIRTYPE, "mode": 0}))
    packed = [data, gzip.compress(data), bz2.compress(data), lzma.compress(data), zstandard.compress(data)]
    for number, content in enumerate(packed):
        put(site.context / f"p{number}", content)
        upper = site.copy(f"/p{number}", "/u", unpack=True)
        assert names(upper) == ["u", "u/q", "u/q/f"]
        info = (upper / "u/q/f").stat()
        assert (info.st_uid, info.st_gid, info.st_mtime, stat.S_IMODE(info.st_mode)) == (5, 6, 123, 0o640)
        assert modes(upper / "u") == 0o755
    assert names(site.copy("/p*", "/u/")) == ["u", *(f"u/p{number}" for number in range(5))]
    upper = site.copy("/p0", "/u", unpack=True, chown="9:9", chmod="777")
    assert ((upper / "u/q/f").stat().st_uid, modes(upper / "u/q/f"), (upper / "u/q/f").stat().st_mtime) == (9, 0o640, 123)


@pytest.mark.parametrize(
    "content",
    [b"", bytes(10240), gzip.compress(b"hello"), gzip.compress(os.urandom(99))[:50], b"plain text"],
    ids=["nothing", "zeros", "compressed", "cut off", "text"],
)
def test_what_is_no_archive_is_copied(site: Site, content: bytes) -> None:
    put(site.context / "p.tar", content)
    assert (site.copy("/p.tar", "/u/", unpack=True) / "u/p.tar").read_bytes() == content


def test_an_archive_that_is_cut_off_is_an_error(site: Site) -> None:
    put(site.context / "p.tar", archive(("f", {"size": 3000}))[:1500])
    with pytest.raises(InvalidParameter, match=r"failed to unpack /p\.tar"):
        site.copy("/p.tar", "/u", unpack=True)


def test_archives_in_folders_stay_packed(site: Site) -> None:
    put(site.context / "d/p.tar", archive(("f", {})))
    assert names(site.copy("/d", "/u", unpack=True)) == ["u", "u/p.tar"]


def test_a_hostile_archive_stays_in_its_folder(site: Site) -> None:
    base = site.lower("base")
    put(base / "etc/passwd", b"safe")
    (base / "u").mkdir()
    put(site.context / "links.tar", archive(("l", {"type": tarfile.SYMTYPE, "linkname": "/etc"}), ("l/passwd", {"size": 1})))
    upper = site.copy("/links.tar", "/u", unpack=True)
    assert names(upper) == ["u", "u/etc", "u/etc/passwd", "u/l"]
    members: list[tuple[str, dict[str, object]]] = [
        ("../../x", {}),
        ("n", {"type": tarfile.CHRTYPE}),
        ("h", {"type": tarfile.LNKTYPE, "linkname": "../etc/passwd"}),
    ]
    for name, fields in members:
        put(site.context / "bad.tar", archive((name, fields)))
        with pytest.raises(InvalidParameter, match=r"failed to unpack /bad\.tar"):
            site.copy("/bad.tar", "/u", unpack=True)
    assert not (site.top / "x").exists()


def test_an_archive_replaces_what_is_there(site: Site) -> None:
    base = site.lower("base")
    put(base / "tmp/f")
    put(base / "file")
    put(site.context / "p.tar", archive(("tmp", {}), ("file", {"type": tarfile.DIRTYPE}), ("file/x", {})))
    site.copy("/p.tar", "/", unpack=True)
    shown = site.shown("/tmp")
    assert shown is not None and shown.is_file()
    assert site.shown("/tmp/f") is None
    assert site.shown("/file/x") is not None


# -- trouble


def test_it_stops(site: Site) -> None:
    put(site.context / "d/f")
    op = Copy(sources=(CopySource(input=0, path="/d"),), destination="/x")
    with pytest.raises(Stopped):
        copying.apply(op, (), str(site.folder("upper")), [Tree(layers=(str(site.context),))], stop=lambda: True)


def test_a_source_that_changes_meanwhile_is_named_and_leads_nowhere(site: Site) -> None:
    outside = put(site.folder("outside") / "secret").parent
    for name in ("d/sub/f", "d/other/f"):
        put(site.context / name)
    op = Copy(sources=(CopySource(input=0, path="/d"),), destination="/x")

    def swap() -> bool:
        sub = site.context / "d/sub"
        if not sub.is_symlink() and (upper / "x/sub").exists():
            sub.rename(site.context / "moved")
            sub.symlink_to(outside)
        return False

    upper = site.folder("upper")
    with pytest.raises(InvalidParameter, match="/d/sub changed or went away while it was copied"):
        copying.apply(op, (), str(upper), [Tree(layers=(str(site.context),))], stop=swap)
    assert not list(upper.rglob("secret"))


def test_what_the_kernel_shows_is_what_was_meant(site: Site) -> None:
    """The layer mounted by overlayfs over those below."""
    import subprocess

    base = site.lower("base")
    put(base / "d/below", b"below")
    put(base / "d/both", b"below")
    put(site.context / "d/both", b"above")
    put(site.context / "d/sub/new", b"new")
    site.copy("/d", "/d")
    merged = site.folder("merged")
    mount = ["mount", "-t", "overlay", "-o", f"ro,lowerdir={site.upper}:{base}", "overlay", str(merged)]
    script = f"{' '.join(mount)} && cd {merged} && find . -type f | sort | xargs tail -n +1 && umount -l ."
    shown = subprocess.run(["unshare", "-m", "sh", "-c", script], check=True, capture_output=True, text=True).stdout
    assert shown.split() == "==> ./d/below <== below ==> ./d/both <== above ==> ./d/sub/new <== new".split()
