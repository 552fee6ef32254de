"""What `docker version` and `docker info` say about the daemon and its host. Reads the host, changes nothing."""

from __future__ import annotations

import functools
import logging
import os
import platform
import socket
import uuid
from typing import Any

from engine.service.containers import Containers
from engine.service.context import Context
from engine.service.registries import proxy_info, registry_config

log = logging.getLogger("knarr.system")


class System:
    """Facts about this daemon. `id` stays the same for one data root."""

    def __init__(self, context: Context, containers: Containers) -> None:
        self._context = context
        self._containers = containers
        self.id = _installation_id(f"{context.layout.data_root}/engine-id")

    def info(self) -> dict[str, Any]:
        """The facts behind GET /info, with Docker's member names."""
        context, settings = self._context, self._context.settings
        states = [container.record.state for container in self._containers.by_id.values()]
        running = sum(state.status == "running" for state in states)  # who waits for a restart counts as stopped, as in dockerd
        paused = sum(state.status == "paused" for state in states)
        limits = context.cgroups.controllers
        return {
            "ID": self.id,
            "Containers": len(states),
            "ContainersRunning": running,
            "ContainersPaused": paused,
            "ContainersStopped": len(states) - running - paused,
            "Images": context.images.count(),
            "Driver": "overlay2",
            "DriverStatus": [
                ["Backing Filesystem", _filesystem(context.layout.snapshots)], ["Supports d_type", "true"], ["Native Overlay Diff", "true"],
            ],
            "Plugins": {
                "Volume": ["local"], "Network": ["bridge", "host", "macvlan", "null"], "Authorization": None, "Log": ["json-file", "none"],
            },
            "MemoryLimit": "memory" in limits,
            "SwapLimit": context.cgroups.swap_limit(),
            "CpuCfsPeriod": "cpu" in limits,
            "CpuCfsQuota": "cpu" in limits,
            "CPUShares": "cpu" in limits,
            "CPUSet": "cpuset" in limits,
            "PidsLimit": "pids" in limits,
            "IPv4Forwarding": _flag("/proc/sys/net/ipv4/ip_forward"),
            "Debug": settings.debug,
            "NFd": len(os.listdir("/proc/self/fd")),
            "OomKillDisable": False,
            "NGoroutines": 0,
            "SystemTime": "",
            "LoggingDriver": settings.log_driver,
            "CgroupDriver": "cgroupfs",
            "CgroupVersion": "2" if context.cgroups.version == 2 else "1",
            "NEventsListener": context.events.listeners,
            "KernelVersion": os.uname().release,
            "OperatingSystem": _os_release().get("PRETTY_NAME", "Linux"),
            "OSVersion": _os_release().get("VERSION_ID", ""),
            "OSType": "linux",
            "Architecture": os.uname().machine,
            "IndexServerAddress": "https://index.docker.io/v1/",
            "RegistryConfig": registry_config(settings),
            "NCPU": len(os.sched_getaffinity(0)),
            "MemTotal": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "GenericResources": None,
            "DockerRootDir": context.layout.data_root,
            **proxy_info(settings),
            "Name": socket.gethostname(),
            "Labels": settings.labels,
            "ExperimentalBuild": False,
            "Runtimes": {"knarr": {"path": "knarr"}},
            "DefaultRuntime": "knarr",
            "Swarm": {
                "NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": False, "Error": "", "RemoteManagers": None,
            },
            "LiveRestoreEnabled": True,
            "Isolation": "",
            "InitBinary": "",
            "ContainerdCommit": {"ID": "", "Expected": ""},
            "RuncCommit": {"ID": "", "Expected": ""},
            "InitCommit": {"ID": "", "Expected": ""},
            "SecurityOptions": ["name=seccomp,profile=builtin"] + (["name=cgroupns"] if context.cgroups.version == 2 else []),
            "ProductLicense": "",
            "Warnings": None,
            "CDISpecDirs": [],
        }  # fmt: skip

    def version(self) -> dict[str, Any]:
        """Facts behind GET /version that are the host's."""
        return {"KernelVersion": os.uname().release, "Os": "linux", "Arch": _go_arch(), "Python": platform.python_version()}


def _installation_id(path: str) -> str:
    """The identifier in `path`; one that is not there or damaged is made again. A full disk makes it last for this run only."""
    try:
        with open(path, encoding="ascii") as file:
            return str(uuid.UUID(file.read().strip()))
    except (FileNotFoundError, ValueError):
        pass
    made = str(uuid.uuid4())
    try:
        with open(path + ".new", "w", encoding="ascii") as file:
            file.write(made + "\n")
        os.replace(path + ".new", path)
    except OSError as error:
        log.error("storing the identifier of this installation: %s", error)
    return made


def _go_arch() -> str:
    machine = os.uname().machine
    return {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}.get(machine, machine)


def _flag(path: str) -> bool:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip() == "1"
    except OSError:
        return False


@functools.cache
def _os_release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def _filesystem(path: str) -> str:
    """Type of the file system that holds `path`, from the mount table."""
    best, kind = "", ""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            point = left.split()[4]
            if (path == point or path.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
                best, kind = point, right.split()[0]
    return kind
