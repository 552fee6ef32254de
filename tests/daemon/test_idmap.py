"""Mounts that show other owners than their files have: what a container sees, what its files are owned by outside, and what is refused."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon.test_cli import Knarr
from tests.lib import busybox, leaks
from tests.lib.daemon import Daemon

NET = ("--network", "none")
NOBODY = 65534
MAP = "idmap=uids=0-1000-1#5-1005-10;gids=0-2000-1"


@pytest.fixture
def knarr(daemon: Daemon) -> Iterator[Knarr]:
    yield Knarr(daemon)
    daemon.remove_all()
    for volume in daemon.api("GET", "/volumes").json()["Volumes"]:
        assert daemon.api("DELETE", f"/volumes/{volume['Name']}").status == 204


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of several owners in a folder that everybody may write to."""
    made = tmp_path / "folder"
    made.mkdir()
    made.chmod(0o777)
    for name, uid, gid in (("root", 0, 0), ("six", 6, 0), ("other", 300, 300)):
        (made / name).write_text(name)
        os.chown(made / name, uid, gid)
    return made


def run(knarr: Knarr, *arguments: str, command: str) -> str:
    return knarr.out("run", "--rm", *NET, *arguments, "busybox", "sh", "-c", command)


def refused(knarr: Knarr, *arguments: str, code: int = 125) -> str:
    result = knarr(*arguments, check=False)
    assert result.returncode == code, result
    return result.stderr.decode()


def owners(knarr: Knarr, *arguments: str, path: str = "/m") -> dict[str, tuple[int, int]]:
    lines = run(knarr, *arguments, command=f"cd {path} && stat -c '%n %u %g' *").splitlines()
    return {name: (int(uid), int(gid)) for name, uid, gid in map(str.split, lines)}


def outside(path: Path) -> tuple[int, int]:
    info = path.stat()
    return info.st_uid, info.st_gid


def namespaces(daemon: Daemon) -> int:
    """User namespaces that the daemon has descriptors of."""
    links = [leaks.link(entry.path) for entry in os.scandir(f"/proc/{daemon.pid}/fd")]  # descriptors come and go meanwhile
    return sum(link.startswith("user:") for link in links)


def test_owners_are_others_inside_and_outside(knarr: Knarr, folder: Path) -> None:
    mount = ("--mount", f"type=bind,source={folder},target=/m,{MAP}")
    assert owners(knarr, *mount) == {"root": (1000, 2000), "six": (1006, 2000), "other": (NOBODY, NOBODY)}
    run(knarr, *mount, "--user", "1000:2000", command="touch /m/new; mkdir /m/sub; echo more >> /m/root; rm /m/six")
    assert outside(folder / "new") == outside(folder / "sub") == (0, 0)
    assert (folder / "root").read_text() == "rootmore\n"
    assert not (folder / "six").exists()
    assert outside(folder) == (0, 0)


def test_the_other_way_of_writing_it_and_one_kind_of_id_alone(knarr: Knarr, folder: Path) -> None:
    both = ("--mount", f"type=bind,source={folder},target=/m,idmap=b:0:1000:1 u:300:7:1")
    assert owners(knarr, *both) == {"root": (1000, 1000), "six": (NOBODY, 1000), "other": (7, NOBODY)}
    users = ("--mount", f"type=bind,source={folder},target=/m,idmap=uids=0-1000-1")
    assert owners(knarr, *users) == {"root": (1000, 0), "six": (NOBODY, 0), "other": (NOBODY, 300)}


def test_who_is_not_in_the_mapping_gets_less_not_more(knarr: Knarr, folder: Path) -> None:
    """Root in the container is nobody there: it cannot make files, nor change those of owners that the mapping leaves out."""
    mount = ("--mount", f"type=bind,source={folder},target=/m,{MAP}")
    words = ("touch mine", "chown 0 other", "chmod 777 other", "chown 0 root")
    said = run(knarr, *mount, command="cd /m; " + "; ".join(f"{word} 2>/dev/null || echo no {word}" for word in words))
    assert said.splitlines() == [f"no {word}" for word in words]
    assert not (folder / "mine").exists()
    assert (outside(folder / "other"), outside(folder / "root")) == ((300, 300), (0, 0))
    os.chmod(folder / "root", 0o600)
    assert "Permission denied" in refused(knarr, "run", "--rm", *NET, *mount, "--user", "1001", "busybox", "cat", "/m/root", code=1)


def test_the_container_is_in_the_namespace_it_would_be_in_without(knarr: Knarr, folder: Path) -> None:
    mount = ("--mount", f"type=bind,source={folder},target=/m,{MAP}")
    said = run(knarr, *mount, command="readlink /proc/self/ns/user; ls -l /proc/self/fd")
    assert said.splitlines()[0] == os.readlink("/proc/self/ns/user")
    assert said.count("user:") == 1


def tells_its_user() -> bytes:
    """A program that exits with its effective user id: geteuid(2) and exit(2) behind the smallest ELF head."""
    code = bytes.fromhex("b86b0000000f0589c7b83c0000000f05")
    at = 0x400000
    head = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, at + 120, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, at, at, 120 + len(code), 120 + len(code), 4096)
    return head + segment + code


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="a program in machine code")
def test_who_owns_a_file_makes_no_program_of_who_is_shown(knarr: Knarr, folder: Path) -> None:
    program = folder / "program"
    program.write_bytes(tells_its_user())
    os.chown(program, 6, 6)
    program.chmod(0o6755)
    mount = f"type=bind,source={folder},target=/m"
    say = ("--user", "77", "busybox", "/m/program")
    assert knarr("run", "--rm", *NET, "--mount", mount, *say, check=False).returncode == 6
    assert knarr("run", "--rm", *NET, "--mount", mount + ",idmap=b:6:0:1", *say, check=False).returncode == 77


def test_read_only(knarr: Knarr, folder: Path) -> None:
    mount = ("--mount", f"type=bind,source={folder},target=/m,readonly,{MAP}")
    assert owners(knarr, *mount)["root"] == (1000, 2000)
    assert "Read-only" in run(knarr, *mount, "--user", "1000:2000", command="touch /m/new 2>&1 || true")
    assert not (folder / "new").exists()


def test_what_is_mounted_below(knarr: Knarr, folder: Path) -> None:
    """It is mapped too, unless it is not shown at all, and stays read-only if it was."""
    (folder / "below").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(folder / "below")], check=True)
    try:
        (folder / "below/file").touch()
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder / "below")], check=True)
        mount = f"type=bind,source={folder},target=/m,{MAP}"
        assert owners(knarr, "--mount", mount, path="/m/below") == {"file": (1000, 2000)}
        assert "file" not in run(knarr, "--mount", mount + ",bind-recursive=disabled", command="ls /m/below")
        table = {
            words[4]: words[5].split(",")
            for words in map(str.split, run(knarr, "--mount", mount, command="cat /proc/self/mountinfo").splitlines())
        }
        assert {"rw", "nosuid", "idmapped"} <= set(table["/m"])
        assert {"ro", "nosuid", "idmapped"} <= set(table["/m/below"])
    finally:
        subprocess.run(["umount", str(folder / "below")], check=True)


def test_a_file_system_that_cannot_is_named(knarr: Knarr, folder: Path) -> None:
    said = refused(knarr, "run", *NET, "--name", "cannot", "--mount", f"type=bind,source=/proc/sys,target=/m,{MAP}", "busybox", "true")
    assert "bind /proc/sys to /m with owners mapped" in said and "cannot show other owners" in said
    assert knarr.out("inspect", "-f", "{{.State.Status}}", "cannot") == "created"


def test_volumes(knarr: Knarr, daemon: Daemon) -> None:
    mount = ("--mount", "type=volume,source=data,target=/m,idmap=uids=0-1000-1;gids=0-1000-1")
    run(knarr, *mount, "--user", "1000:1000", command="mkdir /m/part; echo hello > /m/part/file")
    file = Path(daemon.data_root / "volumes/data/_data/part/file")
    assert outside(file) == (0, 0)
    assert run(knarr, "-v", "data:/plain", command="stat -c %u:%g /plain/part/file") == "0:0"
    part = ("--mount", "type=volume,source=data,target=/m,volume-subpath=part,idmap=uids=0-1000-1;gids=0-1000-1")
    assert owners(knarr, *part) == {"file": (1000, 1000)}


def test_volumes_from_takes_the_mapping_over(knarr: Knarr, folder: Path) -> None:
    knarr("create", "--name", "first", *NET, "--mount", f"type=bind,source={folder},target=/m,{MAP}", "busybox", "true")
    assert owners(knarr, "--volumes-from", "first:ro")["six"] == (1006, 2000)


def test_through_the_api(knarr: Knarr, daemon: Daemon, folder: Path) -> None:
    mount = {"Type": "bind", "Source": str(folder), "Target": "/m", "UIDMappings": [{"ContainerID": 0, "HostID": 7, "Size": 1}]}
    config = {"Image": busybox.NAME, "Cmd": ["stat", "-c", "%u:%g", "/m/root"], "HostConfig": {"NetworkMode": "none", "Mounts": [mount]}}
    id = daemon.api("POST", "/containers/create", config).json()["Id"]
    assert knarr.out("start", "-a", id) == "7:0"
    assert daemon.api("GET", f"/containers/{id}/json").json()["HostConfig"]["Mounts"] == [mount]
    for ranges in ([{"ContainerID": 0, "HostID": 0, "Size": 0}], [{"ContainerID": 0, "HostID": 1, "Size": 1 << 32}]):
        mount["UIDMappings"] = ranges
        assert daemon.api("POST", "/containers/create", config).status == 400


@pytest.mark.parametrize(
    ("mount", "message"),
    [
        ("type=bind,source=/tmp,target=/m,idmap", "idmap without ids"),
        ("type=bind,source=/tmp,target=/m,idmap=uids=0-1", "invalid value for idmap"),
        ("type=tmpfs,target=/m,idmap=uids=0-1-1", "cannot use 'idmap' with mount type 'tmpfs'"),
        ("type=bind,source=/tmp,target=/m,idmap=uids=0-1-5#4-9-1", "the id 4 of files is in two ranges"),
        ("type=bind,source=/tmp,target=/m,idmap=uids=0-1-5#7-5-1", "the id 5 of the host is in two ranges"),
    ],
)
def test_what_makes_no_sense_is_refused(knarr: Knarr, mount: str, message: str) -> None:
    assert message in refused(knarr, "run", *NET, "--mount", mount, "busybox")


def test_a_mapping_is_made_once_and_goes_with_the_daemon(own_daemon: Callable[..., Daemon], folder: Path) -> None:
    daemon = own_daemon().start()
    busybox.load(daemon)
    knarr = Knarr(daemon)
    mount = f"type=bind,source={folder},target=/m,{MAP}"
    knarr("create", "--name", "later", *NET, "--mount", mount, "busybox", "stat", "-c", "%u:%g", "/m/root")
    knarr("run", "-d", "--name", "runs", *NET, "--mount", mount, "busybox", "sleep", "1000")
    assert namespaces(daemon) == 1
    daemon.restart()
    assert knarr.out("exec", "runs", "stat", "-c", "%u:%g", "/m/root") == "1000:2000"
    assert namespaces(daemon) == 0
    assert knarr.out("start", "-a", "later") == "1000:2000"
    knarr("restart", "-t", "0", "runs")
    assert knarr.out("exec", "runs", "stat", "-c", "%u:%g", "/m/root") == "1000:2000"
    assert namespaces(daemon) == 1
    assert json.loads(knarr.out("inspect", "runs"))[0]["HostConfig"]["Mounts"][0]["GIDMappings"] == [
        {"ContainerID": 0, "HostID": 2000, "Size": 1}
    ]
