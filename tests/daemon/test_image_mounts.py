"""Mounts of images that show other owners than their layers have: files of several layers, parts, what is left, and what is refused."""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.linux import mounts
from tests.daemon.test_cli import Knarr
from tests.lib import busybox, images
from tests.lib.daemon import Daemon

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
NET = ("--network", "none")
MAP = "idmap=uids=0-1000-1#5-1005-10;gids=0-2000-1"


def load(daemon: Daemon, name: str, *layers: bytes) -> None:
    archive = images.docker_archive(list(layers), [name], {"Cmd": ["sh"]})
    answer = daemon.api("POST", "/images/load?quiet=1", archive, {"Content-Type": "application/x-tar"})
    assert b"error" not in answer.body, answer.body


@pytest.fixture
def box(daemon: Daemon) -> Iterator[Daemon]:
    """With an image `tools` of two layers: one replaces a file of the other and hides another."""
    folder, entry = tarfile.DIRTYPE, images.entry
    first = [
        entry("opt", folder, uid=6), entry("opt/a", data=b"a", uid=6, gid=0), entry("opt/b", data=b"b"), entry("opt/gone", data=b""),
        entry("opt/other", data=b"", uid=300, gid=300), entry("opt/su", data=b"", mode=0o4755), entry("one", folder, uid=7),
        entry("one/file", data=b"x", uid=8), entry("a,b:c\\d", folder), entry("a,b:c\\d/f", data=b"1"),
    ]  # fmt: skip
    second = [
        entry("opt", folder, uid=6), entry("opt/b", data=b"B", uid=9), entry("opt/.wh.gone"), entry("a,b:c\\d", folder, uid=9),
        entry("a,b:c\\d/g", data=b"2"),
    ]  # fmt: skip
    load(daemon, "tools:latest", images.tar(first), images.tar(second))
    yield daemon
    daemon.remove_all()
    daemon.out("rmi", "tools")


def out(box: Daemon, *arguments: str) -> str:
    """Knarr's own client: Docker's refuses keys of --mount that it does not know."""
    return Knarr(box).out(*arguments)


def run(box: Daemon, *options: str, command: str) -> str:
    return out(box, "run", "--rm", *NET, *options, busybox.NAME, "sh", "-c", command)


def owners(box: Daemon, mount: str, place: str = "/i") -> dict[str, str]:
    lines = run(box, "--mount", mount, command=f"cd {place} && stat -c '%n %u:%g' . *").splitlines()
    return dict(line.rsplit(" ", 1) for line in lines)


def test_owners_of_files_of_several_layers(box: Daemon) -> None:
    shown = owners(box, f"type=image,source=tools,target=/i,{MAP}", "/i/opt")
    assert shown == {".": "1006:2000", "a": "1006:2000", "b": "1009:2000", "other": "65534:65534", "su": "1000:2000"}
    assert owners(box, "type=image,source=tools,target=/i", "/i/opt")["a"] == "6:0"


def test_what_is_mounted_beside_it_is_as_it_was(box: Daemon) -> None:
    """The same layers are the container's own root and are mounted twice more: only one mount shows other owners."""
    load(box, "whole:latest", busybox.layer())
    wanted = [f"type=image,source={name},target=/{place}{more}" for name, place, more in (
        ("whole", "before", ""), ("whole", "mapped", f",{MAP}"), ("whole", "other", ",idmap=b:0:7:1"), ("whole", "zafter", ""),
    )]  # fmt: skip
    options = [word for mount in wanted for word in ("--mount", mount)]
    try:
        command = (
            "stat -c %u:%g /before/bin /mapped/bin /other/bin /zafter/bin /bin; grep -c overlay /proc/self/mounts; cat /mapped/etc/group"
        )
        said = out(box, "run", "--rm", *NET, *options, "whole", "sh", "-c", command).splitlines()
        assert said[:6] == ["0:0", "1000:2000", "7:7", "0:0", "0:0", "5"]
        assert said[6] == "root:x:0:"
    finally:
        box.out("rmi", "whole")


def test_parts_of_an_image(box: Daemon) -> None:
    """A folder of several layers is an overlay, one of one layer and a file are binds."""
    image = f"type=image,source=tools,target=/i,{MAP},image-subpath="
    assert owners(box, image + "opt")["a"] == "1006:2000"
    assert owners(box, image + "one") == {".": "1007:2000", "file": "1008:2000"}
    assert run(box, "--mount", image + "one/file", command="stat -c %u:%g /i; cat /i") == "1008:2000\nx"
    odd = f'type=image,source=tools,target=/i,{MAP},"image-subpath=a,b:c\\d"'
    assert owners(box, odd) == {".": "1009:2000", "f": "1000:2000", "g": "1000:2000"}


def test_it_is_read_only_and_gives_nobody_privileges(box: Daemon) -> None:
    mount = f"type=image,source=tools,target=/i,{MAP}"
    words = run(box, "--mount", mount, command="grep ' /i ' /proc/self/mounts; echo x 2>&1 > /i/opt/a || true").splitlines()
    assert {"ro", "nosuid"} <= set(words[0].split()[3].split(","))
    assert "Read-only file system" in words[1]


def test_an_image_without_layers(box: Daemon) -> None:
    load(box, "nothing:latest")
    try:
        assert run(box, "--mount", f"type=image,source=nothing,target=/i,{MAP}", command="stat -c %u:%g /i") == "1000:2000"
        assert run(box, "--mount", "type=image,source=nothing,target=/i", command="stat -c %u:%g /i") == "0:0"
    finally:
        box.out("rmi", "nothing")


def test_through_the_api_and_after_a_restart(box: Daemon) -> None:
    mount = {"Type": "image", "Source": "tools", "Target": "/i", "UIDMappings": [{"ContainerID": 6, "HostID": 7, "Size": 1}]}
    config = {"Image": busybox.NAME, "Cmd": ["stat", "-c", "%u:%g", "/i/opt/a"], "HostConfig": {"NetworkMode": "none", "Mounts": [mount]}}
    id = box.api("POST", "/containers/create", config).json()["Id"]
    assert box.out("start", "-a", id) == "7:0"
    assert box.api("GET", f"/containers/{id}/json").json()["HostConfig"]["Mounts"] == [mount]
    box.restart()
    assert box.out("start", "-a", id) == "7:0"
    assert box.out("run", "--rm", *NET, "--volumes-from", id, busybox.NAME, "stat", "-c", "%u:%g", "/i/opt/a") == "7:0"


def mounted(place: Path) -> list[str]:
    return [entry.target for entry in mounts.read() if entry.target.startswith(f"{place}/")]


def test_layers_on_a_file_system_that_cannot(tmp_path: Path) -> None:
    """ramfs is one. The error says so, and nothing of the start that fails is left on the host."""
    subprocess.run(["mount", "-t", "ramfs", "none", tmp_path], check=True)
    try:
        (tmp_path / "daemon").mkdir()
        daemon = Daemon(directory=tmp_path / "daemon")
        try:
            daemon.start()
            busybox.load(daemon)
            load(daemon, "tools:latest", images.tar([images.entry("a")]), images.tar([images.entry("b")]))
            id = out(daemon, "create", *NET, "--mount", f"type=image,source=tools,target=/i,{MAP}", busybox.NAME, "true")
            before = mounted(tmp_path)
            failed = daemon.docker("start", "-a", id, check=False)
            assert failed.returncode != 0
            assert b"map owners of 2 layers: invalid argument" in failed.stderr
            assert mounted(tmp_path) == before
            assert daemon.out("run", "--rm", *NET, "--mount", "type=image,source=tools,target=/i", busybox.NAME, "ls", "/i") == "a\nb"
        finally:
            daemon.close()
    finally:
        subprocess.run(["umount", tmp_path], check=True)
