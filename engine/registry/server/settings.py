"""How a registry is served: what `knarr registry serve` sends, and the member `registry` of daemon.json. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.errors import InvalidParameter
from engine.registry.server import names

DEFAULT_ADDRESS = "127.0.0.1:5000"  # Docker's registry listens on port 5000; on loopback, because by default nobody is asked who they are
PORT = 5000


class RegistrySettings(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """Paths are absolute and of the daemon's host. `proxy` lists upstream registries as URLs: the first is what is cached, another is
    reached with `?ns=HOST`. `names` as in `app.Options`."""

    addr: str = DEFAULT_ADDRESS
    tls_cert: str = ""
    tls_key: str = ""
    htpasswd: str = ""
    realm: str = ""
    anonymous_pull: bool = False
    token_realm: str = ""
    token_service: str = ""
    token_issuer: str = ""
    token_cert: str = ""
    read_only: bool = False
    no_delete: bool = False
    proxy: tuple[str, ...] = ()
    proxy_username: str = ""
    proxy_password: str = ""
    name: tuple[str, ...] = ()

    @property
    def listen(self) -> str:
        """`addr` as a listener's address, with the registry's port where none is given. Without a host it means every address of this
        host, as in Docker's registry."""
        if self.addr.startswith(("unix://", "tcp://", "fd://")):
            return self.addr
        host, colon, port = self.addr.rpartition(":")
        if not colon or self.addr.endswith("]"):
            host, port = self.addr, str(PORT)
        return f"tcp://{host}:{port}"

    @property
    def token(self) -> bool:
        """Whether tokens are asked for."""
        return bool(self.token_realm or self.token_service or self.token_issuer or self.token_cert)


def check(settings: RegistrySettings) -> RegistrySettings:
    """The settings, if they fit together. Raises InvalidParameter."""
    tokens = (settings.token_realm, settings.token_service, settings.token_issuer, settings.token_cert)
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise InvalidParameter("serving a registry: --tls-cert and --tls-key belong together")
    if settings.token and not all(tokens):
        raise InvalidParameter("serving a registry: --token-realm, --token-service, --token-issuer and --token-cert belong together")
    if settings.token and settings.htpasswd:
        raise InvalidParameter("serving a registry: --htpasswd and token authentication exclude each other")
    if settings.anonymous_pull and not settings.htpasswd:
        raise InvalidParameter("serving a registry: --anonymous-pull needs --htpasswd")
    if bool(settings.proxy_username) != bool(settings.proxy_password):
        raise InvalidParameter("serving a registry: --proxy-username and --proxy-password-stdin belong together")
    if settings.proxy_username and not settings.proxy:
        raise InvalidParameter("serving a registry: --proxy-username needs --proxy")
    for name in settings.name:
        if not names.is_name(name.removesuffix("/*")):
            raise InvalidParameter(f"serving a registry: --name {name}: invalid repository name")
    for path in (settings.tls_cert, settings.tls_key, settings.htpasswd, settings.token_cert):
        if path and not path.startswith("/"):
            raise InvalidParameter(f"serving a registry: the path {path} is not absolute")
    return settings


def parse(raw: bytes) -> RegistrySettings:
    """From JSON. Raises InvalidParameter."""
    try:
        return check(msgspec.json.decode(raw or b"{}", type=RegistrySettings))
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidParameter(f"serving a registry: {error}")


def convert(members: dict[str, Any]) -> RegistrySettings:
    """From the member of daemon.json. Raises InvalidParameter."""
    try:
        return check(msgspec.convert(members, RegistrySettings))
    except msgspec.MsgspecError as error:
        raise InvalidParameter(f"registry in daemon.json: {error}")
