"""Networks and servers that fail in every way, before a real registry: a pull ends in the right image or a clear error, nothing partial."""

from __future__ import annotations

import datetime
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import trio

from engine.config import Settings
from engine.errors import DiskFull, KnarrError
from engine.registry import retry, transport
from engine.registry.client import Registries
from engine.registry.rate import Rate
from engine.service import fetch
from engine.store.ingest import BLOCK, SUMS
from tests.lib.proxy import Fault, Proxy, always, calm, once, times
from tests.lib.pulling import Bench, folder, run
from tests.lib.registries import Certificates, DockerRegistry, Reply, Request, Scripted, Seeded, seed

BIG = 3 * BLOCK + 12345
Choice = Callable[[Request], Fault | None]


@pytest.fixture(scope="module")
def image(plain: DockerRegistry) -> Seeded:
    """Three layers: of more than a read, of one read, of next to nothing."""
    noise = random.Random(11).randbytes(BIG)
    return seed(plain, "faults/image", "v", files=[{"big": noise}, {"middle": noise[:200_000]}, {"small": b"x"}])


@pytest.fixture
def proxy(plain: DockerRegistry) -> Iterator[Proxy]:
    with Proxy(plain) as made:
        yield made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of waiting in hundredths."""
    monkeypatch.setattr(retry, "FIRST_DELAY", 0.005)


def soon(monkeypatch: pytest.MonkeyPatch, name: str, seconds: float = 2.0) -> None:
    """Where nothing comes it takes so long to see it; everywhere else a registry has all the time that a busy machine needs."""
    if "stall" in name:
        monkeypatch.setattr(transport, "READ_TIMEOUT", seconds)


def pulling(proxy: Proxy, work: Callable[[Bench], Any], **more: Any) -> None:
    registries = Registries(Settings(registry_config_dirs=["/nonexistent"], max_download_attempts=3))
    run(work, registry=registries, repository=f"{proxy.host}/faults/image", attempts=3, **more)


def digests(image: Seeded) -> list[str]:
    return [layer["digest"] for layer in image.manifest["layers"]]


def later() -> str:
    return format_datetime(datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=1), usegmt=True)


PASSING: dict[str, Callable[[], Choice]] = {
    "cut at once": lambda: once(Fault(cut=0)),
    "cut": lambda: once(Fault(cut=BLOCK + 5)),
    "cut again and again": lambda: times(2, Fault(cut=BLOCK // 2)),
    "reset": lambda: once(Fault(cut=BLOCK + 5, reset=True)),
    "stall": lambda: once(Fault(stall=BLOCK + 5)),
    "stall at once": lambda: once(Fault(stall=0)),
    "slow": lambda: once(Fault(rate=20e6)),
    "flip": lambda: once(Fault(flip=BLOCK + 17)),
    "flip in the head": lambda: once(Fault(flip=0)),
    "flip at the end": lambda: times(3, Fault(flip=BIG - 10)),
    "429": lambda: once(Fault(status=429)),
    "429 for a second": lambda: once(Fault(status=429, headers={"Retry-After": "1"})),
    "429 until a date": lambda: once(Fault(status=429, headers={"Retry-After": later()})),
    "500": lambda: once(Fault(status=500)),
    "502": lambda: times(2, Fault(status=502, body=b"<html>bad gateway</html>")),
    "503": lambda: once(Fault(status=503, headers={"Retry-After": "0"})),
    "empty answer": lambda: once(Fault(garbage=b"\r\n")),
    "too long a length": lambda: once(Fault(length=BIG + 5_000_000, cut=BLOCK)),
    "no ranges": lambda: always(Fault(whole=True)),
    "no ranges and a cut": lambda: once(Fault(whole=True, cut=2 * BLOCK)),
    "flip in the manifest": lambda: once(Fault(flip=20), "/manifests/"),
    "cut manifest": lambda: once(Fault(cut=10), "/manifests/"),
    "503 for the manifest": lambda: once(Fault(status=503), "/manifests/"),
    "503 for everything": lambda: times(2, Fault(status=503), "/"),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_ends_in_the_right_image(proxy: Proxy, image: Seeded, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy.begin(PASSING[name]())
    soon(monkeypatch, name)

    async def work(bench: Bench) -> None:
        if name == "too long a length":  # another size than the manifest's is no accident
            with pytest.raises(KnarrError, match="its descriptor says"):
                await bench.pull("v")
            assert not bench.has("v")
        proxy.stalled.clear()
        told = await bench.pull("v")
        assert bench.has("v")
        assert told[-1].startswith("Status: Downloaded newer image")
        assert bench.unfinished() == []
        assert bench.images.leases.holders() == {}

    pulling(proxy, work)
    if "flip" not in name and "ranges" not in name and "length" not in name:
        # Nothing comes twice; but a reset throws away what the kernel had and nobody had read.
        total = sum(layer["size"] for layer in image.manifest["layers"]) + len(image.config)
        assert total <= proxy.bytes <= total + (BLOCK if name == "reset" else 0)


LASTING: dict[str, tuple[Choice, str]] = {
    "cut at once": (always(Fault(cut=0)), "EOF|missing|without sending"),
    "stall": (always(Fault(stall=0)), "nothing came|time"),
    "flip": (always(Fault(flip=300)), "verification failed for digest|not the bytes of"),
    "429": (always(Fault(status=429)), "too many requests"),
    "429 for an hour": (always(Fault(status=429, headers={"Retry-After": "3600"})), "too many requests"),
    "500": (
        always(Fault(status=500, body=b'{"errors":[{"code":"UNKNOWN","message":"disk\\u001b[2J broken"}]}')),
        r"unknown: disk \[2J broken",
    ),
    "502": (always(Fault(status=502, body=b"<html>bad gateway</html>")), "502"),
    "404": (always(Fault(status=404, body=b"{}")), "not found"),
    "403": (always(Fault(status=403)), "denied"),
    "418": (always(Fault(status=418)), "418"),
    "short length": (always(Fault(length=1000)), "descriptor says"),
    "long length": (always(Fault(length=1 << 40)), "descriptor says"),
    "endless": (always(Fault(endless=True)), "more than"),
    "garbage": (always(Fault(garbage=b"\x00\xffSSH-2.0-OpenSSH\x1b[31m\r\n\r\n")), "Get|illegal|malformed"),
    "a redirect to itself": (always(Fault(status=307, headers={"Location": "?again"})), "redirects"),
    "a redirect to a file": (always(Fault(status=307, headers={"Location": "file:///etc/passwd"})), "not a web address"),
    "manifest of another digest": (always(Fault(flip=30), "/manifests/"), "manifest"),
    "manifest of 50 MB": (always(Fault(status=200, body=b" " * (50 << 20)), "/manifests/"), "longer than"),
    "manifest of nothing": (always(Fault(status=200, body=b"", headers={"Content-Type": "application/json"}), "/manifests/"), "manifest"),
}


@pytest.mark.parametrize("name", LASTING)
def test_what_lasts_is_told_and_leaves_nothing_visible(proxy: Proxy, image: Seeded, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, text = LASTING[name]
    proxy.begin(fault)

    async def work(bench: Bench) -> None:
        with monkeypatch.context() as impatient:
            soon(impatient, name, 0.4)
            with pytest.raises(KnarrError, match=text) as caught:
                await bench.pull("v")
        assert str(caught.value).isprintable()
        assert not bench.has("v")
        assert len(bench.images.store) == 0
        proxy.begin()
        await bench.pull("v")
        assert bench.has("v")
        assert bench.unfinished() == []
        assert bench.images.leases.holders() == {}

    pulling(proxy, work)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault(part="bytes 0-99/100"), "descriptor says|answered with bytes"),
        (Fault(part="bytes 5-10/*"), "answered with bytes"),
        (Fault(part="pages 1-2/3"), "not with which"),
        (Fault(status=416), "416"),
        (Fault(status=206, body=b"x" * 50), "not with which"),
    ],
)
def test_lies_about_the_part_that_is_sent(proxy: Proxy, image: Seeded, fault: Fault, text: str) -> None:
    """After a cut the rest is asked for, and something else is offered."""
    big = digests(image)[0]
    first = once(Fault(cut=BLOCK + 5), big)

    def choose(request: Request) -> Fault | None:
        if "range" in request.headers:
            return fault
        return first(request)

    proxy.begin(choose)

    async def work(bench: Bench) -> None:
        with pytest.raises(KnarrError, match=text):
            await bench.pull("v")
        assert not bench.has("v")
        proxy.begin()
        await bench.pull("v")
        assert bench.has("v")

    pulling(proxy, work)


def test_more_than_was_asked_for_is_not_read(proxy: Proxy, image: Seeded) -> None:
    proxy.begin(always(Fault(more=1_000_000)))

    async def work(bench: Bench) -> None:
        await bench.pull("v")
        assert bench.has("v")

    pulling(proxy, work)


@pytest.mark.parametrize("reset", [False, True])
def test_a_cut_under_tls(secure: DockerRegistry, certificates: Certificates, reset: bool) -> None:
    """With TLS an end without its notice is told apart from a proper one, by another error."""
    noise = random.Random(12).randbytes(BIG)
    # The proxy speaks TLS itself and asks a registry without.
    with DockerRegistry() as registry, Proxy(registry, tls=certificates) as proxy:
        seeded = seed(registry, "faults/image", "v", files=[{"big": noise}, {"small": b"x"}])
        proxy.begin(times(2, Fault(cut=BLOCK + 99, reset=reset)))
        registries = Registries(Settings(registry_config_dirs=["/nonexistent"], insecure_registries=[proxy.host], max_download_attempts=3))

        async def work(bench: Bench) -> None:
            await bench.pull("v")
            assert bench.has("v")

        run(work, registry=registries, repository=f"{proxy.host}/faults/image", attempts=3)
        total = sum(layer["size"] for layer in seeded.manifest["layers"]) + len(seeded.config)
        assert total <= proxy.bytes <= total + (BLOCK if reset else 0)


def test_nobody_there(proxy: Proxy, image: Seeded) -> None:
    proxy.refuse = True

    async def work(bench: Bench) -> None:
        with pytest.raises(KnarrError) as caught:
            await bench.pull("v")
        assert caught.value.status == 404  # as for an image that does not exist: clients go on then
        bench.nothing_left()

    pulling(proxy, work)


def test_gone_in_the_middle(proxy: Proxy, image: Seeded) -> None:
    """Once a layer was cut and is asked for again, each connection is refused; what came is kept for the next pull."""
    big = digests(image)[0]
    cut = once(Fault(cut=2 * BLOCK + 7), big)

    def choose(request: Request) -> Fault | None:
        fault = cut(request)
        proxy.refuse = proxy.refuse or (fault is None and big in request.target)
        return Fault(cut=0, reset=True) if proxy.refuse else fault

    proxy.begin(choose)

    async def work(bench: Bench) -> None:
        with pytest.raises(KnarrError, match=r"EOF|refused|reset"):
            await bench.pull("v")
        assert not bench.has("v")
        proxy.refuse = False
        proxy.begin()
        await bench.pull("v")
        assert bench.has("v")
        size = image.manifest["layers"][0]["size"]
        assert proxy.sent[big] == size - 2 * BLOCK - 7
        assert bench.unfinished() == []
        assert bench.images.leases.holders() == {}

    pulling(proxy, work)


def test_credentials_stay_when_blobs_are_elsewhere(image: Seeded, htpasswd: DockerRegistry) -> None:
    """The registry sends us to another host for its blobs, as those of the clouds do."""
    seeded = seed(htpasswd, "faults/image", "v", files=[{"big": random.Random(13).randbytes(BIG)}])
    blobs = {seeded.manifest["layers"][0]["digest"]: seeded.layers[0], seeded.manifest["config"]["digest"]: seeded.config}

    def store(request: Request) -> Reply:
        data = blobs[request.path.rpartition("/")[2]]
        if wanted := request.headers.get("range"):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            return Reply(206, {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}, data[start:])
        return Reply(200, {}, data, cut=BLOCK + 3 if len(data) > BLOCK else None)

    from engine.registry.auth import Credentials

    with Scripted(store, address="127.0.0.2") as elsewhere, Proxy(htpasswd) as proxy:

        def choose(request: Request) -> Fault | None:
            if "/blobs/" in request.target and "authorization" in request.headers:
                return Fault(status=307, headers={"Location": f"{elsewhere.url}/{request.target.rpartition('/')[2]}"})
            return None

        proxy.begin(choose)

        async def work(bench: Bench) -> None:
            await bench.pull("v", credentials=Credentials("alice", "correct horse"))
            assert bench.has("v")

        pulling(proxy, work)
        assert elsewhere.requests
        assert not [request for request in elsewhere.requests if "authorization" in request.headers]


# What is fetched twice


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges beside each other already for blobs of some mebibytes."""
    monkeypatch.setattr(fetch, "_LARGE", 2 * BLOCK)
    monkeypatch.setattr(fetch, "_RANGE", BLOCK)


@pytest.mark.usefixtures("small_ranges")
@pytest.mark.parametrize("name", ["cut", "no ranges", "flip", "500", "stall"])
def test_ranges_beside_each_other(proxy: Proxy, image: Seeded, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    big = digests(image)[0]
    soon(monkeypatch, name)
    proxy.begin(
        {
            "cut": times(3, Fault(cut=BLOCK // 3), big), "no ranges": always(Fault(whole=True)), "flip": times(2, Fault(flip=1000), big),
            "500": times(3, Fault(status=500), big), "stall": times(2, Fault(stall=1000), big),
        }[name]
    )  # fmt: skip

    async def work(bench: Bench) -> None:
        await bench.pull("v")
        assert bench.has("v")

    pulling(proxy, work)
    if name in ("cut", "500", "stall"):
        assert proxy.bytes == sum(layer["size"] for layer in image.manifest["layers"]) + len(image.config)


@pytest.mark.parametrize("ranges", [False, True])
def test_a_cancelled_pull_goes_on_after_a_restart(
    proxy: Proxy, image: Seeded, ranges: bool, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:  # fmt: skip
    """The client goes while the registry stalls; other stores on the same files are a daemon that was started again."""
    if ranges:
        request.getfixturevalue("small_ranges")
    big, *others = image.manifest["layers"]
    big = big["digest"]
    proxy.begin(lambda asked: Fault(stall=BLOCK // 2) if "bytes=0-" in asked.headers.get("range", "") else None)
    if not ranges:
        proxy.begin(once(Fault(stall=2 * BLOCK + 1000), big))
    with folder() as root:

        async def first(bench: Bench) -> None:
            sums = Path(bench.stores.layout.ingest, big.replace(":", "-") + SUMS)

            def arrived() -> bool:
                """The other layers are kept, and so is each block of the large one that was sent whole."""
                found = sums.read_bytes() if sums.exists() else b""
                blocks = sum(found[at : at + 4] != bytes(4) for at in range(0, len(found), 4))
                kept = all(bench.stores.content.exists(other["digest"], other["size"]) for other in others)
                return kept and blocks == (3 if ranges else 2)

            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def watch() -> None:
                        while not (proxy.stalled.is_set() and arrived()):  # noqa: ASYNC110
                            await trio.sleep(0.01)
                        scope.cancel()

                    nursery.start_soon(watch)
                    await bench.pull("v")
            assert scope.cancelled_caught
            assert not bench.has("v")

        pulling(proxy, first, root=root)
        before = proxy.sent.copy()
        assert before[big] >= 2 * BLOCK
        proxy.begin()

        async def again(bench: Bench) -> None:
            await bench.pull("v")
            assert bench.has("v")
            assert bench.unfinished() == []
            assert bench.images.leases.holders() == {}

        pulling(proxy, again, root=root)
    size = image.manifest["layers"][0]["size"]
    assert size <= before[big] + proxy.sent[big] < size + BLOCK
    assert all(proxy.sent[other["digest"]] == 0 for other in others)  # finished ones are kept whole


def test_two_clients_share_the_work(proxy: Proxy, image: Seeded) -> None:
    proxy.begin(always(Fault(rate=10e6)))

    async def work(bench: Bench) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(bench.pull, "v")
        assert bench.has("v")

    pulling(proxy, work)
    for layer in image.manifest["layers"]:
        assert proxy.sent[layer["digest"]] == layer["size"]


def test_a_limit_of_the_rate_is_kept(proxy: Proxy, image: Seeded) -> None:
    """By the bytes that came in the time that it took; how long that is does not matter."""
    total = sum(layer["size"] for layer in image.manifest["layers"])
    rate = 4_000_000

    async def work(bench: Bench) -> None:
        begin = trio.current_time()
        await bench.pull("v", limit_rate=rate)
        taken = trio.current_time() - begin
        assert bench.has("v")
        assert total / taken <= rate * 1.25

    pulling(proxy, work)
    assert Rate(rate).per_second == rate


def test_calm(proxy: Proxy, image: Seeded) -> None:
    """The proxy itself changes nothing."""
    proxy.begin(calm)

    async def work(bench: Bench) -> None:
        await bench.pull("v")
        assert bench.has("v")
        count = len(proxy.requests)
        await bench.pull("v")
        assert len(proxy.requests) == count + 1  # what the tag means

    pulling(proxy, work)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_disk_that_fills(proxy: Proxy, image: Seeded, small_disk: Path) -> None:
    """Told with a hint, and the room is given back: whatever else is on that disk needs it more than a pull that may come again."""

    async def work(bench: Bench) -> None:
        before = shutil.disk_usage(small_disk).used
        with pytest.raises(DiskFull, match=r"No space left on device \(free some space") as caught:
            await bench.pull("v")
        assert caught.value.status == 500
        bench.nothing_left()
        assert shutil.disk_usage(small_disk).used < before + 200_000  # the database's
        (small_disk / "data" / "x").write_bytes(b"x" * 1000)

    pulling(proxy, work, root=small_disk)
