"""Manifests for any input: hostile bytes only ever raise MalformedFrame, an index comes back as it was written, and a plan asks for exactly
the files whose entries the index does not have."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from builder.sources import manifest
from builder.sources.manifest import DIGEST, Index
from engine.wire.buildframes import ENTRY, FOLDER_HEAD, HEAD, RACY, RACY_TIME, MalformedFrame

HEAD_BYTES = HEAD.pack(1, 0, 1, 1) + b"no"
NAME = st.sampled_from([b"a", b"b", b"c"])
TREE = st.recursive(st.tuples(st.integers(0, 2), st.booleans()), lambda inner: st.dictionaries(NAME, inner, max_size=3), max_leaves=8)
ROOT = st.dictionaries(NAME, TREE, max_size=3)


def packed(tree: dict[bytes, object], path: bytes = b"") -> bytes:
    """A manifest's folders: leaves are files of (version, whether it is young)."""
    entries = below = b""
    racy = False
    for name, value in sorted(tree.items()):
        if isinstance(value, dict):
            entries += ENTRY.pack(ord("d"), 0o755, len(name), 0, 0, 0, 0, 0, 0) + name
            below += packed(value, path + b"/" + name if path else name)
        else:
            version, young = value  # type: ignore[misc]
            racy |= young
            entries += ENTRY.pack(ord("f"), 0o644, len(name), 0, 0, 3, version, RACY_TIME if young else version, 7) + name
    return FOLDER_HEAD.pack(len(path), RACY if racy else 0, len(tree), len(entries)) + path + entries + below


def leaves(tree: dict[bytes, object], path: bytes = b"") -> dict[bytes, tuple[int, bool]]:
    found: dict[bytes, tuple[int, bool]] = {}
    for name, value in tree.items():
        at = path + b"/" + name if path else name
        found |= leaves(value, at) if isinstance(value, dict) else {at: value}  # type: ignore[dict-item]
    return found


def complete(plan: manifest.Plan) -> Index:
    """The index when everything came."""
    for _, one, position in plan.need:
        assert isinstance(one.digests, bytearray)
        one.digests[position * DIGEST : (position + 1) * DIGEST] = b"\1" * DIGEST
    for one in plan.folders:
        if one.entries is not None:
            manifest.seal(one)
    return Index("b" * 36, 1, 2, "n", b"o", manifest.full(plan))


def asked(plan: manifest.Plan) -> set[bytes]:
    found = set()
    for _, one, position in plan.need:
        assert one.entries is not None
        name = one.entries[position].name
        found.add(one.folder.path + b"/" + name if one.folder.path else name)
    return found


@given(st.lists(ROOT, min_size=1, max_size=4), st.booleans())
def test_only_what_changed_is_asked_for(trees: list[dict[bytes, object]], torn: bool) -> None:
    index: Index | None = None
    known: dict[bytes, tuple[int, bool]] = {}
    for tree in trees:
        plan = manifest.compare(manifest.decode(HEAD_BYTES + packed(tree)), index)
        now = leaves(tree)
        assert asked(plan) == {path for path, value in now.items() if value[1] or known.get(path) != value}
        assert all(
            (one.entries is None) <= (one.folder.path in {f.path for f in index.folders} if index else False) for one in plan.folders
        )
        if torn:  # it was never carried out: what was asked for is not there
            index = Index("b" * 36, 1, 2, "n", b"o", manifest.partial(plan))
            known = {path: value for path, value in now.items() if path not in asked(plan)}
        else:
            index = complete(plan)
            known = now
        read = manifest.decode_index(manifest.encode_index(index))
        assert read is not None and manifest.encode_index(read) == manifest.encode_index(index)
        index = read


@given(ROOT, ROOT)
def test_identities_do_not_depend_on_the_way(before: dict[bytes, object], tree: dict[bytes, object]) -> None:
    whole = complete(manifest.compare(manifest.decode(HEAD_BYTES + packed(tree)), None))
    first = complete(manifest.compare(manifest.decode(HEAD_BYTES + packed(before)), None))
    second = complete(manifest.compare(manifest.decode(HEAD_BYTES + packed(tree)), first))
    assert manifest.identity(whole.folders) == manifest.identity(second.folders)
    assert manifest.Digests(second.folders).keys() == leaves(tree).keys()


@given(ROOT, st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=3)), max_size=4), st.integers(0, 400))
def test_hostile_bytes(tree: dict[bytes, object], changes: list[tuple[int, bytes]], end: int) -> None:
    data = bytearray(HEAD_BYTES + packed(tree))
    for at, piece in changes:
        data[at : at + len(piece)] = piece
    for damaged in (bytes(data), bytes(data[:end])):
        try:
            plan = manifest.compare(manifest.decode(damaged), None)
        except MalformedFrame:
            continue
        for one in plan.folders:
            assert one.folder.path.count(b"..") == 0 or b".." not in one.folder.path.split(b"/")


@given(st.binary(max_size=300))
def test_damaged_indexes(data: bytes) -> None:
    assert manifest.decode_index(data) is None
    assert manifest.decode_index(b"knarr-context-1\n" + data) is None
