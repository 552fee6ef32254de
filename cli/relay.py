"""Another Knarr host as the other end of a push or pull: `unix://PATH` as it is, `ssh://[USER@]HOST[:PORT]` through a socket of our own.

For ssh the daemon is given a unix socket in a private folder; each of its connections becomes one ssh (`cli/ssh.py`), so no credential
passes through a daemon. The accepting process is a child of the client, and ends with it.
"""

import posix
from _socket import AF_UNIX, SO_PEERCRED, SOCK_CLOEXEC, SOCK_STREAM, SOL_SOCKET, socket

from cli.client import Failure
from cli.sockets import make_folder

BACKLOG = 64  # connections: a pull opens some, one a layer
LOOK = 1000  # milliseconds between two looks whether the client still lives


def peer_uid(sock: socket) -> int:
    """The user on the other side of a unix socket (unix(7), SO_PEERCRED: pid, uid and gid as 32-bit numbers)."""
    from sys import byteorder

    credentials: bytes = sock.getsockopt(SOL_SOCKET, SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], byteorder)


class Relay:
    """`with Relay(url) as target:` target is what the daemon is told, a `unix://` address. Raises Failure."""

    def __init__(self, url: str):
        self.url = url
        self.folder = ""
        self.child = 0

    def __enter__(self) -> str:
        if self.url.startswith("unix://"):
            if self.url[7:8] != "/":
                raise Failure(f"{self.url}: the path of a socket must be absolute")
            return self.url
        if not self.url.startswith("ssh://"):
            raise Failure(f"{self.url}: another host is named by ssh://[USER@]HOST[:PORT] or unix://PATH")
        from cli.ssh import arguments, program

        words, path = arguments(self.url), program(self.url)
        self.folder = make_folder("relay", "s")
        try:
            listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
            listener.bind(self.folder + "/s")
            listener.listen(BACKLOG)
            client = posix.getpid()
            self.child = posix.fork()
        except OSError:
            self._remove()
            raise
        if self.child == 0:
            try:
                _serve(listener, path, words, client)
                self._remove()  # the client was killed
            finally:
                posix._exit(0)
        listener.close()
        return f"unix://{self.folder}/s"

    def __exit__(self, *exception: object) -> None:
        if self.child:
            posix.kill(self.child, 9)  # its ssh processes end with their connections, which the daemon closes
            posix.waitpid(self.child, 0)
        if self.folder:
            self._remove()

    def _remove(self) -> None:
        for remove, path in ((posix.unlink, self.folder + "/s"), (posix.rmdir, self.folder)):
            try:
                remove(path)
            except FileNotFoundError:
                pass


def _serve(listener: socket, program: str, arguments: "list[str]", client: int) -> None:
    """Accept for as long as the client lives. Only root, which the daemon is, and this user may come in."""
    from select import POLLIN, poll

    from cli.processes import reap, spawn

    waiting = poll()
    waiting.register(listener.fileno(), POLLIN)
    allowed = (0, posix.getuid())
    while posix.getppid() == client:
        reap()
        if not waiting.poll(LOOK):
            continue
        descriptor, _ = listener._accept()  # type: ignore[attr-defined]
        connection = socket(fileno=descriptor)
        if peer_uid(connection) in allowed:
            spawn(program, arguments, descriptor, descriptor)
        connection.close()
