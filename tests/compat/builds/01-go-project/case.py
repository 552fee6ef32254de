from pathlib import Path

CLASSIC = True


def prepare(folder: Path) -> None:
    (folder / "context/.git").mkdir()
    (folder / "context/.git/HEAD").write_text("ref: refs/heads/main\n")
