"""Attacks by a container on its host, tried for real: on the daemon, through what is shared with it, and what is left open in it."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib import images
from tests.lib.daemon import Daemon

NONE = ("--network", "none")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    before = os.umask(0)  # a careless one: what may not be open must not be
    try:
        engine = Daemon()
        try:
            engine.start()
            folder = tmp_path_factory.mktemp("images")
            engine.docker("load", "-i", images.busybox_archive(folder / "busybox.tar"))
            links = [
                images.entry("proc", tarfile.SYMTYPE, linkname="/hidden/p"),
                images.entry("dev", tarfile.SYMTYPE, linkname="../../../d"),
                images.entry("sys", tarfile.SYMTYPE, linkname="/../s"),
                images.entry("hidden", tarfile.DIRTYPE),
                images.entry("etc/hosts", tarfile.SYMTYPE, linkname=f"../../../../..{folder}/escaped"),
            ]
            layer = [member for member in _members(images.busybox_layer()) if member[0].name not in ("proc", "dev", "sys")]
            (folder / "links.tar").write_bytes(images.docker_archive([images.tar([*layer, *links])], ["links:latest"]))
            engine.docker("load", "-i", str(folder / "links.tar"))
            yield engine
            assert not (folder / "escaped").exists()
        finally:
            engine.close()
    finally:
        os.umask(before)


def _members(layer: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        found = []
        for info in archive:
            file = archive.extractfile(info) if info.isreg() else None
            found.append((info, file.read() if file else b""))
        return found


@pytest.fixture(scope="module")
def running(daemon: Daemon) -> str:
    return daemon.out("run", *NONE, "-d", "busybox", "sleep", "1000")


def _shell(daemon: Daemon, where: str, script: str, *options: str) -> str:
    """The script's output, in a new container or (with the id of one) in an exec."""
    command = ("run", "--rm", *NONE, *options, "busybox") if where == "run" else ("exec", *options, where)
    result = daemon.docker(*command, "sh", "-c", script, check=False)
    return (result.stdout + result.stderr).decode()


@pytest.fixture(params=["run", "exec"])
def where(request: pytest.FixtureRequest, running: str) -> str:
    return "run" if request.param == "run" else running


def test_the_hosts_null_device_cannot_be_changed(daemon: Daemon, where: str) -> None:
    before = os.stat("/dev/null")
    try:
        # The sticky bit: nobody else would notice.
        files = "/proc/self/fd/0 /proc/keys /proc/interrupts /proc/timer_list"
        said = _shell(daemon, where, f"for f in {files}; do chmod 1666 $f; chown 0:7 $f; done")
        after = os.stat("/dev/null")
        assert (after.st_mode, after.st_gid) == (before.st_mode, before.st_gid), said
    finally:
        os.chmod("/dev/null", stat.S_IMODE(before.st_mode))
        os.chown("/dev/null", before.st_uid, before.st_gid)
    assert _shell(daemon, where, "cat; echo x >/proc/keys; cat /proc/keys; echo end") == "end\n"


def test_standard_input_without_a_null_device_has_ended(daemon: Daemon) -> None:
    container = daemon.out("run", *NONE, "-d", "busybox", "sh", "-c", "rm /dev/null; mkfifo /dev/null; sleep 1000")
    for _ in range(100):
        if "prw" in _shell(daemon, container, "ls -l /dev/null"):
            break
    assert _shell(daemon, container, "cat; echo end") == "end\n"


@pytest.mark.parametrize(
    "trap",
    ["ln -s /proc/kmsg /etc/passwd", "mkfifo /etc/passwd", "ln -s /dev/zero /etc/passwd", "ln -s / /etc/passwd"],
)
def test_a_users_file_cannot_hold_up_the_daemon(daemon: Daemon, trap: str) -> None:
    container = daemon.out("run", *NONE, "-d", "busybox", "sh", "-c", f"rm /etc/passwd; {trap}; touch /done; exec sleep 1000")
    while "done" not in _shell(daemon, container, "ls /", "-u", "0"):
        time.sleep(0.01)
    result = daemon.docker("exec", "-u", "user", container, "id", check=False)
    assert b"unable to find user user" in result.stdout + result.stderr
    assert daemon.api("GET", "/_ping").status == 200


def test_only_standard_descriptors_are_open(daemon: Daemon, where: str) -> None:
    said = _shell(daemon, where, "ls /proc/self/fd 2>/dev/null")  # ls has the fourth itself
    assert said.split() == ["0", "1", "2", "3"]


@pytest.mark.parametrize("folder", ["/proc/self/fd/5", "/proc/self/cwd", "/proc/1/root"])
def test_the_working_directory_stays_inside(daemon: Daemon, running: str, folder: str) -> None:
    for command in (("exec", "-w", folder, running), ("run", "--rm", *NONE, "-w", folder, "busybox")):
        result = daemon.docker(*command, "cat", "/proc/self/mountinfo", check=False)
        assert result.returncode != 0 and b"change directory" in result.stdout + result.stderr


def test_privileges_of_users(daemon: Daemon, where: str) -> None:
    script = "grep -E '^(Cap|Groups|Seccomp:)' /proc/self/status"
    user = dict(line.split(":", 1) for line in _shell(daemon, where, script, "-u", "user").splitlines())
    assert {int(user[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert user["Groups"].split() == ["29", "1000"] and user["Seccomp"].strip() == "2"
    root = dict(line.split(":", 1) for line in _shell(daemon, where, script).splitlines())
    assert root["CapEff"] == root["CapBnd"] == root["CapPrm"] == user["CapBnd"] and int(root["CapInh"], 16) == 0
    assert int(root["CapBnd"], 16) == 0xA80425FB & int(root["CapBnd"], 16)
    assert root["Groups"].split() == ["0"] and root["Seccomp"].strip() == "2"


def test_what_belongs_to_the_host(daemon: Daemon, where: str) -> None:
    script = """
        mknod /tmp/mem c 1 1; dd if=/tmp/mem of=/tmp/out bs=1 count=1 && echo ESCAPED memory
        mknod /tmp/kmsg c 1 11; dd if=/tmp/kmsg of=/tmp/out bs=1 count=1 && echo ESCAPED kmsg
        for m in 8 252 253 254 259 7; do mknod /tmp/d$m b $m 0; dd if=/tmp/d$m of=/tmp/out count=1 && echo ESCAPED disk; done
        echo x >/proc/sys/kernel/core_pattern && echo ESCAPED core_pattern
        echo c >/proc/sysrq-trigger && echo ESCAPED sysrq
        for g in /sys/fs/cgroup /sys/fs/cgroup/*; do mkdir $g/x && echo ESCAPED cgroup; done
        mount -t tmpfs x /mnt && echo ESCAPED mount
        mount -o remount,rw,bind /proc/sys && echo ESCAPED remount
        umount /proc/sys && echo ESCAPED umount
        unshare -U true && echo ESCAPED user namespace
        cat /proc/kcore 2>/dev/null | grep -q . && echo ESCAPED kcore
        echo tried
    """
    said = _shell(daemon, where, script)
    assert "ESCAPED" not in said and "tried" in said, said


def test_links_of_an_image_stay_inside(daemon: Daemon) -> None:
    script = "readlink /proc; ls -d /hidden/p/1 /d/null /s/kernel; cat /etc/hosts; chmod 1666 /proc/keys; echo x >/proc/sys/kernel/sem"
    before = os.stat("/dev/null").st_mode
    result = daemon.docker("run", "--rm", *NONE, "links", "sh", "-c", script, check=False)
    said = (result.stdout + result.stderr).decode()
    assert "localhost" in said and said.count("Read-only file system") == 2, said
    assert os.stat("/dev/null").st_mode == before


def test_shared_layers_are_never_written(daemon: Daemon) -> None:
    def state() -> dict[str, tuple[int, int, int, int]]:
        found = {}
        for shared in ("places", "empty"):
            for folder, names, files in os.walk(daemon.data_root / "snapshots" / shared):
                for name in (*names, *files):
                    info = os.lstat(f"{folder}/{name}")
                    found[f"{folder}/{name}"] = (info.st_mode, info.st_size, info.st_mtime_ns, info.st_uid)
        return found

    before = state()
    files = "/etc/hosts /etc/hostname /etc/resolv.conf"
    _shell(daemon, "run", f"for f in {files}; do echo evil >$f; chmod 4777 $f; done; chmod 777 /etc /; rm -rf /etc")
    assert before and state() == before
    assert "evil" not in _shell(daemon, "run", "cat /etc/hosts /etc/hostname /etc/resolv.conf")


def test_nothing_is_open_to_other_users(daemon: Daemon, running: str) -> None:
    daemon.docker("run", *NONE, "busybox", "echo", "secret")
    assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o660
    found: list[Path] = []
    for root in (daemon.data_root, daemon.exec_root):
        _reachable(root, found)
    roots = (daemon.data_root, daemon.exec_root)
    assert not [str(path) for path in found if _mode(path) & 0o007 and path.parent not in roots]
    for name in ("meta.db", "meta.db-wal", "meta.db-shm"):
        assert stat.S_IMODE((daemon.data_root / name).stat().st_mode) & 0o077 == 0
    everything = [Path(folder, name) for root in roots for folder, _, files in os.walk(root) for name in files]
    assert {mode for path in everything if path.name == "monitor.sock" and (mode := _mode(path))} == {0o600}
    assert {_mode(path) & 0o027 for path in everything if path.name.endswith("-json.log")} == {0}


def _mode(path: Path) -> int:
    """Its permissions, 0 when it is gone: what other tests started goes meanwhile."""
    try:
        return stat.S_IMODE(path.lstat().st_mode)
    except FileNotFoundError:
        return 0


def _reachable(folder: Path, found: list[Path]) -> None:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    for path in (folder / name for name in names):
        found.append(path)
        if path.is_dir() and not path.is_symlink() and _mode(path) & 0o001:
            _reachable(path, found)


def test_ids_and_names_are_no_paths(daemon: Daemon, running: str) -> None:
    for reference in ("../../etc", "..%2f..%2fetc", "%2e%2e%2f", "a%00b", "%2fetc%2fpasswd"):
        for call in ("GET /containers/{}/json", "GET /exec/{}/json", "POST /containers/{}/start", "DELETE /containers/{}"):
            assert 400 <= daemon.api(call.split()[0], call.split()[1].format(reference)).status < 500
        body = {"Image": "busybox", "Cmd": ["true"]}
        assert 400 <= daemon.api("POST", f"/containers/create?name={reference}", body).status < 500
