"""What is measured, and how often. Engines take turns inside every measurement, so that a noisy minute hits them all."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks import memory
from benchmarks.client import Client
from benchmarks.engines import TRUE, ApiEngine
from benchmarks.floor import Floor
from benchmarks.progress import Progress
from benchmarks.stats import Bar, Measurement

BARS = [
    Bar("start+wait ≤ 2.5 × the bare system calls to exit", "start_wait", "knarr", 2.5, "floor_exit", "floor"),
    Bar("start+wait below `crun run`", "start_wait", "knarr", 1.0, "runtime_run", "crun"),
    Bar("create+start+wait+delete ≤ 4 × the bare system calls to exit", "lifecycle", "knarr", 4.0, "floor_exit", "floor"),
    Bar("create+start+wait+delete ≤ 1/20 of dockerd's", "lifecycle", "knarr", 1 / 20, "lifecycle", "dockerd"),
    Bar("the launch itself, to exec ≤ 1.5 × the bare system calls", "launch", "knarr", 1.5, "floor_exec", "floor"),
    Bar("100 lifecycles, 20 at a time ≥ 20 × dockerd's rate", "burst", "knarr", 20, "burst", "dockerd"),
    Bar("`docker run --rm` against Knarr ≤ 1/3 of the same against dockerd", "docker_run", "knarr", 1 / 3, "docker_run", "dockerd"),
    Bar("`knarr run --rm` ≤ 1/4 of `docker run` against dockerd", "knarr_run", "knarr", 1 / 4, "docker_run", "dockerd"),
    Bar("exec through the API ≤ 1/10 of dockerd's", "exec", "knarr", 1 / 10, "exec", "dockerd"),
    Bar("idle memory ≤ 1/3 of dockerd + containerd", "idle_memory", "knarr", 1 / 3, "idle_memory", "dockerd"),
    Bar("memory per running container ≤ 0.7 MB", "container_memory", "knarr", 0.7, "", None),
    Bar("daemon start to first answer ≤ 1/2 of dockerd's", "daemon_start", "knarr", 1 / 2, "daemon_start", "dockerd"),
]  # fmt: skip

# key: (title, method of an engine, weight in rounds)
SAMPLED: dict[str, tuple[str, str, float]] = {
    "start_wait": ("start + wait, warm connection", "start_and_wait", 1),
    "first_instruction": ("start request to first instruction", "to_first_instruction", 1),
    "lifecycle": ("create + start + wait + delete", "timed_lifecycle", 1),
    "exec": ("exec through the API", "exec", 1),
    "runtime_run": ("runtime alone: run", "runtime_run", 1),
    "podman_run": ("podman run --rm", "podman_run", 0.5),
    "docker_run": ("docker run --rm", "docker_run", 0.5),
    "knarr_run": ("knarr run --rm", "knarr_run", 0.5),
}  # fmt: skip


class Plan:
    """How much of each: `rounds` samples, `gap` seconds of quiet before each, `burst` lifecycles, `density` containers at once."""

    def __init__(self, quick: bool, rounds: int | None = None) -> None:
        self.gap = 0.005 if quick else 0.05
        self.rounds = rounds or (2 if quick else 60)
        self.bursts = 1 if quick else 3
        self.burst = 6 if quick else 100
        self.at_once = 3 if quick else 20
        self.crowds = (3,) if quick else (10, 100)
        self.density = 3 if quick else 20
        self.starts = 1 if quick else 9


class Session:
    """One run over all engines; fills `found` by key and `waterfall` with the median start."""

    def __init__(self, engines: list[Any], floor: Floor | None, plan: Plan, progress: Progress) -> None:
        self.engines = engines
        self.floor = floor
        self.plan = plan
        self.progress = progress
        self.found: dict[str, Measurement] = {}
        self.waterfall: list[tuple[str, float]] = []
        self.skipped: list[str] = []

    def measurement(self, key: str, title: str, better: str = "lower") -> Measurement:
        return self.found.setdefault(key, Measurement(key, title, better=better))

    def run(self) -> None:
        steps: list[tuple[str, Callable[[], None]]] = [("idle memory", self.idle_memory)]
        steps += [(title, lambda k=key: self.sampled(k)) for key, (title, _, _) in SAMPLED.items()]  # type: ignore[misc]
        steps += [
            ("the launch and the bare system calls", self.launches),
            ("many at once", self.bursts),
            ("crowds", self.crowds),
            ("memory per container", self.container_memory),
            ("daemon start", self.daemon_starts),
        ]
        for number, (title, step) in enumerate(steps):
            self.progress.stage(number, len(steps), title)
            step()
        self.progress.done()

    def able(self, method: str) -> list[Any]:
        return [engine for engine in self.engines if hasattr(engine, method)]

    def sampled(self, key: str) -> None:
        title, method, weight = SAMPLED[key]
        rounds = max(2, round(self.plan.rounds * weight))
        engines = self.able(method)
        if not engines:
            return
        result = self.measurement(key, title)
        for engine in engines:
            getattr(engine, method)(self.plan.gap)  # the first of a kind pays for imports and caches
        for number in range(rounds):
            self.progress.part(number / rounds)
            for engine in engines:
                result.add(engine.name, getattr(engine, method)(self.plan.gap))
            if self.floor and key in ("start_wait", "lifecycle") and number % 3 == 0:
                self.floor_samples()
        for engine in engines:
            if isinstance(engine, ApiEngine):
                engine.drop_target()

    def floor_samples(self) -> None:
        assert self.floor
        for to_exec, to_exit in self.floor.samples(self.plan.gap):
            self.measurement("floor_exec", "bare system calls, to exec").add("floor", to_exec)
            self.measurement("floor_exit", "bare system calls, to exit").add("floor", to_exit)

    def launches(self) -> None:
        """Knarr's own trace of real starts, from clone to exec, in turns with the floor."""
        traced = []
        for number in range(self.plan.rounds):
            self.progress.part(number / self.plan.rounds)
            for engine in self.able("trace"):
                steps = engine.trace(self.plan.gap)
                clone = next(at for name, at in steps if name.startswith("make a process"))
                taken = (next(at for name, at in steps if name == "the program runs") - clone) / 1e6
                self.measurement("launch", "the launch, clone to exec").add(engine.name, taken)
                traced.append((taken, steps))
            if self.floor and number % 3 == 0:
                self.floor_samples()
        if traced:
            traced.sort(key=lambda pair: pair[0])
            steps = traced[len(traced) // 2][1]
            self.waterfall = [(short(name), (at - steps[0][1]) / 1e3) for name, at in steps]

    def bursts(self) -> None:
        """Lifecycles per second, several at a time; each worker has a connection of its own."""
        result = self.measurement("burst", f"{self.plan.burst} lifecycles, {self.plan.at_once} at a time", better="higher")
        for number in range(self.plan.bursts):
            self.progress.part(number / self.plan.bursts)
            for engine in self.able("lifecycle"):
                result.add(engine.name, burst(engine, self.plan.burst, self.plan.at_once), "1/s")

    def crowds(self) -> None:
        """Made before; all started at the same moment: milliseconds until the last one has ended."""
        for crowd in self.plan.crowds:
            result = self.measurement(f"crowd_{crowd}", f"{crowd} starts at once, until all ended")
            for number in range(self.plan.bursts):
                self.progress.part(number / self.plan.bursts)
                for engine in self.able("lifecycle"):
                    result.add(engine.name, start_all(engine, crowd))

    def idle_memory(self) -> None:
        result = self.measurement("idle_memory", "idle memory, all processes")
        for engine in self.able("processes"):
            engine.timed_lifecycle(0)
        time.sleep(1)
        for engine in self.able("processes"):
            result.add(engine.name, memory.total(engine.processes()), "MB")

    def container_memory(self) -> None:
        count = self.plan.density
        result = self.measurement("container_memory", f"memory per container ({count} run)")
        for engine in self.able("processes"):
            before = memory.total(engine.processes())
            running = [engine.create(["sleep", "100000"]) for _ in range(count)]
            for container in running:
                engine.start(container)
            time.sleep(0.5)
            result.add(engine.name, (memory.total(engine.processes()) - before) / count, "MB")
            for container in running:
                engine.delete(container)

    def daemon_starts(self) -> None:
        result = self.measurement("daemon_start", "daemon start to first answer")
        for number in range(self.plan.starts):
            self.progress.part(number / self.plan.starts)
            for engine in self.able("daemon_start"):
                taken = engine.daemon_start()
                if taken is None:
                    self.skipped.append(f"{engine.name}: a second daemon beside it does not start, so its start was not measured")
                else:
                    result.add(engine.name, taken)


def short(name: str) -> str:
    """A step's name without the long part of host paths."""
    return re.sub(r"(/\S*?/)?[0-9a-f]{64}", "…", re.sub(r"/\S*/knarr-test-[^/\s]*/", "…/", name))


def burst(engine: ApiEngine, count: int, at_once: int) -> float:
    """`count` whole lifecycles by `at_once` workers; lifecycles per second."""
    numbers = iter(range(count))
    lock = threading.Lock()

    def work() -> None:
        client = Client(engine.socket)
        while True:
            with lock:
                if next(numbers, None) is None:
                    break
            engine.lifecycle(client)
        client.close()

    return count / in_threads(work, at_once)


def start_all(engine: ApiEngine, count: int) -> float:
    """Milliseconds until `count` containers, all started at once, have ended."""
    waiting = [engine.create(TRUE) for _ in range(count)]
    queue = list(waiting)
    gate = threading.Barrier(count)

    def work() -> None:
        client = Client(engine.socket)
        container = queue.pop()
        gate.wait()
        engine.start(container, client)
        engine.wait(container, client)
        client.close()

    taken = in_threads(work, count) * 1000
    for container in waiting:
        engine.delete(container)
    return taken


def in_threads(work: Callable[[], None], count: int) -> float:
    """Seconds that `count` threads of `work` take. Raises the first error of any."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except Exception as error:  # handed on below: a thread cannot raise into its parent
            errors.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(count)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = time.monotonic() - began
    if errors:
        raise errors[0]
    return taken
