"""`knarr build`: sends what a Dockerfile needs, shows how its build goes, takes what comes out of it.

One connection carries everything (`engine/wire/buildframes.py`): the request and the lists of files first, then the files that the daemon
asks for, while its progress, outputs and requests for the ssh agent come in. One loop serves them all.
"""

import posix
import time
from _socket import MSG_NOSIGNAL, SHUT_WR
from select import POLLIN, POLLOUT, poll

from cli import buildflags, buildprogress
from cli.buildflags import BUILD, Plan, refuse
from cli.client import Client, Connection, DaemonError, Failure
from cli.codec import dumps, loads
from cli.flags import parse
from cli.streams import output, write_all
from engine.wire import buildframes as frames

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from cli.buildcontext import Manifest
    from cli.buildoutput import Archive, Unpacker
    from cli.buildsecrets import Agents

DOCKERFILE = "Dockerfile"
SENT = "dockerfile"
"""The name of the context that a Dockerfile of its own comes in."""
BUFFER = 1 << 18
LARGEST = 16 << 20  # bytes of a Dockerfile, as the daemon has it
MOST_WAITING = 4 << 20  # bytes for the daemon beyond which no agent is read
GRACE = 5.0  # seconds that the daemon has to say how a cancelled build ended


class Sources:
    """Where a build's files come from. `text` is the Dockerfile, None where only the daemon sees it; `root` the folder of the main
    context, "" for none; `archive` what was read of one on stdin."""

    def __init__(self, plan: Plan, place: str):
        self.plan = plan
        self.text: bytes | None = None
        self.name = DOCKERFILE
        self.root = ""
        self.archive: bytes | None = None
        self.ignored: dict[str, bytes] = {}
        if place == "-":
            self._stdin()
        elif buildflags.is_folder(place):
            self.root = place
            self._local()
        elif buildflags.is_remote(place):
            plan.options["remote"] = place
            self._remote()
        else:
            raise refuse(f'unable to prepare context: path "{place}" not found')
        if self.text is not None:
            plan.options |= {"dockerfile": self.name, "dockerfileSent": True}

    def _stdin(self) -> None:
        from cli.buildcontext import peek

        if self.plan.file == "-":
            raise refuse("invalid argument: can't use stdin for both build context and dockerfile")
        archive, begun = peek(0)
        if archive:
            self.archive = begun
            self.plan.options["dockerfile"] = self.plan.file or DOCKERFILE
        elif self.plan.file:
            raise refuse("ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles")
        else:
            self.text = begun + read_all(0, "stdin")

    def _remote(self) -> None:
        if self.plan.file == "-":
            self.text = read_all(0, "stdin")
        elif self.plan.file.startswith("/"):
            self._read(self.plan.file)
        else:
            self.plan.options["dockerfile"] = self.plan.file or DOCKERFILE

    def _local(self) -> None:
        file = self.plan.file
        if file == "-":
            self.text = read_all(0, "stdin")
        elif file.startswith(("http://", "https://")):
            raise Failure(f"not implemented: --file {file}: a Dockerfile from an address with a context that is a folder")
        elif file:
            self._read(file)
        else:
            self._read(f"{self.root.rstrip('/') or ''}/{DOCKERFILE}", True)

    def _read(self, path: str, default: bool = False) -> None:
        folder, slash, self.name = path.rpartition("/")
        try:
            fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
        except OSError as error:
            lower = folder + slash + DOCKERFILE.lower()
            if default and isinstance(error, FileNotFoundError) and posix.access(lower, posix.F_OK):
                self._read(lower)
                return
            raise refuse(f"failed to solve: failed to read dockerfile: open {self.name}: {(error.strerror or '').lower()}") from None
        try:
            self.text = read_all(fd, path)
        except IsADirectoryError:
            raise refuse(f"failed to solve: failed to read dockerfile: read {self.name}: is a directory") from None
        finally:
            posix.close(fd)
        self._ignore_file(folder + slash + self.name + ".dockerignore", self.name + ".dockerignore")

    def _ignore_file(self, path: str, name: str) -> None:
        from cli.configfile import read_file

        try:
            content = read_file(path)
        except OSError as error:
            raise refuse(f"failed to read {path}: {(error.strerror or '').lower()}") from None
        if content is not None:
            self.ignored[name] = content

    def manifests(self) -> "Iterator[Manifest]":
        """The contexts to send, the Dockerfile's first, in the order of `names`; each is made when it is asked for. Raises Failure."""
        from cli import buildcontext

        patterns = None
        if self.root:
            if not self.ignored:
                self._ignore_file(f"{self.root}/.dockerignore", ".dockerignore")
            if self.ignored:
                patterns = self._patterns(next(iter(self.ignored.values())))
        if self.text is not None:
            yield buildcontext.documents(SENT, {self.name: self.text} | self.ignored)
        if self.root:
            yield buildcontext.walk("context", self.root, patterns)
        elif self.archive is not None:
            yield buildcontext.archive("context")
        elif "remote" not in self.plan.options:
            yield buildcontext.documents("context", {})
        for name, path in self.plan.named.items():
            yield buildcontext.walk(name, path, self._named_patterns(path))

    def names(self) -> "list[str]":
        main = [] if "remote" in self.plan.options else ["context"]
        return [*([SENT] if self.text is not None else []), *main, *self.plan.named]

    def _named_patterns(self, path: str) -> "Any":
        """A named context has the .dockerignore at its top."""
        from cli.configfile import read_file

        try:
            content = read_file(f"{path}/.dockerignore")
        except OSError as error:
            raise refuse(f"failed to read {path}/.dockerignore: {(error.strerror or '').lower()}") from None
        return None if content is None else self._patterns(content)

    def _patterns(self, content: bytes) -> "Any":
        from builder.ignore import Patterns, read
        from engine.errors import InvalidParameter

        try:
            return Patterns(read(content))
        except InvalidParameter as error:
            raise refuse(f"failed to solve: {error}") from None


def read_all(fd: int, name: str) -> bytes:
    """A stream to its end. Raises Failure when it is too long for a Dockerfile, OSError."""
    data = bytearray()
    while piece := posix.read(fd, BUFFER):
        data += piece
        if len(data) > LARGEST:
            raise refuse(f"failed to solve: failed to read dockerfile: {name} has more than {LARGEST} bytes")
    return bytes(data)


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


class Session:
    """One build on its connection. `run` returns the Result's members; what went wrong is raised as `Broken` or Failure."""

    def __init__(self, connection: Connection, sources: Sources, printer: buildprogress.Printer, agents: "Agents"):
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

    def _now(self, pieces: "Iterator[bytes]") -> None:
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
            if missing := self.sinks.keys() - self.done:
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
            from cli.buildoutput import Unpacker

            self.pieces[number] = [data] if data else []
            self._unpack(number, Unpacker(sink))
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


def build(client: Client, name: str, argv: "list[str]") -> int:
    given, (place,) = parse(BUILD.named(name), argv)
    plan = buildflags.plan(given)
    began = time.monotonic()
    sources = Sources(plan, place)
    if plan.iidfile or plan.metadata:
        from cli.buildoutput import remove_stale

        remove_stale(plan.iidfile)
        remove_stale(plan.metadata)
    printer = buildprogress.chosen(plan.progress, 2)
    connection = client.connect()
    client.send(connection, "POST", "/build/knarr", None, "Connection: Upgrade\r\nUpgrade: knarr-build\r\n")
    from cli import buildsecrets

    request: dict[str, Any] = {"options": plan.options, "contexts": sources.names()}
    if plan.secrets:
        request["secrets"] = buildsecrets.secrets(plan)
        plan.options["secrets"] = list(request["secrets"])
    if auth := buildsecrets.configured(client, plan.options, sources.text):
        request["auth"] = auth
    agents = buildsecrets.agents(plan)
    try:
        _upgraded(client, connection)
        session = Session(connection, sources, printer, agents)
        result = _run(session, request, sources)
    finally:
        agents.close()
    if plan.debug:
        _debug(session)
    return _finish(plan, sources, printer, result, time.monotonic() - began)


def _upgraded(client: Client, connection: Connection) -> None:
    try:
        status = client.answer(connection, "POST", "/build/knarr", None, "Connection: Upgrade\r\nUpgrade: knarr-build\r\n").status
    except DaemonError as error:
        if error.status == 404:
            raise refuse(f"the daemon at {client.host.url} is none of Knarr's: it does not know how to build for this client "
                f"({error.message})") from None
        raise
    if status != 101:
        raise refuse(f"the daemon at {client.host.url} answered {status} and no connection for a build")


def _run(session: Session, request: "dict[str, Any]", sources: Sources) -> "dict[str, Any]":
    """The build from its request to its result, with its error put into words. Raises Failure."""
    printer = session.printer
    try:
        session.begin(request, sources.manifests())
        result = session.run()
        printer.close()
        return result
    except Broken as broken:
        printer.close()
        if session.wakes.stopped:
            raise Failure("ERROR: failed to solve: Canceled: context canceled", 128 + session.wakes.stopped) from None
        message = "failed to solve: " + buildprogress.printable(broken.message.removeprefix("failed to solve: "))
        most = buildprogress.TAIL if isinstance(printer, buildprogress.Plain) else buildprogress.KEPT
        tail = buildprogress.failures(printer.state, most)
        excerpt = broken.excerpt.rstrip("\n") + "\n" if broken.excerpt else ""
        write_all(2, (tail + excerpt).encode("utf-8", "surrogateescape"))
        raise refuse(message) from None
    except Failure as failure:
        printer.close()
        if failure.text.startswith("error from sender: "):
            raise refuse(f"failed to solve: {failure.text}") from None
        if not failure.text.startswith("ERROR: "):
            raise Failure(f"ERROR: {failure.text}", failure.code) from None
        raise


def _debug(session: Session) -> None:
    for name, manifest in zip(session.names, session.manifests, strict=False):
        write_all(2, f"DEBUG: context {name}: {manifest.files} files, {buildprogress.units(manifest.size)}\n".encode())
    write_all(2, f"DEBUG: sent {buildprogress.units(session.sent)} of files\n".encode())


def _finish(plan: Plan, sources: Sources, printer: buildprogress.Printer, result: "dict[str, Any]", seconds: float) -> int:
    """Everything below the progress: warnings, summary, files, what goes to stdout; the exit status."""
    called = plan.options.get("call", "build") != "build"
    loud = plan.progress not in ("quiet", "rawjson")
    if loud and not called:
        text = buildprogress.warnings(printer.state.warnings, sources.text, plan.debug)
        lines = buildprogress.summary(printer.state, result, seconds, plan.options.get("tags", []))
        printer.say(text + ("\n" if isinstance(printer, buildprogress.Plain) or text else "") + "".join(f"{line}\n" for line in lines))
    if plan.iidfile and result.get("image"):
        from cli.buildoutput import write_iidfile

        write_iidfile(plan.iidfile, result["image"])
    if plan.metadata:
        from cli.buildoutput import write_metadata

        write_metadata(plan.metadata, result, plan.options)
    if called:
        return _answer(plan, result)
    if plan.quiet and result.get("image"):
        output(result["image"] + "\n")
    return 0


def _answer(plan: Plan, result: "dict[str, Any]") -> int:
    """What a call other than build says."""
    if plan.json:
        from cli.codec import indent, ordered_dumps

        output(indent(ordered_dumps(result.get("answer")), "  ") + "\n")
    elif text := result.get("text"):
        output(text.rstrip("\n") + "\n")
    return 0 if plan.ignore_status else int(result.get("code") or 0)
