"""Networks and containers changed by several clients at once, and a container that walks through networks: every answer is one that
Docker could give, and what the kernel has is what the engine says."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.chaos import networkwork
from tests.chaos.networkwork import Work
from tests.conftest import PEER
from tests.lib import busybox
from tests.lib.netns import eventually
from tests.lib.site import Site, site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
SEED = int(os.environ.get("KNARR_CHAOS_SEED", "0")) or random.randrange(1 << 30)


@pytest.fixture(scope="module")
def whole() -> Iterator[Site]:
    with site(peer=PEER) as made:
        yield made


@pytest.fixture
def place(whole: Site) -> Iterator[Site]:
    yield whole
    whole.clear()


def bridges(place: Site) -> set[str]:
    return {name for name in place.host.links() if name.startswith("br-")}


def at_once(work: Callable[[int], None], count: int) -> None:
    """In threads. Raises the first error of any."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except Exception as error:  # handed on below: a thread cannot raise into its parent
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_one_name_made_and_removed_by_four(place: Site) -> None:
    before = bridges(place)
    seen: Counter[tuple[str, int, str]] = Counter()

    def work(_: int) -> None:
        for _ in range(10):
            for method, target, body in (("POST", "/networks/create", {"Name": "contested"}), ("DELETE", "/networks/contested", None)):
                answer = place.engine.api(method, target, body)
                seen[method, answer.status, answer.message if answer.status >= 500 else ""] += 1

    at_once(work, 4)
    assert {(method, status) for method, status, _ in seen} <= {("POST", 201), ("POST", 409), ("DELETE", 204), ("DELETE", 404)}, seen
    assert [one for one in place.engine.api("GET", "/networks").json() if one["Name"] == "contested"] == []
    assert eventually(lambda: bridges(place) == before), bridges(place) - before


def test_many_networks_at_once(place: Site) -> None:
    before = bridges(place)
    names = [f"many{os.getpid()}-{number}" for number in range(8)]

    def make(number: int) -> None:
        made = place.engine.api("POST", "/networks/create", {"Name": names[number]})
        assert made.status == 201, made.body

    def remove(number: int) -> None:
        removed = place.engine.api("DELETE", f"/networks/{names[number]}")
        assert removed.status == 204, removed.body

    at_once(make, len(names))
    subnets = [one["IPAM"]["Config"][0]["Subnet"] for one in place.engine.api("GET", "/networks").json() if one["Name"] in names]
    assert len(set(subnets)) == len(names)
    at_once(remove, len(names))
    assert eventually(lambda: bridges(place) == before)


def test_any_order_of_any_requests(place: Site) -> None:
    print(f"KNARR_CHAOS_SEED={SEED}")
    before = bridges(place)
    networkwork.steady(place.engine)
    try:

        def work(number: int) -> None:
            client = Work(place.engine, random.Random(SEED + number))
            for _ in range(150 if place.knarr else 15):
                client.step()

        at_once(work, 4)
        assert networkwork.findings(place.engine) == []
    finally:
        networkwork.clear(place.engine)
    assert eventually(lambda: bridges(place) == before), bridges(place) - before
    networkwork.steady(place.engine)
    try:
        networkwork.all_addresses_are_free(place.engine)
    finally:
        networkwork.clear(place.engine)


def test_a_created_container_leaves_its_network_and_comes_back(place: Site) -> None:
    """docker-compose 1 does so before each start, to give the container its aliases."""
    network = place.network()
    body = {"Image": busybox.NAME, "Cmd": ["sleep", "1000"], "HostConfig": {"NetworkMode": network}}
    container = place.engine.api("POST", "/containers/create", body).json()["Id"]
    try:

        def networks() -> dict[str, dict[str, object]]:
            found: dict[str, dict[str, object]] = place.engine.api("GET", f"/containers/{container}/json").json()["NetworkSettings"][
                "Networks"
            ]
            return found

        assert place.engine.api("POST", f"/networks/{network}/disconnect", {"Container": container}).status == 200
        assert networks() == {}
        settings = {"Container": container, "EndpointConfig": {"Aliases": ["again"]}}
        assert place.engine.api("POST", f"/networks/{network}/connect", settings).status == 200
        assert place.engine.api("POST", f"/containers/{container}/start").status == 204
        assert list(networks()) == [network]
        assert "again" in (networks()[network]["Aliases"] or [])  # type: ignore[operator]
        assert networks()[network]["IPAddress"]
    finally:
        place.engine.docker("rm", "-f", container)


def test_a_container_walks_through_networks(place: Site) -> None:
    """After each step its links, addresses and its one default route are those that inspect tells of."""
    print(f"KNARR_CHAOS_SEED={SEED}")
    chance = random.Random(SEED)
    sealed = place.network("--internal")
    networks = ["bridge", place.network(), place.network(), sealed]
    box = place.box("--network", networks[1])
    told: list[str] = []
    on = {networks[1]}
    for _ in range(60 if place.knarr else 20):
        network = chance.choice(networks)
        verb = "disconnect" if network in on else "connect"
        told.append(f"{verb} {network}")
        answer = place.engine.api("POST", f"/networks/{network}/{verb}", {"Container": box.id})
        assert answer.status == 200, (answer.body, told)
        on ^= {network}
        shown = box.inspect()["NetworkSettings"]["Networks"]
        assert set(shown) == on, told
        addresses = box.host.ip("-4", "-o", "addr", "show")
        for name, settings in shown.items():
            assert f"inet {settings['IPAddress']}/" in addresses, (name, told)
        assert len(addresses.splitlines()) == len(on) + 1, (addresses, told)
        defaults = [line.split()[2] for line in box.host.ip("route").splitlines() if line.startswith("default")]
        gateways = {settings["Gateway"] for name, settings in shown.items() if name != sealed}
        assert len(defaults) == bool(gateways) and set(defaults) <= gateways, (defaults, told)
