from pathlib import Path


def prepare(folder: Path) -> None:
    for number in range(300):
        place = folder / f"context/d{number % 7}/e{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"file-{number:03}.txt").write_text(f"content {number}\n" * (number % 50))
    deep = folder / "context" / "/".join("deep" for _ in range(30))
    deep.mkdir(parents=True)
    (deep / ("long-" + "n" * 200)).write_text("deep")
