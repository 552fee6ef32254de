"""Requests to a daemon that may be cut off anywhere, and what has to be there afterwards: every image that was acknowledged, whole."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable

from tests.lib import busybox
from tests.lib.daemon import Daemon
from tests.lib.images import BUSYBOX, docker_archive, entry, tar
from tests.lib.registries import DockerRegistry, seed

TAGS = 3


def fill(registry: DockerRegistry) -> None:
    """Put the images into a registry that `Work` pulls: four layers, two of them shared."""
    with open(BUSYBOX, "rb") as file:
        program = {"cat": file.read()}
    base = {f"base/{number}": os.urandom(200_000) for number in range(8)}
    for tag in range(TAGS):
        own = {f"own/{number}": os.urandom(150_000) + b"\0" * 100_000 for number in range(10)}
        seed(registry, "app", str(tag), files=[program, base, own, {"tag": str(tag).encode()}], config={"Cmd": ["/cat", "/tag"]})


class Work:
    """What clients do to one daemon, and what of it was acknowledged: name -> what `/tag` must hold, None while that is not known.

    `stored` is called whenever that has changed, before a request and after its answer.
    """

    def __init__(self, daemon: Daemon, registry: str, chance: random.Random, stored: Callable[[], object] = lambda: None) -> None:
        self.daemon = daemon
        self.registry = registry
        self._stored = stored
        self.chance = chance
        self.expected: dict[str, str | None] = {}
        self.done = 0
        self.archives = [self._archive(number) for number in range(3)]

    @staticmethod
    def _archive(number: int) -> tuple[str, bytes]:
        name = f"loaded:{number}"
        layers = [busybox.layer(), tar([entry("tag", data=str(number).encode()), entry("big", data=os.urandom(1 << 20))])]
        return name, docker_archive(layers, [name], {"Cmd": ["cat", "/tag"]})

    def step(self) -> None:
        """One request that may be cut off anywhere."""
        self.chance.choice([self.pull, self.pull, self.load, self.load, self.delete, self.delete, self.prune, self.check, self.run])()
        self.done += 1

    def pull(self) -> None:
        self.pull_tag(self.chance.randrange(TAGS))

    def pull_tag(self, tag: int) -> None:
        name = f"{self.registry}/app:{tag}"
        self._changes(name, "POST", f"/images/create?fromImage={self.registry}/app&tag={tag}", None, str(tag))

    def load(self) -> None:
        self.load_archive(*self.chance.choice(self.archives))

    def load_archive(self, name: str, data: bytes) -> None:
        self._changes(name, "POST", "/images/load?quiet=1", data, name.partition(":")[2])

    def _changes(self, name: str, method: str, target: str, body: bytes | None, holds: str) -> None:
        """An image that was acknowledged stays so while it comes once more."""
        before = self.expected.get(name)
        if before is None:
            self._expect(name, None)
        answer = self.daemon.api(method, target, body)
        assert answer.status == 200, answer.body
        if b"error" in answer.body:
            raise AssertionError(f"{target}: {answer.body[-500:]!r}")
        assert method != "POST" or "create" not in target or b"Status: " in answer.body, answer.body[-300:]
        self._expect(name, holds)

    def _expect(self, name: str, holds: str | None) -> None:
        self.expected[name] = holds
        self._stored()

    def delete(self) -> None:
        name = self.chance.choice(list(self.expected) or [""])
        if not name:
            return
        self._expect(name, None)
        answer = self.daemon.api("DELETE", f"/images/{name}?force=1")
        assert answer.status in (200, 404), answer.body
        del self.expected[name]
        self._stored()

    def prune(self) -> None:
        assert self.daemon.api("POST", "/images/prune").status in (200, 409)

    def check(self) -> None:
        answer = self.daemon.api("GET", "/system/check?repair=1")
        assert answer.status == 200
        findings = [json.loads(line) for line in answer.body.splitlines()]
        assert not [one for one in findings if one.get("state") in ("damaged", "missing")], findings

    def run(self) -> None:
        names = [name for name, holds in self.expected.items() if holds is not None]
        if names:
            self.runs(self.chance.choice(names))

    def runs(self, name: str) -> None:
        """An acknowledged image gives what it should."""
        body = {"Image": name, "HostConfig": {"NetworkMode": "none"}}
        made = self.daemon.api("POST", "/containers/create", body)
        assert made.status == 201, (name, made.body)
        container = made.json()["Id"]
        started = self.daemon.api("POST", f"/containers/{container}/start")
        assert started.status == 204, (name, started.body)
        assert self.daemon.api("POST", f"/containers/{container}/wait").json()["StatusCode"] == 0
        logs = self.daemon.api("GET", f"/containers/{container}/logs?stdout=1").body
        assert logs[8:].decode() == self.expected[name], name
        assert self.daemon.api("DELETE", f"/containers/{container}").status == 204

    # -- after a start

    def look(self) -> None:
        """Nothing half there, nothing damaged; every acknowledged image is there. What was under way may be there or not, whole."""
        findings = self.findings()
        assert not findings, findings
        shown = {tag for image in self.daemon.api("GET", "/images/json").json() for tag in image["RepoTags"] or ()}
        for name, holds in list(self.expected.items()):
            if holds is not None:
                assert name in shown, (name, shown)
            elif name in shown:
                self.expected[name] = name.rpartition(":")[2]
            else:
                del self.expected[name]

    def findings(self) -> list[dict[str, object]]:
        answer = self.daemon.api("GET", "/system/check")
        lines = [json.loads(line) for line in answer.body.splitlines()]
        assert "summary" in lines[-1], lines[-1:]
        return lines[:-1]
