"""Tokens as a token server makes them, signed with RSA and elliptic curve keys that openssl made. Only the tokens: no server is needed."""

from __future__ import annotations

import base64
import hmac
import json
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class TokenSigner:
    """Keys and what a registry must be told of them."""

    def __init__(self, directory: Path) -> None:
        self.url = "https://auth.example"
        self._directory = directory
        for name, kind in (("RS256", ["rsa:2048"]), ("ES256", ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])):
            files = ["-keyout", str(directory / f"{name}.key"), "-out", str(directory / f"{name}.crt")]
            command = ["openssl", "req", "-x509", "-newkey", *kind, "-nodes", *files, "-days", "2", "-subj", "/CN=tokens"]
            subprocess.run(command, check=True, capture_output=True)

    def options(self, algorithm: str) -> list[str]:
        """Flags of `registry serve`."""
        realm = ["--token-realm", f"{self.url}/token", "--token-service", "registry", "--token-issuer", "tester"]
        return [*realm, "--token-cert", str(self._directory / f"{algorithm}.crt")]

    def token(self, access: Iterable[str] = (), *, algorithm: str = "RS256", **claims: Any) -> str:
        """A token for scopes such as `repository:a/b:pull,push`; `claims` replace the usual ones."""
        now = time.time()
        granted = [dict(zip(("type", "name", "actions"), scope.split(":"), strict=True)) for scope in access]
        for one in granted:
            one["actions"] = one["actions"].split(",")  # type: ignore[assignment]
        payload = {"iss": "tester", "sub": "alice", "aud": "registry", "exp": now + 300, "nbf": now - 10, "access": granted, **claims}
        signed = _encode(json.dumps({"typ": "JWT", "alg": algorithm}).encode()) + "." + _encode(json.dumps(payload).encode())
        return f"{signed}.{_encode(self._sign(algorithm, signed.encode()))}"

    def _sign(self, algorithm: str, data: bytes) -> bytes:
        if algorithm == "none":
            return b""
        if algorithm == "HS256":
            return hmac.digest((self._directory / "RS256.crt").read_bytes(), data, "sha256")
        command = ["openssl", "dgst", "-sha256", "-sign", str(self._directory / f"{algorithm}.key")]
        signature = subprocess.run(command, input=data, check=True, capture_output=True).stdout
        return signature if algorithm == "RS256" else _raw(signature)


def _raw(der: bytes) -> bytes:
    """The two integers of an ECDSA signature as JSON Web Signatures have them, each of 32 bytes (RFC 7518 section 3.4)."""
    length = der[3]
    first, second = der[4 : 4 + length], der[6 + length :]
    return b"".join(int.from_bytes(part, "big").to_bytes(32, "big") for part in (first, second))
