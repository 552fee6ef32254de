"""Networks and endpoints as records: what is stored of a network, and what a running container has of one. Pure data.

Names follow Docker's API; addresses are text without a prefix length ("172.18.0.2"), subnets are text in CIDR form.
"""

from __future__ import annotations

import msgspec


class Pool(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One subnet of a network. `ip_range`: the part that addresses are given from, "" for all; `aux`: reserved addresses by name."""

    subnet: str
    ip_range: str = ""
    gateway: str = ""
    aux: dict[str, str] = {}
    given_subnet: bool = True  # False: chosen from the default address pools
    given_gateway: bool = True  # False: chosen by us


class NetworkRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One row of the networks table, msgspec-encoded JSON. `created_at`: nanoseconds since the epoch.

    `driver`: bridge, macvlan, host or null. `options`: driver options as given. `link`: the host link (bridge, or macvlan's parent);
    `foreign_link`: it was there before the network and stays when that goes.
    `pools`: IPv4 before IPv6, as they were resolved at create; of a `config_only` network as they were given.
    `predefined`: bridge, host and none, which nobody can remove.
    """

    id: str
    name: str
    driver: str
    created_at: int
    ipv4: bool = True
    ipv6: bool = False
    internal: bool = False
    attachable: bool = False
    config_only: bool = False
    config_from: str = ""
    predefined: bool = False
    labels: dict[str, str] = {}
    options: dict[str, str] = {}
    ipam_driver: str = "default"
    ipam_options: dict[str, str] = {}
    pools: list[Pool] = []
    link: str = ""
    foreign_link: bool = False


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """A published port: `host_ip` ("0.0.0.0", "::" or one address) and `host_port` lead to `port` of the container.

    `protocol`: tcp, udp or sctp.
    """

    protocol: str
    host_ip: str
    host_port: int
    port: int


class Endpoint(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A running container's place in a network. Addresses are "" where there is none.

    `ifname`: the link inside; `link`: the host's end ("" for macvlan). `names`: what other containers of the network find it by
    (name, aliases, short id). `links`: names of other containers that only this one knows: alias to container id.
    `link_local`: more addresses, of either family, that count on the link only; `sysctls`: its settings, see `endpointoptions.sysctls`.
    """

    id: str
    network_id: str
    ifname: str = ""
    link: str = ""
    mac: str = ""
    ipv4: str = ""
    ipv4_prefix: int = 0
    ipv4_gateway: str = ""
    ipv6: str = ""
    ipv6_prefix: int = 0
    ipv6_gateway: str = ""
    gw_priority: int = 0
    names: list[str] = []
    links: dict[str, str] = {}
    link_local: list[str] = []
    sysctls: dict[str, str] = {}


class Sandbox(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Everything of the network that a running container has; kept in its bundle, because it lives exactly as long.

    `resolver`: whether the embedded name server answers in its network namespace.
    """

    endpoints: list[Endpoint] = []
    ports: list[Published] = []
    resolver: bool = False
