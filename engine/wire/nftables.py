"""nfnetlink messages of nftables: tables, chains, sets, maps, elements, and rules (`wire/nftmodel.py`) as the kernel's expressions. Pure.

A batch is a transaction: the kernel applies all of it or nothing.
Source: include/uapi/linux/netfilter/nf_tables.h, nfnetlink.h.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from engine.wire import netlink
from engine.wire.nftmodel import (
    BITS,
    CT,
    FAMILIES,
    FIB,
    HOST,
    KEYS,
    META,
    PAYLOAD,
    TYPES,
    Chain,
    Dispatch,
    Dnat,
    Element,
    In,
    Key,
    Masquerade,
    Match,
    Rewrite,
    Rule,
    Set,
    Snat,
    Statement,
    Table,
    Verdict,
    concatenated,
    packed,
)

NFNL_SUBSYS_NFTABLES: Final = 10
NFNL_MSG_BATCH_BEGIN: Final = 16
NFNL_MSG_BATCH_END: Final = 17
NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN, DELCHAIN, NEWRULE, GETRULE = range(8)
NEWSET, GETSET, DELSET, NEWSETELEM, GETSETELEM, DELSETELEM, NEWGEN, GETGEN = range(9, 17)


HOOKS: Final = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}

_DROP, _ACCEPT, _JUMP, _GOTO, _RETURN = 0, 1, -3, -4, -5
_VERDICTS: Final = {"accept": _ACCEPT, "drop": _DROP, "jump": _JUMP, "goto": _GOTO, "return": _RETURN}
_VERDICT_DATA: Final = 0xFFFFFF00
_INTERVAL, _MAP, _CONCAT = 4, 8, 0x80
_FIRST_REGISTER: Final = 8  # NFT_REG32_00; registers are four bytes each, a longer value takes the following ones too
_ELEMENTS_LENGTH: Final = 60000  # bytes of elements in one message; an attribute's length has 16 bits


_CHECKSUMS: Final = {"tcp": 16, "udp": 6}  # where a transport header has its checksum


class Message(NamedTuple):
    """One message of a batch. `what`: of which object an error would speak; `family`: its table's."""

    type: int
    flags: int
    family: str
    payload: bytes
    what: str


def _value(type: int, raw: bytes) -> bytes:
    return netlink.nested(type, netlink.attribute(1, raw))


def _verdict(type: int, kind: str, chain: str) -> bytes:
    parts = [netlink.be32(1, _VERDICTS[kind] & 0xFFFFFFFF)]
    if chain:
        parts.append(netlink.text(2, chain))
    return netlink.nested(type, netlink.nested(2, *parts))


def _expression(name: str, *data: bytes) -> bytes:
    return netlink.nested(1, netlink.text(1, name), netlink.nested(2, *data))


def _load(key: Key, register: int) -> bytes:
    if key.how == META:
        return _expression("meta", netlink.be32(2, key.where[0]), netlink.be32(1, register))
    if key.how == CT:
        return _expression("ct", netlink.be32(2, key.where[0]), netlink.be32(1, register))
    if key.how == FIB:
        return _expression("fib", netlink.be32(1, register), netlink.be32(2, key.where[0]), netlink.be32(3, key.where[1]))
    return _payload(key, register, TYPES[key.type].length)


def _payload(key: Key, register: int, length: int) -> bytes:
    base, offset = key.where
    where = (netlink.be32(2, base), netlink.be32(3, offset), netlink.be32(4, length))
    return _expression("payload", netlink.be32(1, register), *where)


def _compare(raw: bytes, negated: bool = False) -> bytes:
    return _expression("cmp", netlink.be32(1, _FIRST_REGISTER), netlink.be32(2, int(negated)), _value(3, raw))


def _masked(mask: bytes) -> bytes:
    register = netlink.be32(1, _FIRST_REGISTER), netlink.be32(2, _FIRST_REGISTER)
    return _expression("bitwise", *register, netlink.be32(3, len(mask)), _value(4, mask), _value(5, bytes(len(mask))))


def _load_all(keys: tuple[str, ...]) -> bytes:
    register, found = _FIRST_REGISTER, b""
    for name in keys:
        key = KEYS[name]
        found += _load(key, register)
        register += (TYPES[key.type].length + 3) // 4
    return found


def _lookup(keys: tuple[str, ...], name: str, *more: bytes) -> bytes:
    return _load_all(keys) + _expression("lookup", netlink.text(1, name), netlink.be32(2, _FIRST_REGISTER), *more)


def _match(statement: Match) -> bytes:
    key = KEYS[statement.key]
    text = statement.value
    address, slash, prefix = text.partition("/")
    if key.type in BITS:
        found = _load(key, _FIRST_REGISTER) + _masked(packed(key.type, text))
        return found + _compare(bytes(4), negated=not statement.negated)
    raw = packed(key.type, address)
    if not slash or int(prefix) == 8 * len(raw):
        return _load(key, _FIRST_REGISTER) + _compare(raw, statement.negated)
    bits = int(prefix)
    if bits and bits % 8 == 0 and key.how == PAYLOAD:  # as nft does: only the bytes that count are loaded
        return _payload(key, _FIRST_REGISTER, bits // 8) + _compare(raw[: bits // 8], statement.negated)
    mask = (((1 << bits) - 1) << (8 * len(raw) - bits)).to_bytes(len(raw), "big")
    return _load(key, _FIRST_REGISTER) + _masked(mask) + _compare(raw, statement.negated)


def _rewrite(statement: Rewrite) -> bytes:
    key = KEYS[statement.key]
    raw = packed(key.type, statement.value)
    base, offset = key.where
    place = netlink.be32(2, base), netlink.be32(3, offset), netlink.be32(4, len(raw))
    checksum = netlink.be32(6, 1), netlink.be32(7, _CHECKSUMS[key.needs]), netlink.be32(8, 0)
    value = _expression("immediate", netlink.be32(1, _FIRST_REGISTER), _value(2, raw))
    return value + _expression("payload", netlink.be32(5, _FIRST_REGISTER), *place, *checksum)


def _statement(statement: Statement) -> bytes:
    match statement:
        case Match():
            return _match(statement)
        case In(keys, name, negated):
            return _lookup(keys, name, netlink.be32(5, 1)) if negated else _lookup(keys, name)
        case Dispatch(keys, name):
            return _lookup(keys, name, netlink.be32(3, 0))
        case Verdict(kind, chain):
            return _expression("immediate", netlink.be32(1, 0), _verdict(2, kind, chain))
        case Dnat(family, keys, name):
            found = _lookup(keys, name, netlink.be32(3, _FIRST_REGISTER))
            port = _FIRST_REGISTER + (1 if family == "ip" else 4)
            dnat = netlink.be32(1, 1), netlink.be32(2, FAMILIES[family])
            return found + _expression("nat", *dnat, netlink.be32(3, _FIRST_REGISTER), netlink.be32(5, port))
        case Snat(family, address):
            raw = packed("ipv4_addr" if family == "ip" else "ipv6_addr", address)
            found = _expression("immediate", netlink.be32(1, _FIRST_REGISTER), _value(2, raw))
            snat = netlink.be32(1, 0), netlink.be32(2, FAMILIES[family])
            return found + _expression("nat", *snat, netlink.be32(3, _FIRST_REGISTER))
        case Masquerade():
            return _expression("masq")
        case Rewrite():
            return _rewrite(statement)


def _used(statement: Statement) -> tuple[str, ...]:
    if isinstance(statement, Match | Rewrite):
        return (statement.key,)
    return statement.keys if isinstance(statement, In | Dispatch | Dnat) else ()


@functools.lru_cache(maxsize=2048)
def expressions(family: str, rule: Rule) -> bytes:
    """A rule's expressions. What its keys need is checked before they are loaded: the protocol of the network (in tables that see several),
    then that of transport. A rule that already matches on it is left alone, as nft does."""
    found, known = b"", {s.value for s in rule if isinstance(s, Match) and not s.negated and s.key in ("meta protocol", "meta l4proto")}
    for statement in rule:
        for name in _used(statement):
            need = KEYS[name].needs
            if not need or need in known:
                continue
            known.add(need)
            if need in ("tcp", "udp", "ipv6-icmp"):
                if need == "ipv6-icmp" and "ip6" not in known:
                    known.add("ip6")
                    found += _protocol(family, "ip6")
                found += _load(KEYS["meta l4proto"], _FIRST_REGISTER) + _compare(packed("inet_proto", need))
            else:
                found += _protocol(family, need)
        found += _statement(statement)
    return found


def _protocol(family: str, need: str) -> bytes:
    if family == "inet":
        return _load(KEYS["meta nfproto"], _FIRST_REGISTER) + _compare(packed("nf_proto", {"ip": "ipv4", "ip6": "ipv6"}[need]))
    if family == "bridge":
        return _load(KEYS["meta protocol"], _FIRST_REGISTER) + _compare(packed("ether_type", need))
    return b""


def _new(type: int, family: str, what: str, *attributes: bytes, flags: int = netlink.NLM_F_CREATE) -> Message:
    return Message(type, flags, family, b"".join(attributes), f"{what} of table {family}")


def new_table(family: str, name: str) -> Message:
    """Adds the table, unless it is there."""
    return _new(NEWTABLE, family, f"table {name}", netlink.text(1, name), netlink.be32(2, 0))


def delete_table(family: str, name: str) -> Message:
    """Removes the table with all that is in it; ENOENT when there is none."""
    return _new(DELTABLE, family, f"table {name}", netlink.text(1, name), flags=0)


def new_chain(family: str, table: str, chain: Chain) -> Message:
    """Adds a chain without its rules."""
    parts = [netlink.text(1, table), netlink.text(3, chain.name)]
    if chain.hook:
        hook = netlink.be32(1, HOOKS[chain.hook]), netlink.be32(2, chain.priority & 0xFFFFFFFF)
        parts += [netlink.nested(4, *hook), netlink.be32(5, _ACCEPT), netlink.text(7, chain.type)]
    return _new(NEWCHAIN, family, f"chain {chain.name}", *parts)


def new_rules(family: str, table: str, chain: Chain) -> Iterator[Message]:
    """Adds a chain's rules behind those it has."""
    where = netlink.text(1, table) + netlink.text(2, chain.name)
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_APPEND
    for number, rule in enumerate(chain.rules, 1):
        body = netlink.nested(4, expressions(family, rule))
        yield Message(NEWRULE, flags, family, where + body, f"rule {number} in chain {chain.name} of table {family} {table}")


def _types(names: tuple[str, ...]) -> tuple[int, int]:
    """nft's number for a concatenation of types, and its length in bytes."""
    if len(names) == 1:
        return TYPES[names[0]]
    number = length = 0
    for name in names:
        number = number << 6 | TYPES[name].number
        length += (TYPES[name].length + 3) & ~3
    return number, length


def new_set(family: str, table: str, one: Set, identifier: int) -> Message:
    """Adds a set or map without elements. `identifier`: a number of its own within the batch."""
    flags = (_INTERVAL if one.interval else 0) | (_MAP if one.value else 0)
    number, length = _types(one.key)
    parts = [netlink.text(1, table), netlink.text(2, one.name), netlink.be32(3, flags), netlink.be32(4, number), netlink.be32(5, length)]
    if one.value == ("verdict",):
        parts += [netlink.be32(6, _VERDICT_DATA), netlink.be32(7, 0)]
    elif one.value:
        number, length = _types(one.value)
        parts += [netlink.be32(6, number), netlink.be32(7, length)]
    parts.append(netlink.be32(10, identifier))
    if one.typeof:
        parts.append(netlink.attribute(13, _origin(one.typeof)))
    elif one.key == ("ifname",):
        parts.append(netlink.attribute(13, _number(0, 1)))  # nft would list the names backwards
    return _new(NEWSET, family, f"set {one.name}", *parts)


def _note(type: int, value: bytes) -> bytes:
    return bytes((type, len(value))) + value


def _number(type: int, value: int) -> bytes:
    return _note(type, value.to_bytes(4, HOST))


# What nft keeps of a key beside a set whose types have no names, so that its listing can say where they come from: which of its
# expressions (9 meta, 7 payload) and that expression's parameters (meta key; protocol and field; base, offset, length in bits).
_ORIGINS: Final = {
    "iifname": (9, _number(0, 6)),
    "ether saddr": (7, _number(0, 17) + _number(1, 2)),
    "@th,64,128": (7, _number(0, 0) + _number(1, 0) + _number(2, 3) + _number(3, 64) + _number(4, 128)),
}


def _origin(keys: tuple[str, ...]) -> bytes:
    """A set's user data for its `typeof`: nothing of it means anything to the kernel."""
    parts = b"".join(_note(i, _number(0, _ORIGINS[key][0]) + _note(1, _ORIGINS[key][1])) for i, key in enumerate(keys))
    return _number(0, 0) + _note(3, _number(0, 13) + _note(1, parts))


def _interval(one: Set, element: Element) -> tuple[bytes, bytes | None]:
    """First address of a prefix, and the first behind it (None when it ends with the last address there is)."""
    network = ipaddress.ip_network(element.key[0])
    last = network.broadcast_address.packed
    end = int.from_bytes(last, "big") + 1
    return network.network_address.packed, end.to_bytes(len(last), "big") if end.bit_length() <= 8 * len(last) else None


def _element(one: Set, element: Element) -> bytes:
    value = b""
    if one.value == ("verdict",):
        value = _verdict(2, *element.value, *[""] * (2 - len(element.value)))
    elif one.value:
        value = _value(2, concatenated(one.value, element.value))
    if not one.interval:
        return netlink.nested(1, _value(1, concatenated(one.key, element.key)), value)
    start, end = _interval(one, element)
    found = netlink.nested(1, _value(1, start), value)
    return found if end is None else found + netlink.nested(1, _value(1, end), netlink.be32(3, 1))


def elements(type: int, family: str, table: str, one: Set, some: Iterable[Element]) -> Iterator[Message]:
    """Adds (NEWSETELEM) or removes (DELSETELEM) elements, in as many messages as it takes.

    An element that is there already and says the same is no error; removing one that is missing is ENOENT.
    """
    where = netlink.text(1, table) + netlink.text(2, one.name)
    flags = netlink.NLM_F_CREATE if type == NEWSETELEM else 0
    what = f"elements of {'map' if one.value else 'set'} {one.name} of table {family} {table}"
    waiting: list[bytes] = []
    length = 0
    for element in some:
        raw = _element(one, element)
        if length + len(raw) > _ELEMENTS_LENGTH:
            yield Message(type, flags, family, where + netlink.nested(3, *waiting), what)
            waiting, length = [], 0
        waiting.append(raw)
        length += len(raw)
    if waiting:
        yield Message(type, flags, family, where + netlink.nested(3, *waiting), what)


def table_messages(table: Table) -> Iterator[Message]:
    """Everything that makes `table`, in an order in which names exist before they are used."""
    family, name = table.family, table.name
    yield new_table(family, name)
    for chain in table.chains:
        yield new_chain(family, name, chain)
    for number, one in enumerate(table.sets, 1):
        yield new_set(family, name, one, number)
    for one in table.sets:
        yield from elements(NEWSETELEM, family, name, one, (*one.elements, *sorted(table.elements.get(one.name, ()), key=_order)))
    for chain in table.chains:
        yield from new_rules(family, name, chain)


def _order(element: Element) -> tuple[str, ...]:
    return element.key


def replacing(table: Table) -> Iterator[Message]:
    """Puts `table` in the place of what has its name, if anything has. In one transaction: no packet sees it missing."""
    yield new_table(table.family, table.name)
    yield delete_table(table.family, table.name)
    yield from table_messages(table)


def batch(messages: Iterable[Message], seq: int) -> bytes:
    """One transaction. Message i (from 0) has the sequence number `seq` + 1 + i.

    The begin has `seq`, where the kernel reports what fails for the transaction as a whole. Only the last message asks for an answer: when
    it is good, all are.
    """
    found = list(messages)
    mark = NFNL_SUBSYS_NFTABLES.to_bytes(2, "big")
    parts = [netlink.message(NFNL_MSG_BATCH_BEGIN, 0, seq, b"\0\0" + mark)]
    for number, one in enumerate(found, 1):
        flags = one.flags | (netlink.NLM_F_ACK if number == len(found) else 0)
        head = bytes((FAMILIES[one.family], 0, 0, 0))
        parts.append(netlink.message(NFNL_SUBSYS_NFTABLES << 8 | one.type, flags, seq + number, head + one.payload))
    parts.append(netlink.message(NFNL_MSG_BATCH_END, 0, seq + len(found) + 1, b"\0\0" + mark))
    return b"".join(parts)
