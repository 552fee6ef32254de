"""Who may do what: nobody is asked, names and passwords of an htpasswd file, or tokens of a token server.

Follows RFC 7235, RFC 7617 (Basic), and the distribution project's "Token Authentication Specification" and "Token Scope Documentation".
Passwords and tokens are never logged. The file's hashes are bcrypt's, as in Docker's registry: anything weaker fails to authenticate.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import secrets
import stat
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import msgspec

from engine.aio.blocking import blocking
from engine.errors import InvalidParameter
from engine.registry.server import tokens
from engine.registry.server.errors import RegistryError

REALM = "Registry Realm"  # what Docker's registry calls itself in its examples
_FILE_MAX = 1 << 20  # bytes of an htpasswd file
_CACHE_SECONDS = 60.0  # a password that was right is believed this long
_CACHE_MAX = 256
_WAITING_MAX = 32  # password checks at a time; each burns up to a second of CPU, so that guessing must not starve uploads


class Access(msgspec.Struct, frozen=True):
    """One thing that a request does: `actions` on a repository, or on the catalog (type `registry`)."""

    name: str
    actions: tuple[str, ...]
    type: str = "repository"

    def __str__(self) -> str:
        return f"{self.type}:{self.name}:{','.join(self.actions)}"


class Authenticator(Protocol):
    """Decides on a request by its Authorization header."""

    async def check(self, authorization: str, access: Sequence[Access]) -> str:
        """The user's name ("" when nobody needs one). Raises RegistryError with the challenge."""

    def may(self, authorization: str, access: Access) -> bool:
        """Whether one more thing is allowed to a request that `check` let pass."""


class Nobody:
    """No authentication: everybody may do everything."""

    async def check(self, authorization: str, access: Sequence[Access]) -> str:
        """See Authenticator."""
        return ""

    def may(self, authorization: str, access: Access) -> bool:
        """See Authenticator."""
        return True


class Htpasswd:
    """Basic authentication with an htpasswd file, which is read again when it changed. `anonymous_pull`: reading needs no password."""

    def __init__(self, path: str, *, realm: str = REALM, anonymous_pull: bool = False) -> None:
        _check_parameter("realm", realm)
        self._path = path
        self._challenge = f'WWW-Authenticate: Basic realm="{realm}"\r\n'.encode()
        self._anonymous_pull = anonymous_pull
        self._users: dict[str, str] = {}
        self._stamp: tuple[int, int, int] = (0, 0, 0)
        self._key = secrets.token_bytes(32)
        self._known: OrderedDict[bytes, float] = OrderedDict()
        self._waiting = 0
        try:
            self._load()
        except OSError as error:
            raise InvalidParameter(f"reading the htpasswd file {path}: {error.strerror}")

    def _load(self) -> None:
        """Read the file if it changed. Raises OSError, InvalidParameter."""
        info = os.stat(self._path)
        if not stat.S_ISREG(info.st_mode):  # a pipe would keep everybody waiting
            raise InvalidParameter(f"reading the htpasswd file {self._path}: not a regular file")
        stamp = (info.st_mtime_ns, info.st_size, info.st_ino)
        if stamp == self._stamp:
            return
        if info.st_size > _FILE_MAX:
            raise InvalidParameter(f"reading the htpasswd file {self._path}: larger than {_FILE_MAX} bytes")
        with open(self._path, encoding="utf-8", errors="replace") as file:
            self._users = parse_htpasswd(file.read())
        self._stamp = stamp
        self._known.clear()

    async def check(self, authorization: str, access: Sequence[Access]) -> str:
        """See Authenticator."""
        if not authorization and self._anonymous_pull and all(one.actions == ("pull",) for one in access):
            return ""
        user, password = _basic(authorization)
        if user and await self._right(user, password):
            return user
        raise RegistryError("UNAUTHORIZED", _scopes(access), fields=self._challenge)

    def may(self, authorization: str, access: Access) -> bool:
        """See Authenticator: whoever has a password may do everything."""
        return bool(authorization) or self._anonymous_pull

    async def _right(self, user: str, password: str) -> bool:
        try:
            self._load()
        except (OSError, InvalidParameter):
            pass  # what was read last still counts while the file is being replaced
        stored = self._users.get(user, "")
        proof = hmac.digest(self._key, msgspec.json.encode((user, password, stored)), "sha256")
        now = time.monotonic()
        if stored and self._known.get(proof, 0.0) > now:
            return True
        if self._waiting >= _WAITING_MAX:
            raise RegistryError("TOOMANYREQUESTS", fields=b"Retry-After: 1\r\n")
        self._waiting += 1
        try:
            # For a user who does not exist the work is the same, so that the time does not tell.
            right = await blocking("passwords", matches, password, stored or next(iter(self._users.values()), ""))
        finally:
            self._waiting -= 1
        if not (right and stored):
            return False
        self._known[proof] = now + _CACHE_SECONDS
        while len(self._known) > _CACHE_MAX:
            self._known.popitem(last=False)
        return True


class Bearer:
    """Tokens of a token server. `realm` is its URL, `service` our name there, `issuer` its name."""

    def __init__(self, realm: str, service: str, issuer: str, keys: Sequence[tokens.Key]) -> None:
        for name, value in (("realm", realm), ("service", service), ("issuer", issuer)):
            _check_parameter(name, value)
        self._realm = realm
        self._service = service
        self._issuer = issuer
        self._keys = tuple(keys)
        self._seen: OrderedDict[bytes, tokens.Claims] = OrderedDict()

    async def check(self, authorization: str, access: Sequence[Access]) -> str:
        """See Authenticator."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise self._refused(access)
        claims = self._known(token)
        if claims is None:
            try:
                claims = await blocking("hashing", tokens.verify, token.strip(), self._keys)
            except tokens.InvalidToken:
                raise self._refused(access, "invalid_token")
            self._remember(token, claims)
        if not claims.valid(self._issuer, self._service, time.time()):
            raise self._refused(access, "invalid_token")
        if not all(claims.grants(one.type, one.name, one.actions) for one in access):
            raise self._refused(access, "insufficient_scope")
        return claims.sub

    def may(self, authorization: str, access: Access) -> bool:
        """See Authenticator."""
        claims = self._known(authorization.partition(" ")[2])
        return claims is not None and claims.grants(access.type, access.name, access.actions)

    def _known(self, token: str) -> tokens.Claims | None:
        return self._seen.get(hashlib.sha256(token.strip().encode()).digest())

    def _remember(self, token: str, claims: tokens.Claims) -> None:
        self._seen[hashlib.sha256(token.strip().encode()).digest()] = claims
        while len(self._seen) > _CACHE_MAX:
            self._seen.popitem(last=False)

    def _refused(self, access: Sequence[Access], error: str = "") -> RegistryError:
        challenge = f'Bearer realm="{self._realm}",service="{self._service}"'
        if access:
            challenge += f',scope="{" ".join(str(one) for one in access)}"'
        if error:
            challenge += f',error="{error}"'
        return RegistryError("UNAUTHORIZED", _scopes(access), fields=f"WWW-Authenticate: {challenge}\r\n".encode())


def _check_parameter(name: str, value: str) -> None:
    """Refuse what could not stand between quotes in a header. Raises InvalidParameter."""
    if not value or '"' in value or "\\" in value or not value.isascii() or not value.isprintable():
        raise InvalidParameter(f"authentication: the {name} {value!r} is empty or has characters that no header takes")


def _scopes(access: Sequence[Access]) -> list[dict[str, str]] | None:
    """As Docker's registry tells what was asked for."""
    return [{"Type": one.type, "Class": "", "Name": one.name, "Action": action} for one in access for action in one.actions] or None


def _basic(authorization: str) -> tuple[str, str]:
    """User and password of a Basic header; empty when it is none."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return (user, password) if colon else ("", "")


def parse_htpasswd(text: str) -> dict[str, str]:
    """User -> hash. Raises InvalidParameter for a line that is none; a hash that is not bcrypt's matches no password."""
    users: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        user, colon, stored = line.partition(":")
        if not colon or not user or not stored:
            raise InvalidParameter(f"reading the htpasswd file: line {number} is not USER:HASH")
        users[user] = stored
    return users


def matches(password: str, stored: str) -> bool:
    """Whether a password belongs to a bcrypt hash. Takes as long as the hash's cost says; any thread.

    $2y$ (htpasswd), $2b$ and $2a$ are one algorithm for what is checked here: passwords of up to 72 bytes without NUL.
    """
    from Crypto.Protocol.KDF import bcrypt_check

    if stored[:4] not in ("$2y$", "$2b$", "$2a$") or len(stored) != 60:
        return False
    try:
        bcrypt_check(password.encode(), b"$2a$" + stored[4:].encode())
    except ValueError:  # a wrong password, or one that bcrypt cannot hash
        return False
    return True
