"""The registry server of this daemon: stores, handlers and listeners put together. Owns the listeners' tasks and the hourly clean-up.

A listener lives as long as who asked for it holds it (`knarr registry serve`), or as the daemon (`registry` in daemon.json). All of them
show the same repositories. The server's modules are loaded when the first listener is opened.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

from engine.errors import KnarrError
from engine.service.context import Context
from engine.store.db import DatabaseError
from engine.store.repositories import RepositoryStore

if TYPE_CHECKING:
    from engine.http.server import Server
    from engine.registry.server.app import Line, RegistryApp, Upstream
    from engine.registry.server.auth import Authenticator
    from engine.registry.server.backend import RepositoryBackend
    from engine.registry.server.settings import RegistrySettings
    from engine.registry.server.uploads import Uploads

DRAIN_SECONDS = 30.0  # for requests under way when a listener is closed
CACHE_SECONDS = 7 * 24 * 3600  # that a cache keeps what nobody asks for; Docker's registry keeps it a week too
_TIDY_SECONDS = 3600.0
_RETRY_SECONDS = 5.0

_BASE_HEADERS = b"X-Content-Type-Options: nosniff\r\n"  # a manifest must not be taken for a page by a browser

log = logging.getLogger("knarr.registry")


class Listening:
    """One open listener. `url` is where it is reached, `warning` what the operator should know, or ""."""

    def __init__(self, url: str, server: Server, warning: str) -> None:
        self.url = url
        self.warning = warning
        self._server = server
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    async def run(self, listeners: list[Any], task_status: trio.TaskStatus[None]) -> None:
        """The listener's task."""
        try:
            with self._scope:
                await self._server.run(listeners, task_status=task_status)
        finally:
            self._ended.set()

    async def stop(self) -> None:
        """Close the listener, let requests under way end for `DRAIN_SECONDS`, return when all is closed."""
        await self._server.drain(DRAIN_SECONDS)
        self.abort()
        await self._ended.wait()

    def abort(self) -> None:
        """Close everything at once."""
        self._scope.cancel()


class Registry:
    """What the API calls. `store` says which blobs the collector must keep."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.store = RepositoryStore(context.db)
        self._uploads: Uploads | None = None
        self.open: list[Listening] = []

    @property
    def uploads(self) -> Uploads:
        """Uploads under way, those of earlier runs too."""
        if self._uploads is None:
            from engine.registry.server.uploads import Uploads

            self._uploads = Uploads(self._context.images.content, self._context.layout.uploads, self.store)
            self._uploads.open()
        return self._uploads

    async def listen(self, settings: RegistrySettings, on_request: Callable[[Line], None]) -> Listening:
        """Open a listener; whoever called stops it. Raises InvalidParameter, KnarrError when the address or a file is not usable."""
        from engine.http.listeners import TlsFiles, open_listener
        from engine.http.server import Server, most_of_strangers
        from engine.registry.server.app import Options, RegistryApp
        from engine.registry.server.backend import RepositoryBackend

        backend = RepositoryBackend(self.store, self._context.durability.reached)
        options = Options(read_only=settings.read_only or bool(settings.proxy), delete=not settings.no_delete, names=settings.name)
        content = self._context.images.content
        app = RegistryApp(backend, content, self.uploads, options, auth=_authenticator(settings), on_request=on_request)
        if settings.proxy:
            app.upstream = self._upstream(settings, backend, app)
        tls = TlsFiles(settings.tls_cert, settings.tls_key) if settings.tls_cert else None
        address = settings.listen
        if address.startswith("tcp://:"):
            address = address.replace("tcp://", "tcp://[::]" if socket.has_dualstack_ipv6() else "tcp://0.0.0.0", 1)
        listeners = open_listener(address, tls=tls, root=False)
        scheme = "https" if tls else "http"
        url = listeners[0].address.replace("tcp://", f"{scheme}://", 1)
        server = Server(app.handle, _BASE_HEADERS, most=most_of_strangers())
        listening = Listening(url, server, exposed(settings, listeners[0].socket))
        await self._context.nursery.start(listening.run, listeners)
        self.open.append(listening)
        log.info("registry listens on %s", listening.url)
        if listening.warning:
            log.warning("%s", listening.warning)
        return listening

    def _upstream(self, settings: RegistrySettings, backend: RepositoryBackend, app: RegistryApp) -> Upstream:
        from engine.registry.hosts import is_insecure
        from engine.registry.server.proxy import Proxy, source
        from engine.spec.docker.registry import Credentials

        context = self._context
        credentials = Credentials(username=settings.proxy_username, password=settings.proxy_password, server_address=settings.proxy[0])
        allowed = tuple(context.settings.insecure_registries)
        sources = [
            source(url, insecure=is_insecure(url.partition("://")[2], allowed), credentials=Credentials() if number else credentials)
            for number, url in enumerate(settings.proxy)
        ]
        return Proxy(context.registries, sources, backend, context.images.content, app.blobs, app.manifests, context.nursery)

    async def close(self, listening: Listening) -> None:
        """End what `listen` opened, cleanly."""
        try:
            await listening.stop()
        finally:
            self.abort(listening)

    def abort(self, listening: Listening) -> None:
        """End it at once; ended already is fine."""
        listening.abort()
        if listening in self.open:
            self.open.remove(listening)
            log.info("registry on %s closed", listening.url)

    def open_permanent(self, members: dict[str, Any]) -> None:
        """Begin to serve what daemon.json says, if it does. Raises InvalidParameter."""
        settings = permanent(members)
        if settings is not None:
            self._context.nursery.start_soon(self._permanent, settings)

    async def _permanent(self, settings: RegistrySettings) -> None:
        """Background task: the listener of daemon.json. An address in use is tried again: it must not keep the daemon from starting."""
        told = ""
        while True:
            try:
                await self.listen(settings, _log_line)
                return
            except KnarrError as error:
                if str(error) != told:
                    log.error("opening the registry of daemon.json: %s; trying again", error)
                    told = str(error)
            await trio.sleep(_RETRY_SECONDS)

    async def run(self) -> None:
        """Background task: give up abandoned uploads and blobs that no manifest came for."""
        while True:
            await trio.sleep(_TIDY_SECONDS)
            try:
                if self._uploads is not None or self.store.uploads():
                    await self.uploads.expire()
                if self.store.expire_cached(time.time() - CACHE_SECONDS) + self.store.expire(time.time()):
                    self._context.durability.lazily()
            except (OSError, DatabaseError) as error:
                log.error("tidying the registry: %s", error)


def exposed(settings: RegistrySettings, sock: socket.socket) -> str:
    """A warning when others than this host reach the registry and it asks nobody who they are, or their passwords can be read; else ""."""
    address = sock.getsockname()
    if sock.family == socket.AF_UNIX or ipaddress.ip_address(address[0]).is_loopback:
        return ""
    if not (settings.htpasswd or settings.token) and not (settings.read_only or settings.proxy):
        return "whoever reaches this address can push and delete images: see --htpasswd, --token-realm and --read-only"
    if (settings.htpasswd or settings.token) and not settings.tls_cert:
        return "passwords and tokens can be read on the way: see --tls-cert"
    return ""


def permanent(members: dict[str, Any]) -> RegistrySettings | None:
    """The settings of daemon.json's `registry`, None when it has none. Raises InvalidParameter."""
    if not members:
        return None
    from engine.registry.server.settings import convert

    return convert(members)


def _authenticator(settings: RegistrySettings) -> Authenticator:
    from engine.registry.server import auth, tokens

    if settings.token:
        keys = tokens.load_keys(settings.token_cert)
        return auth.Bearer(settings.token_realm, settings.token_service, settings.token_issuer, keys)
    if settings.htpasswd:
        return auth.Htpasswd(settings.htpasswd, realm=settings.realm or auth.REALM, anonymous_pull=settings.anonymous_pull)
    return auth.Nobody()


def _log_line(line: Line) -> None:
    who = f"{line.peer or '-'} {line.user or '-'}"
    log.info("%s %s %s %d %d %.3f s", who, line.method, line.target[:300], line.status, line.sent, line.seconds)
