"""A container without an engine: a busybox root file system, a spec made by hand, its plan launched by the core."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine import _core
from engine.errors import LaunchError
from engine.linux.cgroups_types import Placement
from engine.runtime import ops, plan
from engine.spec.mount import Mount
from engine.spec.runtime import VERSION, Capabilities, Linux, Namespace, Process, Root, Spec, User

PATH = "PATH=/usr/bin:/bin"
NAMESPACES = tuple(Namespace(type=name) for name in ("mount", "pid", "network", "ipc", "uts", "cgroup"))
MOUNTS = (
    Mount(destination="/proc", type="proc", source="proc", options=("nosuid", "noexec", "nodev")),
    Mount(destination="/dev", type="tmpfs", source="tmpfs", options=("nosuid", "strictatime", "mode=755", "size=65536k")),
    Mount(destination="/dev/pts", type="devpts", source="devpts", options=("nosuid", "noexec", "newinstance", "ptmxmode=0666", "gid=5")),
    Mount(destination="/sys", type="sysfs", source="sysfs", options=("nosuid", "noexec", "nodev", "ro")),
)
APPLETS = (
    "sh cat ls id ps true false sleep grep mount umount touch mkdir stat tty stty env readlink test kill head yes ip hostname wc echo rm"
)


@dataclass
class Result:
    """What a process printed, and how it ended (as os.waitstatus_to_exitcode says it)."""

    code: int
    out: str
    err: str
    trace: list[tuple[int, int, int]]

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class Running:
    """A launched process; its streams are pipes, read by `wait`."""

    def __init__(self, pid: int, pidfd: int, trace: list[tuple[int, int, int]], out: int, err: int) -> None:
        self.pid, self.pidfd, self.trace, self._streams = pid, pidfd, trace, (out, err)

    def wait(self) -> Result:
        texts = []
        for fd in self._streams:  # no test writes more than a pipe holds to its errors
            with open(fd, encoding="utf-8", errors="replace") as file:
                texts.append(file.read())
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        return Result(os.waitstatus_to_exitcode(status), texts[0], texts[1], self.trace)


def launch(steps: tuple[ops.Op, ...], stdio: tuple[int, int, int] | None = None) -> Running:
    """Start a plan. Raises LaunchError as the engine would show it."""
    out, out_end = os.pipe()
    err, err_end = os.pipe()
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    try:
        pid, pidfd, trace = _core.launch(ops.encode(steps), stdio or (null, out_end, err_end))
    except _core.LaunchFailed as error:
        os.close(out)
        os.close(err)
        raise plan.explain(steps, error.index, error.errno or 0) from None
    finally:
        for fd in (null, out_end, err_end):
            os.close(fd)
    return Running(pid, pidfd, trace, out, err)


class Box:
    """A scratch folder with lower layer, upper layer and mount point; `spec` makes specs, `run` runs them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lower, self.upper, self.files = folder / "lower", folder / "upper", folder / "files"
        for path in (self.lower / "bin", self.lower / "etc", self.upper, folder / "work", folder / "mnt", self.files):
            path.mkdir(parents=True)
        shutil.copy("/bin/busybox", self.lower / "bin/busybox")
        for name in APPLETS.split():
            (self.lower / "bin" / name).symlink_to("busybox")
        (self.lower / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n")
        self.rootfs = [
            Mount(type="overlay", source="overlay", options=("lowerdir=lower", "upperdir=upper", "workdir=work"), base=str(folder))
        ]

    def spec(
        self, *args: str, linux: dict[str, Any] | None = None, mounts: tuple[Mount, ...] = (), readonly: bool = False, hostname: str = "",
        **process: Any,
    ) -> Spec:  # fmt: skip
        base = {"user": User(uid=0, gid=0), "cwd": "/", "env": (PATH,), "capabilities": Capabilities()}
        return Spec(
            oci_version=VERSION,
            hostname=hostname,
            root=Root(path="rootfs", readonly=readonly),
            process=Process(**{**base, **process, "args": args}),
            mounts=MOUNTS + mounts,
            linux=msgspec.structs.replace(Linux(namespaces=NAMESPACES), **(linux or {})),
        )

    def plan(
        self, spec: Spec, *, tty: bool = False, placement: Placement | None = None, seccomp: bytes | None = None
    ) -> tuple[ops.Op, ...]:
        return plan.container_plan(
            spec, rootfs=self.rootfs, mountpoint=str(self.folder / "mnt"), placement=placement or Placement(), seccomp=seccomp, tty=tty
        )

    def run(self, *args: str, placement: Placement | None = None, seccomp: bytes | None = None, **options: Any) -> Result:
        return launch(self.plan(self.spec(*args, **options), placement=placement, seccomp=seccomp)).wait()

    def sh(self, script: str, **options: Any) -> Result:
        return self.run("sh", "-c", script, **options)

    def fails(self, *args: str, **options: Any) -> LaunchError:
        """The error of a launch that must fail."""
        try:
            result = self.run(*args, **options)
        except LaunchError as error:
            return error
        raise AssertionError(f"it ran: {result}")


@contextmanager
def box() -> Iterator[Box]:
    folder = Path(tempfile.mkdtemp(prefix="knarr-test-box-"))
    try:
        yield Box(folder)
    finally:
        shutil.rmtree(folder)
