"""The registry API: from a request to its handler, with authentication, limits of what is served, and errors as JSON.

Follows the OCI distribution specification 1.1, and Docker's registry for `_catalog`. `RegistryApp.handle` is what `http.server` calls; it
knows neither the listener nor whose repositories it shows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
import trio

from engine.errors import KnarrError
from engine.http.errors import ClientGone
from engine.http.exchange import JSON, Exchange
from engine.registry.server import names, referrers
from engine.registry.server.auth import Access, Authenticator, Nobody
from engine.registry.server.backend import Backend
from engine.registry.server.blobs import Blobs
from engine.registry.server.errors import RegistryError
from engine.registry.server.manifests import Manifests
from engine.registry.server.names import Address
from engine.registry.server.request import VERSION_FIELD, Request, wrong_method
from engine.registry.server.uploads import Uploads, no_space
from engine.store.content import Content
from engine.store.db import DatabaseError

CATALOG_DEFAULT = 100  # Docker's registry
CATALOG_MAX = 1000

_READS = ("GET", "HEAD")

_log = logging.getLogger("knarr.registry")


class Options(msgspec.Struct, frozen=True):
    """What is served. `names`: only these repositories, `a/*` for all below `a`; empty for all."""

    read_only: bool = False
    delete: bool = True
    names: tuple[str, ...] = ()


class Line(msgspec.Struct, frozen=True):
    """One request for the access log. `status` 0: the client went before the answer. `seconds` until the end of the reply."""

    peer: str
    user: str
    method: str
    target: str
    status: int
    sent: int
    seconds: float


class Upstream(Protocol):
    """Another registry, for what is not here: the pull-through cache."""

    def names(self, last: str, limit: int) -> list[str]:
        """Repositories after `last`, `limit` at most."""

    async def manifest(self, request: Request) -> None:
        """Answer a GET or HEAD of a manifest."""

    async def blob(self, request: Request) -> None:
        """Answer a GET or HEAD of a blob."""

    async def tags(self, request: Request) -> None:
        """Answer with the list of tags."""

    async def referrers(self, request: Request) -> None:
        """Answer with the referrers of a digest."""


class RegistryApp:
    """The registry. `on_request` is told of every request that was answered."""

    def __init__(
        self, backend: Backend, content: Content, uploads: Uploads, options: Options, *,
        auth: Authenticator | None = None, on_request: Callable[[Line], None] | None = None,
    ) -> None:  # fmt: skip
        self.backend = backend
        self.options = options
        self.upstream: Upstream | None = None
        self.blobs = Blobs(backend, content, uploads, self._visible)
        self.manifests = Manifests(backend, content)
        self._auth = auth or Nobody()
        self._on_request = on_request

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request. Every error becomes a reply; an unexpected one is logged with its traceback."""
        began = trio.current_time()
        user: list[str] = [""]
        try:
            await self._answer(exchange, user)
        except (ClientGone, trio.ClosedResourceError):
            raise ClientGone
        except KnarrError as error:
            await self._fail(exchange, _as_registry(error))
        except (OSError, DatabaseError) as error:
            _log.error("%s %s: %s", exchange.method, exchange.target, error)
            failed = RegistryError("UNKNOWN", message="the registry could not read or write its store")
            await self._fail(exchange, no_space(error) or failed)
        except Exception:
            _log.exception("%s %s", exchange.method, exchange.target)
            await self._fail(exchange, RegistryError("UNKNOWN"))
        finally:
            if self._on_request is not None:
                seconds = trio.current_time() - began
                line = Line(exchange.peer, user[0], exchange.method, exchange.target, exchange.status, exchange.sent, seconds)
                self._on_request(line)

    async def _fail(self, exchange: Exchange, error: RegistryError) -> None:
        if exchange.started:
            raise ClientGone  # there is no form for an error in the middle of a reply: it breaks off
        await exchange.reply(error.status, error.body(), JSON, VERSION_FIELD + error.fields)

    async def _answer(self, exchange: Exchange, user: list[str]) -> None:
        path, _, query = exchange.target.partition("?")
        address = names.split(names.unescape(path))
        if address is None:
            raise RegistryError("NAME_UNKNOWN", message="page not found", status=404)
        if address.name and not self.backend.valid_name(address.name):
            raise RegistryError("NAME_INVALID", {"name": address.name[:300]})
        parameters = names.parameters(query)
        access = needed(exchange.method, address, parameters)
        user[0] = await self._auth.check(exchange.headers.get(b"authorization", b"").decode("latin-1"), access)
        request = Request(exchange, address, parameters, self._auth, user[0])
        self._check_served(request)
        await self._dispatch(request)

    def _check_served(self, request: Request) -> None:
        """Refuse what this registry does not serve. Raises RegistryError."""
        method, address = request.method, request.address
        if method not in _READS and self.options.read_only:
            raise RegistryError("UNSUPPORTED", message="this registry is read-only")
        if method == "DELETE" and not self.options.delete and address.kind != "upload":
            raise RegistryError("UNSUPPORTED", message="this registry does not delete")
        if address.name and not self._visible(address.name):
            code = "NAME_UNKNOWN" if method in _READS else "DENIED"
            raise RegistryError(code, {"name": address.name})

    def _visible(self, name: str) -> bool:
        patterns = self.options.names
        return not patterns or any(name == one or (one.endswith("/*") and name.startswith(one[:-1])) for one in patterns)

    async def _dispatch(self, request: Request) -> None:
        kind, reads = request.address.kind, request.method in _READS
        if kind == "upload":
            await self.blobs.upload(request)
        elif kind == "blob":
            if reads:
                await (self.upstream.blob(request) if self.upstream else self.blobs.get(request))
            elif request.method == "DELETE":
                await self.blobs.delete(request)
            else:
                raise wrong_method("GET, HEAD, DELETE")
        elif kind == "manifest":
            await self._manifest(request)
        elif not reads:
            raise wrong_method("GET, HEAD")
        elif kind == "tags":
            await (self.upstream.tags(request) if self.upstream else self.manifests.tags(request))
        elif kind == "referrers":
            await (self.upstream.referrers(request) if self.upstream else referrers.get(request, self.backend))
        elif kind == "catalog":
            await self._catalog(request)
        else:
            await request.json({})

    async def _manifest(self, request: Request) -> None:
        if request.method in _READS:
            await (self.upstream.manifest(request) if self.upstream else self.manifests.get(request))
        elif request.method == "PUT":
            await self.manifests.put(request)
        elif request.method == "DELETE":
            await self.manifests.delete(request)
        else:
            raise wrong_method("GET, HEAD, PUT, DELETE")

    async def _catalog(self, request: Request) -> None:
        """`_catalog` of Docker's registry: the names of all repositories."""
        wanted = request.value("n")
        limit = names.count(wanted, CATALOG_MAX) if wanted else CATALOG_DEFAULT
        found: list[str] = []
        last = request.value("last")
        names_after = (self.upstream or self.backend).names
        while len(found) <= limit and (batch := names_after(last, CATALOG_MAX)):
            found += [name for name in batch if self.backend.valid_name(name) and self._visible(name)]
            last = batch[-1]
        fields = {}
        if len(found) > limit > 0:
            found = found[:limit]
            fields["Link"] = f'</v2/_catalog?last={found[-1].replace("/", "%2F")}&n={limit}>; rel="next"'
        await request.json({"repositories": found[:limit]}, fields)


def needed(method: str, address: Address, parameters: dict[str, list[str]]) -> Sequence[Access]:
    """What a request must be allowed to do; the same as Docker's registry asks for, but that cancelling an upload is pushing."""
    if address.kind == "catalog":
        return [Access("catalog", ("*",), "registry")]
    if not address.name:
        return []
    if method in _READS:
        return [Access(address.name, ("pull",) if address.kind != "upload" else ("pull", "push"))]
    if method == "DELETE" and address.kind != "upload":
        return [Access(address.name, ("delete",))]
    access = [Access(address.name, ("pull", "push"))]
    source = parameters.get("from", [""])[0]
    if parameters.get("mount") and names.is_name(source) and source != address.name:
        access.append(Access(source, ("pull",)))
    return access


def _as_registry(error: KnarrError) -> RegistryError:
    """Errors of the layers below, in this API's words."""
    if isinstance(error, RegistryError):
        return error
    code = {400: "BLOB_UPLOAD_INVALID", 404: "BLOB_UNKNOWN", 408: "BLOB_UPLOAD_INVALID", 413: "SIZE_INVALID", 503: "UNAVAILABLE"}
    if error.status >= 500:
        _log.error("%s", error)
    return RegistryError(code.get(error.status, "UNKNOWN"), message=error.message, status=error.status)
