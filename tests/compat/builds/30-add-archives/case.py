import bz2
import gzip
import lzma
import shutil
import tarfile
from pathlib import Path

from tests.lib.images import entry, tar


def prepare(folder: Path) -> None:
    context = folder / "context"
    kept = {"mtime": 1_234_567_890}
    plain = tar([
        entry("top", data=b"top\n", mode=0o640, uid=12, gid=34, **kept),
        entry("d", tarfile.DIRTYPE, mode=0o2750, uid=5, gid=6, **kept),
        entry("d/file", data=b"in d\n", mode=0o4755, **kept),
        entry("d/link", tarfile.SYMTYPE, linkname="file", **kept),
        entry("d/hard", tarfile.LNKTYPE, linkname="d/file", mode=0o4755, **kept),
        entry("implied/parent/file", data=b"implied", **kept),
    ])  # fmt: skip
    (context / "plain.tar").write_bytes(plain)
    (context / "gz.tar.gz").write_bytes(gzip.compress(plain, mtime=0))
    (context / "bz.tar.bz2").write_bytes(bz2.compress(plain))
    (context / "xz.tar.xz").write_bytes(lzma.compress(plain))
    (context / "named-wrong.txt").write_bytes(gzip.compress(plain, mtime=0))
    (context / "text.gz").write_bytes(
        bytes.fromhex("1f8b0800000000000203cbcfcba9542849ad28e10200bd65115f0a000000")
    )  # another compressor, another size
    (context / "empty.tar").write_bytes(tar([]))
    (context / "odd.tar").write_bytes(tar([
        entry("./", tarfile.DIRTYPE, mode=0o711, uid=9, **kept),
        entry("./pipe", tarfile.FIFOTYPE, mode=0o600, **kept),
        entry("/absolute", data=b"abs", **kept),
        entry("null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666, **kept),
        entry("twice", data=b"first", **kept),
        entry("twice", data=b"second", **kept),
        entry("was-dir", tarfile.DIRTYPE, **kept),
        entry("was-dir", data=b"now a file", **kept),
        entry("to-etc", tarfile.SYMTYPE, linkname="/etc", **kept),
    ]))  # fmt: skip
    (context / "over.tar").write_bytes(tar([
        entry("etc/", tarfile.DIRTYPE, mode=0o700, uid=3, **kept),
        entry("etc/passwd", data=b"root:x:0:0::/:/bin/sh\n", **kept),
    ]))  # fmt: skip
    shutil.copy(context / "plain.tar", context / "folder/inner.tar")
