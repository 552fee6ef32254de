"""Searching for repositories by Docker's v1 search API, which Docker Hub and some registries still have.

Follows dockerd's registry/search.go: what the first part of a term means, the request, what it makes of the answer.
"""

from __future__ import annotations

from urllib.parse import urlencode

import msgspec

from engine.errors import InvalidParameter, KnarrError
from engine.registry.client import Live, Registries
from engine.registry.errors import Unreachable
from engine.registry.hosts import Endpoint
from engine.registry.session import Session
from engine.registry.transport import shown
from engine.spec.docker.registry import Credentials
from engine.spec.reference import DEFAULT_DOMAIN

INDEX_HOST = "index.docker.io"  # the host of Docker Hub's v1 API
_LARGEST_ANSWER = 4 << 20


class Found(msgspec.Struct, frozen=True):
    """One repository."""

    star_count: int = 0
    is_official: bool = False
    name: str = ""
    is_automated: bool = False
    description: str | None = ""


class _Results(msgspec.Struct, frozen=True):
    results: tuple[Found, ...] | None = ()


def split(term: str) -> tuple[str, str]:
    """`host/name` -> (host, name); a term that names no host is searched at Docker Hub. Raises InvalidParameter."""
    if "://" in term:
        raise InvalidParameter(f"invalid repository name: repository name ({term}) should not have a scheme")
    head, slash, rest = term.partition("/")
    if not slash or not (any(mark in head for mark in ".:") or head == "localhost"):
        return DEFAULT_DOMAIN, term
    return (DEFAULT_DOMAIN if head in (DEFAULT_DOMAIN, INDEX_HOST) else head), rest


async def search(registries: Registries, term: str, limit: int, credentials: Credentials) -> list[Found]:
    """What the registry of a term finds, `limit` repositories at most. Raises InvalidParameter, Unreachable, Unauthorized, KnarrError."""
    domain, name = split(term)
    if domain == DEFAULT_DOMAIN:
        name = name.removeprefix("library/")
        endpoints = [Endpoint(f"https://{INDEX_HOST}/v1")]
    else:
        endpoints = [
            msgspec.structs.replace(endpoint, url=endpoint.url.removesuffix("/v2") + "/v1")
            for endpoint in registries.hosts.endpoints(domain)
            if not endpoint.mirror
        ]
    failures: list[Unreachable] = []
    async with registries.live() as live:
        for endpoint in endpoints:
            try:
                return (await _at(live, endpoint, domain, name, limit, credentials))[:limit]
            except Unreachable as error:
                failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    attempts = "".join(f" {'HTTP' if e.plain else 'HTTPS'} attempt: {f}." for e, f in zip(endpoints, failures, strict=True))
    raise InvalidParameter(f'invalid registry endpoint "{endpoints[-1].url}/".{attempts}'.rstrip("."))


async def _at(live: Live, endpoint: Endpoint, domain: str, name: str, limit: int, credentials: Credentials) -> list[Found]:
    session = Session(live.transport, live.authorizer, endpoint, Credentials(), (), name=domain, attempts=1)
    url = f"{endpoint.url}/search?{urlencode({'q': name, 'n': limit})}"
    headers = [("X-Docker-Token", "true")]
    if credentials.username and credentials.password:
        headers.append(("Authorization", credentials.basic))
    async with session.plainly("GET", url, headers) as response:
        if response.status != 200:
            raise KnarrError(f"Unexpected status code {response.status}", hint=f"{shown(url)} does not search")
        try:
            found = msgspec.json.decode(await response.read(_LARGEST_ANSWER), type=_Results).results
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise KnarrError(f"searching at {endpoint.host}: the answer is not a list of repositories: {error}")
    # Automated builds are gone: dockerd says so of every repository.
    return [msgspec.structs.replace(one, is_automated=False, description=one.description or "") for one in found or ()]
