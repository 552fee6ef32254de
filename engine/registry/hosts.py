"""Which servers answer for a registry, and how each is reached: mirrors, certificates, insecure registries.

Follows containerd's docs/hosts.md (`hosts.toml`), Docker's "/etc/docker/certs.d/HOST", and dockerd's --registry-mirror and
--insecure-registry. Reads configuration files; opens no connection.
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Any
from urllib.parse import urlsplit

import msgspec

from engine.errors import InvalidParameter
from engine.spec.reference import DEFAULT_DOMAIN

DEFAULT_FOLDERS = ("/etc/containerd/certs.d", "/etc/docker/certs.d")
HUB_HOST = "registry-1.docker.io"  # where Docker Hub's API is; its name in references is docker.io
CAPABILITIES = frozenset(("pull", "resolve", "push"))
DIAL_TIMEOUT = 30.0  # seconds, as containerd's and Go's default dialer
_LARGEST_FILE = 1 << 20
_MOST_HOSTS = 32
_PORT = re.compile(r":([0-9]+)$")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Tls(msgspec.Struct, frozen=True):
    """Files of certificates that are trusted beside the system's, client certificates with their keys, and whether to check at all."""

    authorities: tuple[str, ...] = ()
    clients: tuple[tuple[str, str], ...] = ()
    skip_verify: bool = False

    def for_another_host(self) -> Tls:
        """What is kept after a redirect to another host: our client certificates are not shown there."""
        return Tls(self.authorities, (), self.skip_verify)


class Endpoint(msgspec.Struct, frozen=True):
    """One server. `url` ends in `/v2` and has no slash behind. `insecure` allows plain HTTP, `namespace` is the registry that a mirror is
    asked for (`?ns=`), `timeout` is for connecting, in seconds, `socket` the path of a unix socket to connect to instead."""

    url: str
    capabilities: frozenset[str] = CAPABILITIES
    tls: Tls = Tls()
    headers: tuple[tuple[str, str], ...] = ()
    timeout: float = DIAL_TIMEOUT
    namespace: str = ""
    insecure: bool = False
    mirror: bool = False
    socket: str = ""

    @property
    def host(self) -> str:
        """`host[:port]` of the URL."""
        return urlsplit(self.url).netloc.rpartition("@")[2]

    @property
    def plain(self) -> bool:
        """Whether it is spoken to without TLS."""
        return self.url.startswith("http://")


class Hosts:
    """The configuration of one daemon. Files are read at each call: they may change while it runs."""

    def __init__(self, *, folders: tuple[str, ...] = (), mirrors: tuple[str, ...] = (), insecure: tuple[str, ...] = ()) -> None:
        self.folders = folders or DEFAULT_FOLDERS
        self.mirrors = mirrors
        self.insecure = insecure

    def endpoints(self, domain: str, *, insecure: bool = False) -> list[Endpoint]:
        """The servers for the registry `domain` (as in a reference), in the order in which to try them. `insecure` takes it for one of
        --insecure-registry. Raises InvalidParameter for configuration that makes no sense."""
        insecure = insecure or is_insecure(domain, self.insecure)
        folder = self._folder(domain)
        if folder and os.path.exists(f"{folder}/hosts.toml"):
            return self._relaxed(hosts_toml(_read(f"{folder}/hosts.toml"), domain, folder, insecure=insecure), insecure)
        tls = self._certificates(domain) if folder is None else certificates(folder)
        found = [self._mirror(url) for url in self.mirrors] if domain == DEFAULT_DOMAIN else []
        return self._relaxed([*found, Endpoint(f"https://{api_host(domain)}/v2", tls=tls, insecure=insecure)], insecure)

    def _mirror(self, url: str) -> Endpoint:
        base = url.rstrip("/")
        host = urlsplit(base).netloc
        plain = base.startswith("http://")
        insecure = plain or is_insecure(host, self.insecure)
        folder = self._folder(host)
        return Endpoint(
            base if base.endswith("/v2") else base + "/v2",
            capabilities=frozenset(("pull", "resolve")),
            tls=certificates(folder) if folder else Tls(skip_verify=insecure),
            insecure=insecure,
            mirror=True,
        )

    @staticmethod
    def _relaxed(endpoints: list[Endpoint], insecure: bool) -> list[Endpoint]:
        """For an insecure registry: TLS without a check, then plain HTTP. Where somebody has configured certificates, they count."""
        found: list[Endpoint] = []
        for endpoint in endpoints:
            if not insecure or endpoint.mirror or endpoint.tls.authorities or endpoint.tls.clients:
                found.append(endpoint)
                continue
            relaxed = msgspec.structs.replace(endpoint, tls=Tls(skip_verify=True), insecure=True)
            found.append(relaxed)
            if not relaxed.plain:
                found.append(msgspec.structs.replace(relaxed, url="http://" + relaxed.url.removeprefix("https://")))
        return found

    def _folder(self, domain: str) -> str | None:
        """The first folder with configuration for this registry, in containerd's order of names."""
        names = [_PORT.sub(r"_\1_", domain), domain, "_default"]
        for root in self.folders:
            for name in names:
                if os.path.isdir(f"{root}/{name}"):
                    return f"{root}/{name}"
        return None

    def _certificates(self, domain: str) -> Tls:
        """dockerd looks for Docker Hub's certificates under the name of its API's host."""
        folder = self._folder(api_host(domain)) if api_host(domain) != domain else None
        return certificates(folder) if folder else Tls()


def api_host(domain: str) -> str:
    """The host whose API answers for the registry in a reference."""
    return HUB_HOST if domain in (DEFAULT_DOMAIN, "index.docker.io") else domain


def host_name(host: str) -> str:
    """`host:port` or `[::1]:port` without port and brackets, lower case."""
    return (urlsplit(f"//{host}").hostname or host).lower()


def is_loopback(host: str) -> bool:
    """Whether `host[:port]` is this machine: localhost, 127.0.0.0/8 or ::1."""
    name = host_name(host)
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_insecure(host: str, insecure: tuple[str, ...]) -> bool:
    """Whether `host[:port]` may be spoken to without a valid certificate: loopback, or named by dockerd's --insecure-registry."""
    if is_loopback(host):
        return True
    name = host_name(host)
    for entry in insecure:
        if entry.lower() in (host.lower(), name):
            return True
        try:
            if ipaddress.ip_address(name) in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:
            pass
    return False


def certificates(folder: str) -> Tls:
    """Docker's folder of one registry: `*.crt` are authorities, `X.cert` with `X.key` client certificates. Raises InvalidParameter."""
    names = set(os.listdir(folder))
    for name in names:
        if name.endswith(".cert") and f"{name[:-5]}.key" not in names:
            raise InvalidParameter(
                f"missing key {name[:-5]}.key for client certificate {name}. CA certificates must use the extension .crt"
            )
        if name.endswith(".key") and f"{name[:-4]}.cert" not in names:
            raise InvalidParameter(f"missing client certificate {name[:-4]}.cert for key {name}")
    authorities = tuple(f"{folder}/{name}" for name in sorted(names) if name.endswith(".crt"))
    clients = [(f"{folder}/{name}", f"{folder}/{name[:-5]}.key") for name in sorted(names) if name.endswith(".cert")]
    return Tls(authorities, tuple(clients))


def _read(path: str) -> str:
    with open(path, "rb") as file:
        raw = file.read(_LARGEST_FILE + 1)
    if len(raw) > _LARGEST_FILE:
        raise InvalidParameter(f"reading {path}: larger than {_LARGEST_FILE} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidParameter(f"reading {path}: not UTF-8")


def hosts_toml(text: str, domain: str, folder: str, *, insecure: bool = False) -> list[Endpoint]:
    """The endpoints that a `hosts.toml` names for `domain`: its hosts in order, then its server. Paths are relative to `folder`.
    Raises InvalidParameter."""
    import tomllib

    where = f"{folder}/hosts.toml"
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidParameter(f"reading {where}: {error}")
    tables = document.pop("host", {})
    if not isinstance(tables, dict) or len(tables) > _MOST_HOSTS:
        raise InvalidParameter(f"reading {where}: host must be tables, {_MOST_HOSTS} at most")
    found = [_endpoint(url, table, domain, folder, mirror=True) for url, table in tables.items()]
    server = document.pop("server", "")
    origin = _endpoint(server or f"https://{api_host(domain)}", document, domain, folder, mirror=False)
    return [*found, msgspec.structs.replace(origin, insecure=insecure or origin.insecure)]


_MEMBERS = frozenset(("capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout"))


def _endpoint(url: str, table: Any, domain: str, folder: str, *, mirror: bool) -> Endpoint:
    where = f"{folder}/hosts.toml"
    if not isinstance(table, dict) or not isinstance(url, str):
        raise InvalidParameter(f"reading {where}: {url!r} is not a table")
    for key in table:
        if key not in _MEMBERS:
            raise InvalidParameter(f"reading {where}: unknown member {key!r} of {url}")
    base = _base(url, where, override=_boolean(table, "override_path", where))
    host = urlsplit(base).netloc
    plain = base.startswith("http://")
    return Endpoint(
        base,
        capabilities=_capabilities(table, where),
        tls=Tls(_authorities(table, folder), _clients(table, folder), _boolean(table, "skip_verify", where)),
        headers=_headers(table, where),
        timeout=_timeout(table, where),
        namespace=domain if mirror and host not in (domain, api_host(domain)) else "",
        insecure=plain or is_loopback(host),
        mirror=mirror,
    )


def _base(url: str, where: str, *, override: bool) -> str:
    if "://" not in url:
        url = ("http://" if is_loopback(url.partition("/")[0]) else "https://") + url
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or "@" in parts.netloc:
        raise InvalidParameter(f"reading {where}: {url!r} is not the address of a registry", hint="write https://HOST[:PORT]")
    path = parts.path.rstrip("/")
    if not override and not path.endswith("/v2"):
        path += "/v2"
    return f"{parts.scheme}://{parts.netloc}{path}"


def _boolean(table: dict[str, Any], key: str, where: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise InvalidParameter(f"reading {where}: {key} must be true or false")
    return value


def _capabilities(table: dict[str, Any], where: str) -> frozenset[str]:
    names = table.get("capabilities")
    if names is None:
        return CAPABILITIES
    if not isinstance(names, list) or not all(name in CAPABILITIES for name in names):
        raise InvalidParameter(f"reading {where}: unknown capability in {names!r}", hint="pull, resolve and push are known")
    return frozenset(names)


def _path(folder: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidParameter(f"reading {folder}/hosts.toml: {value!r} is not a path")
    return os.path.join(folder, value)


def _authorities(table: dict[str, Any], folder: str) -> tuple[str, ...]:
    value = table.get("ca", [])
    return tuple(_path(folder, item) for item in (value if isinstance(value, list) else [value]))


def _clients(table: dict[str, Any], folder: str) -> tuple[tuple[str, str], ...]:
    """`"file"`, `["file", …]` or `[["cert", "key"], …]`; a file alone holds both."""
    value = table.get("client", [])
    pairs = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, list):
            if len(item) not in (1, 2):
                raise InvalidParameter(f"reading {folder}/hosts.toml: client wants a certificate and a key")
            pairs.append((_path(folder, item[0]), _path(folder, item[1]) if item[1:] and item[1] else _path(folder, item[0])))
        else:
            pairs.append((_path(folder, item), _path(folder, item)))
    return tuple(pairs)


def _headers(table: dict[str, Any], where: str) -> tuple[tuple[str, str], ...]:
    found = []
    headers = table.get("header", {})
    if not isinstance(headers, dict):
        raise InvalidParameter(f"reading {where}: header must be a table")
    for name, values in headers.items():
        for value in values if isinstance(values, list) else [values]:
            if not isinstance(value, str) or not re.fullmatch(r"[\x20-\x7e\t]*", value) or not re.fullmatch(r"[A-Za-z0-9-]+", name):
                raise InvalidParameter(f"reading {where}: header {name!r} is malformed")
            found.append((name, value))
    return tuple(found)


def _timeout(table: dict[str, Any], where: str) -> float:
    value = table.get("dial_timeout")
    if value is None:
        return DIAL_TIMEOUT
    parts = _DURATION.findall(value) if isinstance(value, str) else []
    if not parts or "".join(number + unit for number, unit in parts) != value:
        raise InvalidParameter(f"reading {where}: dial_timeout {value!r} is not a duration", hint='for example "5s"')
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)
