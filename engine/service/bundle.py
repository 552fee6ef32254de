"""The volatile folder of a container: the files that are bound over /etc/hosts, /etc/hostname and /etc/resolv.conf, and the plan's inputs.

Owns `bundles/<id>/`. It lies on a tmpfs and is made again after a reboot. What the files say is the business of `service.hostfiles`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil

import msgspec

from engine.errors import KnarrError
from engine.service import hostfiles
from engine.spec.mount import Mount
from engine.spec.network import Sandbox

log = logging.getLogger("knarr.bundles")

_FILES = ("hosts", "hostname", "resolv.conf", "network.json", "exit.json")
_BIND = ("rbind", "rprivate")
_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Sandbox)


def make(folder: str, hosts: str, hostname: str, resolv_conf: str) -> None:
    """Make the folder and its files; one that is there is kept and its files are written anew. Raises OSError."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o710)
    try:
        _write(f"{folder}/hosts", hosts)
        _write(f"{folder}/hostname", hostname + "\n")
        _write(f"{folder}/resolv.conf", resolv_conf)
    except OSError:
        remove(folder)  # a start takes a folder that is there for a whole one
        raise


def rewrite(folder: str, name: str, text: str) -> None:
    """Write one of the files anew, in place: a running container has it mounted, and keeps the old text if it holds a lease on it, which
    would hold us up for 45 s (fcntl(2), "Leases"). Raises OSError."""
    try:
        _write(f"{folder}/{name}", text)
    except BlockingIOError:
        log.warning("container %s: a process holds a lease on its /etc/%s, which stays as it is", os.path.basename(folder)[:12], name)


def write_network(folder: str, sandbox: Sandbox, *, running: bool) -> None:
    """Keep what a container has of the network; of a `running` one the new text replaces the old whole or not at all. Raises OSError."""
    text = _ENCODER.encode(sandbox).decode()
    if not running:
        _write(f"{folder}/network.json", text)
        return
    _write(f"{folder}/.network.json", text)
    os.rename(f"{folder}/.network.json", f"{folder}/network.json")


def read_network(folder: str) -> Sandbox | None:
    """What `write_network` kept; None when there is nothing. Raises KnarrError when it cannot be read."""
    raw = hostfiles.read(f"{folder}/network.json")
    if not raw:
        return None
    try:
        return _DECODER.decode(raw)
    except msgspec.DecodeError as error:
        raise KnarrError(f"reading {folder}/network.json: {error}") from error


def cgroup(folder: str) -> str:
    """The control group that a bundle's container has, if it is not at the usual place; "" otherwise."""
    return hostfiles.read(f"{folder}/cgroup")


def note_cgroup(folder: str, path: str) -> None:
    """Remember a control group at an unusual place (--cgroup-parent), for the sweep after a crash."""
    _write(f"{folder}/cgroup", path)


def binds(folder: str, *, readonly: bool = False) -> tuple[Mount, ...]:
    """The mounts of these files; `readonly` for a container whose root is."""
    options = (*_BIND, "ro") if readonly else _BIND
    return tuple(
        Mount(destination=f"/etc/{name}", type="bind", source=f"{folder}/{name}", options=options)
        for name in ("resolv.conf", "hostname", "hosts")
    )


def forget_run(folder: str) -> None:
    """Remove what the last run left: its exit record and socket. Before the next start, and after its end was stored."""
    for name in ("exit.json", "monitor.sock"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{folder}/{name}")


def remove(folder: str) -> None:
    """Remove the folder with everything in it; one that is not there is fine. Raises OSError."""
    try:
        # Nearly always just these; shutil.rmtree takes three times as long to find out.
        for name in _FILES:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{folder}/{name}")
        os.rmdir(folder)
    except FileNotFoundError:
        return
    except OSError:
        shutil.rmtree(folder)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    try:
        left = memoryview(text.encode("utf-8", "surrogateescape"))
        while left:
            left = left[os.write(fd, left) :]
    finally:
        os.close(fd)
