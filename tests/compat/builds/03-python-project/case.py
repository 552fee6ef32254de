from pathlib import Path


def prepare(folder: Path) -> None:
    (folder / "context/app/__pycache__").mkdir()
    (folder / "context/app/__pycache__/x.pyc").write_text("x")
