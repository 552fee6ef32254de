"""Pulls by a whole daemon, and all that can end one: its client, its daemon, its network. What came is gone on with, nothing leaks."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.store.ingest import SUMS
from tests.lib import images
from tests.lib.daemon import Daemon, knarr_command
from tests.lib.leaks import Leaks
from tests.lib.proxy import Fault, Proxy, always, once
from tests.lib.registries import DockerRegistry, Request, digest_of
from tests.lib.registryimages import TAR, put_image, small

MIB = 1 << 20


def warm(daemon: Daemon, registry: DockerRegistry) -> Daemon:
    """Started, and with the files that a first pull and a first container make."""
    daemon.start()
    put_image(registry, "daemon/warm", "v", [images.busybox_layer()])
    name = f"{registry.host}/daemon/warm:v"
    daemon.docker("pull", name)
    runs(daemon, name)
    daemon.docker("rmi", name)
    return daemon


@pytest.fixture(scope="module")
def daemon(registry: DockerRegistry) -> Iterator[Daemon]:
    """Without any image. Few attempts, so that lasting trouble is told soon."""
    ours = Daemon("--max-download-attempts", "2")
    try:
        yield warm(ours, registry)
    finally:
        ours.close()


@pytest.fixture
def proxy(registry: DockerRegistry) -> Iterator[Proxy]:
    with Proxy(registry) as made:
        yield made


@pytest.fixture
def pulled(daemon: Daemon) -> Iterator[Daemon]:
    """The daemon; afterwards its images are removed, and then it must be as it was."""
    leaks = Leaks(daemon)
    yield daemon
    for image in daemon.api("GET", "/images/json").json():
        daemon.api("DELETE", f"/images/{image['Id']}?force=1")
    leaks.check()


def noise(size: int, seed: int = 1) -> bytes:
    """A layer with one file that cannot be packed."""
    return images.tar([images.entry("noise", data=random.Random(seed).randbytes(size))])


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def nothing_visible(daemon: Daemon, name: str) -> None:
    """Neither to those who list nor to those who run."""
    assert daemon.api("GET", "/images/json?all=1").json() == []
    answer = daemon.api("POST", "/containers/create", {"Image": name})
    assert (answer.status, answer.message) == (404, f"No such image: {name}")


def runs(daemon: Daemon, name: str) -> None:
    assert daemon.out("run", "--rm", "--network", "none", name, "echo", "right") == "right"


# Ends


@pytest.mark.parametrize("end", ["client", "SIGKILL", "SIGTERM"])
def test_a_pull_goes_on_where_it_was_ended(own_daemon: Callable[..., Daemon], proxy: Proxy, registry: DockerRegistry, end: str) -> None:
    """Counted in bytes: what came before is not fetched again, but for the last mebibyte that was not finished of each layer."""
    repository = f"daemon/{end.lower()}"
    layers = [images.busybox_layer(), noise(5 * MIB), noise(3 * MIB, 2)]
    put_image(registry, repository, "v", layers, kind=TAR, pack=lambda data: data)
    name = f"{proxy.host}/{repository}:v"
    digests = {digest_of(layer): layer for layer in layers}
    middle, last = digest_of(layers[1]), digest_of(layers[2])
    at = 3 * MIB + 1000
    proxy.begin(lambda request: Fault(stall=at) if middle in request.target else Fault(stall=1000) if last in request.target else None)
    daemon = warm(own_daemon(), registry)
    leaks = Leaks(daemon)
    client = daemon.docker_popen("pull", name)
    ingest = daemon.data_root / "content/ingest" / middle.replace(":", "-")
    # All that was sent has arrived, its finished blocks are known to be whole, and the first layer is in its place.
    sums = Path(f"{ingest}{SUMS}")
    until(lambda: sums.exists() and len(sums.read_bytes()) >= 12 and sums.read_bytes()[8:12] != bytes(4), "the layer does not come")
    until(lambda: (daemon.data_root / "content/blobs/sha256" / digest_of(layers[0])[7:]).exists(), "the first layer is not kept")
    until(lambda: proxy.sent[last] >= 1000, "the last layer does not come")
    nothing_visible(daemon, name)
    if end == "client":
        client.kill()
        client.communicate()
        until(lambda: not [request for request in os.listdir(f"/proc/{daemon.pid}/fd") if _is_ingest(daemon, request)], "the pull goes on")
    else:
        daemon.end(signal.Signals[end])
        assert client.wait(60) != 0
        client.communicate()
        proxy.drop()
        daemon.start()
    nothing_visible(daemon, name)
    before = proxy.sent.copy()
    proxy.begin()
    assert b"Downloaded newer image" in daemon.docker("pull", name).stdout
    runs(daemon, name)
    for digest, layer in digests.items():
        again = before[digest] + proxy.sent[digest] - len(layer)
        assert 0 <= again < MIB, (digest, before[digest], proxy.sent[digest])
    assert proxy.sent[digest_of(layers[0])] == 0
    assert os.listdir(daemon.data_root / "content/ingest") == []
    daemon.docker("rmi", name)
    if end == "client":
        leaks.check()


def _is_ingest(daemon: Daemon, number: str) -> bool:
    try:
        return "/content/ingest/" in os.readlink(f"/proc/{daemon.pid}/fd/{number}")
    except OSError:
        return False


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault(cut=0), "EOF|missing"),
        (Fault(status=503, body=b"<html>later</html>"), "503"),
        (Fault(status=429, headers={"Retry-After": "7200"}), "toomanyrequests"),
        (Fault(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'}), "no basic auth credentials"),
        (Fault(garbage=b"\x16\x03\x01 \x1b[31mred\r\n\r\n"), "Get"),
        (Fault(flip=20), "verification failed for digest|not the bytes of"),
    ],
)
def test_lasting_trouble_is_an_error_of_the_client(pulled: Daemon, proxy: Proxy, registry: DockerRegistry, fault: Fault, text: str) -> None:
    layer = noise(50_000)
    put_image(registry, "daemon/trouble", "v", [small("good"), layer], kind=TAR, pack=lambda data: data)
    proxy.begin(always(fault, digest_of(layer)))
    name = f"{proxy.host}/daemon/trouble:v"
    result = pulled.docker("pull", name, check=False)
    assert result.returncode == 1
    assert re.search(text, result.stderr.decode()), result.stderr
    assert result.stderr.decode().strip().isprintable()
    nothing_visible(pulled, name)
    proxy.begin()
    assert b"Downloaded newer image" in pulled.docker("pull", name).stdout
    assert proxy.sent[digest_of(small("good"))] == 0  # the layer that was good was kept


def test_two_clients_fetch_each_blob_once(pulled: Daemon, proxy: Proxy, registry: DockerRegistry) -> None:
    """Two names that share layers, each asked for twice; one of the clients goes in the middle."""
    shared, first, second = noise(2 * MIB, 5), noise(MIB, 6), small("second")
    for tag, layers in (("one", [shared, first]), ("two", [shared, second])):
        put_image(registry, "daemon/two", tag, layers, kind=TAR, pack=lambda data: data)
    asked = threading.Event()

    def choose(request: Request) -> Fault | None:
        """Nothing of a layer comes before all have asked for it."""
        if any(digest_of(layer) in request.target for layer in (shared, first, second)):
            asked.wait(60)
        return Fault(rate=2e6)

    proxy.begin(choose)
    name = f"{proxy.host}/daemon/two"
    clients = [pulled.docker_popen("pull", f"{name}:{tag}") for tag in ("one", "two", "one", "two", "one")]
    for client in clients:
        assert client.stdout is not None
        while b"Pulling fs layer" not in client.stdout.readline():
            assert client.poll() is None
    asked.set()
    until(lambda: proxy.bytes > MIB, "nothing comes")
    clients[0].kill()
    for client in clients[1:]:
        out, error = client.communicate(timeout=120)
        assert client.returncode == 0, (out, error)
    clients[0].communicate()
    for layer in (shared, first, second):
        assert proxy.sent[digest_of(layer)] == len(layer)


def test_our_own_client_limits_the_rate(pulled: Daemon, proxy: Proxy, registry: DockerRegistry) -> None:
    """The bytes that came, over the time that they took."""
    layer = noise(3 * MIB)
    put_image(registry, "daemon/rate", "v", [layer], kind=TAR, pack=lambda data: data)
    command = [*knarr_command(), "-H", f"unix://{pulled.socket}", "pull", "--limit-rate", "2MB", f"{proxy.host}/daemon/rate:v"]
    begin = time.monotonic()
    result = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=120)
    assert result.returncode == 0, result.stderr
    assert len(layer) / (time.monotonic() - begin) < 2_500_000


def test_memory_does_not_grow_with_a_layer(pulled: Daemon, registry: DockerRegistry) -> None:
    """Several times as large as what the daemon may take for it."""
    for number, size in enumerate((MIB, 192 * MIB)):
        tile = random.Random(9).randbytes(MIB)
        layer = images.tar([images.entry("tiles", data=tile * (size // MIB))])
        put_image(registry, "daemon/memory", str(number), [layer], kind=TAR, pack=lambda data: data)
        del layer
        Path(f"/proc/{pulled.pid}/clear_refs").write_text("5")  # the peak begins anew, proc(5)
        before = memory(pulled, "VmRSS")
        pulled.docker("pull", f"{registry.host}/daemon/memory:{number}", timeout=300)
    assert memory(pulled, "VmHWM") - before < 60 * MIB


def memory(daemon: Daemon, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{daemon.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


# Shapes


def test_as_many_layers_as_can_be_mounted(pulled: Daemon, registry: DockerRegistry) -> None:
    layers = [images.busybox_layer(), *(small(f"layer-{n}") for n in range(127))]
    name = f"{registry.host}/daemon/many"
    put_image(registry, "daemon/many", "128", layers)
    pulled.docker("pull", f"{name}:128", timeout=300)
    assert pulled.out("run", "--rm", "--network", "none", f"{name}:128", "cat", "layer-0", "layer-126") == "layer-0layer-126"
    put_image(registry, "daemon/many", "129", [*layers, small("one too many")])
    result = pulled.docker("pull", f"{name}:129", check=False, timeout=300)
    assert result.returncode == 1
    assert b"129 layers are more than the 128 that can be mounted" in result.stderr


def test_no_layers_and_empty_ones(pulled: Daemon, registry: DockerRegistry) -> None:
    name = f"{registry.host}/daemon/empty"
    put_image(registry, "daemon/empty", "none", [])
    put_image(registry, "daemon/empty", "some", [images.tar([]), images.busybox_layer(), *[images.tar([])] * 3, small("a"), images.tar([])])
    pulled.docker("pull", "-a", name)
    assert json.loads(pulled.out("image", "inspect", f"{name}:none"))[0]["RootFS"].get("Layers") in (None, [])
    assert pulled.out("run", "--rm", "--network", "none", f"{name}:some", "cat", "a") == "a"
    assert len(json.loads(pulled.out("image", "inspect", f"{name}:some"))[0]["RootFS"]["Layers"]) == 7


def test_a_blob_that_rots_is_fetched_again(own_daemon: Callable[..., Daemon], proxy: Proxy, registry: DockerRegistry) -> None:
    """By the next pull; the damaged one is kept beside it."""
    pulled = own_daemon().start()
    layer = noise(100_000)
    put_image(registry, "daemon/rot", "v", [small("a"), layer], kind=TAR, pack=lambda data: data)
    name = f"{proxy.host}/daemon/rot:v"
    pulled.docker("pull", name)
    blob = pulled.data_root / "content/blobs/sha256" / digest_of(layer)[7:]
    raw = bytearray(blob.read_bytes())
    blob.write_bytes(raw[:-1])  # cut by one byte
    proxy.begin()
    pulled.docker("pull", name)
    assert blob.read_bytes() == layer
    assert set(proxy.sent) == {digest_of(layer)}
    assert Path(f"{blob}.damaged").read_bytes() == raw[:-1]


def test_an_hour_of_waiting_is_no_answer(pulled: Daemon, proxy: Proxy, registry: DockerRegistry) -> None:
    put_image(registry, "daemon/later", "v", [small("a")])
    proxy.begin(once(Fault(status=429, headers={"Retry-After": "3600"}), "/blobs/"))
    result = pulled.docker("pull", f"{proxy.host}/daemon/later:v", check=False)
    assert result.returncode == 1
    assert b"toomanyrequests: too many requests" in result.stderr


def test_events_tell_of_it(pulled: Daemon, registry: DockerRegistry) -> None:
    put_image(registry, "daemon/event", "v", [small("a")])
    begin = pulled.out("info", "--format", "{{.SystemTime}}")
    pulled.docker("pull", f"{registry.host}/daemon/event:v")
    end = pulled.out("info", "--format", "{{.SystemTime}}")
    told: list[dict[str, Any]] = [
        json.loads(line) for line in pulled.out("events", "--since", begin, "--until", end, "--format", "json").splitlines()
    ]
    assert [(one["Action"], one["Actor"]["ID"], one["Actor"]["Attributes"]["name"]) for one in told] == [
        ("pull", f"{registry.host}/daemon/event:v", f"{registry.host}/daemon/event")
    ]
