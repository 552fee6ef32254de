"""Network namespaces as descriptors: making one, being inside one for a moment, and surely coming back.

A namespace belongs to a thread. What opens sockets or sysctls inside does so within `inside`, in whichever thread calls; the sockets
stay in that namespace afterwards. A thread that cannot come back ends the process: everything it did from then on would happen in a
container's network. Source: setns(2), network_namespaces(7).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from engine import _core

CLONE_NEWNET: Final = 0x40000000

_OWN = "/proc/thread-self/ns/net"
_FAILED = 70  # EX_SOFTWARE


def own_network() -> int:
    """A descriptor of the calling thread's network namespace (close-on-exec; the caller closes it)."""
    return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)


def new_network() -> int:
    """Make a network namespace; nothing but the returned descriptor holds it. `lo` is down.

    The calling thread is back in its own when this returns. OSError when the kernel makes none (ENOSPC: user.max_net_namespaces).
    """
    home = own_network()
    try:
        _core.unshare(CLONE_NEWNET)
        try:
            return own_network()
        finally:
            _return_to(home)
    finally:
        os.close(home)


@contextmanager
def inside(fd: int) -> Iterator[None]:
    """The calling thread is in the network namespace `fd` within the block; no await in it. Blocks may be nested."""
    home = own_network()
    try:
        _core.setns(fd, CLONE_NEWNET)
        try:
            yield
        finally:
            _return_to(home)
    finally:
        os.close(home)


@contextmanager
def inside_new() -> Iterator[int]:
    """As `new_network` followed by `inside`, with one change of namespace less; the value is the descriptor, which outlives the block.

    When the block raises, the descriptor is closed, and the namespace goes.
    """
    home = own_network()
    try:
        _core.unshare(CLONE_NEWNET)
        try:
            fd = own_network()
            try:
                yield fd
            except BaseException:
                os.close(fd)
                raise
        finally:
            _return_to(home)
    finally:
        os.close(home)


def of_process(pid: int) -> int:
    """A descriptor of a process's network namespace (close-on-exec). ProcessLookupError or FileNotFoundError when it is gone."""
    return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def same(one: int, other: int) -> bool:
    """Whether two descriptors are of one namespace."""
    a, b = os.fstat(one), os.fstat(other)
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)


def _return_to(home: int) -> None:
    """Enter `home`, or end the process: no exception handler may keep a thread that is in the wrong namespace."""
    try:
        _core.setns(home, CLONE_NEWNET)
    except OSError as error:
        os.write(2, f"knarr: a thread cannot leave a container's network namespace ({error}); ending\n".encode())
        os._exit(_FAILED)
