"""`--chmod`: octal and symbolic."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from builder.language import modes
from engine.errors import InvalidParameter

FILE, FOLDER = stat.S_IFREG, stat.S_IFDIR


def changed(text: str, mode: int) -> int:
    change = modes.parse(text)
    assert change is not None
    return change(mode)


def test_nothing_keeps_modes() -> None:
    assert modes.parse("") is None


@pytest.mark.parametrize(("text", "mode"), [("644", 0o644), ("0755", 0o755), ("7777", 0o7777), ("0", 0), ("000000000755", 0o755)])
def test_octal(text: str, mode: int) -> None:
    assert changed(text, FILE | 0o4711) == changed(text, FOLDER | 0o700) == mode


@pytest.mark.parametrize(
    ("text", "before", "file", "folder"),
    [
        ("u=rwX,go=rX", 0o600, 0o644, 0o755),
        ("u=rwX,go=rX", 0o700, 0o755, 0o755),
        ("a+rX,go-w", 0o662, 0o644, 0o755),
        ("+x", 0o644, 0o755, 0o755),
        ("-x", 0o755, 0o644, 0o644),
        ("=r", 0o7777, 0o444, 0o444),
        ("g=u", 0o640, 0o660, 0o660),
        ("o=g-w", 0o660, 0o664, 0o664),
        ("ug+s,+t", 0o755, 0o7755, 0o7755),
        ("o+s,u+t", 0o755, 0o755, 0o755),
        ("u=,g=r", 0o777, 0o047, 0o047),
        ("u+rw,u-w", 0o000, 0o400, 0o400),
        ("go=", 0o2755, 0o700, 0o700),
    ],
)
def test_symbolic(text: str, before: int, file: int, folder: int) -> None:
    assert changed(text, FILE | before) == file
    assert changed(text, FOLDER | before) == folder


@pytest.mark.parametrize("text", ["u=rwX,go=rX", "a+rX,go-w", "g=u", "o=g-w", "u+s", "=rx", "a=rw,u+x", "ugo-x+X", "g+w,o="])
@pytest.mark.parametrize("before", [0o000, 0o640, 0o755, 0o711])
def test_symbolic_as_chmod_does(tmp_path: Path, text: str, before: int) -> None:
    file = tmp_path / "f"
    file.touch()
    file.chmod(before)
    subprocess.run(["chmod", text, str(file)], check=True, umask=0)
    assert changed(text, FILE | before) == stat.S_IMODE(os.stat(file).st_mode)


@pytest.mark.parametrize("text", ["64a", "10000", "99999", "u", "u=rwz", "u=rw,", ",u=r", "x", "u=ug", "8", " 644", "\u0664", "7" * 100])
def test_wrong_ones(text: str) -> None:
    with pytest.raises(InvalidParameter, match=r"invalid chmod parameter: '.*'\. it should be octal string and between 0 and 07777"):
        modes.parse(text)
