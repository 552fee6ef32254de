"""Contexts on the daemon's side: only what changed is asked for, what a build uses stays, nothing is claimed that is not there."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from builder.sources import contexts as module
from builder.sources import manifest
from builder.sources.contexts import Contexts
from builder.tree import Tree
from cli import buildcontext
from engine.errors import InvalidParameter
from engine.spec.build import Options
from engine.wire import buildframes
from engine.wire.buildframes import ENTRY, FOLDER_HEAD, HEAD, MalformedFrame

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a daemon's files are root's")


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk sees no file as too young: these tests change sizes."""
    monkeypatch.setattr(buildcontext, "_RACY_NS", 0)


class Client:
    """A folder of a client, and the daemon's store."""

    def __init__(self, base: Path) -> None:
        self.folder = base / "source"
        self.folder.mkdir()
        self.root = base / "store"
        self.contexts = Contexts(str(self.root))

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    @contextlib.asynccontextmanager
    async def sent(self) -> AsyncIterator[tuple[Tree, list[str]]]:
        """Send the folder; the tree, and the paths that were asked for."""
        found = buildcontext.walk("context", str(self.folder))
        async with self.contexts.uploads() as open_upload:
            upload = await open_upload("context", found.payload)
            need = [int.from_bytes(upload.need[i : i + 4], "big") for i in range(0, len(upload.need), 4)]
            for piece in found.pieces(upload.need):
                await upload.feed(piece)
            await upload.feed(b"")
            yield await upload.finish(), [os.fsdecode(found.path(number)) for number in need]

    def tree(self) -> str:
        (index,) = self.root.glob("*/tree-*")
        return str(index)


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path)


def look(root: str | Path) -> dict[str, tuple[object, ...]]:
    """Type, mode, owner, time, link structure and content of everything in a folder."""
    found: dict[str, tuple[object, ...]] = {}
    first: dict[int, str] = {}
    for folder, folders, files in os.walk(root):
        for name in sorted([*folders, *files]):
            path = os.path.join(folder, name)
            info = os.lstat(path)
            relative = os.path.relpath(path, root)
            content = b""
            if stat.S_ISREG(info.st_mode):
                content = Path(path).read_bytes()
            elif stat.S_ISLNK(info.st_mode):
                content = os.fsencode(os.readlink(path))
            same = first.setdefault(info.st_ino, relative) if not stat.S_ISDIR(info.st_mode) else relative
            found[relative] = (info.st_mode, info.st_uid, info.st_mtime_ns, info.st_rdev, same, content)
    return found


def run(work: Callable[[], object]) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            await work()  # type: ignore[misc]

    trio.run(main)


def test_a_tree_is_what_the_client_has(client: Client) -> None:
    client.write("a", "A")
    client.write("d/e/b", "B" * 3_000_000)
    client.write("d/set", "s")
    client.write(".wh.a", "a name like any other")
    (client.folder / "empty").mkdir(mode=0o1777)
    os.chmod(client.folder / "d/set", 0o4711)
    os.chown(client.folder / "d/set", 1000, 1000)
    os.link(client.folder / "d/set", client.folder / "z")
    os.symlink("/etc/passwd", client.folder / "d/link")
    os.mkfifo(client.folder / "pipe", 0o640)
    os.mknod(client.folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.setxattr(client.folder / "a", "user.note", b"x")
    os.utime(client.folder / "d", ns=(5, 123_456_789_012_345_678))

    async def main() -> None:
        async with client.sent() as (tree, _):
            there, here = look(tree.layers[0]), look(client.folder)
            assert there == {name: (mode, 0, *rest) for name, (mode, _, *rest) in here.items()}
            assert os.getxattr(f"{tree.layers[0]}/a", "user.note") == b"x"
            assert tree.digests[b"d/e/b"] == hashlib.sha256(b"B" * 3_000_000).hexdigest()
            assert tree.digests[b"z"] == tree.digests[b"d/set"] == hashlib.sha256(b"s").hexdigest()
            assert set(tree.digests) == {b"a", b".wh.a", b"d/e/b", b"d/set", b"z"} and len(tree.digests) == 5
            assert tree.attributes == {b"a"}
            assert stat.S_IMODE(os.stat(tree.layers[0]).st_mode) == 0o755

    run(main)


CHANGES: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "nothing": (lambda f: None, set()),
    "content": (lambda f: (f / "d/b").write_text("other"), {"d/b"}),
    "mode": (lambda f: os.chmod(f / "d/b", 0o755), {"d/b"}),
    "time": (lambda f: os.utime(f / "d/b", ns=(1, 1)), {"d/b"}),
    "new": (lambda f: (f / "d/new").write_text("n"), {"d/new"}),
    "gone": (lambda f: (f / "d/b").unlink(), set()),
    "folder gone": (lambda f: ((f / "d/b").unlink(), (f / "d/link").unlink(), (f / "d").rmdir()), set()),
    "renamed": (lambda f: os.rename(f / "d/b", f / "d/c"), {"d/c"}),
    "folder renamed": (lambda f: os.rename(f / "d", f / "x"), {"x/b"}),
    "folder to file": (lambda f: ((f / "e/c").unlink(), (f / "e").rmdir(), (f / "e").write_text("f")), {"e"}),
    "file to folder": (lambda f: ((f / "a").unlink(), (f / "a").mkdir(), (f / "a/in").write_text("f")), {"a/in"}),
    "file to link": (lambda f: ((f / "a").unlink(), os.symlink("e", f / "a")), set()),
    "folder to link": (lambda f: ((f / "e/c").unlink(), (f / "e").rmdir(), os.symlink("/etc", f / "e")), set()),
    "link": (lambda f: ((f / "d/link").unlink(), os.symlink("b", f / "d/link")), set()),
    "folder mode": (lambda f: os.chmod(f / "d", 0o700), set()),
    "folder times": (lambda f: os.utime(f / "e", ns=(1, 1)), set()),
    "hard link's content": (lambda f: (f / "hard1").write_text("changed"), {"hard1"}),
    "new hard link": (lambda f: os.link(f / "d/b", f / "d/b2"), {"d/b"}),
    "hard links apart": (lambda f: ((f / "h/hard2").unlink(), (f / "h/hard2").write_text("apart")), {"h/hard2", "hard1"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_asked_for(client: Client, change: str) -> None:
    for name in ("a", "d/b", "e/c", "hard1"):
        client.write(name, name)
    os.symlink("nowhere", client.folder / "d/link")
    (client.folder / "h").mkdir()
    os.link(client.folder / "hard1", client.folder / "h/hard2")
    act, wanted = CHANGES[change]

    async def main() -> None:
        async with client.sent() as (tree, need):
            assert sorted(need) == ["a", "d/b", "e/c", "hard1"]
            identity = tree.identity
        act(client.folder)
        async with client.sent() as (tree, need):
            assert set(need) == wanted
            assert look(tree.layers[0]) == look(client.folder)
            for name in tree.digests:
                assert tree.digests[name] == hashlib.sha256((client.folder / os.fsdecode(name)).read_bytes()).hexdigest()
            assert (tree.identity == identity) == (change in ("nothing", "time", "folder times")), change
        async with client.sent() as (tree, need):
            assert not need and look(tree.layers[0]) == look(client.folder)

    run(main)


def test_a_context_is_equal_to_one_made_at_once(client: Client, tmp_path: Path) -> None:
    """Step by step or whole, from here or from there: equal content has an equal identity."""
    client.write("a", "1")
    client.write("d/b", "2")
    (tmp_path / "other").mkdir()
    other = Client(tmp_path / "other")
    other.write("d/b", "2")

    async def main() -> None:
        async with other.sent():
            pass
        other.write("a", "1")
        async with client.sent() as (one, _), other.sent() as (two, _):
            assert one.identity == two.identity

    run(main)


def test_a_build_does_not_see_the_next_one(client: Client) -> None:
    client.write("a", "old")
    client.write("d/same", "same")

    async def main() -> None:
        async with client.sent() as (first, _):
            before = look(first.layers[0])
            client.write("a", "newer")
            async with client.sent() as (second, need):
                assert need == ["a"]
                assert look(first.layers[0]) == before
                assert look(second.layers[0]) == look(client.folder)
                async with client.sent() as (third, need):
                    assert third.layers == second.layers and not need
            same = [os.stat(f"{tree.layers[0]}/d/same").st_ino for tree in (first, second)]
            assert same[0] == same[1]
        assert not os.path.exists(first.layers[0])
        client.write("a", "the newest")
        async with client.sent() as (fourth, _):
            assert fourth.layers == second.layers

    run(main)


def test_files_that_layers_share_are_never_written(client: Client, tmp_path: Path) -> None:
    client.write("a", "old")

    async def main() -> None:
        async with client.sent() as (tree, _):
            os.link(f"{tree.layers[0]}/a", tmp_path / "layer")
        client.write("a", "new and longer")
        async with client.sent():
            assert (tmp_path / "layer").read_text() == "old"

    run(main)


def test_two_clients_at_once(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second does not wait long for the first, which may have stopped."""
    monkeypatch.setattr(module, "_PATIENCE", 0.01)
    client.write("a", "A")

    async def main() -> None:
        found = buildcontext.walk("context", str(client.folder))
        async with client.contexts.uploads() as open_upload:
            slow = await open_upload("context", found.payload)
            async with client.sent() as (tree, need):
                assert need == ["a"] and look(tree.layers[0]) == look(client.folder)
            for piece in found.pieces(slow.need):
                await slow.feed(piece)
            assert look((await slow.finish()).layers[0]) == look(client.folder)
        async with client.sent() as (_, need):
            assert not need

    run(main)


def test_what_came_before_an_interruption_need_not_come_again(client: Client) -> None:
    for name in ("a", "b", "d/c"):
        client.write(name, name)
    found = buildcontext.walk("context", str(client.folder))

    async def main() -> None:
        async with client.contexts.uploads() as open_upload:
            upload = await open_upload("context", found.payload)
            await upload.feed(b"".join(found.pieces(upload.need[:8])) + next(found.pieces(upload.need[8:]))[:13])
        client.contexts = Contexts(str(client.root))
        async with client.sent() as (tree, need):
            assert need == ["d/c"] and look(tree.layers[0]) == look(client.folder)

    run(main)


def test_a_crash_while_files_change_costs_only_those(client: Client) -> None:
    """The daemon dies between the new index and the last file: what it left is neither believed nor in the way."""
    client.write("a", "A")
    client.write("b", "B")
    client.write("d/c", "C")

    async def main() -> None:
        async with client.sent():
            pass
        client.write("a", "changed")
        (client.folder / "d/c").unlink()
        found = buildcontext.walk("context", str(client.folder))
        dead = Contexts(str(client.root))
        crashed = dead.uploads()
        open_upload = await crashed.__aenter__()
        await open_upload("context", found.payload)
        Path(client.tree(), "a").write_text("half")  # as much as was written
        client.contexts = Contexts(str(client.root))
        await client.contexts.sweep()
        client.write("d/c", "again")
        async with client.sent() as (tree, need):
            assert need == ["a", "d/c"] and look(tree.layers[0]) == look(client.folder)
        await crashed.__aexit__(None, None, None)

    run(main)


def test_after_a_power_cut_only_what_is_whole_is_believed(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("whole", "torn", "gone", "mode", "d/whole"):
        client.write(name, name)
    os.symlink("x", client.folder / "link")

    async def main() -> None:
        async with client.sent() as (tree, _):
            top = Path(tree.layers[0])
        info = os.stat(top / "torn")
        (top / "torn").write_bytes(b"\0\0\0\0")
        os.utime(top / "torn", ns=(info.st_mtime_ns, info.st_mtime_ns))
        (top / "gone").unlink()
        os.chmod(top / "mode", 0o600)
        (top / "link").unlink()
        monkeypatch.setattr(module, "_boot", lambda: "another-boot")
        client.contexts = Contexts(str(client.root))
        async with client.sent() as (tree, need):
            assert need == ["gone", "mode", "torn"] and look(tree.layers[0]) == look(client.folder)
        async with client.sent() as (_, need):
            assert not need

    run(main)


def test_a_damaged_index_is_none(client: Client) -> None:
    client.write("a", "A")

    async def main() -> None:
        async with client.sent():
            pass
        (index,) = client.root.glob("*/index")
        data = bytearray(index.read_bytes())
        data[len(data) // 2] ^= 1
        index.write_bytes(data)
        async with client.sent() as (tree, need):
            assert need == ["a"] and look(tree.layers[0]) == look(client.folder)
        assert len(list(client.root.glob("*/tree-*"))) == 1

    run(main)


def test_usage_removal_and_leftovers(client: Client) -> None:
    client.write("a", "12345")

    async def main() -> None:
        async with client.sent():
            (record,) = await client.contexts.usage()
            assert (record.type, record.size, record.in_use) == ("source.local", 5, True)
            assert record.description == "local source for context" and record.last_used_at >= record.created_at - 10**9
            assert await client.contexts.remove({record.id}) == 0
        assert await client.contexts.shrink(5) == 0
        (client.root / "tmp-crash-1").mkdir()
        (client.root / "0badc0de").mkdir()
        (client.root / record.id / "tree-99").mkdir()
        await client.contexts.sweep()
        assert sorted(os.listdir(client.root)) == [record.id]
        assert sorted(os.listdir(client.root / record.id)) == ["index", "tree-1"]
        assert await client.contexts.shrink(4) == 5
        assert os.listdir(client.root) == []

    run(main)


# -- hostile clients


def block(*entries: tuple[str, bytes, bytes], path: bytes = b"", flags: int = 0) -> bytes:
    packed = b"".join(ENTRY.pack(ord(kind), 0o644, len(name), len(to), 0, 0, 0, 0, 0) + name + to for kind, name, to in entries)
    return FOLDER_HEAD.pack(len(path), flags, len(entries), len(packed)) + path + packed


BEGIN = HEAD.pack(1, 0, 7, 1) + b"context" + b"o"
BAD = {
    "no root": BEGIN,
    "another root": BEGIN + block(path=b"a"),
    "two roots": BEGIN + block() + block(),
    "slash": BEGIN + block(("f", b"a/b", b"")),
    "dots": BEGIN + block(("f", b"..", b"")),
    "dot": BEGIN + block(("f", b".", b"")),
    "empty": BEGIN + block(("f", b"", b"")),
    "nul": BEGIN + block(("f", b"a\0b", b"")),
    "long": BEGIN + block(("f", b"a" * 256, b"")),
    "twice": BEGIN + block(("f", b"a", b""), ("f", b"a", b"")),
    "order": BEGIN + block(("f", b"b", b""), ("f", b"a", b"")),
    "type": BEGIN + block(("x", b"a", b"")),
    "no target": BEGIN + block(("l", b"a", b"")),
    "a file's target": BEGIN + block(("f", b"a", b"x")),
    "folder without parent": BEGIN + block() + block(path=b"a"),
    "folder below a link": BEGIN + block(("l", b"a", b"/")) + block(path=b"a"),
    "folder outside": BEGIN + block(("d", b"a", b"")) + block(path=b"a") + block(path=b"../x"),
    "folder left out": BEGIN + block(("d", b"a", b"")),
    "folder twice": BEGIN + block(("d", b"a", b"")) + block(path=b"a") + block(path=b"a"),
    "hard link to nothing": BEGIN + block(("h", b"a", b"b")),
    "hard link out": BEGIN + block(("h", b"a", b"../../../etc/passwd")),
    "hard link to a link": BEGIN + block(("h", b"a", b"b"), ("l", b"b", b"/etc/passwd")),
    "hard link through a link": BEGIN + block(("h", b"a", b"b/passwd"), ("l", b"b", b"/etc")),
    "cut": (BEGIN + block(("f", b"a", b"")))[:-1],
    "count": BEGIN + FOLDER_HEAD.pack(0, 0, 1 << 31, 10) + bytes(10),
    "version": HEAD.pack(9, 0, 7, 1) + b"context" + b"o" + block(),
    "name": HEAD.pack(1, 0, 7, 1) + b"\xff" * 7 + b"o" + block(),
    "other name": HEAD.pack(1, 0, 5, 1) + b"other" + b"o" + block(),
    "head": b"\1",
}


@pytest.mark.parametrize("kind", BAD)
def test_hostile_manifests(client: Client, kind: str) -> None:
    async def main() -> None:
        async with client.contexts.uploads() as open_upload:
            with pytest.raises(MalformedFrame):
                await open_upload("context", BAD[kind])
        assert not list(client.root.glob("*/tree-*/*"))

    run(main)


@pytest.mark.parametrize(
    "pieces",
    [[buildframes.FILE_HEAD.pack(1, 1) + b"x"], [buildframes.FILE_HEAD.pack(0, 1) + b"x", b"y"], [b""], [bytes(5), b""]],
    ids=["unasked", "too much", "nothing", "half"],
)
def test_hostile_files(client: Client, pieces: list[bytes]) -> None:
    """A file that nobody asked for, more than was asked for, an end too early."""

    async def main() -> None:
        async with client.contexts.uploads() as open_upload:
            upload = await open_upload("context", BEGIN + block(("f", b"a", b""), ("l", b"b", b"/etc/passwd")))
            for piece in pieces[:-1]:
                await upload.feed(piece)
            with pytest.raises(MalformedFrame):
                await upload.feed(pieces[-1])

    run(main)


def test_attributes_that_speak_to_overlay_are_left_out(client: Client) -> None:
    packed = b"".join(
        buildframes.ATTRIBUTE.pack(len(name), 1) + name + b"y" for name in (b"trusted.overlay.opaque", b"trusted.note", b"nonsense")
    )
    name = b"d"
    entry = ENTRY.pack(ord("d"), 0o755, 1, 0, len(packed), 0, 0, 0, 0) + name + packed

    async def main() -> None:
        async with client.contexts.uploads() as open_upload:
            payload = BEGIN + FOLDER_HEAD.pack(0, 0, 1, len(entry)) + entry + block(path=b"d")
            tree = await (await open_upload("context", payload)).finish()
            assert os.listxattr(f"{tree.layers[0]}/d") == ["trusted.note"]

    run(main)


# -- archives


def packed(*members: tuple[str, bytes, bytes, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, kind, content, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname, info.uid, info.mode = kind, len(content), link, 1000, 0o640
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


FILE, LINK, SYMLINK = tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 1000):
        yield data[at : at + 1000]


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_an_archive_as_a_context(client: Client, compress: Callable[[bytes], bytes]) -> None:
    data = compress(packed(("./Dockerfile", FILE, b"FROM x", ""), ("d/.wh.x", FILE, b"w", ""), ("d/h", LINK, b"", "Dockerfile")))

    async def main() -> None:
        async with client.contexts.from_tar(pieces(data), "Dockerfile") as sent:
            found = look(sent.tree.layers[0])
            assert set(found) == {"Dockerfile", "d", "d/.wh.x", "d/h"}
            assert all(owner == 0 for _, owner, *_ in found.values())
            assert os.path.samefile(f"{sent.tree.layers[0]}/d/h", f"{sent.tree.layers[0]}/Dockerfile")
            assert sent.options(Options()) == Options()
        assert os.listdir(client.root) == []

    run(main)


def test_an_archive_by_frames(client: Client) -> None:
    async def main() -> None:
        async with client.contexts.uploads() as open_upload, trio.open_nursery() as nursery:
            upload = await open_upload("context", buildcontext.archive("context").payload)
            assert upload.need == b""

            async def feed() -> None:
                async for piece in pieces(packed(("a", FILE, b"A" * 100_000, ""))):
                    await upload.feed(piece)
                await upload.feed(b"")

            nursery.start_soon(feed)
            tree = await upload.finish()
            assert Path(tree.layers[0], "a").read_bytes() == b"A" * 100_000
        assert os.listdir(client.root) == []

    run(main)


def test_the_classic_builder_leaves_out_the_dockerfile_when_asked(client: Client) -> None:
    members = [(name, FILE, name.encode(), "") for name in ("dockerfile", ".dockerignore", "secret")]
    members[1] = (".dockerignore", FILE, b"dockerfile\n.dockerignore\nsecret\n", "")

    async def main() -> None:
        async with client.contexts.from_tar(pieces(packed(*members)), "Dockerfile") as sent:
            assert set(look(sent.tree.layers[0])) == {"secret"}  # the rest is for the client to leave out
            assert set(look(sent.dockerfile.layers[0])) == {"dockerfile"}
            options = sent.options(Options())
            assert (options.dockerfile, options.dockerfile_sent) == ("dockerfile", True)

    run(main)


def test_a_file_of_patterns_that_is_too_large_is_refused(client: Client) -> None:
    async def main() -> None:
        with pytest.raises(InvalidParameter, match=r"failed to read \.dockerignore: it has 1048577 bytes, more than 1048576"):
            async with client.contexts.from_tar(pieces(packed((".dockerignore", FILE, b"#" * ((1 << 20) + 1), ""))), "Dockerfile"):
                pass
        assert os.listdir(client.root) == []

    run(main)


HOSTILE = {
    "up": packed(("../evil", FILE, b"x", "")),
    "hard link out": packed(("evil", LINK, b"", "../../outside")),
    "through a link": packed(("l", SYMLINK, b"", "/../../.."), ("l/evil", FILE, b"x", "")),
    "not a tar": b"FROM busybox\n" * 100,
    "cut": packed(("a", FILE, b"x" * 5000, ""))[:2000],
    "gzip cut": gzip.compress(packed(("a", FILE, os.urandom(5000), "")))[:3000],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives(client: Client, kind: str) -> None:
    outside = client.root.parent / "outside"
    outside.write_text("mine")

    async def main() -> None:
        with pytest.raises(InvalidParameter):
            async with client.contexts.from_tar(pieces(HOSTILE[kind]), "Dockerfile"):
                pass
        assert os.listdir(client.root) == []
        assert not list(client.root.parent.rglob("evil")) and outside.stat().st_nlink == 1

    run(main)


def test_links_in_an_archive_stay_links(client: Client) -> None:
    """An ignore file or a Dockerfile that leads out of the context is looked for inside it."""
    members = ((".dockerignore", SYMLINK, b"", "/etc/passwd"), ("Dockerfile", SYMLINK, b"", "../../../../etc/hostname"))

    async def main() -> None:
        async with client.contexts.from_tar(pieces(packed(*members)), "Dockerfile") as sent:
            assert os.readlink(f"{sent.tree.layers[0]}/Dockerfile") == "../../../../etc/hostname"

    run(main)


def test_the_layout_of_digests_is_checked() -> None:
    assert manifest.decode_index(b"") is None and manifest.index_summary(b"") is None
