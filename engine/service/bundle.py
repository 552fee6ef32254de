"""The volatile folder of a container: the files that are bound over /etc/hosts, /etc/hostname and /etc/resolv.conf, and the plan's inputs.

Owns `bundles/<id>/`. It lies on a tmpfs and is made again after a reboot. Contents follow Docker's for the networks none and host.
"""

from __future__ import annotations

import contextlib
import os
import shutil

from engine.errors import InvalidParameter
from engine.spec.docker.containers import HostConfig
from engine.spec.mount import Mount

HOSTS = """127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""
_FILES = ("hosts", "hostname", "resolv.conf", "exit.json")
_BIND = ("rbind", "rprivate")


def hosts_file(hc: HostConfig) -> str:
    """Text of /etc/hosts. Raises InvalidParameter for a malformed --add-host."""
    text = _read("/etc/hosts") if hc.network_mode == "host" else HOSTS
    for entry in hc.extra_hosts or ():
        name, separator, address = entry.partition(":")
        if not separator or not name or not address or "\n" in entry:
            raise InvalidParameter(f"bad format for add-host: '{entry}'")
        if address == "host-gateway":
            raise InvalidParameter("unable to derive the IP value for host-gateway: this version has no bridge network")
        text += f"{address}\t{name}\n"
    return text


def make(folder: str, hc: HostConfig, hostname: str) -> None:
    """Make the folder and its files; one that is there is kept and its files are written anew. Raises OSError, InvalidParameter."""
    hosts = hosts_file(hc)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o710)
    try:
        _write(f"{folder}/hosts", hosts)
        _write(f"{folder}/hostname", hostname + "\n")
        _write(f"{folder}/resolv.conf", _read("/etc/resolv.conf"))
    except OSError:
        remove(folder)  # a start takes a folder that is there for a whole one
        raise


def cgroup(folder: str) -> str:
    """The control group that a bundle's container has, if it is not at the usual place; "" otherwise."""
    return _read(f"{folder}/cgroup")


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


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        left = memoryview(text.encode("utf-8", "surrogateescape"))
        while left:
            left = left[os.write(fd, left) :]
    finally:
        os.close(fd)
