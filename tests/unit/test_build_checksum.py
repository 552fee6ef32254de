"""The digest of what a COPY would copy: equal exactly when the copies would be."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.files import checksum
from builder.graph import Copy, CopySource
from builder.tree import Tree
from engine.errors import InvalidParameter, NotFound


def key(folder: Path, path: str = "/d", tree: Tree | None = None, **options: object) -> str:
    source = CopySource(input=0, path=path)
    op = Copy(sources=(source,), destination="/x/", **options)  # type: ignore[arg-type]
    return checksum.key(op, [tree or Tree(layers=(str(folder),))])


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A context; the digests of two copies of it are compared."""
    folder = tmp_path / "one"
    (folder / "d/sub").mkdir(parents=True)
    (folder / "d/f").write_bytes(b"content")
    (folder / "d/big").write_bytes(bytes(100_000))
    (folder / "d/l").symlink_to("f")
    os.mkfifo(folder / "d/pipe")
    return folder


def _free(path: Path) -> Path:
    path.unlink()
    return path


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda top: (top / "d/f").write_bytes(b"CONTENT"),
    "content of a large file": lambda top: (top / "d/big").write_bytes(bytes(99_999) + b"x"),
    "mode": lambda top: (top / "d/f").chmod(0o600),
    "mode of a folder": lambda top: (top / "d/sub").chmod(0o700),
    "owner": lambda top: os.chown(top / "d/f", 1, 0),
    "group": lambda top: os.chown(top / "d/sub", 0, 1),
    "name": lambda top: (top / "d/f").rename(top / "d/e"),
    "one less": lambda top: (top / "d/f").unlink(),
    "an empty folder more": lambda top: (top / "d/sub/new").mkdir(),
    "target": lambda top: os.symlink("g", _free(top / "d/l")),
    "kind": lambda top: os.mknod(_free(top / "d/pipe"), stat.S_IFSOCK | 0o644),
    "attribute": lambda top: os.setxattr(top / "d/f", "user.a", b"1"),
    "attribute of a folder": lambda top: os.setxattr(top / "d/sub", "user.a", b"1"),
    "one file with two names": lambda top: os.link(top / "d/f", _free(top / "d/g")),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_the_copy_would_show_takes_part(site: Path, change: Callable[[Path], object]) -> None:
    (site / "d/g").write_bytes(b"content")
    other = site.parent / "two"
    shutil.copytree(site, other, symlinks=True, ignore=lambda *_: ["pipe"])
    os.mkfifo(other / "d/pipe")
    assert key(site) == key(other)
    change(other)
    assert key(site) != key(other)


def test_times_and_what_is_not_selected_take_no_part(site: Path) -> None:
    before = key(site)
    os.utime(site / "d/f", ns=(5, 5))
    os.utime(site / "d/sub", ns=(5, 5))
    (site / "other").write_bytes(b"new")
    (site / "d").chmod(0o700)
    os.link(site / "d/f", site / "elsewhere")
    assert key(site) == before


def test_what_is_overridden_takes_no_part(site: Path) -> None:
    before = key(site, chown="5", chmod="755")
    os.chown(site / "d/f", 7, 7)
    (site / "d/f").chmod(0o600)
    assert key(site, chown="5", chmod="755") == before
    assert key(site, chown="6", chmod="755") != before
    assert key(site, chown="5", chmod="700") != before
    before = key(site, exclude=("f",))
    (site / "d/f").write_bytes(b"new")
    assert key(site, exclude=("f",)) == before != key(site)


def test_the_name_of_a_single_file_takes_part(site: Path) -> None:
    shutil.copy2(site / "d/f", site / "d/g")
    assert key(site, "/d/f") != key(site, "/d/g")
    assert key(site, "/d/f") == key(site, "/d/[f]") == key(site, "//d/./f")


def test_parents_take_part(site: Path) -> None:
    before = key(site, "/d/./f", parents=True)
    assert before != key(site, "/d/f", parents=True)
    (site / "d/sub").chmod(0o700)
    assert key(site, "/d/./f", parents=True) == before


def test_known_digests_are_believed_and_give_the_same(site: Path) -> None:
    digests = {f"d/{name}".encode(): hashlib.sha256((site / "d" / name).read_bytes()).hexdigest() for name in ("f", "big")}
    known = Tree(layers=(str(site),), digests=digests, attributes=frozenset())
    before = key(site)
    assert key(site, tree=known) == before
    os.chmod(site / "d/f", 0)
    (site / "d/f").write_bytes(b"CONTENT")
    assert key(site, tree=known) != before


def test_layers_count_as_they_show(site: Path) -> None:
    above = site.parent / "above"
    (above / "d").mkdir(parents=True)
    (above / "d/f").write_bytes(b"new")
    os.mknod(above / "d/big", stat.S_IFCHR)
    merged = key(site, tree=Tree(layers=(str(above), str(site))))
    (site / "d/f").write_bytes(b"new")
    (site / "d/big").unlink()
    assert key(site) == merged


def test_documents(site: Path) -> None:
    def of(content: bytes, chmod: str = "") -> str:
        return checksum.key(Copy(sources=(CopySource(path="EOF", content=content),), destination="/x", chmod=chmod), [])

    assert of(b"a") == of(b"a") == of(b"a", "644")
    assert len({of(b"a"), of(b"b"), of(b"a", "600")}) == 3


def test_a_file_is_known_again_and_a_changed_one_is_not(site: Path) -> None:
    """A file that was read once is not read again, also when it was linked meanwhile."""
    file = site / "d/big"
    before = key(site)
    kept = len(checksum._known)
    os.link(file, site / "more")
    assert key(site) == before
    assert len(checksum._known) == kept
    info = file.stat()
    file.unlink()
    file.write_bytes(b"y" * info.st_size)
    while file.stat().st_ctime_ns == info.st_ctime_ns:  # a clock with large steps would make it the same file
        time.sleep(0.001)
        os.utime(file)
    os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert key(site) != before


def test_what_is_missing_or_goes_away_is_named(site: Path) -> None:
    with pytest.raises(NotFound, match=r'failed to compute cache key: .*"/nope": not found'):
        key(site, "/nope")
    with pytest.raises(InvalidParameter, match="syntax error in pattern"):
        key(site, "/d/[")


def test_nothing_outside_is_read(site: Path) -> None:
    secret = site.parent / "secret"
    secret.mkdir()
    (secret / "f").write_bytes(b"1")
    (site / "out").symlink_to("../secret")
    (site / "abs").symlink_to(secret)
    for path in ("/out/f", "/abs/f", "/../secret/f"):
        with pytest.raises(NotFound):
            key(site, path)
    before = key(site, "/")
    (secret / "f").write_bytes(b"2")
    assert key(site, "/") == before
