"""Signals of the client while a container runs in its foreground: passed on to it, and window changes to its terminal.

`_signal` is the C half of `signal`, whose Python half builds enums for 5 ms. A handler runs between two system calls of the main loop
(PEP 475), so it may use connections of its own freely.
"""

import _signal

from cli.client import Client, Failure, query
from cli.terminal import size

# moby/sys/signal's names differ from the kernel's only in what is left out here: the real-time signals, which go by number
NAMES = {name: getattr(_signal, name) for name in dir(_signal) if name.startswith("SIG") and name[3] != "_" and name not in ("SIGRTMIN",
    "SIGRTMAX")}
# KILL and STOP cannot be caught; CHLD and PIPE are about the client itself; URG is what Go's runtime keeps for itself; errors of the
# program are its own
NOT_FORWARDED = ("SIGKILL", "SIGSTOP", "SIGCHLD", "SIGCLD", "SIGPIPE", "SIGURG", "SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE")


def forward(client: Client, container: str, window: bool = False) -> None:
    """Send every signal that this process gets to the container instead. With `window`, SIGWINCH is left to `follow_window`."""

    def handler(number: int, frame: "object") -> None:
        try:
            client.open("POST", query(f"/containers/{container}/kill", signal=names[number])).read()
        except Failure:
            pass  # it ended meanwhile

    names = {number: name[3:] for name, number in NAMES.items() if name not in NOT_FORWARDED and not (window and name == "SIGWINCH")}
    for number in names:
        try:
            _signal.signal(number, handler)
        except (OSError, ValueError):
            continue


def follow_window(client: Client, path: str) -> None:
    """Give the container's terminal this one's size, now and whenever it changes. `path` is its resize endpoint."""

    def resize(*_: object) -> None:
        rows, columns = size()
        if rows and columns:
            try:
                client.open("POST", query(path, h=rows, w=columns)).read()
            except Failure:
                pass  # it ended meanwhile

    _signal.signal(_signal.SIGWINCH, resize)
    resize()
