"""The HTTP server against a handler of the test: framing, keep-alive, hijacking, limits. Over real unix sockets."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio

from engine.http import connection, exchange
from engine.http.errors import ClientGone
from engine.http.exchange import Exchange
from engine.http.listeners import open_listeners
from engine.http.server import Server

Handler = Callable[[Exchange], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(handler: Handler, path: Path) -> AsyncIterator[Server]:
    server = Server(handler, b"X-Base: yes\r\n")
    listeners = open_listeners([f"unix://{path}"])
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run, listeners)
        yield server
        nursery.cancel_scope.cancel()


async def connect(path: Path) -> trio.SocketStream:
    return await trio.open_unix_socket(path)


async def read_until(stream: trio.SocketStream, end: bytes) -> bytes:
    data = b""
    with trio.fail_after(60):
        while not data.endswith(end):
            part = await stream.receive_some(65536)
            if not part:
                break
            data += part
    return data


async def read_all(stream: trio.SocketStream) -> bytes:
    return await read_until(stream, b"\0never\0")


async def emptied(server: Server) -> None:
    while server.connections:  # noqa: ASYNC110
        await trio.sleep(0.01)


def run(test: Callable[..., Awaitable[None]], *args: object) -> None:
    async def bounded() -> None:
        with trio.fail_after(120):
            await test(*args)

    trio.run(bounded)


async def echo(x: Exchange) -> None:
    body = await x.body()
    await x.reply(200, f"{x.method} {x.target} ".encode() + body, "text/plain")


GET = b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n"


def test_replies_carry_base_headers_and_length(tmp_path: Path) -> None:
    async def check() -> None:
        async with serving(echo, tmp_path / "s"):
            stream = await connect(tmp_path / "s")
            await stream.send_all(GET)
            reply = await read_until(stream, b"GET /a?b=c ")
            assert reply.startswith(b"HTTP/1.1 200 OK\r\nX-Base: yes\r\n")
            assert b"Content-Length: 11\r\n" in reply
            assert b"\r\nDate: " in reply

    run(check)


def test_keep_alive_and_pipelining(tmp_path: Path) -> None:
    async def check() -> None:
        async with serving(echo, tmp_path / "s"):
            stream = await connect(tmp_path / "s")
            post = b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
            await stream.send_all(GET * 3 + post + b"GET /last HTTP/1.1\r\nHost: x\r\n\r\n")
            reply = await read_until(stream, b"GET /last ")
            assert reply.count(b"HTTP/1.1 200 OK") == 5
            assert b"POST /p abc" in reply

    run(check)


@pytest.mark.parametrize(
    ("head", "closes"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", False),
    ],
)
def test_connection_close(tmp_path: Path, head: bytes, closes: bool) -> None:
    async def check() -> None:
        async with serving(echo, tmp_path / "s"):
            stream = await connect(tmp_path / "s")
            await stream.send_all(head)
            await read_until(stream, b"GET / ")
            with trio.move_on_after(60 if closes else 0.3) as scope:
                assert await stream.receive_some(1) == b""
            assert scope.cancelled_caught is not closes

    run(check)


def test_chunked_body_and_continue(tmp_path: Path) -> None:
    async def check() -> None:
        async with serving(echo, tmp_path / "s"):
            stream = await connect(tmp_path / "s")
            await stream.send_all(b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n")
            assert await read_until(stream, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            await stream.send_all(b"3\r\nabc\r\n")
            await stream.send_all(b"2\r\nde\r\n0\r\n\r\n")
            assert b"POST /c abcde" in await read_until(stream, b"abcde")
            await stream.send_all(GET)
            assert b"GET /a?b=c " in await read_until(stream, b"b=c ")

    run(check)


def test_uploads_arrive_piece_by_piece(tmp_path: Path) -> None:
    sizes: list[int] = []

    async def count(x: Exchange) -> None:
        total = 0
        async for part in x.chunks():
            sizes.append(len(part))
            total += len(part)
        await x.reply(200, str(total).encode(), "text/plain")

    async def check() -> None:
        async with serving(count, tmp_path / "s"):
            stream = await connect(tmp_path / "s")
            await stream.send_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, bytes(10_000_000))
                assert (await read_until(stream, b"10000000")).endswith(b"10000000")
            assert max(sizes) <= 65536

    run(check)


def test_stream_is_flushed_at_once_and_framed(tmp_path: Path) -> None:
    seen = trio.Event()

    async def slow(x: Exchange) -> None:
        await x.stream()
        await x.write(b"tick\n")
        await seen.wait()
        await x.write(b"tick\n")
        await x.finish(b"end\n")

    async def check() -> None:
        async with serving(slow, tmp_path / "s"):
            stream = await connect(tmp_path / "s")
            await stream.send_all(GET)
            first = await stream.receive_some(65536)
            assert b"Transfer-Encoding: chunked" in first
            assert b"end" not in first
            seen.set()
            rest = await read_until(stream, b"0\r\n\r\n")
            assert (first + rest).endswith(b"5\r\ntick\n\r\n5\r\ntick\n\r\n4\r\nend\n\r\n0\r\n\r\n")
            await stream.send_all(GET)
            assert b"200 OK" in await read_until(stream, b"0\r\n\r\n")

    run(check)


def test_http_1_0_streams_end_with_the_connection(tmp_path: Path) -> None:
    async def stream_it(x: Exchange) -> None:
        await x.stream()
        await x.finish(b"all")

    async def check() -> None:
        async with serving(stream_it, tmp_path / "s"):
            stream = await connect(tmp_path / "s")
            await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
            reply = await read_all(stream)
            assert reply.endswith(b"\r\n\r\nall")
            assert b"chunked" not in reply

    run(check)


def test_head_has_no_body(tmp_path: Path) -> None:
    async def check() -> None:
        async with serving(echo, tmp_path / "s"):
            stream = await connect(tmp_path / "s")
            await stream.send_all(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
            reply = await read_until(stream, b"b=c ")
            assert reply.count(b"HEAD / ") == 0
            assert reply.count(b"200 OK") == 2

    run(check)


@pytest.mark.parametrize(
    ("upgrade", "first"), [(b"Connection: Upgrade\r\nUpgrade: tcp\r\n", b"HTTP/1.1 101 UPGRADED"), (b"", b"HTTP/1.1 200 OK")]
)
def test_hijack(tmp_path: Path, upgrade: bytes, first: bytes) -> None:
    async def take(x: Exchange) -> None:
        assert await x.body() == b"{}"
        taken = await x.hijack("application/vnd.docker.raw-stream")
        assert taken.plain_fd() is not None
        while data := await taken.receive():
            await taken.send(data.upper())
        await taken.send(b"BYE")

    async def check() -> None:
        async with serving(take, tmp_path / "s"):
            stream = await connect(tmp_path / "s")
            await stream.send_all(b"POST /attach HTTP/1.1\r\nHost: x\r\n" + upgrade + b"Content-Length: 2\r\n\r\n{}early ")
            head = await read_until(stream, b"EARLY ")
            assert head.startswith(first + b"\r\n")
            assert b"Content-Type: application/vnd.docker.raw-stream\r\n" in head
            assert b"Content-Length" not in head
            await stream.send_all(b"late")
            await stream.send_eof()  # a half-close ends the input, not the output
            assert await read_all(stream) == b"LATEBYE"

    run(check)


def test_a_taken_connection_survives_in_another_hand(tmp_path: Path) -> None:
    """As attach does: the descriptor goes elsewhere and our copy is closed."""
    kept: list[socket.socket] = []

    async def give(x: Exchange) -> None:
        taken = await x.hijack("a/b")
        kept.append(socket.socket(fileno=os.dup(taken.plain_fd() or -1)))
        taken.close()

    async def check() -> None:
        async with serving(give, tmp_path / "s"):
            stream = await connect(tmp_path / "s")
            await stream.send_all(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n")
            await read_until(stream, b"\r\n\r\n")
            await trio.sleep(0.05)
            kept[0].send(b"still here")
            assert await read_until(stream, b"here") == b"still here"
            kept[0].close()
            assert await read_all(stream) == b""

    run(check)


def test_waiting_ends_when_the_client_goes(tmp_path: Path) -> None:
    outcome: list[str] = []

    async def wait(x: Exchange) -> None:
        await x.stream()
        try:
            async with x.while_connected():
                await trio.sleep_forever()
        except ClientGone:
            outcome.append("gone")
            raise

    async def check() -> None:
        async with serving(wait, tmp_path / "s") as server:
            stream = await connect(tmp_path / "s")
            await stream.send_all(GET)
            await read_until(stream, b"\r\n\r\n")
            await stream.aclose()
            await emptied(server)
            assert outcome == ["gone"]

    run(check)


def test_a_request_sent_while_waiting_is_kept(tmp_path: Path) -> None:
    async def wait(x: Exchange) -> None:
        async with x.while_connected():
            await trio.sleep(0.1)
        await x.reply(200, x.target.encode(), "text/plain")

    async def check() -> None:
        async with serving(wait, tmp_path / "s"):
            stream = await connect(tmp_path / "s")
            await stream.send_all(GET)
            await trio.sleep(0.03)
            await stream.send_all(b"GET /second HTTP/1.1\r\nHost: x\r\n\r\n")
            reply = await read_until(stream, b"\r\n/second")
            assert b"/a?b=c" in reply

    run(check)


def test_an_error_while_waiting_is_not_wrapped(tmp_path: Path) -> None:
    async def fail(x: Exchange) -> None:
        try:
            async with x.while_connected():
                raise KeyError("plain")
        except KeyError as error:
            await x.reply(200, repr(error).encode(), "text/plain")

    async def check() -> None:
        async with serving(fail, tmp_path / "s"):
            stream = await connect(tmp_path / "s")
            await stream.send_all(GET)
            assert b"KeyError('plain')" in await read_until(stream, b"')")

    run(check)


def test_a_slow_reader_holds_up_only_itself(tmp_path: Path) -> None:
    async def flood(x: Exchange) -> None:
        if x.target == "/flood":
            await x.stream()
            while True:
                await x.write(bytes(65536))
        await x.reply(200, b"fine", "text/plain")

    async def check() -> None:
        async with serving(flood, tmp_path / "s"):
            slow, quick = await connect(tmp_path / "s"), await connect(tmp_path / "s")
            await slow.send_all(b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
            await trio.sleep(0.05)
            await quick.send_all(GET)
            assert b"fine" in await read_until(quick, b"fine")

    run(check)


def test_unread_body_does_not_poison_the_connection(tmp_path: Path) -> None:
    async def ignore(x: Exchange) -> None:
        await x.reply(200, b"ok", "text/plain")

    async def check() -> None:
        async with serving(ignore, tmp_path / "s"):
            stream = await connect(tmp_path / "s")
            await stream.send_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nGET /" + GET)
            reply = b""
            while reply.count(b"200 OK") < 2:
                reply += await read_until(stream, b"ok")

    run(check)


def test_half_a_request_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.1)
    monkeypatch.setattr(exchange, "BODY_SECONDS", 0.1)

    async def body(x: Exchange) -> None:
        from engine.errors import KnarrError

        try:
            await x.body()
        except KnarrError as error:
            await x.error(error.status, str(error))

    async def check() -> None:
        async with serving(body, tmp_path / "s"):
            for half in (b"GET / HT", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf"):
                stream = await connect(tmp_path / "s")
                await stream.send_all(half)
                reply = await read_all(stream)
                assert reply.startswith(b"HTTP/1.1 408 ")
                assert b'{"message":' in reply

    run(check)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/1.1\r\nHost: x\r\nBad Header: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 50 + b"\n\n", 400),  # TLS on a plain port
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 200_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 200_000, 431),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
    ],
)
def test_bad_heads_are_refused(tmp_path: Path, data: bytes, status: int) -> None:
    async def check() -> None:
        async with serving(echo, tmp_path / "s") as server:
            stream = await connect(tmp_path / "s")
            await stream.send_all(data)
            await stream.send_eof()
            reply = await read_all(stream)
            assert reply.startswith(b"HTTP/1.1 %d " % status), reply
            assert b'{"message":' in reply
            await emptied(server)

    run(check)


def test_a_handler_that_fails_costs_one_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(x: Exchange) -> None:
        if x.target == "/fail":
            raise ZeroDivisionError("on purpose")
        await x.reply(200, b"ok", "text/plain")

    async def check() -> None:
        async with serving(fail, tmp_path / "s"):
            stream = await connect(tmp_path / "s")
            await stream.send_all(b"GET /fail HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b" 500 " in await read_until(stream, b"}\n")
            await stream.send_all(GET)
            assert (await read_until(stream, b"ok")).endswith(b"ok")

    run(check)
    assert "on purpose" in caplog.text


def test_a_stream_that_breaks_off_is_not_ended_properly(tmp_path: Path) -> None:
    async def fail(x: Exchange) -> None:
        await x.stream()
        await x.write(b"half")
        raise ZeroDivisionError("on purpose")

    async def check() -> None:
        async with serving(fail, tmp_path / "s"):
            stream = await connect(tmp_path / "s")
            await stream.send_all(GET)
            reply = await read_all(stream)
            assert reply.endswith(b"4\r\nhalf\r\n")

    run(check)


def test_connections_end_with_the_server(tmp_path: Path) -> None:
    async def check() -> None:
        async with serving(echo, tmp_path / "s"):
            stream = await connect(tmp_path / "s")
            await stream.send_all(GET)
            await read_until(stream, b"b=c ")
        assert await stream.receive_some(1) == b""
        assert not (tmp_path / "s").exists()

    run(check)
