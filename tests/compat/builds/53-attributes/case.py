import os
from pathlib import Path

OUTPUT = "tar"


def prepare(folder: Path) -> None:
    context = folder / "context"
    os.setxattr(context / "marked", "user.note", b"binary\x00\xff")
    os.setxattr(context / "marked", "user.other", b"text")
    os.setxattr(context / "dir", "user.folder", b"yes")
    os.setxattr(context / "capable", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
