"""Tokens of a token server: JSON Web Tokens, their signature, and what they grant.

Follows RFC 7515 and 7518 (signatures RS256 to RS512 and ES256 to ES512) and the distribution project's "Token Authentication
Implementation". A token is believed when one of the keys that the operator named has signed it; keys and certificates that the token
brings along (`jwk`, `x5c`) are not looked at. The signature check is pycryptodome's: `cryptography`, which the JWT libraries want, is built
with Rust.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from engine.errors import InvalidParameter

if TYPE_CHECKING:
    from Crypto.PublicKey.ECC import EccKey
    from Crypto.PublicKey.RSA import RsaKey

    Key = EccKey | RsaKey
else:
    Key = object

TOKEN_MAX = 32 * 1024  # characters; a token with a hundred scopes has some ten thousand
LEEWAY_SECONDS = 60.0  # between the token server's clock and ours, as in Docker's registry
_RSA_BITS_MIN = 2048
_CURVES = {"ES256": ("NIST P-256", 64), "ES384": ("NIST P-384", 96), "ES512": ("NIST P-521", 132)}
_RSA = ("RS256", "RS384", "RS512")


class InvalidToken(Exception):
    """The token is malformed or nobody we trust has signed it."""


class Grant(msgspec.Struct, frozen=True):
    """What a token allows on one resource."""

    type: str = ""
    name: str = ""
    actions: tuple[str, ...] | None = ()


class Claims(msgspec.Struct, frozen=True):
    """The payload of a token. Times are Unix times in seconds."""

    iss: str = ""
    sub: str = ""
    aud: str | tuple[str, ...] = ()
    exp: float = 0
    nbf: float = 0
    access: tuple[Grant, ...] | None = ()

    def valid(self, issuer: str, service: str, now: float) -> bool:
        """Whether the token is from `issuer`, for `service`, and valid at `now`."""
        audience = (self.aud,) if isinstance(self.aud, str) else self.aud
        return self.iss == issuer and service in audience and self.nbf - LEEWAY_SECONDS <= now < self.exp + LEEWAY_SECONDS

    def grants(self, type: str, name: str, actions: Sequence[str]) -> bool:
        """Whether all of `actions` are granted on a resource."""
        granted = {action for grant in self.access or () if (grant.type, grant.name) == (type, name) for action in grant.actions or ()}
        return "*" in granted or granted.issuperset(actions)


class _Header(msgspec.Struct, frozen=True):
    alg: str = ""
    crit: Any = None


def load_keys(path: str) -> list[Key]:
    """The public keys of a PEM file: keys, or certificates that hold them. Raises InvalidParameter."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would keep everybody waiting
            raise InvalidParameter(f"reading the token server's certificates {path}: not a regular file")
        with open(path, encoding="ascii") as file:
            text = file.read(1 << 20)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameter(f"reading the token server's certificates {path}: {error}")
    keys = []
    for block in text.split("-----BEGIN ")[1:]:
        try:
            keys.append(_public("-----BEGIN " + block.strip()))
        except (ValueError, IndexError, TypeError) as error:
            raise InvalidParameter(f"reading the token server's certificates {path}: {error}")
    if not keys:
        raise InvalidParameter(f"reading the token server's certificates {path}: there is no PEM block in it")
    return keys


def _public(pem: str) -> Key:
    from Crypto.PublicKey import ECC, RSA

    try:
        rsa = RSA.import_key(pem).public_key()
    except (ValueError, IndexError, TypeError):
        return ECC.import_key(pem).public_key()
    if rsa.size_in_bits() < _RSA_BITS_MIN:
        raise ValueError(f"the key has {rsa.size_in_bits()} bits, {_RSA_BITS_MIN} are the least")
    return rsa


def verify(token: str, keys: Sequence[Key]) -> Claims:
    """The claims of a token that one of `keys` has signed; times and names in it are not checked yet. Raises InvalidToken. Any thread."""
    parts = token.split(".") if len(token) <= TOKEN_MAX else []
    if len(parts) != 3:
        raise InvalidToken
    try:
        header = msgspec.json.decode(_decode(parts[0]), type=_Header)
        signature = _decode(parts[2])
        if header.crit is not None or not any(_signed(header.alg, f"{parts[0]}.{parts[1]}".encode(), signature, key) for key in keys):
            raise InvalidToken
        return msgspec.json.decode(_decode(parts[1]), type=Claims)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidToken from error


def _decode(part: str) -> bytes:
    try:
        return base64.b64decode(part.encode("ascii") + b"=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise InvalidToken from error


def _signed(algorithm: str, data: bytes, signature: bytes, key: Key) -> bool:
    from Crypto.Hash import SHA256, SHA384, SHA512
    from Crypto.PublicKey.ECC import EccKey
    from Crypto.PublicKey.RSA import RsaKey
    from Crypto.Signature import DSS, pkcs1_15

    hashes: dict[str, Any] = {"256": SHA256, "384": SHA384, "512": SHA512}
    try:
        if algorithm in _RSA and isinstance(key, RsaKey):
            pkcs1_15.new(key).verify(hashes[algorithm[2:]].new(data), signature)
            return True
        if algorithm in _CURVES and isinstance(key, EccKey):
            curve, length = _CURVES[algorithm]
            if key.curve != curve or len(signature) != length:
                return False
            DSS.new(key, "fips-186-3").verify(hashes[algorithm[2:]].new(data), signature)
            return True
    except ValueError:
        return False
    return False
