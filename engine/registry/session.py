"""A conversation with one server about one repository: credentials when asked for, redirects, another try when that may help.

Follows RFC 9110 (401, redirects, Retry-After) and fetch's rule that credentials stay with the host that they are for. Knows no endpoint
of the distribution API; `client` and `upload` do.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from urllib.parse import urljoin, urlsplit

import trio

from engine.errors import InvalidParameter, KnarrError, Unauthorized
from engine.registry import retry
from engine.registry.auth import Authorizer, Challenge, Credentials, challenges, merged
from engine.registry.errors import Unreachable, failure, refused
from engine.registry.hosts import Endpoint
from engine.registry.transport import Headers, Response, Transport, shown

MOST_REDIRECTS = 10  # what Go's client follows
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_KEEP_METHOD = frozenset((307, 308))
_ERROR_BODY = 64 * 1024  # bytes of an error's body that are looked at

log = logging.getLogger("knarr.registry")

Payload = bytes | Callable[[], AsyncIterator[bytes]]


class Session:
    """`name` is the repository as errors show it. `attempts` counts the first one too; `attempts_unseen` are those
    at a server that has not answered yet."""

    def __init__(
        self,
        transport: Transport,
        authorizer: Authorizer,
        endpoint: Endpoint,
        credentials: Credentials,
        scopes: Sequence[str],
        *,
        name: str,
        attempts: int,
        attempts_unseen: int = 2,
        push: bool = False,
        known: dict[str, Challenge] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.answered = False
        self._transport = transport
        self._authorizer = authorizer
        self._credentials = credentials
        self._scopes = merged(scopes)
        self._name = name
        self._attempts = attempts
        self._attempts_unseen = min(attempts, attempts_unseen)
        self._push = push
        self._known = {} if known is None else known  # how each server wanted to be asked the last time, by its URL

    def url(self, path: str) -> str:
        """The full address of a path below `/v2`, with the `?ns=` that a mirror is asked with."""
        address = self.endpoint.url + path
        if self.endpoint.namespace:
            address += ("&" if "?" in path else "?") + f"ns={self.endpoint.namespace}"
        return address

    @contextlib.asynccontextmanager
    async def open(
        self, method: str, url: str, headers: Headers = (), *, body: Payload = b"", scopes: Sequence[str] = (), again: bool = True
    ) -> AsyncIterator[Response]:
        """`send`, closed at the end."""
        response = await self.send(method, url, headers, body=body, scopes=scopes, again=again)
        try:
            yield response
        finally:
            await response.close()

    @contextlib.asynccontextmanager
    async def plainly(self, method: str, url: str, headers: Headers = ()) -> AsyncIterator[Response]:
        """One request with these headers alone: no answer to a challenge, no second try. Closed at the end."""
        response, _ = await self._redirected(method, url, headers, b"")
        try:
            yield response
        finally:
            await response.close()

    async def send(
        self, method: str, url: str, headers: Headers = (), *, body: Payload = b"", scopes: Sequence[str] = (), again: bool = True
    ) -> Response:
        """Send a request to `url` and return whatever answer it got, to be closed by the caller. `scopes`: more rights than the session's.
        With `again`, failed connections, 429 and 5xx are tried again. Raises Unreachable, Unauthorized, KnarrError."""
        attempt = 0
        while True:
            attempt += 1
            try:
                response = await self._authorized(method, url, headers, body, scopes)
            except Unreachable as error:
                most = self._attempts if self.answered else self._attempts_unseen
                if not again or error.final or attempt >= most:
                    raise
                pause = retry.delay(attempt)
                log.debug("trying again in %.1f s: %s", pause, error)
            else:
                self.answered = True
                asked = retry.retry_after(response.headers.get("retry-after", ""))
                if not again or response.status not in retry.RETRIED or attempt >= self._attempts or asked > retry.LONGEST_WAIT_ASKED:
                    return response
                await response.close()
                pause = retry.delay(attempt, asked)
                log.debug("%s answered %d, trying again in %.1f s", shown(url), response.status, pause)
            await trio.sleep(pause)

    async def _authorized(self, method: str, url: str, headers: Headers, body: Payload, scopes: Sequence[str]) -> Response:
        wanted = merged([*self._scopes, *scopes])
        known = self._known.get(self.endpoint.url)
        header = await self._authorizer.header(self.endpoint, known, self._credentials, wanted) if known else ""
        response, at_home = await self._redirected(method, url, self._with(headers, header), body)
        offered = challenges(response.headers.get("www-authenticate", "")) if response.status == 401 and at_home else []
        challenge = next((c for c in offered if c.scheme == "bearer"), next((c for c in offered if c.scheme == "basic"), None))
        if challenge is None:
            return response
        try:
            asked = challenge.parameters.get("scope", "").split()
            if not scopes:
                self._scopes = merged([*wanted, *asked])
            general = {key: value for key, value in challenge.parameters.items() if key in ("realm", "service")}
            self._known[self.endpoint.url] = Challenge(challenge.scheme, general)
            before = header
            header = await self._authorizer.header(self.endpoint, challenge, self._credentials, wanted, fresh=bool(before))
            if not header and challenge.scheme == "basic":
                raise Unauthorized(f'{method.capitalize()} "{shown(url)}": no basic auth credentials')
        except BaseException:
            await response.close()
            raise
        if not header or header == before:
            return response
        await response.close()
        return (await self._redirected(method, url, self._with(headers, header), body))[0]

    def _with(self, headers: Headers, authorization: str) -> Headers:
        return [*headers, ("Authorization", authorization)] if authorization else headers

    async def _redirected(self, method: str, url: str, headers: Headers, body: Payload) -> tuple[Response, bool]:
        """The answer at the end of the redirects, and whether it comes from the endpoint's own host."""
        home = _origin(url)
        at_home = home == _origin(self.endpoint.url)
        sent = headers if at_home else _public(headers)
        for _ in range(MOST_REDIRECTS + 1):
            extra = self.endpoint.headers if at_home else ()
            response = await self._transport.send(
                method,
                url,
                [*sent, *extra],
                body=body if isinstance(body, bytes) else body(),
                tls=self.endpoint.tls if at_home else self.endpoint.tls.for_another_host(),
                timeout=self.endpoint.timeout,
                socket=self.endpoint.socket if at_home else "",
            )
            location = response.headers.get("location", "")
            follows = method in ("GET", "HEAD") or response.status in _KEEP_METHOD
            if response.status not in _REDIRECTS or not location or not follows:
                return response, at_home
            await response.close()
            url = self.target(url, location)
            if _origin(url) != home:  # for good: what comes back from elsewhere was not written by the registry
                at_home, sent = False, _public(sent)
        raise KnarrError(f'{method.capitalize()} "{shown(url)}": stopped after {MOST_REDIRECTS} redirects')

    def target(self, url: str, location: str) -> str:
        """Where a Location of an answer from `url` leads. Raises KnarrError for what is no web address, or drops TLS."""
        try:
            found = urljoin(url, location)
            parts = urlsplit(found)
            port = parts.port
        except ValueError:
            raise KnarrError(f"{shown(url)} points to {location[:100]!r}, which is not an address")
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise KnarrError(f"{shown(url)} points to {location[:100]!r}, which is not a web address")
        if url.startswith("https://") and parts.scheme == "http":
            before = urlsplit(url)
            if parts.hostname == before.hostname and (port in (None, 80, before.port)):
                # A registry behind a proxy that ends TLS, and that nobody told so. The same place is meant.
                return parts._replace(scheme="https", netloc=before.netloc).geturl()
            if not self.endpoint.insecure:
                raise KnarrError(f"{shown(url)} points to {shown(found)}, without TLS: not followed", hint="see --insecure-registry")
        return found

    async def error(self, response: Response, reference: str = "") -> KnarrError:
        """The error that an answer stands for; reads the start of its body. `reference`: the image that was asked for."""
        body = b"" if response.method == "HEAD" else await response.start(_ERROR_BODY)
        if response.status == 401 and any(
            c.parameters.get("error") == "insufficient_scope" for c in challenges(response.headers.get("www-authenticate", ""))
        ):  # RFC 6750 section 3.1: we are known, and may not
            return refused(self._name, push=self._push)
        after = retry.retry_after(response.headers.get("retry-after", ""))
        return failure(
            response.status, body, name=self._name, reference=reference or self._name, url=shown(response.url), after=after, push=self._push
        )

    def here(self, url: str, location: str) -> str:
        """A Location that must stay with the server: the address of an upload, or of a list's next page. Raises KnarrError."""
        found = self.target(url, location)
        if not location:
            raise InvalidParameter(f"{shown(url)} answered without a Location")
        return found


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _public(headers: Headers) -> Headers:
    """Headers that may be shown to another host."""
    return [(name, value) for name, value in headers if name.lower() not in ("authorization", "cookie", "proxy-authorization")]
