"""Networks as `inspect` and `ls` show them. Source: the Engine API reference 1.51 and the answers of dockerd."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from engine.api.version import Version
from engine.api.views.times import rfc3339
from engine.service.networkfilter import SCOPE, shown_driver
from engine.spec.container import ContainerRecord
from engine.spec.network import Endpoint, NetworkRecord, Pool

Json = dict[str, Any]


def pool(value: Pool) -> Json:
    """One member of `IPAM.Config`; what is empty is left out."""
    shown: Json = {"Subnet": value.subnet}
    if value.ip_range:
        shown["IPRange"] = value.ip_range
    if value.gateway and (value.given_gateway or not value.given_subnet):  # tools compare what they asked for with this
        shown["Gateway"] = value.gateway
    if value.aux:
        shown["AuxiliaryAddresses"] = value.aux
    return shown


def member(record: ContainerRecord, endpoint: Endpoint) -> Json:
    """One member of `Containers`: addresses with their prefix lengths."""
    return {
        "Name": record.name,
        "EndpointID": endpoint.id,
        "MacAddress": endpoint.mac,
        "IPv4Address": f"{endpoint.ipv4}/{endpoint.ipv4_prefix}" if endpoint.ipv4 else "",
        "IPv6Address": f"{endpoint.ipv6}/{endpoint.ipv6_prefix}" if endpoint.ipv6 else "",
    }


def network(record: NetworkRecord, version: Version, members: Iterable[tuple[ContainerRecord, Endpoint]] = ()) -> Json:
    """`GET /networks/{id}`, and without `members` one entry of `GET /networks`.

    There is neither `Peers` nor `Services`: both are Swarm's, and left out by dockerd too when empty.
    """
    shown: Json = {
        "Name": record.name,
        "Id": record.id,
        "Created": rfc3339(record.created_at),
        "Scope": SCOPE,
        "Driver": shown_driver(record),
    }
    if version >= (1, 48):
        shown["EnableIPv4"] = record.ipv4
    shown |= {
        "EnableIPv6": record.ipv6,
        "IPAM": {
            "Driver": record.ipam_driver,
            "Options": record.ipam_options or None,
            "Config": [pool(one) for one in record.pools] or None,
        },
        "Internal": record.internal,
        "Attachable": record.attachable,
        "Ingress": False,
        "ConfigFrom": {"Network": record.config_from},
        "ConfigOnly": record.config_only,
        "Containers": {container.id: member(container, endpoint) for container, endpoint in members},
        "Options": dict(sorted(record.options.items())),  # as Go sorts the keys of a map
        "Labels": dict(sorted(record.labels.items())),
    }
    return shown
