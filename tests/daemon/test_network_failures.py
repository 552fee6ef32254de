"""What networks are like after something went wrong: links and tables removed by others, changes that fail halfway, files that are damaged,
daemons that were killed at the worst moment, a host that was switched off."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.test_races import Later
from tests.lib import busybox, reboot
from tests.lib.daemon import Daemon
from tests.lib.leaks import elements, network_tag
from tests.lib.netns import Echo, Namespace, eventually
from tests.lib.site import CLIENT, HOST, Box, Site, site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.fixture
def place() -> Iterator[Site]:
    """At the end nothing may be left of networks and containers but what is made ahead."""
    with site() as made:
        yield made
        daemon = daemon_of(made)
        if daemon.process is None:  # the test failed
            with made.host:
                daemon.start()
        made.clear()
        assert "Traceback" not in daemon.log.read_text(), daemon.log_tail()
        assert eventually(lambda: not {name for name in made.host.links() if name.startswith("br-")}), made.host.links()
        assert eventually(lambda: not any(daemon.api("GET", "/containers/json").json())), daemon.log_tail()
        bundles = daemon.exec_root / "bundles"
        assert eventually(lambda: not list(bundles.iterdir())), list(bundles.iterdir())
        assert eventually(lambda: not any("veth" in one or "map" in one for one in elements(daemon))), elements(daemon)


def daemon_of(place: Site) -> Daemon:
    assert isinstance(place.engine, Daemon)
    return place.engine


def again(place: Site, number: int = signal.SIGKILL) -> None:
    daemon_of(place).end(number)
    with place.host:
        daemon_of(place).start()


def bridge_of(place: Site, network: str) -> str:
    return f"br-{place.engine.out('network', 'inspect', '-f', '{{.Id}}', network)[:12]}"


def bundle(place: Site, box: Box) -> Path:
    return daemon_of(place).exec_root / "bundles" / box.id


def created(place: Site, host: dict[str, Any], endpoints: dict[str, Any] | None = None) -> str:
    body: dict[str, Any] = {"Image": busybox.NAME, "Cmd": ["sleep", "100000"], "HostConfig": host}
    if endpoints is not None:
        body["NetworkingConfig"] = {"EndpointsConfig": endpoints}
    answer = place.engine.api("POST", "/containers/create", body)
    assert answer.status == 201, answer.body
    return str(answer.json()["Id"])


def state(place: Site, container: str) -> dict[str, Any]:
    found: dict[str, Any] = place.engine.api("GET", f"/containers/{container}/json").json()["State"]
    return found


@contextmanager
def firewall_out_of_reach(place: Site) -> Iterator[None]:
    """The daemon's table belongs to another process: every change of it is refused."""
    tables = [f"{family} {network_tag(daemon_of(place))}" for family in ("inet", "bridge")]
    script = "".join(f"add table {table}\ndelete table {table}\nadd table {table} {{ flags owner; }}\n" for table in tables)
    with place.host:
        other = subprocess.Popen(["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdin is not None and other.stdout is not None
    try:
        other.stdin.write(f"{script}list tables\n")
        other.stdin.flush()
        while not (line := other.stdout.readline()).startswith(f"table {tables[-1]}"):
            assert line, "nft ended"
        yield
    finally:
        other.stdin.close()
        other.wait(60)


def test_a_bridge_that_somebody_deleted_is_made_again(place: Site) -> None:
    network = place.network()
    first = place.box("--network", network)
    place.host.ip("link", "del", bridge_of(place, network))
    second = place.box("--network", network)
    with Echo(first.host, 80), Echo(second.host, 80):
        assert second.host.reaches(first.ip(), 80)
        assert first.host.reaches(second.ip(), 80)


def test_a_bridge_keeps_its_address(place: Site) -> None:
    """Containers know it as their gateway's; ports that come and go must not change it."""
    network = place.network()

    def address() -> str:
        return str(json.loads(place.host.ip("-j", "link", "show", bridge_of(place, network)))[0]["address"])

    found = address()
    for _ in range(3):
        place.box("--network", network)
        assert address() == found
    again(place)
    place.box("--network", network)
    place.host.ip("link", "del", bridge_of(place, network))
    place.box("--network", network)
    assert address() == found


def test_a_bridge_that_was_deleted_while_the_daemon_was_dead(place: Site) -> None:
    network = place.network()
    first, second = place.box("--network", network), place.box("--network", network)
    bridge = bridge_of(place, network)
    daemon_of(place).kill()
    place.host.ip("link", "del", bridge)
    with place.host:
        daemon_of(place).start()
    with Echo(first.host, 80):
        assert second.host.reaches(first.ip(), 80)


def test_tables_that_somebody_deleted_are_made_again(place: Site) -> None:
    network = place.network()
    first = place.box("--network", network, "-p", "8080:80")
    place.host.run("nft", "delete", "table", "inet", network_tag(daemon_of(place)))
    second = place.box("--network", network, "-p", "8081:80")
    with Echo(first.host, 80), Echo(second.host, 80):
        assert place.client.reaches(HOST, 8080)
        assert place.client.reaches(HOST, 8081)


@pytest.mark.parametrize("obstacle", ["file", "firewall"])
def test_a_connect_that_fails_leaves_nothing(place: Site, obstacle: str) -> None:
    first, second = place.network(), place.network("--subnet", "10.252.0.0/30")  # room for one
    box = place.box("--network", first)
    links, routes = box.host.links(), box.host.ip("route")
    before = json.loads(place.engine.out("inspect", box.id))[0]["NetworkSettings"]
    if obstacle == "file":
        (bundle(place, box) / ".network.json").mkdir()
        refused = place.engine.api("POST", f"/networks/{second}/connect", {"Container": box.id})
        (bundle(place, box) / ".network.json").rmdir()
    else:
        with firewall_out_of_reach(place):
            refused = place.engine.api("POST", f"/networks/{second}/connect", {"Container": box.id})
    assert refused.status == 500, refused.body
    assert eventually(lambda: box.host.links() == links), box.host.links() - links
    assert box.host.ip("route") == routes
    assert box.inspect()["NetworkSettings"] == before
    assert place.engine.api("POST", f"/networks/{second}/connect", {"Container": box.id}).status == 200
    assert box.ip(second) == "10.252.0.2"
    assert f"{box.ip(second)}/30" in box.host.ip("addr")


def test_a_disconnect_that_fails_can_be_repeated(place: Site) -> None:
    first, second = place.network(), place.network()
    box = place.box("--network", first)
    place.engine.docker("network", "connect", second, box.id)
    (bundle(place, box) / ".network.json").mkdir()
    assert place.engine.api("POST", f"/networks/{second}/disconnect", {"Container": box.id}).status == 500
    (bundle(place, box) / ".network.json").rmdir()
    assert place.engine.api("POST", f"/networks/{second}/disconnect", {"Container": box.id}).status == 200
    assert set(box.inspect()["NetworkSettings"]["Networks"]) == {first}
    assert place.engine.api("DELETE", f"/networks/{second}").status == 204
    place.networks.remove(second)


def test_ports_that_cannot_be_published_stay_free(place: Site) -> None:
    box = place.box("--network", place.network())
    with firewall_out_of_reach(place):
        body = {"PortBindings": {"80/tcp": [{"HostPort": "8090"}]}}
        assert place.engine.api("POST", f"/containers/{box.id}/ports", body).status >= 400
    other = place.box("-p", "8090:80")
    with Echo(other.host, 80):
        assert place.client.reaches(HOST, 8090)


def test_a_start_that_the_firewall_refuses_leaves_nothing(place: Site) -> None:
    network = place.network("--subnet", "10.252.0.0/30")
    container = created(place, {"NetworkMode": network, "PortBindings": {"80/tcp": [{"HostPort": "8091"}]}})
    with firewall_out_of_reach(place):
        refused = place.engine.api("POST", f"/containers/{container}/start")
    assert refused.status == 500, refused.body
    assert not state(place, container)["Running"]
    box = place.box("--network", network, "-p", "8091:80")
    assert box.ip() == "10.252.0.2"
    place.engine.docker("rm", container)


def test_volumes_and_containers_of_a_start_that_its_network_refused(place: Site) -> None:
    options = {"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}
    assert place.engine.api("POST", "/volumes/create", {"Name": "scratch", "DriverOpts": options}).status == 201
    network = place.network()
    kept = created(place, {"NetworkMode": network, "Binds": ["scratch:/scratch"]})
    thrown_away = created(place, {"NetworkMode": network, "Binds": ["scratch:/scratch"], "AutoRemove": True})
    place.engine.docker("network", "rm", place.networks.pop())
    for container in (kept, thrown_away):
        assert place.engine.api("POST", f"/containers/{container}/start").status == 404
    assert place.engine.api("GET", f"/containers/{thrown_away}/json").status == 404
    assert eventually(lambda: str(daemon_of(place).data_root) not in Path("/proc/self/mountinfo").read_text())
    assert place.engine.api("DELETE", f"/containers/{kept}").status == 204
    assert place.engine.api("DELETE", "/volumes/scratch").status == 204


def test_a_restart_that_the_firewall_refuses_is_tried_again(place: Site) -> None:
    network = place.network()
    box = place.box("--network", network, "--restart", "always")
    with firewall_out_of_reach(place):
        os.kill(box.pid, signal.SIGKILL)
        assert eventually(lambda: box.inspect()["RestartCount"] > 1)
    assert eventually(lambda: state(place, box.id)["Status"] == "running"), state(place, box.id)
    assert box.ip()


def test_a_daemon_starts_where_the_firewall_refuses_everything(place: Site) -> None:
    network = place.network()
    first, second = place.box("--network", network, "--name", "first"), place.box("--network", network)
    daemon_of(place).kill()
    with firewall_out_of_reach(place), place.host:
        daemon_of(place).start()
    assert first.ip() != second.ip()
    assert first.ip() in place.engine.out("exec", second.id, "nslookup", "first", "127.0.0.11")


@pytest.mark.parametrize("text", ["{", None])
def test_a_damaged_note_of_a_containers_network(place: Site, text: str | None) -> None:
    box = place.box("--network", place.network())
    daemon_of(place).kill()
    (bundle(place, box) / "network.json").unlink()
    if text is not None:
        (bundle(place, box) / "network.json").write_text(text)
    with place.host:
        daemon_of(place).start()
    assert state(place, box.id)["Running"]
    assert "eth0" in box.host.links()
    assert place.engine.api("POST", f"/containers/{box.id}/restart?t=0").status == 204
    assert box.ip()


def test_a_network_whose_row_is_gone(place: Site) -> None:
    kept, lost = place.network(), place.network()
    box = place.box("--network", kept)
    place.engine.docker("network", "connect", lost, box.id)
    link = bridge_of(place, lost)
    identifier = place.engine.out("network", "inspect", "-f", "{{.Id}}", lost)
    daemon_of(place).kill()
    with sqlite3.connect(daemon_of(place).data_root / "meta.db") as db:
        db.execute("DELETE FROM networks WHERE id = ?", (identifier,))
    db.close()
    place.networks.remove(lost)
    with place.host:
        daemon_of(place).start()
    try:
        assert box.ip(kept)
        assert place.engine.api("POST", f"/containers/{box.id}/rename?name=renamed{os.getpid()}").status == 204
        assert place.engine.api("POST", f"/networks/{kept}/disconnect", {"Container": box.id}).status == 200
        assert place.engine.api("POST", f"/containers/{box.id}/stop?t=0").status == 204
        assert place.engine.api("POST", f"/containers/{box.id}/start").status == 404
    finally:
        place.host.ip("link", "del", link)


def test_a_link_that_a_killed_connect_left(place: Site) -> None:
    """Its address is not known to anyone, and would be given to the next container."""
    network = place.network()
    box, other = place.box(), place.box("--network", network)
    address = other.ip().rpartition(".")[0] + ".3"
    fd = f"/proc/{os.getpid()}/fd/{box.host.fd}"
    place.host.ip("link", "add", "veth0123456", "type", "veth", "peer", "name", "eth1", "netns", fd)
    place.host.ip("link", "set", "veth0123456", "master", bridge_of(place, network), "up")
    box.host.ip("addr", "add", f"{address}/16", "dev", "eth1")
    box.host.ip("link", "set", "eth1", "up")
    again(place)
    third = place.box("--network", network)
    assert third.ip() == address
    assert "eth1" not in box.host.links()
    place.engine.docker("network", "connect", network, box.id)
    with Echo(third.host, 80):
        assert box.host.reaches(address, 80)


def test_connected_by_a_killed_daemon_that_had_not_stored_it(place: Site) -> None:
    network = place.network()
    box = place.box()
    place.engine.docker("network", "connect", network, box.id)
    daemon_of(place).kill()
    with sqlite3.connect(daemon_of(place).data_root / "meta.db") as db:
        (raw,) = db.execute("SELECT record FROM containers WHERE id = ?", (box.id,)).fetchone()
        record = json.loads(raw)
        record["networking"] = {}
        db.execute("UPDATE containers SET record = ? WHERE id = ?", (json.dumps(record).encode(), box.id))
    db.close()
    with place.host:
        daemon_of(place).start()
    assert place.engine.api("POST", f"/networks/{network}/disconnect", {"Container": box.id}).status == 200
    assert "eth1" not in box.host.links()


def test_networks_removed_while_containers_start_on_them(place: Site) -> None:
    networks = [place.network() for _ in range(8)]
    bridges = {bridge_of(place, network) for network in networks}
    containers = [created(place, {"NetworkMode": network}) for network in networks]
    again(place)  # so that the start has to look for the bridge
    answers: dict[str, tuple[int, int]] = {}

    def work(network: str, container: str) -> None:
        removed: list[int] = []
        removal = threading.Thread(target=lambda: removed.append(place.engine.api("DELETE", f"/networks/{network}").status))
        removal.start()
        started = place.engine.api("POST", f"/containers/{container}/start").status
        removal.join()
        answers[network] = started, removed[0]

    threads = [threading.Thread(target=work, args=pair) for pair in zip(networks, containers, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers.values()) <= {(204, 403), (404, 204)}, answers
    place.engine.docker("rm", "-f", *containers)
    gone = {network for network, (_, removed) in answers.items() if removed == 204}
    place.networks[:] = [network for network in place.networks if network not in gone]
    place.clear()
    assert eventually(lambda: not bridges & place.host.links()), bridges & place.host.links()


def test_renamed_while_it_starts(place: Site) -> None:
    network = place.network()
    asks = place.box("--network", network)
    for number in range(4):
        container = created(place, {"NetworkMode": network})
        name = f"late{os.getpid()}-{number}"
        start = threading.Thread(target=place.engine.api, args=("POST", f"/containers/{container}/start"))
        start.start()
        assert place.engine.api("POST", f"/containers/{container}/rename?name={name}").status == 204
        start.join()
        assert state(place, container)["Running"]
        shown = place.engine.api("GET", f"/containers/{container}/json").json()["NetworkSettings"]["Networks"][network]
        assert shown["IPAddress"] in place.engine.out("exec", asks.id, "nslookup", name, "127.0.0.11")
        place.engine.docker("rm", "-f", container)


def test_a_container_that_ends_while_it_is_connected(place: Site) -> None:
    networks = [place.network() for _ in range(3)]
    for delay in range(6):
        box = place.box("--network", networks[0])
        calls = [Later(daemon_of(place), "POST", f"/networks/{network}/connect", {"Container": box.id}) for network in networks[1:]]
        calls.insert(delay % 3, Later(daemon_of(place), "POST", f"/containers/{box.id}/kill"))
        assert sorted(call.result().status for call in calls) == [200, 200, 204]
        place.remove(box)
    for network in networks:
        assert json.loads(place.engine.out("network", "inspect", network))[0]["Containers"] == {}


def test_a_joined_namespace(place: Site) -> None:
    network = place.network()
    owner = place.box("--network", network, "--hostname", "owner")
    first = place.box("--network", f"container:{owner.id}")
    second = place.box("--network", f"container:{first.id}")
    for box in (first, second):
        assert place.engine.out("exec", box.id, "hostname") == "owner"
        assert f"{owner.ip()}\towner" in place.engine.out("exec", box.id, "cat", "/etc/hosts")
        assert "127.0.0.11" in place.engine.out("exec", box.id, "cat", "/etc/resolv.conf")
    place.engine.docker("restart", "-t", "0", owner.id)
    place.engine.docker("restart", "-t", "0", first.id)
    with Namespace.of(owner.inspect()["State"]["Pid"]) as now:
        inside = os.stat("/proc/thread-self/ns/net").st_ino
    now.close()
    assert os.stat(f"/proc/{first.inspect()['State']['Pid']}/ns/net").st_ino == inside
    place.engine.docker("stop", "-t", "0", owner.id)
    refused = place.engine.api("POST", f"/containers/{first.id}/restart?t=0")
    assert refused.status == 409, refused.body


def test_macvlan_first_and_a_bridge_second(place: Site) -> None:
    bridged = place.network()
    direct = place.network("-d", "macvlan", "-o", f"parent={place.cable[0]}", "--subnet", "198.51.100.0/24", "--gateway", "198.51.100.2",
                           "--ip-range", "198.51.100.128/25")  # fmt: skip
    container = created(place, {"NetworkMode": direct}, {direct: {}, bridged: {}})
    started = place.engine.api("POST", f"/containers/{container}/start")
    assert started.status == 204, started.body
    box = Box(place, container)
    place.boxes.append(box)
    addresses = box.host.ip("-4", "-o", "addr")
    assert box.ip(direct) in addresses and box.ip(bridged) in addresses


def test_a_host_that_was_switched_off(place: Site) -> None:
    fixed, other = place.network("--subnet", "10.253.0.0/24"), place.network()
    box = place.box("--network", fixed, "--ip", "10.253.0.77", "--restart", "always", "--name", "fixed", "-p", "8092:80")
    place.engine.docker("network", "connect", other, box.id)
    joined = place.box("--network", f"container:{box.id}", "--restart", "always")
    gone = place.box("--network", other)
    before = box.inspect()["NetworkSettings"]["Networks"]
    daemon = daemon_of(place)
    assert eventually(lambda: [one.get("status") for one in reboot.stored(daemon).values()] == ["running"] * 3)
    reboot.switch_off(daemon)
    for name in place.host.links():
        if name.startswith(("br-", "knarr")):
            place.host.ip("link", "del", name)
    place.host.run("nft", "flush", "ruleset")
    with place.host:
        daemon.start()
    assert eventually(lambda: state(place, box.id)["Pid"] and state(place, joined.id)["Pid"]), daemon.log_tail()
    place.boxes[:] = [Box(place, one.id) if one is not gone else one for one in place.boxes]
    box = place.boxes[0]
    after = box.inspect()["NetworkSettings"]["Networks"]
    assert {name: shown["NetworkID"] for name, shown in after.items()} == {name: shown["NetworkID"] for name, shown in before.items()}
    assert box.ip(fixed) == "10.253.0.77"
    assert not state(place, gone.id)["Running"]
    assert place.engine.api("POST", f"/containers/{gone.id}/start").status == 204
    place.boxes[2] = gone = Box(place, gone.id)
    with Echo(box.host, 80):
        assert place.client.reaches(HOST, 8092)
        assert gone.host.reaches(box.ip(other), 80)
    assert os.stat(f"/proc/{place.boxes[1].pid}/ns/net").st_ino == os.stat(f"/proc/{box.pid}/ns/net").st_ino


def test_two_daemons_on_one_host(place: Site, own_daemon: Callable[..., Daemon]) -> None:
    """Neither makes links before it needs them, so neither sees what the other has chosen for its default bridge."""
    other = own_daemon()
    with place.host:
        other.start()
    busybox.load(other)
    box = place.box("-p", "8080:80")
    guest = other.out("run", "-d", "-p", "8081:80", busybox.NAME, "sleep", "1000")
    shown = other.api("GET", f"/containers/{guest}/json").json()
    network = other.api("GET", "/networks/bridge").json()["IPAM"]["Config"][0]
    assert network["Subnet"] != place.engine.api("GET", "/networks/bridge").json()["IPAM"]["Config"][0]["Subnet"]
    assert shown["NetworkSettings"]["Networks"]["bridge"]["Gateway"] == network["Gateway"]
    inside = Namespace.of(shown["State"]["Pid"])
    try:
        with Echo(box.host, 80), Echo(inside, 80), Echo(place.client, 9000):
            assert place.client.reaches(HOST, 8080)
            assert place.client.reaches(HOST, 8081)
            assert box.host.reaches(CLIENT, 9000)
            assert inside.reaches(CLIENT, 9000)
            assert inside.kept_from(box.ip(), 80)
            daemon_of(place).stop()
            assert inside.reaches(CLIENT, 9000)
            other.stop()
            assert box.host.reaches(CLIENT, 9000)
    finally:
        inside.close()
        with place.host:
            for daemon in (daemon_of(place), other):
                if daemon.process is None:
                    daemon.start()
        other.remove_all()
        other.stop()
