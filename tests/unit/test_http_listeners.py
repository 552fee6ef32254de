"""Listening sockets: addresses, rights, stale files, TLS, socket activation."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from engine.errors import InvalidParameter, KnarrError
from engine.http import bridge
from engine.http.exchange import Exchange, Hijacked
from engine.http.listeners import TlsFiles, _host_port, open_listener, open_listeners
from engine.http.server import serve


async def hello(x: Exchange) -> None:
    await x.reply(200, b"hello", "text/plain")


def test_unix_socket_is_not_for_everybody(tmp_path: Path) -> None:
    (listener,) = open_listener(f"unix://{tmp_path}/deep/er/s", group="nobody-has-this-group")
    try:
        mode = os.stat(tmp_path / "deep/er/s").st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o660
    finally:
        listener.close()
    assert not (tmp_path / "deep/er/s").exists()


def test_group_by_number(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("chown needs root")
    (listener,) = open_listener(f"unix://{tmp_path}/s", group="54321")
    assert os.stat(tmp_path / "s").st_gid == 54321
    listener.close()


def test_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "s"))
    left.close()
    (listener,) = open_listener(f"unix://{tmp_path}/s")
    with pytest.raises(KnarrError, match="another daemon"):
        open_listener(f"unix://{tmp_path}/s")
    listener.close()


def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(KnarrError, match="in the way"):
        open_listener(f"unix://{tmp_path}/s")
    assert (tmp_path / "s").read_text() == "precious"


def test_another_daemons_socket_is_not_removed(tmp_path: Path) -> None:
    (ours,) = open_listener(f"unix://{tmp_path}/s")
    (tmp_path / "s").unlink()
    (theirs,) = open_listener(f"unix://{tmp_path}/s")
    ours.close()
    assert (tmp_path / "s").exists()
    theirs.close()


def test_all_or_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="unknown protocol"):
        open_listeners([f"unix://{tmp_path}/s", "carrier-pigeon://x"])
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("127.0.0.1", 2375)),
        (":99", ("127.0.0.1", 99)),
        ("h", ("h", 2375)),
        ("h:1", ("h", 1)),
        ("[::1]:5", ("::1", 5)),
        ("[::1]", ("::1", 2375)),
    ],
)
def test_tcp_addresses(text: str, expected: tuple[str, int]) -> None:
    assert _host_port(text, 2375) == expected


@pytest.mark.parametrize("text", ["h:x", "h:99999", "h:-1", "h:\uff11"])
def test_bad_ports(text: str) -> None:
    with pytest.raises(InvalidParameter):
        _host_port(text, 2375)


def _certificates(folder: Path) -> TlsFiles:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=x"
    files = ("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", folder / "cert.pem")
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return TlsFiles(cert=str(folder / "cert.pem"), key=str(folder / "key.pem"), ca=str(folder / "cert.pem"))


def test_tls_with_client_certificates(tmp_path: Path) -> None:
    files = _certificates(tmp_path)
    (listener,) = open_listener("tcp://127.0.0.1:0", tls=files)
    port = listener.socket.getsockname()[1]

    def ask(certificate: bool) -> bytes:
        context = ssl.create_default_context(cafile=files.cert)
        if certificate:
            context.load_cert_chain(files.cert, files.key)
        plain = socket.create_connection(("127.0.0.1", port), timeout=60)
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            return sock.recv(4096)

    async def check() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, hello, [listener])
            assert (await trio.to_thread.run_sync(ask, True)).startswith(b"HTTP/1.1 200 OK")
            with contextlib.suppress(OSError):  # an alert, or just the end
                assert await trio.to_thread.run_sync(ask, False) == b""
            assert (await trio.to_thread.run_sync(ask, True)).startswith(b"HTTP/1.1 200 OK")
            nursery.cancel_scope.cancel()

    trio.run(check)


def test_missing_certificate_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="nowhere"):
        open_listener("tcp://127.0.0.1:0", tls=TlsFiles(cert=f"{tmp_path}/nowhere", key="x"))


def test_socket_activation(tmp_path: Path) -> None:
    """A child gets a listening socket as descriptor 3, as systemd would give it."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "s"))
    sock.listen()
    code = (
        "import os; os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "from engine.http.listeners import open_listener\n"
        "from engine.errors import KnarrError\n"
        "found, = open_listener('fd://api.socket')\n"
        "print(found.socket.getsockname(), os.get_inheritable(3))\n"
        "try: open_listener('fd://other')\n"
        "except KnarrError as error: print(error)\n"
    )

    def third() -> None:
        os.dup2(sock.fileno(), 3)

    environment = {**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "api.socket", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, preexec_fn=third, pass_fds=(3,), env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [f"{tmp_path}/s False", "listening on fd://other: no such socket was handed over"]
    sock.close()


def test_no_activation_is_an_error() -> None:
    with pytest.raises(KnarrError, match="no sockets were handed over"):
        open_listener("fd://")


def test_a_tls_connection_can_be_given_away_too(tmp_path: Path) -> None:
    """Attach over TLS: the process gets a plain socket, half-closes pass both ways."""
    files = _certificates(tmp_path)
    (listener,) = open_listener("tcp://127.0.0.1:0", tls=files)

    holder: list[trio.Nursery] = []

    async def process(client: Hijacked) -> None:
        own = socket.socket(fileno=os.dup(client.plain_fd() or -1))
        client.close()
        holder[0].start_soon(upper, own)

    async def upper(own: socket.socket) -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(own))
        async for data in stream:
            await stream.send_all(data.upper())
        await stream.send_all(b"BYE")
        await stream.aclose()

    async def take(x: Exchange) -> None:
        await bridge.served(await x.hijack("a/b"), process)

    async def check() -> None:
        context = ssl.create_default_context(cafile=files.cert)
        context.load_cert_chain(files.cert, files.key)
        async with trio.open_nursery() as nursery:
            holder.append(nursery)
            nursery.start_soon(serve, take, [listener])
            port = listener.socket.getsockname()[1]
            stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=context, https_compatible=False)
            await stream.send_all(b"POST / HTTP/1.1\r\nHost: x\r\n\r\nearly ")
            data = b""
            with trio.fail_after(60):
                while not data.endswith(b"EARLY "):
                    data += await stream.receive_some(4096)
                await stream.send_all(b"late")
                while not data.endswith(b"LATE"):
                    data += await stream.receive_some(4096)
                with contextlib.suppress(ssl.SSLWantReadError):  # as Go's CloseWrite: close_notify, and go on reading
                    stream._ssl_object.unwrap()  # type: ignore[attr-defined]
                await stream.transport_stream.send_all(stream._outgoing.read())  # type: ignore[attr-defined]
                while not data.endswith(b"BYE"):
                    data += await stream.receive_some(4096)
            nursery.cancel_scope.cancel()

    trio.run(check)
