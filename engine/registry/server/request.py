"""One request of the registry API as its handlers see it: what it names, who asks, and the forms of replies. Thin over `http.exchange`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from engine.http.exchange import JSON, Exchange
from engine.registry.server.auth import Access, Authenticator
from engine.registry.server.errors import RegistryError
from engine.registry.server.names import Address

# Header fields of a reply; several values of one name each get a line.
Fields = Mapping[str, str | Sequence[str]]

VERSION_FIELD = b"Docker-Distribution-API-Version: registry/2.0\r\n"


class Request:
    """`user` is "" when nobody had to say who they are; `query` has every value of each parameter; `always` are header fields of whatever
    reply comes."""

    __slots__ = ("_auth", "address", "always", "exchange", "query", "user")

    def __init__(self, exchange: Exchange, address: Address, query: dict[str, list[str]], auth: Authenticator, user: str) -> None:
        self.exchange = exchange
        self.address = address
        self.query = query
        self.user = user
        self.always: dict[str, str] = {}
        self._auth = auth

    @property
    def method(self) -> str:
        """GET, HEAD, ..."""
        return self.exchange.method

    @property
    def name(self) -> str:
        """The repository."""
        return self.address.name

    def value(self, key: str) -> str:
        """The first value of a parameter, or ""."""
        found = self.query.get(key)
        return found[0] if found else ""

    def header(self, name: bytes) -> str:
        """A header field of the request, or ""."""
        return self.exchange.headers.get(name, b"").decode("latin-1")

    def may_pull(self, name: str) -> bool:
        """Whether this client may also read from repository `name`."""
        return self._auth.may(self.header(b"authorization"), Access(name, ("pull",)))

    async def reply(self, status: int, fields: Fields | None = None, body: bytes = b"", content_type: str = JSON) -> None:
        """Answer; `fields` are header fields."""
        await self.exchange.reply(status, body, content_type, VERSION_FIELD + encode_fields({**(fields or {}), **self.always}))

    async def sized(self, count: int, fields: Fields, content_type: str, status: int = 200) -> None:
        """Send the head of a reply of `count` bytes, which `exchange.part` sends."""
        head = VERSION_FIELD + encode_fields({**fields, **self.always})
        await self.exchange.sized(count, status=status, content_type=content_type, fields=head)

    async def json(self, value: Any, fields: Fields | None = None, content_type: str = JSON) -> None:
        """Answer with a JSON document."""
        await self.reply(200, fields, msgspec.json.encode(value) + b"\n", content_type)

    def matches(self, digest: str) -> bool:
        """Whether the client has this content already (If-None-Match; our entity tags are digests)."""
        wanted = self.header(b"if-none-match")
        return wanted == "*" or any(one.strip().removeprefix("W/").strip('"') == digest for one in wanted.split(","))


def encode_fields(fields: Fields) -> bytes:
    """Header lines. Values are ours, or were checked: none can hold a line break."""
    lines = []
    for name, value in fields.items():
        for one in [value] if isinstance(value, str) else value:
            assert "\r" not in one and "\n" not in one
            lines.append(f"{name}: {one}\r\n")
    return "".join(lines).encode("latin-1")


def location(name: str, *rest: str) -> str:
    """The path of something in a repository; a relative reference, since only the client knows the host it spoke to (RFC 9110, 10.2.2)."""
    return f"/v2/{quote(name, safe='/:[]')}/{'/'.join(rest)}"


def wrong_method(allowed: str) -> RegistryError:
    """The reply to a method that an address does not have."""
    return RegistryError("UNSUPPORTED", fields=f"Allow: {allowed}\r\n".encode())
