from pathlib import Path

from tests.lib.images import entry, tar

ALONE = "ADD --unpack needs BuildKit 0.17"


def prepare(folder: Path) -> None:
    made = tar([entry("file", data=b"in the archive", uid=7, gid=8, mode=0o640, mtime=1_234_567_890)])
    (folder / "context/plain.tar").write_bytes(made)
