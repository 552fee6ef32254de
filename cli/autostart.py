"""Starting the daemon from the client: once, by whichever of several clients gets the lock; the others wait for its socket.

Only for the default socket, and only as root. The daemon ends by itself after some idle minutes, so nothing has to be set up or cleaned up.
"""

import errno
import posix
import sys
import time
from _socket import socket

from cli.client import DEFAULT_SOCKET, Host, Unreachable

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

FOLDER = DEFAULT_SOCKET.rpartition("/")[0]
LOG = FOLDER + "/daemon.log"
LOCK = FOLDER + "/start.lock"
IDLE_EXIT = "5m"
PATIENCE = 30  # seconds; a first start on slow flash has to fit
FIRST_PAUSE, LONGEST_PAUSE = 0.002, 0.05


def start_daemon(host: Host) -> socket:
    """A socket connected to the daemon on the default host, which is started if nobody else is doing that. Raises Unreachable."""
    if posix.geteuid() != 0:
        hint = "only root can start one: 'sudo knarr daemon'"
        raise Unreachable(f"Cannot connect to the Knarr daemon at {host.url}. Is the daemon running? ({hint})")
    import fcntl

    try:
        posix.mkdir(FOLDER, 0o711)
    except FileExistsError:
        pass
    lock = posix.open(LOCK, posix.O_RDWR | posix.O_CREAT | posix.O_CLOEXEC, 0o600)
    child, pause, end = 0, FIRST_PAUSE, time.monotonic() + PATIENCE
    try:
        while time.monotonic() < end:
            if not child:
                child = _spawn_once(host, lock, fcntl)
            try:
                return host.connect()
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ECONNREFUSED):
                    raise Unreachable(f"Cannot connect to the Knarr daemon at {host.url}: {error.strerror}") from None
            if child > 0:
                _check(child, host)
            time.sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE)
    finally:
        posix.close(lock)
    raise Unreachable(f"Cannot connect to the Knarr daemon at {host.url}: it did not answer within {PATIENCE} s of its start; see {LOG}")


def _spawn_once(host: Host, lock: int, fcntl: "Any") -> int:
    """The daemon's process id, 0 while another client holds the lock, -1 when one already listens."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    try:
        host.connect().close()
    except OSError:
        return _spawn()
    return -1


def _spawn() -> int:
    words = command()
    log = posix.open(LOG, posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND | posix.O_CLOEXEC, 0o600)
    child = posix.fork()
    if child:
        posix.close(log)
        return child
    try:
        posix.setsid()
        nothing = posix.open("/dev/null", posix.O_RDONLY)
        posix.dup2(nothing, 0)
        posix.dup2(log, 1)
        posix.dup2(log, 2)
        posix.chdir("/")
        posix.execv(words[0], words)
    finally:
        posix._exit(127)


def command() -> "list[str]":
    """How to start this program's daemon: as this client was started, or by the interpreter where that was no program of its own."""
    from cli.create import absolute

    program = absolute(sys.argv[0])
    arguments = ["daemon", "--idle-exit", IDLE_EXIT]
    if program.endswith("/knarr") and posix.access(program, posix.X_OK):
        return [program, *arguments]
    root = __file__.rpartition("/cli/")[0]
    site = getattr(sys, "knarr_site", "")
    start = f"import sys; sys.path.insert(0, {root!r}); sys.knarr_site = {site!r}; from cli.main import main; main()"
    return [sys.executable, "-c", start, *arguments]


def _check(child: int, host: Host) -> None:
    """Raise when the daemon just started has ended: its last lines say why."""
    ended, status = posix.waitpid(child, posix.WNOHANG)
    if not ended:
        return
    try:
        host.connect().close()  # it lost to a daemon that somebody else started
        return
    except OSError:
        pass
    with open(LOG, errors="replace") as file:
        lines = file.read()[-4000:].strip().splitlines()[-5:]
    text = "\n".join("  " + line for line in lines)
    code = posix.waitstatus_to_exitcode(status)
    raise Unreachable(f"the Knarr daemon could not be started (exit status {code}); its last words in {LOG}:\n{text}")
