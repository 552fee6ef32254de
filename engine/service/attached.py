"""Which networks a container belongs to and which ports it has, from its record and, while it runs, its sandbox. Pure.

For what looks at containers: inspect, `ps`, its filters. A running container's sandbox says what is; a record says what is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from engine.spec.container import ContainerRecord
from engine.spec.docker.containers import EndpointSettings
from engine.spec.network import Endpoint, NetworkRecord, Sandbox


class Known:
    """The networks there are, by name and by id."""

    def __init__(self, records: Iterable[NetworkRecord] = ()) -> None:
        self._records = {record.id: record for record in records}
        self._names = {record.name: record for record in self._records.values()}

    def find(self, ref: str) -> NetworkRecord | None:
        """By name, id, or a prefix of exactly one id."""
        found = self._names.get(ref) or self._records.get(ref)
        if found is None and ref:
            matches = [record for id, record in self._records.items() if id.startswith(ref)]
            found = matches[0] if len(matches) == 1 else None
        return found


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """One network of a container. `network` is None when there is none of that name (any more); `endpoint` while it is in it."""

    name: str
    settings: EndpointSettings
    network: NetworkRecord | None = None
    endpoint: Endpoint | None = None

    @property
    def network_id(self) -> str:
        """The network's identifier, "" when it is unknown."""
        return self.network.id if self.network is not None else self.endpoint.network_id if self.endpoint is not None else ""

    @property
    def is_default(self) -> bool:
        """Whether it is the default bridge, in which containers have no names."""
        return self.name == "bridge"

    @property
    def has_names(self) -> bool:
        """Whether containers of the network find each other by name."""
        return self.name not in ("bridge", "host", "none")


class Port(msgspec.Struct, frozen=True, order=True):
    """A port that the container exposes; with the address and port of the host that lead there, "" and 0 when none do."""

    private: int
    protocol: str
    host_ip: str = ""
    public: int = 0


def attachments(record: ContainerRecord, sandbox: Sandbox | None, known: Known) -> list[Attachment]:
    """By name. One that shares another container's namespace has none of its own."""
    mode = record.host_config.network_mode or "none"
    if mode.startswith("container:"):
        return []
    first = _name("bridge" if mode == "default" else mode, known)
    given = (record.networking.endpoints_config or {}).items()
    asked = {first if ref == "default" else _name(ref, known): settings or EndpointSettings() for ref, settings in given}
    found: dict[str, Attachment] = {}
    if sandbox is not None:
        for endpoint in sandbox.endpoints:
            network = known.find(endpoint.network_id)
            name = network.name if network is not None else endpoint.network_id
            found[name] = Attachment(name=name, settings=asked.get(name) or EndpointSettings(), network=network, endpoint=endpoint)
    else:
        left_all = record.networking.endpoints_config == {}
        for name in () if left_all else (first, *asked):
            found[name] = Attachment(name=name, settings=asked.get(name) or EndpointSettings(), network=known.find(name))
    return [found[name] for name in sorted(found)]


def _name(ref: str, known: Known) -> str:
    network = known.find(ref)
    return network.name if network is not None else ref


def ports(record: ContainerRecord, sandbox: Sandbox | None) -> list[Port]:
    """In order. Only what runs has any, and what is exposed without being published counts only behind a bridge."""
    if sandbox is None:
        return []
    found = [Port(one.port, one.protocol, one.host_ip, one.host_port) for one in sandbox.ports]
    published = {(port.private, port.protocol) for port in found}
    if any(endpoint.link for endpoint in sandbox.endpoints):
        for text in record.config.exposed_ports or ():
            number, _, protocol = text.partition("/")
            if number.isascii() and number.isdecimal() and (int(number), protocol or "tcp") not in published:
                found.append(Port(int(number), protocol or "tcp"))
    return sorted(found)
