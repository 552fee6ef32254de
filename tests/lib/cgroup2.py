"""A real kernel with cgroup version 2 alone, as an ordinary process: user-mode Linux on this machine's files.

    python -m tests.lib.cgroup2 [-m 1G] [-t SECONDS] -- COMMAND [ARGUMENT ...]

boots Debian's `linux.uml` in about a second, runs COMMAND in the current folder as root and ends with its status; its output is shown as it
comes. Needs root and the packages user-mode-linux, kmod and iproute2.

Differences from the machine: /run is empty and TMPDIR lies in it (an overlay's upper folder must: hostfs keeps no trusted attributes); one
CPU; no swap, no seccomp, no way out to a network. A fork costs 30 ms, plain computation nothing extra. Files written outside /run are
written on the machine.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

KERNEL = "linux.uml"
MODULES = "/usr/lib/uml/modules"
INSIDE = "KNARR_TEST_CGROUP2"  # set for the command, so that a test knows where it runs
_KEPT = ("PATH", "HOME", "LANG", "PYTHONPATH", "VIRTUAL_ENV", "CI")

_INIT = """#!/bin/bash
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=755 run /run; mkdir -m 1777 /run/tmp
mount -t devtmpfs dev /dev; mkdir -p /dev/pts /dev/shm; mount -t devpts -o ptmxmode=666 devpts /dev/pts; mount -t tmpfs shm /dev/shm
mkdir -p /run/kmod/lib/modules; ln -s {modules}/* /run/kmod/lib/modules/
for module in overlay veth bridge; do modprobe -d /run/kmod $module; done
ip link set lo up; hostname cgroup2
export TMPDIR=/run/tmp {inside}=1 PYTHONDONTWRITEBYTECODE=1 {environment}
cd {folder}
{command} > {work}/output 2>&1 < /dev/null; echo $? > {work}/status
sync; echo o > /proc/sysrq-trigger; sleep 10
"""


def missing() -> str:
    """What keeps this from running here, "" for nothing."""
    for program, package in ((KERNEL, "user-mode-linux"), ("modprobe", "kmod"), ("ip", "iproute2")):
        if shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin") is None:
            return f"the package {package} is not installed"
    return "" if os.geteuid() == 0 else "needs root"


def _follow(path: pathlib.Path, ended: threading.Event) -> None:
    with path.open("rb") as file:
        while True:
            last = ended.is_set()
            if piece := file.read():
                sys.stdout.buffer.write(piece)
                sys.stdout.flush()
            elif last:
                return
            else:
                time.sleep(0.05)


def run(command: list[str], *, memory: str = "1G", timeout: float = 900, show: bool = False) -> tuple[int, str]:
    """(status, output) of a command inside; status 125 and the console's end when the kernel stopped before the command did."""
    work = pathlib.Path(tempfile.mkdtemp(prefix="knarr-cgroup2-", dir="/var/tmp"))
    try:
        return _run(work, command, memory, timeout, show)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def start(work: pathlib.Path, command: list[str], *, memory: str = "1G", disk: pathlib.Path | None = None) -> subprocess.Popen[bytes]:
    """Boot, with `work` for the files `output`, `status` and `console`, and `disk` as /dev/ubda. End it with `end`."""
    environment = " ".join(f"{name}={shlex.quote(os.environ[name])}" for name in _KEPT if name in os.environ)
    init = work / "init"
    init.write_text(
        _INIT.format(
            modules=MODULES, inside=INSIDE, environment=environment, folder=shlex.quote(os.getcwd()), work=work, command=shlex.join(command)
        )
    )
    init.chmod(0o755)
    arguments = [f"mem={memory}", "rootfstype=hostfs", "rw", f"init={init}", "con=null", "con0=null", "quiet"]
    if disk is not None:
        arguments.append(f"ubd0={disk}")
    with (work / "console").open("wb") as console:
        return subprocess.Popen([KERNEL, *arguments], stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True)


def _run(work: pathlib.Path, command: list[str], memory: str, timeout: float, show: bool) -> tuple[int, str]:
    output, ended = work / "output", threading.Event()
    output.touch()
    follower = threading.Thread(target=_follow, args=(output, ended))
    if show:
        follower.start()
    kernel = start(work, command, memory=memory)
    try:
        kernel.wait(timeout)
    except subprocess.TimeoutExpired:
        pass
    finally:
        end(kernel)
        ended.set()
        if show:
            follower.join()
    status = work / "status"
    text = output.read_text(errors="replace")
    if status.exists() and status.read_text().strip():
        return int(status.read_text()), text
    console_end = "\n".join((work / "console").read_text(errors="replace").splitlines()[-15:])
    return 125, f"{text}\nthe kernel stopped before the command ended (limit {timeout:.0f} s):\n{console_end}"


def end(kernel: subprocess.Popen[bytes]) -> None:
    """At once, as by a power cut. The kernel's own threads are processes of its session: none may stay."""
    try:
        os.killpg(kernel.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    kernel.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--memory", default="1G")
    parser.add_argument("-t", "--timeout", type=float, default=900)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    if reason := missing():
        print(f"cgroup2: {reason}", file=sys.stderr)
        return 125
    status, text = run(options.command, memory=options.memory, timeout=options.timeout, show=True)
    if status == 125:
        print(text[-2000:], file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
