"""Volumes and mounts of a daemon of ours: crashes, what stays mounted, images as mounts, hostile folders."""

from __future__ import annotations

import os
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lib import busybox, images
from tests.lib.daemon import Daemon

NET = ("--network", "none")


def run(daemon: Daemon, *arguments: str, image: str = busybox.NAME, command: str = "true") -> str:
    return daemon.out("run", "--rm", *NET, *arguments, image, "sh", "-c", command)


def mounted(daemon: Daemon) -> list[str]:
    """What is mounted on volumes, seen from the host."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if f"{daemon.data_root}/volumes/" in line]


def eventually(condition: Callable[[], object]) -> None:
    """Background work has no signal; the test only has to end some time."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it does not happen")


@pytest.fixture
def box(daemon: Daemon) -> Iterator[Daemon]:
    yield daemon
    daemon.remove_all()
    for volume in daemon.api("GET", "/volumes").json()["Volumes"]:
        assert daemon.api("DELETE", f"/volumes/{volume['Name']}").status == 204
    eventually(lambda: not os.listdir(daemon.data_root / "volumes"))
    eventually(lambda: mounted(daemon) == [])


def load(daemon: Daemon, name: str, *layers: bytes) -> None:
    archive = images.docker_archive([busybox.layer(), *layers], [name], {"Cmd": ["sh"]})
    answer = daemon.api("POST", "/images/load?quiet=1", archive, {"Content-Type": "application/x-tar"})
    assert b"error" not in answer.body, answer.body


def test_a_tmpfs_volume_is_unmounted_after_its_last_user(box: Daemon) -> None:
    box.out("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "mem")
    ids = [box.out("run", "-d", *NET, "-v", "mem:/m", busybox.NAME, "sleep", "1000") for _ in range(2)]
    assert len(mounted(box)) == 1
    box.out("rm", "-f", ids[0])
    assert run(box, "-v", "mem:/m", command="touch /m/x") == ""
    assert len(mounted(box)) == 1
    box.out("exec", ids[1], "ls", "/m/x")
    box.out("rm", "-f", ids[1])
    eventually(lambda: not mounted(box))


def test_a_start_that_fails_leaves_nothing_mounted(box: Daemon) -> None:
    box.out("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "mem")
    failed = box.docker("run", "--rm", *NET, "-v", "mem:/m", busybox.NAME, "/no/such/program", check=False)
    assert failed.returncode == 127
    eventually(lambda: not mounted(box))


def test_what_is_mounted_is_taken_over_by_the_next_daemon(own_daemon: Callable[..., Daemon]) -> None:
    daemon = own_daemon().start()
    busybox.load(daemon)
    daemon.out("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "mem")
    id = daemon.out("run", "-d", *NET, "-v", "mem:/m", busybox.NAME, "sh", "-c", "echo kept > /m/f; exec sleep 1000")
    eventually(lambda: daemon.docker("exec", id, "test", "-s", "/m/f", check=False).returncode == 0)
    daemon.restart()
    assert len(mounted(daemon)) == 1
    assert run(daemon, "-v", "mem:/m", command="cat /m/f") == "kept"
    assert daemon.api("DELETE", "/volumes/mem").status == 409
    daemon.out("rm", "-f", id)
    eventually(lambda: not mounted(daemon))
    assert daemon.api("DELETE", "/volumes/mem").status == 204


def test_nothing_stays_mounted_for_who_ended_while_there_was_no_daemon(own_daemon: Callable[..., Daemon]) -> None:
    daemon = own_daemon().start()
    busybox.load(daemon)
    daemon.out("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "mem")
    id = daemon.out("run", "-d", *NET, "-v", "mem:/m", "-v", "plain:/p", busybox.NAME, "sleep", "1000")
    pid = daemon.api("GET", f"/containers/{id}/json").json()["State"]["Pid"]
    daemon.kill()
    os.kill(pid, 9)
    daemon.start()
    eventually(lambda: not mounted(daemon))
    assert daemon.api("DELETE", "/volumes/plain").status == 409
    daemon.out("rm", id)
    assert daemon.api("DELETE", "/volumes/plain").status == 204


def test_volumes_and_their_users_survive_a_kill(own_daemon: Callable[..., Daemon]) -> None:
    daemon = own_daemon().start()
    busybox.load(daemon)
    daemon.out("volume", "create", "--label", "a=b", "named")
    id = daemon.out("create", *NET, "-v", "named:/a", "-v", "/anon", busybox.NAME, "true")
    before = daemon.api("GET", "/volumes").json()
    mounts = daemon.api("GET", f"/containers/{id}/json").json()["Mounts"]
    daemon.restart()
    assert daemon.api("GET", "/volumes").json() == before
    assert daemon.api("GET", f"/containers/{id}/json").json()["Mounts"] == mounts
    daemon.out("start", id)
    daemon.out("rm", "-fv", id)
    assert [volume["Name"] for volume in daemon.api("GET", "/volumes").json()["Volumes"]] == ["named"]


def test_a_volume_whose_removal_was_cut_off_is_gone(own_daemon: Callable[..., Daemon]) -> None:
    daemon = own_daemon().start()
    daemon.out("volume", "create", "v1")
    for number in range(2000):
        (daemon.data_root / f"volumes/v1/_data/f{number}").touch()
    daemon.out("volume", "rm", "v1")
    daemon.restart()
    assert daemon.api("GET", "/volumes").json()["Volumes"] == []
    eventually(lambda: not os.listdir(daemon.data_root / "volumes"))


def test_the_loss_of_the_database_loses_no_volume(own_daemon: Callable[..., Daemon]) -> None:
    daemon = own_daemon().start()
    busybox.load(daemon)
    run(daemon, "-v", "precious:/a", command="echo data > /a/f")
    daemon.kill()
    for path in daemon.data_root.glob("meta.db*"):
        path.unlink()
    daemon.start()
    busybox.load(daemon)
    assert run(daemon, "-v", "precious:/a", command="cat /a/f") == "data"
    assert "precious" in daemon.log_tail()


def test_a_removal_never_reaches_into_another_file_system(box: Daemon, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("precious")
    box.out("volume", "create", "v1")
    place = box.data_root / "volumes/v1/_data"
    subprocess.run(["mount", "--bind", tmp_path, place], check=True)
    box.out("volume", "rm", "v1")
    eventually(lambda: not mounted(box))
    assert (tmp_path / "f").read_text() == "precious"


def test_a_link_in_a_volume_leads_no_subpath_out_of_it(box: Daemon, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    run(
        box,
        "-v",
        "part:/p",
        command=f"mkdir /p/in /p/in/deep; ln -s {tmp_path} /p/out; ln -s in/deep /p/alias; echo x > /p/in/deep/f; ln -s / /p/root",
    )
    assert run(box, "--mount", "type=volume,src=part,dst=/q,volume-subpath=alias", command="cat /q/f") == "x"
    for path in ("out", "out/secret", "root/etc", "in/../out"):
        failed = box.docker(
            "run", "--rm", *NET, "--mount", f"type=volume,src=part,dst=/q,volume-subpath={path}", busybox.NAME, "ls", "/q", check=False
        )
        assert failed.returncode == 125, path
        assert b"leads out of the volume" in failed.stderr
        assert b"secret\n" not in failed.stdout
    assert box.api("DELETE", "/volumes/part").status == 204


def test_an_image_is_mounted_read_only_and_kept(box: Daemon) -> None:
    entry, folder = images.entry, tarfile.DIRTYPE
    first = [entry("opt", folder), entry("opt/a", data=b"a"), entry("opt/b", data=b"b"), entry("opt/sub", folder)]
    second = [entry("opt", folder), entry("opt/.wh.b"), entry("opt/c", data=b"c"), entry("ln", tarfile.SYMTYPE, linkname="/opt")]
    load(box, "tools:latest", images.tar(first), images.tar(second))
    assert run(box, "--mount", "type=image,src=tools,dst=/i", command="ls /i/opt; touch /i/x 2>&1 || true") == (
        "a\nc\nsub\ntouch: /i/x: Read-only file system"
    )
    for path in ("opt", "ln"):
        command = "ls /i; touch /i/x 2>&1 || true"
        found = run(box, "--mount", f"type=image,src=tools,dst=/i,image-subpath={path}", command=command)
        assert found == "a\nc\nsub\ntouch: /i/x: Read-only file system"
    assert run(box, "--mount", "type=image,src=tools,dst=/i,image-subpath=opt/a", command="cat /i") == "a"
    failed = box.docker("create", *NET, "--mount", "type=image,src=tools,dst=/i,image-subpath=opt/b", busybox.NAME, check=False)
    assert b"it has no 'opt/b'" in failed.stderr
    id = box.out("create", *NET, "--mount", "type=image,src=tools,dst=/i", busybox.NAME, "cat", "/i/opt/a")
    for force in ("", "-f"):
        removed = box.docker("rmi", *filter(None, [force]), box.out("images", "-q", "tools"), check=False)
        assert removed.returncode == 1
        assert b"conflict" in removed.stderr
    box.out("image", "prune", "-af")
    assert box.out("start", "-a", id) == "a"
    box.out("rm", id)
    box.out("rmi", "tools")
    assert box.docker("create", *NET, "--mount", "type=image,src=tools,dst=/i", busybox.NAME, check=False).returncode != 0


def test_propagation_of_a_bind(box: Daemon, tmp_path: Path) -> None:
    private = box.docker("run", "--rm", *NET, "-v", f"{tmp_path}:/p:rshared", busybox.NAME, "true", check=False)
    assert b"but it is not a shared mount" in private.stderr
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True)
    try:
        subprocess.run(["mount", "--make-shared", tmp_path], check=True)
        (tmp_path / "inner").mkdir()
        look = ("sh", "-c", "until [ -e /p/go ]; do sleep 0.01; done; ls /p/inner")
        ids = {
            mode: box.out("run", "-d", *NET, "-v", f"{tmp_path}:/p:{mode}", busybox.NAME, *look)
            for mode in ("rslave", "rshared", "rprivate")
        }
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path / "inner"], check=True)
        (tmp_path / "inner/seen").touch()
        (tmp_path / "go").touch()
        found = {}
        for mode, id in ids.items():
            box.out("wait", id)
            found[mode] = box.out("logs", id)
        assert found == {"rslave": "seen", "rshared": "seen", "rprivate": ""}
    finally:
        subprocess.run(["umount", "-R", "-l", tmp_path], check=True)


def test_two_creates_of_one_new_volume_at_once(box: Daemon) -> None:
    clients = [box.docker_popen("run", "--rm", *NET, "-v", "race:/r", busybox.NAME, "sh", "-c", f"echo {n} > /r/{n}") for n in range(8)]
    assert [client.wait(120) for client in clients] == [0] * 8
    assert run(box, "-v", "race:/r", command="ls /r").split() == [str(n) for n in range(8)]


def test_two_creates_of_one_new_volume_with_files_at_once(box: Daemon) -> None:
    files = [images.entry(f"data/f{number}", data=b"x" * 1000) for number in range(300)]
    load(box, "many:latest", images.tar([images.entry("data", tarfile.DIRTYPE), *files]))
    look = "ls /data | wc -l; touch /data/mine$$; test -e /data/mine$$ && cat /data/f299 | wc -c"
    for attempt in range(3):
        options = ([], ["-v", f"filled{attempt}:/elsewhere"])
        clients = [
            box.docker_popen("run", "--rm", *NET, "-v", f"filled{attempt}:/data", *options[n == 5], "many", "sh", "-c", look)
            for n in range(6)
        ]
        for client in clients:
            lines = client.communicate(timeout=120)[0].split()
            assert int(lines[0]) >= 300
            assert lines[1] == b"1000"
    box.out("rmi", "many")


def test_an_image_that_links_out_of_itself_fills_no_volume_with_the_host(box: Daemon, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret")
    entry, link = images.entry, tarfile.SYMTYPE
    climbing = [entry("data", link, linkname="../../../../../.." + str(tmp_path)), entry("etc2", link, linkname=str(tmp_path))]
    inside = [entry("ok", tarfile.DIRTYPE), entry("ok/l", link, linkname=str(tmp_path / "key"))]
    load(box, "evil:latest", images.tar([*climbing, *inside]))
    for place in ("/data", "/etc2"):
        assert run(box, "--mount", f"type=volume,dst={place}", image="evil", command=f"ls -A {place}/") == ""
    run(box, "-v", "evil1:/ok", image="evil")
    assert os.path.islink(box.data_root / "volumes/evil1/_data/l")
    box.out("rmi", "evil")
