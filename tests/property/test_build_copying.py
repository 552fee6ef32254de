"""Trees of any shape copied onto others: the merged view afterwards is what a simple model says."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st

from builder.files import checksum, copying
from builder.files.selection import Source
from builder.graph import Copy, CopySource
from builder.tree import Tree
from engine.errors import InvalidParameter

Thing: TypeAlias = tuple[str, str, int]
"""Kind (file, link, dir, opaque, whiteout), content or target, mode."""
Model: TypeAlias = dict[tuple[str, ...], Thing]

NAMES = st.sampled_from(["a", "b", "c\n\u00fc", "\udcff"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(tuple)
MODES = st.sampled_from([0o644, 0o755, 0o4711, 0o1777])
FILES = st.tuples(st.just("file"), st.sampled_from(["", "x", "y" * 5000]), MODES)
LINKS = st.tuples(st.just("link"), st.sampled_from(["a", "/b", "../../..", "nowhere"]), st.just(0o777))
FOLDERS = st.tuples(st.just("dir"), st.just(""), MODES)
HIDING = st.sampled_from([("opaque", "", 0o755), ("whiteout", "", 0o600)])


def model(things: st.SearchStrategy[Thing]) -> st.SearchStrategy[Model]:
    return st.dictionaries(PATHS, things, max_size=8).map(closed)


def closed(found: Model) -> Model:
    """With the folders above each path; what is below something else than a folder goes."""
    out: Model = {}
    for path in sorted(found):
        above = [path[:length] for length in range(1, len(path))]
        if all(out.get(one, ("dir",))[0] in ("dir", "opaque") for one in above):
            for one in above:
                out.setdefault(one, ("dir", "", 0o755))
            out[path] = found[path]
    return out


PLAIN = model(st.one_of(FILES, LINKS, FOLDERS))
LAYER = model(st.one_of(FILES, LINKS, FOLDERS, HIDING))


def write(top: Path, things: Model) -> str:
    top.mkdir()
    for path, (kind, text, mode) in sorted(things.items()):
        at = top.joinpath(*path)
        if kind == "file":
            at.write_text(text)
        elif kind == "link":
            at.symlink_to(text)
        elif kind == "whiteout":
            os.mknod(at, stat.S_IFCHR)
        else:
            at.mkdir()
            if kind == "opaque":
                os.setxattr(at, "trusted.overlay.opaque", b"y")
        if kind != "link":
            at.chmod(mode)
    return str(top)


def stacked(above: Model, below: Model) -> Model:
    """What two layers show."""
    out: Model = {}
    for path, thing in below.items():
        here = [above.get(path[:length]) for length in range(1, len(path) + 1)]
        if all(one is None or one[0] == "dir" for one in here):
            out[path] = thing
        elif thing[0] == "dir" and here[-1] is not None and here[-1][0] == "dir":
            out[path] = here[-1]
    for path, (kind, text, mode) in above.items():
        if kind != "whiteout":
            out[path] = ("dir" if kind == "opaque" else kind, text, mode)
    return out


def read(layers: tuple[str, ...]) -> Model:
    out: Model = {}
    with Source(Tree(layers=layers)) as source:
        root = source.find("/")
        assert root is not None
        pending: list[tuple[tuple[bytes, ...], tuple[int, ...]]] = [((), root.layers)]
        while pending:
            place, indexes = pending.pop()
            for entry in source.scan(place, indexes):
                path = tuple(os.fsdecode(one) for one in place) + (entry.name,)
                mode = entry.info.st_mode
                if stat.S_ISDIR(mode):
                    out[path] = ("dir", "", stat.S_IMODE(mode))
                    pending.append(((*place, os.fsencode(entry.name)), entry.layers))
                elif stat.S_ISLNK(mode):
                    out[path] = ("link", os.readlink(entry.name, dir_fd=entry.fd), 0o777)
                else:
                    with open(f"/proc/self/fd/{entry.fd}/{entry.name}") as file:
                        out[path] = ("file", file.read(), stat.S_IMODE(mode))
    return out


def expected(source: Model, root: Model, chmod: int | None) -> Model | None:
    """The root with a folder's content copied into /a; None for what is refused."""
    out = dict(root)
    if out.setdefault(("a",), ("dir", "", 0o755))[0] != "dir":
        return None
    for path, (kind, text, mode) in sorted(source.items()):
        there = out.get(("a", *path))
        if there is not None and (there[0] == "dir") != (kind == "dir"):
            return None
        out[("a", *path)] = (kind, text, mode if chmod is None or kind == "link" else chmod)
    return out


@settings(max_examples=120, deadline=None)
@given(LAYER, PLAIN, LAYER, PLAIN, st.sampled_from(["", "1:2"]), st.sampled_from([None, 0o750]), st.booleans())
def test_a_copy_is_what_a_simple_model_says(
    above: Model, below: Model, upper_root: Model, lower_root: Model, chown: str, chmod: int | None, linkable: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        tree = Tree(layers=(write(top / "above", above), write(top / "below", below)), linkable=linkable)
        lowers = (write(top / "upper", upper_root), write(top / "lower", lower_root))
        source, root = stacked(above, below), stacked(upper_root, lower_root)
        assert read(tree.layers) == source
        assert read(lowers) == root
        new = top / "new"
        new.mkdir()
        op = Copy(sources=(CopySource(input=0, path="/"),), destination="/a", chown=chown, chmod="" if chmod is None else f"{chmod:o}")
        if root.get(("a",), ("",))[0] == "link":
            return  # another test's
        wanted = expected(source, root, chmod)
        try:
            copying.apply(op, lowers, str(new), [tree])
        except InvalidParameter:
            assert wanted is None
        else:
            assert read((str(new), *lowers)) == wanted
        assert read(tree.layers) == source
        assert read(lowers) == root

        flat = Tree(layers=(write(top / "flat", source),))
        assert checksum.key(op, [flat]) == checksum.key(op, [tree])
