"""What the firewall is for all networks of a daemon: a pure function from bridges, members and published ports to nftables.

One table `inet NAME` and one `bridge NAME`; no other table is read or written. In nftables `accept` ends only the chain it is in, so
what others drop (ufw, firewalld, an administrator's tables) stays dropped, and others' `accept` lets through nothing that is dropped
here. What is dropped here comes from a bridge of ours, or goes to one, or has a loopback address without coming from loopback (and with
`drop_foreign_forward`: all else that is forwarded). Where the chains hook in (nft's priorities; lower is earlier):

    inet   raw          prerouting   -300  loopback and foreign source addresses, packets straight to a container's address
    inet   prerouting   prerouting   -100  published ports of those who come from elsewhere
    inet   output       output       -100  published ports of the host's own processes
    inet   forward      forward         0  which network may speak to which
    inet   postrouting  postrouting   100  what leaves a network gets the host's address
    bridge prerouting   prerouting   -300  a container sends under its own addresses only

A packet costs the same whatever the number of networks: interfaces lead to a network's chains through verdict maps. Containers and their
ports are elements of sets and maps, everything else is chains and rules per bridge.

Semantics are Docker's (its pages on packet filtering, port publishing and the bridge driver).
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import re
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from engine.wire import nfttext
from engine.wire.nftmodel import (
    ACCEPT,
    DROP,
    Chain,
    Changes,
    Dispatch,
    Dnat,
    Element,
    In,
    Masquerade,
    Match,
    Rule,
    Set,
    Snat,
    Statement,
    Table,
    Verdict,
)

MODES: Final = ("nat", "nat-unprotected", "routed", "isolated")


class Bridge(msgspec.Struct, frozen=True, kw_only=True):
    """A network on one bridge.

    `subnets`: of both families, "172.18.0.0/16"; `gateways`: the host's own addresses in them. `icc`: whether its containers may speak with
    each other. `masquerade`: packets that leave get the address of the link they leave by, or `host_ipv4`/`host_ipv6` where given.
    `mode4`, `mode6`: one of MODES. `trusted_interfaces`: links from which every container's address and port may be reached.
    `antispoof`: containers send under their own addresses only, the network under its subnets only.
    """

    link: str
    subnets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    internal: bool = False
    icc: bool = True
    masquerade: bool = True
    host_ipv4: str = ""
    host_ipv6: str = ""
    mode4: str = "nat"
    mode6: str = "nat"
    trusted_interfaces: tuple[str, ...] = ()
    antispoof: bool = True


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A container in a network. `link`: the host's end of its veth pair; `bridge`: the network's link; addresses "" where there is none.
    `link_local`: more of them, of both families."""

    link: str
    bridge: str
    mac: str
    ipv4: str = ""
    ipv6: str = ""
    link_local: tuple[str, ...] = ()


class Port(msgspec.Struct, frozen=True, kw_only=True):
    """A published port: `host_ip` ("0.0.0.0", "::" or one address) and `host_port` lead to `port` of the container in the network `bridge`.

    `ipv4`, `ipv6`: the container's addresses there. `protocol`: tcp, udp, sctp. In a routed network the container's port is open and the
    host's has no meaning.
    """

    bridge: str
    protocol: str
    host_ip: str
    host_port: int
    port: int
    ipv4: str = ""
    ipv6: str = ""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the firewall depends on. Subnets of different bridges must not overlap.

    `drop_foreign_forward`: what is forwarded and has nothing to do with our bridges, or another Knarr's, is dropped: for hosts that were no
    router before we switched forwarding on.
    """

    bridges: tuple[Bridge, ...] = ()
    members: tuple[Member, ...] = ()
    ports: tuple[Port, ...] = ()
    drop_foreign_forward: bool = False


class Ruleset(msgspec.Struct, frozen=True, kw_only=True):
    """The whole firewall: tables in the order in which they are made."""

    tables: tuple[Table, ...] = ()


_TARGET4, _TARGET6 = ("ipv4_addr", "inet_service"), ("ipv6_addr", "inet_service")

# Sets whose elements come and go with containers.
_INET_SETS: Final = (
    Set(name="any4", key=("inet_proto", "inet_service"), value=_TARGET4),
    Set(name="any6", key=("inet_proto", "inet_service"), value=_TARGET6),
    Set(name="host4", key=("ipv4_addr", "inet_proto", "inet_service"), value=_TARGET4),
    Set(name="host6", key=("ipv6_addr", "inet_proto", "inet_service"), value=_TARGET6),
    Set(name="open4", key=("ipv4_addr", "inet_proto", "inet_service")),
    Set(name="open6", key=("ipv6_addr", "inet_proto", "inet_service")),
    Set(name="near4", key=("ifname", "ipv4_addr")),  # a bridge's link-local addresses, which are of no subnet
)
_MEMBER_SETS: Final = (
    Set(name="guarded", key=("ifname",)),
    Set(name="senders", key=("ifname", "ether_addr")),
    Set(name="senders4", key=("ifname", "ether_addr", "ipv4_addr")),
    Set(name="senders6", key=("ifname", "ether_addr", "ipv6_addr")),
    Set(name="targets6", key=("ifname", "ether_addr", "integer"), typeof=("iifname", "ether saddr", "@th,64,128")),
)
_SETS: Final = {one.name: ("inet" if one in _INET_SETS else "bridge", one) for one in (*_INET_SETS, *_MEMBER_SETS)}

_OPEN: Final = {4: In(("ip daddr", "meta l4proto", "th dport"), "open4"), 6: In(("ip6 daddr", "meta l4proto", "th dport"), "open6")}
_SOURCE: Final = {4: "ip saddr", 6: "ip6 saddr"}
_DESTINATION: Final = {4: "ip daddr", 6: "ip6 daddr"}
_FAMILY: Final = {4: Match("meta nfproto", "ipv4"), 6: Match("meta nfproto", "ipv6")}
_PUBLISHED: Final = Match("ct status", "dnat")
_ECHO: Final = {4: Match("meta l4proto", "icmp"), 6: Match("meta l4proto", "ipv6-icmp")}
_IP6: Final = Match("meta protocol", "ip6")
_SAFE: Final = re.compile(r"[A-Za-z0-9_.-]+")


BRIDGES: Final = 0x4B6E6172  # the group of the bridges of every daemon on this host: each has its own rules, and none drops what is others'


def group(name: str) -> int:
    """The group of links whose frames must be a member's: every container's link of this daemon is of it before it is up, so that one
    which is not a member yet can send nothing. Not 0, which is the group of all other links."""
    return 1 | int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") >> 1


def ruleset(model: Model, name: str) -> Ruleset:
    """The tables of a daemon whose tables are called `name`."""
    found: dict[str, set[Element]] = {}
    for set_name, element in elements(model.bridges, model.members, model.ports):
        found.setdefault(set_name, set()).add(element)
    inet, bridge = _structure(model.bridges, model.drop_foreign_forward, name)
    return Ruleset(
        tables=tuple(
            msgspec.structs.replace(
                table, elements={one.name: frozenset(found[one.name]) for one in table.sets if one.name in found and one.name in _SETS}
            )
            for table in (inet, bridge)
        )
    )


def render(rules: Ruleset) -> str:
    """A ruleset in nft's syntax; `nft -f` takes it."""
    return nfttext.render(rules.tables)


def changes(old: Model, new: Model, name: str) -> Changes | None:
    """What elements have to go and come between two models, or None where more than elements differs.

    The models need not be whole: enough is what shares an address and port, that is one container's members and ports before and after,
    together with all bridges (the same object in both, which makes the comparison free).
    """
    same = old.bridges is new.bridges or old.bridges == new.bridges
    if not same or old.drop_foreign_forward != new.drop_foreign_forward:
        return None
    before = dict.fromkeys(elements(old.bridges, old.members, old.ports)) if old.members or old.ports else {}
    after = dict.fromkeys(elements(new.bridges, new.members, new.ports)) if new.members or new.ports else {}
    return Changes(removed=_grouped(name, before, after), added=_grouped(name, after, before))


_Pairs = dict[tuple[str, Element], None]


def _grouped(name: str, some: _Pairs, without: _Pairs) -> tuple[tuple[str, str, Set, tuple[Element, ...]], ...]:
    by_set: dict[str, list[Element]] = {}
    for pair in some:
        if pair not in without:
            by_set.setdefault(pair[0], []).append(pair[1])
    return tuple((_SETS[set_name][0], name, _SETS[set_name][1], tuple(found)) for set_name, found in by_set.items())


def served(port: Port) -> bool:
    """Whether the kernel leads this port to the container. Not: from a host's IPv6 address to a container without one, or the other way
    round, and from ::1, whose packets no other link may carry. Those need a relay."""
    if port.host_ip == "::1":
        return False
    return bool(port.ipv6 if ":" in port.host_ip else port.ipv4)


def elements(bridges: tuple[Bridge, ...], members: Iterable[Member], ports: Iterable[Port]) -> Iterator[tuple[str, Element]]:
    """(set, element) for members and ports. Bridges that are not in `bridges` have none; ports of internal networks have none either."""
    known = {bridge.link: bridge for bridge in bridges}
    for member in members:
        bridge = known.get(member.bridge)
        if bridge is not None:
            yield from (("near4", Element((member.bridge, address))) for address in member.link_local if ":" not in address)
            if bridge.antispoof:
                yield from _member_elements(member)
    for port in ports:
        bridge = known.get(port.bridge)
        if bridge is not None and not bridge.internal:
            yield from _port_elements(bridge, port)


def _member_elements(member: Member) -> Iterator[tuple[str, Element]]:
    link, mac = member.link, member.mac
    yield "guarded", Element((link,))
    yield "senders", Element((link, mac))
    if member.ipv4:
        yield "senders4", Element((link, mac, member.ipv4))
    if member.ipv6:
        yield "senders6", Element((link, mac, member.ipv6))
        yield "targets6", Element((link, mac, member.ipv6))
    for address in member.link_local:
        yield "senders6" if ":" in address else "senders4", Element((link, mac, address))


def _port_elements(bridge: Bridge, port: Port) -> Iterator[tuple[str, Element]]:
    protocol, inner = port.protocol, str(port.port)
    v6 = ":" in port.host_ip
    address, mode = (port.ipv6, bridge.mode6) if v6 else (port.ipv4, bridge.mode4)
    if not address or mode == "isolated":
        return
    yield "open6" if v6 else "open4", Element((address, protocol, inner))
    if mode == "routed" or not served(port):
        return
    target = (address, inner)
    if port.host_ip in ("0.0.0.0", "::"):
        yield "any6" if v6 else "any4", Element((protocol, str(port.host_port)), target)
    else:
        yield "host6" if v6 else "host4", Element((port.host_ip, protocol, str(port.host_port)), target)


@functools.lru_cache(maxsize=2)
def _structure(bridges: tuple[Bridge, ...], drop_foreign_forward: bool, name: str) -> tuple[Table, Table]:
    chains: dict[str, Chain] = {}
    dispatch: dict[str, list[Element]] = {}

    def lead(set_name: str, key: str, chain: str, rules: Iterable[Rule]) -> None:
        """A bridge's chain, reached from a verdict map."""
        if chain not in chains:
            chains[chain] = Chain(name=chain, rules=tuple(rules))
        dispatch.setdefault(set_name, []).append(Element((key,), ("jump", chain)))

    for bridge in bridges:
        own = _chain_name(bridge.link)
        lead("from", bridge.link, f"from-{own}", _arriving(bridge))
        lead("into", bridge.link, f"into-{own}", _entering(bridge))
        if _confined(bridge):
            lead("leave", bridge.link, f"leave-{own}", _leaving(bridge))
        lead("back", bridge.link, f"back-{own}", _returning(bridge))
        for version, subnet in _subnets(bridge):
            if _closed(bridge, version):
                lead(f"direct{version}", subnet, f"direct-{own}", _direct(bridge))
            if _hidden(bridge, version):
                lead(f"source{version}", subnet, f"source{version}-{own}", _hiding(bridge, version))
    maps = [_interfaces(one, dispatch) for one in ("from", "into", "leave", "back")]
    maps += [_prefixes(one, version, dispatch) for one in ("direct", "source") for version in (4, 6)]
    maps.append(Set(name="bridges", key=("ifname",), elements=tuple(Element((bridge.link,)) for bridge in bridges)))
    base = _base_chains(drop_foreign_forward)
    inet = Table(family="inet", name=name, sets=(*maps, *_INET_SETS), chains=(*chains.values(), *base))
    return inet, Table(family="bridge", name=name, sets=_MEMBER_SETS, chains=_bridge_chains(group(name)))


def _interfaces(name: str, dispatch: dict[str, list[Element]]) -> Set:
    return Set(name=name, key=("ifname",), value=("verdict",), elements=tuple(dispatch.get(name, ())))


def _prefixes(name: str, version: int, dispatch: dict[str, list[Element]]) -> Set:
    name = f"{name}{version}"
    return Set(name=name, key=(f"ipv{version}_addr",), value=("verdict",), interval=True, elements=tuple(dispatch.get(name, ())))


def _base_chains(drop_foreign_forward: bool) -> tuple[Chain, ...]:
    local = Match("fib daddr type", "local")
    ports: tuple[Rule, ...] = (
        (Dnat("ip", ("ip daddr", "meta l4proto", "th dport"), "host4"),),
        (Dnat("ip6", ("ip6 daddr", "meta l4proto", "th dport"), "host6"),),
        (_FAMILY[4], local, Dnat("ip", ("meta l4proto", "th dport"), "any4")),
        (Match("ip6 daddr", "::1", negated=True), local, Dnat("ip6", ("meta l4proto", "th dport"), "any6")),
    )
    raw: tuple[Rule, ...] = (
        (Match("iifname", "lo"), ACCEPT),
        (Match("ip saddr", "127.0.0.0/8"), DROP),
        (Match("ip daddr", "127.0.0.0/8"), DROP),
        (Dispatch(("iifname",), "from"),),
        (Dispatch(("ip daddr",), "direct4"),),
        (Dispatch(("ip6 daddr",), "direct6"),),
    )
    forward: tuple[Rule, ...] = (
        (Match("ct state", "established,related"), ACCEPT),
        (Dispatch(("iifname",), "leave"),),
        (Dispatch(("oifname",), "into"),),
    )
    if drop_foreign_forward:
        others = Match("iifgroup", str(BRIDGES), negated=True), Match("oifgroup", str(BRIDGES), negated=True)
        forward += ((In(("iifname",), "bridges", negated=True), *others, DROP),)
    postrouting: tuple[Rule, ...] = (
        (Dispatch(("oifname",), "back"),),
        (Dispatch(("ip saddr",), "source4"),),
        (Dispatch(("ip6 saddr",), "source6"),),
    )
    return (
        Chain(name="raw", hook="prerouting", priority=-300, rules=raw),
        Chain(name="prerouting", hook="prerouting", type="nat", priority=-100, rules=ports),
        Chain(name="output", hook="output", type="nat", priority=-100, rules=ports),
        Chain(name="forward", hook="forward", rules=forward),
        Chain(name="postrouting", hook="postrouting", type="nat", priority=100, rules=postrouting),
    )


def _bridge_chains(own_group: int) -> tuple[Chain, ...]:
    """A container's frames: the usual ones are found with one look-up and let through, others of a guarded link must prove themselves.
    `own_group`: see `group`."""
    advert = Match("icmpv6 type", "nd-neighbor-advert")
    first: tuple[Rule, ...] = (
        (Match("meta protocol", "ip"), In(("iifname", "ether saddr", "ip saddr"), "senders4"), ACCEPT),
        (_IP6, Match("meta l4proto", "ipv6-icmp", negated=True), In(("iifname", "ether saddr", "ip6 saddr"), "senders6"), ACCEPT),
        (In(("iifname",), "guarded"), Verdict("jump", "suspect")),
        (Match("iifgroup", str(own_group)), Verdict("goto", "suspect")),  # of a member that is none yet
    )
    suspect: tuple[Rule, ...] = (
        (In(("iifname", "ether saddr"), "senders", negated=True), DROP),
        (Match("meta protocol", "ip"), Match("ip saddr", "0.0.0.0"), ACCEPT),  # has no address yet
        (Match("meta protocol", "arp"), Verdict("goto", "suspect-arp")),
        (_IP6, Verdict("goto", "suspect-ip6")),
        (DROP,),
    )
    arp: tuple[Rule, ...] = (
        (In(("iifname", "arp saddr ether"), "senders", negated=True), DROP),
        (In(("iifname", "arp saddr ether", "arp saddr ip"), "senders4"), ACCEPT),
        (Match("arp saddr ip", "0.0.0.0"), ACCEPT),  # asks whether an address is free
        (DROP,),
    )
    ip6: tuple[Rule, ...] = (
        (Match("icmpv6 type", "nd-router-advert"), DROP),  # containers are no routers of their network
        (Match("icmpv6 type", "nd-redirect"), DROP),
        (advert, In(("iifname", "ether saddr", "@th,64,128"), "targets6"), ACCEPT),
        (advert, Match("@th,64,8", "254", negated=True), DROP),  # speaks for another's address; fe80::/10 are not known to us
        (In(("iifname", "ether saddr", "ip6 saddr"), "senders6"), ACCEPT),
        (Match("ip6 saddr", "fe80::/10"), ACCEPT),
        (Match("ip6 saddr", "::"), ACCEPT),
        (DROP,),
    )
    return (
        Chain(name="suspect-arp", rules=arp),
        Chain(name="suspect-ip6", rules=ip6),
        Chain(name="suspect", rules=suspect),
        Chain(name="prerouting", hook="prerouting", priority=-300, rules=first),
    )


def _chain_name(link: str) -> str:
    """A link's name as a part of a chain's: links may have nearly every character, names in nft's syntax few."""
    return link if _SAFE.fullmatch(link) else "x" + link.encode().hex()


def _subnets(bridge: Bridge) -> list[tuple[int, str]]:
    return [(6 if ":" in subnet else 4, subnet) for subnet in bridge.subnets]


def _mode(bridge: Bridge, version: int) -> str:
    return "isolated" if bridge.internal else bridge.mode4 if version == 4 else bridge.mode6


def _confined(bridge: Bridge) -> bool:
    return "isolated" in (_mode(bridge, 4), _mode(bridge, 6))


def _hidden(bridge: Bridge, version: int) -> bool:
    """Whether what leaves the network gets another source address."""
    return bridge.masquerade and _mode(bridge, version) in ("nat", "nat-unprotected")


def _closed(bridge: Bridge, version: int) -> bool:
    """Whether nobody outside has a reason to send to a container's own address. A network without masquerading has one: answers."""
    return _mode(bridge, version) == "isolated" or (bridge.masquerade and _mode(bridge, version) == "nat")


def _arriving(bridge: Bridge) -> Iterator[Rule]:
    """raw: what comes from a network."""
    if bridge.internal:
        for version, scopes in ((4, ("224.0.0.0/4", "255.255.255.255")), (6, ("ff00::/8", "fe80::/10"))):
            own = [subnet for v, subnet in _subnets(bridge) if v == version]
            near = (In(("iifname", "ip daddr"), "near4", negated=True),) if version == 4 else ()
            yield (*(Match(_DESTINATION[version], place, negated=True) for place in (*own, *scopes)), *near, DROP)
    if bridge.antispoof:
        for version, subnet in _subnets(bridge):
            yield Match(_SOURCE[version], subnet), ACCEPT
        yield Match("ip saddr", "0.0.0.0"), ACCEPT
        yield Match("ip6 saddr", "fe80::/10"), ACCEPT
        yield Match("ip6 saddr", "::"), ACCEPT
        yield In(("iifname", "ip saddr"), "near4"), ACCEPT
        yield (DROP,)
    else:
        yield (ACCEPT,)


def _direct(bridge: Bridge) -> Iterator[Rule]:
    """raw: what comes from elsewhere and goes to an address in the network."""
    for link in bridge.trusted_interfaces:
        yield Match("iifname", link), ACCEPT
    for gateway in bridge.gateways:
        yield Match(_DESTINATION[6 if ":" in gateway else 4], gateway), ACCEPT
    yield (DROP,)


def _leaving(bridge: Bridge) -> Iterator[Rule]:
    """forward: what comes from a network that may not leave it."""
    for version in (4, 6):
        if _mode(bridge, version) == "isolated":
            yield _FAMILY[version], Match("oifname", bridge.link, negated=True), DROP


def _entering(bridge: Bridge) -> Iterator[Rule]:
    """forward: what goes into a network. Ends with a verdict."""
    if bridge.icc:
        yield Match("iifname", bridge.link), ACCEPT
    for link in () if bridge.internal else bridge.trusted_interfaces:
        yield Match("iifname", link), ACCEPT
    foreign = In(("iifname",), "bridges", negated=True)
    for version in (4, 6):
        mode = _mode(bridge, version)
        if mode in ("nat", "nat-unprotected"):
            yield _PUBLISHED, _OPEN[version], ACCEPT
        if mode == "nat-unprotected":
            yield _FAMILY[version], foreign, ACCEPT
        if mode == "routed":
            yield _OPEN[version], ACCEPT
            yield _FAMILY[version], _ECHO[version], foreign, ACCEPT
    yield (DROP,)


def _returning(bridge: Bridge) -> Iterator[Rule]:
    """postrouting: what goes into a network and whose answer would not come back through the host."""
    yield _PUBLISHED, Match("ip saddr", "127.0.0.0/8"), Masquerade()
    for version, subnet in _subnets(bridge):
        yield _PUBLISHED, Match(_SOURCE[version], subnet), Masquerade()


def _hiding(bridge: Bridge, version: int) -> Iterator[Rule]:
    """postrouting: what leaves a network."""
    address = bridge.host_ipv4 if version == 4 else bridge.host_ipv6
    source: Statement = Snat("ip" if version == 4 else "ip6", address) if address else Masquerade()
    yield Match("oifname", bridge.link, negated=True), source


def overlapping(bridges: Iterable[Bridge]) -> tuple[str, str] | None:
    """Two subnets of different bridges that overlap, which one table cannot tell apart, or None."""
    seen: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
    for bridge in bridges:
        own = [ipaddress.ip_network(subnet) for subnet in bridge.subnets]
        for one in own:
            for other in seen:
                if one.version == other.version and one.overlaps(other):
                    return str(one), str(other)
        seen += own
    return None
