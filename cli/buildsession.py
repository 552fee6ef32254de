"""One build on its connection: frames both ways, outputs, ssh agents, signals, in one loop.

What goes to the daemon and what comes from it are never waited for one after the other: while megabytes of files go, megabytes of progress
may come. Layout of the frames: `engine/wire/buildframes.py`.
"""

import posix
import time
from _socket import MSG_NOSIGNAL, SHUT_WR
from select import POLLIN, POLLOUT, poll

from cli.buildflags import refuse
from cli.client import Connection, Failure
from cli.codec import dumps, loads
from cli.streams import write_all
from engine.wire import buildframes as frames

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from cli.buildcontext import Manifest
    from cli.buildflags import Sink
    from cli.buildoutput import Archive, Unpacker
    from cli.buildprogress import Printer
    from cli.buildsecrets import Agents
    from cli.buildsources import Sources

BUFFER = 1 << 18
MOST_WAITING = 4 << 20  # bytes for the daemon beyond which no agent is read
GRACE = 5.0  # seconds that the daemon has to say how a cancelled build ended


class Wakes:
    """Signals while a build runs: the first SIGINT or SIGTERM asks for its end, the second one ends the program at once."""

    def __init__(self, agents: "Agents") -> None:
        import _signal

        self.agents = agents
        self.reader, self.writer = posix.pipe2(posix.O_CLOEXEC | posix.O_NONBLOCK)
        self.stopped = 0
        self.resized = False
        for number in (_signal.SIGINT, _signal.SIGTERM):
            _signal.signal(number, self._stop)
        _signal.signal(_signal.SIGWINCH, self._resize)

    def _stop(self, number: int, frame: object) -> None:
        if self.stopped:
            self.agents.close()
            posix._exit(128 + number)
        self.stopped = number
        self._wake()

    def _resize(self, number: int, frame: object) -> None:
        self.resized = True
        self._wake()

    def _wake(self) -> None:
        try:
            posix.write(self.writer, b"\0")
        except BlockingIOError:
            pass  # it is awake as it is

    def drain(self) -> None:
        try:
            posix.read(self.reader, 512)
        except BlockingIOError:
            pass


def _unpacker(sink: "Sink") -> "Unpacker":
    if sink.kind == "cache":
        from cli.buildcache import Folder

        return Folder(sink)
    from cli.buildoutput import Unpacker

    return Unpacker(sink)


class Session:
    """One build on its connection. `run` returns the Result's members; what went wrong is raised as `Broken` or Failure."""

    def __init__(self, connection: Connection, sources: "Sources", printer: "Printer", agents: "Agents"):
        self.sock = connection.sock
        self.sock.setblocking(False)
        self.sinks = sources.plan.sinks
        self.names = sources.names()
        self.archive = sources.archive
        self.printer = printer
        self.agents = agents
        self.decoder = frames.Frames()
        self.inbox: list[tuple[int, int, bytes]] = self.decoder.feed(connection.pending)[::-1] if connection.pending else []
        self.manifests: list[Manifest] = []
        self.queue: list[Iterator[bytes]] = []
        self.urgent = bytearray()
        self.sending = memoryview(b"")
        self.channels: dict[int, Any] = {}
        self.by_fd: dict[int, int] = {}
        self.archives: dict[int, Archive] = {}
        self.pieces: dict[int, list[bytes]] = {}
        self.done: set[int] = set()
        self.result: dict[str, Any] | None = None
        self.wakes = Wakes(agents)
        self.deadline = float("inf")
        self.sent = 0
        self.waiting = poll()
        self.waiting.register(self.sock.fileno(), POLLIN)
        self.waiting.register(self.wakes.reader, POLLIN)
        self.events = POLLIN
        self.ready: dict[int, int] = {}
        self.buffer = bytearray(BUFFER)

    # -- what goes to the daemon

    def begin(self, request: "dict[str, Any]", manifests: "Iterator[Manifest]") -> None:
        """Send the request and the lists of files; what the daemon says meanwhile is taken in between. Raises Failure."""
        self._now(frames.message(frames.REQUEST, 0, dumps(request).encode()))
        for number, manifest in enumerate(manifests):
            self.manifests.append(manifest)
            self._now(frames.message(frames.MANIFEST, number, manifest.payload))
            if self.names[number] == "context" and self.archive is not None:
                self.queue.append(self._archive(number, self.archive))

    def _now(self, pieces: "Iterable[bytes]") -> None:
        """Send before anything else is done, reading all the same, so that neither side waits for the other."""
        for piece in pieces:
            self.sending = memoryview(piece)
            while self.sending and self.result is None:
                self._flush()
                if self.sending:
                    self._wait(float("inf"))
                    self._take_all()

    def _archive(self, number: int, begun: bytes) -> "Iterator[bytes]":
        from cli.buildcontext import archive_pieces

        for piece in archive_pieces(0, begun):
            yield frames.frame(frames.FILES, number, piece)
        yield frames.frame(frames.FILES, number, b"")

    def _files(self, number: int, need: bytes) -> "Iterator[bytes]":
        for piece in self.manifests[number].pieces(need):
            self.sent += len(piece)
            yield frames.frame(frames.FILES, number, piece)
        yield frames.frame(frames.FILES, number, b"")

    def _flush(self) -> None:
        """Send what the socket takes."""
        while True:
            if not self.sending and not self._next_piece():
                return
            try:
                self.sending = self.sending[self.sock.send(self.sending, MSG_NOSIGNAL):]
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                # the daemon ended the build: how is still to be read
                self.sending = memoryview(b"")
                self.queue.clear()
                self.urgent.clear()
                return

    def _next_piece(self) -> bool:
        if self.urgent:
            self.sending = memoryview(bytes(self.urgent))
            self.urgent.clear()
            return True
        while self.queue:
            piece = next(self.queue[0], None)
            if piece is None:
                del self.queue[0]
                continue
            self.sending = memoryview(piece)
            return True
        return False

    # -- the loop

    def run(self) -> "dict[str, Any]":
        """To the end of the build. Raises Broken for the build's own error, Failure."""
        try:
            while self.result is None:
                self.turn()
            if missing := {number for number, sink in self.sinks.items() if not sink.optional} - self.done:
                raise refuse(f"the daemon ended the build without its output of type {self.sinks[min(missing)].kind}")
            return self.result
        except BaseException:
            for archive in self.archives.values():
                archive.discard()
            raise

    def turn(self) -> None:
        """Take one frame, or wait for something to happen."""
        if self.inbox:
            self._frame(*self.inbox.pop())
            return
        self._flush()
        due = min(self.printer.due(), self.deadline - time.monotonic())
        self._wait(due)
        self._take_all()

    def _wait(self, seconds: float) -> None:
        events = POLLIN | (POLLOUT if self.sending or self.queue or self.urgent else 0)
        if events != self.events:
            self.events = events
            self.waiting.modify(self.sock.fileno(), events)
        self.ready = dict(self.waiting.poll(None if seconds == float("inf") else max(0, int(seconds * 1000) + 1)))
        if self.printer.due() <= 0:
            self.printer.tick()
        if self.wakes.reader in self.ready:
            self._woken()
        if time.monotonic() >= self.deadline:
            raise Failure("ERROR: failed to solve: Canceled: context canceled", 128 + self.wakes.stopped)

    def _woken(self) -> None:
        self.wakes.drain()
        if self.wakes.resized:
            self.wakes.resized = False
            self.printer.resized()
        if self.wakes.stopped and self.deadline == float("inf"):
            self.deadline = time.monotonic() + GRACE
            self.queue.clear()
            self.urgent += frames.frame(frames.CANCEL, 0, b"")

    def _take_all(self) -> None:
        """Read what has come, from the daemon and from agents."""
        for fd, events in self.ready.items():
            if fd == self.sock.fileno():
                if events & ~POLLOUT:
                    self._receive()
            elif fd in self.by_fd:
                self._from_agent(self.by_fd[fd])

    def _receive(self) -> None:
        try:
            got = self.sock.recv_into(self.buffer)
        except BlockingIOError:
            return
        except ConnectionResetError:
            got = 0
        if not got:
            if self.wakes.stopped:
                raise Failure("ERROR: failed to solve: Canceled: context canceled", 128 + self.wakes.stopped)
            raise refuse("the daemon closed the connection before the build ended")
        try:
            self.inbox[:0] = self.decoder.feed(bytes(memoryview(self.buffer)[:got]))[::-1]
        except frames.MalformedFrame as error:
            raise refuse(f"the daemon does not keep to the protocol of builds: {error}") from None

    def _frame(self, kind: int, stream: int, payload: bytes) -> None:
        try:
            self._handle(kind, stream, payload)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise refuse(f"the daemon does not keep to the protocol of builds: a frame of the kind {kind} cannot be read "
                f"({type(error).__name__}: {error})") from None

    def _handle(self, kind: int, stream: int, payload: bytes) -> None:
        if kind == frames.EVENT:
            self.printer.event(payload)
        elif kind == frames.NEED:
            if stream >= len(self.manifests):
                raise refuse(f"the daemon asks for files of a context that it was not given ({stream})")
            if self.names[stream] != "context" or self.archive is None:
                self.queue.append(self._files(stream, payload))
        elif kind in (frames.OUTPUT, frames.OUTPUT_END):
            self._output(stream, payload if kind == frames.OUTPUT else b"")
        elif kind == frames.OPEN:
            self._open(stream, payload.decode("utf-8", "replace"))
        elif kind in (frames.CHANNEL, frames.CHANNEL_END):
            self._to_agent(stream, payload if kind == frames.CHANNEL else b"")
        elif kind == frames.RESULT:
            self.result = loads(payload)
        elif kind == frames.ERROR:
            raise Broken(loads(payload))
        else:
            raise refuse(f"the daemon does not keep to the protocol of builds: a frame of the kind {kind}")

    # -- outputs

    def _output(self, number: int, data: bytes) -> None:
        """A piece of an output; b"" is its end."""
        if not data:
            self.done.add(number)
        sink = self.sinks.get(number)
        if sink is None:
            raise refuse(f"the daemon sends an output that was not asked for ({number})")
        if number in self.pieces:
            if data:
                self.pieces[number].append(data)
        elif sink.unpack:
            self.pieces[number] = [data] if data else []
            self._unpack(number, _unpacker(sink))
        else:
            from cli.buildoutput import Archive

            if number not in self.archives:
                self.archives[number] = Archive(sink)
            if data:
                self.archives[number].feed(data)
            else:
                self.archives.pop(number).end()

    def _unpack(self, number: int, unpacker: "Unpacker") -> None:
        """Unpack an output as it comes: more is taken from the loop whenever the reader wants it."""

        def source() -> bytes:
            while not self.pieces[number]:
                if number in self.done:
                    return b""
                if self.result is not None:
                    raise refuse("the daemon ended the build within an output")
                self.turn()
            return self.pieces[number].pop(0)

        unpacker.run(source)

    # -- agents

    def _open(self, number: int, identity: str) -> None:
        try:
            sock = self.agents.connect(identity)
        except (OSError, KeyError) as error:
            words = getattr(error, "strerror", None) or "it was not given with --ssh"
            write_all(2, f"WARNING: ssh agent {identity!r}: {words}\n".encode())
            self.urgent += frames.frame(frames.CHANNEL_END, number, b"")
            return
        self.channels[number] = sock
        self.by_fd[sock.fileno()] = number
        self.waiting.register(sock.fileno(), POLLIN)

    def _to_agent(self, number: int, data: bytes) -> None:
        sock = self.channels.get(number)
        if sock is None:
            return  # it hung up before
        try:
            if data:
                sock.sendall(data, MSG_NOSIGNAL)
            else:
                sock.shutdown(SHUT_WR)
                self._close_channel(number)
        except OSError:
            self._close_channel(number)
            self.urgent += frames.frame(frames.CHANNEL_END, number, b"")

    def _from_agent(self, number: int) -> None:
        if len(self.urgent) > MOST_WAITING:
            return
        try:
            data = self.channels[number].recv(65536)
        except ConnectionResetError:
            data = b""
        if data:
            self.urgent += frames.frame(frames.CHANNEL, number, data)
            return
        self._close_channel(number)
        self.urgent += frames.frame(frames.CHANNEL_END, number, b"")

    def _close_channel(self, number: int) -> None:
        sock = self.channels.pop(number)
        self.waiting.unregister(sock.fileno())
        del self.by_fd[sock.fileno()]
        sock.close()


class Broken(Exception):
    """The build's own error, as the daemon told it."""

    def __init__(self, told: "dict[str, Any]"):
        super().__init__(told.get("message", ""))
        self.message = str(told.get("message", ""))
        self.excerpt = str(told.get("excerpt") or "")
