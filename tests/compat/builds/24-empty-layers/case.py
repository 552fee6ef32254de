from pathlib import Path

CLASSIC = True


def prepare(folder: Path) -> None:
    (folder / "context/empty").mkdir()
