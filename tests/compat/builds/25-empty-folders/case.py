from pathlib import Path


def prepare(folder: Path) -> None:
    (folder / "context/a/b/c").mkdir(parents=True)
    (folder / "context/z").mkdir(mode=0o700)
    (folder / "context/a/b").chmod(0o2775)
