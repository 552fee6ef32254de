"""Another Knarr host as the other end of a push or pull: `unix://PATH` as it is, `ssh://[USER@]HOST[:PORT]` through a socket of our own.

For ssh the daemon is given a unix socket in a private folder; each of its connections becomes the standard input and output of one
`ssh HOST knarr system dial-stdio`, which the other host's sshd connects to its daemon. So the user's keys, agent and known hosts count, and
no credential passes through a daemon. The accepting process is a child of the client, and ends with it.
"""

import posix
from _socket import AF_UNIX, SO_PEERCRED, SOCK_CLOEXEC, SOCK_STREAM, SOL_SOCKET, socket

from cli.client import Failure, getenv

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

_SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
BACKLOG = 64  # connections: a pull opens some, one a layer


def ssh_arguments(url: str) -> "list[str]":
    """Arguments of ssh for `ssh://[USER@]HOST[:PORT]`; what could be taken for an option or a shell's word is refused. Raises Failure."""
    user, at, rest = url.removeprefix("ssh://").rstrip("/").rpartition("@")
    host, colon, port = (rest[1:].partition("]")[0], rest[rest.find("]") + 1:][:1], rest[rest.find("]") + 2:]) if rest[:1] == "[" \
        else rest.partition(":")
    if (not host or host[0] == "-" or not _SAFE.issuperset(host.replace(":", "")) or (at and (not user or user[0] == "-"
            or not _SAFE.issuperset(user))) or (colon and not (port.isdigit() and port.isascii() and 0 < int(port) < 65536))):
        raise Failure(f"{url}: not of the form ssh://[USER@]HOST[:PORT]")
    return [*(["-l", user] if at else []), *(["-p", port] if colon else []), "-o", "ConnectTimeout=30", "-T", "--", host]


def peer_uid(sock: socket) -> int:
    """The user on the other side of a unix socket (unix(7), SO_PEERCRED: pid, uid, gid)."""
    return int.from_bytes(sock.getsockopt(SOL_SOCKET, SO_PEERCRED, 12)[4:8], "little")


class Relay:
    """`with Relay(url) as target:` target is what the daemon is told: a `unix://` address."""

    def __init__(self, url: str):
        self.url = url
        self.folder = ""
        self.child = 0

    def __enter__(self) -> str:
        if self.url.startswith("unix://"):
            path = self.url.removeprefix("unix://")
            if path[:1] != "/":
                raise Failure(f"{self.url}: the path of a socket must be absolute")
            return self.url
        if not self.url.startswith("ssh://"):
            raise Failure(f"{self.url}: another host is named by ssh://[USER@]HOST[:PORT] or unix://PATH")
        from cli.processes import find

        arguments = [*ssh_arguments(self.url), *(getenv("KNARR_SSH_COMMAND") or "knarr system dial-stdio").split(" ")]
        program = find("ssh")
        if not program:
            raise Failure(f"{self.url}: no ssh on PATH")
        self.folder = f"{getenv('TMPDIR') or '/tmp'}/knarr-relay-{posix.getpid()}-{posix.urandom(8).hex()}"
        posix.mkdir(self.folder, 0o700)
        path = self.folder + "/s"
        try:
            listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
            listener.bind(path)
            listener.listen(BACKLOG)
            parent = posix.getpid()
            self.child = posix.fork()
        except OSError:
            self._remove()
            raise
        if self.child == 0:
            try:
                _serve(listener, program, arguments, parent)
            finally:
                posix._exit(1)
        listener.close()
        return "unix://" + path

    def __exit__(self, *exception: object) -> None:
        if self.child:
            import _signal

            posix.kill(self.child, _signal.SIGKILL)  # its ssh processes end with their connections, which the daemon closes
            posix.waitpid(self.child, 0)
        self._remove()

    def _remove(self) -> None:
        if self.folder:
            for remove, path in ((posix.unlink, self.folder + "/s"), (posix.rmdir, self.folder)):
                try:
                    remove(path)
                except FileNotFoundError:
                    pass


def _serve(listener: socket, program: str, arguments: "list[str]", parent: int) -> None:
    """Accept for as long as the parent lives. Only root (the daemon) and this user may come in."""
    from select import POLLIN, poll

    from cli.processes import spawn

    waiting = poll()
    waiting.register(listener.fileno(), POLLIN)
    allowed = (0, posix.getuid())
    while posix.getppid() == parent:
        while _reap():
            pass
        if not waiting.poll(1000):
            continue
        descriptor, _ = listener._accept()  # type: ignore[attr-defined]
        connection: Any = socket(fileno=descriptor)
        if peer_uid(connection) in allowed:
            spawn(program, arguments, descriptor, descriptor)
        connection.close()


def _reap() -> bool:
    try:
        return posix.waitpid(-1, posix.WNOHANG)[0] > 0
    except ChildProcessError:
        return False
