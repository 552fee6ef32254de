"""Who we are to a registry: credentials, challenges, tokens.

Follows RFC 9110 section 11 (challenges), the distribution project's docs/spec/auth (token, oauth) and the habits of Docker's client: GET
with Basic for a password, OAuth2's POST for an identity token, either as the fallback of the other. Credentials go to the realm that the
registry names, but never over plain HTTP unless the registry itself is insecure. Nothing here writes a secret into a message.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote, urlencode, urlsplit

import msgspec
import trio

from engine.errors import KnarrError, Unauthorized
from engine.registry.errors import ServerError, TooManyRequests, detail, problems
from engine.registry.hosts import Endpoint, Tls
from engine.registry.retry import retry_after
from engine.registry.transport import Response, Transport, shown
from engine.spec.docker.registry import Credentials

__all__ = ("Authorizer", "Challenge", "Credentials", "Token", "challenges", "merged", "scope")

CLIENT_ID = "docker"  # what Docker's client calls itself; some token servers know no other
LEAST_LIFE = 60  # seconds a token lives when the server does not say, or says less (docs/spec/auth/token.md, "expires_in")
_MARGIN = 5  # seconds before its end from which a token is not used
_LARGEST_ANSWER = 1 << 20
_LONGEST_HEADER = 8192
_MOST_TOKENS = 256
_NO_POST = (404, 405)  # servers that know only the other way

_PAIR = re.compile(r'\s*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*))\s*(?:,|$)')
_SCHEME = re.compile(r"\s*([A-Za-z0-9!#$%&'*+.^_`|~-]+)(?:\s*,\s*|\s+|$)")


class Challenge(msgspec.Struct, frozen=True):
    """One member of WWW-Authenticate: the scheme in lower case and its parameters."""

    scheme: str
    parameters: dict[str, str] = {}


class Token(msgspec.Struct, frozen=True):
    """A bearer token, good until `until` (trio's clock, seconds), and the refresh token that came with it ("" for none)."""

    value: str
    until: float
    refresh: str = ""

    def __repr__(self) -> str:
        return f"Token(..., {self.until})"


class _Answer(msgspec.Struct, frozen=True):
    token: str = ""
    access_token: str = ""
    refresh_token: str = ""
    expires_in: float | None = None


def challenges(header: str) -> list[Challenge]:
    """The challenges of a WWW-Authenticate header, in their order; what makes no sense ends the list."""
    found: list[Challenge] = []
    rest = header[:_LONGEST_HEADER]
    while match := _SCHEME.match(rest):
        rest = rest[match.end() :]
        parameters: dict[str, str] = {}
        while pair := _PAIR.match(rest):
            value = re.sub(r"\\(.)", r"\1", pair[2]) if pair[2] is not None else pair[3]
            parameters.setdefault(pair[1].lower(), value)
            rest = rest[pair.end() :]
        found.append(Challenge(match[1].lower(), parameters))
        rest = rest.lstrip(", ")
    return found


def scope(repository: str, *actions: str) -> str:
    """`repository:NAME:pull,push`, docs/spec/auth/scope.md."""
    return f"repository:{repository}:{','.join(actions)}"


def merged(scopes: Sequence[str]) -> tuple[str, ...]:
    """The same without repetitions, actions of one repository joined, sorted: the same wish always looks the same."""
    actions: dict[str, set[str]] = {}
    for text in scopes:
        name, colon, wanted = text.rpartition(":")
        if colon:
            actions.setdefault(name, set()).update(wanted.split(","))
    order = {"pull": 0, "push": 1}
    return tuple(f"{name}:{','.join(sorted(wanted, key=lambda a: (order.get(a, 2), a)))}" for name, wanted in sorted(actions.items()))


class Authorizer:
    """Turns a registry's challenge into an Authorization header; keeps tokens by realm, service, scopes and user."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._tokens: dict[tuple[str, str, tuple[str, ...], str], Token] = {}
        self._locks: dict[tuple[str, str, tuple[str, ...], str], trio.Lock] = {}

    def clear(self) -> None:
        """Forget every token."""
        self._tokens.clear()

    async def header(
        self, endpoint: Endpoint, challenge: Challenge, credentials: Credentials, scopes: Sequence[str], *, fresh: bool = False
    ) -> str:
        """The Authorization header that answers a challenge; "" when there is nothing to answer with. `fresh`: the token that is kept was
        refused. Raises Unauthorized, Unreachable, ServerError, TooManyRequests."""
        if challenge.scheme == "basic":
            if credentials.username or credentials.password:
                return credentials.basic
            return ""
        if challenge.scheme != "bearer":
            return ""
        if credentials.registry_token:
            return "" if fresh else f"Bearer {credentials.registry_token}"
        wanted = merged([*scopes, *challenge.parameters.get("scope", "").split()])
        token = await self.token(endpoint, challenge, credentials, wanted, fresh=fresh)
        return f"Bearer {token.value}"

    async def token(
        self,
        endpoint: Endpoint,
        challenge: Challenge,
        credentials: Credentials,
        scopes: tuple[str, ...],
        *,
        fresh: bool = False,
        login: bool = False,
    ) -> Token:
        """A token for these scopes, kept or asked for. Raises as `header`."""
        realm = self._realm(endpoint, challenge, credentials)
        service = challenge.parameters.get("service", "")
        key = (realm, service, scopes, credentials.identity)
        if fresh:
            self._tokens.pop(key, None)
        lock = self._locks.setdefault(key, trio.Lock())
        try:
            async with lock:  # layers that start together need one token
                kept = self._tokens.get(key)
                if kept is not None and kept.until > trio.current_time() and not login:
                    return kept
                token = await self._ask(endpoint, realm, service, scopes, credentials, login)
                if len(self._tokens) >= _MOST_TOKENS:
                    self._tokens.clear()
                self._tokens[key] = token
                return token
        finally:
            if not lock.statistics().tasks_waiting and not lock.locked():
                self._locks.pop(key, None)

    @staticmethod
    def _realm(endpoint: Endpoint, challenge: Challenge, credentials: Credentials) -> str:
        realm = challenge.parameters.get("realm", "")
        parts = urlsplit(realm)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise Unauthorized(f"{endpoint.host} asks for a token from {realm[:100]!r}, which is not a web address")
        if parts.scheme == "http" and not endpoint.insecure:
            raise Unauthorized(
                f"{endpoint.host} asks for a token from {shown(realm)}, without TLS: not asked, so that nothing secret is shown",
                hint="name the registry with --insecure-registry if that is meant",
            )
        return realm

    async def _ask(
        self, endpoint: Endpoint, realm: str, service: str, scopes: tuple[str, ...], credentials: Credentials, login: bool
    ) -> Token:
        ways = [self._get, self._post]
        if credentials.identity_token:
            ways.reverse()
        elif not credentials:
            ways = [self._get]
        for number, way in enumerate(ways):
            response = await way(endpoint, realm, service, scopes, credentials, login)
            try:
                if response.status in _NO_POST and number + 1 < len(ways):
                    continue
                return await self._taken(response)
            finally:
                await response.close()
        raise AssertionError("the last way returns or raises")

    async def _get(
        self, endpoint: Endpoint, realm: str, service: str, scopes: tuple[str, ...], credentials: Credentials, login: bool
    ) -> Response:
        query = [("service", service)] if service else []
        query += [("scope", text) for text in scopes]
        headers = []
        if credentials:
            query += [("account", credentials.username)] if credentials.username else []
            secret = credentials.password or credentials.identity_token
            headers.append(("Authorization", Credentials(credentials.username, secret).basic))
        if login:
            query += [("offline_token", "true"), ("client_id", CLIENT_ID)]
        joiner = "&" if "?" in realm else "?"
        url = realm + (joiner + urlencode(query, quote_via=quote) if query else "")
        return await self._transport.send("GET", url, headers, tls=self._tls(endpoint, realm), timeout=endpoint.timeout)

    async def _post(
        self, endpoint: Endpoint, realm: str, service: str, scopes: tuple[str, ...], credentials: Credentials, login: bool
    ) -> Response:
        form = {"service": service, "client_id": CLIENT_ID, "scope": " ".join(scopes)}
        if credentials.identity_token:
            form |= {"grant_type": "refresh_token", "refresh_token": credentials.identity_token}
        else:
            form |= {"grant_type": "password", "username": credentials.username, "password": credentials.password}
        if login:
            form["access_type"] = "offline"
        body = urlencode(form).encode()
        headers = [("Content-Type", "application/x-www-form-urlencoded")]
        return await self._transport.send("POST", realm, headers, body=body, tls=self._tls(endpoint, realm), timeout=endpoint.timeout)

    @staticmethod
    def _tls(endpoint: Endpoint, realm: str) -> Tls:
        same = urlsplit(realm).netloc == endpoint.host
        return endpoint.tls if same else endpoint.tls.for_another_host()

    @staticmethod
    async def _taken(response: Response) -> Token:
        where = shown(response.url)
        if response.status != 200:
            body = await response.start(65536)
            listed = problems(body)
            words = str(listed[0]) if listed else detail(body)
            if response.status == 429:
                after = retry_after(response.headers.get("retry-after", ""))
                raise TooManyRequests(words or f"toomanyrequests: too many requests to {where}", after=after)
            if response.status >= 500:
                raise ServerError(f"asking {where} for a token: status {response.status} {words}".rstrip(), code=response.status)
            if response.status in (400, 401, 403):
                raise Unauthorized(words if listed else f"unauthorized: {words or 'incorrect username or password'}")
            raise KnarrError(f"asking {where} for a token: unexpected status {response.status} {words}".rstrip())
        try:
            answer = msgspec.json.decode(await response.read(_LARGEST_ANSWER), type=_Answer)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise KnarrError(f"asking {where} for a token: the answer is not what a token server sends: {error}")
        value = answer.token or answer.access_token
        if not value or not value.isascii() or not value.isprintable():
            raise KnarrError(f"asking {where} for a token: authorization server did not include a token in the response")
        life = max(answer.expires_in or 0, LEAST_LIFE)
        return Token(value, trio.current_time() + life - _MARGIN, answer.refresh_token)
