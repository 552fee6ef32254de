"""Which proxy a request goes through. Pure but for reading the environment.

Follows Go's golang.org/x/net/http/httpproxy, which dockerd uses: the forms of NO_PROXY, and that loopback is never proxied.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Proxies(msgspec.Struct, frozen=True):
    """A proxy for each scheme ("" for none) and the hosts that are reached without."""

    http: str = ""
    https: str = ""
    no_proxy: str = ""

    def for_url(self, url: str) -> str:
        """The proxy for a URL, with its scheme; "" for none."""
        parts = urlsplit(url)
        chosen = self.https if parts.scheme == "https" else self.http
        if not chosen or not parts.hostname:
            return ""
        if bypassed(parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme, 0), self.no_proxy):
            return ""
        return chosen if "://" in chosen else f"http://{chosen}"

    def masked(self) -> Proxies:
        """The same without user names and passwords, for showing."""
        return Proxies(mask(self.http), mask(self.https), self.no_proxy)


def from_settings(http: str, https: str, no_proxy: str, environment: Mapping[str, str] = os.environ) -> Proxies:
    """The daemon's settings, each else from the environment; upper case first, as in Go."""

    def variable(name: str) -> str:
        return environment.get(name.upper()) or environment.get(name) or ""

    return Proxies(http or variable("http_proxy"), https or variable("https_proxy"), no_proxy or variable("no_proxy"))


def mask(url: str) -> str:
    """`http://user:password@host` as dockerd shows it: `http://xxxxx:xxxxx@host`."""
    scheme, separator, rest = url.rpartition("://")
    authority, slash, path = rest.partition("/")
    if "@" not in authority:
        return url
    return f"{scheme}{separator}xxxxx:xxxxx@{authority.rpartition('@')[2]}{slash}{path}"


def bypassed(host: str, port: int, no_proxy: str) -> bool:
    """Whether NO_PROXY names this host: `*`, address, CIDR, `example.com` (and below), `.example.com` (only below); each with a port."""
    name = host.lower().rstrip(".")
    address = _address(name)
    if name == "localhost" or (address is not None and address.is_loopback):
        return True
    return any(_matches(entry.strip().lower(), name, address, port) for entry in no_proxy.split(",") if entry.strip())


def _matches(entry: str, name: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None, port: int) -> bool:
    if entry == "*":
        return True
    if "/" in entry:
        try:
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    host, given = entry, ""
    if entry.startswith("["):
        host, _, rest = entry[1:].partition("]")
        given = rest.removeprefix(":")
    elif entry.count(":") == 1:
        host, _, given = entry.partition(":")
    if given and given != str(port):
        return False
    if address is not None or _address(host) is not None:
        return address is not None and address == _address(host)
    host = host.removeprefix("*")
    return name.endswith(host) if host.startswith(".") else name == host or name.endswith("." + host)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
