"""Whatever bytes arrive, in whatever pieces: the connection answers or ends, and nothing is raised."""

from __future__ import annotations

import re

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import KnarrError
from engine.http import connection as connections
from engine.http.connection import Connection
from engine.http.exchange import Exchange

SEEDS = [
    b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n3\r\nabc\r\n0\r\nTrailer: t\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"POST /attach HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 2\r\n\r\n{}raw",
]


class Memory:
    """A transport that plays pieces and then ends."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.sent = b""

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        return self.pieces.pop(0) if self.pieces else b""

    def try_send(self, data: bytes) -> int:
        self.sent += data
        return len(data)

    async def send(self, data: bytes) -> None:
        self.sent += data

    async def send_eof(self) -> None:
        pass

    def plain_fd(self) -> int | None:
        return None

    def close(self) -> None:
        pass


async def handler(x: Exchange) -> None:
    try:
        body = await x.body(limit=1000)
        if x.target.startswith("/attach"):
            taken = await x.hijack("a/b")
            while await taken.receive():
                pass
            return
        await x.reply(200, body, "text/plain")
    except KnarrError as error:
        await x.error(error.status, str(error))


@st.composite
def mutated(draw: st.DrawFn) -> list[bytes]:
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(SEEDS), min_size=1, max_size=3))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        new = draw(st.binary(max_size=6) | st.sampled_from([b"\r\n", b"\0", b"\xff", b"99999999999", b":"]))
        data[at : at + draw(st.integers(0, 6))] = new
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=5)))
    pieces = [bytes(data[a:b]) for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return [piece for piece in pieces if piece]


@settings(max_examples=300, deadline=None)
@given(mutated() | st.lists(st.binary(min_size=1, max_size=80), max_size=4))
def test_any_input(pieces: list[bytes]) -> None:
    transport = Memory(list(pieces))

    async def main() -> None:
        with trio.fail_after(60):
            await Connection(transport, handler, b"").run()

    trio.run(main)
    replies = transport.sent
    assert not replies or re.match(rb"HTTP/1\.1 (100|101|200|4\d\d) ", replies), replies
    assert b" 500 " not in replies.partition(b"\r\n")[0]


def test_limits_have_sane_values() -> None:
    assert connections.MAX_HEAD >= 16384
