"""Bodies of the network endpoints as Docker's clients send them (Engine API 1.51, "Network"). Pure data, no policy.

Every field may be null or missing, because Go clients send `null` for empty lists and maps.
"""

from __future__ import annotations

import msgspec

from engine.spec.docker.containers import EndpointSettings, PortBinding, StrMap
from engine.spec.docker.names import pascal


class IPAMConfig(msgspec.Struct, rename=pascal):
    """One pool of addresses: `subnet` and `ip_range` in CIDR form, `gateway` and the values of `auxiliary_addresses` plain addresses."""

    subnet: str = ""
    ip_range: str = ""
    gateway: str = ""
    auxiliary_addresses: StrMap = None


class IPAM(msgspec.Struct, rename=pascal):
    """How addresses are given out."""

    driver: str = ""
    options: StrMap = None
    config: list[IPAMConfig] | None = None


class ConfigReference(msgspec.Struct, rename=pascal):
    """The network whose configuration is taken over."""

    network: str = ""


class NetworkCreate(msgspec.Struct, rename=pascal):
    """`POST /networks/create`. `enable_ipv4` and `enable_ipv6` are None where the daemon's default counts.

    `check_duplicate` has no meaning since API 1.44: names are always unique.
    """

    name: str = ""
    check_duplicate: bool | None = None
    driver: str = ""
    scope: str = ""
    enable_ipv4: bool | None = None
    enable_ipv6: bool | None = None
    ipam: IPAM | None = None
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_only: bool = False
    config_from: ConfigReference | None = None
    options: StrMap = None
    labels: StrMap = None


class NetworkConnect(msgspec.Struct, rename=pascal):
    """`POST /networks/{id}/connect`. `container`: name, id or id prefix."""

    container: str = ""
    endpoint_config: EndpointSettings | None = None


class NetworkDisconnect(msgspec.Struct, rename=pascal):
    """`POST /networks/{id}/disconnect`."""

    container: str = ""
    force: bool = False


class PortsRequest(msgspec.Struct, rename=pascal):
    """`POST /containers/{id}/ports/add` and `/ports/rm`, an extension: bindings as `HostConfig.PortBindings` has them."""

    port_bindings: dict[str, list[PortBinding] | None] | None = None
