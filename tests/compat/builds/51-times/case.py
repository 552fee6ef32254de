import os
from pathlib import Path


def prepare(folder: Path) -> None:
    context = folder / "context"
    os.utime(context / "a", (1_000_000_000, 1_000_000_000))
    os.utime(context / "sub/x", (1, 1))
    os.utime(context / "sub", (1_111_111_111, 1_111_111_111))
