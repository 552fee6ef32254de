"""The HTTP client: connections, TLS, proxies, one request and its answer. The only file that imports the HTTP library.

Follows no redirect, adds no credentials and never tries again: `session` does. The library and the system's certificates are loaded by the
first request and let go by `close`, so that an idle daemon has neither.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import trio

from engine.errors import InvalidParameter, KnarrError, NotImplementedYet
from engine.registry.errors import Interrupted, Unreachable
from engine.registry.hosts import Tls
from engine.registry.proxies import Proxies
from engine.spec.version import VERSION

if TYPE_CHECKING:
    import httpx2

READ_TIMEOUT = 60.0  # seconds without a byte after which a connection counts as dead
DOCUMENT_TIMEOUT = 300.0  # seconds for a whole document, however steadily it drips
CHUNK = 256 * 1024  # bytes asked of the kernel at a time; 64 KiB and 1 MiB both cost more CPU time (measured on loopback)
# Bodies from this size on are read past the HTTP library: half its CPU time (measured: 500 MB in 0.2 s instead of 0.4 s, with TLS in 0.75 s
# instead of 1.4 s). Below, keeping the connection is worth more.
_DIRECT = 1024 * 1024
# Parts that are taken in a row before others have their turn: those of one byte come faster than they are taken.
_TURN = 16
_KEPT = 8  # idle connections for each host
_KEPT_FOR = 30.0  # seconds
_NOT_CONNECTED = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT, errno.ENOENT, errno.EACCES)
_SANE_YEAR = 2024  # a clock before this was never set

_NO_TLS = Tls()

Headers = Sequence[tuple[str, str]]
Body = bytes | AsyncIterator[bytes]


class Response:
    """An answer whose head has arrived. `headers` have lower-case names. Close it in any case."""

    def __init__(self, raw: httpx2.Response, url: str, method: str) -> None:
        self._raw = raw
        self.url = url
        self.method = method
        self.status = raw.status_code
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in raw.headers.items()}

    @property
    def length(self) -> int | None:
        """Content-Length; None when it is absent or malformed."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises KnarrError when it is longer than `limit` bytes, Interrupted when it ends early."""
        found = bytearray()  # a list of tiny parts would take many times their bytes
        with trio.move_on_after(DOCUMENT_TIMEOUT):
            async with contextlib.aclosing(self.chunks()) as chunks:
                async for part in chunks:
                    if len(found) + len(part) > limit:
                        raise KnarrError(f"the answer of {shown(self.url)} is longer than {limit} bytes")
                    found += part
            return bytes(found)
        raise Interrupted(f"reading {shown(self.url)}: not done after {DOCUMENT_TIMEOUT:.0f} s")

    async def start(self, limit: int) -> bytes:
        """The body, or its first `limit` bytes; for the text of an error. Raises nothing for a body that ends early."""
        found = bytearray()
        with contextlib.suppress(Interrupted), trio.move_on_after(READ_TIMEOUT):
            async with contextlib.aclosing(self.chunks()) as chunks:
                async for part in chunks:
                    found += part
                    if len(found) >= limit:
                        break
        return bytes(found[:limit])

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes, undecoded. Raises Interrupted when it ends early or nothing comes for READ_TIMEOUT."""
        length = self.length
        direct = length is not None and length >= _DIRECT and "transfer-encoding" not in self.headers and self.method != "HEAD"
        try:
            if direct:
                assert length is not None
                async with contextlib.aclosing(self._directly(length)) as parts:
                    async for part in parts:
                        yield part
            else:
                async with contextlib.aclosing(aiter(self._raw.stream)) as parts:  # type: ignore[arg-type,type-var]
                    taken = 0
                    async for part in parts:
                        taken += 1
                        if not taken % _TURN:
                            await trio.lowlevel.checkpoint()
                        yield part
        except _library().HTTPError as error:
            raise Interrupted(f"reading {shown(self.url)}: {_reason(error, self.url)[0]}") from error

    async def _directly(self, length: int) -> AsyncGenerator[bytes, None]:
        """A long body of known length. What came with the head is in the library's buffer; the rest is read from the connection, which the
        library closes afterwards, since it has not seen the end."""
        async with contextlib.aclosing(aiter(self._raw.stream)) as library:  # type: ignore[arg-type,type-var]
            first = await anext(library, b"")
            yield first
            left = length - len(first)
            network = self._raw.extensions["network_stream"]
            tls: ssl.SSLObject | None = network.get_extra_info("ssl_object")
            connection: trio.socket.SocketType = network.get_extra_info("socket")
            while left > 0:
                with trio.move_on_after(READ_TIMEOUT) as scope:
                    size = min(left, CHUNK)
                    try:
                        data = await (connection.recv(size) if tls is None else self._records(network, tls, size))
                    except _broken() as error:
                        raise Interrupted(f"reading {shown(self.url)}: {_reason(error, self.url)[0]}") from error
                if scope.cancelled_caught:
                    raise Interrupted(f"reading {shown(self.url)}: nothing came for {READ_TIMEOUT:.0f} s")
                if not data:
                    raise Interrupted(f"reading {shown(self.url)}: unexpected EOF")
                left -= len(data)
                yield data

    @staticmethod
    async def _records(network: Any, tls: ssl.SSLObject, size: int) -> bytes:
        """What TLS has: one record through the event loop (16 KiB at most), and without it those that were received with it."""
        parts = [await network.read(size)]
        size -= len(parts[0])
        while size > 0 and parts[-1]:
            try:
                parts.append(tls.read(size))
            except ssl.SSLError:  # nothing complete is left, or the stream is broken: the next read tells
                break
            size -= len(parts[-1])
        return b"".join(parts)

    async def close(self) -> None:
        """Give the connection back, or close it when the body was not read to its end."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await self._raw.aclose()


class Transport:
    """Connections of one daemon, pooled by certificates and proxy."""

    def __init__(self, proxies: Proxies) -> None:
        self._proxies = proxies
        self._pools: dict[tuple[Tls | None, str, str], httpx2.AsyncHTTPTransport] = {}

    async def send(
        self, method: str, url: str, headers: Headers = (), *, body: Body = b"", tls: Tls = _NO_TLS, timeout: float = 30.0, socket: str = ""
    ) -> Response:
        """Send a request and wait for the head of the answer. `timeout` seconds are for connecting, `socket` is the path of a unix socket
        to connect to. Raises Unreachable."""
        httpx2 = _library()
        pool = self._pool(url, tls, socket)
        sent = [("User-Agent", f"knarr/{VERSION}"), ("Accept-Encoding", "identity"), *headers]
        given: dict[str, Any] = {"content": body} if body or method in ("POST", "PUT", "PATCH") else {}
        limits = {"connect": timeout, "read": READ_TIMEOUT, "write": READ_TIMEOUT, "pool": None}
        try:
            request = httpx2.Request(method, url, headers=sent, extensions={"timeout": limits, "trace": _Handshake().follow}, **given)
            # Large bodies may take their time; the head of an answer may not, however steadily it drips.
            most = timeout + 2 * READ_TIMEOUT if isinstance(body, bytes) else float("inf")
            with trio.move_on_after(most):
                return Response(await pool.handle_async_request(request), url, method)
        except httpx2.HTTPError as error:
            reason, final = _reason(error, url, socket)
            raise Unreachable(
                f'{method.capitalize()} "{shown(url)}": {reason}', hint=_hint(reason), tls=_is_tls(error), final=final
            ) from error
        except (httpx2.InvalidURL, UnicodeError, ValueError) as error:
            raise InvalidParameter(f'{method.capitalize()} "{shown(url)}": {error}') from error
        raise Unreachable(f'{method.capitalize()} "{shown(url)}": net/http: timeout awaiting response headers')

    def _pool(self, url: str, tls: Tls, socket: str) -> httpx2.AsyncHTTPTransport:
        proxy = "" if socket else self._proxies.for_url(url)
        secure = url.startswith("https://")
        key = (tls if secure else None, proxy, socket)
        found = self._pools.get(key)
        if found is None:
            if proxy and not proxy.startswith(("http://", "https://")):
                raise NotImplementedYet(f"a proxy of the kind {proxy.partition('://')[0]}", hint="use an http or https proxy")
            httpx2 = _library()
            context = tls_context(tls) if secure or proxy.startswith("https://") else False
            found = self._pools[key] = httpx2.AsyncHTTPTransport(
                verify=context,
                trust_env=False,
                uds=socket or None,
                proxy=httpx2.Proxy(proxy, ssl_context=tls_context(Tls()) if proxy.startswith("https://") else None) if proxy else None,
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=_KEPT, keepalive_expiry=_KEPT_FOR),
            )
        return found

    async def close(self) -> None:
        """Close every connection; the next request opens new ones."""
        pools, self._pools = self._pools, {}
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            for pool in pools.values():
                await pool.aclose()


class _Handshake:
    """Closes a connection whose TLS handshake does not succeed, for whatever reason: of one that is cancelled the library lets go without
    that, and it stays open until it is collected as garbage."""

    def __init__(self) -> None:
        self._stream: Any = None

    async def follow(self, event: str, about: dict[str, Any]) -> None:
        """The library's `trace` extension: called before and after every step of a request."""
        if event == "connection.connect_tcp.complete":
            self._stream = about["return_value"]
        elif event.endswith(".start_tls.failed") and self._stream is not None:
            await self._stream.aclose()


def _broken() -> tuple[type[Exception], ...]:
    """What the kernel and the layer below the library raise for a connection that broke."""
    import httpcore2

    return OSError, httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError


def _library() -> Any:
    import httpx2

    return httpx2


def tls_context(tls: Tls) -> ssl.SSLContext:
    """TLS as these settings want it; the system's certificate authorities are trusted too. Raises InvalidParameter for a file that cannot
    be used."""
    context = ssl.create_default_context()
    if tls.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    path = ""
    try:
        for path in tls.authorities:
            context.load_verify_locations(path)
        for certificate, key in tls.clients:
            path = certificate
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise InvalidParameter(f"loading the certificate {path}: {error}")
    return context


def shown(url: str) -> str:
    """A URL for an error: without user and password, and without the query, which may hold a signature."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:300]


def _causes(error: BaseException) -> list[BaseException]:
    """An error and everything that led to it."""
    found: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending and len(found) < 50:
        one = pending.pop(0)
        if one is None or one in found:
            continue
        found.append(one)
        pending += [one.__cause__, one.__context__, *(one.exceptions if isinstance(one, BaseExceptionGroup) else ())]
    return found


def _is_tls(error: BaseException) -> bool:
    return any(isinstance(cause, ssl.SSLError) for cause in _causes(error))


def _reason(error: BaseException, url: str, path: str = "") -> tuple[str, bool]:
    """Why a connection failed, in the words of Go's net package, which users search for; and whether trying again is useless."""
    parts = urlsplit(url)
    address = path or f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
    kind = "unix" if path else "tcp"
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"tls: failed to verify certificate: x509: {_certificate(cause)}", True
        if isinstance(cause, ssl.SSLError):
            if "WRONG_VERSION_NUMBER" in str(cause) or "HTTP_REQUEST" in str(cause):
                return "http: server gave HTTP response to HTTPS client", True
            return f"tls: {cause.reason or cause}".lower(), False
        if isinstance(cause, socket.gaierror):
            final = cause.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
            return f"dial tcp: lookup {parts.hostname}: {'no such host' if final else cause.strerror}", final
        if isinstance(cause, OSError) and cause.errno in _NOT_CONNECTED:
            return f"dial {kind} {address}: connect: {_system(cause)}", False
        if isinstance(cause, OSError) and cause.errno:
            return _system(cause), False
    name = type(error).__name__
    if name == "ConnectTimeout":
        return f"dial {kind} {address}: i/o timeout", False
    if "Timeout" in name:
        return f"net/http: timeout awaiting response ({READ_TIMEOUT:.0f} s)", False
    if "disconnected without" in str(error) or "without sending complete" in str(error):
        return "unexpected EOF" if "complete" in str(error) else "EOF", False
    return str(error)[:300] or name, False


def _system(error: OSError) -> str:
    if error.errno == errno.ECONNRESET:
        return "connection reset by peer"
    # Not `strerror`: asyncio and trio put the address into it.
    return os.strerror(error.errno).lower() if error.errno else str(error) or type(error).__name__


def _certificate(error: ssl.SSLCertVerificationError) -> str:
    """OpenSSL's reason (x509_vfy.h) in Go's words."""
    code, text = error.verify_code, error.verify_message
    if code in (18, 19, 20, 21):
        return "certificate signed by unknown authority"
    if code in (9, 10):
        state = "is not yet valid" if code == 9 else "has expired"
        return f"certificate {state}: current time {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}"
    if code in (62, 64):
        return f"certificate is not valid for this name: {text}"
    return text


def _hint(reason: str) -> str:
    if "not yet valid" in reason or "has expired" in reason:
        year = time.gmtime().tm_year
        return f"the clock of this host says {year}, set it first" if year < _SANE_YEAR or "not yet" in reason else ""
    if "signed by unknown authority" in reason:
        return "put its CA into /etc/docker/certs.d/HOST/ca.crt, or name the host with --insecure-registry"
    if "HTTP response to HTTPS client" in reason:
        return "a registry without TLS must be named with --insecure-registry"
    return ""
