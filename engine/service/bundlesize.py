"""The size of what containers write into their /etc/hosts, /etc/hostname and /etc/resolv.conf.

Those files lie in the host's memory (the exec root is on a tmpfs), and a container may write to them as it likes: without a bound one
could fill /run, which the whole host needs. The kernel has no bound for a single file, so it is asked to tell when one was written to
(inotify(7)), and what is beyond the bound is cut off. Costs nothing while nobody writes.
"""

from __future__ import annotations

import logging
import os
import signal
import struct

import trio

from engine import _core
from engine.monitor.client import MonitorGone
from engine.service.container import Container

log = logging.getLogger("knarr.bundles")

LIMIT = 1 << 20  # bytes of one file
_NAMES = ("hosts", "hostname", "resolv.conf")
_EVENT = struct.Struct("=iIII")  # struct inotify_event: watch, mask, cookie, length of the name
_MODIFY, _OVERFLOW, _IGNORED = 0x2, 0x4000, 0x8000
_PIECE = 64 * 1024
_PAUSE = 0.02  # seconds between two looks, however often a file is written to


class BundleSizes:
    """Of one daemon. `begin` for each container that runs; a file that is removed is forgotten by itself."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._fd = -1
        self._watched: dict[int, tuple[str, Container]] = {}
        self._told: set[str] = set()  # files of which there is a line in the log

    def begin(self, container: Container) -> None:
        """Look after the files of a container. A second call for the same run does nothing."""
        try:
            if self._fd < 0:
                self._fd = _core.inotify_init()
                self._nursery.start_soon(self._run, self._fd)
            for name in _NAMES:
                path = f"{container.bundle}/{name}"
                self._watched[_core.inotify_add_watch(self._fd, path, _MODIFY)] = path, container
        except FileNotFoundError:
            return  # it has ended
        except OSError as error:
            log.warning("container %s: nobody looks at the size of its /etc/hosts: %s", container.id[:12], error)

    async def _run(self, fd: int) -> None:
        try:
            while True:
                await trio.lowlevel.wait_readable(fd)
                for watch in self._written(os.read(fd, _PIECE)):
                    if watch in self._watched:
                        self._check(*self._watched[watch])
                await trio.sleep(_PAUSE)
        finally:
            self._fd = -1
            os.close(fd)

    def _written(self, events: bytes) -> set[int]:
        found: set[int] = set()
        at = 0
        while at < len(events):
            watch, mask, _, length = _EVENT.unpack_from(events, at)
            at += _EVENT.size + length
            if mask & _IGNORED:
                self._told.discard(self._watched.pop(watch, ("", None))[0])
            elif mask & _OVERFLOW:
                found.update(self._watched)
            else:
                found.add(watch)
        return found

    def _check(self, path: str, container: Container) -> None:
        try:
            info = os.stat(path)
            # Of a sparse file the rest may come through a mapping, of which nobody is told.
            if max(info.st_size, info.st_blocks * 512) <= LIMIT:
                return
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.ftruncate(fd, min(info.st_size, LIMIT))
            finally:
                os.close(fd)
            if path not in self._told:
                self._told.add(path)
                log.warning("container %s: its /etc/%s is cut off after %d bytes", container.id[:12], os.path.basename(path), LIMIT)
        except FileNotFoundError:
            return
        except BlockingIOError:  # it holds a lease on the file, and goes on
            log.error("container %s fills the host's memory through /etc/%s, it is killed", container.id[:12], os.path.basename(path))
            self._nursery.start_soon(_kill, container)
        except OSError as error:
            log.error("container %s: cutting off its /etc/%s: %s", container.id[:12], os.path.basename(path), error)


async def _kill(container: Container) -> None:
    process = container.process
    if process is not None:
        try:
            await process.signal(signal.SIGKILL)
        except MonitorGone:
            return  # it has ended
