"""A client that speaks the frames of `engine.wire.buildframes`: its contexts, its secrets and agent, the events and outputs of its build.

One task reads frames, one writes them; the build runs beside them and is cancelled when the client says so or goes away.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import msgspec
import trio

from builder.outbox import Outbox
from builder.sources.contextarchive import Upload
from builder.tree import Tree
from engine.aio.scopes import ungrouped
from engine.errors import InvalidParameter, KnarrError
from engine.spec.build import Options, Progress, Result
from engine.spec.docker.registry import Credentials, from_members
from engine.wire import buildframes as frames

log = logging.getLogger("knarr.build")

_ROOM = 64  # pieces of a context or of an agent's stream that wait
_encoder = msgspec.json.Encoder()


class Connection(Protocol):
    """The hijacked connection."""

    async def receive(self) -> bytes: ...
    async def send(self, data: bytes) -> None: ...


class Request(msgspec.Struct):
    """The first frame."""

    options: Options
    auth: dict[str, object] = {}
    secrets: dict[str, str] = {}
    contexts: tuple[str, ...] = ()


class _Channel:
    """One connection to the client's ssh agent."""

    def __init__(self) -> None:
        self.give, self.take = trio.open_memory_channel[bytes](_ROOM)

    def put(self, data: bytes) -> None:
        """Something from the agent. Never waits: a process that does not read its answers must not keep the client from being heard."""
        try:
            self.give.send_nowait(data)
        except trio.WouldBlock:
            self.give.close()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the process has hung up


class Session:
    """One build of one client. `Gifts`, contexts and the sink of progress for the build."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._frames = frames.Frames()
        self._waiting: list[tuple[int, int, bytes]] = []
        self.outbox = Outbox()
        self._channels: dict[int, _Channel] = {}
        self._next_channel = 1
        self._opened: dict[int, trio.Event] = {}
        self._uploads: dict[int, Upload] = {}
        self._trees: dict[str, Tree] = {}
        self._names: tuple[str, ...] = ()
        self._arrived: dict[str, trio.Event] = {}
        self._failures: dict[str, Exception] = {}
        self.options = Options()
        self.auths: dict[str, Credentials] = {}
        self.secrets: dict[str, bytes] = {}
        self.agents: frozenset[str] = frozenset()

    # -- frames

    async def _next(self) -> tuple[int, int, bytes] | None:
        """The next frame, None when the client has hung up. Raises MalformedFrame, OSError."""
        while not self._waiting:
            data = await self._connection.receive()
            if not data:
                return None
            self._waiting = self._frames.feed(data)[::-1]
        return self._waiting.pop()

    def tell(self, progress: Progress) -> None:
        """An event for the client. Never waits; a client that reads nothing is given up (OSError)."""
        for piece in frames.message(frames.EVENT, 0, _encoder.encode(progress)):
            self.outbox.put(piece)

    # -- the build

    async def request(self) -> bool:
        """Read the first frame; False when the client went away before. Raises InvalidParameter."""
        try:
            first = await self._next()
        except frames.MalformedFrame as error:
            raise InvalidParameter(f"the request of a build cannot be read: {error}") from error
        if first is None:
            return False
        kind, _, payload = first
        if kind != frames.REQUEST:
            raise InvalidParameter(f"a build began with a frame of the kind {kind}")
        try:
            asked = msgspec.json.decode(payload, type=Request)
            self.secrets = {id: base64.b64decode(text, validate=True) for id, text in asked.secrets.items()}
        except (msgspec.DecodeError, binascii.Error) as error:
            raise InvalidParameter(f"the request of a build cannot be read: {error}") from error
        self.options = asked.options
        self.agents = frozenset(asked.options.ssh)
        self.auths = {host: from_members(members) for host, members in asked.auth.items() if isinstance(members, dict)}
        self._names = asked.contexts
        self._arrived = {name: trio.Event() for name in asked.contexts}
        return True

    async def refuse(self, error: KnarrError) -> None:
        """Tell a client that its request makes no sense. Raises OSError."""
        for piece in frames.message(frames.ERROR, 0, _error(error)):
            await self._connection.send(piece)

    async def serve(self, open_upload: Callable[[str, bytes], Awaitable[Upload]], build: Callable[[], Awaitable[Result]]) -> None:
        """Run `build` while frames come and go, and tell its result. Raises OSError when the client is gone."""
        with ungrouped():
            await self._serve(open_upload, build)

    async def _serve(self, open_upload: Callable[[str, bytes], Awaitable[Upload]], build: Callable[[], Awaitable[Result]]) -> None:
        async with trio.open_nursery() as writing:
            writing.start_soon(self.outbox.run, self._connection.send)
            last: list[bytes] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, open_upload, nursery.cancel_scope)
                try:
                    result = await build()
                    last = frames.message(frames.RESULT, 0, _encoder.encode(result))
                except KnarrError as error:
                    last = frames.message(frames.ERROR, 0, _error(error))
                except OSError as error:
                    if isinstance(error, ConnectionError):
                        raise
                    last = frames.message(frames.ERROR, 0, _error(KnarrError(str(error))))
                nursery.cancel_scope.cancel()
            if not last:  # the client wants no more
                writing.cancel_scope.cancel()
                return
            for piece in last:
                self.outbox.put(piece)
            self.outbox.close()

    async def _read(self, open_upload: Callable[[str, bytes], Awaitable[Upload]], scope: trio.CancelScope) -> None:
        """What the client sends, until it hangs up or says that it wants no more."""
        try:
            async with trio.open_nursery() as nursery:
                while (found := await self._next()) is not None:
                    kind, stream, payload = found
                    if kind == frames.CANCEL:
                        break
                    await self._take(kind, stream, payload, open_upload, nursery)
                nursery.cancel_scope.cancel()
        except* frames.MalformedFrame as group:
            log.warning("a client of a build is given up: %s", group.exceptions[0])
        except* (OSError, trio.ClosedResourceError, trio.BrokenResourceError):
            pass  # it is gone
        scope.cancel()

    async def _take(
        self, kind: int, stream: int, payload: bytes, open_upload: Callable[[str, bytes], Awaitable[Upload]], nursery: trio.Nursery
    ) -> None:
        match kind:
            case frames.MANIFEST if stream < len(self._names) and stream not in self._opened:
                self._opened[stream] = trio.Event()
                nursery.start_soon(self._receive, stream, payload, open_upload)
            case frames.FILES if stream in self._opened:
                await self._opened[stream].wait()
                if stream in self._uploads:
                    await self._uploads[stream].feed(payload)
            case frames.CHANNEL | frames.CHANNEL_END:
                channel = self._channels.get(stream)
                if channel is not None:
                    channel.put(payload if kind == frames.CHANNEL else b"")
            case _:
                raise frames.MalformedFrame(f"a frame of the kind {kind} on stream {stream} came unasked")

    async def _receive(self, stream: int, payload: bytes, open_upload: Callable[[str, bytes], Awaitable[Upload]]) -> None:
        """One context, from its manifest to its tree. In a task of its own, so that a client that hangs up is noticed meanwhile."""
        name = self._names[stream]
        try:
            try:
                upload = self._uploads[stream] = await open_upload(name, payload)
            finally:
                self._opened[stream].set()
            for piece in frames.message(frames.NEED, stream, upload.need):
                await self.outbox.send(piece)
            self._trees[name] = await upload.finish()
        except (KnarrError, OSError) as error:
            self._failures[name] = error
        self._arrived[name].set()

    async def context(self, name: str) -> Tree:
        """A context, as soon as it is complete. Raises InvalidParameter for one that the client does not send, KnarrError."""
        if name not in self._arrived:
            raise InvalidParameter(f"there is no build context {name!r}")
        await self._arrived[name].wait()
        if name in self._failures:
            raise self._failures[name]
        return self._trees[name]

    # -- outputs and agents

    async def output(self, number: int, pieces: AsyncIterator[bytes]) -> None:
        """Send the output of that index."""
        async for piece in pieces:
            for start in range(0, len(piece), frames.MAX_PAYLOAD):
                await self.outbox.send(frames.frame(frames.OUTPUT, number, piece[start : start + frames.MAX_PAYLOAD]))
        await self.outbox.send(frames.frame(frames.OUTPUT_END, number, b""))

    async def connect(self, id: str, stream: trio.SocketStream) -> None:
        """Serve one connection to the client's agent `id`."""
        number = self._next_channel
        self._next_channel = number % frames.MAX_STREAM + 1
        channel = self._channels[number] = _Channel()
        for piece in frames.message(frames.OPEN, number, id.encode()):
            await self.outbox.send(piece)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._to_client, number, stream)
                async for data in channel.take:
                    if not data:
                        break
                    await stream.send_all(data)
                nursery.cancel_scope.cancel()
        finally:
            del self._channels[number]
            channel.take.close()

    async def _to_client(self, number: int, stream: trio.SocketStream) -> None:
        async for data in stream:
            await self.outbox.send(frames.frame(frames.CHANNEL, number, bytes(data)))
        await self.outbox.send(frames.frame(frames.CHANNEL_END, number, b""))


def _error(error: KnarrError) -> bytes:
    excerpt = getattr(error, "excerpt", "")
    return json.dumps({"message": str(error), "status": error.status, "excerpt": excerpt() if callable(excerpt) else excerpt}).encode()
