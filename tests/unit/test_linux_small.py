"""Processes, mounts and files: the small helpers."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from engine.linux import files, mounts, process

ROOT = os.geteuid() == 0


def test_a_process_is_its_id_and_its_start() -> None:
    child = subprocess.Popen([sys.executable, "-ISc", "import time; print(flush=True); time.sleep(600)"], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()  # the command line is there a moment after exec only
        start = process.start_time(child.pid)
        assert start > 0
        assert process.is_alive(child.pid, start)
        assert not process.is_alive(child.pid, start - 1)
        assert process.send_signal(child.pid, start - 1, signal.SIGKILL) is False
        with pytest.raises(ProcessLookupError):
            process.open_pidfd(child.pid, start - 1)
        found = process.info(child.pid)
        assert (found.pid, found.parent, found.uid, found.start, found.threads) == (child.pid, os.getpid(), os.geteuid(), start, 1)
        assert found.command[0] == sys.executable or "python" in found.name
        assert process.memory_share(child.pid) > 0
        assert process.send_signal(child.pid, start, signal.SIGKILL) is True
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not process.is_alive(child.pid, start)  # a zombie
    finally:
        child.kill()
        child.communicate()
    assert process.start_time(child.pid) == 0
    assert process.send_signal(child.pid, start, 0) is False
    assert process.memory_share(child.pid) == 0
    assert process.list_info([child.pid]) == []


def test_a_name_with_parentheses() -> None:
    program = "import ctypes, time\nctypes.CDLL(None).prctl(15, b'a) R 1 (b'); print(flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-ISc", program], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        assert process.info(child.pid).name == "a) R 1 (b"
        assert process.info(child.pid).parent == os.getpid()
    finally:
        child.kill()
        child.communicate()


TABLE = r"""22 27 0:21 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
36 27 0:30 /a\040b /mnt/with\040space\134x rw master:1 propagate_from:2 - overlay over\011lay rw,lowerdir=/a:/b
40 36 0:31 / /mnt/with\040space\134x/deep rw - tmpfs  rw,size=1k
41 27 0:32 / /mnt/without rw - tmpfs t rw
"""


def test_mount_table() -> None:
    entries = mounts.parse(TABLE)
    assert entries[1] == mounts.MountEntry(
        36, 27, "0:30", "/a b", "/mnt/with space\\x", ("rw",), ("master:1", "propagate_from:2"), "overlay", "over\tlay",
        ("rw", "lowerdir=/a:/b"),
    )  # fmt: skip
    assert [entry.id for entry in mounts.below("/mnt/with space\\x", entries)] == [40, 36]
    assert [entry.id for entry in mounts.below("/mnt", entries)] == [41, 40, 36]
    assert mounts.below("/mnt/with", entries) == []
    assert len(mounts.below("/", entries)) == 4
    with pytest.raises(ValueError, match="not a mountinfo line"):
        mounts.parse("nonsense")
    assert any(entry.target == "/proc" for entry in mounts.read())


@pytest.mark.skipif(not ROOT, reason="mounting needs root")
def test_unmounting_below(tmp_path: pathlib.Path) -> None:
    from engine import _core

    folder = tmp_path / "a b\\c"
    for part in (folder, folder / "inner"):
        part.mkdir()
        _core.mount("tmpfs", str(part), "tmpfs", 0, None)
    (folder / "inner" / "deep").mkdir()
    _core.mount("tmpfs", str(folder / "inner" / "deep"), "tmpfs", 0, None)
    _core.mount("tmpfs", str(folder / "inner" / "deep"), "tmpfs", 0, None)
    assert mounts.unmount_below(str(folder)) == 4
    assert mounts.below(str(tmp_path)) == []
    assert mounts.unmount_below(str(folder)) == 0


def test_paths_stay_in_their_root(tmp_path: pathlib.Path) -> None:
    (tmp_path / "outside").write_text("secret")
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "passwd").write_text("mine")
    (root / "absolute").symlink_to("/etc/passwd")
    (root / "up").symlink_to("../../../../outside")
    (root / "proc").symlink_to("/proc/self/root")
    os.mkfifo(root / "pipe")
    with files.Root(str(root)) as inside:
        assert inside.read("/etc/passwd") == inside.read("absolute") == inside.read("../../etc/passwd") == b"mine"
        assert inside.read("etc/passwd", limit=2) == b"mi"
        assert not inside.exists("up")
        assert not inside.exists("/proc/etc/passwd")
        assert inside.stat("up", follow=False).st_size > 0
        with pytest.raises(OSError, match="not a regular file"):
            inside.read("pipe")
    descriptor = os.open("/", os.O_PATH)
    try:
        with pytest.raises(OSError, match="openat2"):
            files.open_in_root(descriptor, "/proc/self/root/etc", os.O_PATH)
    finally:
        os.close(descriptor)


def test_atomic_writes(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    for durable in (True, False):
        files.atomic_write(str(path), b"x" * 100_000 + bytes([durable]), mode=0o640, durable=durable)
        assert path.read_bytes()[-1] == durable
        assert path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(FileNotFoundError):
        files.atomic_write(str(tmp_path / "none" / "file"), b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        files.atomic_write(str(tmp_path / "folder"), b"")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert time.time() - path.stat().st_mtime < 600
