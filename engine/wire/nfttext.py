"""Tables in nft's own syntax (nft(8)): for people, for golden tests, and for `nft -f`. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from engine.wire.nftmodel import (
    KEYS,
    Chain,
    Dispatch,
    Dnat,
    Element,
    In,
    Masquerade,
    Match,
    Rewrite,
    Rule,
    Set,
    Snat,
    Statement,
    Table,
    Verdict,
    packed,
)

_PRIORITIES = {-300: "raw", -150: "mangle", -100: "dstnat", 0: "filter", 50: "security", 100: "srcnat"}
_BRIDGE_PRIORITIES = {-300: "dstnat", -200: "filter", 0: "0", 100: "out", 300: "srcnat"}


def render(tables: tuple[Table, ...]) -> str:
    """All tables, elements sorted, so that equal tables give equal text."""
    return "\n".join("\n".join(_table(table)) + "\n" for table in tables)


def _table(table: Table) -> Iterator[str]:
    yield f"table {table.family} {table.name} {{"
    first = True
    for block in (*(_set(one, table.elements.get(one.name, frozenset())) for one in table.sets), *(_chain(table, c) for c in table.chains)):
        if not first:
            yield ""
        first = False
        yield from ("\t" + line for line in block)
    yield "}"


def _set(one: Set, more: frozenset[Element]) -> Iterator[str]:
    yield f"{'map' if one.value else 'set'} {one.name} {{"
    key = " . ".join(one.typeof or one.key)
    value = f" : {' . '.join(one.value)}" if one.value else ""
    yield f"\t{'typeof' if one.typeof else 'type'} {key}{value}"
    if one.interval:
        yield "\tflags interval"
    lines = sorted(_element(one, element) for element in (*one.elements, *more))
    if lines:
        yield "\telements = {"
        yield from (f"\t\t{line}," for line in lines)
        yield "\t}"
    yield "}"


def _element(one: Set, element: Element) -> str:
    text = " . ".join(_value(type_name, value) for type_name, value in zip(one.key, element.key, strict=True))
    if one.value == ("verdict",):
        return f"{text} : {' '.join(element.value)}"
    if one.value:
        text += " : " + " . ".join(_value(type_name, value) for type_name, value in zip(one.value, element.value, strict=True))
    return text


def _value(type_name: str, text: str) -> str:
    if type_name == "ifname":
        return f'"{text}"'
    if type_name == "integer":  # written as an address, because that is what ours are
        return f"0x{packed(type_name, text).hex()}"
    return text


def _chain(table: Table, chain: Chain) -> Iterator[str]:
    yield f"chain {chain.name} {{"
    if chain.hook:
        names = _BRIDGE_PRIORITIES if table.family == "bridge" else _PRIORITIES
        number = str(chain.priority)
        name = number if chain.hook == "output" else names.get(chain.priority, number)  # nft has no dstnat there
        yield f"\ttype {chain.type} hook {chain.hook} priority {name}; policy accept;"
    for rule in chain.rules:
        yield "\t" + rule_text(rule)
    yield "}"


def rule_text(rule: Rule) -> str:
    """One rule, one line."""
    return " ".join(_statement(statement) for statement in rule)


def _statement(statement: Statement) -> str:
    match statement:
        case Match(key, value, negated):
            return f"{key} {'!= ' if negated else ''}{_value(KEYS[key].type, value)}"
        case In(keys, name, negated):
            return f"{' . '.join(keys)} {'!= ' if negated else ''}@{name}"
        case Dispatch(keys, name):
            return f"{' . '.join(keys)} vmap @{name}"
        case Verdict(kind, chain):
            return f"{kind} {chain}".strip()
        case Dnat(family, keys, name):
            return f"dnat {family} to {' . '.join(keys)} map @{name}"
        case Snat(family, address):
            return f"snat {family} to {address}"
        case Masquerade():
            return "masquerade"
        case Rewrite(key, value):
            return f"{key} set {value}"
