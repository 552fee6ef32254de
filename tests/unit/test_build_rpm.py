"""The readers of rpm's databases: of every form that the formats allow, and damaged in every way. `tests.lib.rpmdatabases` writes them."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.export.packages import berkeley, ndb, rpm
from builder.export.packages.image import scan
from builder.export.packages.package import Distribution
from builder.export.packages.pieces import Unreadable
from tests.lib import rpmdatabases
from tests.lib.rpmdatabases import header

Reader = Callable[[BinaryIO], Iterator[bytes]]

BLOBS = [header(name=f"n{i}", version="1", license="x" * (i * 37 % 1500)) for i in range(1, 41)]
SAMPLES: dict[str, tuple[Reader, bytes]] = {
    "little": (berkeley.headers, rpmdatabases.berkeley(BLOBS, 512, "<", 5)),
    "big": (berkeley.headers, rpmdatabases.berkeley(BLOBS, 512, ">", 5)),
    "ndb": (ndb.headers, rpmdatabases.ndb(BLOBS, 3)),
    "sqlite": (rpm.READERS[b"rpmdb.sqlite"], rpmdatabases.sqlite(BLOBS, 512)),
}
each_sample = pytest.mark.parametrize(("reader", "data"), SAMPLES.values(), ids=SAMPLES)


def read(reader: Reader, data: bytes) -> list[bytes]:
    return list(reader(io.BytesIO(data)))


def refusal(reader: Reader, data: bytes) -> str:
    with pytest.raises(Unreadable) as caught:
        read(reader, data)
    return str(caught.value)


def changed(data: bytes, place: int, *numbers: int, form: str = "<I") -> bytes:
    made = bytearray(data)
    for index, number in enumerate(numbers):
        struct.pack_into(form, made, place + index * struct.calcsize(form), number)
    return bytes(made)


# what is read


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.binary(max_size=9000), max_size=30), st.sampled_from([512, 1024, 4096, 65536]), st.sampled_from("<>"), st.integers(2, 19)
)
def test_every_value_of_berkeley_db_is_read(blobs: list[bytes], page: int, order: str, buckets: int) -> None:
    assert sorted(read(berkeley.headers, rpmdatabases.berkeley(blobs, page, order, buckets))) == sorted(blobs)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.binary(max_size=9000), max_size=12), st.integers(0, 600))
def test_every_blob_of_ndb_is_read(blobs: list[bytes], free: int) -> None:
    assert read(ndb.headers, rpmdatabases.ndb(blobs, free)) == blobs


@pytest.mark.parametrize(
    ("path", "write"),
    [
        ("var/lib/rpm/Packages", rpmdatabases.berkeley),
        ("usr/lib/sysimage/rpm/Packages.db", rpmdatabases.ndb),
        ("usr/share/rpm/rpmdb.sqlite", rpmdatabases.sqlite),
    ],
)
def test_an_image_with_one(tmp_path: Path, path: str, write: Callable[[list[bytes]], bytes]) -> None:
    blobs = [
        header(name="bash", version="4.2", release="46.el7", epoch=1, license="GPLv3+", arch="x86_64", source="bash.src.rpm", vendor="C"),
        header(name="gpg-pubkey", version="1", release="2"),
        header(name="filesystem", version="3", license="x" * 20_000),
    ]
    database = tmp_path / path
    database.parent.mkdir(parents=True)
    database.write_bytes(write(blobs))
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text('ID="centos"\nVERSION_ID="7"\n')
    found = scan([str(tmp_path)])
    assert [(one.name, one.version, one.license[:6], one.supplier, one.found) for one in found.packages] == [
        ("bash", "1:4.2-46.el7", "GPLv3+", "C", f"/{path}"),
        ("filesystem", "3", "xxxxxx", "", f"/{path}"),
    ]
    assert found.packages[0].purl == "pkg:rpm/centos/bash@4.2-46.el7?arch=x86_64&distro=centos-7&epoch=1&upstream=bash.src.rpm"
    assert found.unread == ()


def test_the_newest_of_several_is_read_once(tmp_path: Path) -> None:
    """What a conversion left behind says nothing; nor does a link from the old folder to the new one."""
    folder = tmp_path / "usr/lib/sysimage/rpm"
    folder.mkdir(parents=True)
    (tmp_path / "var/lib").mkdir(parents=True)
    os.symlink("../../usr/lib/sysimage/rpm", tmp_path / "var/lib/rpm")
    (folder / "Packages").write_bytes(b"damaged")
    (folder / "Packages.db").write_bytes(rpmdatabases.ndb([header(name="new", version="1")]))
    (folder / "rpmdb.sqlite").write_bytes(b"")
    found = scan([str(tmp_path)])
    assert [(one.name, one.found) for one in found.packages] == [("new", "/usr/lib/sysimage/rpm/Packages.db")]
    assert found.unread == ()


def test_a_damaged_one_is_named_once(tmp_path: Path) -> None:
    folder = tmp_path / "var/lib/rpm"
    folder.mkdir(parents=True)
    (folder / "Packages").write_bytes(SAMPLES["little"][1][:-512])
    assert scan([str(tmp_path)]).packages == ()
    (text,) = scan([str(tmp_path)]).unread
    assert text.startswith("/var/lib/rpm/Packages: it names page ")


@pytest.mark.parametrize("write", [rpmdatabases.berkeley, rpmdatabases.ndb], ids=["berkeley", "ndb"])
def test_memory_does_not_grow_with_the_database(tmp_path: Path, write: Callable[[list[bytes]], bytes]) -> None:
    path = tmp_path / "database"
    path.write_bytes(write([bytes(100_000)] * 80))
    reader = ndb.headers if write is rpmdatabases.ndb else berkeley.headers
    with open(path, "rb") as file:
        tracemalloc.start()
        try:
            assert sum(1 for _ in reader(file)) == 80
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()


# damage


@each_sample
def test_cut_off_anywhere(reader: Reader, data: bytes) -> None:
    """Every part of a sample is named by something, so no cut goes unnoticed."""
    for size in (*range(0, len(data), 509), len(data) - 1):
        assert refusal(reader, data[:size])


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(SAMPLES)), st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 7)), min_size=1, max_size=12))
def test_flipped_bits_end(name: str, flips: list[tuple[int, int]]) -> None:
    reader, data = SAMPLES[name]
    made = bytearray(data)
    for place, bit in flips:
        made[place % len(made)] ^= 1 << bit
    ends(reader, bytes(made))


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(sorted(SAMPLES)),
    st.integers(0, 300),
    st.integers(0, 16),
    st.sampled_from([0, 1, 2, 3, 5, 7, 8, 13, 26, 511, 512, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]),
    st.sampled_from(["<I", ">I", "<H", ">H"]),
)
def test_wrong_numbers_in_the_heads_of_pages_end(name: str, page: int, word: int, number: int, form: str) -> None:
    """Where numbers of pages, of items and of bytes are."""
    reader, data = SAMPLES[name]
    place = page * 512 % len(data) + word * struct.calcsize(form)
    ends(reader, changed(data, place, number & (0xFFFF if form[1] == "H" else 0xFFFFFFFF), form=form))


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(sorted(SAMPLES)), st.binary(max_size=3000), st.booleans())
def test_junk_ends(name: str, junk: bytes, begun: bool) -> None:
    reader, data = SAMPLES[name]
    ends(reader, data[: 512 if begun else 0] + junk * 4)


def ends(reader: Reader, data: bytes) -> None:
    """Reads it, or says why not; never more than the file has."""
    total = 0
    with contextlib.suppress(Unreadable):
        for blob in reader(io.BytesIO(data)):
            total += len(blob)
            list(rpm.packages([blob], "x", Distribution(), []))
    assert total <= len(data)


def test_a_damaged_header_is_told_and_the_others_are_listed() -> None:
    good, unread = header(name="bash", version="5.2", release="1"), list[str]()
    found = rpm.packages([good[:40], good, header(name="gpg-pubkey", version="1"), b""], "Packages", Distribution(), unread)
    assert [package.name for package in found] == ["bash"]
    assert unread == ["Packages: 2 of its packages have a damaged header"]


def test_rows_of_sqlite_do_not_overlap() -> None:
    """One row that a page names many times is no way to make a small file large."""
    data = rpmdatabases.sqlite([b"v" * 3000], 4096)
    leaf = data.index(b"v" * 3000) // 4096
    cell = struct.unpack_from(">H", data, leaf * 4096 + 8)[0]
    many = changed(changed(data, leaf * 4096 + 3, 100, form=">H"), leaf * 4096 + 8, *[cell] * 100, form=">H")
    assert refusal(rpm.READERS[b"rpmdb.sqlite"], many) == "its rows overlap"


# what is told of Berkeley DB

META_VERSION, META_SIZE, META_ENCRYPTION, META_KIND, META_FLAGS, META_BUCKET, META_SPARES = 16, 20, 24, 25, 26, 72, 96
PAGE_OWN, PAGE_NEXT, PAGE_ENTRIES, PAGE_USED, PAGE_KIND, PAGE_INDEX = 8, 16, 20, 22, 25, 26


@pytest.fixture(scope="module")
def chain() -> bytes:
    """Two buckets, on pages 1 and 2+, and one value on the overflow pages 2, 3, 4."""
    data = rpmdatabases.berkeley([b"v" * 1400], 512, "<", 2)
    assert [data[page * 512 + PAGE_KIND] for page in range(6)] == [8, 13, 13, 7, 7, 7]
    return data


def test_other_databases_are_refused() -> None:
    data = SAMPLES["little"][1]
    assert refusal(berkeley.headers, b"") == "it is no Berkeley DB database"
    assert refusal(berkeley.headers, changed(data, 12, 0x53162)) == "it is no hash database of Berkeley DB"
    assert "version 7" in refusal(berkeley.headers, changed(data, META_VERSION, 7))
    assert "encrypted" in refusal(berkeley.headers, changed(data, META_ENCRYPTION, 1, form="B"))
    assert "checksums" in refusal(berkeley.headers, changed(data, META_FLAGS, 1, form="B"))
    for size in (0, 256, 513, 131072):
        assert refusal(berkeley.headers, changed(data, META_SIZE, size)) == f"its pages have {size} bytes"
    for bucket in (len(data) // 512, 0xFFFFFFFF):
        assert "buckets" in refusal(berkeley.headers, changed(data, META_BUCKET, bucket))
    assert refusal(ndb.headers, data) == "it is no ndb database"


def test_a_chain_of_overflow_pages(chain: bytes) -> None:
    assert read(berkeley.headers, chain) == [b"v" * 1400]
    third = 5 * 512
    assert refusal(berkeley.headers, changed(chain, third - 512 + PAGE_NEXT, 3)) == "page 3 is in it twice"
    assert refusal(berkeley.headers, changed(chain, third - 512 + PAGE_NEXT, 4)) == "page 4 is in it twice"
    assert refusal(berkeley.headers, changed(chain, third - 512 + PAGE_NEXT, 0)) == "page 0 is in it twice"
    assert refusal(berkeley.headers, changed(chain, third - 512 + PAGE_NEXT, 6)) == "it names page 6, which it does not have"
    assert refusal(berkeley.headers, changed(chain, third - 512 + PAGE_NEXT, 0xFFFFFFFF)).startswith("it names page 4294967295")
    assert refusal(berkeley.headers, changed(chain, third + PAGE_OWN, 9)) == "where page 5 belongs, it has page 9 of kind 7"
    assert refusal(berkeley.headers, changed(chain, third + PAGE_KIND, 13, form="B")) == "where page 5 belongs, it has page 5 of kind 13"
    for used in (0, 500, 0xFFFF):
        assert refusal(berkeley.headers, changed(chain, third + PAGE_USED, used, form="<H")) == f"page 5 of it has {used} bytes of a value"


def test_buckets(chain: bytes) -> None:
    first = 512
    assert refusal(berkeley.headers, changed(chain, META_SPARES, 0)) == "page 0 is in it twice"
    assert refusal(berkeley.headers, changed(chain, META_SPARES, 2, 1)) == "page 2 is in it twice"
    assert refusal(berkeley.headers, changed(chain, META_SPARES, 0xFFFFFFFF)).startswith("it names page 4294967295")
    assert refusal(berkeley.headers, changed(chain, first + PAGE_NEXT, 1)) == "page 1 is in it twice"
    assert refusal(berkeley.headers, changed(chain, first + PAGE_OWN, 0)) == "where page 1 belongs, it has page 0 of kind 13"
    old = changed(chain, META_VERSION, 8)
    for page in (1, 2):
        old = changed(old, page * 512 + PAGE_KIND, 2, form="B")
    assert read(berkeley.headers, old) == [b"v" * 1400]  # as versions before 4.6 wrote them


def test_items(chain: bytes) -> None:
    page = 2 * 512
    key, value = struct.unpack_from("<HH", chain, page + PAGE_INDEX)
    for entries in (1, 3, 400, 0xFFFF):
        text = refusal(berkeley.headers, changed(chain, page + PAGE_ENTRIES, entries, form="<H"))
        assert text.startswith("page 2 of it has ")
    for place in (0, 29, 512, 0xFFFF):
        assert refusal(berkeley.headers, changed(chain, page + PAGE_INDEX, place, form="<H")) == f"page 2 of it has an item at {place}"
    assert refusal(berkeley.headers, changed(chain, page + PAGE_INDEX, value, form="<H")).startswith("page 2 of it has ")
    assert refusal(berkeley.headers, changed(chain, page + key, 3, form="B")) == "page 2 of it has a key that is no package's number"
    for kind in (0, 2, 4):
        assert refusal(berkeley.headers, changed(chain, page + value, kind, form="B")) == f"page 2 of it has an item of kind {kind}"
    assert refusal(berkeley.headers, changed(chain, page + value + 8, 0xFFFFFFFF)) == "a value of it has 4294967295 bytes"
    assert refusal(berkeley.headers, changed(chain, page + value + 8, 1399)) == "page 5 of it has 428 bytes of a value"


# what is told of ndb


def test_heads_of_ndb() -> None:
    data = SAMPLES["ndb"][1]
    assert "version 1" in refusal(ndb.headers, changed(data, 4, 1))
    for pages in (0, 1000, 0xFFFFFFFF):
        assert refusal(ndb.headers, changed(data, 12, pages)).endswith(f"and {pages} pages of slots")
    assert refusal(ndb.headers, changed(data, 4080, 0)) == "page 0 of it has no slots"


def test_slots_of_ndb() -> None:
    data = rpmdatabases.ndb([b"a" * 100, b"b" * 100])
    first, second = 32, 48
    assert refusal(ndb.headers, changed(data, first + 4, 2)) == "package 2 of it is damaged"
    assert refusal(ndb.headers, changed(data, second + 8, 256)).endswith("of it overlaps others")
    assert refusal(ndb.headers, changed(data, first + 8, 255)) == "package 1 of it overlaps others"
    assert refusal(ndb.headers, changed(data, first + 12, 1)) == "package 1 of it has 16 bytes"
    assert refusal(ndb.headers, changed(data, first + 12, 7)) == "package 1 of it is damaged"
    assert refusal(ndb.headers, changed(data, second + 12, 9)).startswith("it has ")
    assert refusal(ndb.headers, changed(data, second + 8, 0xFFFFFFFF)).startswith("it has ")
    assert refusal(ndb.headers, changed(data, first + 12, 0xFFFFFFFF)) == "package 1 of it has 68719476720 bytes"
    assert read(ndb.headers, changed(data, first + 8, 0)) == [b"b" * 100]
    for place in range(4096, 4096 + 128):
        assert refusal(ndb.headers, changed(data, place, data[place] ^ 1, form="B")) == "package 1 of it is damaged"
