"""The daemon's side of knarr-netd: starting it, finding it again, packets with descriptors. Non-blocking calls, no event loop.

The caller waits for readability itself (`fileno()`), then calls `receive()` until it returns an empty list.
"""

from __future__ import annotations

import array
import hashlib
import os
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any

from engine.errors import KnarrError
from engine.netd import messages

_DAEMON_FD = 3
_BOOT = "import sys; sys.path.append(sys.argv[1]); from engine.netd.main import main; main()"
_SOURCES = ("engine/netd", "engine/wire/dns.py")

Received = list[tuple[int, list[Any], list[int]]]


class NetdGone(KnarrError):
    """The other side closed, or there is none."""


class NetdConnection:
    """A connection to a netd. Owns its descriptor; netd goes on when it is closed. `pid`: of the process."""

    def __init__(self, sock: socket.socket, pid: int, child: bool) -> None:
        sock.setblocking(False)
        self._socket = sock
        self.pid = pid
        self.child = child  # this process's own, to be reaped

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def send(self, packet: bytes, fds: Sequence[int] = ()) -> None:
        """Send whole messages, with descriptors (the caller keeps its own copies).

        Raises BlockingIOError when netd's queue is full (nothing was sent; wait for writability and repeat), NetdGone when it ended.
        """
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([packet], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise NetdGone(f"send to knarr-netd {self.pid}: it ended") from error

    def receive(self) -> Received:
        """All messages that are there, each with the descriptors that came with it (now the caller's to close).

        Returns [] when there is none yet. Raises NetdGone at the end, once everything before it was returned, and
        messages.MalformedMessage when the other side does not speak the protocol.
        """
        found: Received = []
        while True:
            try:
                space = socket.CMSG_SPACE(messages.FDS_LIMIT * 4)
                packet, rights, _, _ = self._socket.recvmsg(messages.PACKET_LIMIT, space, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return found
            except ConnectionResetError:
                packet, rights = b"", []
            if not packet:
                if found:
                    return found
                raise NetdGone(f"knarr-netd {self.pid} ended")
            fds = array.array("i")
            for _, _, data in rights:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
            decoded = messages.decode(packet)
            found += [(kind, values, list(fds) if at == 0 else []) for at, (kind, values) in enumerate(decoded)]


def build() -> str:
    """What tells one version of netd from another: a digest of its sources."""
    digest = hashlib.sha256(b"".join(map(_read, _files())))
    return digest.hexdigest()[:16]


def _root() -> str:
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def _files() -> list[str]:
    found = []
    for source in _SOURCES:
        path = os.path.join(_root(), source)
        found += sorted(os.path.join(path, name) for name in os.listdir(path) if name.endswith(".py")) if os.path.isdir(path) else [path]
    return found


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def start(exec_root: str) -> NetdConnection:
    """Start a netd for `exec_root`; what is sent to it waits until it is up. Raises OSError when the process cannot be made."""
    python = getattr(sys, "_base_executable", None) or sys.executable
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        pid = os.posix_spawn(
            python,
            # No -B: nobody else imports its modules, so nobody else would leave them compiled; that is 1.5 MB and half the start.
            [os.path.realpath(python), "-I", "-S", "-c", _BOOT, _root(), exec_root, build()],
            {"PATH": os.defpath},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 0, 1),
                (os.POSIX_SPAWN_DUP2, 0, 2),
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), _DAEMON_FD),
            ],
            setsigmask=(),
            setsigdef=tuple(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}),
            setsid=True,
        )
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return NetdConnection(ours, pid, child=True)


def connect(exec_root: str) -> NetdConnection | None:
    """Connect to the running netd of `exec_root`; None when there is none. Raises OSError."""
    try:
        folder = os.open(exec_root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setblocking(False)
    try:
        # Through the folder's descriptor: an address holds 107 bytes, an exec root may be longer.
        sock.connect(f"/proc/self/fd/{folder}/{messages.SOCKET_NAME}")
        pid: int = struct.unpack("iii", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError):
        sock.close()
        return None
    except OSError:
        sock.close()
        raise
    finally:
        os.close(folder)
    return NetdConnection(sock, pid, child=False)
