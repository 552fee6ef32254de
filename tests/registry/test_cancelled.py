"""Requests that are given up while they connect: nothing of them stays open, although nothing is collected."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import trio

from engine.registry.proxies import Proxies
from engine.registry.transport import Transport


@pytest.fixture(autouse=True)
def uncollected() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("proxied", [False, True])
def test_a_handshake_that_is_cancelled_closes_its_connection(proxied: bool) -> None:
    async def main() -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        # A proxy is never asked for an address of loopback. Nobody is asked for this one: the proxy only says that it did.
        transport = Transport(Proxies(https=address) if proxied else Proxies())
        url = "https://192.0.2.1/v2/" if proxied else f"https://{address}/v2/"
        sending = trio.CancelScope()

        async def send() -> None:
            with sending:
                await transport.send("GET", url)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            server = await listener.accept()
            if proxied:
                assert (await server.receive_some()).startswith(b"CONNECT 192.0.2.1:443 ")
                await server.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
            assert (await server.receive_some())[:2] == b"\x16\x03"  # a handshake of TLS
            sending.cancel()
            assert await server.receive_some() == b""
        await transport.close()
        await listener.aclose()

    async def soon() -> None:
        with trio.fail_after(60):
            await main()

    trio.run(soon)
