"""One client's connection: requests in, one at a time, until either side ends it. RFC 9112; h11 parses, replies are written here.

h11 checks what hostile or broken clients send. Replies are plain bytes put together by `Exchange`, one send each: h11's writer would check
again what is known to be right, and a fresh parser for each request is cheaper than keeping its two halves in step. The connection has
no nursery and no timer while a request that arrived in one piece is served.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import h11
import trio

from engine.http.errors import BadRequest, ClientGone, HeadTooLarge, RequestTimeout
from engine.http.exchange import Exchange
from engine.http.transport import Transport

Handler = Callable[[Exchange], Awaitable[None]]

MAX_HEAD = 64 * 1024  # bytes of request line and headers; registry credentials and filters travel there
HEAD_SECONDS = 30.0  # from the first byte of a request to the end of its head
LINGER_SECONDS = 2.0
LINGER_BYTES = 4 * 1024 * 1024

_log = logging.getLogger("knarr.http")


class Connection:
    """A connection being served. `idle_since` is trio's clock while it waits for a request, else None; `scope` ends it."""

    __slots__ = ("base_headers", "handler", "idle_since", "pending", "scope", "transport")

    def __init__(self, transport: Transport, handler: Handler, base_headers: bytes) -> None:
        self.transport = transport
        self.handler = handler
        self.base_headers = base_headers
        self.pending = b""  # bytes that arrived and belong to the next request, or to a hijacked stream
        self.idle_since: float | None = None
        self.scope = trio.CancelScope()

    async def run(self) -> None:
        """Serve until the client goes, an error makes the stream unusable, or the connection was taken over. Closes the socket."""
        try:
            with self.scope:
                while await self._serve_one():
                    pass
        except (OSError, ClientGone, trio.ClosedResourceError):
            pass  # the client's end of the story; what it waited for was cancelled on the way here
        finally:
            self.transport.close()

    async def receive(self) -> bytes:
        """Bytes of the client, those put back first."""
        if self.pending:
            data, self.pending = self.pending, b""
            return data
        return await self.transport.receive()

    async def _serve_one(self) -> bool:
        """One request and its reply; whether another may follow."""
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        try:
            request = await self._read_head(parser)
        except (BadRequest, RequestTimeout, HeadTooLarge) as error:
            await self._refuse(parser, error)
            return False
        if request is None:
            return False
        exchange = Exchange(self, parser, request)
        try:
            await self.handler(exchange)
        except ClientGone:
            return False
        except Exception:
            # The handler answers errors itself; what ends here is a defect of ours after (or while) the reply was sent.
            _log.exception("serving %s %s", exchange.method, exchange.target)
            if exchange.started:
                return False
            await exchange.error(500, "internal error, see the daemon's log")
        if exchange.hijacked:
            return False
        return await self._finish(exchange)

    async def _finish(self, exchange: Exchange) -> bool:
        """After the reply: drop what is left of the body; whether the connection can be used again."""
        if not exchange.started:
            await exchange.error(500, "the request was not answered")
        if not exchange.complete:
            return False  # a stream that broke off: closing is how a chunked reply says so
        if not await exchange.drain(64 * 1024):
            await self._linger()
            return False
        if not exchange.keep_alive:
            return False
        if self.pending:
            await trio.lowlevel.checkpoint()  # a client that pipelines must not keep the others waiting
        return True

    async def _read_head(self, parser: h11.Connection) -> h11.Request | None:
        """The next request, None when the client closed between two. Raises BadRequest, HeadTooLarge, RequestTimeout."""
        if not self.pending:
            self.idle_since = trio.current_time()
            try:
                self.pending = await self.transport.receive()
            finally:
                self.idle_since = None
            if not self.pending:
                return None
        event = self._feed(parser)
        if event is None:
            with trio.move_on_after(HEAD_SECONDS):
                while event is None:
                    self.pending = await self.transport.receive()
                    if not self.pending:
                        raise ClientGone
                    event = self._feed(parser)
            if event is None:
                raise RequestTimeout(f"the request was not complete after {HEAD_SECONDS:.0f} seconds")
        return event

    def _feed(self, parser: h11.Connection) -> h11.Request | None:
        data, self.pending = self.pending, b""
        try:
            parser.receive_data(data)
            event = parser.next_event()
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == 431:
                raise HeadTooLarge(f"the request's headers are larger than {MAX_HEAD} bytes")
            raise BadRequest(f"malformed HTTP request: {error}")
        if not isinstance(event, h11.Request):
            return None
        if event.http_version not in (b"1.1", b"1.0"):
            raise BadRequest(f"HTTP/{event.http_version.decode('ascii')} is not spoken here, use HTTP/1.1")
        return event

    async def _refuse(self, parser: h11.Connection, error: BadRequest | RequestTimeout | HeadTooLarge) -> None:
        """Answer a request that could not be read, and end the connection."""
        refused = Exchange(self, parser, None)
        await refused.error(error.status, str(error))
        await self._linger()

    async def _linger(self) -> None:
        """Let the client read our last reply: closing a socket with unread input would reset it (RFC 9112 section 9.6)."""
        await self.transport.send_eof()
        left = LINGER_BYTES
        with trio.move_on_after(LINGER_SECONDS):
            while left > 0:
                data = await self.transport.receive()
                if not data:
                    return
                left -= len(data)
