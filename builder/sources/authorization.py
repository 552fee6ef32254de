"""The client's secrets that open servers to a build: `GIT_AUTH_…` for Git, `HTTP_AUTH_…` for files of web servers. Pure.

Names are BuildKit's: `GIT_AUTH_TOKEN` and `GIT_AUTH_HEADER`, also with `.host`; `HTTP_AUTH_TOKEN_host` and `HTTP_AUTH_HEADER_host`,
here also with a dot, and never without a host, because a Dockerfile may name any server. A token becomes a header, a header is sent as it
is. Only the server that a secret is for gets it, not one that it redirects to; nothing of it is in a key, an address or a message.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

from engine.errors import InvalidParameter

GIT_TOKEN, GIT_HEADER = "GIT_AUTH_TOKEN", "GIT_AUTH_HEADER"
HTTP_TOKEN, HTTP_HEADER = "HTTP_AUTH_TOKEN", "HTTP_AUTH_HEADER"
_WHOLE_GITHUB = ("https://github.com/", "https://www.github.com/")


class GitAuthorization(msgspec.Struct, frozen=True):
    """A header for addresses that begin with `scope`."""

    scope: str
    header: str

    @property
    def settings(self) -> dict[str, str]:
        """git's settings for it. git would send the header on to where a server redirects it, so that it must not follow; GitHub redirects
        renamed repositories, within itself."""
        found = {f"http.{self.scope}.extraheader": f"Authorization: {self.header}"}
        if self.scope not in _WHOLE_GITHUB:
            found[f"http.{self.scope}.followRedirects"] = "false"
        return found

    def __repr__(self) -> str:
        return f"GitAuthorization({self.scope!r})"


def for_git(remote: str, secrets: Mapping[str, bytes], *, of_host: bool = False) -> GitAuthorization | None:
    """What opens a repository, and all of GitHub where it is there, for submodules (BuildKit). `of_host`: only a secret that names the host
    counts. Raises InvalidParameter for a secret that is no header."""
    if not remote.startswith(("https://", "http://")):
        return None
    host = urlsplit(remote).netloc.rpartition("@")[2]
    for name in (f"{GIT_HEADER}.{host}", f"{GIT_TOKEN}.{host}", *(() if of_host else (GIT_HEADER, GIT_TOKEN))):
        if name in secrets:
            value = _value(name, secrets[name])
            if name.startswith(GIT_TOKEN):
                value = "basic " + base64.b64encode(f"x-access-token:{value}".encode("utf-8", "surrogateescape")).decode()
            return GitAuthorization(next((prefix for prefix in _WHOLE_GITHUB if remote.startswith(prefix)), remote), value)
    return None


def for_web(url: str, secrets: Mapping[str, bytes]) -> str:
    """The value of the header `Authorization` for a file of a web server, "" without a secret for its host (any port). A token goes
    before a header, as in BuildKit. Raises InvalidParameter for a secret that is no header."""
    host = urlsplit(url).hostname or ""
    known = {name.lower(): name for name in secrets}
    for kind in (HTTP_TOKEN, HTTP_HEADER):
        for separator in "_.":
            name = known.get(f"{kind}{separator}{host}".lower())
            if name is not None:
                value = _value(name, secrets[name])
                if not value.isascii():
                    raise InvalidParameter(f"the secret {name} has characters that no header can have")
                return f"Bearer {value}" if kind == HTTP_TOKEN else value
    return ""


def origin(url: str) -> tuple[str, str, int]:
    """What a browser calls so: who a secret for this address is told to. Raises ValueError for a port that is none."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)


def _value(name: str, secret: bytes) -> str:
    value = secret.decode("utf-8", "surrogateescape").strip()
    if any(ord(char) < 32 or ord(char) == 127 for char in value):
        raise InvalidParameter(f"the secret {name} has more than one line, or control characters")
    return value
