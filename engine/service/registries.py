"""Registries as the Engine API sees them: login, search, what an image there is, and what `docker info` says about them.

Owns nothing; the client is loaded when it is first needed. Pulling and pushing are services of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from engine.config import Settings
from engine.errors import InvalidParameter, NotFound
from engine.spec import image, manifest, reference
from engine.spec.docker.registry import Credentials, host_of
from engine.spec.filters import Filters
from engine.spec.image import Descriptor
from engine.spec.platform import Platform

if TYPE_CHECKING:
    from engine.registry import client, search
    from engine.service.context import Context

DEFAULT_SEARCH_LIMIT = 25  # dockerd's
MOST_SEARCHED = 100
_LARGEST_CONFIG = 8 << 20  # bytes of a configuration that is read to learn its platform
# Loopback is always insecure, as in dockerd.
_ALWAYS_INSECURE = ("::1/128", "127.0.0.0/8")


class Registries:
    """What needs no image store."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @property
    def client(self) -> client.Registries:
        """The client of all registries, the daemon's one."""
        return self._context.registries

    async def login(self, credentials: Credentials) -> str:
        """Check credentials; the identity token to be kept instead of the password, "" for none. Raises Unauthorized."""
        from engine.registry.login import login

        return await login(self.client, host_of(credentials.server_address), credentials)

    async def search(self, term: str, limit: int, filters: Filters, credentials: Credentials) -> list[search.Found]:
        """Repositories that match. `limit` 0 is the default. Raises InvalidParameter in dockerd's words."""
        from engine.registry import search

        filters.check(("is-automated", "is-official", "stars"))
        if filters.flag("is-automated"):
            return []
        official = filters.flag("is-official") if filters.get("is-official") else None
        stars = _stars(filters)
        limit = limit or DEFAULT_SEARCH_LIMIT
        if not 1 <= limit <= MOST_SEARCHED:
            raise InvalidParameter(f"limit {limit} is outside the range of [1, {MOST_SEARCHED}]")
        found = await search.search(self.client, term, limit, credentials)
        return [one for one in found if one.star_count >= stars and official in (None, one.is_official)]

    async def manifest(self, name: str, credentials: Credentials, *, insecure: bool = False) -> tuple[Descriptor, bytes]:
        """A manifest or index as its registry has it. Raises InvalidParameter, NotFound, Unauthorized."""
        wanted = reference.parse(name).with_default_tag()
        async with self.client.remote(wanted, credentials, insecure=insecure) as remote:
            return await remote.manifest(wanted.digest or wanted.tag)

    async def put_manifest(
        self, name: str, raw: bytes, media_type: str, credentials: Credentials, *, source: str = "", insecure: bool = False
    ) -> str:
        """Store a manifest under a tag or its digest; the digest. With `source`, a name at the same registry, what it names is mounted from
        that repository before. Raises InvalidParameter, NotFound, Unauthorized."""
        wanted = reference.parse(name).with_default_tag()
        document = manifest.parse(raw, media_type, name)
        async with self.client.remote(wanted, credentials, push=True, insecure=insecure) as remote:
            if source:
                origin = reference.parse(source)
                if origin.domain != wanted.domain:
                    raise InvalidParameter(f"cannot use source images from a different registry than the target image: {origin.domain}")
                if isinstance(document, image.Manifest) and origin.path != wanted.path:
                    for blob in (*(document.layers or ()), document.config):
                        if not await remote.has_blob(blob.digest) and not await remote.mount(blob.digest, origin.path):
                            raise NotFound(f"blob {blob.digest} cannot be mounted from {origin.familiar_name}")
            return await remote.put_manifest(wanted.digest or wanted.tag, media_type, raw)

    async def inspect(self, name: str, credentials: Credentials, *, insecure: bool = False) -> tuple[Descriptor, list[Platform]]:
        """The descriptor of an image at its registry, and the platforms that it is for. Raises InvalidParameter, NotFound, Unauthorized."""
        wanted = reference.parse(name).with_default_tag()
        async with self.client.remote(wanted, credentials, insecure=insecure) as remote:
            try:
                descriptor, raw = await remote.manifest(wanted.digest or wanted.tag)
            except NotFound as error:
                raise NotFound(error.message.rpartition(" not found: ")[2] or error.message) from error
            if descriptor.media_type in image.INDEXES:
                members = _decoded(image.decode_index, raw, name).manifests or ()
                return descriptor, [member.platform for member in members if member.platform is not None]
            config = _decoded(image.decode_manifest, raw, name).config
            if config.media_type not in (image.DOCKER_CONFIG, image.MEDIA_CONFIG):
                return descriptor, []
            found = _decoded(image.decode_config, await remote.document(config, _LARGEST_CONFIG), name)
            return descriptor, [Platform(architecture=found.architecture, os=found.os, variant=found.variant, os_version=found.os_version)]


def _decoded(decode: Any, raw: bytes, name: str) -> Any:
    try:
        return decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError) as error:
        raise InvalidParameter(f"the registry's description of {name} cannot be read: {error}")


def _stars(filters: Filters) -> int:
    """The least number of stars; of several values the highest, as in dockerd."""
    most = 0
    for value in filters.get("stars"):
        if not (value.isascii() and value.lstrip("-").isdecimal()) or len(value) > 18:
            raise InvalidParameter(f"invalid filter 'stars={value}': strconv.Atoi: parsing \"{value}\": invalid syntax")
        most = max(most, int(value))
    return most


def registry_config(settings: Settings) -> dict[str, Any]:
    """`RegistryConfig` of GET /info, as dockerd shows it."""
    mirrors = [mirror.rstrip("/") + "/" for mirror in settings.registry_mirrors]
    networks = [entry for entry in settings.insecure_registries if "/" in entry]
    hosts = [entry for entry in settings.insecure_registries if "/" not in entry]
    indexes: dict[str, Any] = {host: {"Name": host, "Mirrors": [], "Secure": False, "Official": False} for host in hosts}
    indexes[reference.DEFAULT_DOMAIN] = {"Name": reference.DEFAULT_DOMAIN, "Mirrors": mirrors, "Secure": True, "Official": True}
    return {
        "AllowNondistributableArtifactsCIDRs": None,
        "AllowNondistributableArtifactsHostnames": None,
        "InsecureRegistryCIDRs": [*_ALWAYS_INSECURE, *(entry for entry in networks if entry not in _ALWAYS_INSECURE)],
        "IndexConfigs": indexes,
        "Mirrors": mirrors or None,
    }


def proxy_info(settings: Settings) -> dict[str, str]:
    """`HttpProxy`, `HttpsProxy` and `NoProxy` of GET /info, without what is secret in them."""
    from engine.registry.proxies import from_settings

    shown = from_settings(settings.http_proxy, settings.https_proxy, settings.no_proxy).masked()
    return {"HttpProxy": shown.http, "HttpsProxy": shown.https, "NoProxy": shown.no_proxy}
