import os
from pathlib import Path


def prepare(folder: Path) -> None:
    context = folder / "context"
    (context / "sub").mkdir()
    for name in ("two", "sub/three", "a-first"):
        os.link(context / "one", context / name)
