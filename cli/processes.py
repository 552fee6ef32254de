"""Programs that the client runs: credential helpers and ssh. `posix_spawn` of the C module, because `subprocess` costs 15 ms.

A program gets its arguments as a list, never a shell's line; descriptors of ours are close-on-exec.
"""

import errno
import posix

from cli.client import Failure, getenv

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from collections.abc import Sequence

MOST = 1 << 20  # bytes taken from a program's output: credentials are some hundred


def find(name: str) -> str:
    """The path of a program, "" when PATH has none."""
    if "/" in name:
        return name
    for folder in (getenv("PATH") or "/usr/local/bin:/usr/bin:/bin").split(":"):
        path = (folder or ".") + "/" + name
        if posix.access(path, posix.X_OK) and (posix.stat(path).st_mode & 0o170000) == 0o100000:
            return path
    return ""


def spawn(path: str, arguments: "Sequence[str]", stdin: int, stdout: int, stderr: int = 2) -> int:
    """Start a program with these descriptors as its standard streams and our environment; its process id."""
    actions = [(posix.POSIX_SPAWN_DUP2, stdin, 0), (posix.POSIX_SPAWN_DUP2, stdout, 1), (posix.POSIX_SPAWN_DUP2, stderr, 2)]
    return posix.posix_spawn(path, [path, *arguments], posix.environ, file_actions=actions)


def run(path: str, arguments: "Sequence[str]", data: bytes) -> "tuple[int, bytes]":
    """Run a program to its end on `data` (less than a pipe holds: 64 KiB): exit status and output. Raises Failure."""
    if len(data) > 60000:
        raise Failure(f"run {path}: more input than it would be given")
    stdin, feed = posix.pipe2(posix.O_CLOEXEC)
    take, stdout = posix.pipe2(posix.O_CLOEXEC)
    try:
        process = spawn(path, arguments, stdin, stdout)
    except OSError as error:
        for descriptor in (stdin, feed, take, stdout):
            posix.close(descriptor)
        raise Failure(f"run {path}: {(error.strerror or '').lower()}") from None
    posix.close(stdin)
    posix.close(stdout)
    try:
        posix.write(feed, data)
    except OSError as error:
        if error.errno != errno.EPIPE:  # it did not want to read
            raise
    posix.close(feed)
    out = b""
    while len(out) < MOST and (piece := posix.read(take, 65536)):
        out += piece
    posix.close(take)
    _, status = posix.waitpid(process, 0)
    return posix.waitstatus_to_exitcode(status), out


def reap() -> None:
    """Take leave of children that have ended, so that they do not stay as zombies."""
    try:
        while posix.waitpid(-1, posix.WNOHANG)[0] > 0:
            pass
    except ChildProcessError:
        pass
