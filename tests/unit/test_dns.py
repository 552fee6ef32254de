"""Names: the wire format, what a name means to a container, messages to netd, a container's resolv.conf."""

from __future__ import annotations

import struct

import pytest

from engine.errors import InvalidParameter
from engine.netd import messages
from engine.netd.forward import HostServers
from engine.netd.resolver import CACHE_LIMIT, Caches, Endpoint, Resolver, Zones
from engine.service.resolvconf import resolv_conf, stub_only
from engine.wire import dns


def question(name: str, type: int = dns.A, *, id: int = 0x1234, size: int = 0, flags: int = 0x0100, cls: int = dns.IN) -> bytes:
    """A query as clients send it; with EDNS(0) when `size` is given."""
    body = b"".join(bytes([len(label)]) + label for label in name.encode().split(b".") if label) + b"\0"
    opt = b"\0" + struct.pack(">HHIH", dns.OPT, size, 0, 0) if size else b""
    return struct.pack(">6H", id, flags, 1, 0, 0, 1 if size else 0) + body + struct.pack(">HH", type, cls) + opt


def records(response: bytes) -> list[tuple[int, bytes]]:
    """Type and data of the answers."""
    count = struct.unpack_from(">H", response, 6)[0]
    _, at = dns.read_name(response, 12)
    at += 4
    found = []
    for _ in range(count):
        _, at = dns.read_name(response, at)
        type, _, _, length = struct.unpack_from(">HHIH", response, at)
        found.append((type, response[at + 10 : at + 10 + length]))
        at += 10 + length
    return found


def addresses(response: bytes) -> list[str]:
    return [".".join(map(str, data)) if type == dns.A else data.hex() for type, data in records(response)]


# -- the wire format


def test_a_query_is_parsed() -> None:
    query = dns.parse(question("Web.Example.", dns.AAAA, size=4096))
    assert (query.name, query.type, query.cls, query.size, query.edns, query.plain) == (b"web.example", dns.AAAA, dns.IN, 4096, True, True)
    assert dns.parse(question("web")).size == 512
    assert dns.parse(question("web", size=100)).size == 512  # RFC 6891 section 6.2.5: less than 512 means 512


def test_a_dot_inside_a_label_is_no_separator() -> None:
    packet = struct.pack(">6H", 1, 0x100, 1, 0, 0, 0) + b"\x03a.b\0" + struct.pack(">HH", dns.A, dns.IN)
    assert dns.parse(packet).name == b"a\\.b"


HEAD = struct.pack(">6H", 1, 0x100, 1, 0, 0, 0)
TAIL = struct.pack(">HH", dns.A, dns.IN)


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        HEAD[:11],
        HEAD,
        HEAD + b"\x03we",
        HEAD + b"\x03web",
        HEAD + b"\x03web\0\0\1",
        HEAD + b"\xc0\x0c" + TAIL,  # a pointer to itself
        HEAD + b"\xc0\x00" + TAIL,  # into the header
        HEAD + b"\xc0\xff" + TAIL,  # past the end
        HEAD + b"\xc0",
        HEAD + b"\x01a\xc0\x0c" + TAIL,  # a loop with a label in it
        HEAD + b"\x40" + b"a" * 64 + b"\0" + TAIL,
        HEAD + (b"\x3f" + b"a" * 63) * 4 + b"\0" + TAIL,
        struct.pack(">6H", 1, 0x100, 0, 0, 0, 0),
        struct.pack(">6H", 1, 0x100, 2, 0, 0, 0) + b"\x03web\0" + TAIL + b"\x03web\0" + TAIL,
        struct.pack(">6H", 1, 0x100, 1, 0, 0, 60000) + b"\x03web\0" + TAIL,
        struct.pack(">6H", 1, 0x100, 1, 0, 0, 1) + b"\x03web\0" + TAIL,
        question("web", flags=0x8180),  # a response
    ],
)
def test_what_is_no_query_is_refused(packet: bytes) -> None:
    with pytest.raises(dns.Malformed):
        dns.parse(packet)


def test_two_opt_records_are_refused() -> None:
    one = question("web", size=512)
    opt = one[-11:]
    packet = struct.pack(">6H", 1, 0x100, 1, 0, 0, 2) + one[12:] + opt
    with pytest.raises(dns.Malformed):
        dns.parse(packet)


def test_a_pointer_backwards_is_followed() -> None:
    packet = question("web.example") + b"\x01x\xc0\x10"  # x + ".example"
    assert dns.read_name(packet, len(packet) - 4) == (b"x.example", len(packet))


def test_unknown_operations_and_versions_are_refused_politely() -> None:
    assert dns.parse(question("web", flags=0x2800)).refusal == dns.NOTIMP
    packet = question("web", size=512)
    newer = packet[:-6] + struct.pack(">IH", 1 << 16, 0)
    query = dns.parse(newer)
    assert query.refusal == dns.BADVERS
    response = dns.reply(newer, query, query.refusal)
    assert dns.rcode(response) == 0 and struct.unpack(">I", response[-6:-2])[0] >> 24 == 1


def test_an_answer_repeats_the_question() -> None:
    packet = question("WEB", size=1232)
    response = dns.reply(packet, dns.parse(packet), dns.NOERROR, [dns.record(*dns.address("10.0.0.2"))])
    assert response[:2] == packet[:2]
    assert response[2:4] == b"\x81\x80"  # response, recursion desired and available
    assert response[12:21] == packet[12:21]
    assert addresses(response) == ["10.0.0.2"]
    assert response[-11:-8] == b"\0\0\x29"  # OPT, as it was in the question


def test_what_does_not_fit_is_left_out_and_said() -> None:
    packet = question("web")
    many = [dns.record(dns.A, bytes([10, 0, 0, number])) for number in range(100)]
    response = dns.reply(packet, dns.parse(packet), dns.NOERROR, many, 512)
    assert len(response) <= 512 and response[2] & 2
    assert len(records(response)) == (512 - 12 - 9) // 16
    whole = dns.reply(packet, dns.parse(packet), dns.NOERROR, many)
    assert len(records(whole)) == 100 and not whole[2] & 2


def test_an_answer_belongs_to_its_question() -> None:
    packet = question("web")
    query = dns.parse(packet)
    response = dns.reply(packet, query)
    assert dns.answers(packet, query, response)
    assert dns.answers(packet, query, response[:12] + response[12:].replace(b"web", b"WeB"))
    for wrong in (
        b"",
        packet,
        b"\0\0" + response[2:],
        response[:12] + response[12:].replace(b"web", b"wob"),
        response[:-5] + b"\x1c\0\1",
        response[:4] + b"\0\0" + response[6:],
    ):
        assert not dns.answers(packet, query, wrong)


def test_reverse_names() -> None:
    assert dns.reverse_name(dns.address("172.18.0.2")[1]) == b"2.0.18.172.in-addr.arpa"
    assert dns.reverse_name(dns.address("fd00::2")[1]) == b"2." + b"0." * 29 + b"d.f.ip6.arpa"


# -- what names mean


class Network:
    """Two containers and a service of both, one network more, seen by one container."""

    def __init__(self) -> None:
        self.zones = Zones()
        self.front = self.zones.get("n1", "front")
        self.back = self.zones.get("n2", "back.end")
        self.front.publish("e1", Endpoint(["web", "www", "0123456789ab"], ["10.0.0.2", "fd00::2"], "web"))
        self.front.publish("e2", Endpoint(["web2", "WWW", "a.dotted.alias"], ["10.0.0.3"], "web2"))
        self.back.publish("e3", Endpoint(["db", "web"], ["10.1.0.9"], "db"))
        self.resolver = Resolver()
        self.resolver.change([self.front, self.back], [], ["host"], False)

    def ask(self, name: str, type: int = dns.A) -> list[str] | None:
        packet = question(name, type)
        found = self.resolver.answers(packet, dns.parse(packet), 512)
        return None if found is None else sorted(addresses(found[0]))


def test_names_aliases_ids_and_networks() -> None:
    network = Network()
    assert network.ask("web") == ["10.0.0.2"]  # the first network that has it
    assert network.ask("WEB.") == ["10.0.0.2"]
    assert network.ask("0123456789ab") == ["10.0.0.2"]
    assert network.ask("www") == ["10.0.0.2", "10.0.0.3"]
    assert network.ask("a.dotted.alias") == ["10.0.0.3"]
    assert network.ask("a.dotted.alias.front") == ["10.0.0.3"]
    assert network.ask("web.back.end") == ["10.1.0.9"]
    assert network.ask("db.front") is None
    assert network.ask("nobody") is None
    assert network.ask("web.nowhere") is None


def test_a_known_name_without_such_an_address_is_an_empty_answer() -> None:
    network = Network()
    assert network.ask("web2", dns.AAAA) == []
    assert network.ask("web", dns.AAAA) == ["fd000000000000000000000000000002"]
    assert network.ask("web", 16) == []  # TXT
    assert network.ask("nobody", 16) is None
    assert len(network.ask("web", dns.ANY) or []) == 2


def test_addresses_come_from_the_first_network_that_has_that_kind() -> None:
    network = Network()
    network.back.publish("e4", Endpoint(["web2"], ["fd01::9", "10.1.0.8"], "x"))
    assert network.ask("web2") == ["10.0.0.3"]
    assert network.ask("web2", dns.AAAA) == ["fd010000000000000000000000000009"]


def test_reverse_lookup_names_container_and_network() -> None:
    network = Network()
    packet = question("2.0.0.10.in-addr.arpa", dns.PTR)
    found = network.resolver.answers(packet, dns.parse(packet), 512)
    assert found is not None
    assert records(found[0]) == [(dns.PTR, b"\x03web\x05front\0")]
    packet = question("9.9.9.9.in-addr.arpa", dns.PTR)
    assert network.resolver.answers(packet, dns.parse(packet), 512) is None


def test_links_are_addresses_or_names() -> None:
    network = Network()
    links = [("Database", ["db"]), ("fixed", ["192.0.2.1", "192.0.2.2"]), ("byid", ["0123456789ab" + "c" * 52]), ("ended", ["gone"])]
    network.resolver.change([network.front, network.back], links, [], False)
    assert network.ask("database") == ["10.1.0.9"]
    assert network.ask("database.back.end") == ["10.1.0.9"]
    assert network.ask("fixed") == ["192.0.2.1", "192.0.2.2"]
    assert network.ask("byid") == ["10.0.0.2"]
    assert network.ask("ended") == []


def test_what_left_is_not_found() -> None:
    network = Network()
    network.front.withdraw("e1")
    assert network.ask("www") == ["10.0.0.3"]
    assert network.ask("web") == ["10.1.0.9"]
    network.front.withdraw("e2")
    network.front.withdraw("e2")
    assert network.ask("www") is None
    assert network.front.names == {} and network.front.reverse == {}
    network.resolver.change([], [], [], True)
    network.zones.forget(network.front)
    network.zones.forget(network.back)
    assert list(network.zones.by_id) == ["n2"]  # it has an endpoint still


def test_kept_answers_take_turns_and_do_not_outlive_a_change() -> None:
    network = Network()
    caches = Caches()

    def ask() -> str:
        packet = question("www")
        kept = network.resolver.cache.get(packet[2:])
        if kept is not None:
            return addresses(packet[:2] + next(kept))[0]
        found = network.resolver.answers(packet, dns.parse(packet), 512)
        assert found is not None
        return addresses(caches.keep(network.resolver, packet, found))[0]

    firsts = [ask() for _ in range(6)]
    assert firsts.count("10.0.0.2") == firsts.count("10.0.0.3") == 3
    network.front.withdraw("e2")
    assert {ask() for _ in range(4)} == {"10.0.0.2"}
    network.front.publish("e1", Endpoint(["www"], ["10.0.0.7"], "web"))
    assert ask() == "10.0.0.7"
    network.front.publish("e1", Endpoint(["www"], ["10.0.0.7"], "web"))
    assert network.resolver.cache  # said again, nothing changed


def test_kept_answers_are_bounded() -> None:
    network = Network()
    caches = Caches()
    for number in range(CACHE_LIMIT + 10):
        packet = question("web", flags=0x0100 | number & 0x7F, cls=dns.IN)[:-4] + b"\0\1\0\1" + b"x" * (number // 128)
        found = network.resolver.answers(packet, dns.parse(packet), 512)
        assert found is not None
        caches.keep(network.resolver, packet, found)
    assert len(network.resolver.cache) <= CACHE_LIMIT


# -- messages, the host's servers


def test_messages_there_and_back() -> None:
    one = messages.encode(messages.PUBLISH, "n1", ["web", "\udcff"], -1, [["a", []]])
    two = messages.encode(messages.STATUS)
    assert messages.decode(one + two) == [(messages.PUBLISH, ["n1", ["web", "\udcff"], -1, [["a", []]]]), (messages.STATUS, [])]
    for cut in range(1, len(one)):
        with pytest.raises(messages.MalformedMessage):
            messages.decode(one[:cut])


def test_the_hosts_servers_follow_its_file(tmp_path) -> None:
    path = tmp_path / "resolv.conf"
    servers = HostServers(str(path))
    assert servers.get(0.0) == ("8.8.8.8", "8.8.4.4")
    path.write_text("# x\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\nnameserver nonsense\noptions edns0\nnameserver\n")
    assert servers.get(0.5) == ("8.8.8.8", "8.8.4.4")  # looked at a moment ago
    assert servers.get(2.0) == ("127.0.0.53", "fe80::1%eth0")
    path.unlink()
    assert servers.get(4.0) == ("127.0.0.53", "fe80::1%eth0")
    path.write_text("nameserver 192.0.2.1\n")
    assert servers.get(6.0) == ("192.0.2.1",)


# -- resolv.conf

HOST = """# of the host
nameserver 127.0.0.53
nameserver 192.0.2.53
nameserver 2001:db8::53
search corp.example lan
options edns0 timeout:2
sortlist 10.0.0.0
"""


def conf(text: str = HOST, **settings) -> tuple[list[str], list[str]]:
    """The lines that a resolver reads, and the upstreams."""
    given = {"dns": [], "search": [], "options": [], "embedded": True} | settings
    made, upstreams = resolv_conf(text, **given)
    return [line for line in made.splitlines() if line and not line.startswith("#")], upstreams


def test_resolv_conf_with_the_embedded_server() -> None:
    assert conf() == (
        ["nameserver 127.0.0.11", "search corp.example lan", "options edns0 timeout:2 ndots:0", "sortlist 10.0.0.0"],
        ["host"],
    )
    assert conf(dns=["10.9.9.9", "127.0.0.1"], search=["."], options=["ndots:2"]) == (
        ["nameserver 127.0.0.11", "options ndots:2", "sortlist 10.0.0.0"],
        ["10.9.9.9", "127.0.0.1"],
    )
    assert conf("options ndots:-1 ndots:x\n")[0] == ["nameserver 127.0.0.11", "options ndots:0"]
    assert conf("")[1] == ["host"]


def test_resolv_conf_of_the_default_bridge() -> None:
    assert conf(embedded=False) == (
        ["nameserver 192.0.2.53", "search corp.example lan", "options edns0 timeout:2", "sortlist 10.0.0.0"],
        [],
    )
    assert conf(embedded=False, ipv6=True)[0][:2] == ["nameserver 192.0.2.53", "nameserver 2001:db8::53"]
    assert conf("nameserver 127.0.0.53\n", embedded=False)[0] == ["nameserver 8.8.8.8", "nameserver 8.8.4.4"]
    assert conf("", embedded=False, ipv6=True)[0][2:] == ["nameserver 2001:4860:4860::8888", "nameserver 2001:4860:4860::8844"]
    assert conf(embedded=False, dns=["127.0.0.1"], search=["a.example"])[0][:2] == ["nameserver 127.0.0.1", "search a.example"]


def test_resolv_conf_says_where_it_comes_from() -> None:
    text, _ = resolv_conf("nameserver 192.0.2.53\nnameserver x\n", dns=[], search=["a"], options=[], embedded=True)
    assert text.endswith(
        "\n# Based on host file: '/etc/resolv.conf' (internal resolver)\n# ExtServers: [host(192.0.2.53)]\n# Invalid nameservers: [x]\n"
        "# Overrides: [search]\n# Option ndots from: internal\n"
    )
    assert "# Used default nameservers." in resolv_conf("", dns=[], search=[], options=[], embedded=False)[0]


def test_nothing_slips_into_resolv_conf() -> None:
    bad = ("1.1.1.1\nsearch evil", "x", "")
    for settings in (*({"dns": [each]} for each in bad), {"search": ["a\nnameserver 6.6.6.6"]}, {"options": [""]}, {"options": ["a b"]}):
        with pytest.raises(InvalidParameter):
            conf(**settings)


def test_a_stub_is_recognised() -> None:
    assert stub_only("nameserver 127.0.0.53\noptions edns0\n")
    assert not stub_only(HOST)
