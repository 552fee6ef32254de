"""Whether a registry takes a user's credentials: what `docker login` asks. Stores nothing.

Follows the distribution project's docs/spec/auth and dockerd's loginV2: GET /v2/, and a token request that asks for a refresh token.
"""

from __future__ import annotations

from engine.errors import Unauthorized
from engine.registry.auth import challenges
from engine.registry.client import Live, Registries
from engine.registry.errors import Unreachable
from engine.registry.hosts import Endpoint
from engine.registry.session import Session
from engine.registry.transport import shown
from engine.spec.docker.registry import Credentials


async def login(registries: Registries, domain: str, credentials: Credentials) -> str:
    """Try credentials at a registry (`docker.io`, `host:5000`); the identity token that it gives, "" when it gives none.

    Raises Unauthorized in dockerd's words, Unreachable.
    """
    endpoints = [endpoint for endpoint in registries.hosts.endpoints(domain) if not endpoint.mirror]
    async with registries.live() as live:
        for number, endpoint in enumerate(endpoints):
            try:
                return await _at(live, endpoint, domain, credentials)
            except Unreachable:
                if number + 1 == len(endpoints):
                    raise
    raise Unauthorized(f"no server of {domain} is configured")


async def _at(live: Live, endpoint: Endpoint, domain: str, credentials: Credentials) -> str:
    # Without credentials: which ones to show, and where, the answer tells.
    session = Session(live.transport, live.authorizer, endpoint, Credentials(), (), name=domain, attempts=2)
    url = f"{endpoint.url}/"
    async with session.plainly("GET", url) as response:
        if response.status == 200:
            return ""
        if response.status != 401:
            raise await session.error(response)
        offered = challenges(response.headers.get("www-authenticate", ""))
    refresh = ""
    for challenge in offered:
        if challenge.scheme == "basic":
            if not credentials:
                raise Unauthorized(f'Get "{shown(url)}": no basic auth credentials')
            header = credentials.basic
        elif challenge.scheme == "bearer":
            token = await live.authorizer.token(endpoint, challenge, credentials, (), login=True)
            header, refresh = f"Bearer {token.value}", token.refresh
        else:
            continue
        async with session.plainly("GET", url, [("Authorization", header)]) as response:
            if response.status == 200:
                return refresh
            if response.status == 401:
                raise Unauthorized(f"login attempt to {shown(url)} failed with status: 401 Unauthorized")
            raise await session.error(response)
    raise Unauthorized(f"login attempt to {shown(url)} failed: it asks for credentials of an unknown kind")
