from pathlib import Path

ALONE = "COPY --chmod with letters needs BuildKit 0.20"


def prepare(folder: Path) -> None:
    (folder / "context/dir").chmod(0o700)
    (folder / "context/dir/x").chmod(0o600)
