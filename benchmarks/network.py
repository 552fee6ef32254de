"""`python -m benchmarks.network`: what a network costs a start, and how fast it is, beside a running dockerd. Needs root.

Knarr's daemon gets a network namespace of its own, as the dockerd of --docker-netns has one; traffic stays inside them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from benchmarks import report, svg
from benchmarks.client import ApiError, Client
from benchmarks.engines import build, timed
from benchmarks.measures import in_threads
from benchmarks.progress import Progress
from benchmarks.stats import Bar, Measurement, Series
from tests.lib import images, netns
from tests.lib.daemon import Daemon, docker_program
from tests.lib.netns import Namespace

IMAGE = "knarr-bench-network:latest"
NETWORK = "knarr-bench"
PORT = 5201  # of the sinks
RESOLVER = "127.0.0.11"
TRUE = ["/bin/true"]
HOLD = ["sleep", "100000"]
AT_EDGE = 10  # starts before, with and after a crowd

TITLES = {
    "start_none": ("start + wait, network none", "ms", "lower"),
    "start_bridge": ("start + wait, user-defined bridge and a published port", "ms", "lower"),
    "start_ratio": ("the second by the first", "×", "lower"),
    "docker_run": ("docker run --rm, default bridge", "ms", "lower"),
    "between": ("TCP, container to container", "Gbit/s", "higher"),
    "published": ("TCP, host to published port, host's address", "Gbit/s", "higher"),
    "loopback": ("TCP, host to published port, 127.0.0.1", "Gbit/s", "higher"),
    "dns_rate": ("DNS answers a second, 16 questions open", "1/s", "higher"),
    "dns_quiet": ("DNS p99, one question at a time", "µs", "lower"),
    "dns_busy": ("DNS p99 while 20 containers start", "µs", "lower"),
    "crowd_first": ("start on one network: the first of the crowd", "ms", "lower"),
    "crowd_last": ("start on one network: the last of the crowd", "ms", "lower"),
    "crowd_ratio": ("the last by the first", "×", "lower"),
}
BARS = (
    Bar("start + wait on a bridge with a port ≤ 1.4 × none", "start_bridge", "knarr", 1.4, "start_none", "knarr"),
    Bar("docker run --rm (bridge) ≤ 1/5 of dockerd's", "docker_run", "knarr", 1 / 5, "docker_run", "dockerd"),
    Bar("TCP container to container not below dockerd's", "between", "knarr", 1, "between", "dockerd"),
    Bar("TCP host to published port not below dockerd's", "published", "knarr", 1, "published", "dockerd"),
    Bar("TCP host's 127.0.0.1 to published port not below dockerd's", "loopback", "knarr", 1, "loopback", "dockerd"),
    Bar("DNS answers a second not below dockerd's", "dns_rate", "knarr", 1, "dns_rate", "dockerd"),
    Bar("DNS p99 while 20 start not above dockerd's", "dns_busy", "knarr", 1, "dns_busy", "dockerd"),
    Bar("start of the last on one network ≤ 1.5 × the first", "crowd_last", "knarr", 1.5, "crowd_first", "knarr"),
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-network", description=__doc__)
    parser.add_argument("--docker-host", default="", help="unix socket of a running dockerd to compare with")
    parser.add_argument("--docker-netns", default="", help="name of the network namespace that this dockerd lives in, if it is another one")
    parser.add_argument("--rounds", type=int, default=40, help="samples of the starts")
    parser.add_argument("--seconds", type=float, default=3, help="of each stream and of each round of questions")
    parser.add_argument("--crowd", type=int, default=200, help="containers on one network")
    parser.add_argument("--quick", action="store_true", help="a handful of samples: whether it works, not how fast it is")
    parser.add_argument("--only", default="", help="comma-separated: starts, run, tcp, dns, crowd")
    parser.add_argument("--engines", default="knarr,dockerd", help="comma-separated engines")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for network.json, .txt and .svg")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.crowd = 3, 0.3, 12
    return options


def layer() -> bytes:
    """busybox and the traffic program as one layer."""
    member, data = images.entry("traffic", data=build("traffic").read_bytes(), mode=0o755)
    out = BytesIO(images.busybox_layer())
    with tarfile.open(fileobj=out, mode="a") as tar:
        tar.addfile(member, BytesIO(data))
    return out.getvalue()


class Side:
    """An engine by its socket, and the network namespace that is its host."""

    def __init__(self, name: str, socket: str, host: Namespace) -> None:
        self.name, self.socket, self.host = name, socket, host
        self.client = Client(socket)
        self.made: list[str] = []
        answer = self.client.call("POST", "/images/load?quiet=1", images.docker_archive([layer()], [IMAGE]), kind="application/x-tar")
        assert b"errorDetail" not in answer, answer
        self.tidy()
        self.client.json("POST", "/networks/create", {"Name": NETWORK, "CheckDuplicate": True})

    def tidy(self) -> None:
        """Remove what an interrupted run left."""
        for container in self.client.json("GET", "/containers/json?all=1"):
            if container["Image"] in (IMAGE, IMAGE.removesuffix(":latest")):
                self.client.call("DELETE", f"/containers/{container['Id']}?force=1")
        self.client.call("DELETE", f"/networks/{NETWORK}", ok=(204, 404))

    def close(self) -> None:
        self.tidy()
        self.client.call("DELETE", f"/images/{IMAGE}?force=1")
        self.client.close()

    def create(
        self, command: list[str], *, network: str = NETWORK, port: bool = False, client: Client | None = None, name: str = ""
    ) -> str:
        config: dict[str, Any] = {"Image": IMAGE, "Cmd": command, "HostConfig": {"NetworkMode": network}}
        if port:
            config["ExposedPorts"] = {f"{PORT}/tcp": {}}
            config["HostConfig"]["PortBindings"] = {f"{PORT}/tcp": [{"HostIp": "", "HostPort": ""}]}
        query = f"?name={name}" if name else ""
        return str((client or self.client).json("POST", f"/containers/create{query}", config)["Id"])

    def start(self, container: str, client: Client | None = None) -> None:
        (client or self.client).call("POST", f"/containers/{container}/start")

    def wait(self, container: str, client: Client | None = None) -> None:
        answer = (client or self.client).json("POST", f"/containers/{container}/wait")
        assert answer["StatusCode"] == 0, (answer, self.logs(container))

    def remove(self, container: str, client: Client | None = None) -> None:
        (client or self.client).call("DELETE", f"/containers/{container}?force=1")

    def logs(self, container: str) -> str:
        """Everything it printed, without the frames' heads."""
        data, text = self.client.call("GET", f"/containers/{container}/logs?stdout=1&stderr=1"), b""
        while data:
            size = int.from_bytes(data[4:8], "big")
            text, data = text + data[8 : 8 + size], data[8 + size :]
        return text.decode()

    def start_and_wait(self, network: str, port: bool) -> float:
        """Milliseconds from the start request to the answer of wait, after 50 ms of quiet."""
        container = self.create(TRUE, network=network, port=port)
        time.sleep(0.05)
        began = time.monotonic()
        self.start(container)
        self.wait(container)
        taken = time.monotonic() - began
        self.remove(container)
        return taken * 1000

    def docker_run(self) -> float:
        time.sleep(0.05)
        environment = {**{k: v for k, v in os.environ.items() if not k.startswith("DOCKER_")}, "DOCKER_HOST": f"unix://{self.socket}"}
        return timed([docker_program(), "run", "--rm", IMAGE, *TRUE], environment)

    def output(self, *command: str) -> str:
        """What a container on the network prints, to its end."""
        container = self.create(list(command))
        self.start(container)
        self.wait(container)
        text = self.logs(container)
        self.remove(container)
        return text

    @contextmanager
    def running(self, command: list[str], *, port: bool = False, name: str = "") -> Iterator[dict[str, Any]]:
        """A container while the block runs; what inspect says of it."""
        container = self.create(command, port=port, name=name)
        self.start(container)
        try:
            yield self.client.json("GET", f"/containers/{container}/json")
        finally:
            self.remove(container)


class Session:
    """One run over the engines, in turns inside each measurement."""

    def __init__(self, options: argparse.Namespace, sides: list[Side]) -> None:
        self.options, self.sides = options, sides
        self.found = {key: Measurement(key, title, better=better) for key, (title, _, better) in TITLES.items()}
        self.skipped: list[str] = []
        self.progress = Progress()

    def add(self, key: str, side: Side, value: float) -> None:
        self.found[key].add(side.name, value, TITLES[key][1])

    def run(self) -> None:
        steps: dict[str, Callable[[Side], None]] = {
            "starts": self.starts, "run": self.runs, "tcp": self.streams, "dns": self.names, "crowd": self.crowd,
        }  # fmt: skip
        chosen = [name for name in self.options.only.split(",") if name] or list(steps)
        for number, name in enumerate(chosen):
            self.progress.stage(number, len(chosen), name)
            rounds = {"starts": self.options.rounds, "run": max(2, self.options.rounds // 2), "crowd": 1}.get(name, 3)
            for part in range(rounds):
                self.progress.part(part / rounds)
                for side in self.sides:
                    try:
                        steps[name](side)
                    except (ApiError, AssertionError, subprocess.CalledProcessError) as error:
                        raise RuntimeError(f"{side.name}: {name}: {error}") from error
        self.progress.done()

    def starts(self, side: Side) -> None:
        if not self.found["start_none"].series.get(side.name):
            side.start_and_wait("none", False)  # the first of a kind pays for caches
            side.start_and_wait(NETWORK, True)
        none, bridge = side.start_and_wait("none", False), side.start_and_wait(NETWORK, True)
        self.add("start_none", side, none)
        self.add("start_bridge", side, bridge)
        self.add("start_ratio", side, bridge / none)

    def runs(self, side: Side) -> None:
        if not self.found["docker_run"].series.get(side.name):
            side.docker_run()
        self.add("docker_run", side, side.docker_run())

    def streams(self, side: Side) -> None:
        seconds = str(self.options.seconds)
        with side.running(["/traffic", "sink", str(PORT)], port=True) as sink:
            network = sink["NetworkSettings"]["Networks"][NETWORK]
            published = sink["NetworkSettings"]["Ports"][f"{PORT}/tcp"][0]["HostPort"]
            self.add("between", side, gigabits(side.output("/traffic", "send", network["IPAddress"], str(PORT), seconds)))
            for key, address in (("published", network["Gateway"]), ("loopback", "127.0.0.1")):  # the gateway is an address of the host
                sent = side.host.run(str(build("traffic")), "send", address, published, seconds, timeout=60).stdout
                self.add(key, side, gigabits(sent))

    def names(self, side: Side) -> None:
        seconds = str(self.options.seconds)
        with side.running(HOLD, name="knarr-bench-target"):

            def ask(many: int, lasting: str) -> list[float]:
                numbers = [
                    float(word) for word in side.output("/traffic", "dns", RESOLVER, "knarr-bench-target", lasting, str(many)).split()
                ]
                few = max(2.0, numbers[0] * self.options.seconds / 100)  # on a busy machine one may be late
                assert numbers[4] <= few, f"{numbers[4]:.0f} questions without an answer"
                return numbers

            self.add("dns_rate", side, ask(16, seconds)[0])
            self.add("dns_quiet", side, ask(1, seconds)[2])
            self.add("dns_busy", side, self.while_starting(side, lambda: ask(1, str(float(seconds) + 2))[2]))

    @staticmethod
    def while_starting(side: Side, work: Callable[[], float]) -> float:
        """The result of `work` while 20 containers are started, all at once, again and again."""
        ending = threading.Event()
        client = Client(side.socket)
        crowd = [side.create(TRUE) for _ in range(20)]
        failed: list[BaseException] = []

        def start_all() -> None:
            queue = list(crowd)

            def one() -> None:
                own = Client(side.socket)
                container = queue.pop()
                side.start(container, own)
                side.wait(container, own)
                own.close()

            try:
                while not ending.is_set():
                    queue = list(crowd)
                    in_threads(one, len(crowd))
            except (ApiError, AssertionError, OSError) as error:
                failed.append(error)

        thread = threading.Thread(target=start_all)
        thread.start()
        try:
            return work()
        finally:
            ending.set()
            thread.join()
            for container in crowd:
                side.remove(container, client)
            client.close()
            if failed:
                raise failed[0]

    def crowd(self, side: Side) -> None:
        """Start requests timed by themselves, after 50 ms of quiet: with nobody else on the network before and after the crowd (so that a
        noisy minute does not look like its cost), and with all others there."""
        size = self.options.crowd

        def started(key: str, count: int) -> None:
            for _ in range(count):
                container = side.create(HOLD)
                time.sleep(0.05)
                began = time.monotonic()
                side.start(container)
                self.add(key, side, (time.monotonic() - began) * 1000)
                side.remove(container)

        started("crowd_first", AT_EDGE)
        crowd = []
        for number in range(size - 1):
            self.progress.part(number / size)
            crowd.append(side.create(HOLD))
            side.start(crowd[-1])
        started("crowd_last", 2 * AT_EDGE)
        for container in crowd:
            side.remove(container)
        started("crowd_first", AT_EDGE)
        first, last = (self.found[key].series[side.name].median for key in ("crowd_first", "crowd_last"))
        self.add("crowd_ratio", side, last / first)

    def text(self) -> str:
        head: list[tuple[str, ...]] = [("what", "engine", "median", "p99", "samples", "× knarr")]
        body = [row for measurement in self.found.values() for row in report.rows(measurement)]
        bars: list[tuple[str, ...]] = [("bar", "", "measured", "bound")]
        for bar in BARS:
            verdict, value = bar.verdict(self.found)
            bars.append((bar.text, verdict, "not measured" if value is None else f"{value:.3g}", f"{bar.factor:.3g}"))
        return f"{report.table([*head, *body])}\n\n{report.table(bars)}\n"

    def record(self) -> dict[str, Any]:
        def shown(one: Series) -> dict[str, Any]:
            return {"unit": one.unit, "median": one.median, "p99": one.p99, "samples": one.samples}

        measured = {key: {name: shown(one) for name, one in found.series.items()} for key, found in self.found.items() if found.series}
        return {"machine": report.machine(), "measurements": measured}

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        about = report.machine()
        subtitle = f"networks; kernel {about['kernel']}, {about['cpus']} processors, {about['memory_gib']} GiB"
        (folder / "network.json").write_text(json.dumps(self.record(), indent=1) + "\n")
        (folder / "network.txt").write_text(self.text())
        measured = {key: one for key, one in self.found.items() if one.series and not key.endswith("_ratio")}
        (folder / "network.svg").write_text(svg.plot(measured, [], subtitle))


def gigabits(text: str) -> float:
    return float(text) * 8 / 1e9


def sides(options: argparse.Namespace, stack: ExitStack) -> list[Side]:
    """The engines that were asked for, Knarr first."""
    found = []
    wanted = options.engines.split(",")
    if "knarr" in wanted:
        host = stack.enter_context(netns.made("knarr-bench"))
        daemon = Daemon()
        stack.callback(daemon.close)
        with host:
            daemon.start()
        found.append(Side("knarr", str(daemon.socket), host))
    if "dockerd" in wanted and options.docker_host:
        host = Namespace.named(options.docker_netns) if options.docker_netns else Namespace.here()
        stack.callback(host.close)
        found.append(Side("dockerd", options.docker_host.removeprefix("unix://"), host))
    for side in found:
        stack.callback(side.close)
    return found


def main() -> int:
    options = arguments()
    if os.geteuid() != 0:
        print("benchmarks: starting containers needs root", file=sys.stderr)
        return 1
    with ExitStack() as stack:
        session = Session(options, sides(options, stack))
        session.run()
    session.write(options.out)
    print(session.text())
    print(f"Written to {options.out}/network.json, network.txt and network.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
