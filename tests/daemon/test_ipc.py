"""Containers that share memory and message queues: `--ipc shareable` and `--ipc container:NAME`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.lib import busybox
from tests.lib.daemon import Daemon

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
NET = ("--network", "none")
NAMESPACE = ("readlink", "/proc/self/ns/ipc")


@pytest.fixture
def box(daemon: Daemon) -> Iterator[Daemon]:
    yield daemon
    daemon.remove_all()


def start(box: Daemon, name: str, *options: str) -> str:
    return box.out("run", "-d", "--name", name, *NET, *options, busybox.NAME, "sleep", "100000")


def test_memory_and_queues_are_shared(box: Daemon) -> None:
    donor = start(box, "donor", "--ipc", "shareable", "--shm-size", "10m")
    start(box, "guest", "--ipc", "container:donor", "--shm-size", "20m")  # whose size is as the other made it
    assert box.out("exec", "guest", *NAMESPACE) == box.out("exec", "donor", *NAMESPACE) != os.readlink("/proc/self/ns/ipc")
    box.out("exec", "guest", "sh", "-c", "echo hello > /dev/shm/x; mkdir /dev/mqueue/no 2>/dev/null; touch /dev/mqueue/queue")
    assert box.out("exec", "donor", "sh", "-c", "cat /dev/shm/x; ls /dev/mqueue") == "hello\nqueue"
    words = box.out("exec", "guest", "grep", " /dev/shm ", "/proc/self/mounts").split()[3].split(",")
    assert {"rw", "nosuid", "nodev", "noexec", "size=10240k"} <= set(words)
    shown = box.api("GET", f"/containers/{donor}/json").json()["HostConfig"]
    assert (shown["IpcMode"], shown["ShmSize"]) == ("shareable", 10 << 20)
    box.out("rm", "-f", "donor")
    assert box.out("exec", "guest", "cat", "/dev/shm/x") == "hello"  # as long as anybody has them
    failed = box.docker("restart", "-t", "0", "guest", check=False)
    assert f"No such container: {donor}".encode() in failed.stderr


def test_the_guest_is_a_container_of_its_own(box: Daemon) -> None:
    """The way to the other's memory leads through its mounts, and none of those is seen."""
    start(box, "donor", "--ipc", "shareable", "--tmpfs", "/secret")
    script = "ls -d /secret 2>&1; pwd; hostname; cat /proc/1/comm; grep -c . /proc/self/mounts"
    said = box.out("run", "--rm", *NET, "--hostname", "own", "-w", "/tmp", "--ipc", "container:donor", busybox.NAME, "sh", "-c", script)
    plain = box.out("run", "--rm", *NET, busybox.NAME, "grep", "-c", ".", "/proc/self/mounts")
    assert said == f"ls: /secret: No such file or directory\n/tmp\nown\nsh\n{plain}"


def test_a_link_in_the_place_of_the_memory_leads_nowhere(box: Daemon) -> None:
    start(box, "donor", "--ipc", "shareable", "--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined")
    box.out("exec", "donor", "sh", "-c", "umount /dev/shm && rmdir /dev/shm && ln -s /proc/1/root /dev/shm")
    failed = box.docker("run", "--rm", *NET, "--ipc", "container:donor", busybox.NAME, "true", check=False)
    assert failed.returncode == 125
    assert b"bind another container's /dev/shm to /dev/shm: too many levels of symbolic links" in failed.stderr


def test_mounts_of_the_other_stay_its_own(box: Daemon) -> None:
    start(box, "donor", "--ipc", "shareable", "--privileged")
    box.out("exec", "donor", "sh", "-c", "mount --make-shared /dev/shm; mkdir /dev/shm/x")
    start(box, "guest", "--ipc", "container:donor")
    box.out("exec", "--privileged", "donor", "sh", "-c", "mount -t tmpfs tmpfs /dev/shm/x && touch /dev/shm/x/planted")
    assert box.out("exec", "guest", "ls", "-R", "/dev/shm") == "/dev/shm:\nx\n\n/dev/shm/x:"


def test_a_mode_means_the_container_that_had_the_name(box: Daemon) -> None:
    donor = start(box, "donor", "--ipc", "shareable")
    modes = ("--ipc", "container:donor", "--pid", f"container:{donor[:12]}", "--network", "container:donor")
    guest = box.out("run", "-d", "--name", "guest", *modes, busybox.NAME, "sleep", "100000")
    shown = box.api("GET", f"/containers/{guest}/json").json()["HostConfig"]
    assert {shown[f"{kind}Mode"] for kind in ("Ipc", "Pid", "Network")} == {f"container:{donor}"}
    box.out("rename", "donor", "renamed")
    start(box, "donor", "--ipc", "shareable")
    box.out("restart", "-t", "0", "guest")
    assert box.out("exec", "guest", *NAMESPACE) == box.out("exec", "renamed", *NAMESPACE) != box.out("exec", "donor", *NAMESPACE)
    for kind, status in (("Ipc", 400), ("Pid", 400), ("Network", 201)):  # whose network it is may come later
        answer = box.api("POST", "/containers/create", {"Image": busybox.NAME, "HostConfig": {f"{kind}Mode": "container:nobody"}})
        assert answer.status == status
        assert status == 201 or answer.message == "No such container: nobody"


def test_who_cannot_be_joined(box: Daemon) -> None:
    private = start(box, "private")
    ended = box.out("create", "--name", "ended", "--ipc", "shareable", *NET, busybox.NAME, "true")
    for name, status, message in (
        ("private", 400, f"{private}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)"),
        ("ended", 409, f"{ended} is not running"),
    ):
        config = {"Image": busybox.NAME, "HostConfig": {"IpcMode": f"container:{name}", "NetworkMode": "none"}}
        id = box.api("POST", "/containers/create", config).json()["Id"]
        answer = box.api("POST", f"/containers/{id}/start")
        assert (answer.status, answer.message) == (status, f"failed to join IPC namespace: container {message}")
    for mode in ("container:", "container", "shared"):
        answer = box.api("POST", "/containers/create", {"Image": busybox.NAME, "HostConfig": {"IpcMode": mode}})
        assert (answer.status, answer.message) == (400, f"invalid IPC mode: {mode}")


def test_after_restarts_of_all(box: Daemon) -> None:
    start(box, "donor", "--ipc", "shareable")
    start(box, "guest", "--ipc", "container:donor", "--sysctl", "kernel.shmmax=1000000")
    box.restart()
    for name in ("donor", "guest"):
        box.out("restart", "-t", "0", name)
    assert box.out("exec", "guest", *NAMESPACE) == box.out("exec", "donor", *NAMESPACE)
    assert box.out("exec", "donor", "cat", "/proc/sys/kernel/shmmax") == "1000000"
