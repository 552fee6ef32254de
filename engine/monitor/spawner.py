"""The spawner: a slim process that forks monitors ahead of need.

Two halves that never run in one process: `spawn`, called by the daemon, and `main`, what the new process runs. The new process imports
nothing but what stands here, because every page it dirties is shared by all monitors, and forks children that enter the core's C loop and
never touch Python again. It must stay free of policy, of msgspec and of the `socket` module (whose imports cost more than the rest).

Protocol with the daemon, one SOCK_SEQPACKET: REQUEST (how many) in, one REPLY (pid, errno) for each monitor out, with the daemon's end of
that monitor's socket pair. It ends when the daemon's end closes.

It runs from a sealed copy of the interpreter in memory, so that /proc/self/exe, seen by a process that a container controls while
it is being made, is never a file of the host (CVE-2019-5736).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found, unused-ignore]
import _socket
import errno
import os
import struct
import sys

REQUEST = struct.Struct("<I")
REPLY = struct.Struct("<ii")
REQUEST_LIMIT = 1000

_SOCKET_FD = 3
_BOOT = "import sys; sys.path.append(sys.argv[1]); from engine.monitor.spawner import main; main()"
_ALL_SEALS = 0x1 | 0x2 | 0x4 | 0x8  # F_SEAL_SEAL, _SHRINK, _GROW, _WRITE: fcntl(2); the module fcntl is not worth its import here
_F_ADD_SEALS = 1033
_SEAL_ATTEMPTS = 20  # each waits for the pages for up to 150 ms in the kernel (mm/memfd.c)
_SEAL_PAUSE = 0.05  # seconds


def spawn(sock_fd: int, folder: str) -> int:
    """Start the spawner in `folder` with its end of the socket pair; its pid. The caller closes `sock_fd` and reaps the process."""
    python = getattr(sys, "_base_executable", None) or sys.executable
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    program = _sealed_program()
    try:
        return os.posix_spawn(
            f"/proc/self/fd/{program}",
            # The interpreter finds its library from argv[0]; -I and -S keep everything of the user and of site-packages out.
            [os.path.realpath(python), "-I", "-S", "-B", "-c", _BOOT, root, folder],
            {"PATH": os.defpath},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 0, 1),
                (os.POSIX_SPAWN_DUP2, sock_fd, _SOCKET_FD),
            ],
            setsigmask=(),
            setsigdef=tuple(_signal.valid_signals() - {_signal.SIGKILL, _signal.SIGSTOP}),
            setsid=True,
        )
    finally:
        os.close(program)


def _sealed_program() -> int:
    """A memfd with the running interpreter, which nobody can write to any more."""
    program = os.memfd_create("knarr-spawner", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    source = os.open("/proc/self/exe", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while os.sendfile(program, source, None, 1 << 30):
            pass
        os.fchmod(program, 0o500)
        _seal(program)
    except OSError:
        os.close(program)
        raise
    finally:
        os.close(source)
    return program


def _seal(program: int) -> None:
    """Waits while the kernel holds a page of the file, as compaction may on a busy host: F_SEAL_WRITE is refused (EBUSY) then."""
    import fcntl
    import time

    for attempt in range(_SEAL_ATTEMPTS):
        try:
            fcntl.fcntl(program, _F_ADD_SEALS, _ALL_SEALS)
            return
        except OSError as error:
            if error.errno != errno.EBUSY or attempt == _SEAL_ATTEMPTS - 1:
                raise
        time.sleep(_SEAL_PAUSE)


def main() -> None:
    """What the spawner's process does until its socket closes. sys.argv: -c, import root, working folder."""
    import gc

    from engine import _core

    os.chdir(sys.argv[2])
    _core.process_title(b"knarr-spawner")
    # Ended monitors need no parent's attention; the fork resets this, because a monitor does wait for its own child.
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)
    for number in (_signal.SIGINT, _signal.SIGHUP, _signal.SIGQUIT):
        _signal.signal(number, _signal.SIG_IGN)
    daemon = _socket.socket(fileno=_SOCKET_FD)
    gc.disable()
    gc.freeze()
    while True:
        try:
            request = daemon.recv(REQUEST.size)
        except ConnectionResetError:  # the daemon ended with monitors still in its queue
            return
        if len(request) < REQUEST.size:
            return
        for _ in range(min(REQUEST.unpack(request)[0], REQUEST_LIMIT)):
            try:
                _fork_one(daemon, _core.fork_monitor)
            except BrokenPipeError:
                return


def _fork_one(daemon: _socket.socket, fork_monitor: object) -> None:
    """Fork one monitor and hand the daemon its socket; a failure is reported, not raised."""
    assert callable(fork_monitor)
    try:
        theirs, ours = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0)
    except OSError as error:
        daemon.send(REPLY.pack(0, error.errno))
        return
    try:
        pid = fork_monitor(ours.fileno())
    except OSError as error:
        daemon.send(REPLY.pack(0, error.errno))
    else:
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", theirs.fileno()))
        daemon.sendmsg([REPLY.pack(pid, 0)], [rights], _socket.MSG_NOSIGNAL)
    finally:
        ours.close()
        theirs.close()
