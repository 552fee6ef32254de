"""What names mean to each container: zones shared by all containers of a network, and what one container alone knows. No I/O.

Semantics are Docker's: a name is looked for in the container's networks in their order, links first; `name.network` means the name in that
network; a name that is known but has no address of the type asked for is an empty answer, not an unknown name; what is not known is left to
the caller. Beyond dockerd, which asks the upstream servers about the other types of a known name and so reports it as absent, those
are empty answers too.

A start or end of a container changes one zone, whatever the number of containers in it. Finished answers are kept by the bytes of the
question, so that asking again is one look-up in a dict.
"""

from __future__ import annotations

from itertools import cycle, repeat

from engine.wire import dns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_ROTATIONS = 16  # orders of one answer that are kept
CACHE_LIMIT = 4096  # answers of all containers together
_KEY_LIMIT = 300  # bytes of a question that is kept
_ID_LENGTH = 64  # a container's whole identifier; names hold its first 12 digits
_SHORT_ID = 12


class Endpoint:
    """A container's place in a network: names in lower case, data of its A and AAAA records, its own name for PTR."""

    __slots__ = ("addresses", "names", "title")

    def __init__(self, names: Iterable[str], addresses: Iterable[str], title: str) -> None:
        self.names = tuple(dict.fromkeys(folded(name) for name in names if name))
        self.addresses = tuple(dict.fromkeys(dns.address(address) for address in addresses if address))
        self.title = title.encode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Endpoint) and self.names == other.names and self.addresses == other.addresses and self.title == other.title

    __hash__ = None  # type: ignore[assignment]  # compared, never a key


class Zone:
    """The names of one network, and which resolvers use them."""

    __slots__ = ("endpoints", "id", "name", "names", "reverse", "suffix", "users")

    def __init__(self, id: str) -> None:
        self.id = id
        self.name = b""
        self.suffix = b"."
        self.endpoints: dict[str, Endpoint] = {}
        self.names: dict[bytes, dict[str, Endpoint]] = {}
        self.reverse: dict[bytes, dict[str, Endpoint]] = {}
        self.users: set[Resolver] = set()

    def rename(self, name: str) -> None:
        raw = name.encode("utf-8", "surrogateescape")
        if raw != self.name:
            self.name = raw
            self.suffix = b"." + raw.lower()
            self._changed()

    def publish(self, id: str, endpoint: Endpoint) -> None:
        """Add an endpoint, or put it in the place of what it was."""
        if self.endpoints.get(id) == endpoint:
            return
        self._remove(id)
        self.endpoints[id] = endpoint
        for name in endpoint.names:
            self.names.setdefault(name, {})[id] = endpoint
        for _, data in endpoint.addresses:
            self.reverse.setdefault(dns.reverse_name(data), {})[id] = endpoint
        self._changed()

    def withdraw(self, id: str) -> None:
        if self._remove(id):
            self._changed()

    def _remove(self, id: str) -> bool:
        endpoint = self.endpoints.pop(id, None)
        if endpoint is None:
            return False
        for table, keys in ((self.names, endpoint.names), (self.reverse, [dns.reverse_name(data) for _, data in endpoint.addresses])):
            for key in keys:
                table[key].pop(id, None)
                if not table[key]:
                    del table[key]
        return True

    def _changed(self) -> None:
        for user in self.users:
            user.cache.clear()


class Zones:
    """All zones; one that has neither endpoints nor users is forgotten."""

    def __init__(self) -> None:
        self.by_id: dict[str, Zone] = {}

    def get(self, id: str, name: str) -> Zone:
        """The zone of a network, made when it is new."""
        zone = self.by_id.get(id)
        if zone is None:
            zone = self.by_id[id] = Zone(id)
        zone.rename(name)
        return zone

    def forget(self, zone: Zone) -> None:
        """Call after something of the zone went."""
        if not zone.endpoints and not zone.users:
            self.by_id.pop(zone.id, None)


class Resolver:
    """One container's view. `upstreams`: where to ask what nobody here knows; `internal`: nowhere.

    `links`: names that only this container has; each stands for addresses or for names in its networks.
    `cache`: answers without their first two bytes by questions without theirs; each is an iterator, so that several addresses take turns.
    """

    def __init__(self) -> None:
        self.zones: list[Zone] = []
        self.links: dict[bytes, tuple[str, ...]] = {}
        self.upstreams: list[str] = []
        self.internal = False
        self.cache: dict[bytes, Iterator[bytes]] = {}

    def change(self, zones: list[Zone], links: Iterable[tuple[str, Iterable[str]]], upstreams: list[str], internal: bool) -> list[Zone]:
        """Everything anew. Returns the zones that it no longer uses."""
        left = [zone for zone in self.zones if zone not in zones]
        for zone in left:
            zone.users.discard(self)
        self.zones = zones
        for zone in zones:
            zone.users.add(self)
        self.links = {folded(alias): tuple(targets) for alias, targets in links}
        self.upstreams = upstreams
        self.internal = internal
        self.cache.clear()
        return left

    def answers(self, packet: bytes, query: dns.Query, limit: int) -> list[bytes] | None:
        """Whole answers, of which one is as good as another, or None for what is not known here."""
        if query.cls != dns.IN:
            return None
        if query.type == dns.PTR:
            records = [self._pointer(query.name)]
            if records == [b""]:
                return None
        else:
            addresses = self.find(query.name)
            if addresses is None:
                return None
            wanted = (query.type,) if query.type != dns.ANY else (dns.A, dns.AAAA)
            records = [dns.record(type, data) for type, data in addresses if type in wanted]
        rounds = min(len(records), _ROTATIONS) or 1
        return [dns.reply(packet, query, dns.NOERROR, records[turn:] + records[:turn], limit) for turn in range(rounds)]

    def _pointer(self, name: bytes) -> bytes:
        for zone in self.zones:
            for endpoint in zone.reverse.get(name, {}).values():
                try:
                    return dns.record(dns.PTR, dns.encode_name(endpoint.title + b"." + zone.name))
                except dns.Malformed:  # a network may be called what no host name can be
                    continue
        return b""

    def find(self, name: bytes) -> list[tuple[int, bytes]] | None:
        """The addresses of a name, each once, or None when nobody has it."""
        found = self._in(name, self.zones)
        if found is None and b"." in name:
            for zone in self.zones:
                if name.endswith(zone.suffix):
                    found = self._in(name[: -len(zone.suffix)], [zone])
                    if found is not None:
                        break
        return found

    def _in(self, name: bytes, zones: list[Zone]) -> list[tuple[int, bytes]] | None:
        """The name as a link, else in the first of `zones` that has it; of each type the addresses of the first that has any."""
        found = self._linked(name, zones)
        if found is not None:
            return found
        addresses: dict[tuple[int, bytes], None] = {}
        known = False
        complete: set[int] = set()
        for zone in zones:
            endpoints = zone.names.get(name)
            if endpoints is None:
                continue
            known = True
            here = [address for endpoint in endpoints.values() for address in endpoint.addresses if address[0] not in complete]
            addresses.update(dict.fromkeys(here))
            complete.update(address[0] for address in here)
        return list(addresses) if known else None

    def _linked(self, name: bytes, zones: list[Zone]) -> list[tuple[int, bytes]] | None:
        targets = self.links.get(name)
        if targets is None:
            return None
        found: dict[tuple[int, bytes], None] = {}
        for target in targets:
            try:
                found[dns.address(target)] = None
                continue
            except (OSError, ValueError):
                key = folded(target[:_SHORT_ID] if len(target) == _ID_LENGTH else target)
            for zone in zones:
                for endpoint in zone.names.get(key, {}).values():
                    found.update(dict.fromkeys(endpoint.addresses))
        return list(found)


class Caches:
    """Keeps the answers of all resolvers together within `CACHE_LIMIT`: a container may ask whatever it likes."""

    def __init__(self) -> None:
        self._count = 0
        self._turn = 0
        self._holders: set[Resolver] = set()

    def keep(self, resolver: Resolver, packet: bytes, found: list[bytes]) -> bytes:
        """Keep answers for the next time; returns the one to give now."""
        if len(packet) <= _KEY_LIMIT:
            if self._count >= CACHE_LIMIT:
                for holder in self._holders:
                    holder.cache.clear()
                self._holders.clear()
                self._count = 0
            self._holders.add(resolver)
            self._count += len(found)
            if len(found) == 1:
                resolver.cache[packet[2:]] = repeat(found[0][2:])
                return found[0]
            # Whoever asks once and ends must not always be given the same one.
            self._turn = start = (self._turn + 1) % len(found)
            resolver.cache[packet[2:]] = cycle([answer[2:] for answer in found[start:] + found[:start]])
            return packet[:2] + next(resolver.cache[packet[2:]])
        return found[0]

    def forget(self, resolver: Resolver) -> None:
        """The resolver ends."""
        self._holders.discard(resolver)


def folded(name: str) -> bytes:
    """A name as `dns.Query.name` has it."""
    return name.rstrip(".").lower().encode("utf-8", "surrogateescape")
