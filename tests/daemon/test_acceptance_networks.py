"""Networks, ports and templates where Knarr once answered otherwise than Docker: found by the same command lines on both, side by side.

What takes `clean` passes on another engine too (KNARR_PEER_DOCKER_HOST); the rest is about Knarr's own client and its relays.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.test_cli import Knarr, eventually
from tests.lib.daemon import Daemon, Engine
from tests.lib.netns import free_port

OWN = "knarr-acceptance"
SUBNET = "10.213.21.0/24"


@pytest.fixture
def network(clean: Engine) -> Iterator[str]:
    reply = clean.api("POST", "/networks/create", {"Name": OWN, "IPAM": {"Config": [{"Subnet": SUBNET}]}})
    assert reply.status == 201, reply.body
    yield OWN
    for container in clean.api("GET", "/containers/json?all=1").json():
        if container["Names"][0].startswith(f"/{OWN}"):
            clean.api("DELETE", f"/containers/{container['Id']}?force=1&v=1")
    clean.api("DELETE", f"/networks/{OWN}")


def create(engine: Engine, name: str, mode: str, *command: str, config: dict[str, Any] | None = None, **host: Any) -> str:
    body = {"Image": "busybox", "Cmd": command or ["sleep", "1000"], "HostConfig": {"NetworkMode": mode, **host}, **(config or {})}
    reply = engine.api("POST", f"/containers/create?name={OWN}-{name}", body)
    assert reply.status == 201, reply.body
    return str(reply.json()["Id"])


def run(engine: Engine, name: str, mode: str, *command: str, config: dict[str, Any] | None = None, **host: Any) -> str:
    id = create(engine, name, mode, *command, config=config, **host)
    reply = engine.api("POST", f"/containers/{id}/start")
    assert reply.status == 204, reply.body
    return id


def output(engine: Engine, name: str, mode: str, *command: str, config: dict[str, Any] | None = None, **host: Any) -> str:
    id = run(engine, name, mode, *command, config={"Tty": True, **(config or {})}, **host)
    engine.api("POST", f"/containers/{id}/wait")
    return engine.api("GET", f"/containers/{id}/logs?stdout=1").body.decode()


def inspect(engine: Engine, id: str) -> dict[str, Any]:
    found: dict[str, Any] = engine.api("GET", f"/containers/{id}/json").json()
    return found


def change(engine: Engine, what: str, container: str, network: str = OWN, **more: Any) -> tuple[int, str]:
    reply = engine.api("POST", f"/networks/{network}/{what}", {"Container": container, **more})
    return reply.status, reply.json()["message"] if reply.status >= 400 else ""


# -- also on other engines


def test_a_restart_keeps_the_address(clean: Engine, network: str) -> None:
    ids = [run(clean, str(number), network, StopTimeout=0) for number in range(2)]
    for id in (ids[0], ids[0], ids[1]):
        before = inspect(clean, id)["NetworkSettings"]["Networks"][network]["IPAddress"]
        assert clean.api("POST", f"/containers/{id}/restart?t=0").status == 204
        assert inspect(clean, id)["NetworkSettings"]["Networks"][network]["IPAddress"] == before


def test_nothing_runs_in_a_configuration(clean: Engine) -> None:
    made = clean.api("POST", "/networks/create", {"Name": f"{OWN}-shape", "ConfigOnly": True, "IPAM": {"Config": [{"Subnet": SUBNET}]}})
    try:
        reply = clean.api("POST", f"/containers/{create(clean, 'shape', f'{OWN}-shape')}/start")
        assert (reply.status, reply.json()["message"]) == (403, "cannot create endpoint on configuration-only network")
    finally:
        clean.api("DELETE", f"/networks/{made.json()['Id']}")


@pytest.mark.parametrize(
    ("hostname", "domain", "line"), [("a.b.c", "", "a.b.c a"), ("a", "b.c", "a.b.c a"), ("a.b", "c", "a.b.c a"), ("a", "", "a")]
)
def test_a_host_name_with_a_domain_has_a_short_one(clean: Engine, hostname: str, domain: str, line: str) -> None:
    shown = output(clean, "name", "bridge", "tail", "-n1", "/etc/hosts", config={"Hostname": hostname, "Domainname": domain})
    assert shown.split("\t")[1].strip() == line


def test_who_shares_a_network_shares_its_name(clean: Engine) -> None:
    first = run(clean, "first", "bridge", config={"Hostname": "sharer"})
    shown = output(clean, "second", f"container:{first}", "sh", "-c", "hostname; echo $HOSTNAME; cat /etc/hostname")
    assert shown.split() == ["sharer"] * 3


def test_out_of_none_and_into_a_network(clean: Engine, network: str) -> None:
    id = run(clean, "none", "none")
    assert change(clean, "connect", id)[0] in (400, 403)
    assert change(clean, "disconnect", id, "none") == (200, "")
    assert inspect(clean, id)["NetworkSettings"]["Networks"] == {}
    assert change(clean, "connect", id) == (200, "")
    own = inspect(clean, id)["NetworkSettings"]["Networks"]
    assert list(own) == [network] and own[network]["IPAddress"].startswith("10.213.21.")
    assert ", 0% packet loss" in output(clean, "asks", network, "ping", "-c1", "-W30", f"{OWN}-none")
    assert clean.api("POST", f"/containers/{id}/restart?t=0").status == 204
    assert list(inspect(clean, id)["NetworkSettings"]["Networks"]) == [network]


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("mode", ["bridge", "none"])
def test_out_of_its_only_network_for_good(clean: Engine, network: str, mode: str, running: bool) -> None:
    id = (run if running else create)(clean, "moves", mode)
    assert change(clean, "disconnect", id, mode) == (200, "")
    assert inspect(clean, id)["NetworkSettings"]["Networks"] == {}
    assert change(clean, "connect", id, EndpointConfig={"IPAMConfig": {"IPv4Address": "10.213.21.9"}}) == (200, "")
    for _ in range(2):
        assert clean.api("POST", f"/containers/{id}/restart?t=0").status == 204
        found = inspect(clean, id)["NetworkSettings"]["Networks"]
        assert {name: one["IPAddress"] for name, one in found.items()} == {network: "10.213.21.9"}


def test_links_are_of_the_default_network(clean: Engine, network: str) -> None:
    run(clean, "else", network)
    run(clean, "peer", "bridge")
    refused = clean.api("POST", f"/containers/{create(clean, 'bad', 'bridge', Links=[f'{OWN}-else:x'])}/start")
    assert refused.json()["message"] == f"Cannot link to /{OWN}-else, as it does not belong to the default network"
    body = {"Image": "busybox", "HostConfig": {"Links": ["nobody:x"]}}
    reply = clean.api("POST", "/containers/create", body)
    assert (reply.status, reply.json()["message"]) == (400, "could not get container for nobody: No such container: nobody")
    later = run(clean, "later", network, Links=["nobody:x"])  # with names, a link may lead to what is not there yet
    assert inspect(clean, later)["HostConfig"]["Links"] is None
    id = run(clean, "links", "bridge", Links=[f"{OWN}-peer:p"])
    assert inspect(clean, id)["HostConfig"]["Links"] == [f"/{OWN}-peer:/{OWN}-links/p"]


def test_what_is_refused_of_connections(clean: Engine, network: str) -> None:
    shared = "container sharing network namespace with another container or host cannot be connected to any other network"
    first, host = run(clean, "first", "bridge"), run(clean, "host", "host")
    joined = run(clean, "joined", f"container:{first}")
    assert change(clean, "connect", host)[1] == shared
    assert change(clean, "connect", joined)[1] == shared
    assert change(clean, "disconnect", joined)[1] == f"container {joined} is not connected to network {network}"
    assert change(clean, "disconnect", "nobody", Force=True) == (404, "endpoint nobody not found")


def test_maps_are_shown_in_order(clean: Engine) -> None:
    id = create(clean, "maps", "none", config={"Labels": {"z": "1", "a": "2", "m": "3"}, "ExposedPorts": {"9/tcp": {}, "10/tcp": {}}})
    shown = inspect(clean, id)["Config"]
    assert list(shown["Labels"]) == ["a", "m", "z"] and list(shown["ExposedPorts"]) == ["10/tcp", "9/tcp"]


# -- Knarr's own


@pytest.fixture
def knarr(daemon: Daemon) -> Iterator[Knarr]:
    yield Knarr(daemon)
    daemon.remove_all()


def test_templates_over_what_the_daemon_leaves_out(knarr: Knarr) -> None:
    knarr("create", "--name", "plain", "--network", "none", "-v", "/tmp:/t", "busybox")
    form = "{{json .HostConfig.Mounts}} {{json .State.Health}} {{json .Config.Healthcheck}} "
    form += "[{{.Config.StopSignal}}{{(index .Mounts 0).Name}}]"
    assert knarr.out("inspect", "-f", form, "plain") == "null null null []"
    assert "Health" not in knarr.out("inspect", "-f", "{{json .State}}", "plain")
    assert knarr.out("inspect", "-f", '[{{index .Config.Labels "none"}}]', "plain") == "[]"
    assert b'map has no entry for key "Nope"' in knarr("inspect", "-f", "{{.State.Nope}}", "plain", check=False).stderr
    knarr("network", "create", "--subnet", SUBNET, OWN)
    try:
        assert knarr.out("network", "inspect", "-f", "{{range .IPAM.Config}}{{.Subnet}} [{{.IPRange}}]{{end}}", OWN) == f"{SUBNET} []"
    finally:
        knarr("network", "rm", OWN)
    assert knarr.out("info", "-f", "{{.DefaultAddressPools}}") == "[]"
    past = ("events", "--since", "10m", "--until", "0s", "--filter", "container=plain", "--format")
    assert knarr.out(*past, "{{.Scope}} {{.Status}} {{.From}} {{if .TimeNano}}timed{{end}}") == "local create busybox timed"


def test_a_detached_run_that_fails_still_says_whom_to_remove(knarr: Knarr) -> None:
    failed = knarr("run", "-d", "--network", "none", "busybox", "nosuchprogram", check=False)
    assert failed.returncode == 127
    assert knarr.out("rm", failed.stdout.decode().strip()) == failed.stdout.decode().strip()


def test_a_folder_on_a_file(knarr: Knarr, tmp_path: Path) -> None:
    failed = knarr("run", "--rm", "--network", "none", "-v", f"{tmp_path}:/etc/hosts", "busybox", check=False)
    assert failed.returncode == 125 and b"a directory over a file" in failed.stderr


def netd(daemon: Daemon) -> int | None:
    """The daemon's helper process, None while there is none; it works in the folder of its socket."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if comm.read_text() == "knarr-netd\n" and (comm.parent / "cwd").readlink() == daemon.exec_root:
                return int(comm.parent.name)
    return None


def test_a_port_is_had_again_before_its_relay_is_closed(daemon: Daemon) -> None:
    port = free_port()
    host = {"PortBindings": {"80/tcp": [{"HostIp": "::", "HostPort": str(port)}]}}
    first, second = run(daemon, "relayed", "bridge", **host), create(daemon, "relayed-again", "bridge", **host)
    eventually(lambda: netd(daemon))
    process = netd(daemon)
    assert process is not None
    os.kill(process, signal.SIGSTOP)
    wakes = threading.Timer(0.2, os.kill, (process, signal.SIGCONT))
    try:
        daemon.api("DELETE", f"/containers/{first}?force=1")
        wakes.start()
        reply = daemon.api("POST", f"/containers/{second}/start")
        assert reply.status == 204, reply.body
    finally:
        wakes.cancel()
        os.kill(process, signal.SIGCONT)
        daemon.remove_all()
    eventually(lambda: free(port))


def free(port: int) -> bool:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::", port))
        except OSError:
            return False
    return True
