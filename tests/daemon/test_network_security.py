"""Attacks by containers through networks, names, volumes and probes, tried for real: on the host, neighbours, the daemon and knarr-netd.

Two hosts as network namespaces (`tests.lib.site`). A hostile program is a socket that the test opens inside a container's namespace, as
a container's root may (NET_RAW is among the default capabilities, NET_ADMIN is given by some users). What a healthy network does is the
business of test_network_hosts.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import signal
import socket
import stat
import struct
import time
from collections.abc import Iterator

import pytest

from engine.wire import dns
from tests.lib import frames
from tests.lib.frames import ETH_ARP, ETH_IPV4, ETH_IPV6, Wire
from tests.lib.netns import Datagrams, Echo, eventually
from tests.lib.site import CLIENT, HOST, Box, Site, site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

GROUPS = [f"01:80:c2:00:00:0{digit:x}" for digit in (0, 2, 3, 14, 15)]  # that bridges keep to themselves: STP, LACP, LLDP, ...
RESOLVER = "127.0.0.11"


@pytest.fixture(scope="module")
def whole() -> Iterator[Site]:
    with site() as made:
        made.host.sysctl("ipv6/conf/default/accept_ra", "1")  # as on every host that is no router
        yield made


@pytest.fixture
def place(whole: Site) -> Iterator[Site]:
    """The site; containers and networks of the test are removed after it."""
    yield whole
    whole.clear()


def advertisement(source: str) -> bytes:
    """A router's: a default route and a prefix (RFC 4861, 4.2)."""
    ends = ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address("ff02::1").packed
    prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 3600, 0) + ipaddress.IPv6Address("2001:db8:bad::").packed
    body = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix
    value = frames.checksum(ends + struct.pack("!II", len(body), 58) + body)
    return struct.pack("!IHBB", 6 << 28, len(body), 58, 255) + ends + body[:2] + struct.pack("!H", value) + body[4:]


def question(name: str, number: int = 1) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">6H", number, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", dns.A, dns.IN)


def pair(place: Site, *options: str) -> tuple[str, Box, Box]:
    network = place.network(*options)
    return network, place.box("--network", network), place.box("--network", network)


# Frames that a bridge does not take for ordinary ones


@pytest.mark.parametrize("group", GROUPS)
def test_the_host_takes_no_packet_from_a_containers_link_itself(place: Site, group: str) -> None:
    """A bridge leaves frames to these groups to its port: a link of the host that no rule of a network knows."""
    _, hostile, _ = pair(place, "--internal")
    routes, addresses = place.host.ip("-6", "route"), place.host.ip("-6", "-o", "addr", "show", "scope", "global")
    with Datagrams(place.host, 9100) as service, Wire(hostile.host, hostile.link()) as wire:
        for source in ("fe80::bad", "fe80::42:acff:fe12:2"):
            wire.send(group, ETH_IPV6, advertisement(source))
        for source in ("203.0.113.5", hostile.ip()):
            wire.send(group, ETH_IPV4, frames.udp4(source, HOST, 4000, 9100, b"hello"))
        request = bytearray(frames.arp_answer(wire.mac, "198.51.100.77", "00:00:00:00:00:00", HOST))
        request[7] = 1
        wire.send(group, ETH_ARP, bytes(request))
        time.sleep(0.2)
        assert service.peers == []
    assert place.host.ip("-6", "route") == routes
    assert place.host.ip("-6", "-o", "addr", "show", "scope", "global") == addresses
    assert "198.51.100.77" not in place.host.ip("neigh")


def test_no_frame_teaches_a_bridge_a_neighbours_place(place: Site) -> None:
    _, hostile, victim = pair(place)

    def learned() -> dict[str, str]:
        rows = [line.split() for line in place.host.run("bridge", "fdb", "show", "dynamic").stdout.splitlines()]
        return {row[0]: row[2] for row in rows}

    with Echo(victim.host, 80), Wire(hostile.host, hostile.link()) as wire:
        assert place.host.reaches(victim.ip(), 80)
        before = learned()[place.mac(victim)]
        for group in (*GROUPS, frames.BROADCAST):
            for kind in (0x88CC, ETH_IPV4, 0x8100, 0x88A8, 0x0004):
                wire.send(group, kind, b"\0" * 60, source=place.mac(victim), times=1)
        wire.send(
            frames.BROADCAST, 0x8100, b"\0\1\x08\0" + frames.udp4(victim.ip(), "255.255.255.255", 1, 1, b"x"), source=place.mac(victim)
        )
        assert learned()[place.mac(victim)] == before
        assert len(learned()) <= 2, "and made-up senders are not remembered either"
        assert place.host.reaches(victim.ip(), 80)


def test_a_link_that_is_no_members_yet_can_send_nothing(place: Site) -> None:
    """Between a link's first moment and its rules a container may run already."""
    _, hostile, other = pair(place)
    with Datagrams(other.host, 81) as service, Wire(hostile.host, hostile.link()) as wire:
        assert hostile.host.asks(other.ip(), 81)
        tables = [line.split()[2] for line in place.host.run("nft", "list", "tables", "bridge").stdout.splitlines()]
        for name in ("guarded", "senders", "senders4"):
            place.host.run("nft", "flush", "set", "bridge", tables[0], name)
        service.peers.clear()
        wire.send(place.mac(other), ETH_IPV4, frames.udp4(hostile.ip(), other.ip(), 4000, 81, b"x"))
        wire.send(place.mac(other), ETH_IPV4, frames.udp4("192.0.2.9", other.ip(), 4000, 81, b"x"))
        time.sleep(0.2)
        assert service.peers == []


@pytest.mark.parametrize("subject", ["redirect", "advertisement"])
def test_a_container_is_no_router_of_its_network(place: Site, subject: str) -> None:
    network = place.dual()
    hostile, user = place.box("--network", network), place.box("--network", network)
    user.host.sysctl(f"ipv6/conf/{user.link()}/accept_ra", "2")  # as a careless image may
    before = user.host.ip("-6", "route"), user.host.ip("route")
    with Wire(hostile.host, hostile.link()) as wire:
        if subject == "advertisement":
            for target in ("33:33:00:00:00:01", place.mac(user)):
                wire.send(target, ETH_IPV6, advertisement(frames_link_local(wire.mac)))
        else:
            gateway = place.gateway(network)
            inner = frames.udp4(user.ip(), CLIENT, 1, 1, b"x")[:28]
            body = struct.pack("!BBH4s", 5, 1, 0, socket.inet_aton(hostile.ip())) + inner
            body = body[:2] + struct.pack("!H", frames.checksum(body)) + body[4:]
            packet = bytearray(frames.udp4(gateway, user.ip(), 0, 0, body[8:]))
            packet[20:], packet[9] = body, socket.IPPROTO_ICMP
            packet[10:12] = b"\0\0"
            packet[10:12] = struct.pack("!H", frames.checksum(bytes(packet[:20])))
            wire.send(place.mac(user), ETH_IPV4, bytes(packet))
        time.sleep(0.2)
    assert (user.host.ip("-6", "route"), user.host.ip("route")) == before
    assert hostile.ip() not in user.host.ip("route", "get", CLIENT)


def frames_link_local(mac: str) -> str:
    octets = bytes.fromhex(mac.replace(":", ""))
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]))


def test_an_internal_network_leaks_through_no_other_door(place: Site) -> None:
    """The name server, published ports of others by any address of the host, and the host's other addresses."""
    inside = place.box("--network", place.network("--internal", "--ipv6", "--subnet", "fd00:52:1::/64"))
    other = place.box("--network", place.network(), "-p", "8080:80")
    gateway = inside.inspect()["NetworkSettings"]["Networks"]
    assert not next(iter(gateway.values()))["Gateway"]
    with Echo(other.host, 80) as published, Echo(place.host, 9200) as service:
        names = next(iter(gateway))
        host_side = place.gateway(names)
        inside.host.ip("route", "replace", "default", "via", host_side)
        for address, port in ((host_side, 8080), (HOST, 8080), (HOST, 9200), (other.ip(), 80)):
            assert inside.host.kept_from(address, port), address
        assert (published.peers, service.peers) == ([], [])
    answer = inside.host.asks(RESOLVER, 53, question("secret.example"))
    assert answer and dns.rcode(answer) == dns.SERVFAIL


# The files that are mounted into a container from the host's memory


def test_a_container_cannot_fill_the_hosts_memory_through_its_hosts_file(place: Site) -> None:
    box = place.box("--network", place.network())
    files = place.engine.exec_root / "bundles" / box.id  # type: ignore[attr-defined]
    for name in ("hosts", "resolv.conf", "hostname"):
        with open(f"/proc/{box.pid}/root/etc/{name}", "r+b", buffering=0) as file:
            file.write(b"#" * (8 << 20))
            assert eventually(lambda name=name: (files / name).stat().st_blocks * 512 <= 1 << 20)  # type: ignore[misc]
            file.truncate(1 << 30)  # sparse, for writing through a mapping
            assert eventually(lambda name=name: (files / name).stat().st_size <= 1 << 20)  # type: ignore[misc]
            os.posix_fallocate(file.fileno(), 0, 8 << 20)
            assert eventually(lambda name=name: (files / name).stat().st_blocks * 512 <= 1 << 20)  # type: ignore[misc]


def test_a_lease_on_a_hosts_file_holds_up_nobody(place: Site) -> None:
    near, far = place.network(), place.network()
    box = place.box("--network", near)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        with open(f"/proc/{box.pid}/root/etc/hosts", "rb") as file:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            place.engine.docker("network", "connect", far, box.id)
            place.engine.docker("rename", box.id, f"renamed{os.getpid()}")
            assert place.engine.api("GET", "/_ping").status == 200
    finally:
        signal.signal(signal.SIGIO, before)
    assert box.ip(far)


def test_a_hosts_file_with_a_lease_that_grows_ends_its_container(place: Site) -> None:
    box = place.box("--network", "none")
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        with open(f"/proc/{box.pid}/root/etc/hosts", "r+b", buffering=0) as file:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            file.write(b"#" * (2 << 20))
            assert eventually(lambda: box.inspect()["State"]["Status"] == "exited")
    finally:
        signal.signal(signal.SIGIO, before)


# knarr-netd


def netd(place: Site) -> int:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm") as file:
                if file.read() == "knarr-netd\n" and os.readlink(f"/proc/{pid}/cwd") == str(place.engine.exec_root):  # type: ignore[attr-defined]
                    return int(pid)
        except OSError:  # it ended meanwhile
            continue
    raise AssertionError("no knarr-netd")


def cpu(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        words = file.read().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def test_a_container_that_destroys_its_name_servers_sockets_harms_itself_alone(place: Site) -> None:
    _, hostile, user = pair(place)
    if "127.0.0.11" not in hostile.host.run("ss", "-K", "-a", "src", RESOLVER, check=False).stdout:
        pytest.skip("this kernel does not end sockets (CONFIG_INET_DIAG_DESTROY)")
    process = netd(place)
    assert user.host.asks(RESOLVER, 53, question(hostile.id[:12]))
    before = cpu(process)
    time.sleep(0.5)
    assert cpu(process) - before < 0.1
    assert user.host.asks(RESOLVER, 53, question(hostile.id[:12]))


def test_questions_that_nobody_answers_leave_room_for_others(place: Site) -> None:
    network = place.network()
    user = place.box("--network", network, "--dns", "127.0.0.98")
    hostile = [place.box("--network", network, "--dns", "192.0.2.1") for _ in range(5)]
    for box in hostile:
        box.host.ip("route", "add", "192.0.2.1/32", "dev", "lo")
        box.host.ip("addr", "add", "192.0.2.1/32", "dev", "lo")
        sink = box.host.socket(kind=socket.SOCK_DGRAM)
        sink.bind(("192.0.2.1", 53))
        with box.host.socket(kind=socket.SOCK_DGRAM) as flood, sink:
            flood.connect((RESOLVER, 53))
            for number in range(300):
                flood.send(question(f"n{number}.example", number))
                if number % 30 == 29:
                    time.sleep(0.002)
            time.sleep(0.05)
    user.host.ip("addr", "add", "127.0.0.98/32", "dev", "lo", check=False)
    with user.host.socket(kind=socket.SOCK_DGRAM) as server, user.host.socket(kind=socket.SOCK_DGRAM) as asking:
        server.bind(("127.0.0.98", 53))
        asking.connect((RESOLVER, 53))
        asking.send(question("wanted.example", 7))
        packet, peer = server.recvfrom(512)
        server.sendto(dns.reply(packet, dns.parse(packet), records=[dns.record(*dns.address("192.0.2.7"))]), peer)
        assert b"\xc0\x00\x02\x07" in asking.recv(512)


def test_the_name_servers_process_shows_nothing_to_containers(place: Site) -> None:
    box = place.box("--network", place.network())
    process = netd(place)
    assert os.stat(f"/proc/{process}/ns/net").st_ino == os.fstat(place.host.fd).st_ino
    assert os.stat(f"/proc/{process}/ns/net").st_ino != os.fstat(box.host.fd).st_ino
    for folder, _, names in os.walk(place.engine.exec_root):  # type: ignore[attr-defined]
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # of a container that is going
                assert not name.endswith(".sock") or stat.S_IMODE(os.stat(f"{folder}/{name}").st_mode) == 0o600, (folder, name)
    abstract = place.host.run("ss", "-xaH").stdout
    assert "@" not in "".join(line.split()[4] for line in abstract.splitlines()), "any process with the host's network could connect"


# Requests


AUXILIARY, ALIASES = dict.fromkeys(map(str, range(9000)), "10.1.1.1"), {"Aliases": ["a" * 60] * 999}
B = {"Image": "busybox", "Cmd": ["sleep", "1000"]}


@pytest.mark.parametrize(
    ("target", "body", "status"),
    [
        ("/networks/create", {"Name": "x" * 300}, 400),
        ("/networks/create", {"Name": "a\nb"}, 400),
        ("/networks/create", {"Name": "many", "IPAM": {"Config": [{"Subnet": f"10.{n >> 8}.{n & 255}.0/24"} for n in range(9000)]}}, 400),
        ("/networks/create", {"Name": "aux", "IPAM": {"Config": [{"Subnet": "10.0.0.0/8", "AuxiliaryAddresses": AUXILIARY}]}}, 400),
        ("/networks/create", {"Name": "link", "Options": {"com.docker.network.bridge.name": "../all"}}, 400),
        ("/networks/create", {"Name": "link", "Options": {"com.docker.network.bridge.name": "all"}}, 500),
        ("/networks/create", {"Name": "link", "Options": {"com.docker.network.bridge.name": "br%d"}}, 400),
        ("/containers/create", {**B, "HostConfig": {"Binds": [f"volume{n}:/v/{n}" for n in range(3000)]}}, 400),
        ("/containers/create", {**B, "Hostname": "a\n192.0.2.1 example.com"}, 400),
        ("/containers/create", {**B, "Domainname": "a b"}, 400),
        ("/containers/create", {**B, "HostConfig": {"Dns": ["fe80::1%x\nnameserver 192.0.2.1"]}}, 400),
        ("/containers/create", {**B, "HostConfig": {"Dns": ["192.0.2.1"] * 999}}, 400),
        ("/containers/create", {**B, "HostConfig": {"NetworkMode": "n"}, "NetworkingConfig": {"EndpointsConfig": {"n": ALIASES}}}, 400),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_requests_that_would_hurt_are_refused(whole: Site, target: str, body: dict[str, object], status: int) -> None:
    volumes = whole.engine.api("GET", "/volumes").json()["Volumes"]
    assert whole.engine.api("POST", target, body).status == status
    assert whole.engine.api("GET", "/_ping").status == 200
    assert whole.host.sysctl("ipv6/conf/all/disable_ipv6") == "0" and whole.host.sysctl("ipv4/conf/all/route_localnet") == "0"
    assert whole.engine.api("GET", "/volumes").json()["Volumes"] == volumes


@pytest.mark.parametrize(
    "settings",
    [
        {"Aliases": ["a\nb"]},
        {"Aliases": ["*"]},
        {"MacAddress": "xx"},
        {"MacAddress": "01:00:00:00:00:01"},
        {"DriverOpts": {"com.docker.network.endpoint.ifname": "../all"}},
        {"DriverOpts": {"com.docker.network.endpoint.ifname": "a\nb"}},
        {"DriverOpts": {"com.docker.network.endpoint.ifname": "all"}},
        {"DriverOpts": {"com.docker.network.endpoint.ifname": "lo"}},
        {"IPAMConfig": {"IPv4Address": "10.78.0.1"}},
        {"IPAMConfig": {"IPv4Address": "10.78.0.0"}},
        {"IPAMConfig": {"IPv4Address": "10.78.255.255"}},
        {"IPAMConfig": {"IPv4Address": "OTHER"}},
    ],
    ids=str,
)
def test_a_running_container_is_given_nothing_that_is_not_its_own(place: Site, settings: dict[str, object]) -> None:
    network = place.network("--subnet", "10.78.0.0/16")
    box, other = place.box(), place.box("--network", network)
    given = settings.get("IPAMConfig")
    if isinstance(given, dict):
        settings = {"IPAMConfig": {key: other.ip() if value == "OTHER" else value for key, value in given.items()}}
    links = box.host.links()
    answer = place.engine.api("POST", f"/networks/{network}/connect", {"Container": box.id, "EndpointConfig": settings})
    assert answer.status in (400, 403, 500) and b"internal error" not in answer.body, answer.body
    assert box.host.links() == links and network not in box.inspect()["NetworkSettings"]["Networks"]


# Volumes


def test_a_volumes_part_never_leads_out_of_it_however_its_links_change(whole: Site) -> None:
    engine = whole.engine
    engine.docker("run", "--rm", "--network", "none", "-v", "race:/v", "busybox", "mkdir", "-p", "/v/a/b")
    script = "cd /v; while :; do rm -rf s; mkdir s; rmdir s; ln -s ../../../../../../../../../etc s; done"
    swapper = engine.out("run", "-d", "--network", "none", "-v", "race:/v", "busybox", "sh", "-c", script)
    try:
        mount = "type=volume,src=race,dst=/m,volume-subpath=s"
        for _ in range(10):
            result = engine.docker("run", "--rm", "--network", "none", "--mount", mount, "busybox", "ls", "/m", check=False)
            assert b"hostname" not in result.stdout
    finally:
        engine.docker("rm", "-f", swapper)
        engine.docker("volume", "rm", "race")


def test_volumes_are_out_of_reach_for_users_of_the_host(whole: Site) -> None:
    engine = whole.engine
    engine.docker("run", "--rm", "--network", "none", "-v", "rights:/v", "busybox", "sh", "-c", "cp /bin/busybox /v/x; chmod 4755 /v/x")
    try:
        root = engine.data_root  # type: ignore[attr-defined]
        assert stat.S_IMODE(root.stat().st_mode) & 0o007 == 0, "a set-user-ID program of a container must not be run by them"
        assert (root / "volumes/rights/_data/x").stat().st_mode & stat.S_ISUID
    finally:
        engine.docker("volume", "rm", "rights")


def test_a_tree_of_any_depth_is_measured(whole: Site) -> None:
    engine = whole.engine
    box = whole.box("--network", "none", "-v", "deep:/v")
    folder = os.open(f"/proc/{box.pid}/root/v", os.O_RDONLY)
    try:
        for _ in range(4000):
            os.mkdir("d" * 200, dir_fd=folder)
            below = os.open("d" * 200, os.O_RDONLY, dir_fd=folder)
            os.close(folder)
            folder = below
        os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=folder))
    finally:
        os.close(folder)
    try:
        answer = engine.api("GET", "/system/df")
        assert answer.status == 200, (answer.body, engine.log_tail())
        found = next(v for v in answer.json()["Volumes"] if v["Name"] == "deep")
        assert found["UsageData"]["Size"] == 0 and found["UsageData"]["RefCount"] == 1
    finally:
        whole.clear()
        engine.docker("volume", "rm", "-f", "deep")


# Probes


@pytest.mark.parametrize("command", ["cat /dev/zero", "setsid sleep 1000 & exit 0", "trap '' TERM; while :; do sleep 1; done"])
def test_probes_that_flood_or_leave_something_behind_hold_up_nobody(place: Site, command: str) -> None:
    options = ("--health-interval", "50ms", "--health-timeout", "200ms", "--health-retries", "1")
    box = place.box("--network", "none", "--health-cmd", command, *options)
    assert eventually(lambda: box.inspect()["State"]["Health"]["Status"] == "unhealthy")
    assert place.engine.api("GET", "/_ping").status == 200
    output = box.inspect()["State"]["Health"]["Log"][-1]["Output"]
    assert len(output) < 4500 and "timeout" in output
