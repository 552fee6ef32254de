import os
from pathlib import Path

from tests.lib.images import entry, tar

OUTPUT = "tar"


def prepare(folder: Path) -> None:
    context = folder / "context"
    os.setxattr(context / "marked", "user.note", b"binary\x00\xff")
    os.setxattr(context / "marked", "user.other", b"text")
    os.setxattr(context / "dir", "user.folder", b"yes")
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(context / "capable", "security.capability", capability)
    attributes = {"SCHILY.xattr.security.capability": capability.decode("latin-1"), "SCHILY.xattr.user.a": "b"}
    prog = entry("prog", data=b"prog", mode=0o755, mtime=1_234_567_890, pax_headers=attributes)
    (context / "capable.tar").write_bytes(tar([prog]))
