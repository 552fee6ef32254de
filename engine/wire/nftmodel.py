"""The language of firewall rules that `wire/nftables.py` encodes and `wire/nfttext.py` prints: values, keys, statements, tables. Pure.

A rule is a tuple of statements. Values are text as nft writes it ("172.18.0.0/16", "tcp", "br-0a1b2c"), so that a ruleset can be compared,
printed and encoded. Which keys and values there are is nft(8)'s; only what is used here has a place.
Numbers: include/uapi/linux/netfilter/nf_tables.h; nft's own numbers of types: nftables' include/datatype.h.
"""

from __future__ import annotations

import socket
import sys
from typing import Final, NamedTuple

import msgspec

FAMILIES: Final = {"inet": 1, "ip": 2, "arp": 3, "bridge": 7, "ip6": 10}


class Type(NamedTuple):
    """A type of values: nft's number for it (which only its listing needs) and the length in bytes."""

    number: int
    length: int


TYPES: Final = {
    "nf_proto": Type(2, 1),
    "integer": Type(4, 16),  # as long as an IPv6 address; our only use
    "octet": Type(4, 1),
    "ipv4_addr": Type(7, 4),
    "ipv6_addr": Type(8, 16),
    "ether_addr": Type(9, 6),
    "ether_type": Type(10, 2),
    "inet_proto": Type(12, 1),
    "inet_service": Type(13, 2),
    "devgroup": Type(23, 4),
    "ct_state": Type(26, 4),
    "icmpv6_type": Type(29, 1),
    "ct_status": Type(31, 4),
    "fib_addrtype": Type(38, 4),
    "ifname": Type(41, 16),
}

_NAMED: Final = {
    "nf_proto": {"ipv4": b"\x02", "ipv6": b"\x0a"},
    "ether_type": {"ip": b"\x08\x00", "ip6": b"\x86\xdd", "arp": b"\x08\x06"},
    "inet_proto": {"tcp": b"\x06", "udp": b"\x11", "sctp": b"\x84", "icmp": b"\x01", "ipv6-icmp": b"\x3a"},
    "ct_state": {"invalid": b"\1", "established": b"\2", "related": b"\4", "new": b"\x08", "untracked": b"\x40"},
    "ct_status": {"dnat": b"\x20", "snat": b"\x10"},
    "icmpv6_type": {"nd-router-advert": b"\x86", "nd-neighbor-advert": b"\x88", "nd-redirect": b"\x89"},
    "fib_addrtype": {"local": b"\2"},
}
BITS: Final = ("ct_state", "ct_status")  # a match asks whether one of the bits is set

META, PAYLOAD, CT, FIB = "meta", "payload", "ct", "fib"
_LINK, _NETWORK, _TRANSPORT = 0, 1, 2


class Key(NamedTuple):
    """Something of a packet. `how`: the expression that loads it, `where`: its parameters; `needs`: the protocol that has it."""

    type: str
    how: str
    where: tuple[int, ...]
    needs: str = ""


KEYS: Final = {
    "iifname": Key("ifname", META, (6,)),
    "oifname": Key("ifname", META, (7,)),
    "iifgroup": Key("devgroup", META, (21,)),
    "oifgroup": Key("devgroup", META, (22,)),
    "meta protocol": Key("ether_type", META, (1,)),
    "meta nfproto": Key("nf_proto", META, (15,)),
    "meta l4proto": Key("inet_proto", META, (16,)),
    "ether saddr": Key("ether_addr", PAYLOAD, (_LINK, 6)),
    "ip saddr": Key("ipv4_addr", PAYLOAD, (_NETWORK, 12), "ip"),
    "ip daddr": Key("ipv4_addr", PAYLOAD, (_NETWORK, 16), "ip"),
    "ip6 saddr": Key("ipv6_addr", PAYLOAD, (_NETWORK, 8), "ip6"),
    "ip6 daddr": Key("ipv6_addr", PAYLOAD, (_NETWORK, 24), "ip6"),
    "arp saddr ether": Key("ether_addr", PAYLOAD, (_NETWORK, 8), "arp"),
    "arp saddr ip": Key("ipv4_addr", PAYLOAD, (_NETWORK, 14), "arp"),
    "th dport": Key("inet_service", PAYLOAD, (_TRANSPORT, 2)),
    "tcp sport": Key("inet_service", PAYLOAD, (_TRANSPORT, 0), "tcp"),
    "tcp dport": Key("inet_service", PAYLOAD, (_TRANSPORT, 2), "tcp"),
    "udp sport": Key("inet_service", PAYLOAD, (_TRANSPORT, 0), "udp"),
    "udp dport": Key("inet_service", PAYLOAD, (_TRANSPORT, 2), "udp"),
    "icmpv6 type": Key("icmpv6_type", PAYLOAD, (_TRANSPORT, 0), "ipv6-icmp"),
    "@th,64,8": Key("octet", PAYLOAD, (_TRANSPORT, 8)),
    "@th,64,128": Key("integer", PAYLOAD, (_TRANSPORT, 8)),  # the target of a neighbour advertisement, which older nft has no name for
    "ct state": Key("ct_state", CT, (0,)),
    "ct status": Key("ct_status", CT, (2,)),
    "fib daddr type": Key("fib_addrtype", FIB, (3, 2)),
}
HOST: Final = sys.byteorder


class Match(msgspec.Struct, frozen=True):
    """A packet's `key` is `value`, or is not. "172.18.0.0/16": everything of that prefix; bits ("established,related"): one of them."""

    key: str
    value: str
    negated: bool = False


class In(msgspec.Struct, frozen=True):
    """The packet's `keys`, concatenated, are in the named `set`, or are not."""

    keys: tuple[str, ...]
    set: str
    negated: bool = False


class Dispatch(msgspec.Struct, frozen=True):
    """The named verdict map says what happens; nothing, where the packet's `keys` are not in it."""

    keys: tuple[str, ...]
    map: str


class Verdict(msgspec.Struct, frozen=True):
    """`kind`: accept, drop, return, jump or goto; `chain`: where the last two lead. `accept` is the end of this base chain alone."""

    kind: str
    chain: str = ""


class Dnat(msgspec.Struct, frozen=True):
    """A new destination from the named map of address and port; the rule ends where the packet's `keys` are not in it.

    `family`: ip or ip6.
    """

    family: str
    keys: tuple[str, ...]
    map: str


class Snat(msgspec.Struct, frozen=True):
    """A new source address. `family`: ip or ip6."""

    family: str
    address: str


class Masquerade(msgspec.Struct, frozen=True):
    """The source becomes the address of the link that the packet leaves by."""


class Rewrite(msgspec.Struct, frozen=True):
    """A header field gets another value, without any connection tracking; `key` is a port of tcp or udp."""

    key: str
    value: str


Statement = Match | In | Dispatch | Verdict | Dnat | Snat | Masquerade | Rewrite
Rule = tuple[Statement, ...]

ACCEPT: Final = Verdict("accept")
DROP: Final = Verdict("drop")


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """A chain; with a `hook` a base chain of `type` (filter, nat) at `priority` (nft's numbers), whose policy is accept."""

    name: str
    rules: tuple[Rule, ...] = ()
    hook: str = ""
    type: str = "filter"
    priority: int = 0


class Element(msgspec.Struct, frozen=True):
    """A set's element, or with a `value` a map's. A verdict is ("accept",) or ("jump", chain)."""

    key: tuple[str, ...]
    value: tuple[str, ...] = ()


class Set(msgspec.Struct, frozen=True, kw_only=True):
    """A set of keys of the given types, or with `value` types (or ("verdict",)) a map. `interval`: its single key is a prefix.

    `typeof`: packet keys that the types come from, for a type that has no name of its own (integer).
    `elements` belong to the structure; a set whose elements come and go has them beside it (`Table.elements`).
    """

    name: str
    key: tuple[str, ...]
    value: tuple[str, ...] = ()
    interval: bool = False
    typeof: tuple[str, ...] = ()
    elements: tuple[Element, ...] = ()


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A table; `family`: inet, ip, ip6, arp or bridge. `elements`: by set, those that come and go."""

    family: str
    name: str
    sets: tuple[Set, ...] = ()
    chains: tuple[Chain, ...] = ()
    elements: dict[str, frozenset[Element]] = {}


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """Elements that go and that come: (family, table, set, elements)."""

    removed: tuple[tuple[str, str, Set, tuple[Element, ...]], ...] = ()
    added: tuple[tuple[str, str, Set, tuple[Element, ...]], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.removed or self.added)


def packed(type_name: str, text: str) -> bytes:
    """A value's bytes. ValueError for text that is none of the type."""
    named = _NAMED.get(type_name)
    if type_name in BITS or type_name == "fib_addrtype":
        assert named is not None
        return sum(named[word][0] for word in text.split(",")).to_bytes(4, HOST)
    if named is not None and text in named:
        return named[text]
    if type_name == "ipv4_addr":
        return _address(socket.AF_INET, text)
    if type_name in ("ipv6_addr", "integer"):
        return _address(socket.AF_INET6, text)
    if type_name == "ether_addr":
        raw = bytes.fromhex(text.replace(":", ""))
    elif type_name == "devgroup":
        raw = int(text).to_bytes(4, HOST)
    elif type_name == "ifname":
        raw = text.encode().ljust(16, b"\0")
        if len(raw) > 16 or not text:
            raise ValueError(f"{text!r} is no name of a link")
    else:
        raw = int(text).to_bytes(TYPES[type_name].length, "big")
    if len(raw) != TYPES[type_name].length:
        raise ValueError(f"{text!r} is no {type_name}")
    return raw


def _address(family: int, text: str) -> bytes:
    try:
        return socket.inet_pton(family, text)
    except OSError:
        raise ValueError(f"{text!r} is no IP{'v4' if family == socket.AF_INET else 'v6'} address") from None


def concatenated(types: tuple[str, ...], values: tuple[str, ...]) -> bytes:
    """The bytes of several values as sets hold them: each padded to a register; one alone is not padded."""
    if len(types) == 1:
        return packed(types[0], values[0])
    found = b""
    for type_name, text in zip(types, values, strict=True):
        raw = packed(type_name, text)
        found += raw + b"\0" * (-len(raw) % 4)
    return found
