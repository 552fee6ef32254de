"""Carrying bytes between a container and the client's own stdin, stdout and stderr.

The stream of a container without a terminal comes in frames of an 8-byte header (stream 0-2, three zeros, length as a big-endian
32-bit number) and a payload; with a terminal it is raw. Back-pressure is the kernel's: nothing is read that cannot be written.
"""

import errno
import posix
from _socket import MSG_NOSIGNAL
from select import POLLERR, POLLHUP, POLLIN, POLLOUT, poll

from cli.client import Connection, Failure
from cli.terminal import Detacher

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from collections.abc import Iterable

BUFFER = 1 << 18  # as much as a unix socket holds by default; larger gains nothing measurable
STDIN_CHUNK = 1 << 16
READABLE = POLLIN | POLLHUP | POLLERR


def write_all(descriptor: int, data: "bytes | memoryview") -> None:
    """Write everything, also to a descriptor that somebody made non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[posix.write(descriptor, view):]
        except BlockingIOError:
            waiting = poll()
            waiting.register(descriptor, POLLOUT)
            waiting.poll()


def output(text: str) -> None:
    """Print to stdout without Python's text layer."""
    write_all(1, text.encode("utf-8", "surrogateescape"))


class Demultiplexer:
    """Takes framed bytes in pieces of any size, writes the payloads to stdout and stderr."""

    def __init__(self, stdout: int = 1, stderr: int = 2):
        self.targets = {0: stdout, 1: stdout, 2: stderr, 3: stderr}
        self.partial = b""
        self.left = 0
        self.target = stdout

    def feed(self, data: memoryview) -> None:
        at, size = 0, len(data)
        runs: list[tuple[int, list[memoryview]]] = []
        while at < size:
            if self.left:
                end = min(size, at + self.left)
                if runs and runs[-1][0] == self.target:
                    runs[-1][1].append(data[at:end])
                else:
                    runs.append((self.target, [data[at:end]]))
                self.left -= end - at
                at = end
                continue
            need = 8 - len(self.partial)
            self.partial += bytes(data[at:at + need])
            at += need
            if len(self.partial) == 8:
                self._header()
        for target, pieces in runs:
            for piece in pieces[:1] if len(pieces) == 1 else (b"".join(pieces),):
                write_all(target, piece)

    def _header(self) -> None:
        header, self.partial = self.partial, b""
        if header[0] not in self.targets or header[1:4] != b"\0\0\0":
            raise Failure(f"Unrecognized input header: {header[0]}")
        self.target = self.targets[header[0]]
        self.left = int.from_bytes(header[4:], "big")


def copy_output(pieces: "Iterable[bytes]", framed: bool) -> None:
    """Write a body's pieces to stdout and stderr."""
    demultiplexer = Demultiplexer()
    for piece in pieces:
        if framed:
            demultiplexer.feed(memoryview(piece))
        else:
            write_all(1, piece)


class Pump:
    """Both directions of one attached stream until the other side ends it or the detach keys are typed.

    `stdin` is a descriptor or None, `keys` the detach sequence (empty: not looked for).
    """

    def __init__(self, connection: Connection, stdin: "int | None", framed: bool, keys: bytes = b""):
        self.connection = connection
        self.stdin = stdin
        self.framed = framed
        self.demultiplexer = Demultiplexer()
        self.detacher = Detacher(keys) if keys else None
        self.outgoing = memoryview(b"")
        self.closing = False  # stdin ended; said to the other side when all is sent
        self.waits = False  # for room in the socket
        self.detached = False

    def run(self) -> bool:
        """True when the user detached."""
        connection = self.connection
        if connection.pending:
            self._show(memoryview(connection.pending))
            connection.pending = b""
        sock = connection.sock
        if self.stdin is None:
            self._only_output()
            return False
        sock.setblocking(False)
        waiting = poll()
        remote = sock.fileno()
        waiting.register(remote, POLLIN)
        waiting.register(self.stdin, POLLIN)
        buffer = bytearray(BUFFER)
        view = memoryview(buffer)
        while True:
            for descriptor, events in waiting.poll():
                if descriptor == remote:
                    if events & POLLOUT:
                        self._send(waiting)
                    if events & READABLE and not self._receive(buffer, view):
                        return False
                elif self.stdin is not None and events:
                    self._read_stdin(waiting)
                    if self.detached:
                        return True

    def _only_output(self) -> None:
        buffer = bytearray(BUFFER)
        view = memoryview(buffer)
        while self._receive(buffer, view):
            pass

    def _receive(self, buffer: bytearray, view: memoryview) -> bool:
        try:
            got = self.connection.sock.recv_into(buffer)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        if got:
            self._show(view[:got])
        return got > 0

    def _show(self, data: memoryview) -> None:
        if self.framed:
            self.demultiplexer.feed(data)
        else:
            write_all(1, data)

    def _read_stdin(self, waiting: poll) -> None:
        assert self.stdin is not None
        try:
            data = posix.read(self.stdin, STDIN_CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EISDIR):  # the terminal went away, or this is a background job of another session
                raise
            data = b""
        if not data:
            self.closing = True
            self._stop_stdin(waiting)
        elif self.detacher is not None:
            data, self.detached = self.detacher.feed(data)
        self.outgoing = memoryview(data)
        self._send(waiting)

    def _send(self, waiting: poll) -> None:
        """Send what the socket takes; stdin is not looked at while something is left (poll would report its end in any case)."""
        remote = self.connection.sock.fileno()
        try:
            while self.outgoing:
                self.outgoing = self.outgoing[self.connection.sock.send(self.outgoing, MSG_NOSIGNAL):]
        except BlockingIOError:
            if self.stdin is not None and not self.waits:
                waiting.unregister(self.stdin)
            waiting.modify(remote, POLLIN | POLLOUT)
            self.waits = True
            return
        except (BrokenPipeError, ConnectionResetError):
            # the process closed its stdin or ended: its output is still to come
            self.outgoing = memoryview(b"")
            self._stop_stdin(waiting)
        if self.waits:
            self.waits = False
            waiting.modify(remote, POLLIN)
            if self.stdin is not None:
                waiting.register(self.stdin, POLLIN)
        if self.closing:
            self.closing = False
            self.connection.close_write()

    def _stop_stdin(self, waiting: poll) -> None:
        if self.stdin is not None:
            if not self.waits:
                waiting.unregister(self.stdin)
            self.stdin = None
