"""The thin system calls of the core: what they give back and how they fail."""

from __future__ import annotations

import errno
import os
import select
from pathlib import Path

import pytest

from engine import _core

IN_ROOT, NO_MAGICLINKS = 0x10, 0x02


def test_openat2_stays_in_its_root(tmp_path: Path) -> None:
    (tmp_path / "inside").write_text("yes")
    (tmp_path / "link").symlink_to("/../../inside")
    (tmp_path / "magic").symlink_to("/proc/self/exe")
    root = os.open(tmp_path, os.O_PATH | os.O_CLOEXEC)
    try:
        fd = _core.openat2(root, "link", os.O_RDONLY | os.O_CLOEXEC, 0, IN_ROOT | NO_MAGICLINKS)
        assert os.read(fd, 10) == b"yes"
        os.close(fd)
        with pytest.raises(FileNotFoundError) as caught:
            _core.openat2(root, "magic", os.O_RDONLY, 0, IN_ROOT | NO_MAGICLINKS)
        assert caught.value.filename == "magic"
        assert "openat2" in str(caught.value)
    finally:
        os.close(root)


def test_bytes_paths_and_bad_ones(tmp_path: Path) -> None:
    name = bytes(tmp_path / "x") + b"\xff"
    os.close(_core.openat2(-100, name, os.O_CREAT | os.O_CLOEXEC | os.O_RDWR, 0o600))
    assert os.path.exists(name)
    with pytest.raises(ValueError, match="null byte"):
        _core.openat2(-100, "a\0b", os.O_RDONLY)
    with pytest.raises(TypeError):
        _core.openat2(-100, 7, os.O_RDONLY)  # type: ignore[arg-type]


def test_renameat2_exchanges(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    root = os.open(tmp_path, os.O_PATH | os.O_CLOEXEC)
    try:
        _core.renameat2(root, "a", root, "b", 2)
        assert (tmp_path / "a").read_text() == "b"
        with pytest.raises(FileExistsError):
            _core.renameat2(root, "a", root, "b", 1)
        _core.syncfs(fd := os.open(tmp_path, os.O_RDONLY))
        os.close(fd)
    finally:
        os.close(root)


def test_inotify(tmp_path: Path) -> None:
    fd = _core.inotify_init()
    try:
        assert not os.get_inheritable(fd)
        watch = _core.inotify_add_watch(fd, tmp_path, 0x100)
        (tmp_path / "new").touch()
        assert select.select([fd], [], [], 60)[0]
        assert b"new" in os.read(fd, 4096)
        _core.inotify_rm_watch(fd, watch)
        with pytest.raises(OSError, match="inotify_rm_watch"):
            _core.inotify_rm_watch(fd, watch)
    finally:
        os.close(fd)


def test_handles_name_a_file(tmp_path: Path) -> None:
    first = _core.name_to_handle_at(-100, tmp_path, 0)
    assert first == _core.name_to_handle_at(-100, str(tmp_path), 0)
    assert first[1] != _core.name_to_handle_at(-100, tmp_path.parent, 0)[1]


def test_failures_carry_errno_and_path() -> None:
    for call in (
        lambda: _core.mount("none", "/no/such/place", "tmpfs", 0, None),
        lambda: _core.umount2("/no/such/place", 0),
        lambda: _core.pivot_root("/no/such/place", "/no/such/place"),
    ):
        with pytest.raises(OSError, match="no/such/place") as caught:
            call()
        assert caught.value.errno in (errno.ENOENT, errno.EPERM)
        assert caught.value.filename == "/no/such/place"
    with pytest.raises(OSError, match="setns"):
        _core.setns(-1, 0)
    with pytest.raises(OSError, match="prctl"):
        _core.prctl(-1)
    with pytest.raises(ValueError, match="whole struct"):
        _core.bpf_load_device(b"1234567")


def test_prctl_and_pidfd() -> None:
    assert _core.prctl(3) in (0, 1)  # PR_GET_DUMPABLE
    read, write = os.pipe()
    pidfd = os.pidfd_open(os.getpid())
    try:
        copy = _core.pidfd_getfd(pidfd, read)
        os.write(write, b"x")
        assert os.read(copy, 1) == b"x"
        os.close(copy)
    finally:
        for fd in (read, write, pidfd):
            os.close(fd)
