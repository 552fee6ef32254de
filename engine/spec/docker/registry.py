"""Credentials for registries as clients send them: the headers X-Registry-Auth and X-Registry-Config. Pure.

Follows the Engine API reference ("Authentication") and dockerd's registry.DecodeAuthConfig. A header that makes no sense stands for no
credentials, as in dockerd: clients of all ages send half of them.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec

from engine.spec.digest import sha256

_LONGEST = 256 * 1024  # characters of a header; Docker Desktop's tokens have some thousand
_MOST_HOSTS = 1000


class Credentials(msgspec.Struct, frozen=True):
    """What the client sent for one registry. `identity_token` is an OAuth2 refresh token, `registry_token` a bearer token used as it is."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""
    server_address: str = ""

    def __repr__(self) -> str:
        return f"Credentials({self.username!r}, ..., {self.server_address!r})"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self.username or self.password or self.identity_token or self.registry_token)

    @property
    def identity(self) -> str:
        """A name for who this is, for keys of caches: a digest, never the secret."""
        return sha256("\0".join((self.username, self.password, self.identity_token, self.registry_token)).encode())

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


def credentials(header: str) -> Credentials:
    """X-Registry-Auth: base64url of a JSON object. Standard base64 and missing padding are taken too; nonsense is no credentials."""
    document = _document(header)
    return from_members(document) if isinstance(document, dict) else Credentials()


def credentials_by_host(header: str) -> dict[str, Credentials]:
    """X-Registry-Config: the same for several registries, by their address as `docker login` was given it."""
    document = _document(header)
    if not isinstance(document, dict):
        return {}
    found = {}
    for address, members in list(document.items())[:_MOST_HOSTS]:
        if isinstance(members, dict) and (given := from_members(members)):
            found[address] = given if given.server_address else msgspec.structs.replace(given, server_address=address)
    return found


def from_members(members: dict[str, Any]) -> Credentials:
    """An AuthConfig object: names in any case, as Go reads them; `auth` is base64 of `user:password`, for clients that send their file's
    entry unchanged."""
    texts = {key.lower(): value for key, value in members.items() if isinstance(value, str)}
    username, password = texts.get("username", ""), texts.get("password", "")
    if not username and not password and texts.get("auth"):
        username, _, password = _base64(texts["auth"]).decode("utf-8", "replace").partition(":")
        password = password.rstrip("\0")
    return Credentials(
        username=username,
        password=password,
        identity_token=texts.get("identitytoken", ""),
        registry_token=texts.get("registrytoken", ""),
        server_address=texts.get("serveraddress", ""),
    )


def host_of(address: str) -> str:
    """The registry that a server address names: `https://host:5000/v2/` is `host:5000`, Docker Hub's old address and "" are `docker.io`."""
    bare = address.partition("://")[2] if "://" in address else address
    host = bare.partition("/")[0]
    return "docker.io" if host in ("", "docker.io", "index.docker.io", "registry-1.docker.io") else host


def _document(header: str) -> Any:
    if not header or len(header) > _LONGEST:
        return None
    try:
        return msgspec.json.decode(_base64(header))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def _base64(text: str) -> bytes:
    """Either alphabet, with or without padding; b"" for what is not base64."""
    bare = text.strip().rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except (binascii.Error, ValueError):
        return b""
