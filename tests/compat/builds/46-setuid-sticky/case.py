from pathlib import Path


def prepare(folder: Path) -> None:
    (folder / "context/su").chmod(0o4711)
    (folder / "context/dir").chmod(0o3775)
    (folder / "context/dir/x").chmod(0o2644)
