"""What the writer writes, the reader and Python's tarfile read back."""

from __future__ import annotations

import io
import tarfile

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.wire import tar, tarwrite
from tests.lib.stores import source

_name = st.binary(min_size=1, max_size=400).filter(lambda name: b"\0" not in name and not name.endswith(b"/"))
_xattrs = st.dictionaries(
    st.binary(min_size=1, max_size=30).filter(lambda key: b"=" not in key and b"\0" not in key), st.binary(max_size=50), max_size=3
)


@st.composite
def entries(draw: st.DrawFn) -> tuple[tar.Entry, bytes]:
    entry = tar.Entry(draw(_name), draw(st.sampled_from(sorted(tar.KNOWN))))
    entry.mode = draw(st.integers(0, 0o7777))
    entry.uid, entry.gid = draw(st.integers(0, 2**32)), draw(st.integers(0, 2**32))
    entry.mtime = draw(st.integers(-(10**18), 10**19))
    data = draw(st.binary(max_size=2000)) if entry.type == tar.REGULAR else b""
    entry.size = entry.stored = len(data)
    if entry.type in (tar.LINK, tar.SYMLINK):
        entry.linkname = draw(_name)
    if entry.type in (tar.CHARACTER, tar.BLOCK_DEVICE):
        entry.devmajor, entry.devminor = draw(st.integers(0, 4095)), draw(st.integers(0, 2**20))
    entry.xattrs = draw(_xattrs) or None
    return entry, data


def fields(entry: tar.Entry) -> tuple[object, ...]:
    return tuple(getattr(entry, name) for name in sorted(tar.Entry.__slots__))


@settings(max_examples=100, deadline=None)
@given(st.lists(entries(), max_size=8), st.integers(1, 5000))
def test_round_trip(members: list[tuple[tar.Entry, bytes]], step: int) -> None:
    data = b"".join(tarwrite.header(entry) + body + tarwrite.padding(len(body)) for entry, body in members) + tarwrite.END
    reader = tar.TarReader(source(data, step))
    assert [(fields(entry), reader.read(1 << 20)) for entry in reader] == [(fields(entry), body) for entry, body in members]


@settings(max_examples=50, deadline=None)
@given(st.lists(entries(), max_size=5))
def test_python_reads_it(members: list[tuple[tar.Entry, bytes]]) -> None:
    data = b"".join(tarwrite.header(entry) + body + tarwrite.padding(len(body)) for entry, body in members) + tarwrite.END
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as archive:
        names = [info.name.encode("utf-8", "surrogateescape") for info in archive]
    assert names == [entry.name for entry, _ in members]
