"""A request and its reply: the object that handlers work with.

A reply is one of: `reply` (whole body, one send), `stream` (chunked, each chunk flushed), `sized` and `part` (pieces of a file, sent by the
kernel), `hijack` (the raw connection: attach, exec). It owns the framing of both bodies; it must not know what is asked. RFC 9112;
hijacking follows the Engine API, "Attach to a container".
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING

import h11
import msgspec
import trio

from engine.http.errors import BadRequest, ClientGone, RequestTimeout, TooLarge
from engine.http.sendfile import send_file

if TYPE_CHECKING:
    from engine.http.connection import Connection
    from engine.http.transport import Transport

BODY_LIMIT = 4 * 1024 * 1024  # bytes of a body that is read as a whole
BODY_SECONDS = 30.0  # for such a body to arrive
CHUNK_SECONDS = 600.0  # between two pieces of an upload
REPLY_SECONDS = 60.0  # for a client to take a reply that is sent as a whole
# Pieces of a body that are taken in a row before others have their turn. Each costs some 50 µs, and a client may send any number of them
# faster than they are taken: chunks of one byte kept the loop for 17 s.
_TURN = 16

JSON = "application/json"

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_date: tuple[int, bytes] = (0, b"")


def _date_line() -> bytes:
    """`Date: ...`, made once a second."""
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = (now, time.strftime("Date: %a, %d %b %Y %H:%M:%S GMT\r\n", time.gmtime(now)).encode())
    return _date[1]


def _joined(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Fields that came more than once as one, their values separated by commas (RFC 9110 section 5.3)."""
    joined: dict[bytes, bytes] = {}
    for name, value in headers:
        joined[name] = joined[name] + b", " + value if name in joined else value
    return joined


class Hijacked:
    """A connection that was taken over: raw bytes both ways from here on.

    `early` are bytes that arrived behind the request. `socket` is the raw non-blocking socket, or a trio SSLStream under TLS.
    """

    def __init__(self, transport: Transport, early: bytes) -> None:
        self._transport = transport
        self.early = early

    @property
    def socket(self) -> object:
        """The socket below, see the class."""
        return getattr(self._transport, "socket", None)

    def plain_fd(self) -> int | None:
        """A descriptor that can be handed to another process; None when bytes must pass through here (TLS)."""
        return self._transport.plain_fd()

    async def receive(self) -> bytes:
        """The next bytes of the client, `early` first; b"" at the end of its input. Raises OSError."""
        if self.early:
            data, self.early = self.early, b""
            return data
        return await self._transport.receive()

    async def send(self, data: bytes) -> None:
        """Send all of it; raises OSError when the client is gone."""
        await self._transport.send(data)

    async def send_eof(self) -> None:
        """Half-close: nothing more will be sent."""
        await self._transport.send_eof()

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()


class Exchange:
    """One request and its reply. `status` and `sent` tell of the reply what an access log says: 0 until it began, bytes of its body."""

    __slots__ = (
        "_body_done", "_broken", "_chunked", "_connection", "_expects", "_left", "_parser", "_taken", "complete", "headers", "hijacked",
        "http11", "keep_alive", "method", "sent", "started", "status", "target",
    )  # fmt: skip

    def __init__(self, connection: Connection, parser: h11.Connection, request: h11.Request | None) -> None:
        self._connection = connection
        self._parser = parser
        self._chunked = False
        self.started = self.complete = self.hijacked = False
        self.status = self.sent = self._left = self._taken = 0
        if request is None:  # a head that could not be read
            self.method, self.target = "", ""
            self.headers: dict[bytes, bytes] = {}
            self.http11, self.keep_alive, self._expects, self._body_done = True, False, False, True
            self._broken = True
            return
        self.method = request.method.decode("ascii")
        self.target = request.target.decode("ascii")
        self.headers = dict(request.headers)
        if len(self.headers) != len(request.headers):
            self.headers = _joined(request.headers)
        self.http11 = request.http_version == b"1.1"
        wanted = self.headers.get(b"connection", b"").lower()
        self.keep_alive = b"close" not in wanted if self.http11 else b"keep-alive" in wanted
        self._expects = self.http11 and self.headers.get(b"expect", b"").lower() == b"100-continue"
        self._body_done = self.headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in self.headers
        self._broken = False
        if self._body_done:
            connection.pending = bytes(parser.trailing_data[0])

    @property
    def peer(self) -> str:
        """The client's address, `host:port`; "" on a unix socket or when it is gone."""
        return self._connection.transport.peer()

    # the request's body

    @property
    def has_body(self) -> bool:
        """Whether a body was announced and is not read yet."""
        return not self._body_done

    async def body(self, limit: int = BODY_LIMIT) -> bytes:
        """The whole body. Raises TooLarge, RequestTimeout, BadRequest, ClientGone."""
        if self._body_done:
            return b""
        announced = self.headers.get(b"content-length")
        if announced is not None and int(announced) > limit:
            raise TooLarge(f"the request's body is larger than {limit} bytes")
        found = bytearray()  # a list of tiny parts would take many times their bytes
        with trio.move_on_after(BODY_SECONDS) as scope:
            while part := await self._next_part():
                if len(found) + len(part) > limit:
                    raise TooLarge(f"the request's body is larger than {limit} bytes")
                found += part
        if scope.cancelled_caught:
            raise RequestTimeout(f"the request's body did not arrive within {BODY_SECONDS:.0f} seconds")
        return bytes(found)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body piece by piece, as it arrives; for uploads of any size. Raises RequestTimeout, BadRequest, ClientGone."""
        while True:
            part = b""
            with trio.move_on_after(CHUNK_SECONDS) as scope:
                part = await self._next_part()
            if scope.cancelled_caught:
                raise RequestTimeout(f"no byte of the request's body arrived for {CHUNK_SECONDS:.0f} seconds")
            if not part:
                return
            yield part

    async def _next_part(self) -> bytes:
        """The next piece of the body, b"" at its end."""
        if self._body_done:
            return b""
        if self._expects:
            self._expects = False
            await self._connection.transport.send(_CONTINUE)
        while True:
            try:
                event = self._parser.next_event()
            except h11.RemoteProtocolError as error:
                self._break()
                raise BadRequest(f"malformed request body: {error}")
            if isinstance(event, h11.Data):
                self._taken += 1
                if self._taken % _TURN == 0:
                    await trio.lowlevel.checkpoint()
                if event.data:
                    return bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self._end_of_body()
                return b""
            elif event is h11.NEED_DATA:
                await self._more()

    async def _more(self) -> None:
        try:
            data = await self._connection.receive()
        except OSError as error:
            raise ClientGone from error
        if data:
            self._parser.receive_data(data)
        else:
            self._break()
            raise BadRequest("the request's body ended early")

    def _break(self) -> None:
        """The input makes no sense any more: no further request can be found in it."""
        self._body_done, self._broken, self.keep_alive = True, True, False

    def _end_of_body(self) -> None:
        """Give what follows the request back to the connection."""
        self._body_done = True
        self._connection.pending = bytes(self._parser.trailing_data[0]) + self._connection.pending

    async def drain(self, limit: int) -> bool:
        """Drop what is left of the body, `limit` bytes at most; whether its end was reached."""
        if self._body_done:
            return not self._broken
        if self._expects or int(self.headers.get(b"content-length", b"0")) > limit:
            return False  # the client holds its body back and may or may not send it now; or it is not worth the wait
        try:
            with trio.move_on_after(1):
                while part := await self._next_part():
                    limit -= len(part)
                    if limit < 0:
                        return False
        except BadRequest:
            return False
        return self._body_done and not self._broken

    # the reply

    def _head(self, status: int, fields: bytes) -> bytes:
        self.status = status
        connection = b"" if self.keep_alive or not self.http11 else b"Connection: close\r\n"
        return _STATUS_LINES[status] + self._connection.base_headers + fields + _date_line() + connection

    @staticmethod
    def _type(content_type: str) -> str:
        """The field, for values that may come from a stranger's document: one that could end the line is not told."""
        return f"Content-Type: {content_type if content_type.isascii() and content_type.isprintable() else 'application/octet-stream'}\r\n"

    async def reply(self, status: int, body: bytes = b"", content_type: str = JSON, fields: bytes = b"") -> None:
        """Send a whole reply. `fields` are further header lines, each ended by CRLF. Raises ClientGone."""
        self.started = True
        if status in (204, 304):
            head = self._head(status, fields) + b"\r\n"
            body = b""
        elif body or content_type != JSON:
            head = self._head(status, fields) + f"{self._type(content_type)}Content-Length: {len(body)}\r\n\r\n".encode()
        else:
            head = self._head(status, fields) + b"Content-Length: 0\r\n\r\n"
        await self._send_whole(head if self.method == "HEAD" else head + body)
        self.sent = 0 if self.method == "HEAD" else len(body)
        self.complete = True

    async def error(self, status: int, message: str) -> None:
        """Reply with the Engine API's form of an error: `{"message": ...}`."""
        await self.reply(status, b"" if status == 304 else msgspec.json.encode({"message": message}) + b"\n")

    async def sized(self, count: int, *, status: int = 200, content_type: str, fields: bytes = b"") -> None:
        """Send the head of a reply of `count` bytes, which `part` sends. For HEAD that is all. Raises ClientGone."""
        self.started = True
        self._left = count
        head = self._head(status, fields) + f"{self._type(content_type)}Content-Length: {count}\r\n\r\n".encode()
        await self._send_whole(head)
        self.complete = self.method == "HEAD" or not count

    async def part(self, descriptor: int, offset: int, count: int) -> None:
        """Send `count` bytes of an open file from `offset`, as the next ones of a `sized` reply. Raises ClientGone."""
        try:
            await send_file(self._connection.transport, descriptor, offset, count)
        except OSError as error:
            raise ClientGone from error
        self.sent += count
        self._left -= count
        self.complete = not self._left

    async def _send_whole(self, data: bytes) -> None:
        transport = self._connection.transport
        try:
            sent = transport.try_send(data)
            if sent == len(data):
                return
            with trio.move_on_after(REPLY_SECONDS) as scope:
                await transport.send(data[sent:])
        except OSError as error:
            raise ClientGone from error
        if scope.cancelled_caught:
            raise ClientGone

    async def stream(self, status: int = 200, content_type: str = JSON, fields: bytes = b"") -> None:
        """Send the head of a reply of unknown length, now; `write` and `end` follow. Raises ClientGone."""
        self.started = True
        self._chunked = self.http11
        if self._chunked:
            framing = f"Content-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        else:
            self.keep_alive = False
            framing = f"Content-Type: {content_type}\r\n\r\n".encode()
        await self._send(self._head(status, fields) + framing)

    async def write(self, data: bytes) -> None:
        """Send a piece of a streamed reply; waits as long as the client does not read. Always a checkpoint. Raises ClientGone."""
        await trio.lowlevel.checkpoint()  # a quick reader of a long log must not keep the others waiting
        if data and self.method != "HEAD":
            await self._send(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
            self.sent += len(data)

    async def write_file(self, descriptor: int, offset: int, count: int) -> None:
        """Send `count` bytes of an open file, from `offset`, as a piece of a streamed reply. Raises ClientGone."""
        if not count or self.method == "HEAD":
            return
        if self._chunked:
            await self._send(b"%x\r\n" % count)
        try:
            await send_file(self._connection.transport, descriptor, offset, count)
        except OSError as error:
            raise ClientGone from error
        if self._chunked:
            await self._send(b"\r\n")
        self.sent += count

    async def finish(self, data: bytes) -> None:
        """Send the last piece of a streamed reply and end it, in one go."""
        if self._chunked and data and self.method != "HEAD":
            await self._send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))
            self.complete = True
            return
        await self.write(data)
        await self.end()

    async def end(self) -> None:
        """End a streamed reply."""
        if self._chunked and self.method != "HEAD":
            await self._send(b"0\r\n\r\n")
        self.complete = True

    async def _send(self, data: bytes) -> None:
        try:
            await self._connection.transport.send(data)
        except OSError as error:
            raise ClientGone from error

    async def hijack(self, content_type: str) -> Hijacked:
        """Take the connection over: 101 when the client asked for an upgrade, else 200, then raw bytes. The body must have been read."""
        if not self._body_done:
            raise BadRequest("the request's body was not read before the connection was taken over")
        self.started = self.complete = self.hijacked = True
        base = self._connection.base_headers
        if b"upgrade" in self.headers:
            head = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: %b\r\n" % self.headers[b"upgrade"]
        else:
            head = b"HTTP/1.1 200 OK\r\n"
        await self._send(b"%bContent-Type: %b\r\n%b\r\n" % (head, content_type.encode(), base))
        early, self._connection.pending = self._connection.pending, b""
        return Hijacked(self._connection.transport, early)

    @contextlib.asynccontextmanager
    async def while_connected(self) -> AsyncIterator[None]:
        """Cancel the block when the client closes its connection (raises ClientGone). For long waits only: it starts a task.

        Bytes that arrive meanwhile are kept for the next request; a client that pipelines is not watched any further.
        """
        gone = False
        failure: Exception | None = None

        async def watch() -> None:
            nonlocal gone
            try:
                data = await self._connection.transport.receive()
            except OSError:
                data = b""
            if data:
                self._connection.pending += data
                return
            gone = True
            nursery.cancel_scope.cancel()

        if not self._body_done or self._connection.pending:
            yield
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            try:
                yield
            except Exception as error:  # raised below, so that it does not arrive wrapped in a group
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if gone:
            raise ClientGone
