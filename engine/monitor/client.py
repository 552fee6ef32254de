"""What the daemon holds of the spawner and of each monitor: file descriptors and non-blocking calls, no event loop.

Owns the sockets' use: packets, descriptors that travel with them, large messages in memfds; the layout is `wire.control`. The caller
waits for readability itself (`fileno()`), then calls `receive()` until it returns an empty list.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import socket
import struct
from collections.abc import Sequence

import msgspec

from engine.errors import KnarrError
from engine.monitor import spawner
from engine.wire import control

SOCKET_NAME = "monitor.sock"
EXIT_NAME = "exit.json"

_FDS_LIMIT = 4
_PACKET_LIMIT = control.INLINE_LIMIT
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

Received = list[tuple[control.Message, list[int]]]


class MonitorGone(KnarrError):
    """The other side closed: a monitor that ended (read exit.json), or the spawner."""


class ExitRecord(msgspec.Struct, frozen=True):
    """BUNDLE/exit.json as the monitor leaves it.

    `status`: wait(2)'s value; `code`: 0-255, 128+n for signal n; `signal`: 0 unless one ended it; `finished`: CLOCK_REALTIME ns;
    `pid`, `start_time`: of the process that ended, field 22 of its /proc/PID/stat; `started`: when it ran, CLOCK_REALTIME ns.
    """

    status: int
    code: int
    signal: int
    oom_kills: int
    finished: int
    log_dropped: int
    pid: int
    start_time: int
    started: int


class MonitorConnection:
    """One SEQPACKET connection to a monitor. Owns its descriptor; `close` or `with` ends it."""

    def __init__(self, sock: socket.socket, pid: int = 0) -> None:
        sock.setblocking(False)
        self._socket = sock
        self.pid = pid

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> MonitorConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, message: control.ToMonitor, fds: Sequence[int] = ()) -> None:
        """Send one message whole, with descriptors (the caller keeps its own copies).

        Raises BlockingIOError when the monitor's queue is full (nothing was sent; wait for writability and repeat), MonitorGone
        when it ended.
        """
        encoded = control.encode(message)
        if len(encoded) <= control.INLINE_LIMIT:
            self._send_packet(encoded, fds)
            return
        memfd = _sealed_memfd(encoded)
        try:
            self._send_packet(control.large_packet(encoded), (memfd, *fds))
        finally:
            os.close(memfd)

    def _send_packet(self, packet: bytes, fds: Sequence[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([packet], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise MonitorGone(f"send to monitor {self.pid}: it ended", hint="its exit record says more") from error

    def receive(self) -> Received:
        """All messages that are there, each with the descriptors that came with it (now the caller's to close).

        Returns [] when there is none yet. Raises MonitorGone at the end, once everything before it was returned, and
        control.MalformedMessage when the other side does not speak the protocol.
        """
        found: Received = []
        while True:
            try:
                packet, fds = _receive_packet(self._socket)
            except BlockingIOError:
                return found
            except ConnectionResetError:
                packet, fds = b"", []
            if not packet:
                if found:
                    return found
                raise MonitorGone(f"monitor {self.pid} closed its connection", hint="its exit record says more")
            try:
                found.append((control.decode(packet), fds))
            except control.MalformedMessage:
                _close_all(fds + [fd for _, more in found for fd in more])
                raise


class Spawner:
    """The process that forks monitors, and this side of its socket. It ends when `close` is called or this process dies."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        sock.setblocking(False)
        self._socket = sock
        self.pid = pid

    @classmethod
    def start(cls, exec_root: str, ready: int = 2) -> Spawner:
        """Start the spawner with `exec_root` as its working folder; it forks `ready` monitors at once, to be fetched with `receive`.

        Raises OSError when the process cannot be made.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            pid = spawner.spawn(theirs.fileno(), exec_root)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        made = cls(ours, pid)
        made.request(ready)
        return made

    def fileno(self) -> int:
        return self._socket.fileno()

    def request(self, count: int = 1) -> None:
        """Ask for `count` more monitors (1-1000); they arrive at `receive`. Raises BlockingIOError, MonitorGone."""
        try:
            self._socket.send(spawner.REQUEST.pack(count), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise MonitorGone(f"the spawner ({self.pid}) ended") from error

    def receive(self) -> list[MonitorConnection]:
        """The monitors that were forked since; [] when there is none yet. Raises MonitorGone, OSError when a fork failed."""
        found: list[MonitorConnection] = []
        while True:
            try:
                packet, fds = _receive_packet(self._socket)
            except BlockingIOError:
                return found
            except ConnectionResetError:
                packet, fds = b"", []
            if not packet:
                if found:
                    return found
                raise MonitorGone(f"the spawner ({self.pid}) ended")
            pid, error = spawner.REPLY.unpack(packet)
            if error:
                for connection in found:
                    connection.close()
                raise OSError(error, f"fork a monitor: {os.strerror(error)}")
            found.append(MonitorConnection(socket.socket(fileno=fds[0]), pid))

    def close(self) -> None:
        """End the spawner and reap it. Monitors with a container live on."""
        self._socket.close()
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass


def connect(bundle: str) -> MonitorConnection:
    """Connect to the running monitor of a bundle. Raises MonitorGone when there is none: then `read_exit`."""
    try:
        folder = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise MonitorGone(f"connect to the monitor of {bundle}: no such bundle") from error
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # Through the folder's descriptor: an address holds 107 bytes, an exec root may be longer.
        sock.connect(f"/proc/self/fd/{folder}/{SOCKET_NAME}")
        pid = struct.unpack("iii", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError) as error:
        sock.close()
        raise MonitorGone(f"connect to the monitor of {bundle}: {error.strerror}") from error
    except OSError:
        sock.close()
        raise
    finally:
        os.close(folder)
    return MonitorConnection(sock, pid)


def read_exit(bundle: str) -> ExitRecord | None:
    """The exit record, None while there is none. Raises KnarrError when the file is there and makes no sense."""
    path = os.path.join(bundle, EXIT_NAME)
    try:
        with open(path, "rb") as file:
            raw = file.read()
    except FileNotFoundError:
        return None
    try:
        return msgspec.convert(json.loads(raw), ExitRecord)
    except (ValueError, msgspec.ValidationError) as error:
        raise KnarrError(f"read {path}: {error}") from error


def _receive_packet(sock: socket.socket) -> tuple[bytes, list[int]]:
    space = socket.CMSG_SPACE(_FDS_LIMIT * 4)
    packet, rights, flags, _ = sock.recvmsg(_PACKET_LIMIT, space, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, data in rights:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        _close_all(fds)
        raise control.MalformedMessage(f"a packet of more than {_PACKET_LIMIT} bytes or {_FDS_LIMIT} descriptors")
    return packet, list(fds)


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _sealed_memfd(data: bytes) -> int:
    """A memfd with `data` that nobody can change any more, so the monitor may map it."""
    fd = os.memfd_create("knarr-message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd
