from pathlib import Path


def prepare(folder: Path) -> None:
    context = folder / "context"
    with (context / "sparse").open("wb") as file:
        file.truncate(32 << 20)
    with (context / "holes.bin").open("wb") as file:
        file.write(b"begin")
        file.seek(8 << 20)
        file.write(b"middle")
        file.truncate(16 << 20)
    (context / "dense").write_bytes(bytes(range(256)) * (16 << 10))
