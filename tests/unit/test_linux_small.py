"""Processes, mounts and files: the small helpers."""

from __future__ import annotations

import contextlib
import os
import pathlib
import select
import signal
import subprocess
import sys

import pytest

from engine.linux import files, mounts, process

ROOT = os.geteuid() == 0


def test_a_process_is_its_id_and_its_start() -> None:
    # Its name is made to look like the fields that follow it.
    program = "import ctypes\nprint(flush=True); input(); ctypes.CDLL(None).prctl(15, b'a) R 1 (b'); print(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-ISc", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdin is not None and child.stdout is not None
        child.stdout.readline()
        start = process.start_time(child.pid)
        assert start >= process.start_time(os.getpid()) > 0
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.stdout.readline()
        assert pathlib.Path(f"/proc/{child.pid}/comm").read_text() == "a) R 1 (b\n"
        assert process.start_time(child.pid) == start
        assert not process.is_ending(child.pid, start)
        assert process.is_ending(child.pid, start + 1)  # the one that had this id before
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert process.start_time(child.pid) == 0  # a zombie
        assert process.is_ending(child.pid, start)
    finally:
        child.kill()
        child.communicate()
    assert process.start_time(child.pid) == 0
    assert process.is_ending(child.pid, start)


@pytest.mark.skipif(not ROOT, reason="a PID namespace needs root")
def test_the_first_process_of_a_namespace_ends_before_the_others_it_kills() -> None:
    """And is told of after them: its end has begun when theirs is seen."""
    first = "import os, time; pid = os.fork(); print(pid if pid else '', flush=True); time.sleep(1000)"
    outer = subprocess.Popen(["unshare", "-fp", "--kill-child", sys.executable, "-ISc", first], stdout=subprocess.PIPE)
    try:
        assert outer.stdout is not None
        outer.stdout.readline()
        outer.stdout.readline()
        (init,) = children(outer.pid)
        (other,) = children(init)
        start = process.start_time(init)
        seen = os.pidfd_open(other)
        assert not process.is_ending(init, start)
        os.kill(init, signal.SIGKILL)
        select.select([seen], [], [], 30)
        assert process.is_ending(init, start)
        os.close(seen)
    finally:
        outer.kill()
        outer.communicate()


def children(pid: int) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # others end meanwhile
            if int(pathlib.Path(f"/proc/{name}/stat").read_text(errors="replace").rpartition(")")[2].split()[1]) == pid:
                found.append(int(name))
    return found


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
