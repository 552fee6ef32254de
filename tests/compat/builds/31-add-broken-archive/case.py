import gzip
from pathlib import Path

from tests.lib.images import entry, tar


def prepare(folder: Path) -> None:
    whole = gzip.compress(tar([entry("file", data=bytes(range(256)) * 400)]), mtime=0)
    (folder / "context/cut.tar.gz").write_bytes(whole[: len(whole) // 2])
