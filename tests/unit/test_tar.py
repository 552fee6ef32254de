"""The tar reader against archives of other programs, and what it refuses."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from engine.wire import tar, tarwrite
from tests.lib.images import entry
from tests.lib.images import tar as archive
from tests.lib.stores import source


def read(data: bytes, step: int = 65536) -> list[tuple[tar.Entry, bytes]]:
    reader = tar.TarReader(source(data, step))
    return [(member, reader.read(1 << 30)) for member in reader]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("step", [1, 511, 512, 513, 65536])
def test_every_format_of_python(format: int, step: int) -> None:
    data = archive(
        [
            entry("folder/", tarfile.DIRTYPE, mode=0o1777, mtime=12345),
            entry("folder/file", data=b"x" * 1000, uid=1000, gid=2000),
            entry("empty"),
            entry("link", tarfile.SYMTYPE, linkname="folder/file"),
            entry("hard", tarfile.LNKTYPE, linkname="folder/file"),
            entry("pipe", tarfile.FIFOTYPE),
            entry("device", tarfile.CHRTYPE, devmajor=1, devminor=3),
        ],
        format,
    )
    found = {member.name: (member, body) for member, body in read(data, step)}
    assert list(found) == [b"folder/", b"folder/file", b"empty", b"link", b"hard", b"pipe", b"device"] or b"folder" in found
    member, body = found[b"folder/file"]
    assert (member.uid, member.gid, member.size, body) == (1000, 2000, 1000, b"x" * 1000)
    assert found[b"hard"][0].linkname == b"folder/file"
    assert (found[b"device"][0].devmajor, found[b"device"][0].devminor) == (1, 3)
    assert found[b"pipe"][0].type == tar.FIFO


@pytest.mark.parametrize("format", ["gnu", "pax", "oldgnu"])
def test_gnu_tar_long_names_and_large_ids(tmp_path: Path, format: str) -> None:
    name = "d" * 90 + "/" + "n" * 200
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(b"hello")
    (tmp_path / "link").symlink_to("t" * 300)
    os.chown(tmp_path / name, 3_000_000_000, 4_000_000)
    os.utime(tmp_path / name, ns=(1, 1_234_567_890_123_456_789))
    made = subprocess.run(["tar", "-C", tmp_path, f"--format={format}", "-cf", "-", name, "link"], check=True, capture_output=True)
    (member, body), (link, _) = read(made.stdout)
    assert (member.name, body) == (name.encode(), b"hello")
    assert (member.uid, member.gid) == (3_000_000_000, 4_000_000)
    assert link.linkname == b"t" * 300
    assert member.mtime == (1_234_567_890_123_456_789 if format == "pax" else 1_234_567_890_000_000_000)


def sparse_file(path: Path, fragments: int) -> bytes:
    with open(path, "wb") as file:
        for number in range(fragments):
            file.seek(number * 131072 + 65536)
            file.write(b"%d" % number * 1024)
        file.truncate(fragments * 131072 + 200_000)
    return path.read_bytes()


@pytest.mark.parametrize(
    "options", [["--format=gnu"], ["--format=oldgnu"], *(["--format=pax", f"--sparse-version={v}"] for v in ("0.0", "0.1", "1.0"))]
)
@pytest.mark.parametrize("fragments", [1, 4, 5, 40])
@pytest.mark.parametrize("step", [100, 65536])
def test_sparse_files(tmp_path: Path, options: list[str], fragments: int, step: int) -> None:
    whole = sparse_file(tmp_path / "sparse", fragments)
    (tmp_path / "after").write_bytes(b"after")
    made = subprocess.run(["tar", "-C", tmp_path, "-S", *options, "-cf", "-", "sparse", "after"], check=True, capture_output=True)
    (member, body), (after, rest) = read(made.stdout, step)
    assert (member.name, member.size, after.name, rest) == (b"sparse", len(whole), b"after", b"after")
    assert member.sparse is not None
    built = bytearray(member.size)
    for offset, length in member.sparse:
        built[offset : offset + length], body = body[:length], body[length:]
    assert (bytes(built), body) == (whole, b"")


def test_xattrs_of_gnu_tar(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    os.setxattr(tmp_path / "file", "user.binary", b"a\0b\nc=d")
    made = subprocess.run(["tar", "-C", tmp_path, "--xattrs", "--xattrs-include=*", "-cf", "-", "file"], check=True, capture_output=True)
    assert read(made.stdout)[0][0].xattrs == {b"user.binary": b"a\0b\nc=d"}


def test_libarchive_attributes_are_understood() -> None:
    record = entry("file", pax_headers={"LIBARCHIVE.xattr.user.a%20b": "aGVsbG8"})
    assert read(archive([record]))[0][0].xattrs == {b"user.a b": b"hello"}


def test_global_headers_are_left_out() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x" * 600, "path": "evil"}) as made:
        made.addfile(*(part if isinstance(part, tarfile.TarInfo) else io.BytesIO(part) for part in entry("good", data=b"1")))
    assert [member.name for member, _ in read(out.getvalue())] == [b"good"]


def test_without_end_blocks_and_with_trailing_garbage() -> None:
    data = archive([entry("a", data=b"1")])
    assert [member.name for member, _ in read(data[:1024])] == [b"a"]
    assert [member.name for member, _ in read(data + b"garbage" * 1000)] == [b"a"]
    assert read(b"") == []
    assert read(bytes(1024)) == []


def header(**fields: object) -> bytes:
    return archive([entry("victim", **fields)])  # type: ignore[arg-type]


def patched(offset: int, value: bytes) -> bytes:
    """A valid archive with some bytes of its first header replaced and the checksum made right again."""
    block = bytearray(header(data=b"hello"))
    block[offset : offset + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


def pax(body: bytes) -> bytes:
    extended = tar.Entry(b"x", b"x")
    extended.size = len(body)
    return tarwrite.header(extended) + body + tarwrite.padding(len(body)) + header(data=b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"this is no tar archive" * 100, "wrong checksum"),
        (header(data=b"hello")[:515], "cut off"),
        (header(data=b"hello")[:300], "cut off"),
        (patched(124, b"99999999999\0"), "malformed number"),
        (patched(124, b"\xff" + bytes(11)), "a negative size|negative number"),
        (patched(108, b"\xff" * 8), "negative number"),
        (patched(0, bytes(100)), "without a name"),
        (pax(b"notanumber path=x\n"), "malformed extended header"),
        (pax(b"99 path=x\n"), "malformed extended header"),
        (pax(b"3 a"), "malformed extended header"),
        (pax(b"9 path=a\0\n"[:8] + b"\0\n"), "malformed extended header|NUL"),
        (pax(b"12 size=-12\n"), "malformed number"),
        (pax(b"13 mtime=abc\n"), "malformed time"),
        (patched(156, b"L").replace(b"00000000005", b"77777777777"), "checksum"),
        (patched(124, b"00000077777\0"), "cut off"),
    ],
)
def test_refused(data: bytes, message: str) -> None:
    with pytest.raises(tar.TarError, match=message):
        read(data)


def test_a_huge_extended_header_is_not_read() -> None:
    extended = tar.Entry(b"x", b"x")
    extended.size = 1 << 32
    with pytest.raises(tar.TarError, match="at most"):
        read(tarwrite.header(extended) + bytes(4096))


@pytest.mark.parametrize("map", [b"5,5,0,5", b"0,99", b"0,5,4,1", b"0,4"])
def test_sparse_maps_that_lie(map: bytes) -> None:
    record = entry("file", data=b"12345", pax_headers={"GNU.sparse.map": map.decode(), "GNU.sparse.size": "50"})
    with pytest.raises(tar.TarError, match="map of a sparse file"):
        read(archive([record]))
